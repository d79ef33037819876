"""Collecting: the state that training carries, what a rollout holds, and what must not touch it.

Axes: T steps of a rollout, B environments.
"""

import copy
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
)
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecMonitor, VecNormalize, VecTransposeImage
from torch import Tensor

from agents import RecurrentA2C, RecurrentPPO
from agents.algorithms.experience import RESET_STEP
from agents.checks.observations import map_observations
from agents.memory import State
from tests.agents.probe_envs import (
    ACTION_SPACES,
    ALL_ACTIONS,
    ALL_CRITIC_MEMORIES,
    ALL_MEMORIES,
    AtRolloutEnd,
    Clock,
    MaskedClock,
    NextStepReset,
    Recorder,
    clocks,
    copy_of,
    equal_weights,
    small_ppo,
    states_equal,
    vectorized,
)
from tests.agents.rollout.test_returns import slow_advantages
from tests.pairs import each, pairwise
from tests.tolerance import close, near

ALGORITHMS = [RecurrentPPO, RecurrentA2C]


def tensors(observations: Any) -> Any:
    return map_observations(torch.as_tensor, observations)


def same_observations(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_observations(left[key], right[key]) for key in left)
    return np.array_equal(np.asarray(left), np.asarray(right))


class Replay(BaseCallback):
    """Follows a run by hand, step by step from its true start, and compares every rollout with what it finds.

    It knows what the environments gave out and the weights that each rollout was collected with. All else it computes
    itself: states one step at a time, values of terminal observations one environment at a time, advantages by their
    defining sum.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.t = 0
        self.state: State | None = None
        self.starts = np.ones(recorder.num_envs, dtype=bool)
        self.n_rollouts = self.n_states = self.n_carried = self.n_truncated = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.policy = copy_of(self.model.policy)
        if self.state is None:
            self.state = self.policy.initial_state(self.recorder.num_envs)

    def _on_rollout_end(self) -> None:
        model, buffer = self.model, self.model.rollout_buffer
        rewards, values = torch.zeros(2, buffer.buffer_size, self.recorder.num_envs)
        starts = []
        with torch.no_grad():
            for k in range(buffer.buffer_size):
                starts.append(torch.as_tensor(self.starts))
                values[k] = self._one_step(buffer, k)
                rewards[k] = self._rewards_with_bootstrap(model.gamma)
                self.t += 1
            last = tensors(self.recorder.observations[self.t])
            last_values = self.policy.predict_values(last, self.state, torch.as_tensor(self.starts))
        assert close(buffer.rewards, rewards)
        assert torch.equal(buffer.episode_starts, torch.stack(starts))
        expected = slow_advantages(
            rewards,
            values,
            torch.stack(starts),
            last_values,
            torch.as_tensor(self.starts),
            model.gamma,
            model.gae_lambda,
        )
        assert close(buffer.advantages.double(), expected)
        assert close(buffer.returns.double(), expected + values)
        self.n_rollouts += 1

    def _one_step(self, buffer: Any, k: int) -> Tensor:
        """Compares the k-th step of the rollout, and takes it. Returns values (B,)."""
        assert self.state is not None
        starts = torch.as_tensor(self.starts)
        given = tensors(self.recorder.observations[self.t])
        if k % buffer.sequence_length == 0:
            stored = tuple(part[k // buffer.sequence_length] for part in buffer.states)
            assert states_equal(stored, self.policy.reset_state(self.state, starts))
            self.n_states += 1
            self.n_carried += int((~starts).sum())
        assert same_observations(map_observations(lambda part: part[k], buffer.observations), given)
        actions = buffer.actions[k]
        assert np.array_equal(self.policy.head.to_environment(actions.numpy()), self.recorder.actions[self.t])
        values, log_probs, _ = self.policy.evaluate_actions(
            map_observations(lambda part: part[None], given), actions[None], self.state, starts[None]
        )
        *_, self.state = self.policy(given, self.state, starts)
        assert close(buffer.values[k], values[0])
        assert close(buffer.log_probs[k], log_probs[0])
        return values[0]

    def _rewards_with_bootstrap(self, gamma: float) -> Tensor:
        """(B,) rewards of step t, with gamma V(s_{t+1}) where a time limit cut the episode."""
        assert self.state is not None
        rewards = torch.as_tensor(self.recorder.rewards[self.t].copy())
        self.starts = self.recorder.dones[self.t]
        for i, info in enumerate(self.recorder.infos[self.t]):
            if self.starts[i] and info["TimeLimit.truncated"]:
                last = tensors(map_observations(lambda part: part[None], info["terminal_observation"]))
                alone = tuple(part[i : i + 1] for part in self.state)
                rewards[i] += gamma * self.policy.predict_values(last, alone, torch.zeros(1, dtype=torch.bool))[0]
                self.n_truncated += 1
        return rewards


def replayed(model: Any, recorder: Recorder, n_rollouts: int = 4) -> Replay:
    """Lets a model learn, in two calls, under a replay's eyes."""
    replay = Replay(recorder)
    per_rollout = model.n_steps * model.n_envs
    model.learn(per_rollout, callback=replay)
    model.learn((n_rollouts - 1) * per_rollout, callback=replay, reset_num_timesteps=False)
    assert replay.n_rollouts == n_rollouts
    assert replay.t == n_rollouts * model.n_steps
    return replay


