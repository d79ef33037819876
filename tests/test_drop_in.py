"""A script written for ``sb3_contrib.RecurrentPPO`` runs with only the import changed.

Each script is written once, as a function of the class, and is run with theirs and with ours: a script that theirs
does not run proves nothing. The last part copies weights from theirs to ours and compares numbers.
"""

import csv
import inspect
import io
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize
from torch import nn

import agents
from tests.agents.probe_envs import AtRolloutEnd
from tests.agents.rollout.test_buffer import add
from tests.tolerance import assert_close, near

THEIRS, OURS = sb3_contrib.RecurrentPPO, agents.RecurrentPPO
LSTM_POLICIES = ("MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy")
SMALL: dict[str, Any] = dict(lstm_hidden_size=8, net_arch=[8])
QUICK: dict[str, Any] = dict(n_steps=16, batch_size=16, n_epochs=2, seed=0, device="cpu")


@pytest.fixture(params=[THEIRS, OURS], ids=["sb3_contrib", "recurl"])
def algorithm(request: pytest.FixtureRequest) -> Any:
    return request.param


class Countdown(gym.Env[Any, Any]):
    """Any observation and action space; an episode ends after ``length`` steps, every other one by truncation.

    Observations are samples of the space; a plain Box starts with the number of steps taken. Each step gives 1.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        length: int = 5,
    ) -> None:
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.length, self.taken, self.episodes = length, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.taken, self.episodes = 0, self.episodes + 1
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.taken += 1
        over, by_truncation = self.taken == self.length, self.episodes % 2 == 0
        return self._observation(), 1.0, over and not by_truncation, over and by_truncation, {}

    def _observation(self) -> Any:
        observation = self.observation_space.sample()
        if isinstance(self.observation_space, spaces.Box) and len(self.observation_space.shape) == 1:
            observation[0] = self.taken
        return observation


IMAGES = spaces.Box(0, 255, (3, 36, 36), np.uint8)
DICT = spaces.Dict({"image": IMAGES, "vector": spaces.Box(-1, 1, (4,), np.float32), "kind": spaces.Discrete(3)})
OBSERVATIONS = {
    "vector": ("MlpLstmPolicy", spaces.Box(-1, 1, (3,), np.float32)),
    "matrix": ("MlpLstmPolicy", spaces.Box(-1, 1, (2, 3), np.float64)),
    "one of n": ("MlpLstmPolicy", spaces.Discrete(4)),
    "several of n": ("MlpLstmPolicy", spaces.MultiDiscrete([2, 3])),
    "bits": ("MlpLstmPolicy", spaces.MultiBinary(3)),
    "image": ("CnnLstmPolicy", IMAGES),
    "image, channels last": ("CnnLstmPolicy", spaces.Box(0, 255, (36, 36, 1), np.uint8)),
    "dict": ("MultiInputLstmPolicy", DICT),
}
ACTIONS = {
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(-1, 1, (2,), np.float32),
    "Box, unequal bounds": spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32)),
    "Box, two axes": spaces.Box(-1, 1, (2, 3), np.float32),
}


# What contrib 2.9.2 promises and breaks on with torch 2.13; ours is held to the promise.
THEY_BREAK_ON = {
    "several of n": "a MultiDiscrete observation's width is a NumPy integer, which nn.LSTM refuses",
    "MultiBinary": "the buffer keeps bits as int8, which the Bernoulli loss cannot be written into",
}


def skip_what_they_break_on(algorithm: Any, kind: str) -> None:
    if algorithm is THEIRS and kind in THEY_BREAK_ON:
        pytest.skip(THEY_BREAK_ON[kind])


def countdowns(n_envs: int = 2, **kwargs: Any) -> VecEnv:
    return DummyVecEnv([lambda: Monitor(Countdown(**kwargs))] * n_envs)


def play(model: Any, env: VecEnv, n_steps: int = 12) -> NDArray[Any]:
    """The loop of contrib's documentation: the state and the episode starts are threaded by hand."""
    observation = env.reset()
    lstm_states, episode_starts = None, np.ones((env.num_envs,), dtype=bool)
    taken = []
    for _ in range(n_steps):
        action, lstm_states = model.predict(
            observation, state=lstm_states, episode_start=episode_starts, deterministic=True
        )
        observation, _, dones, _ = env.step(action)
        episode_starts = dones
        taken.append(action)
    return np.stack(taken)


# Running scripts


def test_the_documented_example_trains_evaluates_saves_loads_and_plays(algorithm: Any, tmp_path: pathlib.Path) -> None:
    model = algorithm("MlpLstmPolicy", "CartPole-v1", verbose=0, n_steps=64, policy_kwargs=SMALL, n_epochs=1)
    assert model.learn(64) is model
    env = model.get_env()
    mean_reward, std_reward = evaluate_policy(model, env, n_eval_episodes=3, warn=False)
    assert np.greater(mean_reward, 0)
    assert np.greater_equal(std_reward, 0)

    model.save(tmp_path / "ppo_recurrent")
    assert (tmp_path / "ppo_recurrent.zip").exists()
    del model
    model = algorithm.load(tmp_path / "ppo_recurrent")
    assert play(model, env).shape == (12, 1)


