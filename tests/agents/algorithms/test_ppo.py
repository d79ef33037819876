"""An update of PPO: where it starts, what it computes, and that a seed decides it.

Axes: T steps of a rollout, B environments, L steps of a sequence.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from agents import RecurrentA2C, RecurrentPPO
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from tests.agents.probe_envs import (
    ACTION_SPACES,
    ALL_ACTIONS,
    ALL_CRITIC_MEMORIES,
    ALL_MEMORIES,
    AtRolloutEnd,
    Clock,
    MaskedClock,
    Watched,
    clocks,
    copy_of,
    equal_weights,
    small_ppo,
    vectorized,
)
from tests.pairs import each, pairwise
from tests.saved_files import loaded
from tests.tolerance import close, near


@pytest.mark.parametrize(
    ("memory", "critic_memory", "actions"), pairwise(ALL_MEMORIES, ALL_CRITIC_MEMORIES, ALL_ACTIONS)
)
def test_the_first_ratio_is_one_and_the_values_are_those_stored(memory: str, critic_memory: str, actions: str) -> None:
    model = small_ppo(clocks(actions), memory, critic_memory, actions=actions, cls=Watched, n_epochs=1)
    assert model.first_ratios(2) <= 1e-5


CUTS: list[dict[str, Any]] = [
    dict(sequence_length=None, batch_size=None),
    dict(sequence_length=None, batch_size=4),
    dict(sequence_length=1, batch_size=1),
    dict(sequence_length=2, batch_size=7),
    dict(n_steps=1, sequence_length=1),
]


@pytest.mark.parametrize(("kwargs", "memory"), each(CUTS, ALL_MEMORIES))
def test_the_first_ratio_is_one_however_the_rollout_is_cut(kwargs: dict[str, Any], memory: str) -> None:
    assert small_ppo(clocks(), memory, cls=Watched, **kwargs).first_ratios() <= 1e-5


@pytest.mark.parametrize("memory", ["rnn", "lstm", "gru"])
def test_the_first_ratio_is_one_with_dropout_between_layers(memory: str) -> None:
    kwargs = dict(memory_kwargs=dict(hidden_size=8, num_layers=2, dropout=0.5))
    assert small_ppo(clocks(), memory, "separate", cls=Watched, policy_kwargs=kwargs).first_ratios() <= 1e-5


def test_the_first_ratio_is_one_with_the_dropout_of_contribs_policies() -> None:
    kwargs = dict(lstm_hidden_size=8, n_lstm_layers=2, lstm_kwargs=dict(dropout=0.5))
    model = Watched("MlpLstmPolicy", clocks(), n_steps=8, batch_size=8, n_epochs=2, policy_kwargs=kwargs, device="cpu")
    assert model.first_ratios() <= 1e-5


@pytest.mark.parametrize(("memory", "actions"), each(ALL_MEMORIES, ["discrete", "discrete from one", "multi discrete"]))
def test_the_first_ratio_is_one_with_masked_actions_and_under_a_normalizer_that_moves(
    memory: str, actions: str
) -> None:
    env = vectorized(lambda i: MaskedClock(i, ACTION_SPACES[actions]), 3)
    assert small_ppo(env, memory, cls=Watched, policy_kwargs=dict(action_mask="mask")).first_ratios() <= 1e-5
    normalized = VecNormalize(vectorized(lambda i: Clock(i, ACTION_SPACES["box"]), 3))
    assert small_ppo(normalized, memory, "separate", cls=Watched).first_ratios(2) <= 1e-5


# What an update computes


class KeepPolicy(AtRolloutEnd):
    """The policy as it was when its last rollout ended, which is before the update."""

    policy: RecurrentActorCriticPolicy

    def __init__(self) -> None:
        super().__init__(lambda model: setattr(self, "policy", copy_of(model.policy)))


def by_hand(policy: RecurrentActorCriticPolicy, buffer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Values, log-probabilities and entropies (T, B), one step at a time through torch.distributions.

    Every segment of the buffer's sequence length starts from the state stored for it, so no gradient crosses.
    """
    rows = []
    state: Any = ()
    for t in range(buffer.buffer_size):
        if t % buffer.sequence_length == 0:
            state = tuple(part[t // buffer.sequence_length] for part in buffer.states)
        observations, starts, actions = buffer.observations[t], buffer.episode_starts[t], buffer.actions[t]
        distribution, _ = policy.get_distribution(observations, state, starts)
        values = policy.predict_values(observations, state, starts)
        *_, state = policy(observations, state, starts)
        rows.append((values, distribution.log_prob(actions), distribution.entropy()))
    values, log_probs, entropies = (torch.stack(column) for column in zip(*rows, strict=True))
    return values, log_probs, entropies


def updated_by_hand(policy: RecurrentActorCriticPolicy, model: Any) -> tuple[list[Tensor], dict[str, float]]:
    """The weights after full-batch epochs of gradient descent on PPO's loss as its paper has it; the last figures."""
    buffer = model.rollout_buffer
    advantages, returns = buffer.advantages, buffer.returns
    if model.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    epsilon, value_epsilon = model.clip_range(1.0), None if model.clip_range_vf is None else model.clip_range_vf(1.0)
    parameters = list(policy.parameters())
    figures: dict[str, float] = {}
    for _ in range(model.n_epochs):
        values, log_probs, entropies = by_hand(policy, buffer)
        ratio = torch.exp(log_probs - buffer.log_probs)
        surrogate = torch.minimum(ratio * advantages, torch.clamp(ratio, 1 - epsilon, 1 + epsilon) * advantages).mean()
        if value_epsilon is not None:
            values = buffer.values + torch.clamp(values - buffer.values, -value_epsilon, value_epsilon)
        value_loss, entropy = ((values - returns) ** 2).mean(), entropies.mean()
        loss = -surrogate + model.vf_coef * value_loss - model.ent_coef * entropy
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))  # type: ignore[arg-type]
        scale = min(1.0, model.max_grad_norm / (float(norm) + 1e-6))
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= model.lr_schedule(1.0) * scale * gradient
        figures = {
            "train/loss": float(loss.detach()),
            "train/approx_kl": float((ratio - 1 - torch.log(ratio)).mean().detach()),
            "clipped": float(((ratio - 1).abs() > epsilon).float().mean()),
        }
    return [parameter.detach() for parameter in parameters], figures


