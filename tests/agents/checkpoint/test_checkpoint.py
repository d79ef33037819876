"""Saved agents: what goes in comes out, training goes on as if nothing had happened, and a file is only data."""

import copy
import hashlib
import inspect
import io
import json
import math
import os
import pickle
import random
import re
import resource
import signal
import stat
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)
from torch import nn

from agents import RecurrentA2C, RecurrentPPO
from agents.checkpoint import (
    CheckpointError,
    SavedAgent,
    capture_algorithm,
    check_parameters,
    container,
    load_algorithm,
    normalizer,
    normalizer_state,
    read_parameters,
    save_algorithm,
)
from agents.checkpoint.normalizer import Moments
from agents.checkpoint.values import Decoder, Encoder
from agents.deploy.player import Player
from agents.memory import MEMORIES, Memory
from agents.memory.core import NoMemory
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from tests.agents.probe_envs import (
    ACTION_SPACES,
    ALL_CRITIC_MEMORIES,
    ALL_MEMORIES,
    Clock,
    clocks,
    small_ppo,
    vectorized,
)
from tests.pairs import each, pairwise

Model = Any


class Raw(FlattenExtractor):
    """An extractor of the user's own."""


class OwnMemory(NoMemory):
    """A memory of the user's own."""


class OwnPolicy(RecurrentActorCriticPolicy):
    """A policy of the user's own."""


class OwnAdam(torch.optim.Adam):
    """An optimizer of the user's own."""


def own_schedule(progress_remaining: float) -> float:
    return 1e-3 * progress_remaining


class Opaque:
    """No data."""


def saved(model: Model, **kwargs: Any) -> io.BytesIO:
    file = io.BytesIO()
    save_algorithm(model, file, **kwargs)
    return file


def loaded(model: Model, env: Any = None, **kwargs: Any) -> Model:
    return load_algorithm(type(model), saved(model), env, device="cpu", **kwargs)


def assert_same_weights(one: Model, other: Model) -> None:
    for left, right in zip(one.get_parameters().values(), other.get_parameters().values(), strict=True):
        assert_equal(left, right)


