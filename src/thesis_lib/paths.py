"""Where the project's data and caches live.

From a checkout both are folders beside the code. `THESIS_DATA` and `THESIS_CACHE`
move them; an installed package without a checkout caches under the user's home.
"""

import os
from pathlib import Path

from thesis_lib.checks import InvalidInput


def root() -> Path | None:
    """The checkout that this package is imported from, if there is one."""
    candidate = Path(__file__).resolve().parents[2]
    return candidate if (candidate / "_config.yml").is_file() else None


def data_folder() -> Path:
    """The folder `data/`. Raises InvalidInput where there is none."""
    if named := os.environ.get("THESIS_DATA"):
        folder = Path(named)
    elif (checkout := root()) is not None:
        folder = checkout / "data"
    else:
        raise InvalidInput(
            "no data folder: the package is not imported from a checkout; "
            "set THESIS_DATA to the folder data/ of a clone"
        )
    if not folder.is_dir():
        raise InvalidInput(f"data folder {folder} does not exist: expected a folder")
    return folder


def cache_folder(*parts: str) -> Path:
    """A folder for what can be made again, created on demand; git ignores it."""
    if named := os.environ.get("THESIS_CACHE"):
        base = Path(named)
    elif (checkout := root()) is not None:
        base = checkout / ".cache"
    else:
        base = Path.home() / ".cache" / "thesis_lib"
    folder = base.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
