"""Slices in numpy's notation, against numpy."""

import numpy as np
import numpy.typing as npt
import pytest

from localrank_cli.errors import LayerError, UsageError
from localrank_cli.layers.slices import parse_slice, positions

Array = npt.NDArray[np.int64]
WHOLE = np.arange(3 * 6 * 8).reshape(3, 6, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", WHOLE[0]),
        ("-1", WHOLE[-1]),
        (":", WHOLE),
        ("...", WHOLE),
        ("..., :3", WHOLE[..., :3]),
        (":,2:5,-3:", WHOLE[:, 2:5, -3:]),
        ("::2, 1::2, 0", WHOLE[::2, 1::2, 0]),
        ("1,...,7", WHOLE[1, ..., 7]),
        ("center:4", WHOLE[:, 1:5, 2:6]),
        ("center:6", WHOLE[:, :, 1:7]),
        (" 2 , 3 , 4 ", WHOLE[2, 3, 4]),
    ],
)
def test_against_numpy(
    text: str, expected: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"
) -> None:
    found = positions(text, (1, *WHOLE.shape), "--input-slice", "it")
    assert found.tolist() == np.ravel(expected).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not an index"),
        ("a", "'a' is not an index"),
        ("1,", "'' is not an index"),
        ("1:2:3:4", "is not an index"),
        ("::-1", "steps must be positive"),
        ("::0", "steps must be positive"),
        ("...,...", "more than one ellipsis"),
        ("center:0", "is not an index"),
        ("None", "is not an index"),
    ],
)
def test_no_slices(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_slice(text, "--input-slice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,0,0,0", r"does not fit the output of shape \(3, 6, 8\)"),
        ("3", "does not fit"),
        ("5:2", "leaves nothing"),
        ("center:7", "no square of 7 x 7"),
    ],
)
def test_slices_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        positions(text, (1, *WHOLE.shape), "--output-slice", "the output")


def test_center_needs_an_image() -> None:
    with pytest.raises(LayerError, match="no square"):
        positions("center:2", (1, 9), "--input-slice", "the varied tensor")


@pytest.mark.parametrize("shape", [(), (5, 1, 3)])
def test_points_along_another_axis(shape: tuple[int, ...]) -> None:
    with pytest.raises(LayerError, match="first axis is not the point axis"):
        positions("0", shape, "--output-slice", "it")
