"""What is rehearsed without memory is what the meter sees, to the byte."""

import random

import pytest
import tiny
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.convert import convert
from thesis_lib.memory.formats.base import find_format
from thesis_lib.memory.model.shape import Shape
from thesis_lib.memory.model.spec import ARCHITECTURES, geometry
from thesis_lib.memory.offload.architectures import configure, read_config
from thesis_lib.memory.offload.peak_memory import dry_run


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_planned_peak_is_the_metered_one(tmp_path, architecture):
    draw = random.Random(architecture)
    tiny.write(
        tmp_path,
        architecture,
        dtype=draw.choice([torch.bfloat16, torch.float32]),
        vocab_size=draw.choice([211, 3000]),
        tie_word_embeddings=draw.random() < 0.5,
    )
    for _ in range(6):
        context = draw.choice([8, 24, 60])
        new = draw.choice([1, context, context // 2])
        made = tiny.plan_tight(
            tmp_path,
            draw.choice([0, 1, 2]),
            draw.choice([1, 2]),
            batch=draw.choice([1, 3]),
            context=context,
            pass_tokens=new,
            logit_tokens=draw.choice([1, new]),
        )
        peak = tiny.metered(tmp_path, made)
        assert peak <= made.device_peak_bytes
        # The rest: the caller's tokens, and the ends of buffers in whole blocks.
        slack = made.device_peak_bytes - peak - tiny.ROW * made.batch * new
        assert slack <= 4096 * (1 + made.resident_layers)


CHOICES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 50, "temperature": 0.8},
    "top-p": {"do_sample": True, "top_p": 0.9},
    "beams": {"do_sample": False, "num_beams": 2},
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "opt"])
def test_generate_keeps_its_plan_with_many_words_pads_and_passes(
    tmp_path, architecture, choice
):
    tiny.write(tmp_path, architecture, vocab_size=3000)
    draw = random.Random(f"{architecture}, {choice}")
    for prompt, new in ((4, 4), (12, 4), (9, 9)):
        rows = draw.choice([1, 3])
        beams = CHOICES[choice].get("num_beams", 1)
        shape = {"batch": rows * beams, "context": 24, "pass_tokens": new}
        resident = draw.choice([0, 1])
        mask = torch.ones((rows, prompt), dtype=torch.long)
        mask[0, : draw.choice([0, 2])] = 0
        with tiny.metering(
            tmp_path, resident, logit_tokens=1, generating=True, **shape
        ) as (twin, _):
            twin.generate(
                tiny.tokens(0, rows, prompt, 3000),
                attention_mask=mask,
                max_new_tokens=24 - prompt,
                pad_token_id=0,
                eos_token_id=None,
                **CHOICES[choice],
            )


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_packed_weights_are_rehearsed_as_they_run(tmp_path, kind):
    wide = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 16}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    tiny.write(tmp_path / "dense", **wide, **heads)
    weights = find_format(kind)
    convert(tmp_path / "dense", tmp_path / kind, weights)
    fast = weights.layout == "avx512"  # whose kernel takes nothing beside
    for new in (1, 9):
        options = {"batch": 2, "context": 24, "pass_tokens": new}
        made = tiny.plan_tight(tmp_path / kind, 1, 2, **options)
        promised = made.device_peak_bytes - made.scratch_bytes
        assert (made.scratch_bytes > 0) == (kind == "int8" or not fast)
        slack = promised - tiny.metered(tmp_path / kind, made)
        assert 0 <= slack <= tiny.ROW * 2 * new + 2 * 4096


def test_a_rehearsal_of_65_billion_parameters_needs_no_memory():
    config = configure(geometry("llama-65b"))
    needs = dry_run(config, Shape(1, 512, 1, 1))
    assert needs.kv_bytes == geometry("llama-65b").kv_bytes(1, 512)
    assert needs.layer_bytes == geometry("llama-65b").layer_bytes
    # A token's intermediate results are small beside a copy of one layer's keys.
    assert 512 * 8192 * 2 <= needs.activation_bytes < 4 * 512 * 8192 * 2


def test_more_of_anything_needs_more(tmp_path):
    tiny.write(tmp_path)
    config = read_config(tmp_path)
    base = dry_run(config, Shape(2, 24, 4, 2))
    for shape in (Shape(3, 24, 4, 2), Shape(2, 48, 4, 2), Shape(2, 24, 8, 2)):
        more = dry_run(config, shape)
        assert more.kv_bytes + more.activation_bytes > (
            base.kv_bytes + base.activation_bytes
        )
    chosen = dry_run(config, Shape(2, 24, 4, 2, generating=True))
    assert chosen.activation_bytes >= base.activation_bytes


@pytest.mark.parametrize(
    "shape",
    [(0, 8, 1, 1), (1, 8, 9, 1), (1, 8, 4, 5), (1, 8, 0, 0), (2, 8, 1, 1, False, 1)],
)
def test_shapes_that_are_no_step_are_rejected(shape):
    with pytest.raises(InvalidInput):
        Shape(*shape)
