"""Pickles that ask for work or memory without end: each is refused, or read, in little time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import TRIED
from tests.faults.hostile import PICKLES, PLACES

ROOT = Path(__file__).parents[2]
QUICK = ("zip", "dcp", "data by rows")
LONG = pytest.mark.long
SECONDS = 8.0  # of one core, for files of a megabyte; what is refused ran for ever or for minutes
MEBIBYTES = 600  # some of them describe 100 MB of small objects
# What a reader must not accept, by a part of its message.
REFUSED = {
    "a nested tuple as a key": "one of its tuples repeats others",
    "a tuple of tuples as a key": "a tuple of other things than numbers and texts as a key",
    "integers with one hash": "over 1,000 of its keys have one hash",
    "a tensor beyond its storage": "reaches beyond the values that the file keeps",
    "adding to a tensor": "it fills a Tensor as if it were a set",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "place",
    [
        "zip",
        "dcp",
        "data by rows",
        *(pytest.param(place, marks=LONG) for place in PLACES if place not in QUICK),
        pytest.param("mutated zip", marks=LONG),
        pytest.param("mutated legacy", marks=LONG),
        pytest.param("mutated dcp", marks=LONG),
    ],
)
def test_no_pickle_takes_for_ever_or_all_memory(place: str) -> None:
    """In a process of its own, since no timeout ends one call of C."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.faults.hostile", place]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    lines = [line.partition('": ') for line in done.stdout.splitlines()]
    found = {json.loads(f'{name}"'): json.loads(rest) for name, _, rest in lines}
    TRIED[f"pickles by hand, {place}"] += len(found)
    for name, (error, seconds, mebibytes) in found.items():
        assert seconds < SECONDS, name
        assert mebibytes < MEBIBYTES, name
        assert len(error) < 2000, name
    if place in {"zip", "data by rows"}:
        assert set(found) == set(PICKLES)
        for name, message in REFUSED.items():
            assert message in found[name][0], name
