"""Save two small steps of a family, analyze them, and compare with what the library loads."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from localrank_cli import analyze
from localrank_cli.layers.kinds import is_affine_layer
from tests.families.shrink import VOCAB, small_config
from tests.families.table import Family
from tests.families.truth import Naive, load

STEPS = (1, 2)
_TOKENS, _POINTS = 5, 2
_MOST_ROWS = 100  # of a Jacobian, which is computed row by row
_SPECIAL = 10  # tokens below may have a meaning: padding, the place of an image


@dataclasses.dataclass(frozen=True)
class Differences:
    """What differs from the truth; `texts` is empty where nothing does."""

    texts: tuple[str, ...]
    methods: frozenset[str]


def save_steps(name: str, family: Family, folder: Path) -> Any:
    """Save two steps of a small network; return its class.

    Biases of zero and norms of one would hide that one was not loaded, so everything is drawn.
    """
    model_class = getattr(transformers, family.architecture)
    for step in STEPS:
        config = small_config(transformers.CONFIG_MAPPING[name], family.hints)
        torch.manual_seed(step)
        model = model_class._from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / f"checkpoint-{step}")
    return model_class


def draw_points(family: Family) -> Tensor:
    """Return random points; tokens where the family names no shape."""
    generator = torch.Generator().manual_seed(0)
    if family.shape:
        return torch.randn((_POINTS, *family.shape), generator=generator)
    return torch.randint(_SPECIAL, VOCAB, (_POINTS, _TOKENS), generator=generator)


def differences(name: str, family: Family, folder: Path) -> Differences:
    """Return what differs between our analysis of two saved steps and the truth."""
    model_class = save_steps(name, family, folder)
    points = draw_points(family)
    models = [load(model_class, folder / f"checkpoint-{step}") for step in STEPS]
    keyword = model_class.main_input_name
    wrt = "" if family.shape else _embedding(models[0], keyword, points)
    naive = [Naive(model, keyword, wrt) for model in models]
    layers = _two_layers(naive, models[0], points)
    spectra = {
        (step, layer): [one.singular_values(point[None], layer) for point in points]
        for step, one in zip(STEPS, naive, strict=True)
        for layer in layers
    }
    rtol = _tolerance(list(itertools.chain(*spectra.values())))
    frame = analyze(
        folder, model="hf", data=points, wrt=wrt or None, layers=",".join(layers), rtol=rtol
    )
    texts = []
    for (step, layer), values in spectra.items():
        labels = frame["layer"].isin([layer, f"{layer}#1"])
        row = frame[labels & (frame["step"] == step)].iloc[0]
        rank = sum(int((one > rtol * one[0]).sum()) for one in values) / _POINTS
        sigma = sum(one[0].item() for one in values) / _POINTS
        if row["local_rank"] != rank:
            texts.append(f"step {step}, {layer}: rank {row['local_rank']}, expected {rank}")
        # Both are float64, in another order of summation: about 1e-13.
        if not abs(row["spectral_norm"] - sigma) <= 1e-9 * sigma:
            texts.append(f"step {step}, {layer}: sigma_1 {row['spectral_norm']!r}, not {sigma!r}")
    return Differences(tuple(texts), frozenset(frame["method"]))


def _embedding(model: Any, keyword: str, points: Tensor) -> str:
    """Return the name of the embedding of tokens; where the library does not say, the first."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    names = [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
    try:
        found = model.get_input_embeddings()
        names = [name for name, module in modules.items() if module is found] + names
    except NotImplementedError:
        pass
    ran = Naive(model, keyword, "").running(points[:1], names)
    return next(name for name in names if name in ran)


def _two_layers(naive: Sequence[Naive], model: nn.Module, points: Tensor) -> Sequence[str]:
    names = [name for name, module in model.named_modules() if name and is_affine_layer(module)]
    names = [name for name in names if ".experts." not in name]  # tokens that come to it vary
    sizes = naive[0].depending(points[:1], names)
    for one, point in itertools.product(naive, points):  # an expert may not run at all of them
        found = one.depending(point[None], names)
        sizes = {name: size for name, size in sizes.items() if name in found}
    small = [name for name, size in sizes.items() if size <= _MOST_ROWS]
    small = small or [min(sizes, key=lambda name: sizes[name])]
    return list(dict.fromkeys([small[len(small) // 3], small[-1]]))


def _tolerance(spectra: Sequence[Tensor]) -> float:
    """Return a relative tolerance to which no singular value is close, so that counts are sure."""
    ratios = torch.cat([values / values[0] for values in spectra])
    candidates = (0.01 * 1.07**power for power in range(60))
    return next(one for one in candidates if (ratios / one - 1).abs().min() > 1e-6)
