import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    ("parse", "text", "value"),
    [
        (parse_size, "8GiB", 8 * GiB),
        (parse_size, "1.5 kB", 1500),
        (parse_size, "7B", 7),
        (parse_size, "0MiB", 0),
        (parse_duration, "12.5ms", 0.0125),
        (parse_duration, "2 s", 2.0),
        (parse_duration, "3min", 180.0),
    ],
)
def test_number_with_its_unit_is_read(parse, text, value):
    assert parse(text) == pytest.approx(value, rel=1e-15)


@given(st.integers(0, 10**18), st.floats(1e-9, 1e6))
def test_printed_size_and_duration_read_back(n_bytes, seconds):
    assert parse_size(format_size(n_bytes)) == pytest.approx(n_bytes, rel=5e-3)
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=5e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, "8GiB")
            for text in ("8", "8gib", "GiB", "-1GiB", "8 GiB x", "nanGiB")
        ),
        (400 * "9" + "B", "size of 401 letters is too large"),
    ],
)
def test_size_without_a_known_unit_or_beyond_numbers_is_rejected(text, message):
    with pytest.raises(InvalidInput, match=message):
        parse_size(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(10427859.93, "10,430,000"), (0.7, "0.7"), (-0.0, "0"), (-1234.56, "-1,235")],
)
def test_significant_digits_are_no_power_of_ten(value, text):
    assert significant(value, 4) == text