def test_positional_arguments_mean_the_same(algorithm: Any) -> None:
    model = algorithm("MlpLstmPolicy", countdowns(), 1e-3, 16, 8, 2, 0.9, 0.8, 0.1, 0.3, False, 0.01, 0.4, 0.6)
    assert (model.learning_rate, model.n_steps, model.batch_size, model.n_epochs) == (1e-3, 16, 8, 2)
    assert (model.gamma, model.gae_lambda, model.clip_range(1.0), model.clip_range_vf(1.0)) == (0.9, 0.8, 0.1, 0.3)
    assert (model.normalize_advantage, model.ent_coef, model.vf_coef, model.max_grad_norm) == (False, 0.01, 0.4, 0.6)


@pytest.mark.parametrize("env", ["CartPole-v1", gym.make("CartPole-v1"), Countdown()], ids=["id", "registered", "own"])
def test_an_environment_is_an_id_an_instance_or_a_vector_environment(algorithm: Any, env: Any) -> None:
    model = algorithm("MlpLstmPolicy", env, policy_kwargs=SMALL, **QUICK).learn(16)
    assert model.n_envs == 1
    assert isinstance(model.get_env(), VecEnv)


def test_make_vec_env_and_its_wrappers_fit(algorithm: Any) -> None:
    env = VecFrameStack(VecMonitor(make_vec_env("CartPole-v1", n_envs=2, seed=1)), n_stack=3)
    model = algorithm("MlpLstmPolicy", env, policy_kwargs=SMALL, **QUICK).learn(64)
    assert model.observation_space.shape == (12,)
    assert model.num_timesteps == 64


def test_a_policy_is_a_name_or_its_class(algorithm: Any) -> None:
    policy = algorithm.policy_aliases["MlpLstmPolicy"]
    model = algorithm(policy, countdowns(), policy_kwargs=SMALL, **QUICK).learn(32)
    assert type(model.policy) is policy


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_every_kind_of_observation_is_learned_from(algorithm: Any, kind: str) -> None:
    skip_what_they_break_on(algorithm, kind)
    policy, space = OBSERVATIONS[kind]
    model = algorithm(policy, countdowns(observation_space=space), policy_kwargs=SMALL, **QUICK).learn(32)
    assert play(model, model.get_env()).shape == (12, 2)
    single = model.get_env().reset()
    single = {key: part[0] for key, part in single.items()} if isinstance(single, dict) else single[0]
    action, _ = model.predict(single, deterministic=True)
    assert np.shape(action) == ()


@pytest.mark.parametrize("kind", ACTIONS)
def test_every_kind_of_action_is_learned(algorithm: Any, kind: str) -> None:
    skip_what_they_break_on(algorithm, kind)
    space = ACTIONS[kind]
    model = algorithm("MlpLstmPolicy", countdowns(action_space=space), policy_kwargs=SMALL, **QUICK).learn(64)
    assert play(model, model.get_env()).shape == (12, 2, *(space.shape or ()))


@pytest.mark.parametrize(
    ("policy", "space"),
    [("CnnLstmPolicy", IMAGES), ("MultiInputLstmPolicy", DICT)],
    ids=["images", "dict"],
)
def test_a_wider_observation_takes_the_whole_script(
    algorithm: Any, policy: str, space: spaces.Space[Any], tmp_path: pathlib.Path
) -> None:
    env = countdowns(observation_space=space)
    model = algorithm(policy, env, policy_kwargs=SMALL, **QUICK)
    model.learn(64, callback=EvalCallback(countdowns(1, observation_space=space), eval_freq=16, verbose=0))
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env)
    evaluate_policy(loaded, env, n_eval_episodes=2)
    loaded.learn(32)


def test_state_dependent_exploration_trains(algorithm: Any) -> None:
    env = countdowns(action_space=spaces.Box(-1, 1, (2,), np.float32))
    policy_kwargs = dict(log_std_init=-2, ortho_init=False, **SMALL)
    model = algorithm("MlpLstmPolicy", env, use_sde=True, sde_sample_freq=4, policy_kwargs=policy_kwargs, **QUICK)
    assert model.learn(64).logger.name_to_value["train/std"] == pytest.approx(np.exp(-2), rel=0.1)


def test_early_stopping_value_clipping_and_schedules_are_followed(algorithm: Any) -> None:
    model = algorithm(
        "MlpLstmPolicy",
        countdowns(),
        learning_rate=lambda progress: 1e-2 * progress,
        clip_range=lambda progress: 0.2 * progress,
        clip_range_vf=lambda progress: 0.5 * progress,
        target_kl=1e-9,
        policy_kwargs=SMALL,
        **(QUICK | dict(n_epochs=10)),
    ).learn(64)
    written = model.logger.name_to_value
    assert model._n_updates < 20
    assert written["train/learning_rate"] == 0.0
    assert written["train/clip_range"] == 0.0
    model.learn(64, reset_num_timesteps=False)
    assert model.logger.name_to_value["train/clip_range_vf"] == 0.0


