"""Runs held against the references, for a terminal, a page, the README."""
