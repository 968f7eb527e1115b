"""Add to the site what lies outside docs/ (README, changelog, benchmarks, scripts), and notebooks.

mkdocs calls these functions by their names (`hooks` in mkdocs.yml).
"""

import base64
import json
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
    for notebook in sorted((ROOT / "docs").glob("*.ipynb")):
        text, pictures = notebook_page(notebook)
        files.append(File.generated(config, f"{notebook.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, name, content=content))
    return files


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook with its stored outputs as Markdown, and the pictures it shows by name."""
    parts, pictures = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the code above draws]({name})")
            elif "text/html" in data:
                parts.append(_plain_table("".join(data["text/html"])))
            else:
                shown = "".join(output.get("text") or data["text/plain"])
                parts.append(f"```text\n{shown.rstrip()}\n```")
    parts.append(f'<a href="../{path.name}" download>Download this notebook</a>\n')
    return "\n\n".join(parts), pictures


def _plain_table(table: str) -> str:
    """Return the table of a DataFrame without the look of pandas, to get that of the site."""
    table = re.sub(r"<style.*?</style>\n?", "", table, flags=re.DOTALL)
    return re.sub(r"<table[^>]*>", "<table>", table)


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
    page = path.removeprefix("docs/")
    if path.startswith("docs/") and page.endswith(".ipynb"):
        page = page.replace(".ipynb", ".md")
    return PAGES.get(path, page)
