"""Print how large each part of the project is, and fail above its limit.

The limits are in `[tool.sizes]` of pyproject.toml: lines of each part, of a module and
of a function, and parameters of a function, all counted here. Lower a limit whenever a
part shrinks; never raise one. Notebooks count their code cells; data does not count.
"""

import ast
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = {".py", ".sh", ".ipynb", ".js", ".css", ".md"}
Measured = tuple[int, str]  # a size, and what has it


def lines(path: Path) -> list[str]:
    """Return the lines of a file; of a notebook those of its code cells."""
    if path.suffix != ".ipynb":
        return path.read_text().splitlines()
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(code).splitlines()


def size(part: str) -> int:
    """Return the lines of a part: files and folders, joined by ` + `."""
    total = 0
    for path in (ROOT / name for name in part.split(" + ")):
        suffixes = CODE - {".md"} if path.is_dir() else CODE
        files = path.rglob("*") if path.is_dir() else [path]
        total += sum(
            len(lines(file))
            for file in files
            if file.suffix in suffixes and ".ipynb_checkpoints" not in file.parts
        )
    return total


def functions() -> Iterator[tuple[Measured, Measured]]:
    """Yield lines and parameters of each function in `src`, `self` not counted."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(ROOT)}:{node.name}"
                arguments = [*node.args.posonlyargs, *node.args.args]
                first = arguments[0].arg if arguments else ""
                count = len(arguments) + len(node.args.kwonlyargs)
                count -= first in ("self", "cls")
                yield (node.end_lineno - node.lineno + 1, name), (count, name)


def largest() -> dict[str, Measured]:
    """Return the largest module and function of `src`, and the widest function."""
    modules = (ROOT / "src").rglob("*.py")
    each = [(len(lines(path)), str(path.relative_to(ROOT))) for path in modules]
    long, wide = zip(*functions(), strict=True)
    return {"module": max(each), "function": max(long), "parameters": max(wide)}


def main() -> None:
    """Print every part with its limit; exit with 1 if one is above it."""
    limits = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["sizes"]
    found = {part: (size(part), "") for part in limits["lines"]}
    found |= {f"largest {kind}": most for kind, most in largest().items()}
    allowed = limits["lines"] | {f"largest {k}": n for k, n in limits["most"].items()}
    above = 0
    print(f"{'':44}{'size':>8}{'limit':>8}")
    for part, (number, where) in found.items():
        over = number > allowed[part]
        above += over
        print(f"{part:44}{number:8}{allowed[part]:8}{'  ABOVE' * over}  {where}")
    if above:
        sys.exit(f"{above} above the limits of [tool.sizes]: delete before you add")


if __name__ == "__main__":
    main()