def assert_equal(one: Any, other: Any) -> None:
    """Equal to the last bit, in kind too, through dicts, lists and tuples."""
    assert type(one) is type(other), (one, other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.device == other.device
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other or (one != one and other != other)


@pytest.fixture(autouse=True)
def _own_random_states() -> Iterator[None]:
    """Loading with an environment sets the process's random states; the other tests keep theirs."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


@pytest.fixture(scope="module")
def trained() -> Model:
    """A small agent with everything in it: optimizer state, normaliser, carried memory."""
    model = small_ppo(VecNormalize(clocks(n_envs=2)), "lstm", "separate")
    return model.learn(32)


@pytest.fixture
def file(trained: Model, tmp_path: Path) -> Path:
    save_algorithm(trained, tmp_path / "agent")
    return tmp_path / "agent.zip"


# What goes in comes out


@pytest.mark.parametrize(
    ("memory", "critic_memory", "actions"), pairwise(ALL_MEMORIES, ALL_CRITIC_MEMORIES, ACTION_SPACES)
)
def test_an_agent_comes_back_as_it_was(memory: str, critic_memory: str, actions: str) -> None:
    model = small_ppo(clocks(actions, n_envs=2), memory, critic_memory, actions=actions).learn(16)
    again = loaded(model)
    assert_same_weights(model, again)
    assert_equal(again._last_state, model._last_state)
    assert_equal(again._last_obs, model._last_obs)
    assert_equal(again._last_episode_starts, model._last_episode_starts)
    observation = np.array([[0.25, 0.5, 0.125], [0.5, 0.125, 0.25], [1, 0, 0]], dtype=np.float32)
    assert_equal(again.predict(observation, deterministic=True), model.predict(observation, deterministic=True))


@pytest.mark.parametrize("cls", [RecurrentPPO, RecurrentA2C])
def test_every_setting_that_was_not_left_at_its_default_comes_back(cls: Any) -> None:
    settings: dict[str, Any] = dict(
        learning_rate=LinearSchedule(1e-3, 1e-4, 0.5),
        n_steps=12,
        gamma=0.9,
        gae_lambda=0.8,
        normalize_advantage=cls is RecurrentA2C,
        ent_coef=0.01,
        vf_coef=0.7,
        max_grad_norm=0.3,
        use_sde=True,
        sde_sample_freq=4,
        stats_window_size=17,
        tensorboard_log="logs",
        verbose=0,
        seed=11,
        sequence_length=6,
        autocast="bfloat16",
        policy_kwargs=dict(memory="gru", memory_kwargs=dict(hidden_size=5), log_std_init=np.float32(-0.5)),
    )
    if cls is RecurrentPPO:
        settings.update(
            batch_size=24, n_epochs=3, clip_range=LinearSchedule(0.3, 0.1, 1.0), clip_range_vf=0.5, target_kl=0.1
        )
        settings.update(refresh_states=True, burn_in=3)
    model = cls("RecurrentPolicy", clocks("gsde"), device="cpu", **settings)
    again = loaded(model, tensorboard_log="logs")
    for name in settings:
        attribute = "_stats_window_size" if name == "stats_window_size" else name
        one, other = getattr(model, attribute), getattr(again, attribute)
        if isinstance(one, LinearSchedule | FloatSchedule):
            one, other = repr(one), repr(other)
        assert_equal(one, other)
    assert [again.lr_schedule(p) for p in (1.0, 0.7, 0.1)] == [model.lr_schedule(p) for p in (1.0, 0.7, 0.1)]
    assert type(again.policy.optimizer) is type(model.policy.optimizer)
    assert again.policy.autocast is torch.bfloat16


def test_a_file_from_before_autocast_was_a_setting_is_in_float32() -> None:
    file = saved(small_ppo(clocks(), autocast="bfloat16"), exclude=["autocast"])
    again = load_algorithm(RecurrentPPO, file, device="cpu")
    assert again.autocast is again.policy.autocast is None


def test_a_file_from_before_stale_states_had_settings_leaves_them_as_they_are() -> None:
    file = saved(small_ppo(clocks(), refresh_states=True, burn_in=2), exclude=["refresh_states", "burn_in"])
    again = load_algorithm(RecurrentPPO, file, device="cpu")
    assert (again.refresh_states, again.burn_in, again.rollout_buffer.burn_in) == (False, 0, 0)


def test_a_file_with_the_former_name_of_initialization_loads(tmp_path: Path) -> None:
    kwargs = dict(memory_kwargs=dict(hidden_size=8, initialization="torch"))
    model = small_ppo(clocks(), "lstm", policy_kwargs=kwargs)
    save_algorithm(model, tmp_path / "agent.zip")

    def rename(agent: Any) -> None:
        stored = agent["settings"]["policy_kwargs"]["memory_kwargs"]
        stored["initialisation"] = stored.pop("initialization")

    again = load_algorithm(RecurrentPPO, edited(tmp_path / "agent.zip", rename), device="cpu")
    assert again.policy_kwargs["memory_kwargs"]["initialization"] == "torch"
    assert_same_weights(model, again)


def test_a2c_with_adam_comes_back_with_adam() -> None:
    model = small_ppo(clocks(), cls=RecurrentA2C, use_rms_prop=False)
    assert type(loaded(model).policy.optimizer) is torch.optim.Adam


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MlpGruPolicy", "MlpRnnPolicy"])
def test_policies_by_name_come_back(policy: str) -> None:
    model = RecurrentPPO(policy, clocks(), n_steps=8, batch_size=8, device="cpu", seed=1)
    again = loaded(model)
    assert type(again.policy) is type(model.policy)
    assert_same_weights(model, again)


class Pictures(gym.Env[Any, Any]):
    """Images and numbers in a Dict; the image's bytes say the step."""

    def __init__(self, plain: bool = False) -> None:
        image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        where = spaces.Box(-1.0, np.inf, (2,), np.float64)
        self.observation_space = image if plain else spaces.Dict([("zebra", image), ("ant", where)])
        self.action_space = spaces.Discrete(2)
        self._plain, self._step = plain, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self._observation(), 1.0, self._step == 5, False, {}

    def _observation(self) -> Any:
        image = np.full((36, 36, 3), 10 * self._step, np.uint8)
        return image if self._plain else {"zebra": image, "ant": np.array([self._step, -0.5])}


@pytest.mark.parametrize("plain", [True, False])
def test_agents_that_see_images_and_dicts_come_back(plain: bool) -> None:
    env = DummyVecEnv([lambda: Pictures(plain)] * 2)
    kwargs = dict(lstm_hidden_size=4, features_extractor_kwargs=dict(features_dim=8) if plain else None)
    policy = "CnnLstmPolicy" if plain else "MultiInputLstmPolicy"
    model = RecurrentPPO(policy, env, n_steps=4, batch_size=4, n_epochs=1, device="cpu", policy_kwargs=kwargs).learn(8)
    again = loaded(model, env)
    assert isinstance(again.get_env(), VecTransposeImage)
    assert_same_weights(model, again)
    assert again.observation_space == model.observation_space
    observation = env.reset()
    assert_equal(again.predict(observation, deterministic=True), model.predict(observation, deterministic=True))
    again.learn(8)


def test_parameters_that_are_one_in_memory_are_kept_once() -> None:
    env = DummyVecEnv([lambda: Pictures(plain=True)])
    model = RecurrentPPO(
        "CnnLstmPolicy", env, n_steps=4, batch_size=4, device="cpu", policy_kwargs=dict(lstm_hidden_size=4)
    )
    with zipfile.ZipFile(saved(model)) as archive:
        kept = safetensors.torch.load(archive.read("policy.safetensors"))
    assert len([name for name in kept if "cnn.0.weight" in name]) == 1
    assert len([name for name in model.policy.state_dict() if "cnn.0.weight" in name]) == 3


def test_the_same_agent_gives_the_same_bytes(trained: Model) -> None:
    assert saved(trained).getvalue() == saved(trained).getvalue()


def test_a_file_holds_json_and_safetensors_and_no_pickle(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        for name in names:
            data = archive.read(name)
            json.loads(data) if name.endswith(".json") or name == "data" else safetensors.torch.load(data)
            with pytest.raises((pickle.UnpicklingError, ValueError, KeyError, EOFError, IndexError)):
                pickle.loads(data)
    assert sorted(names) == [
        "agent.json",
        "data",
        "manifest.json",
        "policy.optimizer.safetensors",
        "policy.safetensors",
        "run.safetensors",
    ]


def test_read_parameters_gives_what_set_parameters_takes(trained: Model, file: Path) -> None:
    other = small_ppo(VecNormalize(clocks(n_envs=2)), "lstm", "separate", seed=8)
    other.set_parameters(read_parameters(file, "cpu"))
    assert_same_weights(trained, other)


def test_the_models_own_methods_save_and_load(trained: Model, tmp_path: Path) -> None:
    trained.save(tmp_path / "agent")
    assert SavedAgent(tmp_path / "agent").n_envs == 2
    again = RecurrentPPO.load(tmp_path / "agent", device="cpu")
    assert_same_weights(trained, again)
    other = small_ppo(VecNormalize(clocks(n_envs=2)), "lstm", "separate", seed=8)
    other.set_parameters(tmp_path / "agent", device="cpu")
    assert_same_weights(trained, other)


# Values and spaces


def round_trip(value: Any) -> Any:
    encoder = Encoder("this")
    encoded = json.loads(json.dumps(encoder.encode(value, "it"), allow_nan=False))
    tensors = safetensors.torch.load(safetensors.torch.save(encoder.tensors))
    return Decoder(tensors, "file").decode(encoded, "it")


VALUES = [
    None,
    True,
    2**100,
    -0.1,
    float("inf"),
    float("-inf"),
    float("nan"),
    "text",
    "a:b",
    [1, (2, [3.0, ()]), {}],
    {"pi": [64, 64], "vf": (32,), "": None},
    {1: "one", (2, 3): "tuple", None: "none", "$tuple": "dollar", 2.5: [1]},
    {1, 2},
    frozenset({"a"}),
    np.float32(0.1),
    np.float64(0.1),
    np.float16("inf"),
    np.int8(-3),
    np.uint64(2**64 - 1),
    np.bool_(True),
    np.arange(6, dtype=np.int16).reshape(2, 3).T,
    np.array([0.1, np.nan]),
    np.zeros((0, 3), np.float32),
    np.array(2.5),
    np.array([True, False]),
    np.dtype("float32"),
    np.float32,
    torch.float64,
    torch.arange(3).to(torch.bfloat16),
    torch.tensor(1.5),
    torch.device("cpu"),
    Path("a") / "b",
    nn.Tanh,
    nn.LeakyReLU,
    torch.optim.AdamW,
    NatureCNN,
    CombinedExtractor,
    MEMORIES["gru"],
    int,
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_with_its_type(value: Any) -> None:
    assert_equal(round_trip(value), value)


@pytest.mark.parametrize("schedule", [ConstantSchedule(0.25), LinearSchedule(1e-3, 0.0, 0.9), FloatSchedule(0.5)])
def test_schedules_are_data(schedule: Any) -> None:
    again = round_trip(schedule)
    assert [again(p) for p in (1.0, 0.5, 0.05)] == [schedule(p) for p in (1.0, 0.5, 0.05)]


SPACES = [
    spaces.Box(-np.inf, np.inf, (3,)),
    spaces.Box(np.array([-1.0, 0.0, -np.inf]), np.array([1.0, np.inf, 2.5]), dtype=np.float64),
    spaces.Box(0, 255, (4, 84, 3), np.uint8),
    spaces.Box(-5, 7, (2,), np.int64),
    spaces.Box(-np.inf, 7, (2,), np.int32),
    spaces.Box(0.0, 1.0, ()),
    spaces.Discrete(5),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([3, 2, 4]),
    spaces.MultiDiscrete(np.array([[3, 2], [4, 5]]), dtype=np.int32),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
    spaces.Dict([("zebra", spaces.Discrete(2)), ("ant", spaces.Dict(inner=spaces.Box(0, 1, (2,))))]),
    spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (1,))]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_comes_back(space: spaces.Space[Any]) -> None:
    again = round_trip(space)
    assert again == space
    assert type(again) is type(space)
    assert again.dtype == space.dtype
    assert again.shape == space.shape
    if isinstance(space, spaces.Box):
        assert_equal((again.low, again.high), (space.low, space.high))
        np.testing.assert_array_equal(again.bounded_below, space.bounded_below)
        np.testing.assert_array_equal(again.bounded_above, space.bounded_above)
    if isinstance(space, spaces.Dict):
        assert list(again.spaces) == list(space.spaces)


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Graph(spaces.Discrete(2), None)])
def test_a_space_that_is_no_array_is_refused(space: Any) -> None:
    with pytest.raises(CheckpointError, match=r"space cannot be saved|cannot be saved: it is a gymnasium"):
        Encoder("this").encode(space, "it")


@pytest.mark.parametrize("value", [Opaque(), object(), np.array(["a"]), np.array([Opaque()]), 1j, b"bytes", iter([])])
def test_what_is_no_data_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"outer\.inner\.1 is a"):
        Encoder("this").encode({"inner": [0, value]}, "outer")


# Training goes on


def going_on(model: Model, n: int = 48) -> tuple[Model, Model]:
    """The model trained on, and its copy from a file trained on in a copy of the environment as it stood."""
    env = copy.deepcopy(model.get_env().unwrapped)
    file = saved(model)
    model.learn(n, reset_num_timesteps=False)
    again = load_algorithm(type(model), file, env, device="cpu", force_reset=False)
    again.learn(n, reset_num_timesteps=False)
    return model, again


