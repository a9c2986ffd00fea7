"""Pages in a language of their own, and a note of what the page's numbers are."""

from sphinx.application import Sphinx


def page_language(app: Sphinx, page, template, context, doctree) -> None:
    """Let front matter such as `lang: zh-Hant` set the page's language attribute."""
    metadata = context.get("meta") or {}
    if "lang" in metadata:
        context["language"] = metadata["lang"]


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", page_language)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