@pytest.mark.parametrize(
    ("memory", "critic_memory", "sequence_length"), pairwise(ALL_MEMORIES, ALL_CRITIC_MEMORIES, [None, 4])
)
def test_every_number_of_a_rollout_is_that_of_a_replay_from_the_true_start(
    memory: str, critic_memory: str, sequence_length: int | None
) -> None:
    recorder = clocks()
    model = small_ppo(recorder, memory, critic_memory, sequence_length=sequence_length, batch_size=24)
    replay = replayed(model, recorder)
    assert replay.n_states == 4 * (1 if sequence_length is None else 2)
    assert replay.n_truncated > 3
    assert 0 < replay.n_carried < replay.n_states * 3  # some sequences go on, some start an episode


@pytest.mark.parametrize("critic_memory", ALL_CRITIC_MEMORIES)
def test_a_time_limit_that_cuts_many_environments_at_once_bootstraps_each_through_its_own_state(
    critic_memory: str,
) -> None:
    recorder = clocks(ends="truncated", lengths=(3,))
    assert replayed(small_ppo(recorder, "lstm", critic_memory), recorder).n_truncated == 3 * (32 // 3)


def test_an_episode_that_ends_in_a_terminal_state_is_not_bootstrapped() -> None:
    recorder = clocks(ends="terminated")
    assert replayed(small_ppo(recorder, "lstm"), recorder).n_truncated == 0
    assert np.any(recorder.dones)


@pytest.mark.parametrize(("actions", "cls"), each(ALL_ACTIONS, ALGORITHMS))
def test_a_replay_agrees_for_every_action_space_and_algorithm(actions: str, cls: Any) -> None:
    recorder = clocks(actions)
    replayed(small_ppo(recorder, "gru", "separate", actions=actions, cls=cls), recorder, n_rollouts=2)


def test_a_replay_agrees_under_a_normalizer_that_moves() -> None:
    recorder = Recorder(VecNormalize(vectorized(lambda i: Clock(i, ACTION_SPACES["box"]), 3)))
    assert replayed(small_ppo(recorder, "lstm", "separate"), recorder).n_truncated > 3


@pytest.mark.parametrize(("memory", "actions"), each(ALL_MEMORIES, ["discrete", "multi discrete"]))
def test_a_replay_agrees_for_dict_observations_with_masked_actions(memory: str, actions: str) -> None:
    recorder = Recorder(vectorized(lambda i: MaskedClock(i, ACTION_SPACES[actions]), 3))
    model = small_ppo(recorder, memory, policy_kwargs=dict(action_mask="mask"))
    assert replayed(model, recorder).n_truncated > 3


class PhotographedClock(Clock):
    """The clock as an image, channels last."""

    def __init__(self, index: int) -> None:
        super().__init__(index, ACTION_SPACES["discrete"])
        self.observation_space = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)

    def _observation(self) -> Any:
        image = np.zeros((36, 36, 1), dtype=np.uint8)
        image[:12], image[12:24], image[24:] = 80 * self.index, 20 * self._episode, 30 * self._step
        return image


