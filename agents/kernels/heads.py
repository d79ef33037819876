"""What an update and an acting step compute in addition to the memory's pass, each in one call, by ``heads.c``.

Perceptrons, probabilities of actions, and PPO's objective are dozens of tiny operations for the small networks of
reinforcement learning; here each is one function with a gradient written by hand. Where it cannot run (not compiled,
another device or precision, a tool of torch that looks at single operations) torch's operations serve, and so they do
for derivatives of derivatives.

Axes: N steps, K inputs and M outputs of a layer, A axes of an action.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.kernels.aside import plain
from agents.kernels.binding import Library, MismatchError
from agents.kernels.contract import Array
from agents.kernels.reference import differentiated

library = Library("heads")
available = library.available

_ACTIVATIONS: dict[type[nn.Module], int] = {nn.Tanh: 1, nn.ReLU: 2}
_IN_TORCH: dict[int, Callable[[Tensor], Tensor]] = {1: torch.tanh, 2: torch.relu}


def takes(*tensors: Tensor) -> bool:
    """Whether the compiled functions can run on these: built, all float32 on a CPU, nothing that follows."""
    return available and plain(*tensors)


# Perceptrons


class Layers(NamedTuple):
    """Linear layers with one kind of activation between them, as plain lists.

    ``widths`` are the inputs of the first layer, then the outputs of each; ``activation`` is a number of ``heads.c``;
    ``activate_last`` says whether it follows the last layer too.
    """

    widths: tuple[int, ...]
    activation: int
    activate_last: bool
    weights: list[Tensor]
    biases: list[Tensor | None]


def layers_of(*networks: nn.Module) -> Layers | None:
    """Networks one after the other as layers for :func:`perceptron`, or None where they are not of a kind known here.

    Known are linear layers, and sequences of them with Tanh or ReLU between; of float32 on a CPU, each as wide as the
    one before gives. Whether something hooks into them ``agents.kernels.plan`` has checked before. Plain
    dictionaries are read, since this is called often.
    """
    layers: list[nn.Module] = []
    for network in networks:
        layers += list(network._modules.values()) if type(network) is nn.Sequential else [network]
    linear: list[Any] = layers[::2]
    kinds = {type(module) for module in layers[1::2]}
    if not available or not linear or len(kinds) > 1 or any(type(layer) is not nn.Linear for layer in linear):
        return None
    kind = _ACTIVATIONS.get(kinds.pop()) if kinds else _ACTIVATIONS[nn.Tanh]
    weights = [layer._parameters.get("weight") for layer in linear]
    biases = [layer._parameters.get("bias") for layer in linear]
    if kind is None or any(weight is None for weight in weights) or not takes(*weights):
        return None
    shapes = [weight.shape for weight in weights]
    if any(above[1] != below[0] for below, above in itertools.pairwise(shapes)):
        return None
    if any(bias is not None and bias.shape != shape[:1] for bias, shape in zip(biases, shapes, strict=True)):
        return None
    widths = (shapes[0][1], *[shape[0] for shape in shapes])
    return Layers(widths, kind, len(layers) == 2 * len(linear), weights, biases)


def perceptron(layers: Layers, x: Tensor) -> Tensor:
    """(N, K) -> (N, M), the layers one after the other."""
    arguments: tuple[Any, ...] = (
        layers.widths,
        layers.activation,
        layers.activate_last,
        *layers.weights,
        *layers.biases,
    )
    if x.dim() != 2 or x.shape[1] != layers.widths[0] or not len(x) or not takes(x):
        return _perceptron_in_torch(x, *arguments)  # which says what does not fit
    output: Tensor = _Perceptron.apply(x, *arguments)  # type: ignore[no-untyped-call]
    return output


def _perceptron_in_torch(
    x: Tensor, widths: tuple[int, ...], activation: int, activate_last: bool, *parameters: Tensor | None
) -> Tensor:
    depth = len(widths) - 1
    for i in range(depth):
        weight: Any = parameters[i]
        x = nn.functional.linear(x, weight, parameters[depth + i])
        if i < depth - 1 or activate_last:
            x = _IN_TORCH[activation](x)
    return x


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        widths: tuple[int, ...],
        activation: int,
        activate_last: bool,
        *parameters: Tensor | None,
    ) -> Tensor:
        hidden = x.new_empty(library.size("perceptron_hidden_size", (len(x),), widths))
        out = x.new_empty(len(x), widths[-1])
        library["perceptron_forward"](
            (x.contiguous(), hidden, out, *map(_contiguous, parameters)), (activation, activate_last), widths
        )
        ctx.save_for_backward(x, hidden, out, *parameters)
        ctx.settings = widths, activation, activate_last
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, out, *parameters = ctx.saved_tensors
        widths, activation, activate_last = ctx.settings
        if torch.is_grad_enabled():  # this way back is to be differentiated in its turn
            function = lambda x, *parameters: _perceptron_in_torch(x, *ctx.settings, *parameters)  # noqa: E731
            needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[4:])
            d_x, *rest = differentiated(function, (x, *parameters), needed, [d_out])
            return d_x, None, None, None, *rest
        depth, x = len(widths) - 1, x.contiguous()
        weights = [weight.contiguous() for weight in parameters[:depth]]
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_weights = [torch.empty_like(weight) for weight in weights]
        d_biases = [
            None if bias is None else weight.new_empty(len(bias))
            for weight, bias in zip(weights, parameters[depth:], strict=True)
        ]
        library["perceptron_backward"](
            (x, hidden, out, d_out.contiguous(), d_x, *weights, *d_weights, *d_biases),
            (activation, activate_last),
            widths,
        )
        return d_x, None, None, None, *d_weights, *d_biases


class PackedPerceptron:
    """The layers on their parameters as they are now, for acting: (N, K) arrays -> (N, M) arrays, no gradient."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers._replace(weights=[], biases=[])
        self._packed = torch.empty(library.size("perceptron_size", (), layers.widths))
        parameters = [_contiguous(part) for part in (*layers.weights, *layers.biases)]
        library["perceptron_pack"]((self._packed, *parameters), (), layers.widths)
        self._x: Array = np.empty((0, 0), dtype=np.float32)

    def __call__(self, x: Array) -> Array:
        """The array returned is written over by the next call.

        Raises:
            ValueError: x has not as many columns as the first layer has inputs.
        """
        if x.shape != self._x.shape:
            self._make_room(x.shape)
        np.copyto(self._x, x)
        self._run()
        return self._out

    def _make_room(self, shape: tuple[int, ...]) -> None:
        """Places of their own: to ask NumPy for an address takes longer than a small network runs."""
        widths, activation, activate_last, *_ = self._layers
        if len(shape) != 2 or shape[1] != widths[0]:
            raise ValueError(f"a layer of {widths[0]} inputs was given {shape[-1]} (an array {shape}): they must match")
        n_steps = shape[0]
        x, out = torch.empty(n_steps, widths[0]), torch.empty(n_steps, widths[-1])
        hidden = torch.empty(library.size("perceptron_hidden_size", (n_steps,), widths))
        self._run = library["perceptron_run"].prepared(
            (x, self._packed, hidden, out), (activation, activate_last), widths
        )
        self._x, self._out = x.numpy(), out.numpy()


