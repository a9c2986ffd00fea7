"""A coded checkpoint streams the bits of the dense one, in no more memory."""

import math
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import checks
import numpy as np
import pytest
import tiny
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.convert import convert, read_words
from thesis_lib.memory.evaluate.rates import decoder_bytes_per_s, with_decoder
from thesis_lib.memory.formats import lossless
from thesis_lib.memory.formats.base import find_format
from thesis_lib.memory.model.checkpoint import NON_LAYER
from thesis_lib.memory.model.spec import Machine, geometry
from thesis_lib.memory.offload.offloaded_model import StreamedModel
from thesis_lib.memory.offload.plan import least_device_bytes, plan
from thesis_lib.memory.offload.store import (
    DECODERS,
    SafetensorsStore,
    StoreDamaged,
    _lower_priority,
)

WIDE = {"hidden_size": 384, "intermediate_size": 640}  # layers of several chunks
OPTIONS = {"context": 24, "pass_tokens": 9}


def coded(tmp_path, architecture="llama", **changes):
    """The resident model, and the folder of its code."""
    model = tiny.write(tmp_path / "dense", architecture, **changes)
    convert(tmp_path / "dense", tmp_path / "coded", find_format("lossless"))
    return model, tmp_path / "coded"


def test_the_store_gives_the_tensors_of_the_dense_checkpoint(tmp_path):
    tiny.write(tmp_path / "dense", **WIDE)
    said = convert(tmp_path / "dense", tmp_path / "coded", find_format("lossless"))
    with (
        SafetensorsStore(tmp_path / "dense") as dense,
        SafetensorsStore(tmp_path / "coded", verify=True) as store,
    ):
        parts = range(NON_LAYER, dense.layers)
        assert (store.kind, store.layers) == ("lossless", dense.layers)
        for layer in parts:
            assert tiny.read(store, layer) == tiny.read(dense, layer)
            assert store.tensor_bytes(layer) == dense.tensor_bytes(layer)
        held = b"".join(raw for _, _, raw in tiny.read(dense, 1).values())
        assert read_words(tmp_path / "dense", 1).tobytes() == held
        with pytest.raises(InvalidInput, match="packed as lossless already"):
            read_words(tmp_path / "coded", 1)
        assert sum(map(dense.tensor_bytes, parts)) == said["bytes_before"]
        # What was read are the streams, in whole blocks.
        streams = [len(store.read_stream(layer)) for layer in parts]
        assert sum(streams) == said["bytes_after"] < 0.72 * said["bytes_before"]
        blocks = [math.ceil(n / 4096) * 4096 for n in streams]
        assert [store.read_bytes(layer) for layer in parts] == blocks
        before = store.bytes_read
        tiny.read(store, 0)
        size = len(store.read_stream(0))
        assert size <= store.bytes_read - before <= 2 * store.read_bytes(0)
    files = (tmp_path / "coded").glob("*.safetensors")
    held = sum(file.stat().st_size for file in files)
    assert sum(streams) < held < sum(streams) + len(streams) * 8192


CASES = [*((name, {}) for name in ("llama", "qwen2", "opt", "gemma2")), ("llama", WIDE)]


@pytest.mark.parametrize(("architecture", "changes"), CASES)
def test_streamed_logits_equal_those_of_the_resident_model(
    tmp_path, architecture, changes
):
    model, folder = coded(tmp_path, architecture, **changes)
    with SafetensorsStore(folder) as store:
        assert (lossless.chunks(store.tensor_bytes(0)) > 1) == (changes is WIDE)
    rows = [tiny.tokens(seed, 2, 9) for seed in range(3)]
    with torch.no_grad():
        expected = [model(row).logits for row in rows]
    for ring, resident in ((1, 0), (2, 1), (3, 0)):
        place = (folder, resident, ring)
        with tiny.metering(*place, batch=2, **OPTIONS) as (streamed, budget):
            plan = streamed.plan
            assert (plan.kind, plan.ring) == ("lossless", ring)
            for row, logits in zip(rows, expected, strict=True):
                assert torch.equal(streamed.logits(row), logits)
        assert 0.5 * plan.device_peak_bytes < budget.peak_bytes


def test_a_plan_knows_both_sizes_of_a_layer(tmp_path):
    _, folder = coded(tmp_path, **WIDE)
    dense = tiny.plan_tight(tmp_path / "dense", 0, 2, **OPTIONS)
    made = tiny.plan_tight(folder, 0, 2, **OPTIONS)
    with SafetensorsStore(folder) as store:
        sizes = [store.read_bytes(layer) for layer in range(store.layers)]
        assert made.staging_bytes == max(map(store.nbytes, range(store.layers)))
        assert made.layer_decoded_bytes == store.tensor_bytes(0)
    assert made.layer_read_bytes == math.ceil(np.mean(sizes))
    assert made.bytes_per_step < 0.72 * dense.bytes_per_step
    more = made.device_peak_bytes - dense.device_peak_bytes
    blocks = abs(more - lossless.scratch_bytes(DECODERS)) / 4096
    assert blocks < 4 * 4  # one read and its padding, four buffers at most


