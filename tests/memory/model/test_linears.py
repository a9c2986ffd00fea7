import pytest
from torch import nn

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.model.linears import linears


class Model(nn.Module):
    """Two decoder layers and an output head."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)})
            for _ in range(2)
        )
        self.head = nn.Linear(4, 10)

    def get_output_embeddings(self):
        return self.head


def test_every_linear_layer_but_the_head_is_found_in_order_or_by_name():
    names = ["layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"]
    assert list(linears(Model())) == names
    assert list(linears(Model(), names[2:3])) == names[2:3]


def test_what_is_not_there_is_rejected():
    with pytest.raises(InvalidInput, match="head not among the 4"):
        linears(Model(), ["head"])
    with pytest.raises(InvalidInput, match=r"no nn\.Linear"):
        linears(nn.Sequential(nn.Tanh()))
