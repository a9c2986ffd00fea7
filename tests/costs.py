"""Two ways to stream a model and one to hold it, and prices, for the calculator."""

from thesis_lib.memory.cost.cost import Mix
from thesis_lib.memory.cost.deployment import Configuration

MIX = Mix(64, 16)
STREAMED = [
    Configuration("bf16 </script>", "card", 1, 1e11, 2e10, 0.1, 0.6, 1, 1.0),
    Configuration("nf4, batch", "card", 1, 1.5e10, 2e10, 0.9, 4.0, 8, 2.5),
]
RESIDENT = [(Configuration("resident", "h100", 2, 0, 5e10, 0.03, 0.7, 16, 1.0), 2.5)]
VALUES = {
    "card_usd": 750.0, "host_usd": 500.0, "memory_usd_per_gb": 12.0,
    "storage_usd_per_gb": 0.08, "usd_per_kwh": 0.18, "usd_per_hour": 0.39,
    "months": 36.0, "watts": 450.0, "pue": 1.1, "utilisation": 0.5,
    "link_gb_per_s": 25.5,
}  # fmt: skip
