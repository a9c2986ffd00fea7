"""YCSB: logs of transactions whose keys are Zipf distributed."""

from bisect import bisect_right
from decimal import Context, Decimal

import numpy as np

from thesis_lib.common.errors import choice, require
from thesis_lib.sequencer.workload import transactions as txn

OPERATIONS = 10  # of a transaction


class Zipf:
    """Ranks 0 to n - 1, rank r with a probability proportional to (r + 1)^-theta.

    The exact distribution that Gray et al. (SIGMOD 1994) approximate, by inversion of
    a table. Its weights are integers, from the correctly rounded logarithm and
    exponential of the decimal standard: no library's last bit decides a draw.
    Raises InvalidInput for theta outside [0, 1).
    """

    def __init__(self, theta: float, n: int) -> None:
        require(0 <= theta < 1, f"theta={theta}: expected 0 (uniform) to below 1")
        power, exact = -Decimal(repr(float(theta))), Context(prec=28)
        total, self.cumulative = 0, []
        for k in range(1, n + 1):
            weight = exact.exp(exact.multiply(power, exact.ln(Decimal(k))))
            total += round(exact.multiply(weight, txn.ZIPF_UNIT))
            self.cumulative.append(total)

    def rank(self, draw: txn.Draw) -> int:
        """The next rank."""
        return bisect_right(self.cumulative, int(draw.unit() * self.cumulative[-1]))


def ycsb(
    n: int, scale: txn.YcsbScale, seed: int, mix: str = "A", theta: float = 0.99,
    hot: float = 0.0,
) -> txn.Log:  # fmt: skip
    """n transactions of a core workload of YCSB (Cooper et al., SoCC 2010).

    Each draws a partition and there OPERATIONS independent operations in the
    shares of `mix`: A half reads, half updates; B 95:5; C reads alone; F half reads,
    half read-modify-writes. Records are Zipf within the partition, not scrambled: the
    record of the lowest number is the most popular of each partition. A share `hot`
    of transactions also increments the one counter.
    """
    require(n >= 1, f"n={n} transactions: expected at least 1")
    require(0 <= hot <= 1, f"hot={hot}: expected a share from 0 to 1")
    thresholds = np.cumsum(txn.YCSB_MIXES[choice("mix", mix, txn.YCSB_MIXES)])[
        :-1
    ].tolist()
    draw, popularity = txn.Draw(f"ycsb {seed}"), Zipf(theta, scale.records)

    def operation() -> txn.Operation:
        return txn.Operation(
            what=txn.OPERATIONS[bisect_right(thresholds, draw.unit())],
            record=popularity.rank(draw),
            field=draw.between(0, txn.FIELDS - 1),
            value=draw.between(0, 10**9 - 1),
        )

    transactions = [
        txn.Ycsb(
            partition=draw.between(0, scale.files - 1),
            operations=tuple(operation() for _ in range(OPERATIONS)),
            counter=scale.files if draw.unit() < hot else None,
        )
        for _ in range(n)
    ]
    return txn.Log.declare(scale, seed, transactions)
