"""The tables and numbers of records are what the records hold."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from thesis_book.tables import measurements
from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.stats import Interval
from thesis_lib.common.units import GiB
from thesis_lib.sequencer.policies.parameters import LateBound
from thesis_lib.sequencer.policies.registry import WATCHING, rule_parameters
from thesis_lib.sequencer.policies.rules import RULES

MEASUREMENTS = Path(__file__).parents[3] / "data" / "measurements"
MADE = {"commit": "0123456789", "machine": {"cpu": "a processor", "cores": 2}}
STREAMED = {
    "peak_bytes": GiB, "median_s": 2.0, "interval_s": [1.9, 2.1],
    "read_bytes_per_token": 7e9, "fraction_of_drain": 0.961,
}  # fmt: skip
AIRLLM = {
    "peak_bytes": 2 * GiB, "median_s": 6.0, "interval_s": [5.5, 7.0],
    "read_bytes_per_token": 7e9, "drains_per_step": 3.12,
    "streamed_is_faster": {"times": 3.0, "low": 2.8, "high": 3.1},
}  # fmt: skip
NF4 = "streamed, NF4"
KILLED = {"killed": True, "peak_bytes": 2 * GiB}
PART = {
    "weights": "bf16", "distinct_layers": 8, "limit_bytes": 8 * GiB,
    "peak_bytes": 5 * GiB, "logical_peak_bytes": 4.5 * GiB,
    "planned_peak_bytes": 4.6 * GiB, "read_bytes_per_token": None,
    "planned_bytes_per_token": 1.3e11, "s_per_token": 65.0,
    "predicted_s_per_token": 64.0, "fraction_of_drain": 0.97,
    "plan": {"context": 64, "tiers": {"device": 3}, "bytes_per_token": 1.3e11},
    "predicted_at_bytes_per_s": 2e9, "fractions": [0.9, 0.97, 0.98],
}  # fmt: skip
WHOLE = {
    "limit_bytes": 8 * GiB, "s_per_token": 5.2, "fraction_of_link": 0.98,
    "predicted_s_per_token": 5.1, "reserved_bytes": 7.5 * GiB,
}  # fmt: skip
CARD = MADE["machine"] | {"gpus": [{"name": "a card"}]}
GPU = MADE | {"device": "cuda", "machine": CARD, "parts": {"whole": WHOLE}}


def peers(**systems):
    return measurements.peers({"summary": {"systems": systems}})


def test_a_record_that_is_missing_is_named():
    with pytest.raises(InvalidInput, match=r"no_such\.json must be .* Restore it"):
        measurements.read("no_such")


@pytest.mark.parametrize("name", sorted(p.stem for p in MEASUREMENTS.glob("*.json")))
def test_a_record_says_which_commit_made_it_on_which_machine(name):
    record = measurements.read(name)
    parts = record.values() if name == "grids" else [record]
    assert all(len(each["commit"]) == 12 for each in parts)
    assert all(each["machine"]["cores"] > 0 for each in parts)


# --- Streaming -------------------------------------------------------------------
def test_peers_have_their_times_and_the_killed_one_its_peak_alone():
    faster = {"times": 6.5, "low": 6.0, "high": 7.0}
    packed = {"peak_bytes": GiB, "median_s": 0.5, "is_faster_than_accelerate": faster}
    mapped = AIRLLM | {"median_s": 4.0, "streamed_q4_is_faster": faster}
    systems = {"streamed": STREAMED, "airllm": AIRLLM, "llama.cpp": KILLED}
    table = peers(**systems, **{"mmap": mapped, "streamed-nf4": packed})
    assert [*table.index] == ["streamed", "AirLLM", "llama.cpp", "mmap", NF4]
    columns = ["s_per_token", "low_s", "high_s", "times_slower", "times_low"]
    assert table.loc["AirLLM", columns].tolist() == [6.0, 5.5, 7.0, 3.0, 2.8]
    assert table.loc["AirLLM", "drains_per_step"] == 3.12
    assert table.loc["streamed", "fraction_percent"] == pytest.approx(96.1)
    assert table.loc["llama.cpp"].dropna().to_dict() == {"peak_bytes": 2 * GiB}
    assert table.loc[NF4, ["over_accelerate", "over_mmap"]].tolist() == [6.5, 8]
    columns = ["times_as_blocks", "times_as_blocks_low", "times_as_blocks_high"]
    assert table.loc["mmap", columns].tolist() == [6.5, 6.0, 7.0]


def test_peers_are_printed_under_their_names_in_units_that_are_read():
    table = measurements.beside(peers(streamed=STREAMED, mmap=KILLED))
    assert table.index.name == "system"
    assert list(table.index) == ["streamed, bfloat16", "mmap"]
    assert table.loc["mmap"].dropna().to_dict() == {"peak (GiB)": 2.0}
    other = measurements.beside(peers(airllm=AIRLLM), "drains_per_step")
    assert other.loc["AirLLM", ["s a token", "times as long"]].tolist() == [6.0, 3.12]


def test_use_is_that_of_the_first_run_of_each_system():
    samples = [[0.1, 10, 4], [0.2, 20, 8]], [[0.1, 30, 30]], [[0.3, 99, 99]]
    systems = "streamed", "airllm", "streamed"
    runs = [
        {"system": name, "use": use} for name, use in zip(systems, samples, strict=True)
    ]
    found = measurements.use({"runs": [{"system": "mmap"}, *runs]})
    assert {name: use.tolist() for name, use in found.items()} == {
        "streamed": samples[0], "AirLLM": samples[1]
    }  # fmt: skip


def test_the_headline_has_promise_and_count_side_by_side():
    table = measurements.headline({"parts": {"bf16-8192MiB": PART}})
    assert list(table.index) == ["bf16"]
    (row,) = table.to_dict("records")
    assert row["planned_bytes"] == 4.6 * GiB
    assert row["logical_bytes"] == 4.5 * GiB
    assert np.isnan(row["read_bytes"])  # not known is not zero
    assert (row["peak_bytes"], row["s_per_token"]) == (5 * GiB, 65.0)
    assert row["fraction_of_drain"] == 0.97
    assert (row["fraction_low"], row["fraction_high"]) == (0.9, 0.98)


def test_larger_limit_is_reported():
    trial = {"step_s": [64.0, 70.0, 65.0, 65.0], "drain_s": [60.0, 65.0, 70.0]}
    part = PART | {"processes": [{}, {}], "trial": trial}
    read = part | {"read_bytes_per_token": 1.3e11}
    smaller = part | {"limit_bytes": 4 * GiB, "trial": trial | {"step_s": [70.0]}}
    other = part | {"limit_bytes": 9 * GiB, "weights": "nf4"}
    both = MADE | {"parts": {"a": smaller, "b": read, "c": smaller, "d": other}}
    told = measurements.headline_numbers(both, "bf16")
    assert (told["s_per_token"], told["measured_read_gb"]) == (65.0, 130.0)
    assert (told["s_per_token_low"], told["s_per_token_high"]) == (64.0, 70.0)
    assert (told["s_per_token_n"], told["steps"]) == (2, 4)  # processes, their steps
    assert told["s_per_token_interval"] == "range"
    assert (told["fraction_percent_low"], told["drain_gb_per_s"]) == (90.0, 2.0)
    assert "measured_read_gb" not in measurements.headline_numbers(both, "nf4")


def test_noise_of_the_headline_is_that_of_its_worst_process():
    runs = [
        {"s_per_token": 66.0, "predicted_s_per_token": 60.0},
        {"s_per_token": 60.0, "predicted_s_per_token": 80.0},
    ]
    quiet = PART | {"processes": runs[:1], "trial": {"drain_s": [60.0, 60.0]}}
    loud = PART | {"processes": runs, "trial": {"drain_s": [60.0, 60.0, 50.0, 55.0]}}
    assert measurements.headline_noise(
        {"parts": {"a": quiet, "b": loud}}
    ) == pytest.approx({"late_percent": 10, "early_percent": 25, "drift_percent": 10})


def test_gpu_is_reported_with_limit_and_link():
    table = measurements.gpu(GPU)
    assert table.index.tolist() == ["a card"]
    (row,) = table.to_dict("records")
    assert (row["limit (GiB)"], row["predicted (s)"]) == (8, 5.1)
    assert row["of the link (%)"] == pytest.approx(98)
    left_out = GPU | {"parts": {"whole": {"skipped": "about 9 min"}}}
    assert measurements.gpu(left_out)["no result"].tolist() == ["about 9 min"]
    assert measurements.origin(GPU) == "a processor, 2 cores, commit 0123456"
    # a run of the script on a processor is no run on a GPU
    assert measurements.gpu(None).empty
    assert measurements.gpu(GPU | {"device": "cpu"}).empty


# --- Plans -----------------------------------------------------------------------
def test_a_certificate_counts_what_exceeded_and_what_was_killed():
    row = {"device_bytes": 1000, "planned_bytes": 900, "generating": False}
    group = {"killed": False, "limit_bytes": 400}
    record = MADE | {
        "logical": [
            *(row | {"metered_bytes": m} for m in (900, 890, 910)),
            row | {"metered_bytes": 880, "generating": True},
        ],
        "physical": [
            group | {"peak_bytes": 360}, group | {"peak_bytes": 400}, {"killed": True},
        ],
    }  # fmt: skip
    found = measurements.certificate(record)
    assert (found["plans"], found["steps"], found["generated"]) == (4, 3, 1)
    assert (found["steps_exceeded"], found["generated_exceeded"]) == (1, 0)
    assert (found["steps_over_median"], found["steps_over_most"]) == (0, 1)
    assert found["generated_over_most"] == 2
    assert (found["groups"], found["killed"]) == (3, 1)
    assert (found["left_least"], found["left_most"]) == pytest.approx((0, 10))


def test_predictions_are_held_against_the_median():
    plan = {"batch": 2, "pass_tokens": 1, "limit": "disk"}
    plans = [
        plan | {"predicted_s": 1.1, "seconds": [1.0, 1.0, 9.0]},
        plan | {"predicted_s": 2.0, "seconds": [2.0]},
    ]
    computing_s = {"50": 1.0, "150": 3.0}
    crossover = {"predicted_tokens": 110.0, "computing_s": computing_s, "drain_s": 2.0}
    record = MADE | {"prediction": {"plans": plans}, "crossover": crossover}
    table = measurements.predictions(record)
    assert table["error"].tolist() == pytest.approx([0.1, 0.0])
    found = measurements.prediction_numbers(record)
    assert (found["plans"], found["most_sequences"]) == (2, 2)
    assert found["error_median"] == pytest.approx(5)
    assert (found["crossover"], found["crossover_found"]) == (110, "100 tokens")


# --- Passes of several texts -----------------------------------------------------
def test_passes_are_compared_within_a_round_and_with_an_interval():
    speeds = np.array([1.0, 2.0, 1.5, 3.0])  # of the machine, a round each
    runs = [
        {"place": place, "way": way, "texts": n, "samples_s": [*(speeds * grown**n)]}
        for place in ("streamed", "resident")
        for way, grown in (("in_one_product", 1.0), ("apart", 1.5))
        for n in (1, 4)
    ]
    found = measurements.passes({"runs": runs})
    assert [*found.index] == [
        (place, n) for place in ("streamed", "resident") for n in (1, 4)
    ]
    names = ["ms", "times one sequence", "from", "to"]
    assert [*found["apart"].columns] == names
    row = found.loc[("streamed", 4), "apart"]
    assert row.tolist() == pytest.approx([1750 * 1.5**4, *[1.5**3] * 3])
    assert found.loc[("resident", 4), "in_one_product"].tolist()[1:] == [1.0] * 3
    assert found.loc[("resident", 1), "apart"].isna().tolist() == [0, 1, 1, 1]


# --- Rates -----------------------------------------------------------------------
WIDE = "not measurable in so restless a run, whose times allow "


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (41.2, 29.4, 55.0, "measured at 41 tokens (29 to 55)"),
        (0.0, 0.0, 0.0, "at most 8 tokens"),
        (np.inf, np.inf, np.inf, "not reached up to 1,024 tokens"),
        (0.0, 0.0, 41.0, WIDE + "at most 8 tokens and 41 tokens"),
        (41.0, 10.0, 100.0, WIDE + "10 tokens and 100 tokens"),
        (900.0, 800.0, np.inf, WIDE + "800 tokens and more than 1,024 tokens"),
    ],
)
def test_crossover_is_a_number_only_between_the_counts(value, low, high, expected):
    found = Interval(value, low, high)
    assert measurements.crossover_says(found, [8, 64, 1024]) == expected


def seconds(low, high, n=8):
    return Interval((low + high) / 2, low, high, n=n)


KINDS = ("reading", "computing")
MEASURED = {
    ("reading", "single steps"): seconds(0.10, 0.12),
    ("reading", "a look"): seconds(0.5, 0.5, n=1),
    ("computing", "single steps"): seconds(0.04, 0.06),
}


def test_rates_have_a_row_for_each_instrument_and_no_ends_for_a_single_look():
    table = measurements.rates(MEASURED, {"reading": 11e6, "computing": 5e6})
    assert [*table.index] == [*MEASURED]
    assert table.loc[("reading", "single steps")].tolist() == pytest.approx(
        [110, 100, 120, 0.1]
    )
    assert table.loc[("reading", "a look")].isna().tolist() == [0, 1, 1, 0]


def test_rate_numbers_reach_over_all_instruments_and_tell_what_excludes_each_other():
    found = measurements.rate_numbers(MEASURED)
    ends = [found[f"{kind}_{end}_ms"] for kind in KINDS for end in ("low", "high")]
    assert ends == pytest.approx([100, 500, 40, 60])
    assert found["apart"] == ""  # a look has no interval that could exclude another
    more = MEASURED | {("reading", "longer passes"): seconds(0.15, 0.2)}
    more |= {("reading", "short passes"): seconds(0.125, 0.3)}
    assert measurements.rate_numbers(more)["apart"] == (
        "reading took 150 to 200 ms in longer passes and 100 to 120 ms in single steps"
    )
    beside = {("computing beside reading", "passes"): seconds(0.2, 0.3)}
    found = measurements.rate_numbers(MEASURED | beside)
    assert found["computing_high_ms"] == pytest.approx(300)
    assert found["apart"] == ""  # another thing was timed


# --- Compression and speculation -------------------------------------------------
def test_lossless_record_reports_ratios_of_medians():
    stream = {
        "geometry": "llama2-7b", "layers": 8, "device_bytes": 2**31,
        "bytes_per_step": {"bf16": 1000, "lossless": 694}, "equal_logits": True,
        "decode_bytes_per_s": 5.25e9, "decoded_bytes_per_step": 2_625_000_000,
        "seconds": {
            "bf16 drain": [[2.9, 3.0, 9.0], [3.0, 3.0, 3.0]],
            "lossless drain": [[2.0, 2.0, 2.0], [2.0, 2.0, 9.0]],
            "bf16 token": [[3.0], [3.6]],
            "lossless token": [[2.0], [3.0]],
            "lossless compute": [[0.25], [0.25]],
        },
    }  # fmt: skip
    codecs = [
        {"weights": "Gaussian", "codec": "streamed", "threads": n, "ratio": 0.69,
         "bytes": 10**9, "seconds": [0.5 / n, 0.25 / n, 0.1 / n]}
        for n in (1, 2)
    ]  # fmt: skip
    record = MADE | {"stream": stream, "codecs": codecs}
    found = measurements.lossless(record)
    assert (found["share"], found["device_gib"]) == (0.694, 2)
    assert found["drain_times"] == found["drain_times_low"] == 1.5
    ends = [found[f"token_times{end}"] for end in ("_low", "", "_high")]
    assert ends == pytest.approx([1.2, 1.35, 1.5])
    assert (found["busy_s"], found["reads_s"]) == (0.75, 2.0)
    table = measurements.lossless_codecs(record)
    assert table.loc["Gaussian", "streamed"].tolist() == [0.69, 4, 8]


def test_record_of_blocks_is_reported_for_each_model():
    stream = {
        "device_bytes": 2**31, "equal_logits": True,
        "bytes_per_step": {"bf16": 900, "blocks": 300},
        "resident_layers": {"bf16": 0, "blocks": 5},
        "seconds": {
            "bf16 drain": [[3.0], [3.0]], "blocks drain": [[1.0], [1.0]],
            "bf16 token": [[3.0], [3.6]], "blocks token": [[2.0], [3.0]],
            "bf16 compute": [[0.5], [0.5]], "blocks compute": [[0.75], [1.0]],
        },
    }  # fmt: skip
    record = MADE | {"layers": 8, "streams": {"SmolLM2": stream, "LLaMA-2-7B": stream}}
    found = measurements.blocks(record)
    assert found["layers"] == 8
    for name in ("smollm2", "llama"):
        assert found[f"{name}_disk_times"] == found[f"{name}_drain_times"] == 3
        ends = [found[f"{name}_token_times{end}"] for end in ("_low", "", "_high")]
        assert ends == pytest.approx([1.2, 1.35, 1.5])
        assert found[f"{name}_compute_times"] == 1.75
        assert (found[f"{name}_resident"], found[f"{name}_resident_dense"]) == (5, 0)


def test_few_bits_have_the_mean_and_the_spread_of_their_seeds():
    def system(method, bits, values, **more):
        return {"method": method, "bits": bits, "perplexities": values, **more}

    summary = {
        "gptq 3": system("GPTQ", 3.25, [40.0] * 3, other_perplexities=[50.0, 52.0]),
        "corrected 3.25": system(
            "corrected", 3.2, [29, 30, 31], ratio_to_gptq_3=[[0.75, 0.7, 0.9]] * 3
        ),
    }
    table = measurements.few_bits({"summary": summary})
    assert table.bits.is_monotonic_increasing
    row = table.loc["corrected 3.25"]
    assert (row.perplexity, row.low, row.high, row.ratio) == (30, 29, 31, 0.75)
    assert (row.seeds, row.ratio_low, row.ratio_high) == (3, 0.7, 0.9)
    assert np.isnan(row.other)
    assert np.isnan(table.loc["gptq 3"].ratio)
    assert table.other["gptq 3"] == 51


def spoken(domain, identical=True, **systems):
    """A prompt of 13 tokens: passes, acceptance and seconds of each system."""
    keys = ("passes", "acceptance", "seconds")
    named = {
        name.replace("_", " "): dict(zip(keys, values, strict=True))
        for name, values in ({"plain": (12, 0, 2.0)} | systems).items()
    }
    return {"domain": domain, "tokens": 13, "identical": identical, "systems": named}


def test_speculation_is_compared_with_plain_decoding_in_the_same_memory():
    prompts = [
        spoken("prose", lookup=(12, 0.1, 2.0)),
        spoken("prose", identical=False, lookup=(6, 0.3, 1.0)),
        spoken(
            "repeating",
            lookup=(3, 0.9, 0.5), draft=(4, 0.8, 1.0), plain_beside=(12, 0, 1.5),
        ),
    ]  # fmt: skip
    table = measurements.speculation({"prompts": prompts})
    assert list(table.index) == [
        "prose, lookup",
        "repeating, lookup",
        "repeating, draft",
    ]
    prose, lookup, draft = (row for _, row in table.iterrows())
    assert (prose.prompts, prose.identical) == (2, 1)
    assert prose.tokens_per_pass == pytest.approx((12 / 12 + 12 / 6) / 2)
    assert prose.times_faster == pytest.approx((1 + 2) / 2)
    assert prose.low <= prose.tokens_per_pass <= prose.high
    assert (lookup.tokens_per_pass, lookup.times_faster) == (4, 4)
    assert (draft.tokens_per_pass, draft.times_faster) == (3, 1.5)


def test_batch_is_relative_to_one_sequence():
    steps = {"drain": [1.0], "1": [2.0, 2.0], "8": [2.1], "64": [2.4, 9, 2]}
    (row,) = measurements.batches({"steps": {"tiny": steps}}).to_dict("records")
    assert row == pytest.approx({8: 1.05, 64: 1.2})


LATE_BINDING = {
    name for name, rule in RULES.items() if isinstance(rule.parameters, LateBound)
}


def test_every_rule_is_shipped_with_the_best_constants_of_scenario_a():
    record = measurements.read("rivals")
    found = measurements.rivals(record)
    assert set(found.index) == {*WATCHING, *LATE_BINDING, "bid-price"}
    assert (found["tried"] > 2).all()
    for name, points in groupby(record["points"], lambda point: point["policy"]):
        best = min(points, key=lambda point: point["score"])
        assert rule_parameters(name, best["constants"]) == RULES[name].parameters, name


def test_tuned_rules_have_fewest_violations_of_each_setting():
    record = measurements.read("rivals")
    tuned = measurements.tuned(record)
    by_setting = measurements.rivals_by_setting(record)
    width = len(record["settings"]["loads"]) * len(record["settings"]["estimates"])
    for at, setting in enumerate(record["settings"]["settings"]):
        assert set(tuned[setting]) == {*WATCHING, *LATE_BINDING}
        for name, points in groupby(record["points"], lambda point: point["policy"]):
            means = [
                (np.mean(p["percent"][width * at : width * (at + 1)]), p["constants"])
                for p in points
            ]
            least = min(mean for mean, _ in means)
            label = measurements.TUNED_BID_PRICE if name == "bid-price" else name
            assert by_setting.loc[label, setting] == pytest.approx(least)
            if name in tuned[setting]:
                assert (least, tuned[setting][name]) in means, (name, setting)
    assert by_setting["all"].is_monotonic_increasing


def test_bid_price_has_one_configuration_in_all_settings():
    record = measurements.read("rivals")
    row = measurements.rivals(record).loc[
        "bid-price", [*record["settings"]["settings"]]
    ]
    assert row.nunique() == 1
    by_setting = measurements.rivals_by_setting(record)
    each = by_setting.loc[measurements.TUNED_BID_PRICE]
    assert (by_setting.loc["bid-price"] >= each).all()
