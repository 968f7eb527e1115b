"""What is checked before a batch, or forward mode, is believed: seen in the notes."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError
from localrank_cli.jacobian import guards
from localrank_cli.jacobian.engine import Modes
from tests.asking import numbers, spectra_of, spectra_of_case
from tests.cases import CASES, Case, params
from tests.drawing import one_in
from tests.naive import naive_jacobians, naive_spectra

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


# Of the cases that need no note one in three, and all at test-long.
@pytest.mark.parametrize(
    "case",
    [
        *params(case for case in CASES if case.name in NOTES),
        *one_in(3, (case for case in CASES if case.name not in NOTES)),
    ],
)
def test_notes(case: Case) -> None:
    modes = Modes()
    spectra_of_case(case, modes)
    expected = NOTES.get(case.name, ())
    text = "; ".join(modes.notes)
    for words in expected:
        assert words in text
    for words in (ONE_BY_ONE, NO_FORWARD, ROW_BY_ROW):
        assert words in expected or words not in text


@pytest.mark.parametrize("case", one_in(2, (case for case in CASES if case.name in NOTES)))
def test_each_note_appears_once_in_a_series(case: Case) -> None:
    modes = Modes()
    first = spectra_of_case(case, modes)
    notes = list(modes.notes)
    again = spectra_of_case(case, modes)
    assert modes.notes == notes
    for label, spectrum in first.items():
        assert torch.equal(spectrum.values, again[label].values)


@pytest.mark.parametrize("n_points", [2, 3, 4, 7, 21, 64])
def test_sets_that_tell_any_two_points_apart(n_points: int) -> None:
    sets = guards._separating(n_points)
    for one, other in itertools.permutations(range(n_points), 2):
        assert any(one in held and other not in held for held in sets)
    # Its derivative in a batch is taken from the last set, at whose points nothing is pulled back.
    assert 0 not in sets[-1]


def test_one_point_needs_no_batch() -> None:
    case = next(case for case in CASES if case.name == "one_at_a_time")
    model, points = case.build()
    modes = Modes()
    spectra_of(model, points[:1], modes=modes)
    assert modes.notes == []


class Averaged(torch.autograd.Function):
    """Its backward pass divides by the number of points."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.tanh()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] / len(grads[0])


class Dividing(nn.Module):
    """Two layers, between which the backward pass depends on the number of points."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.a, self.b = how, nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layers."""
        hidden: Tensor = self.a(inputs)
        if self.how == "function":
            hidden = Averaged.apply(hidden)
        elif hidden.requires_grad and self.how == "hook":
            hidden.register_hook(lambda grad: grad / len(grad))
        elif hidden.requires_grad:
            hidden.register_hook(lambda grad: grad / grad.norm())
        found: Tensor = self.b(hidden)
        return found


@pytest.mark.parametrize("how", ["function", "hook", "norm"])
def test_a_backward_pass_that_depends_on_the_number_of_points(how: str) -> None:
    model, points = Dividing(how).double(), torch.randn(3, 6, dtype=torch.float64)
    modes = Modes()
    found = spectra_of(model, points, modes=modes)
    assert any(ONE_BY_ONE in note for note in modes.notes)
    for label, sigma in naive_spectra(naive_jacobians(model, points)).items():
        # As in tests/jacobian/test_trace.py: another order of the same few products.
        assert (abs(numbers(found[label]) - sigma) <= 1.1e-11 * sigma[:, :1]).all()


