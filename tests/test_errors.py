import os

import pytest

from localrank_cli.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("run[seed=3]: ä → [bold]", "run[seed=3]: ä → [bold]"),
        ("two\nlines\tand\r more", "two lines and more"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("\u202eright to left", "\\u202eright to left"),
        (os.fsdecode(b"r\xff"), "r\\udcff"),
        ("", ""),
    ],
)
def test_names_from_files_do_not_steer_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()
