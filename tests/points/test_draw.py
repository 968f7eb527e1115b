import pytest
import torch

from localrank_cli.errors import DataError
from localrank_cli.points.defaults import DEFAULT_POINTS
from localrank_cli.points.draw import draw, sample

DATA = torch.arange(200, dtype=torch.float32).reshape(100, 2)


def test_points_are_rows_in_order_without_repetition() -> None:
    points = draw(DATA, 30, 0, None, "x.npy")
    assert list(points.indices) == sorted(set(points.indices))
    assert len(points.indices) == 30
    assert points.n_data == 100
    assert torch.equal(points.tensor, DATA[list(points.indices)].double())


def test_the_seed_decides_and_nothing_else() -> None:
    first = draw(DATA, 30, 0, None, "x.npy")
    torch.manual_seed(99)
    assert draw(DATA, 30, 0, None, "x.npy").indices == first.indices
    assert draw(DATA, 30, 1, None, "x.npy").indices != first.indices


def test_the_global_generator_is_not_used() -> None:
    before = torch.get_rng_state()
    draw(DATA, 30, 0, None, "x.npy")
    sample("normal", (3,), 5, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_number() -> None:
    assert draw(DATA, None, 0, None, "x.npy").tensor.shape == (DEFAULT_POINTS, 2)
    few = draw(DATA[:10], None, 0, None, "x.npy")
    assert few.indices == tuple(range(10))
    assert few.notes == ("x.npy holds 10 points, fewer than 64: all are used",)


def test_all_of_them_may_be_asked_for() -> None:
    points = draw(DATA, 100, 0, None, "x.npy")
    assert torch.equal(points.tensor, DATA.double())
    assert not points.notes


def test_too_few() -> None:
    with pytest.raises(DataError, match="101 points were asked for, but there are 100") as caught:
        draw(DATA, 101, 0, None, "x.npy")
    assert "--points 100" in caught.value.advice


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int8, torch.int64, torch.bool]
)
def test_integers_stay_integers_until_they_are_scaled(dtype: torch.dtype) -> None:
    data = torch.ones(70, 2).to(dtype)
    assert draw(data, 5, 0, None, "x").tensor.dtype == torch.int64
    scaled = draw(data, 5, 0, 0.5, "x").tensor
    assert scaled.dtype == torch.float64
    assert (scaled == 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_are_kept_exactly(dtype: torch.dtype) -> None:
    data = (torch.arange(140).reshape(70, 2) / 64).to(dtype)
    assert torch.equal(draw(data, 70, 0, None, "x").tensor, data.double())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(9000,), (9000, 2), (9000, 2, 1)])
def test_values_that_are_not_finite(value: float, shape: tuple[int, ...]) -> None:
    data = torch.zeros(shape)
    data[8999] = value
    with pytest.raises(DataError, match=rf"point 8999 has the value {value}"):
        draw(data, 1, 0, None, "x")  # wherever it is: it need not be drawn


def test_a_scale_that_overflows() -> None:
    with pytest.raises(DataError, match=r"multiplied by 1e\+308, some values are not finite"):
        draw(DATA, 50, 0, 1e308, "x")


@pytest.mark.parametrize("shape", [(), (0, 3), (5, 0)])
def test_no_points(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="holds no points"):
        draw(torch.zeros(shape), None, 0, None, "x")


def test_complex_data() -> None:
    with pytest.raises(DataError, match="complex") as caught:
        draw(torch.zeros(70, 2, dtype=torch.complex64), None, 0, None, "x")
    assert "torch.view_as_complex" in caught.value.advice


class TestSample:
    def test_normal(self) -> None:
        points = sample("normal", (3, 100), 200, 0)
        assert points.tensor.shape == (200, 3, 100)
        assert points.tensor.dtype == torch.float64
        # 60000 values: the mean is within 5 / sqrt(60000) of 0 but for one time in a million.
        assert abs(points.tensor.mean().item()) < 5 / 60000**0.5
        assert abs(points.tensor.std().item() - 1) < 0.02
        assert points.n_data is None

    def test_uniform(self) -> None:
        tensor = sample("uniform", (300,), 200, 0).tensor
        assert tensor.min() >= 0
        assert tensor.max() < 1
        assert abs(tensor.mean().item() - 0.5) < 0.01

    def test_seeds(self) -> None:
        first = sample("normal", (3,), 5, 7).tensor
        assert torch.equal(first, sample("normal", (3,), 5, 7).tensor)
        assert not torch.equal(first, sample("normal", (3,), 5, 8).tensor)
        assert sample("normal", (3,), None, 7).tensor.shape == (DEFAULT_POINTS, 3)

    def test_scale(self) -> None:
        tensor = sample("normal", (3,), 5, 7).tensor
        assert torch.equal(sample("normal", (3,), 5, 7, 2.5).tensor, tensor * 2.5)

    @pytest.mark.parametrize("shape", [(10**14,), (10**30,), (10**10, 10**10)])
    def test_more_than_the_memory(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(DataError, match="do not fit into memory"):
            sample("normal", shape, None, 0)
