"""The table of goals at the length that it is meant for, as a record.

FIFO, ours and the lower bound in scenarios A (without and with a lag) and B, at five
loads, 20 paired seeds of 100,000 transactions each, on the seeds of chapter 4.

    python benchmarks/goals.py [SEEDS [TRANSACTIONS]]
"""

import json
import sys

from thesis_lib.book.execute.chapters import repository
from thesis_lib.common.files import write_whole
from thesis_lib.common.provenance import commit, identity
from thesis_lib.sequencer.experiments.goals import against_goals, run_goals

SEED = 2024
KEPT = ["row", "load", "seed", "policy", "violations", "late", "dropped",
        "goodput_per_s", "throughput_per_s"]  # fmt: skip


def main() -> None:
    """Run, print, and keep the record."""
    given = [int(word) for word in sys.argv[1:]]
    seeds, transactions = (*given, *(20, 100_000)[len(given) :])
    runs = run_goals(transactions=transactions, seeds=seeds, seed=SEED)
    print(against_goals(runs).round(2).to_string())
    record = {
        "machine": identity(),
        "commit": commit(repository())[0],
        "seed": SEED,
        "seeds": seeds,
        "transactions": transactions,
        "runs": json.loads(runs[KEPT].to_json(orient="records", double_precision=8)),
    }
    path = repository() / "data" / "measurements" / "goals.json"
    write_whole(path, json.dumps(record, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
