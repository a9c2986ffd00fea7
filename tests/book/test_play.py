"""What the interactive parts are handed: proven, by name, and safe in a page."""

import re

import pytest

from thesis_lib.book.play.schedule import by_hand, schedule
from thesis_lib.book.play.widget import PARTS, widget
from thesis_lib.book.tables.worked_example import worked_batch
from thesis_lib.common.errors import InvalidInput
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
