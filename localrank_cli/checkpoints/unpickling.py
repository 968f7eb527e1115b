"""The unpickler that reads every pickle of a file that is not trusted.

A pickle of a few bytes can ask for work without end within one call of C, where no signal arrives:
the hash of a tuple that shares its parts 45 levels deep takes 2^45 steps. So everything that is
hashed, or handed to torch as the name of a storage, is checked first. This is the unpickler that is
written in Python: the one in C allocates as many places for shared objects as a pickle asks for.
"""

import os
import pickle
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, ClassVar

_PLAIN = frozenset((str, bytes, int, float, bool, type(None)))
_LONGEST_NAME = 1000  # of a class and its module
_DEEPEST = 10_000  # levels; Python writes no more than a thousand
_WIDE = 2**60  # integers below have a hash of their own
_MOST_BITS = 4096  # of an integer that is hashed
# Entries of all tuples and sets that are hashed, as a tuple does not keep its hash: a second.
_MOST_HASHED = 5_000_000
# Keys of one dict with equal hashes, each of which is compared with all others.
_MOST_ALIKE = 1000
# Values that calls copy from what a pickle shares between them; single calls of a few do not count.
_MOST_COPIED, _FEW = 10_000_000, 16
_SIZED = (tuple, list, dict, set, str)
# Dicts and lists that a pickle may name again without a look at how often each would be met, by
# readers who look into so many levels.
_FEW_SHARED, _LEVELS = 50, 8
_MOST_MET, _OFTEN = 20_000_000, 10
# Values in a tuple, where those that it shares count each time: what it takes to hash or print it.
_LARGEST_TUPLE = 2**24


class MalformedError(pickle.UnpicklingError):
    """A pickle asks for what torch.save never writes; the message says what."""


class HostileError(MalformedError):
    """A pickle holds keys that may take forever; only code of its own would read it."""


class Bounded:
    """An open file that never reads more than it has, however much a pickle asks for.

    It has no descriptor, so that torch does not take it for an archive of the format before 0.2.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.readline, self.seek, self.tell = file.readline, file.seek, file.tell
        self.readinto = file.readinto  # type: ignore[attr-defined]  # every open file has it

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size` of them."""
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))


# Its methods for the opcodes, which typeshed leaves out.
_PURE: Any = pickle._Unpickler


