"""Have nbval compare the outputs of a finished run, without executing chapters again.

    pytest -p thesis_book.execute.replay --nbval-lax --executed FOLDER notebooks

is nbval as ever, with the kernel replaced by the executed notebooks of FOLDER, such as
build/chapters/smoke. Without `--executed` nbval executes the chapters.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbval.plugin import IPyNbFile

from thesis_lib.common.errors import require


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--executed` to the options of nbval."""
    parser.getgroup("nbval").addoption(
        "--executed",
        type=Path,
        help="Folder of executed notebooks whose outputs are compared.",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Give each notebook that is compared the outputs of its executed copy."""
    folder = config.getoption("executed")
    if folder is not None:
        for file in {item.parent for item in items}:
            if isinstance(file, IPyNbFile):
                file.setup = lambda file=file: _prepare(file, folder)  # type: ignore


def _prepare(file: IPyNbFile, folder: Path) -> None:
    file.kernel = ExecutedKernel(folder / file.path.name)  # type: ignore
    file.setup_sanitize_files()


class ExecutedKernel:
    """Answers to each cell of a chapter, in order, with what its execution printed.

    Has the methods of nbval's `RunningKernel` that a comparison calls. Raises
    InvalidInput for a notebook that is not there and for a cell with another source.
    """

    def __init__(self, executed: Path) -> None:
        require(
            executed.is_file(),
            f"{executed} is not there: execute the chapters first, thesis run",
        )
        self._cells = _code_cells(executed)
        self._messages: Iterator[dict[str, Any]] = iter(())

    def is_alive(self) -> bool:
        """Return whether cells can be answered: always."""
        return True

    def execute_cell_input(self, source: str, allow_stdin: bool | None = None) -> str:
        """Go on to the cell with `source`, which must be the next one."""
        cell = next(self._cells, None)
        require(
            cell is not None and cell.source == source,
            f"the executed notebook has another cell here than {source[:60]!r}: "
            "execute the chapter again, thesis run",
        )
        outputs = cell.outputs  # type: ignore[union-attr]
        self._messages = map(_message, [*outputs, _IDLE])
        return "executed"

    def await_reply(self, msg_id: str, timeout: float | None = None) -> None:
        """Return at once: the cell has been executed."""

    def await_idle(self, parent_id: str, timeout: float) -> None:
        """Return at once: the cell has been executed."""

    def get_message(self, stream: str, timeout: float | None = None) -> dict[str, Any]:
        """The next output of the cell as a message of Jupyter, or its end."""
        return next(self._messages)

    def stop(self) -> None:
        """Do nothing: no process runs."""


_IDLE = {"output_type": "status", "execution_state": "idle"}


def _code_cells(executed: Path) -> Iterator[Any]:
    """The code cells of a chapter, without the one in which papermill puts values."""
    for cell in nbformat.read(executed, as_version=4).cells:
        injected = "injected-parameters" in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and not injected:
            yield cell


def _message(output: Any) -> dict[str, Any]:
    """An output of a notebook as nbval reads it from a kernel."""
    return {
        "msg_type": output["output_type"],
        "content": output,
        "parent_header": {"msg_id": "executed"},
    }
