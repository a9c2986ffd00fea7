"""How large the project is: files, lines, and lines that are neither blank nor comment.

By room of `src`, then the folders that CONTRIBUTING.md limits. Notebooks count their
code cells. Data (`*.yml`, `*.json`, `*.sql`, templates) is not code and counts apart.
"""

import json
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE, DATA = {".py", ".pyi", ".sh", ".ipynb"}, {".yml", ".sql", ".html", ".js", ".css"}


def lines(path: Path) -> list[str]:
    """Of a file; of a notebook those of its code cells."""
    if path.suffix != ".ipynb":
        return path.read_text().splitlines()
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(code).splitlines()


def size(folder: Path, suffixes: set[str]) -> Iterator[tuple[int, int]]:
    """Lines, and those with code on them, of each file below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in suffixes and ".ipynb_checkpoints" not in path.parts:
            found = [line.strip() for line in lines(path)]
            yield len(found), sum(bool(x) and x[0] != "#" for x in found)


package = ROOT / "src" / "thesis_lib"
rooms = sorted(path.parent for path in package.rglob("__init__.py"))
whole = [ROOT / name for name in ("src", "benchmarks", "tests", "scripts", "notebooks")]
print(f"{'':44}{'files':>6}{'lines':>8}{'code':>8}{'data':>8}")
for folder in [*rooms, *whole]:
    sizes, data = list(size(folder, CODE)), sum(n for n, _ in size(folder, DATA))
    total, code = map(sum, zip(*sizes, strict=True))
    print(f"{folder.relative_to(ROOT)!s:44}{len(sizes):6}{total:8}{code:8}{data:8}")