def test_settings_that_do_not_divide_are_taken(algorithm: Any) -> None:
    # Contrib's weights turn NaN where the last minibatch is a single step, so its remainder here is 3 of 5.
    odd = dict(n_steps=6, n_epochs=2, seed=0, policy_kwargs=SMALL)
    for batch_size in (5, None, 4096):
        model = algorithm("MlpLstmPolicy", countdowns(3), batch_size=batch_size, **odd).learn(36)
        assert all(bool(value.isfinite().all()) for value in model.policy.parameters())


# Callbacks, loggers, normalization


def test_evaluation_keeps_the_best_model_and_stops_at_a_reward(algorithm: Any, tmp_path: pathlib.Path) -> None:
    stop = StopTrainingOnRewardThreshold(reward_threshold=4.5, verbose=0)
    evaluation = EvalCallback(
        countdowns(1),
        callback_on_new_best=stop,
        eval_freq=8,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "log"),
        verbose=0,
    )
    model = algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=SMALL, **QUICK)
    model.learn(1000, callback=evaluation)
    assert model.num_timesteps == 16
    with np.load(tmp_path / "log" / "evaluations.npz") as written:
        assert written["timesteps"].tolist() == [16]
        assert written["results"].tolist() == [[5.0, 5.0]]
    best = algorithm.load(tmp_path / "best" / "best_model")
    assert evaluate_policy(best, countdowns(1), n_eval_episodes=2) == (5.0, 0.0)


def test_checkpoints_carry_on_where_they_were_written(algorithm: Any, tmp_path: pathlib.Path) -> None:
    env = VecNormalize(countdowns())
    checkpoints = CheckpointCallback(save_freq=8, save_path=str(tmp_path), name_prefix="ppo", save_vecnormalize=True)
    algorithm("MlpLstmPolicy", env, policy_kwargs=SMALL, **QUICK).learn(32, callback=checkpoints)
    assert {path.name for path in tmp_path.glob("*.zip")} == {"ppo_16_steps.zip", "ppo_32_steps.zip"}
    normalized = VecNormalize.load(str(tmp_path / "ppo_vecnormalize_16_steps.pkl"), countdowns())
    model = algorithm.load(tmp_path / "ppo_16_steps", env=normalized)
    assert model.num_timesteps == 16
    model.learn(32, reset_num_timesteps=False)
    assert model.num_timesteps == 48


def test_a_normalized_environment_is_trained_saved_and_evaluated(algorithm: Any, tmp_path: pathlib.Path) -> None:
    env = VecNormalize(countdowns(), norm_obs=True, norm_reward=True, gamma=0.9)
    model = algorithm("MlpLstmPolicy", env, gamma=0.9, policy_kwargs=SMALL, **QUICK).learn(64)
    assert model.get_vec_normalize_env() is env
    assert env.obs_rms.count > 64
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "normalizer.pkl"))

    evaluation = VecNormalize.load(str(tmp_path / "normalizer.pkl"), countdowns())
    evaluation.training, evaluation.norm_reward = False, False
    loaded = algorithm.load(tmp_path / "model", env=evaluation)
    assert evaluate_policy(loaded, evaluation, n_eval_episodes=2) == (5.0, 0.0)


