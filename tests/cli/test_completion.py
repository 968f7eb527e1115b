"""Completion by a shell: what it offers, and what it never does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli.run.layer_names import layers_in
from tests.cli.program import invoke

ASKED = "_LOCALRANK_COMPLETE"


def complete(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """Return what bash is offered for the last of the words."""
    monkeypatch.setenv(ASKED, "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["localrank", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    outcome = invoke()
    assert (outcome.code, outcome.stderr) == (0, "")
    return outcome.stdout.split()


@pytest.fixture
def series(tmp_path: Path) -> Path:
    state = {
        "module.blocks.0.fc.weight": torch.ones(3, 4),
        "module.blocks.0.norm.weight": torch.ones(3),
        "_orig_mod.conv.weight": torch.ones(2, 1, 3, 3),
        "head.parametrizations.weight.original1": torch.ones(2, 3),
        "buffer": torch.ones(2, 2),
    }
    save_file(state, tmp_path / "step_1.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ana"], ["analyze"]),
        (["analyze", "run", "--preset", ""], ["patel2024", "feng2022", "numpy"]),
        (["analyze", "run", "--method", "in"], ["interval"]),
        (["analyze", "run", "--trust-p"], ["--trust-pickle"]),
        (["plot", "ranks.csv", "--kind", "t"], ["tolerance"]),
        (["plot", "ranks.csv", "--y", "eff"], ["effective_rank"]),
        (["analyze", "run", "--data", ""], []),  # left to the shell: names of files
        (["analyze", ""], []),
    ],
)
def test_words(monkeypatch: pytest.MonkeyPatch, words: list[str], offered: list[str]) -> None:
    assert complete(monkeypatch, *words) == offered


@pytest.mark.parametrize("words", ["localrank ", "localrank analyze run --"])
def test_what_zsh_is_offered_has_one_line_each(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setenv(ASKED, "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", words)
    lines = invoke().stdout.strip().removeprefix("_arguments '*: :((").removesuffix("))'")
    assert all(line.startswith('"') and line.endswith('"') for line in lines.splitlines())


def test_layers_are_those_in_the_header(monkeypatch: pytest.MonkeyPatch, series: Path) -> None:
    names = ["blocks.0.fc", "conv", "head"]
    assert complete(monkeypatch, "analyze", str(series), "--layers", "") == names
    assert complete(monkeypatch, "inspect", str(series), "--wrt", "b") == ["blocks.0.fc"]
    assert complete(monkeypatch, "analyze", str(series), "--layers", "conv,!h") == ["conv,!head"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, (10).to_bytes(8, "little") + b"[[[[[[[[[[", b"\x02" + b"\0" * 7 + b"[]"],
)
def test_broken_files_offer_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "step_1.safetensors").write_bytes(content)
    assert list(layers_in(tmp_path)) == []
    assert list(layers_in(tmp_path / "missing")) == []


def test_pickles_are_not_opened_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    # A pickle that would leave a mark if it were loaded, and a file that is code.
    (tmp_path / "step_1.pt").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path) + b"/x'\ntR.")
    (tmp_path / "net.py").write_text("import pathlib; pathlib.Path('x').touch()")
    words = f"localrank analyze {tmp_path} --model {tmp_path}/net.py:Net --layers "
    code = (
        "import sys\n"
        "from localrank_cli.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n    print(sorted({'torch', 'numpy', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    asked = {ASKED: "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "6"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == ["[]"]
    assert not (tmp_path / "x").exists()


def test_bash_offers_what_the_script_asks_for(series: Path) -> None:
    program = Path(sys.executable).parent / "localrank"
    script = f"""
        eval "$({program} --show-completion)"
        COMP_WORDS=(localrank analyze {series} --layers c) COMP_CWORD=4
        _localrank_completion {program}
        echo "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("conv\n", "")


def test_completion_is_installed_for_the_shell_in_use(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "localrank"
    result = subprocess.run(
        ["bash", "-c", f"{program} --install-completion; echo status $?"],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "status 0" in result.stdout
    assert result.stderr == ""
    assert "complete_bash" in (tmp_path / ".bash_completions/localrank.sh").read_text()
