"""The ring delivers every layer once a pass, whole, whatever the reads do."""

import random

import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.offload.transfer import Ring

PARTS = 3  # chunks of a read, which land in any order


class Schedule:
    """Reads that land late, early, in pieces and out of order, as a seed determines."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.flying = []
        self.fetched = []

    def fetch(self, layer, buffer):
        self.shuffle()
        # A second read into a buffer before the first has landed would mix layers.
        assert all(other.buffer is not buffer for other in self.flying)
        buffer[:] = [None] * PARTS
        read = Read(self, layer, buffer)
        self.flying.append(read)
        self.fetched.append(layer)
        return read

    def shuffle(self):
        for read in self.draw.sample(self.flying, k=len(self.flying)):
            read.land(self.draw.randrange(PARTS + 1))


class Read:
    def __init__(self, schedule, layer, buffer):
        self.schedule, self.layer, self.buffer = schedule, layer, buffer
        self.left = schedule.draw.sample(range(PARTS), k=PARTS)

    def land(self, parts):
        for part in self.left[:parts]:
            self.buffer[part] = self.layer
        del self.left[:parts]
        if not self.left and self in self.schedule.flying:
            self.schedule.flying.remove(self)

    def wait(self):
        self.schedule.shuffle()
        self.land(PARTS)
        return 0.0, 0.0


def passes(seed):
    """Some passes over a random ring under a random schedule; faults in between."""
    schedule = Schedule(seed)
    draw = schedule.draw
    layers = sorted(draw.sample(range(20), k=draw.randrange(1, 9)))
    buffers = [[] for _ in range(draw.randrange(1, len(layers) + 1))]
    ring = Ring(layers, buffers, schedule.fetch)
    for _ in range(draw.randrange(1, 4)):
        stop = draw.choice([None, None, draw.choice(layers)])
        try:
            for layer in layers:
                with ring.hold(layer) as buffer:
                    schedule.shuffle()
                    assert buffer == [layer] * PARTS
                    if layer == stop:
                        raise KeyboardInterrupt
            assert ring.at_start
        except KeyboardInterrupt:
            assert not ring.at_start
            ring.rewind()
            schedule.fetched = schedule.fetched[-len(buffers) :]
            assert schedule.fetched == layers[: len(buffers)]
    ring.settle()
    assert not schedule.flying


@pytest.mark.parametrize(
    "seeds", [range(2_000), pytest.param(range(2_000, 10_000), marks=pytest.mark.proof)]
)
def test_any_schedule_delivers_every_layer_whole(seeds):
    for seed in seeds:
        try:
            passes(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_a_buffer_is_refilled_one_ring_ahead_and_around_the_end():
    schedule = Schedule(0)
    ring = Ring([0, 1, 2, 3, 4], [[], [], []], schedule.fetch)
    for layer in (0, 1, 2, 3, 4, 0):
        with ring.hold(layer):
            pass
    assert schedule.fetched == [0, 1, 2, 3, 4, 0, 1, 2, 3]


def test_a_layer_out_of_turn_is_rejected():
    ring = Ring([0, 1], [[]], Schedule(0).fetch)
    refused = pytest.raises(InvalidInput, match="layer 1 is asked for where layer 0")
    with refused, ring.hold(1):
        pass
    with pytest.raises(InvalidInput, match="no buffer"):
        Ring([0], [], Schedule(0).fetch)
    assert Ring([], [], Schedule(0).fetch).at_start


def test_a_failed_read_is_raised_once_and_forgotten_by_rewinding():
    class Failing:
        def wait(self):
            raise OSError("lost")

    schedule, broken = Schedule(1), [True]

    def fetch(layer, buffer):
        if layer == 1 and broken:
            broken.clear()
            return Failing()
        return schedule.fetch(layer, buffer)

    ring = Ring([0, 1, 2], [[], []], fetch)
    with ring.hold(0):
        pass
    with pytest.raises(OSError, match="lost"), ring.hold(1):
        pass
    ring.rewind()
    for layer in (0, 1, 2):
        with ring.hold(layer) as buffer:
            assert buffer == [layer] * PARTS
