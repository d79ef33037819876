"""The one way into the compiled functions: what is handed over is checked before its address is.

C trusts the sizes it is given. So every function is declared here once, with the shape and type of each array it reads
or writes, and sizes are never passed: they are read off the shapes, which must agree with each other. An array must be
contiguous and on the CPU. Shapes that fit are remembered, so that a check costs a few microseconds; where buffers stay
the same, as in acting, ``Function.prepared`` checks once for all calls.

Axes are named as in the C sources, which take sizes first, then numbers, then arrays.
"""

import ctypes
import functools
import importlib.machinery
import itertools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

VERSIONS = {"recurrent": 5, "heads": 7, "convolutions": 2, "scan": 2}
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
    """An array of a function. An axis is a size ("H"), a number ("6"), or the name of a function of C that says how
    many floats it takes, and of which sizes ("packed_size F+H N")."""

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
    """

    sizes: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    numbers: tuple[Any, ...] = ()
    has_widths: bool = False
    layers: tuple[str, ...] = ()


def _declared(sizes: str, *parameters: str, numbers: Sequence[Any] = (), layers: str | None = None) -> Declaration:
    """``layers`` is given for perceptrons."""
    found = tuple(map(_parameter, parameters))
    return Declaration(tuple(sizes.split()), found, tuple(numbers), layers is not None, tuple((layers or "").split()))


def _parameter(text: str) -> Parameter:
    """From ``name: axis, axis``, with ``?`` after the name of an optional one, and the type before the axes."""
    name, _, axes = text.partition(": ")
    dtypes = {"int64 ": torch.int64, "bool ": torch.bool, "uint8 ": torch.uint8}
    kind = next((kind for kind in dtypes if axes.startswith(kind)), "")
    parts = tuple(axes.removeprefix(kind).split(", "))
    return Parameter(name.removesuffix("?"), parts, dtypes.get(kind, torch.float32), name.endswith("?"))


_INT, _LONG, _DOUBLE = ctypes.c_int, ctypes.c_long, ctypes.c_double
_OF_A_PASS = (_INT, _LONG, _LONG)  # kind, tasks of a memory, threads

DECLARATIONS: Mapping[str, Mapping[str, Declaration]] = {
    "recurrent": {
        "pack": _declared("N K", "weights: N, K", "packed: packed_size K N"),
        "forward": _declared(
            "M T B H G P S C", "gates: M, T, B, G, H", "w_hh: M, G, H, H", "bias_n?: M, H", "state: P, M, S, H",
            "starts: bool T, B", "outputs: M, T, B, H", "kept: C, M, T, B, H",
            numbers=_OF_A_PASS,
        ),
        "backward": _declared(
            "M T B H G P S C", "d_outputs: M, T, B, H", "w_hh: M, G, H, H", "state: P, M, S, H", "starts: bool T, B",
            "gates: M, T, B, G, H", "kept: C, M, T, B, H", "d_inputs: M, T, B, G, H", "d_sums?: M, T, B, G, H",
            "d_state: P, M, S, H",
            numbers=_OF_A_PASS,
        ),
        "step": _declared(
            "B F H N P", "features: B, F", "state: P, B, H", "starts: bool B", "packed: packed_size F+H N", "bias: N",
            "new_state: P, B, H",
            numbers=(_INT,),
        ),
    },
    "heads": {
        "perceptron_pack": _declared("", "packed: perceptron_size", layers="weights biases"),
        "perceptron_run": _declared(
            "N", "x: N, K", "packed: perceptron_size", "hidden: perceptron_hidden_size N", "out: N, M",
            numbers=(_INT, _INT), layers="",
        ),
        "perceptron_forward": _declared(
            "N", "x: N, K", "hidden: perceptron_hidden_size N", "out: N, M",
            numbers=(_INT, _INT), layers="weights biases",
        ),
        "perceptron_backward": _declared(
            "N", "x: N, K", "hidden: perceptron_hidden_size N", "out: N, M", "d_out: N, M", "d_x?: N, K",
            numbers=(_INT, _INT), layers="weights weights biases",
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
    },
    "convolutions": {
        "convolutions_forward": _declared(
            "N C Y X D P Q O", "layers: int64 D, 5", "images: uint8 N, C, Y, X", "parameters: P", "kept: Q",
            "out: N, O",
            numbers=(_LONG,),
        ),
        "convolutions_backward": _declared(
            "N C Y X D P Q O", "layers: int64 D, 5", "images: uint8 N, C, Y, X", "parameters: P", "kept: Q",
            "d_out: N, O", "d_parameters: P",
            numbers=(_LONG,),
        ),
    },
    "scan": {
        "scan_real": _declared(
            "T B N", "decay: T, B, N", "inputs: T, B, N", "before: B, N", "starts: bool T, B", "states: T, B, N"
        ),
        "scan_real_backward": _declared(
            "T B N", "decay: T, B, N", "before: B, N", "starts: bool T, B", "states: T, B, N", "d_states: T, B, N",
            "d_decay: T, B, N", "d_inputs: T, B, N", "d_before: B, N",
        ),
        "scan_complex": _declared(
            "T B N", "decay: N, 2", "inputs: T, B, N, 2", "before: B, N, 2", "starts: bool T, B", "states: T, B, N, 2"
        ),
        "scan_complex_backward": _declared(
            "T B N", "decay: N, 2", "before: B, N, 2", "starts: bool T, B", "states: T, B, N, 2",
            "d_states: T, B, N, 2", "d_decay: N, 2", "d_inputs: T, B, N, 2", "d_before: B, N, 2",
        ),
        "scan_traces": _declared(
            "T B M C", "decay: M, C, 2", "inputs: T, B, M", "before: B, M, C, 2", "starts: bool T, B",
            "states: T, B, M, C, 2",
        ),
        "scan_traces_backward": _declared(
            "T B M C", "decay: M, C, 2", "before: B, M, C, 2", "starts: bool T, B", "states: T, B, M, C, 2",
            "d_states: T, B, M, C, 2", "d_decay: M, C, 2", "d_inputs: T, B, M", "d_before: B, M, C, 2",
        ),
    },
}  # fmt: skip

SIZE_FUNCTIONS: Mapping[str, Mapping[str, int]] = {
    "recurrent": {"packed_size": 2},
    "heads": {"perceptron_size": 0, "perceptron_hidden_size": 1},
    "convolutions": {},
    "scan": {},
}
"""Functions that say how many floats an array takes, and of how many sizes; those of perceptrons of widths first."""

WIDTH_OF_LANES = 8  # what H must be a multiple of: registers hold eight floats
WIDTH_OF_TILE = 16  # as in vectors.h


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
            widths = [_LONG, _ADDRESS] if declaration.has_widths else []
            arrays = [_ADDRESS] * (len(declaration.parameters) + bool(declaration.layers))
            self._function.argtypes = [*widths, *[_LONG] * len(declaration.sizes), *declaration.numbers, *arrays]

    def __call__(
        self, tensors: Sequence[Tensor | None], numbers: tuple[float, ...] = (), widths: tuple[int, ...] = ()
    ) -> None:
        self._run(self._arguments(tensors, numbers, widths))

    def prepared(
        self, tensors: Sequence[Tensor | None], numbers: tuple[float, ...] = (), widths: tuple[int, ...] = ()
    ) -> Callable[[], None]:
        """A call on the same memory again and again, checked now and not later; keeps the tensors alive."""
        return functools.partial(self._run, self._arguments(tensors, numbers, widths), tuple(tensors))

    def _run(self, arguments: tuple[Any, ...], kept: tuple[Tensor | None, ...] = ()) -> None:
        code = self._function(*arguments)
        if code == 1:
            raise MemoryError(f"{self.name} ran out of memory; use a smaller batch_size")
        if code:
            raise MismatchError(f"{self.name}: what is in its arrays does not fit their shapes")

    def _arguments(
        self, tensors: Sequence[Tensor | None], numbers: tuple[float, ...], widths: tuple[int, ...]
    ) -> tuple[Any, ...]:
        """What C takes. Shapes that came before are known to fit; types and layouts are looked at every time."""
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

    def _checked(
        self, tensors: Sequence[Tensor | None], widths: tuple[int, ...]
    ) -> tuple[tuple[Any, ...], list[torch.dtype]]:
        """The sizes, as C takes them, and the type of each array."""
        if self._function is None:
            raise RuntimeError(f"{self.name} is not compiled here: ask `takes` first")
        parameters = [*self.declaration.parameters, *self._parameters_of_layers(widths)]
        if len(tensors) != len(parameters):
            raise MismatchError(f"{self.name} takes {len(parameters)} arrays; got {len(tensors)}")
        sizes = {"K": widths[0], "M": widths[-1]} if widths else {}
        for parameter, tensor in zip(parameters, tensors, strict=True):
            if tensor is None:
                if not parameter.optional:
                    raise MismatchError(f"{self.name}: {parameter.name} must be an array; got None")
                continue
            self._check_kind(parameter, tensor)
            for axis, length in zip(parameter.axes, tensor.shape, strict=False):
                if axis.isalpha() and len(axis) == 1:
                    sizes.setdefault(axis, length)
        for parameter, tensor in zip(parameters, tensors, strict=True):
            expected = self._shape_of(parameter.axes, sizes, widths)
            if tensor is not None and tensor.shape != expected:
                raise MismatchError(
                    f"{self.name}: {parameter.name} ({', '.join(parameter.axes)}) must be {expected}, as the other "
                    f"arrays are; got {tuple(tensor.shape)}"
                )
        if sizes.get("H", 0) % WIDTH_OF_LANES:
            raise MismatchError(f"{self.name}: H must be a multiple of {WIDTH_OF_LANES}; got {sizes['H']}")
        given = (*_as_longs(widths), *[sizes[name] for name in self.declaration.sizes])
        return given, [parameter.dtype for parameter in parameters]

    def _parameters_of_layers(self, widths: tuple[int, ...]) -> list[Parameter]:
        if self.declaration.has_widths and (len(widths) < 2 or min(widths) < 1):
            raise MismatchError(f"{self.name}: expected the widths of at least one layer, each above 0; got {widths}")
        found = []
        for kind in self.declaration.layers:
            for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
                axes = (str(outputs), str(inputs)) if kind == "weights" else (str(outputs),)
                found.append(Parameter(f"{kind} of layer {i}", axes, optional=kind == "biases"))
        return found

    def _check_kind(self, parameter: Parameter, tensor: Tensor) -> None:
        if tensor.dtype is not parameter.dtype or not tensor.is_cpu or not tensor.is_contiguous():
            raise TypeError(
                f"{self.name}: {parameter.name} must be {parameter.dtype} on the CPU and contiguous; got "
                f"{tensor.dtype} on {tensor.device}{'' if tensor.is_contiguous() else ', not contiguous'}"
            )

    def _shape_of(self, axes: tuple[str, ...], sizes: dict[str, int], widths: tuple[int, ...]) -> tuple[int, ...]:
        name, *given = axes[0].split(" ")
        if name in _SIZE_FUNCTION_NAMES:
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
        return int(getattr(self._library, name)(*_as_longs(widths), *sizes))


_SIZE_FUNCTION_NAMES = {name for names in SIZE_FUNCTIONS.values() for name in names}


def _value_of(axis: str, sizes: dict[str, int]) -> int:
    """Of "6", "H" or "F+H"; -1, which no shape has, if no array has the size."""
    terms = [int(term) if term.isdigit() else sizes.get(term, -1) for term in axis.split("+")]
    return -1 if -1 in terms else sum(terms)


@functools.lru_cache(maxsize=256)
def _as_longs(widths: tuple[int, ...]) -> tuple[Any, ...]:
    """The number of layers and their widths, as C takes them; nothing where there are none."""
    return (len(widths) - 1, (ctypes.c_long * len(widths))(*widths)) if widths else ()
