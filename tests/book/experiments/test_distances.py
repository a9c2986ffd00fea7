from itertools import pairwise

import numpy as np
import pytest

from thesis_book.experiments.sequencer.goals import (
    distance,
    distances,
    summarize_windows,
    windows,
)
from thesis_lib.sequencer.experiments.configuration import SimulationConfig
from thesis_lib.sequencer.workload.scenarios import SCENARIOS, scenario


def cell(name, transactions, **options):
    spec = SCENARIOS[name]
    return SimulationConfig(
        make_trace=lambda seed: scenario(name, transactions, seed),
        saturation_per_s=2_500.0 if name == "C" else 7_500.0,
        cores=spec.cores,
        slo_s=spec.slo_s,
        **options,
    )


@pytest.fixture(scope="module")
def runs():
    return distances(cell("B", 700), [0.9, 1.3], seeds=2, seed=7, sweeps=2)


def test_every_load_and_seed_is_ordered_from_the_bound_to_the_oracle(runs):
    assert len(runs) == 2 * 2 * 5
    table = runs.pivot_table(
        index=["load", "seed"], columns="policy", values="violations"
    )
    assert (table["bound"] <= table["search"]).all()
    assert (table["search"] <= table["bid-price-oracle"]).all()
    assert (table["search"] <= table["fifo"]).all()


def test_the_parts_of_the_distance_add_up(runs):
    parts = distance(runs)
    added = parts[["bound", "open", "unforeseen", "misjudged"]].sum(axis=1)
    np.testing.assert_allclose(added, parts["bid-price"])
    assert (parts[["bound", "open", "unforeseen"]] >= 0).all(axis=None)
    drops = 100 * runs[runs["policy"] == "bid-price"].groupby("load")["dropped"].mean()
    np.testing.assert_allclose(parts["of_drops"] / 100 * drops, parts["in_vain"])
    assert parts["of_drops"].between(0, 100).all()


def test_no_drop_no_drop_in_vain():
    quiet = distances(cell("A", 300), [0.3], seeds=1, seed=7, sweeps=1)
    assert distance(quiet)["of_drops"].tolist() == [0.0]


def test_windows_are_ordered_and_summed():
    solved = windows(cell("B", 160), 4.0, number=4, seed=3, effort=0.3)
    for lower, upper in pairwise(["relaxed", "proven", "found", "search", "oracle"]):
        assert (solved[lower] <= solved[upper]).all()
    for policy in ("bid-price", "fifo"):
        assert (solved["proven"] <= solved[policy]).all()
    total = summarize_windows({"B": solved}).loc["B"]
    assert total["windows"] == 4
    assert total["found"] == solved["found"].sum()
    assert total["solved"] == (solved["found"] == solved["proven"]).sum()
