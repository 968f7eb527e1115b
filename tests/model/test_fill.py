from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import MismatchError
from localrank_cli.model.fill import Expected, fill_model, mismatch
from tests.helpers import mlp, weights

PLACE = "run/step_5.pt (step 5)"


class Tied(nn.Module):
    """Two names for one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def filled(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    fill_model(model, Expected(model), state, PLACE)
    return model


def error_for(model: nn.Module, state: Mapping[str, Tensor]) -> MismatchError:
    assert not Expected(model).fits(shapes(state))
    with pytest.raises(MismatchError) as caught:
        fill_model(model, Expected(model), state, PLACE)
    assert caught.value.what.startswith(f"{PLACE}: ")
    return caught.value


def test_weights_arrive() -> None:
    model = filled(mlp(4, 3, 2), weights(seed=7))
    for key, value in weights(seed=7).items():
        assert torch.equal(model.state_dict()[key], value)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_stored_values_are_copied_exactly(stored: torch.dtype) -> None:
    state = {key: value.to(stored) for key, value in weights().items()}
    model = filled(mlp(4, 3, 2).double(), state)
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(value, state[key].double())


def test_every_place_that_holds_a_parameter_sees_the_new_weights() -> None:
    model = mlp(4, 3, 2)
    elsewhere = [model.get_parameter("0.weight")]
    filled(model, weights(seed=7))
    assert torch.equal(elsewhere[0], weights(seed=7)["0.weight"])


def test_the_file_and_the_network_share_nothing() -> None:
    state = weights()
    model = filled(mlp(4, 3, 2), state)
    model.get_parameter("0.weight").zero_()
    assert state["0.weight"].abs().sum() > 0


def test_layers_that_merge_in_eval_mode_merge_the_new_weights() -> None:
    class Merging(nn.Linear):
        """As LoRA does: half of the weight is added when it goes to eval mode."""

        def train(self, mode: bool = True) -> "Merging":
            if self.training != mode:
                self.weight.data *= 2 / 3 if mode else 3 / 2
            super().train(mode)
            return self

    model = nn.Sequential(Merging(2, 2))
    for value in (2.0, 4.0):
        state = {"0.weight": torch.full((2, 2), value), "0.bias": torch.ones(2)}
        fill_model(model, Expected(model), state, PLACE)
        assert model.get_parameter("0.weight")[0, 0].item() == 1.5 * value


def test_the_state_dict_is_not_changed() -> None:
    state = weights()
    before = {key: value.clone() for key, value in state.items()}
    filled(mlp(4, 3, 2).double(), state)
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_missing_and_unexpected_keys_are_named_with_the_nearest() -> None:
    state = weights()
    state["0.wieght"] = state.pop("0.weight")
    message = error_for(mlp(4, 3, 2), state).what
    assert "missing: 0.weight (nearest in the file: 0.wieght)" in message
    assert "unexpected: 0.wieght" in message


def test_no_nearest_name_where_none_is_near() -> None:
    state = weights()
    del state["2.bias"]
    assert "missing: 2.bias." in error_for(mlp(4, 3, 2), state).what


def test_wrong_shapes() -> None:
    message = error_for(mlp(4, 3, 2), weights(4, 5, 2)).what
    assert "0.weight has shape [5, 4], expected [3, 4]" in message
    assert "0.bias has shape [5], expected [3]" in message
    assert "missing" not in message


def test_only_the_first_few_are_named() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)])
    message = error_for(model, {}).what
    assert "3.weight" not in message
    assert "and 14 more" in message
    assert "\n" not in message


def test_advice() -> None:
    expected = Expected(mlp(4, 3, 2))
    error = mismatch(expected, {}, PLACE)
    assert "--model" in error.advice
    assert error.status == "mismatch"
    assert error.exit_code == 1


class TestTied:
    @pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
    def test_one_name_is_enough(self, kept: str) -> None:
        value = torch.rand(6, 4)
        expected = Expected(Tied())
        assert expected.fits({kept: (6, 4)})
        state = filled(Tied(), {kept: value}).state_dict()
        assert torch.equal(state["embed.weight"], value)
        assert torch.equal(state["head.weight"], value)

    def test_both_names(self) -> None:
        value = torch.rand(6, 4)
        state = filled(Tied(), {"embed.weight": value, "head.weight": value.clone()}).state_dict()
        assert torch.equal(state["head.weight"], value)

    def test_no_name(self) -> None:
        message = error_for(Tied(), {}).what
        assert "missing: embed.weight, head.weight" in message

    def test_different_values(self) -> None:
        model = Tied()
        state = {"embed.weight": torch.zeros(6, 4), "head.weight": torch.ones(6, 4)}
        with pytest.raises(
            MismatchError, match=r"embed\.weight and head\.weight are one parameter"
        ):
            fill_model(model, Expected(model), state, PLACE)

    def test_equal_nans_are_not_a_difference(self) -> None:
        value = torch.full((6, 4), float("nan"))
        state = filled(Tied(), {"embed.weight": value, "head.weight": value.clone()}).state_dict()
        assert state["head.weight"].isnan().all()

    def test_a_second_filling_ties_again(self) -> None:
        model = Tied()
        expected = Expected(model)
        for seed in (1, 2):
            torch.manual_seed(seed)
            value = torch.rand(6, 4)
            fill_model(model, expected, {"head.weight": value}, PLACE)
            assert torch.equal(model.state_dict()["embed.weight"], value)


class TestBuffers:
    def test_persistent_ones_are_loaded_in_their_type(self) -> None:
        model = nn.BatchNorm1d(3).double()
        state: dict[str, Tensor] = dict(nn.BatchNorm1d(3).state_dict())
        state["running_mean"] = torch.tensor([1.0, 2.0, 3.0])
        state["num_batches_tracked"] = torch.tensor(41)
        loaded = filled(model, state).state_dict()
        assert loaded["running_mean"].tolist() == [1, 2, 3]
        assert loaded["running_mean"].dtype == torch.float64
        assert loaded["num_batches_tracked"].item() == 41
        assert loaded["num_batches_tracked"].dtype == torch.int64

    def test_old_files_have_no_counter(self) -> None:
        state = dict(nn.BatchNorm1d(3).state_dict())
        del state["num_batches_tracked"]
        model = nn.BatchNorm1d(3)
        assert Expected(model).fits(shapes(state))
        filled(model, state)

    def test_non_persistent_ones_are_not_expected(self) -> None:
        model = mlp(4, 3, 2)
        model.register_buffer("mask", torch.ones(3), persistent=False)
        assert Expected(model).fits(shapes(weights()))
        filled(model, weights())
        assert model.get_buffer("mask").tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_weights_that_are_no_floats(dtype: torch.dtype) -> None:
    state = weights()
    state["2.weight"] = state["2.weight"].to(dtype)
    model = mlp(4, 3, 2)
    with pytest.raises(MismatchError, match=r"2\.weight holds (int8|complex64|bool), expected"):
        fill_model(model, Expected(model), state, PLACE)


class TestComplex:
    def test_complex_weights_arrive_whole(self) -> None:
        state = nn.Linear(3, 2, dtype=torch.cfloat).state_dict()
        model = filled(nn.Linear(3, 2, dtype=torch.cdouble), state)
        assert torch.equal(model.get_parameter("weight"), state["weight"].to(torch.cdouble))

    def test_real_weights_are_none_of_a_complex_layer(self) -> None:
        model = nn.Linear(3, 2, dtype=torch.cfloat)
        with pytest.raises(MismatchError, match="weight holds float16, expected complex") as caught:
            fill_model(model, Expected(model), nn.Linear(3, 2).half().state_dict(), PLACE)
        assert "without converting" in caught.value.advice

    def test_complex_weights_are_none_of_an_integer_buffer(self) -> None:
        model = nn.Linear(3, 2)
        model.register_buffer("order", torch.tensor([1, 0]))
        state = dict(model.state_dict(), order=torch.tensor([1, 1j]))
        with pytest.raises(MismatchError, match="order holds complex64, expected integers"):
            fill_model(model, Expected(model), state, PLACE)

    def test_a_complex_network_is_asked_for(self) -> None:
        state = {"weight": torch.ones(2, 3) * 1j, "bias": torch.ones(2) * 1j}
        model = nn.Linear(3, 2)
        with pytest.raises(MismatchError, match="without an imaginary part") as caught:
            fill_model(model, Expected(model), state, PLACE)
        assert "dtype=torch.cfloat" in caught.value.advice


def test_errors_of_custom_loading_are_reported() -> None:
    class Picky(nn.Linear):
        def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
            raise ValueError("wrong version\nof this file")

    model = Picky(2, 2)
    with pytest.raises(MismatchError, match="wrong version of this file"):
        fill_model(model, Expected(model), nn.Linear(2, 2).state_dict(), PLACE)
