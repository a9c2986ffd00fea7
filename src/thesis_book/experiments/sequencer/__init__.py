"""Experiments of Part I: goals, robustness, scaling, forecasts."""