class Unpickler(pickle._Unpickler):
    """What finds names is left to a subclass, and so are the classes that it makes.

    Attributes:
        keys: Classes whose instances are hashed in an instant, by identity for example.
        targets: Classes whose instances a pickle may fill: with items, values or a state.
    """

    keys: ClassVar[tuple[type, ...]] = ()
    targets: ClassVar[tuple[type, ...]] = ()
    # The base class has these, and typeshed leaves them out.
    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]
    proto: int

    def __init__(self, file: "BinaryIO | Bounded", **options: Any) -> None:
        super().__init__(file, **options)
        self.read, self.readline = file.read, file.readline
        self._hashed = 0
        self._copied = 0
        self._shareable = (dict, list, tuple, *self.targets)
        self._shared = 0  # how often a dict or list was named again
        self._alike: dict[int, Counter[int]] = {}  # of a dict: how often it has each hash
        self._weights: dict[int, int] = {}  # of tuples that hold tuples
        self._kept: list[object] = []  # those of which the identity is used as a name

    def load(self) -> Any:
        """Return the object that the pickle describes.

        Without the base class's buffer for frames, which takes half of its time.

        Raises:
            EOFError: If it ends early.
        """
        self.metastack, self.stack, self.proto = [], [], 0
        self.append = self.stack.append
        read, dispatch = self.read, self.dispatch
        try:
            while True:
                code = read(1)
                if not code:
                    raise EOFError
                dispatch[code[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]  # typeshed leaves it out
            if self._shared > _FEW_SHARED:
                self._check_met(stop.value)
            return stop.value

    def inner(self, value: object) -> Collection[object]:
        """Return what a reader of dicts and lists would look into next."""
        if isinstance(value, dict):
            return value.values()
        return value if isinstance(value, (list, tuple)) else ()

    def _check_met(self, value: object) -> None:
        """Check that values are not met much more often than they are there."""
        known: dict[tuple[int, int], tuple[int, int]] = {}
        met = self._met(value, _LEVELS, known)
        if met > _MOST_MET and met > _OFTEN * sum(
            {i: n for (i, _), (_, n) in known.items()}.values()
        ):
            raise HostileError("its dicts and lists repeat others without end")

    def _met(
        self, value: object, levels: int, known: dict[tuple[int, int], tuple[int, int]]
    ) -> int:
        """Count the values that a reader meets, each as often as it does."""
        inner = self.inner(value)
        if not inner or not levels:
            return 1
        place = id(value), levels
        if place not in known:
            met = 1 + sum(self._met(one, levels - 1, known) for one in inner)
            known[place] = met, len(inner)
        return known[place][0]

    def _note_shared(self) -> None:
        self._shared += isinstance(self.stack[-1], self._shareable)

    def load_get(self) -> None:
        """Name an earlier value again."""
        _PURE.load_get(self)
        self._note_shared()

    def load_binget(self) -> None:
        """Name one of the first 256 values again."""
        _PURE.load_binget(self)
        self._note_shared()

    def load_long_binget(self) -> None:
        """Name any earlier value again."""
        _PURE.load_long_binget(self)
        self._note_shared()

    def load_dup(self) -> None:
        """Name the last value again."""
        _PURE.load_dup(self)
        self._note_shared()

    def load_frame(self) -> None:
        """Skip the length of a frame."""
        self.read(8)

    def check_name(self, module: str, name: str) -> None:
        """Check that a name is not so long that using it often would take long.

        Raises:
            MalformedError: If it is.
        """
        if len(module) + len(name) > _LONGEST_NAME:
            raise MalformedError("it names a class with over 1,000 letters")

    def _check_key(self, key: object, *, in_set: bool = False) -> bool:
        """Check that a key is hashed in little time; return whether many may have one hash."""
        kind = type(key)
        if kind is str or kind is bytes:
            return False
        parts: Iterable[object] = (key,)
        if kind is tuple or (kind is frozenset and not in_set):
            assert isinstance(key, (tuple, frozenset))
            parts = key
            self._hashed += len(key)
        for part in parts:
            if type(part) not in _PLAIN and not isinstance(part, self.keys):
                raise HostileError(
                    f"it uses a {kind.__name__} of things other than numbers and strings as a key"
                    if parts is key
                    else f"it uses a {kind.__name__} as a key"
                )
            if type(part) is int:
                if part.bit_length() > _MOST_BITS:
                    raise HostileError(f"it uses an integer of {part.bit_length()} bits as a key")
                self._hashed += part.bit_length() >> 6
        if self._hashed > _MOST_HASHED:
            raise HostileError(f"its keys hold over {_MOST_HASHED:,} values")
        return parts is key or kind is int or kind is float

    def _check_keys(self, target: object, keys: Sequence[object], *, in_set: bool = False) -> None:
        loose = [
            key
            for key in keys
            if type(key) is not str
            and not (type(key) is int and -_WIDE < key < _WIDE)
            and self._check_key(key, in_set=in_set)
        ]
        if not loose:
            return
        if id(target) not in self._alike:
            self._alike[id(target)] = Counter()
            self._kept.append(target)
        hashes = self._alike[id(target)]
        for key in loose:
            hashes[hash(key)] += 1
            if hashes[hash(key)] > _MOST_ALIKE:
                raise HostileError(f"over {_MOST_ALIKE:,} of its keys have one hash")

    def check_items(self, items: Iterable[Any], target: object) -> list[tuple[Any, Any]]:
        """Return the pairs that a dict is to be made of, after a check of their keys.

        Raises:
            HostileError: If hashing one may take forever.
        """
        pairs = [(key, value) for key, value in items]
        self._check_keys(target, [key for key, _ in pairs])
        return pairs

    def check_values(self, values: Sequence[object]) -> None:
        """Check what a set is to be made of.

        Raises:
            HostileError: If hashing one may take forever.
        """
        self._check_keys(values, values)

    def _target(self, kind: type) -> Any:
        if len(self.stack) > _DEEPEST:
            raise MalformedError("it is nested too deeply")
        target = self.stack[-1]
        if not isinstance(target, (kind, *self.targets)):
            raise MalformedError(
                f"it fills a {type(target).__name__} as if it were a {kind.__name__}"
            )
        return target

    def _set_items(self, items: list[Any]) -> None:
        target = self._target(dict)
        keys = items[::2]
        self._check_keys(target, keys)
        for key, value in zip(keys, items[1::2], strict=True):
            target[key] = value

    def load_setitem(self) -> None:
        """Set one item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        """Set many items of a dict."""
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        """Make a dict of what is on the stack."""
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_additems(self) -> None:
        """Add to a set."""
        items = self.pop_mark()
        target = self._target(set)
        self._check_keys(target, items, in_set=not isinstance(target, set))
        for item in items:
            target.add(item)

    def load_frozenset(self) -> None:
        """Make a frozenset of what is on the stack."""
        items = self.pop_mark()
        self._check_keys(items, items, in_set=True)
        self.append(frozenset(items))

    def load_append(self) -> None:
        """Append to a list."""
        value = self.stack.pop()
        self._target(list).append(value)

    def load_appends(self) -> None:
        """Append many values to a list."""
        values = self.pop_mark()
        self._target(list).extend(values)

    def charge(self, *values: object) -> None:
        """Count what a call copies, or refuse it: a byte of a pickle can name a large value again.

        Raises:
            HostileError: If it is too much in all.
        """
        for value in values:
            if isinstance(value, _SIZED) and len(value) > _FEW:
                self._copied += len(value)
                if self._copied > _MOST_COPIED:
                    raise HostileError(f"it copies over {_MOST_COPIED:,} values")

    def load_reduce(self) -> None:
        """Call a function."""
        self._check_call(self.stack[-1])
        _PURE.load_reduce(self)

    def load_newobj(self) -> None:
        """Make an object of a class."""
        self._check_call(self.stack[-1])
        _PURE.load_newobj(self)

    def load_newobj_ex(self) -> None:
        """Make an object of a class with keyword arguments."""
        self._check_call(self.stack[-2])
        _PURE.load_newobj_ex(self)

    def _check_call(self, args: object) -> None:
        if type(args) is not tuple:
            raise MalformedError(f"it calls with a {type(args).__name__}")
        self.charge(args, *args[:1])

    def load_build(self) -> None:
        """Set the state of an object, if it is of a class that may have one."""
        self.charge(self.stack[-1])
        if not isinstance(self.stack[-2], self.targets):
            raise MalformedError(f"it gives a state to a {type(self.stack[-2]).__name__}")
        _PURE.load_build(self)

    def load_bytearray8(self) -> None:
        """Read a bytearray, which is allocated only when its bytes are there."""
        size = int.from_bytes(self.read(8), "little")
        data = self.read(size)
        if len(data) < size:
            raise MalformedError("it ends within a string")
        self.append(bytearray(data))

    def load_mark(self) -> None:
        """Begin a list, dict or tuple.

        Raises:
            MalformedError: If too many have begun.
        """
        if len(self.metastack) > _DEEPEST:
            raise MalformedError("it is nested too deeply")
        _PURE.load_mark(self)

    def load_tuple(self) -> None:
        """Make a tuple of what is on the stack."""
        self._push(tuple(self.pop_mark()))

    def load_tuple1(self) -> None:
        """Make a tuple of one value."""
        self.stack[-1] = self._weighed((self.stack[-1],))

    def load_tuple2(self) -> None:
        """Make a tuple of two values."""
        self.stack[-2:] = [self._weighed((self.stack[-2], self.stack[-1]))]

    def load_tuple3(self) -> None:
        """Make a tuple of three values."""
        self.stack[-3:] = [self._weighed((self.stack[-3], self.stack[-2], self.stack[-1]))]

    def _push(self, made: tuple[Any, ...]) -> None:
        self.append(self._weighed(made))

    def _weighed(self, made: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return a tuple that is not too large with all that it shares."""
        inner = [one for one in made if type(one) is tuple]
        if inner:
            weight = len(made) + sum(self._weights.get(id(one), len(one)) for one in inner)
            if weight > _LARGEST_TUPLE:
                raise HostileError(
                    f"one of its tuples repeats others to over {_LARGEST_TUPLE:,} values"
                )
            self._weights[id(made)] = weight
            self._kept.append(made)
        return made

    def load_binpersid(self) -> None:
        """Get an object from outside, a storage, by a name."""
        self._check_outside(self.stack[-1])
        _PURE.load_binpersid(self)

    def load_persid(self) -> None:
        """Get an object from outside by a text: torch writes no such name.

        Raises:
            MalformedError: Always.
        """
        raise MalformedError("it names a storage as torch does not")

    def _check_outside(self, name: object) -> None:
        """Check the name of a storage, which torch hashes and prints."""
        parts = name if isinstance(name, tuple) else ()
        view = parts[-1:] if parts and isinstance(parts[-1], tuple) else ()
        for part in (*parts[: len(parts) - len(view)], *(view[0] if view else ())):
            if type(part) not in _PLAIN and not self.is_class(part):
                raise MalformedError("it names a storage as torch does not")

    def is_class(self, value: object) -> bool:
        """Return whether a value is what `find_class` returned for a name of a class."""
        return isinstance(value, type)

    dispatch: ClassVar[dict[int, Any]] = {
        **_PURE.dispatch,
        pickle.FRAME[0]: load_frame,
        pickle.GET[0]: load_get,
        pickle.BINGET[0]: load_binget,
        pickle.LONG_BINGET[0]: load_long_binget,
        pickle.DUP[0]: load_dup,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.BUILD[0]: load_build,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.MARK[0]: load_mark,
        pickle.TUPLE[0]: load_tuple,
        pickle.TUPLE1[0]: load_tuple1,
        pickle.TUPLE2[0]: load_tuple2,
        pickle.TUPLE3[0]: load_tuple3,
        pickle.BINPERSID[0]: load_binpersid,
        pickle.PERSID[0]: load_persid,
    }


def check_simple(value: object) -> object:
    """Return a value that a file holds beside its content, if it is a number, text, or a few.

    torch compares, hashes and prints these.

    Raises:
        MalformedError: If it is anything else.
    """
    inner: list[object] = [value]
    for _ in range(3):  # a list of names, or a dict of dicts that describes the machine
        following: list[object] = []
        for one in inner:
            if isinstance(one, Mapping):
                following += [*one, *one.values()]
            elif isinstance(one, list):
                following += one
            elif type(one) not in _PLAIN:
                raise MalformedError(f"it holds a {type(one).__name__} where torch writes a number")
        inner = following
    if inner:
        raise MalformedError("it holds lists in lists where torch writes a number")
    return value
