"""Read the pickle inside a torch file without its code: `torch.load(pickle_module=pickles)`.

A pickle names the classes and functions that rebuild its objects. Here the few names that rebuild
tensors and plain containers map to functions of this file, and every other name to its own subclass
of `Inert`, which stores its arguments and does nothing. torch's own `weights_only=True` refuses
other names, and the records of classes in files from before torch 1.6, so it cannot read a whole
module.

A pickle cannot set attributes of any object of Python, torch or this file that it can reach.
"""

import pickle
import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.serialization import StorageType
from torch.storage import TypedStorage

from localrank_cli.checkpoints import unpickling
from localrank_cli.checkpoints.unpickling import MalformedError

# Nothing of these modules runs here either, but no checkpoint needs their names.
_REFUSED_MODULES = frozenset(("os", "posix", "nt", "sys", "subprocess", "pty", "runpy", "ctypes"))
_REFUSED_NAMES = frozenset((
    "builtins.eval", "builtins.exec", "builtins.compile", "builtins.open", "builtins.__import__",
    "io.open", "_io.open","importlib.import_module", "importlib.__import__",
))  # fmt: skip
# A pickle of a few bytes can share modules so that they have more names than memory holds.
# The largest networks of experts have 60,000 modules.
_MOST_MODULES, _DEEPEST, _NAMES_OF_A_MODULE = 200_000, 100, 10
_MOST_AXES = 64
_QUANTIZED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized\.")
# Protocol 2 writes the names of Python 2.
_PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg", "commands": "subprocess"}
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_NUMBERS = {
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f4": "f", "f8": "d",
}  # fmt: skip


NO_VALUES = "has no values (meta)"  # the reason of a `LostTensor`
NO_MODULE = "not a module with weights"  # ends why a part of a module has none
NO_TENSOR = "not a tensor"  # ends why an object has none


class RefusedNameError(pickle.UnpicklingError):
    """A pickle names what runs code; the name is the message."""


class _Closed(type):
    """Metaclass that forbids setting attributes of a class, which a pickle could otherwise do."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise AttributeError(f"{cls.__name__}.{name} is not to be set")


class Inert(metaclass=_Closed):
    """Placeholder for an object or class that is not rebuilt: it stores what the pickle passes."""

    __slots__ = ("args", "items", "state", "values", "weights")
    name = ""  # of the class or function in the pickle
    dump_patches = False  # which torch asks of the class of a module
    args: tuple[object, ...]
    items: dict[object, object]  # of a dict-like object
    state: object  # what __getstate__ returned or, without one, the attributes
    values: list[object]  # of a list-like object
    weights: "dict[str, Tensor | LostTensor] | None"  # of a module, once `plain` has found them

    def __new__(cls, *args: object, **_: object) -> "Inert":
        """Keep the arguments."""
        made = object.__new__(cls)
        made.args, made.items, made.state, made.values = args, {}, None, []
        made.weights = None
        return made

    def __setstate__(self, state: object) -> None:
        """Keep the state."""
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Keep an item."""
        self.items[key] = value

    def __call__(self, *args: object, **_: object) -> "Inert":
        """Return another placeholder, since a pickle may call one."""
        return Inert(self, *args)

    def append(self, value: object) -> None:
        """Keep a value."""
        self.values.append(value)

    def extend(self, values: Iterable[object]) -> None:
        """Keep values."""
        self.values.extend(values)

    add = append


class _UntypedStorage(Inert):
    __slots__ = ()
    name = "torch.storage.UntypedStorage"
    dtype = torch.uint8  # what torch asks of the class of a storage


