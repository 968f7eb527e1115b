"""docs/reliability.md says what the tests saw, and nothing else."""

from tests.faults.cases import FAULTS, HARMLESS
from tests.test_docs import ROOT, table_rows

PAGE = ROOT / "docs/reliability.md"


def test_every_fault_of_a_file_is_a_row_and_every_row_a_case() -> None:
    rows = table_rows(PAGE, "Faulty files")
    assert rows == [[name, str(one.status), one.says] for name, one in FAULTS.items()]


def test_what_is_no_fault() -> None:
    rows = table_rows(PAGE, "Strange, and no fault")
    assert rows == [[name, str(one.status)] for name, one in HARMLESS.items()]
