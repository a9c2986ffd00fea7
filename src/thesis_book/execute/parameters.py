"""Parameters of a chapter: declared in it, checked before it runs.

A chapter declares its parameters in the cell tagged `parameters`: name, type, smoke
value and a comment. The cell tagged `limits` behind it says of each what is allowed, a
line for each, and checks the values that run, whatever put them there:

    parameters.check(
        globals(),
        '''
        seeds     2 .. 100 runs; work
        loads     0.3 .. 2.5 of saturation; 1 .. 12 items
        context   16 .. text_tokens tokens
        kinds     int8 | nf4 | fp4; 0 .. 3 items
        rules     FILE.py:FUNCTION; 0 .. 3 items
        ''',
    )

A bound may be another parameter, or arithmetic of others without spaces, such as
`54+7*ring`; a list stands there for its largest item. The items of a list are distinct.
`work` marks what the time of a chapter grows with. A function is named with the
absolute path of its file, on whose content the chapter's result depends as well.
"""

import ast
import inspect
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

from thesis_book.execute.imports import PARSER, syntax_tree
from thesis_lib.common.errors import InvalidInput, require, shown

TYPES: dict[str, type | UnionType] = {
    "int": int,
    "float": int | float,
    "str": str,
    "bool": bool,
}


class _Strict(yaml.SafeLoader):
    """YAML whose mappings name no key twice, and whose numbers are what they say."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name, count in Counter(map(str, names)).items():
            if count > 1:
                raise yaml.YAMLError(f"{name} is given {count} times")
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """A number, but not 010 and 1:30, which YAML 1.1 has for 8 and 90."""
        if re.match(r"[-+]?0[0-9_]|[^:]+:", node.value):
            raise yaml.YAMLError(f"{node.value} is no plain number: write it as 10")
        return yaml.safe_load(node.value)


_Strict.add_constructor("tag:yaml.org,2002:int", _Strict.construct_number)
_Strict.add_constructor("tag:yaml.org,2002:float", _Strict.construct_number)


def read_yaml(text: str) -> Any:
    """Parse the values of parameters that a user wrote.

    Raises yaml.YAMLError for a name that is given twice and for a number that is not
    written in plain digits, besides what is no YAML.
    """
    try:
        return yaml.load(text, _Strict)
    except (LookupError, ValueError, AttributeError, RecursionError) as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


def _assignment(text: str) -> tuple[str, Any]:
    """Name and value of 'NAME=VALUE', the value read as YAML."""
    name, separator, value = text.partition("=")
    require(
        bool(separator) and name.isidentifier(),
        f"parameter {text!r} cannot be read: expected NAME=VALUE, such as seeds=5",
    )
    try:
        return name, read_yaml(value)
    except yaml.YAMLError:
        raise InvalidInput(
            f"value of {shown(text)} cannot be read: expected YAML as in the files of "
            "data/params, such as 5, 0.9, [0.8, 1.1] or text in quotes; numbers in "
            "plain digits, not 010 or 1:30"
        ) from None


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Values by name of 'NAME=VALUE' each. Raises InvalidInput for a name twice."""
    assigned: dict[str, Any] = {}
    for text in texts:
        name, value = _assignment(text)
        require(name not in assigned, f"parameter {name} is given twice: say it once")
        assigned[name] = value
    return assigned


Bound = float | str  # a number, or a rule that makes it of other parameters
FUNCTION = "FILE.py:FUNCTION"


def is_function(text: str) -> bool:
    """Whether it names a file that is there, by an absolute path, and a function."""
    file, _, name = text.rpartition(":")
    path = Path(file)
    known = path.is_absolute() and path.suffix == ".py" and path.is_file()
    return known and name.isidentifier()


