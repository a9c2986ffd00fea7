"""Every architecture: its bytes, its tables, and the same bits as transformers."""

import copy
import json
import random
import re
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, StoppingCriteria, StoppingCriteriaList

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.convert import compress_checkpoint
from thesis_lib.memory.cost.planning import describe_plan
from thesis_lib.memory.decode.generate import generate_text
from thesis_lib.memory.decode.speculative import speculate_text
from thesis_lib.memory.model import gguf
from thesis_lib.memory.model.pretrained import quiet
from thesis_lib.memory.model.spec import (
    ARCHITECTURES,
    Machine,
    ModelSpec,
    geometries,
    geometry,
)
from thesis_lib.memory.offload.architectures import (
    configure,
    flatten_head,
    read_config,
    skeleton,
    stack,
)
from thesis_lib.memory.offload.offloaded_model import StreamedModel, plan_checkpoint
from thesis_lib.memory.offload.plan import PlanInfeasible

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder and resident model by architecture, each written once."""

    @cache
    def written(architecture):
        folder = tmp_path_factory.mktemp(architecture)
        return folder, tiny.write(folder, architecture)

    return written


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_arithmetic_counts_the_parameters_of_transformers(
    tmp_path, architecture, tied
):
    model = tiny.write(tmp_path, architecture, tie_word_embeddings=tied)
    spec = ModelSpec.from_config(tmp_path)
    assert spec.parameters == sum(p.numel() for p in model.parameters())
    layer = stack(model)[1][0]
    assert spec.layer_parameters == sum(p.numel() for p in layer.parameters())


def test_the_book_lists_what_streams():
    """The table of chapter 5: every architecture, and which a GGUF file may have."""
    chapter = next((ROOT / "notebooks").glob("05_*.ipynb"))
    rows = re.findall(r"^\s*\"\| `(\w+)` \|.*\| (.*) \|", chapter.read_text(), re.M)
    listed = {name: unpacked for name, unpacked in rows if name in ARCHITECTURES}
    assert [*listed] == [*ARCHITECTURES]
    unpacked = {name for name, says in listed.items() if says == "yes"}
    assert unpacked == {kept.model_type for kept in gguf.ARCHITECTURES.values()}


@pytest.mark.parametrize("name", geometries())
def test_a_published_geometry_is_a_configuration_of_as_many_parameters(name):
    model = skeleton(configure(geometry(name)))
    assert sum(p.numel() for p in model.parameters()) == geometry(name).parameters


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tables_that_no_file_holds_are_those_of_transformers(models, architecture):
    folder, model = models(architecture)
    bare = skeleton(read_config(folder))
    expected = dict(model.named_buffers())
    for name, table in bare.named_buffers():
        assert table.dtype == expected[name].dtype
        assert torch.equal(table, expected[name])
    assert all(parameter.is_meta for parameter in bare.parameters())


WHOLE = ("llama", "gemma3_text", "opt")  # what streams knows no architecture


def each_with(cases):
    """Every architecture with some of the cases, drawn by its name; some with all."""
    return [
        (architecture, *case)
        for architecture in ARCHITECTURES
        for case in (
            cases
            if architecture in WHOLE
            else random.Random(architecture).sample(cases, 2)
        )
    ]


PLACES = [(1, 0, None), (2, 0, None), (3, 0, None), (1, 2, None), (2, 0, 1), (1, 0, 0)]


@pytest.mark.parametrize(
    ("architecture", "ring", "resident", "host"), each_with(PLACES)
)
def test_streamed_logits_are_those_of_transformers(
    models, architecture, ring, resident, host
):
    folder, model = models(architecture)
    with tiny.streamed(
        folder, resident, ring, host, batch=3, context=24, pass_tokens=9
    ) as twin:
        buffers = twin.plan.host_layers, twin.plan.host_buffers
        assert buffers == ((0, 0) if host is None else (host, 2))
        for batch in (1, 3):  # the second pass starts from a ring that wrapped around
            assert tiny.agree(twin, model, batch)


class StopAfter(StoppingCriteria):
    """Stops all sequences at a length."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **options):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


