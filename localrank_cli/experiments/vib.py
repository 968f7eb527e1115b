"""The variational information bottleneck on jointly Gaussian variables, where theory is exact.

X and Y in R^10 have known canonical correlations; the encoder is a tanh network with a mean and a
log-variance for each of 8 latent entries, the decoder is linear with variance 1, Y is whitened, and
the loss is |y - yhat|^2 / 2 + KL(encoder || N(0, I)) / beta. `localrank_cli.information.bottleneck`
has the theory: the mean's Jacobian in the metric of X gains a singular value at each critical beta.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from localrank_cli.experiments.experiment import Claim, Experiment, Verdict, seed_count
from localrank_cli.experiments.series import (
    SeriesText,
    output_errors,
    save_step,
    settings_text,
    write_metrics,
)
from localrank_cli.experiments.training import mlp
from localrank_cli.information.bottleneck import (
    Information,
    active,
    channel_information,
    variational_information,
    variational_singular_values,
)

Array = npt.NDArray[np.float64]

NAME = "vib"
N = 10  # dimensions of X, and of Y
CRITICAL = (1.25, 2.0, 4.0, 8.0, 16.0)  # the critical values beta_i of X and Y
RHO = np.array(CRITICAL) ** -0.5
# Off the critical values by 5 % or more: at one of them the singular value grows like a root.
BETAS = (1.15, 1.35, 1.6, 1.9, 2.1, 3.0, 3.8, 4.2, 6.0, 7.6, 8.4, 12.0, 15.2, 16.8, 24.0)
QUICK_BETAS = (1.1, 1.6, 3.0, 6.0)  # off by 10 % or more
SIGMA_ERROR = 0.15  # allowed for a singular value
RATE_ERROR = 0.1  # nats, allowed for the rate
TY_ERROR = 0.1  # nats, allowed for I(T;Y)
_LATENT, _HIDDEN = 8, 64
_BATCH, _LEARNING_RATE, _STEPS, _MORE_STEPS = 256, 2e-3, 3_000, 12_000
_N_COVARIANCE = 5_000  # points for the covariance of X
_N_MOMENTS = 20_000  # points for the moments of the encoder


@dataclass(frozen=True)
class Pairs:
    """A joint distribution: x = A u with u ~ N(0, I), y a rotation of correlates of u."""

    mixing: Tensor  # A, (10, 10): rotations and scales from 1/2 to 2
    rotation: Tensor  # (10, 10)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw x and y, each (count, 10), y white."""
        u, v = (torch.randn(count, N, generator=generator) for _ in range(2))
        rho = _all_rho().float()
        y = rho * u + (1 - rho.square()).sqrt() * v
        return u @ self.mixing.mT, y @ self.rotation.mT

    def moments(self) -> tuple[Array, Array]:
        """Return Sigma_x and Sigma_xy, each (10, 10), float64; Sigma_y is the identity."""
        mixing = self.mixing.double()
        cov_xy = mixing * _all_rho() @ self.rotation.double().mT
        return (mixing @ mixing.mT).numpy(), cov_xy.numpy()


def _all_rho() -> Tensor:
    return torch.nn.functional.pad(torch.from_numpy(RHO), (0, N - len(RHO)))


def pairs(generator: torch.Generator) -> Pairs:
    """Draw the directions of a joint distribution."""

    def rotation() -> Tensor:
        """Draw an orthogonal matrix."""
        found: Tensor = torch.linalg.qr(torch.randn(N, N, generator=generator)).Q
        return found

    return Pairs(rotation() * torch.linspace(0.5, 2, N) @ rotation(), rotation())


