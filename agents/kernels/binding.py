"""The one way into the compiled functions: what is handed over is checked before its address is.

C trusts the sizes it is told. So every function is declared here once, with the shape and type of each array it reads
or writes, and sizes are never passed: they are read off the shapes, which must agree with each other. An array must be
contiguous and on the CPU. What fits is remembered by its shapes, so that a check costs a microsecond or two; where
buffers stay the same, as in acting, ``Function.prepared`` checks once for all calls.

Axes are named as in the C sources, which take sizes first, then numbers, then arrays.
"""

import ctypes
import functools
import importlib.machinery
import itertools
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

VERSIONS = {"recurrent": 4, "heads": 6}
"""Of the functions' arguments, as the sources have them."""

WHICH = "RECURL_KERNELS"  # the environment variable that chooses a build

BUILDS: dict[str, str] = {}
"""Which build of each library serves: avx2 or generic. One that is not here was not found, or is switched off."""

_MOST_REMEMBERED = 512  # shapes of one function; more come only of blocks that never repeat
_ADDRESS: Any = ctypes.c_void_p


def load(folder: Path, name: str, version: int) -> ctypes.CDLL | None:
    """The library ``name`` in ``folder`` built for this processor, or None if there is none.

    The environment variable ``RECURL_KERNELS`` says which: ``auto`` (the default) the fastest that the processor runs,
    ``generic`` the one for every processor, ``off`` none, so that torch and NumPy compute everything.

    Args:
        version: of its functions' arguments; a library of another one, built from an older checkout say, would misread
            them, and is left alone with a warning. So is one that this system cannot load.
    """
    for kind in _kinds(os.environ.get(WHICH, "auto")):
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if not (path := folder / f"_{name}{kind}{suffix}").exists():
                continue
            try:
                library = ctypes.CDLL(str(path))
            except OSError as error:  # built against another system's C library, say
                warnings.warn(f"{path.name} cannot be loaded and is not used: {error}", stacklevel=2)
                continue
            if version_of(library, name) == version:
                BUILDS[name] = kind.lstrip("_") or "generic"
                return library
            warnings.warn(f"{path.name} was built from other sources and is not used: install again", stacklevel=2)
    return None


def _kinds(which: str) -> list[str]:
    if which not in ("auto", "generic", "off"):
        raise ValueError(f"{WHICH} is {which!r}; set it to auto, generic or off")
    if which == "off":
        return []
    return ["_avx2", ""] if which == "auto" and torch.backends.cpu.get_cpu_capability() != "DEFAULT" else [""]


def version_of(library: ctypes.CDLL, name: str) -> int | None:
    """What a library says of itself; None if it says nothing."""
    function = f"{name}_version"
    return int(getattr(library, function)()) if hasattr(library, function) else None


# What the functions take


class Parameter(NamedTuple):
    """An array of a function. An axis is a size ("H"), a multiple of one ("4H"), a number ("6"), or the name of a
    function of C that says how many floats it takes ("packed_size K N")."""

    name: str
    axes: tuple[str, ...]
    dtype: torch.dtype = torch.float32
    optional: bool = False


class Declaration(NamedTuple):
    """A function of C, which returns 0, 1 if memory ran out, or 2 if contents do not fit.

    Args:
        sizes: its first arguments, in order.
        numbers: the arguments after the sizes, by their type.
        has_widths: of a perceptron, whose sizes are preceded by the number of its layers and their widths; K are its
            inputs, M its outputs.
        layers: for each layer of a perceptron, in this order all weights, all biases and so on: "weights" (M, K),
            "biases" (M) or None each; they follow the other arrays.
        lists: for each of some arrays of any shape one of every name, in this order: all gradients, all parameters and
            so on, shaped alike ("any") or of no axes ("none"). How many there are, and of how many elements each, are
            the first arguments; the arrays the last.
    """

    sizes: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    numbers: tuple[Any, ...] = ()
    has_widths: bool = False
    layers: tuple[str, ...] = ()
    lists: tuple[Parameter, ...] = ()


def _parameter(text: str) -> Parameter:
    """From ``name: axis, axis``, with ``?`` after the name of an optional one, and the type before the axes."""
    name, _, axes = text.partition(": ")
    dtypes = {"int64 ": torch.int64, "bool ": torch.bool}
    kind = next((kind for kind in dtypes if axes.startswith(kind)), "")
    parts = tuple(axes.removeprefix(kind).split(", "))
    return Parameter(name.removesuffix("?"), parts, dtypes.get(kind, torch.float32), name.endswith("?"))