CHOICES = [
    ({"do_sample": False},),
    ({"do_sample": True, "top_p": 0.9, "top_k": 20, "temperature": 1.3},),
    ({"do_sample": False, "num_beams": 3},),
    ({"do_sample": True, "num_beams": 2, "num_return_sequences": 2},),
]


@pytest.mark.parametrize(("architecture", "options"), each_with(CHOICES))
def test_generate_is_that_of_transformers_within_the_plan(
    models, architecture, options
):
    folder, model = models(architecture)
    prompt = tiny.tokens(7, 2, 5)
    options = {**options, "max_new_tokens": 12, "pad_token_id": 0}
    with tiny.metering(
        folder, batch=6, context=24, pass_tokens=5, logit_tokens=1, generating=True
    ) as (twin, _):
        torch.manual_seed(3)
        own = twin.generate(prompt, **options)
        stop = StoppingCriteriaList([StopAfter(8)])
        short = twin.generate(prompt[:1], stopping_criteria=stop, max_new_tokens=9)
    torch.manual_seed(3)
    twin = flatten_head(copy.deepcopy(model))
    assert torch.equal(own, twin.generate(prompt, **options))
    assert short.shape == (1, 8)


def test_padded_sequences_are_masked_as_in_transformers(models):
    folder, model = models("llama")
    prompt, mask = tiny.tokens(1, 2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, :3] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with tiny.metering(
        folder, batch=2, context=20, pass_tokens=6, logit_tokens=1, generating=True
    ) as (twin, _):
        own = twin.generate(prompt, attention_mask=mask, **options)
        read = []
        for sequences in (1, 2):  # weights that are read once serve both
            with twin.without_reading():  # nothing is in flight any more
                before = twin.bytes_read
            rows, hidden = prompt[:sequences], mask[:sequences]
            twin.generate(rows, attention_mask=hidden, **options)
            with twin.without_reading():
                read.append(twin.bytes_read - before)
    assert read[0] == read[1]
    twin = flatten_head(copy.deepcopy(model))
    assert torch.equal(own, twin.generate(prompt, attention_mask=mask, **options))


def test_a_long_prompt_goes_in_passes(models):
    folder, model = models("qwen2")
    prompt = tiny.tokens(1, 1, 30)
    options = {"max_new_tokens": 6, "do_sample": False}
    shape = {"context": 40, "pass_tokens": 8, "logit_tokens": 1, "generating": True}
    with torch.no_grad(), tiny.streamed(folder, **shape) as twin:
        own = twin.generate(prompt, **options)
        last = twin.prefill(prompt, twin.new_cache())
        cache = twin.new_cache()
        for part in prompt.split(8, dim=1):
            expected = model(part, cache=cache, use_cache=True, logits_to_keep=1).logits
    chunked = model.generate(prompt, prefill_chunk_size=8, **options)
    assert torch.equal(own, chunked)
    assert torch.equal(last, expected)


def test_hidden_states_can_be_asked_for(models):
    folder, model = models("llama")
    row = tiny.tokens(1, 1, 8)
    with torch.no_grad(), tiny.streamed(folder, context=8, pass_tokens=8) as twin:
        own = twin.model(row, output_hidden_states=True).hidden_states
        expected = model(row, output_hidden_states=True).hidden_states
    assert len(own) == len(expected) == tiny.LAYERS + 1
    assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))


