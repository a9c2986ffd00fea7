"""Configurations follow their plans, records stay above their floors, costs add up."""

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.files import read_record
from thesis_lib.common.stats import median_interval
from thesis_lib.memory.cost import deployment, planning
from thesis_lib.memory.cost.cost import (
    Mix,
    break_even_tokens,
    metered_bill,
    usd_per_million_tokens,
)
from thesis_lib.memory.cost.deployment import Method, Question, draw, values
from thesis_lib.memory.cost.prices import read_prices, read_quantities
from thesis_lib.memory.cost.published import read_cards
from thesis_lib.memory.model.spec import geometry
from thesis_lib.memory.offload.plan import PlanInfeasible

DATA = Path(__file__).parents[3] / "data"
PRICES = read_prices(DATA / "prices.csv")
QUANTITIES = read_quantities(DATA / "deployment.csv")
CARDS = read_cards(DATA)
SPEC, MIX, LINK = geometry("llama2-70b"), Mix(64, 16), 20e9
CARD = CARDS["GeForce RTX 3090"]
MEASUREMENTS = DATA / "measurements"
NOTEBOOK = DATA.parent / "notebooks" / "06_evaluation_system_for_ml.ipynb"


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    monkeypatch.setenv("THESIS_DATA", str(DATA))


def summarise(gpu="rtx-3090", override=None, folder=MEASUREMENTS, **asked):
    return deployment.summarise(Question(gpu, **asked), override, folder)


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


def test_a_batch_whose_keys_and_values_do_not_fit_is_refused():
    with pytest.raises(PlanInfeasible, match="lower the batch"):
        predict(Method("bf16", batch=1024))


def test_the_table_prices_what_it_times(dense, resident):
    rates = deployment.recorded_rates(read_record("headline", MEASUREMENTS), None)
    name, rate = next(iter(rates.items()))
    made = deployment.table(
        [dense, resident], PRICES, MIX, 0.5, {name: ("cpu-2-cores", rate)}
    )
    assert list(made.index) == ["bf16", "resident", name]
    for each in (dense, resident):
        assert made.usd_per_million[each.name] == pytest.approx(
            usd_per_million_tokens(
                each.count * PRICES[each.item].value, each.timing.tokens_per_s(MIX), 0.5
            )
        )
    found = made.loc[name]
    assert found.low <= found.usd_per_million <= found.high
    assert made.usd_per_million["bf16"] > 10 * made.usd_per_million["resident"]


def test_sensitivities_start_from_the_costs_of_the_tables(dense):
    ranges = deployment.inputs(PRICES, QUANTITIES, "rtx-3090", link_gb_per_s=LINK / 1e9)
    at = values(ranges)
    found = deployment.evaluate(dense, MIX, at)
    owned = deployment.workstation(PRICES, QUANTITIES, dense.memory_gb)
    rate = dense.timing.tokens_per_s(MIX)
    assert found["tokens_per_s"] == pytest.approx(rate)
    assert found["rented_usd"] == pytest.approx(
        usd_per_million_tokens(at["usd_per_hour"], rate, at["utilisation"])
    )
    assert found["owned_usd"] == pytest.approx(
        owned.usd_per_million_tokens(rate, at["utilisation"])
    )
    assert found["monthly_usd"] == pytest.approx(owned.bill(rate).fixed_usd)


def test_all_draws_are_evaluated_at_once(dense):
    ranges = deployment.inputs(PRICES, QUANTITIES, "rtx-3090")
    drawn = draw(ranges, draws=20)
    together = deployment.evaluate(dense, MIX, drawn)["owned_usd"]
    one = {name: float(value[7]) for name, value in drawn.items()}
    assert together[7] == pytest.approx(
        deployment.evaluate(dense, MIX, one)["owned_usd"]
    )
    assert np.all(together > 0)
    with pytest.raises(InvalidInput, match="input='links'"):
        deployment.inputs(PRICES, QUANTITIES, "rtx-3090", links=1.0)


def committed(name):
    record = read_record(name, MEASUREMENTS)
    assert record is not None
    return record


def test_on_record_no_run_is_faster_than_the_upper_limit_of_its_link():
    for part in committed("headline")["parts"].values():
        fastest_s = median_interval(part["trial"]["drain_s"]).low
        # of the drains, the bytes are those of the plan
        link = part["planned_bytes_per_token"] / fastest_s
        floor_s = part["read_bytes_per_token"] / link
        assert 0.8 < floor_s / part["s_per_token"] <= 1
    summary = committed("streaming")["summary"]
    streamed = summary["systems"]["streamed"]
    link = streamed["read_bytes_per_token"] / summary["drain"]["interval_s"][0]
    for found in summary["systems"].values():
        assert found["median_s"] >= found["read_bytes_per_token"] / link


