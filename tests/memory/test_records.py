"""Records are told as they are, and a record that is missing is no error."""

import json

import numpy as np
import pytest

from thesis_lib.book.tables import measurements
from thesis_lib.common import files
from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.units import GiB, MiB

STREAMING = {
    "limit_bytes": 2 * GiB,
    "summary": {
        "tokens_identical": True,
        "systems": {
            "ours": {
                "killed": False,
                "peak_bytes": GiB,
                "median_s": 2.0,
                "fraction_of_drain": 0.961,
                "interval_s": [1.9, 2.1],
                "read_bytes_per_token": 7e9,
            },
            "airllm": {
                "killed": False,
                "peak_bytes": 2 * GiB,
                "median_s": 6.0,
                "interval_s": [5.5, 7.0],
                "read_bytes_per_token": 7e9,
                "ours_is_faster": {"times": 3.0, "low": 2.8, "high": 3.1},
                "drains_per_step": 3.12,
            },
            "mmap": {"killed": True, "peak_bytes": 2 * GiB},
        },
    },
    "runs": [
        {"system": "ours", "use": [[0.1, 10, 4], [0.2, 20, 8]]},
        {"system": "airllm", "use": [[0.1, 30, 30]]},
        {"system": "ours", "use": [[0.3, 99, 99]]},
    ],
}
HEADLINE = {
    "parts": {
        "bf16-8192MiB": {
            "weights": "bf16",
            "distinct_layers": 8,
            "limit_bytes": 8 * GiB,
            "label": "random weights",
            "peak_bytes": 5 * GiB,
            "logical_peak_bytes": 4.5 * GiB,
            "planned_peak_bytes": 4.6 * GiB,
            "read_bytes_per_token": None,
            "planned_bytes_per_token": 1.3e11,
            "s_per_token": 65.0,
            "predicted_s_per_token": 64.0,
            "fraction_of_drain": 0.97,
        }
    }
}
GPU = {
    "device": "cuda",
    "geometry": "llama-65b",
    "commit": "0123456789",
    "machine": {"cpu": "a processor", "cores": 2, "gpus": [{"name": "a card"}]},
    "parts": {
        "whole": {
            "limit_bytes": 8 * GiB,
            "s_per_token": 5.2,
            "fraction_of_link": 0.98,
            "predicted_s_per_token": 5.1,
            "reserved_bytes": 7.5 * GiB,
        }
    },
}


def test_peers_have_their_times_and_the_killed_one_its_peak_alone():
    table = measurements.peers(STREAMING)
    assert list(table.index) == ["ours", "AirLLM", "mmap"]
    assert table.loc["AirLLM", "times_slower"] == 3.0
    assert table.loc["AirLLM", ["s_per_token", "low_s", "high_s"]].tolist() == [
        6.0,
        5.5,
        7.0,
    ]
    assert np.isnan(table.loc["mmap", "s_per_token"])
    assert table.loc["mmap", "peak_bytes"] == 2 * GiB


def test_use_is_that_of_the_first_run_of_each_system():
    found = measurements.use(STREAMING)
    assert found["ours"].tolist() == [[0.1, 10, 4], [0.2, 20, 8]]
    assert list(found) == ["ours", "AirLLM"]


def test_the_headline_has_promise_and_count_side_by_side():
    (row,) = measurements.headline(HEADLINE).to_dict("records")
    assert row["planned_bytes"] >= row["logical_bytes"]
    assert row["s_per_token"] == 65.0
    assert np.isnan(row["read_bytes"])  # not known is not zero
    (name,) = measurements.headline(HEADLINE).index
    assert name == "bf16, 8 distinct layers, 8 GiB"


def test_readers_see_units_and_what_is_not_known():
    shown = measurements.readable(measurements.headline(HEADLINE))
    (row,) = shown.to_dict("records")
    assert row["peak"] == "5 GiB"
    assert row["read"] == measurements.MISSING
    assert row["time a token"] == "65 s"
    assert row["fraction of drain"] == "97.0 %"
    assert measurements.readable(measurements.peers(STREAMING)).loc[
        "mmap", "time a token"
    ] == (measurements.MISSING)


