"""Compare forward passes of two builds of a network, to find state that no attribute reaches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError, Note, cause
from localrank_cli.jacobian.guards import close
from localrank_cli.layers.outputs import first_tensor
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.transforms import unwrapped
from localrank_cli.model.build import Build
from localrank_cli.model.twice import Network, Rebuild

UNNAMED = "something outside the network"
_N_POINTS = 4  # a random mask may leave all nonzero entries of a single point unchanged

Found = list[tuple[str, Tensor]]


def check_outputs(
    built: Network,
    prepare: Callable[[nn.Module], None],
    points: Tensor,
    name: str,
    note: Note,
    *,
    allowed: bool,
    tolerance: float,
) -> tuple[str, ...]:
    """Check that another build of the network, with the same weights, gives the same outputs.

    What the modules receive and return is compared, up to a `tolerance` relative to the largest
    entry of each tensor: global variables and caches of functions count as far as they decide a
    value. `prepare` moves another build to the device and dtype, and fills it with the same
    weights; `points` has shape (points, ...), and `allowed` is `--allow-unsaved`.

    Returns:
        Names of the parts that no checkpoint holds; empty if the outputs agree.

    Raises:
        ModelError: If they differ and that is not allowed, or if they differ under one seed.
    """
    model, rebuild, few = built.model, built.rebuild, points[:_N_POINTS]

    def place(other: Rebuild, seed: int) -> str | None:
        """Return where another build's values differ first; None if nowhere."""
        return _first_difference(model, other, few, seed, tolerance)

    # Values drawn in each pass are found at the first checkpoint, with a clearer message.
    if rebuild is None or place(Rebuild(Build(model)), 1) is not None:
        return ()
    try:
        other = rebuild(True)
        prepare(other.model)
        found = place(other, 1)
    except Exception as error:  # the user's code may raise anything when it runs again
        note(f"a second build of the network could not be compared: {cause(error)}")
        return ()
    if found is None:
        return ()
    if not allowed:
        raise _refusal(name, found)
    del other
    same = rebuild(False)
    prepare(same.model)
    if place(same, 0) is not None:
        raise ModelError(
            f"{name}: the outputs differ at every start even with torch, numpy and random seeded"
            f" (first at {found}): --allow-unsaved needs the same network each time.",
            "Seed the generator that draws (torch.Generator().manual_seed(0),"
            " numpy.random.default_rng(0), random.Random(0)).",
        )
    return (UNNAMED,)


def _refusal(name: str, place: str) -> ModelError:
    return ModelError(
        f"{name}: two builds of the network give different outputs with the same weights"
        f" (first at {place}), and no checkpoint holds what differs: the numbers would not be"
        " those of the network that was trained.",
        "Look for values drawn outside the module, in a global variable, in a cached function"
        " or by a generator without a seed. Draw it with the training seed in the code"
        " (torch.manual_seed(0) before the draw), or keep tensors in the checkpoints:"
        " self.register_buffer(NAME, TENSOR). --allow-unsaved uses the values that a fixed"
        " seed gives, and the column message says so.",
    )


def _first_difference(
    model: nn.Module, other: Rebuild, points: Tensor, seed: int, tolerance: float
) -> str | None:
    """Return the first place where two networks differ; the second one runs under `seed`."""
    for index in range(points.shape[0]):
        point = points[index : index + 1]
        first = _values(model, point, 0)
        with other.active():
            second = _values(other.model, point, seed)
        for (place, value), (other_place, other_value) in zip(first, second, strict=False):
            if place != other_place or not close(value, other_value, tolerance):
                return place
        if len(first) != len(second):
            return "the number of calls"
    return None


def _values(model: nn.Module, point: Tensor, seed: int) -> Found:
    """Return what each module receives and returns, in order of execution."""
    found: Found = []

    def keep(place: str, value: object) -> None:
        """Keep a copy of the first tensor of a value."""
        tensor = first_tensor(value)
        if tensor is not None:
            found.append((place, unwrapped(tensor.detach().clone())))

    def before(place: str) -> Any:
        """Return the hook that keeps a module's input."""
        return lambda _, args, kwargs: keep(f"the input of {place}", (args, kwargs))

    def after(place: str) -> Any:
        """Return the hook that keeps a module's output."""
        return lambda *found: keep(f"the output of {place}", found[-1])

    dtype = point.dtype if point.is_floating_point() else _dtype_of(model)
    handles: list[Any] = []
    try:
        for key, module in model.named_modules():
            place = repr(key) if key else "the network"
            handles.append(module.register_forward_pre_hook(before(place), with_kwargs=True))
            handles.append(module.register_forward_hook(after(place)))
        with analysis_setting(model, dtype, seed), torch.no_grad():
            keep("the output of the network", model(point.clone()))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _dtype_of(model: nn.Module) -> torch.dtype:
    floats = (one.dtype for one in model.parameters() if one.is_floating_point())
    return next(floats, torch.get_default_dtype())
