"""`--information` and `--labels-key`: what is estimated from samples, beside the Jacobians."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from localrank_cli.errors import DataError, ModelError, SettingsError
from localrank_cli.information.kernel import (
    ceiling,
    information_bounds,
    label_bounds,
    total_variance,
)
from localrank_cli.jacobian.everywhere import outputs_everywhere
from localrank_cli.jacobian.guards import agreement
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import CallRecord
from localrank_cli.options.resolve import Settings
from localrank_cli.points.draw import Points
from localrank_cli.points.files import load_array
from localrank_cli.points.source import load_points
from localrank_cli.results.columns import Cell
from localrank_cli.run.covariance import everything
from localrank_cli.spectrum.layer import Examination

_DEFAULT_POINTS = 1_000
# From this share of log N on the sample, not the network, sets a bound.
_REACHED = 0.99

SCORES = ("loss", "accuracy")
XT = (
    "information_points",
    "information_noise_variance",
    "information_ceiling_nats",
    "information_at_ceiling",
    "information_xt_lower_nats",
    "information_xt_upper_nats",
)
TY = ("information_ty_lower_nats", "information_ty_upper_nats")


@dataclass(frozen=True)
class SamplePlan:
    """What is estimated, on which points."""

    settings: Settings
    records: tuple[CallRecord, ...]
    low_precision: bool
    everything: Points | None  # all of the data with a label each, for loss and accuracy
    labels: Tensor | None  # of these: (N,) int64, or targets (N, ...) float64
    drawn: Points | None  # for the information

    @property
    def columns(self) -> tuple[str, ...]:
        """The optional columns that this fills."""
        names: tuple[str, ...] = ()
        if self.labels is not None:
            names += SCORES if _are_classes(self.labels) else SCORES[:1]
        if self.drawn is not None:
            names += XT
            if self.labels is not None and _are_classes(self.labels):
                names += TY
        return names

    def at(self, model: nn.Module, device: torch.device) -> list[dict[str, Cell]]:
        """Estimates everything at a checkpoint.

        Args:
            model: With the checkpoint's weights.
            device: Of the model.

        Returns:
            Cells for each chosen call, in order; empty cells where a value is not finite.
        """
        if not self.columns:
            return [{} for _ in self.records]
        with analysis_setting(model, self.settings.dtype):
            scores = self._scores(model, device)
            return [scores | self._information(model, record, device) for record in self.records]

    def _outputs(
        self, model: nn.Module, points: Points, record: CallRecord | None, device: torch.device
    ) -> Tensor:
        dtype = self.settings.dtype
        chunks = everything(points, device, dtype)
        call = None if record is None else record.call
        tolerance = agreement(dtype, self.low_precision)
        found = outputs_everywhere(model, chunks, call, tolerance)
        return torch.cat([chunk.to("cpu", torch.float64) for chunk in found])

    def _scores(self, model: nn.Module, device: torch.device) -> dict[str, Cell]:
        if self.labels is None or self.everything is None:
            return {}
        outputs = self._outputs(model, self.everything, None, device)
        if not _are_classes(self.labels):
            targets = self.labels.flatten(1) if self.labels.ndim > 1 else self.labels[:, None]
            if targets.shape != outputs.shape:
                raise ModelError(
                    f"the network's output has {outputs.shape[1]} entries for a point, and the"
                    f" targets have {targets.shape[1]}.",
                    "Check --labels-key.",
                )
            return {"loss": _finite(nn.functional.mse_loss(outputs, targets))}
        if outputs.shape[1] <= int(self.labels.max()):
            raise ModelError(
                f"the network's output has {outputs.shape[1]} entries for a point, and labels go"
                f" up to {int(self.labels.max())}.",
                "Check --labels-key: labels are class indices from 0.",
            )
        right = (outputs.argmax(dim=1) == self.labels).double().mean()
        sound = bool(torch.isfinite(outputs).all())
        return {
            "loss": _finite(nn.functional.cross_entropy(outputs, self.labels)),
            "accuracy": right.item() if sound else None,
        }

    def _information(
        self, model: nn.Module, record: CallRecord, device: torch.device
    ) -> dict[str, Cell]:
        if self.drawn is None:
            return {}
        outputs = self._outputs(model, self.drawn, record, device)
        count, top = outputs.shape[0], ceiling(outputs.shape[0])
        cells: dict[str, Cell] = {"information_points": count, "information_ceiling_nats": top}
        if not bool(torch.isfinite(outputs).all()):
            return cells
        share = self.settings.sampling.noise
        variance = self.settings.noise**2
        if share is not None:
            variance = share * total_variance(outputs)
        cells["information_noise_variance"] = variance
        if variance <= 0:  # relative to an output that never changes
            return cells
        bounds = information_bounds(outputs, variance)
        reached = [name for name in ("lower", "upper") if getattr(bounds, name) > _REACHED * top]
        cells |= {
            "information_at_ceiling": "+".join(reached),
            "information_xt_lower_nats": bounds.lower,
            "information_xt_upper_nats": bounds.upper,
        }
        if self.labels is not None and _are_classes(self.labels):
            classes = self.labels[list(self.drawn.indices)]
            known = label_bounds(outputs, classes, variance)
            cells |= dict(zip(TY, (known.lower, known.upper), strict=True))
        return cells


def plan_samples(
    settings: Settings, points: Points, examination: Examination, memory: int
) -> SamplePlan:
    """Draws the points of the information and reads the labels.

    Args:
        settings: Of the series.
        points: With everything there is to draw from, when labels are asked for.
        examination: Of the first checkpoint.
        memory: The budget in bytes.

    Returns:
        The plan; empty where nothing was asked for.

    Raises:
        SettingsError: If labels have no file, or an output's sample does not fit into the budget.
    """
    labels = _labels(settings, points) if settings.sampling.labels_key else None
    drawn = _drawn(settings, points) if settings.sampling.information else None
    if drawn is not None:
        assert drawn.everything is not None
        for record in examination.records:
            needed = 3 * 8 * drawn.everything.shape[0] * record.numel
            if needed > memory:
                raise SettingsError(
                    f"--information: {drawn.everything.shape[0]} outputs of layer"
                    f" {record.call.label!r} need {needed / 2**20:.0f} MiB, and the budget is"
                    f" {memory / 2**20:.0f} MiB.",
                    "Ask for fewer --information-points, give more --memory, or leave the layer"
                    " out with --exclude.",
                )
    return SamplePlan(
        settings=settings,
        records=examination.records,
        low_precision=examination.survey.has_low_precision,
        everything=points if labels is not None else None,
        labels=labels,
        drawn=drawn,
    )


def _drawn(settings: Settings, points: Points) -> Points:
    wanted = settings.sampling.points
    if wanted is None:
        wanted = min(_DEFAULT_POINTS, points.n_data or _DEFAULT_POINTS)
    # A draw of its own: the points of the Jacobians must not decide which these are.
    seed = (settings.source.seed + 1) % 2**63
    found, _ = load_points(replace(settings.source, count=wanted, seed=seed, keep=False))
    # They are scaled already.
    return replace(found, everything=found.tensor, scale=None)


def _labels(settings: Settings, points: Points) -> Tensor:
    path, key = settings.source.path, settings.sampling.labels_key
    if path is None:
        raise SettingsError(
            f"--labels-key {key}: the data are no file with named arrays.",
            "Give --data an .npz, .safetensors or .pt file that holds the labels too.",
        )
    labels, _ = load_array(path, key, "--labels-key")
    if labels.is_complex():
        raise DataError(
            f"{path}[{key}]: complex targets are not supported.",
            "Save real numbers: class labels, or targets as the model returns them.",
        )
    if labels.ndim == 0 or labels.shape[0] != points.n_data:
        raise DataError(
            f"{path}[{key}]: shape {tuple(labels.shape)} for {points.n_data} points.",
            "The first axis must be that of the data.",
        )
    if labels.is_floating_point():
        if not bool(torch.isfinite(labels).all()):
            raise DataError(f"{path}[{key}]: a target is not finite.", "Remove or mend it.")
        return labels.to(torch.float64)
    if labels.numel() != labels.shape[0]:
        raise DataError(
            f"{path}[{key}]: integers of shape {tuple(labels.shape)}.",
            "Class labels are one integer for each point; save targets as floating point.",
        )
    classes = labels.flatten().to(torch.int64)
    if int(classes.min()) < 0:
        raise DataError(f"{path}[{key}]: a negative class label.", "Labels count from 0.")
    return classes


def _are_classes(labels: Tensor) -> bool:
    return not labels.is_floating_point()


def _finite(value: Tensor) -> float | None:
    return value.item() if bool(torch.isfinite(value)) else None
