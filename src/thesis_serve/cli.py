"""Commands that serve a streamed model: to one person, or to many clients."""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

import typer

from thesis_lib.cli.common import command, console, option
from thesis_lib.cli.memory import Budget, Checkpoint, Draws
from thesis_lib.common import units
from thesis_lib.common.errors import InvalidInput


@command
def chat(
    *,
    checkpoint: Checkpoint,
    budget: Budget,
    draws: Draws,
    context: int = option(2048, "Length of a conversation (tokens)."),
    max_new_tokens: int = option(256, "Longest answer (tokens)."),
    pass_tokens: int = option(64, "Tokens of a message in one pass."),
) -> None:
    """Chat with a model streamed within a memory budget.

    Type one message per line. /new starts another conversation; /exit, or the end of
    the input, quits. Ctrl-C stops an answer and removes it from the conversation.
    """
    from thesis_lib.memory.decode.generate import Conversation, Sampling
    from thesis_lib.memory.model.pretrained import read_tokenizer
    from thesis_lib.memory.offload.offloaded_model import (
        checkpoint_folder,
        enforced,
        open_streamed,
    )
    from thesis_lib.memory.offload.store import StoreDamaged

    writing = Sampling(draws.temperature, draws.top_p, draws.seed)
    folder, size = checkpoint_folder(checkpoint), units.parse_size(budget.device_memory)
    tokenizer = read_tokenizer(folder)
    streamed = open_streamed(
        folder, size, budget.host_memory, context=context, ring=budget.ring,
        pass_tokens=pass_tokens, device=budget.device, verify=budget.verify,
    )  # fmt: skip
    with streamed as model, enforced(size, budget.device) as enforcer:
        model.charge(enforcer)
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
    """Yield the lines of the input, without empty lines."""
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


@dataclass(frozen=True)
class Admission:
    """Options of the admission policy and its log."""

    policy: str = option("bid-price", "Policy, as for `simulate`.")
    slo: str = option("20s", "Target latency of an answer.")
    most_waiting: int = option(1000, "Longest queue (requests); others are rejected.")
    flush: str | None = option(
        None, "Age that closes a batch, such as 100ms. Default: none."
    )
    log: Path | None = option(None, "New file for the log of decisions.")


@dataclass(frozen=True)
class Slots:
    """Options of the concurrent sequences."""

    slots: int = option(4, "Concurrent sequences.")
    context: int = option(512, "Prompt and answer together (tokens).")
    pass_tokens: int = option(64, "Tokens of a prompt in one pass.")
    meter: bool = option(False, "Measure the memory and enforce the budget; slower.")


@dataclass(frozen=True)
class Address:
    """Options of the address and the access of a service."""

    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8000, "Port; 0 selects a free one.")
    api_key: str | None = option(
        None, "Key that clients must send.", "--api-key", envvar="THESIS_API_KEY"
    )


@command
def api(
    *,
    checkpoint: Checkpoint,
    budget: Budget,
    admission: Admission,
    texts: Slots,
    address: Address,
) -> None:
    """Serve a streamed model over OpenAI's protocol.

    The policy decides on each request before generation starts; a rejection reports the
    predicted latency. SIGTERM or Ctrl-C stops the service after the accepted requests;
    a second one stops it at once.
    """
    typer.echo("loading the libraries …", err=True)
    from thesis_serve.model.api import listen, serve_api
    from thesis_serve.model.service import ModelService

    flush, host, api_key = admission.flush, address.host, address.api_key
    model_service = ModelService(
        checkpoint, units.parse_size(budget.device_memory), policy=admission.policy,
        slo_s=units.parse_duration(admission.slo), slots=texts.slots,
        context=texts.context, pass_tokens=texts.pass_tokens, ring=budget.ring,
        host_bytes=units.parse_size(budget.host_memory), device=budget.device,
        verify=budget.verify, metered=texts.meter, most_waiting=admission.most_waiting,
        flush_s=inf if flush is None else units.parse_duration(flush),
        log=admission.log, report=lambda stage: typer.echo(f"{stage} …", err=True),
    )  # fmt: skip
    listens = listen(host, address.port, api_key)
    called = f"[{host}]" if ":" in host else host
    url = f"http://{called}:{listens.getsockname()[1]}/v1"

    async def serve() -> None:
        async with model_service as service:
            console.print(str(service.model.plan), style="dim", highlight=False)
            await serve_api(service, listens, api_key, lambda: typer.echo(url))

    with listens:
        asyncio.run(serve())
