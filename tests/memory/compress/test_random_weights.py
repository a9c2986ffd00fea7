"""A synthetic checkpoint is an ordinary one: true bytes, loaded by transformers."""

import json
import os
import shutil
from dataclasses import replace

import checks
import numpy as np
import pytest
import torch
from scipy.stats import kstest
from tiny import read
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from thesis_book.__main__ import app
from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress import random_weights
from thesis_lib.memory.compress.convert import convert
from thesis_lib.memory.compress.random_weights import gaussian, synthesize
from thesis_lib.memory.formats.base import find_format, words
from thesis_lib.memory.model import checkpoint, spec
from thesis_lib.memory.model.checkpoint import NON_LAYER, split_name
from thesis_lib.memory.model.pretrained import quiet
from thesis_lib.memory.model.spec import ModelSpec
from thesis_lib.memory.offload.store import SafetensorsStore, StoreDamaged

TINY = ModelSpec("tiny", 4, 64, 96, 4, 2, 16, 100, tied=False)
MISTRAL = replace(TINY, name="mistral-tiny", architecture="mistral")
OPT = ModelSpec(
    "opt-tiny", 3, 64, 128, 4, 4, 16, 100, tied=True,
    gated=False, attention_bias=True, mlp_bias=True, norm_bias=True, positions=34,
    architecture="opt",
)  # fmt: skip


def everything(folder):
    """Of each layer its tensors, by their names in it."""
    with SafetensorsStore(folder) as store:
        layers = [read(store, layer) for layer in range(NON_LAYER, store.layers)]
    return [{split_name(name)[1]: layer[name] for name in layer} for layer in layers]


@pytest.mark.parametrize("tiny", [TINY, MISTRAL, OPT], ids=lambda tiny: tiny.name)
def test_transformers_loads_what_was_written(tmp_path, tiny):
    said = synthesize(tiny, tmp_path / "model", seed=3)
    with quiet():
        model, report = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", output_loading_info=True
        )
    assert not any(report.values()), report
    assert model.dtype == torch.bfloat16
    assert sum(p.nbytes for p in model.parameters()) == tiny.total_bytes
    stored = sum(
        file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors")
    )
    assert said["bytes"] == said["distinct_bytes"] == stored >= tiny.total_bytes
    logits = model(torch.arange(7).unsqueeze(0)).logits
    assert torch.isfinite(logits).all()
    assert logits.float().std() > 0
    with SafetensorsStore(tmp_path / "model") as store:
        tensors = sum(store.tensor_bytes(i) for i in range(NON_LAYER, store.layers))
        assert (store.layers, store.kind) == (tiny.layers, "dense")
        assert tensors == tiny.total_bytes
        # Tensors start on a block: a read brings little but them.
        assert store.bytes_read == 0
        assert store.nbytes(0) - store.tensor_bytes(0) < checkpoint.ALIGNMENT


