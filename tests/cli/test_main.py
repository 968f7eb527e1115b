import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import localrank_cli
from localrank_cli.cli.main import _failure, _Program, app
from localrank_cli.cli.signals import Interrupted
from localrank_cli.errors import LocalrankError, OutputError
from tests.cli.program import invoke

WORDS = ("analyze", "run", "--data", "normal:4")


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", [[], ["analyze"]])
def test_help(flag: str, command: list[str]) -> None:
    outcome = invoke(*command, flag)
    assert outcome.code == 0
    assert outcome.stdout.lstrip().startswith(" ".join(["Usage: localrank", *command]))
    assert outcome.stderr == ""


def test_help_names_the_dangerous_options_as_such() -> None:
    text = invoke("analyze", "--help-all").stdout
    words = " ".join(text.split())
    for option in ("--trust-model", "--trust-pickle"):
        assert "Dangerous" in words.split(f"{option} ")[1].split(" --")[0]


def test_version() -> None:
    outcome = invoke("--version")
    assert (outcome.code, outcome.stdout) == (0, f"localrank {localrank_cli.__version__}\n")


def test_no_command_shows_the_help_and_is_wrong_usage() -> None:
    outcome = invoke()
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Usage: localrank" in outcome.stderr
    assert "analyze" in outcome.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bogus"], "No such command 'bogus'. See 'localrank --help'."),
        (["--bogus"], "No such option: --bogus. See 'localrank --help'."),
        (["analyze"], "Missing argument"),
        (["analyze", "x", "--bogus"], "No such option"),
        (["analyze", "x", "--points", "many"], "--points many: expected a whole number."),
        (["analyze", "x", "--points"], "requires an argument"),
        (["analyze", "x", "--atol", "much"], "--atol much: expected a number."),
        (["analyze", "x", "--rtol", "much"], "--rtol much: expected a number, or eps."),
        (["analyze", "x", "--atol", "0"], "--atol 0: expected more than 0."),
        (["analyze", "x", "--model-arg", "3"], "--model-arg 3: not of the form KEY=VALUE."),
        (["analyze", "x", "--dtype", "int8"], "--dtype int8: unknown."),
        (["analyze", "x", "--device", "tpu"], "--device tpu: unknown."),
        (
            ["analyze", "x", "-o", "a.xlsx"],
            "--output a.xlsx: the suffix '.xlsx' is not a table format.",
        ),
        (["analyze", "x", "-o", ""], "is not a table format"),
        (["analyze", "x", "--layers", ","], "--layers ,: is empty."),
        (["analyze", "x", "--exclude", ""], "--exclude '': is empty."),
        (["analyze", "x", "--model", "Net"], "--model Net: not of the form"),
        (["analyze", "x", "--data", "a.csv"], "--data a.csv: not a valid form."),
        (["analyze", "x", "--activation", "swish"], "--activation swish: unknown."),
    ],
)
def test_wrong_usage_is_2_and_one_line(words: list[str], message: str) -> None:
    outcome = invoke(*words)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert message in outcome.error
    assert outcome.stderr.count("\n") == 1


def _replace_analysis(monkeypatch: pytest.MonkeyPatch, error: BaseException | int) -> None:
    def run_analysis(*args: Any, **kwargs: Any) -> int:
        if isinstance(error, BaseException):
            raise error
        return error

    monkeypatch.setattr("localrank_cli.cli.run_analyze.run_analysis", run_analysis)


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (0, 0, ""),
        (3, 3, ""),
        (LocalrankError("It is red.", "Paint it."), 1, "error: It is red. Paint it."),
        (OutputError("two\nlines\t here"), 1, "error: two lines here."),
        (OutputError("Red: \x1b[31m."), 1, "error: Red: \\x1b[31m."),
        (Interrupted(2), 130, "stopped by SIGINT"),
        (Interrupted(15), 143, "stopped by SIGTERM"),
        (Interrupted(10), 138, "stopped by SIGUSR1"),
        (Interrupted(12), 140, "stopped by SIGUSR2"),
        (SystemExit(0), 1, "error: the model's or the data's code ended the program (sys.exit(0))"),
        (OSError(28, "No space left on device"), 1, "error: standard output: cannot be written"),
    ],
)
def test_status(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | int, code: int, stderr: str
) -> None:
    # There is no descriptor to give up here.
    monkeypatch.setattr(sys.modules[_Program.__module__], "discard_stdout", lambda: None)
    _replace_analysis(monkeypatch, error)
    outcome = invoke(*WORDS)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert outcome.stderr.startswith(f"localrank: {stderr}" if stderr else "")
    assert outcome.stderr.count("\n") == (1 if stderr else 0)


