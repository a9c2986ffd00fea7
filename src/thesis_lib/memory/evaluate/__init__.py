"""Evaluate quality and speed of a model: perplexity, timed passes."""
