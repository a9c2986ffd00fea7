"""Any parameters that are allowed bring a chapter to its end; others are rejected."""

import ast
import os
from pathlib import Path

import numpy as np
import pytest
from papermill.inspection import inspect_notebook

from thesis_book.execute import chapters
from thesis_book.execute.chapters import (
    CUSTOM,
    PROFILE_PARAMETER,
    Chapter,
    ChapterFailed,
)
from thesis_book.execute.parameters import (
    Limits,
    Parameter,
    check,
    declared_in,
    limits_of,
    reject,
)
from thesis_book.execute.provenance import commit
from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import GiB, MiB
from thesis_lib.memory.model import smollm2
from thesis_lib.memory.model.spec import Machine, geometry
from thesis_lib.memory.offload.offloaded_model import plan_checkpoint
from thesis_lib.memory.offload.plan import least_device_bytes

ROOT = Path(__file__).parents[3]
CHAPTERS = map(Chapter, sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")))
VARIED = [c for c in CHAPTERS if len(chapters.parameters(c)) > 1]
by_name = pytest.mark.parametrize("chapter", VARIED, ids=lambda c: c.name)

LIMITS = """
    seeds     2 .. 100 runs; work
    loads     0.5 .. 2 of saturation; 1 .. 3 items
    context   16 .. tokens tokens
    tokens    32 .. 4096 tokens
    kinds     int8 | nf4; 0 .. 2 items
    budget    6.5*seeds+tokens .. 8192 MiB
    rules     FILE.py:FUNCTION; 0 .. 2 items
"""
EXAMPLE = ROOT / "examples" / "sequencer" / "own_policies.py"
FUNCTIONS = [f"{EXAMPLE}:{name}" for name in ("shortest_first", "adaptive_lifo")]


def declare(name, type_name, smoke):
    source = f"parameters.check(globals(), '''{LIMITS}''')"
    return Parameter(name, type_name, smoke, "", limits_of(source)[name])


def draw_number(parameter, values, random):
    """An allowed item; what is `work` is at most the smoke value, and mostly less."""
    limits, smoke = parameter.limits, parameter.smoke
    if limits.words:
        return str(random.choice(limits.words))
    if limits.function:
        return str(random.choice(FUNCTIONS))
    low, high = parameter.ends(values)
    if limits.work:
        high = min(high, max(max(smoke) if parameter.is_list else smoke, low))
    # a third are at an end of their range, and work is mostly near the lower one
    share = random.choice([0.0, 1.0, random.random()], p=[1 / 6, 1 / 6, 2 / 3])
    share *= random.random() ** 3 if limits.work else 1.0
    if low > 0 and high / low > 100:
        value = low * (high / low) ** share
    else:
        value = low + (high - low) * share
    value = min(max(value, low), high)
    return round(value) if parameter.element == "int" else float(value)


def draw_value(parameter, values, random):
    """A random allowed value beside the `values` of others."""
    if parameter.element == "bool":
        return bool(random.integers(2))
    if not parameter.is_list:
        return draw_number(parameter, values, random)
    fewest, most = parameter.limits.fewest, min(parameter.limits.most, 3)
    count = int(random.integers(fewest, most + 1))
    items = {draw_number(parameter, values, random) for _ in range(count)}
    while len(items) < fewest:
        items.add(draw_number(parameter, values, random))
    return list(random.permutation(sorted(items)).tolist())


def draw(declared, random, fixed):
    """A random allowed value of every parameter, but for those that are `fixed`."""
    values = dict(fixed)

    def settle(name):
        if name not in values:
            for other in declared[name].limits.others:
                settle(other)
            values[name] = draw_value(declared[name], values, random)

    for name in declared:
        settle(name)
    return values


DECLARED = {
    p.name: p
    for p in [
        declare("seeds", "int", 4),
        declare("loads", "list[float]", [0.9]),
        declare("context", "int", 16),
        declare("tokens", "int", 32),
        declare("kinds", "list[str]", ["nf4"]),
        declare("budget", "int", 64),
        declare("rules", "list[str]", []),
    ]
}
SMOKE = {name: parameter.smoke for name, parameter in DECLARED.items()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seeds", 1),
        ("seeds", 101),
        ("seeds", True),
        ("loads", []),
        ("loads", [0.4]),
        ("loads", [0.9, 0.9]),
        ("loads", [0.6, 0.7, 0.8, 0.9]),
        ("loads", [float("nan")]),
        ("context", 33),
        ("kinds", ["fp4"]),
        ("budget", 57),
        ("rules", ["own_policies.py:shortest_first"]),
        ("rules", ["/nowhere/own_policies.py:shortest_first"]),
        ("rules", [str(EXAMPLE)]),
        ("rules", [f"{EXAMPLE}:not one"]),
        ("rules", FUNCTIONS[:1] * 2),
    ],
)
def test_a_value_outside_is_rejected_by_name(name, value):
    with pytest.raises(InvalidInput, match=f"parameter {name}="):
        reject(DECLARED.values(), SMOKE | {name: value})


