from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from localrank_cli.errors import SettingsError, UsageError
from localrank_cli.figures import ranks, saved, styled
from tests.figures.tables import table

STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", STARTS)
def test_files_are_the_same_bytes_each_time(suffix: str) -> None:
    contents = []
    for _ in range(2):
        with styled():
            contents.append(saved(ranks(table())[0], suffix))
    assert contents[0] == contents[1]
    assert contents[0].startswith(STARTS[suffix])


def test_pixels_follow_dpi() -> None:
    with styled():
        content = saved(ranks(table())[0], ".png", 50)
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (320, 200)


def test_a_style_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "paper.mplstyle"
    path.write_text("font.size: 17\nbackend: TkAgg\n")
    backend = mpl.rcParams["backend"]
    with styled(str(path)):
        assert mpl.rcParams["font.size"] == 17
        assert mpl.rcParams["backend"] == backend
    with styled("grayscale"):
        assert mpl.rcParams["image.cmap"] == "gray"


@pytest.mark.parametrize("text", ["font.size: large-ish\n", "\xff", "axes.prop_cycle: nonsense(\n"])
def test_an_invalid_style_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.mplstyle"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError, match="matplotlib cannot read it"), styled(str(path)):
        pass


def test_settings_of_the_user_have_no_effect() -> None:
    with styled():
        expected = saved(ranks(table())[0], ".svg")
    theirs: Any = {"figure.facecolor": "red", "svg.hashsalt": "theirs", "text.usetex": True}
    with mpl.rc_context({**theirs, "axes.prop_cycle": "cycler('color', ['k'])", "font.size": 30}):
        with styled():
            assert saved(ranks(table())[0], ".svg") == expected
        assert mpl.rcParams["text.usetex"]


def test_an_unknown_style() -> None:
    with pytest.raises(UsageError, match="neither a file nor a style"), styled("nope"):
        pass
