"""What an update and an acting step compute beside the memory's pass, each in one call, by the kernels in ``fused.c``.

Perceptrons, probabilities of actions, and PPO's objective are dozens of tiny operations for the small networks of
reinforcement learning; here each is one function with a gradient written by hand. They are built when the package is
installed, where there is a C compiler; without them ``available`` is false and torch's operations serve.

Axes: N steps, K inputs and M outputs of a layer, A axes of an action.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.kernels.aside import once_differentiable, plain
from agents.memory.core import Array
from agents.memory.loading import load

_VERSION = 4  # of the functions' arguments, as in fused.c

_NONLINEARITIES: dict[type[nn.Module], int] = {nn.Tanh: 1, nn.ReLU: 2}
_TILE = 16


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Says what the functions take, so that an address is not cut to 32 bits."""
    size: Any
    address: Any
    size, address, flag, number = ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_double
    library.perceptron_size.argtypes, library.perceptron_size.restype = [size, address], size
    library.perceptron_pack.argtypes, library.perceptron_pack.restype = [size, *[address] * 4], None
    of_layers: list[Any] = [size, size, address, flag, flag, address]
    library.perceptron_run.argtypes = [*of_layers, size, *[address] * 3]
    library.perceptron_forward.argtypes = [*of_layers, *[address] * 4]
    library.perceptron_backward.argtypes = [*of_layers, *[address] * 7]
    for name, addresses in (("sample", 5), ("forward", 6), ("backward", 6)):
        function = getattr(library, f"categorical_{name}")
        function.argtypes, function.restype = [size, size, *[address] * addresses], None
    library.categorical_forward.restype = flag
    for name, addresses in (("forward", 4), ("backward", 6)):
        function = getattr(library, f"gaussian_{name}")
        function.argtypes, function.restype = [size, size, *[address] * addresses], None
    library.clipped_objective.argtypes = [size, *[address] * 7, flag, *[number] * 4, *[address] * 4]
    library.clipped_objective.restype = None
    library.adam.argtypes, library.adam.restype = [size, *[address] * 6, *[number] * 4], None
    library.clip_gradients.argtypes, library.clip_gradients.restype = [size, address, address, number], None
    return library


