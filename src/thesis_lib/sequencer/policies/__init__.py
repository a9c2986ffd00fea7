"""Policies: which transactions to drop, to reorder and to hold."""
