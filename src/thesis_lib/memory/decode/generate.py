"""Text from a streamed model, as `thesis generate` prints it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from thesis_lib.common.errors import require
from thesis_lib.memory.model.pretrained import decode, encode, read_tokenizer
from thesis_lib.memory.model.spec import Machine, ModelSpec
from thesis_lib.memory.offload.architectures import read_config
from thesis_lib.memory.offload.measure import DeviceBudget, seconds_of
from thesis_lib.memory.offload.offloaded_model import (
    StreamedModel,
    checkpoint_folder,
    enforced,
    plan_checkpoint,
)
from thesis_lib.memory.offload.plan import ASSUMED_DISK_BYTES_PER_S
from thesis_lib.memory.offload.transfer import find_device


class _Clock(BaseStreamer):
    """The moments at which transformers' generate had chosen a token."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def put(self, value: Tensor) -> None:
        """Called with the prompt, then after each token."""
        self.moments.append(time.perf_counter())

    def end(self) -> None:
        """Called once, at the end."""


def read_prompt(
    checkpoint: str, prompt: str, max_new_tokens: int, device: str
) -> tuple[Path, Any, Tensor]:
    """Folder and tokenizer of a checkpoint, and the tokens (1, t) of a prompt for it.

    Raises InvalidInput for what cannot be read, and without anything to write.
    """
    require(max_new_tokens > 0, f"max_new_tokens={max_new_tokens} must be positive")
    folder = checkpoint_folder(checkpoint)
    spec, place = ModelSpec.from_config(folder), find_device(device)
    read_config(folder)  # or the tokenizer, which reads it too, would be blamed
    tokenizer = read_tokenizer(folder)
    tokens = torch.tensor([encode(tokenizer, prompt, spec.vocab)], device=place)
    require(tokens.numel() > 0, "the prompt is empty: give at least one word")
    return folder, tokenizer, tokens


def describe_bytes(
    budget: DeviceBudget, models: Sequence[StreamedModel]
) -> dict[str, Any]:
    """What models held and read so far, the one that writes first, for the command."""
    return {
        "device_bytes": budget.limit_bytes,
        "device_peak_bytes": budget.peak_bytes,
        "planned_peak_bytes": sum(each.plan.device_peak_bytes for each in models),
        "model_bytes": models[0].spec.total_bytes,
        "bytes_read": models[0].bytes_read,
    }


def generate_text(
    checkpoint: str,
    device_bytes: int,
    prompt: str,
    max_new_tokens: int = 32,
    ring: int = 3,
    host_bytes: int = 0,
    device: str = "cpu",
    verify: bool = False,
) -> dict[str, Any]:
    """Greedy continuation of `prompt` by a streamed model, as the command prints it.

    The meter enforces `device_bytes` throughout. Stops at the end-of-text token. The
    fraction of the link is the time of the same reads without computing over the time
    of a decoding step.

    >>> from thesis_lib.memory import generate_text
    >>> said = generate_text("smollm2", 96 * 2**20, "The capital of France is", 4)
    >>> said["text"].strip(), said["device_peak_bytes"] <= 96 * 2**20
    ('Paris.', True)
    """
    folder, tokenizer, tokens = read_prompt(checkpoint, prompt, max_new_tokens, device)
    machine = Machine(device_bytes, ASSUMED_DISK_BYTES_PER_S, host_bytes=host_bytes)
    made = plan_checkpoint(
        folder,
        machine,
        context=tokens.shape[1] + max_new_tokens,
        ring=ring,
        pass_tokens=tokens.shape[1],
        logit_tokens=1,
        generating=True,
    )
    clock = _Clock()
    with (
        StreamedModel(folder, made, device, verify) as model,
        enforced(device_bytes, device) as budget,
    ):
        model.charge(budget)
        written = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=clock,
        )[0, tokens.shape[1] :]
        spent = describe_bytes(budget, [model])
        drained = [seconds_of(model.drain) for _ in range(3)]
    seconds = np.diff(clock.moments)
    decoding_s = float(np.median(seconds[1:] if len(seconds) > 1 else seconds))
    return {
        "text": decode(tokenizer, written.tolist()),
        "tokens": len(written),
        "s_per_token": decoding_s,
        "first_token_s": float(seconds[0]),
        **spent,
        "fraction_of_link": float(np.median(drained)) / decoding_s,
    }
