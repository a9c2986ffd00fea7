"""TPC-C: logs of transactions drawn as its specification says."""

import numpy as np

from thesis_lib.common.errors import choice, require
from thesis_lib.sequencer.core.trace import F64
from thesis_lib.sequencer.workload import transactions as txn


def tpcc(n: int, scale: txn.Scale, seed: int, mix: str = "spec") -> txn.Log:
    """n transactions of TPC-C with its skew, remote accesses and rollbacks.

    The mix "spec" has 45 % New-Order (of which 1 % name an unknown item and roll back,
    and 1 % of order lines are supplied by another warehouse), 43 % Payment (15 % for a
    customer of another warehouse), 4 % each Order-Status, Delivery and Stock-Level;
    "new-order/payment" has half of each of these two, as the thesis ran it. 60 % of
    Payments and Order-Statuses name the customer by last name; the generator declares
    the number that a reconnaissance would find, and the engine still looks the name up.
    """
    shares = txn.TPCC_MIXES[choice("mix", mix, txn.TPCC_MIXES)]
    require(n >= 1, f"n={n} transactions: expected at least 1")
    thresholds, terminals = np.cumsum(shares)[:-1], _Terminals(scale, seed)
    transactions = [terminals.transaction(thresholds, at) for at in range(n)]
    return txn.Log.declare(scale, seed, transactions)


class _Terminals:
    """The clients of a database, who draw what they ask for."""

    def __init__(self, scale: txn.Scale, seed: int) -> None:
        self.scale, self.directory = scale, _directory(scale, seed)
        self.draw = draw = txn.Draw(f"tpcc {seed}")
        self.shift = draw.between(0, 255), draw.between(0, 1_023), draw.between(0, 8191)

    def transaction(self, thresholds: F64, at: int) -> txn.Transaction:
        """The one at position `at`, of a type by the cumulated shares of a mix."""
        draw = self.draw
        kind = int(np.searchsorted(thresholds, draw.unit(), side="right"))
        w = draw.between(0, self.scale.warehouses - 1)
        d = draw.between(0, txn.DISTRICTS - 1)
        if kind == txn.NEW_ORDER:
            return self.new_order(w, d, at)
        if kind == txn.PAYMENT:
            return self.payment(w, d, at)
        if kind == txn.ORDER_STATUS:
            return txn.OrderStatus(w, d, *self.customer(w, d))
        if kind == txn.DELIVERY:
            return txn.Delivery(w, draw.between(1, 10), at)
        return txn.StockLevel(w, d, draw.between(10, 20))

    def elsewhere(self, w: int) -> int:
        other = self.draw.between(0, self.scale.warehouses - 2)
        return other + (other >= w)

    def by_number(self) -> int:
        return self.draw.skewed(1_023, 3_000, self.scale.customers, self.shift[1])

    def customer(self, w: int, d: int) -> tuple[int, str | None, int]:
        if self.draw.unit() >= 0.6:
            return self.by_number(), None, 0
        drawn = self.draw.skewed(255, 1_000, self.scale.last_names, self.shift[0])
        name = txn.last_name(drawn)
        number, matches = self.directory[w, d, name]
        return number, name, matches

    def new_order(self, w: int, d: int, at: int) -> txn.NewOrder:
        draw, scale = self.draw, self.scale
        buyer, lines = self.by_number(), []
        for _ in range(draw.between(*txn.ORDER_LINES)):
            item = draw.skewed(8_191, 100_000, scale.items, self.shift[2])
            remote = draw.unit() < 0.01 and scale.warehouses > 1
            supply = self.elsewhere(w) if remote else w
            lines.append(txn.OrderLine(item, supply, draw.between(1, 10)))
        if draw.unit() < 0.01:
            lines[-1] = lines[-1]._replace(item=scale.items)
        return txn.NewOrder(w, d, buyer, tuple(lines), at)

    def payment(self, w: int, d: int, at: int) -> txn.Payment:
        draw, (cw, cd) = self.draw, (w, d)
        if draw.unit() < 0.15 and self.scale.warehouses > 1:
            cw, cd = self.elsewhere(w), draw.between(0, txn.DISTRICTS - 1)
        number, name, matches = self.customer(cw, cd)
        cents = draw.between(100, 500_000)
        return txn.Payment(w, d, cw, cd, number, name, matches, cents, at)


def _directory(
    scale: txn.Scale, seed: int
) -> dict[tuple[int, int, str], tuple[int, int]]:
    """Map (w, d, last name) to the middle customer and count (clause 2.5.2.2)."""
    bearers: dict[tuple[int, int, str], list[tuple[str, int]]] = {}
    for w in range(scale.warehouses):
        for d, names in enumerate(txn.customer_names(scale, seed, w)):
            for c, (last, first) in enumerate(names):
                bearers.setdefault((w, d, last), []).append((first, c))
    return {
        name: (sorted(customers)[(len(customers) - 1) // 2][1], len(customers))
        for name, customers in bearers.items()
    }