@pytest.mark.parametrize("architecture", ["opt", "gpt_neox", "llama"])
def test_older_checkpoints_stream_from_the_names_they_have(tmp_path, architecture):
    model, path = tiny.write(tmp_path, architecture), tmp_path / "model.safetensors"
    prefix, tensors = stack(model)[0], load_file(path)
    tensors[f"{prefix}.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors[f"{prefix}.1.attention.masked_bias"] = torch.ones(4)
    if architecture == "opt":  # saved from the base model
        tensors = {name.removeprefix("model."): t for name, t in tensors.items()}
        tensors["lm_head.weight"] = tensors["decoder.embed_tokens.weight"].clone()
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
    for plan in (tiny.plan_tight, tiny.plan_ample):
        with tiny.streamed(tmp_path, plan=plan, context=8, pass_tokens=8) as twin:
            assert (twin.plan.streamed_layers == 0) == (plan is tiny.plan_ample)
            assert tiny.agree(twin, model, chunks=(8,))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"intermediate_size": 96}, "no matrix of 96 outputs"),
        ({"vocab_size": 212}, "no table of 212 tokens"),
        ({"dtype": "float32"}, r"asks for torch\.float32"),
        ({"dtype": "float16"}, "BF16"),
        ({"num_hidden_layers": 5}, "stores 4 layers but its config.json says 5"),
        ({"attention_bias": True}, "bias missing"),
    ],
)
def test_a_checkpoint_that_disagrees_with_its_config_is_rejected(
    tmp_path, change, named
):
    tiny.write(tmp_path)
    tiny.edit_json(tmp_path / "config.json", **change)
    with pytest.raises(InvalidInput, match=named):
        tiny.streamed(tmp_path, plan=tiny.plan_ample, context=8).__enter__()


@pytest.mark.parametrize("family", ["falcon", "gpt2", "bloom", "t5", "mixtral", "rwkv"])
def test_a_family_that_is_not_streamed_is_rejected_before_its_weights_are_opened(
    tmp_path, family
):
    with quiet():
        AutoConfig.for_model(family).save_pretrained(tmp_path)
    runs = [
        lambda: describe_plan(str(tmp_path), 2**30),
        lambda: tiny.plan_ample(tmp_path),
        lambda: generate_text(str(tmp_path), 2**30, "a"),
        lambda: speculate_text(str(tmp_path), 2**30, "a"),
        lambda: compress_checkpoint(str(tmp_path), tmp_path / "out", "int8"),
    ]
    for run in runs:  # there are no weights at all
        with pytest.raises(InvalidInput, match=f"{family}.* expected one of llama"):
            run()


ROPES = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 16,
     "low_freq_factor": 1.0, "high_freq_factor": 4.0},
]  # fmt: skip


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "qwen2", "gpt_neox", "gemma3_text"]
)
def test_scaled_rotary_tables_give_the_bits_of_transformers(
    tmp_path, architecture, rope
):
    scaling = {"rope_theta": 1e4} | rope
    if architecture == "gemma3_text":  # a table for each type of layer
        plain = {"rope_theta": 1e4, "rope_type": "default"}
        scaling = {"full_attention": scaling, "sliding_attention": plain}
    model = tiny.write(tmp_path, architecture, rope_parameters=scaling)
    with tiny.streamed(tmp_path, context=60, pass_tokens=50) as twin:
        assert tiny.agree(twin, model, chunks=(50, 1, 9))


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("kind", ["dynamic", "longrope", "mrope"])
def test_frequencies_that_the_text_changes_are_rejected_by_name(tmp_path, kind, key):
    tiny.write(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config.pop("rope_parameters")
    for rope in (
        {"rope_type": kind, "factor": 2.0},
        {"type": kind, "factor": 2.0},
        {"full_attention": {"rope_type": kind}},
    ):
        file.write_text(json.dumps(config | {key: rope}))
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        with pytest.raises(InvalidInput, match=f"rope_type '{kind}' .* llama3"):
            tiny.plan_ample(tmp_path)


@pytest.mark.parametrize("kind", ["longrope", "su"])
def test_factors_of_a_longer_text_stream_within_the_first_positions(tmp_path, kind):
    """As those of Phi-3 with 128k positions; beyond, other frequencies would hold."""
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.5, 3],
        "long_factor": [2.0, 4, 8, 16],
    }  # fmt: skip
    first = {"original_max_position_embeddings": 32}
    model = tiny.write(tmp_path, "phi3", rope_parameters=rope | first, **first)
    file = tmp_path / "config.json"
    written = json.loads(file.read_text())["rope_parameters"]
    tiny.edit_json(file, rope_parameters=written | {"rope_type": kind})
    with tiny.streamed(tmp_path, context=32, pass_tokens=20) as twin:
        assert tiny.agree(twin, model, chunks=(20, 1, 9))
    with pytest.raises(InvalidInput, match="32 positions"):
        tiny.plan_ample(tmp_path, context=33)


