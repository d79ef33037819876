"""Saved agents: what goes in comes out, and training goes on as if nothing had happened."""

import copy
import inspect
import io
import json
import math
import pickle
import random
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage
from torch import nn

from agents import RecurrentA2C, RecurrentPPO
from agents.checkpoint import CheckpointError, SavedAgent, capture_algorithm, normalizer, read_parameters
from agents.checkpoint.random_states import process_states
from agents.checkpoint.values import Decoder, Encoder
from agents.deploy.player import Player
from agents.memory import MEMORIES
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
from tests.saved_files import edited, loaded, saved

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


class OwnFloat(float):
    """No float of JSON's."""


class Opaque:
    """No data."""


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


def moments(wrapper: Any) -> Any:
    parts = [wrapper.obs_rms, wrapper.ret_rms]
    return [(np.array(part.mean), np.array(part.var), float(part.count)) for part in parts]


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
        **dict(learning_rate=LinearSchedule(1e-3, 1e-4, 0.5), n_steps=12, gamma=0.9, gae_lambda=0.8, ent_coef=0.01),
        **dict(vf_coef=0.7, max_grad_norm=0.3, normalize_advantage=cls is RecurrentA2C, use_sde=True, seed=11),
        **dict(sde_sample_freq=4, stats_window_size=17, tensorboard_log="logs", verbose=0, sequence_length=6),
        autocast="bfloat16",
        policy_kwargs=dict(memory="gru", memory_kwargs=dict(hidden_size=5), log_std_init=np.float32(-0.5)),
    )
    if cls is RecurrentPPO:
        settings.update(batch_size=24, n_epochs=3, clip_range=LinearSchedule(0.3, 0.1, 1.0), clip_range_vf=0.5)
        settings.update(target_kl=0.1, refresh_states=True, burn_in=3)
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


def test_a_file_from_before_a_setting_has_its_default() -> None:
    model = small_ppo(clocks(), autocast="bfloat16", refresh_states=True, burn_in=2)
    file = saved(model, exclude=["autocast", "refresh_states", "burn_in"])
    again: Any = RecurrentPPO.load(file, device="cpu")
    assert again.autocast is again.policy.autocast is None
    assert (again.refresh_states, again.burn_in, again.rollout_buffer.burn_in) == (False, 0, 0)


def test_a_file_with_the_former_name_of_initialization_loads() -> None:
    kwargs = dict(memory_kwargs=dict(hidden_size=8, initialization="torch"))
    model = small_ppo(clocks(), "lstm", policy_kwargs=kwargs)

    def rename(agent: Any) -> None:
        stored = agent["settings"]["policy_kwargs"]["memory_kwargs"]
        stored["initialisation"] = stored.pop("initialization")

    again = RecurrentPPO.load(edited(saved(model), rename), device="cpu")
    assert again.policy_kwargs["memory_kwargs"]["initialization"] == "torch"
    assert_same_weights(model, again)


def test_policies_and_optimizers_by_name_come_back() -> None:
    models = [small_ppo(clocks(), cls=RecurrentA2C, use_rms_prop=False)]
    for policy in ("MlpLstmPolicy", "MlpGruPolicy", "MlpRnnPolicy"):
        models.append(RecurrentPPO(policy, clocks(), n_steps=8, batch_size=8, device="cpu", seed=1))
    for model in models:
        again = loaded(model)
        assert type(again.policy) is type(model.policy)
        assert type(again.policy.optimizer) is torch.optim.Adam
        assert_same_weights(model, again)


class Pictures(gym.Env[Any, Any]):
    """Images, or images and numbers in a Dict; the image's bytes say the step, and the reward is half of it."""

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
        return self._observation(), 0.5 * self._step, self._step == 5, False, {}

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