class Notes(BaseCallback):
    """Reads what callbacks read: the rollout's locals, the model, the logger, the training environments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.episodes: list[float] = []

    def _on_training_start(self) -> None:
        self.calls.append(f"training of {self.training_env.num_envs}")
        assert self.locals["total_timesteps"] == 64

    def _on_rollout_start(self) -> None:
        self.calls.append("rollout")

    def _on_step(self) -> bool:
        n_envs = self.training_env.num_envs
        assert self.locals["rewards"].shape == self.locals["dones"].shape == (n_envs,)
        assert len(self.locals["infos"]) == len(self.locals["new_obs"]) == len(self.locals["actions"]) == n_envs
        self.episodes += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        self.calls.append("end")

    def _on_training_end(self) -> None:
        self.calls.append(f"trained {self.model.num_timesteps}")


def test_callbacks_see_every_step_and_every_stage(algorithm: Any) -> None:
    notes = Notes()
    every = EveryNTimesteps(n_steps=32, callback=CallbackList([]))
    model = algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=SMALL, **QUICK)
    model.learn(64, callback=[notes, every])
    assert notes.n_calls == 32
    assert notes.calls == ["training of 2", "rollout", "end", "rollout", "end", "trained 64"]
    assert notes.episodes == [5.0] * 12
    assert [episode["r"] for episode in model.ep_info_buffer] == [5.0] * 12


def test_a_callback_ends_training(algorithm: Any) -> None:
    model = algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=SMALL, **QUICK)
    assert model.learn(1000, callback=lambda local, world: local["n_steps"] < 3).num_timesteps == 8
    model = algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=SMALL, **QUICK)
    assert model.learn(1000, callback=StopTrainingOnMaxEpisodes(2)).num_timesteps == 20


def test_metrics_have_the_same_names(tmp_path: pathlib.Path) -> None:
    names = {}
    for algorithm in (THEIRS, OURS):
        folder = tmp_path / algorithm.__module__
        env = countdowns(action_space=ACTIONS["Box"])
        model = algorithm("MlpLstmPolicy", env, clip_range_vf=0.2, policy_kwargs=SMALL, **QUICK)
        model.set_logger(configure(str(folder), ["csv"]))
        model.learn(96)
        with open(folder / "progress.csv") as file:
            rows = list(csv.DictReader(file))
        names[algorithm] = set(rows[-1])
        assert float(rows[-1]["rollout/ep_rew_mean"]) == 5.0
        assert float(rows[-1]["rollout/ep_len_mean"]) == 5.0
        assert float(rows[-1]["time/total_timesteps"]) == 96
    assert names[OURS] >= names[THEIRS]


def test_tensorboard_and_the_progress_bar_work_as_installed(algorithm: Any, tmp_path: pathlib.Path) -> None:
    model = algorithm("MlpLstmPolicy", countdowns(), tensorboard_log=str(tmp_path), policy_kwargs=SMALL, **QUICK)
    model.learn(32, progress_bar=True, log_interval=1)
    declared = pathlib.Path(__file__).parents[1].joinpath("pyproject.toml").read_text()
    assert '"tqdm>=' in declared
    assert '"rich>=' in declared
    model.learn(32, tb_log_name="named", reset_num_timesteps=True)
    assert list((tmp_path / "RecurrentPPO_1").glob("events.out.tfevents.*"))
    assert list((tmp_path / "named_1").glob("events.out.tfevents.*"))


# Life of a model


def test_learning_goes_on_without_resetting_the_count(algorithm: Any) -> None:
    model = algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=SMALL, **QUICK)
    assert model.learn(32).num_timesteps == 32
    assert model.learn(32, reset_num_timesteps=False).num_timesteps == 64
    assert model.learn(32).num_timesteps == 32


def test_the_environment_is_exchanged(algorithm: Any, tmp_path: pathlib.Path) -> None:
    model = algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=SMALL, **QUICK).learn(32)
    model.set_env(countdowns(length=3))
    model.learn(32, reset_num_timesteps=False)
    assert model.ep_info_buffer[-1]["l"] == 3
    model.set_env(countdowns(length=4), force_reset=False)
    with pytest.raises(ValueError, match=r"[Oo]bservation space"):
        model.set_env(countdowns(observation_space=OBSERVATIONS["image"][1]))
    model.save(tmp_path / "model")
    assert algorithm.load(tmp_path / "model", env=countdowns(5)).learn(80).n_envs == 5


def test_parameters_are_taken_out_and_put_back(algorithm: Any, tmp_path: pathlib.Path) -> None:
    model = algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=SMALL, **QUICK).learn(32)
    parameters = model.get_parameters()
    assert parameters.keys() == {"policy", "policy.optimizer"}
    other = algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=SMALL, **(QUICK | dict(seed=1)))
    other.set_parameters(parameters)
    for name, value in other.policy.state_dict().items():
        assert torch.equal(value, parameters["policy"][name])
    other.set_parameters({"policy": {"value_net.bias": torch.tensor([5.0])}}, exact_match=False)
    assert other.policy.value_net.bias.item() == 5.0
    model.save(tmp_path / "model")
    other.set_parameters(tmp_path / "model")
    assert other.policy.value_net.bias.item() == model.policy.value_net.bias.item()


def test_a_loaded_model_acts_the_same_and_goes_on(algorithm: Any, tmp_path: pathlib.Path) -> None:
    env = countdowns(2)
    model = algorithm("MlpLstmPolicy", env, policy_kwargs=SMALL, **QUICK).learn(64)
    model.save(str(tmp_path / "by_string.zip"))
    memory_file = io.BytesIO()
    model.save(memory_file)
    memory_file.seek(0)
    from_file = algorithm.load(str(tmp_path / "by_string"), env=env, device="cpu")
    from_memory = algorithm.load(memory_file, custom_objects={"learning_rate": 1e-4, "n_epochs": 1})
    assert (from_file.num_timesteps, from_file.n_steps, from_file.seed) == (64, 16, 0)
    assert (from_memory.learning_rate, from_memory.n_epochs) == (1e-4, 1)
    observations = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    for other in (from_file, from_memory):
        mine, yours = None, None
        for observation in observations:
            action, mine = model.predict(observation, mine, deterministic=True)
            same, yours = other.predict(observation, yours, deterministic=True)
            np.testing.assert_array_equal(action, same)
            for part, like in zip(mine, yours, strict=True):
                np.testing.assert_array_equal(part, like)
    assert from_file.learn(32, reset_num_timesteps=False).num_timesteps == 96


def test_predict_threads_the_state_as_the_documentation_says(algorithm: Any) -> None:
    policy_kwargs = dict(lstm_hidden_size=6, n_lstm_layers=2)
    model = algorithm("MlpLstmPolicy", countdowns(3), policy_kwargs=policy_kwargs, **QUICK)
    observation = np.arange(9, dtype=np.float32).reshape(3, 3) / 9
    actions, state = model.predict(observation, deterministic=True)
    assert actions.shape == (3,)
    assert [part.shape for part in state] == [(2, 3, 6), (2, 3, 6)]
    # A script may build the state itself, or reset one environment's part of it.
    zeros = (np.zeros((2, 3, 6), np.float32), np.zeros((2, 3, 6), np.float32))
    assert_close(model.predict(observation, zeros)[1][0], state[0])
    _, later = model.predict(observation, state, episode_start=np.array([True, False, False]), deterministic=True)
    assert_close(later[0][:, 0], state[0][:, 0])
    assert not np.allclose(later[0][:, 1], state[0][:, 1], atol=1e-6)
    single, single_state = model.predict(observation[0])
    assert isinstance(single, np.ndarray)
    assert single.shape == ()
    assert single_state[0].shape == (2, 1, 6)


# Networks


class Doubled(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box, features_dim: int = 5, scale: float = 2.0) -> None:
        super().__init__(observation_space, features_dim)
        self.scale, self.linear = scale, nn.Linear(int(np.prod(observation_space.shape)), features_dim)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.linear(observations) * self.scale
        return features


@pytest.mark.parametrize("share", [True, False], ids=["shared", "one each"])
def test_a_features_extractor_of_ones_own_is_used(algorithm: Any, share: bool, tmp_path: pathlib.Path) -> None:
    policy_kwargs = dict(
        features_extractor_class=Doubled,
        features_extractor_kwargs=dict(features_dim=7, scale=3.0),
        share_features_extractor=share,
        activation_fn=nn.ReLU,
        optimizer_class=torch.optim.AdamW,
        optimizer_kwargs=dict(weight_decay=0.01),
        **SMALL,
    )
    model = algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=policy_kwargs, **QUICK).learn(32)
    assert isinstance(model.policy.features_extractor, Doubled)
    assert (model.policy.features_dim, model.policy.features_extractor.scale) == (7, 3.0)
    assert model.policy.optimizer.defaults["weight_decay"] == 0.01
    assert (model.policy.pi_features_extractor is model.policy.vf_features_extractor) is share


@pytest.mark.parametrize(
    ("net_arch", "actor", "critic"),
    [
        ([16, 8], [16, 8], [16, 8]),
        (dict(pi=[16], vf=[4, 4]), [16], [4, 4]),
        (dict(pi=[], vf=[4]), [], [4]),
        ([], [], []),
        (None, [64, 64], [64, 64]),
    ],
    ids=str,
)
def test_net_arch_means_the_same(algorithm: Any, net_arch: Any, actor: list[int], critic: list[int]) -> None:
    policy_kwargs = dict(lstm_hidden_size=12, net_arch=net_arch)
    model = algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=policy_kwargs, **QUICK).learn(32)

    def widths(network: nn.Sequential) -> list[int]:
        return [layer.out_features for layer in network if isinstance(layer, nn.Linear)]

    assert widths(model.policy.mlp_extractor.policy_net) == actor
    assert widths(model.policy.mlp_extractor.value_net) == critic


CRITICS: dict[str, dict[str, Any]] = {
    "separate": {},
    "shared": dict(shared_lstm=True, enable_critic_lstm=False),
    "feed-forward": dict(shared_lstm=False, enable_critic_lstm=False),
}


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("n_lstm_layers", [1, 2])
def test_critics_are_chosen_by_the_same_names(algorithm: Any, critic: str, n_lstm_layers: int) -> None:
    policy_kwargs = dict(n_lstm_layers=n_lstm_layers, lstm_kwargs=dict(dropout=0.1) if n_lstm_layers > 1 else None)
    model = algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=policy_kwargs | CRITICS[critic] | SMALL, **QUICK)
    model.learn(32)


def test_a_critic_both_shared_and_separate_is_refused(algorithm: Any) -> None:
    with pytest.raises((AssertionError, ValueError)):
        algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=dict(shared_lstm=True), **QUICK)
    kwargs = dict(shared_lstm=True, enable_critic_lstm=False, share_features_extractor=False)
    with pytest.raises((AssertionError, ValueError)):
        algorithm("MlpLstmPolicy", countdowns(), policy_kwargs=kwargs, **QUICK)


# Signatures


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def test_every_constructor_argument_is_there_in_order_with_its_default() -> None:
    theirs, ours = defaults_of(THEIRS.__init__), defaults_of(OURS.__init__)
    assert list(ours)[: len(theirs)] == list(theirs)
    assert {name: ours[name] for name in theirs} == theirs
    added = list(inspect.signature(OURS.__init__).parameters.values())[len(theirs) :]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in added)


@pytest.mark.parametrize("name", LSTM_POLICIES)
def test_every_argument_of_a_policy_is_there_in_order_with_its_default(name: str) -> None:
    theirs = defaults_of(THEIRS.policy_aliases[name].__init__)
    ours = defaults_of(OURS.policy_aliases[name].__init__)
    assert list(ours)[: len(theirs)] == list(theirs)
    # None stands for the very class that contrib names, which the next test shows.
    theirs["features_extractor_class"] = None
    assert {argument: ours[argument] for argument in theirs} == theirs


@pytest.mark.parametrize("name", LSTM_POLICIES)
def test_networks_and_optimizer_are_the_same_by_default(name: str) -> None:
    space = {"MlpLstmPolicy": OBSERVATIONS["vector"][1], "CnnLstmPolicy": IMAGES, "MultiInputLstmPolicy": DICT}[name]
    theirs, ours = (algorithm(name, countdowns(observation_space=space), device="cpu") for algorithm in (THEIRS, OURS))
    assert type(ours.policy.features_extractor) is type(theirs.policy.features_extractor)
    assert shapes_of(ours.policy) == {as_ours(key): shape for key, shape in shapes_of(theirs.policy).items()}
    assert type(ours.policy.optimizer) is type(theirs.policy.optimizer)
    for setting in ("lr", "betas", "eps", "weight_decay", "amsgrad"):
        assert ours.policy.optimizer.defaults[setting] == theirs.policy.optimizer.defaults[setting]


@pytest.mark.parametrize("settings", [{}, dict(weight_decay=0.1), dict(eps=1e-7)], ids=str)
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_optimizer_settings_mean_the_same(optimizer: type[torch.optim.Optimizer], settings: dict[str, Any]) -> None:
    policy_kwargs = dict(optimizer_class=optimizer, optimizer_kwargs=settings, **SMALL)
    theirs = THEIRS("MlpLstmPolicy", countdowns(), policy_kwargs=policy_kwargs)
    ours = OURS("MlpLstmPolicy", countdowns(), policy_kwargs=policy_kwargs)
    for setting in ("lr", "eps", "weight_decay"):
        assert ours.policy.optimizer.defaults[setting] == theirs.policy.optimizer.defaults[setting]


@pytest.mark.parametrize("method", ["learn", "predict", "save", "load", "set_env", "get_parameters", "set_parameters"])
def test_methods_take_the_same_arguments(method: str) -> None:
    theirs, ours = defaults_of(getattr(THEIRS, method)), defaults_of(getattr(OURS, method))
    assert list(ours)[: len(theirs)] == list(theirs)
    assert {name: ours[name] for name in theirs} == theirs


# Numbers


def as_ours(name: str) -> str:
    """A parameter's name in contrib's policy -> its name in ours."""
    for theirs, ours in {"lstm_actor.": "memory_actor.", "lstm_critic.": "memory_critic."}.items():
        name = name.replace(theirs, ours)
    return name.replace("critic.", "memory_critic.linear.") if name.startswith("critic.") else name


def shapes_of(policy: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in policy.state_dict().items()}


def with_equal_weights(env: Callable[[], VecEnv], policy: str = "MlpLstmPolicy", **kwargs: Any) -> tuple[Any, Any]:
    """A model of theirs and one of ours with its weights."""
    theirs, ours = (algorithm(policy, env(), device="cpu", **{"seed": 0, **kwargs}) for algorithm in (THEIRS, OURS))
    with torch.no_grad():  # a first layer of actions is almost nothing, and the most probable one a matter of rounding
        theirs.policy.action_net.weight *= 30.0
    weights = {as_ours(name): value.clone() for name, value in theirs.policy.state_dict().items()}
    ours.policy.load_state_dict(weights)
    return theirs, ours


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("kind", ACTIONS)
def test_predictions_are_the_same_numbers(kind: str, critic: str) -> None:
    policy_kwargs = dict(lstm_hidden_size=16, n_lstm_layers=2, **CRITICS[critic])
    theirs, ours = with_equal_weights(lambda: countdowns(3, action_space=ACTIONS[kind]), policy_kwargs=policy_kwargs)
    rng = np.random.default_rng(1)
    state, like = None, None
    for _ in range(10):
        observation, starts = rng.normal(size=(3, 3)).astype(np.float32), rng.random(3) < 0.3
        action, state = theirs.predict(observation, state, starts, deterministic=True)
        same, like = ours.predict(observation, like, starts, deterministic=True)
        assert same.shape == action.shape
        assert_close(same, action)
        for part, other in zip(state, like, strict=True):
            assert_close(other, part)


class Uncut(sb3_contrib.RecurrentPPO):
    """Theirs, its rollout read from the start of the first environment, so that no sequence is cut by chance.

    Contrib cuts its flattened rollout at a random place, which truncates one sequence's gradient there.
    """

    policy_aliases: ClassVar[Any] = sb3_contrib.RecurrentPPO.policy_aliases

    def train(self) -> None:
        draw = np.random.randint
        np.random.randint = lambda *args, **kwargs: 0  # type: ignore[assignment]
        try:
            super().train()
        finally:
            np.random.randint = draw


def as_batch_first(state: Any) -> tuple[torch.Tensor, ...]:
    return tuple(part.transpose(0, 1) for part in state)


def state_of_ours(states: Any, critic: str) -> tuple[torch.Tensor, ...]:
    """Contrib's states of actor and critic -> the flat tuple of our policy."""
    actor = as_batch_first(states.pi)
    return actor + as_batch_first(states.vf) if critic == "separate" else actor