def test_a_bound_that_is_a_parameter_moves_with_it():
    reject(DECLARED.values(), SMOKE | {"context": 33, "tokens": 33})


def test_bound_may_be_arithmetic_of_others_and_is_printed():
    reject(DECLARED.values(), SMOKE | {"budget": 58})
    with pytest.raises(InvalidInput, match=r"tokens=32, seeds=5: 65 \.\. 8192"):
        reject(DECLARED.values(), SMOKE | {"seeds": 5})
    with pytest.raises(InvalidInput, match="tokens='32' has the wrong type"):
        reject(DECLARED.values(), SMOKE | {"tokens": "32"})


@pytest.mark.parametrize("bound", ["2**seeds", "print(1)", "6+", "a.b"])
def test_a_bound_that_is_no_arithmetic_is_rejected(bound):
    with pytest.raises(InvalidInput, match="rule"):
        Limits.parse(f"{bound} .. 3 runs")


def test_a_running_chapter_rejects_what_papermill_was_given():
    namespace = {"__annotations__": {"seeds": int}, "seeds": 1}
    with pytest.raises(InvalidInput, match=r"seeds=1 is outside 2 \.\. 100 runs"):
        check(namespace, "seeds  2 .. 100 runs")
    check(namespace | {"seeds": 2}, "seeds  2 .. 100 runs")


def test_what_is_drawn_is_allowed_and_reaches_both_ends():
    random = np.random.default_rng(0)
    drawn = [draw(DECLARED, random, {}) for _ in range(400)]
    for values in drawn:
        reject(DECLARED.values(), values)
    assert {values["seeds"] for values in drawn} == {2, 3, 4}  # work: to smoke
    assert {16, 4096} <= {values["context"] for values in drawn}
    assert {0, 1, 2} == {len(values["kinds"]) for values in drawn}


@pytest.mark.parametrize("chapter", VARIED, ids=lambda c: c.name)
def test_parameters_are_those_that_papermill_reads(chapter):
    read = {
        name: (found["inferred_type_name"], found["default"], found["help"])
        for name, found in inspect_notebook(chapter.path).items()
    }
    declared = chapters.parameters(chapter)
    assert [*read] == [*declared]
    for name, (type_name, smoke, comment) in read.items():
        found = declared[name]
        assert (found.type_name, found.help) == (type_name, comment)
        assert found.smoke == ast.literal_eval(smoke)


def test_declared_parameters_keep_a_hash_in_a_string_and_lists_of_several_lines():
    source = (
        "a: str = 'é#='  # b = 1\nc: list[int] = [  # x\n    1,\n]  # last\nd = 2\n"
    )
    found = declared_in(source, {})
    assert {p.name: (p.type_name, p.smoke, p.help) for p in found.values()} == {
        "a": ("str", "é#=", "b = 1"), "c": ("list[int]", [1], "last"), "d": ("", 2, ""),
    }  # fmt: skip


def test_limits_that_say_nothing_allow_everything():
    reject([Parameter("x", "float", 0.0, "", Limits())], {"x": -1e300})


@by_name
def test_every_parameter_has_its_limits(chapter):
    """A range with its unit, the words that it may be, a function; bools need none."""
    for parameter in chapters.parameters(chapter).values():
        limits = parameter.limits
        ranged = limits.words or " .. " in limits.text.split(";")[0]
        ranged = ranged or limits.function
        assert parameter.element == "bool" or ranged, parameter.name
        if not limits.words and parameter.element in ("int", "float"):
            assert len(limits.text.split(";")[0].split()) > 3, f"{parameter.name}: unit"


