"""`--step-regex` and `--step-pattern`: they must fit a name, and notes name the one in use."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.cli.program import QUICK, invoke
from tests.helpers import save_series, weights

WORDS = ("analyze", "inspect")


@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize(
    "words",
    [("--step-pattern", "stp_{step}"), ("--step-regex", r"stp_(\d+)")],
    ids=["text", "regex"],
)
def test_what_fits_no_name_is_refused(tmp_path: Path, words: tuple[str, str], command: str) -> None:
    outcome = invoke(command, str(save_series(tmp_path / "run")), *QUICK, *words)
    assert outcome.code == 1
    sentence = f"{' '.join(words)}: finds no step in the name of any checkpoint of {tmp_path}/run"
    assert outcome.error.startswith(sentence)
    assert "such as 'step_0.safetensors'" in outcome.error


def test_a_pattern_of_localrank_toml_that_fits_no_name(tmp_path: Path) -> None:
    run = save_series(tmp_path / "run")
    (run / "localrank.toml").write_text("step-pattern = 'stp_{step}'\n")
    outcome = invoke("analyze", str(run), *QUICK)
    assert outcome.code == 1
    sentence = f"{run}/localrank.toml: step-pattern = 'stp_{{step}}': finds no step in the name"
    assert outcome.error.startswith(sentence)
    assert "--step-pattern ''" in outcome.error
    assert invoke("analyze", str(run), *QUICK, "--step-pattern", "").code == 0


@pytest.mark.parametrize(
    "words",
    [("--step-pattern", "it{step}_"), ("--step-regex", r"it(\d+)")],
    ids=["text", "regex"],
)
def test_notes_name_the_option_that_was_given(tmp_path: Path, words: tuple[str, str]) -> None:
    for number in (3, 7):
        save_file(weights(seed=number), tmp_path / f"it{number}_step_{number + 1}.safetensors")
    outcome = invoke("analyze", str(tmp_path), *QUICK, *words)
    assert outcome.code == 0, outcome.stderr
    assert f"its name ({words[0]}) says 3, which is used" in outcome.stderr