def assert_same_run(one: Model, other: Model) -> None:
    assert_same_weights(one, other)
    for name in ("num_timesteps", "_total_timesteps", "_n_updates", "_current_progress_remaining", "_episode_num"):
        assert_equal(getattr(one, name), getattr(other, name))
    for name in ("_last_obs", "_last_episode_starts", "_last_state"):
        assert_equal(getattr(one, name), getattr(other, name))
    assert one._rng.bit_generator.state == other._rng.bit_generator.state


@pytest.mark.parametrize(("memory", "cls"), each(ALL_MEMORIES, [RecurrentPPO, RecurrentA2C]))
def test_training_goes_on_to_the_last_bit(memory: str, cls: Any) -> None:
    model = small_ppo(clocks(), memory, "separate", cls=cls, learning_rate=LinearSchedule(1e-2, 0, 1.0)).learn(72)
    assert_same_run(*going_on(model))


@pytest.mark.parametrize("actions", ["box", "gsde"])
def test_training_goes_on_with_noise_from_torch(actions: str) -> None:
    model = small_ppo(clocks(actions), "lstm", actions=actions, policy_kwargs=dict(activation_fn=nn.ELU)).learn(48)
    assert_same_run(*going_on(model))


def test_training_goes_on_with_the_same_dropout() -> None:
    kwargs = dict(memory_kwargs=dict(hidden_size=6, num_layers=2, dropout=0.3))
    model = small_ppo(clocks(), "lstm", policy_kwargs=kwargs).learn(48)
    assert_same_run(*going_on(model))


def test_training_goes_on_with_the_normaliser_of_the_file() -> None:
    model = small_ppo(VecNormalize(clocks(), clip_obs=3.0, gamma=0.9), "gru").learn(48)
    one, other = going_on(model)
    assert_same_run(one, other)
    left, right = one.get_vec_normalize_env(), other.get_vec_normalize_env()
    assert_equal(moments(left), moments(right))
    assert_equal(left.returns, right.returns)


def test_training_goes_on_through_two_files() -> None:
    model = small_ppo(clocks(), "lstm").learn(48)
    env = copy.deepcopy(model.get_env().unwrapped)
    file = saved(model)
    model.learn(24, reset_num_timesteps=False)
    again = load_algorithm(type(model), file, env, device="cpu", force_reset=False)
    again = load_algorithm(type(model), saved(again), env, device="cpu", force_reset=False)
    again.learn(24, reset_num_timesteps=False)
    assert_same_run(model, again)


def test_saving_moves_nothing() -> None:
    def run(save: bool) -> Model:
        model = small_ppo(VecNormalize(clocks()), "lstm").learn(48)
        if save:
            saved(model)
        return model.learn(48, reset_num_timesteps=False)

    assert_same_run(run(save=False), run(save=True))


