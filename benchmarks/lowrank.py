"""What each step of the low-rank method buys, on SmolLM2.

Plain truncation; whitened by the inputs; weighted by what the loss minds as well; with
ranks spread over all matrices instead of one ratio for each; calibrated layer after
layer behind compressed ones; and with the factors of each block trained. Every step
contains those before it. Calibration reads windows of *Persuasion*, other ones for each
seed, and never its last part, on which settings were chosen; evaluation reads *Sense
and Sensibility* and the *Jargon File*, in windows without overlap.

Points are written as they come, and a second run goes on where the first one ended.

    python benchmarks/lowrank.py [--seeds 3]
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from record import ELSEWHERE, Record, benchmark, tell
from torch import Tensor

from thesis_lib.common.files import data_folder
from thesis_lib.memory.compress import svd
from thesis_lib.memory.compress.allocation import allocate_ranks, spectra
from thesis_lib.memory.compress.blockwise import Refinement, factorize_blocks
from thesis_lib.memory.compress.fisher import output_factors, per_token
from thesis_lib.memory.evaluate.perplexity import perplexity, read_tokens
from thesis_lib.memory.evaluate.windows import cut_windows
from thesis_lib.memory.formats.nf4 import weight_bytes
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.linears import linears

CONTEXT = 512  # tokens of a window
HELD_OUT = ("sense_and_sensibility", "jargon")  # two domains, in data/text/
RATIOS = (0.8, 0.6, 0.9, 0.7, 0.5)  # the one of the goal first
METHODS = ("plain", "whitened", "weighted", "allocated", "sequential", "refined")
LAST_TOKEN = 98_000  # of Persuasion, for calibration; settings were chosen behind it
SLOW = ("sequential", "refined")
BLOCK_WINDOWS = 16  # of the calibration windows, for what goes layer after layer
EXTRA_SEEDS = ("whitened", "weighted", "allocated")  # at every ratio; all at the first


class Calibration:
    """What one calibration set says of the model; nothing is computed unasked."""

    def __init__(self, model: Any, text: Tensor, windows: int, seed: int) -> None:
        self.model, self.seed = model, seed
        self.windows = cut_windows(text, CONTEXT, windows, "anywhere", seed)

    @cached_property
    def grams(self) -> dict[str, Any]:
        return svd.gram_matrices(self.model, self.windows[:, None])

    @cached_property
    def output_factors(self) -> dict[str, Any]:
        sums = output_factors(self.model, self.windows, seed=self.seed)
        return per_token(sums, self.windows.numel())

    @cached_property
    def whitened(self) -> dict[str, Any]:
        return svd.decompose_layers(self.model, self.grams)

    @cached_property
    def weighted(self) -> dict[str, Any]:
        return svd.decompose_layers(
            self.model, self.grams, output_factors=self.output_factors
        )

    @cached_property
    def plain(self) -> dict[str, Any]:
        return svd.decompose_layers(self.model)

    def compressed(self, method: str, ratio: float) -> Any:
        """The model at `ratio` by the steps up to `method`."""
        if method in ("plain", "whitened", "weighted"):
            ranks = svd.uniform_ranks(self.model, ratio)
            return svd.with_ranks(self.model, getattr(self, method), ranks)
        ranks = allocate_ranks(spectra(self.model, self.weighted), ratio)
        if method == "allocated":
            return svd.with_ranks(self.model, self.weighted, ranks)
        return factorize_blocks(
            self.model,
            self.windows[:BLOCK_WINDOWS],
            ranks,
            self.output_factors,
            refinement=Refinement() if method == "refined" else None,
        )


def wanted(seeds: int) -> list[tuple[int, float, str]]:
    """The points in the order of their worth: seed, ratio, method.

    All steps at the ratio of the goal, the quick ones at the others, the same for the
    other seeds, and at last the slow steps at the other ratios.
    """
    points = [
        (seed, ratio, method)
        for seed in range(seeds)
        for ratio in RATIOS
        for method in METHODS
        if seed == 0
        or (method != "plain" and (ratio == RATIOS[0] or method in EXTRA_SEEDS))
    ]

    def stage(point: tuple[int, float, str]) -> int:
        seed, ratio, method = point
        if ratio == RATIOS[0]:
            return min(seed, 1)
        return (2 if seed else 0) if method not in SLOW else 3

    return sorted(points, key=stage)


def evaluate(model: Any, texts: dict[str, Tensor], names: list[str]) -> dict[str, Any]:
    """Bytes, and the negative log-likelihood of each window of each text."""
    return {
        "bytes": weight_bytes(model),
        "layer_bytes": weight_bytes(model, names),
        "nll": {
            name: perplexity(model, tokens, CONTEXT).nll.tolist()
            for name, tokens in texts.items()
        },
    }


@benchmark
def main(
    out: Path,
    *,
    seeds: Annotated[int, "calibration sets"] = 3,
    windows: Annotated[int, "of 512 tokens each"] = 32,
    tokens: Annotated[int, "of each text"] = 16_384,
    elsewhere: Annotated[bool, ELSEWHERE] = False,
) -> None:
    torch.set_num_threads(1)
    model, tokenizer = smollm2.load()
    novels = data_folder() / "text"
    files = {name: novels / f"{name}.txt" for name in HELD_OUT}
    texts = {n: read_tokens(tokenizer, f, tokens + 1) for n, f in files.items()}
    calibration_text = read_tokens(tokenizer, novels / "persuasion.txt", LAST_TOKEN)
    settings = {
        "model": "SmolLM2-135M-Instruct",
        "context": CONTEXT,
        "calibration_windows": windows,
        "block_windows": min(BLOCK_WINDOWS, windows),
        "evaluation_tokens": {name: len(ids) - 1 for name, ids in texts.items()},
        "refinement": {"steps": Refinement().steps, "rate": Refinement().rate},
    }
    record = Record(out, settings, ("dense", "points"), elsewhere)
    names = list(linears(model))
    if "dense" not in record.content:
        record.content["dense"] = evaluate(model, texts, names)
    calibration = None
    for seed, ratio, method in wanted(seeds):
        key = {"seed": seed, "ratio": ratio, "method": method}
        if record.find(**key):
            continue
        if calibration is None or calibration.seed != seed:
            calibration = Calibration(model, calibration_text, windows, seed)
        twin = calibration.compressed(method, ratio)
        point = record.add({**key, **evaluate(twin, texts, names)})
        nats = {name: sum(nll) / tokens for name, nll in point["nll"].items()}
        tell(f"{key}: nats a token {nats}")
