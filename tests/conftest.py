import os

# Before anything imports transformers: nothing may reach for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import thesis_lib  # noqa: F401  # before torch: it says how threads wait
