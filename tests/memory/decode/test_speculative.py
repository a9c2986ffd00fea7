"""Whatever a draft proposes, the tokens are those of plain greedy decoding."""

import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import MiB
from thesis_lib.memory.decode import speculative, verifier
from thesis_lib.memory.decode.generate import Streaming, generate_text
from thesis_lib.memory.model import batch_invariant
from thesis_lib.memory.model.pretrained import quiet
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.offloaded_model import StreamedModel
from thesis_lib.memory.offload.plan import PlanInfeasible

NEW = 24


class Scripted:
    """A draft that knows the answer and spoils a share of it."""

    def __init__(self, answer, wrong, seed=0):
        self.answer, self.wrong = answer, wrong
        self.draw = random.Random(seed)

    def propose(self, tokens, k):
        """The next tokens of the answer, some of them replaced."""
        done = next(
            n
            for n in range(len(self.answer), -1, -1)
            if tuple(tokens[len(tokens) - n :]) == self.answer[:n]
        )
        return [
            (token + 1) % tiny.VOCAB if self.draw.random() < self.wrong else token
            for token in self.answer[done : done + k]
        ]


def plan_tight(folder, prompt, new=NEW, resident=1):
    """A plan that streams most layers and covers passes of every size."""
    return tiny.plan_tight(
        folder,
        resident,
        context=prompt + new,
        pass_tokens=20,
        logit_tokens=17,
        rollback=16,
    )


def calibrated(streamed):
    """A verifier that is sure of all sizes, on a machine whose link decides."""
    found = speculative.calibrate(streamed)
    assert found.sizes == (1, *verifier.SIZES)
    return replace(found, plan=streamed.plan)


# Each in the type of its checkpoints, and one of each kind of attention in float32.
TYPED = [(architecture, torch.bfloat16) for architecture in tiny.SHAPES]
TYPED += [(one, torch.float32) for one in ("llama", "gpt_neox", "gemma3_text", "phi")]


@pytest.mark.parametrize(("architecture", "dtype"), TYPED, ids=str)
def test_tokens_are_those_of_plain_decoding_for_any_draft(
    tmp_path, architecture, dtype
):
    model = tiny.write(tmp_path, architecture, dtype=dtype)
    prompt = tiny.tokens(2, 1, 9)
    made = plan_tight(tmp_path, 9)
    with StreamedModel(tmp_path, made) as streamed:
        plain = speculative.decode_greedily(streamed, prompt, NEW)
        assert plain.passes == NEW - 1
        checked = calibrated(streamed)
        for wrong in (0.0, 0.3, 1.0):
            with DeviceBudget(made.device_peak_bytes) as budget:
                streamed.charge(budget)
                found = speculative.decode_greedily(
                    streamed, prompt, NEW, Scripted(plain.tokens, wrong), checked
                )
            assert found.tokens == plain.tokens
            assert budget.peak_bytes <= made.device_peak_bytes
            if wrong == 0.0:
                assert found.passes < plain.passes  # how many fewer, clocks decide
                assert found.acceptance == 1
            if wrong == 1.0:
                assert found.passes == plain.passes
                assert found.acceptance == 0
    with torch.no_grad():
        expected = model.generate(prompt, max_new_tokens=NEW, do_sample=False)
    assert plain.tokens == tuple(expected[0, 9:].tolist())


