"""Rules that compare or calculate with named numbers, as text: never run as code."""

import ast
from collections.abc import Mapping
from typing import Any

from thesis_lib.checks import InvalidInput, require

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