def test_a_record_that_nobody_made_gives_empty_tables_and_says_so(tmp_path):
    assert files.read_record("headline", tmp_path) is None
    assert measurements.peers(None).empty
    assert measurements.headline(None).empty
    assert measurements.readable(measurements.headline(None)).empty
    assert measurements.use(None) == {}
    assert "Nobody has run it on a GPU" in measurements.gpu_sentence(None)
    assert measurements.origin(None) == measurements.MISSING


def test_sentences_tell_what_was_found_and_never_what_nobody_measured():
    said = measurements.peers_sentence(STREAMING)
    assert said.startswith("Ours takes 2 s a token, 96.1 % of what the drain allows.")
    assert "AirLLM 3.00 times as long (2.80 to 3.10), mmap was killed at" in said
    assert said.endswith("All wrote the same tokens.")
    said = measurements.headline_sentence(HEADLINE, "bf16")
    assert "8 GiB a token takes 65 s, at 97.0 % of the drain; the kernel" in said
    assert said.endswith("at most 5 GiB (random weights).")
    for none in (
        measurements.headline_sentence(HEADLINE, "nf4"),
        measurements.headline_sentence(None, "bf16"),
        measurements.peers_sentence(None),
    ):
        assert none.endswith("recorded yet.")


def test_other_tokens_and_packed_weights_are_told():
    packed = {
        "killed": False,
        "peak_bytes": GiB,
        "median_s": 0.5,
        "is_faster_than_accelerate": {"times": 6.5, "low": 6.0, "high": 7.0},
    }
    summary = STREAMING["summary"]
    other = STREAMING | {
        "summary": {
            "systems": summary["systems"] | {"ours-nf4": packed},
            "tokens_identical": False,
        }
    }
    said = measurements.peers_sentence(other)
    assert "All wrote NOT the same tokens." in said
    assert "bound every such factor: AirLLM 3.12." in said
    assert said.endswith(
        "500 ms a token and is 6.50 times as fast as accelerate in 16 bits "
        "(6.00 to 7.00)."
    )
    mapped = {**summary["systems"]["airllm"], "median_s": 4.2}
    systems = {**other["summary"]["systems"], "mmap": mapped}
    said = measurements.peers_sentence(
        {"summary": {**other["summary"], "systems": systems}}
    )
    assert said.endswith("(6.00 to 7.00) and 8.40 times as fast as mmap.")


def test_the_larger_limit_is_the_one_that_prose_tells():
    (part,) = HEADLINE["parts"].values()
    read = part | {"read_bytes_per_token": 1.3e11}
    smaller = part | {"limit_bytes": 4 * GiB, "s_per_token": 70.0}
    both = {"parts": {"a": smaller, "b": read, "c": smaller}}
    said = measurements.headline_sentence(both, "bf16")
    assert "takes 65 s" in said
    assert "130.0 GB were read for each" in said


def test_a_run_of_the_script_on_a_processor_is_no_run_on_a_gpu():
    assert measurements.gpu_sentence(
        GPU | {"device": "cpu"}
    ) == measurements.gpu_sentence(None)


def test_a_gpu_is_told_with_its_limit_and_its_link():
    said = measurements.gpu_sentence(GPU)
    assert said.startswith("On one a card, within 8 GiB of its memory")
    assert "5.2 s, 98.0 % of the rate" in said
    left_out = GPU | {
        "parts": {"whole": {"skipped": "about 9 min where 2 min were left"}}
    }
    assert "no result: about 9 min" in measurements.gpu_sentence(left_out)
    assert measurements.origin(GPU) == "a processor, 2 cores, commit 0123456"


@pytest.mark.parametrize("text", ["{", "[]"])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "gpu.json").write_text(text)
    with pytest.raises(InvalidInput, match="is no record"):
        files.read_record("gpu", tmp_path)


def test_a_record_is_read_back(tmp_path):
    (tmp_path / "gpu.json").write_text(json.dumps({"limit": MiB}))
    assert files.read_record("gpu", tmp_path) == {"limit": MiB}


