"""The front doors of the packages: their names, and the example of each name."""

import doctest
import subprocess
import sys
from collections.abc import Iterator

import pytest
from environment import SequencerEnv

import thesis_serve
from thesis_lib import memory, sequencer
from thesis_lib.memory.model import smollm2
from thesis_serve.model.together import ContinuousBatch

DOORS = {
    sequencer: """
        LatencyEstimator POLICIES SimulationConfig SystemConfig Trace collect estimator
        fewest_violations learned_estimate load_estimator noisy_estimate policy
        predict_all reduction replicate save_estimator scenario serve simulate summarize
    """,
    memory: """
        Machine MemoryPlan ModelSpec PlanInfeasible StreamedModel compress_checkpoint
        generate_text geometry measure_machine open_streamed perplexity plan
        plan_checkpoint speculate_text synthesize
    """,
    thesis_serve: """
        AdmissionController LiveSequencer ModelService OnlineEstimator Refused
        SequencerMetrics SequencerMiddleware TextRequest openai_api replay
    """,
}
# A tuple of names, an exception, and names whose example is a running service.
WITHOUT_EXAMPLE = {
    "POLICIES", "Refused", "SequencerMetrics", "SequencerMiddleware", "TextRequest",
    "replay",
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_the_names_of_a_door_are_pinned(door):
    assert sorted(door.__all__) == DOORS[door].split()
    assert set(door.__all__) <= set(dir(door))


def documented() -> Iterator:
    for door in DOORS:
        for name in door.__all__:
            if name not in WITHOUT_EXAMPLE:
                yield pytest.param(getattr(door, name), id=f"{door.__name__}.{name}")
    for thing in (SequencerEnv, ContinuousBatch):
        yield pytest.param(thing, id=thing.__name__)


@pytest.mark.parametrize("thing", list(documented()))
def test_the_example_of_a_name_is_what_it_does(thing, tmp_path, capsys):
    (example,) = doctest.DocTestFinder(recurse=False).find(
        thing, thing.__name__, globs={"folder": tmp_path}
    )
    assert example.examples, "a name that lasts has an example in its docstring"
    smollm2.checkpoint()  # made on demand: not what an example shows
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    outcome = doctest.DocTestRunner(optionflags=options).run(example)
    assert not outcome.failed, capsys.readouterr().out


def test_part_one_needs_no_torch_and_a_door_loads_what_is_asked_for():
    code = (
        "import sys; from thesis_lib import sequencer;"
        "assert 'numba' not in sys.modules;"
        "sequencer.SimulationConfig; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
