import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.estimators import modelfile
from thesis_lib.sequencer.estimators.modelfile import read_model, write_model
from thesis_lib.sequencer.estimators.models import (
    AIMS,
    LEARNED,
    Boosted,
    estimator,
    everything,
    predict_all,
)
from thesis_lib.sequencer.workload.scenarios import scenario

TRACE = scenario("A", 1_500, seed=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_model(Boosted(rounds=3).fit(TRACE), folder / "whole.npz")
    for name in LEARNED:
        write_model(estimator(name).fit(TRACE), folder / f"{name}.npz")
    return folder


@pytest.mark.parametrize("aim", [None, *AIMS])
@pytest.mark.parametrize("name", LEARNED)
def test_what_is_read_predicts_what_was_written(name, aim, tmp_path):
    fitted = estimator(name, seed=3, aim=aim).fit(TRACE)
    write_model(fitted, tmp_path / "model.npz")
    read = read_model(tmp_path / "model.npz")
    assert (type(read), read.name) == (type(fitted), fitted.name)
    assert read.feature_names == TRACE.feature_names
    np.testing.assert_array_equal(predict_all(read, TRACE), predict_all(fitted, TRACE))
    write_model(read, tmp_path / "again.npz")
    first, second = ((tmp_path / f"{n}.npz").read_bytes() for n in ("model", "again"))
    assert first == second
    if name == "quantiles" and aim is None:
        batch = everything(TRACE)
        np.testing.assert_array_equal(read.bounds(batch), fitted.bounds(batch))
    refitted = predict_all(read.fit(TRACE), TRACE)  # made as the first one was
    np.testing.assert_array_equal(refitted, predict_all(fitted, TRACE))


def test_an_estimator_without_a_past_is_not_written(tmp_path):
    for name in LEARNED:
        for aim in (None, "mean"):
            with pytest.raises(InvalidInput, match="is not fitted"):
                write_model(estimator(name, aim=aim), tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())


def test_a_read_estimator_refuses_other_features(folder):
    read = read_model(folder / "whole.npz")
    names = ("is_payment", "is_new_order", "lines")
    with pytest.raises(InvalidInput, match="missing: order_lines; unknown: lines"):
        predict_all(read, replace(TRACE, feature_names=names))


# --- Files that are not what was written --------------------------------------

FUZZ = settings(derandomize=True, deadline=None, max_examples=200)


def refused(path):
    """What the refusal says, which names the file; nothing for an equal estimator."""
    try:
        read = read_model(path)
    except InvalidInput as refusal:
        said = str(refusal)
    else:
        whole = read_model(path.parent / "whole.npz")
        np.testing.assert_array_equal(
            predict_all(read, TRACE), predict_all(whole, TRACE)
        )
        return ""
    assert str(path) in said
    return said


@FUZZ
@given(st.data())
def test_a_file_cut_short_is_refused(folder, data):
    whole = (folder / "whole.npz").read_bytes()
    length = data.draw(st.integers(0, len(whole) - 1))
    (folder / "cut.npz").write_bytes(whole[:length])
    assert refused(folder / "cut.npz")


@FUZZ
@given(st.data())
def test_a_flipped_byte_is_refused_or_changes_nothing(folder, data):
    content = bytearray((folder / "whole.npz").read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    (folder / "flipped.npz").write_bytes(content)
    refused(folder / "flipped.npz")


def rewritten(folder, change, of="whole"):
    """That file with its header and arrays changed, the hash made to fit."""
    with np.load(folder / f"{of}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays.pop("header").tobytes())
    del header["sha256"]
    change(header, arrays)
    header["sha256"] = modelfile._content_hash(header, arrays)
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    whole = io.BytesIO()
    np.savez(whole, header=text, **arrays)
    path = folder / "forged.npz"
    path.write_bytes(whole.getvalue())
    return path


def updated(**entries):
    return lambda header, arrays: header.update(entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (updated(version=2), "has version 2 .*expected 1; fit it again"),
        (updated(estimator="bosted"), "did you mean 'boosted'"),
        (updated(estimator="linear"), "expected penalty"),
        (updated(settings={"seed": 0}), "made with seed: expected seed, rounds"),
        (updated(settings={"seed": 0, "rounds": -1}), "expected at least 1"),
        (updated(feature_names=["a", "a", "b"]), "one name twice"),
        (updated(feature_names=["a", "b"]), "expected 0 to 1"),
        (updated(aim=["mode", 0.2, 1.0]), "aim='mode' is unknown"),
        (updated(aim=["mean", 0.2, -1.0]), "expected a positive number"),
        (updated(aim=["mean"]), "is refused"),
        (lambda h, a: h.pop("settings"), "settings"),
        (lambda h, a: a.pop("centre"), "centre is missing"),
        (lambda h, a: a.update(centre=np.zeros(2)), "shape .2,.: expected .1,."),
        (lambda h, a: a.update(centre=np.array([np.nan])), "centre is nan"),
        (lambda h, a: a.update(more=np.zeros(2)), "unknown arrays: more"),
        (lambda h, a: a.pop("ensemble//roots"), "roots"),
        (lambda h, a: a["ensemble//lower"].fill(0), "would not end"),
        (lambda h, a: a["ensemble//feature"].fill(9), "expected 0 to 2"),
    ],
)
def test_a_forged_file_is_refused_for_what_does_not_fit(folder, change, message):
    with pytest.raises(InvalidInput, match=message):
        read_model(rewritten(folder, change))


def altered(folder, data, alter):
    """A forged file of any estimator, and the name of the array that `alter` changed.

    It is given the name and the array, and returns what to write, None for nothing.
    """
    names = []

    def change(header, arrays):
        name = data.draw(st.sampled_from(sorted(arrays)))
        arrays[name] = alter(name, arrays[name])
        if arrays[name] is None:
            del arrays[name]
        names.append(name.rpartition("/")[2])

    of = data.draw(st.sampled_from(sorted(LEARNED)))
    return rewritten(folder, change, of), *names


@FUZZ
@given(st.data())
def test_a_number_that_is_none_is_refused_by_row_and_array(folder, data):
    rows = []

    def poison(name, array):
        rows.append(data.draw(st.integers(0, array.size - 1)))
        positive = name in ("mean_s", "scale", "scale_s")
        odd = [np.nan, np.inf, -np.inf, *[0.0, -1.0] * positive]
        poisoned = array.astype(float)
        poisoned.flat[rows[0]] = data.draw(st.sampled_from(odd))
        return poisoned

    path, name = altered(folder, data, poison)
    with pytest.raises(InvalidInput) as refusal:
        read_model(path)
    assert str(path) in str(refusal.value)
    if name in ("base", "single"):  # of trees: refused together
        return
    assert f"row {rows[0]} of {name} is " in str(refusal.value)


@FUZZ
@given(st.data())
def test_an_array_of_another_form_is_refused_by_name(folder, data):
    forms = [
        lambda name, array: None,
        lambda name, array: array[:, None],
        lambda name, array: np.full(len(array), "x"),
        lambda name, array: np.concatenate([array, array]),
    ]
    path, name = altered(folder, data, data.draw(st.sampled_from(forms)))
    try:
        read_model(path)
    except InvalidInput as refusal:
        said = str(refusal)
    else:
        assert name in ("roots", "type_offsets")  # more trees, or more types
        return
    assert str(path) in said
    assert name in said or "expected at least one, and one of each" in said


@pytest.mark.parametrize("part", ["roots", "feature", "lower"])
@pytest.mark.parametrize("place", [-2, 10**6])
def test_a_node_that_is_not_there_is_refused(folder, part, place):
    def change(header, arrays):
        arrays[f"forests/execute/{part}"][0] = place

    with pytest.raises(InvalidInput, match=r"its trees forests/execute: .*nodes?\b"):
        read_model(rewritten(folder, change, "sum-max"))


def test_a_level_that_is_missing_is_refused(folder):
    def without(header, arrays):
        for key in [key for key in arrays if key.startswith("ensembles/0.9/")]:
            del arrays[key]

    with pytest.raises(InvalidInput, match=r"are 0\.5, 0\.95, 0\.99: expected"):
        read_model(rewritten(folder, without, "quantiles"))


FORGED = [
    *(1e308, -1e308, 1.7e308, 1e200, -1e200, 710.0, -750.0, 1e17, 301.0, -301.0),
    *(5e-324, 1e-308, 0.0, -1.0, 2.0, np.nan, np.inf, 2**31 - 1, 2**31, -(2**31)),
]


def assert_predicts_times(estimator, seed):
    """Finite and positive, whatever the features that a trace may have."""
    random = np.random.default_rng(0)
    wild = random.standard_normal((200, 3)) * 10.0 ** random.integers(
        -300, 300, (200, 3)
    )
    for features in (TRACE.features[:200], wild):
        trace = replace(TRACE.take(np.arange(200)), features=features)
        predicted_s = [predict_all(estimator, trace)]
        base = getattr(estimator, "base", estimator)
        if base.name == "quantiles":
            predicted_s.append(base.bounds(everything(trace)))
            after_s = trace.arrival_s + 1.0
            predicted_s.append(base.tracked_bounds(trace, trace.arrival_s, after_s))
        if base.name == "boosted":
            predicted_s.append(np.array([base.predict_one(features[0])]))
        for each_s in predicted_s:
            assert np.isfinite(each_s).all(), seed
            assert (each_s > 0).all(), seed


def forge(folder, seed):
    """Read a file of which up to three numbers were forged; whether it was refused."""
    random = np.random.default_rng(seed)

    def change(header, arrays):
        if random.random() < 0.2:
            header["aim"] = ["mean", 0.2, float(random.choice(FORGED))]
        for _ in range(random.integers(1, 4)):
            array = arrays[name := random.choice(sorted(arrays))]
            value = random.choice(FORGED)
            if array.dtype.kind != "f" and np.isfinite(value):
                value = np.clip(value, -(2.0**31), 2.0**31 - 1)
            forged = array.astype(float) if not np.isfinite(value) else array.copy()
            places = [random.integers(array.size), slice(None)]
            forged.flat[places[int(random.random() < 0.3)]] = value
            arrays[name] = forged

    path = rewritten(folder, change, str(random.choice(sorted(LEARNED))))
    try:
        estimator = read_model(path)
    except InvalidInput:
        return True
    assert_predicts_times(estimator, seed)
    return False


def test_a_forged_number_is_refused_or_still_predicts_times(folder):
    refusals = [forge(folder, seed) for seed in range(300)]
    assert 0.2 < np.mean(refusals) < 1.0


@pytest.mark.proof
def test_so_are_many(folder):
    for seed in range(1_000, 21_000):
        forge(folder, seed)


@pytest.mark.parametrize(
    ("of", "array", "value"),
    [
        ("constant", "mean_s", 1e308),
        ("linear", "slope", 1e308),
        ("linear", "intercept", 710.0),
        ("sum-max", "scale_s", 1e308),
        ("sum-max", "forests/execute/number", 1e308),
        ("sum-max", "forests/execute/base", 1e-308),
        ("boosted", "centre", 710.0),
        ("boosted", "ensemble//number", 1e308),
        ("boosted", "ensemble//number", 30.0),
        ("quantiles", "ensembles/0.9/number", -1e308),
        ("quantiles", "offsets", 1e308),
        ("quantiles", "type_offsets", -1e308),
        ("quantiles", "spreads", 1e308),
    ],
)
def test_a_number_that_predicts_no_time_is_refused(folder, of, array, value):
    with pytest.raises(InvalidInput, match=r"exp\(|finite ones"):
        read_model(rewritten(folder, lambda _, arrays: arrays[array].fill(value), of))


def test_an_unchanged_rewriting_is_no_forgery(folder):
    assert refused(rewritten(folder, lambda header, arrays: None)) == ""


def test_an_altered_number_is_noticed(folder):
    with np.load(folder / "whole.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["centre"] = arrays["centre"] + 1
    np.savez(folder / "altered.npz", **arrays)
    assert "altered after it was written" in refused(folder / "altered.npz")


def test_nothing_that_could_execute_is_read(folder):
    forged = {"header": np.array([print], object)}
    np.savez(folder / "pickle.npz", allow_pickle=True, **forged)
    assert "allow_pickle=False" in refused(folder / "pickle.npz")
    (folder / "text.npz").write_text("no archive")
    assert "is not an estimator" in refused(folder / "text.npz")
    assert "is not an estimator" in refused(folder / "absent.npz")
