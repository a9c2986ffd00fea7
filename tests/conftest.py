import os

# Before anything imports transformers: nothing may reach for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests share the cores already; what they patch does not reach another process.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")

import thesis_lib  # noqa: F401  # before torch: it says how threads wait
