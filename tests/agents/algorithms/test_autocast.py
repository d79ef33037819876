"""Under autocast an update starts where it does without: at a ratio of one, whatever acting rounded.

Axes: T steps of a rollout, B environments, L steps of a sequence.
"""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents import RecurrentA2C, RecurrentPPO
from agents.memory import GRU, MEMORIES, Memory, make_memory
from agents.memory.recurrent import Recurrent
from tests.agents.algorithms.test_ppo import CUTS
from tests.agents.probe_envs import (
    ALL_ACTIONS,
    ALL_CRITIC_MEMORIES,
    ALL_MEMORIES,
    Clock,
    Watched,
    clocks,
    equal_weights,
    small,
    small_ppo,
    vectorized,
)
from tests.pairs import each, pairwise


def furthest(*args: Any, **kwargs: Any) -> float:
    """The largest difference between what learning computes first and what the buffer holds."""
    difference: float = small_ppo(*args, cls=Watched, **{"autocast": "bfloat16", **kwargs}).first_ratios(2)
    return difference


@pytest.mark.parametrize(
    ("memory", "critic_memory", "actions"), pairwise(ALL_MEMORIES, ALL_CRITIC_MEMORIES, ALL_ACTIONS[::2])
)
def test_the_first_ratio_is_one_and_the_values_are_those_stored(memory: str, critic_memory: str, actions: str) -> None:
    assert furthest(clocks(actions), memory, critic_memory, actions=actions) <= 1e-5


@pytest.mark.parametrize(("memory", "kwargs"), each(ALL_MEMORIES, CUTS))
def test_the_first_ratio_is_one_however_the_rollout_is_cut(memory: str, kwargs: dict[str, Any]) -> None:
    assert furthest(clocks(), memory, **kwargs) <= 1e-5


class Coarse(Memory):
    """A memory that acts with much coarser roundings than it learns with."""

    def __init__(self, input_size: int, hidden_size: int = 8) -> None:
        super().__init__(input_size, hidden_size)
        self.gru = GRU(input_size, hidden_size=hidden_size)

    def initial_state(self, batch_size: int) -> Any:
        return self.gru.initial_state(batch_size)

    def step(self, features: Any, state: Any, episode_starts: Any) -> Any:
        output, state = self.gru.step(features, state, episode_starts)
        return output.half().mul(8).round().div(8).float(), state

    def unroll(self, features: Any, state: Any, episode_starts: Any) -> Any:
        return self.gru.unroll(features, state, episode_starts)


def test_what_acting_rounded_never_enters_the_ratio() -> None:
    kwargs = dict(policy_kwargs=dict(memory_kwargs=dict(hidden_size=8)))
    assert furthest(clocks(), Coarse, autocast=None, **kwargs) > 1e-3  # else nothing was rounded
    assert furthest(clocks(), Coarse, **kwargs) == 0.0


class Drowsy(GRU):
    """A memory whose rounding in learning depends on how many sequences go through it together, as kernels' may."""

    def unroll(self, features: Any, state: Any, episode_starts: Any) -> Any:
        return super().unroll(features, state, episode_starts) * (1 + 1e-2 * features[0].sum())


def test_the_first_ratio_is_one_even_where_rounding_depends_on_the_company_of_a_sequence() -> None:
    kwargs = dict(policy_kwargs=dict(memory_kwargs=dict(hidden_size=8)))
    model = small_ppo(clocks(), Drowsy, cls=Watched, autocast="bfloat16", **kwargs)
    assert model.first_ratios(2) == 0.0
    # In another company it is another number, so that the very minibatches matter.
    (batch,) = model.rollout_buffer.get(None)
    _, log_probs, _ = model.policy.evaluate_actions(
        batch.observations, batch.actions, batch.state, batch.episode_starts
    )
    assert (log_probs - batch.old_log_probs).abs().max() > 1e-4


@pytest.mark.parametrize("cls", [RecurrentPPO, RecurrentA2C])
def test_advantages_are_those_of_the_recomputed_values(cls: Any) -> None:
    class Seen(BaseCallback):
        acted: list[Any]

        def _on_rollout_start(self) -> None:
            self.acted = []

        def _on_step(self) -> bool:
            self.acted.append(np.array(self.locals["values"])[:, 0])
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.locals["rollout_buffer"]
            acted = torch.from_numpy(np.stack(self.acted))
            assert 1e-4 < (acted - buffer.values).abs().max() < 1.0
            assert torch.equal(buffer.returns, buffer.advantages + buffer.values)

    kwargs = dict(policy_kwargs=dict(memory_kwargs=dict(hidden_size=8)))
    small_ppo(clocks(), Coarse, cls=cls, autocast="bfloat16", **kwargs).learn(48, callback=Seen())


