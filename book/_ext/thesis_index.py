"""Fill Sphinx's index from `book/index_entries.yml`, by the labels of the book.

A directive in a chapter would show as code in Jupyter. Names of the package are left to
the search.
"""

from pathlib import Path

import yaml
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
PACKAGE = "book/api_"
CHINESE = "中文"  # the letter that Chinese words stand under


def labels(env: BuildEnvironment) -> dict[str, tuple[str, str]]:
    """The page and the id of every label: of sections, figures, tables, formulas."""
    equations = env.domaindata["math"]["objects"]
    sections = env.domaindata["std"]["anonlabels"]
    return {
        **{name: place[:2] for name, place in sections.items()},
        **{name: (page, f"equation-{name}") for name, (page, _) in equations.items()},
        **{name: (proof["docname"], name) for name, proof in env.proof_list.items()},
    }


def add_entries(app: Sphinx, env: BuildEnvironment) -> None:
    """Fill the index; a label that the book does not have is a warning of the build."""
    said = yaml.safe_load(Path(app.srcdir, "book/index_entries.yml").read_text())
    index, known = env.domaindata["index"]["entries"], labels(env)
    for page in index:
        if page.startswith(PACKAGE):
            index[page] = []
    for entry, places in said["entries"].items():
        for label in [places] if isinstance(places, str) else places:
            if label in known:
                page, place = known[label]
                index.setdefault(page, []).append(("single", entry, place, "", None))
            else:
                LOGGER.warning("the index leads %r to %r, no label", entry, label)
    for group, key in (("see", None), (CHINESE, CHINESE)):
        for entry, other in said[group].items():
            found = ("see", f"{entry}; {other}", "", "", key)
            index[env.config.root_doc].append(found)


def setup(app: Sphinx) -> dict:
    app.connect("env-updated", add_entries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
