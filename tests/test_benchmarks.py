"""The benchmark runs, and its counts agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import ROOT


@pytest.mark.pages
@pytest.mark.parametrize(
    "case",
    [
        "normed",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("mlp200", "decoder")),
        pytest.param("gpt2_blocks", marks=pytest.mark.long),
    ],
)
def test_a_quick_run_compares_every_count(case: str, tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    words = [ROOT / "benchmarks/bench.py", "--quick", "--only", case, "--json", target]
    subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True)
    lines = json.loads(target.read_text())["lines"]
    assert lines
    for line in lines:
        assert line["matrices"] > 0
        # float32 may be off where a singular value is within its rounding of the tolerance.
        if "float32" not in line["baseline"]:
            assert line["differing"] == 0
