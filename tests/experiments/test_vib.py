"""The bottleneck's data have the correlations of the theory, and it learns."""

from pathlib import Path

import numpy as np
import torch

from localrank_cli import analyze
from localrank_cli.experiments.vib import RHO, Bottleneck, VibArm, pairs
from localrank_cli.information.bottleneck import canonical_correlations


def test_the_pairs_have_the_canonical_correlations() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (part.double().numpy() for part in pairs(generator).draw(200_000, generator))
    covariance = np.cov(np.hstack([x, y]), rowvar=False)
    cov_x, cov_y = covariance[:10, :10], covariance[10:, 10:]
    found = canonical_correlations(cov_x, covariance[:10, 10:], cov_y)
    # The error of a correlation over N pairs is about 1 / sqrt(N) = 0.002; zeros are biased up.
    np.testing.assert_allclose(found[:5], RHO, atol=0.01)
    np.testing.assert_allclose(found[5:], 0, atol=0.02)
    np.testing.assert_allclose(cov_y, np.eye(10), atol=0.02)
    # X is not white: the metric matters.
    assert np.linalg.cond(cov_x) > 10


def test_the_rate_is_the_divergence_from_the_prior() -> None:
    net = Bottleneck()
    x, y = torch.randn(50, 10), torch.randn(50, 10)
    _, rate = net(x, y, torch.Generator().manual_seed(0))
    hidden = net.mean[:-1](x)
    encoder = torch.distributions.Normal(
        net.mean(x), (0.5 * net.log_variance(hidden)).exp()
    )  # fmt: skip
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(encoder, prior).sum(dim=1).mean()
    torch.testing.assert_close(rate, expected)


def test_a_training_is_a_series_with_its_beta(tmp_path: Path) -> None:
    arm = VibArm(beta=1.6, seed=4, steps=1200)
    assert list(arm.train(tmp_path)) == [0, 100, 300, 1000, 1200]
    frame = analyze(tmp_path / arm.folder, layers="4")
    assert (frame["beta"] == 1.6).all()
    assert (frame["seed"] == 4).all()
    assert (frame["input_metric"] == "data").all()
    assert (frame["n_cov"] == 5_000).all()
    # One critical value is below 1.6.
    assert frame["local_rank"].iloc[-1] == 1


def test_the_information_of_a_linear_encoder_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    source = pairs(generator)
    net = Bottleneck()
    slope = torch.randn(8, 10, generator=generator)
    last = torch.nn.Linear(10, 8, bias=False)
    net.mean = torch.nn.Sequential(torch.nn.Identity(), last)
    net.log_variance = torch.nn.Linear(10, 8)
    with torch.no_grad():
        last.weight.copy_(slope)
        net.log_variance.weight.zero_()
        net.log_variance.bias.copy_(torch.linspace(-1, 1, 8))
    found = net.information(source, generator)
    cov_x, cov_xy = source.moments()
    noise = np.diag(np.exp(np.linspace(-1, 1, 8)))
    b = slope.double().numpy()
    given_y = b @ (cov_x - cov_xy @ cov_xy.T) @ b.T + noise
    logs = [np.linalg.slogdet(m)[1] for m in (b @ cov_x @ b.T + noise, noise, given_y)]
    np.testing.assert_allclose(found.xt, 0.5 * (logs[0] - logs[1]), rtol=1e-5)
    np.testing.assert_allclose(found.ty, 0.5 * (logs[0] - logs[2]), rtol=1e-5)


def test_the_moments_are_those_of_the_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    source = pairs(generator)
    x, y = (part.double().numpy() for part in source.draw(200_000, generator))
    cov_x, cov_xy = source.moments()
    np.testing.assert_allclose(x.T @ x / len(x), cov_x, atol=0.05)
    np.testing.assert_allclose(x.T @ y / len(x), cov_xy, atol=0.05)


def test_the_information_of_a_nonlinear_encoder_is_bounded_from_below() -> None:
    # Large weights: tanh is far from linear. The rate is an upper bound on I(X;T).
    generator = torch.Generator().manual_seed(2)
    source, net = pairs(generator), Bottleneck()
    with torch.no_grad():
        for part in net.mean:
            if isinstance(part, torch.nn.Linear):
                part.weight.mul_(6)
        x, y = source.draw(20_000, generator)
        _, rate = net(x, y, generator)
    found = net.information(source, generator)
    assert 0 < found.ty < found.xt < rate.item()
