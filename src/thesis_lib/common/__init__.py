"""Shared by all packages: errors, units, files, intervals, provenance."""
