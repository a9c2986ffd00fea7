"""One command for every format: bytes and perplexities are those of the two models."""

import shutil

import checks
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.files import data_folder
from thesis_lib.memory.compress.blockwise import matrices
from thesis_lib.memory.compress.convert import (
    CALIBRATION_TEXT,
    CompressionConfig,
    compress_checkpoint,
)
from thesis_lib.memory.evaluate.perplexity import TEXTS, perplexity, read_tokens
from thesis_lib.memory.formats.base import read_by_layer
from thesis_lib.memory.offload.store import SafetensorsStore


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A checkpoint with a tokenizer of single characters."""
    folder = tmp_path_factory.mktemp("convert") / "dense"
    tiny.write(folder)
    tiny.give_tokenizer(folder)
    return folder


def compress(folder, out, tokens=4096, context=512, **config):
    config = CompressionConfig(**config)
    return compress_checkpoint(str(folder), out, config, tokens, context)


def test_perplexities_before_are_those_of_the_resident_model_on_each_domain(tmp_path):
    model = tiny.write(tmp_path / "dense")
    tokenizer = tiny.give_tokenizer(tmp_path / "dense")
    said = compress_checkpoint(
        str(tmp_path / "dense"), tmp_path / "out", "int8", 100, 24
    )
    assert list(said["domains"]) == list(TEXTS.values())
    for text, found in zip(TEXTS, said["domains"].values(), strict=True):
        ids = read_tokens(tokenizer, data_folder() / "text" / f"{text}.txt", 100)
        assert len(set(ids.tolist())) > 10
        expected = perplexity(model, ids, 24).value
        assert found["perplexity_before"] == expected, text
        assert 0.9 * expected < found["perplexity_after"] < 1.1 * expected
        assert found["perplexity_after"] != expected
    first, second = said["domains"].values()
    assert first != second
    assert first.items() <= said.items()
    assert said["bytes_before"] == sum(p.nbytes for p in model.parameters())
    assert said["bytes_after"] < said["bytes_before"]


def test_a_checkpoint_without_a_tokenizer_has_no_perplexity(tmp_path):
    tiny.write(tmp_path / "dense")
    said = checks.answer(
        "compress", tmp_path / "dense", tmp_path / "out", "--weights", "int8"
    )
    assert said["perplexity_before"] is said["perplexity_after"] is None
    assert said["domains"] == {}
    assert (said["weights"], said["tokens"], said["layers"]) == ("int8", 0, 4)


def test_few_bits_are_calibrated_on_the_text_that_is_given(dense, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a quick brown fox jumps over the lazy dog; " * 30)
    few = ["--bits", 3, "--group", 16, "--calibration", text, "--tokens", 100]
    plain, corrected = (
        checks.answer(
            "compress",
            dense,
            tmp_path / f"rank {rank}",
            "--correction-rank",
            rank,
            *few,
        )
        for rank in (0, 4)
    )
    model = tiny.write(tmp_path / "again")
    weights = sum(layer.weight.numel() for layer in matrices(model).values())
    rest = plain["bytes_before"] - 2 * weights
    assert plain["bytes_after"] - rest == weights * 3 // 8 + 2 * weights // 16
    assert plain["bytes_after"] < corrected["bytes_after"] < corrected["bytes_before"]
    assert plain["perplexity_after"] != corrected["perplexity_after"]


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
        CompressionConfig(rank_ratio=0.7),
        tokens=100,
        context=24,
        progress=lambda done, total: moved.append((done, total)),
    )
    assert 0.6 < entries(tmp_path / "out") / entries(dense) <= 0.7
    ranks = read_by_layer(tmp_path / "out", "ranks", int)
    assert len({str(layer) for layer in ranks}) > 1  # not the same for each layer
    assert said["bytes_after"] < said["bytes_before"]
    before, after = said["perplexity_before"], said["perplexity_after"]
    assert before != after == pytest.approx(before, rel=0.1)
    assert (said["rank_ratio"], said["weights"], said["layers"]) == (0.7, None, 4)
    assert moved == [(done, 4) for done in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no compression is asked for: give weights"),
        ({"weights": "fp4"}, "weights='fp4' is unknown"),
        ({"weights": "int8", "tokens": 10**6}, "ask for fewer"),
        ({"weights": "int8", "rank_ratio": 0.5}, "two compressions"),
        ({"weights": "nf4", "bits": 3}, "give one"),
        ({"weights": "int8", "calibration": CALIBRATION_TEXT}, "are not calibrated"),
        ({"weights": "int8", "correction_rank": 4}, "belongs to bits"),
        ({"weights": "int8", "group": 128}, "group=128 belongs to bits"),
        *(({"rank_ratio": r}, "rank_ratio=.* must lie in") for r in (0.0, -1.0, 1.5)),
        ({"rank_ratio": float("nan")}, "must lie in"),
        ({"rank_ratio": 0.5, "calibration": "short.txt"}, "64 tokens .* at least 80"),
        ({"bits": 5}, "bits=5 must be one of 2, 3, 4"),
        ({"bits": 3, "group": 32}, "group=32 does not divide"),
        ({"bits": 3, "calibration": "none.txt"}, r"none\.txt does not exist"),
        (
            {"bits": 3, "group": 16, "context": 64, "calibration": "short.txt"},
            "too short .* at least 80",
        ),
        (
            {"bits": 3, "group": 16, "context": 128, "calibration": "shorter.txt"},
            "has 40 tokens: expected 64 at least",  # as many as the model takes
        ),
    ],
)
def test_a_wish_that_cannot_be_is_rejected_and_nothing_written(
    dense, tmp_path, monkeypatch, options, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("x" * 64)
    (tmp_path / "shorter.txt").write_text("x" * 40)
    with pytest.raises(InvalidInput, match=words):
        compress(dense, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"weights": "int8"}, "int8"),
        ({"weights": "lossless"}, "lossless"),
        ({"rank_ratio": 0.5}, "lowrank"),
        ({"bits": 3, "group": 16}, "bits"),
    ],
)
def test_what_is_compressed_already_is_rejected(dense, tmp_path, options, kind):
    compress(dense, tmp_path / "once", tokens=0, **options)
    for again in (options, {"weights": "int8"}):
        with pytest.raises(InvalidInput, match=f"packed as {kind} already"):
            compress(tmp_path / "once", tmp_path / "twice", tokens=0, **again)
    assert not (tmp_path / "twice").exists()


def test_damaged_and_mute_checkpoints_are_rejected(dense, tmp_path):
    shutil.copytree(dense, tmp_path / "nan")
    file = tmp_path / "nan" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    tiny.write(tmp_path / "mute")
    for name, words in (
        ("nan", r"layers\.2\.mlp\.up_proj\.weight holds"),
        ("mute", "has no tokenizer"),
    ):
        with pytest.raises(InvalidInput, match=words):
            compress(tmp_path / name, tmp_path / "out", rank_ratio=0.5)
