"""README, docs and the program say the same: examples are run, options and columns compared."""

import contextlib
import fcntl
import importlib.util
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from localrank_cli.checkpoints.names import step_in_name
from localrank_cli.cli.main import app
from localrank_cli.options.folder import read_folder_settings
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.results.columns import COLUMNS, FLOAT, INT, OPTIONAL_INT, STR
from localrank_cli.results.manifest import make_manifest
from localrank_cli.run.output import about_run
from localrank_cli.run.plan import make_plan
from tests.warm import run_warm

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs").glob("*.ipynb"))
PAGES_WITH_EXAMPLES = [
    "README.md",
    "docs/first_steps.md",
    "docs/checkpoints.md",
    "docs/measures.md",
    "docs/models.md",
]
PAGES_WITH_EXAMPLES += ["docs/pictures.md", "docs/table.md", "docs/compare.md"]
PAGES_WITH_EXAMPLES += ["docs/local_rank.md", "docs/information.md", "docs/live.md"]
PAGES_WITH_EXAMPLES += ["docs/compress.md"]
# What a page's examples import beside localrank and what it needs.
EXTRAS = {"docs/live.md": ("lightning", "transformers", "accelerate")}
FENCE = re.compile(r"^```(\w+)\n(.*?)\n```$", flags=re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")
TREND = re.compile("[▁▂▃▄▅▆▇█]+")


@dataclass(frozen=True)
class Example:
    """One fenced block of a page, or one command of a console block."""

    language: str  # python, or console
    code: str
    output: list[str]
    numbers_vary: bool  # where training has to give other numbers elsewhere


def sections(page: Path) -> dict[str, str]:
    """Return the sections of a page by their titles."""
    parts = page.read_text(encoding="utf-8").split("\n## ")[1:]
    return {part.split("\n", 1)[0]: part for part in parts}


def examples(text: str) -> list[Example]:
    found: list[Example] = []
    blocks = list(FENCE.finditer(text))
    for index, block in enumerate(blocks):
        language, body = block.groups()
        vary = text[: block.start()].endswith("<!-- numbers vary -->\n")
        if language == "python":
            output: list[str] = []
            following = blocks[index + 1] if index + 1 < len(blocks) else None
            # A text block right after a python block is what the python block prints.
            if following is not None and following.group(1) == "text":
                between = text[block.end() : following.start()].strip()
                output = [] if between else following.group(2).splitlines()
            found.append(Example(language, body, output, vary))
        elif language == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                lines = part.splitlines()
                end = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
                command = "\n".join(lines[: end + 1])
                found.append(Example(language, command, lines[end + 1 :], vary))
    return found


def at_a_terminal(command: str, folder: Path) -> tuple[int, list[str]]:
    """Runs a shell command at a terminal of 80 columns without colours or a moving cursor."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
    kept |= {"PATH": path, "TERM": "dumb", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    # Help is laid out by what typer finds at its import; the environment is that of this function.
    is_cold = "--help" in command or re.search(r"\w=\S* +localrank ", command)
    with contextlib.nullcontext("") if is_cold else warm_shell(kept) as function:
        process = subprocess.Popen(
            ["bash", "-c", function + command],
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            cwd=folder,
            env=kept,
        )
        os.close(terminal)
        lines = read_all(main)
        return process.wait(), lines


@contextlib.contextmanager
def warm_shell(environment: dict[str, str]) -> Iterator[str]:
    """Yield a function of the shell that runs localrank in a process that has torch already.

    It has the outputs of the function: a terminal, a file or a pipe.
    """
    if not Path("/proc/self/fd").is_dir():
        yield ""  # the program that is installed
        return
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(max_workers=1) as pool:
        asked, answered = Path(place, "asked"), Path(place, "answered")
        os.mkfifo(asked)
        os.mkfifo(answered)

        def serve() -> None:
            while request := asked.read_text("utf-8"):
                shell, folder, *words = request.split("\0")[:-1]
                out, err = (Path(f"/proc/{shell}/fd/{number}") for number in (1, 2))
                status = run_warm(tuple(words), Path(folder), environment, out, err)
                answered.write_text(f"{status}\n", "utf-8")

        serving = pool.submit(serve)
        yield (
            f'localrank() {{ printf \'%s\\0\' $BASHPID "$PWD" "$@" > {asked};'
            f" read status < {answered}; return $status; }}\n"
        )
        asked.write_text("", "utf-8")
        serving.result()


def read_all(main: int) -> list[str]:
    """Read the output of a terminal until no process has it open."""
    written = b""
    # Linux ends a terminal without writers with an error.
    with contextlib.suppress(OSError), open(main, "rb", buffering=0) as stream:
        while part := stream.read(65536):
            written += part
    return written.decode().splitlines()


def in_python(code: str, namespace: dict[str, Any]) -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "<example>", "exec"), namespace)
    return printed.getvalue().splitlines()


def comparable(lines: list[str], numbers_vary: bool) -> list[list[str | float]]:
    """Words and numbers of each line, without rules, blank lines and widths."""
    kept: list[list[str | float]] = []
    for line in lines:
        text = re.sub("─+", "─", line)
        if numbers_vary:
            text = NUMBER.sub("N", TREND.sub("T", text))
        words = text.split()
        if words:
            kept.append([float(w) if NUMBER.fullmatch(w) else w for w in words])
    return kept


def assert_same(seen: list[str], example: Example) -> None:
    message = f"$ {example.code}\n" + "\n".join(seen)
    ours = comparable(seen, example.numbers_vary)
    theirs = comparable(example.output, example.numbers_vary)
    assert len(ours) == len(theirs), message
    for line, wanted in zip(ours, theirs, strict=True):
        if any("..." in str(word) for word in wanted):
            pattern = ".*".join(re.escape(p) for p in " ".join(map(str, wanted)).split("..."))
            assert re.fullmatch(pattern, " ".join(map(str, line))), message
            continue
        assert len(line) == len(wanted), message
        for word, other in zip(line, wanted, strict=True):
            if isinstance(word, float) and isinstance(other, float):
                assert math.isclose(word, other, rel_tol=1e-6), message
            else:
                assert word == other, message


def check_commands(running: list[tuple[Example, Future[tuple[int, list[str]]]]]) -> None:
    for example, result in running:
        status, seen = result.result()
        fails = any("error: " in line for line in example.output)
        assert (status != 0) == fails, (example.code, seen)
        assert_same(seen, example)
    running.clear()


@pytest.mark.pages
@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES)
def test_examples_do_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for extra in EXTRAS.get(page, ()):
        pytest.importorskip(extra)
    if page in EXTRAS:
        warnings.simplefilter("ignore")  # of those libraries
    (tmp_path / "sample_checkpoints").symlink_to(ROOT / "sample_checkpoints")
    monkeypatch.chdir(tmp_path)
    found = examples((ROOT / page).read_text(encoding="utf-8"))
    assert found
    namespace: dict[str, Any] = {"__name__": "__main__"}
    running: list[tuple[Example, Future[tuple[int, list[str]]]]] = []
    # Commands that follow each other run two at a time, except where one reads what another wrote;
    # Python waits for those before it.
    in_order = {"docs/pictures.md", "docs/compare.md", "docs/compress.md"}
    at_a_time = 1 if page in in_order else 2
    with torch.random.fork_rng(devices=[]), ThreadPoolExecutor(max_workers=at_a_time) as pool:
        for example in found:
            if example.language == "console":
                running.append((example, pool.submit(at_a_terminal, example.code, tmp_path)))
                continue
            check_commands(running)
            # A first line such as "# train.py" names the file that the block is.
            name = re.match(r"# (\w+\.py)\n", example.code)
            if name:
                (tmp_path / name.group(1)).write_text(example.code + "\n", encoding="utf-8")
            assert_same(in_python(example.code, namespace), example)
        check_commands(running)


def test_the_demo_table_in_the_readme_is_that_of_the_samples() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    results = (ROOT / "sample_checkpoints/mnist_mlp/README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in results.splitlines() if re.match(r"\| \d", line)]
    ranks = [[float(rank) for rank in row[4].split("/")] for row in rows]
    effective = [[float(rank) for rank in row[6].split("/")] for row in rows]
    (demo,) = [body for _, body in FENCE.findall(readme) if "make demo" in body]
    shown = re.findall(r"^(\d) +\d+ x 784 (.*)$", demo, flags=re.MULTILINE)
    assert [name for name, _ in shown] == ["0", "2", "4", "6"]
    for layer, (_, line) in enumerate(shown):
        first, peak, at_step, last, _, effective_first, arrow, effective_last = line.split()
        course = [row[layer] for row in ranks]
        assert [float(first), float(peak), float(last)] == [course[0], max(course), course[-1]]
        assert course[[int(row[0]) for row in rows].index(int(at_step))] == max(course)
        assert arrow == "->"
        assert float(effective_first) == effective[0][layer]
        assert float(effective_last) == effective[-1][layer]


def test_the_settings_on_the_page_are_those_of_the_sample() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    shown = [body for language, body in FENCE.findall(page) if language == "toml"]
    file = (ROOT / "sample_checkpoints/mnist_mlp/localrank.toml").read_text(encoding="utf-8")
    assert shown == [file.strip()]


def commands() -> dict[str, Any]:
    program = typer.main.get_command(app)
    return {"": program} | dict(getattr(program, "commands", {}))


def options(command: Any) -> set[str]:
    own = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    return {name for name in own if name.startswith("--")} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_names_exists(page: Path) -> None:
    known = set().union(*(options(command) for command in commands().values()))
    known |= {"--check", "--constraint"}  # of docs/make_cli.py and pip
    known |= {"--array", "--requeue", "--signal", "--only"}  # of sbatch and benchmarks/bench.py
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*(?<!-)", page.read_text(encoding="utf-8")))
    assert named <= known


def test_every_option_is_on_the_page_and_has_help() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    for command in commands().values():
        for parameter in command.params:
            assert getattr(parameter, "help", None), parameter.name
        for option in options(command):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", page), option


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    wanted = re.search(r"^typer==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert wanted
    if typer.__version__ != wanted.group(1):
        pytest.skip(f"typer {typer.__version__} lays help out in another way")
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs/make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    make_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_cli)
    assert make_cli.main(["--check"]) == 0


def table_rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first Markdown table under a heading."""
    section = page.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1]
    section = section.split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_of_the_table_names_all_columns_in_order() -> None:
    words = {STR: "str", INT: "int", OPTIONAL_INT: "int", FLOAT: "float"}
    rows = table_rows(ROOT / "docs/table.md", "Columns")
    assert [(row[0], row[1]) for row in rows] == [
        (f"`{name}`", words[kind]) for name, kind in COLUMNS.items()
    ]
    assert all(row[2] for row in rows)