class LostTensor:
    """A tensor that is not read, such as a quantized one; `reason` follows its key in a message."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


class _Ordered(dict[Any, Any], metaclass=_Closed):
    """A dict whose attributes, such as the `_metadata` of a state dict, are ignored."""

    __slots__ = ()

    def __init__(self, *_: object) -> None:
        """Begin empty: what it is to hold comes one by one, or through `Unpickler.ordered`."""
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


class _Call:
    """A function that a pickle may call, and whose attributes it cannot set."""

    __slots__ = ("_function",)
    _function: Callable[..., object]

    def __init__(self, function: Callable[..., object]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> object:
        return self._function(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} is not to be set")


def _check_inside(
    storage: TypedStorage, dtype: torch.dtype, offset: Any, size: Any, stride: Any
) -> None:
    """Check that a tensor lies in its storage: torch would add memory that nothing was written to.

    Raises:
        MalformedError: If it does not.
    """
    shape = tuple(size), tuple(stride)
    counts = (offset, *shape[0], *shape[1])
    if len(shape[0]) != len(shape[1]) or not all(type(n) is int and n >= 0 for n in counts):
        raise MalformedError("the shape of a tensor is malformed")
    last = offset + sum((n - 1) * step for n, step in zip(*shape, strict=True))
    if 0 not in shape[0] and (last + 1) * dtype.itemsize > storage._untyped_storage.nbytes():
        raise MalformedError("a tensor reaches beyond the values that the file keeps for it")


def _tensor(storage: object, offset: Any, size: Any, stride: Any, *more: Any) -> object:
    """Rebuild a dense tensor; `more`: requires_grad, hooks, and the bits of complex views."""
    if not isinstance(storage, TypedStorage):
        return LostTensor("has no storage of its own")
    views = more[2] if more[2:] and more[2] is not None else {}
    if not isinstance(views, dict) or not views.keys() <= {"conj", "neg"}:
        return LostTensor("is a view of an unknown kind")
    _check_inside(storage, storage.dtype, offset, size, stride)
    rebuilt: Tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)
    if views.get("conj") is True:
        rebuilt = rebuilt.conj()
    if views.get("neg") is True:
        rebuilt = torch._neg_view(rebuilt)
    return rebuilt


def _tensor_of_type(storage: object, offset: Any, size: Any, stride: Any, *more: Any) -> object:
    """Rebuild a tensor of a dtype without a storage class; the third of `more` is the dtype."""
    if not isinstance(storage, TypedStorage) or any(more[3:]):
        return LostTensor("has no plain values")
    if not more[2:] or not isinstance(more[2], torch.dtype):
        raise MalformedError("it names a tensor without a type")
    _check_inside(storage, more[2], offset, size, stride)
    rebuilt: object = torch._utils._rebuild_tensor_v3(
        storage, offset, size, stride, False, None, more[2]
    )
    return rebuilt


def _first(data: object, *_: object) -> object:
    return data


def _of_type(function: object, kind: object, args: tuple[Any, ...], *_: object) -> object:
    """Rebuild a tensor of a subclass, or with attributes, as a plain one if it has plain values."""
    found = function(*args) if isinstance(function, _Call) else None
    if isinstance(found, (Tensor, LostTensor)):
        return found
    return LostTensor(f"is a {name_of(kind)}, not a plain tensor")


def _lost(reason: str) -> _Call:
    return _Call(lambda *_: LostTensor(reason))


def _dict(*args: object) -> dict[Any, Any]:
    return dict(args[0]) if args and isinstance(args[0], Mapping) else {}


def _default_dict(*_: object) -> dict[Any, Any]:
    return {}


def _list(*args: object) -> list[Any]:
    return list(args[0]) if args and isinstance(args[0], (list, tuple)) else []


def _size(*args: object) -> tuple[Any, ...]:
    sizes = tuple(_list(*args))
    if len(sizes) > _MOST_AXES or not all(type(one) is int for one in sizes):
        raise MalformedError("it names a shape of other things than numbers")
    return sizes


def _bytes(text: object, encoding: object = "") -> object:
    """Return the bytes that protocol 2 writes as a text."""
    if isinstance(text, str) and encoding in {"latin1", "latin-1"}:
        return text.encode("latin-1")
    return Inert(text, encoding)


def _reconstructed(kind: object, *args: object) -> object:
    """Return an object as protocols 0 and 1 make it."""
    return kind() if isinstance(kind, type) and issubclass(kind, Inert) else Inert(kind, *args)


def _scalar(dtype: object, data: object = b"") -> object:
    """Return a numpy scalar as a number: trainers count steps with them."""
    code = dtype.args[0] if isinstance(dtype, Inert) and dtype.args else None
    letter = _NUMBERS.get(code) if isinstance(code, str) else None
    if letter is None or not isinstance(dtype, Inert) or not isinstance(data, bytes):
        return Inert(dtype, data)
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "<"
    layout = (">" if order == ">" else "<") + letter
    return struct.unpack(layout, data)[0] if struct.calcsize(layout) == len(data) else Inert()


_FUNCTIONS: Mapping[str, _Call] = {
    "torch._utils._rebuild_tensor": _Call(_tensor),
    "torch._utils._rebuild_tensor_v2": _Call(_tensor),
    "torch._utils._rebuild_tensor_v3": _Call(_tensor_of_type),
    "torch._utils._rebuild_parameter": _Call(_first),
    "torch._utils._rebuild_parameter_with_state": _Call(_first),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _Call(_first),
    "torch._tensor._rebuild_from_type_v2": _Call(_of_type),
    "torch.tensor._rebuild_from_type_v2": _Call(_of_type),
    "torch._utils._rebuild_qtensor": _lost("is quantized"),
    "torch._utils._rebuild_sparse_tensor": _lost("is sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": _lost("is sparse"),
    "torch._utils._rebuild_nested_tensor": _lost("is nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _lost(NO_VALUES),
    "torch._utils._rebuild_wrapper_subclass": _Call(
        lambda *args: LostTensor(f"is a {name_of(args[0] if args else None)}, not a plain tensor")
    ),
    "torch._utils._rebuild_device_tensor_from_numpy": _lost("is a tensor of a device"),
    "torch.Size": _Call(_size),
    "collections.Counter": _Call(_dict),
    "collections.defaultdict": _Call(_default_dict),
    "builtins.dict": _Call(_dict),
    "builtins.list": _Call(_list),
    "_codecs.encode": _Call(_bytes),
    "copyreg._reconstructor": _Call(_reconstructed),
    "numpy.core.multiarray.scalar": _Call(_scalar),
    "numpy._core.multiarray.scalar": _Call(_scalar),
}


class Unpickler(unpickling.Unpickler):
    """The unpickler for torch.load, which adds the storages."""

    # Tensors and what else is compared by identity: a whole optimizer has a dict of its parameters.
    keys = (Inert, LostTensor, Tensor, torch.dtype, _Call, StorageType, type)
    targets = (Inert, LostTensor, _Ordered)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._classes: dict[str, type[Inert]] = {}
        self._hashing = {
            "builtins.set": _Call(self._set),
            "builtins.frozenset": _Call(self._set),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for the object of a name.

        Raises:
            RefusedNameError: If it is one that only serves to run code.
        """
        self.check_name(module, name)
        full = f"{_PYTHON_3.get(module, module)}.{name}"
        if full.partition(".")[0] in _REFUSED_MODULES or full in _REFUSED_NAMES:
            raise RefusedNameError(full)
        if full == "collections.OrderedDict":
            return _Ordered
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = self._hashing.get(full) or _FUNCTIONS.get(full)
        if known is not None:
            return known
        if full == _UntypedStorage.name:
            return _UntypedStorage
        if full not in self._classes:
            made: Any = _Closed("Inert", (Inert,), {"__slots__": (), "name": full})
            self._classes[full] = made
        return self._classes[full]

    def inner(self, value: object) -> Collection[object]:
        """Return what a reader would look into next, of a placeholder as `plain` returns it."""
        if isinstance(value, Inert):
            if is_module(value):  # of which the weights alone are looked for
                return ()
            value = value.items or next(_dicts(value.state), None)
        return super().inner(value)

    def is_class(self, value: object) -> bool:
        """Return whether a value is a class, as torch names them for storages."""
        return isinstance(value, (StorageType, type))

    def load_reduce(self) -> None:
        """Call a function; of an ordered dict, with the pairs that older versions pass."""
        function, args = self.stack[-2:]
        super().load_reduce()
        if function is _Ordered and args:
            made = self.stack[-1]
            made.update(self.check_items(_list(*args), made))

    def _set(self, *args: object) -> set[Any]:
        values = _list(*args)
        self.check_values(values)
        return set(values)

    dispatch: ClassVar[dict[int, Any]] = {
        **unpickling.Unpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
    }


