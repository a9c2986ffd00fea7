from thesis_lib.sequencer.bounds import fewest_violations
from thesis_lib.sequencer.worked import outcomes, run_worked, worked_batch


def test_the_worked_batch_comes_out_as_worked_by_hand():
    batch = worked_batch()
    names = ("fifo-batched", "drop", "reorder", "hybrid")
    table = outcomes({name: run_worked(batch, name) for name in names})
    # All decide at 1.4 ms, and row 0 is a chain: 0, 1, 3, 5, 6 end at
    # 4.4, 8.4, 13.4, 15.4 and 17.4 ms, so 3 and 5 are critical and 6 is hopeless.
    assert table.loc["fifo-batched", "late"] == "3 5 6"
    assert table.loc["drop", "dropped"] == "6"
    assert table.loc["drop", "late"] == "3 5"
    assert table.loc["reorder", "log"] == "3 5 0 1 2 4 6 7"
    assert table.loc["hybrid", "log"] == "3 5 0 1 2 4 7"
    bound = fewest_violations(batch.trace, cores=batch.cores, slo_s=batch.slo_s)
    assert bound <= table["violations"].min()