class Bottleneck(nn.Module):
    """Encoder and decoder.

    Only the path to the mean is saved: a plain MLP, whose local rank is measured.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mean = mlp((N, _HIDDEN, _HIDDEN, _LATENT), nn.Tanh)
        self.log_variance = nn.Linear(_HIDDEN, _LATENT)
        self.decoder = nn.Linear(_LATENT, N)

    def forward(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return half the squared error, and the rate: the KL divergence from the prior; in nats.

        `x` and `y` have shape (points, 10); the generator draws the latent noise.
        """
        hidden = self.mean[:-1](x)
        mean, log_variance = self.mean[-1](hidden), self.log_variance(hidden)
        noise = torch.randn(mean.shape, generator=generator)
        latent = mean + (0.5 * log_variance).exp() * noise
        error = 0.5 * (y - self.decoder(latent)).square().sum(dim=1).mean()
        rate = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
        return error, rate

    @torch.no_grad()
    def information(self, source: Pairs, generator: torch.Generator) -> Information:
        """Compute lower bounds on I(X;T) and I(T;Y) from second moments of encoder, X and Y.

        Closed forms, except for the moments of the encoder, which are averages over points: t = B x
        + r + e, B x the best linear prediction of the mean, r what it leaves, e the noise. r and e
        are correlated with neither X nor Y. X and Y are Gaussian, so both values are lower bounds;
        they are exact for an encoder that is linear with constant noise.

        Returns:
            Both, in nats.
        """
        x, _ = source.draw(_N_MOMENTS, generator)
        hidden = self.mean[:-1](x)
        mean, variance = self.mean[-1](hidden).double(), self.log_variance(hidden).double().exp()
        x, mean = x.double() - x.mean(dim=0), mean - mean.mean(dim=0)
        slope = torch.linalg.lstsq(x, mean).solution
        rest = mean - x @ slope
        noise = rest.mT @ rest / _N_MOMENTS + variance.mean(dim=0).diag()
        return channel_information(*source.moments(), slope.mT.numpy(), noise.numpy())


