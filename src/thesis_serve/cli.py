"""Commands of both halves: a streamed model for one person, and for many clients."""

import asyncio
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from thesis_lib.cli.common import command, console, option
from thesis_lib.common import units
from thesis_lib.common.errors import InvalidInput

Checkpoint = Annotated[str, typer.Argument(help="Folder, GGUF file or smollm2.")]
DeviceMemory = Annotated[
    str, typer.Option("--device-memory", help="Such as 128MiB.", show_default=False)
]


@command
def chat(
    checkpoint: Checkpoint,
    device_memory: DeviceMemory,
    context: int = option(2048, "Positions of the whole conversation."),
    max_new_tokens: int = option(256, "Tokens of an answer."),
    temperature: float | None = option(
        None, "Draw tokens, the more freely the higher. Default: the likeliest."
    ),
    top_p: float = option(1.0, "Draw from the likeliest with this probability."),
    seed: int = option(0, "Of the draws."),
    pass_tokens: int = option(64, "Tokens of a message that share a pass."),
    host_memory: str = option("0B", "For layers beside the device, such as 32GiB."),
    device: str = option("cpu", "cpu or cuda."),
) -> None:
    """Talk with a model that streams through a memory budget.

    A message a line. /new begins another conversation; the end of the input, or
    /exit, ends it. Ctrl-C stops an answer, which was not said then.
    """
    from thesis_lib.memory.decode.generate import Conversation, Writing
    from thesis_lib.memory.model.pretrained import read_tokenizer
    from thesis_lib.memory.offload.offloaded_model import (
        checkpoint_folder,
        enforced,
        open_streamed,
    )
    from thesis_lib.memory.offload.store import StoreDamaged

    writing = Writing(temperature, top_p, seed)
    folder, size = checkpoint_folder(checkpoint), units.parse_size(device_memory)
    tokenizer = read_tokenizer(folder)
    streamed = open_streamed(
        folder, size, units.parse_size(host_memory), context=context,
        pass_tokens=pass_tokens, device=device,
    )  # fmt: skip
    with streamed as model, enforced(size, device) as budget:
        model.charge(budget)
        talk = Conversation(model, tokenizer, max_new_tokens, writing)
        console.print(str(model.plan), style="dim", highlight=False)
        for line in _lines():
            if line == "/new":
                talk.messages.clear()
                continue
            try:
                talk.say(line, lambda text: typer.echo(text, nl=False))
            except KeyboardInterrupt:
                typer.echo(" …", nl=False)
            except StoreDamaged:  # nothing can be said with such files
                raise
            except InvalidInput as error:
                typer.echo(f"thesis: {error}; /new begins another", err=True)
                continue
            typer.echo()


def _lines() -> Iterator[str]:
    """What is typed or piped in, until it ends; empty lines say nothing."""
    while True:
        if sys.stdin.isatty():
            typer.echo("> ", nl=False)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError:
            raise InvalidInput("a message is no UTF-8: expected text") from None
        if not line or line.strip() == "/exit":
            return
        if line.strip():
            yield line.strip()


@command
def api(
    checkpoint: Checkpoint,
    device_memory: DeviceMemory,
    policy: str = option("bid-price", "One of those of simulate, or FILE.py:FUNCTION."),
    slo: str = option("20s", "In which an answer is of use, from its request."),
    slots: int = option(4, "Texts that are written at once."),
    context: int = option(512, "Positions of a slot, prompt and answer together."),
    pass_tokens: int = option(64, "Tokens of a prompt that share a pass."),
    most_waiting: int = option(1000, "Requests that wait; more are refused."),
    flush: str | None = option(
        None, "Timer of a batch, such as 100ms, for policies that wait for one."
    ),
    host_memory: str = option("0B", "For layers beside the device, such as 32GiB."),
    ring: int | None = option(
        None, "Staging buffers. Default: the most of 3, 2 and 1 that fit."
    ),
    device: str = option("cpu", "cpu or cuda."),
    verify: bool = option(False, "Hash every file first."),
    meter: bool = option(
        False, "Count what the processor holds, and refuse more. Passes take longer."
    ),
    host: str = option("127.0.0.1", "Address to listen on."),
    port: int = option(8000, "Port; 0 finds a free one."),
    api_key: str | None = option(
        None, "That clients have to send.", "--api-key", envvar="THESIS_API_KEY"
    ),
    log: Path | None = option(None, "A new file for the log of decisions."),
) -> None:
    """Serve a streamed model to OpenAI's clients, each in its turn or not at all.

    A policy decides before a text is begun: who is refused is told so, with the latency
    that is expected. Ends with SIGTERM or Ctrl-C, once whoever it has taken is
    answered; the second one ends it at once.
    """

    def report(stage: str) -> None:
        typer.echo(f"{stage} …", err=True)

    report("loading the libraries")
    from thesis_serve.model.api import listen, serve_api
    from thesis_serve.model.service import ModelService

    made = ModelService(
        checkpoint, units.parse_size(device_memory), policy=policy,
        slo_s=units.parse_duration(slo), slots=slots, context=context,
        pass_tokens=pass_tokens, ring=ring, host_bytes=units.parse_size(host_memory),
        device=device, verify=verify, metered=meter, most_waiting=most_waiting, log=log,
        flush_s=inf if flush is None else units.parse_duration(flush), report=report,
    )  # fmt: skip
    listens = listen(host, port, api_key)
    called = f"[{host}]" if ":" in host else host
    address = f"http://{called}:{listens.getsockname()[1]}/v1"

    async def serve() -> None:
        async with made as service:
            console.print(str(service.model.plan), style="dim", highlight=False)
            await serve_api(service, listens, api_key, lambda: typer.echo(address))

    with listens:
        asyncio.run(serve())