def load(file: BinaryIO, **options: Any) -> object:
    """Return one of the small pickles with which older files begin and end."""
    return unpickling.check_simple(Unpickler(file, **options).load())


def name_of(value: object) -> str:
    """Return the name that a pickle gave to an inert object or class, or the type of another."""
    kind = value if isinstance(value, type) else type(value)
    return (kind.name if issubclass(kind, Inert) else "") or kind.__name__


def plain(value: object) -> object:
    """Return an inert object as a dict: a module's weights, or items, or attributes.

    Everything else is returned as it is, and so is an object that has none of these.
    """
    if not isinstance(value, Inert):
        return value
    if value.weights is not None:
        return value.weights
    if is_module(value):
        weights = _Weights()
        weights.visit(value, ())
        value.weights = weights.found
        return weights.found
    return value.items or next(_dicts(value.state), value)


def is_module(value: object) -> bool:
    """Return whether an object is an inert module of torch, or a compiled one."""
    return isinstance(value, Inert) and (_parts(value) or _compiled(value)) is not None


def attributes_of(value: Inert) -> dict[Any, Any]:
    """Return the attributes of an inert object, those in slots too."""
    return {key: one for part in _dicts(value.state) for key, one in part.items()}


def _dicts(*values: object) -> Iterator[dict[Any, Any]]:
    for value in values:
        # With __slots__ the state is a pair of dicts.
        pair = value if isinstance(value, tuple) else (value,)
        yield from (one for one in pair if isinstance(one, dict))


