"""The experiments themselves, short and over three seeds: their verdicts hold."""

from pathlib import Path

import pandas as pd
import pytest

from tests.cli.program import invoke


@pytest.mark.long
@pytest.mark.parametrize("experiment", ["gaussian", "vib"])
def test_the_verdict_holds_for_three_seeds(experiment: str, tmp_path: Path) -> None:
    outcome = invoke(
        "reproduce", experiment, "--quick", "--seeds", "3", "--out", str(tmp_path / "out"), "-q"
    )
    assert outcome.stdout.endswith("verdict: every claim holds\n"), outcome.stdout
    assert outcome.code == 0
    frame = pd.read_csv(tmp_path / "out" / "ranks.csv")
    assert frame["seed"].nunique() == 3
    assert (frame["status"] == "ok").all()
