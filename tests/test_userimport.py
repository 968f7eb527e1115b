import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from localrank_cli.userimport import CodeError, CodeSpec, SecondImport, import_object


@pytest.mark.parametrize(
    ("text", "place", "name"),
    [
        ("net.py:Net", "net.py", "Net"),
        ("a/b c/net.py:Net", "a/b c/net.py", "Net"),
        ("C:\\x\\net.py:Net", "C:\\x\\net.py", "Net"),
        ("pkg.mod:make", "pkg.mod", "make"),
        ("mod:Outer.Inner", "mod", "Outer.Inner"),
    ],
)
def test_parse(text: str, place: str, name: str) -> None:
    spec = CodeSpec.parse(text)
    assert spec == CodeSpec(place, name)
    assert spec.is_file is place.endswith(".py")


@pytest.mark.parametrize(
    "text", ["", "net.py", "net.py:", ":Net", "Net", "a-b:Net", "a..b:Net", "net.py:a b", "x:3"]
)
def test_text_that_is_not_a_place(text: str) -> None:
    assert CodeSpec.parse(text) is None


def load(path: Path, name: str = "found") -> object:
    return import_object(CodeSpec(str(path), name), "--model")


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("class Outer:\n    class Inner:\n        found = 3\n")
    assert load(tmp_path / "net.py", "Outer.Inner.found") == 3


def test_a_file_with_neighbours(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from beside_userimport import found\n"
        "def later():\n    import later_userimport\n    return later_userimport.found\n"
    )
    (tmp_path / "beside_userimport.py").write_text("found = 'beside'\n")
    (tmp_path / "later_userimport.py").write_text("found = 'later'\n")
    assert load(tmp_path / "net.py") == "beside"
    later = load(tmp_path / "net.py", "later")
    assert callable(later)
    assert later() == "later"


def test_files_of_one_name_in_two_folders(tmp_path: Path) -> None:
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        (folder / "net.py").write_text("from twin_userimport import found\n")
        (folder / "twin_userimport.py").write_text(f"found = {name!r}\n")
    assert [load(tmp_path / name / "net.py") for name in "aba"] == ["a", "b", "a"]


def test_neighbours_hide_nothing_afterwards(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("found = 1\n")
    load(tmp_path / "net.py")
    assert sys.path[0] != str(tmp_path)


def test_dataclasses_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Config:\n    width: int = 3\nfound = Config().width\n"
    )
    assert load(tmp_path / "net.py") == 3


def test_the_working_folder_is_left_as_found(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"import os\nos.chdir({str(tmp_path)!r})\nfound = 1\n")
    before = Path.cwd()
    load(tmp_path / "net.py")
    assert Path.cwd() == before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import nope_userimport",
            r"cannot be imported \(line 1\): ModuleNotFoundError: No module",
        ),
        ("x = 1\nraise ValueError('no\\nluck')", r"\(line 2\): ValueError: no luck"),
        ("def f(:", r"cannot be imported: SyntaxError"),
        ("import sys\nsys.exit(0)", r"\(line 2\): SystemExit: 0"),
        ("import argparse\nexit('usage')", "SystemExit: usage"),
        ("\0", "cannot be imported"),
        ("other = 1\n_hidden = 2", r"has no 'found'"),
    ],
)
def test_files_that_fail(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "net.py"
    path.write_text(source)
    with pytest.raises(CodeError, match=message) as caught:
        load(path)
    assert caught.value.what.startswith("--model")
    assert str(path) in caught.value.what
    assert "\n" not in str(caught.value)
    assert caught.value.advice


def test_the_names_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("Net = 1\n_hidden = 2\nmake = 3\n")
    with pytest.raises(CodeError) as caught:
        load(tmp_path / "net.py")
    assert caught.value.advice == "It has: Net, make."


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match="there is no file"):
        load(tmp_path / "nope.py")


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pkg_userimport").mkdir()
    (tmp_path / "pkg_userimport/mod.py").write_text("found = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert import_object(CodeSpec("pkg_userimport.mod", "found"), "--model") == 5
    with pytest.raises(CodeError, match=r"pkg_userimport\.nope cannot be imported: ModuleNotFound"):
        import_object(CodeSpec("pkg_userimport.nope", "found"), "--model")
    assert Path.cwd() == tmp_path
    assert os.fspath(tmp_path) in sys.path


def test_a_second_import_runs_the_users_modules_anew_and_leaves_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "second_userimport").mkdir()
    (tmp_path / "second_userimport/__init__.py").write_text("")
    (tmp_path / "second_userimport/mod.py").write_text(
        "import math\nimport near_userimport\nfound = [math, near_userimport.value]\n"
    )
    (tmp_path / "near_userimport.py").write_text("value = []\n")
    spec = CodeSpec("second_userimport.mod", "found")
    first: Any = import_object(spec, "--model")
    before, path = dict(sys.modules), list(sys.path)
    second = SecondImport(spec)
    found: Any = second.load("--model")
    assert found[0] is first[0]
    assert found[1] is not first[1]
    assert sys.modules == before
    assert sys.path == path
    assert before["second_userimport"].mod is before["second_userimport.mod"]
    with second.active():
        assert importlib.import_module("near_userimport").value is found[1]
    assert sys.modules == before