def with_equal_rollouts(kind: str, critic: str, **kwargs: Any) -> tuple[Any, Any]:
    """The two models of ``with_equal_weights`` after one rollout of theirs, copied step by step into our buffer."""
    policy_kwargs = dict(lstm_hidden_size=16, optimizer_class=torch.optim.SGD, **CRITICS[critic])
    settings = dict(n_steps=24, batch_size=None, n_epochs=1, learning_rate=0.1, policy_kwargs=policy_kwargs, **kwargs)
    _, ours = with_equal_weights(lambda: countdowns(3, action_space=ACTIONS[kind]), seed=0, **settings)
    theirs: Any = Uncut("MlpLstmPolicy", countdowns(3, action_space=ACTIONS[kind]), seed=0, device="cpu", **settings)
    ours.policy.load_state_dict({as_ours(name): value.clone() for name, value in theirs.policy.state_dict().items()})
    for model in (theirs, ours):
        model._setup_learn(72, None)
    silent = AtRolloutEnd(lambda model: None)
    silent.init_callback(theirs)
    theirs.collect_rollouts(theirs.env, silent, theirs.rollout_buffer, 24)
    copy_rollout(theirs.rollout_buffer, ours.rollout_buffer, critic)
    return theirs, ours


def copy_rollout(theirs: Any, ours: Any, critic: str) -> None:
    """Contrib's rollout, its truncation bootstraps already in its rewards, into our buffer."""
    ours.reset()
    for step in range(theirs.buffer_size):
        names = ["hidden_states_pi", "cell_states_pi"] + ["hidden_states_vf", "cell_states_vf"] * (critic == "separate")
        parts = (torch.as_tensor(getattr(theirs, name)[step]).transpose(0, 1) for name in names)
        alive = torch.as_tensor(1 - theirs.episode_starts[step][:, None, None])
        add(
            ours,
            theirs.observations[step],
            theirs.actions[step].reshape(ours.actions.shape[1:]),
            theirs.rewards[step],
            theirs.episode_starts[step].astype(bool),
            theirs.values[step],
            theirs.log_probs[step],
            tuple(part * alive for part in parts),
        )


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("kind", ACTIONS)
def test_values_log_probabilities_and_entropies_are_the_same_numbers(kind: str, critic: str) -> None:
    theirs, ours = with_equal_rollouts(kind, critic)
    raw = theirs.rollout_buffer
    values, log_probs, entropies = ours.policy.evaluate_actions(
        ours.rollout_buffer.observations,
        ours.rollout_buffer.actions,
        tuple(part[0] for part in ours.rollout_buffer.states),
        ours.rollout_buffer.episode_starts,
    )
    assert_close(values.detach().numpy(), raw.values)
    assert_close(log_probs.detach().numpy(), raw.log_probs)
    assert entropies is not None
    (batch,) = raw.get(None)
    actions = batch.actions.long().flatten() if kind == "Discrete" else batch.actions.float()
    _, _, expected = theirs.policy.evaluate_actions(batch[0], actions, batch.lstm_states, batch.episode_starts)
    mask = batch.mask > 0
    assert entropies.mean().item() == near(expected[mask].mean().item())


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("settings", [{}, dict(clip_range_vf=0.05, ent_coef=0.1, normalize_advantage=False)], ids=str)
@pytest.mark.parametrize("kind", ["Discrete", "Box"])
def test_an_update_has_the_same_terms_and_moves_the_weights_alike(
    kind: str, settings: dict[str, Any], critic: str
) -> None:
    theirs, ours = with_equal_rollouts(kind, critic, **settings)
    # The advantages are contrib's own: what is compared is the update.
    ours.rollout_buffer.compute_returns_and_advantage(torch.zeros(ours.n_envs), torch.zeros(ours.n_envs))
    ours.rollout_buffer.advantages = torch.as_tensor(theirs.rollout_buffer.advantages)
    ours.rollout_buffer.returns = torch.as_tensor(theirs.rollout_buffer.returns)
    for model in (theirs, ours):
        model.train()
    for name in ("policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction", "loss"):
        expected = theirs.logger.name_to_value[f"train/{name}"]
        assert ours.logger.name_to_value[f"train/{name}"] == near(expected, scale=max(1.0, abs(expected))), name
    moved = ours.policy.state_dict()
    for name, value in theirs.policy.state_dict().items():
        assert_close(moved[as_ours(name)], value)


