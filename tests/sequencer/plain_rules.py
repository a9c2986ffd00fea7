"""The rules of all policies but `bid-price` in plain Python, the compiled ones' oracle.

Written to be read: lists of rows, sorted. What a rule of a baseline remembers is kept
with the look-ahead that forecasts for it.
"""

import heapq
from math import floor, sqrt
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from thesis_lib.sequencer.core.trace import Decision
from thesis_lib.sequencer.policies.registry import THESIS
from thesis_lib.sequencer.policies.rules import BREAKWATER, GRADIENT


class Row(NamedTuple):
    """What a rule sees of a transaction."""

    id: int
    deadline_s: float
    service_s: float
    finish_s: float
    p_on_time: float


def decide_plainly(policy, lookahead, batch, now_s):
    """What `policy` does with a batch by arrival that `lookahead` forecasts."""
    name, code = policy.name.removesuffix("-corrected"), policy.code
    if name in THESIS:
        return decided(*drop_and_reorder(name, policy, lookahead, batch, now_s))
    forecast = lookahead.forecast(batch.ids, now_s)
    rows = rows_of(batch.ids, batch.deadline_s, forecast)
    nothing = {"seen": 0, "total_s": 0.0, "above_s": None, "next_s": 0.0, "count": 0}
    remembered = vars(lookahead).setdefault("remembered", nothing | {"dropping": False})
    watch = vars(lookahead).setdefault("watch", Watch(lookahead, now_s, code))
    if name == "headroom":
        return decided(*drop_and_reorder("drop", policy, lookahead, batch, now_s))
    if name in ("gradient2", "breakwater"):
        limit = getattr(watch, name)(now_s)
        room = max(int(limit) - forecast.in_flight, 0)
        return decided(rows[:room], rows[room:])
    if name in ("envoy", "cinnamon", "lock-queue-cap"):
        lost = getattr(watch, name.replace("-", "_"))(rows, now_s)
        return decided([row for row in rows if row not in lost], lost)
    if name == "adaptive-lifo":
        return decided(*watch.adaptive_lifo(rows, forecast.in_flight, now_s))
    if name in ("fifo", "fifo-batched"):
        return decided(rows, [])
    if name == "random-drop":
        lost = [row for row in rows if coin(code.seed, row.id) < code.share]
        return decided([row for row in rows if row not in lost], lost)
    if name == "edf":
        return decided(sorted(rows, key=lambda row: row.deadline_s), [])
    if name == "sjf":
        return decided(sorted(rows, key=lambda row: row.service_s), [])
    if name == "queue-cap":
        fits = admitted(rows, forecast.in_flight, code.room_s, remembered)
        return decided(rows[:fits], rows[fits:])
    if name == "codel":
        lost = given_up(rows, now_s, code, remembered)
        return decided(rows[lost:], rows[:lost])
    return decided(*late(name, rows, now_s, code))


def rows_of(ids, deadline_s, forecast):
    said = forecast.service_s, forecast.finish_s, forecast.p_on_time
    columns = [column.tolist() for column in (ids, deadline_s, *said)]
    return [Row(*row) for row in zip(*columns, strict=True)]


def decided(order, dropped):
    parts = ([row.id for row in rows] for rows in (order, dropped))
    return Decision(*(np.array(ids, np.int64) for ids in parts))


def drop_and_reorder(name, policy, lookahead, batch, now_s):
    """The thesis' three: what it keeps, in order, and what it drops."""
    defects, band_s = policy.defects, policy.code.band_s

    def place(row):
        if defects.band:
            return abs(row.finish_s - row.deadline_s) >= band_s
        hopeless = row.finish_s > row.deadline_s + band_s
        return hopeless, row.deadline_s - row.finish_s

    moves, ids, deadline_s = name != "drop", batch.ids, batch.deadline_s
    if moves and not defects.stale:
        rows = rows_of(ids, deadline_s, lookahead.peek(ids, now_s))
        order = sorted(range(len(rows)), key=lambda at: place(rows[at]))
        ids, deadline_s = ids[order], deadline_s[order]
    rows = rows_of(ids, deadline_s, lookahead.forecast(ids, now_s))
    allowance_s = band_s if defects.allowance else 0.0
    dropped = [row for row in rows if row.finish_s > row.deadline_s + allowance_s]
    if name == "reorder":
        dropped = []
    kept = [row for row in rows if row not in dropped]
    if moves and defects.stale:
        kept.sort(key=place)
    return kept, dropped


