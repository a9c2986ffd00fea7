"""TPC-C: logs of transactions drawn as its specification says."""

import numpy as np

from thesis_lib.common.errors import choice, require
from thesis_lib.sequencer.workload.transactions import (
    DELIVERY,
    DISTRICTS,
    NEW_ORDER,
    ORDER_LINES,
    ORDER_STATUS,
    PAYMENT,
    TPCC_MIXES,
    Delivery,
    Draw,
    Log,
    NewOrder,
    OrderLine,
    OrderStatus,
    Payment,
    Scale,
    StockLevel,
    Transaction,
    customer_names,
    last_name,
)


def tpcc(n: int, scale: Scale, seed: int, mix: str = "spec") -> Log:
    """n transactions of TPC-C with its skew, remote accesses and rollbacks.

    The mix "spec" has 45 % New-Order (of which 1 % name an unknown item and roll back,
    and 1 % of order lines are supplied by another warehouse), 43 % Payment (15 % for a
    customer of another warehouse), 4 % each Order-Status, Delivery and Stock-Level;
    "new-order/payment" has half of each of these two, as the thesis ran it. 60 % of
    Payments and Order-Statuses name the customer by last name; the generator declares
    the number that a reconnaissance would find, and the engine still looks the name up.
    """
    shares = TPCC_MIXES[choice("mix", mix, TPCC_MIXES)]
    require(n >= 1, f"n={n} transactions: expected at least 1")
    draw = Draw(f"tpcc {seed}")
    directory = _directory(scale, seed)
    shift = draw.between(0, 255), draw.between(0, 1_023), draw.between(0, 8_191)

    def elsewhere(w: int) -> int:
        other = draw.between(0, scale.warehouses - 2)
        return other + (other >= w)

    def by_number() -> int:
        return draw.skewed(1_023, 3_000, scale.customers, shift[1])

    def customer(w: int, d: int) -> tuple[int, str | None, int]:
        if draw.unit() >= 0.6:
            return by_number(), None, 0
        name = last_name(draw.skewed(255, 1_000, scale.last_names, shift[0]))
        number, matches = directory[w, d, name]
        return number, name, matches

    def new_order(w: int, d: int, at: int) -> NewOrder:
        buyer = by_number()
        count = draw.between(*ORDER_LINES)
        lines = []
        for _ in range(count):
            item = draw.skewed(8_191, 100_000, scale.items, shift[2])
            remote = draw.unit() < 0.01 and scale.warehouses > 1
            supply = elsewhere(w) if remote else w
            lines.append(OrderLine(item, supply, draw.between(1, 10)))
        if draw.unit() < 0.01:
            lines[-1] = lines[-1]._replace(item=scale.items)
        return NewOrder(w, d, buyer, tuple(lines), at)

    def payment(w: int, d: int, at: int) -> Payment:
        cw, cd = w, d
        if draw.unit() < 0.15 and scale.warehouses > 1:
            cw, cd = elsewhere(w), draw.between(0, DISTRICTS - 1)
        number, name, matches = customer(cw, cd)
        cents = draw.between(100, 500_000)
        return Payment(w, d, cw, cd, number, name, matches, cents, at)

    transactions: list[Transaction] = []
    thresholds = np.cumsum(shares)
    for at in range(n):
        kind = int(np.searchsorted(thresholds[:-1], draw.unit(), side="right"))
        w = draw.between(0, scale.warehouses - 1)
        d = draw.between(0, DISTRICTS - 1)
        if kind == NEW_ORDER:
            transactions.append(new_order(w, d, at))
        elif kind == PAYMENT:
            transactions.append(payment(w, d, at))
        elif kind == ORDER_STATUS:
            transactions.append(OrderStatus(w, d, *customer(w, d)))
        elif kind == DELIVERY:
            transactions.append(Delivery(w, draw.between(1, 10), at))
        else:
            transactions.append(StockLevel(w, d, draw.between(10, 20)))
    return Log.declare(scale, seed, transactions)


def _directory(scale: Scale, seed: int) -> dict[tuple[int, int, str], tuple[int, int]]:
    """(w, d, last name) to (customer number, customers of that name).

    The customer is the middle one by first name, rounded up (clause 2.5.2.2).
    """
    bearers: dict[tuple[int, int, str], list[tuple[str, int]]] = {}
    for w in range(scale.warehouses):
        for d, names in enumerate(customer_names(scale, seed, w)):
            for c, (last, first) in enumerate(names):
                bearers.setdefault((w, d, last), []).append((first, c))
    return {
        name: (sorted(found)[(len(found) - 1) // 2][1], len(found))
        for name, found in bearers.items()
    }
