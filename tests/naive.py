"""The slow truth: one point, one output entry, one autograd.grad at a time.

Written from the definition alone, and apart from localrank_cli, of which it imports nothing: a
point is a batch of one, a layer is what a forward hook sees, a Jacobian is its rows, singular
values are numpy's, and a rank is a comparison.
"""

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.float64]

AFFINE = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def naive_jacobians(
    model: nn.Module, points: Tensor, layers: Collection[str] = (), wrt: str = ""
) -> dict[str, Array]:
    """Jacobians of every affine layer, or of the named modules, at every point.

    Args:
        model: Left as it is: a copy is run, in eval mode.
        points: Shape (points, ...).
        layers: Names of modules; none: all affine layers.
        wrt: The module whose first tensor output is varied; empty: the input.

    Returns:
        Label -> shape (points, n_out, n_in), in the order in which the layers run; only those that
        depend on the varied tensor. NaN where a pre-activation so far is not finite. Complex
        entries count twice: real part, imaginary part.
    """
    rows: dict[str, list[Array]] = {}
    for point in points:
        with _eval_copy(model) as twin:
            for label, jacobian in _jacobians_at(twin, point.clone()[None], layers, wrt).items():
                rows.setdefault(label, []).append(jacobian)
    return {label: np.stack(parts) for label, parts in rows.items()}


def naive_outputs(
    model: nn.Module, point: Tensor, layers: Collection[str] = ()
) -> dict[str, Array]:
    """Flat outputs of every affine layer, or of the named modules, at one point.

    Args:
        model: Left as it is.
        point: Without the batch axis.
        layers: Names of modules; none: all affine layers.

    Returns:
        Label -> shape (n_out,); of complex outputs real and imaginary parts in turn.
    """
    with _eval_copy(model) as twin, torch.no_grad():
        calls, _ = _run(twin, point.clone()[None], layers, "")
    return {
        label: _parts(tensor.detach().flatten()).double().flatten().numpy()
        for label, tensor, wanted, _ in calls
        if wanted
    }


def naive_spectra(jacobians: dict[str, Array]) -> dict[str, Array]:
    """Singular values by numpy.

    Args:
        jacobians: From `naive_jacobians`.

    Returns:
        Label -> shape (points, min(n_out, n_in)), descending; NaN where a Jacobian is not finite.
    """
    return {
        label: np.stack([_singular_values(matrix) for matrix in matrices])
        for label, matrices in jacobians.items()
    }


