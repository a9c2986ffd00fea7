"""The meter counts each storage once and lets go of it; medians carry intervals."""

import numpy as np
import pytest
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.stats import Interval
from thesis_lib.common.units import MiB
from thesis_lib.memory.model.spec import ModelSpec
from thesis_lib.memory.offload.measure import (
    CudaCap,
    DeviceBudget,
    Measurement,
    Span,
    busy_shares,
    compute_rates,
    crossing,
    crossing_interval,
    interleave,
)

SPEC = ModelSpec("small", 10, 256, 512, 4, 2, 64, 1000, tied=True)


def test_a_storage_is_charged_once_and_released():
    with DeviceBudget() as budget:
        tensor = torch.zeros(1000)
        assert budget.bytes == 4000
        views = [tensor[::2], tensor.view(10, 100), tensor.t(), tensor.detach()]
        tensor.add_(1)
        assert budget.bytes == 4000
        other = tensor + 1
        assert budget.bytes == 8000
        del tensor
        assert budget.bytes == 8000  # the views hold it
        del views
        assert budget.bytes == 4000
        del other
        assert budget.bytes == 0
    assert budget.peak_bytes == 8000


def test_busy_shares_are_those_of_a_clock_that_looks_at_every_moment():
    random = np.random.default_rng(0)
    for trial in range(200):
        starts = random.integers(0, 40, 8)
        spans = [
            Span(kind, i, float(start), float(start + random.integers(0, 15)))
            for i, start in enumerate(starts)
            for kind in random.choice(["read", "compute", "wait"], 2, replace=False)
        ]
        first = min(span.start_s for span in spans)
        moments = np.arange(first, max(span.end_s for span in spans)) + 0.5
        found = busy_shares(spans)
        for kind in ("read", "copy", "compute", "wait"):
            busy = [
                any(s.kind == kind and s.start_s < at < s.end_s for s in spans)
                for at in moments
            ]
            assert found[kind] == pytest.approx(np.mean(busy)), (trial, kind)
    with pytest.raises(InvalidInput, match="no span"):
        busy_shares([])


def test_a_temporary_counts_while_it_lives_and_only_on_its_device():
    ones = torch.ones(500)
    with DeviceBudget() as budget:
        total = (ones + ones) * ones
        torch.empty(10_000, device="meta")
        assert budget.bytes == total.nbytes == 2000
    assert budget.peak_bytes == 4000


def test_what_was_allocated_before_is_charged_on_request():
    ring = torch.zeros(100, dtype=torch.uint8)
    with DeviceBudget() as budget:
        budget.charge(ring, ring[10:])
        half = ring[:50]
        assert budget.bytes == 100
    del ring, half
    assert budget.bytes == 0


def test_past_the_limit_it_raises_and_below_it_does_not():
    with DeviceBudget(limit_bytes=4000):
        torch.zeros(1000)
    with (
        pytest.raises(torch.OutOfMemoryError, match="device budget"),
        DeviceBudget(limit_bytes=3999),
    ):
        torch.zeros(1000)


def test_interleaving_runs_forwards_and_backwards():
    calls = []
    samples = interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        rounds=2,
        warmup=1,
    )
    # once, or again as a whole where others disturbed it
    tried = (len(calls) - 2) // 8
    assert "".join(calls) == "ab" + "abba" * 2 * tried
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4}