def test_a_certificate_counts_what_exceeded_and_what_was_killed():
    row = {"device_bytes": 1000, "planned_bytes": 900, "generating": False}
    group = {"killed": False, "limit_bytes": 400}
    record = {
        "logical": [
            *(row | {"metered_bytes": m} for m in (900, 890, 910)),
            row | {"metered_bytes": 880, "generating": True},
        ],
        "physical": [
            group | {"peak_bytes": 360}, group | {"peak_bytes": 400}, {"killed": True},
        ],
    }  # fmt: skip
    words = measurements.certificate_words(record)
    assert (words["plans"], words["steps"], words["generated"]) == ("4", "3", "1")
    assert (words["steps_exceeded"], words["generated_exceeded"]) == ("1", "0")
    assert (words["steps_over_median"], words["steps_over_most"]) == ("0.00", "1.00")
    assert words["generated_over_most"] == "2.00"
    assert (words["groups"], words["killed"]) == ("3", "1")
    assert (words["left_least"], words["left_most"]) == ("0.00", "10.00")
    assert set(measurements.certificate_words(None).values()) == {measurements.MISSING}


def test_predictions_are_held_against_the_median():
    plan = {"batch": 2, "pass_tokens": 1, "limit": "disk"}
    record = {
        "prediction": {
            "plans": [
                plan | {"predicted_s": 1.1, "seconds": [1.0, 1.0, 9.0]},
                plan | {"predicted_s": 2.0, "seconds": [2.0]},
            ]
        },
        "crossover": {"predicted_tokens": 110.0, "measured_tokens": 100.0},
    }
    table = measurements.predictions(record)
    assert table["error"].tolist() == pytest.approx([0.1, 0.0])
    words = measurements.prediction_words(record)
    assert (words["plans"], words["error_median"]) == ("2", "5.00")
    assert (words["crossover"], words["crossover_error"]) == ("110", "10")
    assert set(measurements.prediction_words(None).values()) == {measurements.MISSING}
    made = record | {"machine": {"cpu": "a processor", "cores": 2}, "commit": "0" * 40}
    said = measurements.prediction_sentence(made)
    assert "5.00 % in the median" in said
    assert "predicted at 110 tokens and found at 100" in said
    assert measurements.prediction_sentence(None) == "It has not been recorded yet."


def test_the_lossless_record_is_told_in_ratios_of_medians():
    stream = {
        "geometry": "llama2-7b",
        "layers": 8,
        "device_bytes": 2**31,
        "bytes_per_step": {"bf16": 1000, "lossless": 694},
        "decode_bytes_per_s": 5.25e9,
        "decoded_bytes_per_step": 2_625_000_000,
        "equal_logits": True,
        "seconds": {
            "bf16 drain": [[2.9, 3.0, 9.0], [3.0, 3.0, 3.0]],
            "lossless drain": [[2.0, 2.0, 2.0], [2.0, 2.0, 9.0]],
            "bf16 token": [[3.0], [3.6]],
            "lossless token": [[2.0], [3.0]],
            "lossless compute": [[0.25], [0.25]],
        },
    }
    codecs = [
        {"weights": "Gaussian", "codec": "ours", "threads": n, "ratio": 0.69,
         "bytes": 10**9, "seconds": [0.5 / n, 0.25 / n, 0.1 / n]}
        for n in (1, 2)
    ]  # fmt: skip
    machine = {"cpu": "a processor", "cores": 2}
    record = {
        "stream": stream, "codecs": codecs, "machine": machine, "commit": "0123456789",
    }  # fmt: skip
    said = measurements.lossless_sentence(record)
    for words in ("0.694 of the bytes", "could be 1.44 times", "2 GiB",
                  "1.50 (1.50 to 1.50) times", "1.32 (1.20 to 1.50) times, with the",
                  "5.2 GB/s", "cores 0.75 s a token, and the reads 2.00 s",
                  "a processor, 2 cores, commit 0123456"):  # fmt: skip
        assert words in said, (words, said)
    stream["equal_logits"] = False
    assert "NOT the same logits" in measurements.lossless_sentence(record)
    (row,) = measurements.lossless_codecs(record).to_dict("records")
    assert (row["one thread"], row["two threads"], row["ratio"]) == (4, 8, 0.69)
    assert measurements.MISSING in measurements.lossless_sentence(None)
    assert measurements.lossless_codecs(None).empty


