"""Run the notebooks of docs/ and store them with their outputs, without traces of this machine.

A test runs them too, and fails when what is stored belongs to other code.
"""

import copy
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parent
SAMPLES = "sample_checkpoints"
_TIMEOUT = 300  # seconds for a cell, on a busy machine


def notebooks() -> list[Path]:
    """Return the notebooks of the documentation."""
    return sorted(DOCS.glob("*.ipynb"))


def executed(path: Path) -> Any:
    """Return a notebook with the outputs of a run in a folder of its own, next to the samples."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / "docs"
        here.mkdir()
        (Path(folder) / SAMPLES).symlink_to(DOCS.parent / SAMPLES)
        client = NotebookClient(
            notebook, kernel_name="python3", timeout=_TIMEOUT, record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(here)}},
        )  # fmt: skip
        client.execute(env={**os.environ, "PYTHONPATH": str(DOCS.parent)})
    return cleaned(notebook)


def cleaned(notebook: Any) -> Any:
    """Return a notebook without what differs from machine to machine, and with its code's hash."""
    made = copy.deepcopy(notebook)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    facts = {"kernelspec": kernel, "localrank": {"code_sha256": code_hash(made)}}
    made.metadata = nbformat.from_dict(facts)
    for cell in made.cells:
        cell.metadata = nbformat.NotebookNode()
    return made


def code_hash(notebook: Any) -> str:
    """Return a hash of the code, which the outputs belong to."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\0".join(code).encode()).hexdigest()


def main() -> None:
    """Run all notebooks and replace them."""
    for path in notebooks():
        made = executed(path)
        with tempfile.NamedTemporaryFile("w", suffix=".ipynb", encoding="utf-8") as file:
            nbformat.write(made, file)
            file.flush()
            shutil.copyfile(file.name, path)


if __name__ == "__main__":
    main()