def test_the_interval_of_the_median_covers_it():
    """Log-normal samples: the true median, 1, is inside about 95 % of the time."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        run = Measurement("x", tuple(rng.lognormal(size=30)))
        found = run.interval_s()
        assert found.low <= found.value == run.median_s <= found.high
        inside += found.low <= 1 <= found.high
    assert 0.91 <= inside / 200 <= 0.99  # the binomial deviation is 1.5 %


def test_a_measurement_divides_by_its_tokens():
    run = Measurement("x", (1.0, 3.0, 2.0), tokens=4)
    assert (run.median_s, run.s_per_token) == (2.0, 0.5)
    with pytest.raises(InvalidInput, match="sample"):
        Measurement("x", ())


def test_rates_are_recovered_from_a_line():
    tokens = np.array([1, 8, 64])
    seconds = SPEC.total_bytes / 20e9 + tokens * SPEC.flops_per_token() / 3e11
    assert compute_rates(SPEC, tokens, seconds) == pytest.approx((20e9, 3e11))
    # Times that fall show no products, and none that are the same.
    assert compute_rates(SPEC, tokens, seconds[::-1])[1] == np.inf
    weights, products = compute_rates(SPEC, tokens, tokens * 1e-3)
    assert weights > 1e6 * SPEC.total_bytes
    assert products == pytest.approx(SPEC.flops_per_token() / 1e-3)
    with pytest.raises(InvalidInput, match="positive"):
        compute_rates(SPEC, tokens, np.zeros(3))


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0.5, 0.0), (1.0, 1.0), (2.0, 4.5), (3.0, 8.0), (3.1, np.inf)],
)
def test_crossing_interpolates(level, expected):
    assert crossing([1, 8, 16], [1.0, 3.0, 3.0], level) == expected


def test_crossing_interval_holds_every_crossing_that_the_intervals_allow():
    rng, counts = np.random.default_rng(5), [1, 4, 16, 64]
    for _ in range(200):
        lows, highs = np.sort(rng.random((2, 5)), axis=0)
        drawn = [rng.uniform(lows, highs) for _ in range(20)]
        *rising, level = map(Interval, drawn[0], lows, highs)
        found = crossing_interval(counts, rising, level)
        assert found.value == crossing(counts, drawn[0][:4], drawn[0][4])
        for each in drawn:
            assert found.low <= crossing(counts, each[:4], each[4]) <= found.high


class FakeCuda:
    """The allocator of a device of 1,000 MiB, of which its context holds 300."""

    def __init__(self):
        self.total = 1000 * MiB
        self.fraction = 1.0
        self.reserved = self.allocated = self.most = 0

    def reserve(self, n_bytes):
        if self.reserved + n_bytes > self.fraction * self.total:
            raise torch.OutOfMemoryError("past the fraction")
        self.reserved += n_bytes
        self.most = max(self.most, self.reserved)

    def mem_get_info(self, device):
        return self.total - self.reserved - 300 * MiB, self.total

    def set_per_process_memory_fraction(self, fraction, device):
        self.fraction = fraction

    def reset_peak_memory_stats(self, device):
        self.most = self.reserved

    def max_memory_allocated(self, device):
        return self.most - 2 * MiB

    def max_memory_reserved(self, device):
        return self.most

    def memory_reserved(self, device):
        return self.reserved

    def synchronize(self, device):
        pass

    def empty_cache(self):
        self.reserved = 0


def test_the_cap_of_a_gpu_is_set_measured_and_lifted_again():
    cuda = FakeCuda()
    cuda.reserve(900 * MiB)  # of an earlier run: given back and forgotten
    with CudaCap(100 * MiB, cuda=cuda) as cap:
        cuda.reserve(90 * MiB)
        cuda.reserved -= 50 * MiB
        cap.look()
        assert (cap.reserved_bytes, cap.allocated_bytes) == (90 * MiB, 88 * MiB)
        assert cap.context_bytes == 300 * MiB
        cuda.reserve(60 * MiB)  # 100 MiB exactly
    assert cap.reserved_bytes == 100 * MiB
    assert cuda.fraction == 1.0
    with pytest.raises(torch.OutOfMemoryError), CudaCap(MiB, cuda=cuda):
        cuda.reserve(2 * MiB)
    assert cuda.fraction == 1.0  # after an error too


@pytest.mark.parametrize("limit_bytes", [0, -1, 1001 * MiB])
def test_a_cap_that_a_gpu_cannot_have_is_rejected(limit_bytes):
    cuda = FakeCuda()
    with pytest.raises(InvalidInput), CudaCap(limit_bytes, cuda=cuda):
        pass
    assert cuda.fraction == 1.0