_library = _declared(library) if (library := load(Path(__file__).parent, "fused", _VERSION)) else None
available = _library is not None


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels can run on these: built, all are float32 on a CPU, and nothing follows the operations."""
    return available and plain(*tensors)


# Perceptrons


class Layers(NamedTuple):
    """Linear layers with one kind of nonlinearity between them, as plain lists.

    ``widths`` are the inputs of the first layer, then the outputs of each; ``nonlinearity`` is a number of ``fused.c``;
    ``bend_last`` says whether it follows the last layer too.
    """

    widths: tuple[int, ...]
    nonlinearity: int
    bend_last: bool
    weights: list[Tensor]
    biases: list[Tensor | None]


def layers_of(*networks: nn.Module) -> Layers | None:
    """Networks one after the other as layers for :func:`perceptron`, or None where they are not of a kind known here.

    Known are linear layers, and sequences of them with Tanh or ReLU between; of float32 on a CPU. Whether something
    hooks into them ``agents.kernels.plan`` has asked before. Plain dictionaries are read, since this is asked often.
    """
    layers: list[nn.Module] = []
    for network in networks:
        layers += list(network._modules.values()) if type(network) is nn.Sequential else [network]
    linear: list[Any] = layers[::2]
    kinds = {type(module) for module in layers[1::2]}
    if not available or not linear or len(kinds) > 1 or any(type(layer) is not nn.Linear for layer in linear):
        return None
    kind = _NONLINEARITIES.get(kinds.pop()) if kinds else _NONLINEARITIES[nn.Tanh]
    weights = [layer._parameters["weight"] for layer in linear]
    if kind is None or not takes(*weights):
        return None
    widths = (linear[0].in_features, *[layer.out_features for layer in linear])
    biases = [layer._parameters["bias"] for layer in linear]
    return Layers(widths, kind, len(layers) == 2 * len(linear), weights, biases)


def perceptron(layers: Layers, x: Tensor) -> Tensor:
    """(N, K) -> (N, M), the layers one after the other."""
    output: Tensor = _Perceptron.apply(  # type: ignore[no-untyped-call]
        x, layers.widths, layers.nonlinearity, layers.bend_last, *layers.weights, *layers.biases
    )
    return output


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        widths: tuple[int, ...],
        nonlinearity: int,
        bend_last: bool,
        *parameters: Tensor | None,
    ) -> Tensor:
        n_steps, depth = len(x), len(widths) - 1
        x = x.contiguous()
        weights = [_contiguous(weight) for weight in parameters[:depth]]
        biases = [_contiguous(bias) for bias in parameters[depth:]]
        hidden = x.new_empty(n_steps * sum(map(_padded, widths[1:-1])))
        out = x.new_empty(n_steps, widths[-1])
        sizes = (ctypes.c_long * (depth + 1))(*widths)
        _check(
            _loaded().perceptron_forward(
                n_steps, depth, sizes, nonlinearity, bend_last, x.data_ptr(),
                _addresses(weights), _addresses(biases), hidden.data_ptr(), out.data_ptr(),
            )
        )  # fmt: skip
        ctx.save_for_backward(x, hidden, out, *weights)
        ctx.sizes, ctx.nonlinearity, ctx.bend_last = sizes, nonlinearity, bend_last
        ctx.has_bias = [bias is not None for bias in biases]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, out, *weights = ctx.saved_tensors
        d_out = d_out.contiguous()
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_weights = [torch.empty_like(weight) for weight in weights]
        d_biases = [
            weight.new_empty(len(weight)) if has_bias else None
            for weight, has_bias in zip(weights, ctx.has_bias, strict=True)
        ]
        _check(
            _loaded().perceptron_backward(
                len(x), len(weights), ctx.sizes, ctx.nonlinearity, ctx.bend_last, x.data_ptr(),
                _addresses(weights), hidden.data_ptr(), out.data_ptr(), d_out.data_ptr(),
                _addresses(d_weights), _addresses(d_biases), None if d_x is None else d_x.data_ptr(),
            )
        )  # fmt: skip
        return d_x, None, None, None, *d_weights, *d_biases


class PackedPerceptron:
    """The layers on their parameters as they are now, for acting: (N, K) arrays -> (N, M) arrays, no gradient."""

    def __init__(self, layers: Layers) -> None:
        library = _loaded()
        self._sizes = (ctypes.c_long * len(layers.widths))(*layers.widths)
        self._depth, self._n_inputs, self._n_outputs = len(layers.widths) - 1, layers.widths[0], layers.widths[-1]
        self._nonlinearity, self._bend_last = layers.nonlinearity, layers.bend_last
        self._packed = np.empty(library.perceptron_size(self._depth, self._sizes), dtype=np.float32)
        weights = [_contiguous(weight.detach()) for weight in layers.weights]
        biases = [None if bias is None else _contiguous(bias.detach()) for bias in layers.biases]
        library.perceptron_pack(
            self._depth, self._sizes, _addresses(weights), _addresses(biases), self._packed.ctypes.data
        )
        self._packed_address = self._packed.ctypes.data
        self._hidden_widths = sum(map(_padded, layers.widths[1:-1]))
        self._n_steps = -1

    def __call__(self, x: Array) -> Array:
        """The array returned is written over by the next call."""
        if len(x) != self._n_steps:
            self._make_room(len(x))
        np.copyto(self._x, x)
        _check(
            _loaded().perceptron_run(
                self._n_steps, self._depth, self._sizes, self._nonlinearity, self._bend_last,
                self._addresses[0], self._n_inputs, self._packed_address, *self._addresses[1:],
            )
        )  # fmt: skip
        return self._out

    def _make_room(self, n_steps: int) -> None:
        """Places of known address: to ask NumPy for one takes longer than a small network runs."""
        self._n_steps = n_steps
        self._x = np.empty((n_steps, self._n_inputs), dtype=np.float32)
        self._hidden = np.empty(n_steps * self._hidden_widths, dtype=np.float32)
        self._out = np.empty((n_steps, self._n_outputs), dtype=np.float32)
        self._addresses = tuple(array.ctypes.data for array in (self._x, self._hidden, self._out))


# Actions


class CategoricalSampler:
    """Samples of A choices side by side and their joint log-probability, from arrays."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes, self._n_choices = (ctypes.c_long * len(sizes))(*sizes), len(sizes)
        self._n_logits, self._n_steps = sum(sizes), -1

    def __call__(self, logits: Array, rng: np.random.Generator) -> tuple[NDArray[np.int64], Array]:
        """(N, K) -> (N, A), (N,): new arrays."""
        if len(logits) != self._n_steps:
            self._n_steps = len(logits)
            self._logits, self._noise = np.empty_like(logits), np.empty_like(logits)
            self._addresses = (self._logits.ctypes.data, self._noise.ctypes.data)
            self._actions = np.empty((self._n_steps, self._n_choices), dtype=np.int64)
            self._log_probs = np.empty(self._n_steps, dtype=np.float32)
            self._results = (self._actions.ctypes.data, self._log_probs.ctypes.data)
        np.copyto(self._logits, logits)
        rng.standard_exponential(out=self._noise, dtype=np.float32)
        _loaded().categorical_sample(self._n_steps, self._n_choices, self._sizes, *self._addresses, *self._results)
        return self._actions.copy(), self._log_probs.copy()


