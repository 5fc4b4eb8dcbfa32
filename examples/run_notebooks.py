"""Run the lessons from top to bottom and keep what they print and draw.

python examples/run_notebooks.py                 # all of them
python examples/run_notebooks.py 1 6             # some
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent / "notebooks"


def notebooks(numbers: list[str] | None = None) -> list[Path]:
    """The lessons in order, or those of the given numbers."""
    found = sorted(HERE.glob("[0-9]_*.ipynb"))
    return [path for path in found if not numbers or path.name[0] in numbers]


@contextmanager
def kernel(timeout_s: int = 180) -> Iterator[NotebookClient]:
    """A kernel of this Python, which may run one notebook after the other."""
    # it is a child of this process: it finds the packages of this checkout first, and lines break where a reader's do,
    # however wide this terminal is
    found = os.pathsep.join(p for p in (str(HERE.parents[1]), os.environ.get("PYTHONPATH")) if p)
    client = NotebookClient(
        nbformat.v4.new_notebook(), timeout=timeout_s, kernel_name="python3",
        resources={"metadata": {"path": str(HERE)}}, extra_arguments=["--IPKernelApp.log_level=40"],
        shutdown_kernel="immediate",
    )  # fmt: skip
    with client.setup_kernel(env={**os.environ, "PYTHONPATH": found, "COLUMNS": "80"}):
        yield client


def execute(path: Path, client: NotebookClient) -> nbformat.NotebookNode:
    """A notebook, run in a kernel whose names are cleared before; what does not matter to a reader is left out.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message holds it and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))  # what the notebook before has named
    client.nb = notebook
    client.execute(cleanup_kc=False)
    notebook.cells.pop(0)
    executed = 0
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"c{number:02}"
        cell["metadata"] = {}
        if cell.cell_type == "code":
            executed += 1
            cell["execution_count"] = executed
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
            if "execution_count" in output:
                output["execution_count"] = executed
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    for path in notebooks(sys.argv[1:]):
        start = time.perf_counter()
        with kernel() as fresh:
            nbformat.write(execute(path, fresh), path)
        print(f"{path.name}: {time.perf_counter() - start:.1f} s, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