WITH_ENTROPY = [actions for actions in ALL_ACTIONS if "gsde" not in actions]


@pytest.mark.parametrize(
    ("memory", "critic_memory", "sequence_length", "actions"),
    pairwise(ALL_MEMORIES, ALL_CRITIC_MEMORIES, [None, 4, 1], WITH_ENTROPY),
)
def test_an_update_is_the_one_computed_by_hand(
    memory: str, critic_memory: str, sequence_length: int | None, actions: str
) -> None:
    """Three epochs, with steps large enough that ratios and values are clipped."""
    keep = KeepPolicy()
    model = small_ppo(
        clocks(actions),
        memory,
        critic_memory,
        sequence_length=sequence_length,
        batch_size=None,
        n_epochs=3,
        learning_rate=0.5,
        clip_range=0.01,
        clip_range_vf=0.05,
        ent_coef=0.1,
        vf_coef=0.7,
        max_grad_norm=0.5,
        normalize_advantage=sequence_length != 1,
        policy_kwargs=dict(optimizer_class=torch.optim.SGD),
    )
    model._update_current_progress_remaining = lambda *_: None  # schedules stay at their start
    model.learn(24, callback=keep)
    expected, figures = updated_by_hand(keep.policy, model)
    for parameter, hand in zip(model.policy.parameters(), expected, strict=True):
        assert close(parameter, hand)
    assert model.logger.name_to_value["train/loss"] == near(figures["train/loss"])
    assert model.logger.name_to_value["train/approx_kl"] == near(figures["train/approx_kl"], scale=1.0)
    assert figures["clipped"] > 0  # else the clipping was not tested


def test_the_loss_of_a_rollout_is_the_mean_of_those_of_its_minibatches() -> None:
    model = small_ppo(clocks(), "lstm", "separate", normalize_advantage=False, ent_coef=0.1)
    model.learn(24)
    whole, *nothing = (model._loss(batch)[1] for batch in model.rollout_buffer.get(None))
    assert not nothing
    for batch_size in (4, 8):
        parts = [model._loss(batch)[1] for batch in model.rollout_buffer.get(batch_size)]
        assert len(parts) == 24 // batch_size
        for name in ("loss", "policy_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction"):
            mean = torch.stack([getattr(part, name) for part in parts]).mean()
            assert close(mean, getattr(whole, name))