def _declared(
    sizes: str, *parameters: str, numbers: Sequence[Any] = (), has_widths: bool = False, layers: Sequence[str] = ()
) -> Declaration:
    found = tuple(map(_parameter, parameters))
    return Declaration(tuple(sizes.split()), found, tuple(numbers), has_widths, tuple(layers))


def _declared_lists(*lists: str, numbers: Sequence[Any]) -> Declaration:
    return Declaration((), (), tuple(numbers), lists=tuple(map(_parameter, lists)))


_INT, _LONG, _DOUBLE = ctypes.c_int, ctypes.c_long, ctypes.c_double

DECLARATIONS: Mapping[str, Mapping[str, Declaration]] = {
    "recurrent": {
        "pack": _declared("N K", "weights: N, K", "packed: packed_size K N"),
        "lstm_forward": _declared(
            "T B H S", "inputs: T, B, 4H", "w_hh: 4H, H", "hidden: S, H", "cell: S, H", "starts: bool T, B",
            "outputs: T, B, H", "gates: T, B, 4H", "cells: T, B, H", "tanh_cells: T, B, H", "before: T, B, H",
            numbers=(_LONG, _LONG),
        ),
        "lstm_backward": _declared(
            "T B H S R", "d_outputs: T, B, H", "w_hh: 4H, H", "cell: S, H", "starts: bool T, B", "gates: T, B, 4H",
            "cells: T, B, H", "tanh_cells: T, B, H", "d_inputs: T, B, 4H", "d_hidden: R, H", "d_cell: R, H",
            numbers=(_LONG, _LONG, _INT),
        ),
        "gru_forward": _declared(
            "T B H S", "inputs: T, B, 3H", "w_hh: 3H, H", "bias_n: H", "hidden: S, H", "starts: bool T, B",
            "outputs: T, B, H", "gates: T, B, 3H", "q: T, B, H", "before: T, B, H",
            numbers=(_LONG, _LONG),
        ),
        "gru_backward": _declared(
            "T B H R", "d_outputs: T, B, H", "w_hh: 3H, H", "starts: bool T, B", "gates: T, B, 3H", "q: T, B, H",
            "before: T, B, H", "d_inputs: T, B, 3H", "d_sums: T, B, 3H", "d_hidden: R, H",
            numbers=(_LONG, _LONG, _INT),
        ),
        "rnn_forward": _declared(
            "T B H S", "inputs: T, B, H", "w_hh: H, H", "hidden: S, H", "starts: bool T, B",
            "outputs: T, B, H", "before: T, B, H",
            numbers=(_LONG, _LONG, _INT),
        ),
        "rnn_backward": _declared(
            "T B H R", "d_outputs: T, B, H", "w_hh: H, H", "starts: bool T, B", "outputs: T, B, H",
            "d_inputs: T, B, H", "d_hidden: R, H",
            numbers=(_LONG, _LONG, _INT, _INT),
        ),
        "lstm_step": _declared(
            "B F H", "features: B, F", "hidden: B, H", "cell: B, H", "starts: bool B", "packed: packed_size F+H 4H",
            "bias: 4H", "new_hidden: B, H", "new_cell: B, H",
        ),
        "gru_step": _declared(
            "B F H", "features: B, F", "hidden: B, H", "starts: bool B", "packed: packed_size F+H 4H", "bias: 4H",
            "new_hidden: B, H",
        ),
        "rnn_step": _declared(
            "B F H", "features: B, F", "hidden: B, H", "starts: bool B", "packed: packed_size F+H H", "bias: H",
            "new_hidden: B, H",
            numbers=(_INT,),
        ),
    },
    "heads": {
        "perceptron_pack": _declared(
            "", "packed: perceptron_size", has_widths=True, layers=("weights", "biases")
        ),
        "perceptron_run": _declared(
            "N", "x: N, K", "packed: perceptron_size", "hidden: perceptron_hidden_size N", "out: N, M",
            numbers=(_INT, _INT), has_widths=True,
        ),
        "perceptron_forward": _declared(
            "N", "x: N, K", "hidden: perceptron_hidden_size N", "out: N, M",
            numbers=(_INT, _INT), has_widths=True, layers=("weights", "biases"),
        ),
        "perceptron_backward": _declared(
            "N", "x: N, K", "hidden: perceptron_hidden_size N", "out: N, M", "d_out: N, M", "d_x?: N, K",
            numbers=(_INT, _INT), has_widths=True, layers=("weights", "weights", "biases"),
        ),
        "categorical_sample": _declared(
            "N A K", "sizes: int64 A", "logits: N, K", "noise: N, K", "actions: int64 N, A", "log_probs: N"
        ),
        "categorical_forward": _declared(
            "N A K", "sizes: int64 A", "logits: N, K", "actions: int64 N, A", "log_probs: N", "entropies: N",
            "softmax: N, K",
        ),
        "categorical_backward": _declared(
            "N A K", "sizes: int64 A", "softmax: N, K", "actions: int64 N, A", "d_log_probs: N", "d_entropies: N",
            "d_logits: N, K",
        ),
        "gaussian_forward": _declared("N A", "means: N, A", "log_std: A", "actions: N, A", "log_probs: N"),
        "gaussian_backward": _declared(
            "N A", "means: N, A", "log_std: A", "actions: N, A", "d_log_probs: N", "d_means: N, A", "d_log_std: A"
        ),
        "clipped_objective": _declared(
            "N", "log_probs: N", "entropies?: N", "values: N", "old_log_probs: N", "old_values: N", "advantages: N",
            "returns: N", "d_log_probs: N", "d_entropies?: N", "d_values: N", "figures: 6",
            numbers=(_INT, _DOUBLE, _DOUBLE, _DOUBLE, _DOUBLE),
        ),
        "clip_gradients": _declared_lists("gradients: any", numbers=(_DOUBLE,)),
        "adam": _declared_lists(
            "gradients: any", "parameters: any", "means: any", "squares: any", "counts: none",
            numbers=(_DOUBLE, _DOUBLE, _DOUBLE, _DOUBLE),
        ),
    },
}  # fmt: skip

