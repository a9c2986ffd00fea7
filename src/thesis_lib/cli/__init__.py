"""The command `thesis`.

The parameters of a command are its options, each with its line of help: that is why
functions here take more of them, and more lines, than any other.
"""
