"""The record of the sweep: the front, who loses to whom, and who did not fit."""

import numpy as np
import pytest

from thesis_book.tables import pareto
from thesis_book.tables.pareto import pareto_front, ways
from thesis_lib.memory.evaluate import perplexity

FICTION, JARGON = perplexity.TEXTS
WISHES = {"NF4": {"weights": "nf4"}, "lossless": {"weights": "lossless"}}


MADE = {"commit": "0123456789", "machine": {"cpu": "a processor", "cores": 2}}


def entry(name, bits, *shifts, number=0, wish=None):
    """A way that adds so many nats to every token of each text."""
    return {
        "name": name, "set": number, "layer_bytes": int(1e6 * bits), "layer_bits": bits,
        "wish": WISHES.get(name, {"bits": 3} if wish is None else wish),
        "nll": {
            text: [4 * (2 + shift), 4 * (3 + shift), 2 * (1 + shift)]
            for text, shift in zip(perplexity.TEXTS, shifts, strict=False)
        },
    }  # fmt: skip


def record(*points, **more):
    tokens, sets = dict.fromkeys((FICTION, JARGON), 10), {"parts": 3}
    settings = {"context": 4, "evaluation_tokens": tokens, "calibration": sets}
    return MADE | {"settings": settings, "points": list(points), **more}


BF16 = entry("bf16", 16, 0, 0, wish={})
NF4 = entry("NF4", 4, 0.2, 0.4)
POOR = entry("low rank 0.8", 12, 0.5, 0.6, wish={"rank_ratio": 0.8})
SYSTEMS = {
    "bf16": {"token_s": [2.0, 2.0, 9.0], "drain_s": [1.0], "tokens": [1, 2]},
    "lossless": {"token_s": [1.5], "drain_s": [1.2], "tokens": [1, 2]},
    "low rank 0.8": {"refused": "short by 1 MiB"},
}
TIMING = MADE | {"device_bytes": 3 * 2**20, "systems": SYSTEMS}


def test_the_front_is_that_of_the_definition_and_of_any_scale():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        first, second = rng.integers(0, 6, (2, 12))  # with ties and twins
        points = list(zip(first, second, strict=True))
        expected = [
            not any(x <= a and y <= b and (x, y) != (a, b) for x, y in points)
            for a, b in points
        ]
        front = pareto_front(first, second)
        assert front.tolist() == expected, seed
        assert front.any(), seed
        assert pareto_front(second, first).tolist() == expected, seed
        assert pareto_front(np.exp(first), 3.0 * second - 7).tolist() == expected, seed
        assert pareto_front(first[front], second[front]).all(), seed


def test_unmeasured_points_are_not_pareto_optimal_and_dominate_none():
    nan, inf = np.nan, np.inf
    assert pareto_front([1, nan, 0], [1, 0, nan]).tolist() == [True, False, False]
    assert pareto_front([1, 0], [1, inf]).tolist() == [True, False]
    assert pareto_front([], []).tolist() == []


def test_a_shift_of_all_tokens_is_its_exponential_and_has_no_spread():
    table = ways(record(BF16, NF4)).set_index(["name", "text"])
    for text, shift in zip(perplexity.TEXTS.values(), (0.2, 0.4), strict=True):
        dense, found = table.loc[("bfloat16", text)], table.loc[("NF4", text)]
        assert dense.perplexity == pytest.approx(np.exp(22 / 10))
        assert found.ratio == pytest.approx(np.exp(shift))
        for end in ("perplexity", "low", "high"):
            assert found[end] == pytest.approx(np.exp(2.2 + shift))


def test_sets_are_averaged_and_their_ends_are_the_outermost():
    sets = [entry("GPTQ 3", 3 + n, 0.1 * n, number=n) for n in range(3)]
    table = ways(record(BF16, *sets))
    (row,) = table[table["name"] == "GPTQ 3"].itertuples()
    assert (row.sets, row.bits, row.text) == (3, 4, "fiction")
    assert row.ratio == pytest.approx(np.exp(0.1))
    dense = np.exp(2.2)
    assert (row.low, row.high) == pytest.approx((dense, dense * np.exp(0.2)))


