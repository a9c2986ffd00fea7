"""Kernels that mix rows are found, however rarely their bits show it."""

from types import SimpleNamespace

import pytest
import torch

from thesis_lib.memory.model import batch_invariant

SHAPES = [(2, 48, 64), (8, 48, 211), (16, 1024, 32)]  # rows, inputs, outputs


def summed(x, weight, bias=None, shift=0.0):
    """A linear layer whose sum in float32 has an error, the same on every processor."""
    x64, weight64 = x.double(), weight.double().T
    total = (x64 @ weight64 + shift * (x64.abs() @ weight64.abs())).float()
    return (total if bias is None else total + bias).to(x.dtype)


def apart(x, weight, bias=None, shift=0.0):
    """A kernel that takes rows one by one."""
    rows = x.split(1, -2)
    return torch.cat([summed(row, weight, bias, shift) for row in rows], -2)


def mixing(x, weight, bias=None):
    """A kernel that errs less with two rows than any: 16 bits show it very rarely."""
    return apart(x, weight, bias, shift=0.0 if x.shape[-2] == 1 else 2.0**-31)


def drawn(rows, inputs, outputs, dtype, biased):
    draw = torch.Generator().manual_seed(rows)
    sizes = [(rows, inputs), (outputs, inputs), *[(outputs,)] * biased]
    return [torch.randn(size, generator=draw).to(dtype) for size in sizes]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", [mixing, apart])
def test_a_kernel_mixes_rows_where_its_sum_has_another_order(
    monkeypatch, kernel, shape, dtype, biased
):
    monkeypatch.setattr(batch_invariant, "functional", SimpleNamespace(linear=kernel))
    layer = drawn(*shape, dtype, biased)
    assert batch_invariant.mixes_rows(*layer) == (kernel is mixing)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_to_cancel_cancels_as_far_as_its_type_allows(dtype, biased):
    x, weight, *bias = drawn(8, 48, 211, dtype, biased)
    draw = torch.Generator().manual_seed(0)
    for row in x:
        batch_invariant._cancel(row, draw, weight, *bias)
        terms = row.double() * weight.double()
        left = terms.sum(1) + sum(b.double() for b in bias)
        assert (left.abs() / terms.abs().sum(1)).min() < 2.0**-20


def test_a_row_of_zeros_cancels_nothing_and_breaks_nothing(monkeypatch):
    monkeypatch.setattr(batch_invariant, "functional", SimpleNamespace(linear=apart))
    x, weight = drawn(2, 48, 64, torch.float16, False)
    assert not batch_invariant.mixes_rows(x, torch.zeros_like(weight))
