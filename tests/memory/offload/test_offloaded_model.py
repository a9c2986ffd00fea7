"""Streaming changes where bytes live, not what the model says."""

from itertools import pairwise
from unittest.mock import patch

import pytest
import tiny
import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from thesis_book.experiments.memory.timing import measure_decoding, measure_passes
from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import MiB
from thesis_lib.memory.decode.generate import generate_text
from thesis_lib.memory.decode.speculative import decode_greedily
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.offloaded_model import (
    StreamedModel,
    disk_bytes_per_s,
    enforced,
    open_streamed,
    plan_checkpoint,
)
from thesis_lib.memory.offload.plan import PlanInfeasible
from thesis_lib.memory.offload.store import StoreDamaged

LAYERS = 5


def write_tiny(folder, **changes):
    """A random LLaMA of five layers on disk, and the same one resident."""
    return tiny.write(folder, **{"num_hidden_layers": LAYERS} | changes)


def test_a_budget_below_the_resident_set_is_rejected_twice(tmp_path):
    write_tiny(tmp_path)
    made = tiny.plan_tight(tmp_path, context=8)
    with pytest.raises(PlanInfeasible):
        plan_checkpoint(
            tmp_path, Machine(made.device_peak_bytes - 1, 1e9), context=8, ring=2
        )
    needed = made.non_layer_bytes + made.ring * made.staging_bytes
    with StreamedModel(tmp_path, made) as twin, DeviceBudget(needed) as budget:
        twin.charge(budget)
        with pytest.raises(torch.OutOfMemoryError):
            twin.step(tiny.tokens(0, 1, 1), None)


@pytest.mark.parametrize("resident", [0, 1, 2])
def test_a_pass_reads_the_streamed_layers_once(tmp_path, resident):
    write_tiny(tmp_path)
    with tiny.streamed(tmp_path, resident, ring=2, context=8) as twin:
        twin.step(tiny.tokens(0, 1, 1), None)
        source, store = twin.source, twin.source.store
        sizes = [store.nbytes(i) for i in source.ring.layers]
        source.ring.settle()
        ahead = sizes[: twin.plan.ring]
        whole = twin.bytes_read
        outer = store.nbytes(-1) + sum(store.nbytes(i) for i in source.resident)
        expected = outer + sum(sizes) + sum(ahead)
    # Only the last block of the file may end early.
    assert expected - 3 * 4096 < whole <= expected


@pytest.mark.parametrize(
    "shape", [(2, 1), (1, 5), (1, 0)], ids=["batch", "tokens", "empty"]
)
def test_a_step_outside_the_plan_is_rejected(tmp_path, shape):
    write_tiny(tmp_path)
    with tiny.streamed(tmp_path, context=8, pass_tokens=4, logit_tokens=2) as twin:
        with pytest.raises(InvalidInput):
            twin.step(torch.zeros(shape, dtype=torch.long), None, keep=1)
        with pytest.raises(InvalidInput, match="logits"):
            twin.step(torch.zeros((1, 4), dtype=torch.long), None)
        cache = twin.new_cache()
        for _ in range(2):
            twin.step(torch.zeros((1, 4), dtype=torch.long), cache, keep=2)
        with pytest.raises(InvalidInput, match="context 8"):
            twin.step(torch.zeros((1, 1), dtype=torch.long), cache)
    with pytest.raises(InvalidInput, match="closed"):
        twin.step(torch.zeros((1, 1), dtype=torch.long), None)


def test_leaving_gives_the_memory_back(tmp_path):
    write_tiny(tmp_path)
    made = tiny.plan_tight(tmp_path, resident=1, context=8)
    with DeviceBudget() as budget:
        with StreamedModel(tmp_path, made) as twin:
            twin.charge(budget)
            assert budget.bytes > made.staging_bytes
        rotary_bytes = 2 * 4 * twin.spec.head_dim
        assert budget.bytes <= rotary_bytes


