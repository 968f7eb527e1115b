"""What is checked before a batch, or forward mode, is believed: seen in the notes."""

import pytest
import torch

from localrank_cli.jacobian.engine import Modes
from tests.asking import spectra_of, spectra_of_case
from tests.cases import CASES, Case, params

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

ONE_BY_ONE = "points are computed one by one"
NO_FORWARD = "forward mode is not used"
ROW_BY_ROW = "rows are computed one by one"

NOTES: dict[str, tuple[str, ...]] = {
    # A batch mixes points, hides the point in another axis, or is refused.
    "lstm_over_points": (ONE_BY_ONE,),
    "encoder_sequence_first": (ONE_BY_ONE,),
    "points_in_windows": (ONE_BY_ONE,),
    "one_at_a_time": (ONE_BY_ONE,),
    "scalar_output": (ONE_BY_ONE,),
    "complex_scalar": (ONE_BY_ONE,),
    "subtracts_batch_mean": (ONE_BY_ONE,),
    "mixes_without_a_trace": (ONE_BY_ONE,),
    "batch_statistics": (ONE_BY_ONE,),
    "data_dependent_if": (ONE_BY_ONE,),
    # Forward mode is refused, or is not the transpose of reverse mode.
    "old_function": (NO_FORWARD,),
    "gradient_inside": (NO_FORWARD,),
    "two_faced_function": (NO_FORWARD, "disagrees"),
    "numpy_function": (NO_FORWARD, ROW_BY_ROW),
}


@pytest.mark.parametrize("case", params(CASES))
def test_notes(case: Case) -> None:
    modes = Modes()
    spectra_of_case(case, modes)
    expected = NOTES.get(case.name, ())
    text = "; ".join(modes.notes)
    for words in expected:
        assert words in text
    for words in (ONE_BY_ONE, NO_FORWARD, ROW_BY_ROW):
        assert words in expected or words not in text


@pytest.mark.parametrize("case", params(case for case in CASES if case.name in NOTES))
def test_each_note_appears_once_in_a_series(case: Case) -> None:
    modes = Modes()
    first = spectra_of_case(case, modes)
    notes = list(modes.notes)
    again = spectra_of_case(case, modes)
    assert modes.notes == notes
    for label, spectrum in first.items():
        assert torch.equal(spectrum.values, again[label].values)


def test_one_point_needs_no_batch() -> None:
    case = next(case for case in CASES if case.name == "one_at_a_time")
    model, points = case.build()
    modes = Modes()
    spectra_of(model, points[:1], modes=modes)
    assert modes.notes == []
