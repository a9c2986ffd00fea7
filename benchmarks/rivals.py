"""Constants of bid-price and of its baselines: those tried, and their violations.

Each policy runs with each combination of a few constants in all reference scenarios,
with estimates that scatter around the truth and with learned ones, on the design seeds,
which no evaluation uses. Chapters 3 and 4 give each baseline the constants with the
fewest violations in the setting of the comparison (`measurements.tuned`). The package
ships each baseline with those of the fewest in scenario A, with and without a dispatch
delay (`score`). Bid-price has one configuration, with the fewest over all settings.

    python benchmarks/rivals.py
"""

from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated

from record import ELSEWHERE, Record, benchmark, show, tell

from thesis_lib.sequencer.core.events import Delays
from thesis_lib.sequencer.experiments import metrics
from thesis_lib.sequencer.experiments.configuration import (
    SimulationConfig,
    named_estimate,
)
from thesis_lib.sequencer.experiments.grid import DESIGN_SEED, replicate
from thesis_lib.sequencer.policies.registry import rule_parameters

SETTINGS = {"A": 0.0, "A, lag": 0.5e-3, "B": 0.0, "C": 0.0}  # dispatch delay, seconds
LOADS = (0.9, 1.1, 1.5)
ESTIMATES = ("noisy", "boosted")  # around the truth, and learned
JUDGED = 2  # settings that the score of a rule is the mean of
LATE = {
    "least_p": (0.5, 0.8, 0.95, 0.99, 0.999),
    "flight": (1.25, 2.0, 3.0, 4.0, 6.0, 10.0),
}
TRIED: dict[str, dict[str, tuple[float, ...]]] = {
    "queue-cap": {"room": (0.3, 0.4, 0.5, 0.6, 0.75)},
    "lock-queue-cap": {"writers": (1, 2, 3, 4, 6, 8)},
    "codel": {
        "target": (0.1, 0.25, 0.5), "interval": (0.00625, 0.0125, 0.025, 0.05, 0.1),
        "depth": (2.0, 3.0, 4.0),
    },
    "adaptive-lifo": {
        "max_wait": (0.5, 0.75, 0.9), "standing": (0.25, 0.5, 0.75),
        "depth": (2.0, 3.0, 4.0),
    },
    "breakwater": {"delay": (0.4, 0.5, 0.6), "credit": (0.08, 0.32, 1.0, 4.0)},
    "envoy": {"window": (0.125, 0.25, 0.5, 1.0, 4.0)},
    "cinnamon": {
        "cycle": (0.0625, 0.125, 0.25, 0.5), "gain": (0.03, 0.1, 0.3),
        "sum_gain": (0.1, 0.3, 1.0), "places": (3.0, 4.0, 6.0),
    },
    "gradient2": {"gradient": (0.25, 1.0, 4.0, 16.0)},
    **dict.fromkeys(
        ("late-edf", "late-sjf", "least-slack", "startable-first", "late-demote"), LATE
    ),
    "bid-price": {
        "confidence_threshold": (0.8, 0.9, 0.95),
        "deadline_weight": (0.0, 1.0, 2.0, 3.0),
        "step": (0.05, 0.1, 0.2), "max_wait": (0.5, 1.0),
    },
}  # fmt: skip


def variants(policy: str) -> list[dict[str, float]]:
    """Every combination of its constants."""
    tried = TRIED[policy]
    return [
        dict(zip(tried, values, strict=True)) for values in product(*tried.values())
    ]


@benchmark
def main(
    out: Path,
    transactions: Annotated[int, "of a run"] = 10_000,
    seeds: Annotated[int, "runs of each"] = 3,
    *,
    elsewhere: Annotated[bool, ELSEWHERE] = False,
) -> None:
    record = Record(
        out,
        {
            "settings": SETTINGS, "estimates": ESTIMATES, "loads": LOADS,
            "transactions": transactions, "seeds": seeds, "seed": DESIGN_SEED,
        },
        ["points"],
        elsewhere,
    )  # fmt: skip
    configs = {
        setting: SimulationConfig.of_scenario(
            setting[0], transactions=transactions, delays=Delays(lag_s)
        )
        for setting, lag_s in SETTINGS.items()
    }
    estimates = {
        (setting, name): named_estimate(name, config)
        for (setting, config), name in product(configs.items(), ESTIMATES)
    }
    for policy in TRIED:
        made = [
            each
            for each in variants(policy)
            if not record.find(policy=policy, constants=each)
        ]
        if not made:
            continue
        labeled = {
            f"{at}": (policy, rule_parameters(policy, each))
            for at, each in enumerate(made)
        }
        found: dict[str, list[float]] = {label: [] for label in labeled}
        for (setting, _), estimate in estimates.items():
            runs = replicate(
                configs[setting], labeled, LOADS, estimate,
                seeds=seeds, seed=DESIGN_SEED,
            )  # fmt: skip
            for label, load in product(labeled, LOADS):
                percent = 100 * metrics.mean(runs, label, load)
                found[label].append(round(percent, 3))
        for each, percents in zip(made, found.values(), strict=True):
            judged = len(SETTINGS) if policy == "bid-price" else JUDGED
            score = fmean(percents[: judged * len(ESTIMATES) * len(LOADS)])
            record.add(
                {
                    "policy": policy, "constants": each,
                    "score": round(score, 4), "percent": percents,
                }
            )  # fmt: skip
        tell(f"{policy}: {len(made)} variants")
    show(record.points, "commit", "percent")
