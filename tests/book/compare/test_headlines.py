"""The headline results are those of records and claims, under their limits."""

import pytest

from thesis_book.compare.comparison import read_reference
from thesis_book.compare.headlines import (
    BARS,
    FEWER,
    GB_PER_GIB,
    MEMORY,
    headline_results,
)
from thesis_book.execute.claims import read_claims

CLAIMS = read_claims().claims


@pytest.fixture(scope="module")
def records():
    return [r for r in read_reference().records if r.profile == "default"]


def test_each_bar_is_what_a_chapter_or_the_thesis_published(records):
    numbers = {
        k: v for r in records if r.number in (4, 6) for k, v in r.numbers.items()
    }
    results = headline_results(records, CLAIMS)
    assert results is not None
    for bar, (axis, _, key, kind, _) in zip(results.itertuples(), BARS, strict=True):
        known = numbers[key]
        if kind == "published":
            known = CLAIMS[key].published["value"] / (
                GB_PER_GIB if axis == MEMORY else 1
            )
        assert (bar.axis, bar.kind) == (axis, kind)
        assert bar.value == pytest.approx(known, rel=1e-12)
        if kind == "simulated":
            ends = [numbers[f"{key}_{end}"] for end in ("low", "high")]
            assert [bar.low, bar.high] == ends
    assert set(results.loc[results["kind"] == "published", "low"].isna()) == {True}


def test_nothing_that_has_a_limit_passes_it(records):
    results = headline_results(records, CLAIMS)
    assert results is not None
    assert set(results.dropna(subset=["limit"])["axis"]) == set(results["axis"])
    assert not (results["value"] > results["limit"]).any()
    # Of violations it is what the bound leaves of FIFO's, at the load of the headline.
    limited = results[results["axis"] == FEWER].dropna(subset=["limit"])
    (chapter,) = (r.numbers for r in records if r.number == 4)
    left = chapter["learned_bound_percent"] / chapter["fifo_violations_percent"]
    assert [*limited["limit"]] == pytest.approx([100 - 100 * left] * len(limited))
    assert all(f"{chapter['headline_load']:.2f}" in says for says in limited["says"])


@pytest.mark.parametrize("number", [4, 6])
def test_without_the_run_of_a_chapter_there_is_nothing_to_show(records, number):
    others = [record for record in records if record.number != number]
    assert headline_results(others, CLAIMS) is None
