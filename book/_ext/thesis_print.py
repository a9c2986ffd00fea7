"""What a page says on paper of where it is from: the book, the chapter, its address.

Chromium takes this from the margins of CSS pages, and then leaves out its own lines.
"""

import json
import re
from html import unescape

from sphinx.application import Sphinx


def add_running_titles(app: Sphinx, page, template, context, doctree) -> None:
    """Write the titles of book and page, and its address, into the margins of paper."""
    title = unescape(re.sub(r"<[^>]+>", "", context.get("title") or ""))
    margins = {
        "top-left": app.config.html_title,
        "top-right": title,
        "bottom-left": context.get("pageurl") or f"{page}.html",
    }
    boxes = " ".join(
        f"@{name} {{ content: {json.dumps(text, ensure_ascii=False)}; }}"
        for name, text in margins.items()
    ).replace("<", r"\3c ")
    style = f"<style>@page {{ {boxes} }}</style>"
    context["metatags"] = context.get("metatags", "") + style


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", add_running_titles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
