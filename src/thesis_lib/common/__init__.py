"""What every room may use: refusals, units, files, intervals, provenance."""