def test_a_replay_agrees_for_images() -> None:
    recorder = Recorder(VecTransposeImage(vectorized(PhotographedClock, 2)))
    model = small_ppo(recorder, "lstm", n_steps=4, sequence_length=2, n_epochs=1)
    assert model.rollout_buffer.observations.dtype == torch.uint8
    assert replayed(model, recorder, n_rollouts=3).n_truncated > 0


def test_with_dropout_the_masks_of_a_rollout_are_one_for_all_its_steps_and_new_for_the_next() -> None:
    kwargs = dict(memory_kwargs=dict(hidden_size=16, num_layers=2, dropout=0.5))
    model = small_ppo(clocks(), "lstm", policy_kwargs=kwargs)
    seen: list[Tensor] = []

    def look(model: Any) -> None:
        masks = model.rollout_buffer.states[-1]
        assert torch.equal(masks[0], masks[1])
        assert set(masks.unique().tolist()) == {0.0, 2.0}
        assert not torch.equal(masks[0, 0], masks[0, 1])  # each environment has its own
        seen.append(masks[0].clone())

    model.learn(72, callback=AtRolloutEnd(look))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_another_learn_restarts_episodes_and_memory_unless_it_goes_on() -> None:
    model = small_ppo(clocks(lengths=(100,)))
    first_state: list[State] = []
    look = AtRolloutEnd(lambda model: first_state.append(tuple(p[0].clone() for p in model.rollout_buffer.states)))
    model.learn(24, callback=look)
    model.learn(24, callback=look, reset_num_timesteps=False)
    model.learn(24, callback=look)
    initial = model.policy.initial_state(3)
    assert [states_equal(state, initial) for state in first_state] == [True, False, True]
    assert model.num_timesteps == 24


def state_after(model: Any, recorder: Recorder) -> State:
    """By hand, all steps since the environments' reset, with the weights as they are: they must not have changed."""
    starts, state = recorder.episode_starts(), model.policy.initial_state(recorder.num_envs)
    with torch.no_grad():
        for t in range(len(recorder.actions)):
            *_, state = model.policy(tensors(recorder.observations[t]), state, torch.as_tensor(starts[t]))
    return state


@pytest.mark.parametrize(("stop_at", "memory", "critic_memory"), each([1, 11], ALL_MEMORIES, ALL_CRITIC_MEMORIES))
def test_a_callback_that_ends_training_leaves_memory_and_observation_where_the_environments_are(
    memory: str, critic_memory: str, stop_at: int
) -> None:
    recorder = clocks()
    model = small_ppo(recorder, memory, critic_memory, learning_rate=0.0)
    model.learn(1000, callback=lambda locals_, globals_: model.num_timesteps < 3 * stop_at)
    assert len(recorder.actions) == stop_at
    assert model.num_timesteps == 3 * stop_at
    for _ in range(2):
        assert states_equal(model._last_state, state_after(model, recorder))
        assert same_observations(model._last_obs, recorder.observations[-1])
        assert np.array_equal(model._last_episode_starts, recorder.dones[-1])
        model.learn(24, reset_num_timesteps=False)


@pytest.mark.parametrize(("memory", "critic_memory"), each(ALL_MEMORIES, ALL_CRITIC_MEMORIES))
def test_an_interruption_leaves_the_memory_that_belongs_to_the_last_observation(
    memory: str, critic_memory: str
) -> None:
    recorder = clocks()
    model = small_ppo(recorder, memory, critic_memory, learning_rate=0.0)

    def interrupt(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        if len(recorder.actions) == 12:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, callback=interrupt)
    assert same_observations(model._last_obs, recorder.observations[11])
    recorder.actions.pop()
    assert states_equal(model._last_state, state_after(model, recorder))
    model.learn(24, reset_num_timesteps=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: cloudpickle.loads(cloudpickle.dumps(model))])
