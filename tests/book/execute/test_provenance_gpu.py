"""What a record says of a GPU is what torch computes on; `make gpu` runs this."""

import pytest

from thesis_book.execute import provenance

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_the_gpus_of_a_record_are_those_that_torch_sees():
    named = provenance.identity()["gpus"]
    assert named
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        same = [
            gpu
            for gpu in named
            if gpu["name"] == seen.name
            # The driver keeps a part for itself, which torch does not count.
            and gpu["memory_bytes"] == pytest.approx(seen.total_memory, rel=0.05)
        ]
        assert same, f"torch computes on {seen}, the record would name {named}"
        assert same[0]["driver"]


def test_a_record_names_the_cuda_that_torch_was_built_for():
    assert f"CUDA {torch.version.cuda}" in provenance.identity()["torch"]