def test_a_bug_is_70_and_says_how_to_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_analysis(monkeypatch, KeyError("x"))
    outcome = invoke(*WORDS)
    assert outcome.code == 70
    assert outcome.error == (
        "KeyError: 'x'. This is a bug in localrank: please report it with the output of the same"
        " command and --debug."
    )


@pytest.mark.parametrize(("error", "code"), [(KeyError("x"), 70), (LocalrankError("It."), 1)])
def test_debug_shows_the_traceback_and_keeps_the_status(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    _replace_analysis(monkeypatch, error)
    outcome = invoke(*WORDS, "--debug")
    assert outcome.code == code
    assert "Traceback (most recent call last)" in outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith("localrank: error: ")


LAZY = """
import sys
sys.argv = ["localrank", *sys.argv[1:]]
from localrank_cli.__main__ import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "pandas", "numpy", "safetensors"} & set(sys.modules)
    print(end.code, sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["analyze", "--help"], 0),
        (["--version"], 0),
        (["analyze", "x", "--atol", "0"], 2),
        (["bogus"], 2),
        ([], 2),
    ],
)
def test_help_and_wrong_usage_do_not_import_torch(words: list[str], code: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LAZY, *words], capture_output=True, text=True, check=True
    )
    assert result.stderr.splitlines()[-1] == f"{code} []"


def test_no_option_has_its_name_in_capitals() -> None:
    """Some versions of typer take a metavar that is the parameter's name for the option's."""
    group: Any = get_command(app)
    for command in group.commands.values():
        for parameter in command.params:
            for option in parameter.opts:
                if parameter.metavar and option.startswith("--"):
                    assert option == option.lower()


QUICK = LAZY.replace(
    '"torch", "pandas", "numpy", "safetensors"', '"pandas", "sympy", "torch._dynamo"'
)


def test_a_chain_of_layers_imports_no_more_than_it_needs() -> None:
    """Torch's compiler, which its dispatch modes import, takes as long to import as torch."""
    samples = Path(__file__).parents[2] / "sample_checkpoints" / "gaussian_teacher"
    result = subprocess.run(
        [sys.executable, "-c", QUICK, "analyze", str(samples), "-q", "--last", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == "0 []\n"
    assert result.stdout.startswith("run,checkpoint,")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("analyse",),
            "No such command 'analyse'. Did you mean 'analyze'? See 'localrank --help'.",
        ),
        (
            ("analyze", "x", "--preset", "foo"),
            "--preset foo: unknown. Choose one of patel2024, feng2022, numpy.",
        ),
    ],
)
def test_wrong_usage_is_one_clean_sentence(words: tuple[str, ...], message: str) -> None:
    outcome = invoke(*words)
    assert (outcome.code, outcome.error) == (2, message)


@pytest.mark.parametrize(
    ("words", "prefix"),
    [
        (("--points", "x"), "--points x: "),
        (("--points=1.5",), "--points 1.5: "),
        (("--atol", "0.1", "--atol", "0,1"), "--atol 0,1: "),
        (("--noise", ""), "--noise '': "),
    ],
)
def test_an_invalid_number_is_shown(words: tuple[str, ...], prefix: str) -> None:
    outcome = invoke("analyze", "x", *words)
    assert outcome.code == 2
    assert outcome.error.startswith(prefix)


def test_other_commands_show_an_invalid_number_too() -> None:
    outcome = invoke("reproduce", "gaussian", "--seeds", "1.5")
    assert outcome.code == 2
    assert outcome.error.startswith("--seeds 1.5: expected a whole number.")


def test_an_error_that_is_its_own_cause_ends() -> None:
    error = ValueError("round and round")
    error.__cause__ = error
    assert _failure(error, debug=False) == 70
