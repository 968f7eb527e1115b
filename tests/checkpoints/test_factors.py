"""What a file says of layers that it holds as factors."""

import pytest
import torch

from localrank_cli.checkpoints.factors import FACTORED, factored_in, metadata_of, without_factors


def test_metadata_name_the_layers_and_the_step() -> None:
    metadata = metadata_of(7, ["a.0", "b"])
    assert metadata["step"] == "7"
    assert factored_in(metadata) == {"a.0", "b"}


@pytest.mark.parametrize("text", ["", "[", "7", "null", '{"a": 1}', "[" * 100_000])
def test_other_metadata_name_none(text: str) -> None:
    assert factored_in({FACTORED: text}) == set()
    assert factored_in({}) == set()


def test_factors_have_the_shape_of_the_layer_that_they_replace() -> None:
    state = {
        "a.0.weight": torch.zeros(2, 5),
        "a.1.weight": torch.zeros(4, 2),
        "a.1.bias": torch.zeros(4),
        "c.0.weight": torch.zeros(3, 5, 2, 1),
        "c.1.weight": torch.zeros(6, 3, 1, 1),
        "c.1.bias": torch.zeros(6),
        "d.0.weight": torch.zeros(2, 2),
        "d.1.weight": torch.zeros(2, 2),
    }
    found = {key: tuple(value.shape) for key, value in without_factors(state, {"a", "c"}).items()}
    assert found == {
        "a.weight": (4, 5), "a.bias": (4,), "c.weight": (6, 5, 2, 1), "c.bias": (6,),
        "d.0.weight": (2, 2), "d.1.weight": (2, 2),
    }  # fmt: skip
    assert without_factors(state, ()) is state
