"""`--model hf` against what `from_pretrained` loads, for families of transformers."""

import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install transformers"
    )

from localrank_cli.model.hf import library  # only where transformers is
from tests.families.loop import differences
from tests.families.table import FAMILIES, QUICK, SKIPPED

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.families) for name in FAMILIES],
)
def test_numbers_are_those_of_from_pretrained(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    if not hasattr(transformers, family.architecture):
        pytest.skip(f"transformers {transformers.__version__} has no {family.architecture}")
    with library():
        found = differences(name, family, tmp_path)
    assert not found.texts
    assert found.methods == {"exact"}


def test_the_lists_do_not_overlap() -> None:
    skipped = [name for names in SKIPPED.values() for name in names]
    assert len(skipped) == len(set(skipped))
    assert not set(skipped) & set(FAMILIES)
    assert set(QUICK) <= set(FAMILIES)
