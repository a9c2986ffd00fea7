"""What the theme does not do by itself: page languages, and no live execution.

Jupyter Book always loads sphinx-thebe, whose script comes from a network and declares
its constants twice on a page. The book is read offline, so it is taken out.
"""

from sphinx.application import Sphinx


def set_language(app: Sphinx, page, template, context, doctree) -> None:
    """Let front matter such as `lang: zh-Hant` set the page's language attribute."""
    metadata = context.get("meta") or {}
    if "lang" in metadata:
        context["language"] = metadata["lang"]


def drop_thebe(app: Sphinx, page, template, context, doctree) -> None:
    """Take the scripts of sphinx-thebe from the page."""

    def is_thebe(script) -> bool:
        body = getattr(script, "attributes", {}).get("body") or ""
        return "THEBE_JS_URL" in body or "thebe" in str(script.filename or "")

    context["script_files"] = [s for s in context["script_files"] if not is_thebe(s)]


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", set_language)
    app.connect("html-page-context", drop_thebe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