# Actions


class CategoricalSampler:
    """Samples of A choices side by side and their joint log-probability, from arrays."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)
        self._logits: Array = np.empty((0, 0), dtype=np.float32)

    def __call__(
        self, logits: Array, rng: np.random.Generator, lasting: Callable[[Array], Array] | None = None
    ) -> tuple[NDArray[np.int64], Array]:
        """(N, K) -> (N, A), (N,): new arrays.

        Args:
            lasting: writes over Exp(1) noise (N, K) what decides in its place.

        Raises:
            ValueError: there is not one logit for each of the choices.
        """
        if logits.shape != self._logits.shape:
            self._make_room(logits.shape)
        np.copyto(self._logits, logits)
        rng.standard_exponential(out=self._noise, dtype=np.float32)
        if lasting is not None:
            lasting(self._noise)
        self._run()
        return self._actions.copy(), self._log_probs.copy()

    def _make_room(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != sum(self._sizes):
            raise ValueError(
                f"expected {sum(self._sizes)} logits, one for each of the {list(self._sizes)} choices; got {shape[-1]}"
            )
        logits, noise, log_probs = torch.empty(shape), torch.empty(shape), torch.empty(shape[0])
        actions = torch.empty(shape[0], len(self._sizes), dtype=torch.int64)
        arrays = (_as_tensor(self._sizes), logits, noise, actions, log_probs)
        self._run = library["categorical_sample"].prepared(arrays)
        self._logits, self._noise = logits.numpy(), noise.numpy()
        self._actions, self._log_probs = actions.numpy(), log_probs.numpy()


def categorical(logits: Tensor, sizes: tuple[int, ...], actions: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) logits of A choices side by side, (N, A) -> (N,) joint log-probabilities, (N,) entropies.

    Raises:
        ValueError: an action is not one of its choices, there are not A of them a step, or not K logits.
    """
    if actions.shape != (len(logits), len(sizes)):
        raise ValueError(f"expected actions {(len(logits), len(sizes))}, got {tuple(actions.shape)}")
    if logits.shape[-1] != sum(sizes):
        raise ValueError(
            f"expected {sum(sizes)} logits, one for each of the {list(sizes)} choices; got {logits.shape[-1]}"
        )
    if not takes(logits):
        return _categorical_in_torch(logits, sizes, actions)
    log_probs, entropies = _Categorical.apply(logits, sizes, actions.long())  # type: ignore[no-untyped-call]
    return log_probs, entropies


def _categorical_in_torch(logits: Tensor, sizes: tuple[int, ...], actions: Tensor) -> tuple[Tensor, Tensor]:
    chosen, entropies = [], []
    for axis, of_choice in enumerate(torch.split(logits, list(sizes), dim=-1)):
        log_probs = torch.log_softmax(of_choice, dim=-1)
        chosen.append(log_probs.gather(-1, actions[:, axis, None].long()).squeeze(-1))
        entropies.append(_entropy(log_probs))
    return torch.stack(chosen).sum(0), torch.stack(entropies).sum(0)