def categorical(logits: Tensor, sizes: tuple[int, ...], actions: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) logits of A choices side by side, (N, A) -> (N,) joint log-probabilities, (N,) entropies.

    Raises:
        ValueError: an action is not one of its choices, or there are not A of them a step.
    """
    if actions.shape != (len(logits), len(sizes)):
        raise ValueError(f"expected actions {(len(logits), len(sizes))}, got {tuple(actions.shape)}")
    log_probs, entropies = _Categorical.apply(logits, sizes, actions.long())  # type: ignore[no-untyped-call]
    return log_probs, entropies


class _Categorical(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, sizes: tuple[int, ...], actions: Tensor) -> tuple[Tensor, Tensor]:
        logits, actions = logits.contiguous(), actions.contiguous()
        softmax, log_probs, entropies = torch.empty_like(logits), *(logits.new_empty(len(logits)) for _ in range(2))
        ctx.sizes = (ctypes.c_long * len(sizes))(*sizes)
        failed = _loaded().categorical_forward(
            len(logits), len(sizes), ctx.sizes, logits.data_ptr(), actions.data_ptr(),
            log_probs.data_ptr(), entropies.data_ptr(), softmax.data_ptr(),
        )  # fmt: skip
        if failed:
            given = sorted(set(actions.flatten().tolist()))
            raise ValueError(f"actions must be from 0 to {[size - 1 for size in sizes]}; got {given}")
        ctx.save_for_backward(softmax, actions)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_probs: Tensor, d_entropies: Tensor) -> tuple[Tensor, None, None]:
        softmax, actions = ctx.saved_tensors
        d_log_probs, d_entropies, d_logits = (
            d_log_probs.contiguous(),
            d_entropies.contiguous(),
            torch.empty_like(softmax),
        )
        _loaded().categorical_backward(
            len(softmax), len(ctx.sizes), ctx.sizes, softmax.data_ptr(), actions.data_ptr(),
            d_log_probs.data_ptr(), d_entropies.data_ptr(), d_logits.data_ptr(),
        )  # fmt: skip
        return d_logits, None, None


def gaussian(means: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """(N, A) means, (A,) logarithms of the deviations, (N, A) actions -> (N,) joint log-probabilities.

    Raises:
        ValueError: these do not fit together.
    """
    if actions.shape != means.shape or log_std.shape != means.shape[1:]:
        raise ValueError(
            f"expected actions {tuple(means.shape)} and as many deviations as axes, got actions "
            f"{tuple(actions.shape)} and {tuple(log_std.shape)} deviations"
        )
    log_probs: Tensor = _Gaussian.apply(means, log_std, actions)  # type: ignore[no-untyped-call]
    return log_probs


class _Gaussian(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
        means, log_std, actions = means.contiguous(), log_std.contiguous(), actions.contiguous()
        log_probs = means.new_empty(len(means))
        _loaded().gaussian_forward(
            *means.shape, means.data_ptr(), log_std.data_ptr(), actions.data_ptr(), log_probs.data_ptr()
        )
        ctx.save_for_backward(means, log_std, actions)
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_probs: Tensor) -> tuple[Tensor, Tensor, None]:
        means, log_std, actions = ctx.saved_tensors
        d_log_probs, d_means, d_log_std = d_log_probs.contiguous(), torch.empty_like(means), torch.empty_like(log_std)
        _loaded().gaussian_backward(
            *means.shape, means.data_ptr(), log_std.data_ptr(), actions.data_ptr(),
            d_log_probs.data_ptr(), d_means.data_ptr(), d_log_std.data_ptr(),
        )  # fmt: skip
        return d_means, d_log_std, None


# PPO's objective and its step


def clipped_objective(
    log_probs: Tensor,
    entropies: Tensor | None,
    values: Tensor,
    old_log_probs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    *,
    normalize: bool,
    clip_range: float,
    clip_range_vf: float | None,
    ent_coef: float,
    vf_coef: float,
) -> tuple[Tensor, Tensor]:
    """Of N steps, (N,) each -> the loss, and the figures (6,) that are logged: see ``agents.losses.ppo_objective``."""
    loss, figures = _ClippedObjective.apply(  # type: ignore[no-untyped-call]
        log_probs, entropies, values, old_log_probs, old_values, advantages, returns,
        bool(normalize), float(clip_range), -1.0 if clip_range_vf is None else float(clip_range_vf),
        float(ent_coef), float(vf_coef),
    )  # fmt: skip
    return loss, figures


class _ClippedObjective(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        tensors = [_contiguous(part) for part in arguments[:7]]
        log_probs, entropies, values = tensors[:3]
        d_log_probs, d_values, figures = torch.empty_like(log_probs), torch.empty_like(values), values.new_empty(6)
        d_entropies = None if entropies is None else torch.empty_like(log_probs)
        _loaded().clipped_objective(
            len(log_probs), *(None if part is None else part.data_ptr() for part in tensors), *arguments[7:],
            d_log_probs.data_ptr(), None if d_entropies is None else d_entropies.data_ptr(),
            d_values.data_ptr(), figures.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(d_log_probs, d_entropies, d_values)
        ctx.mark_non_differentiable(figures)
        return figures[0].clone(), figures

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        d_log_probs, d_entropies, d_values = ctx.saved_tensors
        by_entropy = None if d_entropies is None else d_entropies * d_loss
        return d_log_probs * d_loss, by_entropy, d_values * d_loss, *[None] * 9


def clip_gradients(parameters: Sequence[Tensor], max_norm: float) -> None:
    """Scales all gradients so that their norm, taken together, is at most ``max_norm``: in place, and in two sweeps.

    What ``torch.nn.utils.clip_grad_norm_`` does, which serves what is not to be compiled.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not takes(*gradients) or not all(gradient.is_contiguous() for gradient in gradients):
        nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    sizes = (ctypes.c_long * len(gradients))(*[gradient.numel() for gradient in gradients])
    _loaded().clip_gradients(len(gradients), sizes, _addresses(gradients), max_norm)


