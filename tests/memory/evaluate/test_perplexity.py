import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.stats import RANGE
from thesis_lib.memory.evaluate.perplexity import (
    Perplexity,
    compare,
    perplexity,
    read_tokens,
    token_step,
)

VOCABULARY = 97


def text(n=400, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(VOCABULARY, size=n))


def uniform(ids):
    return torch.zeros(*ids.shape, VOCABULARY)


class Small:
    """A model that says how many words it knows, as those of transformers do."""

    config = SimpleNamespace(vocab_size=5)

    def __call__(self, ids):
        return torch.zeros(*ids.shape, 5)


class Bigrams:
    """A model that sees only the current token, and counts what it scores."""

    def __init__(self):
        self.table = torch.randn(
            VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)
        )
        self.positions = self.longest = 0

    def __call__(self, ids):
        self.positions += ids.numel()
        self.longest = max(self.longest, ids.shape[1])
        return self.table[ids]


@pytest.mark.parametrize("context", [1, 7, 32, 500])
def test_context_does_not_matter_to_a_model_without_memory(context):
    tokens, model = text(), Bigrams()
    log_p = torch.log_softmax(model.table, dim=-1)[tokens[:-1], tokens[1:]]
    expected = float(torch.exp(-log_p.double().mean()))
    found = perplexity(model, tokens, context)
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert found.tokens == model.positions == 399  # all but the first, once
    assert model.longest == min(context, 399)


def test_a_model_that_knows_the_next_token_has_perplexity_one():
    tokens = torch.arange(VOCABULARY).repeat(4)
    sure = torch.eye(VOCABULARY).roll(1, dims=1) * 100

    assert perplexity(lambda ids: sure[ids], tokens, 32).value == pytest.approx(1)


def test_logits_may_come_as_an_attribute():
    class Output:
        def __init__(self, ids):
            self.logits = uniform(ids)

    assert perplexity(Output, text(), 32).value == pytest.approx(VOCABULARY, rel=1e-5)


def test_the_interval_covers_the_true_perplexity():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        sums = rng.normal(3.0, 0.5, size=40) * 64
        found = Perplexity(sums, np.full(40, 64))
        made = found.interval()
        assert made.low < made.value < made.high
        assert made.value == pytest.approx(found.value)
        inside += made.low < math.exp(3.0) < made.high
    assert 0.92 < inside / 300 < 0.98


def test_a_paired_ratio_cancels_the_difficulty_of_the_text():
    rng = np.random.default_rng(0)
    hard = rng.normal(3.0, 0.5, size=40) * 64
    counts = np.full(40, 64)
    dense = Perplexity(hard, counts)
    worse = Perplexity(hard + 0.1 * 64 + rng.normal(0, 0.3, size=40), counts)
    ratio, alone = worse.ratio(dense), dense.interval()
    assert ratio.low < ratio.value < ratio.high
    assert ratio.low < math.exp(0.1) * 1.005
    assert ratio.high - ratio.low < 0.05 * (alone.high - alone.low)
    same = dense.ratio(dense)
    assert same.low == same.value == same.high == 1


REFUSED = {
    "context=0": lambda: perplexity(uniform, text(), 0),
    "two or more": lambda: perplexity(uniform, text(1), 32),
    "float32 from 0": lambda: perplexity(uniform, torch.arange(9.0), 4),
    "int64 from -1": lambda: perplexity(uniform, torch.arange(9) - 1, 4),
    "int64 from 0 to 8": lambda: perplexity(Small(), torch.arange(9), 4),
    "same windows": lambda: perplexity(uniform, text(), 32).ratio(
        perplexity(uniform, text(), 16)
    ),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_cannot_be_scored_is_rejected(named):
    with pytest.raises(InvalidInput, match=named):
        REFUSED[named]()


def test_a_comparison_is_relative_to_its_reference():
    exact = Perplexity(np.array([3.0, 4.0]), np.array([1, 1]))
    worse = Perplexity(exact.nll + math.log(2), exact.counts)
    table = compare({"exact": exact, "worse": worse}, "exact")
    assert table.loc["exact", "ratio"] == 1
    for column in ("ratio", "ratio_low", "ratio_high"):
        assert table.loc["worse", column] == pytest.approx(2)
    with pytest.raises(InvalidInput, match="reference"):
        compare({"exact": exact}, "dense")


def test_few_windows_have_a_range_and_no_interval():
    two = Perplexity(np.array([3.0, 5.0]), np.array([2, 2]))
    worse = Perplexity(two.nll + np.array([1.0, 3.0]), two.counts)
    table = compare({"two": two, "worse": worse}, "two")
    assert list(table.ratio) == pytest.approx([1, math.e])
    ends = table.loc["worse", ["ratio_low", "ratio_high"]]
    assert list(ends) == pytest.approx([math.exp(0.5), math.exp(1.5)])
    assert two.interval().method == RANGE


def test_a_step_is_one_pass_of_one_token():
    model = Bigrams()
    step = token_step(model, 5)
    assert model.positions == 0
    step()
    assert model.positions == 1


class Letters:
    """A tokenizer of one token a character."""

    def __call__(self, words, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in words]}


def test_tokens_are_a_stretch_of_the_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Sense and Sensibility", encoding="utf-8")
    assert read_tokens(Letters(), path, 3, 6).tolist() == [ord(c) for c in "and"]
    with pytest.raises(InvalidInput, match="past its end"):
        read_tokens(Letters(), path, 3, 19)
    with pytest.raises(InvalidInput, match="does not exist"):
        read_tokens(Letters(), tmp_path / "none.txt", 3)
    with pytest.raises(InvalidInput, match="n_tokens=0"):
        read_tokens(Letters(), path, 0)
