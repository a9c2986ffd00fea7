"""The command `thesis`, also `python -m thesis_book`."""

import os
import sys

# Importing registers the commands; help lists them in this order.
from thesis_book import cli as book  # noqa: F401
from thesis_lib.cli import sequencer  # noqa: F401

# isort: split
from thesis_lib.cli import memory  # noqa: F401
from thesis_lib.cli.common import app
from thesis_serve import cli as serve  # noqa: F401


def main() -> None:
    """Run the command, offline and without the warnings of the tokenizers library."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(app())


if __name__ == "__main__":
    main()
