"""A new checkpoint is one that safetensors reads, whole or not there at all."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.model.checkpoint import (
    ALIGNMENT,
    DTYPES,
    INDEX,
    NON_LAYER,
    Entry,
    contents,
    file_bytes,
    file_name,
    in_file_order,
    nbytes,
    new_checkpoint,
    renumbered,
    split_name,
)

LAYER: dict[str, Entry] = {
    "model.layers.0.a.codes": ("U8", (3, 5)),
    "model.layers.0.a.scales": ("F32", (3,)),
    "model.layers.0.norm.weight": ("BF16", (7,)),
}
REST: dict[str, Entry] = {"model.norm.weight": ("BF16", (9,))}


def draw(entries, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (100 * torch.rand(shape, generator=generator)).to(DTYPES[dtype])
        for name, (dtype, shape) in in_file_order(entries).items()
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.12.mlp.up_proj.weight", (12, "mlp.up_proj.weight")),
        ("model.decoder.layers.0.fc1.bias", (0, "fc1.bias")),
        ("layers.3.a", (3, "a")),
        ("model.layers.3.experts.layers.5.w", (3, "experts.layers.5.w")),
        ("model.norm.weight", (NON_LAYER, "model.norm.weight")),
        ("model.players.3.a", (NON_LAYER, "model.players.3.a")),
    ],
)
def test_names_are_split_at_the_first_stack(name, expected):
    assert split_name(name) == expected
    if expected[0] != NON_LAYER:
        again = renumbered(name, 7)
        assert split_name(again) == (7, expected[1])
        assert renumbered(again, expected[0]) == name


def test_safetensors_reads_what_was_written_and_sizes_are_known_before(tmp_path):
    layer, rest = draw(LAYER), draw(REST)
    needed = file_bytes(LAYER) + file_bytes(REST)
    with new_checkpoint(tmp_path / "model", needed) as new:
        new.write(NON_LAYER, REST, contents(rest.values()))
        new.write(0, LAYER, contents(layer.values()))
        new.link(1, 0)
        new.finish(kind="dense", distinct_layers=1)
        assert new.bytes == needed + file_bytes(LAYER)
    found = load_file(tmp_path / "model" / file_name(0))
    assert found.keys() == layer.keys()
    for name, tensor in layer.items():
        assert torch.equal(found[name], tensor)
    assert torch.equal(
        load_file(tmp_path / "model" / file_name(NON_LAYER))["model.norm.weight"],
        rest["model.norm.weight"],
    )
    size = (tmp_path / "model" / file_name(0)).stat().st_size
    assert size == file_bytes(LAYER)
    assert size % ALIGNMENT == sum(map(nbytes, LAYER.values()))
    index = json.loads((tmp_path / "model" / INDEX).read_text())
    assert index["weight_map"]["model.layers.1.a.codes"] == file_name(1)
    assert index["metadata"]["total_size"] == needed + file_bytes(LAYER)


def test_a_tensor_without_dimensions_has_contents():
    (content,) = contents([torch.tensor(1.5)])
    assert content.tobytes() == np.float32(1.5).tobytes()


def filled():
    """The contents of a layer on a disk that has room for the first of them."""
    yield from islice(contents(draw(LAYER).values()), 1)
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ([memoryview(b"abc")] * 3, r"3 bytes for \('F32', \(3,\)\)"),
        (filled(), r"No space left.*nothing of it was kept"),
    ],
    ids=["another size", "a full disk"],
)
def test_contents_that_cannot_be_written_leave_nothing(tmp_path, written, words):
    with (
        pytest.raises(InvalidInput, match=words),
        new_checkpoint(tmp_path / "model", 0) as new,
    ):
        new.write(0, LAYER, written)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_permission_is_rejected(tmp_path, monkeypatch):
    def refuse(self, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "mkdir", refuse)
    with (
        pytest.raises(InvalidInput, match=r"cannot be written \(Permission denied\)"),
        new_checkpoint(tmp_path / "model", 0),
    ):
        pass


def test_a_file_system_without_hard_links_is_named(tmp_path, monkeypatch):
    def refuse(*names):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("thesis_lib.memory.model.checkpoint.os.link", refuse)
    with new_checkpoint(tmp_path / "model", 0) as new:
        new.write(0, LAYER, contents(draw(LAYER).values()))
        with pytest.raises(InvalidInput, match="rejects hard links"):
            new.link(1, 0)