def test_linked_layers_are_read_under_their_own_numbers(tmp_path):
    said = synthesize(TINY, tmp_path / "linked", distinct_layers=3, seed=1)
    whole = synthesize(TINY, tmp_path / "whole", seed=1)
    assert said["bytes"] == whole["bytes"] > said["distinct_bytes"]
    linked, full = everything(tmp_path / "linked"), everything(tmp_path / "whole")
    assert linked[:4] == full[:4]  # a layer depends on its number alone
    assert linked[4] == linked[1] != full[4]
    files = [(tmp_path / "linked" / f"layer-000{i}.safetensors") for i in (0, 3)]
    assert os.path.samefile(*files)
    index = json.loads((tmp_path / "linked" / checkpoint.INDEX).read_text())
    assert index["metadata"]["distinct_layers"] == 3


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_threads(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(random_weights, "_BLOCK", 1000)
    synthesize(TINY, tmp_path / "a", seed=5)
    monkeypatch.setattr(random_weights, "_THREADS", 1)
    synthesize(TINY, tmp_path / "b", seed=5, layers=2)
    synthesize(TINY, tmp_path / "c", seed=6, layers=2)
    a, b, c = (everything(tmp_path / name) for name in "abc")
    assert a[:3] == b
    drawn = [layer["mlp.up_proj.weight"] for layer in c[1:]]
    assert not any(layer["mlp.up_proj.weight"] in drawn for layer in b[1:])


@pytest.mark.parametrize("kind", words().values())
def test_random_weights_are_the_dense_ones_converted(tmp_path, kind):
    square = replace(TINY, intermediate=128)  # what fills the blocks of NF4
    dense = synthesize(square, tmp_path / "dense", seed=2)
    packed = synthesize(
        square, tmp_path / "packed", seed=2, kind=kind, distinct_layers=3
    )
    convert(tmp_path / "dense", tmp_path / "after", find_format(kind))
    straight, after = everything(tmp_path / "packed"), everything(tmp_path / "after")
    assert straight[:4] == after[:4]
    assert straight[4] == straight[1]
    assert packed["bytes"] < dense["bytes"] or kind == "dense"
    files = {f.stat().st_ino: f for f in (tmp_path / "packed").glob("*.safetensors")}
    assert packed["distinct_bytes"] == sum(f.stat().st_size for f in files.values())
    with SafetensorsStore(tmp_path / "packed", verify=True) as store:
        assert store.weights == find_format(kind)


def test_weights_follow_the_normal_law():
    drawn = gaussian((256, 400), 0.02, (7,)).double().flatten().numpy()
    # The law of what bfloat16 rounds, which moves no value by more than one in 2^8.
    spread = drawn * (1 + np.random.default_rng(0).uniform(-1, 1, len(drawn)) / 2**9)
    assert kstest(spread / 0.02, "norm").pvalue > 0.01
    assert len({gaussian((64, 64), 0.02, (i,)).sum().item() for i in range(5)}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distinct_layers": 0}, "distinct_layers=0: expected 1 to 4"),
        ({"distinct_layers": 5}, "distinct_layers=5: expected 1 to 4"),
        ({"layers": 5}, "layers=5: expected 1 to 4, the depth of tiny"),
        ({"layers": 2, "distinct_layers": 3}, "expected 1 to 2"),
        ({"kind": "fp4"}, "kind='fp4' is unknown"),
    ],
)
def test_numbers_out_of_range_are_rejected(tmp_path, options, message):
    with pytest.raises(InvalidInput, match=message):
        synthesize(TINY, tmp_path / "model", **options)
    assert not list(tmp_path.iterdir())


def test_a_target_that_exists_and_a_full_disk_are_rejected(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    for model, out, message in (
        (TINY, "there", "exists already"),
        (TINY, "nowhere/model", "create it first"),
        ("llama-64b", "model", "'llama-64b' is unknown"),
        (TINY, "model", "where its disk has 1000 B free"),
    ):
        if out == "model":
            monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(InvalidInput, match=message):
            synthesize(model, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_run_that_fails_leaves_nothing_and_one_that_was_killed_is_no_obstacle(
    tmp_path,
):
    def stop(done, total):
        assert list(tmp_path.iterdir()) == [tmp_path / ".model.partial"]
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(TINY, tmp_path / "model", progress=stop)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "layer-0000.safetensors").write_bytes(b"half")
    synthesize(TINY, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_two_runs_do_not_write_one_folder(tmp_path):
    def again(done, total):
        with pytest.raises(InvalidInput, match="another run is writing"):
            synthesize(TINY, tmp_path / "model")

    synthesize(TINY, tmp_path / "model", progress=again)
    assert len(everything(tmp_path / "model")) == 5


def test_a_link_that_was_replaced_by_another_layer_is_rejected(tmp_path):
    synthesize(TINY, tmp_path / "model", distinct_layers=2)
    (tmp_path / "model" / "layer-0003.safetensors").unlink()
    os.link(
        tmp_path / "model" / "layer-0000.safetensors",
        tmp_path / "model" / "layer-0003.safetensors",
    )
    with pytest.raises(StoreDamaged, match=r"layer-0003\.safetensors"):
        SafetensorsStore(tmp_path / "model")


def test_the_command_says_what_it_wrote(tmp_path, monkeypatch):
    monkeypatch.setitem(spec._GEOMETRIES, "tiny", TINY)
    words = ["synth", "tiny", str(tmp_path / "model"), "--distinct-layers", "2"]
    said = checks.answer(*words)
    assert said["layers"] == 4
    with SafetensorsStore(tmp_path / "model") as store:
        assert store.layers == 4
    files = list((tmp_path / "model").glob("*.safetensors"))
    assert said["bytes"] == sum(file.stat().st_size for file in files)
    stored = {file.stat().st_ino: file.stat().st_size for file in files}
    assert said["distinct_bytes"] == sum(stored.values())
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert len(again.stderr.strip().splitlines()) == 1
