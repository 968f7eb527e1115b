"""A few random inputs of each kind at every change; as many as one likes with `make fuzz`."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings

from tests.faults.conftest import TRIED
from tests.faults.fuzzed import KINDS

MANY = int(os.environ.get("LOCALRANK_FUZZ", "1000"))


def fuzz(name: str, count: int, *, random: bool) -> None:
    kind = KINDS[name]

    @settings(
        max_examples=max(10, int(count * kind.weight)),
        derandomize=not random,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.inputs)
    def one(value: object) -> None:
        TRIED[name] += 1
        with TemporaryDirectory() as place:
            kind.check(value, Path(place))

    one()


@pytest.mark.parametrize("name", KINDS)
def test_a_few(name: str) -> None:
    fuzz(name, 40, random=False)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_many(name: str) -> None:
    fuzz(name, MANY, random=True)
