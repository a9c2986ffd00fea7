"""Text from a streamed model, as `thesis generate` prints it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer
from transformers.generation.streamers import BaseStreamer

from thesis_lib.common.errors import require, require_count
from thesis_lib.common.provenance import seconds_of
from thesis_lib.memory.model.pretrained import (
    decode,
    encode,
    encode_message,
    encode_messages,
    read_tokenizer,
)
from thesis_lib.memory.model.spec import ModelSpec
from thesis_lib.memory.offload.architectures import read_config
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.offloaded_model import (
    StreamedModel,
    checkpoint_folder,
    enforced,
    open_streamed,
)
from thesis_lib.memory.offload.transfer import find_device

LEAST_HEAT = 1e-6  # below it logits over the temperature leave the numbers there are


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of text generation.

    Without a `temperature` by the likeliest token; with one, tokens are drawn, by
    `seed`, from the likeliest that together have the probability `top_p`. A text ends
    before any of the words `stop`. With `chat` the prompt is the message of a user, in
    the template of the model. Raises InvalidInput for values that mean nothing.
    """

    temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    chat: bool = False

    def __post_init__(self) -> None:
        heat = self.temperature
        require(
            heat is None or LEAST_HEAT <= heat < math.inf,
            f"temperature must be a finite number from {LEAST_HEAT:g}, got {heat}; "
            "leave it out for the likeliest text",
        )
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must lie in (0, 1]")
        require(
            self.top_p == 1 or heat is not None,
            f"top_p={self.top_p} is of draws: give a temperature as well",
        )
        require(0 <= self.seed < 2**63, f"seed={self.seed} must lie in 0 to 2^63 - 1")
        require("" not in self.stop, "a stop word is empty: give at least one letter")

    def options(self) -> dict[str, Any]:
        """The options of transformers' generate."""
        if self.temperature is None:
            return {"do_sample": False}
        heat = float(self.temperature)
        return {
            "do_sample": True, "temperature": heat, "top_p": self.top_p, "top_k": 0,
        }  # fmt: skip

    def end(self, text: str) -> int:
        """Return the end of a text: before the first stop sequence, or its length."""
        ends = [text.find(word) for word in self.stop]
        return min([at for at in ends if at >= 0], default=len(text))

    def ended(self, text: str) -> str:
        """The text up to its end."""
        return text[: self.end(text)]


GREEDY = Sampling()