class Quantized(torch.autograd.Function):
    """Keeps its derivative in 8 bits, rounded at random, like the DoubleSwish of speech models."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        if hidden.requires_grad:
            slope = 255 * (1 - hidden.tanh().square())
            ctx.save_for_backward((slope + torch.rand_like(slope)).floor())
        return hidden.tanh()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope / 255


def noisy(hidden: Tensor) -> Tensor:
    """Add noise where gradients are recorded, as for training."""
    return (hidden + torch.randn_like(hidden) if hidden.requires_grad else hidden).tanh()


def doubled(hidden: Tensor) -> Tensor:
    """Change the function where gradients are recorded, with nothing at random."""
    return (2 * hidden if hidden.requires_grad else hidden).tanh()


class Between(nn.Module):
    """Two layers, and what is between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.between = nn.Linear(6, 5), nn.Linear(5, 4), between

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layers."""
        found: Tensor = self.b(self.between(self.a(inputs)))
        return found


@pytest.mark.parametrize("n_points", [1, 2, 5])
@pytest.mark.parametrize(
    ("between", "message"),
    [
        (
            Quantized.apply,
            "keeps state between backward passes: the derivative of layer 'b' differs",
        ),
        (noisy, "layer 'b' gives a different output where gradients are recorded"),
        (doubled, "layer 'b' gives a different output where gradients are recorded"),
    ],
    ids=["derivative", "noise", "another function"],
)
def test_a_pass_that_records_gradients_differs(between: Any, message: str, n_points: int) -> None:
    points = torch.randn(n_points, 6, dtype=torch.float64)
    with pytest.raises(ModelError, match=message):
        spectra_of(Between(between).double(), points)


def test_ties_alone_do_not_take_the_points_apart() -> None:
    # Equal entries below a maximum, which rounding may order differently in a batch.
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)
    ).double()
    points = torch.randn(5, 1, 1, 1, dtype=torch.float64).expand(5, 1, 8, 8).clone()
    modes = Modes()
    spectra_of(model, points, modes=modes)
    assert not any(ONE_BY_ONE in note for note in modes.notes)


class Scaling(nn.Module):
    """Two layers for images, which are scaled if they seem to be of bytes."""

    def __init__(self, act: nn.Module, limit: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.act, self.limit = nn.Linear(6, 5), nn.Linear(5, 4), act, limit

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layers."""
        inputs = inputs / 255 if inputs.max() > self.limit else inputs
        found: Tensor = self.b(self.act(self.a(inputs)))
        return found


@pytest.mark.parametrize("act", [nn.Tanh(), nn.Softmax(1)], ids=["chain", "no chain"])
@pytest.mark.parametrize("where", [0, 2, 4])
def test_a_branch_on_the_batch_that_a_black_image_does_not_show(act: nn.Module, where: int) -> None:
    model, points = Scaling(act, 1).double(), 255 * torch.rand(5, 6, dtype=torch.float64)
    points[where] = 0
    found = spectra_of(model, points)
    for label, sigma in naive_spectra(naive_jacobians(model, points)).items():
        # As above.
        assert (abs(numbers(found[label]) - sigma) <= 1.1e-11 * sigma[:, :1]).all()


@pytest.mark.parametrize("act", [nn.Tanh(), nn.Softmax(1)], ids=["chain", "no chain"])
def test_a_branch_on_the_batch_beside_huge_points(act: nn.Module) -> None:
    model, points = Scaling(act, 1e9).double(), torch.randn(5, 6, dtype=torch.float64)
    points[[0, -1]] *= 1e14
    modes = Modes()
    found = spectra_of(model, points, modes=modes)
    assert any(ONE_BY_ONE in note for note in modes.notes)
    for label, sigma in naive_spectra(naive_jacobians(model, points)).items():
        # As above.
        assert (abs(numbers(found[label]) - sigma) <= 1.1e-11 * sigma[:, :1]).all()


@pytest.mark.parametrize("first", [torch.nan, 1e9], ids=["not finite", "saturated"])
def test_a_random_derivative_behind_a_first_point_that_does_not_show_it(first: float) -> None:
    # Points one by one, since the two in a batch differ.
    model = nn.Sequential(nn.Hardtanh(-5, 5), Between(Quantized.apply)).double()
    points = torch.randn(3, 6, dtype=torch.float64)
    points[0] = first
    with pytest.raises(ModelError, match="random in eval mode"):
        spectra_of(model, points)


def test_a_gradient_that_is_clipped_entry_by_entry_is_the_same_in_a_batch() -> None:
    # A straight-through estimator, as in networks with binary weights.
    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Tensor) -> Tensor:
            return hidden.sign()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0].clamp(-1, 1)

    modes = Modes()
    spectra_of(Between(Sign.apply).double(), torch.randn(3, 6, dtype=torch.float64), modes=modes)
    assert not any(ONE_BY_ONE in note for note in modes.notes)


def test_points_close_by_that_the_network_refuses_show_nothing() -> None:
    # They are tried because a batch differs; the root of a black pixel has none below 0.
    class Rooted(Dividing):
        def forward(self, inputs: Tensor) -> Tensor:
            assert bool((inputs >= 0).all())
            return super().forward(inputs.sqrt())

    points = torch.rand(3, 6, dtype=torch.float64)
    points[:, 0] = 0
    modes = Modes()
    spectra_of(Rooted("function").double(), points, modes=modes)
    assert any(ONE_BY_ONE in note for note in modes.notes)
