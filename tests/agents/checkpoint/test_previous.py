"""An agent that learned with its last action and reward among its inputs sees them wherever it acts."""

import io
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import envs
from agents import RecurrentPPO
from agents.analysis.evaluation import evaluate
from agents.analysis.recording import record
from agents.checkpoint import CheckpointError, normalizer, previous_inputs
from agents.checkpoint.container import read_archive, write_archive
from agents.deploy.player import Player
from tests.agents.checkpoint.test_checkpoint import Pictures
from tests.agents.probe_envs import ACTION_SPACES, Clock
from tests.saved_files import saved

SEEN = [("previous_action_reward", {"start": True})]


class Parts(Clock):
    """A clock as a Dict."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.observation_space = spaces.Dict(clock=self.observation_space)

    def _observation(self) -> Any:
        return {"clock": super()._observation()}


TASKS: dict[str, Any] = {
    "vector": "CartPoleNoVel-v1",
    "choice": "RepeatPrevious-v0",
    "dict": lambda: Parts(1, ACTION_SPACES["multi discrete"]),
    "box of actions": lambda: Clock(1, ACTION_SPACES["box of two axes"]),
    "picture": lambda: Pictures(plain=True),
}


def raw(task: str, n_envs: int = 2, seed: int = 3) -> VecEnv:
    return envs.make(TASKS[task], n_envs, seed=seed)


def seeing(task: str, n_envs: int = 2) -> VecEnv:
    return envs.make(TASKS[task], n_envs, seed=3, wrappers=SEEN)


def trained(task: str, *, normalized: bool = True) -> Any:
    venv = seeing(task)
    keys = ["previous_action", "previous_reward"] if isinstance(venv.observation_space, spaces.Dict) else None
    kwargs: Any = dict(memory_kwargs={"hidden_size": 8}, net_arch=[], critic_memory="shared")
    return RecurrentPPO(
        "RecurrentPolicy",
        VecNormalize(venv, norm_obs_keys=keys) if normalized else venv,
        n_steps=16,
        batch_size=32,
        n_epochs=1,
        seed=0,
        policy_kwargs=kwargs,
    ).learn(64)


def acted(act: Any, venv: VecEnv, n: int = 20) -> Any:
    """The actions (n, B, ...) of ``act(observations, rewards, dones)``."""
    observations, rewards, dones, taken = venv.reset(), None, np.ones(venv.num_envs, dtype=bool), []
    for _ in range(n):
        taken.append(act(observations, rewards, dones))
        observations, rewards, dones, _ = venv.step(taken[-1])
    return np.array(taken)


def predicted(model: Any, task: str) -> Any:
    """Its actions in an environment that shows the inputs, with normalizer and state handed on."""
    state, normalizing = None, model.get_vec_normalize_env()

    def act(observations: Any, rewards: Any, dones: Any) -> Any:
        nonlocal state
        seen = observations if normalizing is None else normalizing.normalize_obs(observations)
        actions, state = model.predict(seen, state, dones, deterministic=True)
        return actions

    return acted(act, seeing(task))


def played(model: Any, venv: VecEnv, rewarded: bool) -> Any:
    player = Player.load(saved(model))

    def act(observations: Any, rewards: Any, dones: Any) -> Any:
        player.reset(dones)
        return player.act(observations, rewards) if rewarded else player.act(observations)

    return acted(act, venv)


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(task: str) -> Any:
    return trained(task)


def test_a_raw_environment_shows_them_to_a_loaded_agent(model: Any, task: str) -> None:
    file = saved(model).getvalue()  # one file: it holds the random states of its moment
    again = RecurrentPPO.load(io.BytesIO(file), env=raw(task), device="cpu")
    assert again.observation_space == model.observation_space
    again.learn(32)
    wrapped = RecurrentPPO.load(io.BytesIO(file), env=seeing(task), device="cpu").learn(32)
    for one, other in zip(again.policy.parameters(), wrapped.policy.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach(), other.detach())
    assert previous_inputs(again) == previous_inputs(saved(model)) == previous_inputs(model)


def test_without_a_normalizer_too() -> None:
    model = trained("vector", normalized=False)
    again = RecurrentPPO.load(saved(model), env=gymnasium.make("CartPoleNoVel-v1"), device="cpu").learn(16)
    assert again.get_vec_normalize_env() is None
    assert again.observation_space == model.observation_space
    assert previous_inputs(again) == previous_inputs(model)
    assert previous_inputs(saved(RecurrentPPO.load(saved(model), device="cpu"))) == previous_inputs(model)


def test_a_player_is_given_rewards_and_knows_its_actions(model: Any, task: str) -> None:
    assert Player.load(saved(model)).observation_space == raw(task).observation_space
    expected = predicted(model, task)
    np.testing.assert_array_equal(played(model, raw(task), rewarded=True), expected)
    np.testing.assert_array_equal(played(model, seeing(task), rewarded=False), expected)


def test_one_agent_acts_as_a_batch_of_one(model: Any, task: str) -> None:
    one, batch = Player.load(saved(model)), Player.load(saved(model))
    venv = raw(task, n_envs=1)
    observations: Any = venv.reset()
    rewards = np.zeros(1, np.float32)
    for _ in range(8):
        first = {key: part[0] for key, part in observations.items()} if task == "dict" else observations[0]
        alone = one.act(first, float(rewards[0]))
        actions = batch.act(observations, rewards)
        np.testing.assert_array_equal(alone, actions[0])
        observations, rewards, dones, _ = venv.step(actions)
        one.reset(bool(dones[0]))
        batch.reset(dones)


def test_a_player_asks_for_rewards() -> None:
    player, observation = Player.load(saved(trained("vector"))), np.zeros(4, np.float32)
    player.act(observation)
    for reward in (None, [1.0, 2.0], np.nan):
        with pytest.raises(ValueError, match=r"expected act\(observation, reward\) with a number for one agent"):
            player.act(observation, reward)
    player.act(observation, 1.0)
    player.reset()
    player.act(np.zeros((3, 4), np.float32))
    with pytest.raises(ValueError, match=r"for a batch of 3, got reward=1.0"):
        player.act(np.zeros((3, 4), np.float32), 1.0)


def test_evaluations_of_raw_environments_are_those_of_environments_that_show_them(model: Any, task: str) -> None:
    player = Player.load(saved(model))
    shown = evaluate(player, seeing(task), 4, seed=1)
    assert evaluate(player, raw(task), 4, seed=1) == shown
    assert evaluate(model, raw(task), 4, seed=1) == shown
    assert record(player, raw(task), seed=1).rewards.sum() == record(player, seeing(task), seed=1).rewards.sum()


def test_evaluate_policy_of_stable_baselines_sees_them(model: Any, task: str) -> None:
    again = RecurrentPPO.load(saved(model), env=raw(task), device="cpu")
    kwargs: Any = dict(n_eval_episodes=4, return_episode_rewards=True, warn=False)
    expected = evaluate_policy(model, normalizer(model, seeing(task)), **kwargs)
    env: Any = again.get_env()
    env.seed(3)
    assert evaluate_policy(again, env, **kwargs) == expected
    assert evaluate_policy(again, normalizer(again, raw(task)), **kwargs) == expected
    with pytest.raises(ValueError, match=r"sees its last action and reward.*get_env\(\)"):
        evaluate_policy(again, raw(task), **kwargs)


def test_a_callback_evaluates_on_raw_environments() -> None:
    for normalized in (True, False):
        again = RecurrentPPO.load(saved(trained("vector", normalized=normalized)), env=raw("vector"), device="cpu")
        callback = EvalCallback(raw("vector"), n_eval_episodes=2, eval_freq=16, verbose=0, warn=False)
        again.learn(32, callback=callback)
        assert callback.last_mean_reward > 0


def test_wrappers_of_another_kind_around_them_are_the_users() -> None:
    """The inputs are put where they were, around the environment; with a wrapper of another kind above they are not."""
    venv = envs.make("CartPoleNoVel-v1", 2, wrappers=[*SEEN, ("history", {"length": 2})])
    model = RecurrentPPO("RecurrentPolicy", venv, n_steps=8, batch_size=16, n_epochs=1).learn(16)
    assert previous_inputs(model) is previous_inputs(saved(model)) is None
    with pytest.raises(CheckpointError, match="Observation spaces do not match"):
        RecurrentPPO.load(saved(model), env=raw("vector"))


def rewritten(model: Any, edit: Any) -> io.BytesIO:
    agent, tensors = read_archive(saved(model))
    edit(agent)
    file = io.BytesIO()
    write_archive(file, agent, tensors)
    return file


@pytest.mark.parametrize(
    "forged",
    [
        3,
        {},
        {"start": 1},
        {"observation_space": 3},
        {"observation_space": {"$space": {"kind": "Discrete", "n": 10**5, "start": 0, "dtype": "<i8"}}},
    ],
)
def test_forged_inputs_are_refused(forged: Any) -> None:
    def forge(agent: Any) -> None:
        stored = agent["previous_action_reward"]
        agent["previous_action_reward"] = {**stored, **forged} if forged and isinstance(forged, dict) else forged

    file = rewritten(trained("vector"), forge)
    for load in (Player.load, lambda file: RecurrentPPO.load(file, device="cpu")):
        with pytest.raises(CheckpointError, match="previous actions and rewards cannot be understood"):
            load(file)


def test_files_without_the_section_load() -> None:
    file = rewritten(trained("vector"), lambda agent: agent.pop("previous_action_reward"))
    assert Player.load(file).observation_space.shape == (8,)
