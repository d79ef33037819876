"""What no implementation of an iteration gets under: the environment, the arithmetic of acting, one fused LSTM call.

Axes: T steps of a rollout, B environments, S sequences of a minibatch, F features, H units.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from cases import Case, Critic, fast_env, usual_env
from torch import Tensor, nn


class Limits(NamedTuple):
    """Seconds of one iteration."""

    environment: float
    usual_environment: float
    acting: float
    training: float


def limits_of(case: Case, repeats: int) -> Limits:
    """Medians over ``repeats``."""
    return Limits(
        environment=_median(_environment(case, fast_env(case)), repeats),
        usual_environment=_median(_environment(case, usual_env(case)), repeats),
        acting=_median(_acting(case), repeats),
        training=_median(_training(case), repeats),
    )


def _median(run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _environment(case: Case, env: Any) -> Callable[[], None]:
    """A rollout's environment steps with random actions chosen before."""
    env.action_space.seed(0)
    actions = [np.stack([env.action_space.sample() for _ in range(case.n_envs)]) for _ in range(case.n_steps)]
    env.reset()

    def run() -> None:
        for action in actions:
            env.step(action)

    return run


def _acting(case: Case) -> Callable[[], None]:
    """A rollout's acting in NumPy: per LSTM one product (B, F + H) x (F + H, 4 H) and the gates."""
    hidden, features = case.network.hidden, 4
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(case.n_envs, features + hidden)).astype(np.float32)
    weights = rng.normal(size=(features + hidden, 4 * hidden)).astype(np.float32)
    cell = np.zeros((case.n_envs, hidden), np.float32)
    n_lstms = _n_lstms(case.network.critic)

    def step() -> None:
        gates = inputs @ weights
        np.tanh(gates, out=gates)  # a sigmoid is a tanh, scaled
        i, f, g, o = (gates[:, at : at + hidden] for at in range(0, 4 * hidden, hidden))
        o * np.tanh(f * cell + i * g)

    def run() -> None:
        for _ in range(case.n_steps * n_lstms):
            step()

    return run


def _training(case: Case) -> Callable[[], None]:
    """An update's passes, forward and backward: per minibatch one fused LSTM call without resets, and the heads."""
    network = case.network
    sequences = max(case.batch_size // case.n_steps, 1)
    length = min(case.n_steps, case.batch_size)
    lstms = [nn.LSTM(4, network.hidden) for _ in range(_n_lstms(network.critic))]
    heads = [_head(network.hidden, network.heads, width) for width in (2, 1)]
    inputs = torch.randn(length, sequences, 4)

    def minibatch() -> None:
        outputs = [lstm(inputs)[0] for lstm in lstms]
        critic_input: Tensor = outputs[-1].detach() if network.critic == "detached" else outputs[-1]
        loss = heads[0](outputs[0]).mean() + heads[1](critic_input).mean()
        loss.backward()

    def run() -> None:
        for _ in range(case.n_epochs * case.n_minibatches):
            minibatch()

    return run


def _head(width: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.Tanh()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _n_lstms(critic: Critic) -> int:
    return 2 if critic == "separate" else 1
