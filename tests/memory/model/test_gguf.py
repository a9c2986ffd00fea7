"""Convert GGUF files to the checkpoints that they were written from, or reject them."""

import json
import struct
import tracemalloc

import checks
import gguf
import numpy as np
import pytest
import tiny
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from gguf_files import make, write
from tiny import stored
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.formats.ggml import Blocks
from thesis_lib.memory.model import gguf as ours
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.checkpoint import read_manifest
from thesis_lib.memory.model.gguf_file import (
    GgufFile,
    GgufTensor,
    is_decoded,
    read_gguf,
)
from thesis_lib.memory.model.pretrained import quiet, read_tokenizer
from thesis_lib.memory.offload.offloaded_model import (
    StreamedModel,
    checkpoint_folder,
)
from thesis_lib.memory.offload.store import SafetensorsStore

DECODED = [kind for kind in Kind if is_decoded(kind)]


def written(home, architecture="llama", *options, changes=(), **fields):
    """A tiny random model, and its file in `home`."""
    model = make(home / "model", architecture, **dict(changes))
    file = write(home / "model.gguf", architecture, model, *options, **fields)
    return model, file


def read_config(path):
    return ours.read_config(read_gguf(path))


@pytest.mark.parametrize("architecture", ours.ARCHITECTURES)
def test_a_file_becomes_the_model_that_it_was_made_of(architecture, tmp_path):
    model, file = written(tmp_path, architecture)
    said = ours.convert(file, tmp_path / "out")
    found = stored(tmp_path / "out")
    expected = dict(model.named_parameters())
    assert said["dtype"] == "F32"
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        # One more and one less again rounds the last bit of a norm.
        shifted = architecture.startswith("gemma") and name.endswith("norm.weight")
        close = torch.allclose(tensor, expected[name], atol=2e-7)
        assert close if shifted else torch.equal(tensor, expected[name]), name
    with quiet():
        resident = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    rows = tiny.tokens(3, 1, 24)
    torch.testing.assert_close(
        resident(rows).logits, model(rows).logits, atol=1e-5, rtol=1e-5
    )
    assert tiny.streams(tmp_path / "out")


@pytest.mark.parametrize("architecture", ours.ARCHITECTURES)
@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.F16, Kind.BF16])
def test_weights_are_those_that_transformers_reads(architecture, kind, tmp_path):
    model, file = written(tmp_path, architecture, kind)
    said = ours.convert(file, tmp_path / "out")
    assert said["dtype"] == {Kind.F16: "F16"}.get(kind, "BF16")
    with quiet(), torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    with quiet():
        theirs = load_gguf_checkpoint(file, return_tensors=True, model_to_load=empty)
    found = stored(tmp_path / "out")
    for name, tensor in found.items():
        assert torch.equal(tensor, theirs["tensors"][name].to(tensor.dtype)), name
    mine = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.to_dict()
    for name, value in theirs["config"].items():
        if name in mine and name not in ("rope_theta", "model_type"):
            assert mine[name] == value, name


