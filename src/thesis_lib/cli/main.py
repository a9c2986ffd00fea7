"""The command `thesis`: one sentence and a non-zero status for every failure."""

import os
import sys

# Commands are listed in this order; importing registers them.
from thesis_book import cli as book
from thesis_lib.cli import memory, sequencer
from thesis_serve import cli as serving
from thesis_lib.cli.common import app


def main() -> None:
    """Entry point: quiet libraries, no hub, no surprise in the terminal."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(app())