@dataclass(frozen=True)
class VibArm:
    """One bottleneck, trained at one beta on fresh pairs in every step."""

    beta: float
    seed: int
    steps: int

    @property
    def folder(self) -> str:
        """The name of the folder inside the experiment's."""
        return f"beta_{self.beta:g}_seed_{self.seed}"

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints there are."""
        return len(self._save_at)

    @property
    def _save_at(self) -> tuple[int, ...]:
        return (0, 100, 300, 1000, self.steps)

    def train(self, out: Path) -> Iterator[int]:
        """Train the bottleneck, fill its folder in `out`, and yield the step of each checkpoint."""
        folder = out / self.folder
        generator = torch.Generator().manual_seed(self.seed)
        source = pairs(generator)
        settings = {"data": "inputs.npz", "activation": "tanh", "input-metric": "data", "atol": 0.1}
        text = settings_text(settings, {"beta": self.beta, "seed": self.seed})
        x, y = source.draw(_N_COVARIANCE, generator)
        with output_errors(folder):
            SeriesText(text, "inputs.npz", {"x": x.numpy()}).write(folder)
        table = [["step", "error", "rate", "xt_nats", "ty_nats"]]
        for step, net in self._training(source, generator):
            with torch.no_grad():
                error, rate = net(x, y, torch.Generator().manual_seed(self.seed))
            known = net.information(source, torch.Generator().manual_seed(self.seed))
            figures = (error.item(), rate.item(), known.xt, known.ty)
            table.append([str(step), *(f"{figure:.6g}" for figure in figures)])
            with output_errors(folder):
                save_step(net.mean, folder, step)
                write_metrics(folder, table)
            yield step

    def _training(
        self, source: Pairs, generator: torch.Generator
    ) -> Iterator[tuple[int, Bottleneck]]:
        torch.manual_seed(self.seed)
        net = Bottleneck()
        optimizer = torch.optim.Adam(net.parameters(), _LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for step in range(self.steps + 1):
            if step in self._save_at:
                yield step, net
            x, y = source.draw(_BATCH, generator)
            error, rate = net(x, y, generator)
            optimizer.zero_grad()
            torch.autograd.backward(error + rate / self.beta)
            optimizer.step()
            schedule.step()


def plan(seeds: int, quick: bool) -> Experiment:
    """Plan one bottleneck for each beta and seed; `quick`: the four betas with the fewest steps."""
    arms = tuple(
        VibArm(beta, seed, _steps(beta))
        for seed in range(seeds)
        for beta in (QUICK_BETAS if quick else BETAS)
    )
    return Experiment(NAME, arms, judge, needs_sigma=True)


def _steps(beta: float) -> int:
    """Return the steps: near a critical value the loss hardly prefers 0 to a small sigma."""
    near = any(abs(beta / critical - 1) < 0.09 for critical in CRITICAL)
    return _MORE_STEPS if near or beta > 10 else _STEPS


def judge(frame: pd.DataFrame) -> Verdict:
    """Compare the mean's ranks, singular values and information at the end with theory.

    `frame` is the table of all arms, with columns rate, ty_nats and sigma_1 to sigma_8.
    """
    last = frame[frame["layer_index"] == frame["layer_index"].max()]
    ends = last.loc[last.groupby("run")["step"].idxmax()].sort_values(["beta", "seed"])
    wrong, off_sigma, off_rate, off_ty = [], [], [], []
    for _, row in ends.iterrows():
        expected, beta = active(RHO, row["beta"]), float(row["beta"])
        if not row["rank_min"] == row["rank_max"] == expected:
            wrong.append(f"{row['local_rank']:.2f} for {expected} at beta {beta:g}")
        sigma = np.array([row[f"sigma_{index + 1}"] for index in range(_LATENT)])
        theory = np.zeros(_LATENT)
        theory[: len(RHO)] = variational_singular_values(RHO, beta)
        off_sigma.append((float(np.abs(sigma - theory).max()), beta))
        known = variational_information(RHO, beta)
        off_rate.append((abs(row["rate"] - known.xt), beta))
        off_ty.append((abs(row["ty_nats"] - known.ty), beta))
    right = f"{len(ends) - len(wrong)} of {len(ends)}"
    claims = (
        Claim(
            "the local rank of the encoder's mean is the number of critical values below beta",
            f"#{{i: beta > beta_i}} at atol 0.1 at every point, beta_i = {CRITICAL}",
            f"{right} runs{': ' if wrong else ''}{'; '.join(wrong)}",
            not wrong,
        ),
        Claim(
            "the singular values of J Sigma_x^(1/2), averaged over points, are"
            " sqrt(1 - beta_i / beta), 0 below",
            f"within {SIGMA_ERROR}",
            f"the largest difference is {max(off_sigma)[0]:.3f}, at beta {max(off_sigma)[1]:g}",
            max(off_sigma)[0] <= SIGMA_ERROR,
        ),
        Claim(
            "the rate KL is that of the closed form, 1/2 sum log(beta / beta_i)",
            f"within {RATE_ERROR} nats",
            f"the largest difference is {max(off_rate)[0]:.3f} nats, at beta {max(off_rate)[1]:g}",
            max(off_rate)[0] <= RATE_ERROR,
        ),
        Claim(
            "I(T;Y), to second order a lower bound, is that of the closed form for this bottleneck,"
            " -1/2 sum log(1 - rho_i^2 + 1 / beta)",
            f"within {TY_ERROR} nats",
            f"the largest difference is {max(off_ty)[0]:.3f} nats, at beta {max(off_ty)[1]:g}",
            max(off_ty)[0] <= TY_ERROR,
        ),
    )
    lengths = sorted({f"{step:,}" for step in ends["step"]}, key=len)
    setting = (
        f"variational bottleneck on jointly Gaussian X, Y in R^{N}, encoder {N}-{_HIDDEN}-"
        f"{_HIDDEN}-{_LATENT} (tanh), linear decoder; Adam, learning rate {_LEARNING_RATE} with"
        f" cosine decay, batch {_BATCH}, {' or '.join(lengths)} steps;"
        f" {ends['beta'].nunique()} values of beta, {seed_count(ends)}"
    )
    return Verdict(NAME, setting, claims)
