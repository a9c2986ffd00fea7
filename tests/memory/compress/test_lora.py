"""A merged adapter changes its matrices by its product, and nothing else."""

import json
import math

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from thesis_book.__main__ import app
from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.lora import merge_adapter, read_adapter

Q, UP = "model.layers.1.self_attn.q_proj", "model.layers.2.mlp.up_proj"
SHAPES = {Q: (48, 48), UP: (80, 48)}
RANK = 3


def write_adapter(
    folder, shapes=None, dtype=torch.float32, ranks=None, more=(), **settings
):
    """An adapter of PEFT for matrices of the tiny LLaMA; its factors."""
    folder.mkdir(exist_ok=True)
    draw, factors = torch.Generator().manual_seed(4), {}
    for name, (rows, columns) in (shapes or SHAPES).items():
        rank = (ranks or {}).get(name, RANK)
        down = torch.randn(rank, columns, generator=draw)
        up = torch.randn(rows, rank, generator=draw)
        factors[f"{name}.lora_A.weight"] = down.to(dtype)
        factors[f"{name}.lora_B.weight"] = up.to(dtype)
    stored = {f"base_model.model.{name}": factor for name, factor in factors.items()}
    save_file(stored | dict(more), folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 6,
        "lora_dropout": 0.1, "target_modules": ["q_proj", "up_proj"], "bias": "none",
        "base_model_name_or_path": "tiny", "init_lora_weights": True,
        "use_dora": False, "modules_to_save": None, "rank_pattern": {},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return factors


def weights(folder):
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_matrix_gains_the_product_and_all_else_is_kept(tmp_path, dtype):
    tiny.write(tmp_path / "base", dtype=dtype)
    factors = write_adapter(tmp_path / "adapter")
    said = merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    before, after = weights(tmp_path / "base"), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert (said["matrices"], said["bytes_after"]) == (2, said["bytes_before"])
    for name, tensor in after.items():
        module = name.removesuffix(".weight")
        expected = before[name]
        if module in SHAPES:
            up, down = (factors[f"{module}.lora_{part}.weight"] for part in "BA")
            exact = expected.double() + 2 * up.double() @ down.double()
            assert torch.allclose(tensor.double(), exact, rtol=2**-7, atol=1e-5)
            expected = (expected + up @ down * 2).to(dtype)
            assert not torch.equal(tensor, before[name])
        assert torch.equal(tensor, expected), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert tiny.streams(tmp_path / "out")


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_peft_merges_the_same_bits(tmp_path, dtype, factors):
    """Needs `pip install peft`."""
    peft = pytest.importorskip("peft")
    model = tiny.write(tmp_path / "base", dtype=dtype)
    pattern = {"up_proj": 2}
    write_adapter(
        tmp_path / "adapter", dtype=factors, ranks={UP: 2}, rank_pattern=pattern,
        alpha_pattern={"layers.2.mlp.up_proj": 5}, use_rslora=True,
    )  # fmt: skip
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    theirs = adapted.merge_and_unload().state_dict()
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.equal(tensor, theirs[name]), name


def test_the_scale_is_that_of_its_rule_and_pattern(tmp_path):
    write_adapter(
        tmp_path, ranks={UP: 2}, rank_pattern={"up_proj": 2},
        alpha_pattern={"layers.2.mlp.up_proj": 5},
    )  # fmt: skip
    found = read_adapter(tmp_path)
    assert found[f"{Q}.weight"].scaling == 6 / RANK
    assert found[f"{UP}.weight"].scaling == 5 / 2
    write_adapter(tmp_path, use_rslora=True)
    assert read_adapter(tmp_path)[f"{Q}.weight"].scaling == 6 / math.sqrt(RANK)


FACTOR = torch.zeros(RANK, 48)
ODD = f"base_model.model.{Q}.lora_A.weight"
TABLE = "base_model.model.model.embed_tokens.lora_embedding_A"
REFUSED = {
    "another kind": ({"peft_type": "IA3"}, "peft_type 'IA3'"),
    "magnitudes": ({"use_dora": True}, "use_dora to True"),
    "biases": ({"bias": "all"}, "bias to 'all'"),
    "whole matrices": ({"modules_to_save": ["lm_head"]}, "modules_to_save to"),
    "a setting of tomorrow": ({"use_new": 1}, "use_new to 1"),
    "changed weights": ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    "odd start": ({"init_lora_weights": ["x"]}, "init_lora_weights"),
    "another rank": ({"r": 4}, "factors of rank 4"),
    "no rank": ({"r": None}, "factors of rank None"),
    "a list of ranks": ({"rank_pattern": ["x"]}, "sets rank_pattern to"),
    "no pattern": ({"alpha_pattern": {"(": 8}}, "sets alpha_pattern to"),
    "a word for a choice": ({"use_rslora": "false"}, "use_rslora to 'false': expected"),
    "no alpha": ({"lora_alpha": "x"}, "lora_alpha='x'"),
    "infinite alpha": ({"lora_alpha": float("inf")}, "Infinity"),
    "another model": ({"shapes": {Q: (96, 48)}}, r"of another model"),
    "a layer too many": (
        {"shapes": {Q.replace("1", "9"): (48, 48)}}, "no such matrix.*another model"),
    "a table": ({"more": {TABLE: FACTOR}}, "lora_embedding_A', which is no factor"),
    "factors without an end": ({"more": {ODD: FACTOR / 0}}, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_an_adapter_that_is_more_or_of_another_model_is_refused(
    tmp_path, changes, words
):
    tiny.write(tmp_path / "base")
    write_adapter(tmp_path / "adapter", **changes)
    with pytest.raises(InvalidInput, match=words):
        merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_files_that_are_cut_or_absent_are_refused(tmp_path):
    write_adapter(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    content, factors = path.read_bytes(), load_file(path)
    for length in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InvalidInput, match="expected a whole file"):
            read_adapter(tmp_path)
    save_file({name: factors[name] for name in [*factors][1:]}, path)
    with pytest.raises(InvalidInput, match="one factor of"):
        read_adapter(tmp_path)
    save_file({}, path)
    with pytest.raises(InvalidInput, match="adapts nothing"):
        read_adapter(tmp_path)
    path.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(InvalidInput, match=r"no adapter_model\.safetensors"):
        read_adapter(tmp_path)
    with pytest.raises(InvalidInput, match="configuration of an adapter"):
        read_adapter(tmp_path / "nowhere")


def test_the_command_merges_and_says_how_many(tmp_path):
    tiny.write(tmp_path / "base")
    write_adapter(tmp_path / "adapter")
    words = ["convert", str(tmp_path / "base"), str(tmp_path / "out")]
    words += ["--adapter", str(tmp_path / "adapter")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "changed 2 matrices" in " ".join(done.output.split())
    done = CliRunner().invoke(app, [*words, "--memory", "1GiB"])
    assert done.exit_code != 0
    said = " ".join(done.output.split())
    assert "--memory and --keep-blocks are of GGUF files" in said