def test_a_copy_of_an_agent_learns_what_the_agent_learns(copied: Any) -> None:
    agent = small_ppo(vectorized(lambda i: Clock(i, ACTION_SPACES["discrete"]), 3))
    agent.learn(24)
    other = copied(agent)
    for model in (agent, other):
        model.learn(48, reset_num_timesteps=False)
    assert torch.equal(agent.rollout_buffer.observations, other.rollout_buffer.observations)
    assert equal_weights(agent, other)


class EndsAsNumbers(VecEnvWrapper):
    """Gives the ends of episodes as 0 and 1, as worker processes do if an environment's ``terminated`` is a number."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards, dones.astype(np.int64), infos


def test_ends_of_episodes_may_be_0_and_1() -> None:
    plain, wrapped = small_ppo(clocks()), small_ppo(EndsAsNumbers(clocks()))
    for model in (plain, wrapped):
        model.learn(72)
    assert equal_weights(plain, wrapped)


class Curious(BaseCallback):
    """Looks at the policy in every way there is, at every step."""

    def __init__(self, deterministic: bool = True) -> None:
        super().__init__()
        self._deterministic = deterministic

    def _on_step(self) -> bool:
        policy, observations = self.model.policy, self.locals["new_obs"]
        starts = np.zeros(len(observations), dtype=bool)
        _, state = policy.predict(observations, None, ~starts, deterministic=self._deterministic)
        policy.predict(observations, state, starts, deterministic=self._deterministic)
        with torch.no_grad():
            state = policy.initial_state(len(observations))
            policy.predict_values(torch.as_tensor(observations), state, torch.as_tensor(starts))
            if self._deterministic:
                policy(torch.as_tensor(observations), state, torch.as_tensor(starts), deterministic=True)
            policy.get_distribution(torch.as_tensor(observations), state, torch.as_tensor(starts))
        return True

    _on_rollout_end = _on_rollout_start = lambda self: None


def trained(memory: str, critic_memory: str, actions: str, callback: Any, **kwargs: Any) -> Any:
    model = small_ppo(clocks(actions), memory, critic_memory, actions=actions, **kwargs)
    return model.learn(48, callback=callback)


@pytest.mark.parametrize(
    ("memory", "critic_memory", "actions"),
    each(ALL_MEMORIES, ALL_CRITIC_MEMORIES, ["discrete"])
    + [("lstm", "separate", actions) for actions in ALL_ACTIONS if actions != "discrete"],
)
def test_evaluating_and_looking_leave_training_as_it_was(memory: str, critic_memory: str, actions: str) -> None:
    plain = trained(memory, critic_memory, actions, None)
    evaluation = EvalCallback(
        clocks(actions), n_eval_episodes=2, eval_freq=7, deterministic=True, verbose=0, warn=False
    )
    watched = trained(memory, critic_memory, actions, [Curious(), evaluation])
    assert evaluation.last_mean_reward > 0
    assert equal_weights(plain, watched)


@pytest.mark.parametrize("actions", ["discrete", "multi binary", "box"])
def test_sampling_in_a_callback_leaves_training_as_it_was_where_acting_has_a_source_of_its_own(actions: str) -> None:
    plain = trained("lstm", "separate", actions, None)
    assert equal_weights(plain, trained("lstm", "separate", actions, Curious(deterministic=False)))


def test_evaluating_on_fewer_environments_keeps_the_memorys_shape() -> None:
    model = small_ppo(clocks())
    model.learn(24, callback=EvalCallback(clocks(n_envs=2), eval_freq=4, n_eval_episodes=3, verbose=0, warn=False))
    assert all(len(part) == 3 for part in model._last_state)


class Tiring(VecEnvWrapper):
    """Gives out the same arrays again and again, overwritten as soon as there are actions."""

    def __init__(self, venv: Any) -> None:
        super().__init__(venv)
        self._observations: Any = None

    def reset(self) -> Any:
        self._observations = self.venv.reset().copy()
        self._rewards = np.zeros(self.num_envs, dtype=np.float32)
        self._dones = np.zeros(self.num_envs, dtype=bool)
        return self._observations

    def step_async(self, actions: Any) -> None:
        self._observations[:] = -100.0
        super().step_async(actions)

    def step_wait(self) -> Any:
        observations, self._rewards[:], self._dones[:], infos = self.venv.step_wait()
        self._observations[:] = observations
        return self._observations, self._rewards, self._dones, infos


@pytest.mark.parametrize(
    ("resets", "memory", "critic_memory", "callback"),
    each(["same step", "next step"], ["lstm", "none"], ["shared", "separate"], [None, lambda locals_, globals_: True]),
)
def test_environments_may_reuse_their_arrays(resets: str, memory: str, critic_memory: str, callback: Any) -> None:
    def env() -> Any:
        make = [lambda i=i: Clock(i, ACTION_SPACES["discrete"]) for i in range(3)]
        return DummyVecEnv(make) if resets == "same step" else NextStepReset([one() for one in make])

    fresh, reused = (small_ppo(made, memory, critic_memory) for made in (env(), Tiring(env())))
    for model in (fresh, reused):
        model.learn(72, callback=callback)
    assert equal_weights(fresh, reused)


# Environments that reset on the next step


def next_step_model(**kwargs: Any) -> tuple[Any, NextStepReset]:
    env = NextStepReset([Clock(i, ACTION_SPACES["discrete"], lengths=(3, 5, 2, 4)) for i in range(3)])
    return small_ppo(env, **kwargs), env


class KeepRollouts(AtRolloutEnd):
    """Copies of every rollout's fields."""

    def __init__(self) -> None:
        self.rollouts: list[dict[str, Tensor]] = []
        super().__init__(self._keep)

    def _keep(self, model: Any) -> None:
        names = ("observations", "rewards", "values", "episode_starts", "advantages", "valid")
        self.rollouts.append({name: getattr(model.rollout_buffer, name).clone() for name in names})

    def all(self, name: str) -> Tensor:
        return torch.cat([rollout[name] for rollout in self.rollouts])