def test_the_page_of_the_table_names_all_keys_of_the_manifest() -> None:
    folder = ROOT / "sample_checkpoints/gaussian_teacher"
    chosen = AnalyzeOptions((folder / "step_0.safetensors",), points=2)
    about = about_run(make_plan(chosen, lambda note: None), seconds=0.0)
    manifest = make_manifest([], [], [], about, is_complete=True)
    rows = table_rows(ROOT / "docs/table.md", "The manifest")
    assert [row[0] for row in rows] == [f"`{key}`" for key in manifest]


def test_names_tell_the_steps_that_the_page_says() -> None:
    rows = table_rows(ROOT / "docs/checkpoints.md", "Steps")
    assert len(rows) > 5
    for name, step in rows:
        stem = re.sub(r"\.[a-z]+$", "", name.strip("`"))
        assert step_in_name(stem) == int(step), name


def test_the_page_of_settings_names_all_keys(tmp_path: Path) -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    sentence = page.split("The keys are ", 1)[1].split(". Any other", 1)[0]
    named = [name.strip("[]") for name in re.findall(r"`(.*?)`", sentence)]
    (tmp_path / "localrank.toml").write_text("nonsense = 1\n", encoding="utf-8")
    with pytest.raises(Exception, match="unknown key") as caught:
        read_folder_settings(tmp_path)
    assert ", ".join(named) in str(caught.value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        file = page.parent / place if place else page
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings]
            assert anchor in slugs, target
