"""A fitted estimator as a file of numbers: nothing in it is ever executed.

NumPy's `.npz` with a header. The header names the version, the estimator, what it was
made with and the features that it was fitted on, and carries a hash over everything,
so that an altered file is noticed; whoever can forge the hash still finds that sizes,
features, the paths through trees and the range of what may be predicted are checked
before they are used.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thesis_lib.common.errors import InvalidInput, choice, require, require_all, vector
from thesis_lib.common.files import write_whole
from thesis_lib.sequencer.estimators.models import (
    FAR,
    LEVELS,
    SHORTEST_S,
    Aimed,
    Boosted,
    Constant,
    Learned,
    Linear,
    Quantiles,
    SumMax,
)
from thesis_lib.sequencer.estimators.trees import Trees

MODEL_VERSION = 1

Kind = Literal["number", "feature", "level", "types", "trees", "forests", "levels"]
POSITIVE = ("mean_s", "scale", "scale_s")  # of what is learned, besides being finite


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file holds of one estimator."""

    made: type[Learned]
    settings: tuple[str, ...]  # arguments that it was made with
    learned: dict[str, Kind]  # attributes that `fit` sets: one number, one a feature, …


LAYOUTS = {
    "constant": Layout(Constant, (), {"mean_s": "number"}),
    "linear": Layout(
        Linear,
        ("penalty",),
        {
            "centre": "feature",
            "scale": "feature",
            "slope": "feature",
            "intercept": "number",
        },
    ),
    "sum-max": Layout(
        SumMax,
        ("seed", "trees", "leaf"),
        {"scale_s": "number", "forests": "forests"},
    ),
    "boosted": Layout(
        Boosted,
        ("seed", "rounds"),
        {"centre": "number", "ensemble": "trees"},
    ),
    "quantiles": Layout(
        Quantiles,
        ("seed", "rounds", "held_back"),
        {
            "centre": "number",
            "ensembles": "levels",
            "offsets": "level",
            "type_offsets": "types",
            "spreads": "level",
        },
    ),
}


def write_model(estimator: Learned | Aimed, path: Path | str) -> None:
    """Write a fitted estimator; an existing file is replaced only by a complete one.

    Raises InvalidInput for one that has not been fitted.
    """
    base = estimator.base if isinstance(estimator, Aimed) else estimator
    layout = LAYOUTS[base.name]
    absent = [n for n in layout.learned if getattr(base, n, None) is None]
    aimed = isinstance(estimator, Aimed)
    require(
        not absent and not (aimed and estimator.factor is None),
        f"the {estimator.name} estimator is not fitted: call fit(trace) first",
    )
    arrays: dict[str, NDArray] = {}
    for name, kind in layout.learned.items():
        value = getattr(base, name)
        if kind == "trees":
            value = {"": value}
        if isinstance(value, dict):
            for of, trees in value.items():
                for part, array in trees.arrays().items():
                    arrays[f"{name}/{of}/{part}"] = array
        else:
            arrays[name] = np.atleast_1d(np.asarray(value, np.float64))
    header = {
        "version": MODEL_VERSION,
        "estimator": base.name,
        "settings": {name: getattr(base, name) for name in layout.settings},
        "feature_names": base.feature_names,
        "aim": None,
    }
    if isinstance(estimator, Aimed):
        header["aim"] = [estimator.aim, estimator.held_back, estimator.factor]
    header["sha256"] = _content_hash(header, arrays)
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    whole = io.BytesIO()
    np.savez(whole, header=text, **arrays)  # type: ignore[arg-type]
    write_whole(Path(path), whole.getvalue())


