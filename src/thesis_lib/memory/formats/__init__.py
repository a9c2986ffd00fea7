"""Compact weight formats: NF4, int8, few bits, low rank, lossless."""
