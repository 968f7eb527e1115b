"""What `from_pretrained` loads, differentiated naively in float64: the truth for `--model hf`."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def float32_means_float64(functions: Sequence[FunctionType]) -> Iterator[None]:
    """Bind the names of float32 in torch to float64 while a network runs.

    This is independent of the mode of `localrank_cli.layers.precision`, which looks at the calls of
    torch's functions: here no call is looked at, and the code of the network reads another value
    where it says `torch.float32`, and calls another method where it says `.float()`. Defaults of
    the given functions were evaluated before, and are bound anew too.
    """
    defaults = [(function, function.__defaults__) for function in functions]
    for function, values in defaults:
        function.__defaults__ = tuple(
            torch.float64 if value is torch.float32 else value for value in values or ()
        )
    saved = torch.float32, torch.float, torch.complex64, Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float = torch.float64
    torch.complex64 = torch.complex128
    Tensor.float = Tensor.double  # type: ignore[method-assign]  # patched on purpose
    try:
        yield
    finally:
        torch.float32, torch.float, torch.complex64, Tensor.float, default = saved  # type: ignore[method-assign]  # patched on purpose
        torch.set_default_dtype(default)
        for function, values in defaults:
            function.__defaults__ = values


def asking_by_default(model: nn.Module) -> list[FunctionType]:
    """Return the functions beside a model's class that have float32 as a default argument."""
    space = vars(sys.modules[type(model).__module__]).values()
    parts = [part for one in space if isinstance(one, type) for part in vars(one).values()]
    return [
        part
        for part in (*space, *parts)
        if isinstance(part, FunctionType)
        and any(value is torch.float32 for value in part.__defaults__ or ())
    ]


def load(model_class: Any, folder: Path) -> nn.Module:
    """Return what the library itself loads from a folder, in float64."""
    choices = {"attn_implementation": "eager"}
    if hasattr(model_class, "get_correct_experts_implementation"):
        choices["experts_implementation"] = "eager"
    model = model_class.from_pretrained(folder, dtype=torch.float32, **choices)
    assert isinstance(model, nn.Module)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # all kinds of it
            # By its definition: torch's own derivative is wrong where it makes tokens of pixels.
            module.forward = partial(_affine, module)  # type: ignore[method-assign]  # patched on purpose
    return model.double().eval().requires_grad_(False)


def _affine(norm: Any, x: Tensor) -> Tensor:
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    shape = (-1, *[1] * (x.ndim - 2))
    normed: Tensor = x * scale.reshape(shape) + shift.reshape(shape)
    return normed


def first(output: Any) -> Any:
    """Return the first tensor of an output of tuples and of ModelOutputs, which are dicts."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if hasattr(output, "values") else output))
    return output


class Naive:
    """The Jacobian of a module's first call, row by row, in a network of one input.

    Args:
        model: The network, in float64.
        keyword: The argument that takes the points.
        wrt: The module whose first output is varied; empty: the points themselves.
    """

    def __init__(self, model: nn.Module, keyword: str, wrt: str) -> None:
        self._model, self._keyword, self._wrt = model, keyword, wrt
        self._asking = asking_by_default(model)

    def outputs(self, point: Tensor, names: Sequence[str], varied: Tensor | None) -> list[Tensor]:
        """Return the outputs of modules in one pass, with `varied` in the place of that of wrt."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def on_output(module: nn.Module, args: Any, output: Any) -> None:
                found.setdefault(name, first(output).clone())

            return on_output

        calls = 0

        def replace(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            nonlocal calls
            calls += 1
            # A clone, for networks that change it in place.
            return varied.clone() if calls == 1 and varied is not None else None

        handles = []
        if self._wrt and varied is not None:
            handles.append(self._model.get_submodule(self._wrt).register_forward_hook(replace))
        handles += [
            self._model.get_submodule(name).register_forward_hook(keep(name)) for name in names
        ]
        inputs = point if self._wrt or varied is None else varied
        try:
            with float32_means_float64(self._asking):
                self._model(**{self._keyword: inputs.clone()})
        finally:
            for handle in handles:
                handle.remove()
        return [found[name] for name in names]

    def varied(self, point: Tensor) -> Tensor:
        """Return the tensor that is varied, at a point of shape (1, ...)."""
        if not self._wrt:
            return point.double()
        with torch.no_grad():
            return self.outputs(point, [self._wrt], None)[0]

    def running(self, point: Tensor, names: Sequence[str]) -> list[str]:
        """Return which of some modules run."""
        ran: list[str] = []
        handles = [
            self._model.get_submodule(name).register_forward_hook(
                lambda *_, name=name: ran.append(name)
            )
            for name in names
        ]
        try:
            with torch.no_grad():
                self.outputs(point, [], None)
        finally:
            for handle in handles:
                handle.remove()
        return ran

    def depending(self, point: Tensor, names: Sequence[str]) -> dict[str, int]:
        """Return the sizes of the outputs of modules that ran and depend on the varied tensor."""
        ran: dict[str, int] = {}

        def keep(name: str) -> Callable[..., None]:
            def on_output(module: nn.Module, args: Any, output: Any) -> None:
                if first(output).requires_grad:
                    ran.setdefault(name, first(output).numel())

            return on_output

        handles = [
            self._model.get_submodule(name).register_forward_hook(keep(name)) for name in names
        ]
        try:
            self.outputs(point, [], self.varied(point).requires_grad_(True))
        finally:
            for handle in handles:
                handle.remove()
        return ran

    def singular_values(self, point: Tensor, name: str) -> Tensor:
        """Return the singular values of a module's Jacobian at a point."""
        at = self.varied(point)

        def function(varied: Tensor) -> Tensor:
            return self.outputs(point, [name], varied)[0]

        jacobian = torch.autograd.functional.jacobian(function, at)
        values: Tensor = torch.linalg.svdvals(jacobian.reshape(-1, at.numel()))
        return values