def test_ties_are_broken_as_in_plain_decoding(tmp_path):
    tiny.write(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    head = weights["lm_head.weight"]
    head[1::2] = head[:-1:2]  # every token has a twin with the very same logit
    save_file(weights, file, metadata={"format": "pt"})
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompt = tiny.tokens(3, 1, 5)
    with torch.no_grad():
        expected = model.generate(prompt, max_new_tokens=NEW, do_sample=False)
    with StreamedModel(tmp_path, plan_tight(tmp_path, 5)) as streamed:
        plain = speculative.decode_greedily(streamed, prompt, NEW)
        assert plain.tokens == tuple(expected[0, 5:].tolist())
        for draft in (Scripted(plain.tokens, 0.2), Twins(plain.tokens, 0.0)):
            found = speculative.decode_greedily(
                streamed, prompt, NEW, draft, calibrated(streamed)
            )
            assert found.tokens == plain.tokens


class Twins(Scripted):
    """A draft whose every proposal has the logit of the answer, but comes second."""

    def propose(self, tokens, k):
        """The other token of each pair."""
        return [token ^ 1 for token in super().propose(tokens, k)]


def test_a_size_whose_bits_differ_is_left_out(tmp_path, monkeypatch):
    tiny.write(tmp_path, dtype=torch.float32)
    monkeypatch.setattr(batch_invariant, "mixes_rows", lambda *_, **__: False)
    with StreamedModel(tmp_path, plan_tight(tmp_path, 9)) as streamed:
        checked = speculative.calibrate(streamed)
        assert checked.sizes == (1,)
        prompt = tiny.tokens(2, 1, 9)
        plain = speculative.decode_greedily(streamed, prompt, NEW)
        draft = Scripted(plain.tokens, 0.0)
        found = speculative.decode_greedily(streamed, prompt, NEW, draft, checked)
        assert found.tokens == plain.tokens
        assert found.passes == plain.passes


def test_a_resident_draft_of_the_model_itself_is_always_right(tmp_path):
    tiny.write(tmp_path)
    prompt = tiny.tokens(5, 1, 6)
    small = speculative.open_draft(tmp_path, 6 + NEW)
    made = plan_tight(tmp_path, 6)
    together = made.device_peak_bytes + small.plan.device_peak_bytes
    machine = Machine(together, 1e9)
    beside = speculative.plan_speculation(tmp_path, machine, 6, NEW, 2, small.plan)
    assert beside.streamed_layers > 0
    assert beside.device_peak_bytes + small.plan.device_peak_bytes <= together
    with (
        StreamedModel(tmp_path, beside) as streamed,
        small,
        DeviceBudget(together) as budget,
    ):
        streamed.charge(budget)
        small.charge(budget)
        plain = speculative.decode_greedily(streamed, prompt, NEW)
        checked = calibrated(streamed)
        draft = speculative.ModelDraft(small)
        found = speculative.decode_greedily(streamed, prompt, NEW, draft, checked)
        assert found.tokens == plain.tokens
        # A draft decodes single tokens after another prefill: nearly always right.
        assert found.acceptance > 0.9
        # Asked again, it forgets what was not accepted.
        other = list(plain.tokens[:3])
        assert draft.propose(other, 4) == speculative.ModelDraft(small).propose(
            other, 4
        )
    tight = Machine(small.plan.device_peak_bytes, 1e9)
    with pytest.raises(InvalidInput, match="smaller draft or more memory"):
        speculative.plan_speculation(tmp_path, tight, 6, NEW, 2, small.plan)


def test_one_slow_proposal_does_not_end_a_draft(tmp_path, monkeypatch):
    tiny.write(tmp_path)
    prompt, now = tiny.tokens(5, 1, 6), [0.0]
    with StreamedModel(tmp_path, plan_tight(tmp_path, 6)) as streamed:
        plain = speculative.decode_greedily(streamed, prompt, NEW)
        checked = calibrated(streamed)
        slow_s = 30 * checked.plan.step_s()

        class WrongAndSlowAtFirst(Scripted):
            def propose(self, tokens, k):
                self.wrong = float(now[0] == 0)
                now[0] = slow_s
                return super().propose(tokens, k)

        clock = SimpleNamespace(perf_counter=lambda: now[0])
        monkeypatch.setattr(speculative, "time", clock)
        draft = WrongAndSlowAtFirst(plain.tokens, 0.0)
        found = speculative.decode_greedily(streamed, prompt, NEW, draft, checked)
        assert found.tokens == plain.tokens
        assert found.proposed[0] > 0 == found.proposed[1]
        assert sum(found.proposed[1:]) > 0


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30))
def test_lookup_proposes_what_followed_the_longest_match(text):
    expected = []
    for n in range(min(4, len(text) - 1), 1, -1):
        starts = [i for i in range(len(text) - n) if text[i : i + n] == text[-n:]]
        if starts:
            expected = text[starts[-1] + n :][:5]
            break
    assert speculative.PromptLookup(least=2, most=4).propose(text, 5) == expected


@given(st.floats(0, 0.99), st.integers(0, 15))
def test_expected_tokens_are_the_sum_of_a_geometric_series(acceptance, depth):
    closed = (1 - acceptance ** (depth + 1)) / (1 - acceptance)
    assert verifier.expected_tokens(acceptance, depth) == pytest.approx(closed)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.2))
def test_the_depth_has_the_most_tokens_a_second_of_all(acceptance, slope, draft_s):
    def step_s(tokens):
        return max(1.0, slope * tokens)

    def rate(depth):
        seconds = step_s(depth + 1) + depth * draft_s
        return verifier.expected_tokens(acceptance, depth) / seconds

    depth = verifier.choose_depth(acceptance, step_s, (1, 3, 7, 15), draft_s)
    assert rate(depth) == max(rate(n) for n in (0, 1, 3, 7, 15))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_the_interval_holds_the_acceptance_as_often_as_it_says(share):
    draws = np.random.default_rng(0).binomial(200, share, 4000)
    values, counts = np.unique(draws, return_counts=True)
    ends = [verifier.acceptance_interval(int(n), 200) for n in values]
    held = [low <= share <= high for low, high in ends]
    assert 0.93 < np.average(held, weights=counts) < 0.98
    assert verifier.acceptance_interval(0, 0) == (0, 1)


def test_a_text_ends_after_the_token_that_stops_it(tmp_path):
    tiny.write(tmp_path)
    prompt = tiny.tokens(2, 1, 9)
    with StreamedModel(tmp_path, plan_tight(tmp_path, 9)) as streamed:
        plain = speculative.decode_greedily(streamed, prompt, NEW)
        stop = plain.tokens[10]
        whole = plain.tokens[: plain.tokens.index(stop) + 1]
        draft, checked = Scripted(plain.tokens, 0.0), calibrated(streamed)
        for options in ((), (draft, checked)):
            found = speculative.decode_greedily(
                streamed, prompt, NEW, *options, stop=(stop,)
            )
            assert found.tokens == whole


