"""Models of ``sb3_contrib.RecurrentPPO`` become ours: same numbers, and nothing in the file runs unless asked for.

Axes: T steps, B environments.
"""

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from agents import RecurrentPPO
from agents.checkpoint import CheckpointError
from agents.deploy import contrib
from agents.deploy.contrib import import_contrib
from tests.agents.probe_envs import ACTION_SPACES
from tests.pairs import pairwise
from tests.saved_files import Bomb, assert_explodes, members_of, rewritten, saved, zipped
from tests.tolerance import assert_close, close

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "Mlp": spaces.Box(-1.0, 1.0, (3,)),
    "Cnn": spaces.Box(0, 255, (3, 36, 36), np.uint8),
    "MultiInput": spaces.Dict(
        where=spaces.Box(-1.0, 1.0, (2,)), which=spaces.Discrete(3), seen=spaces.Box(0, 255, (3, 36, 36), np.uint8)
    ),
}
MEMORIES: dict[str, dict[str, Any]] = {
    "critic LSTM": {},
    "shared LSTM": dict(shared_lstm=True, enable_critic_lstm=False),
    "no critic LSTM": dict(enable_critic_lstm=False),
}


# Classes that are recognized without unpickling.
KNOWN = dict(activation_fn=nn.ReLU, optimizer_class=torch.optim.AdamW, features_extractor_class=FlattenExtractor)


class Noise(gym.Env[Any, Any]):
    """Observations drawn from the space, rewards of noise, episodes of four steps."""

    def __init__(self, observations: str = "Mlp", actions: str = "discrete", index: int = 0) -> None:
        self.observation_space, self.action_space = OBSERVATIONS[observations], ACTION_SPACES[actions]
        self._rng = np.random.default_rng(index)
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self.observation_space.sample(), float(self._rng.normal()), self._step == 4, False, {}


def noise(observations: str = "Mlp", actions: str = "discrete", n_envs: int = 2) -> DummyVecEnv:
    return DummyVecEnv([lambda i=i: Noise(observations, actions, i) for i in range(n_envs)])  # type: ignore[misc]


def trained(
    observations: str = "Mlp", actions: str = "discrete", *, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any
) -> Any:
    """A model that sb3-contrib really trained for a few steps, so that its optimizer has a state.

    It cannot train on MultiBinary actions (its loss takes them as bytes and fails), so there the model is a new one.
    """
    policy: dict[str, Any] = dict(lstm_hidden_size=5, n_lstm_layers=2, net_arch=[7], **(policy_kwargs or {}))
    if observations == "Cnn":
        policy["features_extractor_kwargs"] = dict(features_dim=6)
    if observations == "MultiInput":
        policy["features_extractor_kwargs"] = dict(cnn_output_dim=6)
    if "gsde" in actions:
        kwargs.update(use_sde=True, sde_sample_freq=2)
        policy["squash_output"] = actions == "squashed gsde"
    settings = dict(n_steps=8, batch_size=8, n_epochs=2, learning_rate=1e-2, seed=1, device="cpu")
    env = noise(observations, actions)
    model = sb3_contrib.RecurrentPPO(f"{observations}LstmPolicy", env, policy_kwargs=policy, **{**settings, **kwargs})
    return model if actions == "multi binary" else model.learn(32)


def outputs(policy: Any, state: Any, observations: list[Any], starts: Tensor) -> list[tuple[Tensor, ...]]:
    """Deterministic actions, values and log-probabilities of T steps of B environments, step by step."""
    policy.set_training_mode(False)
    result = []
    with torch.no_grad():
        for batch, start in zip(observations, starts, strict=True):
            tensors, _ = policy.obs_to_tensor(batch)
            *numbers, state = policy(tensors, state, start, deterministic=True)
            result.append(tuple(part.flatten().float() for part in numbers))
    return result


def assert_same(theirs: Any, ours: RecurrentPPO, observations: str = "Mlp") -> None:
    """The same outputs, and the same state of the optimizer for each parameter."""
    OBSERVATIONS[observations].seed(5)
    env = noise(observations, n_envs=3)
    batches: list[Any] = [env.reset() for _ in range(9)]
    starts = torch.zeros(9, 3)
    starts[0], starts[4, 1], starts[5, 0], starts[8, 2] = 1, 1, 1, 1
    lstm = theirs.policy.lstm_actor
    zeros = torch.zeros(lstm.num_layers, 3, lstm.hidden_size)
    left = outputs(theirs.policy, RNNStates((zeros, zeros), (zeros, zeros)), batches, starts)
    right = outputs(ours.policy, ours.policy.initial_state(3), batches, starts.bool())
    for step, numbers in enumerate(zip(left, right, strict=True)):
        for name, one, other in zip(("actions", "values", "log-probabilities"), *numbers, strict=True):
            assert close(other, one), f"{name} at step {step}"
    assert_same_optimizer(theirs, ours)


