"""nbval finds in the notebooks of a run what it would find by executing them."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

pytest_plugins = "pytester"
KEPT = {"tags": ["nbval-check-output"]}
INJECTED = new_code_cell("x = 2", metadata={"tags": ["injected-parameters"]})


def notebook(printed, source="print(x)", between=()):
    """A chapter of two cells, the second of which printed something."""
    output = new_output("stream", name="stdout", text=printed)
    compared = new_code_cell(source, metadata=KEPT, outputs=[output], execution_count=1)
    return new_notebook(cells=[new_code_cell("x = 1"), *between, compared])


@pytest.mark.parametrize(
    ("executed", "passed", "failed", "message"),
    [
        (notebook("1\n", between=[INJECTED]), 2, 0, ""),
        (notebook("2\n"), 1, 1, "*Cell outputs differ*"),
        (notebook("1\n", source="print(y)"), 1, 1, "*has another cell here*"),
    ],
)
def test_outputs_of_a_run_are_compared(pytester, executed, passed, failed, message):
    folder = pytester.mkdir("run")
    nbformat.write(notebook("1\n"), pytester.path / "chapter.ipynb")
    nbformat.write(executed, folder / "chapter.ipynb")
    options = ["-p", "thesis_book.execute.replay", "--nbval-lax", "--executed", folder]
    result = pytester.runpytest_subprocess(*options, "chapter.ipynb")
    result.assert_outcomes(passed=passed, failed=failed)
    if message:
        result.stdout.fnmatch_lines([message])
