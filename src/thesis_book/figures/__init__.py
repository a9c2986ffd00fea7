"""Every figure of the book, by topic; nothing else plots.

A chapter draws by `figures.name`: what a module of a topic defines is at hand here.
"""
# ruff: noqa: F403

from thesis_book.figures.compression import *
from thesis_book.figures.cost import *
from thesis_book.figures.estimators import *
from thesis_book.figures.offload import *
from thesis_book.figures.policies import *
from thesis_book.figures.runs import *
from thesis_book.figures.style import *
from thesis_book.figures.summary import *