def read_model(path: Path | str) -> Learned | Aimed:
    """The estimator that `write_model` wrote, ready to predict.

    Raises InvalidInput, naming the file, for anything else: one that is cut short or
    altered, of another version, whose arrays do not fit together, or that predicts for
    some features what is no time.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop("header").tobytes())
        version, sha256 = header.pop("version"), header.pop("sha256")
    except (
        *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
        *(zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError),
    ) as error:
        raise InvalidInput(
            f"{path} is not an estimator ({type(error).__name__}: {error}): expected a "
            "whole file that write_model wrote"
        ) from error
    require(
        version == MODEL_VERSION,
        f"{path} has version {version} of an estimator's file: expected "
        f"{MODEL_VERSION}; fit it again with this version",
    )
    try:
        require(
            sha256 == _content_hash({"version": version, **header}, arrays),
            "it was altered after it was written: fit it again",
        )
        return _restored(header, arrays)
    except (InvalidInput, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"estimator {path} is refused: {error}") from error


def _restored(header: Mapping, arrays: dict[str, NDArray]) -> Learned | Aimed:
    layout = LAYOUTS[choice("estimator", header["estimator"], LAYOUTS)]
    settings = header["settings"]
    require(
        tuple(settings) == layout.settings,
        f"it was made with {', '.join(settings)}: expected "
        f"{', '.join(layout.settings) or 'nothing'}",
    )
    names = tuple(header["feature_names"])
    require(
        all(isinstance(name, str) for name in names) and len(set(names)) == len(names),
        "its features have no names, or one name twice",
    )
    estimator = layout.made(**settings)
    estimator.feature_names = names
    for name, kind in layout.learned.items():
        setattr(estimator, name, _value(name, kind, arrays, len(names)))
    require(not arrays, f"it has unknown arrays: {', '.join(arrays)}")
    for name, logarithms in _logarithms(estimator).items():
        farthest = float(np.abs(logarithms).max(initial=0.0))
        require(
            farthest <= FAR,
            f"its {name} can move a prediction by a factor of exp({farthest:.4g}): "
            f"expected at most exp({FAR:g}), whatever the features",
        )
    if header["aim"] is None:
        return estimator
    aim, held_back, factor = header["aim"]
    aimed = Aimed(estimator, aim, held_back)
    require(
        0 < factor < np.inf and abs(np.log(factor)) <= FAR,
        f"its factor is {factor}: expected a positive number below exp({FAR:g})",
    )
    aimed.factor = factor
    return aimed


def _logarithms(estimator: Any) -> dict[str, NDArray]:
    """What bounds the predictions, as logarithms of seconds or of factors."""
    match estimator.name:
        case "constant":
            return {"mean_s": np.log([estimator.mean_s])}
        case "linear":
            of = [estimator.intercept, *estimator.slope]
            return {"intercept or slope": np.array(of)}
        case "sum-max":
            ends = [trees.ends() for trees in estimator.forests.values()]
            with np.errstate(over="ignore"):
                most_s = estimator.scale_s * np.abs(ends).max(axis=1).sum()
            return {"sum of forests": np.log([estimator.scale_s, most_s + SHORTEST_S])}
        case "boosted":
            ends = np.array(estimator.ensemble.ends())
            return {"sum of trees": estimator.centre + ends}
    ends = [trees.ends() for trees in estimator.ensembles.values()]
    return {
        "sum of trees": estimator.centre + np.array(ends),
        "offsets": estimator.offsets,
        "type_offsets": estimator.type_offsets,
        "spreads": estimator.spreads,
    }


def _value(
    name: str, kind: Kind, arrays: dict[str, NDArray], n_features: int
) -> float | NDArray | Trees | dict[str, Trees]:
    """One attribute of an estimator; what it is made of leaves `arrays`."""
    if kind not in ("trees", "forests", "levels"):
        require(name in arrays, f"its array {name} is missing")
        given = arrays.pop(name)
        expected = {
            "number": (1,),
            "feature": (n_features,),
            "level": (len(LEVELS),),
            "types": (len(given), len(LEVELS)),
        }[kind]
        require(
            given.shape == expected,
            f"its array {name} has shape {given.shape}: expected {expected}",
        )
        values = vector(name, given.ravel(), np.float64)
        if name in POSITIVE:
            require_all(values > 0, name, values, "expected a positive number")
        if name == "spreads":
            require_all(values >= 0, name, values, "expected at least 0")
        return float(values[0]) if kind == "number" else values.reshape(expected)
    parts: dict[str, dict[str, NDArray]] = {}
    for key in [key for key in arrays if key.startswith(f"{name}/")]:
        _, of, part = key.split("/")
        parts.setdefault(of, {})[part] = arrays.pop(key)
    require(len(parts) > 0, f"its trees {name} are missing")
    expected = {"trees": ("",), "levels": tuple(map(str, LEVELS))}.get(kind)
    require(
        expected in (None, tuple(parts)),
        f"its trees {name} are {', '.join(parts)}: expected {expected}",
    )
    ensembles = {}
    for of, part in parts.items():
        try:
            ensembles[of] = Trees.of_arrays(n_features, part)
        except (InvalidInput, KeyError) as error:
            raise InvalidInput(f"its trees {name}/{of}: {error}") from error
    return ensembles[""] if kind == "trees" else ensembles


def _content_hash(header: Mapping, arrays: Mapping[str, NDArray]) -> str:
    """SHA-256 over the header and all arrays, the same before and after a file."""
    content = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in arrays.items():
        content.update(f"{name} {array.dtype.str} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