def test_the_slowest_of_disk_decoder_and_arithmetic_is_the_limit():
    spec = geometry("llama2-7b")
    least = least_device_bytes(spec, kind="lossless")
    fast = Machine(least, 1e9, decode_bytes_per_s=9e9, weight_bytes_per_s=1e12)
    made = plan(spec, fast, kind="lossless")
    dense = plan(spec, fast.with_memory(least_device_bytes(spec)))
    layers = spec.layers * spec.layer_bytes
    assert made.limit == "disk"
    ratio = made.transfer_s() / dense.transfer_s()
    assert ratio == pytest.approx(lossless.RATIO, abs=1e-4)
    slow = Machine(least, 1e9, decode_bytes_per_s=1e9, weight_bytes_per_s=1e12)
    made = plan(spec, slow, kind="lossless")
    assert (made.limit, made.decode_s()) == ("decode", layers / 1e9)
    assert made.step_s() == made.transfer_s() == made.decode_s()
    linked = Machine(least, 1e9, 2 * least, 0.5e9, 2e9, 1e12)
    made = plan(spec, linked, kind="lossless")
    assert (made.limit, made.transfer_s()) == ("link", layers / 0.5e9)
    assert plan(spec, slow, kind="dense", ring=2).decode_s() == 0


def test_a_measured_machine_knows_whether_it_waits_for_the_decoder(tmp_path):
    _, folder = coded(tmp_path, **WIDE)
    alone = decoder_bytes_per_s(folder, rounds=3)
    with SafetensorsStore(folder) as store:
        ratio = store.read_bytes(0) / store.tensor_bytes(0)
    quick = with_decoder(Machine(2**30, 1e15), folder)  # reads that never wait
    assert quick.decode_bytes_per_s == pytest.approx(1e15 / ratio)
    tardy = with_decoder(Machine(2**30, 1e3), folder)
    assert alone / 50 < tardy.decode_bytes_per_s < 50 * alone


def damage(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [4096, 4100, 4104, 4170, 20_000, -1])
def test_a_flipped_bit_is_rejected_and_named(tmp_path, at):
    _, folder = coded(tmp_path)
    damage(folder / "layer-0001.safetensors", at)
    made = tiny.plan_tight(folder, 0, 2, **OPTIONS)
    with (
        pytest.raises(StoreDamaged, match=r"layer-0001\.safetensors.*altered"),
        StreamedModel(folder, made) as model,
    ):
        model.logits(tiny.tokens(0, 1, 4))
    with pytest.raises(StoreDamaged, match=r"layer-0001\.safetensors.*SHA-256"):
        SafetensorsStore(folder, verify=True)


def test_a_layer_in_the_place_of_another_is_rejected(tmp_path):
    _, folder = coded(tmp_path)
    spare = folder / "layer-0001.safetensors"
    names = (spare, folder / "layer-0002.safetensors")
    # The header keeps its own names; the code after it is another's, of another length.
    shutil.copyfile(names[0], names[1])
    with pytest.raises(StoreDamaged, match="layer-0002"):
        SafetensorsStore(folder)


def test_a_header_that_does_not_say_what_is_coded_is_rejected(tmp_path):
    _, folder = coded(tmp_path)
    path = folder / "layer-0001.safetensors"
    content = path.read_bytes()
    for old, new, said in (
        (b'\\"data_offsets\\"', b'\\"data_0ffsets\\"', "of what it codes"),
        (b"[0,", b"[2,", "do not agree"),
    ):
        head, rest = content[:4096], content[4096:]
        assert old in head
        path.write_bytes(head.replace(old, new) + rest)
        with pytest.raises(StoreDamaged, match=rf"layer-0001\.safetensors.*{said}"):
            SafetensorsStore(folder)


def test_what_cannot_be_coded_is_rejected_by_name(tmp_path):
    for dtype, name in ((torch.float32, "F32"), (torch.float16, "F16")):
        tiny.write(tmp_path / name, dtype=dtype)
        with pytest.raises(InvalidInput, match=f"weight is {name}: expected BF16"):
            convert(tmp_path / name, tmp_path / "out", find_format("lossless"))
    tiny.write(tmp_path / "dense")
    with (
        SafetensorsStore(tmp_path / "dense") as dense,
        pytest.raises(InvalidInput, match="not in code"),
    ):
        dense.read_stream(0)
    assert not (tmp_path / "out").exists()


def test_the_command_plans_a_code_that_reads_less():
    plan = "plan", "llama2-7b", "--device-memory", "2GiB"
    coded, dense = checks.answer(*plan, "--weights", "lossless"), checks.answer(*plan)
    assert coded["weights"] == "lossless"
    assert coded["rates"]["ratio"] == "estimated"
    share = coded["bytes_per_token"] / dense["bytes_per_token"]
    assert share == pytest.approx(lossless.RATIO, abs=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority")
def test_decoders_leave_the_processor_to_the_arithmetic():
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1, initializer=_lower_priority) as pool:
        theirs = pool.submit(os.getpriority, os.PRIO_PROCESS, 0).result()
    assert theirs == 19
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
