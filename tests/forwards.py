"""Forward passes with the habits of real models, for the cases."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.networks import Net


def choose(net: Net, x: Tensor) -> Any:
    hidden = net["a"](x)
    if hidden.sum() > 0:
        return net["b"](torch.relu(hidden))
    return net["b"](torch.tanh(hidden))


def no_grad_branch(net: Net, x: Tensor) -> Any:
    with torch.no_grad():
        aside = net["aside"](x)
    return net["b"](torch.tanh(net["a"](x)) * aside)


def straight_through(net: Net, x: Tensor) -> Any:
    hidden = net["a"](x)
    return net["b"](hidden + (hidden.sign() - hidden).detach())


def in_place_input(net: Net, x: Tensor) -> Any:
    x.mul_(0.5).tanh_()
    return net["b"](torch.tanh(net["a"](x)))


def in_place_input_beside(net: Net, x: Tensor) -> Any:
    hidden = net["a"](x.mul_(0.5))
    return net["b"](torch.tanh(hidden) * net["gate"](x))


def written(net: Net, x: Tensor) -> Any:
    out = torch.zeros(x.shape[0], 7)
    out[:, 2:5] = net["a"](x)[:, :3].tanh()
    return net["b"](out)


def energy(net: Net, x: Tensor) -> Any:
    with torch.enable_grad():
        inner = x if x.requires_grad else x.detach().requires_grad_(True)
        energy = net["a"](inner).tanh().pow(3).sum()
        (force,) = torch.autograd.grad(energy, inner, create_graph=True)
    return net["b"](F.pad(force, (0, 1)))


def only_one(net: Net, x: Tensor) -> Any:
    if x.shape[0] != 1:
        raise ValueError("one at a time, please")
    return net["b"](torch.relu(net["a"](x[0])))


def attention(net: Net, x: Tensor, batch_first: bool) -> Any:
    sequence = x if batch_first else x.transpose(0, 1)
    out, _ = net["attention"](sequence, sequence, sequence)
    return net["b"](out if batch_first else out.transpose(0, 1))


def recurrent(net: Net, x: Tensor, batch_first: bool) -> Any:
    if batch_first:
        return net["head"](net["rnn"](x)[0][:, -1])
    return net["head"](net["rnn"](x.transpose(0, 1))[0][-1])


def windows(net: Net, x: Tensor, points_first: bool) -> Any:
    n, windows, width = x.shape
    merged = (x if points_first else x.transpose(0, 1)).reshape(n * windows, width)
    hidden = torch.tanh(net["a"](merged))
    parts = hidden.reshape(n, windows, -1) if points_first else hidden.reshape(windows, n, -1)
    return net["b"](parts.mean(1 if points_first else 0))


def merged_view(net: Net, x: Tensor) -> Any:
    hidden = net["a"](x.transpose(0, 1))
    return net["b"](hidden.view(-1, 6).view(x.shape[1], -1, 6).tanh())
