"""The index: its entries and their places, by the labels of the book.

What the index says stands in `book/index_entries.yml` and not in the chapters, where a
directive would show as code in Jupyter. Names of the package are left to the search.
"""

from pathlib import Path
from urllib.parse import unquote

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
PACKAGE = "book/api_"
FORMS = {"displaymath": "(%s)", "algorithm": "Algorithm %s"}
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


def number(app: Sphinx, address: str) -> str:
    """What the book calls the place that an address of the index leads to."""
    env = app.env
    path, _, place = address.partition("#")
    page, place = path.removesuffix(".html"), unquote(place)
    for kind, numbers in env.toc_fignumbers.get(page, {}).items():
        if place in numbers:
            form = FORMS.get(kind) or app.config.numfig_format[kind]
            return form % ".".join(map(str, numbers[place]))
    anchor = f"#{env.get_doctree(page).ids[place]['ids'][0]}"
    sections = env.toc_secnumbers.get(page, {})
    found = sections.get(anchor) or sections.get("")
    return ".".join(map(str, found)) if found else env.titles[page].astext()


def give_places(app: Sphinx, page, template, context, doctree) -> None:
    """Let the template of the index name places, and make ids of words."""
    if page == "genindex":
        context["number"] = lambda address: number(app, address)
        context["slug"] = nodes.make_id


def setup(app: Sphinx) -> dict:
    app.connect("env-updated", add_entries)
    app.connect("html-page-context", give_places)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
