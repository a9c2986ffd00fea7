"""One command for every format: bytes and perplexities are those of the two models."""

import json

import pytest
import tiny
import torch
from typer.testing import CliRunner

from thesis_lib.cli.main import app
from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.files import data_folder
from thesis_lib.memory.compress.blockwise import matrices
from thesis_lib.memory.compress.convert import compress_checkpoint
from thesis_lib.memory.evaluate.perplexity import TEXTS, perplexity, read_tokens


def test_perplexities_before_are_those_of_the_resident_model_on_each_domain(tmp_path):
    model = tiny.write(tmp_path / "dense")
    tokenizer = tiny.give_tokenizer(tmp_path / "dense")
    said = compress_checkpoint(
        str(tmp_path / "dense"), tmp_path / "out", "int8", 100, 24
    )
    assert list(said["domains"]) == list(TEXTS.values())
    for (text, domain), found in zip(
        TEXTS.items(), said["domains"].values(), strict=True
    ):
        path = data_folder() / "text" / f"{text}.txt"
        ids = read_tokens(tokenizer, path, 100)
        assert len(set(ids.tolist())) > 10
        expected = perplexity(model, ids, 24).value
        assert found["perplexity_before"] == expected, domain
        assert 0.9 * expected < found["perplexity_after"] < 1.1 * expected
        assert found["perplexity_after"] != expected
    first, second = said["domains"].values()
    assert first != second
    assert first.items() <= said.items()
    assert said["bytes_before"] == sum(p.nbytes for p in model.parameters())
    assert said["bytes_after"] < said["bytes_before"]


def test_more_tokens_than_a_text_has_are_refused_before_anything_is_written(tmp_path):
    tiny.write(tmp_path / "dense")
    tiny.give_tokenizer(tmp_path / "dense")
    with pytest.raises(InvalidInput, match="ask for fewer"):
        compress_checkpoint(str(tmp_path / "dense"), tmp_path / "out", "int8", 10**6)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_a_tokenizer_has_no_perplexity(tmp_path):
    tiny.write(tmp_path / "dense")
    words = ["compress", str(tmp_path / "dense"), str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--weights", "int8", "--json"])
    said = json.loads(done.stdout)
    assert said["perplexity_before"] is said["perplexity_after"] is None
    assert said["domains"] == {}
    assert (said["weights"], said["tokens"], said["layers"]) == ("int8", 0, 4)


def test_a_wish_that_is_missing_or_unknown_is_refused(tmp_path):
    tiny.write(tmp_path / "dense", dtype=torch.float32)
    with pytest.raises(InvalidInput, match="no compression is asked for: give weights"):
        compress_checkpoint(str(tmp_path / "dense"), tmp_path / "out")
    with pytest.raises(InvalidInput, match="weights='fp4' is unknown"):
        compress_checkpoint(str(tmp_path / "dense"), tmp_path / "out", "fp4")
    assert not (tmp_path / "out").exists()


def test_few_bits_are_calibrated_on_the_text_that_is_given(tmp_path):
    model = tiny.write(tmp_path / "dense")
    tiny.give_tokenizer(tmp_path / "dense")
    text = tmp_path / "text.txt"
    text.write_text("a quick brown fox jumps over the lazy dog; " * 30)
    words = ["compress", str(tmp_path / "dense"), "--bits", "3", "--group", "16"]
    few = ["--calibration", str(text), "--tokens", "100", "--json"]
    said = []
    for name, rank in (("plain", "0"), ("corrected", "4")):
        options = [*words, str(tmp_path / name), "--correction-rank", rank, *few]
        done = CliRunner().invoke(app, options)
        assert done.exit_code == 0, done.output
        said.append(json.loads(done.stdout))
    weights = sum(layer.weight.numel() for layer in matrices(model).values())
    rest = said[0]["bytes_before"] - 2 * weights
    assert said[0]["bytes_after"] - rest == weights * 3 // 8 + 2 * weights // 16
    assert said[0]["bytes_after"] < said[1]["bytes_after"] < said[1]["bytes_before"]
    assert said[0]["perplexity_after"] != said[1]["perplexity_after"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 5}, "bits=5 must be one of 2, 3, 4"),
        ({"bits": 3, "weights": "nf4"}, "give one"),
        ({"correction_rank": 4, "weights": "int8"}, "belongs to bits"),
        ({"bits": 3, "group": 32}, "group=32 does not divide"),
        ({"bits": 3, "calibration": "none.txt"}, r"none\.txt does not exist"),
        ({"bits": 3, "group": 16, "context": 64}, "too short .* at least 80"),
        ({"bits": 3, "context": 128}, "has 64 tokens: expected 128 at least"),
    ],
)
def test_few_bits_that_cannot_be_are_refused(tmp_path, options, words):
    tiny.write(tmp_path / "dense")
    tiny.give_tokenizer(tmp_path / "dense")
    (tmp_path / "short.txt").write_text("x" * 64)
    given = {"calibration": tmp_path / "short.txt"} if "context" in options else {}
    with pytest.raises(InvalidInput, match=words):
        compress_checkpoint(
            str(tmp_path / "dense"), tmp_path / "out", **given | options
        )
    assert not (tmp_path / "out").exists()
