"""Pickles that ask for work or memory without end: each is refused, or read, in little time."""

import json
from pathlib import Path

import pytest

from tests.cli.program import run_python
from tests.faults.conftest import TRIED
from tests.faults.hostile import PICKLES, PLACES

ROOT = Path(__file__).parents[2]
QUICK = ("dcp",)
LONG = pytest.mark.long
SECONDS = 8.0  # of one core, for files of a megabyte; what is refused ran forever or for minutes
MEBIBYTES = 600  # some of them describe 100 MB of small objects
# What a reader must not accept, by a part of its message.
REFUSED = {
    "a nested tuple as a key": "one of its tuples repeats others",
    "a tuple of tuples as a key": "a tuple of things other than numbers and strings as a key",
    "integers with one hash": "over 1,000 of its keys have one hash",
    "a tensor beyond its storage": "reaches beyond the values that the file keeps",
    "adding to a tensor": "it fills a Tensor as if it were a set",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "place",
    [
        *QUICK,
        *(pytest.param(place, marks=LONG) for place in PLACES if place not in QUICK),
        pytest.param("mutated zip", marks=LONG),
        pytest.param("mutated legacy", marks=LONG),
        pytest.param("mutated dcp", marks=LONG),
    ],
)
def test_no_pickle_takes_for_ever_or_all_memory(place: str) -> None:
    """In a process of its own, with a limit of memory."""
    code = f"from tests.faults.hostile import main; main({place!r})"
    lines = [line.partition('": ') for line in run_python("-c", code).splitlines()]
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
