"""What the interactive parts are handed: proven, by name, and safe in a page."""

import json
import re
from dataclasses import replace

import pytest

from thesis_book.render.build import _played
from thesis_book.tables.worked_example import worked_batch
from thesis_book.widgets.explorer import BOUND, explorer
from thesis_book.widgets.planner import planner
from thesis_book.widgets.schedule import by_hand, schedule
from thesis_book.widgets.widget import PARTS, cost, widget
from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.model.shape import Shape
from thesis_lib.memory.model.spec import WEIGHTS, geometry
from thesis_lib.memory.offload.footprint import geometry_footprint
from thesis_lib.sequencer import SimulationConfig, replicate
from thesis_lib.sequencer.experiments.metrics import share
from thesis_lib.sequencer.optimum.bounds import fewest_violations

SEED = 2024  # of chapter 4 and of the grid


def test_no_schedule_beats_the_best_one_of_the_player():
    batch, best = worked_batch(), schedule()["best"]
    assert by_hand(batch, best["log"]).violated.sum() == best["violations"]
    # the relaxation knows nothing of the solver that found the order
    bound = fewest_violations(batch.trace, cores=batch.cores, slo_s=batch.slo_s)
    assert best["violations"] == bound


@pytest.mark.parametrize("name", PARTS)
def test_a_part_says_in_words_what_would_be_here_without_scripts(name):
    made = widget(name)
    (still,) = re.findall(r'<p class="play-still">([^<]+)</p>', made)
    assert still.startswith("In a browser with JavaScript, ")
    assert len(re.findall("</script>", made)) == 1  # data cannot end it


def test_a_part_that_is_none_is_rejected():
    with pytest.raises(InvalidInput, match="interactive part"):
        widget("chess")


def test_a_format_changes_what_the_planner_embeds_and_nothing_else():
    """Keys, values and activations are those of 16 bits, whatever the weights are."""
    known = {each["name"]: each["stored"] for each in planner()["geometries"]}
    shape = Shape(batch=3, context=100)
    for name in ("mistral-7b", "opt-66b"):
        dense = geometry_footprint(geometry(name), shape, "dense")
        for word, kind in WEIGHTS.items():
            found, stored = geometry_footprint(geometry(name), shape, kind), known[name]
            sizes = dict(stored[word])
            scratch = sizes.pop("scratch_per_sequence") * shape.batch
            sizes["scratch_bytes"] += scratch
            assert found == replace(dense, kind=kind, **sizes)


def test_no_policy_of_the_explorer_violates_less_than_the_bound():
    grid = explorer()["grid"]
    bounds = {
        row["slo_ms"]: row["violations"] for row in grid if row["policy"] == BOUND
    }
    for row in grid:
        least = zip(row["violations"], bounds[row["slo_ms"]], strict=True)
        assert all(found >= bound for found, bound in least), row


def test_the_grid_of_the_explorer_is_what_the_package_simulates():
    known = explorer()
    load = 1.1
    config = SimulationConfig.of_scenario("A", transactions=known["transactions"])
    runs = replicate(
        config, ["fifo", "bid-price"], [load], seeds=known["seeds"], seed=SEED
    )
    column = known["axes"]["load"].index(load)
    here = {"slo_ms": 12.5, "lag_ms": 0.0}
    for policy, sigma in (("fifo", 0.0), ("bid-price", 0.2)):
        at = here | {"policy": policy, "sigma": sigma}
        (row,) = [row for row in known["grid"] if at.items() <= row.items()]
        found = share(runs, policy, load).value
        assert row["violations"][column] == round(100 * found, 2)


def test_what_pages_and_chapters_embed_is_staged_for_them(tmp_path):
    for name, text in (
        ("book/play.md", "```{play} schedule\n```"),
        ("notebooks/06_costs.ipynb", json.dumps({"source": "```{play} planner\n```"})),
        ("notebooks/07_last.ipynb", json.dumps({"source": "```{play} cost\n```"})),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert _played(tmp_path) == {"schedule", "planner"}


def test_the_calculator_comes_from_the_chapter_that_shows_it(tmp_path):
    chapter, shown = tmp_path / "06_costs.ipynb", '<div class="cost-calculator"></div>'
    outputs = [{"data": {"text/html": [part]}} for part in ("<p></p>", shown)]
    chapter.write_text(json.dumps({"cells": [{"outputs": outputs}, {}]}))
    assert cost(chapter).endswith(f"{shown}</div></div>")
    chapter.write_text(json.dumps({"cells": [{"outputs": outputs[:1]}]}))
    with pytest.raises(InvalidInput, match="shows no calculator"):
        cost(chapter)
