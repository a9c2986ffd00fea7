"""Fewer bits a weight: a reference quantiser, and bitsandbytes' int8, NF4 and FP4.

`absmax_quantise` is the definition to reason with. `quantise` puts the layers of
bitsandbytes, with their own kernels, in the place of a model's linear layers.
"""

import copy
import logging
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from torch import Tensor, nn

from thesis_lib.checks import InvalidInput, choice, require
from thesis_lib.memory.linears import linears, replace

F64 = NDArray[np.float64]

BITS = (2, 3, 4, 8)
KINDS = ("int8", "nf4", "fp4")
BLOCK = 64  # weights that share one scale in the 4-bit kinds
SCALE_BLOCK = 256  # scales that share one scale of scales
OUTLIER = 6.0  # LLM.int8() computes input columns beyond this in 16 bits

# Said by bitsandbytes on import and on every int8 product; neither tells a user of
# this module what it could do: the hub is not needed, and float16 is what int8 uses.
_EXPECTED_LOG = ("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be")


def absmax_quantise(block: ArrayLike, bits: int) -> tuple[NDArray[np.int8], float]:
    """Codes and step of one block: x ≈ codes * step, to within half a step.

    The block's largest magnitude gets the largest code, 2^(bits − 1) − 1; codes are
    symmetric about zero, so the most negative code of two's complement is unused. A
    block of zeros has step 0. Codes have the block's shape. Raises InvalidInput for
    bits other than 2, 3, 4 or 8, and for values that are not finite.
    """
    require(bits in BITS, f"bits={bits} must be one of 2, 3, 4, 8")
    values = np.asarray(block, np.float64)
    require(
        values.size > 0 and bool(np.isfinite(values).all()),
        f"block of shape {values.shape} must hold finite values, at least one",
    )
    largest = float(np.abs(values).max())
    if largest == 0:
        return np.zeros(values.shape, np.int8), 0.0
    step = largest / (2 ** (bits - 1) - 1)
    require(
        step >= np.finfo(np.float64).tiny,
        f"block with a largest magnitude of {largest:g} is too small for a step in "
        "float64: scale it up",
    )
    return np.rint(values / step).astype(np.int8), step


def blockwise_error(weight: ArrayLike, bits: int, block: int = BLOCK) -> float:
    """Relative Frobenius error of absmax quantisation in blocks of `block` entries.

    Blocks run along the rows of a matrix (m, n); n must be a multiple of `block`.
    """
    blocks = normalised_blocks(weight, block)
    top = 2 ** (bits - 1) - 1
    require(bits in BITS, f"bits={bits} must be one of 2, 3, 4, 8")
    scale = np.abs(np.asarray(weight, np.float64).reshape(-1, block)).max(axis=1)
    error = (blocks - np.rint(blocks * top) / top) * scale[:, None]
    return float(np.linalg.norm(error) / np.linalg.norm(blocks * scale[:, None]))


def normalised_blocks(weight: ArrayLike, block: int = BLOCK) -> F64:
    """Blocks of a matrix's rows over their largest magnitude, (blocks, block).

    Blocks of zeros stay zero. Raises InvalidInput for rows that blocks do not tile.
    """
    matrix = np.asarray(weight, np.float64)
    require(
        matrix.ndim == 2 and matrix.shape[1] % block == 0,
        f"weight of shape {matrix.shape} does not split into blocks of {block}: "
        "expected a matrix whose rows are a multiple of it",
    )
    blocks = matrix.reshape(-1, block)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    return np.divide(blocks, largest, out=np.zeros_like(blocks), where=largest > 0)


def nf4_levels() -> F64:
    """The 16 levels of NormalFloat4, ascending from -1 to 1, zero among them.

    Eight quantiles of the standard normal above zero and seven below it, each side
    spaced evenly in probability and scaled to end at one. Dettmers et al., QLoRA,
    NeurIPS 2023; the outermost probability is that of bitsandbytes.
    """
    outermost = 0.9677083
    above = norm.ppf(np.linspace(0.5, outermost, 9)[1:])
    below = -norm.ppf(np.linspace(0.5, outermost, 8)[1:])
    return np.concatenate([below[::-1] / above[-1], [0.0], above / above[-1]])


def levels(kind: str) -> F64:
    """The 16 levels of bitsandbytes' own 4-bit code book, ascending."""
    choice("kind", kind, ("nf4", "fp4"))
    book = bitsandbytes().functional.get_4bit_type(kind, device="cpu")
    return np.sort(book.double().numpy())


