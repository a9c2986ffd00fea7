"""Policies compared: configurations, metrics, grids, robustness, scale, live runs."""
