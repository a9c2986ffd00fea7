"""Headline numbers and their records: published, checked, read back strictly."""

import ast
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from thesis_lib.common.errors import InvalidInput, parse_object, require
from thesis_lib.common.files import write_whole
from thesis_lib.common.provenance import disturbances

if TYPE_CHECKING:  # no kernel reads a notebook or waits for pydantic
    from nbformat import NotebookNode
    from pydantic import TypeAdapter

RECORD_VERSION = 2

Number = float | int | str

GLUED = "application/papermill.record/"  # where papermill keeps what is not shown
_published: dict[str, Number] = {}


def publish(*results: Mapping[str, Any], **numbers: Any) -> None:
    """Glue each number under its name, so that prose on any page can cite it.

    `results` are mappings of names to numbers, such as `Interval.numbers` returns; of
    equal names the last one counts. Floats stay floats: prose rounds with
    `{glue:text}`name:.1f``. Raises InvalidInput for a name that is no identifier and
    for a number that is not finite.
    """
    _glue((*results, numbers))


def publish_timed(*results: Mapping[str, Any], **numbers: Any) -> None:
    """Publish what the clock of this run decided, numbers and words.

    Those whose measurement was disturbed say so: `thesis run` names them and the book
    marks each place that cites them (`thesis_lib.common.provenance.undisturbed`).
    """
    _glue((*results, numbers), disturbed=list(disturbances()))


def _glue(results: Iterable[Mapping[str, Any]], disturbed: Sequence[str] = ()) -> None:
    """Glue numbers, and what disturbed the measurement of all of them."""
    from IPython.display import display  # of the kernel, no dependency of the package

    numbers = {name: value for each in results for name, value in each.items()}
    for name, value in numbers.items():
        require(
            name.isidentifier(), f"{name!r} cannot be a glue name: use an identifier"
        )
        plain = value if isinstance(value, str | int) else float(value)
        require(
            isinstance(plain, str) or math.isfinite(plain),
            f"{name}={plain} cannot be published: expected a finite number or a word",
        )
        _published[name] = plain
        book: dict[str, Any] = {
            "name": name,
            "mime_prefix": GLUED,
        }  # as myst_nb.glue writes it
        if disturbed:
            book["disturbed"] = disturbed
        display(
            {f"{GLUED}text/plain": repr(plain)}, raw=True, metadata={"scrapbook": book}
        )


def listed(names: Iterable[str], labels: Mapping[str, str] | None = None) -> str:
    """Names, or their labels, in a sentence: 'a, b and c'; 'none' without any."""
    *others, last = [(labels or {}).get(name, name) for name in names] or ["none"]
    return f"{', '.join(others)} and {last}" if others else last


def publish_change(*names: str) -> None:
    """Publish reductions in percent as prose says them: '1.3 % more', '34 % fewer'.

    From each published `name`, and `name_low` and `name_high` where they are:
    `name_by`, `name_by_low` and `name_by_high`, whose sign makes `name_by` positive,
    and `name_word`, which is "fewer" or "more"; `name_word_zh` is the same in Chinese.
    """
    for name in names:
        value = float(_published[name])
        turned = -1 if value < 0 else 1
        words = ("more", "增加") if value < 0 else ("fewer", "減少")
        numbers = {f"{name}_by": turned * value}
        ends = [_published.get(f"{name}_{end}") for end in ("low", "high")]
        if None not in ends:
            low, high = sorted(turned * float(end) for end in ends if end is not None)
            numbers |= {f"{name}_by_low": low, f"{name}_by_high": high}
        publish(numbers, {f"{name}_word": words[0], f"{name}_word_zh": words[1]})


def published() -> dict[str, Number]:
    """Everything that this process has published so far, by name."""
    return dict(_published)


