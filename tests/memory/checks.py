"""What several tests of Part II ask of a command, a model or a packed checkpoint."""

import copy
import json
from contextlib import contextmanager

import pytest
import tiny
import torch
from typer.testing import CliRunner

from thesis_book.__main__ import app
from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.offload.store import SafetensorsStore


def answer(*words):
    """What a command prints as JSON."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@contextmanager
def unchanged(model):
    """Check that the weights of a model are afterwards what they were before."""
    before = copy.deepcopy(model.state_dict())
    yield
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def assert_peaks_are_planned(folder, blocks=2):
    """Assert that plans of a packed checkpoint leave unused exactly what they must."""
    with SafetensorsStore(folder) as store:
        reads = [store.nbytes(layer) for layer in range(store.layers)]
    for new, context in ((1, 8), (24, 24), (12, 60)):
        made = tiny.plan_tight(
            folder, 1, 2, batch=3, context=context, pass_tokens=new, logit_tokens=1
        )
        left = made.device_peak_bytes - made.scratch_bytes - tiny.metered(folder, made)
        spread = max(reads) - min(reads)
        assert 0 <= left <= 4096 * blocks + tiny.ROW * made.batch * new + spread


def assert_parts_are_checked(folder, key, wrong):
    """A list by layer in config.json is one of each layer, without what is wrong.

    `wrong` has what the refusal says, and what the first layer says instead.
    """
    file = folder / "config.json"
    packing = json.loads(file.read_text())["quantization_config"]
    listed = packing[key]
    rows = {words: [listed[0] | part, *listed[1:]] for words, part in wrong.items()}
    rows |= {f"does not list the {key}": None, "for each of 4 layers": listed[1:]}
    for words, value in rows.items():
        tiny.edit_json(file, quantization_config=packing | {key: value})
        with pytest.raises(InvalidInput, match=words):
            tiny.plan_ample(folder, context=32)
