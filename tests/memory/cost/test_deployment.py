"""Configurations follow their plans, and a price needs no torch."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from thesis_lib.common import answers
from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.cost import deployment, planning
from thesis_lib.memory.cost.cards import read_cards
from thesis_lib.memory.cost.cost import Mix
from thesis_lib.memory.cost.deployment import Method
from thesis_lib.memory.model.spec import geometry
from thesis_lib.memory.offload.plan import PlanInfeasible

DATA = Path(__file__).parents[3] / "data"
CARDS = read_cards(DATA)
SPEC, MIX, LINK = geometry("llama2-70b"), Mix(64, 16), 20e9
CARD = CARDS["GeForce RTX 3090"]


def predict(method, item="rtx-3090", card=CARD, count=1, link=LINK):
    return deployment.predict(SPEC, method, MIX, item, card, count, link)


@pytest.fixture(scope="module")
def dense():
    return predict(Method("bf16"))


@pytest.fixture(scope="module")
def resident():
    method = Method("resident", batch=4)
    return predict(method, "h100", CARDS["H100 PCIe"], count=2)


def test_a_configuration_takes_the_time_of_its_plan(dense, resident):
    for made, method, card, count in (
        (dense, Method("bf16"), CARD, 1),
        (resident, Method("resident", batch=4), CARDS["H100 PCIe"], 2),
    ):
        plan = deployment.make_plan(SPEC, method, MIX, card, count, LINK)
        assert made.timing.step_s == pytest.approx(plan.step_s())
        assert made.timing.first_token_s == pytest.approx(
            plan.step_s(MIX.prompt_tokens)
        )
        assert made.read_bytes == plan.bytes_per_step
    assert dense.timing.step_s == pytest.approx(dense.read_bytes / LINK)
    assert resident.read_bytes == 0
    bound_s = SPEC.total_bytes / (2 * CARDS["H100 PCIe"].memory_bytes_per_s)
    assert resident.timing.step_s == pytest.approx(bound_s, rel=0.02)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("most", [1, 7, 64])
def test_the_largest_batch_is_the_last_that_a_plan_holds(most, resident):
    card, mix = CARDS["H100 PCIe"], Mix(1024, 1024)
    method = Method("bf16")
    found = deployment.most_sequences(SPEC, method, mix, card, most, 2, resident)

    def holds(batch):
        made = deployment.make_plan(SPEC, replace(method, batch=batch), mix, card, 2)
        return not resident or made.streamed_layers == 0

    assert 1 <= found <= most
    assert holds(found)
    if found < most and resident:
        assert not holds(found + 1)
    elif found < most:
        with pytest.raises(PlanInfeasible):
            holds(found + 1)


def test_a_card_that_holds_no_sequence_has_no_batch():
    small = replace(CARD, memory_bytes=4 * 10**9)
    assert deployment.most_sequences(SPEC, Method("bf16"), MIX, small, 4) == 0


def test_coding_moves_fewer_bytes_and_speculation_takes_fewer_passes(dense):
    coded = predict(Method("lossless", coded=0.7))
    assert coded.read_bytes == pytest.approx(0.7 * dense.read_bytes, rel=1e-6)
    assert coded.timing.step_s == pytest.approx(0.7 * dense.timing.step_s, rel=1e-6)
    speculated = predict(Method("speculation", tokens_per_step=2.5))
    assert speculated.timing.step_s == dense.timing.step_s
    assert speculated.timing.token_s == pytest.approx(dense.timing.token_s / 2.5)
    packed = predict(Method("nf4", "nf4"))
    # fewer bytes a layer, and more layers stay on the card
    assert packed.read_bytes < 0.26 * dense.read_bytes
    assert dense.memory_gb >= dense.read_bytes / 1e9 + 16 > dense.memory_gb - 32


def test_a_batch_whose_keys_and_values_do_not_fit_is_rejected():
    with pytest.raises(PlanInfeasible, match="lower the batch"):
        predict(Method("bf16", batch=1024))


def test_a_link_with_more_lanes_carries_more():
    h100 = CARDS["H100 PCIe"]
    assert deployment.assumed_link(h100) == pytest.approx(
        deployment.assumed_link(CARD) * h100.link_bytes_per_s / CARD.link_bytes_per_s
    )
    assert all(
        deployment.assumed_link(card) < card.link_bytes_per_s for card in CARDS.values()
    )


def test_a_method_is_checked():
    with pytest.raises(InvalidInput, match="kind='fp4'"):
        Method("fp4", "fp4")
    with pytest.raises(InvalidInput, match="coded=0"):
        replace(Method("lossless"), coded=0.0)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (1_251_234.5, "from 1.3 million tokens a month"),
        (20_672_323.0, "from 21 million tokens a month"),
        (999_999.0, "from 1 million tokens a month"),
        (218_604.0, "from 220,000 tokens a month"),
        (0.0, "from the first token"),
        (math.inf, "at no volume"),
    ],
)
def test_volume_has_two_digits(tokens, words):
    assert deployment.volume(tokens) == words


def test_a_price_and_a_known_plan_need_no_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_CACHE", str(tmp_path))
    answers._environment_hash.cache_clear()  # another test may have set THESIS_DATA
    asked = ("llama2-70b", 24 * 2**30)
    expected = planning.describe_plan(*asked)
    planning.describe_plan(*asked, weights="nf4")  # whatever is asked next of a budget
    program = (
        "import sys\n"
        "from thesis_lib.memory.cost import planning, question\n"
        "question.summarize(question.Question(tokens_per_s=1.0))\n"
        f"assert planning.describe_plan{asked} == {expected}\n"
        "planning.describe_plan('llama2-70b', 30 * 2**30, weights='nf4')\n"
        "assert not {'torch', 'transformers', 'numba'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