def assert_same_optimizer(theirs: Any, ours: RecurrentPPO) -> None:
    """The same moments for the same parameter, whatever its number."""
    names = dict(contrib.RENAMED)
    slots = {}
    for name, parameter in theirs.policy.named_parameters():
        prefix = next((prefix for prefix in names if name.startswith(prefix)), "")
        slots[names.get(prefix, "") + name.removeprefix(prefix)] = theirs.policy.optimizer.state[parameter]
    for name, parameter in ours.policy.named_parameters():
        mine = ours.policy.optimizer.state[parameter]
        assert slots[name].keys() == mine.keys()
        for key, value in slots[name].items():
            assert torch.equal(mine[key], value), (name, key)


CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((observations, "discrete", MEMORIES[memory]) for observations, memory in pairwise(OBSERVATIONS, MEMORIES)),
    *(("Mlp", actions, {}) for actions in ACTION_SPACES),
    ("Cnn", "discrete", dict(share_features_extractor=False)),
    ("Mlp", "discrete", KNOWN),
]


@pytest.mark.parametrize(("observations", "actions", "policy_kwargs"), CASES)
def test_an_imported_agent_gives_the_same_numbers(
    observations: str, actions: str, policy_kwargs: dict[str, Any]
) -> None:
    theirs = trained(observations, actions, policy_kwargs=policy_kwargs)
    ours = import_contrib(saved(theirs), noise(observations, actions), device="cpu")
    assert_same(theirs, ours, observations)
    assert {key: ours.policy_kwargs[key] for key in policy_kwargs} == policy_kwargs