@dataclass(frozen=True, slots=True)
class Limits:
    """The range of a value; `text` describes it."""

    text: str = "any value"
    low: Bound = -math.inf
    high: Bound = math.inf
    words: tuple[str, ...] = ()  # instead of a range
    function: bool = False  # in a file
    fewest: int = 0  # items of a list
    most: int = 1000
    work: bool = False

    @classmethod
    def parse(cls, text: str) -> "Limits":
        """Read 'LOW .. HIGH unit; N .. M items; work', 'A | B; …' or FUNCTION."""
        span, *rest = (part.strip() for part in text.split(";"))
        read: dict[str, Any] = {}
        if match := re.fullmatch(r"(\S+) \.\. (\S+)(?: .+)?", span):
            read |= {"low": _bound(match[1]), "high": _bound(match[2])}
        elif span == FUNCTION:
            read["function"] = True
        else:
            read["words"] = tuple(word.strip() for word in span.split("|"))
        for part in rest:
            if items := re.fullmatch(r"(\d+) \.\. (\d+) items", part):
                read |= {"fewest": int(items[1]), "most": int(items[2])}
            else:
                require(part == "work", f"limit {part!r} of {text!r} cannot be read")
                read["work"] = True
        return cls(text, **read)

    @property
    def others(self) -> list[str]:
        """The parameters that the bounds are made of."""
        rules = [bound for bound in (self.low, self.high) if isinstance(bound, str)]
        return list(dict.fromkeys(name for rule in rules for name in names_in(rule)))

    def bounds(self, values: Mapping[str, Any]) -> tuple[float, float]:
        """Both ends for `values` of other parameters; without these, there is none.

        A list stands for its largest item.
        """
        numbers = {
            name: max(value) if isinstance(value, list) else value
            for name in self.others
            if (value := values.get(name)) not in (None, [])
        }

        def end(bound: Bound, otherwise: float) -> float:
            if not isinstance(bound, str):
                return bound
            known = all(name in numbers for name in names_in(bound))
            return value_of(bound, numbers) if known else otherwise

        return end(self.low, -math.inf), end(self.high, math.inf)


def _bound(text: str) -> Bound:
    try:
        return float(text)
    except ValueError:
        names_in(text)
        return text


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its declared type, smoke value, description and limits."""

    name: str
    type_name: str  # 'int', 'float', 'str', 'bool' or 'list[…]' of one of these
    smoke: Any
    help: str
    limits: Limits = field(default_factory=Limits)

    @property
    def element(self) -> str:
        """The declared type, of the items where it is a list."""
        return self.type_name.removeprefix("list[").removesuffix("]")

    @property
    def is_list(self) -> bool:
        return self.type_name != self.element

    def fits(self, value: Any) -> bool:
        """Return whether `value` has the declared type."""

        def is_one(item: Any) -> bool:
            if isinstance(item, bool):
                return self.element == "bool"
            return isinstance(item, TYPES[self.element])

        if self.is_list:
            return isinstance(value, list) and all(map(is_one, value))
        return is_one(value)

    def rejection(self, value: Any, values: Mapping[str, Any]) -> str | None:
        """Why `value` is not allowed beside the `values` of others, None if it is.

        A bound that is a parameter not among `values` is not held against it.
        """
        if not self.fits(value):
            return (
                f"{self.name}={value!r} has the wrong type: expected {self.type_name}"
            )
        limits, items = self.limits, value if self.is_list else [value]
        good = all(self._allows(item, values) for item in items)
        if self.is_list:
            good &= limits.fewest <= len(items) <= limits.most
            good &= len(set(items)) == len(items)
        if good:
            return None
        named = [name for name in limits.others if name in values]
        beside = "".join(f", {name}={values[name]!r}" for name in named)
        if named:
            low, high = self.ends(values)
            beside += f": {low:g} .. {high:g}"
        if limits.function:
            beside += ", where FILE.py is the absolute path of a file that is there"
        distinct = ", each once" if self.is_list else ""
        allowed = limits.text.removesuffix("; work")
        return f"{self.name}={value!r} is outside {allowed}{distinct}{beside}"

    def _allows(self, item: Any, values: Mapping[str, Any]) -> bool:
        if self.limits.function:
            return is_function(item)
        if self.limits.words:
            return item in self.limits.words
        low, high = self.ends(values)
        return self.element not in ("int", "float") or low <= item <= high

    def ends(self, values: Mapping[str, Any]) -> tuple[float, float]:
        """The least and the largest value: of whole numbers where it is one."""
        low, high = self.limits.bounds(values)
        if self.element != "int":
            return low, high
        return (
            math.ceil(low) if math.isfinite(low) else low,
            math.floor(high) if math.isfinite(high) else high,
        )


def reject(declared: Iterable[Parameter], values: Mapping[str, Any]) -> None:
    """Raise InvalidInput that names each of `values` that is not allowed."""
    passed = [p for p in declared if p.name in values]
    sound = {p.name: values[p.name] for p in passed if p.fits(values[p.name])}
    rejections = [
        rejection
        for parameter in passed
        if (rejection := parameter.rejection(values[parameter.name], sound))
    ]
    require(not rejections, "parameter " + "; parameter ".join(rejections))


def read_limits(text: str) -> dict[str, Limits]:
    """The limits of a `limits` cell's text, by parameter."""
    lines = [line.split(maxsplit=1) for line in text.strip().splitlines()]
    return {name: Limits.parse(rest) for name, rest in lines}


