"""Every figure of the book, by topic; nothing else plots.

A chapter draws by `figures.name`: what a module of a topic defines is at hand here.
"""
# ruff: noqa: F403

from thesis_lib.book.figures.compression import *
from thesis_lib.book.figures.cost import *
from thesis_lib.book.figures.estimators import *
from thesis_lib.book.figures.offload import *
from thesis_lib.book.figures.policies import *
from thesis_lib.book.figures.style import *
from thesis_lib.book.figures.summary import *
