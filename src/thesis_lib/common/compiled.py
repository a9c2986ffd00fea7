"""What numba keeps beside the sources, and when it no longer holds.

numba compiles a function again when its own file has changed. A function of another
file that it calls is part of what was compiled, and a change there goes unnoticed.
"""

from pathlib import Path


def drop_stale(package: Path) -> None:
    """Delete what was compiled before the latest change of any compiled module.

    `package` is the folder whose modules are compiled. It may be read-only, or in use
    by another process that does the same.
    """
    kept = list(package.rglob("__pycache__/*.nb[ci]"))
    sources = {path.parents[1] / f"{path.name.partition('.')[0]}.py" for path in kept}
    changed_ns = max(
        (path.stat().st_mtime_ns for path in sources if path.exists()), default=0
    )
    for path in kept:
        try:
            if path.stat().st_mtime_ns < changed_ns:
                path.unlink()
        except OSError:
            continue
