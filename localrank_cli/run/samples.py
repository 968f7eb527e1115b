"""Estimates from samples, for `--labels-key`, `--information` and `--beside`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
from localrank_cli.points.defaults import DEFAULT_INFORMATION_POINTS
from localrank_cli.points.draw import Points
from localrank_cli.points.files import load_array
from localrank_cli.points.rows import whole
from localrank_cli.points.source import VALUES, load_points
from localrank_cli.results.columns import Cell
from localrank_cli.run.beside import BesidePlan, both, plan_beside
from localrank_cli.run.covariance import data_chunks
from localrank_cli.spectrum.examine import Examination

# A bound above this share of log N is limited by the sample rather than by the network.
_CEILING_SHARE = 0.99

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
    """What to estimate at each checkpoint, and on which points."""

    settings: Settings
    records: tuple[CallRecord, ...]
    low_precision: bool
    everything: Points | None  # all of the data with a label each, for loss and accuracy
    labels: Tensor | None  # of these: (N,) int64, or targets (N, ...) float64
    sample: Points | None  # for the information and activations
    beside: BesidePlan = field(default_factory=BesidePlan)

    @property
    def columns(self) -> tuple[str, ...]:
        """The optional columns that `at` fills."""
        names: tuple[str, ...] = ()
        if self.labels is not None:
            names += SCORES if _are_classes(self.labels) else SCORES[:1]
        if self.settings.sampling.information:
            names += XT
            if self.labels is not None and _are_classes(self.labels):
                names += TY
        return names + self.beside.columns

    @property
    def n_points(self) -> int:
        """How many points the information and activations are of."""
        sample = self.sample
        return 0 if sample is None or sample.everything is None else sample.everything.shape[0]

    def at(self, model: nn.Module, device: torch.device, point: Tensor) -> list[dict[str, Cell]]:
        """Return cells for each chosen call, in order, at the weights of a model.

        The model runs at `point`, (1, ...), where only that shows a layer's weight.
        Cells without a finite value are empty.
        """
        if not self.columns:
            return [{} for _ in self.records]
        with analysis_setting(model, self.settings.dtype):
            scores = self._scores(model, device)
            weights = self.beside.of_weights(model, self.records, point)
            return [
                scores | self._sampled(model, record, device, weights.get(record.call.name, {}))
                for record in self.records
            ]

    def _outputs(
        self, model: nn.Module, points: Points, record: CallRecord | None, device: torch.device
    ) -> Tensor:
        dtype = self.settings.dtype
        chunks = data_chunks(points, device, dtype)
        call = None if record is None else record.call
        tolerance = agreement(dtype, self.low_precision)
        outputs = outputs_everywhere(model, chunks, call, tolerance)
        return torch.cat([chunk.to("cpu", torch.float64) for chunk in outputs])

    def _scores(self, model: nn.Module, device: torch.device) -> dict[str, Cell]:
        if self.labels is None or self.everything is None:
            return {}
        outputs = self._outputs(model, self.everything, None, device)
        if not _are_classes(self.labels):
            targets = self.labels.flatten(1) if self.labels.ndim > 1 else self.labels[:, None]
            if targets.shape != outputs.shape:
                raise ModelError(
                    f"the network's output has {outputs.shape[1]} entries for a point, but the"
                    f" targets have {targets.shape[1]}.",
                    "Check --labels-key.",
                )
            return {"loss": _finite(nn.functional.mse_loss(outputs, targets))}
        if outputs.shape[1] <= int(self.labels.max()):
            raise ModelError(
                f"the network's output has {outputs.shape[1]} entries for a point, but labels go"
                f" up to {int(self.labels.max())}.",
                "Check --labels-key: labels are class indices from 0.",
            )
        accuracy = (outputs.argmax(dim=1) == self.labels).double().mean()
        is_finite = bool(torch.isfinite(outputs).all())
        return {
            "loss": _finite(nn.functional.cross_entropy(outputs, self.labels)),
            "accuracy": accuracy.item() if is_finite else None,
        }

    def _sampled(
        self, model: nn.Module, record: CallRecord, device: torch.device, weights: dict[str, Cell]
    ) -> dict[str, Cell]:
        if self.sample is None:
            return both({}, weights)
        outputs = self._outputs(model, self.sample, record, device)
        cells = self._information(outputs) if self.settings.sampling.information else {}
        return cells | both(self.beside.of_outputs(record, outputs), weights)

    def _information(self, outputs: Tensor) -> dict[str, Cell]:
        assert self.sample is not None
        count, top = outputs.shape[0], ceiling(outputs.shape[0])
        cells: dict[str, Cell] = {"information_points": count, "information_ceiling_nats": top}
        if not bool(torch.isfinite(outputs).all()):
            return cells
        share = self.settings.sampling.noise
        variance = self.settings.noise**2
        if share is not None:
            variance = share * total_variance(outputs)
        cells["information_noise_variance"] = variance
        if variance <= 0:  # a share of the variance of a constant output
            return cells
        bounds = information_bounds(outputs, variance)
        at_ceiling = [
            name for name in ("lower", "upper") if getattr(bounds, name) > _CEILING_SHARE * top
        ]
        cells |= {
            "information_at_ceiling": "+".join(at_ceiling),
            "information_xt_lower_nats": bounds.lower,
            "information_xt_upper_nats": bounds.upper,
        }
        if self.labels is not None and _are_classes(self.labels):
            classes = self.labels[list(self.sample.indices)]
            bounds = label_bounds(outputs, classes, variance)
            cells |= dict(zip(TY, (bounds.lower, bounds.upper), strict=True))
        return cells


def plan_samples(
    settings: Settings,
    points: Points,
    facts: Mapping[str, object],
    examination: Examination,
    memory: int,
    *,
    refuses: bool = True,
) -> SamplePlan:
    """Draw the points for the information, and read the labels.

    `points` hold the whole data if there are labels, `facts` describe the data that they come
    from; `memory` is the budget in bytes. Without `refuses`, outputs may exceed it.

    Raises:
        SettingsError: If the data have no file for labels, or a layer's outputs exceed the budget.
        DataError: If the labels do not fit the data.
    """
    keyed = bool(settings.sampling.labels_key)
    labels = read_labels(settings, points, memory) if keyed else None
    sample = _draw(settings, points, facts) if settings.sampling.needs_points else None
    if sample is not None and settings.sampling.information:
        assert sample.everything is not None
        for record in examination.records:
            whole = examination.survey.find(record.call) or record
            needed = 3 * 8 * sample.everything.shape[0] * whole.numel
            if refuses and needed > memory:
                raise SettingsError(
                    f"--information: {sample.everything.shape[0]} outputs of layer"
                    f" {record.call.label!r} need {needed / 2**20:.0f} MiB, but the budget is"
                    f" {memory / 2**20:.0f} MiB.",
                    "Ask for fewer --information-points, give more --memory, or leave the layer"
                    " out with --exclude.",
                )
    return SamplePlan(
        settings=settings,
        records=examination.records,
        low_precision=examination.survey.has_low_values,
        everything=points if labels is not None else None,
        labels=labels,
        sample=sample,
    )


def with_beside(
    plan: SamplePlan, tied: Sequence[Sequence[str]], examination: Examination
) -> SamplePlan:
    """Return a plan with the columns of `--beside`; `tied` are the keys of each tied parameter."""
    classes = None
    if plan.sample is not None and plan.labels is not None and _are_classes(plan.labels):
        classes = plan.labels[list(plan.sample.indices)]
    beside = plan_beside(plan.settings, tied, examination, classes, is_low=plan.low_precision)
    return replace(plan, beside=beside)


def _draw(settings: Settings, points: Points, facts: Mapping[str, object]) -> Points:
    count = settings.sampling.points
    if count is None:
        count = min(DEFAULT_INFORMATION_POINTS, points.n_data or DEFAULT_INFORMATION_POINTS)
    # Another seed makes the draw independent of the points of the Jacobians.
    seed = (settings.source.seed + 1) % 2**63
    sample, second = load_points(replace(settings.source, count=count, seed=seed, keep=False))
    if second.get(VALUES) != facts.get(VALUES):
        raise DataError(
            f"--data {settings.source.text}: returns different values each time it is called.",
            "Seed its generator inside the function (numpy.random.default_rng(0),"
            " torch.Generator().manual_seed(0)).",
        )
    return replace(sample, everything=sample.tensor, scale=None)  # the tensor is scaled already


def read_labels(settings: Settings, points: Points, memory: int) -> Tensor:
    """Return class labels, (points,), or targets of floats, one for each row of the data.

    Raises:
        SettingsError: If the data are no file.
        DataError: If the labels do not fit the data.
    """
    path, key = settings.source.path, settings.sampling.labels_key
    if path is None:
        raise SettingsError(
            f"--labels-key {key}: the data are not a file with named arrays.",
            "Give --data an .npz, .safetensors or .pt file that holds the labels too.",
        )
    found, _ = load_array(path, key, "--labels-key", memory)
    labels = whole(found, memory, f"{path}[{key}]")
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
            raise DataError(f"{path}[{key}]: a target is not finite.", "Remove or fix it.")
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
