"""State dicts that ``torch.save`` wrote, read as data: the pickle in them is walked, and nothing is called.

Such a file is a zip of ``data.pkl``, which says what there is, and one record of bytes for every storage. A state dict
needs few of a pickle's operations: numbers, strings, tuples, lists and dicts, and the names of a handful of functions,
which are recognized here and never looked up. Everything else is refused.
"""

import math
import pickletools
import zipfile
from io import BytesIO
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.checkpoint.budget import Budget
from agents.checkpoint.container import BUDGET, CheckpointError

LARGEST_PICKLE = 2**23  # bytes; that of a state dict has some hundred a tensor
BYTES_A_VALUE = 2**12  # what a value is counted as, since the same list may be in a pickle many times over

DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}


class _Name(str):
    """The name of a class or function, which stands for itself."""


class _Storage(NamedTuple):
    dtype: torch.dtype
    record: str


class _View(NamedTuple):
    """A tensor before it is made."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


def check_stored(archive: zipfile.ZipFile, file: str) -> None:
    """Files of torch and Stable-Baselines3 are not compressed, so no member, nor all together, is larger than the file.

    Raises:
        CheckpointError: this one is, or a part of it stands for several.
    """
    members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise CheckpointError(f"{file}: {member.filename} is compressed, which no saved model is; it is refused")
    if len({member.header_offset for member in members}) < len(members) or len(set(archive.namelist())) < len(members):
        raise CheckpointError(f"{file} holds a member twice; it is refused")


def read_state(data: bytes, member: str, file: str) -> dict[str, Any]:
    """A state dict: tensors on the CPU, numbers and strings by name, in lists, tuples and dicts.

    Raises:
        CheckpointError: the data are something else, or damaged.
    """
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            check_stored(archive, file)
            (described,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
            folder = described.removesuffix("data.pkl")
            if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
                raise ValueError("it was written on a machine with another order of bytes")
            if archive.getinfo(described).file_size > LARGEST_PICKLE:
                raise ValueError(f"its description has more than {LARGEST_PICKLE} bytes")
            maker = _Maker(archive, f"{folder}data/", Budget(file, BUDGET + 4 * len(data)))
            state = maker.made(_walked(archive.read(described)))
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, pickletools and torch raise of every kind on damaged data
        raise CheckpointError(f"{file}: {member} holds no plain tensors ({error}); use another copy") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: {member} holds a {type(state).__name__}, expected a state dict")
    return state


class _Maker:
    """Tensors out of views, in all of a nested value."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, budget: Budget) -> None:
        self._archive, self._folder, self._budget = archive, folder, budget

    def made(self, value: Any) -> Any:
        self._budget.take(BYTES_A_VALUE, "the number of its values")
        if isinstance(value, _View):
            return self._tensor(value)
        if isinstance(value, _Name | _Storage):
            raise ValueError(f"{value} stands alone")
        if isinstance(value, dict):
            return {_key(key): self.made(part) for key, part in value.items()}
        return type(value)(map(self.made, value)) if type(value) in (list, tuple) else value

    def _tensor(self, view: _View) -> Tensor:
        storage, size, stride = view.storage, _whole(view.size), _whole(view.stride)
        (offset,) = _whole((view.offset,))
        if not isinstance(storage, _Storage) or len(size) != len(stride):
            raise ValueError("a tensor without its storage")
        n_bytes = math.prod(size) * storage.dtype.itemsize
        record = self._archive.getinfo(self._folder + storage.record)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if n_bytes > record.file_size or (n_bytes and (last + 1) * storage.dtype.itemsize > record.file_size):
            raise ValueError(f"a tensor of shape {size} out of {record.file_size} bytes")
        self._budget.take(record.file_size + n_bytes, f"a tensor of shape {size}")
        if not n_bytes:
            return torch.empty(size, dtype=storage.dtype)
        flat = torch.frombuffer(bytearray(self._archive.read(record)), dtype=storage.dtype)
        return flat.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


def _key(key: Any) -> str | int:
    if type(key) not in (str, int):
        raise ValueError(f"{key!r} as a name")
    checked: str | int = key
    return checked


def _whole(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, tuple | list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{numbers!r} in place of whole numbers")
    return tuple(numbers)


def _walked(data: bytes) -> Any:
    """What a pickle describes, of values, names and views alone."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        first = marks.pop()
        parts = stack[first:]
        del stack[first:]
        return parts

    operations: Any = pickletools.genops(data)
    for operation, argument, _ in operations:
        name = operation.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = since_mark()
            stack[-1].extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][_key(key)] = value
        elif name == "SETITEMS":
            pairs = iter(since_mark())
            stack[-1].update((_key(key), value) for key, value in zip(pairs, pairs, strict=True))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_called(stack.pop(), arguments))
        elif name == "BUILD":  # the version of a state dict's layers, which torch keeps as an attribute
            stack.pop()
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise ValueError(f"the operation {name}")
    raise ValueError("it has no end")


_LITERALS = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_CONSTANTS: dict[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _storage(identity: Any) -> _Storage:
    kind, storage_type, key, _, _ = identity
    if kind != "storage" or not isinstance(storage_type, _Name) or type(key) is not str:
        raise ValueError(f"{identity!r} in place of a storage")
    return _Storage(DTYPES[storage_type], key)


def _called(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name):
        raise ValueError("a call of what has no name")
    if function == "collections OrderedDict" and arguments == ():
        return {}
    if function == "torch._utils _rebuild_tensor_v2":
        return _View(*arguments[:4])
    if function == "torch._utils _rebuild_parameter":
        return arguments[0]
    raise ValueError(f"{function!s} is no part of a state dict")