def test_a_file_holds_json_and_safetensors_and_no_pickle(trained: Model) -> None:
    """``data`` is JSON for ``huggingface_sb3.package_to_hub``, which reads a summary there."""
    with zipfile.ZipFile(saved(trained)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert sorted(members) == [
        *("agent.json", "data", "manifest.json"),
        *("policy.optimizer.safetensors", "policy.safetensors", "run.safetensors"),
    ]
    for name, data in members.items():
        safetensors.torch.load(data) if name.endswith(".safetensors") else json.loads(data)
        with pytest.raises((pickle.UnpicklingError, ValueError, KeyError, EOFError, IndexError)):
            pickle.loads(data)
    summary = json.loads(members["data"])
    assert (summary["algorithm"], summary["settings"]["n_steps"]) == ("RecurrentPPO", trained.n_steps)


def test_parameters_of_a_file_are_set_on_an_agent(trained: Model, tmp_path: Path) -> None:
    trained.save(tmp_path / "agent")
    assert SavedAgent(tmp_path / "agent").n_envs == 2
    assert_same_weights(trained, RecurrentPPO.load(tmp_path / "agent", device="cpu"))
    for parameters in (read_parameters(tmp_path / "agent"), tmp_path / "agent"):
        other = small_ppo(VecNormalize(clocks(n_envs=2)), "lstm", "separate", seed=8)
        other.set_parameters(parameters, device="cpu")
        assert_same_weights(trained, other)


def test_a_file_of_the_first_format_loads() -> None:
    """It was written by the version in which files came up, of an agent trained with a normalizer for 32 steps."""
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
    assert again.policy.optimizer.param_groups[0]["amsgrad"] is False, "its optimizer is the one it was trained with"
    Player.load(file).act(observation[0])


# Values and spaces


def round_trip(value: Any) -> Any:
    encoder = Encoder("this")
    encoded = json.loads(json.dumps(encoder.encode(value, "it"), allow_nan=False))
    tensors = safetensors.torch.load(safetensors.torch.save(encoder.tensors))
    return Decoder(tensors, "file").decode(encoded, "it")


VALUES = [
    *(None, True, 2**100, -0.1, math.inf, -math.inf, math.nan, "text", "a:b", int),
    *([1, (2, [3.0, ()]), {}], {"pi": [64, 64], "vf": (32,), "": None}, {1, 2}, frozenset({"a"})),
    {1: "one", (2, 3): "tuple", None: "none", "$tuple": "dollar", 2.5: [1]},
    *(np.float32(0.1), np.float64(0.1), np.float16("inf"), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True)),
    *(np.arange(6, dtype=np.int16).reshape(2, 3).T, np.array([0.1, np.nan]), np.zeros((0, 3), np.float32)),
    *(np.array(2.5), np.array([True, False]), np.dtype("float32"), np.float32),
    *(torch.float64, torch.arange(3).to(torch.bfloat16), torch.tensor(1.5), torch.device("cpu"), Path("a") / "b"),
    *(nn.Tanh, nn.LeakyReLU, torch.optim.AdamW, NatureCNN, CombinedExtractor, MEMORIES["gru"]),
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


NO_DATA = [
    *(Opaque(), object(), OwnFloat(1.5), np.array(["a"]), np.array([Opaque()]), 1j, b"bytes", iter([])),
    *(spaces.Text(5), spaces.Graph(spaces.Discrete(2), None)),
]


@pytest.mark.parametrize("value", NO_DATA)
def test_what_is_no_data_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"outer\.inner\.1 is a"):
        Encoder("this").encode({"inner": [0, value]}, "outer")


# Training goes on


def going_on(model: Model, n: int = 48) -> tuple[Model, Model]:
    """The model trained on, and its copy from a file trained on in a copy of the environment as it stood."""
    env = copy.deepcopy(model.get_env().unwrapped)
    file = saved(model)
    model.learn(n, reset_num_timesteps=False)
    again = type(model).load(file, env, device="cpu", force_reset=False)
    again.learn(n, reset_num_timesteps=False)
    return model, again


def assert_same_run(one: Model, other: Model) -> None:
    assert_same_weights(one, other)
    for name in ("num_timesteps", "_total_timesteps", "_n_updates", "_current_progress_remaining", "_episode_num"):
        assert_equal(getattr(one, name), getattr(other, name))
    for name in ("_last_obs", "_last_episode_starts", "_last_state"):
        assert_equal(getattr(one, name), getattr(other, name))
    assert one.random_generator.bit_generator.state == other.random_generator.bit_generator.state


DROPOUT = dict(memory_kwargs=dict(hidden_size=6, num_layers=2, dropout=0.3))
GOING_ON: dict[str, Any] = {
    **{
        f"{memory} {cls.__name__}": lambda memory=memory, cls=cls: small_ppo(
            clocks(), memory, "separate", cls=cls, learning_rate=LinearSchedule(1e-2, 0, 1.0)
        )
        for memory, cls in each(ALL_MEMORIES, [RecurrentPPO, RecurrentA2C])
    },
    "noise of box actions": lambda: small_ppo(clocks("box"), "lstm", policy_kwargs=dict(activation_fn=nn.ELU)),
    "noise of gsde": lambda: small_ppo(clocks("gsde"), "lstm", actions="gsde"),
    "dropout": lambda: small_ppo(clocks(), "lstm", policy_kwargs=DROPOUT),
    "a normalizer": lambda: small_ppo(VecNormalize(clocks(), clip_obs=3.0, gamma=0.9), "gru"),
}


