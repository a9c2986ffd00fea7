"""Ranks and recipes against every other choice: none of as much size loses less."""

import itertools

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.allocation import (
    Offer,
    Spectrum,
    allocate,
    allocate_ranks,
    allocate_recipes,
)
from thesis_lib.memory.formats.low_bit import Grid, LowBitConfig


def spectra(seed, shapes=((9, 12), (7, 7), (12, 6))):
    """Spectra that fall at different rates, from different heights."""
    rng = np.random.default_rng(seed)
    return {
        f"{i}": Spectrum(
            m, n, rng.lognormal() * np.sort(rng.exponential(size=min(m, n)) ** 3)[::-1]
        )
        for i, (m, n) in enumerate(shapes)
    }


def entries(parts, ranks):
    return sum(
        part.m * part.n if ranks[name] is None else ranks[name] * (part.m + part.n)
        for name, part in parts.items()
    )


def loss(parts, ranks):
    """What is left: nothing of a matrix that stays dense."""
    return sum(
        part.gains[ranks[name] :].sum()
        for name, part in parts.items()
        if ranks[name] is not None
    )


def every_choice(parts):
    ranks = [[None, *range(1, min(p.m, p.n) + 1)] for p in parts.values()]
    for choice in itertools.product(*ranks):
        yield dict(zip(parts, choice, strict=True))


def test_no_ranks_of_as_many_entries_lose_less():
    for seed in range(12):
        parts = spectra(seed)
        found = [(entries(parts, r), loss(parts, r)) for r in every_choice(parts)]
        for ratio in (0.4, 0.6, 0.8, 0.95, 1.0):
            ranks = allocate_ranks(parts, ratio)
            used = entries(parts, ranks)
            least = min(lost for held, lost in found if held <= used)
            assert loss(parts, ranks) <= least + 1e-12, f"seed {seed}"
            assert used <= ratio * sum(p.m * p.n for p in parts.values())


def test_a_larger_budget_never_takes_a_rank_away_nor_reaches_the_break_even():
    for seed in range(12):
        parts = spectra(seed, ((40, 30), (64, 16), (24, 24), (16, 64)))
        before = None
        for ratio in np.linspace(0.2, 1, 33):
            ranks = allocate_ranks(parts, ratio)
            held = {n: np.inf if r is None else r for n, r in ranks.items()}
            assert before is None or all(held[n] >= before[n] for n in held), seed
            before = held
            for name, rank in ranks.items():
                part = parts[name]
                assert rank is None or rank * (part.m + part.n) < part.m * part.n


def test_what_is_left_of_the_budget_is_less_than_a_step():
    parts = spectra(3, ((64, 64),) * 8)
    for ratio in (0.3, 0.6, 0.9):
        left = ratio * 8 * 64**2 - entries(parts, allocate_ranks(parts, ratio))
        assert 0 <= left < 64 * 64
    assert allocate_ranks(parts, 1.0) == dict.fromkeys(parts)  # dense, all of them


def test_the_matrix_that_matters_more_gets_more():
    gains = 0.5 ** np.arange(20.0)
    parts = {"a": Spectrum(20, 20, gains), "b": Spectrum(20, 20, gains / 2**5)}
    # Nine pairs of vectors of 40 entries: b begins where a has come down to it.
    assert allocate_ranks(parts, 9 * 40 / 800) == {"a": 7, "b": 2}


def offers(sizes, losses):
    recipes = [LowBitConfig(Grid(2, 8), rank) for rank in range(len(sizes))]
    return [Offer(*one) for one in zip(recipes, sizes, losses, strict=True)]


def test_what_fills_a_budget_is_what_still_fits():
    some = {"a": offers((1, 5, 9), (16, 4, 0)), "b": offers((1, 3, 4), (4.5, 0.5, 0))}
    # By rate: 4 more for a, 2 for b, 4 for a, 1 for b; from 2 on.
    for budget, taken, filled in [
        (2, (0, 0), (0, 0)),
        (5, (0, 0), (0, 2)),
        (8, (1, 1), (1, 1)),
        (9, (1, 1), (1, 2)),
        (13, (2, 2), (2, 2)),
    ]:
        for fill, expected in ((False, taken), (True, filled)):
            found = allocate(some, budget, fill)
            assert tuple(one.recipe.rank for one in found.values()) == expected
    with pytest.raises(InvalidInput, match="smallest offers take 2 together"):
        allocate(some, 1.9)


def test_recipes_of_equal_steps_are_the_best_of_all_ways():
    """Where every step has one size greed is optimal within every budget."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        choices = {
            name: [
                Offer(LowBitConfig(Grid(width, 8)), 10 * width, float(loss))
                for width, loss in zip(
                    (2, 3, 4), np.cumsum(np.sort(rng.random(3)))[::-1], strict=True
                )
            ]
            for name in "abcd"
        }
        for budget in range(80, 165, 10):
            chosen = allocate_recipes(choices, budget)
            picked = [
                next(one for one in choices[name] if one.recipe == recipe)
                for name, recipe in chosen.items()
            ]
            best = min(
                sum(one.loss for one in way)
                for way in itertools.product(*choices.values())
                if sum(one.nbytes for one in way) <= budget
            )
            assert sum(one.nbytes for one in picked) <= budget
            assert sum(one.loss for one in picked) == pytest.approx(best), seed


def test_an_offer_above_the_hull_is_never_taken():
    sizes = (10, 20, 30, 40, 50)
    # The second lies above the line from the first to the third.
    some = offers(sizes, (9.0, 8.0, 2.0, 3.0, 1.0))
    ranks = [allocate_recipes({"a": some}, size)["a"].rank for size in sizes]
    assert ranks == [0, 0, 2, 2, 4]


def test_what_cannot_be_allocated_is_rejected():
    for ratio in (0.0, -0.5, 1.1, float("nan")):
        with pytest.raises(InvalidInput, match="must lie in"):
            allocate_ranks(spectra(0), ratio)
    with pytest.raises(InvalidInput, match="take 53 together"):  # rank 1 everywhere
        allocate_ranks(spectra(0), 0.1)
    for gains in ([1.0, 2.0], [np.nan, 0.0], [1.0, -1.0]):
        with pytest.raises(InvalidInput, match="gains of a"):
            allocate_ranks({"a": Spectrum(4, 4, np.array(gains))}, 0.9)