@pytest.mark.parametrize("sequence_length", [None, 1, 4])
def test_a_step_in_which_an_environment_only_resets_itself_is_no_transition(sequence_length: int | None) -> None:
    model, env = next_step_model(sequence_length=sequence_length, batch_size=24, learning_rate=0.0)
    keep = KeepRollouts()
    model.learn(96, callback=keep)
    valid = keep.all("valid")
    assert {(t, b) for t, b in valid.nonzero().tolist()} == set(env.transitions)
    starts, observations = keep.all("episode_starts"), keep.all("observations")
    # The observation of a transition is one of its own episode: at an episode's start its step is 0.
    for t, b in valid.nonzero().tolist():
        assert bool(starts[t, b]) == bool(observations[t, b, 2] == 0)


def test_advantages_of_next_step_environments_are_those_of_the_episodes_alone() -> None:
    model, _ = next_step_model(sequence_length=4, learning_rate=0.0)
    keep = KeepRollouts()
    model.learn(24, callback=keep)
    rollout = keep.rollouts[0]
    gamma, decay = model.gamma, model.gamma * model.gae_lambda
    n_checked = 0
    for b in range(3):
        for t in range(7, -1, -1):
            if not rollout["valid"][t, b] or t == 7:
                continue
            delta = rollout["rewards"][t, b] - rollout["values"][t, b]
            advantage = delta
            if not rollout["episode_starts"][t + 1, b]:
                advantage = delta + gamma * rollout["values"][t + 1, b] + decay * rollout["advantages"][t + 1, b]
            assert close(rollout["advantages"][t, b], advantage)
            assert abs(float(advantage)) < 100  # the 1000 of a reset step is nowhere
            n_checked += 1
    assert n_checked > 10


