"""docs/real_size.md: each section's network is built and its commands run as they are written."""

import re
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.program import run, run_python
from tests.test_docs import ROOT, sections
from tests.warm import preload_libraries

pytestmark = pytest.mark.pages

PAGE = ROOT / "docs/real_size.md"
TABLES = {
    # Six blocks at two steps; ranks of a 128 x 128 matrix.
    "A decoder: Pythia": ("pythia.csv", 12, 128, "last"),
    # Twelve blocks from the embeddings, eleven from the block before, at two steps.
    "A vision transformer": ("vit.csv", 46, 384, "first"),
    # Of 16 blocks those that keep the shape, at one step; up to 2048 channels.
    "A ResNet": ("resnet.csv", 12, 2048, "same:1"),
}


# A quarter of the width, few words and one short text: the commands and the shape of the table.
SMALL = {
    "bos_token_id=0": "bos_token_id=0, vocab_size=64",
    "50304": "64",
    "hidden_size=128": "hidden_size=32",
    "intermediate_size=512": "intermediate_size=128",
    "(4, 32)": "(1, 6)",
}


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    preload_libraries()


def run_section(
    title: str, folder: Path, patch: pytest.MonkeyPatch, changes: dict[str, str]
) -> pd.DataFrame:
    pytest.importorskip("transformers")
    (build,) = re.findall(r"```python\n(.*?)```", sections(PAGE)[title], flags=re.DOTALL)
    for old, new in changes.items():
        assert build.count(old) == 1
        build = build.replace(old, new)
    (folder / "build.py").write_text(build)
    patch.chdir(folder)
    run_python("build.py")
    for block in re.findall(r"```sh\n(.*?)```", sections(PAGE)[title], flags=re.DOTALL):
        words = block.replace("\\\n", " ").replace("'", "").split()
        assert words[0] == "localrank"
        outcome = run(*words[1:])
        assert outcome.code == 0, outcome.stderr
    return pd.read_csv(folder / TABLES[title][0], keep_default_na=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "changes", "narrower"),
    [
        pytest.param("A decoder: Pythia", SMALL, 4, id="a small decoder"),
        *(pytest.param(title, {}, 1, id=title, marks=pytest.mark.long) for title in TABLES),
    ],
)
def test_the_commands_of_the_page_give_the_table(
    title: str,
    changes: dict[str, str],
    narrower: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, n_rows, width, positions = TABLES[title]
    table = run_section(title, tmp_path, monkeypatch, changes)
    assert len(table) == n_rows
    assert set(table["status"]) == {"ok"}
    assert set(table["method"]) == {"exact"}
    assert set(table["positions"]) == {positions}
    assert set(table["jacobian"]) == {"J-1"}
    assert table["max_rank"].max() == width // narrower
    # A random block adds something in most directions, at the default tolerance.
    assert (table["local_rank"] > 0).all()


def test_every_section_is_run() -> None:
    assert list(sections(PAGE)) == list(TABLES)
