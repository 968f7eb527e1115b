"""docs/models.md lists the families that the loop tests."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_families", ROOT / "docs/make_families.py")
    assert spec is not None
    assert spec.loader is not None
    make_families = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_families)
    assert make_families.main(["--check"]) == 0