def coin(seed, i):
    """SplitMix64 of Steele, Lea and Flood, OOPSLA 2014, as a number in [0, 1)."""
    bits = 2**64 - 1
    mixed = (i + seed + 1) * 0x9E3779B97F4A7C15 & bits
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & bits
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & bits
    return ((mixed ^ mixed >> 31) >> 11) / 2.0**53


def admitted(rows, in_flight, room_s, remembered):
    """How many of `rows` find less than `room_s` of work before them, at the mean."""
    remembered["seen"] += len(rows)
    remembered["total_s"] += sum(row.service_s for row in rows)
    for fits in range(len(rows)):
        here = in_flight + fits
        full_s = (here + 1) * remembered["total_s"]
        if here > 0 and full_s > room_s * remembered["seen"]:
            return fits
    return len(rows)


def given_up(rows, now_s, code, remembered):
    """How many of the front go; Nichols and Jacobson, ACM Queue 10(5), 2012."""
    for lost in range(len(rows) + 1):
        waits = lost < len(rows) and rows[lost].deadline_s - now_s < code.spare_s
        if not waits:
            remembered |= {"above_s": None, "dropping": False}
            return lost
        if remembered["above_s"] is None:
            remembered["above_s"] = now_s + code.interval_s
        if now_s < remembered["above_s"]:
            remembered["dropping"] = False
            return lost
        if not remembered["dropping"]:
            lately = now_s - remembered["next_s"] < code.interval_s
            count = max(remembered["count"] - 2, 1) if lately else 1
            remembered |= {"count": count, "dropping": True, "next_s": now_s}
        elif now_s < remembered["next_s"]:
            return lost
        else:
            remembered["count"] += 1
        remembered["next_s"] += code.interval_s / sqrt(remembered["count"])
    raise AssertionError("the loop ends when nobody is left")


def late(name, rows, now_s, code):
    """The simpler designs with late binding: what they keep, in order, and drop."""
    dropped = [row for row in rows if row.p_on_time < code.least_p]
    kept = [row for row in rows if row not in dropped]
    if name == "late-sjf":
        return sorted(kept, key=lambda row: row.service_s), dropped
    if name == "least-slack":
        return sorted(kept, key=lambda row: row.deadline_s - row.service_s), dropped
    kept.sort(key=lambda row: row.deadline_s)
    if name == "late-edf":
        return kept, dropped
    losers = sacrificed(kept, now_s, code.cores) if name == "late-demote" else set()

    def place(row):
        waits = row.finish_s - row.service_s > now_s + code.slack_s
        return row.id in losers, waits

    return sorted(kept, key=place), dropped


def sacrificed(rows, now_s, cores):
    """Ids that Moore and Hodgson give up on a machine as fast as all cores."""
    end_s, longest = now_s, []
    for at, row in enumerate(rows):
        end_s += row.service_s / cores
        heapq.heappush(longest, (-row.service_s, at))
        if end_s > row.deadline_s:
            shorter_s, _ = longest[0]
            end_s += shorter_s / cores
            heapq.heappop(longest)
    return {row.id for row in rows} - {rows[at].id for _, at in longest}


