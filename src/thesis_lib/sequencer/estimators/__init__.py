"""Latency before execution: models, their bounds, how good they are."""