def speculate_at_random(folder, seed):
    """Whether a random budget was admitted, for a random model, prompt and answer."""
    draw = random.Random(seed)

    def written(name):
        architecture = draw.choice(list(tiny.SHAPES))
        changes = {"vocab_size": vocab, "initializer_range": draw.choice([0.02, 0.3])}
        if "sliding_window" in tiny.SHAPES[architecture]:
            changes["sliding_window"] = draw.choice([3, 7, 24])
        dtype = draw.choice([torch.bfloat16, torch.float32])
        tiny.write(folder / name, architecture, seed, dtype, **changes)
        tiny.give_tokenizer(folder / name)
        return folder / name

    vocab = draw.choice([211, 3000])
    model, draft = written("model"), None
    prompt = "".join(draw.choices("abc ", k=draw.randint(1, 30)))
    new, ring = draw.randint(1, 20), draw.choice([1, 2, 3])
    held = None
    if draw.random() < 0.4:
        draft = written("draft")
        held = speculative.open_draft(draft, len(prompt) + new).plan
    ample = speculative.plan_speculation(
        model, Machine(2**50, 1e9), len(prompt), new, ring, held
    )
    least = ample.least_device_bytes(ring) + (held.device_peak_bytes if held else 0)
    spare = draw.choice([0, draw.randint(-50_000, 3 * ample.staging_bytes)])
    try:
        found = speculative.speculate_text(
            str(model),
            max(1, least + spare),
            prompt,
            new,
            None if draft is None else str(draft),
            Streaming(ring=ring),
        )
    except PlanInfeasible:
        assert spare < 0, seed  # less than what the largest passes need
        return False
    peaks = found["device_peak_bytes"], found["planned_peak_bytes"], least + spare
    assert sorted(peaks) == list(peaks), seed
    assert found["tokens"] <= new
    return True


@pytest.mark.parametrize(
    ("seeds", "least"),
    [(range(5), 1), pytest.param(range(1000, 1300), 200, marks=pytest.mark.proof)],
)
def test_random_budgets_are_kept_or_rejected(tmp_path, seeds, least):
    admitted = [speculate_at_random(tmp_path / str(seed), seed) for seed in seeds]
    assert sum(admitted) >= least


def test_one_to_sixteen_new_tokens_keep_the_plan(tmp_path):
    draw = random.Random(0)
    for new in range(1, 17):
        folder = tmp_path / str(new)
        dtype = draw.choice([torch.bfloat16, torch.float32])
        tiny.write(folder, draw.choice(list(tiny.SHAPES)), dtype=dtype)
        ample = speculative.plan_speculation(folder, Machine(2**50, 1e9), 5, new, 2)
        least = Machine(ample.least_device_bytes(2), 1e9)
        made = speculative.plan_speculation(folder, least, 5, new, 2)
        with StreamedModel(folder, made) as streamed, DeviceBudget() as budget:
            streamed.charge(budget)
            checked = speculative.calibrate(streamed)
            draft = speculative.PromptLookup(1, 2)
            prompt = tiny.tokens(2, 1, 5)
            speculative.decode_greedily(streamed, prompt, new, draft, checked)
        assert budget.peak_bytes <= made.device_peak_bytes, new


def test_less_memory_verifies_fewer_tokens_before_it_is_rejected(tmp_path):
    tiny.write(tmp_path, vocab_size=3000)
    plan = partial(speculative.plan_speculation, tmp_path)
    ample = plan(Machine(2**50, 1e9), 5, 16, 2)
    least = ample.least_device_bytes(2)
    assert plan(Machine(least, 1e9), 5, 16, 2).logit_tokens == 16
    floor = plan(Machine(2**50, 1e9), 5, 1, 2).least_device_bytes(2)
    steps = range(least - 1024, floor + 8192, -4096)
    sizes = [plan(Machine(size, 1e9), 5, 16, 2).logit_tokens for size in steps]
    with pytest.raises(PlanInfeasible):
        plan(Machine(floor - 1, 1e9), 5, 16, 2)
    assert sorted(set(sizes)) == [1, *verifier.SIZES[:-1]]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("draft", [None, "smollm2"])
def test_the_command_writes_the_text_of_plain_generation(draft):
    options = {"device_bytes": 500 * MiB, "max_new_tokens": 12}
    prompt = "one two three four five six one two three"
    plain = generate_text("smollm2", prompt=prompt, **options)
    found = speculative.speculate_text("smollm2", prompt=prompt, draft=draft, **options)
    assert found["text"] == plain["text"]
    assert found["tokens"] == plain["tokens"] == 12
    assert found["device_peak_bytes"] <= found["planned_peak_bytes"]
    assert found["passes"] + found["accepted"] >= 11
    assert found["tokens_per_pass"] == pytest.approx(11 / found["passes"])