def test_advantages_are_normalized_over_the_valid_steps_of_a_minibatch() -> None:
    model = small_ppo(clocks(), learning_rate=0.0, normalize_advantage="batch")
    model.learn(24)
    buffer = model.rollout_buffer
    left_out = [(1, 0), (5, 2)]
    for t, b in left_out:
        buffer.valid[t, b] = False
        buffer.advantages[t, b] = buffer.returns[t, b] = 1e6  # must not count
    buffer._all_valid = False
    (batch,) = buffer.get(None)
    real = buffer.advantages[buffer.valid]
    normal = (real - real.mean()) / (real.std() + 1e-8)
    _, terms = model._loss(batch)
    # All ratios are one, so that the loss is -mean of the normalized advantages.
    assert terms.policy_loss.item() == near(-float(normal.mean()), scale=1.0)
    assert terms.value_loss.item() < 1e6
    assert terms.approx_kl.item() == near(0.0, scale=1.0)


def test_without_a_closed_form_the_entropy_is_that_of_the_actions_taken() -> None:
    model = small_ppo(clocks("squashed gsde"), "gru", actions="squashed gsde", learning_rate=0.0)
    model.learn(24)
    (batch,) = model.rollout_buffer.get(None)
    assert model._loss(batch)[1].entropy_loss.item() == near(float(batch.old_log_probs.mean()))


def test_the_gradient_is_clipped_at_its_norm() -> None:
    def moved(max_grad_norm: float) -> Any:
        model = small_ppo(
            clocks(),
            batch_size=None,
            n_epochs=1,
            max_grad_norm=max_grad_norm,
            learning_rate=1.0,
            policy_kwargs=dict(optimizer_class=torch.optim.SGD),
        )
        before = [parameter.detach().clone() for parameter in model.policy.parameters()]
        model.lr_schedule = lambda _: 1.0
        model.learn(24)
        return float(sum((a - b).square().sum() for a, b in zip(before, model.policy.parameters(), strict=True)) ** 0.5)

    assert moved(0.01) == near(0.01)
    assert moved(float("inf")) > 0.05


class CountSteps(torch.optim.SGD):
    n_steps = 0

    def step(self, closure: Any = None) -> Any:
        CountSteps.n_steps += 1
        return super().step(closure)


def test_a_divergence_past_the_target_ends_the_update_before_the_step_that_would_follow() -> None:
    def run(target_kl: float | None) -> tuple[int, int]:
        CountSteps.n_steps = 0
        model = small_ppo(
            clocks(),
            learning_rate=0.5,
            n_epochs=4,
            max_grad_norm=10.0,
            target_kl=target_kl,
            policy_kwargs=dict(optimizer_class=CountSteps),
        )
        model.learn(24)
        return CountSteps.n_steps, model._n_updates

    assert run(None) == (12, 4)
    assert run(1e9) == (12, 4)
    # The first minibatch is at divergence zero and steps, the second is past the target and does not.
    assert run(1e-7) == (1, 1)


DIVISIONS = [
    (3, 7, 7, 5, 3),
    (3, 7, 1, 5, 5),
    (3, 8, 4, 8, 3),
    (3, 8, 4, 1000, 1),
    (3, 8, 2, 1, 12),
    (1, 1, None, 1, 1),
]