class Watch:
    """A database that is observed, by the rules that estimate nothing."""

    def __init__(self, lookahead, now_s, code):
        self.lookahead, self.code, self.heard = lookahead, code, set()
        self.at_s, self.idle_s = now_s, 0.0
        self.limit = {GRADIENT: 2.5 * code.cores, BREAKWATER: 1.0 * code.cores}.get(
            code.kind
        )
        self.long_s, self.renewals, self.sum_s, self.number, self.most = 0, 0, 0.0, 0, 0
        self.outcomes, self.drawn = [], 0
        self.renewed_s, self.flew, self.entered, self.errors = 0.0, 0, 0, 0.0
        self.share = 0.0

    def entries(self):
        """What the log holds: id, when it was handed over, started and committed."""
        database = self.lookahead.database
        for i in database.log:
            ended_s = database.finish_s.get(i)
            yield SimpleNamespace(
                id=i, began_s=database.dispatch_s[i], ended_s=ended_s,
                waits=i not in database.start_s, flies=ended_s is None,
            )  # fmt: skip

    def queues(self, i):
        """How many writers wait for each key that transaction i asks for."""
        database = self.lookahead.database
        queues = [database.locks.waiting.get(key, ()) for key, _ in database.sets[i]]
        return [sum(alone for _, alone in queue) for queue in queues]

    def commits(self):
        """Those that were not heard of before."""
        new = [e for e in self.entries() if not e.flies and e.id not in self.heard]
        self.heard |= {entry.id for entry in new}
        return new

    def gradient2(self, now_s):
        new = self.commits()
        self.most = max(self.most, sum(e.flies for e in self.entries()) + len(new))
        for entry in new:
            self.sum_s += entry.ended_s - entry.began_s
        self.number += len(new)
        if now_s - self.at_s < self.code.interval_s:
            return self.limit
        if self.number >= 10:
            mean_s = self.sum_s / self.number
            self.renewals += 1
            weight = 1 / self.renewals if self.renewals <= 10 else 2 / 601
            self.long_s += weight * (mean_s - self.long_s)
            ratio = self.long_s / mean_s
            self.long_s *= 0.9 if ratio > 2 else 1.0
            if self.most >= self.limit / 2:
                grown = np.clip(ratio, 0.5, 1.0) * self.limit + 4
                limit = 0.8 * self.limit + 0.2 * grown
                self.limit = np.clip(limit, 2.5 * self.code.cores, 25 * self.code.cores)
        self.at_s, self.sum_s, self.number, self.most = now_s, 0.0, 0, 0
        return self.limit

    def breakwater(self, now_s):
        target_s, cores = self.code.target_s, self.code.cores
        began_s = [e.began_s for e in self.entries() if e.waits]
        delay_s = max(now_s - began_s[0], 0.0) if began_s else 0.0
        if now_s - self.at_s >= self.code.interval_s:
            self.at_s = now_s
            if delay_s < target_s:
                self.limit = min(self.limit + 1, 64 * cores)
            else:
                shrunk = max(1 - 0.02 * (delay_s - target_s) / target_s, 0.5)
                self.limit = max(shrunk * self.limit, cores)
        return self.limit if delay_s < 2 * target_s else 0

    def envoy(self, rows, now_s):
        current = floor(now_s * 10 / self.code.interval_s)
        deadline_s = self.lookahead.deadline_s
        for entry in self.commits():
            self.outcomes.append((current, entry.ended_s <= deadline_s[entry.id]))
        known = [good for at, good in self.outcomes if at > current - 10]
        share = (len(known) - sum(known) / 0.95) / (len(known) + 1)
        return self.drawn_from(rows, np.clip(share, 0.0, 0.8))

    def drawn_from(self, rows, share):
        first = self.drawn
        self.drawn += len(rows)
        coins = [coin(self.code.seed, at) for at in range(first, self.drawn)]
        return [row for row, drawn in zip(rows, coins, strict=True) if drawn < share]

    def cinnamon(self, rows, now_s):
        if now_s - self.renewed_s >= self.code.interval_s:
            flying = sum(entry.flies for entry in self.entries())
            left = self.entered + self.flew - flying
            idle = max(self.code.most - flying, 0)
            error = (self.entered - left - idle) / max(left, 1)
            self.errors = max(self.errors + error, 0.0)
            proportional, integral = self.code.gains
            self.share = np.clip(proportional * error + integral * self.errors, 0, 1)
            self.renewed_s, self.flew, self.entered = now_s, flying, 0
        lost = self.drawn_from(rows, self.share)
        self.entered += len(rows) - len(lost)
        return lost

    def lock_queue_cap(self, rows, now_s):
        most = self.code.most
        return [row for row in rows if max(self.queues(row.id), default=0) >= most]

    def adaptive_lifo(self, rows, in_flight, now_s):
        crowded = len(rows) > self.code.most - in_flight
        if not crowded:
            self.idle_s = now_s
        standing = now_s - self.idle_s > self.code.interval_s
        spare_s = self.code.standing_s if standing else self.code.spare_s
        rows = rows[::-1] if crowded else rows
        lost = [row for row in rows if row.deadline_s - now_s < spare_s]
        return [row for row in rows if row not in lost], lost