def test_what_would_leave_the_context_is_rejected_before_anything_is_written(tmp_path):
    write_tiny(tmp_path)
    made = tiny.plan_tight(tmp_path, context=20, pass_tokens=8, generating=True)
    prompt, written = tiny.tokens(0, 1, 6), []

    class Written(BaseStreamer):
        def put(self, value):
            """Called with the prompt first."""
            written.append(value)

        def end(self):
            """Called at the end."""

    config = GenerationConfig(max_new_tokens=16, do_sample=False)
    with StreamedModel(tmp_path, made) as twin:

        def generate(**options):
            written.clear()
            return twin.generate(prompt, streamer=Written(), **options)

        for beyond in (
            {"max_new_tokens": 16},
            {"max_length": 22},
            {"generation_config": config},
            {},  # 20, as transformers has it
        ):
            with pytest.raises(InvalidInput, match="context of 20"):
                generate(**beyond)
            assert not written
            with torch.no_grad(), pytest.raises(InvalidInput, match="context of 20"):
                decode_greedily(twin, prompt, 16)
        # The last token is not stored.
        for within in ({"max_new_tokens": 15}, {"max_length": 21}):
            assert generate(**within).shape == (1, 21)
        assert len(decode_greedily(twin, prompt, 15).tokens) == 15
        twin.model.generation_config.max_length = 21
        assert generate().shape == (1, 21)


def test_a_text_beyond_the_positions_of_the_model_is_rejected_by_name():
    with pytest.raises(InvalidInput, match="8192 positions that smollm2"):
        generate_text("smollm2", 2**40, "The capital", max_new_tokens=8192)


def test_an_overrun_is_one_sentence():
    with (
        pytest.raises(
            InvalidInput, match="budget of 1000 B exceeded: 1001 B live"
        ) as refusal,
        enforced(1000, "cpu"),
    ):
        torch.zeros(1001, dtype=torch.uint8)
    assert "\n" not in str(refusal.value)


def test_a_file_that_changes_mid_stream_stops_the_model(tmp_path):
    write_tiny(tmp_path)
    path = tmp_path / "model.safetensors"
    made = tiny.plan_tight(tmp_path, context=8)
    token = torch.zeros((1, 1), dtype=torch.long)
    with StreamedModel(tmp_path, made) as twin:
        twin.step(token, None)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(StoreDamaged, match=r"model\.safetensors"):
            twin.step(token, None)
        with pytest.raises(InvalidInput, match="closed"):
            twin.step(token, None)


