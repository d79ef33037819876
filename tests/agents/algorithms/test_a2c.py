"""An update of A2C: one step on the whole rollout."""

from typing import Any

import numpy as np
import pytest
import torch

from agents import RecurrentA2C
from tests.agents.algorithms.test_ppo import CountSteps, KeepPolicy, by_hand
from tests.agents.probe_envs import (
    ACTION_SPACES,
    ALL_ACTIONS,
    ALL_CRITIC_MEMORIES,
    ALL_MEMORIES,
    Clock,
    clocks,
    equal_weights,
    small_ppo,
)
from tests.pairs import pairwise
from tests.tolerance import close


def small_a2c(env: Any, *args: Any, **kwargs: Any) -> Any:
    return small_ppo(env, *args, cls=RecurrentA2C, **kwargs)


@pytest.mark.parametrize(
    ("memory", "critic_memory", "sequence_length"), pairwise(ALL_MEMORIES, ALL_CRITIC_MEMORIES, [None, 4, 1])
)
def test_an_update_is_the_one_computed_by_hand(memory: str, critic_memory: str, sequence_length: int | None) -> None:
    keep = KeepPolicy()
    model = small_a2c(
        clocks("multi discrete"),
        memory,
        critic_memory,
        sequence_length=sequence_length,
        learning_rate=0.1,
        ent_coef=0.1,
        vf_coef=0.7,
        max_grad_norm=0.5,
        normalize_advantage=sequence_length == 4,
        policy_kwargs=dict(optimizer_class=torch.optim.SGD, optimizer_kwargs={}),
    )
    model._update_current_progress_remaining = lambda *_: None  # the learning rate stays at its start
    model.learn(24, callback=keep)

    buffer, parameters = model.rollout_buffer, list(keep.policy.parameters())
    values, log_probs, entropies = by_hand(keep.policy, buffer)
    advantages = buffer.advantages
    if model.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    loss = -(log_probs * advantages).mean() + 0.7 * ((values - buffer.returns) ** 2).mean() - 0.1 * entropies.mean()
    gradients = torch.autograd.grad(loss, parameters)
    norm = float(sum(gradient.square().sum() for gradient in gradients)) ** 0.5
    for parameter, start, gradient in zip(model.policy.parameters(), parameters, gradients, strict=True):
        assert close(parameter, start - 0.1 * min(1.0, 0.5 / norm) * gradient)


def test_an_update_is_one_step_on_everything() -> None:
    CountSteps.n_steps = 0
    model = small_a2c(clocks(), policy_kwargs=dict(optimizer_class=CountSteps))
    model.learn(72)
    assert CountSteps.n_steps == model._n_updates == 3
    names = "n_updates explained_variance entropy_loss policy_loss value_loss learning_rate"
    assert all(np.isfinite(model.logger.name_to_value[f"train/{name}"]) for name in names.split())


def test_the_optimizer_is_rmsprop_with_its_epsilon_or_the_policys() -> None:
    optimizer = small_a2c(clocks(), rms_prop_eps=1e-3).policy.optimizer
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert optimizer.param_groups[0]["eps"] == 1e-3
    assert optimizer.param_groups[0]["alpha"] == 0.99
    assert isinstance(small_a2c(clocks(), use_rms_prop=False).policy.optimizer, torch.optim.Adam)


@pytest.mark.parametrize("actions", ALL_ACTIONS)
def test_the_same_seed_gives_the_same_weights_bit_for_bit(actions: str) -> None:
    def run(seed: int) -> Any:
        return small_a2c(clocks(actions), "lstm", "separate", actions=actions, seed=seed).learn(48)

    first = run(7)
    assert equal_weights(first, run(7))
    assert not equal_weights(first, run(8))


def test_the_callers_arguments_stay_as_they_were() -> None:
    kwargs = dict(memory_kwargs=dict(hidden_size=4))
    RecurrentA2C("RecurrentPolicy", clocks(), policy_kwargs=kwargs, device="cpu")
    assert kwargs == dict(memory_kwargs=dict(hidden_size=4))


def test_a_rollout_of_one_step_of_one_environment_is_survived() -> None:
    model = small_a2c(Clock(0, ACTION_SPACES["discrete"]), n_steps=1, sequence_length=None, normalize_advantage=True)
    model.learn(10)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