def _entropy(log_probs: Tensor) -> Tensor:
    """(N, n) normalized log-probabilities -> (N,) entropies; a masked action (probability 0) adds nothing."""
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)


class _Categorical(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, sizes: tuple[int, ...], actions: Tensor) -> tuple[Tensor, Tensor]:
        softmax = torch.empty_like(logits, memory_format=torch.contiguous_format)
        log_probs, entropies = logits.new_empty(len(logits)), logits.new_empty(len(logits))
        actions = actions.contiguous()
        try:
            library["categorical_forward"](
                (_as_tensor(sizes), logits.contiguous(), actions, log_probs, entropies, softmax)
            )
        except MismatchError as error:
            given = sorted(set(actions.flatten().tolist()))
            raise ValueError(f"actions must be from 0 to {[size - 1 for size in sizes]}; got {given}") from error
        ctx.save_for_backward(logits, actions, softmax)
        ctx.sizes = sizes
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, d_log_probs: Tensor, d_entropies: Tensor) -> tuple[Tensor | None, None, None]:
        logits, actions, softmax = ctx.saved_tensors
        if torch.is_grad_enabled():
            function = partial(_categorical_in_torch, sizes=ctx.sizes, actions=actions)
            return *differentiated(function, [logits], [True], [d_log_probs, d_entropies]), None, None  # type: ignore[return-value]
        d_logits = torch.empty_like(softmax)
        library["categorical_backward"](
            (_as_tensor(ctx.sizes), softmax, actions, d_log_probs.contiguous(), d_entropies.contiguous(), d_logits)
        )
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
    if not takes(means, log_std, actions) or actions.requires_grad:
        return _gaussian_in_torch(means, log_std, actions)
    log_probs: Tensor = _Gaussian.apply(means, log_std, actions)  # type: ignore[no-untyped-call]
    return log_probs


def _gaussian_in_torch(means: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    error = (actions - means) * (-log_std).exp()
    return -0.5 * error.square().sum(-1) - log_std.sum(-1) - 0.5 * math.log(2 * math.pi) * len(log_std)


class _Gaussian(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
        log_probs = means.new_empty(len(means))
        library["gaussian_forward"]((means.contiguous(), log_std.contiguous(), actions.contiguous(), log_probs))
        ctx.save_for_backward(means, log_std, actions)
        return log_probs

    @staticmethod
    def backward(ctx: Any, d_log_probs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return differentiated(_gaussian_in_torch, ctx.saved_tensors, ctx.needs_input_grad, [d_log_probs])
        means, log_std, actions = (part.contiguous() for part in ctx.saved_tensors)
        d_means, d_log_std = torch.empty_like(means), torch.empty_like(log_std)
        library["gaussian_backward"]((means, log_std, actions, d_log_probs.contiguous(), d_means, d_log_std))
        return d_means, d_log_std, None


# PPO's objective


def clipped_objective(
    *steps: Tensor | None,
    in_torch: Callable[..., Tensor],
    normalize: bool,
    clip_range: float,
    clip_range_vf: float | None,
    ent_coef: float,
    vf_coef: float,
) -> tuple[Tensor, Tensor]:
    """``agents.algorithms.losses.ppo_objective`` of its seven tensors (N,) -> the loss, and the figures (6,).

    Args:
        in_torch: the loss of the tensors, made of torch's operations, for derivatives of its derivatives.
    """
    limit = -1.0 if clip_range_vf is None else float(clip_range_vf)
    settings = (bool(normalize), float(clip_range), limit, float(ent_coef), float(vf_coef))
    loss, figures = _ClippedObjective.apply(settings, in_torch, *steps)  # type: ignore[no-untyped-call]
    return loss, figures


class _ClippedObjective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, settings: tuple[float, ...], in_torch: Callable[..., Tensor], *given: Any
    ) -> tuple[Tensor, Tensor]:
        arrays = [_contiguous(part) for part in given]
        log_probs, entropies, values = arrays[:3]
        d_log_probs, d_values, figures = torch.empty_like(log_probs), torch.empty_like(values), values.new_empty(6)
        d_entropies = None if entropies is None else torch.empty_like(entropies)
        library["clipped_objective"]((*arrays, d_log_probs, d_entropies, d_values, figures), settings)
        ctx.save_for_backward(*given, d_log_probs, d_entropies, d_values)
        ctx.in_torch = in_torch
        ctx.mark_non_differentiable(figures)
        return figures[0].clone(), figures

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        *given, d_log_probs, d_entropies, d_values = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, *differentiated(ctx.in_torch, given, ctx.needs_input_grad[2:], [d_loss])
        by_entropy = None if d_entropies is None else d_entropies * d_loss
        return None, None, d_log_probs * d_loss, by_entropy, d_values * d_loss, *[None] * 4


def _contiguous(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().contiguous()


@functools.lru_cache(maxsize=64)
def _as_tensor(sizes: tuple[int, ...]) -> Tensor:
    return torch.tensor(sizes, dtype=torch.int64)
