"""State dicts that ``torch.save`` wrote, read as data: of what a pickle can ask for, only what a state dict needs.

Such a file is a zip of ``data.pkl``, which says what there is, and one record of bytes for every storage. The few
functions that it names are recognized by their names and never looked up; everything else is refused.
"""

import math
import pickle
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from agents.checkpoint.budget import Budget
from agents.checkpoint.container import BUDGET, CheckpointError

LARGEST_PICKLE = 2**23  # bytes; that of a state dict has some hundred a tensor
BYTES_A_VALUE = 2**12  # what a value is counted as, since the same list may be in a pickle many times over

NAMES = ("double", "float", "half", "bfloat16", "long", "int", "short", "int8", "uint8", "bool")
SAVED_AS = {"bfloat16": "BFloat16", "int8": "Char", "uint8": "Byte"}
DTYPES = {f"{SAVED_AS.get(name, name.capitalize())}Storage": getattr(torch, name) for name in NAMES}
OPERATIONS = (
    *("PROTO", "MARK", "STOP", "GLOBAL", "REDUCE", "BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
    *("SHORT_BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
)


class _Named(dict[str | int, Any]):
    """A dict whose keys are names or numbers: the hash of a nested tuple may take for ever."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) not in (str, int):
            raise TypeError(f"a {type(key).__name__} in place of a name")
        super().__setitem__(key, value)


class _Storage(NamedTuple):
    dtype: torch.dtype
    record: str


class _View(NamedTuple):
    """A tensor before it is made."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


FUNCTIONS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): lambda: _Named(),
    ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _View(*arguments[:4]),
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
}


class _Unpickler(pickle._Unpickler):
    """Python's, written in Python, with fewer operations: nothing is imported and nothing but FUNCTIONS is called."""

    dispatch: ClassVar[dict[int, Callable[[Any], Any]]] = {
        **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in OPERATIONS},
        pickle.EMPTY_DICT[0]: lambda self: self.append(_Named()),
        pickle.BUILD[0]: lambda self: self.stack.pop(),  # the version of its layers, an attribute of a state dict
    }

    def find_class(self, module: str, name: str) -> Any:
        return DTYPES[name] if module == "torch" else FUNCTIONS[module, name]

    def persistent_load(self, identity: Any) -> _Storage:
        kind, dtype, record, _, _ = identity
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(record) is not str:
            raise ValueError("something in place of a storage")
        return _Storage(dtype, record)


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
            names = archive.namelist()
            (described,) = (name for name in names if name.endswith("data.pkl"))
            folder = described.removesuffix("data.pkl")
            if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
                raise ValueError("it was written on a machine with another order of bytes")
            if archive.getinfo(described).file_size > LARGEST_PICKLE:
                raise ValueError(f"its description has more than {LARGEST_PICKLE} bytes")
            state = _Unpickler(BytesIO(archive.read(described))).load()
            state = _Maker(archive, f"{folder}data/", Budget(file, BUDGET + 4 * len(data))).made(state)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise of every kind on damaged data
        raise CheckpointError(f"{file}: {member} holds no plain tensors ({error!r}); use another copy") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: {member} holds a {type(state).__name__}, expected a state dict")
    return state


class _Maker:
    """Tensors out of views, in all of a nested value, whose other parts are plain."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, budget: Budget) -> None:
        self._archive, self._folder, self._budget = archive, folder, budget

    def made(self, value: Any) -> Any:
        self._budget.take(BYTES_A_VALUE, "the number of its values")
        if isinstance(value, _View):
            return self._tensor(value)
        if isinstance(value, dict):
            return {key: self.made(part) for key, part in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self.made, value))
        if value is not None and type(value) not in (bool, int, float, str):
            raise ValueError(f"a {type(value).__name__} that stands alone")
        return value

    def _tensor(self, view: _View) -> Tensor:
        storage, offset, size, stride = view
        counts = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or len(size) != len(stride):
            raise ValueError("a tensor without its storage")
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("something in place of whole numbers")
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