class AdamStep:
    """Steps of Adam for an optimizer of torch, whose state, settings and schedule stay where they are.

    What the optimizer's own ``step`` does, without its dozens of operations on lists of small tensors. That one serves
    where it is not plain Adam on float32 on a CPU, where something hooks into it, and for the first step. Make one for
    every update: it remembers where the optimizer keeps its state.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._known: dict[int, tuple[list[int], _AdamState]] = {}

    def __call__(self) -> None:
        if self._is_plain():
            chosen = [self._state_of(number, group) for number, group in enumerate(self._optimizer.param_groups)]
            if all(state is not None for state in chosen):
                for group, state in zip(self._optimizer.param_groups, chosen, strict=True):
                    _step_adam(group, state)  # type: ignore[arg-type]
                return
        self._optimizer.step()

    def _is_plain(self) -> bool:
        optimizer: Any = self._optimizer
        return (
            available
            and type(optimizer) is torch.optim.Adam
            and "step" not in vars(optimizer)  # as torch's schedulers put there
            and not optimizer._optimizer_step_pre_hooks
            and not optimizer._optimizer_step_post_hooks
            and not any(
                group["weight_decay"] or group["amsgrad"] or group["maximize"] or isinstance(group["lr"], Tensor)
                for group in optimizer.param_groups
            )
        )

    def _state_of(self, number: int, group: dict[str, Any]) -> "_AdamState | None":
        """Of the parameters of a group that have a gradient; None where torch has to take this step."""
        given = [parameter for parameter in group["params"] if parameter.grad is not None]
        names = [id(parameter) for parameter in given]
        if number not in self._known or self._known[number][0] != names:
            state = _adam_state(given, self._optimizer.state)
            if state is None:
                return None
            self._known[number] = (names, state)
        return self._known[number][1]


class _AdamState(NamedTuple):
    parameters: list[Tensor]
    kept: list[Tensor]  # keeps what is pointed to alive
    sizes: Any
    addresses: list[Any]  # of parameters, means, squares, steps


def _adam_state(parameters: list[Tensor], state: Any) -> _AdamState | None:
    if not all(parameter in state and parameter.is_contiguous() for parameter in parameters):
        return None
    parts = [[state[parameter][name] for parameter in parameters] for name in ("exp_avg", "exp_avg_sq", "step")]
    kept = [tensor for part in (parameters, *parts) for tensor in part]
    if not all(takes(tensor) and tensor.is_contiguous() for tensor in kept):
        return None
    sizes = (ctypes.c_long * len(parameters))(*[parameter.numel() for parameter in parameters])
    return _AdamState(parameters, kept, sizes, [_addresses(part) for part in (parameters, *parts)])


def _step_adam(group: dict[str, Any], state: _AdamState) -> None:
    gradients = [_contiguous(parameter.grad) for parameter in state.parameters]
    parameters, means, squares, steps = state.addresses
    _loaded().adam(
        len(gradients), state.sizes, parameters, _addresses(gradients), means, squares, steps,
        float(group["lr"]), *map(float, group["betas"]), float(group["eps"]),
    )  # fmt: skip


def _loaded() -> ctypes.CDLL:
    if _library is None:
        raise RuntimeError("the compiled kernels are not there; ask `takes` first")
    return _library


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("the layers behind the memory ran out of memory; use a smaller batch_size")


def _padded(width: int) -> int:
    return -(-width // _TILE) * _TILE


def _contiguous(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


def _addresses(tensors: Sequence[Tensor | None]) -> Any:
    """An array of their addresses; the tensors must outlive its use."""
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    return (ctypes.c_void_p * len(pointers))(*pointers)
