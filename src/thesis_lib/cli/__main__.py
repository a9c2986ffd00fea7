"""`python -m thesis_lib.cli` is the command `thesis`."""

from thesis_lib.cli.main import main

main()
