from collections.abc import Mapping

import pytest

from localrank_cli.checkpoints.weights import WRAPPERS, Stripping, candidates, strip_to_fit

PLAIN = {"0.weight": 1, "0.bias": 2, "2.weight": 3}


def with_prefix(prefix: str, state: Mapping[str, int] = PLAIN) -> dict[str, int]:
    return {prefix + key: value for key, value in state.items()}


def is_plain(state: Mapping[str, int]) -> bool:
    return dict(state) == PLAIN


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.module.",
        "model.net.model.",
        "_orig_mod.module.model._orig_mod.net.",
    ],
)
def test_prefixes_of_every_key_go(prefix: str) -> None:
    found = strip_to_fit(with_prefix(prefix), is_plain)
    assert found is not None
    assert found[0] == Stripping(prefix)
    assert found[1] == PLAIN


def test_as_little_as_fits_goes() -> None:
    wanted = with_prefix("model.")
    found = strip_to_fit(with_prefix("module.model."), lambda state: dict(state) == wanted)
    assert found == (Stripping("module."), wanted)


@pytest.mark.parametrize("inner", ["_orig_mod", "module"])
def test_inner_wrappers_go(inner: str) -> None:
    state = {f"net.a.{inner}.weight": 1, f"net.b.{inner}.{inner}.0.bias": 2, "net.c.bias": 3}
    wanted = {"a.weight": 1, "b.0.bias": 2, "c.bias": 3}
    found = strip_to_fit(state, lambda renamed: dict(renamed) == wanted)
    assert found == (Stripping("net.", inner=True), wanted)
    assert "'net.'" in found[0].description
    assert "inner" in found[0].description


@pytest.mark.parametrize(
    "state",
    [
        {"module.0.weight": 1, "0.bias": 2, "2.weight": 3},  # not before every key
        with_prefix("encoder."),  # not a wrapper's
        with_prefix("Module."),
        with_prefix("module"),  # no dot
        {},
    ],
)
def test_what_does_not_fit_exactly_is_left(state: dict[str, int]) -> None:
    assert strip_to_fit(state, is_plain) is None


def test_keys_that_would_fall_together_stay() -> None:
    state = {"a.module.weight": 1, "a.weight": 2}
    assert candidates(state) == [(Stripping(), state)]


def test_only_the_prefixes_asked_for_go() -> None:
    *_, (stripping, state) = candidates(with_prefix("module.model."), WRAPPERS)
    assert stripping == Stripping("module.")
    assert state == with_prefix("model.")


def test_nothing_done_needs_no_description() -> None:
    assert not Stripping().description