def _parts(module: Inert) -> dict[Any, Any] | None:
    """Return the attributes of a module; torch.fx passes them to a function."""
    for found in _dicts(module.state, *module.args):
        if isinstance(found.get("_parameters"), dict) and isinstance(found.get("_modules"), dict):
            return found
    return None


def _compiled(module: Inert) -> Inert | None:
    """Return the module that torch.compile wrapped."""
    inner = module.args[0] if module.args else None
    compiled = name_of(module) == "torch._dynamo.eval_frame.OptimizedModule"
    return inner if compiled and isinstance(inner, Inert) else None


class _Weights:
    """The state dict of an inert module, as `nn.Module.state_dict` names and orders it."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor | LostTensor] = {}
        self._visited = 0

    def visit(self, module: object, path: tuple[str, ...]) -> None:
        """Add the weights of a module at a path."""
        self._visited += 1
        place = ".".join(path) or "the network"
        parts = _parts(module) if isinstance(module, Inert) else None
        inner = _compiled(module) if isinstance(module, Inert) else None
        if self._visited > _MOST_MODULES or len(path) > _DEEPEST:
            self.found[place] = LostTensor("is nested in too many modules")
        elif _QUANTIZED.match(name_of(module)):
            self.found[place] = LostTensor(f"is quantized ({name_of(module)})")
        elif parts is not None:
            self._add(parts, path)
        elif inner is not None:
            self.visit(inner, (*path, "_orig_mod"))
        else:
            self.found[place] = LostTensor(f"is a {name_of(module)}, {NO_MODULE}")

    def _add(self, parts: dict[Any, Any], path: tuple[str, ...]) -> None:
        passing = parts.get("_non_persistent_buffers_set")
        kept = {
            key: value
            for buffers in _dicts(parts.get("_buffers"))
            for key, value in buffers.items()
            if not isinstance(passing, set) or key not in passing
        }
        tensors = {**parts["_parameters"], **kept}
        self._visited += len(tensors) // _NAMES_OF_A_MODULE  # modules can share them all
        for key, value in tensors.items():
            if value is not None:
                self.found[".".join((*path, str(key)))] = as_tensor(value)
        for key, value in parts["_modules"].items():
            if value is not None and self._visited <= _MOST_MODULES:
                self.visit(value, (*path, str(key)))


def as_tensor(value: object) -> Tensor | LostTensor:
    """Return a value as a tensor, or as a `LostTensor` with the reason why it is none."""
    if isinstance(value, (Tensor, LostTensor)):
        return value
    return LostTensor(f"is a {name_of(value)}, {NO_TENSOR}")


def is_array(value: object) -> bool:
    """Return whether an object is a numpy array, inert or, from trusted code, a real one."""
    if isinstance(value, np.ndarray):
        return True
    rebuilds = ("multiarray._reconstruct", "numeric._frombuffer")
    name = name_of(value) if isinstance(value, Inert) else ""
    return name.startswith("numpy.") and name.endswith(rebuilds)
