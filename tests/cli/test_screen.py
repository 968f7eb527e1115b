import io
import sys
import time
import warnings

import pytest
from rich.console import Console

from localrank_cli.cli.screen import Screen, stdout_for_data


def test_each_note_is_printed_once_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    screen = Screen(quiet=False, verbose=False)
    screen.note("run[seed=3]: [bold]x\ny")
    screen.note("run[seed=3]: [bold]x\ny")
    screen.detail("nobody asked")
    screen.warn("warning: now")
    assert capfd.readouterr() == (
        "",
        "localrank: note: run[seed=3]: [bold]x y\nlocalrank: warning: now\n",
    )


def test_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    screen = Screen(quiet=True, verbose=True)
    screen.note("a")
    screen.detail("b")
    screen.warn("warning: c")
    with screen.progress(3) as steps:
        steps.done("x")
    assert capfd.readouterr() == ("", "localrank: warning: c\n")


def test_verbose(capfd: pytest.CaptureFixture[str]) -> None:
    Screen(quiet=False, verbose=True).detail("a")
    assert capfd.readouterr().err == "localrank: a\n"


def test_long_lines_are_not_wrapped(capfd: pytest.CaptureFixture[str]) -> None:
    Screen(quiet=False, verbose=False).note("word " * 100)
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_break_at_words_on_a_terminal(width: int) -> None:
    screen = Screen(quiet=False, verbose=False)
    stream = io.StringIO()
    screen.console = Console(file=stream, force_terminal=True, width=width, soft_wrap=True)
    path = "/a/" + 70 * "long" + "/path.pt"
    text = f"error: {path}: {'expected some words and got others ' * 6}[bold]at the end 界界"
    screen.warn(text)
    shown = stream.getvalue().splitlines()
    assert " ".join(line.strip() for line in shown) == f"localrank: {text}"
    assert all(len(line) <= width for line in shown if path not in line)
    assert sum(path in line for line in shown) == 1
    assert max(map(len, shown[2:])) > width - 12  # no earlier than needed


def test_lines_do_not_break_on_a_terminal_of_unknown_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = Screen(quiet=False, verbose=False)
    stream = io.StringIO()
    screen.console = Console(file=stream, force_terminal=True, soft_wrap=True)
    screen.warn("word " * 100)
    assert stream.getvalue().count("\n") == 1


def test_no_progress_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with Screen(quiet=False, verbose=False).progress(3) as steps:
        steps.done("x")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_long_words_leave_room_for_numbers(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    screen = Screen(quiet=False, verbose=False)
    screen.console = Console(file=io.StringIO(), force_terminal=True, width=width)
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with screen.progress(9) as steps:
        bar = steps._bar
        assert bar is not None
        bar.get_time = lambda: now
        for step in range(1, 9):
            now += 40  # longer than rich remembers by default
            steps.done(f"checkpoints step {step}00")
        for _ in range(5):
            now += 1
            steps.within("checkpoints step 900", 0.5, "layer conv2, points 1 to 64 of 64")
        shown = Console(file=io.StringIO(), width=width, color_system=None)
        shown.print(bar.get_renderable())
    checkpoints, inner = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]  # this console's file is a StringIO
    assert "step 800 " in checkpoints
    assert " 8/9 " in checkpoints
    assert "left 0:00:40" in checkpoints
    assert " 50/100 " in inner
    assert "step 9" in inner
    assert ("of 64" in inner) == (width == 120)


def test_stdout_is_kept_for_data(capsys: pytest.CaptureFixture[str]) -> None:
    stdout = sys.stdout
    screen = Screen(quiet=False, verbose=False)
    with stdout_for_data(screen) as data:
        print("from the model")  # noqa: T201  # what is tested
        warnings.simplefilter("default")
        warnings.warn("careful", UserWarning, stacklevel=1)
        data.write("a,b\n")
    assert sys.stdout is stdout
    out, err = capsys.readouterr()
    assert out == "a,b\n"
    assert err == "from the model\nlocalrank: note: UserWarning: careful\n"


def test_a_log_has_a_line_a_minute_of_a_long_checkpoint(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("localrank_cli.cli.screen.time.monotonic", lambda: now)
    with Screen(quiet=False, verbose=False).progress(2) as steps:
        for second in range(101):
            now = float(second)
            steps.within("run step 5", second / 200, "layer a, point 1 of 2")
    lines = capfd.readouterr().err.splitlines()
    # After 20 seconds and a minute later: 20 s for a tenth leave 180 s, 80 s for 0.4 leave 120 s.
    place = "layer a, point 1 of 2"
    assert lines == [
        f"localrank: progress: run step 5: 10 % done, {place}, about 3 min left of this checkpoint",
        f"localrank: progress: run step 5: 40 % done, {place}, about 2 min left of this checkpoint",
    ]
