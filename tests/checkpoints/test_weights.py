import pytest

from localrank_cli.checkpoints.weights import Sets, choose
from localrank_cli.errors import SettingsError

KEYS = ("state_dict", "state_dict_ema", "net")
AVERAGED = {"state_dict_ema"}


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        ("raw", ("state_dict", "net")),
        ("ema", ("state_dict_ema",)),
        ("net", ("net",)),
        ("state_dict_ema", ("state_dict_ema",)),
    ],
)
def test_choice(weights: str, chosen: tuple[str, ...]) -> None:
    assert choose(Sets(KEYS, AVERAGED), weights, "a.pt") == chosen


def test_raw_is_the_average_where_there_is_nothing_else() -> None:
    assert choose(Sets(("ema",), {"ema"}), "raw", "a.pt") == ("ema",)


@pytest.mark.parametrize("weights", ["EMA", "model", ""])
def test_a_wrong_key_lists_the_known_ones(weights: str) -> None:
    with pytest.raises(SettingsError, match="it has no such weights") as caught:
        choose(Sets(KEYS, AVERAGED), weights, "a.pt")
    assert "it holds 'state_dict', 'state_dict_ema' (ema), 'net'" in caught.value.what


def test_no_average() -> None:
    with pytest.raises(
        SettingsError, match="no average of weights was found in it; it holds a bare"
    ):
        choose(Sets(("",)), "ema", "a.pt")