def test_other_architectures_and_other_plans_are_rejected(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_tiny(first)
    write_tiny(second, intermediate_size=96)
    made = tiny.plan_tight(first, context=8)
    with pytest.raises(InvalidInput, match="plan is for first"):
        StreamedModel(second, made)
    tiny.edit_json(second / "config.json", model_type="gpt2")
    with pytest.raises(InvalidInput, match="gpt2"):
        StreamedModel(second, made)


def test_timings_have_the_promised_shape(tmp_path):
    model = write_tiny(tmp_path)
    with tiny.streamed(tmp_path, context=16, pass_tokens=8, logit_tokens=1) as twin:
        runs = measure_decoding(twin, model, tiny.tokens(0, 1, 4), rounds=2)
        assert runs.keys() == {"drain", "streamed", "resident"}
        assert all(len(run.seconds) == 4 for run in runs.values())
        read = runs["streamed"].bytes_read
        assert read == runs["drain"].bytes_read
        assert read == pytest.approx(twin.plan.bytes_per_step, rel=0.5)
        rows = measure_passes(twin, model, [1, 8], rounds=1, seed=0)
    assert [row.tokens for row in rows] == [1, 8]
    for row in rows:
        assert 0 < row.computing_s.value <= row.streamed_s.value
        assert row.drain_s.n == row.computing_s.n == row.resident_s.n == 2
        assert row.computing_s.low <= row.computing_s.value <= row.computing_s.high
    assert disk_bytes_per_s(tmp_path, seconds=0.01) > 0


def test_smollm2_streams_exactly_below_its_size():
    folder, (model, _) = smollm2.checkpoint(), smollm2.load()
    made = plan_checkpoint(folder, Machine(96 * MiB, 1e9), context=32, pass_tokens=16)
    assert made.device_peak_bytes <= 96 * MiB < model.get_memory_footprint() / 2
    with StreamedModel(folder, made) as twin:
        assert tiny.agree(twin, model, chunks=(16, 1))
        with DeviceBudget(96 * MiB) as budget:
            twin.charge(budget)
            twin.step(tiny.tokens(5, 1, 16), twin.new_cache())
    assert budget.peak_bytes <= made.device_peak_bytes


def test_text_is_generated_within_the_budget(capfd):
    made = generate_text("smollm2", 96 * MiB, "The capital of France is", 3)
    assert made["text"].startswith(" Paris")
    assert made["device_peak_bytes"] <= made["planned_peak_bytes"] <= 96 * MiB
    assert made["bytes_read"] > made["model_bytes"]
    assert made["fraction_of_link"] > 0
    assert capfd.readouterr().err == ""


def test_an_interrupted_pass_leaves_a_model_that_goes_on(tmp_path):
    model = write_tiny(tmp_path)
    with tiny.streamed(tmp_path, 1, ring=2, context=8, pass_tokens=8) as twin:
        attention = twin.model.model.layers[3].layer.self_attn
        interrupted = patch.object(attention, "forward", side_effect=KeyboardInterrupt)
        with interrupted, pytest.raises(KeyboardInterrupt):
            twin.logits(tiny.tokens(1, 1, 8))
        assert tiny.agree(twin, model, chunks=(8,))


@pytest.mark.parametrize("host", [None, 1])
def test_a_timeline_has_every_layer_once_and_in_order(tmp_path, host):
    write_tiny(tmp_path)
    made = tiny.plan_tight(tmp_path, 1, 2, host, context=8)
    token = torch.zeros((1, 1), dtype=torch.long)
    with StreamedModel(tmp_path, made) as twin:
        twin.step(token, None)
        with twin.timeline() as spans:
            twin.step(token, None)
        done = len(spans)
        twin.step(token, None)
        assert len(spans) == done
    assert all(span.end_s >= span.start_s for span in spans)
    computed = [span for span in spans if span.kind == "compute"]
    assert [span.layer for span in computed] == list(range(LAYERS))
    for before, after in pairwise(computed):
        assert after.start_s >= before.end_s
    streamed = [i for i in range(LAYERS) if made.is_streamed(i)]
    for kind in ("read", "wait"):
        assert [span.layer for span in spans if span.kind == kind] == streamed
    started = {span.layer: span.start_s for span in computed}
    for span in spans:
        if span.kind in ("read", "wait"):
            assert span.end_s <= started[span.layer]


def test_two_lines_are_changed(tmp_path):
    model = write_tiny(tmp_path)
    prompt = {"input_ids": tiny.tokens(1, 1, 9)}
    prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with open_streamed(tmp_path, 2**20, context=16) as twin:
        own = twin.generate(**prompt, **options)
    assert torch.equal(own, model.generate(**prompt, **options))
    with open_streamed(tmp_path, "1MiB", context=16) as twin:
        assert twin.plan.machine.device_bytes == 2**20
        for odd in (tiny.tokens(1, 1, 9)[0], tiny.tokens(1, 1, 9) + 0.5):
            with pytest.raises(InvalidInput, match="expected numbers of tokens"):
                twin.generate(odd, **options)
        for odd in (-1, tiny.VOCAB):
            with pytest.raises(InvalidInput, match="expected tokens from 0 to 210"):
                twin.generate(torch.tensor([[1, odd]]), **options)
    with pytest.raises(PlanInfeasible, match="short by"):
        open_streamed(tmp_path, "16KiB", context=16)
    steps = tiny.plan_tight(tmp_path, context=16)
    refused = pytest.raises(InvalidInput, match="generating=True")
    with StreamedModel(tmp_path, steps) as twin, refused:
        twin.generate(**prompt, **options)


def test_another_device_needs_host_memory_and_has_to_be_there(tmp_path):
    write_tiny(tmp_path)
    made = tiny.plan_tight(tmp_path, context=8)
    here = torch.cuda.is_available()
    with pytest.raises(InvalidInput, match="host_bytes" if here else "not available"):
        StreamedModel(tmp_path, made, device="cuda")
