"""Factors stream like any other layer, each matrix with a rank of its own."""

import checks
import pytest
import tiny
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.convert import write_factors
from thesis_lib.memory.formats.base import read_by_layer
from thesis_lib.memory.formats.lowrank import (
    LowRankLinear,
    largest_ranks,
    ranks_of,
)
from thesis_lib.memory.model.checkpoint import NON_LAYER
from thesis_lib.memory.model.linears import linears
from thesis_lib.memory.offload.store import SafetensorsStore


def factor_randomly(model, seed=0):
    """Factors of random ranks in three quarters of the matrices, in place."""
    draw = torch.Generator().manual_seed(seed)
    for name, layer in linears(model).items():
        rank = int(torch.randint(1, min(layer.weight.shape) // 2, (1,), generator=draw))
        if torch.rand(1, generator=draw) < 0.25:
            continue
        left = torch.randn(layer.out_features, rank, generator=draw)
        right = torch.randn(rank, layer.in_features, generator=draw) / rank
        made = LowRankLinear(
            left.to(layer.weight), right.to(layer.weight) / 8, layer.bias
        )
        model.set_submodule(name, made)
    return model


def write_factored(home, architecture="llama", **changes):
    """A checkpoint with factors below `home`, and the same model resident."""
    model = factor_randomly(tiny.write(home / "dense", architecture, **changes))
    said = write_factors(home / "dense", home / "factors", model)
    return home / "factors", model, said


@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize(("ring", "resident"), [(1, 0), (2, 1), (3, 0), (2, 4)])
def test_streamed_factors_equal_resident_ones(tmp_path, architecture, ring, resident):
    folder, model, _ = write_factored(tmp_path, architecture)
    shape = {"batch": 2, "context": 24, "pass_tokens": 9}
    with tiny.streamed(folder, resident, ring, **shape) as twin:
        assert twin.plan.kind == "lowrank"
        assert tiny.agree(twin, model, batch=2)


def test_bytes_on_disk_are_those_counted(tmp_path):
    folder, model, said = write_factored(tmp_path)
    assert said["bytes_after"] == sum(p.nbytes for p in model.parameters())
    dense = sum(p.nbytes for p in tiny.write(tmp_path / "again").parameters())
    assert said["bytes_before"] == dense > said["bytes_after"]
    with SafetensorsStore(folder, verify=True) as store:
        assert (store.kind, store.layout) == ("lowrank", "factors")
        stored = sum(
            store.tensor_bytes(part) for part in range(NON_LAYER, store.layers)
        )
        assert stored == said["bytes_after"]
        assert len({store.tensor_bytes(layer) for layer in range(4)}) > 1
    assert read_by_layer(folder, "ranks", int) == ranks_of(model, 4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt"])
def test_the_planned_peak_of_factors_is_the_metered_one(tmp_path, architecture):
    folder, _, _ = write_factored(tmp_path, architecture, vocab_size=3000)
    checks.assert_peaks_are_planned(folder)


def test_the_largest_ranks_stand_for_all_layers():
    ranks = [{"a": 3, "b": 7}, {"a": 5}, {}]
    assert largest_ranks(ranks) == {"a": 5, "b": 7}


def test_factors_with_nan_are_rejected(tmp_path):
    model = factor_randomly(tiny.write(tmp_path / "dense"))
    layer = next(p for p in model.modules() if isinstance(p, LowRankLinear))
    layer.right.data[0, 0] = torch.nan
    with pytest.raises(InvalidInput, match=r"right holds weights that are not finite"):
        write_factors(tmp_path / "dense", tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_ranks_that_are_missing_or_impossible_are_rejected(tmp_path):
    folder, _, _ = write_factored(tmp_path)
    checks.assert_parts_are_checked(folder, "ranks", {
        "cannot have rank 999": {"self_attn.q_proj": 999},
        "z_proj not among": {"self_attn.z_proj": 4},
    })  # fmt: skip
