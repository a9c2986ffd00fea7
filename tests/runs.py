"""Made-up claims, and records of chapters that never ran."""

from thesis_book.execute.claims import Basis, Claim
from thesis_book.execute.records import Record

CLAIMS_TEXT = """\
bases:
  exact: {n: 1, of: "", limiter: nothing, evidence: ""}
  seeds: {n: seeds, of: seeds, limiter: algorithm, evidence: sec-shown}
claims:
  wins:
    chapter: 4
    says: Wins of <bid-price>
    unit: "%"
    kind: exact
    rests_on: seeds
    published: {value: 36, source: thesis}
  setting: {chapter: 4, says: Setting, unit: "", kind: exact, rests_on: exact}
  ppl:
    chapter: 6
    says: Perplexity
    unit: ""
    kind: tolerance
    rests_on: seeds
    rtol: 0.02
    why: kernels round
  token_s:
    chapter: 6
    says: Time of a token
    unit: s
    kind: time
    rests_on: seeds
    follows: drain
    factor: 1.5
"""
NUMBERS = {
    "04_evaluation": {
        "wins": 95.9, "wins_low": 95.3, "wins_high": 96.5, "setting": "A",
    },
    "06_evaluation": {
        "ppl": 20.0, "ppl_low": 19.0, "ppl_high": 21.5,
        "token_s": 0.4, "token_s_low": 0.3, "token_s_high": 0.5,
    },
}  # fmt: skip

# One claim of chapter 4 with all that the audit asks for.
SEEDS = Basis(n="seeds", of="seeds", limiter="noise", evidence="sec-shown")
EXACT = Basis(n=1, of="", limiter="nothing", evidence="")
CLAIM = Claim("the_share", 4, "A share <of> it", "%", "exact", "seeds")
WHOLE = {
    "the_share": 5.0, "the_share_low": 4.0, "the_share_high": 6.0, "the_share_n": 20,
    "the_share_interval": "Student",
}  # fmt: skip


def record(chapter, profile="smoke", rate=1e9, **numbers):
    return Record(
        chapter=chapter, profile=profile, parameters={"seeds": 6, "profile": profile},
        seeds={"seeds": 6}, key="k", notebook_sha256="n", commit="c0ffee", clean=True,
        lock_sha256="l" * 64,
        machine={
            "cpu": "A & B", "cores": 2, "memory_bytes": 2**33, "system": "Linux",
            "python": "3.12", "torch": "2.13", "gpus": [], "drain_how": "direct",
            "drain_bytes_per_s": rate, "matmul_flops_per_s": 5e10,
        },
        versions={"numpy": "2"}, precision="float64", started="2026-01-01T00:00:00",
        seconds=10.0, peak_memory_bytes=2**28,
        load_average={"start": 0.1, "mean": 0.5, "most": 0.9},
        numbers=NUMBERS.get(chapter, {}) | numbers,
    )  # fmt: skip