def test_settings_and_counters_come_along() -> None:
    schedules = dict(clip_range=LinearSchedule(0.3, 0.1, 1.0), learning_rate=ConstantSchedule(1e-3))
    theirs = trained(gamma=0.9, ent_coef=0.01, target_kl=0.5, max_grad_norm=0.2, **schedules)
    ours: Any = import_contrib(saved(theirs), noise(), device="cpu")
    for name in ("gamma", "ent_coef", "target_kl", "max_grad_norm", "n_steps", "batch_size", "n_epochs", "seed"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("num_timesteps", "_n_updates", "_total_timesteps"):
        assert getattr(ours, name) == getattr(theirs, name) > 0, name
    assert [ours.clip_range(p) for p in (1.0, 0.4)] == [theirs.clip_range(p) for p in (1.0, 0.4)]
    assert ours.lr_schedule(0.5) == 1e-3
    assert ours.policy.optimizer.param_groups[0]["lr"] == theirs.policy.optimizer.param_groups[0]["lr"]


def test_an_imported_agent_predicts_learns_and_is_saved_as_ours(tmp_path: Path) -> None:
    theirs = trained()
    theirs.save(tmp_path / "contrib")
    ours = import_contrib(tmp_path / "contrib", noise(), device="cpu")
    observation, starts = np.full((2, 3), 0.25, np.float32), np.ones(2, dtype=bool)
    left, left_state = theirs.predict(observation, episode_start=starts, deterministic=True)
    right, right_state = ours.predict(observation, episode_start=starts, deterministic=True)
    np.testing.assert_array_equal(left, right)
    for one, other in zip(left_state, right_state, strict=True):
        assert_close(one, other)
    ours.learn(32, reset_num_timesteps=False)
    assert ours.num_timesteps == theirs.num_timesteps + 32
    again = RecurrentPPO.load(saved(ours), device="cpu")
    assert all(map(torch.equal, again.policy.parameters(), ours.policy.parameters()))
    with pytest.raises(CheckpointError, match=r"is no model that sb3_contrib\.RecurrentPPO saved"):
        import_contrib(saved(ours), noise())


def test_spaces_stand_in_for_an_environment() -> None:
    theirs, given = trained(), dict(observation_space=OBSERVATIONS["Mlp"], action_space=ACTION_SPACES["discrete"])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ours = import_contrib(saved(theirs), device="cpu", **given)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    assert ours.get_env() is None
    assert_same(theirs, ours)
    with pytest.raises(CheckpointError, match=r"spaces only pickled.*import_contrib\(path, env\).*allow_pickle=True"):
        import_contrib(saved(theirs), device="cpu")


# What is pickled


class Own(FlattenExtractor):
    """An extractor of the user's own."""


def test_a_class_of_the_users_is_required() -> None:
    theirs = trained(policy_kwargs=dict(features_extractor_class=Own))
    file = saved(theirs)
    asked = r"policy_kwargs only pickled.*policy_kwargs=\.\.\..*test_contrib_import\.Own"
    with pytest.raises(CheckpointError, match=asked):
        import_contrib(file, noise(), device="cpu")
    ours = import_contrib(file, noise(), device="cpu", policy_kwargs=theirs.policy_kwargs)
    assert isinstance(ours.policy.features_extractor, Own)
    assert_same(theirs, ours)


@pytest.mark.parametrize("name", ["learning_rate", "clip_range", "clip_range_vf"])
def test_a_schedule_that_is_a_function_is_required_to_learn(name: str) -> None:
    """Versions 2.0 to 2.3 pickle even a constant clip range as a function."""
    theirs = trained(**{name: lambda progress: 1e-2 * progress})
    file = saved(theirs)
    with pytest.warns(UserWarning, match=rf"{name} only pickled.*the agent acts.*{name}=\.\.\..*function"):
        ours = import_contrib(file, noise(), device="cpu")
    assert_same(theirs, ours)
    with pytest.raises(ValueError, match=f"only names its {name}"):
        ours.learn(16)
    ours = import_contrib(file, noise(), device="cpu", **{name: 0.125})
    ours.learn(16)
    assert_same(theirs, import_contrib(file, noise(), device="cpu", **{name: 0.125}))


def test_with_pickles_allowed_nothing_need_be_given() -> None:
    theirs = trained(
        actions="box",
        policy_kwargs=dict(features_extractor_class=Own, activation_fn=nn.ReLU),
        learning_rate=lambda progress: 1e-2 * progress,
    )
    ours = import_contrib(saved(theirs), allow_pickle=True, device="cpu")
    assert ours.observation_space == theirs.observation_space
    assert ours.lr_schedule(0.5) == 5e-3
    assert_same(theirs, ours)
    assert import_contrib(saved(theirs), noise(actions="box"), allow_pickle=True, device="cpu").get_env() is not None
    with pytest.raises(CheckpointError, match="action_space does not match"):
        import_contrib(saved(theirs), noise(), allow_pickle=True, device="cpu")


@pytest.mark.parametrize("field", ["policy_class", "observation_space", "_last_obs", "ep_info_buffer", "clip_range"])
def test_no_pickle_is_run_unless_it_is_allowed(tmp_path: Path, field: str) -> None:
    file = saved(trained())
    data = json.loads(members_of(file)["data"])
    data[field][":serialized:"] = base64.b64encode(pickle.dumps(Bomb(tmp_path / "exploded"))).decode()
    forged = rewritten(file, {"data": json.dumps(data).encode()})
    import_contrib(forged, noise(), device="cpu")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises((ValueError, TypeError, AttributeError, AssertionError, KeyError)):
        import_contrib(forged, allow_pickle=True, device="cpu").learn(1)
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("member", ["policy.pth", "policy.optimizer.pth"])
def test_weights_that_are_a_pickle_of_something_else_are_refused(tmp_path: Path, member: str) -> None:
    buffer, file, payload = io.BytesIO(), saved(trained()), pickle.dumps(Bomb(tmp_path / "exploded"))
    torch.save({"weight": Bomb(tmp_path / "exploded")}, buffer)
    for data in (buffer.getvalue(), payload):
        with pytest.raises(CheckpointError, match=f"{member} holds no plain tensors"):
            import_contrib(rewritten(file, {member: data}), noise(), device="cpu")
    assert_explodes(payload, tmp_path / "exploded")


# What is something else


def test_what_does_not_fit_says_what_to_give() -> None:
    for content in (b"", b"text", b"PK\x03\x04"):
        with pytest.raises(CheckpointError, match=r"is no model that sb3_contrib\.RecurrentPPO saved"):
            import_contrib(io.BytesIO(content), noise())
    file = saved(trained())
    with pytest.raises(CheckpointError, match="compressed, which no saved model is"):
        import_contrib(zipped(members_of(file), zipfile.ZIP_DEFLATED), noise())
    with pytest.raises(CheckpointError, match=r"do not fit|weights are not those of"):
        import_contrib(file, noise(), policy_kwargs=dict(lstm_hidden_size=6), device="cpu")
    with pytest.raises(CheckpointError, match="RecurrentPPO has no setting learning_rat"):
        import_contrib(file, noise(), learning_rat=1)
    with pytest.raises(CheckpointError, match="custom_objects are for allow_pickle=True"):
        import_contrib(file, noise(), custom_objects={"learning_rate": 1.0})
