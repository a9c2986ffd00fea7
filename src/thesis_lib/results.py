"""Headline numbers: glued for prose, checked for nbval."""

from collections.abc import Mapping
from numbers import Real

from thesis_lib.checks import InvalidInput, require


def publish(numbers: Mapping[str, Real | str]) -> None:
    """Glue each number under its name, so that prose on any page can cite it.

    Floats stay floats: prose rounds with `{glue:text}`name:.1f``.
    """
    from myst_nb import glue  # a book dependency, not one of the package

    for name, value in numbers.items():
        require(
            name.isidentifier(), f"{name!r} cannot be a glue name: use an identifier"
        )
        plain = value if isinstance(value, str | int) else float(value)
        glue(name, plain, display=False)


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
