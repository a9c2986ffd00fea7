"""The answer of `thesis cost` adds up, and agrees with the chapter."""

import json
import math
from pathlib import Path

import pytest

from thesis_book.experiments.memory.costs import table
from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.cost import deployment
from thesis_lib.memory.cost.cards import read_cards
from thesis_lib.memory.cost.cost import (
    Mix,
    break_even_tokens,
    metered_bill,
    usd_per_million_tokens,
)
from thesis_lib.memory.cost.deployment import Method, workstation
from thesis_lib.memory.cost.prices import read_prices, read_quantities
from thesis_lib.memory.cost.question import Question, summarize
from thesis_lib.memory.model.spec import geometry

DATA = Path(__file__).parents[3] / "data"
PRICES = read_prices(DATA / "prices.csv")
QUANTITIES = read_quantities(DATA / "deployment.csv")
CARD = read_cards(DATA)["GeForce RTX 3090"]
NOTEBOOK = DATA.parent / "notebooks" / "06_evaluation_system_for_ml.ipynb"


def answer(gpu="rtx-3090", override=None, **asked):
    return summarize(Question(gpu, **asked), override)


def test_the_summary_adds_up():
    rent = PRICES["rtx-3090"]
    found = answer(tokens_per_s=0.8, utilization=0.5)
    usd = found["usd_per_million_tokens"]
    assert usd == usd_per_million_tokens(rent.value, 0.8, 0.5)
    owned = workstation(PRICES, QUANTITIES, 64)
    assert found["break_even_tokens"] == break_even_tokens(
        owned.bill(0.8), metered_bill(rent.value, 0.8, 0.5)
    )
    assert found["owned_usd"] == owned.capex_usd
    assert found["usd_per_million_interval"] is found["break_even_interval"] is None
    assert found["price_status"] == rent.status
    dear = answer(tokens_per_s=0.8, utilization=0.5, override={"rtx-3090": 39.0})
    assert dear["usd_per_million_tokens"] == pytest.approx(39.0 / rent.value * usd)
    never = answer(tokens_per_s=0.8, override={"rtx-3090": 0.01})
    assert never["break_even_tokens"] is None


def test_a_rate_with_an_interval_gives_one_to_every_cost():
    found = answer(tokens_per_s=2.0, between=(1.8, 2.5))
    for key in ("usd_per_million", "owned_usd_per_million", "break_even"):
        low, high = found[f"{key}_interval"]
        assert low < found[f"{key}_tokens"] < high
    assert found["usd_per_million_interval"] == pytest.approx(
        [found["usd_per_million_tokens"] * 2.0 / rate for rate in (2.5, 1.8)]
    )


def test_predicted_machines_each_have_the_rate_of_their_own_plan():
    spec, mix = geometry("llama2-70b"), deployment.MIX
    cheap, large = (
        answer(gpu, weights="nf4", model=spec.name) for gpu in ("rtx-3090", "h100")
    )
    made = deployment.predict(spec, Method("nf4", "nf4"), mix, "rtx-3090", CARD)
    assert cheap["basis"] == "predicted"
    assert cheap["tokens_per_s"] == pytest.approx(made.timing.tokens_per_s(mix))
    assert json.loads(json.dumps(cheap)) == cheap
    assert large["tokens_per_s"] > 5 * cheap["tokens_per_s"]
    same = "owned_usd_per_million_tokens"
    assert large[same] == cheap[same]
    crowd = answer("h100", weights="nf4", batch=40, model="llama-65b")
    assert crowd[same] is crowd["break_even_tokens"] is None
    assert crowd["usd_per_million_tokens"] < large["usd_per_million_tokens"]


@pytest.mark.parametrize(
    "gpu", [item for item, price in PRICES.items() if price.unit == "hour"]
)
def test_a_rate_of_another_machine_is_not_that_of_the_owned_one(gpu):
    found = answer(gpu, tokens_per_s=1.0)
    is_owned = deployment.base_item(gpu) == "rtx-3090"
    for key in ("owned_usd_per_million", "electricity_usd_per_million"):
        assert (found[f"{key}_tokens"] is not None) == is_owned
    assert found["usd_per_hour"] == PRICES[gpu].value


def test_the_command_and_the_chapter_price_the_same_machines_alike():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    tagged = next(c for c in cells if "parameters" in c["metadata"].get("tags", ()))
    chapter = {}
    exec("".join(tagged["source"]), chapter)
    mix = Mix(chapter["prompt_tokens"], chapter["written_tokens"])
    link = 1e9 * chapter["link_gb_per_s"]
    assert mix == deployment.MIX
    assert link == deployment.assumed_link(CARD)
    for name, kind, batch in (
        ("bf16", "dense", 1),
        ("int8", "int8", 1),
        ("nf4", "nf4", 1),
        ("nf4", "nf4", chapter["offloaded_batch"]),
    ):
        method = Method(name, kind, batch=batch)
        spec = geometry("llama-65b")
        made = deployment.predict(spec, method, mix, "rtx-3090", CARD, 1, link)
        usd = table([made], PRICES, mix, chapter["utilization"])
        found = answer(weights=name, batch=batch)
        assert found["usd_per_million_tokens"] == usd.usd_per_million.item()
        assert found["streamed_layers"] == made.streamed_layers > 0


def test_a_reserved_machine_is_compared_by_the_month():
    found = answer("rtx-a6000-reserved", model="llama2-70b", weights="nf4")
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
        ({"tokens_per_s": 1.0, "weights": "nf4"}, "say what a rate is predicted for"),
        ({"tokens_per_s": 1.0, "utilization": 0.0}, "utilization=0"),
        ({"gpu": "cpu-2-cores"}, "no data sheet is known for cpu-2-cores"),
        ({"model": "llama-66b"}, "model='llama-66b'"),
        ({"weights": "int4"}, "weights='int4'"),
    ],
)
def test_a_question_without_an_answer_is_rejected(options, words):
    with pytest.raises(InvalidInput, match=words):
        answer(**options)