@pytest.mark.parametrize("make", GOING_ON.values(), ids=GOING_ON)
def test_training_goes_on_to_the_last_bit(make: Any) -> None:
    one, other = going_on(make().learn(72))
    assert_same_run(one, other)
    left, right = one.get_vec_normalize_env(), other.get_vec_normalize_env()
    if left is not None:
        assert_equal([*moments(left), left.returns], [*moments(right), right.returns])


def test_saving_moves_nothing() -> None:
    def run(save: bool) -> Model:
        model = small_ppo(VecNormalize(clocks()), "lstm").learn(48)
        if save:
            saved(model)
        return model.learn(48, reset_num_timesteps=False)

    assert_same_run(run(save=False), run(save=True))


@pytest.mark.parametrize("actions", ["discrete", "box", "gsde"])
def test_a_run_that_a_callback_saved_between_updates_ends_as_an_uninterrupted_one(actions: str) -> None:
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
    again = RecurrentPPO.load(file, env, device="cpu", force_reset=False)
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
    again = RecurrentPPO.load(files[0], clocks(), device="cpu", force_reset=False)
    assert again._last_obs is None
    assert_equal(again._last_state, model.policy.initial_state(3))
    again.learn(24, reset_num_timesteps=False)


# Loading as Stable-Baselines3 loads


def test_another_number_of_environments_starts_new_episodes(trained: Model) -> None:
    again = loaded(trained, clocks(n_envs=5), force_reset=False)
    assert again.n_envs == again.get_env().num_envs == 5
    assert again._last_obs is None
    assert all(len(part) == 5 for part in again._last_state)
    assert again.num_timesteps == trained.num_timesteps
    again.learn(40, reset_num_timesteps=False)
    assert loaded(trained, clocks(n_envs=2))._last_obs is None
    assert_equal(loaded(trained, clocks(n_envs=2), force_reset=False)._last_obs, trained._last_obs)


def test_settings_are_changed_by_name_and_checked(trained: Model) -> None:
    again = loaded(trained, learning_rate=0.25, n_steps=16, stats_window_size=7, custom_objects={"gamma": 0.5})
    assert (again.learning_rate, again.n_steps, again._stats_window_size, again.gamma) == (0.25, 16, 7, 0.5)
    assert again.rollout_buffer.buffer_size == 16
    assert again.rollout_buffer.gamma == 0.5
    with pytest.raises(CheckpointError, match="RecurrentPPO has no setting learning_rat to change"):
        loaded(trained, learning_rat=0.1)
    with pytest.raises(CheckpointError, match=r"gamma must be between 0 and 1, got 9\.9"):
        loaded(trained, gamma=9.9)


def test_policy_kwargs_must_equal_the_stored_ones(trained: Model) -> None:
    for same in (trained.policy_kwargs, None):
        assert_same_weights(loaded(trained, policy_kwargs=same), trained)
    for other in ({"net_arch": [8]}, {"log_std_init": np.zeros(2)}):
        with pytest.raises(CheckpointError, match="policy kwargs do not equal the stored policy kwargs"):
            loaded(trained, policy_kwargs={**trained.policy_kwargs, **other})


def test_spaces_and_algorithm_must_be_those_of_the_file(trained: Model) -> None:
    plain = small_ppo(clocks(), "lstm")
    for model, env, message in (
        (trained, clocks("box", n_envs=2), "Action spaces do not match"),
        (trained, VecFrameStack(clocks(n_envs=2), 2), "give an environment as it was before normalization"),
        (plain, VecFrameStack(clocks(), 2), "Observation spaces do not match"),
    ):
        with pytest.raises(CheckpointError, match=message):
            loaded(model, env)
    with pytest.raises(CheckpointError, match=r"saved by RecurrentPPO, not by RecurrentA2C; use RecurrentPPO\.load"):
        RecurrentA2C.load(saved(plain))


