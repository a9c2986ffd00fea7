"""The table of goals at the length that it is meant for, as a record.

FIFO, bid-price and the lower bound in scenarios A (without and with a lag) and B, at
five loads, 20 paired seeds of 100,000 transactions each, on the seeds of chapter 4.

    python benchmarks/goals.py [SEEDS [TRANSACTIONS]]
"""

import json

from record import Record, command

from thesis_lib.sequencer.experiments.goals import against_goals, run_goals

SEED = 2024
KEPT = ["row", "load", "seed", "policy", "violations", "late", "dropped",
        "goodput_per_s", "throughput_per_s"]  # fmt: skip


def main(words: list[str] | None = None) -> None:
    """Run, print, and keep the record."""
    given = command(__doc__, "goals", seeds=20, transactions=100_000).parse_args(words)
    record = Record(given.out)
    size = {"seeds": given.seeds, "transactions": given.transactions, "seed": SEED}
    runs = run_goals(**size)
    print(against_goals(runs).round(2).to_string())
    rows = runs[KEPT].to_json(orient="records", double_precision=8)
    record.write(**size, runs=json.loads(rows))


if __name__ == "__main__":
    main()
