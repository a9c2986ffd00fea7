"""Experiments of Part II: timed passes, costs of deployments."""
