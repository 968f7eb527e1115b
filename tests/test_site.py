"""The documentation as a site: every link leads somewhere, and every page is listed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import ROOT

pytest.importorskip("material", reason="mkdocs-material is not installed: pip install '.[docs]'")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = {page.parent.name for page in tmp_path.glob("*/index.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= built
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "first_steps/" in text
    assert (tmp_path / "files/nanogpt.py.txt").is_file()


def test_every_page_has_a_place_in_the_order() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    missing = {page for page in pages if f"- {page}" not in listed}
    assert missing == set()
