"""Find the modules of our packages that source code imports."""

import ast
import threading
from pathlib import Path

PARSER = threading.Lock()


def syntax_tree(source: str) -> ast.Module:
    """Parse `source`; python/cpython#106905 allows one thread at a time."""
    with PARSER:
        return ast.parse(source)


def _imported(source: str, package: str = "") -> set[str]:
    """Dotted names of our modules that `source`, in a package, may import."""
    names = set()
    for node in ast.walk(syntax_tree(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = f"{package}.{node.module}" if node.level else node.module
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0].startswith("thesis_")}


def module_file(name: str) -> Path | None:
    """The source file of a module of the package, or None if it is not one."""
    base = Path(__file__).parents[2].joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def modules(source: str) -> set[Path]:
    """Source files of the package that `source` imports, directly or not.

    What a front door loads when it is asked, which its stub says, counts as imported,
    and so do the page and the script beside a module.
    """
    sources: set[Path] = set()
    names = list(_imported(source))
    while names:
        name = names.pop()
        path = module_file(name)
        if path is not None and path not in sources:
            sources |= {path, *path.parent.glob("*.html"), *path.parent.glob("*.js")}
            names += _imported(path.read_text())
            stub = path.with_suffix(".pyi")
            names += _imported(stub.read_text(), name) if stub.is_file() else []
    return sources
