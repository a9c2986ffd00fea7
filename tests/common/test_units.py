import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import (
    GiB,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    significant,
)


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("8GiB", 8 * GiB), ("1.5 kB", 1500), ("7B", 7), ("0MiB", 0)]
)
def test_sizes(text, n_bytes):
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["8", "8gib", "GiB", "-1GiB", "8 GiB x", "nanGiB"])
def test_a_size_without_a_known_unit_is_refused(text):
    with pytest.raises(InvalidInput, match="8GiB"):
        parse_size(text)


def test_a_size_that_is_no_number_any_more_is_refused():
    with pytest.raises(InvalidInput, match="size of 401 letters is too large"):
        parse_size(400 * "9" + "B")


@pytest.mark.parametrize(
    ("text", "seconds"), [("12.5ms", 0.0125), ("2 s", 2.0), ("3min", 180.0)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-15)


@pytest.mark.parametrize(
    "seconds", [3e-9, 2.5e-6, 0.0125, 0.9997, 1.0, 59.0, 3600.0, 1e5]
)
def test_a_printed_duration_reads_back(seconds):
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=5e-3)


@pytest.mark.parametrize("n_bytes", [0, 1, 1023, 1536, 1010 * 2**20, 10 * GiB])
def test_a_printed_size_reads_back(n_bytes):
    assert parse_size(format_size(n_bytes)) == pytest.approx(n_bytes, rel=5e-3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(10427859.93, "10,430,000"), (0.7, "0.7"), (-0.0, "0"), (-1234.56, "-1,235")],
)
def test_significant_digits_are_no_power_of_ten(value, text):
    assert significant(value, 4) == text
