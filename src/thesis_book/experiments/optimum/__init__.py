"""The best schedule that knows the future: CP-SAT and local search."""
