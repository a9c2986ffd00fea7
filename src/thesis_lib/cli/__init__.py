"""The command `thesis`."""
