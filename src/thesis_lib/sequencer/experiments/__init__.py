"""Policies compared: cells, metrics, grids, robustness, scale, live runs."""
