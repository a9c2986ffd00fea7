import io
import json
import zipfile

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from skops.io import dumps

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.estimators import saved
from thesis_lib.sequencer.estimators.models import (
    LEARNED,
    Boosted,
    estimator,
    everything,
    predict_all,
)
from thesis_lib.sequencer.estimators.saved import load_estimator, save_estimator
from thesis_lib.sequencer.workload.scenarios import scenario

TRACE = scenario("A", 1_500, seed=4)


def quick():
    """Few trees, so that a file of them is small."""
    model = Boosted()
    model.rounds = 3
    return model


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_loaded_predicts_what_was_saved(name, tmp_path):
    fitted = estimator(name).fit(TRACE)
    save_estimator(fitted, tmp_path / "model.skops")
    loaded = load_estimator(tmp_path / "model.skops")
    assert (type(loaded), loaded.name) == (type(fitted), fitted.name)
    assert loaded.feature_names == TRACE.feature_names
    fitted_s = predict_all(fitted, TRACE)
    np.testing.assert_array_equal(predict_all(loaded, TRACE), fitted_s)
    if name == "quantiles":
        batch = everything(TRACE)
        np.testing.assert_array_equal(loaded.bounds(batch), fitted.bounds(batch))
    refitted_s = predict_all(loaded.fit(TRACE), TRACE)  # made as the first one was
    np.testing.assert_array_equal(refitted_s, fitted_s)
    assert [path.name for path in tmp_path.iterdir()] == ["model.skops"]


def test_unfitted_and_foreign_estimators_are_not_saved(tmp_path):
    for name in LEARNED:
        with pytest.raises(InvalidInput, match="is not fitted"):
            save_estimator(estimator(name), tmp_path / "model.skops")
    with pytest.raises(InvalidInput, match="of type Ridge cannot"):
        save_estimator(Ridge(), tmp_path / "model.skops")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model.skops"
    save_estimator(estimator("constant").fit(TRACE), path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_estimator(estimator("linear").fit(TRACE), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.skops"]


# --- Files that are not what was saved -----------------------------------------


@pytest.fixture(scope="module")
def whole():
    return dumps(quick().fit(TRACE))


def refusal(path, content):
    """What the refusal of such a file says; it names the file."""
    path.write_bytes(content)
    with pytest.raises(InvalidInput) as refused:
        load_estimator(path)
    said = str(refused.value)
    assert said.startswith(f"{path} is no estimator (")
    assert "expected a whole file" in said
    assert "write it again" in said
    assert "\n" not in said
    return said


def test_a_file_cut_short_is_rejected(whole, tmp_path):
    for length in np.random.default_rng(1).integers(0, len(whole), 100):
        assert refusal(tmp_path / "cut.skops", whole[:length]), length


def test_a_flipped_byte_is_rejected_or_changes_nothing(whole, tmp_path):
    path = tmp_path / "flipped.skops"
    path.write_bytes(whole)
    expected_s = predict_all(load_estimator(path), TRACE)
    random, refused = np.random.default_rng(2), 0
    for at in random.integers(0, len(whole), 200):
        content = bytearray(whole)
        content[at] ^= int(random.integers(1, 256))
        path.write_bytes(content)
        try:
            loaded_s = predict_all(load_estimator(path), TRACE)
        except InvalidInput:
            refused += 1
        else:
            np.testing.assert_array_equal(loaded_s, expected_s, err_msg=f"byte {at}")
    assert refused > 100


def test_nothing_that_could_execute_is_loaded(tmp_path):
    path = tmp_path / "evil.skops"
    for thing, name in (
        (eval, "builtins.eval"),
        (json.dumps, "json.dumps"),
        (TRACE, "core.trace.Trace"),
    ):
        forged = quick().fit(TRACE)
        forged.ensemble = thing
        assert name in refusal(path, dumps(forged))
    assert "Ridge" in refusal(path, dumps(Ridge()))
    assert "BadZipFile" in refusal(path, b"no archive")
    with pytest.raises(InvalidInput, match="No such file"):
        load_estimator(tmp_path / "absent.skops")
    with pytest.raises(InvalidInput, match="not a regular file"):
        load_estimator(tmp_path)


def test_trees_that_would_walk_out_of_their_arrays_are_rejected(whole, tmp_path):
    """No type is wrong in such a file: the numbers are."""
    source, refused = zipfile.ZipFile(io.BytesIO(whole)), 0
    entries = {name: source.read(name) for name in source.namelist()}
    for name in [name for name in entries if name.endswith(".npy")]:
        array = np.load(io.BytesIO(entries[name]))
        for value in (-2, 10**6) if array.dtype.kind == "i" else ():
            forged, changed, array[0] = io.BytesIO(), io.BytesIO(), value
            np.save(changed, array)
            with zipfile.ZipFile(forged, "w") as target:
                for entry, content in {**entries, name: changed.getvalue()}.items():
                    target.writestr(entry, content)
            refusal(tmp_path / "forged.skops", forged.getvalue())
            refused += 1
    assert refused == 2 * 3  # roots, features and children


def test_an_estimator_that_predicts_no_time_is_rejected(tmp_path):
    for mean_s in (0.0, -1.0, np.nan, np.inf):
        forged = estimator("constant").fit(TRACE)
        forged.mean_s = mean_s
        said = refusal(tmp_path / "forged.skops", dumps(forged))
        assert f"it predicts {mean_s:g} s" in said


def test_a_word_for_an_estimator_is_a_kind_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    assert not any(map(saved.is_file, ("boosted", "noisy", "bosted")))
    assert all(map(saved.is_file, ("here", "absent.skops", "a/b.skops")))
