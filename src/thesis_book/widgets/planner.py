"""Data of the memory planner: geometries, rehearsed peaks, rates.

The script adds up and divides as `memory.offload.plan` does, for a step of one token.
What a format takes comes from the package's rehearsal on the machine that builds the
book; a geometry of the reader's own is in 16 bits, in the shape of LLaMA.
"""

from dataclasses import asdict
from typing import Any

from thesis_book.figures import style
from thesis_lib.memory.cost.cards import read_cards
from thesis_lib.memory.cost.planning import ASSUMED_CARD
from thesis_lib.memory.model.shape import Shape
from thesis_lib.memory.model.spec import (
    ALIGNMENT,
    WEIGHTS,
    ModelSpec,
    geometries,
    geometry,
)
from thesis_lib.memory.offload.footprint import geometry_footprint
from thesis_lib.memory.offload.plan import (
    ASSUMED_DECODE_BYTES_PER_S,
    HOST_BUFFERS,
)


def _stored(spec: ModelSpec, kind: str) -> dict[str, Any]:
    """Return the size of a geometry in a format, with work space by sequences."""
    one, two = (geometry_footprint(spec, Shape(batch, 512), kind) for batch in (1, 2))
    per_sequence = two.scratch_bytes - one.scratch_bytes
    return {
        "read_bytes": one.read_bytes,
        "staging_bytes": one.staging_bytes,
        "decoded_bytes": one.decoded_bytes,
        "outer_bytes": one.outer_bytes,
        "scratch_bytes": one.scratch_bytes - per_sequence,
        "scratch_per_sequence": per_sequence,
    }


def planner() -> dict[str, Any]:
    """Geometries by name with their formats, and what `thesis plan` assumes."""
    machine = read_cards()[ASSUMED_CARD].machine()
    names = [*geometries(), *WEIGHTS]
    return {
        "titles": {name: style.printed(name) for name in names},
        "alignment": ALIGNMENT,
        "host_buffers": HOST_BUFFERS,
        "weight_bytes_per_s": machine.weight_bytes_per_s,
        "flops_per_s": machine.flops_per_s,
        "decode_bytes_per_s": ASSUMED_DECODE_BYTES_PER_S,
        "geometries": [
            asdict(spec)
            | {
                "most_positions": spec.most_positions,
                "total_bytes": spec.total_bytes,
                "flops_per_token": spec.flops_per_token(),
                "stored": {word: _stored(spec, kind) for word, kind in WEIGHTS.items()},
            }
            for spec in map(geometry, geometries())
        ],
    }
