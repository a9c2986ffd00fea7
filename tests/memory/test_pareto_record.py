"""The record of the sweep: the front, who loses to whom, and what is not there yet."""

import numpy as np
import pytest

from thesis_lib.book.tables import pareto
from thesis_lib.book.tables.pareto import pareto_front, ways
from thesis_lib.memory.evaluate import perplexity

FICTION, JARGON = perplexity.TEXTS
WISHES = {"NF4": {"weights": "nf4"}, "lossless": {"weights": "lossless"}}


def entry(name, bits, *shifts, number=0, wish=None):
    """A way that adds so many nats to every token of each text."""
    return {
        "name": name,
        "set": number,
        "wish": WISHES.get(name, {"bits": 3} if wish is None else wish),
        "layer_bytes": int(1e6 * bits),
        "layer_bits": bits,
        "nll": {
            text: [4 * (2 + shift), 4 * (3 + shift), 2 * (1 + shift)]
            for text, shift in zip(perplexity.TEXTS, shifts, strict=False)
        },
    }


def record(*points, **more):
    return {
        "commit": "0123456789",
        "machine": {"cpu": "a processor", "cores": 2},
        "settings": {
            "context": 4,
            "evaluation_tokens": {FICTION: 10, JARGON: 10},
            "calibration": {"parts": 3},
        },
        "points": list(points),
        **more,
    }


BF16 = entry("bf16", 16, 0, 0, wish={})
NF4 = entry("NF4", 4, 0.2, 0.4)
POOR = entry("low rank 0.8", 12, 0.5, 0.6, wish={"rank_ratio": 0.8})
TIMING = {
    "commit": "fedcba9876",
    "machine": {"cpu": "a processor", "cores": 2},
    "device_bytes": 3 * 2**20,
    "systems": {
        "bf16": {"token_s": [2.0, 2.0, 9.0], "drain_s": [1.0], "tokens": [1, 2]},
        "lossless": {"token_s": [1.5], "drain_s": [1.2], "tokens": [1, 2]},
        "low rank 0.8": {"refused": "short by 1 MiB"},
    },
}


def test_who_is_beaten_by_nobody_is_the_front():
    found = pareto_front([3, 1, 2, 2, 4], [1, 3, 2, 3, 1])
    assert found.tolist() == [True, True, True, False, False]


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
        assert front.any(), seed
        for found in (
            front,
            pareto_front(second, first),
            pareto_front(np.exp(first), 3.0 * second - 7),
        ):
            assert found.tolist() == expected, seed
        assert pareto_front(first[front], second[front]).all(), seed


def test_what_was_not_measured_is_of_no_front_and_beats_nobody():
    nan, inf = np.nan, np.inf
    assert pareto_front([1, nan, 0], [1, 0, nan]).tolist() == [True, False, False]
    assert pareto_front([1, 0], [1, inf]).tolist() == [True, False]
    assert pareto_front([], []).tolist() == []


def test_a_shift_of_all_tokens_is_its_exponential_and_has_no_spread():
    table = ways(record(BF16, NF4)).set_index(["name", "text"])
    for text, shift in zip(perplexity.TEXTS.values(), (0.2, 0.4), strict=True):
        dense, found = table.loc[("bf16", text)], table.loc[("NF4", text)]
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
    assert list(shown.index) == ["bf16", "GPTQ 4", "NF4"]
    assert list(shown.front) == [
        "fiction, technical English",
        "fiction",
        "fiction, technical English",
    ]


def test_a_loser_is_told_with_the_cheapest_that_beats_it_everywhere():
    cheaper = entry("GPTQ 2", 2, 0.4, 0.9)  # beats it on fiction alone
    said = pareto.words(record(BF16, NF4, POOR, cheaper))
    assert "low rank 0.8 (12.00 bits a weight, 1.65 and 1.82 times" in said["low_rank"]
    assert "by NF4 (4.00 bits a weight, 1.22 and 1.49 times" in said["low_rank"]
    assert "Of 1 such ways 0 are of a front." in said["low_rank"]
    better = entry("low rank 0.9", 3, 0.1, 0.1, wish={"rank_ratio": 0.9})
    said = pareto.words(record(BF16, NF4, POOR, better))
    assert "Of 2 such ways 1 is of a front: low rank 0.9." in said["low_rank"]


def test_time_has_a_front_of_its_own_and_says_who_did_not_fit():
    lossless = entry("lossless", 11, 0, 0)
    made = record(BF16, lossless, NF4, POOR, timing=TIMING)
    table = ways(made)
    assert set(table[table.time_front]["name"]) == {"lossless"}
    said = pareto.words(made)["time"]
    assert "lossless (1500 ms, 1.00 times" in said
    assert "16-bit model takes 2000 ms" in said
    assert "A token of lossless takes 1.25 times" in said
    assert "one of bf16 2.0 times: 1000 ms of its 2000 are reads" in said
    assert "wrote the tokens" in said
    assert "low rank 0.8 does not fit" in said
    assert "commit fedcba9" in said


def test_a_record_of_any_part_can_be_told():
    nothing = entry("GPTQ 2", 2)  # made, and not scored
    one_text = entry("bf16", 16, 0, wish={})
    for made, rows in (
        (None, 0),
        (record(), 0),
        (record(NF4), 0),  # nothing to compare it with
        (record(one_text, NF4, nothing), 2),
        (record(BF16, timing=TIMING | {"systems": {}}), 2),
        (record(timing=TIMING), 0),
    ):
        table = ways(made)
        assert len(table) == rows
        assert pareto.readable(table).empty == (rows == 0)
        assert all(pareto.words(made).values())
    said = pareto.words(record(BF16))
    assert said["time"].endswith("not been measured yet.")
    assert "10 and 10 tokens, scored in windows of 4" in said["scored"]
    assert said["scored"].endswith("of a processor, 2 cores, commit 0123456.")


def test_sets_that_are_missing_are_counted():
    sets = [entry("GPTQ 3", 3, 0, 0, number=n) for n in range(3)]
    said = pareto.sets_sentence
    assert said(record(BF16, NF4)) == "Nothing that is calibrated has been scored yet."
    assert "stands on 1 of these 3; of GPTQ 3 that" in said(record(BF16, sets[0]))
    assert "stands on 1 to 2 of these 3" in said(record(*sets[:2], POOR))
    assert "all 3" in said(record(*sets))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("GPTQ 3", "GPTQ"),
        ("GPTQ 3 + rank 16", pareto.CORRECTED),
        ("plain SVD 0.8", pareto.LOW_RANK),
        ("NF4 (double)", "bitsandbytes"),
        ("a new one", "a new one"),
    ],
)
def test_a_way_is_of_its_family(name, kind):
    assert pareto.family(name) == kind