def naive_batch_spectra(
    model: nn.Module, points: Tensor, layers: Collection[str], wrt: str = ""
) -> dict[str, Tensor]:
    """Singular values of larger networks, one output entry at a time, of all points at once.

    In eval mode no point of a batch depends on another, so that the gradient of an entry's sum over
    the batch holds, for each point, that point's row of the Jacobian.

    Args:
        model: Put into float64 and eval mode.
        points: Shape (points, ...).
        layers: Names of modules, with `#2` for the second call; all have one real output, or have
            it first in a tuple.
        wrt: The module whose output is varied; empty: the input.

    Returns:
        Label -> shape (points, min(n_out, n_in)), descending.
    """
    model = model.double().eval().requires_grad_(False)
    calls: dict[str, list[Tensor]] = {}
    varied: list[Tensor] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            calls.setdefault(name, []).append(_tensors(output)[0])

        return hook

    def vary(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        varied.append(output.detach().clone().requires_grad_(True))
        return varied[0]

    handles = [
        model.get_submodule(name).register_forward_hook(keep(name))
        for name in {label.split("#", maxsplit=1)[0] for label in layers}
    ]
    if wrt:
        handles.append(model.get_submodule(wrt).register_forward_hook(vary))
    else:
        points = points.double().requires_grad_(True)
        varied.append(points)
    model(points)
    for handle in handles:
        handle.remove()
    spectra = {}
    for label in layers:
        name, _, number = label.partition("#")
        entries = calls[name][int(number or 1) - 1].reshape(len(points), -1).sum(0)
        rows = [
            torch.autograd.grad(one, varied[0], retain_graph=True)[0]
            for one in _one_by_one(entries)
        ]
        spectra[label] = torch.linalg.svdvals(torch.stack([r.flatten(1) for r in rows], 1))
    return spectra


def naive_counts(spectrum: Array, atol: float = 0.0, rtol: float = 0.0) -> list[int]:
    """Counts singular values above the tolerance, one by one.

    Args:
        spectrum: Shape (points, r).
        atol: Absolute tolerance.
        rtol: Relative to the largest singular value.

    Returns:
        One count for each point.
    """
    counts = []
    for values in spectrum:
        tol = max(atol, rtol * values[0])
        count = 0
        for value in values:
            if value > tol:
                count += 1
        counts.append(count)
    return counts


_Calls = list[tuple[str, Tensor, bool, bool]]  # label, first tensor, wanted, affine


def _run(
    model: nn.Module, batch: Tensor, layers: Collection[str], wrt: str
) -> tuple[_Calls, Tensor | None]:
    calls: _Calls = []
    leaves: list[Tensor] = []
    times: dict[str, int] = {}
    running = True

    def watch(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, _: Any, output: Any) -> Any:
            if not running:  # a checkpoint runs its part again in the backward pass
                return None
            times[name] = times.get(name, 0) + 1
            label = name if times[name] == 1 else f"{name}#{times[name]}"
            changed = None
            if label == wrt:
                leaf = _tensors(output)[0].detach().clone().requires_grad_(True)
                leaves.append(leaf)
                changed = output = _swap(output, leaf.clone())
            affine = isinstance(module, AFFINE)
            wanted = name in layers if layers else affine
            if wanted or affine:
                calls.append((label, _tensors(output)[0].clone(), wanted, affine))
            return changed

        return hook

    for name, module in list(model.named_modules()):
        if name:
            module.register_forward_hook(watch(name))
    model(batch)
    running = False
    return calls, leaves[0] if leaves else None


def _jacobians_at(
    model: nn.Module, point: Tensor, layers: Collection[str], wrt: str
) -> dict[str, Array]:
    leaf: Tensor | None = None
    if not wrt:
        leaf = point.requires_grad_(True)
        point = leaf.clone()  # the model may change its input in place
    calls, found = _run(model, point, layers, wrt)
    leaf = found if leaf is None else leaf
    assert leaf is not None
    jacobians: dict[str, Array] = {}
    broken = False
    for label, tensor, wanted, _ in calls:
        broken = broken or not bool(torch.isfinite(tensor).all())
        if not wanted or not tensor.requires_grad:
            continue
        entries = _parts(tensor.flatten()).flatten()
        jacobian = np.zeros((entries.numel(), leaf.numel() * (2 if leaf.is_complex() else 1)))
        for index, entry in enumerate(_one_by_one(entries)):
            (row,) = torch.autograd.grad(entry, leaf, retain_graph=True, allow_unused=True)
            if row is not None:
                # Of a complex leaf, torch's gradient is that by the real part plus i times that by
                # the imaginary part.
                jacobian[index] = _parts(row.flatten()).double().flatten().numpy()
        jacobians[label] = np.full_like(jacobian, np.nan) if broken else jacobian
    return jacobians


def _one_by_one(entries: Tensor) -> Iterator[Tensor]:
    """Entries by index: the gradient of one that comes from iteration fills all others' too."""
    return (entries[index] for index in range(len(entries)))


def _parts(tensor: Tensor) -> Tensor:
    """Real and imaginary parts on a new last axis; a real tensor itself."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if dataclasses.is_dataclass(output):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def _swap(output: Any, leaf: Tensor) -> Any:
    """Puts the leaf in the place of the first tensor: alone, or the first of a tuple."""
    if isinstance(output, Tensor):
        return leaf
    assert isinstance(output, tuple)
    assert isinstance(output[0], Tensor)
    return (leaf, *output[1:])


def _singular_values(matrix: Array) -> Array:
    if not np.isfinite(matrix).all():
        return np.full(min(matrix.shape), np.nan)
    return np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)


@contextmanager
def _eval_copy(model: nn.Module) -> Iterator[nn.Module]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield copy.deepcopy(model).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


def chain(factors: Sequence[Array]) -> Array:
    """The product of matrices, the first factor being the one that acts first.

    Args:
        factors: A_1, A_2, ..., A_l.

    Returns:
        A_l ... A_2 A_1.
    """
    product = factors[0]
    for factor in factors[1:]:
        product = factor @ product
    return product
