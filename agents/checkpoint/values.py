"""Settings as data: Python values to JSON and tensors, and back, by value only.

What JSON has no word for (tuples, NumPy scalars, infinities, dtypes, spaces, schedules, ...) is an object with one key
that starts with ``$``. Arrays and tensors go to safetensors and leave their name behind. Classes are stored by their
name in a fixed list (:func:`known_classes`): reading never imports anything and never calls anything else. A schedule
that is a function is kept as a table of its values. A class or other function of the user's own leaves its
``module:name`` behind, for the message that asks for it.
"""

import contextlib
import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import Tensor

from agents.checkpoint.budget import Budget
from agents.checkpoint.container import CheckpointError, refused
from agents.checkpoint.schedules import TableSchedule, sampled
from agents.encoders import ENCODERS
from agents.memory import MEMORIES

BYTES_A_COPY = 2**14  # what the copy of a tensor is counted as besides its numbers: many small ones take their time

MEMORY = "policy_kwargs.memory"  # the one setting in which a string may stand for a class
SCHEDULED = ("learning_rate", "ent_coef", "clip_range", "clip_range_vf", "noise_correlation")
"""Settings that may be functions of the progress."""

SCHEDULES: dict[str, tuple[type, tuple[str, ...]]] = {
    "ConstantSchedule": (ConstantSchedule, ("val",)),
    "LinearSchedule": (LinearSchedule, ("start", "end", "end_fraction")),
    "TableSchedule": (TableSchedule, ("progress", "values")),
}
NUMERIC = "biuf"  # kinds of dtypes
COLLECTIONS: dict[str, type] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}


class NotGiven(CheckpointError):
    """A file names a class or function that only its user can hand over."""


def known_classes() -> dict[str, dict[str, type]]:
    """Every class a file may name, by kind and name. Registries are read at each call, so what is added counts."""
    extractors: dict[str, type] = {cls.__name__: cls for cls in (FlattenExtractor, NatureCNN, CombinedExtractor)}
    return {
        "torch.nn": _classes_in(torch.nn, torch.nn.Module),
        "torch.optim": _classes_in(torch.optim, torch.optim.Optimizer) | {"RMSpropTFLike": RMSpropTFLike},
        "extractor": {**ENCODERS, **extractors},
        "memory": dict(MEMORIES),
        "numpy": {np.dtype(code).type.__name__: np.dtype(code).type for code in "?bhilqBHILQefd"},
        "builtin": {cls.__name__: cls for cls in (bool, int, float, str)},
    }


@functools.cache
def _classes_in(module: Any, base: type) -> dict[str, type]:
    return {name: cls for name, cls in vars(module).items() if inspect.isclass(cls) and issubclass(cls, base)}


def custom_name(value: Any) -> str:
    """``module:name`` of a class, a function, or a callable object's class."""
    if isinstance(value, functools.partial):
        return custom_name(value.func)
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"


