"""The small batch comes out as somebody works it by hand."""

from dataclasses import replace

import numpy as np

from thesis_book.tables.worked_example import (
    forecasts,
    outcomes,
    run_worked,
    worked_batch,
)
from thesis_lib.sequencer.optimum.bounds import fewest_violations
from thesis_lib.sequencer.policies.parameters import AS_PUBLISHED


def test_the_worked_batch_is_forecast_as_worked_by_hand():
    table = forecasts(worked_batch())
    # All decide at 1.4 ms. Row a is a chain of 0, 1, 3, 4, 6 and 7, which work for
    # 1, 6, 3, 5, 1 and 1 ms; 2 waits for row b, 5 for row c.
    ends_ms = [2.4, 8.4, 8.4 + 5, 11.4, 16.4, 11.4 + 2, 17.4, 18.4]
    np.testing.assert_allclose(table["predicted end"], ends_ms)
    np.testing.assert_allclose(
        table["predicted latency"], ends_ms - 0.2 * np.arange(len(ends_ms))
    )
    assert " ".join(word[0] for word in table["called"]) == "s s c c h c h h"


def test_the_worked_batch_comes_out_as_worked_by_hand():
    batch = worked_batch()
    names = ("fifo", "fifo-batched", "drop", "reorder", "hybrid")
    table = outcomes({name: run_worked(batch, name) for name in names})
    # Two cores: 2 ends at 13.4 ms and is due at 12.9; 5 waits until 3 ends at 11.4 ms
    # and is on time only if 4 does not take the core.
    assert table.loc["fifo-batched", "late"] == "2 4 5 6 7"
    assert table.loc["drop", "dropped"] == "4 6 7"
    assert table.loc["drop", "late"] == "2"
    assert table.loc["reorder", "log"] == "2 3 5 0 1 4 6 7"
    assert table.loc["hybrid", "log"] == "2 3 5 0 1"
    assert table.loc["hybrid", "violations"] == 3
    bound = fewest_violations(batch.trace, cores=batch.cores, slo_s=batch.slo_s)
    assert bound <= table["violations"].min()


def test_without_ghosts_the_last_two_are_saved():
    batch = worked_batch()
    run = run_worked(batch, "hybrid", replace(AS_PUBLISHED, ghosts=False))
    (row,) = outcomes({"without": run}).itertuples()
    assert (row.dropped, row.late, row.violations) == ("4", "1", 2)
