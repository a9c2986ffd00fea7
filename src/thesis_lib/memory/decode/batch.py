"""Many prompts a pass: the weights that are read once serve a block of sequences."""

from collections.abc import Sequence
from pathlib import Path

import torch

from thesis_lib.common.errors import require
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.offloaded_model import StreamedModel, plan_checkpoint
from thesis_lib.memory.offload.plan import MemoryPlan, PlanInfeasible

_PAD = 0  # a token that the mask hides


def plan_batches(
    folder: Path | str,
    machine: Machine,
    lengths: Sequence[int],
    max_new_tokens: int,
    pass_tokens: int = 16,
) -> MemoryPlan:
    """The plan of a checkpoint for prompts of these `lengths`, in the largest blocks.

    As many sequences at once as the device has memory for, their padding and their
    keys and values counted; layers stay resident only where all prompts fit at once.
    Prompts go in passes of `pass_tokens`. Raises PlanInfeasible where not even one
    sequence fits, and InvalidInput without a prompt or with an empty one.
    """
    require(
        len(lengths) > 0 and min(lengths) > 0 and max_new_tokens > 0,
        f"{len(lengths)} prompts, the shortest of {min(lengths, default=0)} tokens, "
        f"and max_new_tokens={max_new_tokens}: expected one or more of each",
    )

    def made(batch: int) -> MemoryPlan:
        return plan_checkpoint(
            folder,
            machine,
            batch=batch,
            context=max(lengths) + max_new_tokens,
            pass_tokens=min(pass_tokens, max(lengths)),
            logit_tokens=1,
            generating=True,
            padded=True,
        )

    best, beyond = made(1), len(lengths) + 1
    while beyond - best.batch > 1:
        # The largest first: often all prompts fit at once.
        batch = len(lengths) if beyond > len(lengths) else (best.batch + beyond) // 2
        try:
            best = made(batch)
        except PlanInfeasible:
            beyond = batch
    return best


def generate_batches(
    model: StreamedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[list[int]]:
    """Greedy continuations of `prompts`, token ids, in blocks of the plan's batch.

    In the order of the prompts, each with `max_new_tokens` tokens or up to the one that
    ends its text, that one included. A block holds prompts of similar length, padded on
    the left; its tokens are those that transformers gives for the
    same padded block. Raises InvalidInput for an empty prompt, and for a block that the
    plan does not cover.
    """
    require(
        len(prompts) > 0 and all(len(prompt) > 0 for prompt in prompts),
        "expected one prompt or more, and a token at least in each",
    )
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    written: dict[int, list[int]] = {}
    for first in range(0, len(order), model.plan.batch):
        block = order[first : first + model.plan.batch]
        tokens, mask = pad_left([prompts[i] for i in block], _PAD)
        rows = model.generate(
            tokens.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=_PAD,
        )[:, tokens.shape[1] :]
        for i, row in zip(block, rows.tolist(), strict=True):
            written[i] = _ended(row, model.model.generation_config.eos_token_id)
    return [written[i] for i in range(len(prompts))]


def pad_left(
    prompts: Sequence[Sequence[int]], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask, (b, t) each, of prompts that end together."""
    longest = max(map(len, prompts))
    tokens = torch.full((len(prompts), longest), pad)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for i, prompt in enumerate(prompts):
        tokens[i, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[i, longest - len(prompt) :] = 1
    return tokens, mask


def _ended(row: list[int], stop: int | list[int] | None) -> list[int]:
    """The tokens up to the first that stops, without the padding behind it."""
    stops = {stop} if isinstance(stop, int) else set(stop or ())
    ends = [i + 1 for i, token in enumerate(row) if token in stops]
    return row[: min(ends, default=len(row))]
