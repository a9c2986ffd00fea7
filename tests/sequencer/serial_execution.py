"""The plainest execution of a log, whose state every other one must reach."""

from contextlib import closing

from thesis_lib.sequencer.engine.storage import Storage
from thesis_lib.sequencer.workload.transactions import Log


def execute_serially(storage: Storage, log: Log) -> None:
    """Run the log one transaction at a time, without locks."""
    with closing(storage.session()) as session:
        for t in log.transactions:
            session.run(t)
