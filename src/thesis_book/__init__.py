"""The tooling of the book: execute chapters, compare runs, render pages."""

import thesis_lib  # noqa: F401  sets how OpenMP waits, before torch is loaded