def test_each_text_has_its_own_front():
    mixed = entry("GPTQ 4", 4.5, 0.1, 0.5)
    table = ways(record(BF16, NF4, mixed)).set_index(["name", "text"]).front
    assert table["GPTQ 4", "fiction"]
    assert not table["GPTQ 4", "technical English"]
    shown = pareto.readable(ways(record(BF16, NF4, mixed)))
    assert list(shown.index) == ["bfloat16", "GPTQ 4", "NF4"]
    both = "fiction, technical English"
    assert list(shown.front) == [both, "fiction", both]


def test_a_loser_stands_beside_the_cheapest_that_beats_it_everywhere():
    cheaper = entry("GPTQ 2", 2, 0.4, 0.9)  # beats it on fiction alone
    made = ways(record(BF16, NF4, POOR, cheaper))
    (row,) = pareto.beaten(made, pareto.LOW_RANK, "GPTQ").itertuples(index=True)
    assert tuple(row) == (
        "low rank 0.8", "12.00", "1.65, 1.82", "NF4", "4.00", "1.22, 1.49",
    )  # fmt: skip
    better = entry("low rank 0.9", 3, 0.1, 0.1, wish={"rank_ratio": 0.9})
    assert list(pareto.beaten(ways(record(BF16, POOR, better)), pareto.LOW_RANK).index)
    assert pareto.beaten(ways(record(BF16, better)), pareto.LOW_RANK).empty


def test_the_numbers_of_the_sweep_are_those_of_its_tables():
    sets = [entry("GPTQ 3", 3, 0.3, 0.3, number=n) for n in range(2)]
    found = pareto.numbers(record(BF16, NF4, POOR, *sets, timing=TIMING))
    assert found[f"front_{JARGON}"] == "GPTQ 3, bfloat16"
    assert found[f"front_{FICTION}"] == "GPTQ 3, NF4, bfloat16"
    assert found[f"front_{FICTION}_ways"] == 3
    assert (found[f"time_front_{FICTION}"], found["ways"]) == ("bfloat16", 4)
    assert (found["low_rank_ways"], found["low_rank_front"]) == (1, 0)
    assert (found["sets_least"], found["sets_most"], found["sets"]) == (1, 2, 3)
    assert (found["sets_alone"], found["sets_alone_ways"]) == ("low rank 0.8", 1)
    assert (found["nearest"], found["farthest"]) == ("lossless", "bfloat16")
    assert found["farthest_times"] == pytest.approx(2.0)
    assert (found["unfit_ways"], found["tokens_equal"]) == (1, True)
    assert found["time_origin"].endswith("commit 0123456")
    assert found[f"tokens_{FICTION}"] == 10


def test_time_has_a_front_of_its_own_and_who_did_not_fit_has_none():
    made = record(BF16, entry("lossless", 11, 0, 0), NF4, POOR, timing=TIMING)
    table = ways(made)
    assert set(table[table.time_front]["name"]) == {"lossless"}
    timed = pareto.timing(made)
    assert timed.token_s["bf16"] == 2.0
    assert timed.over_drain["lossless"] == pytest.approx(1.25)
    assert timed.index[timed.token_s.isna()].tolist() == ["low rank 0.8"]


def test_a_text_without_the_dense_model_and_what_was_not_scored_are_left_out():
    one_text = entry("bf16", 16, 0, wish={})
    assert ways(record(NF4)).empty
    assert len(ways(record(one_text, NF4, entry("GPTQ 2", 2)))) == 2


def test_a_way_is_of_its_family():
    kinds = {
        "GPTQ 3": "GPTQ",
        "GPTQ 3 + rank 16": pareto.CORRECTED,
        "plain SVD 0.8": pareto.LOW_RANK,
        "NF4 (double)": "bitsandbytes",
        "a new one": "a new one",
    }
    assert {name: pareto.family(name) for name in kinds} == kinds
