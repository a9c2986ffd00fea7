"""Pages of HTML that need nothing beside them, from the folder `templates`."""

from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parents[1] / "templates"


def render_page(template: str, **values: Any) -> str:
    """The page that a template makes of `values`, which are escaped as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
