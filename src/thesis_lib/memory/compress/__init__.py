"""Fewer bytes by calibration: low rank, GPTQ, bit allocation; writing the result."""