def quantise(
    model: nn.Module, kind: str, names: Iterable[str] | None = None
) -> nn.Module:
    """A copy of the model with its linear layers in int8, NF4 or FP4.

    int8 is LLM.int8(): one scale per output row, input columns with an entry beyond
    6 computed in 16 bits. NF4 and FP4 share a scale among 64 weights and quantise
    the scales once more (double quantisation). The embedding and the output head
    keep their precision; `names` chooses layers. The model itself is unchanged.

    Raises InvalidInput for another kind, for a model that is not in eval mode, and
    for layers that 4-bit kernels cannot take (inputs a multiple of 64, outputs of
    32). On a CPU with AVX512-BF16 the first forward pass of a 4-bit layer lays its
    codes out anew and unfolds its scales to bfloat16: count stored bytes before it.
    """
    choice("kind", kind, KINDS)
    require(not model.training, "model is in training mode: call model.eval() before")
    twin = copy.deepcopy(model)
    for name, layer in linears(twin, names).items():
        replace(
            twin, name, _int8(layer) if kind == "int8" else _four_bit(layer, name, kind)
        )
    return twin.eval()


def _int8(layer: nn.Linear) -> nn.Module:
    bnb = bitsandbytes()
    device = layer.weight.device
    quantised = bnb.nn.Linear8bitLt(
        layer.in_features,
        layer.out_features,
        bias=False,
        has_fp16_weights=False,
        threshold=OUTLIER,
        device="meta",
    )
    quantised.weight = bnb.nn.Int8Params(
        layer.weight.data.cpu(), requires_grad=False, has_fp16_weights=False
    )
    quantised.bias = layer.bias
    return quantised.to(device)


def _four_bit(layer: nn.Linear, name: str, kind: str) -> nn.Module:
    if layer.in_features % BLOCK or layer.out_features % 32:
        raise InvalidInput(
            f"{name} has {layer.in_features} inputs and {layer.out_features} outputs: "
            f"4-bit kernels expect multiples of {BLOCK} and 32; leave it out of names"
        )
    bnb = bitsandbytes()
    device = layer.weight.device
    quantised = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=False,
        compute_dtype=layer.weight.dtype,
        quant_type=kind,
        compress_statistics=True,
        device="meta",
    )
    quantised.weight = bnb.nn.Params4bit(
        layer.weight.data.cpu(),
        requires_grad=False,
        quant_type=kind,
        compress_statistics=True,
        blocksize=BLOCK,
        module=quantised,
    )
    quantised.bias = layer.bias
    return quantised.to(device)


def dequantise(layer: nn.Module) -> Tensor:
    """The weight (m, n) that a quantised layer stands for, from its stored bytes.

    Raises InvalidInput for a layer that `quantise` did not make, and for a 4-bit one
    that a forward pass has laid out anew.
    """
    functional = bitsandbytes().functional
    weight: Any = getattr(layer, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        require(
            not getattr(state, "packing_format_for_cpu", False),
            "layer was laid out anew by its first forward pass: dequantise before it",
        )
        return functional.dequantize_4bit(weight.data, state)
    for scales in _row_scales(layer):
        return functional.int8_vectorwise_dequant(weight.data, scales)
    raise InvalidInput(
        f"{type(layer).__name__} is not quantised: expected a layer of quantise(…)"
    )


def four_bit_bytes(weights: int) -> int:
    """Bytes of one matrix of that many weights in NF4 or FP4, doubly quantised.

    Half a byte for each, a byte for the scale of each block of 64, and four bytes
    for each 256 scales and once for their mean.
    """
    require(
        weights > 0 and weights % BLOCK == 0,
        f"weights={weights} must be a positive multiple of {BLOCK}, the block",
    )
    scales = weights // BLOCK
    return weights // 2 + scales + 4 * -(-scales // SCALE_BLOCK) + 4


def weight_bytes(model: nn.Module, names: Iterable[str] | None = None) -> int:
    """Bytes that the weights of a model hold, or those of the submodules in `names`.

    Every tensor counts as it is now, scales and biases included, and one that is
    shared counts once. The 16 or 256 levels of a code book, constants of the format,
    do not count.
    """
    parts = [model] if names is None else [model.get_submodule(n) for n in names]
    held = {
        (tensor.untyped_storage().data_ptr(), tensor.storage_offset()): tensor
        for part in parts
        for layer in part.modules()
        for tensor in _tensors(layer)
    }
    return sum(tensor.nbytes for tensor in held.values())


def _tensors(layer: nn.Module) -> Iterable[Tensor]:
    """The weights that a layer owns itself, with what bitsandbytes keeps beside."""
    yield from layer.parameters(recurse=False)
    weight = getattr(layer, "weight", None)
    if (state := getattr(weight, "quant_state", None)) is not None:
        yield state.absmax
        if state.nested:
            yield state.state2.absmax
            yield state.offset
    yield from _row_scales(layer)


def _row_scales(layer: nn.Module) -> Iterable[Tensor]:
    """The scales of an int8 layer, which move at its first forward pass."""
    for holder in (getattr(layer, "weight", None), getattr(layer, "state", None)):
        if (scales := getattr(holder, "SCB", None)) is not None:
            yield scales


@cache
def bitsandbytes() -> ModuleType:
    """bitsandbytes, imported on first use and without its expected log lines."""
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).addFilter(
            lambda record: not record.msg.startswith(_EXPECTED_LOG)
        )
    import bitsandbytes

    return bitsandbytes