def least(chapter, name, values):
    """The smallest value that the limits of a chapter allow beside others."""
    (found,) = [c for c in VARIED if c.number == chapter]
    return chapters.parameters(found)[name].limits.bounds(values)[0]


def test_every_budget_that_is_allowed_holds_its_plan_and_few_more_would():
    """Chapters 5 and 6, for random rings, contexts and passes of the small model."""
    folder, random = smollm2.checkpoint(), np.random.default_rng(0)
    for trial in range(8):
        ring, tokens = int(random.integers(1, 9)), int(random.integers(64, 1025))
        for chapter, values, (new, kept) in (
            (5, {"plan_context": tokens}, (1, 1)),  # tokens of a pass, logits kept
            (6, {"pass_tokens": tokens}, (tokens, 26)),
        ):
            ample = plan_checkpoint(
                folder,
                Machine(2**62, 1.0),
                context=tokens,
                ring=ring,
                pass_tokens=new,
                logit_tokens=kept,
            )
            moving = ample.spec.layers - ring
            needed = (ample.device_peak_bytes - moving * ample.staging_bytes) / MiB
            low = least(chapter, "budget_mib", values | {"ring": ring})
            assert needed <= low <= needed + 4, (trial, chapter, ring, tokens)


def test_every_device_that_is_allowed_holds_the_large_plans():
    for chapter, names in ((5, ("llama2-13b", "opt-66b")), (6, ("llama-65b",))):
        needed = max(least_device_bytes(geometry(name)) for name in names) / GiB
        assert needed <= least(chapter, "device_gib", {}) < needed + 1


def test_every_request_that_is_allowed_is_as_long_as_the_large_model_is_made_for():
    (found,) = [c for c in VARIED if c.number == 6]
    longest = chapters.parameters(found)["written_tokens"].limits
    for prompt in (1, 512, 2047):
        _, most = longest.bounds({"prompt_tokens": prompt})
        assert prompt + most == geometry("llama-65b").most_positions


def random_sets(chapter, count, seed):
    """Sets of allowed parameters; half of those that are no work are as in smoke."""
    declared = chapters.parameters(chapter)
    random = np.random.default_rng([seed, chapter.number])
    smoke = {name: parameter.smoke for name, parameter in declared.items()}
    while count:
        stay = [n for n in smoke if random.integers(2) and not declared[n].limits.work]
        kept = {name: smoke[name] for name in stay}
        values = draw(declared, random, kept | {PROFILE_PARAMETER: CUSTOM})
        # A bound may have moved away from a value that was kept.
        if not any(p.rejection(values[n], values) for n, p in declared.items()):
            count -= 1
            yield values


def run_to_the_end(chapter, count, seed, folder):
    """Run a chapter with random parameters; a line for each set that stopped it."""
    stopped = []
    for values in random_sets(chapter, count, seed):
        try:
            chapters.produce(
                chapter, values, CUSTOM, folder / "run.ipynb", lambda *_: None
            )
        except ChapterFailed as error:
            standard = chapters.parameters(chapter)
            changed = {n: v for n, v in values.items() if v != standard[n].smoke}
            stopped.append(f"{error} with {changed}")
    return stopped


SEED = int(commit(ROOT)[0][:8], 16)
DRAWN = np.random.default_rng(SEED).choice(len(VARIED), 2, replace=False)


@pytest.mark.parametrize("chapter", [VARIED[n] for n in DRAWN], ids=lambda c: c.name)
def test_random_parameters_bring_a_chapter_to_its_end(chapter, tmp_path):
    """A set for two chapters, drawn anew by each commit; all are in the proof."""
    stopped = run_to_the_end(chapter, 1, SEED, tmp_path)
    assert not stopped, "\n".join(stopped)


@pytest.mark.proof
@by_name
def test_a_hundred_random_sets_bring_a_chapter_to_its_end(chapter, tmp_path):
    seed = int(os.environ.get("PARAMETER_SEED", "17"))
    stopped = run_to_the_end(chapter, 100, seed, tmp_path)
    assert not stopped, "\n".join(stopped)