class _Stops(StoppingCriteria):
    """Ends each sequence once its text has a stop word."""

    def __init__(self, tokenizer: Any, prompt_tokens: int, writing: Sampling) -> None:
        self._tokenizer, self._from, self._writing = tokenizer, prompt_tokens, writing

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        texts = [decode(self._tokenizer, row) for row in input_ids[:, self._from :]]
        ended = [self._writing.end(text) < len(text) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


class TextSink(TextStreamer):
    """Hands text over as soon as no later token changes it, up to a stop word."""

    def __init__(self, tokenizer: Any, writing: Sampling, tell: Callable) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._writing, self._tell, self._held, self._told = writing, tell, "", 0

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with what is new; keeps back what may be the start of a stop word."""
        self._held += text
        longest = max(map(len, self._writing.stop), default=1)
        end = self._writing.end(self._held)
        if end == len(self._held) and not stream_end:
            end -= longest - 1
        if end > self._told:
            self._tell(self._held[self._told : end])
            self._told = end


class _Clock(BaseStreamer):
    """The moments at which transformers' generate had chosen a token."""

    def __init__(self, sink: TextSink | None = None) -> None:
        self.moments: list[float] = []
        self._told = sink

    def put(self, value: Tensor) -> None:
        """Called with the prompt, then after each token."""
        self.moments.append(time.perf_counter())
        if self._told is not None:
            self._told.put(value)

    def end(self) -> None:
        """Called once, at the end."""
        if self._told is not None:
            self._told.end()

    def seconds(self) -> tuple[float, float]:
        """Return the time of the first token, and the median of the others, if any."""
        first, *others = np.diff(self.moments)
        return float(first), float(np.median(others or first))


def read_prompts(
    checkpoint: str,
    prompts: Sequence[str],
    max_new_tokens: int,
    device: str,
    chat: bool = False,
) -> tuple[Path, Any, Tensor, Tensor]:
    """Folder and tokenizer of a checkpoint, and prompts for it: tokens, mask, (b, t).

    Shorter ones are padded before their first token, where the mask is 0. Raises
    InvalidInput for what cannot be read, and without anything to write.
    """
    require(max_new_tokens > 0, f"max_new_tokens={max_new_tokens} must be positive")
    require(len(prompts) > 0, "there is no prompt: give one at least")
    folder = checkpoint_folder(checkpoint)
    spec, place = ModelSpec.from_config(folder), find_device(device)
    read_config(folder)  # or the tokenizer, which reads it too, would be blamed
    tokenizer = read_tokenizer(folder)
    read = encode_message if chat else encode
    rows = [read(tokenizer, prompt, spec.vocab) for prompt in prompts]
    for number, row in enumerate(rows, 1):
        which = f"prompt {number} of {len(rows)}" if len(rows) > 1 else "the prompt"
        require(len(row) > 0, f"{which} is empty: give at least one word")
    longest = max(map(len, rows))
    tokens = torch.zeros((len(rows), longest), dtype=torch.long, device=place)
    mask = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        tokens[number, longest - len(row) :] = torch.tensor(row)
        mask[number, longest - len(row) :] = 1
    return folder, tokenizer, tokens, mask


def write(
    model: StreamedModel,
    tokenizer: Any,
    tokens: Tensor,
    max_new_tokens: int,
    writing: Sampling,
    streamer: BaseStreamer | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Tokens (b, n), at most `max_new_tokens`, with which `tokens` (b, t) go on.

    The `mask` (b, t) is 0 where a shorter prompt was padded. Raises InvalidInput as
    `StreamedModel.generate`, and for a `streamer` where the checkpoint asks for beams.
    """
    beams = model.model.generation_config.num_beams or 1
    require(
        streamer is None or beams == 1,
        f"generation_config.json of {model.folder} sets num_beams={beams}: a text that "
        "is told as it comes has no beams; remove the setting",
    )
    start = tokens.shape[1]
    ends = [_Stops(tokenizer, start, writing)] if writing.stop else []
    torch.manual_seed(writing.seed)
    return model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens) if mask is None else mask,
        max_new_tokens=max_new_tokens,
        streamer=streamer,
        stopping_criteria=StoppingCriteriaList(ends),
        **writing.options(),
    )[:, start:]


class Conversation:
    """Messages to and from a streamed `model`, which has room for one sequence.

    Every answer is of `max_new_tokens` at most. Raises InvalidInput where the model has
    no template for messages.
    """

    def __init__(
        self,
        model: StreamedModel,
        tokenizer: Any,
        max_new_tokens: int,
        writing: Sampling = GREEDY,
    ) -> None:
        require_count("max_new_tokens", max_new_tokens)
        self.model, self.tokenizer, self.writing = model, tokenizer, writing
        self.max_new_tokens = max_new_tokens
        self.messages: list[dict[str, str]] = []

    def say(self, text: str, tell: Callable[[str], None]) -> str:
        """The answer to a message, which `tell` hears as it comes.

        What fails or is interrupted was not said. Raises InvalidInput where the whole
        conversation and its answer are longer than the context.
        """
        turns = [*self.messages, {"role": "user", "content": text}]
        row = encode_messages(self.tokenizer, turns, self.model.spec.vocab)
        tokens = torch.tensor([row], device=self.model.device)
        sink = TextSink(self.tokenizer, self.writing, tell)
        written = write(
            self.model, self.tokenizer, tokens, self.max_new_tokens, self.writing, sink
        )
        answer = self.writing.ended(decode(self.tokenizer, written[0].tolist()))
        self.messages = [*turns, {"role": "assistant", "content": answer}]
        return answer


def describe_bytes(
    budget: DeviceBudget, models: Sequence[StreamedModel]
) -> dict[str, Any]:
    """Return memory and bytes read of the models, the writing one first."""
    return {
        "device_bytes": budget.limit_bytes,
        "device_peak_bytes": budget.peak_bytes,
        "planned_peak_bytes": sum(each.plan.device_peak_bytes for each in models),
        "model_bytes": models[0].spec.total_bytes,
        "bytes_read": models[0].bytes_read,
    }


@dataclass(frozen=True, slots=True)
class Streaming:
    """Settings of streaming, in addition to the device's memory.

    `host_bytes` hold layers that the device does not, a `ring` of staging buffers (by
    default the most of 3, 2 and 1 that fit) those on their way to the `device`. With
    `verify` every file is first compared with the SHA-256 of the manifest.
    """

    host_bytes: int = 0
    ring: int | None = None
    device: str = "cpu"
    verify: bool = False


STREAMING = Streaming()


def generate_text(
    checkpoint: str,
    device_bytes: int,
    prompt: str | Sequence[str],
    max_new_tokens: int = 32,
    streaming: Streaming = STREAMING,
    writing: Sampling = GREEDY,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Continue `prompt` with a streamed model.

    Args:
        checkpoint: A folder, a GGUF file or "smollm2".
        device_bytes: Device memory, which a meter enforces.
        prompt: One text or several, which share each pass over the weights.
        max_new_tokens: Most tokens; an end-of-text token ends the text before.
        streaming: Host memory, staging buffers and device.
        writing: Temperature and seed of sampling; greedy by default.
        tell: Function called with each piece of text.

    Returns:
        The dictionary that `thesis generate --json` prints: "text", or "texts" of
        several prompts, and the measured times, bytes and fraction of the link.

    Example:
        >>> from thesis_lib.memory import generate_text
        >>> result = generate_text("smollm2", 96 * 2**20, "The capital of France is", 4)
        >>> result["text"].strip(), result["device_peak_bytes"] <= 96 * 2**20
        ('Paris.', True)
    """
    one = isinstance(prompt, str)
    require(one or tell is None, "several sequences cannot be streamed at once")
    folder, tokenizer, tokens, mask = read_prompts(
        checkpoint,
        [prompt] if one else prompt,
        max_new_tokens,
        streaming.device,
        writing.chat,
    )
    start = tokens.shape[1]
    clock = _Clock(None if tell is None else TextSink(tokenizer, writing, tell))
    with (
        open_streamed(
            folder,
            device_bytes,
            batch=len(tokens),
            context=start + max_new_tokens,
            pass_tokens=start,
            **asdict(streaming),
        ) as model,
        enforced(device_bytes, streaming.device) as budget,
    ):
        model.charge(budget)
        written = write(model, tokenizer, tokens, max_new_tokens, writing, clock, mask)
        spent = describe_bytes(budget, [model])
        drained = [seconds_of(model.drain) for _ in range(3)]
    texts = [writing.ended(decode(tokenizer, row)) for row in written.tolist()]
    first_s, decoding_s = clock.seconds()
    return {
        **({"text": texts[0]} if one else {"texts": texts}),
        "tokens": written.shape[1],
        "s_per_token": decoding_s,
        "first_token_s": first_s,
        **spent,
        "fraction_of_link": float(np.median(drained)) / decoding_s,
    }
