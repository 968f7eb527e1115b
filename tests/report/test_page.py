import json
import re
from typing import Any

import pytest

from localrank_cli.report.data import page_data
from localrank_cli.report.page import render, settings_of
from tests.figures.tables import row, table

import pandas as pd  # isort: skip


def made(frame: pd.DataFrame, **changes: Any) -> str:
    arguments = {"title": "T", "subtitle": "S", "manifest": None, "footer": "F"} | changes
    return render(page_data(frame)[0], **arguments)


def data_of(page: str) -> Any:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


def test_the_page_holds_its_data() -> None:
    frame = table()
    assert data_of(made(frame)) == page_data(frame)[0]


def test_nothing_is_loaded_from_anywhere() -> None:
    page = made(table())
    assert "default-src 'none'" in page
    assert not re.search(r"<link|<img|<iframe|src=|@import|url\(|fetch\(|XMLHttp", page)
    links = set(re.findall(r"https?://[^\s\"']+", page))
    assert links == {"http://www.w3.org/2000/svg"}  # a name, not an address


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", "<!--", "<b>", "$title", "a&b", "\u2028", '"']
)
def test_names_are_data_and_nothing_else(name: str) -> None:
    frame = pd.DataFrame([row(name, 0, 0, layer=name)])
    page = made(frame, title=name, subtitle=name, footer=name)
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert data_of(page)["runs"][0]["name"] == name
    assert data_of(page)["layers"] == [name]


def test_every_measure_has_its_sentence() -> None:
    page = made(table())
    for word in ("local rank", "effective rank", "Jacobian norm"):
        assert f"<dt>{word}</dt><dd>" in page
    assert "<dt>stable rank</dt>" not in page  # not in this table


def test_a_page_names_no_folders_of_the_machine() -> None:
    manifest = {
        "localrank_manifest": 1,
        "command": [
            "/home/me/env/bin/localrank",
            "analyze",
            "/data/my runs/a/",
            "runs/b",
            "--model=/home/me/nets.py:Net",
            "--data-scale",
            "1/255",
        ],
        "series": [{"run": "a", "model": "/home/me/nets.py:Net", "data": "/data/x.npz"}],
    }
    found = dict(settings_of(manifest))
    assert found["command"] == (
        "localrank analyze a/ runs/b --model=nets.py:Net --data-scale 1/255"
    )
    assert (found["model"], found["data"]) == ("nets.py:Net", "x.npz")


def test_settings_from_the_manifest() -> None:
    shared = {"seed": 0, "dtype": "float64", "tolerances": ["atol=0.01"], "wrt": None}
    manifest = {
        "localrank_manifest": 1,
        "series": [
            {"run": "a", "model": "MLP <1>", "point_indices": list(range(9)), **shared},
            {"run": "b", "model": "MLP 2", "point_indices": list(range(9)), **shared},
        ],
        "versions": {"torch": "2.13", "python": "3.11"},
        "command": ["localrank", "analyze", "x" * 1000],
    }
    pairs = dict(settings_of(manifest))
    assert pairs["a: model"] == "MLP <1>"
    assert pairs["b: model"] == "MLP 2"
    assert pairs["seed"] == "0"
    assert pairs["points used"] == "9: 0, 1, 2, 3, 4, 5, 6, 7, 8"
    assert pairs["versions"] == "torch 2.13, python 3.11"
    assert len(pairs["command"]) == 400
    assert "with respect to" not in pairs
    page = made(table(), manifest=manifest)
    assert "<dd>MLP &lt;1&gt;</dd>" in page
    assert "The table has no manifest" in made(table())


@pytest.mark.parametrize("manifest", [{}, {"series": None}, {"series": ["x"]}, {"series": [{}]}])
def test_an_odd_manifest_is_no_error(manifest: dict[str, Any]) -> None:
    assert "Settings" in made(table(), manifest=manifest)


def test_eight_layers_and_a_hundred_steps_are_small() -> None:
    frame = table(layers=8, steps=range(100), tolerances=("atol=0.01", "atol=0.1", "rtol=eps"))
    assert len(made(frame).encode()) < 1_000_000