def test_a_flat_head_keeps_the_bits_and_multiplies_rows(models):
    _, model = models("llama")
    flat = flatten_head(copy.deepcopy(model))
    hidden = torch.randn(3, 5, 48, dtype=torch.bfloat16)
    head, rows = model.get_output_embeddings(), flat.get_output_embeddings()
    with torch.no_grad():
        assert torch.equal(rows(hidden), head(hidden))
        assert torch.equal(rows(hidden[:1, -1:]), head(hidden[:1, -1:]))
        assert torch.equal(rows(hidden[:, -1:])[:, 0], head(hidden[:, -1]))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_split_head_and_a_table_read_by_rows_give_the_same_bits(
    tmp_path, architecture, tied
):
    model = tiny.write_wide(tmp_path, architecture, tie_word_embeddings=tied)
    shape = {"batch": 2, "context": 24, "pass_tokens": 9}
    with tiny.streamed(tmp_path, 3, plan=tiny.plan_split, **shape) as twin:
        assert twin.plan.head_parts > 2
        assert tiny.agree(twin, model, batch=2, vocab=tiny.WORDS)


@pytest.fixture
def one_thread():
    """More share a product in 32 bits out in another way when it is split."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("resident", "ring", "host"), [(0, 1, None), (0, 3, 4)])
def test_a_split_head_takes_other_types_and_another_road(
    tmp_path, dtype, resident, ring, host
):
    model = tiny.write_wide(tmp_path, dtype=dtype)
    with tiny.streamed(
        tmp_path, resident, ring, host, plan=tiny.plan_split, context=24, pass_tokens=9
    ) as twin:
        assert tiny.agree(twin, model, vocab=tiny.WORDS)
        assert (twin.source.host is None) == (host is None)


@pytest.mark.parametrize("options", [
    {"do_sample": True, "temperature": 0.8, "top_p": 0.9}, {"num_beams": 3},
], ids=["sampled", "beams"])  # fmt: skip
def test_generate_is_the_same_with_a_split_head(tmp_path, options):
    model = tiny.write_wide(tmp_path, "gemma3_text")
    made = tiny.plan_split(
        tmp_path, batch=3, context=24, pass_tokens=4, logit_tokens=1, generating=True
    )
    prompt = tiny.tokens(1, 1, 7, tiny.WORDS)
    options = {"max_new_tokens": 9, "prefill_chunk_size": 4} | options
    with StreamedModel(tmp_path, made) as twin:
        torch.manual_seed(3)
        found = twin.generate(prompt, **options)
    torch.manual_seed(3)
    assert torch.equal(found, model.generate(prompt, **options))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_peak_with_a_split_head_is_the_plan_s(tmp_path, architecture):
    tiny.write_wide(tmp_path, architecture)
    made = tiny.plan_split(tmp_path, batch=2, context=20, pass_tokens=6)
    peak = tiny.metered(tmp_path, made)
    assert 0.97 * made.device_peak_bytes <= peak <= made.device_peak_bytes


@pytest.mark.parametrize("resident", [0, 1, 2])
def test_a_split_head_is_read_once_a_token_beside_the_rows(tmp_path, resident):
    tiny.write_wide(tmp_path, tie_word_embeddings=True)
    with tiny.streamed(tmp_path, resident, plan=tiny.plan_split, context=20) as twin:
        cache = twin.new_cache()
        twin.step(tiny.tokens(0, 1, 1, tiny.WORDS), cache)
        ring = twin.source.ring
        ring.settle()
        before = twin.bytes_read
        ring.rewind()
        twin.step(tiny.tokens(1, 1, 1, tiny.WORDS), cache)
        ring.settle()
        read = twin.bytes_read - before - 2 * twin.spec.hidden
        ahead = sum(map(twin.source.store.read_bytes, ring.layers[:2]))
    assert read == pytest.approx(twin.plan.bytes_per_step + ahead, rel=0.02)


def test_a_head_that_fits_is_not_split(tmp_path):
    tiny.write_wide(tmp_path)
    assert tiny.plan_tight(tmp_path, context=8).head_parts == 0


@pytest.mark.parametrize("place", [tiny.plan_split, tiny.plan_tight])
def test_a_token_of_another_tokenizer_is_rejected(tmp_path, place):
    tiny.write_wide(tmp_path)
    with tiny.streamed(tmp_path, plan=place, context=8) as twin:
        for token in (tiny.WORDS, -1):
            with pytest.raises(InvalidInput, match="expected tokens from 0 to 5002"):
                twin.step(torch.tensor([[token]]), None)
        assert twin.step(torch.tensor([[tiny.WORDS - 1]]), None).isfinite().all()


def test_a_row_of_an_altered_file_is_rejected(tmp_path):
    tiny.write_wide(tmp_path)
    with tiny.streamed(tmp_path, plan=tiny.plan_split, context=8) as twin:
        path = tmp_path / "model.safetensors"
        with path.open("r+b") as file:
            file.seek(-2, 2)
            file.write(b"??")
        with pytest.raises(InvalidInput, match="has changed since it was opened"):
            twin._rows(torch.tensor([5]))


@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_packed_layers_stand_beside_a_split_head(tmp_path, weights):
    shape = {"hidden_size": 64, "intermediate_size": 1024, "num_attention_heads": 8}
    shape |= {"num_key_value_heads": 4}
    tiny.write(tmp_path / "dense", vocab_size=tiny.WORDS, **shape)
    compress_checkpoint(str(tmp_path / "dense"), tmp_path / "out", weights, tokens=0)
    row = tiny.tokens(1, 1, 8, tiny.WORDS)
    logits = []
    for make in (tiny.plan_tight, tiny.plan_split):
        packed = tmp_path / "out"
        with tiny.streamed(packed, plan=make, context=8, pass_tokens=8) as twin:
            logits.append(twin.logits(row))
    assert torch.equal(*logits)


def test_a_coded_head_is_not_split_and_the_rejection_says_what_it_needs(tmp_path):
    tiny.write_wide(tmp_path / "dense")
    compress_checkpoint(str(tmp_path / "dense"), tmp_path / "out", "lossless", tokens=0)

    def make(device_bytes):
        machine = Machine(device_bytes, 1e9)
        return plan_checkpoint(tmp_path / "out", machine, context=8, ring=2)

    least = make(2**50).least_device_bytes(2)
    assert make(least).head_parts == 0
    with pytest.raises(PlanInfeasible, match="embedding and head"):
        make(least - 1)


def test_a_layer_keeps_its_checksum_beside_a_split_head(tmp_path):
    """What is read in pieces has none; a layer that is altered unseen is refused."""
    tiny.write_wide(tmp_path / "dense")
    compress_checkpoint(str(tmp_path / "dense"), tmp_path / "out", "int8", tokens=0)
    made = tiny.plan_split(tmp_path / "out", context=8)
    path = tmp_path / "out" / "layer-0002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with (
        pytest.raises(InvalidInput, match="checksum"),
        StreamedModel(tmp_path / "out", made) as twin,
    ):
        twin.logits(tiny.tokens(0, 1, 1, tiny.WORDS))