def test_a_record_gives_the_rate_of_its_median_within_its_interval():
    streaming = committed("streaming")
    rates = deployment.recorded_rates(committed("headline"), streaming)
    streamed = streaming["summary"]["systems"]["streamed"]
    assert rates["streaming:streamed"].value == pytest.approx(1 / streamed["median_s"])
    assert all(rate.low <= rate.value <= rate.high for rate in rates.values())
    assert deployment.recorded_rates(None, None) == {}


def test_the_summary_adds_up():
    rent = PRICES["rtx-3090"]
    found = summarise(tokens_per_s=0.8, utilisation=0.5)
    usd = found["usd_per_million_tokens"]
    assert usd == usd_per_million_tokens(rent.value, 0.8, 0.5)
    owned = deployment.workstation(PRICES, QUANTITIES, 64)
    assert found["break_even_tokens"] == break_even_tokens(
        owned.bill(0.8), metered_bill(rent.value, 0.8, 0.5)
    )
    assert found["owned_usd"] == owned.capex_usd
    assert found["usd_per_million_interval"] is found["break_even_interval"] is None
    assert found["price_status"] == rent.status
    dear = summarise(tokens_per_s=0.8, utilisation=0.5, override={"rtx-3090": 39.0})
    assert dear["usd_per_million_tokens"] == pytest.approx(39.0 / rent.value * usd)
    never = summarise(tokens_per_s=0.8, override={"rtx-3090": 0.01})
    assert never["break_even_tokens"] is None


def test_a_rate_with_an_interval_gives_one_to_every_cost():
    found = summarise(tokens_per_s=2.0, between=(1.8, 2.5))
    for key in ("usd_per_million", "owned_usd_per_million", "break_even"):
        low, high = found[f"{key}_interval"]
        assert low < found[f"{key}_tokens"] < high
    assert found["usd_per_million_interval"] == pytest.approx(
        [found["usd_per_million_tokens"] * 2.0 / rate for rate in (2.5, 1.8)]
    )
    recorded = summarise("cpu-2-cores", record="streaming:streamed")
    assert recorded["basis"] == "measured, streaming:streamed"
    low, high = recorded["usd_per_million_interval"]
    assert low < recorded["usd_per_million_tokens"] < high


def test_predicted_machines_each_have_the_rate_of_their_own_plan():
    asked = partial(summarise, weights="nf4", mix=MIX)
    cheap, large = (asked(gpu, model="llama2-70b") for gpu in ("rtx-3090", "h100"))
    made = predict(Method("nf4", "nf4"), link=deployment.assumed_link(CARD))
    assert cheap["basis"] == "predicted"
    assert cheap["tokens_per_s"] == pytest.approx(made.timing.tokens_per_s(MIX))
    assert json.loads(json.dumps(cheap)) == cheap
    assert large["tokens_per_s"] > 5 * cheap["tokens_per_s"]
    same = "owned_usd_per_million_tokens"
    assert large[same] == cheap[same]
    crowd = asked("h100", batch=128, model="llama-65b")
    assert crowd[same] is crowd["break_even_tokens"] is None
    assert crowd["usd_per_million_tokens"] < large["usd_per_million_tokens"]


def test_a_rate_of_another_machine_is_not_that_of_the_owned_one():
    hourly = {gpu: price for gpu, price in PRICES.items() if price.unit == "hour"}
    for (gpu, price), cards in itertools.product(hourly.items(), (1, 2)):
        found = summarise(gpu, tokens_per_s=1.0, cards=cards)
        is_owned = deployment.base_item(gpu) == "rtx-3090" and cards == 1
        for key in ("owned_usd_per_million", "electricity_usd_per_million"):
            assert (found[f"{key}_tokens"] is not None) == is_owned, (gpu, key)
        assert found["usd_per_hour"] == cards * price.value