@pytest.mark.parametrize("memory", ALL_MEMORIES)
def test_hidden_layers_are_in_bfloat16_and_all_that_leaves_the_policy_in_float32(memory: str) -> None:
    model = small_ppo(clocks(), memory, "separate", autocast="bfloat16")
    policy = model.policy
    hidden: list[torch.dtype] = []
    for layer in (policy.mlp_extractor.policy_net[0], policy.mlp_extractor.value_net[0]):
        layer.register_forward_hook(lambda module, inputs, output: hidden.append(output.dtype))
    observations, starts = torch.as_tensor(model.env.reset()), torch.ones(3, dtype=torch.bool)
    state = policy.initial_state(3)
    actions, values, log_probs, after = policy(observations, state, starts)
    learned = policy.evaluate_actions(observations[None], actions[None], state, starts[None])
    assert hidden == [torch.bfloat16] * 4
    for part in (values, log_probs, *learned, policy.predict_values(observations, state, starts)):
        assert part.dtype == torch.float32
    assert [part.dtype for part in after] == [part.dtype for part in state]


@pytest.mark.parametrize("memory", [name for name, cls in MEMORIES.items() if issubclass(cls, Recurrent)])
@pytest.mark.parametrize("hidden_size", [8, 6])
def test_recurrent_cells_compute_in_float32_under_autocast(memory: str, hidden_size: int) -> None:
    """What they are given is rounded, what they carry is not: for the compiled kernels (8) and those of torch (6)."""
    torch.manual_seed(0)
    module = make_memory(memory, 3, small(memory, hidden_size=hidden_size))
    features, starts = torch.randn(7, 5, 3).bfloat16(), torch.rand(7, 5) < 0.2
    state = tuple(torch.randn_like(part) for part in module.initial_state(5))
    expected = module.unroll(features.float(), state, starts)
    expected_step = module.step(features[0].float(), state, starts[0])
    with torch.autocast("cpu", torch.bfloat16):
        unrolled, stepped = module.unroll(features, state, starts), module.step(features[0], state, starts[0])
    assert unrolled.dtype == torch.float32
    assert torch.equal(unrolled, expected)
    assert torch.equal(stepped[0], expected_step[0])
    assert all(torch.equal(one, other) for one, other in zip(stepped[1], expected_step[1], strict=True))


def test_weights_and_what_the_optimizer_keeps_are_in_float32_and_gradients_near_those_without() -> None:
    def gradients(autocast: str | None) -> Tensor:
        # With an open forget gate: time scales of hundreds of steps let gradients of so short a rollout nearly cancel.
        arguments = dict(memory_kwargs=dict(hidden_size=8, forget_bias=1.0))
        model = small_ppo(
            clocks(), "lstm", "separate", autocast=autocast, n_epochs=1, batch_size=None, policy_kwargs=arguments
        )
        model.learn(24)
        assert {part.dtype for part in model.policy.parameters()} == {torch.float32}
        kept = [slot for slots in model.policy.optimizer.state.values() for slot in slots.values()]
        assert {slot.dtype for slot in kept} == {torch.float32}
        return torch.cat([part.grad.flatten() for part in model.policy.parameters()])

    exact, rounded = gradients(None), gradients("bfloat16")
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99
    assert not torch.equal(exact, rounded)


def test_images_are_encoded_under_autocast() -> None:
    class Picture(Clock):
        def __init__(self, i: int) -> None:
            super().__init__(i, spaces.Discrete(3))
            self.observation_space = spaces.Box(0, 255, (3, 36, 36), np.uint8)

        def _observation(self) -> Any:
            return np.full((3, 36, 36), 10 * self._step % 256, np.uint8)

    env = vectorized(Picture, 2)
    arguments = dict(lstm_hidden_size=8, features_extractor_kwargs=dict(features_dim=16))
    kwargs: dict[str, Any] = dict(n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=arguments, device="cpu", seed=0)
    model = Watched("CnnLstmPolicy", env, autocast="bfloat16", **kwargs)
    assert model.first_ratios(2) <= 1e-5


def test_the_same_seed_gives_the_same_weights_bit_for_bit() -> None:
    first, again, other = (small_ppo(clocks(), autocast="bfloat16", seed=seed).learn(48) for seed in (7, 7, 8))
    assert equal_weights(first, again)
    assert not equal_weights(first, other)
