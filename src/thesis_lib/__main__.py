"""`python -m thesis_lib` is the command `thesis`."""

from thesis_lib.cli.main import main

if __name__ == "__main__":
    main()