@pytest.mark.parametrize(("memory", "cls"), each(ALL_MEMORIES, ALGORITHMS))
def test_what_a_reset_step_gives_reaches_neither_weights_nor_figures(memory: str, cls: Any) -> None:
    def run(reward: float) -> tuple[Any, dict[str, Any]]:
        class Other(NextStepReset):
            def _one(self, i: int) -> Any:
                observation, given, done, info = super()._one(i)
                return observation, reward if info.get(RESET_STEP) else given, done, info

        env = Other([Clock(i, ACTION_SPACES["discrete"], lengths=(3, 5, 2, 4)) for i in range(3)])
        model = small_ppo(env, memory, "separate", cls=cls).learn(72)
        return model, {name: value for name, value in model.logger.name_to_value.items() if name.startswith("train/")}

    (one, figures), (other, other_figures) = run(1000.0), run(-7.0)
    assert equal_weights(one, other)
    assert figures == other_figures
    assert "train/explained_variance" in figures


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize(("n_steps", "batch_size"), [(8, 1), (1, 3), (2, 1)])
def test_minibatches_of_reset_steps_alone_do_no_harm(cls: Any, n_steps: int, batch_size: int) -> None:
    kwargs = dict(batch_size=batch_size) if cls is RecurrentPPO else {}
    env = NextStepReset([Clock(i, ACTION_SPACES["discrete"], lengths=(1, 2)) for i in range(3)])
    model = small_ppo(env, cls=cls, n_steps=n_steps, sequence_length=1, **kwargs)
    model.learn(3 * 24)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    names = ("train/value_loss", "train/entropy_loss")
    assert all(np.isfinite(model.logger.name_to_value[name]) for name in names if name in model.logger.name_to_value)


# Callbacks