@pytest.mark.parametrize("critic", CRITICS)
def test_advantages_are_the_same_numbers(critic: str) -> None:
    theirs, ours = with_equal_rollouts("Discrete", critic)
    last_values, dones = torch.tensor([0.5, -1.0, 2.0]), np.array([False, True, False])
    theirs.rollout_buffer.compute_returns_and_advantage(last_values, dones)
    ours.rollout_buffer.compute_returns_and_advantage(last_values, dones)
    assert_close(ours.rollout_buffer.advantages.numpy(), theirs.rollout_buffer.advantages)
    assert_close(ours.rollout_buffer.returns.numpy(), theirs.rollout_buffer.returns)


def test_nothing_warns_in_the_documented_loop() -> None:
    model: Any = OURS("MlpLstmPolicy", countdowns(), policy_kwargs=SMALL, **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(model.learn(32), model.get_env())


# What docs/migrating.md says besides


def test_the_policy_classes_of_sb3_contrib_stand_for_ours_of_the_same_name() -> None:
    import sb3_contrib.ppo_recurrent as peer

    for name, space in (("MlpLstmPolicy", None), ("CnnLstmPolicy", IMAGES), ("MultiInputLstmPolicy", DICT)):
        env = countdowns(observation_space=space)
        for policy in (getattr(peer, name), getattr(agents, name)):
            model = OURS(policy, env, policy_kwargs=SMALL, **QUICK)
            assert type(model.policy) is getattr(agents, name)


def test_a_policy_class_derived_from_one_of_sb3_contrib_is_refused_with_what_to_derive_from() -> None:
    from sb3_contrib.ppo_recurrent import MlpLstmPolicy

    class Own(MlpLstmPolicy): ...  # type: ignore[misc]

    policy: Any = Own
    with pytest.raises(ValueError, match=r"has to derive from agents\.MlpLstmPolicy instead"):
        OURS(policy, countdowns())


class Locals(BaseCallback):
    """Keeps the type, shape and dtype of everything a step shows."""

    def _on_step(self) -> bool:
        self.seen = {name: self._kind(value) for name, value in self.locals.items()}
        return True

    @staticmethod
    def _kind(value: Any) -> Any:
        if isinstance(value, np.ndarray | torch.Tensor):
            return type(value), tuple(value.shape), value.dtype
        return type(value) if isinstance(value, int | list) else None


PROMISED = (
    *("obs_tensor", "actions", "values", "log_probs", "clipped_actions", "new_obs", "rewards", "dones", "infos"),
    *("n_steps", "env", "callback", "rollout_buffer", "n_rollout_steps"),
)


@pytest.mark.parametrize("kind", ["Discrete", "MultiDiscrete", "Box"])
def test_callbacks_find_the_same_types_and_shapes(kind: str) -> None:
    seen = []
    for algorithm in (THEIRS, OURS):
        callback = Locals()
        model = algorithm("MlpLstmPolicy", countdowns(action_space=ACTIONS[kind]), policy_kwargs=SMALL, **QUICK)
        model.learn(32, callback=callback)
        seen.append({name: callback.seen[name] for name in PROMISED})
    assert seen[0] == seen[1]


def test_heads_of_ones_own_need_no_super(algorithm: Any) -> None:
    class Heads(nn.Module):
        latent_dim_pi, latent_dim_vf = 5, 7

        def __init__(self, size: int) -> None:
            super().__init__()
            self.policy_net, self.value_net = nn.Linear(size, 5), nn.Linear(size, 7)

        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.forward_actor(features), self.forward_critic(features)

        def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.policy_net(features))

        def forward_critic(self, features: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.value_net(features))

    base: Any = algorithm.policy_aliases["MlpLstmPolicy"]

    class Own(base):  # type: ignore[misc]
        def _build_mlp_extractor(self) -> None:
            self.mlp_extractor = Heads(self.lstm_output_dim)

    model = algorithm(Own, countdowns(), policy_kwargs=SMALL, **QUICK).learn(64)
    assert isinstance(model.policy.mlp_extractor, Heads)


def test_a_clip_range_may_be_set_after_loading(tmp_path: pathlib.Path) -> None:
    OURS("MlpLstmPolicy", countdowns(), policy_kwargs=SMALL, **QUICK).save(tmp_path / "model")
    model: Any = OURS.load(tmp_path / "model", env=countdowns())
    for clip_range in (0.1, lambda progress: 0.1):
        model.clip_range = clip_range
        model.learn(32)
        assert model.logger.name_to_value["train/clip_range"] == pytest.approx(0.1)


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (1, 40, 40)), spaces.Box(0, np.inf, (1, 40, 40))], ids=str)
def test_images_may_be_floats(algorithm: Any, space: spaces.Space[Any]) -> None:
    arguments = dict(normalize_images=False, **SMALL)
    algorithm("CnnLstmPolicy", countdowns(observation_space=space), policy_kwargs=arguments, **QUICK).learn(32)


def test_what_gymnasiums_reset_returns_is_no_observation() -> None:
    model = OURS("MlpLstmPolicy", countdowns(), policy_kwargs=SMALL, **QUICK)
    pair: Any = Countdown().reset()
    with pytest.raises(ValueError, match=r"observation, info = env\.reset\(\)"):
        model.predict(pair)
