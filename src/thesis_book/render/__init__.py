"""Render the book, its PDF and its notebooks."""
