"""Experiments of Part II: timed passes."""