class Counting(BaseCallback):
    """What is called, in order, and what a step shows."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.shown: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        self.calls.append("training start")

    def _on_rollout_start(self) -> None:
        self.calls.append("rollout start")

    def _on_step(self) -> bool:
        self.calls.append("step")
        names = ("new_obs", "rewards", "dones", "infos", "actions", "clipped_actions", "values", "log_probs")
        self.shown.append({name: self.locals[name] for name in names})
        self.shown[-1]["obs_tensor"] = self.locals["obs_tensor"].clone()
        assert self.num_timesteps == self.model.num_timesteps == 3 * self.n_calls
        return True

    def _on_rollout_end(self) -> None:
        self.calls.append("rollout end")
        assert self.locals["rollout_buffer"].full

    def _on_training_end(self) -> None:
        self.calls.append("training end")


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_callbacks_are_called_at_every_step_with_what_the_environments_gave(cls: Any) -> None:
    recorder, counting = clocks("box"), Counting()
    small_ppo(recorder, cls=cls).learn(48, callback=counting)
    rollout = ["rollout start", *["step"] * 8, "rollout end"]
    assert counting.calls == ["training start", *rollout, *rollout, "training end"]
    for t, shown in enumerate(counting.shown):
        assert np.array_equal(shown["new_obs"], recorder.observations[t + 1])
        assert np.array_equal(shown["rewards"], recorder.rewards[t])
        assert np.array_equal(shown["dones"], recorder.dones[t])
        assert shown["infos"] is recorder.infos[t]
        assert np.array_equal(shown["clipped_actions"], recorder.actions[t])
        assert isinstance(shown["actions"], np.ndarray)
        assert shown["obs_tensor"].tolist() == recorder.observations[t].tolist()
        assert (shown["values"].shape, shown["log_probs"].shape) == ((3, 1), (3,))  # as Stable-Baselines3 has them


def test_without_a_callback_at_steps_the_counters_are_those_of_one() -> None:
    class Quiet(CallbackList):
        """A list that overrides nothing: no step of it is called."""

    inner = CallbackList([])
    for callback in (CallbackList([]), Quiet([]), CallbackList([inner])):
        model = small_ppo(clocks()).learn(48, callback=callback)
        assert (callback.n_calls, callback.num_timesteps, model.num_timesteps) == (16, 48, 48)
    assert (inner.n_calls, inner.num_timesteps) == (16, 48)


def test_a_list_of_callbacks_with_code_of_its_own_is_called_at_every_step() -> None:
    class Own(CallbackList):
        n_steps = 0

        def _on_step(self) -> bool:
            self.n_steps += 1
            return super()._on_step()

    own = Own([])
    small_ppo(clocks()).learn(48, callback=own)
    assert own.n_steps == 16


def test_rewards_changed_by_a_callback_are_the_ones_learned_from() -> None:
    def shape(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        locals_["rewards"][:] = 5.0
        return True

    model = small_ppo(clocks(ends="terminated"))
    model.learn(24, callback=shape)
    assert (model.rollout_buffer.rewards == 5).all()


def test_finished_episodes_are_reported_with_their_true_returns() -> None:
    recorder = Recorder(VecNormalize(VecMonitor(vectorized(lambda i: Clock(i, ACTION_SPACES["discrete"]), 3))))
    model = small_ppo(recorder)
    model.learn(48)
    reported = [(info["l"], near(info["r"])) for info in model.ep_info_buffer]
    expected = []
    for infos, dones in zip(recorder.infos, recorder.dones, strict=True):
        expected += [(infos[i]["episode"]["l"], infos[i]["episode"]["r"]) for i in np.flatnonzero(dones)]
    assert expected
    assert reported == expected
    # The first episode of environment 0 has three steps, rewarded 0.0, 0.1 and 0.2.
    assert (3, near(0.3)) in reported


def test_success_is_counted_at_the_end_of_episodes_alone() -> None:
    class Lucky(Clock):
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, _ = super().step(action)
            return observation, reward, terminated, truncated, {"is_success": self._episode % 2 == 0}

    recorder = Recorder(vectorized(lambda i: Lucky(i, ACTION_SPACES["discrete"]), 3))
    model = small_ppo(recorder)
    model.learn(48)
    assert len(model.ep_success_buffer) == np.sum(recorder.dones)
    assert 0 < np.mean(model.ep_success_buffer) < 1


# Environments


def test_setting_environments_restarts_them_and_the_memory() -> None:
    first, second = clocks(lengths=(100,)), clocks(lengths=(100,))
    model = small_ppo(first, learning_rate=0.0)
    model.learn(24)
    model.set_env(second)
    model.learn(24, reset_num_timesteps=False)
    assert len(second.actions) == 8
    assert states_equal(model._last_state, state_after(model, second))


def test_another_number_of_environments_is_refused_with_what_to_do() -> None:
    model = small_ppo(clocks())
    with pytest.raises(AssertionError, match=r"you must use `RecurrentPPO\.load"):
        model.set_env(clocks(n_envs=2))


def test_progress_runs_from_one_to_zero_and_not_below() -> None:
    seen: list[float] = []

    def rate(progress: float) -> float:
        seen.append(progress)
        return 1e-3 * progress**0.5

    small_ppo(clocks(), learning_rate=rate).learn(60)  # three rollouts of 24 steps: 72
    assert seen[0] == 1.0
    assert min(seen) == 0.0
    assert seen == sorted(seen, reverse=True)


def test_a_callback_that_needs_no_steps_is_called_at_none_and_counts_them_all_the_same() -> None:
    class OncePerRollout(AtRolloutEnd):
        needs_steps = False
        steps = rollouts = 0

        def _on_step(self) -> bool:
            self.steps += 1
            return True

        def _on_rollout_end(self) -> None:
            self.rollouts += 1

    callback = OncePerRollout(lambda model: None)
    model = small_ppo(clocks())
    model.learn(2 * model.n_steps * model.n_envs, callback)
    assert (callback.steps, callback.rollouts) == (0, 2)
    assert (callback.n_calls, callback.num_timesteps) == (2 * model.n_steps, model.num_timesteps)
