"""Streaming changes where bytes live, not what the model says."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from thesis_lib.checks import InvalidInput
from thesis_lib.memory import smollm2
from thesis_lib.memory.measure import DeviceBudget
from thesis_lib.memory.plan import PlanInfeasible
from thesis_lib.memory.spec import Machine
from thesis_lib.memory.store import StoreDamaged
from thesis_lib.memory.stream import (
    StreamedModel,
    describe_plan,
    disk_bytes_per_s,
    generate_text,
    measure_decoding,
    measure_passes,
    plan_checkpoint,
)
from thesis_lib.units import MiB

LAYERS = 5


def write_tiny(folder, seed=0, dtype=torch.bfloat16, **changes):
    """A random LLaMA on disk, and the same one resident."""
    shape = {
        "vocab_size": 211,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    with smollm2.quiet():
        config = LlamaConfig(**{**shape, **changes}, dtype=dtype)
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
        return LlamaForCausalLM.from_pretrained(folder).eval()


def plan_tight(folder, resident=0, ring=2, **options):
    """The plan that leaves room for exactly `resident` layers."""
    ample = plan_checkpoint(folder, Machine(2**50, 1e9), ring=ring, **options)
    fixed = ample.outer_bytes + ample.kv_bytes + ample.activation_bytes
    size = fixed + (ring + resident) * ample.staging_bytes
    made = plan_checkpoint(folder, Machine(size, 1e9), ring=ring, **options)
    assert made.resident_layers == resident or made.resident_layers == LAYERS
    return made


def random_tokens(seed, batch, n, vocab=211):
    return torch.randint(
        0, vocab, (batch, n), generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("ring", "resident"), [(1, 0), (2, 0), (3, 1), (4, 0), (1, 3), (2, 5)]
)
def test_streamed_logits_equal_resident_logits(tmp_path, dtype, ring, resident):
    model = write_tiny(tmp_path, dtype=dtype)
    made = plan_tight(tmp_path, resident, ring, batch=2, context=24, pass_tokens=9)
    tokens = random_tokens(1, 2, 9)
    with torch.no_grad(), StreamedModel(tmp_path, made) as twin:
        for _ in range(2):  # the second pass starts from a ring that wrapped around
            expected = model(tokens, use_cache=False).logits
            assert torch.equal(twin.logits(tokens), expected)
        cache, own = twin.new_cache(), twin.new_cache()
        for chunk in (9, 1, 1, 5, 1):
            row = random_tokens(chunk, 2, chunk)
            expected = model(row, cache=cache, use_cache=True).logits
            assert torch.equal(twin.step(row, own), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 6},
        {"attention_bias": True, "mlp_bias": True},
        {"num_hidden_layers": 1},
    ],
    ids=str,
)
def test_every_llama_shape_streams_exactly(tmp_path, changes):
    model = write_tiny(tmp_path, **changes)
    made = plan_checkpoint(
        tmp_path, Machine(2**40, 1e9), context=16, pass_tokens=7, ring=1
    )
    size = made.device_peak_bytes - made.staging_bytes * made.resident_layers
    tight = Machine(size + made.staging_bytes, 1e9)
    made = plan_checkpoint(tmp_path, tight, context=16, pass_tokens=7, ring=1)
    tokens = random_tokens(2, 1, 7)
    with torch.no_grad(), StreamedModel(tmp_path, made) as twin:
        assert torch.equal(twin.logits(tokens), model(tokens, use_cache=False).logits)


def test_shards_stream_exactly(tmp_path):
    model = write_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with smollm2.quiet():
        model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert not (tmp_path / "model.safetensors").exists()
    made = plan_tight(tmp_path, context=8, pass_tokens=8)
    tokens = random_tokens(3, 1, 8)
    with torch.no_grad(), StreamedModel(tmp_path, made) as twin:
        assert torch.equal(twin.logits(tokens), model(tokens, use_cache=False).logits)


def test_greedy_tokens_are_those_of_the_resident_model(tmp_path):
    model = write_tiny(tmp_path)
    made = plan_tight(tmp_path, context=30, pass_tokens=6)
    tokens = random_tokens(4, 1, 6)
    with StreamedModel(tmp_path, made) as twin:
        new = twin.generate(tokens, 20)
    with torch.no_grad():
        expected = model.generate(
            tokens, max_new_tokens=20, do_sample=False, eos_token_id=None
        )
    assert torch.equal(torch.cat([tokens, new], 1), expected)


@pytest.mark.parametrize("seed", range(24))
def test_measured_peak_is_at_most_the_planned_one(tmp_path, seed):
    draw = random.Random(seed)
    kv_heads, group, head_dim = draw.choice([1, 2, 3]), draw.choice([1, 3]), 8
    heads = kv_heads * group
    write_tiny(
        tmp_path,
        seed,
        dtype=draw.choice([torch.bfloat16, torch.float32]),
        vocab_size=draw.choice([50, 3000]),
        hidden_size=heads * draw.choice([2, 8, 32]),
        intermediate_size=draw.choice([16, 400]),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=draw.random() < 0.5,
    )
    batch, context = draw.choice([1, 3]), draw.choice([8, 24, 240])
    tokens = draw.choice([context, context // 2, max(1, context // 8)])
    made = plan_tight(
        tmp_path,
        draw.choice([0, 1, 2]),
        draw.choice([1, 2]),
        batch=batch,
        context=context,
        pass_tokens=tokens,
        logit_tokens=draw.choice([1, tokens]),
    )
    row = random_tokens(seed, batch, tokens, vocab=50)
    keep = made.logit_tokens
    with (
        StreamedModel(tmp_path, made) as twin,
        DeviceBudget(made.device_peak_bytes) as budget,
    ):
        twin.charge(budget)
        cache = twin.new_cache()
        for _ in range(context // tokens):
            twin.step(row, cache, keep)
        del cache
        twin.step(row, None, keep)
    buffers = made.ring + made.resident_layers
    weights = made.outer_bytes + (buffers - 1) * made.staging_bytes
    assert weights < budget.peak_bytes <= made.device_peak_bytes


def test_a_budget_below_the_resident_set_is_refused_twice(tmp_path):
    write_tiny(tmp_path)
    made = plan_tight(tmp_path, context=8)
    with pytest.raises(PlanInfeasible):
        plan_checkpoint(
            tmp_path, Machine(made.device_peak_bytes - 1, 1e9), context=8, ring=2
        )
    needed = made.outer_bytes + made.ring * made.staging_bytes
    with StreamedModel(tmp_path, made) as twin, DeviceBudget(needed) as budget:
        twin.charge(budget)
        with pytest.raises(torch.OutOfMemoryError):
            twin.step(random_tokens(0, 1, 1), None)


@pytest.mark.parametrize("resident", [0, 1, 2])
def test_a_pass_reads_the_streamed_layers_once(tmp_path, resident):
    write_tiny(tmp_path)
    made = plan_tight(tmp_path, resident, ring=2, context=8)
    with StreamedModel(tmp_path, made) as twin:
        twin.step(random_tokens(0, 1, 1), None)
        store = twin._opened()
        sizes = [store.nbytes(i) for i in twin._streamed]
        store._pool.shutdown(wait=True)  # what is in flight lands
        ahead = sizes[: made.ring]
        whole = twin.bytes_read
        outer = store.nbytes(-1) + sum(store.nbytes(i) for i in twin._resident)
        expected = outer + sum(sizes) + sum(ahead)
    # Only the last block of the file may end early.
    assert expected - 3 * 4096 < whole <= expected


@pytest.mark.parametrize(
    "shape", [(2, 1), (1, 5), (1, 0)], ids=["batch", "tokens", "empty"]
)
def test_a_step_outside_the_plan_is_refused(tmp_path, shape):
    write_tiny(tmp_path)
    made = plan_tight(tmp_path, context=8, pass_tokens=4, logit_tokens=2)
    with StreamedModel(tmp_path, made) as twin:
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
    made = plan_tight(tmp_path, resident=1, context=8)
    with DeviceBudget() as budget:
        with StreamedModel(tmp_path, made) as twin:
            twin.charge(budget)
            assert budget.bytes > made.staging_bytes
        rotary_bytes = 2 * 4 * twin.spec.head_dim
        assert budget.bytes <= rotary_bytes


def test_a_file_that_changes_mid_stream_stops_the_model(tmp_path):
    write_tiny(tmp_path)
    path = tmp_path / "model.safetensors"
    made = plan_tight(tmp_path, context=8)
    token = torch.zeros((1, 1), dtype=torch.long)
    with StreamedModel(tmp_path, made) as twin:
        twin.step(token, None)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(StoreDamaged, match=r"model\.safetensors"):
            twin.step(token, None)
        with pytest.raises(InvalidInput, match="closed"):
            twin.step(token, None)


def test_other_architectures_and_other_plans_are_refused(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_tiny(first)
    write_tiny(second, intermediate_size=96)
    made = plan_tight(first, context=8)
    with pytest.raises(InvalidInput, match="plan is for first"):
        StreamedModel(second, made)
    config = second / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"mistral"'))
    with pytest.raises(InvalidInput, match="mistral"):
        StreamedModel(second, made)
    config.write_text(config.read_text().replace('"mistral"', '"opt"'))
    with pytest.raises(InvalidInput, match="opt"):
        StreamedModel(second, made)


def test_a_type_that_config_does_not_declare_is_refused(tmp_path):
    write_tiny(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("bfloat16", "float16"))
    made = plan_tight(tmp_path, context=8)
    with pytest.raises(InvalidInput, match="BF16"), StreamedModel(tmp_path, made):
        pass


def test_plans_for_host_memory_are_refused(tmp_path):
    write_tiny(tmp_path)
    least = plan_tight(tmp_path, context=8).device_peak_bytes
    machine = Machine(least, 1e9, host_bytes=10 * MiB, link_bytes_per_s=1e10)
    made = plan_checkpoint(tmp_path, machine, context=8, ring=2)
    with pytest.raises(InvalidInput, match="host_bytes=0"):
        StreamedModel(tmp_path, made)


def test_timings_have_the_promised_shape(tmp_path):
    model = write_tiny(tmp_path)
    made = plan_tight(tmp_path, context=16, pass_tokens=8, logit_tokens=1)
    with StreamedModel(tmp_path, made) as twin:
        runs = measure_decoding(twin, model, random_tokens(0, 1, 4), rounds=2)
        assert {name: len(run.seconds) for name, run in runs.items()} == {
            "drain": 4,
            "streamed": 4,
            "resident": 4,
        }
        read = runs["streamed"].bytes_read
        assert read == runs["drain"].bytes_read
        assert read == pytest.approx(made.bytes_per_step, rel=0.5)
        rows = measure_passes(twin, model, [1, 8], rounds=1, seed=0)
    assert [row.tokens for row in rows] == [1, 8]
    assert all(0 < row.computing_s <= row.streamed_s for row in rows)
    assert disk_bytes_per_s(tmp_path, seconds=0.01) > 0


def test_smollm2_streams_exactly_below_its_size():
    folder, (model, _) = smollm2.checkpoint(), smollm2.load()
    made = plan_checkpoint(folder, Machine(96 * MiB, 1e9), context=32, pass_tokens=16)
    assert made.device_peak_bytes <= 96 * MiB < model.get_memory_footprint() / 2
    tokens = random_tokens(5, 1, 16, vocab=49152)
    with (
        torch.no_grad(),
        StreamedModel(folder, made) as twin,
        DeviceBudget(96 * MiB) as budget,
    ):
        twin.charge(budget)
        cache = twin.new_cache()
        streamed = [twin.step(tokens, cache), twin.step(tokens[:, :1], cache)]
    with torch.no_grad():
        first = model(tokens, use_cache=True)
        second = model(tokens[:, :1], cache=first.cache, use_cache=True)
    assert torch.equal(streamed[0], first.logits)
    assert torch.equal(streamed[1], second.logits)
    assert budget.peak_bytes <= made.device_peak_bytes


def test_text_is_generated_within_the_budget(capfd):
    made = generate_text("smollm2", 96 * MiB, "The capital of France is", 3)
    assert made["text"].startswith(" Paris")
    assert made["device_peak_bytes"] <= made["planned_peak_bytes"] <= 96 * MiB
    assert made["bytes_read"] > made["model_bytes"]
    assert made["fraction_of_link"] > 0
    assert capfd.readouterr().err == ""


def test_plans_are_described_for_checkpoints_and_geometries():
    big = describe_plan("llama-65b", 8 * 2**30)
    assert big["rates"]["disk"] == "assumed"
    assert big["feasible"]
    assert sum(big["tiers"].values()) == 80
    small = describe_plan("smollm2", 96 * MiB, disk_rate=1e9)
    assert small["rates"] == {"disk_bytes_per_s": 1e9, "disk": "given"}
    with pytest.raises(InvalidInput, match="llama-65b"):
        describe_plan("nothing-here", 2**30)