def test_the_command_and_the_chapter_price_the_same_machines_alike():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    tagged = next(c for c in cells if "parameters" in c["metadata"].get("tags", ()))
    chapter = {}
    exec("".join(tagged["source"]), chapter)
    mix = Mix(chapter["prompt_tokens"], chapter["written_tokens"])
    link = 1e9 * chapter["link_gb_per_s"]
    assert mix == deployment.MIX
    assert link == deployment.assumed_link(CARD)
    spec, crowd = geometry("llama-65b"), chapter["resident_batch"]
    options = [
        (Method(name, kind, batch=batch), "rtx-3090", CARD, 1, link)
        for name, kind, batch in (
            ("bf16", "dense", 1),
            ("int8", "int8", 1),
            ("nf4", "nf4", 1),
            ("nf4", "nf4", chapter["offloaded_batch"]),
        )
    ] + [(Method("bf16", batch=crowd), "h100", CARDS["H100 PCIe"], 2, None)]
    for method, item, card, count, given in options:
        made = deployment.predict(spec, method, mix, item, card, count, given)
        usd = deployment.table([made], PRICES, mix, chapter["utilisation"])
        found = summarise(item, weights=method.name, batch=method.batch, cards=count)
        assert found["usd_per_million_tokens"] == usd.usd_per_million.item()
        assert found["streamed_layers"] == made.streamed_layers
        assert (made.streamed_layers == 0) == (item == "h100")


def test_a_link_with_more_lanes_carries_more():
    h100 = CARDS["H100 PCIe"]
    assert deployment.assumed_link(h100) == pytest.approx(
        deployment.assumed_link(CARD) * h100.link_bytes_per_s / CARD.link_bytes_per_s
    )
    assert all(
        deployment.assumed_link(card) < card.link_bytes_per_s for card in CARDS.values()
    )


def test_a_reserved_machine_is_compared_by_the_month():
    found = summarise("rtx-a6000-reserved", model="llama2-70b", weights="nf4")
    # an idle month of it costs more than one of the owned machine
    assert found["break_even_tokens"] == 0
    assert deployment.base_item("rtx-a6000-reserved") == "rtx-a6000"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu": "electricity", "tokens_per_s": 1.0}, "gpu='electricity'"),
        ({"tokens_per_s": 0.0}, "tokens_per_s=0"),
        ({"tokens_per_s": math.inf}, "tokens_per_s=inf"),
        ({"tokens_per_s": 1.0, "between": (1.1, 2.0)}, "tokens_per_s=1 from"),
        ({"between": (1.0, 2.0)}, "needs the rate"),
        ({"tokens_per_s": 1.0, "record": "streaming:streamed"}, "exclude each other"),
        ({"record": "streaming:theirs"}, "record='streaming:theirs'"),
        ({"tokens_per_s": 1.0, "utilisation": 0.0}, "utilisation=0"),
        ({"cards": 0}, "cards=0 must be positive"),
        ({"gpu": "cpu-2-cores"}, "no data sheet is known for cpu-2-cores"),
        ({"model": "llama-66b"}, "model='llama-66b'"),
        ({"weights": "int4"}, "weights='int4'"),
    ],
)
def test_a_question_without_an_answer_is_refused(options, words):
    with pytest.raises(InvalidInput, match=words):
        summarise(**options)


def test_a_method_is_checked():
    with pytest.raises(InvalidInput, match="kind='fp4'"):
        Method("fp4", "fp4")
    with pytest.raises(InvalidInput, match="coded=0"):
        replace(Method("lossless"), coded=0.0)


def test_a_volume_is_worded():
    assert deployment.volume(1_251_234.5) == "from 1.3 million tokens a month"
    assert deployment.volume(20_672_323.0) == "from 21 million tokens a month"
    assert deployment.volume(999_999.0) == "from 1 million tokens a month"
    assert deployment.volume(218_604.0) == "from 220,000 tokens a month"
    assert deployment.volume(0.0) == "from the first token"
    assert deployment.volume(math.inf) == "at no volume"


def test_a_price_and_a_known_plan_need_no_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_CACHE", str(tmp_path))
    asked = ("llama2-70b", 24 * 2**30)
    expected = planning.describe_plan(*asked)
    planning.describe_plan(*asked, weights="nf4")  # whatever is asked next of a budget
    program = (
        "import sys\n"
        "from thesis_lib.memory.cost import deployment, planning\n"
        "deployment.summarise(deployment.Question(tokens_per_s=1.0))\n"
        f"assert planning.describe_plan{asked} == {expected}\n"
        "planning.describe_plan('llama2-70b', 30 * 2**30, weights='nf4')\n"
        "assert not {'torch', 'transformers', 'numba'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
