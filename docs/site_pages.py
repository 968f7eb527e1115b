"""Add to the site what lies outside docs/: the README, the changelog, the benchmarks, scripts.

mkdocs calls these functions by their names (`hooks` in mkdocs.yml).
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Where a file of the repository is on the site, by its path from the root.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
FILES = ("LICENSE", "CITATION.cff", "CONTRIBUTING.md")
SCRIPTS = "tests/trainings"
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files to those of docs/."""
    for path, page in PAGES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_moved(text, path)))
    scripts = [str(one.relative_to(ROOT)) for one in (ROOT / SCRIPTS).glob("*.py")]
    for path in (*FILES, *scripts):
        name = _on_site(path)
        files.append(File.generated(config, name, content=(ROOT / path).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to where the files are on the site."""
    if page.file.src_uri in PAGES.values():
        return markdown
    return _moved(markdown, f"docs/{page.file.src_uri}")


def _moved(text: str, path: str) -> str:
    """Return the text of a file of the repository with its links as they are on the site."""
    folder = posixpath.dirname(path)

    def led(match: re.Match[str]) -> str:
        return f"]({_on_site(posixpath.normpath(posixpath.join(folder, match[1])))}"

    return _LINK.sub(led, text)


def _on_site(path: str) -> str:
    """Return the place on the site of a file of the repository; all pages lie in one folder."""
    if path.startswith(f"{SCRIPTS}/") or path in FILES:
        # As text, which a browser shows.
        return f"files/{posixpath.basename(path)}.txt"
    return PAGES.get(path, path.removeprefix("docs/"))
