"""The packaged model is converted whole, checked whole, and refused otherwise."""

import os
from unittest.mock import Mock

import gguf
import pytest
import torch
from safetensors.torch import load_file

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.model import smollm2


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A cache of its own whose files may be replaced, without copying the weights."""
    original = smollm2.checkpoint()
    folder = tmp_path / original.parent.name / "smollm2"
    folder.mkdir(parents=True)
    for file in original.iterdir():
        (folder / file.name).symlink_to(file)
    monkeypatch.setenv("THESIS_CACHE", str(tmp_path))
    return folder


def test_a_whole_cache_is_accepted_as_it_is(cached):
    assert smollm2.checkpoint() == cached


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config.json", None, r"without config\.json.*delete the folder"),
        ("config.json", lambda content: content[:-1], r"altered in config\.json"),
        ("config.json", lambda content: content[::-1], r"altered in config\.json"),
        (smollm2.MANIFEST, None, "without a manifest"),
        (
            smollm2.MANIFEST,
            lambda content: content.replace(b'"version": 1', b'"version": 0'),
            "version 0",
        ),
    ],
)
def test_a_cache_that_is_not_whole_is_named_and_left_alone(cached, name, change, words):
    content = (cached / name).read_bytes()
    (cached / name).unlink()
    if change is not None:
        (cached / name).write_bytes(change(content))
    with pytest.raises(InvalidInput, match=words) as refusal:
        smollm2.checkpoint()
    assert str(cached) in str(refusal.value)
    if change is not None:
        assert (cached / name).read_bytes() == change(content)


def test_a_failed_conversion_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_CACHE", str(tmp_path))
    full = Mock(side_effect=OSError("no space left"))
    monkeypatch.setattr(smollm2, "save_file", full)
    beside = tmp_path / f"unpacked-{smollm2.UNPACKING}"
    (beside / "smollm2.999999999").mkdir(parents=True)  # of a process that was killed
    with pytest.raises(InvalidInput, match=r"no space left.*THESIS_CACHE"):
        smollm2.checkpoint()
    assert os.listdir(beside) == ["smollm2"]
    assert os.listdir(beside / "smollm2") == []


def test_weights_are_the_file_s_in_another_order():
    stored = load_file(smollm2.checkpoint() / "model.safetensors")
    names = {"attn_q": "q_proj", "attn_k": "k_proj"}
    for tensor in gguf.GGUFReader(smollm2.source()).tensors:
        _, layer, part, *_ = [*tensor.name.split("."), "", ""]
        if part not in names:
            continue
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        # Halves of each head interleave back to what the file holds.
        twin = stored[f"model.layers.{layer}.self_attn.{names[part]}.weight"]
        twin = twin.view(-1, 2, 32, 576).transpose(1, 2)
        assert torch.equal(values.to(torch.bfloat16).view(-1, 32, 2, 576), twin), layer


def test_the_model_knows_the_capital_of_france(capfd):
    model, tokenizer = smollm2.load()
    tokens = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        following = model(tokens).logits[0, -1].argmax()
    assert tokenizer.decode(following) == " Paris"
    assert not model.training
    assert capfd.readouterr().err == ""


def test_the_packaged_matrices_were_rounded_to_as_many_bits_as_is_said():
    kinds = {
        tensor.tensor_type.name
        for tensor in gguf.GGUFReader(smollm2.source()).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }
    assert kinds == {f"Q{smollm2.SOURCE_BITS}_1"}
