"""The documentation as a site: every link leads somewhere, and every page is listed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import ROOT

pytestmark = pytest.mark.pages

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
    notebook = (tmp_path / "notebook/index.html").read_text(encoding="utf-8")
    for shown in ('src="../notebook_0.png"', "<table", "step 0: accuracy", "with torch.no_grad()"):
        assert shown in re.sub("</?(span|a)[^>]*>", "", notebook)
    assert (tmp_path / "notebook_0.png").read_bytes().startswith(b"\x89PNG")
    (download,) = re.findall(r'href="([^"]+)" download', notebook)
    assert (tmp_path / "notebook" / download).is_file()


def test_every_page_has_a_place_in_the_order() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    pages |= {f"{notebook.stem}.md" for notebook in (ROOT / "docs").glob("*.ipynb")}
    missing = {page for page in pages if f"- {page}" not in listed}
    assert missing == set()