@pytest.mark.parametrize(("memory", "division"), each(ALL_MEMORIES, DIVISIONS))
def test_every_divisibility_is_survived(memory: str, division: tuple[Any, ...]) -> None:
    n_envs, n_steps, sequence_length, batch_size, n_expected = division
    CountSteps.n_steps = 0
    model = small_ppo(
        clocks(n_envs=n_envs),
        memory,
        n_steps=n_steps,
        sequence_length=sequence_length,
        batch_size=batch_size,
        n_epochs=1,
        policy_kwargs=dict(optimizer_class=CountSteps),
    )
    model.learn(2 * n_envs * n_steps)
    assert CountSteps.n_steps == 2 * n_expected
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("cls", [RecurrentPPO, RecurrentA2C])
def test_an_entropy_coefficient_may_fall_and_comes_back_from_a_file(cls: Any) -> None:
    def falls_to_zero_at_half(progress: float) -> float:
        return 2.0 * max(progress - 0.5, 0.0)

    coefficients: list[float] = []
    model = small_ppo(clocks(), cls=cls, ent_coef=falls_to_zero_at_half)
    model.learn(96, callback=AtRolloutEnd(lambda model: coefficients.append(model.entropy_coefficient())))
    assert coefficients == pytest.approx([1.0, 0.5, 0.0, 0.0])
    again = loaded(model)
    again._current_progress_remaining = 0.75
    assert again.entropy_coefficient() == pytest.approx(0.5)
    constant = small_ppo(clocks(), cls=cls, ent_coef=0.25)
    assert constant.entropy_coefficient() == constant.ent_coef == loaded(constant).ent_coef == 0.25


def test_schedules_move_with_progress_and_are_logged_under_the_usual_names() -> None:
    def half(start: float) -> Callable[[float], float]:
        return lambda progress: start * progress

    rates: list[float] = []

    def note(model: Any) -> None:
        rates.append(model.policy.optimizer.param_groups[0]["lr"])

    model = small_ppo(clocks(), learning_rate=half(1e-2), clip_range=half(0.4), clip_range_vf=half(0.8))
    model.learn(96, callback=AtRolloutEnd(note))
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])
    logged = model.logger.name_to_value
    assert logged["train/clip_range"] == pytest.approx(0.0)
    names = (
        "approx_kl clip_fraction clip_range clip_range_vf entropy_loss explained_variance learning_rate loss n_updates"
    )
    for name in f"{names} policy_gradient_loss value_loss".split():
        assert np.isfinite(logged[f"train/{name}"]), name
    assert logged["train/n_updates"] == 8


# Seeds


def learned(n_steps: int = 48, actions: str = "discrete", **kwargs: Any) -> Any:
    return small_ppo(clocks(actions), actions=actions, **kwargs).learn(n_steps)


DROPOUT = dict(memory_kwargs=dict(hidden_size=8, num_layers=2, dropout=0.5))


@pytest.mark.parametrize(
    ("memory", "actions", "policy_kwargs"),
    [(memory, actions, None) for memory, actions in each(ALL_MEMORIES, ALL_ACTIONS)] + [("lstm", "discrete", DROPOUT)],
)
def test_the_same_seed_gives_the_same_weights_bit_for_bit(memory: str, actions: str, policy_kwargs: Any) -> None:
    kwargs = dict(memory=memory, critic_memory="separate", actions=actions, policy_kwargs=policy_kwargs)
    first = learned(seed=7, **kwargs)
    torch.rand(3)  # whatever ran in between
    assert equal_weights(first, learned(seed=7, **kwargs))
    assert not equal_weights(first, learned(seed=8, **kwargs))


def test_without_a_seed_torchs_own_decides() -> None:
    def run(seed: int) -> Any:
        torch.manual_seed(seed)
        return learned(seed=None)

    assert equal_weights(run(5), run(5))
    assert not equal_weights(run(5), run(6))


def test_a_seed_set_later_decides_what_follows() -> None:
    def run(seed: int, n_before: int) -> Any:
        kwargs = dict(optimizer_class=torch.optim.SGD)
        model = small_ppo(clocks(lengths=(100,)), learning_rate=0.0, seed=1, policy_kwargs=kwargs)
        model.learn(24 * n_before)
        model.set_random_seed(seed)
        model.lr_schedule = lambda _: 1e-2
        model.set_env(clocks(lengths=(100,)))
        return model.learn(48)

    assert equal_weights(run(5, 1), run(5, 2))
    assert not equal_weights(run(5, 1), run(6, 1))


def test_gradients_of_all_that_the_optimizer_holds_are_cleared_for_every_minibatch() -> None:
    model = small_ppo(clocks(), policy_kwargs=dict(optimizer_class=torch.optim.SGD))
    outside = torch.ones(3, requires_grad=True)
    outside.grad = torch.ones(3)
    model.policy.optimizer.add_param_group({"params": [outside]})
    model.learn(24)
    assert outside.tolist() == [1.0, 1.0, 1.0]
