"""Memory of a step without its weights, and layers where they are stored.

For one token of a known geometry that is said in a line. All else is rehearsed, and a
checkpoint always, with the torch that will run it. That imports torch and transformers,
which takes longer than the rest of a plan, so that what was found of a known geometry
is kept on the disk, whatever the memory it was for.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from thesis_lib.common.answers import remembered
from thesis_lib.memory.model.shape import PeakMemory, Shape
from thesis_lib.memory.model.spec import (
    ALIGNMENT,
    ModelSpec,
    geometries,
    geometry,
    whole_blocks,
)

if TYPE_CHECKING:  # it brings torch
    from thesis_lib.memory.formats.base import WeightFormat


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a plan adds up: stored layers, and the peak of a step."""

    kind: str  # of the format of the layers
    read_bytes: int  # of one layer, as the disk delivers it
    staging_bytes: int  # of the buffer of any layer
    decoded_bytes: int | None  # of a coded layer in its buffer
    outer_bytes: int  # embedding, final norm, head, and the tables of the code
    kv_bytes: int
    activation_bytes: int
    scratch_bytes: int  # what kernels take within an operator, and decoders
    head_parts: int = 0  # that the output head is read in, if it is
    part_read_bytes: int = 0  # of one of them

    @property
    def step_bytes(self) -> int:
        """Return the memory of a step without weights and tables."""
        return self.kv_bytes + self.activation_bytes + self.scratch_bytes

    @property
    def fixed_bytes(self) -> int:
        """Return the device's memory without the layers."""
        return self.outer_bytes + self.step_bytes


def footprint(
    peak: PeakMemory,
    weights: "WeightFormat",
    read_bytes: int,
    staging_bytes: int,
    outer_bytes: int,
    head_parts: int = 0,
    part_read_bytes: int = 0,
) -> Footprint:
    """Return the footprint of a rehearsed step, with layers of a format."""
    from thesis_lib.memory.offload.store import DECODERS

    return Footprint(
        weights.kind,
        read_bytes,
        staging_bytes,
        peak.layer_bytes if weights.is_coded else None,
        outer_bytes + peak.table_bytes,
        peak.kv_bytes,
        peak.activation_bytes,
        peak.scratch_bytes + weights.decoder_bytes(DECODERS),
        head_parts,
        part_read_bytes,
    )


def geometry_footprint(spec: ModelSpec, shape: Shape, kind: str) -> Footprint:
    """Return the footprint of a model without files, with estimated code sizes.

    Raises InvalidInput for a kind that is unknown or says too little of its weights.
    """
    known = spec.name in geometries() and spec == geometry(spec.name)
    if not known:
        return Footprint(**_rehearsed(asdict(spec), asdict(shape), kind))
    if kind == "dense" and shape == Shape(shape.batch, shape.context):
        return _one_token(spec, shape)
    return Footprint(**remembered(_rehearsed)(asdict(spec), asdict(shape), kind))


def _outer_bytes(spec: ModelSpec) -> int:
    # Three ends of extents, which whole blocks are read of.
    return whole_blocks(spec.embedding_bytes + spec.head_bytes) + 3 * ALIGNMENT


def _one_token(spec: ModelSpec, shape: Shape) -> Footprint:
    """Return the rehearsed peak of a dense one-token step, for known geometries.

    A layer's worst moment is one of two: the keys are being copied to make room for
    the new one, beside them hidden states, the query and the new key and value; or the
    feed-forward block holds all of its products. Numbers of a token are beside both,
    and OPT's mask and positions, of which the other architectures have a table.
    """
    keys, hidden = spec.kv_heads * spec.head_dim, spec.hidden
    if spec.architecture == "opt":
        copying, feeding = 6 * hidden, 2 * spec.intermediate + 4 * hidden
        numbers, tables, rotation = 12 * shape.context + 8, 0, 0
    else:
        copying, feeding = 4 * hidden + keys, 3 * spec.intermediate + 4 * hidden
        tables, rotation = 4 * spec.head_dim, 4 * spec.head_dim + 8
        numbers = 8
    worst = max(shape.context * keys + copying, feeding)
    read_bytes = whole_blocks(spec.layer_bytes)
    return Footprint(
        "dense",
        read_bytes,
        read_bytes + ALIGNMENT,  # a layer may straddle one block more
        None,
        _outer_bytes(spec) + tables,
        spec.kv_bytes(shape.batch, shape.context),
        shape.batch * (spec.dtype_bytes * worst + numbers) + rotation,
        0,
    )


def _rehearsed(
    spec_fields: dict[str, Any], shape_fields: dict[str, Any], kind: str
) -> dict[str, Any]:
    """The fields of the footprint of a geometry, from a dry run of its step."""
    from thesis_lib.memory.formats.base import find_format
    from thesis_lib.memory.offload.architectures import configure
    from thesis_lib.memory.offload.peak_memory import dry_run

    spec, shape = ModelSpec(**spec_fields), Shape(**shape_fields)
    weights = find_format(kind)
    peak = dry_run(configure(spec), shape, weights)
    read_bytes = whole_blocks(weights.estimate_read_bytes(peak.layer_bytes))
    staging_bytes = whole_blocks(weights.buffer_bytes(read_bytes, peak.layer_bytes))
    return asdict(
        footprint(
            peak, weights, read_bytes, staging_bytes + ALIGNMENT, _outer_bytes(spec)
        )
    )