@pytest.mark.parametrize("actions", ["discrete", "box", "gsde"])
def test_a_run_that_a_callback_saved_between_updates_ends_as_if_never_stopped(actions: str) -> None:
    """Schedules included: what is left of the run is learned, and the end is the same to the last bit."""
    kept: list[Any] = []

    class SaveBeforeTheThirdRollout(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.num_timesteps == 48:
                kept.extend((saved(self.model), copy.deepcopy(self.model.get_env().unwrapped)))

        def _on_step(self) -> bool:
            return True

    settings = dict(learning_rate=LinearSchedule(1e-2, 0, 1.0), clip_range=LinearSchedule(0.3, 0.1, 1.0))
    env = VecNormalize(clocks(actions))
    model = small_ppo(env, "lstm", actions=actions, **settings).learn(96, SaveBeforeTheThirdRollout())
    file, env = kept
    again = load_algorithm(RecurrentPPO, file, env, device="cpu", force_reset=False)
    again.learn(96 - again.num_timesteps, reset_num_timesteps=False)
    assert_same_run(model, again)
    assert_equal(moments(again.get_vec_normalize_env()), moments(model.get_vec_normalize_env()))


def test_recent_episodes_come_back() -> None:
    model = small_ppo(clocks(), "lstm", stats_window_size=3)
    model.learn(24)
    model.ep_info_buffer.extend({"r": float(k), "l": k, "t": 0.5, "opaque": Opaque()} for k in range(5))
    model.ep_success_buffer.extend([True, np.bool_(False)])
    again = loaded(model)
    assert list(again.ep_info_buffer) == [{"r": float(k), "l": k, "t": 0.5} for k in range(2, 5)]
    assert again.ep_info_buffer.maxlen == 3
    assert list(again.ep_success_buffer) == [True, False]


def test_a_file_written_amid_a_rollout_starts_new_episodes() -> None:
    """The memory carried so far is the collector's; the last observation alone would be paired with an older one."""
    files: list[io.BytesIO] = []

    class SaveAtTheFifthStep(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 5:
                files.append(saved(self.model))
            return True

    model = small_ppo(clocks(), "lstm").learn(24, SaveAtTheFifthStep())
    again = load_algorithm(RecurrentPPO, files[0], clocks(), device="cpu", force_reset=False)
    assert again._last_obs is None
    assert_equal(again._last_state, model.policy.initial_state(3))
    again.learn(24, reset_num_timesteps=False)


# Loading as Stable-Baselines3 loads


def test_another_number_of_environments_starts_afresh(trained: Model) -> None:
    again = loaded(trained, clocks(n_envs=5), force_reset=False)
    assert again.n_envs == again.get_env().num_envs == 5
    assert again._last_obs is None
    assert all(len(part) == 5 for part in again._last_state)
    assert again.num_timesteps == trained.num_timesteps
    again.learn(40, reset_num_timesteps=False)


def test_a_reset_is_forced_unless_told_otherwise(trained: Model) -> None:
    assert loaded(trained, clocks(n_envs=2))._last_obs is None
    assert_equal(loaded(trained, clocks(n_envs=2), force_reset=False)._last_obs, trained._last_obs)


def test_settings_are_changed_by_name(trained: Model) -> None:
    again = loaded(trained, learning_rate=0.25, n_steps=16, stats_window_size=7, custom_objects={"gamma": 0.5})
    assert (again.learning_rate, again.n_steps, again._stats_window_size, again.gamma) == (0.25, 16, 7, 0.5)
    assert again.rollout_buffer.buffer_size == 16
    assert again.rollout_buffer.gamma == 0.5


def test_a_setting_that_does_not_exist_is_an_error(trained: Model) -> None:
    with pytest.raises(CheckpointError, match="RecurrentPPO has no setting learning_rat to change"):
        loaded(trained, learning_rat=0.1)


def test_a_changed_setting_is_checked(trained: Model) -> None:
    with pytest.raises(CheckpointError, match=r"gamma must be between 0 and 1, got 9\.9"):
        loaded(trained, gamma=9.9)


def test_policy_kwargs_must_equal_the_stored_ones(trained: Model) -> None:
    assert_same_weights(loaded(trained, policy_kwargs=trained.policy_kwargs), trained)
    with pytest.raises(CheckpointError, match="policy kwargs do not equal the stored policy kwargs"):
        loaded(trained, policy_kwargs={**trained.policy_kwargs, "net_arch": [8]})


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (lambda: clocks("box", n_envs=2), "Action spaces do not match"),
        (lambda: VecFrameStack(clocks(n_envs=2), 2), "give an environment as it was before normalisation"),
    ],
)
def test_spaces_must_be_those_of_the_file(trained: Model, env: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        loaded(trained, env())


def test_observations_must_be_those_of_the_file() -> None:
    model = small_ppo(clocks(), "lstm")
    with pytest.raises(CheckpointError, match="Observation spaces do not match"):
        loaded(model, VecFrameStack(clocks(), 2))


def test_another_algorithm_is_named() -> None:
    file = saved(small_ppo(clocks(), "lstm"))
    with pytest.raises(
        CheckpointError, match=r"was saved by RecurrentPPO, not by RecurrentA2C; use RecurrentPPO\.load"
    ):
        load_algorithm(RecurrentA2C, file)


def test_loading_for_prediction_leaves_the_random_states_alone(trained: Model) -> None:
    def states() -> Any:
        return random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002

    before = states()
    again = loaded(trained)
    assert_equal(states(), before)
    assert again._rng.bit_generator.state == trained._rng.bit_generator.state


def test_loading_with_an_environment_restores_the_random_states(trained: Model) -> None:
    file = saved(trained)
    drawn = [random.random(), np.random.random(), float(torch.rand(()))]  # noqa: NPY002
    load_algorithm(RecurrentPPO, file, clocks(n_envs=2), device="cpu")
    assert [random.random(), np.random.random(), float(torch.rand(()))] == drawn  # noqa: NPY002


def test_a_new_seed_decides_anew(trained: Model) -> None:
    def continued(seed: int) -> Model:
        return loaded(trained, clocks(n_envs=2), seed=seed).learn(32)

    assert_same_weights(continued(7), continued(7))
    with pytest.raises(AssertionError):
        assert_same_weights(continued(7), continued(8))


def test_an_agent_that_was_loaded_for_prediction_learns_after_set_env(trained: Model) -> None:
    again = loaded(trained)
    again.set_env(normalizer(again, clocks(n_envs=2)))
    again.learn(32)


def test_versions_are_printed_when_asked(trained: Model, capsys: pytest.CaptureFixture[str]) -> None:
    loaded(trained, print_system_info=True)
    printed = capsys.readouterr().out
    assert "== SAVED MODEL SYSTEM INFO ==" in printed
    assert f"- torch: {torch.__version__}" in printed


# The user's own classes


MODULE = re.escape(__name__)
OWN = {
    "features_extractor_class": Raw,
    "memory": OwnMemory,
    "optimizer_class": OwnAdam,
}


def with_own(**policy_kwargs: Any) -> Model:
    kwargs = dict(net_arch=[7], **policy_kwargs)
    return RecurrentPPO("RecurrentPolicy", clocks(), n_steps=8, batch_size=8, device="cpu", policy_kwargs=kwargs)


@pytest.mark.parametrize("name", OWN)
def test_a_class_of_ones_own_is_saved_by_name_and_asked_for(name: str) -> None:
    model = with_own(**{name: OWN[name]})
    asked = rf"policy_kwargs\.{name} is '{MODULE}:{OWN[name].__name__}'.*never imports"
    remedy = rf"load\(\.\.\., custom_objects={{'{name}': {OWN[name].__name__}}}\)"
    with pytest.warns(UserWarning, match=rf"saved, but of policy_kwargs\.{name} .*holds the name alone"):
        saved(model)
    with pytest.raises(CheckpointError, match=f"{asked}.*{remedy}"):
        loaded(model, clocks())
    for given in ({"custom_objects": {name: OWN[name]}}, {"policy_kwargs": model.policy_kwargs}):
        again = loaded(model, **given)
        assert again.policy_kwargs[name] is OWN[name]
        assert_same_weights(model, again)


def test_a_policy_of_ones_own_is_saved_by_name_and_asked_for() -> None:
    model = RecurrentPPO(OwnPolicy, clocks(), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(
        CheckpointError, match=r"policy_class is '.*:OwnPolicy'.*custom_objects={'policy_class': OwnPolicy}"
    ):
        loaded(model)
    assert type(loaded(model, custom_objects={"policy_class": OwnPolicy}).policy) is OwnPolicy
    assert type(loaded(model, policy_class=OwnPolicy).policy) is OwnPolicy


def linear(progress: float) -> float:
    return 3e-4 * progress


def stepped(progress: float) -> float:
    return 0.2 if progress > 0.3 else 0.05


def warmed_up(progress: float) -> float:
    return 1e-3 * min((1 - progress) / 0.07, 1.0)


def cosine(progress: float) -> float:
    return 0.5 * 2e-4 * (1 - math.cos(math.pi * progress))


def falling(progress: float) -> Any:
    return np.float32(1e-2) * np.exp(-5 * (1 - progress))


@pytest.mark.parametrize("schedule", [linear, stepped, warmed_up, cosine, falling, lambda progress: 0.1])
def test_a_schedule_that_is_a_function_is_kept_as_data(schedule: Any) -> None:
    """To a millionth of its largest value, everywhere but within 1e-6 of a jump; a straight line to the last bits."""
    kept = loaded(small_ppo(clocks(), learning_rate=schedule, clip_range=schedule))
    again = loaded(kept)
    progress = [*np.random.default_rng(0).random(2000), 0.0, 1.0]
    expected = np.array([float(schedule(float(p))) for p in progress])
    far = abs(np.array(progress) - 0.3) > 1e-6
    for function in (kept.lr_schedule, kept.clip_range, again.lr_schedule, again.clip_range):
        found = np.array([function(float(p)) for p in progress])
        precision = 1e-15 if schedule is linear else 1e-6
        assert abs(found - expected)[far].max() <= precision * expected.max()


def test_a_schedule_that_is_a_function_is_learned_on_with() -> None:
    model = small_ppo(clocks(), learning_rate=linear, clip_range=stepped).learn(24)
    again = loaded(model, clocks()).learn(24)
    assert again.policy.optimizer.param_groups[0]["lr"] == linear(again._current_progress_remaining)


def drawing_lots() -> Any:
    rng = np.random.default_rng(0)
    return lambda progress: float(rng.random())


@pytest.mark.parametrize("name", ["learning_rate", "clip_range"])
def test_a_schedule_that_is_no_function_of_progress_alone_is_asked_for_to_learn_on(name: str) -> None:
    model = small_ppo(clocks(), "lstm", **{name: drawing_lots()})
    with pytest.warns(UserWarning, match=rf"saved, but of {name} .*holds the name alone.*'{name}': \.\.\."):
        file = saved(model)
    with pytest.raises(CheckpointError, match=rf"{name} is '.*drawing_lots.*custom_objects={{'{name}': "):
        load_algorithm(RecurrentPPO, file, clocks(), device="cpu")
    again = load_algorithm(RecurrentPPO, file, device="cpu")
    observation = np.ones((2, 3), np.float32)
    assert_equal(again.predict(observation, deterministic=True), model.predict(observation, deterministic=True))
    again.set_env(clocks())
    with pytest.raises(ValueError, match=f"loaded to act: its file only names its {name}.*'{name}': "):
        again.learn(24)
    with pytest.raises(CheckpointError, match=f"loaded to act, without {name}"):
        saved(again)
    for given in ({"custom_objects": {name: own_schedule}}, {name: 0.1}):
        load_algorithm(RecurrentPPO, file, clocks(), device="cpu", **given).learn(24)


def test_an_agent_acts_without_its_optimizer() -> None:
    model = with_own(optimizer_class=OwnAdam).learn(24)
    again = loaded(model)
    assert_equal(dict(again.policy.state_dict()), dict(model.policy.state_dict()))
    again.set_env(clocks())
    with pytest.raises(ValueError, match="only names its optimizer_class"):
        again.learn(24)
    Player.load(saved(model)).act(np.ones(3, np.float32))


OPTIMIZERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls)
    and issubclass(cls, torch.optim.Optimizer)
    # These need a closure, sparse gradients or matrices alone, and so cannot train such an agent.
    and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_comes_back_with_its_state(name: str) -> None:
    model = small_ppo(clocks(), policy_kwargs=dict(optimizer_class=OPTIMIZERS[name])).learn(48)
    assert_same_weights(model, loaded(model))
    assert_same_run(*going_on(model, 24))


def test_a_memory_named_by_its_module_is_never_imported_for_a_file() -> None:
    model = with_own(memory=f"{__name__}:OwnMemory")
    with pytest.raises(CheckpointError, match=rf"policy_kwargs\.memory is '{MODULE}:OwnMemory'"):
        loaded(model)
    assert_same_weights(loaded(model, custom_objects={"memory": OwnMemory}), model)


def test_what_is_no_data_stops_saving_before_anything_is_written(tmp_path: Path) -> None:
    kwargs = dict(features_extractor_class=Raw, features_extractor_kwargs={})
    model = small_ppo(clocks(), "lstm", policy_kwargs=kwargs)
    model.policy_kwargs["features_extractor_kwargs"]["graph"] = Opaque()
    place = rf"policy_kwargs\.features_extractor_kwargs\.graph is a {MODULE}\.Opaque"
    with pytest.raises(CheckpointError, match=rf"{place}.*exclude=\[\"policy_kwargs\"\]"):
        save_algorithm(model, tmp_path / "folder" / "agent.zip")
    assert list(tmp_path.iterdir()) == []


class Shy(RecurrentPPO):
    """An algorithm of the user's own, with a setting and an attribute."""

    def __init__(self, *args: Any, courage: float = 0.5, **kwargs: Any) -> None:
        self.courage = courage
        self.diary = {"seen": (1, 2)}
        super().__init__(*args, **kwargs)


def test_an_algorithm_of_ones_own_keeps_its_settings_and_what_it_includes() -> None:
    model = small_ppo(clocks(), "lstm", cls=Shy, courage=0.75)
    model.diary["seen"] = (3, 4)
    again = load_algorithm(Shy, saved(model, include=["diary"]), device="cpu")
    assert (again.courage, again.diary) == (0.75, {"seen": (3, 4)})
    assert load_algorithm(Shy, saved(model), device="cpu").diary == {"seen": (3, 4)}
    assert load_algorithm(Shy, saved(model, exclude=["diary"]), device="cpu").diary == {"seen": (1, 2)}
    both = saved(model, exclude=["diary", "courage"], include=["diary"])
    assert load_algorithm(Shy, both, device="cpu").diary == {"seen": (3, 4)}
    plain = small_ppo(clocks(), "lstm")
    assert load_algorithm(Shy, saved(plain), device="cpu").courage == 0.5
    excluded = load_algorithm(Shy, saved(model, exclude=["courage"]), device="cpu")
    assert excluded.courage == 0.5


def test_what_a_user_put_on_an_agent_is_kept_or_named() -> None:
    model = small_ppo(clocks(), "lstm", cls=Shy)
    model.notes, model.scores, model.lookup = ["a", 1], np.arange(3.0), {(1, 2): torch.ones(2)}
    model.probe, model.helper, model.diary = Opaque(), own_schedule, {"graph": [Opaque()]}
    with pytest.warns(UserWarning, match="the attributes diary, helper, probe are no data and are not in it"):
        file = saved(model)
    again = load_algorithm(Shy, file, device="cpu")
    assert_equal([again.notes, again.scores, again.lookup], [model.notes, model.scores, model.lookup])
    assert not hasattr(again, "probe")
    assert again.diary == {"seen": (1, 2)}


@pytest.mark.parametrize("cls", [RecurrentPPO, RecurrentA2C])
def test_an_agent_to_which_nobody_added_anything_has_nothing_of_the_users(cls: Any) -> None:
    """An attribute that the package itself keeps belongs to OWN_ATTRIBUTES or _excluded_save_params."""
    model = small_ppo(VecNormalize(clocks()), cls=cls).learn(24)
    for agent in (model, loaded(model), loaded(model, clocks()).learn(24)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            captured = capture_algorithm(agent)
        assert captured.agent["extras"] == {}
        assert captured.not_kept == ()


def test_a_file_does_not_say_where_to_write(tmp_path: Path) -> None:
    model = small_ppo(clocks(), tensorboard_log=str(tmp_path / "logs"))
    with pytest.warns(UserWarning, match="tensorboard_log=.*is not taken from a file"):
        loaded(model, clocks()).learn(24)
    assert list(tmp_path.iterdir()) == []
    loaded(model, clocks(), tensorboard_log=str(tmp_path / "others")).learn(24)
    assert [path.name for path in tmp_path.iterdir()] == ["others"]


def test_weights_that_are_not_finite_are_told(trained: Model) -> None:
    model = loaded(trained)
    with torch.no_grad():
        model.policy.action_net.bias[0] = math.nan
    for load in (lambda file: load_algorithm(RecurrentPPO, file, device="cpu"), Player.load):
        with pytest.warns(UserWarning, match=r"the weights action_net\.bias are not finite"):
            load(saved(model))


def test_a2c_takes_the_policy_kwargs_that_it_was_made_with() -> None:
    original = dict(memory="gru", memory_kwargs=dict(hidden_size=4))
    model = RecurrentA2C("RecurrentPolicy", clocks(), device="cpu", policy_kwargs=dict(original), rms_prop_eps=1e-3)
    again = loaded(model, policy_kwargs=original)
    assert again.policy_kwargs == model.policy_kwargs
    assert again.policy.optimizer.param_groups[0]["eps"] == 1e-3
    with pytest.raises(CheckpointError, match="do not equal"):
        loaded(model, policy_kwargs={**original, "net_arch": [3]})


def test_tools_that_look_for_a_summary_find_one(trained: Model, file: Path, tmp_path: Path) -> None:
    """``huggingface_sb3.package_to_hub`` extracts the zip and reads ``data`` as JSON."""
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "extracted")
    summary = json.loads((tmp_path / "extracted" / "data").read_text())
    assert summary["algorithm"] == "RecurrentPPO"
    assert summary["settings"]["n_steps"] == trained.n_steps


def test_a_file_of_the_first_format_loads() -> None:
    """It was written by the version in which files came up, trained with a normalizer for 32 steps."""
    file = Path(__file__).parents[2] / "data" / "agent_of_version_1.zip"
    observation = np.array([[0.25, 0.5, 0.125], [1, 0, 0]], np.float32)
    state, actions = None, []
    model: Any = RecurrentPPO.load(file, device="cpu")
    for t in range(4):
        starts = np.array([t == 0, t in (0, 2)])
        action, state = model.predict(observation * t, state, starts, deterministic=True)
        actions.append(action.tolist())
    assert actions == [[2, 2], [2, 2], [2, 2], [2, 1]]
    sums = [part.detach().sum().item() for part in list(model.policy.parameters())[:2]]
    assert sums == pytest.approx([-7.377981, -0.039573], abs=1e-5)
    with pytest.warns(UserWarning, match="tensorboard_log='logs'"):
        again = RecurrentPPO.load(file, clocks(n_envs=2), device="cpu", force_reset=False)
    assert again.learn(32, reset_num_timesteps=False).num_timesteps == 64
    Player.load(file).act(observation[0])


# The normaliser travels with the agent


def normalized_clocks(n_envs: int = 2, **kwargs: Any) -> VecNormalize:
    return VecNormalize(clocks(n_envs=n_envs), **kwargs)


def moments(wrapper: Any) -> Any:
    parts = [wrapper.obs_rms, wrapper.ret_rms]
    return [(np.array(part.mean), np.array(part.var), float(part.count)) for part in parts]


def test_a_bare_environment_is_wrapped_with_statistics_and_settings() -> None:
    model = small_ppo(normalized_clocks(clip_obs=2.0, clip_reward=3.0, gamma=0.5, epsilon=1e-3), "lstm").learn(32)
    wrapper = loaded(model, clocks(n_envs=2)).get_vec_normalize_env()
    assert_equal(moments(wrapper), moments(model.get_vec_normalize_env()))
    assert (wrapper.clip_obs, wrapper.clip_reward, wrapper.gamma, wrapper.epsilon) == (2.0, 3.0, 0.5, 1e-3)
    assert (wrapper.training, wrapper.norm_reward) == (False, False)
    with wrapper.learning():
        assert (wrapper.training, wrapper.norm_reward) == (True, True)
    assert normalizer_state(loaded(model, clocks(n_envs=2))).settings == normalizer_state(model).settings


def test_the_statistics_are_copies(trained: Model) -> None:
    before = copy.deepcopy(moments(trained.get_vec_normalize_env()))
    loaded(trained, clocks(n_envs=2)).learn(32)
    assert_equal(moments(trained.get_vec_normalize_env()), before)


def test_a_fresh_normaliser_gets_the_statistics_and_keeps_its_settings(trained: Model) -> None:
    wrapper = normalized_clocks(norm_reward=False, training=False)
    again = loaded(trained, wrapper)
    assert again.get_vec_normalize_env() is wrapper
    assert_equal(moments(wrapper), moments(trained.get_vec_normalize_env()))
    assert (wrapper.norm_reward, wrapper.training) == (False, False)


def test_a_normaliser_that_has_seen_something_is_left_alone(trained: Model) -> None:
    wrapper = normalized_clocks()
    wrapper.reset()
    before = copy.deepcopy(moments(wrapper))
    assert loaded(trained, wrapper).get_vec_normalize_env() is wrapper
    assert_equal(moments(wrapper), before)


def test_a_fresh_normaliser_of_another_kind_is_an_error(trained: Model) -> None:
    with pytest.raises(CheckpointError, match=r"learned with normalised observations of shape \(3,\).*not at all"):
        loaded(trained, normalized_clocks(norm_obs=False))


def test_without_an_environment_the_statistics_stay_with_the_agent(trained: Model) -> None:
    again = loaded(loaded(trained))
    wrapper = loaded(again, clocks(n_envs=2)).get_vec_normalize_env()
    assert_equal(moments(wrapper), moments(trained.get_vec_normalize_env()))


def test_a_normaliser_below_another_wrapper_gets_its_statistics_there() -> None:
    model = small_ppo(VecFrameStack(normalized_clocks(), 2), "lstm").learn(32)
    again = loaded(model, VecFrameStack(normalized_clocks(), 2))
    assert_equal(moments(again.get_vec_normalize_env()), moments(model.get_vec_normalize_env()))
    with pytest.raises(CheckpointError, match="wrap it in VecNormalize yourself, where it belongs"):
        loaded(model, VecFrameStack(clocks(n_envs=2), 2))


def test_a_normaliser_of_some_keys_comes_back() -> None:
    env = VecNormalize(DummyVecEnv([Pictures] * 2), norm_obs_keys=["ant"])
    model = RecurrentPPO("MultiInputLstmPolicy", env, n_steps=4, batch_size=4, n_epochs=1, device="cpu").learn(8)
    again = loaded(model, DummyVecEnv([Pictures] * 2), force_reset=False)
    left, right = model.get_vec_normalize_env(), again.get_vec_normalize_env()
    assert isinstance(again.get_env(), VecTransposeImage)
    assert list(right.obs_rms) == ["ant"]
    for name in ("mean", "var", "count"):
        assert_equal(getattr(left.obs_rms["ant"], name), getattr(right.obs_rms["ant"], name))
    assert_equal(right.get_original_obs(), dict(left.get_original_obs()))
    again.learn(8, reset_num_timesteps=False)


def test_evaluation_sees_what_training_saw_and_moves_nothing(trained: Model, file: Path) -> None:
    training = trained.get_vec_normalize_env()
    before = copy.deepcopy(moments(training))
    for source in (trained, file, loaded(trained)):
        bare = clocks(n_envs=4)
        venv = normalizer(source, bare)
        seen = venv.reset()
        np.testing.assert_array_equal(seen, training.normalize_obs(bare.first))
        for _ in range(20):
            seen, rewards, _, _ = venv.step(np.zeros(4, dtype=int))
            np.testing.assert_array_equal(seen, training.normalize_obs(bare.observations[-1]))
            np.testing.assert_array_equal(rewards, bare.rewards[-1])
        assert_equal(moments(venv), before)
        assert_equal(moments(training), before)


def test_evaluation_without_a_normaliser_changes_nothing() -> None:
    bare = clocks()
    venv = normalizer(small_ppo(clocks(), "lstm"), bare)
    np.testing.assert_array_equal(venv.reset(), bare.first)
    _, rewards, _, _ = venv.step(np.zeros(3, dtype=int))
    np.testing.assert_array_equal(rewards, bare.rewards[-1])


def test_normalising_twice_is_an_error(trained: Model) -> None:
    with pytest.raises(CheckpointError, match="in a VecNormalize already"):
        normalizer(trained, normalized_clocks())


def test_the_statistics_normalise_as_the_wrapper_does(trained: Model) -> None:
    state = normalizer_state(trained)
    assert state is not None
    observation = np.array([[0.5, 40.0, -3.0]], dtype=np.float32)
    expected = trained.get_vec_normalize_env().normalize_obs(observation)
    assert_equal(state.normalize(observation), expected)


def true_returns(env: Any, index: int, first: int = 0) -> list[float]:
    """Of the episodes that ended in one of the environments, from a step on."""
    totals = [0.0]
    for rewards, dones in zip(env.rewards[first:], env.dones[first:], strict=True):
        totals[-1] += float(rewards[index])
        if dones[index]:
            totals.append(0.0)
    return totals[:-1]


def test_who_looks_at_a_loaded_agents_environment_sees_true_rewards_and_moves_nothing() -> None:
    model = small_ppo(normalized_clocks(), "lstm").learn(64)
    bare = clocks(n_envs=2)
    again = loaded(model, bare)
    before = copy.deepcopy(moments(again.get_vec_normalize_env()))
    again.get_env().reset()
    for _ in range(9):
        _, rewards, _, _ = again.get_env().step(np.zeros(2, dtype=int))
        np.testing.assert_array_equal(rewards, bare.rewards[-1])
    first = len(bare.rewards)
    mean, _ = evaluate_policy(again, again.get_env(), n_eval_episodes=6, warn=False)
    assert mean == pytest.approx(np.mean([true_returns(bare, i, first)[:3] for i in range(2)]), abs=1e-4)
    assert_equal(moments(again.get_vec_normalize_env()), before)
    again.learn(32)
    with pytest.raises(AssertionError):
        assert_equal(moments(again.get_vec_normalize_env()), before)
    at_rest = copy.deepcopy(moments(again.get_vec_normalize_env()))
    evaluate_policy(again, again.get_env(), n_eval_episodes=2, warn=False)
    assert_equal(moments(again.get_vec_normalize_env()), at_rest)


@pytest.mark.parametrize("normalized", [True, False])
def test_a_callback_that_evaluates_on_plain_environments_works_after_loading(normalized: bool) -> None:
    model = small_ppo(normalized_clocks(norm_obs=normalized), "lstm").learn(32)
    again, bare = loaded(model, clocks(n_envs=2)), clocks(n_envs=1)
    evaluation = EvalCallback(bare, eval_freq=4, n_eval_episodes=3, verbose=0)
    again.learn(32, [CallbackList([evaluation])])
    assert evaluation.last_mean_reward == pytest.approx(np.mean(true_returns(bare, 0)[-3:]), abs=1e-4)
    seen, training = (unwrap_vec_normalize(env) for env in (evaluation.eval_env, again.get_env()))
    assert_equal(Moments.of(seen.ret_rms), Moments.of(training.ret_rms))
    assert (seen.training, seen.norm_reward) == (False, False)


# Where files lie


def test_paths_are_those_of_stable_baselines3(trained: Model, tmp_path: Path) -> None:
    save_algorithm(trained, str(tmp_path / "a" / "b" / "agent"))
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["agent.zip"]
    save_algorithm(trained, tmp_path / "agent.v1")
    assert (tmp_path / "agent.v1").is_file()
    for path in (tmp_path / "a" / "b" / "agent", str(tmp_path / "a" / "b" / "agent.zip"), tmp_path / "agent.v1"):
        assert_same_weights(load_algorithm(RecurrentPPO, path, device="cpu"), trained)
    with open(tmp_path / "open", "wb") as stream:
        save_algorithm(trained, stream)
    with open(tmp_path / "open", "rb") as stream:
        assert_same_weights(load_algorithm(RecurrentPPO, stream, device="cpu"), trained)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"agent"):
        load_algorithm(RecurrentPPO, tmp_path / "agent")


