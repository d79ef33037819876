"""What no implementation of an iteration gets under: the environment, the arithmetic of acting, one fused LSTM call.

Axes: T steps of a rollout, B environments, S sequences of a minibatch, F features, H units.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cases import Case, fast_env, usual_env
from measuring import medians_in_turn
from torch import Tensor, nn


def limits_of(case: Case, repeats: int) -> dict[str, float]:
    """Seconds of one iteration, medians over ``repeats``."""
    parts = {
        "environment": _environment(case, fast_env(case)),
        "usual_environment": _environment(case, usual_env(case)),
        "acting": _acting(case),
        "training": _training(case),
    }
    return {name: medians_in_turn({name: run}, repeats)[name] for name, run in parts.items()}


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
    n_lstms = 2 if case.network.critic == "separate" else 1

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
    lstms = [nn.LSTM(4, network.hidden) for _ in range(2 if network.critic == "separate" else 1)]
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
