import itertools

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.svd import Spectrum, allocate_ranks


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
    return sum(parts[name].entries(rank) for name, rank in ranks.items())


def loss(parts, ranks):
    return sum(parts[name].loss(rank) for name, rank in ranks.items())


def every_choice(parts):
    ranks = [[None, *range(1, min(p.m, p.n) + 1)] for p in parts.values()]
    for choice in itertools.product(*ranks):
        yield dict(zip(parts, choice, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_no_ranks_of_as_many_entries_lose_less(seed):
    parts = spectra(seed)
    found = [(entries(parts, r), loss(parts, r)) for r in every_choice(parts)]
    for ratio in (0.4, 0.6, 0.8, 0.95, 1.0):
        ranks = allocate_ranks(parts, ratio)
        used = entries(parts, ranks)
        least = min(lost for held, lost in found if held <= used)
        assert loss(parts, ranks) <= least + 1e-12
        assert used <= ratio * sum(p.m * p.n for p in parts.values())


@pytest.mark.parametrize("seed", range(12))
def test_a_larger_budget_never_takes_a_rank_away(seed):
    parts = spectra(seed, ((40, 30), (64, 16), (24, 24), (16, 64)))
    before = None
    for ratio in np.linspace(0.2, 1, 33):
        ranks = allocate_ranks(parts, ratio)
        held = {n: np.inf if r is None else r for n, r in ranks.items()}
        assert before is None or all(held[n] >= before[n] for n in held)
        before = held


def test_what_is_left_of_the_budget_is_less_than_a_step():
    rng = np.random.default_rng(3)
    parts = {
        f"{i}": Spectrum(64, 64, np.sort(rng.exponential(size=64) ** 2)[::-1])
        for i in range(8)
    }
    for ratio in (0.3, 0.6, 0.9):
        left = ratio * 8 * 64**2 - entries(parts, allocate_ranks(parts, ratio))
        assert 0 <= left < 64 * 64


def test_no_rank_reaches_the_break_even():
    for seed in range(12):
        parts = spectra(seed, ((40, 30), (64, 16), (24, 24)))
        for ratio in (0.5, 0.8, 0.99):
            for name, rank in allocate_ranks(parts, ratio).items():
                part = parts[name]
                assert rank is None or rank * (part.m + part.n) < part.m * part.n


def test_the_whole_budget_leaves_every_matrix_dense():
    parts = spectra(0)
    assert allocate_ranks(parts, 1.0) == dict.fromkeys(parts)


def test_the_matrix_that_matters_more_gets_more():
    gains = 0.5 ** np.arange(20.0)
    parts = {"a": Spectrum(20, 20, gains), "b": Spectrum(20, 20, gains / 2**5)}
    # Nine pairs of vectors of 40 entries: b begins where a has come down to it.
    assert allocate_ranks(parts, 9 * 40 / 800) == {"a": 7, "b": 2}


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.1, float("nan")])
def test_ratios_outside_the_unit_interval_are_refused(ratio):
    with pytest.raises(InvalidInput, match="must lie in"):
        allocate_ranks(spectra(0), ratio)


def test_what_cannot_be_allocated_is_refused():
    with pytest.raises(InvalidInput, match="rank 1 everywhere needs 53"):
        allocate_ranks(spectra(0), 0.1)
    for gains in ([1.0, 2.0], [np.nan, 0.0], [1.0, -1.0]):
        with pytest.raises(InvalidInput, match="gains of a"):
            allocate_ranks({"a": Spectrum(4, 4, np.array(gains))}, 0.9)