class Encoder:
    """Values to JSON; arrays and tensors are collected in ``tensors`` under the name of where they stood.

    Args:
        subject: what is being saved, for messages.

    ``named`` holds what was kept by its name alone, by its place.
    """

    def __init__(self, subject: str) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.named: dict[str, str] = {}
        self._subject = subject
        self._shared: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
        self._names = {cls: [kind, name] for kind, known in known_classes().items() for name, cls in known.items()}

    def encode(self, value: Any, where: str = "") -> Any:
        """The JSON of a value.

        Raises:
            CheckpointError: it is of a kind that a file of data cannot hold; the message names its place.
        """
        kind = type(value)
        if kind in (str, np.str_) and (where != MEMORY or value in MEMORIES):
            return str(value)
        if value is None or kind in (bool, int) or (kind is float and math.isfinite(value)):
            return value
        if kind is list:
            return self._items(value, where)
        if isinstance(value, Mapping) and not isinstance(value, spaces.Space):
            return self._mapping(value, where)
        tag, content = self._tagged(value, where)
        return {tag: content}

    def encode_all(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the names of their places."""
        return {name: self.encode(value, name) for name, value in values.items()}

    def attempt(self, value: Any, where: str) -> dict[str, Any] | None:
        """The JSON of a value by its place; None if it is no data, and then nothing of it stays."""
        before = dict(self.tensors), dict(self.named), dict(self._shared)
        with contextlib.suppress(CheckpointError, RecursionError):
            encoded = self.encode_all({where: value})
            if self.named == before[1]:
                return encoded
        self.tensors, self.named, self._shared = before
        return None

    def _items(self, values: Any, where: str) -> list[Any]:
        return [self.encode(value, _join(where, index)) for index, value in enumerate(values)]

    def _mapping(self, value: Mapping[Any, Any], where: str) -> Any:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.encode(part, _join(where, key)) for key, part in value.items()}
        return {
            "$dict": [[self.encode(k, f"a key of {where}"), self.encode(v, _join(where, k))] for k, v in value.items()]
        }

    def _tagged(self, value: Any, where: str) -> tuple[str, Any]:
        for tag, collection in COLLECTIONS.items():
            if type(value) is collection:
                values: Any = value
                return tag, self._items(values if collection is tuple else sorted(values, key=repr), where)
        if type(value) is float:
            return "$float", repr(value)
        if isinstance(value, np.generic) and not isinstance(value, np.str_):
            return "$scalar", self._scalar(value, where)
        for tag, (kind, written, _) in PLAIN.items():
            if isinstance(value, kind):
                return tag, written(value)
        if isinstance(value, Tensor):
            return "$tensor", self._kept(value, where)
        if isinstance(value, np.ndarray):
            return "$array", self._kept(self._as_tensor(value, where), where)
        if isinstance(value, spaces.Space):
            return "$space", self._space(value, where)
        if inspect.isclass(value) and value in self._names:
            return "$class", self._names[value]
        if callable(value):
            return self._function(value, where)
        if isinstance(value, str):
            return self._name_alone(str(value), where)
        raise self._refusal(value, where)

    def _function(self, value: Any, where: str) -> tuple[str, Any]:
        scheduled = where in SCHEDULED or isinstance(value, FloatSchedule)
        if isinstance(value, FloatSchedule):
            value = value.value_schedule
        if scheduled and not isinstance(value, ConstantSchedule | LinearSchedule | TableSchedule):
            value = sampled(value) or value
        for name, (cls, fields) in SCHEDULES.items():
            if type(value) is cls:
                return "$schedule", [name, [self.encode(getattr(value, field), where) for field in fields]]
        return self._name_alone(custom_name(value), where)

    def _name_alone(self, name: str, where: str) -> tuple[str, str]:
        self.named[where] = name
        return "$custom", name

    def _scalar(self, value: Any, where: str) -> list[Any]:
        if value.dtype.kind not in NUMERIC or value.dtype.itemsize > 8:
            raise self._refusal(value, where)
        return [value.dtype.str, self.encode(value.item(), where)]

    def _space(self, space: spaces.Space[Any], where: str) -> dict[str, Any]:
        if isinstance(space, spaces.Box):
            return self._box(space, where)
        if isinstance(space, spaces.Discrete):
            dtype = np.dtype(space.dtype or np.int64).str
            return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": dtype}
        if isinstance(space, spaces.MultiDiscrete):
            start = np.asarray(space.start).tolist()
            return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": start, "dtype": space.dtype.str}
        if isinstance(space, spaces.MultiBinary):
            return {"kind": "MultiBinary", "n": [int(n) for n in np.atleast_1d(space.n)], "flat": np.ndim(space.n) == 0}
        if isinstance(space, spaces.Dict):
            # As pairs: the order of the keys decides the order of the features.
            pairs = [[key, self._space(part, _join(where, key))] for key, part in space.spaces.items()]
            return {"kind": "Dict", "spaces": pairs}
        if isinstance(space, spaces.Tuple):
            parts = [self._space(part, _join(where, index)) for index, part in enumerate(space.spaces)]
            return {"kind": "Tuple", "spaces": parts}
        raise self._refusal(space, where)

    def _box(self, space: spaces.Box, where: str) -> dict[str, Any]:
        described: dict[str, Any] = {"kind": "Box", "shape": list(space.shape), "dtype": space.dtype.str}
        for side, bound in (("low", space.low), ("high", space.high)):
            uniform = bound.size > 0 and bool((bound == bound.flat[0]).all())
            described[side] = self.encode(bound.flat[0].item() if uniform else bound, _join(where, side))
        if space.dtype.kind == "i":  # there infinity became the dtype's limit, and only these say so
            for side, bounded in (("bounded_below", space.bounded_below), ("bounded_above", space.bounded_above)):
                if not bounded.all():
                    described[side] = self.encode(bounded, _join(where, side))
        return described

    def _as_tensor(self, array: NDArray[Any], where: str) -> Tensor:
        try:
            return torch.from_numpy(np.array(array, dtype=_numeric(array.dtype).newbyteorder("="), order="C"))
        except TypeError as error:
            raise self._refusal(array, where, f"an array of dtype {array.dtype}") from error

    def _kept(self, tensor: Tensor, where: str) -> str:
        """The name under which a tensor is kept; tensors that are one in memory are kept once."""
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise self._refusal(tensor, where, f"a {tensor.layout} tensor")
        identity = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and identity in self._shared:
            return self._shared[identity][0]
        name = base = where or "value"
        count = 1
        while name in self.tensors:
            count += 1
            name = f"{base}#{count}"
        self.tensors[name] = tensor.detach().cpu().contiguous().clone()
        self._shared[identity] = name, tensor  # referenced, so that its address is not given to another
        return name

    def _refusal(self, value: Any, where: str, what: str | None = None) -> CheckpointError:
        what = what or f"a {type(value).__module__}.{type(value).__qualname__}"
        return CheckpointError(
            f"{self._subject} cannot be saved: {where or 'a value'} is {what}, which a file of data cannot hold. Use "
            "numbers, strings, lists, tuples, dicts, NumPy arrays, tensors, spaces or classes, or leave it out with "
            f'save(path, exclude=["{where.split(".")[0]}"]) and give it to load(). Nothing was written'
        )


class Decoder:
    """JSON and tensors back to values.

    Args:
        tensors: what the file holds.
        subject: the file, for messages.
        custom: what the user wants at a place in place of what is stored there, by the place; a class or function of
            ``policy_kwargs`` by its own name too.
        budget: what decoding may cost; by default that of a file of these tensors.

    ``used`` holds the names of the tensors that were asked for.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        subject: str,
        custom: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.used: set[str] = set()
        self._tensors = tensors
        self._subject = subject
        self._custom = custom or {}
        self._classes = known_classes()
        self._budget = budget or Budget(subject)
        self._readers: dict[str, Callable[[Any, str], Any]] = {
            "$dict": self._dict,
            "$float": lambda name, where: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[name],
            "$scalar": lambda value, where: _numeric(value[0]).type(self._decode(value[1], "")),
            "$tensor": self._tensor,
            "$array": lambda name, where: np.array(self._tensor(name, where).numpy()),
            "$space": self._space,
            "$schedule": self._schedule,
            "$class": self._class,
            "$custom": self._not_given,
        }

    def decode(self, value: Any, where: str = "") -> Any:
        """The value for a piece of JSON.

        Raises:
            CheckpointError: it is none that :class:`Encoder` writes, or names what is not known here.
        """
        with refused(f"{self._subject}: {where or 'a value'} cannot be understood"):
            return self._decode(value, where)

    def _decode(self, value: Any, where: str) -> Any:
        unknown = where == MEMORY and isinstance(value, str) and value not in MEMORIES
        by_name = unknown or (isinstance(value, dict) and bool({"$custom", "$class"} & value.keys()))
        for place in (where, _last(where)) if by_name and where.startswith("policy_kwargs.") else (where,):
            if place and place in self._custom:
                return self._custom[place]
        if unknown:
            self._not_given(value, where)
        if isinstance(value, list):
            return self._items(value, where)
        if not isinstance(value, dict):
            return value
        if not any(key.startswith("$") for key in value):
            return {key: self._decode(part, _join(where, key)) for key, part in value.items()}
        (tag, content), *more = value.items()
        if more or not tag.startswith("$") or tag not in {*COLLECTIONS, *PLAIN, *self._readers}:
            raise CheckpointError(
                f"{self._subject}: {where} is of a kind that this version does not know ({', '.join(sorted(value))}); "
                "upgrade recurl, or use another copy"
            )
        if tag in COLLECTIONS:
            return COLLECTIONS[tag](self._items(content, where))
        return PLAIN[tag][2](content) if tag in PLAIN else self._readers[tag](content, where)

    def _items(self, values: Any, where: str) -> list[Any]:
        return [self._decode(value, _join(where, index)) for index, value in enumerate(values)]

    def _dict(self, pairs: Any, where: str) -> dict[Any, Any]:
        decoded = {}
        for key, value in pairs:
            name = self._decode(key, "")
            decoded[name] = self._decode(value, _join(where, name))
        return decoded

    def _tensor(self, name: Any, where: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self._subject}: the tensor {name!r} for {where} is missing; use another copy")
        tensor = self._tensors[name]
        if name in self.used:  # what was one in memory need not be so any more: each place gets a tensor of its own
            size = tensor.numel() * tensor.element_size()
            self._budget.take(size + BYTES_A_COPY, f"{where}, a copy of what is elsewhere,")
            tensor = tensor.clone()
        self.used.add(name)
        return tensor

    def _class(self, value: Any, where: str) -> type:
        kind, name = value
        known = self._classes.get(kind, {})
        if name not in known:
            raise NotGiven(
                f"{self._subject}: {where} is the class {name!r} of {kind!r}, which is not known here "
                f"(known: {', '.join(sorted(known)) or 'none'}); upgrade, register it, or pass "
                f"custom_objects={{{_last(where)!r}: ...}}"
            )
        return known[name]

    def _schedule(self, value: Any, where: str) -> Any:
        name, arguments = value
        cls, fields = SCHEDULES[name]
        if len(arguments) != len(fields):
            raise ValueError(f"{name} takes {', '.join(fields)}")
        decoded = [self._decode(argument, "") for argument in arguments]
        return cls(*(decoded if cls is TableSchedule else map(float, decoded)))

    def _not_given(self, name: Any, where: str) -> Any:
        known = f" (there are {', '.join(MEMORIES)})" if where == MEMORY else ""
        last = re.split(r"[:.]", str(name))[-1]
        variable = last if last.isidentifier() else "..."
        raise NotGiven(
            f"{self._subject}: {where} is {str(name)!r}, not a part of this package{known}, and loading never imports "
            f"anything for a file. Pass it yourself: load(..., custom_objects={{{_last(where)!r}: {variable}}})"
        )

    def _space(self, described: Any, where: str) -> spaces.Space[Any]:
        kind = described["kind"]
        self._budget.take_space((), where)
        if kind == "Box":
            return self._box(described, where)
        if kind == "Discrete":
            dtype = _numeric(described["dtype"])
            arguments: dict[str, Any] = {"n": described["n"], "start": described["start"]}
            if dtype != np.int64:  # older gymnasium has no such argument
                arguments["dtype"] = dtype.type
            return spaces.Discrete(**arguments)
        if kind == "MultiDiscrete":
            dtype = _numeric(described["dtype"])
            nvec, start = np.array(described["nvec"], dtype), np.array(described["start"], dtype)
            self._budget.take_space(nvec.shape, where)
            return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)
        if kind == "MultiBinary":
            n = described["n"]
            self._budget.take_space(n, where)
            return spaces.MultiBinary(n[0] if described["flat"] else n)
        if kind == "Dict":
            return spaces.Dict([(key, self._space(part, _join(where, key))) for key, part in described["spaces"]])
        if kind == "Tuple":
            return spaces.Tuple([self._space(part, _join(where, i)) for i, part in enumerate(described["spaces"])])
        raise ValueError(f"there is no space {kind!r}")

    def _box(self, described: Mapping[str, Any], where: str) -> spaces.Box:
        shape, dtype = tuple(described["shape"]), _numeric(described["dtype"])
        self._budget.take_space(shape, where)

        def bound(side: str, dtype: Any) -> NDArray[Any]:
            return np.broadcast_to(np.asarray(self._decode(described[side], ""), dtype), shape).copy()

        space = spaces.Box(bound("low", dtype), bound("high", dtype), shape, dtype=dtype.type)
        for side in {"bounded_below", "bounded_above"} & described.keys():
            setattr(space, side, bound(side, bool))
        return space


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _last(where: str) -> str:
    return where.rpartition(".")[2]


def _numeric(dtype: Any) -> np.dtype[Any]:
    # The names of numeric dtypes are short; NumPy parses a long one as a record of many fields, for a minute.
    named: np.dtype[Any] = np.dtype(dtype if isinstance(dtype, np.dtype) else str(dtype)[:8])
    if named.kind not in NUMERIC:
        raise TypeError(f"{named} is no numeric dtype")
    return named


def _torch_dtype(name: str) -> torch.dtype:
    return {key: dtype for key, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}[name]


PLAIN: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "$dtype": (np.dtype, lambda dtype: str(dtype.str), _numeric),
    "$torch.dtype": (torch.dtype, lambda dtype: str(dtype).removeprefix("torch."), _torch_dtype),
    "$device": (torch.device, str, torch.device),
    "$path": (PurePath, os.fspath, Path),
}
"""Kinds of values that a string tells: their type, the string of a value, the value of a string."""
