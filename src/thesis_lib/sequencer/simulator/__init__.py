"""A policy on a trace, on one partition or on many; an environment to learn one in."""