@pytest.mark.parametrize("kind", DECODED, ids=lambda kind: kind.name)
def test_rows_are_decoded_within_the_memory_that_is_stated(kind, tmp_path):
    """As the gguf package decodes the whole, whatever the bytes are."""
    shape = (3000, 2048)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(kind)
    packed = draw.integers(0, 256, (shape[0], shape[1] // block * size), np.uint8)
    path = tmp_path / "rows"
    path.write_bytes(b"head" + packed.tobytes())
    file = GgufFile(path, {"general.architecture": "llama"}, {})
    tensor = GgufTensor("rows", shape, kind, 4)
    config = read_config(smollm2.source())
    with np.errstate(all="ignore"):
        tracemalloc.start()
        found = ours.read_tensor(file, tensor, "rows.weight", config)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        expected = torch.from_numpy(np.array(gguf.dequantize(packed, kind)))
    assert peak <= ours.WORK_BYTES
    assert torch.equal(found, expected.to(torch.bfloat16)) or torch.equal(
        found.nan_to_num(), expected.to(torch.bfloat16).nan_to_num()
    )


def test_is_decoded_accepts_all_types_but_whole_numbers():
    left = {kind.name for kind in Kind} - {kind.name for kind in DECODED}
    assert left <= {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K", "Q1_0"}


def llama3_factors(head_dim, theta, factor):
    """Of each frequency, by the rule of the paper's code."""
    for at in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (at / head_dim)
        if wavelength < 8192 / 4:
            yield 1.0
        elif wavelength > 8192:
            yield factor
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            yield 1 / ((1 - smooth) / factor + smooth)


def factors(*factors):
    return {"more": [("rope_freqs.weight", np.array(factors, np.float32))]}


LLAMA3 = list(llama3_factors(16, 1e4, 8.0))
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
ROPES = [
    ("llama", factors(*LLAMA3), {"rope_type": "llama3", "factor": 8.0}),
    ("llama", LINEAR, {"rope_type": "linear", "factor": 2.0}),
    ("phi3", {"rope.dimension_count": 12}, {"partial_rotary_factor": 0.75}),
]


@pytest.mark.parametrize(
    ("architecture", "fields", "rope"), ROPES, ids=["llama3", "linear", "share"]
)
def test_rotary_settings_become_those_of_transformers(
    architecture, fields, rope, tmp_path
):
    _, file = written(tmp_path, architecture, **fields)
    assert read_config(file).rope_parameters.items() >= rope.items()


def test_phi3_window_of_zero_is_none(tmp_path):
    _, file = written(tmp_path, "phi3", **{"attention.sliding_window": 0})
    assert read_config(file).sliding_window is None


def test_a_residual_in_parallel_has_one_norm_in_a_layer(tmp_path):
    """StableLM 2 with 12B, but for the norms of its heads, which are refused."""
    changes = {"use_parallel_residual": True, "use_qkv_bias": False}
    model, file = written(tmp_path, "stablelm", changes=changes)
    ours.convert(file, tmp_path / "out")
    with quiet():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    rows = tiny.tokens(3, 1, 24)
    assert torch.equal(found(rows).logits, model(rows).logits)


def test_the_tokenizer_comes_along(tmp_path):
    _, file = written(tmp_path)
    ours.convert(file, tmp_path / "out")
    with quiet():
        theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    text = "hello wörld, hello\n\tworld 12"
    found = read_tokenizer(tmp_path / "out")
    assert found(text)["input_ids"] == theirs(text)["input_ids"]
    assert found.decode(found(text)["input_ids"]) == text
    assert (found.bos_token, found.eos_token) == ("<s>", "</s>")


PIECES = {  # of TEXT
    "gpt-2": ["We", "'ve", "Ġ(", "foo", ")", "ĊĊĠ", "Ġ123"],
    "smollm": ["We", "'ve", "Ġ(", "foo", ")", "ĊĊĠĠ", "1", "2", "3"],
    "stablelm2": ["We", "'ve", "Ġ(", "foo", ")ĊĊ", "Ġ", "Ġ", "1", "2", "3"],
    "llama-bpe": ["We", "'ve", "Ġ(", "foo", ")ĊĊ", "Ġ", "Ġ", "123"],
}
TEXT = "We've (foo)\n\n  123"


@pytest.mark.parametrize("pre", PIECES)
def test_a_text_is_cut_as_llama_cpp_cuts_it(pre, tmp_path):
    _, file = written(tmp_path, pre=pre)
    ours.convert(file, tmp_path / "out")
    cut = read_tokenizer(tmp_path / "out").backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in cut.pre_tokenize_str(TEXT)] == PIECES[pre]


FEW = ["h e", "l l"]  # merges, which do not make a "hello"
BROKEN, WHOLE = [258, 259, 80], [0, 261]  # one, and one with its beginning


@pytest.mark.parametrize(
    ("pre", "ids"),
    [
        ("gpt-2", BROKEN), ("smollm", BROKEN), ("stablelm2", BROKEN),
        ("llama-bpe", WHOLE), ("tekken", WHOLE),
    ],
)  # fmt: skip
def test_some_rules_take_a_token_whole_and_begin_a_text(pre, ids, tmp_path):
    _, file = written(tmp_path, pre=pre, merges=FEW)
    ours.convert(file, tmp_path / "out")
    assert read_tokenizer(tmp_path / "out")("hello")["input_ids"] == ids


def test_the_packaged_model_takes_digits_apart():
    tokenizer = read_tokenizer(smollm2.checkpoint())
    assert tokenizer.tokenize("It has  12") == ["It", "Ġhas", "ĠĠ", "1", "2"]


def test_the_packaged_model_takes_the_same_road(tmp_path):
    ours.convert(smollm2.source(), tmp_path / "out")
    single = stored(smollm2.checkpoint())
    found = stored(tmp_path / "out")
    assert found.keys() == single.keys()
    assert all(torch.equal(found[name], single[name]) for name in found)


# --- Matrices that stay in their blocks -----------------------------------------


def mixed(name):
    """Types as in a mix of llama.cpp: more bits for values and what comes last."""
    return Kind.Q6_K if "attn_v" in name or "ffn_down" in name else Kind.Q4_K


def blocks_at_random(values, kind):
    """Blocks of a type that the gguf package does not write, with small scales."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(values.size)
    shape = (len(values), values.shape[1] // block, size)
    packed = draw.integers(0, 256, shape, np.uint8)
    small = np.array([2e-4, 2e-4], np.float16).view(np.uint8)
    at, count = {Kind.Q6_K: (208, 2), Kind.IQ4_NL: (0, 2)}.get(kind, (0, 4))
    packed[..., at : at + count] = small[:count]
    return packed.reshape(len(values), -1)


WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
KEPT = {
    "llama": (Kind.Q4_0, gguf.quantize, {}),  # rotary pairs side by side
    "gemma2": (Kind.Q8_0, gguf.quantize, {}),
    "qwen3": (Kind.Q5_0, gguf.quantize, {}),
    "qwen2": (Kind.IQ4_NL, blocks_at_random, {}),  # not compiled, and with biases
    "gemma3": (mixed, blocks_at_random, WIDE),
}


def write_kept(folder, architecture):
    """A checkpoint that keeps blocks, and the model in which they are dense."""
    kind, pack, wide = KEPT[architecture]
    model = make(folder / "model", architecture, **wide)
    file = write(folder / "model.gguf", architecture, model, kind, pack=pack)
    ours.convert(file, folder / "dense")
    said = ours.convert(file, folder / "kept", keep=Blocks)
    with quiet():
        resident = AutoModelForCausalLM.from_pretrained(folder / "dense").eval()
    return folder / "kept", resident, said


@pytest.mark.parametrize(("ring", "resident"), [(1, 0), (2, 1), (3, 0), (2, 4)])
@pytest.mark.parametrize("architecture", KEPT)
def test_blocks_stream_to_the_logits_of_the_dense_checkpoint(
    architecture, ring, resident, tmp_path
):
    folder, model, _ = write_kept(tmp_path, architecture)
    shape = {"batch": 2, "context": 24, "pass_tokens": 9}
    with tiny.streamed(folder, resident, ring, **shape) as twin:
        assert twin.plan.kind == "gguf"
        assert tiny.agree(twin, model, batch=2)


@pytest.mark.parametrize("architecture", KEPT)
def test_layers_in_blocks_have_the_bytes_of_the_file(architecture, tmp_path):
    folder, _, said = write_kept(tmp_path, architecture)
    file = read_gguf(tmp_path / "model.gguf")
    blocks = [
        tensor for name, tensor in file.tensors.items()
        if name.startswith("blk.") and len(tensor.shape) == 2
    ]  # fmt: skip
    assert said["kept"] == len(blocks)
    with SafetensorsStore(folder, verify=True) as store:
        assert (store.kind, store.layout) == ("gguf", "blocks")
        found = {
            name: tensor.nbytes
            for name, tensor in stored(folder).items()
            if name.endswith(".blocks")
        }
    assert len(found) == len(blocks)
    assert sum(found.values()) == sum(tensor.nbytes for tensor in blocks)


@pytest.mark.parametrize("architecture", KEPT)
def test_the_planned_peak_of_blocks_is_the_metered_one(architecture, tmp_path):
    checks.assert_peaks_are_planned(write_kept(tmp_path, architecture)[0], blocks=3)


def test_a_tensor_in_blocks_takes_its_bytes_and_no_more(tmp_path):
    folder, _, said = write_kept(tmp_path, "llama")
    file = read_gguf(tmp_path / "model.gguf")
    table = file.tensors["token_embd.weight"]
    work = min(ours.WORK_BYTES, ours.WORK_PER_WEIGHT * table.shape[0] * table.shape[1])
    assert said["peak_bytes"] == 2 * table.shape[0] * table.shape[1] + work
    with pytest.raises(InvalidInput, match="at a time"):
        ours.convert(file.path, tmp_path / "less", said["peak_bytes"] - 1, keep=Blocks)
    assert folder.is_dir()


def test_a_file_without_blocks_becomes_dense(tmp_path):
    _, file = written(tmp_path, "llama", Kind.BF16)
    assert ours.convert(file, tmp_path / "out", keep=Blocks)["kept"] == 0
    assert tiny.streams(tmp_path / "out")


def test_types_that_are_missing_unknown_or_of_others_are_rejected(tmp_path):
    folder, _, _ = write_kept(tmp_path, "llama")
    checks.assert_parts_are_checked(folder, "types", {
        "one object of str": {"self_attn.q_proj": 4},
        "'Q9'.*one of": {"self_attn.q_proj": "Q9"},
        "z_proj not among": {"self_attn.z_proj": "Q4_0"},
        "a multiple of 256": {"self_attn.q_proj": "Q4_K"},
    })  # fmt: skip


def test_a_file_is_a_checkpoint_by_itself_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_CACHE", str(tmp_path / "cache"))
    model, file = written(tmp_path, "llama", Kind.Q8_0)
    first = checkpoint_folder(str(file))
    assert read_manifest(first)["kind"] == "gguf"
    made = (first / "config.json").stat().st_mtime_ns
    assert checkpoint_folder(str(file)) == first
    assert (first / "config.json").stat().st_mtime_ns == made
    write(file, "llama", model, Kind.Q4_0)
    second = checkpoint_folder(str(file))
    assert second != first
    types = json.loads((second / "config.json").read_text())["quantization_config"]
    assert set(types["types"][0].values()) == {"Q4_0"}
    with pytest.raises(InvalidInput, match=r"none\.gguf cannot be opened"):
        checkpoint_folder(str(tmp_path / "none.gguf"))


def test_blocks_are_rejected_on_a_card_which_cannot_restore_them(tmp_path):
    folder, _, _ = write_kept(tmp_path, "llama")
    model = StreamedModel(folder, tiny.plan_tight(folder, context=24))
    model.device = torch.device("cuda")
    with pytest.raises(InvalidInput, match=r"gguf weights.*device='cpu'"):
        model.__enter__()


# --- What is rejected ------------------------------------------------------------


def extra(name, *shape):
    return {"more": [(name, np.ones(shape, np.float32))]}


REJECTED = {
    "experts": ("llama", {"expert_count": 8}, "expert_count to 8"),
    "another scaling": (
        "llama", {"rope.scaling.type": "yarn"}, "frequencies by 'yarn'"),
    "half rotary": (
        "llama", {"rope.dimension_count": 8}, "rope.dimension_count to 8"),
    "no layers": ("llama", {"block_count": 0}, "block_count"),
    "many layers": ("llama", {"block_count": 10**9}, "of 4 layers and .* has 10{9}"),
    "a wide layer": (
        "llama", {"feed_forward_length": 2**31 - 1}, r"ffn_gate|no model"),
    "a token of another vocabulary": (
        "llama", {"tokenizer.ggml.padding_token_id": 263}, "padding_token_id in"),
    "no base": ("llama", {"rope.freq_base": 0.0}, "rope.freq_base to 0.0"),
    "an epsilon in words": ("llama", {"attention.layer_norm_rms_epsilon": "small"},
        "expected a positive number"),
    "a window of llama": (
        "llama", {"attention.sliding_window": 7}, "sliding_window to 7"),
    "no window of phi3": (
        "phi3", {"attention.sliding_window": "7"}, r"phi3\.attention\.sliding_window"),
    "a longer context of phi3": (
        "phi3", extra("rope_factors_long.weight", 8), "rope_factors_long.*no use"),
    "other factors": ("llama", factors(*LLAMA3[:-2], 7.0, LLAMA3[-1]),
        "divides its rotary frequencies"),
    "factors with a scaling": (
        "llama", factors(*LLAMA3) | LINEAR, "frequencies by 'linear'"),
    "factors of qwen3": ("qwen3", factors(*LLAMA3), "rope_freqs.weight.*no use"),
    "a bias": (
        "llama", extra("blk.0.attn_q.bias", 64), r"blk\.0\.attn_q\.bias.*no use"),
    "a norm of heads": ("stablelm", extra("blk.0.attn_q_norm.weight", 4, 16),
        r"attn_q_norm\.weight.*no use"),
    "no cut": ("llama", {"pre": ""}, "does not say how its tokenizer cuts"),
    "a guessed cut": (
        "llama", {"pre": "default"}, "does not say how its tokenizer cuts"),
    "an unknown cut": (
        "llama", {"pre": "deepseek-llm"}, "the rule 'deepseek-llm'"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "fields", "words"), REJECTED.values(), ids=REJECTED
)
def test_convert_rejects_what_changes_the_model(architecture, fields, words, tmp_path):
    _, file = written(tmp_path, architecture, **fields)
    with pytest.raises(InvalidInput, match=words) as refusal:
        ours.convert(file, tmp_path / "out")
    assert str(file) in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.gguf"]


def test_phi3_without_word_of_its_window_is_rejected(tmp_path):
    """Older files have none, and their readers guess."""
    model = make(tmp_path / "model", "phi3")
    model.config.sliding_window = None
    file = write(tmp_path / "model.gguf", "phi3", model)
    with pytest.raises(InvalidInput, match=r"phi3\.attention\.sliding_window in"):
        read_config(file)


@pytest.mark.parametrize("architecture", ["mamba", "gemma", "olmo2", "command-r"])
def test_convert_rejects_other_architectures_by_name(architecture, tmp_path):
    file = write_norm(tmp_path / "model.gguf", 8, architecture)
    words = f"'{architecture}'.*expected one of llama, qwen2"
    with pytest.raises(InvalidInput, match=words):
        ours.convert(file, tmp_path / "out")


def test_too_little_memory_is_rejected_before_anything_is_written(tmp_path):
    _, file = written(tmp_path)
    said = ours.convert(file, tmp_path / "out")
    with pytest.raises(InvalidInput, match="at a time"):
        ours.convert(file, tmp_path / "less", said["peak_bytes"] - 1)
    assert not (tmp_path / "less").exists()
    ours.convert(file, tmp_path / "just", said["peak_bytes"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    model = make(folder / "model", "llama", num_hidden_layers=1)
    return write(folder / "model.gguf", "llama", model, Kind.Q8_0)


def retyped(content, name, kind):
    """The file with another type for one tensor, as its table gives it."""
    number_of_dimensions = content.index(name) + len(name)
    at = number_of_dimensions + 4 + 8 * content[number_of_dimensions]
    return content[:at] + bytes([kind]) + content[at + 1 :]


@pytest.mark.parametrize("kind", [kind for kind in DECODED if kind != Kind.Q8_0])
@pytest.mark.parametrize("name", [b"blk.0.ffn_up.weight", b"output.weight"])
def test_read_gguf_rejects_tensor_with_another_type(small, tmp_path, name, kind):
    altered = tmp_path / "altered.gguf"
    altered.write_bytes(retyped(small.read_bytes(), name, kind))
    with pytest.raises(InvalidInput, match=r"altered\.gguf"):
        read_gguf(altered)


def write_norm(path, weights, architecture="llama", alignment=None):
    """A file of one vector."""
    writer = GGUFWriter(path, architecture)
    if alignment is not None:
        writer.add_int64("general.alignment", alignment)
    writer.add_tensor("norm", np.ones(weights, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_read_gguf_rejects_smaller_type_that_is_padded_to_the_same_end(tmp_path):
    """Eight weights of float32 take 32 bytes; in float16, 16 and up to 16 of zeros."""
    file = write_norm(tmp_path / "norm.gguf", 8)
    assert read_gguf(file).tensors["norm"].shape == (8,)
    file.write_bytes(retyped(file.read_bytes(), b"norm", Kind.F16))
    with pytest.raises(InvalidInput, match="not zeros"):
        read_gguf(file)


@pytest.mark.parametrize("more", [1, 31, 32, 33, 8 * 2**30])
def test_read_gguf_rejects_data_after_last_tensor(small, tmp_path, more):
    longer = tmp_path / "longer.gguf"
    content = small.read_bytes()
    for last_byte in (b"\0", b"x"):
        longer.write_bytes(content)
        with longer.open("r+b") as file:  # sparse
            file.seek(len(content) + more - 1)
            file.write(last_byte)
        with pytest.raises(InvalidInput, match="last tensor"):
            read_gguf(longer)


def test_read_gguf_takes_last_tensor_with_and_without_its_padding(tmp_path):
    file = write_norm(tmp_path / "norm.gguf", 5)
    whole, content = read_gguf(file), file.read_bytes()
    end = whole.tensors["norm"].start + whole.tensors["norm"].nbytes
    assert end < len(content)
    file.write_bytes(content[:end])
    assert read_gguf(file).tensors == whole.tensors


@pytest.mark.parametrize("kind", [0, 8], ids=["numbers", "texts"])
@pytest.mark.parametrize("length", [2**21, 2**62])
def test_read_gguf_rejects_array_longer_than_the_file(tmp_path, kind, length):
    file = tmp_path / "array.gguf"
    head = struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, kind, length)
    file.write_bytes(head)
    with pytest.raises(InvalidInput, match="announces"):
        read_gguf(file)


@pytest.mark.parametrize("alignment", [0, 3, 2**21, 2**31, -32])
def test_read_gguf_rejects_alignment_that_is_no_small_power_of_two(tmp_path, alignment):
    file = write_norm(tmp_path / "norm.gguf", 5, alignment=alignment)
    with pytest.raises(InvalidInput, match="aligns"):
        read_gguf(file)


def assert_judged_the_same(file, model):
    """llama.cpp's logits of a file are the model's, up to rounding; its model."""
    llama_cpp = pytest.importorskip("llama_cpp")
    theirs = llama_cpp.Llama(str(file), n_ctx=256, logits_all=True, verbose=False)
    rows = tiny.tokens(3, 1, 24)
    theirs.eval(rows[0].tolist())
    found = torch.from_numpy(theirs.scores[: rows.shape[1]].copy())
    expected = model(rows).logits[0].detach()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    return theirs


@pytest.mark.proof
@pytest.mark.parametrize("architecture", ours.ARCHITECTURES)
def test_llama_cpp_computes_the_same(architecture, tmp_path):
    """Needs `pip install llama-cpp-python`, which is built from source."""
    # It leaves Phi-3's windows out.
    changes = {"phi3": {"sliding_window": 64}}
    model = make(tmp_path / "model", architecture, **changes.get(architecture, {}))
    file = write(tmp_path / "model.gguf", architecture, model)
    theirs = assert_judged_the_same(file, model)
    ours.convert(file, tmp_path / "out")
    tokenizer = read_tokenizer(tmp_path / "out")
    assert tokenizer(TEXT)["input_ids"] == theirs.tokenize(TEXT.encode(), False)


@pytest.mark.proof
@pytest.mark.parametrize("pre", [*PIECES, "tekken", "qwen2", "gpt-4o", "command-r"])
def test_llama_cpp_finds_the_same_tokens(pre, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    _, file = written(tmp_path, pre=pre, merges=FEW)
    theirs = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    ours.convert(file, tmp_path / "out")
    tokenizer = read_tokenizer(tmp_path / "out")
    for text in ("hello", "he llo  12", TEXT, "hello's w\n\n\tw 1,234.5 ll"):
        assert tokenizer(text)["input_ids"] == theirs.tokenize(text.encode(), True)
