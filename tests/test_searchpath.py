"""No module of the current folder runs in place of a real one, however the program is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

import localrank_cli
from localrank_cli.searchpath import current_folder_last, program_words
from tests.cli.program import QUICK
from tests.helpers import NET_CODE, net_weights, save_series

SCRIPT = (str(Path(sys.executable).parent / "localrank"),)
MODULE = (sys.executable, "-m", "localrank_cli")
HOSTILE = ("json", "numpy", "torch", "pandas", "rich", "typing", "matplotlib", "localrank_cli")
MARK = "raise SystemExit(open('ran', 'a').write(__name__) and 'a file of the folder was run')\n"
ANALYZE = ("analyze", "run", *QUICK[:2], "--points", "3", "-o", "../ranks.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of checkpoints beside modules that must not run."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_series(folder / "run", (0, 10))
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(MARK)
    return folder


def run(folder: Path, *words: str, **environment: str) -> str:
    surroundings = os.environ | environment
    done = subprocess.run(
        words,
        cwd=folder,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not (folder / "ran").exists(), f"{(folder / 'ran').read_text()} was run: {done.stderr}"
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_console_script_and_its_workers(folder: Path) -> None:
    run(folder, *SCRIPT, *ANALYZE, "--device", "cpu,cpu")
    first = (folder / "../ranks.csv").read_text()
    # An empty entry of PYTHONPATH means the current folder, when Python looks the program up too.
    (folder / "localrank_cli.py").unlink()
    run(folder, *SCRIPT, *ANALYZE[:-1], "../alone.csv", "--device", "cpu", PYTHONPATH=os.pathsep)
    assert (folder / "../alone.csv").read_text() == first


@pytest.mark.long
def test_submit_gives_the_table_of_analyze(folder: Path) -> None:
    run(folder, *SCRIPT, *ANALYZE)
    run(folder, *SCRIPT, "submit", *ANALYZE[1:-1], "../submitted.csv", "--workers", "2")
    assert (folder / "../submitted.csv").read_text() == (folder / "../ranks.csv").read_text()


@pytest.mark.long
def test_the_module_and_its_worker(folder: Path) -> None:
    (folder / "localrank_cli.py").unlink()  # against which -m has no defence, as the docs say
    run(folder, *MODULE, "submit", *ANALYZE[1:], "--workers", "1")
    assert (folder / "../ranks.csv").read_text().count("\n") > 2


@pytest.mark.long
def test_a_checkout_that_is_not_installed(folder: Path) -> None:
    (folder / "localrank_cli.py").unlink()
    (folder / "localrank_cli").symlink_to(Path(localrank_cli.__file__).parent)
    run(folder, *MODULE, *ANALYZE, "--device", "cpu,cpu")


def test_a_package_that_pythonpath_names(folder: Path) -> None:
    (folder / "src").mkdir()
    (folder / "src/localrank_cli").symlink_to(Path(localrank_cli.__file__).parent)
    words = (sys.executable, "-P", "-m", "localrank_cli")
    run(folder, *words, "submit", *ANALYZE[1:], "--workers", "1", PYTHONPATH="src")


def test_a_model_of_the_current_folder_hides_nothing_but_itself(folder: Path) -> None:
    package = folder / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("import numpy, json\n")
    (package / "small.py").write_text(f"import pandas\n{NET_CODE}")
    (folder / "net").mkdir()
    save_file(net_weights(), folder / "net/step_1.safetensors")
    words = ["submit", "net", *ANALYZE[2:], "--model", "nets.small:Net", "--workers", "1"]
    (folder / "localrank_cli.py").unlink()  # against which -m has no defence, as the docs say
    run(folder, *MODULE, *words)
    assert (folder / "../ranks.csv").read_text().count("\n") > 2


def test_printed_scripts_keep_the_current_folder_off_the_path(folder: Path) -> None:
    words = [*SCRIPT, "submit", *ANALYZE[1:], "--cluster", "slurm", "--dry-run"]
    script = run(folder, *words)
    for command in ("analyze", "merge"):
        assert f"-P -m localrank_cli {command}" in script


def test_entries_that_mean_the_current_folder_go_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    mine = ["", ".", str(tmp_path), str(tmp_path / "link")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [mine[0], "/a", *mine[1:3], "/b", mine[3]])
    current_folder_last()
    assert sys.path == ["/a", "/b", *mine]


def test_importing_the_library_leaves_the_path_alone(folder: Path) -> None:
    code = "import sys; before = list(sys.path); import localrank_cli; print(sys.path == before)"
    (folder / "localrank_cli.py").unlink()
    (folder / "typing.py").unlink()
    assert run(folder, sys.executable, "-c", code) == "True\n"


def test_a_removed_current_folder_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    current_folder_last()
    assert program_words("python")[:2] == ["python", "-P"]
