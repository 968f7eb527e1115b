"""Tensors of every odd kind, as torch.save writes them; what is read of each must be right."""

import warnings
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

W = torch.linspace(-1, 1, 12).reshape(3, 4)
_DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t(),
    "expanded": lambda x: x[:1].expand(3, 4),
    "overlapping": lambda x: x.reshape(-1).as_strided((3, 4), (1, 1)),
    "a view": lambda x: torch.cat([x, x])[3:],
    "on meta": lambda x: x.to("meta"),
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "0-dim": lambda x: x.reshape(-1)[0],
    "empty": lambda x: x[:0],
    "vast": lambda x: x.reshape(-1)[:1].expand(10**6, 10**6),
}
_OTHERS: dict[str, Callable[[], object]] = {
    "negative": lambda: torch._neg_view(W),
    "conjugate": lambda: torch.complex(W, W).conj(),
    "imaginary part of a conjugate": lambda: torch.complex(W, W).conj().imag,
    "sparse COO": W.to_sparse,
    "sparse CSR": W.to_sparse_csr,
    "sparse BSR": lambda: W[:2].to_sparse_bsr((1, 2)),
    "nested": lambda: torch.nested.nested_tensor([W[0], W[1, :2]]),
    "nested, jagged": lambda: torch.nested.nested_tensor([W, W[:1]], layout=torch.jagged),
    "quantized": lambda: torch.quantize_per_tensor(W, 0.1, 0, torch.qint8),
    "quantized by channel": lambda: torch.quantize_per_channel(
        W, torch.ones(3), torch.zeros(3, dtype=torch.int64), 0, torch.qint8
    ),
    "a storage": W.untyped_storage,
    "a number": lambda: 3.0,
    "a string": lambda: "W",
    "None": lambda: None,
    "a list": W.tolist,
    "an array": W.numpy,
    "a size": lambda: W.shape,
    "a dtype": lambda: W.dtype,
    "a device": lambda: W.device,
}


def odd_tensors() -> Iterator[tuple[str, object]]:
    """Yield every kind that this torch can make and save, with its name."""
    thing: object
    for dtype, (layout, lay) in product(dict.fromkeys(_DTYPES), _LAYOUTS.items()):
        try:
            with warnings.catch_warnings(action="ignore"):  # that a dtype is new
                thing = lay(W.to(dtype))
        except (RuntimeError, NotImplementedError, TypeError):  # no such tensor
            continue
        yield f"{dtype}, {layout}", thing
    for name, make in _OTHERS.items():
        with warnings.catch_warnings(action="ignore"):  # that a layout is new
            thing = make()
        yield name, thing