def test_loading_restores_the_random_states_with_an_environment_and_leaves_them_without(trained: Model) -> None:
    file = saved(trained)
    before = process_states()
    assert (
        RecurrentPPO.load(file, device="cpu").random_generator.bit_generator.state
        == trained.random_generator.bit_generator.state
    )
    assert_equal(process_states(), before)
    drawn = [random.random(), np.random.random(), float(torch.rand(()))]  # noqa: NPY002
    RecurrentPPO.load(file, clocks(n_envs=2), device="cpu")
    assert [random.random(), np.random.random(), float(torch.rand(()))] == drawn  # noqa: NPY002


def test_a_new_seed_decides(trained: Model) -> None:
    def continued(seed: int) -> Model:
        return loaded(trained, clocks(n_envs=2), seed=seed).learn(32)

    assert_same_weights(continued(7), continued(7))
    with pytest.raises(AssertionError):
        assert_same_weights(continued(7), continued(8))


def test_an_agent_that_was_loaded_for_prediction_learns_after_set_env(trained: Model) -> None:
    again = loaded(trained)
    again.set_env(normalizer(again, clocks(n_envs=2)))
    again.learn(32)


def test_one_environment_that_is_no_vector_is_wrapped() -> None:
    model = small_ppo(VecNormalize(vectorized(lambda i: Clock(i, ACTION_SPACES["discrete"]), 1)), "lstm").learn(8)
    again = loaded(model, Clock(0, ACTION_SPACES["discrete"]))
    assert again.get_env().num_envs == 1
    assert again.get_vec_normalize_env() is not None
    again.learn(8)


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
def test_a_class_of_the_users_is_saved_by_name_and_required_to_load(name: str) -> None:
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


