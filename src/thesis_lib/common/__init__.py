"""What every room may use: rejections, units, files, intervals, provenance."""