SIZE_FUNCTIONS: Mapping[str, Mapping[str, int]] = {
    "recurrent": {"packed_size": 2},
    "heads": {"perceptron_size": 0, "perceptron_hidden_size": 1},
}
"""Functions that say how many floats an array takes, and of how many sizes; those of perceptrons of widths first."""

WIDTH_OF_LANES = 8  # what H must be a multiple of: registers hold eight floats


class MismatchError(ValueError):
    """Arrays that a compiled function would misread: nothing was computed."""


class Function:
    """A compiled function, called with tensors: ``function(tensors, numbers, widths)``.

    Raises:
        TypeError: an array of another type, not contiguous, or not on the CPU.
        MismatchError: shapes that do not fit each other, or contents that do not fit them.
        MemoryError: no memory was left.
        RuntimeError: it was not compiled.
    """

    def __init__(self, library: ctypes.CDLL | None, name: str, declaration: Declaration, of_size: Any) -> None:
        self.name, self.declaration, self._of_size = name, declaration, of_size
        self._known: dict[Any, tuple[tuple[Any, ...], list[torch.dtype]]] = {}
        self._function: Any = None
        if library is not None:
            self._function = getattr(library, name)
            widths = [_LONG, _ADDRESS] if declaration.has_widths or declaration.lists else []
            arrays = [_ADDRESS] * (len(declaration.parameters) + bool(declaration.layers or declaration.lists))
            sizes = [_LONG] * len(declaration.sizes)
            self._function.argtypes = [*widths, *sizes, *declaration.numbers, *arrays]

    def __call__(
        self, tensors: Sequence[Tensor | None], numbers: tuple[float, ...] = (), widths: tuple[int, ...] = ()
    ) -> None:
        if code := self._function(*self._arguments(tensors, numbers, widths)):
            self._fail(code)

    def prepared(
        self, tensors: Sequence[Tensor | None], numbers: tuple[float, ...] = (), widths: tuple[int, ...] = ()
    ) -> Callable[[], None]:
        """A call on the same memory again and again, checked now and not later; keeps the tensors alive."""
        arguments = self._arguments(tensors, numbers, widths)
        return functools.partial(self._run_prepared, arguments, tuple(tensors))

    def with_first_list(self, others: Sequence[Tensor]) -> Callable[[Sequence[Tensor], tuple[float, ...]], None]:
        """A call on lists of which the first comes anew each time; the others are checked now, and kept alive."""
        count = len(others) // (len(self.declaration.lists) - 1)
        n_arrays, sizes, arrays = self._of_lists((*others[:count], *others))  # the first is shaped as the second
        shapes, kept = [other.shape for other in others[:count]], tuple(others)

        def run(first: Sequence[Tensor], numbers: tuple[float, ...]) -> None:
            assert kept
            if len(first) != n_arrays:
                raise MismatchError(f"{self.name} takes {n_arrays} {self.declaration.lists[0].name}; got {len(first)}")
            self._check_list(self.declaration.lists[0], first, shapes)
            arrays[:count] = [tensor.data_ptr() for tensor in first]
            if code := self._function(n_arrays, sizes, *numbers, arrays):
                self._fail(code)

        return run

    def _run_prepared(self, arguments: tuple[Any, ...], kept: tuple[Tensor | None, ...]) -> None:
        if code := self._function(*arguments):
            self._fail(code)

    def _arguments(
        self, tensors: Sequence[Tensor | None], numbers: tuple[float, ...], widths: tuple[int, ...]
    ) -> tuple[Any, ...]:
        if self.declaration.lists:
            n_arrays, lengths, arrays = self._of_lists(tensors)
            return n_arrays, lengths, *numbers, arrays
        key = (widths, *[None if it is None else it.shape for it in tensors])
        known = self._known.get(key)
        if known is None:
            known = self._checked(tensors, widths)
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = known
        sizes, dtypes = known
        addresses: list[Any] = []
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            if tensor is None:
                addresses.append(None)
                continue
            if tensor.dtype is not dtype or not tensor.is_contiguous() or not tensor.is_cpu:
                self._checked(tensors, widths)
            addresses.append(tensor.data_ptr())
        if self.declaration.layers:
            n_arrays = len(self.declaration.parameters)
            of_layers = (ctypes.c_void_p * (len(addresses) - n_arrays))(*addresses[n_arrays:])
            addresses[n_arrays:] = [of_layers]
        return (*sizes, *numbers, *addresses)

    def _of_lists(self, tensors: Sequence[Tensor | None]) -> tuple[int, Any, Any]:
        """How many arrays a list has, their numbers of elements, and the addresses of all, as C takes them."""
        self._check_compiled()
        lists = self.declaration.lists
        count, further = divmod(len(tensors), len(lists))
        if further:
            raise MismatchError(f"{self.name} takes {len(lists)} lists of as many arrays; got {len(tensors)} arrays")
        shapes = [() if tensor is None else tensor.shape for tensor in tensors[:count]]
        for number, parameter in enumerate(lists):
            self._check_list(parameter, tensors[number * count : (number + 1) * count], shapes)
        sizes = (ctypes.c_long * count)(*map(math.prod, shapes))
        return count, sizes, (ctypes.c_void_p * len(tensors))(*[it.data_ptr() for it in tensors if it is not None])

    def _check_list(
        self, parameter: Parameter, tensors: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        if parameter.axes == ("none",):
            shapes = [()] * len(shapes)
        for tensor, shape in zip(tensors, shapes, strict=True):
            if tensor is None or tensor.shape != shape:
                raise MismatchError(
                    f"{self.name}: one of the {parameter.name} must be {tuple(shape)}, as the other arrays are; got "
                    f"{None if tensor is None else tuple(tensor.shape)}"
                )
            if tensor.dtype is not parameter.dtype or not tensor.is_cpu or not tensor.is_contiguous():
                self._check_kind(parameter, tensor)

    def _check_compiled(self) -> None:
        if self._function is None:
            raise RuntimeError(f"{self.name} is not compiled here: ask `takes` first")

    def _fail(self, code: int) -> None:
        if code == 1:
            raise MemoryError(f"{self.name} ran out of memory; use a smaller batch_size")
        raise MismatchError(f"{self.name}: what is in its arrays does not fit their shapes")

    def _checked(
        self, tensors: Sequence[Tensor | None], widths: tuple[int, ...]
    ) -> tuple[tuple[Any, ...], list[torch.dtype]]:
        """The sizes, as C takes them, and the type of each array."""
        self._check_compiled()
        parameters = [*self.declaration.parameters, *self._parameters_of_layers(widths)]
        if len(tensors) != len(parameters):
            raise MismatchError(f"{self.name} takes {len(parameters)} arrays; got {len(tensors)}")
        sizes = {"K": widths[0], "M": widths[-1]} if widths else {}
        for parameter, tensor in zip(parameters, tensors, strict=True):
            if tensor is not None:
                self._check_kind(parameter, tensor)
                _read_off(parameter.axes, tensor.shape, sizes)
        for parameter, tensor in zip(parameters, tensors, strict=True):
            if tensor is None and parameter.optional:
                continue
            expected = self._shape_of(parameter.axes, sizes, widths)
            if tensor is None or tensor.shape != expected:
                raise MismatchError(
                    f"{self.name}: {parameter.name} ({', '.join(parameter.axes)}) must be {expected}, as the other "
                    f"arrays are; got {None if tensor is None else tuple(tensor.shape)}"
                )
        if sizes.get("H", 0) % WIDTH_OF_LANES:
            raise MismatchError(f"{self.name}: H must be a multiple of {WIDTH_OF_LANES}; got {sizes['H']}")
        of_widths = (len(widths) - 1, _as_longs(widths)) if widths else ()
        dtypes = [parameter.dtype for parameter in parameters]
        return (*of_widths, *[sizes[name] for name in self.declaration.sizes]), dtypes

    def _parameters_of_layers(self, widths: tuple[int, ...]) -> list[Parameter]:
        if self.declaration.has_widths and (len(widths) < 2 or min(widths) < 1):
            raise MismatchError(f"{self.name}: expected the widths of at least one layer, each above 0; got {widths}")
        return [
            Parameter(
                f"{kind} of layer {i}",
                (str(outputs), str(inputs)) if kind == "weights" else (str(outputs),),
                optional=kind == "biases",
            )
            for kind in self.declaration.layers
            for i, (inputs, outputs) in enumerate(itertools.pairwise(widths))
        ]

    def _check_kind(self, parameter: Parameter, tensor: Tensor) -> None:
        if tensor.dtype is not parameter.dtype or not tensor.is_cpu or not tensor.is_contiguous():
            raise TypeError(
                f"{self.name}: {parameter.name} must be {parameter.dtype} on the CPU and contiguous; got "
                f"{tensor.dtype} on {tensor.device}{'' if tensor.is_contiguous() else ', not contiguous'}"
            )

    def _shape_of(self, axes: tuple[str, ...], sizes: dict[str, int], widths: tuple[int, ...]) -> tuple[int, ...]:
        if axes[0].partition(" ")[0] in _SIZE_FUNCTION_NAMES:
            name, *given = axes[0].split(" ")
            return (self._of_size(name, [_value_of(axis, sizes) for axis in given], widths),)
        return tuple(_value_of(axis, sizes) for axis in axes)


class Library:
    """A compiled library: its functions by name.

    Attributes:
        available: whether it was built for this machine.
        functions: all of them that take arrays.
    """

    def __init__(self, name: str, folder: Path = Path(__file__).parent) -> None:
        self._library = load(folder, name, VERSIONS[name])
        self.available = self._library is not None
        for size_name, n_sizes in SIZE_FUNCTIONS[name].items() if self._library is not None else ():
            function = getattr(self._library, size_name)
            widths = [_LONG, _ADDRESS] if size_name.startswith("perceptron") else []
            function.argtypes, function.restype = [*widths, *[_LONG] * n_sizes], _LONG
        self.functions = {
            function: Function(self._library, function, declaration, self.size)
            for function, declaration in DECLARATIONS[name].items()
        }

    def __getitem__(self, name: str) -> Function:
        return self.functions[name]

    def size(self, name: str, sizes: Sequence[int], widths: tuple[int, ...] = ()) -> int:
        """How many floats an array takes, by one of ``SIZE_FUNCTIONS``."""
        of_widths = (len(widths) - 1, _as_longs(widths)) if widths else ()
        return int(getattr(self._library, name)(*of_widths, *sizes))


_SIZE_FUNCTION_NAMES = {name for names in SIZE_FUNCTIONS.values() for name in names}


def _read_off(axes: tuple[str, ...], shape: torch.Size, sizes: dict[str, int]) -> None:
    """Adds the sizes that a shape is the first to tell."""
    for axis, length in zip(axes, shape, strict=False):
        if matched := re.fullmatch(r"(\d*)([A-Z])", axis):
            factor = int(matched[1] or 1)
            if length % factor == 0:
                sizes.setdefault(matched[2], length // factor)


def _value_of(axis: str, sizes: dict[str, int]) -> int:
    """Of "6", "H", "4H" or "F+H"; -1, which no shape has, if no array told the size."""
    total = 0
    for term in axis.split("+"):
        digits = re.match(r"\d*", term)
        assert digits is not None
        name = term[digits.end() :]
        if name and name not in sizes:
            return -1
        total += int(digits[0] or 1) * (sizes[name] if name else 1)
    return total


@functools.lru_cache(maxsize=256)
def _as_longs(widths: tuple[int, ...]) -> Any:
    return (ctypes.c_long * len(widths))(*widths)
