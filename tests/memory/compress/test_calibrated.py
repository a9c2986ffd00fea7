"""From a checkpoint and a text to factors that stream."""

import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import give_tokenizer

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.convert import (
    CALIBRATION_TEXT,
    compress_checkpoint,
    factor_checkpoint,
)
from thesis_lib.memory.formats.lowrank import read_ranks
from thesis_lib.memory.offload.store import SafetensorsStore


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "dense"
    tiny.write(folder)
    give_tokenizer(folder)
    return folder


def entries(folder):
    """Entries of the matrices of all layers."""
    with SafetensorsStore(folder) as store:
        placed = [p for i in range(store.layers) for p in store.placements(i)]
    return sum(p.shape[0] * p.shape[1] for p in placed if len(p.shape) == 2)


def test_the_ratio_is_one_of_all_matrices_together(dense, tmp_path):
    moved = []
    said = compress_checkpoint(
        str(dense),
        tmp_path / "out",
        tokens=100,
        context=24,
        progress=lambda done, total: moved.append((done, total)),
        rank_ratio=0.7,
    )
    assert 0.6 < entries(tmp_path / "out") / entries(dense) <= 0.7
    ranks = read_ranks(tmp_path / "out")
    assert len({str(layer) for layer in ranks}) > 1  # not the same for each layer
    assert said["bytes_after"] < said["bytes_before"]
    before, after = said["perplexity_before"], said["perplexity_after"]
    assert before != after
    assert after == pytest.approx(before, rel=0.1)
    assert (said["rank_ratio"], said["weights"], said["layers"]) == (0.7, None, 4)
    assert moved == [(done, 4) for done in (1, 2, 3, 4)]


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.5, float("nan")])
def test_ratios_outside_the_unit_interval_are_refused(dense, tmp_path, ratio):
    with pytest.raises(InvalidInput, match=r"rank_ratio=.* must lie in"):
        compress_checkpoint(str(dense), tmp_path / "out", rank_ratio=ratio)
    assert not (tmp_path / "out").exists()


def test_text_that_is_too_short_is_told_how_much_is_needed(dense, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Too short for eighty inputs, with no more than one window of it.")
    with pytest.raises(InvalidInput, match=r"64 tokens is too short .* at least 80"):
        compress_checkpoint(
            str(dense), tmp_path / "out", rank_ratio=0.5, calibration=text
        )


def test_damaged_and_compressed_checkpoints_are_refused(dense, tmp_path):
    factor_checkpoint(dense, tmp_path / "once", rank_ratio=0.5)
    with pytest.raises(InvalidInput, match="packed as lowrank already"):
        factor_checkpoint(tmp_path / "once", tmp_path / "twice")
    shutil.copytree(dense, tmp_path / "nan")
    file = tmp_path / "nan" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=r"layers\.2\.mlp\.up_proj\.weight holds"):
        factor_checkpoint(tmp_path / "nan", tmp_path / "out")
    tiny.write(tmp_path / "mute")
    with pytest.raises(InvalidInput, match="has no tokenizer"):
        factor_checkpoint(tmp_path / "mute", tmp_path / "out")


def test_two_ways_at_once_are_refused(dense, tmp_path):
    with pytest.raises(InvalidInput, match="two compressions"):
        compress_checkpoint(str(dense), tmp_path / "out", "int8", rank_ratio=0.5)
    with pytest.raises(InvalidInput, match="are not calibrated"):
        compress_checkpoint(
            str(dense), tmp_path / "out", "int8", calibration=CALIBRATION_TEXT
        )
