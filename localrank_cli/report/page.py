"""The page as one file: template, style, script and data."""

import html
import json
import re
from importlib.resources import files
from string import Template
from typing import Any

from localrank_cli.report.data import Json
from localrank_cli.results.columns import MEANINGS

_SCRIPTS = ("scales.js", "chart.js", "page.js")
_LONGEST_SETTING = 400  # characters, about five lines of the page
_SERIES = (
    ("model", "model"),
    ("model_arguments", "model arguments"),
    ("data", "data"),
    ("data_shape", "shape of a point"),
    ("data_scale", "data scale"),
    ("n_data", "points in the data"),
    ("point_indices", "points used"),
    ("seed", "seed"),
    ("wrt", "with respect to"),
    ("dtype", "dtype"),
    ("tolerances", "tolerances"),
    ("noise", "noise"),
)
_RUN = (
    ("finished", "finished"),
    ("command", "command"),
    ("device_name", "device"),
    ("threads", "threads"),
    ("seconds", "seconds"),
    ("versions", "versions"),
)


def render(data: Json, title: str, subtitle: str, manifest: Json | None, footer: str) -> str:
    """Render the page, as HTML that loads nothing.

    `data` is from `page_data`, and `manifest` that of the table, if there is one.
    """
    assets = files("localrank_cli.report") / "assets"

    def asset(name: str) -> str:
        """Return the text of a file of the page's template."""
        return (assets / name).read_text(encoding="utf-8")

    # Escaped, so that no text of the data can end the element that contains it.
    embedded = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    embedded = embedded.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("&", "\\u0026")
    return Template(asset("page.html")).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        style=asset("page.css"),
        meanings=_meanings([one["name"] for one in data["measures"]]),
        settings=_settings(manifest),
        footer=html.escape(footer),
        data=embedded,
        script="\n".join(asset(name) for name in _SCRIPTS),
    )


def settings_of(manifest: Json) -> list[tuple[str, str]]:
    """Return the settings of a manifest as labels and readable values, without empty ones."""
    found: list[tuple[str, str]] = []
    series = [one for one in manifest.get("series") or [] if isinstance(one, dict)]
    for key, label in _SERIES:
        texts = {str(one.get("run")): _text(one.get(key)) for one in series}
        if len(set(texts.values())) == 1:  # the same for all runs: listed once
            found.append((label, next(iter(texts.values()))))
        else:
            found += [(f"{run}: {label}", text) for run, text in texts.items()]
    found += [(label, _text(manifest.get(key))) for key, label in _RUN]
    return [(label, text) for label, text in found if text]


def _text(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, dict):
        text = ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    elif isinstance(value, list):
        numbers = all(isinstance(part, (int, float)) for part in value)
        text = (", " if numbers else " ").join(_without_folders(str(part)) for part in value)
        text = f"{len(value)}: {text}" if numbers and len(value) > 8 else text
    else:
        text = _without_folders(str(value))
    return text if len(text) <= _LONGEST_SETTING else text[: _LONGEST_SETTING - 4] + " ..."


def _without_folders(word: str) -> str:
    """Strip folders, which are private and of no use to a recipient."""
    return re.sub(r"(^|=)/.*/(?=[^/])", r"\1", word)


def _meanings(names: list[str]) -> str:
    return "\n".join(
        f"<dt>{html.escape(MEANINGS[name].label)}</dt><dd>{html.escape(MEANINGS[name].sentence)}"
        f" Column <code>{name}</code>.</dd>"
        for name in names
    )


def _settings(manifest: Json | None) -> str:
    if manifest is None:
        return "<p>The table has no manifest.</p>"
    pairs = "\n".join(
        f"<dt>{html.escape(label)}</dt><dd>{html.escape(text)}</dd>"
        for label, text in settings_of(manifest)
    )
    return f"<dl>\n{pairs}\n</dl>"