def few(seeds=3, ours=30.0, high=0.9):
    def system(method, bits, values, ratio=None):
        found = {"method": method, "bits": bits, "perplexities": values}
        return found | ({"ratio_to_gptq_3": ratio} if ratio else {})

    return {
        "summary": {
            "gptq 3": system("GPTQ", 3.25, [40.0] * seeds),
            "mixed gptq 3.25": system(
                "GPTQ, mixed", 3.24, [36.0] * seeds, [[0.9, 0.8, 1.0]] * seeds
            ),
            "corrected 3.25": system(
                "corrected",
                3.2,
                [ours - 1, ours, ours + 1][:seeds],
                [[ours / 40, 0.7, high]] * seeds,
            ),
        }
    }


def test_few_bits_have_the_mean_and_the_spread_of_their_seeds():
    table = measurements.few_bits(few())
    assert table.bits.is_monotonic_increasing
    row = table.loc["corrected 3.25"]
    assert (row.perplexity, row.low, row.high, row.ratio) == (30, 29, 31, 0.75)
    assert np.isnan(table.loc["gptq 3"].ratio)
    assert measurements.few_bits(None).empty


def test_few_bits_are_told_with_their_verdict():
    said = measurements.few_bits_sentence(few())
    assert "40.00 (40.00 to 40.00) at 3.250 bits" in said
    assert "0.750 times that of three bits, between 0.700 and 0.900" in said
    assert "3 calibration sets" in said
    assert "the correction beats calibrated" in said
    assert "does not beat" in measurements.few_bits_sentence(few(high=1.01))
    assert "one calibration set" in measurements.few_bits_sentence(few(seeds=1))
    assert "not been recorded" in measurements.few_bits_sentence(None)
    assert "not been recorded" in measurements.few_bits_sentence({"summary": {}})
    assert "Jargon" not in said
    record = few()
    for found, value in zip(
        record["summary"].values(), (50.0, 48.0, 45.0), strict=True
    ):
        found["other_perplexities"] = [value, value]
    said = measurements.few_bits_sentence(record)
    assert "The Jargon File, a text of another domain, these factors are 0.900" in said


def spoken(domain, lookup, plain, identical=True, **others):
    systems = {"plain": plain, "lookup": lookup, **others}
    keys = ("passes", "acceptance", "seconds")
    return {
        "domain": domain,
        "tokens": 13,
        "identical": identical,
        "systems": {
            name: dict(zip(keys, values, strict=True))
            for name, values in systems.items()
        },
    }


SPECULATE = {
    "commit": "0123456789",
    "machine": {"cpu": "a processor", "cores": 2},
    "loops": {"prose": 2, "repeating": 1},
    "steps": {"tiny": {"drain": [1.0], "1": [2.0, 2.0], "8": [2.1], "64": [2.4, 9, 2]}},
    "prompts": [
        spoken("prose", (12, 0.1, 2.0), (12, 0, 2.0)),
        spoken("prose", (6, 0.3, 1.0), (12, 0, 2.0), identical=False),
        spoken(
            "repeating",
            (3, 0.9, 0.5),
            (12, 0, 2.0),
            **{"draft": (4, 0.8, 1.0), "plain beside": (12, 0, 1.5)},
        ),
    ],
}


def test_speculation_is_told_against_plain_decoding_in_the_same_memory():
    table = measurements.speculation(SPECULATE)
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
    sentence = measurements.speculation_sentence(SPECULATE)
    assert "in 2 of 3 continuations" in sentence
    assert "3 continuations that ran into a loop" in sentence
    assert "1.20 times as long with 64" in measurements.batch_sentence(SPECULATE)


def test_speculation_that_nobody_measured_is_said_so():
    assert measurements.speculation(None).empty
    assert "not been measured" in measurements.speculation_sentence(None)
    assert "not been measured" in measurements.batch_sentence(None)