def test_a_policy_of_the_users_is_saved_by_name_and_required_to_load() -> None:
    model = RecurrentPPO(OwnPolicy, clocks(), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(
        CheckpointError, match=r"policy_class is '.*:OwnPolicy'.*custom_objects={'policy_class': OwnPolicy}"
    ):
        loaded(model)
    assert type(loaded(model, custom_objects={"policy_class": OwnPolicy}).policy) is OwnPolicy
    assert type(loaded(model, policy_class=OwnPolicy).policy) is OwnPolicy


SCHEDULES: dict[str, Any] = {
    "linear": lambda progress: 3e-4 * progress,
    "stepped": lambda progress: 0.2 if progress > 0.3 else 0.05,
    "warmed up": lambda progress: 1e-3 * min((1 - progress) / 0.07, 1.0),
    "cosine": lambda progress: 0.5 * 2e-4 * (1 - math.cos(math.pi * progress)),
    "exponential": lambda progress: np.float32(1e-2) * np.exp(-5 * (1 - progress)),
    "constant": lambda progress: 0.1,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_is_a_function_is_kept_as_data(name: str) -> None:
    """To a millionth of its largest value, everywhere but within 1e-6 of a jump; a straight line to the last bits."""
    schedule = SCHEDULES[name]
    kept = loaded(small_ppo(clocks(), learning_rate=schedule, clip_range=schedule))
    again = loaded(kept)
    progress = [*np.random.default_rng(0).random(2000), 0.0, 1.0]
    expected = np.array([float(schedule(float(p))) for p in progress])
    far = abs(np.array(progress) - 0.3) > 1e-6
    for function in (kept.lr_schedule, kept.clip_range, again.lr_schedule, again.clip_range):
        found = np.array([function(float(p)) for p in progress])
        precision = 1e-15 if name == "linear" else 1e-6
        assert abs(found - expected)[far].max() <= precision * expected.max()


def test_a_schedule_that_is_a_function_is_learned_on_with() -> None:
    linear = SCHEDULES["linear"]
    model = small_ppo(clocks(), learning_rate=linear, clip_range=SCHEDULES["stepped"]).learn(24)
    again = loaded(model, clocks()).learn(24)
    assert again.policy.optimizer.param_groups[0]["lr"] == linear(again._current_progress_remaining)


def drawing_lots() -> Any:
    rng = np.random.default_rng(0)
    return lambda progress: float(rng.random())


@pytest.mark.parametrize("name", ["learning_rate", "clip_range"])
def test_a_schedule_that_is_no_function_of_progress_alone_is_required_to_learn_on(name: str) -> None:
    model = small_ppo(clocks(), "lstm", **{name: drawing_lots()})
    with pytest.warns(UserWarning, match=rf"saved, but of {name} .*holds the name alone.*'{name}': \.\.\."):
        file = saved(model)
    with pytest.raises(CheckpointError, match=rf"{name} is '.*drawing_lots.*custom_objects={{'{name}': "):
        RecurrentPPO.load(file, clocks(), device="cpu")
    again = RecurrentPPO.load(file, device="cpu")
    observation = np.ones((2, 3), np.float32)
    assert_equal(again.predict(observation, deterministic=True), model.predict(observation, deterministic=True))
    again.set_env(clocks())
    with pytest.raises(ValueError, match=f"loaded to act: its file only names its {name}.*'{name}': "):
        again.learn(24)
    with pytest.raises(CheckpointError, match=f"loaded to act, without {name}"):
        saved(again)
    for given in ({"custom_objects": {name: own_schedule}}, {name: 0.1}):
        RecurrentPPO.load(file, clocks(), device="cpu", **given).learn(24)


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
    for given in (OwnMemory, f"{__name__}:OwnMemory"):
        assert_same_weights(loaded(model, custom_objects={"memory": given}), model)


def test_a_memory_of_the_users_that_is_registered_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEMORIES, "own", OwnMemory)
    file = saved(with_own(memory=OwnMemory))
    assert isinstance(RecurrentPPO.load(file, device="cpu").policy.memory_actor, OwnMemory)
    monkeypatch.delitem(MEMORIES, "own")
    with pytest.raises(CheckpointError, match="the class 'own' of 'memory', which is not known here"):
        RecurrentPPO.load(file, device="cpu")


def test_what_is_no_data_stops_saving_before_anything_is_written(tmp_path: Path) -> None:
    kwargs = dict(features_extractor_class=Raw, features_extractor_kwargs={})
    model = small_ppo(clocks(), "lstm", policy_kwargs=kwargs)
    model.policy_kwargs["features_extractor_kwargs"]["graph"] = Opaque()
    place = rf"policy_kwargs\.features_extractor_kwargs\.graph is a {MODULE}\.Opaque"
    with pytest.raises(CheckpointError, match=rf"{place}.*exclude=\[\"policy_kwargs\"\]"):
        model.save(tmp_path / "folder" / "agent.zip")
    assert list(tmp_path.iterdir()) == []


class Shy(RecurrentPPO):
    """An algorithm of the user's own, with a setting and an attribute."""

    def __init__(self, *args: Any, courage: float = 0.5, **kwargs: Any) -> None:
        self.courage = courage
        self.diary = {"seen": (1, 2)}
        super().__init__(*args, **kwargs)


def test_an_algorithm_of_the_users_keeps_its_settings_and_what_it_includes() -> None:
    model = small_ppo(clocks(), "lstm", cls=Shy, courage=0.75)
    model.diary["seen"] = (3, 4)
    for how, courage, seen in (
        ({}, 0.75, (3, 4)),
        ({"include": ["diary"]}, 0.75, (3, 4)),
        ({"exclude": ["diary"]}, 0.75, (1, 2)),
        ({"exclude": ["diary", "courage"], "include": ["diary"]}, 0.5, (3, 4)),
    ):
        again = Shy.load(saved(model, **how), device="cpu")
        assert (again.courage, again.diary) == (courage, {"seen": seen})
    assert Shy.load(saved(small_ppo(clocks(), "lstm")), device="cpu").courage == 0.5


def test_what_a_user_put_on_an_agent_is_kept_or_named() -> None:
    model = small_ppo(clocks(), "lstm", cls=Shy)
    model.notes, model.scores, model.lookup = ["a", 1], np.arange(3.0), {(1, 2): torch.ones(2)}
    model.probe, model.helper, model.diary = Opaque(), own_schedule, {"graph": [Opaque()]}
    with pytest.warns(UserWarning, match="the attributes diary, helper, probe are no data and are not in it"):
        file = saved(model)
    again: Any = Shy.load(file, device="cpu")
    assert_equal([again.notes, again.scores, again.lookup], [model.notes, model.scores, model.lookup])
    assert not hasattr(again, "probe")
    assert again.diary == {"seen": (1, 2)}


def test_a_tensor_of_what_is_not_kept_is_kept_where_it_is_data() -> None:
    model, shared = small_ppo(clocks(), "lstm"), torch.ones(3)
    model.mixed, model.plain = [shared, Opaque()], shared
    with pytest.warns(UserWarning, match="the attributes mixed are no data"):
        again = loaded(model)
    assert_equal(again.plain, shared)


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


def test_weights_that_are_not_finite_are_reported(trained: Model) -> None:
    model = loaded(trained)
    with torch.no_grad():
        model.policy.action_net.bias[0] = math.nan
    for load in (lambda file: RecurrentPPO.load(file, device="cpu"), Player.load):
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
