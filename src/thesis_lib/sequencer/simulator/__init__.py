"""A policy on a trace, on one partition or on many; what a replica ends up with."""
