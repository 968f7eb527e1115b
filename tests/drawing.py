"""Properties that hold for whatever hypothesis draws, with more draws at `make test-long`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings


def drawn(
    few: int, many: int, *strategies: Any, **named: Any
) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """Test what is decorated with `few` examples each time, and with `many` at test-long."""

    def decorate(holds: Callable[..., None]) -> Callable[[int], None]:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.long)])
        def test(examples: int) -> None:
            settings(max_examples=examples)(given(*strategies, **named)(holds))()

        test.__name__, test.__doc__ = holds.__name__, holds.__doc__
        return test

    return decorate


def one_in(n: int, cases: Iterable[Any]) -> list[Any]:
    """Return cases that are alike as parameters: one in `n`, and the rest at `make test-long`.

    A tuple holds the values of several parameters; a case with a name is called by it.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if index % n == 0 else pytest.mark.long,
            id=getattr(case, "name", None),
        )
        for index, case in enumerate(cases)
    ]