def limits_of(source: str) -> dict[str, Limits]:
    """The limits in the source of a `limits` cell, which is not executed."""
    (text,) = (
        node.args[1]
        for node in ast.walk(syntax_tree(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("check")
    )
    return read_limits(ast.literal_eval(text))


def declared_in(source: str, limits: Mapping[str, Limits]) -> dict[str, Parameter]:
    """Return the parameters that the source of a `parameters` cell assigns, by name.

    The comment on the last line of an assignment is its help; without an annotation
    the type is ''. The source is not executed.
    """
    lines, parameters = source.splitlines(), {}
    for node in syntax_tree(source).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        annotation = "" if isinstance(node, ast.Assign) else node.annotation
        rest = lines[(node.end_lineno or 0) - 1].encode()[node.end_col_offset :]
        name = ast.unparse(target)
        parameters[name] = Parameter(
            name,
            annotation and ast.unparse(annotation),
            ast.literal_eval(node.value),
            rest.decode().partition("#")[2].strip(),
            limits.get(name, Limits()),
        )
    return parameters


def check(values: Mapping[str, Any], text: str) -> None:
    """Reject the values of a running chapter that its limits do not allow.

    `values` is the namespace of the chapter, with the annotations of its parameters.
    Raises InvalidInput that names each.
    """
    annotations = values["__annotations__"]
    limits = read_limits(text)
    kinds = {name: inspect.formatannotation(annotations[name]) for name in limits}
    reject(
        [Parameter(name, kinds[name], None, "", limits[name]) for name in limits],
        values,
    )


_ALLOWED = (
    ast.Name, ast.Load, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Compare, ast.boolop,
    ast.cmpop, ast.Not, ast.USub, ast.Add, ast.Sub, ast.Mult, ast.Div,
)  # fmt: skip


def names_in(rule: str) -> list[str]:
    """The names that a rule is made of, each once, in order.

    Raises InvalidInput for anything but names, numbers, comparisons, `+ - * /`, `and`,
    `or` and `not`.
    """
    try:
        with PARSER:
            nodes = [*ast.walk(ast.parse(rule, mode="eval").body)]
    except SyntaxError as error:
        raise InvalidInput(f"rule {rule!r} cannot be read: {error.msg}") from error
    for node in nodes:
        known = isinstance(node, _ALLOWED) or (
            isinstance(node, ast.Constant) and isinstance(node.value, int | float)
        )
        require(
            known,
            f"rule {rule!r} holds a {type(node).__name__}: expected names, numbers, "
            "comparisons and + - * /, and, or, not",
        )
    return list(dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name)))


def value_of(rule: str, numbers: Mapping[str, Any]) -> Any:
    """What a rule comes to among `numbers`. Raises InvalidInput as `names_in` does, and
    KeyError for a name that is not among them."""
    known = {name: numbers[name] for name in names_in(rule)}
    return eval(compile(rule, "rule", "eval"), {"__builtins__": {}}, known)
