"""Experiments that exactly one chapter runs."""