def test_a_folder_is_no_checkpoint(trained: Model, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        load_algorithm(RecurrentPPO, tmp_path)
    (tmp_path / "taken.zip").mkdir()
    with pytest.raises(CheckpointError, match=r"taken\.zip: could not be written \(Is a directory\)"):
        save_algorithm(trained, tmp_path / "taken.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.zip"]


def test_a_link_stays_a_link_and_a_mode_stays_as_it_was(trained: Model, tmp_path: Path) -> None:
    target, link = tmp_path / "real.zip", tmp_path / "link.zip"
    save_algorithm(trained, target)
    target.chmod(0o640)
    link.symlink_to(target)
    before = target.stat().st_ino
    save_algorithm(trained, link)
    assert link.is_symlink()
    assert target.stat().st_ino != before
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_that_files_have(trained: Model, tmp_path: Path) -> None:
    save_algorithm(trained, tmp_path / "agent.zip")
    (tmp_path / "plain").touch()
    assert (tmp_path / "agent.zip").stat().st_mode == (tmp_path / "plain").stat().st_mode


# Whole or not at all


def test_a_disk_that_takes_no_more_leaves_the_old_file(trained: Model, tmp_path: Path) -> None:
    """A limit on file sizes makes the kernel itself refuse the write halfway."""
    path = tmp_path / "agent.zip"
    save_algorithm(trained, path)
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))
            save_algorithm(trained, path)
        except CheckpointError as error:
            code = 0 if "could not be written (File too large)" in str(error) and "untouched" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["agent.zip"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_file(
    trained: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "agent.zip"
    save_algorithm(trained, path)
    before = path.read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container.os, step, fail)
    with pytest.raises(CheckpointError, match=r"agent\.zip: could not be written \(No space left on device\)"):
        save_algorithm(trained, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["agent.zip"]


def test_ctrl_c_while_writing_leaves_the_old_file(
    trained: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent.zip"
    save_algorithm(trained, path)
    before = path.read_bytes()

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(container.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_algorithm(trained, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["agent.zip"]


def test_killing_the_writer_leaves_a_file_that_loads(trained: Model, tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    save_algorithm(trained, path)
    rng = random.Random(0)
    for kill in range(12):
        child = os.fork()
        if child == 0:
            while True:
                trained.num_timesteps += 1
                save_algorithm(trained, path)
        time.sleep(rng.uniform(0.02, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        again = load_algorithm(RecurrentPPO, path, device="cpu")
        assert_equal(again.get_parameters()["policy"], trained.get_parameters()["policy"])
        assert again.num_timesteps >= trained.num_timesteps, kill


def test_what_a_killed_writer_left_is_swept_and_what_a_living_one_writes_is_not(trained: Model, tmp_path: Path) -> None:
    names = [f".agent.zip.{digit * 16}.tmp" for digit in "abc"]
    dead, alive, young = (tmp_path / name for name in names)
    other = tmp_path / ".other.zip.aaaaaaaaaaaaaaaa.tmp"
    for path in (dead, alive, young, other):
        path.write_bytes(b"half")
    for path in (dead, alive, other):
        os.utime(path, (0, 0))
    with alive.open("rb") as writer:
        assert container._lock(writer)
        save_algorithm(trained, tmp_path / "agent.zip")
    assert {path.name for path in tmp_path.iterdir()} == {"agent.zip", alive.name, young.name, other.name}


# A file is only data


def forged(file: Path, changes: dict[str, bytes | None]) -> io.BytesIO:
    """The file with members replaced, added (or left out where None), and a manifest that says so."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members.pop("manifest.json"))
    members.update({name: data for name, data in changes.items() if data is not None})
    members = {name: data for name, data in members.items() if changes.get(name, b"") is not None}
    rest = {name: data for name, data in members.items() if name != "manifest.json"}
    manifest["members"] = {n: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in rest.items()}
    return zipped({"manifest.json": json.dumps(manifest).encode(), **members})


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer


def members_of(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def edited(file: Path, edit: Callable[[Any], None]) -> io.BytesIO:
    """The file with its agent.json edited, and everything else in order."""
    agent = json.loads(members_of(file)["agent.json"])
    edit(agent)
    return forged(file, {"agent.json": json.dumps(agent).encode()})


class Bomb:
    """A pickle of it touches a file as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_forgery_that_changes_nothing_loads(trained: Model, file: Path) -> None:
    assert_same_weights(load_algorithm(RecurrentPPO, edited(file, lambda agent: None), device="cpu"), trained)


@pytest.mark.parametrize("member", ["agent.json", "policy.safetensors", "manifest.json", "data.pkl", "policy.pth"])
def test_a_pickle_inside_is_refused_and_not_run(file: Path, tmp_path: Path, member: str) -> None:
    payload = pickle.dumps(Bomb(tmp_path / "exploded"))
    with pytest.raises(CheckpointError):
        load_algorithm(RecurrentPPO, forged(file, {member: payload}))
    assert not (tmp_path / "exploded").exists()
    pickle.loads(payload)
    assert (tmp_path / "exploded").exists()


def test_a_file_of_stable_baselines3_is_named_and_not_run(tmp_path: Path) -> None:
    data = {"policy_class": {":serialized:": "gASV", ":type:": "x"}}
    file = zipped({"data": json.dumps(data).encode(), "policy.pth": pickle.dumps(Bomb(tmp_path / "exploded"))})
    with pytest.raises(
        CheckpointError, match=r"saved by Stable-Baselines3 or sb3-contrib.*import_contrib\(path, env\)"
    ):
        load_algorithm(RecurrentPPO, file)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "name",
    ["../agent.json", "/etc/passwd", "..\\x.safetensors", "a/b.safetensors", "notes.txt", "C:x.safetensors", "é.json"],
)
def test_an_unknown_member_is_refused(file: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"holds .*which no checkpoint does|no checkpoint, or"):
        load_algorithm(RecurrentPPO, forged(file, {name: b"x"}))


def test_tensors_that_nothing_asks_for_are_refused(file: Path) -> None:
    with pytest.raises(CheckpointError, match="holds tensors for extra, policy"):
        load_algorithm(RecurrentPPO, forged(file, {"extra.safetensors": members_of(file)["policy.safetensors"]}))
    surplus = safetensors.torch.load(members_of(file)["policy.safetensors"]) | {"more": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="the tensors of policy are not those it lists"):
        load_algorithm(RecurrentPPO, forged(file, {"policy.safetensors": safetensors.torch.save(surplus)}))


def test_a_member_twice_is_refused(file: Path) -> None:
    members = members_of(file)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("agent.json", members["agent.json"])
    with pytest.raises(CheckpointError, match="holds a member twice"):
        load_algorithm(RecurrentPPO, buffer)


def test_a_compressed_member_is_refused(file: Path) -> None:
    """So nothing in a file can be larger than the file."""
    bomb = {**members_of(file), "agent.json": b" " * 10**7}
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        load_algorithm(RecurrentPPO, zipped(bomb, zipfile.ZIP_DEFLATED))


def test_a_member_that_says_it_is_larger_than_the_file_is_refused(file: Path) -> None:
    data = bytearray(file.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    for at in (entry + 20, entry + 24):  # its compressed and its real size
        data[at : at + 4] = (2**31).to_bytes(4, "little")
    with pytest.raises(CheckpointError, match=r"say they are larger than the file|says it has 2147483648 bytes"):
        load_algorithm(RecurrentPPO, io.BytesIO(data))


def test_a_tensor_whose_shape_is_not_its_bytes_is_refused(file: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\0" * 4
    with pytest.raises(CheckpointError, match=r"policy\.safetensors holds no readable tensors"):
        load_algorithm(RecurrentPPO, forged(file, {"policy.safetensors": data}))


def test_deep_nesting_is_refused(file: Path) -> None:
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    with pytest.raises(CheckpointError, match=r"agent\.json is not JSON"):
        load_algorithm(RecurrentPPO, forged(file, {"agent.json": deep}))


def test_a_newer_version_says_to_upgrade(file: Path) -> None:
    members = members_of(file)
    manifest = json.loads(members["manifest.json"])
    manifest["version"] += 1
    members["manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(CheckpointError, match=r"is of version 2, newer than this recurl reads \(1\); upgrade recurl"):
        load_algorithm(RecurrentPPO, zipped(members))


def test_a_wrong_checksum_is_refused(file: Path) -> None:
    members = members_of(file)
    weights = bytearray(members["policy.safetensors"])
    weights[-1] ^= 1
    members["policy.safetensors"] = bytes(weights)
    with pytest.raises(CheckpointError, match=r"policy\.safetensors is not what was written \(its checksum differs\)"):
        load_algorithm(RecurrentPPO, zipped(members))


def test_a_flipped_bit_is_noticed_or_harmless(trained: Model, file: Path) -> None:
    data = file.read_bytes()
    weights = SavedAgent(file).parameters()
    rng = random.Random(1)
    noticed = 0
    places = [rng.randrange(len(data)) for _ in range(150)] + list(range(len(data) - 60, len(data)))
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        try:
            again = SavedAgent(io.BytesIO(damaged))
        except CheckpointError:
            noticed += 1
        else:
            assert_equal(again.parameters(), weights)
    assert noticed > 140


def test_a_file_cut_short_is_noticed(file: Path) -> None:
    data = file.read_bytes()
    for length in (0, 1, 21, 22, 100, *range(1000, len(data), 4001), len(data) - 22, len(data) - 1):
        with pytest.raises(CheckpointError, match=r"cut short or damaged|is damaged"):
            SavedAgent(io.BytesIO(data[:length]))


def policy_kwargs(agent: Any) -> Any:
    return agent["settings"]["policy_kwargs"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda agent: policy_kwargs(agent).update(activation_fn={"$class": ["os", "system"]}),
            "class 'system' of 'os'",
        ),
        (
            lambda agent: policy_kwargs(agent).update(activation_fn={"$class": ["torch.nn", "Nope"]}),
            "'Nope' of 'torch.nn'",
        ),
        (lambda agent: policy_kwargs(agent).update(memory="os:system"), "never imports anything"),
        (lambda agent: policy_kwargs(agent).update(memory=" os.path:join "), "never imports anything"),
        (lambda agent: policy_kwargs(agent).update(memory={"$custom": "os:system"}), "never imports anything"),
        (
            lambda agent: policy_kwargs(agent).update(memory="nope"),
            "memory is 'nope', not a part of this package .there are rnn, lstm",
        ),
        (lambda agent: policy_kwargs(agent).update(memory={"$call": "os:system"}), "does not know"),
        (lambda agent: policy_kwargs(agent).update(net_arch={"$tuple": 3}), "cannot be understood"),
        (
            lambda agent: policy_kwargs(agent)["memory_kwargs"].update(hidden_size=10**6),
            "larger networks than there are",
        ),
        (lambda agent: policy_kwargs(agent).update(net_arch=[10**5, 10**5]), "larger networks than there are"),
        (lambda agent: policy_kwargs(agent).update(net_arch=[5]), "optimizer's state does not fit"),
        (lambda agent: policy_kwargs(agent).update(critic_memory="shared"), "weights do not fit|state does not fit"),
        (lambda agent: agent["settings"].update(n_steps=10**12), "has more than a file may ask for .1024 MiB"),
        (lambda agent: agent["settings"].update(gamma=7.0), "gamma must be between 0 and 1"),
        (lambda agent: agent["settings"].update(predict=1), "RecurrentPPO has no setting predict"),
        (lambda agent: agent["settings"].update(learning_rate={"$schedule": ["eval", []]}), "learning_rate cannot be"),
        (lambda agent: agent["settings"].update(learning_rate={"$schedule": ["ConstantSchedule", ["x"]]}), "number"),
        (lambda agent: agent["extras"].update(predict=1), "'predict' cannot be an attribute"),
        (lambda agent: agent["counters"].update(num_timesteps="many"), "a counter is no number"),
        (lambda agent: agent["counters"].update(policy=1), "counters holds policy"),
        (lambda agent: agent.update(n_envs=-1), "n_envs is -1"),
        (lambda agent: agent.update(more=1), r"does not hold what an agent is \(more\)"),
        (lambda agent: agent.pop("random"), r"does not hold what an agent is \(random\)"),
        (lambda agent: agent.update(algorithm="os"), "was saved by os"),
        (lambda agent: agent.update(policy="os:system"), "policy_class is 'os:system'"),
        (lambda agent: agent.update(observation_space=3), "observation_space is no space"),
        (lambda agent: agent["observation_space"]["$space"].update(shape=[10**6, 10**6]), "more than a file may ask"),
        (lambda agent: agent["action_space"]["$space"].update(kind="Exec"), "there is no space 'Exec'"),
        (lambda agent: agent["action_space"]["$space"].update(n=0), "action_space cannot be understood"),
        (lambda agent: agent["parameters"]["policy"].popitem(), "the tensors of policy are not those"),
        (lambda agent: agent["carried"].update(_last_state={"$tuple": []}), "the carried memory has shapes"),
        (
            lambda agent: agent["carried"].update(_last_obs={"$array": "random.torch"}),
            "the last observation is none of",
        ),
        (
            lambda agent: agent["carried"].update(_last_obs={"$array": "nope"}),
            "the tensor 'nope' for _last_obs is missing",
        ),
        (lambda agent: agent["normalizer"]["settings"].pop("gamma"), "the normaliser cannot be understood"),
        (lambda agent: agent["normalizer"].update(rewards=[1, 2, 3]), "the normaliser cannot be understood"),
        (lambda agent: agent["random"].update(model={}), "random states cannot be understood"),
        (lambda agent: agent["random"]["model"].update(state={"$array": "random.torch"}), "random states cannot be"),
        (lambda agent: agent.update(algorithm=[]), r"was saved by \[\]"),
        (lambda agent: agent["carried"].update(_last_state={"a": 1}), "the carried memory is no tuple of tensors"),
        (lambda agent: agent["settings"].update(use_sde={"$device": "nope"}), "use_sde cannot be understood"),
        (lambda agent: agent["settings"].update(learning_rate={"$scalar": ["<f4", 1]}), "no RecurrentPPO can be built"),
    ],
)
def test_a_forged_setting_is_refused(file: Path, edit: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_algorithm(RecurrentPPO, edited(file, edit), device="cpu")


def test_an_optimizer_state_that_is_too_small_for_its_parameters_is_refused(trained: Model, file: Path) -> None:
    """Fused kernels do not check it: they would read beyond the tensor."""
    state = safetensors.torch.load(members_of(file)["policy.optimizer.safetensors"])
    state["state.0.exp_avg"] = torch.zeros(1)
    data = forged(file, {"policy.optimizer.safetensors": safetensors.torch.save(state)})
    with pytest.raises(CheckpointError, match=r"exp_avg of parameter 0 has shape \(1,\)"):
        load_algorithm(RecurrentPPO, data, device="cpu")
    with pytest.raises(CheckpointError, match=r"exp_avg of parameter 0 has shape \(1,\)"):
        check_parameters(trained, read_parameters(data))


def test_kernels_are_those_of_the_device_not_of_the_file(trained: Model, file: Path) -> None:
    def ask(agent: Any) -> None:
        agent["parameters"]["policy.optimizer"]["param_groups"][0].update(fused=None, capturable=True)

    (group,) = load_algorithm(RecurrentPPO, edited(file, ask), device="cpu").policy.optimizer.param_groups
    assert group["fused"] == trained.policy.optimizer.param_groups[0]["fused"]
    assert group["capturable"] is False


def test_a_memory_of_ones_own_that_is_registered_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEMORIES, "own", OwnMemory)
    model = with_own(memory=OwnMemory)
    file = saved(model)
    assert isinstance(load_algorithm(RecurrentPPO, file, device="cpu").policy.memory_actor, Memory)
    monkeypatch.delitem(MEMORIES, "own")
    with pytest.raises(CheckpointError, match="the class 'own' of 'memory', which is not known here"):
        load_algorithm(RecurrentPPO, file, device="cpu")


def test_one_environment_that_is_no_vector_is_wrapped() -> None:
    model = small_ppo(VecNormalize(vectorized(lambda i: Clock(i, ACTION_SPACES["discrete"]), 1)), "lstm").learn(8)
    again = loaded(model, Clock(0, ACTION_SPACES["discrete"]))
    assert again.get_env().num_envs == 1
    assert again.get_vec_normalize_env() is not None
    again.learn(8)
