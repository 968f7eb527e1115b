"""docs/reliability.md describes the tested cases, and nothing else."""

import pytest

from tests.faults.cases import FAULTS, HARMLESS
from tests.faults.events import EVENTS
from tests.faults.fuzzed import KINDS
from tests.test_docs import ROOT, table_rows

PAGE = ROOT / "docs/reliability.md"


def test_every_fault_of_a_file_is_a_row_and_every_row_a_case() -> None:
    rows = table_rows(PAGE, "Faulty files")
    assert rows == [[name, str(one.status), one.says] for name, one in FAULTS.items()]


def test_what_is_no_fault() -> None:
    rows = table_rows(PAGE, "Unusual but valid")
    assert rows == [[name, str(one.status)] for name, one in HARMLESS.items()]


def test_what_happens_to_a_run() -> None:
    rows = table_rows(PAGE, "What happens to a run")
    assert rows == [[name, one.status, one.kept] for name, one in EVENTS.items()]


@pytest.mark.parametrize("name", EVENTS)
def test_each_was_seen_by_a_test(name: str) -> None:
    file, _, function = EVENTS[name].test.partition("::")
    assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8")


def test_the_kinds_of_random_inputs() -> None:
    rows = table_rows(PAGE, "Random inputs")
    assert [row[0] for row in rows[:-1]] == list(KINDS)
    counts = [int(row[1].replace(",", "")) for row in rows]
    assert counts[-1] == sum(counts[:-1]) >= 10_000
