"""What the interactive parts are handed: proven, by name, and safe in a page."""

import re
from dataclasses import replace

import pytest

from thesis_lib.book.play.planner import planner
from thesis_lib.book.play.schedule import by_hand, schedule
from thesis_lib.book.play.widget import PARTS, widget
from thesis_lib.book.tables.worked_example import worked_batch
from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.model.shape import Shape
from thesis_lib.memory.model.spec import WEIGHTS, geometry
from thesis_lib.memory.offload.footprint import geometry_footprint
from thesis_lib.sequencer.optimum.bounds import fewest_violations


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
    assert still.startswith("With JavaScript, ")
    assert len(re.findall("</script>", made)) == 1  # data cannot end it


def test_a_part_that_is_none_is_refused():
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
