"""Proven lower bounds, and the best schedule that knows the future."""
