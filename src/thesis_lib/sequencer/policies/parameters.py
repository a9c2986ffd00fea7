"""Times of decision, and the parameters of rules."""

from dataclasses import dataclass, fields
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from thesis_lib.common.errors import require
from thesis_lib.sequencer.policies.admission import BidPriceParameters


class When(Enum):
    """The event at which the sequencer calls a policy."""

    FULL_BATCH = auto()
    """Once for each batch: when it is full, or when its timer ends."""

    ARRIVAL = auto()
    """At each arrival, about the transaction that arrives."""

    ARRIVAL_AND_COMMIT = auto()
    """At each arrival and each commit, about all transactions that wait in the
    sequencer (late binding): what cannot start yet is held and decided on again."""


@dataclass(frozen=True, slots=True)
class Defects:
    """Corrections of the thesis' policies, each of which can be switched off."""

    ghosts: bool = False  # what is dropped stays registered
    no_feedback: bool = False  # predicted ends are never corrected by observed commits
    stale: bool = False  # estimates in order of arrival, though the batch is reordered
    no_cpu: bool = False  # every transaction is taken to have a core of its own
    no_timer: bool = False  # a batch is flushed only when it is full
    band: bool = False  # critical is |predicted - deadline| < band, not least slack
    allowance: bool = False  # dropped only if predicted a band after its deadline
    cut_tail: bool = False  # the estimator is fitted without the tail of its labels

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The defects by name."""
        return tuple(field.name for field in fields(cls))


AS_PUBLISHED = Defects(*[True] * len(Defects.names()))
CORRECTED = Defects()
BAND = 0.2  # error band of the thesis over its SLO: 2.5 ms of 12.5 ms
TIMER = 0.04  # share of the SLO after which a corrected policy flushes a batch


@dataclass(frozen=True)
class RandomDrop:
    """The share of transactions that `random-drop` drops, and the seed of its draws."""

    share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            0 <= self.share <= 1, f"share must be between 0 and 1, got {self.share:g}."
        )


@dataclass(frozen=True)
class LateBound:
    """Parameters of a simple rule with late binding."""

    flight: float = 3.0  # most transactions past the sequencer for each core
    least_p: float = 0.999  # probability of being on time below which it drops

    def __post_init__(self) -> None:
        require(
            0 < self.flight < np.inf,
            f"flight must be positive and finite, got {self.flight:g}.",
        )
        require(
            0 <= self.least_p <= 1,
            f"least_p must be between 0 and 1, got {self.least_p:g}.",
        )


@dataclass(frozen=True)
class QueueParameters:
    """Parameters of the rules that watch a queue.

    Defaults are the best of those tried in scenario A. All but the seed are positive.
    Times are shares of the SLO.
    """

    room: float = 0.3  # work of all cores that `queue-cap` lets into the system
    target: float = 0.25  # of the wait in `codel`
    interval: float = 0.0125  # in which `codel` judges it
    depth: float = 3.0  # past a queue for each core: with fewer, locks idle the cores
    max_wait: float = 0.75  # longest wait in `adaptive-lifo`,
    standing: float = 0.5  # and once its queue has not been empty for that long
    delay: float = 0.5  # of the queue that `breakwater` aims at
    credit: float = 1.0  # in which it renews its credits
    window: float = 0.25  # in which `envoy` counts
    gradient: float = 1.0  # in which `gradient2` renews its limit
    writers: int = 3  # in front of a lock: `lock-queue-cap`
    cycle: float = 0.0625  # in which `cinnamon` renews the share that it rejects
    gain: float = 0.3  # of its last error,
    sum_gain: float = 0.3  # and of the sum of all
    places: float = 4.0  # for each core, of which it counts the free ones
    seed: int = 0  # of the draws of `envoy` and `cinnamon`

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(
                name == "seed" or 0 < value < np.inf,
                f"{name} must be positive and finite, got {value:g}.",
            )


@dataclass(frozen=True)
class NoParameters:
    """The parameters of a rule that has none."""


Parameters = (
    Defects
    | RandomDrop
    | QueueParameters
    | LateBound
    | BidPriceParameters
    | NoParameters
)


class Machine(NamedTuple):
    """The quantities that the constants of a rule scale with."""

    slo_s: float
    cores: int
    lag_s: float  # from a decision to the booking of its locks

    def places(self, for_each_core: float) -> int:
        """Return how many transactions these are for all cores, one at least."""
        return max(1, round(for_each_core * self.cores))