def _outputs(notebook: "NotebookNode") -> Iterator[tuple[dict, Any]]:
    """A glued output of an executed notebook: metadata and value."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    for output in outputs:
        noted = output.get("metadata", {}).get("scrapbook", {})
        if noted.get("name"):
            text = output["data"].get(f"{noted.get('mime_prefix', '')}text/plain")
            yield noted, ast.literal_eval(text)


def glued(notebook: "NotebookNode") -> dict[str, Any]:
    """The numbers that an executed notebook glued, by name.

    Where a measurement was disturbed, `disturbed` names the numbers that rest on it and
    `disturbed_by` says what went on.
    """
    numbers, disturbed = {}, {}
    for noted, value in _outputs(notebook):
        numbers[noted["name"]] = value
        if noted.get("disturbed"):
            disturbed[noted["name"]] = noted["disturbed"]
    if disturbed:
        causes = dict.fromkeys(cause for group in disturbed.values() for cause in group)
        numbers |= {"disturbed": " ".join(disturbed), "disturbed_by": "; ".join(causes)}
    return numbers


def check(name: str, value: float, expected: float, rtol: float) -> str:
    """'name: ok' if value is within rtol of expected; a plain report otherwise.

    For cells that nbval compares: the text is the same on every machine that agrees.
    Raises InvalidInput for an rtol outside [0, 1).
    """
    if not 0 <= rtol < 1:
        raise InvalidInput(f"rtol={rtol:g} must lie in [0, 1): it is a fraction")
    if abs(value - expected) <= rtol * abs(expected):
        return f"{name}: ok"
    return f"{name}: {value:.6g} differs from {expected:.6g} by more than {rtol:.0%}"


class OldRecord(InvalidInput):
    """A record of an earlier version: what it describes has to be made again."""


STRICT = {"extra": "forbid", "strict": True}  # what pydantic rejects in a file
T = TypeVar("T")


@functools.cache  # it takes milliseconds, and a book has many records
def _adapter(kind: Any) -> "TypeAdapter":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_as(kind: type[T], content: Any, wrong: str, remedy: str) -> T:
    """Parse a file of YAML or JSON as a `kind`: each field of its declared type.

    Raises InvalidInput: what is `wrong`, each field that is missing, unknown or of
    another type, with what was expected of it, and the `remedy`.
    """
    from pydantic import ValidationError

    try:
        # As JSON, in which an object stands for a dataclass and 1 for no bool.
        return _adapter(kind).validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}"
            for each in error.errors()
        )
        raise InvalidInput(f"{wrong}: {problems}; {remedy}") from error
    # A key that is no word, such as a date; what holds itself.
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{wrong}: {error}; {remedy}") from error


@dataclass(frozen=True, slots=True)
class Record:
    """One executed chapter: what it ran with, where, for how long, and its numbers."""

    __pydantic_config__: ClassVar = STRICT
    chapter: str
    profile: str
    parameters: dict
    seeds: dict  # those of the parameters that seed or count random draws
    key: str  # hash of all that the chapter depends on, the machine apart
    notebook_sha256: str  # of the executed notebook beside this record
    commit: str
    clean: bool  # whether what results depend on was committed
    lock_sha256: str
    machine: dict  # as `provenance.describe`
    versions: dict
    precision: str  # what the chapter computed in, as it published it
    started: str  # ISO 8601, UTC
    seconds: float
    peak_memory_bytes: int  # largest resident set of one process of the run
    load_average: dict  # start, mean, most: of one minute, of the whole machine
    numbers: dict  # published names to values

    @property
    def number(self) -> int:
        """The number of its chapter."""
        return int(self.chapter.split("_")[0])

    def to_json(self) -> str:
        """Strict JSON: no NaN, keys in order, the version first to be read."""
        content = {"version": RECORD_VERSION, **asdict(self)}
        return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: Path | str) -> Self:
        """Read what `to_json` wrote; `where` names its place in a rejection.

        Raises OldRecord for an earlier version, InvalidInput for anything else that
        this version would not have written.
        """
        again = "delete it and run the chapter again"
        raw = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
        content = parse_object(raw, str(where), "a record as `thesis run` writes it")
        require(
            "version" in content,
            f"{where} is not a record of a run, for it has no version: {again}",
        )
        version = content.pop("version")
        if isinstance(version, int) and version > RECORD_VERSION:
            raise InvalidInput(
                f"{where} was written by a newer version of this project (record "
                f"version {version}, expected at most {RECORD_VERSION}): update this "
                "checkout, or choose another output folder; nothing was changed"
            )
        if version != RECORD_VERSION:
            raise OldRecord(
                f"{where} is a record of version {version!r}, expected "
                f"{RECORD_VERSION}: run the chapter again"
            )
        wrong = f"{where} is not a record of version {RECORD_VERSION}"
        return read_as(cls, content, wrong, again)

    def write(self, path: Path) -> None:
        """Write JSON; an existing record is replaced only by a complete one."""
        write_whole(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote. Raises InvalidInput for anything else."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise InvalidInput(
                f"record {path} cannot be read ({error.strerror}): expected a record "
                "as `thesis run` writes it"
            ) from error
        return cls.from_json(raw, path)


def publish_table(name: str, table: Any, cells: str = ".*") -> None:
    """Publish cells of a DataFrame as `name_row_column`, for prose to cite.

    Of a mapping every value is published, as `name_key`. `cells` is a regular
    expression: only those are published of which it matches all that follows `name_`.

    The levels of an index follow one another, and what no identifier may hold becomes
    an underscore: row "GPTQ 3 + rank 8" of column "bits" is `name_GPTQ_3_rank_8_bits`.
    Missing cells are left out. Raises InvalidInput where two cells would have one name.
    """
    labeled = (
        [((key,), value) for key, value in table.items()]
        if isinstance(table, Mapping)
        else [
            ((row, column), value)
            for column in table.columns
            for row, value in table[column].astype(object).dropna().items()
        ]
    )
    numbers: dict[str, Number] = {}
    for labels, value in labeled:
        key = _cell_name(name, *labels)
        require(
            key not in numbers,
            f"two cells of {name} would be published as {key}: expected labels "
            "that differ in letters or digits; rename a row or a column",
        )
        numbers[key] = value.item() if hasattr(value, "item") else value
    publish(
        {
            key: value
            for key, value in numbers.items()
            if re.fullmatch(cells, key.removeprefix(name).removeprefix("_"))
        }
    )


def _cell_name(*labels: object) -> str:
    """Labels, or the levels of them, joined to an identifier."""
    levels = [label if isinstance(label, tuple) else (label,) for label in labels]
    words = [str(word) for level in levels for word in level]
    return re.sub(r"\W+", "_", " ".join(words)).strip("_")
