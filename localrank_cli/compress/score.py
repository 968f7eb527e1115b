"""How good a network is on held-out points: loss, accuracy, and divergence from the original."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from localrank_cli.compress.replace import Forward
from localrank_cli.errors import ModelError

# classes: cross-entropy with labels; tokens: of the next token; targets: mean squared error;
# outputs: divergence from the original network alone.
Kind = Literal["classes", "tokens", "targets", "outputs"]
Batch = tuple[Tensor, Tensor | None]  # points, and their labels

_ENTRIES = 2**22  # of an output that are taken in float64 at once
# One-sided, of a normal distribution: 95 %.
QUANTILE = 1.65


@dataclass(frozen=True)
class Scores:
    """What a network gives at each point."""

    loss: Tensor  # (points,), float64; of `outputs` the divergence
    divergence: Tensor  # (points,)
    correct: Tensor | None  # (points,), the share of right answers

    @property
    def accuracy(self) -> float | None:
        """The share of right answers; None without classes."""
        return None if self.correct is None else float(self.correct.mean())


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences over points, and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> "Difference":
        """Return that of `first` minus `second`."""
        values = first - second
        error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
        return cls(float(values.mean()), error)

    @property
    def bound(self) -> float:
        """What the mean is below with a confidence of 95 %."""
        return self.mean + QUANTILE * self.error

    @property
    def is_noise(self) -> bool:
        """Whether its sign is uncertain."""
        return not abs(self.mean) > QUANTILE * self.error


def kind_of(output: Tensor, points: Tensor, labels: Tensor | None) -> Kind:
    """Return how a network is scored, by what it returns for some points.

    Class labels may be those of more points.

    Raises:
        ModelError: If the output does not fit the labels.
    """
    if output.ndim == 0 or output.shape[0] != len(points):
        raise ModelError(
            f"the network's output has shape {tuple(output.shape)} for {len(points)} points.",
            "Return one output for each point, on the first axis.",
        )
    if labels is None:
        is_causal = (
            not points.is_floating_point()
            and output.ndim == 3
            and output.shape[:2] == points.shape
            and points.shape[1] > 1
            and int(points.max()) < output.shape[2]
        )
        if not is_causal and (output.ndim == 1 or output.shape[-1] == 1):
            # The softmax of one value is 1, whatever the network computes.
            raise ModelError(
                f"the network's output has shape {tuple(output.shape)}, and without labels a"
                " network is measured by the divergence of the softmax of its last axis, which is 0"
                " for one value.",
                "Give --labels-key with targets in floating point.",
            )
        return "tokens" if is_causal else "outputs"
    if labels.is_floating_point():
        if _flat(labels).shape != _flat(output).shape:
            raise ModelError(
                f"the network's output has shape {tuple(output.shape)}, and the targets"
                f" {tuple(labels.shape)}.",
                "Check --labels-key.",
            )
        return "targets"
    if output.ndim != 2 or int(labels.max()) >= output.shape[1]:
        raise ModelError(
            f"the network's output has shape {tuple(output.shape)} for {len(points)} points, and"
            f" labels go up to {int(labels.max())}.",
            "Check --labels-key: labels are class indices from 0, one for each point.",
        )
    return "classes"


def _flat(values: Tensor) -> Tensor:
    """Return the values of each point in a row, (points, values); targets may have one axis."""
    return values.reshape(len(values), -1)


def scores(
    model: nn.Module, original: nn.Module, batches: Iterable[Batch], forward: Forward, kind: Kind
) -> Scores:
    """Return what a network gives at every point of some batches.

    Raises:
        ModelError: If a loss is not finite.
    """
    losses, divergences, rights = [], [], []
    for points, labels in batches:
        with torch.no_grad():
            whole, reference = forward(model, points), forward(original, points)
        # Of a large vocabulary the float64 logits of a batch would not fit.
        size = max(1, _ENTRIES * len(whole) // max(whole.numel(), 1))
        for part in torch.arange(len(whole)).split(size):
            # On the CPU: a GPU need not have float64.
            output, old = (one[part].to("cpu", torch.float64) for one in (whole, reference))
            divergence = _divergence(output, old, kind)
            known = None if labels is None else labels[part].cpu()
            loss, right = _losses(output, points[part].cpu(), known, kind)
            losses.append(divergence if loss is None else loss)
            divergences.append(divergence)
            if right is not None:
                rights.append(right)
    found = Scores(torch.cat(losses), torch.cat(divergences), torch.cat(rights) if rights else None)
    if not bool(torch.isfinite(found.loss).all() and torch.isfinite(found.divergence).all()):
        raise ModelError(
            "the network's loss is not finite at some points.", "Check the checkpoint and the data."
        )
    return found


def _divergence(output: Tensor, reference: Tensor, kind: Kind) -> Tensor:
    """Return KL(original || network), a mean over positions, or of targets half the square."""
    if kind == "targets":
        return _flat(output - reference).square().mean(dim=1) / 2
    logs, old = output.log_softmax(dim=-1), reference.log_softmax(dim=-1)
    each = (old.exp() * (old - logs)).sum(dim=-1)
    return each.reshape(len(output), -1).mean(dim=1)


def _losses(
    output: Tensor, points: Tensor, labels: Tensor | None, kind: Kind
) -> tuple[Tensor | None, Tensor | None]:
    if kind == "tokens":
        logits, targets = output[:, :-1].transpose(1, 2), points[:, 1:]
        loss = functional.cross_entropy(logits, targets, reduction="none").mean(dim=1)
        return loss, (logits.argmax(dim=1) == targets).double().mean(dim=1)
    if labels is None:
        return None, None
    if kind == "targets":
        return (_flat(output) - _flat(labels.double())).square().mean(dim=1), None
    loss = functional.cross_entropy(output, labels, reduction="none")
    return loss, (output.argmax(dim=1) == labels).double()
