"""The notebook of the docs runs, and what is stored with it belongs to its code."""

import importlib.util
import json
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.test_docs import NUMBER, ROOT

pytestmark = pytest.mark.pages

NOTEBOOK = ROOT / "docs/notebook.ipynb"
WORDS = re.compile(r"\s+")


def load_maker() -> ModuleType:
    for package in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(package, reason="needs pip install '.[notebook]'")
    spec = importlib.util.spec_from_file_location("make_notebook", ROOT / "docs/make_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored() -> Any:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def outputs(notebook: Any) -> list[list[tuple[str, str]]]:
    """What each cell shows: its kind, and its words without the numbers, which vary."""
    found = []
    for cell in notebook["cells"]:
        shown = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = output.get("name") or sorted(data)[0]
            text = "".join(output.get("text") or data.get("text/plain", ""))
            shown.append((kind, WORDS.sub(" ", NUMBER.sub("N", text)).strip()))
        found.append(shown)
    return found


def rows_of(notebook: Any, header: str) -> list[list[str]]:
    """The words of each line below the header of a table."""
    texts = (
        "".join(output.get("text") or output["data"]["text/plain"])
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
    )
    (text,) = [text for text in texts if re.search(rf"^{header} +$", text, re.MULTILINE)]
    return [line.split() for line in text.splitlines()[2:]]


def assert_reading(notebook: Any) -> None:
    """Check what the notebook's text says of its numbers; layers are in order of depth."""
    ranks = {row[0]: list(map(float, row[1:])) for row in rows_of(notebook, "step")}
    assert ranks["0"][0] == ranks["300"][0] == 64.0
    assert all(20 < rank < 45 for rank in ranks["0"][1:3])
    assert ranks["40"][1] > ranks["0"][1]
    assert ranks["1200"][2] < ranks["300"][2] / 2  # "by more than half"
    rows = [(row[-5], list(map(float, row[-4:]))) for row in rows_of(notebook, "run +step")]
    control, decay = dict(rows[:4]), dict(rows[4:])
    assert decay["1200"][1] < 0.8 * decay["300"][1]  # "by a third"
    assert control["1200"][1] > 0.95 * control["300"][1]
    assert decay["1200"][2] > 0.8 * decay["300"][2]  # "only slightly"


def test_the_notebook_runs_and_shows_what_is_stored() -> None:
    kept = stored()
    fresh = load_maker().executed(NOTEBOOK)
    assert outputs(fresh) == outputs(kept)
    assert not [kind for cell in outputs(fresh) for kind, _ in cell if kind == "stderr"]
    assert_reading(fresh)
    assert_reading(kept)


def test_the_outputs_are_those_of_the_code() -> None:
    maker = load_maker()
    (path,) = maker.notebooks()
    assert path == NOTEBOOK
    kept = maker.nbformat.read(path, as_version=4)
    assert kept.metadata.localrank.code_sha256 == maker.code_hash(kept)
    counts = [cell.execution_count for cell in kept.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    kept.cells[1].source += "\n"
    assert kept.metadata.localrank.code_sha256 != maker.code_hash(kept)


def test_nothing_of_the_machine_is_stored() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    for place in (str(ROOT), str(Path.home()), tempfile.gettempdir(), "site-packages", "/home/"):
        assert f"{place}/" not in text
    assert set(stored()["metadata"]) == {"kernelspec", "localrank"}
    assert len(text) < 200_000  # a picture more than needed would show here
