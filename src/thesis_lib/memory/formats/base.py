"""The interface of a weight format: write, plan, read and compute.

A format is one file of this folder: a subclass of `WeightFormat`, registered under the
kind that manifest and configuration of a checkpoint call it. Most of them say three
things of a matrix: what is stored of it, how that is made of it, and which layer
computes with that. Everybody else asks the registry.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from thesis_lib.common.errors import InvalidInput, choice, read_object, shown
from thesis_lib.memory.model.checkpoint import (
    DTYPES,
    NON_LAYER,
    Entry,
    NewCheckpoint,
    nbytes,
)
from thesis_lib.memory.model.linears import linears

Stored = TypeVar("Stored")


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor of a decoder layer is the weight of an `nn.Linear`."""
    return len(shape) == 2 and name.endswith(".weight")


@dataclass(frozen=True)
class WeightFormat:
    """The storage format of a checkpoint's decoder layers; dense by default.

    A value: two formats are equal where the same bytes mean the same. Names of tensors
    are relative to their layer, `layer` is its number, or NON_LAYER for all that no
    layer owns, which only a code changes.
    """

    kind: ClassVar[str] = "dense"  # in manifest, configuration and plans
    word: ClassVar[str | None] = None  # on the command line, where it says everything
    is_coded: ClassVar[bool] = False  # whether reads are decoded to dense tensors
    needs_processor: ClassVar[bool] = False  # whether its layers run nowhere else

    layout: str = ""  # what manifest and configuration say beside the kind

    @classmethod
    def here(cls) -> Self:
        """The format as this machine reads it fastest.

        Raises InvalidInput where the kind alone does not say what is stored.
        """
        return cls()

    @classmethod
    def read(cls, folder: Path, layout: str) -> Self:
        """The format of the checkpoint `folder`, whose manifest gives the layout."""
        return cls(layout)

    def manifest(self) -> dict[str, str]:
        """Return the manifest entry of the format."""
        return {"kind": self.kind, **({"layout": self.layout} if self.layout else {})}

    def describe(self) -> dict[str, Any]:
        """Return the entry of the format in a checkpoint's configuration.

        transformers, which does not know it, then warns, and misses every matrix.
        """
        return {"quant_method": "thesis_lib", **self.manifest()}

    def matrix_entries(self, layer: int, name: str, entry: Entry) -> dict[str, Entry]:
        """Types and shapes of what is stored of the matrix of the module `name`.

        Names are relative to the module. Raises InvalidInput for a matrix that cannot
        be stored so.
        """
        return {"weight": entry}

    def encode_matrix(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Return the stored tensors of a matrix (m, n), as in `matrix_entries`."""
        return {"weight": weight}

    def linear(self, layer: int, name: str, dense: nn.Linear) -> nn.Module:
        """Return the module that replaces `dense`, on the meta device.

        The names, types and shapes of its state are those of `matrix_entries` and of
        the bias, and a streamed model puts tensors of a store in their place. What its
        kernel takes within an operator a `PackedLinear` says.
        """
        return dense

    def entries(self, layer: int, dense: Mapping[str, Entry]) -> dict[str, Entry]:
        """Types and shapes of what is stored of a layer, from those of dense tensors.

        Raises InvalidInput for tensors that cannot be stored so.
        """
        return stored_tensors(layer, dense, partial(self.matrix_entries, layer))

    def encode(self, layer: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the stored tensors of a layer, from its dense tensors or some of them.

        Raises InvalidInput for weights that cannot be stored so.
        """
        return stored_tensors(layer, tensors, self.encode_matrix)

    def write(
        self,
        checkpoint: NewCheckpoint,
        layer: int,
        entries: Mapping[str, Entry],
        contents: Iterable[memoryview],
    ) -> int:
        """Write tensors by full name, as `NewCheckpoint.write`; return the bytes."""
        checkpoint.write(layer, entries, contents)
        return sum(map(nbytes, entries.values()))

    def swap(self, layers: nn.ModuleList) -> None:
        """Let decoder layers on the meta device compute with what is stored, in place.

        Raises InvalidInput for layers or a machine that cannot.
        """
        for number, layer in enumerate(layers):
            for name, dense in linears(layer).items():
                layer.set_submodule(name, self.linear(number, name, dense))

    def for_dry_run(self, layers: int) -> Self:
        """The format for so many layers that each need as much memory as any."""
        return self

    def estimate_read_bytes(self, layer_bytes: int) -> int:
        """Bytes that a disk delivers of a layer whose stored tensors have so many."""
        return layer_bytes

    def buffer_bytes(self, read_bytes: int, layer_bytes: int) -> int:
        """The memory in which a layer is read, and decoded if it is coded."""
        return read_bytes

    def decoder_bytes(self, threads: int) -> int:
        """Return the bytes that so many decoding threads need in addition."""
        return 0


Format = TypeVar("Format", bound=WeightFormat)
FORMATS: dict[str, type[WeightFormat]] = {}  # by kind


def register(weights: type[Format]) -> type[Format]:
    """Make a format known under its kind."""
    FORMATS[weights.kind] = weights
    return weights


@register
class Dense(WeightFormat):
    """Every matrix as it is, in the type of the model."""

    word = "bf16"

    def describe(self) -> dict[str, Any]:
        """Nothing: transformers reads it."""
        return {}


DENSE = Dense()


@cache
def formats() -> dict[str, type[WeightFormat]]:
    """Every format by its kind: those that the files of this folder register."""
    package = importlib.import_module(__name__.rpartition(".")[0])
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    return FORMATS


def words() -> dict[str, str]:
    """Kinds by the words of the command line, of the formats that one word names."""
    return {storage.word: kind for kind, storage in formats().items() if storage.word}


def find_format(kind: str) -> WeightFormat:
    """The format of a kind as this machine reads it fastest.

    Raises InvalidInput for an unknown kind, and for one that says too little.
    """
    return formats()[choice("kind", kind, formats())].here()


def read_format(folder: Path, kind: str, layout: str) -> WeightFormat:
    """The format of a checkpoint, by kind and layout of its manifest.

    Raises InvalidInput for a kind, a layout or a configuration that names none.
    """
    return formats()[choice("kind", kind, formats())].read(folder, layout)


def read_by_layer(folder: Path | str, field: str, kind: type) -> list[dict[str, Any]]:
    """Return the formats of matrices in a configuration, by layer and name.

    Raises InvalidInput where `field` does not list a value of `kind` for each matrix
    that it names, of every layer.
    """
    path = Path(folder) / "config.json"
    config = read_object(path, "the configuration of a checkpoint")
    packing, layers = config.get("quantization_config"), config.get("num_hidden_layers")
    listed: Any = packing.get(field) if isinstance(packing, dict) else None
    if (
        not isinstance(listed, list)
        or len(listed) != layers
        or not all(isinstance(layer, dict) for layer in listed)
        or not all(type(each) is kind for layer in listed for each in layer.values())
    ):
        raise InvalidInput(
            f"{path} does not list the {field} of its matrices: expected one object of "
            f"{kind.__name__} for each of {shown(layers)} layers; write the checkpoint "
            "again"
        )
    return listed


def stored_tensors(
    layer: int,
    dense: Mapping[str, Stored],
    store: Callable[[str, Stored], Mapping[str, Stored]],
) -> dict[str, Stored]:
    """The tensors of a layer, or their entries, with each matrix as it is stored.

    A matrix `a.weight` becomes what `store("a", …)` names, below `a.`; all else, biases
    and norms, stays as it is, and so does everything outside the layers.
    """
    tensors: dict[str, Stored] = {}
    for name, each in dense.items():
        shape = tuple(each.shape) if isinstance(each, Tensor) else each[1]  # type: ignore[index]
        if layer == NON_LAYER or not is_matrix(name, shape):
            tensors[name] = each
            continue
        module = name.removesuffix(".weight")
        parts = store(module, each)
        tensors |= {f"{module}.{part}": value for part, value in parts.items()}
    return tensors


class PackedLinear(nn.Module):
    """A linear layer over stored tensors, which a streamed model puts in their place.

    Its state, on the meta device until then, is `entries` and the bias of `dense`.
    """

    bias: Tensor | None

    def __init__(self, dense: nn.Linear, entries: Mapping[str, Entry]) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        for name, (dtype, shape) in entries.items():
            empty = torch.empty(shape, dtype=DTYPES[dtype], device="meta")
            self.register_buffer(name, empty)
        self.bias = dense.bias

    def scratch_bytes(self, rows: int) -> int:
        """The most that the kernel holds beside inputs, weights and output.

        For `rows` rows of 16-bit inputs. Its own buffers show to no meter of tensors.
        """
        return 0
