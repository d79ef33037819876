"""Observation spaces of every kind and nesting: trained on, saved, loaded and evaluated, or refused with the cure."""

import io
import tracemalloc
import warnings
from typing import Any

import gymnasium as gym
import hypothesis.strategies as st
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import HealthCheck, given, settings
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import envs
from agents import MEMORIES, Player, RecurrentPPO
from tests.pairs import each

BYTES = np.uint8
Space = spaces.Space[Any]


class Sampled(gym.Env[Any, Any]):
    """Observations are samples of the space; episodes last 3 and 4 steps in turn and are truncated in turn."""

    def __init__(self, space: Space) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.episode = self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episode, self.t = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over, odd = self.t == 3 + self.episode % 2, self.episode % 2 == 1
        return self.observe(), float(action), over and odd, over and not odd, {}

    def observe(self) -> Any:
        return self.observation_space.sample()


def box(low: float, high: float, shape: tuple[int, ...], dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


KINDS: dict[str, tuple[Space, str]] = {
    "vector": (box(-np.inf, np.inf, (3,)), "3 measurements -> flatten"),
    "no axis": (box(0, 1, ()), "1 measurement -> flatten"),
    "doubles": (box(-1, 1, (2, 2), np.float64), "2 x 2 measurements -> flatten"),
    "memory of a machine": (box(0, 255, (128,), BYTES), "128 measurements -> scaled"),
    "gray image": (box(0, 255, (40, 44), BYTES), "image 40 x 44, 1 channel -> image"),
    "image, channels last": (box(0, 255, (40, 44, 3), BYTES), "image 40 x 44, 3 channels -> nature_cnn"),
    "image, channels first": (box(0, 255, (3, 40, 44), BYTES), "image 40 x 44, 3 channels -> nature_cnn"),
    "small image": (box(0, 255, (9, 12, 3), BYTES), "image 9 x 12, 3 channels -> impala"),
    "frames": (box(0, 255, (4, 40, 40), BYTES), "image 40 x 40, 4 frames -> nature_cnn"),
    "frames of colors": (box(0, 255, (4, 40, 40, 3), BYTES), "image 40 x 40, 4 frames, 3 channels -> image"),
    "frames of gray": (box(0, 255, (4, 40, 40, 1), BYTES), "image 40 x 40, 4 frames, 1 channel -> image"),
    "image of floats": (box(0, 1, (40, 40, 3)), "image 40 x 40, 3 channels -> image"),
    "grid of bytes": (box(0, 255, (7, 7, 3), BYTES), "grid 7 x 7, 3 channels, categories of up to 256 -> embedding"),
    "board": (box(-1, 9, (4, 6), np.int64), "grid 4 x 6, 1 channel, categories of up to 11 -> embedding"),
    "planes": (box(0, 1, (10, 10, 6), np.bool_), "grid 10 x 10, 6 channels, categories of up to 2 -> embedding"),
    "choice": (spaces.Discrete(5), "a category of 5 -> flatten"),
    "choice from 3": (spaces.Discrete(5, start=3), "a category of 5 -> flatten"),
    "large choice": (spaces.Discrete(20_000), "a category of 20000 -> embedding"),
    "choices": (spaces.MultiDiscrete([3, 2], start=[1, 0]), "2 categories of up to 3 -> flatten"),
    "choices in rows": (spaces.MultiDiscrete([[3, 2], [4, 5]]), "2 x 2 categories of up to 5 -> flatten"),
    "large choices": (spaces.MultiDiscrete([900, 7]), "2 categories of up to 900 -> embedding"),
    "bits": (spaces.MultiBinary((2, 3)), "2 x 3 bits -> flatten"),
    "text": (spaces.Text(6), "text of up to 6 tokens -> text"),
    "words": (spaces.Sequence(spaces.Discrete(9, start=1)), "text of up to 32 tokens -> text"),
    "sequence": (spaces.Sequence(box(-1, 1, (2,))), "sequence of up to 32 elements of 2 -> sequence"),
    "stacked sequence": (
        spaces.Sequence(spaces.MultiBinary(3), stack=True),
        "sequence of up to 32 elements of 3 -> sequence",
    ),
    "graph": (spaces.Graph(box(-1, 1, (2,)), spaces.Discrete(3)), "graph of up to 32 nodes and 128 edges -> graph"),
    "graph without edges": (spaces.Graph(spaces.Discrete(4), None), "graph of up to 32 nodes and 128 edges -> graph"),
}
REFUSED: dict[str, Space] = {
    "one of several": spaces.OneOf([spaces.Discrete(2), box(0, 1, (2,))]),
    "a sequence of texts": spaces.Sequence(spaces.Text(3)),
    "no number": box(0, 1, (0,)),
}
SMALL: dict[str, Any] = dict(n_steps=6, batch_size=6, n_epochs=1, device="cpu", seed=0)
AROUND = ["environment", "vector of gymnasium", "envs.make"]


def around(space: Space, how: str, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> Any:
    """The environment as a script may give it."""
    if how == "environment":
        return Sampled(space)
    if how == "envs.make":
        return envs.make(lambda: Sampled(space), 2)
    return SyncVectorEnv([lambda: Sampled(space)] * 2, autoreset_mode=mode)


def trained(env: Any, policy: str = "RecurrentPolicy", **kwargs: Any) -> RecurrentPPO:
    """Two rollouts."""
    model = RecurrentPPO(policy, env, policy_kwargs=dict(memory_kwargs=dict(hidden_size=8), **kwargs), **SMALL)
    n_envs = model.n_envs
    return model.learn(2 * 6 * n_envs)


def check_lives(space: Space, how: str, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> RecurrentPPO:
    """Trains, saves, loads, evaluates and acts; the loaded agent acts as the one saved."""
    model = trained(around(space, how, mode))
    file = io.BytesIO()
    model.save(file)
    loaded = RecurrentPPO.load(io.BytesIO(file.getvalue()), around(space, how, mode))
    evaluated = loaded.get_env()
    assert isinstance(evaluated, VecEnv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a Monitor that is not there
        mean, _ = evaluate_policy(loaded, evaluated, n_eval_episodes=2)
    assert 0 <= mean <= 4
    observations = evaluated.reset()
    actions = [agent.predict(observations, deterministic=True)[0] for agent in (model, loaded)]
    np.testing.assert_array_equal(*actions)
    player = Player.load(io.BytesIO(file.getvalue()))
    assert player.act(observations).shape == (model.n_envs,)
    return model


@pytest.mark.parametrize(("kind", "how"), each(KINDS, AROUND))
def test_every_kind_of_observation_is_learned_from_and_said_to_be_what_it_is(kind: str, how: str) -> None:
    space, said = KINDS[kind]
    assert check_lives(space, how).policy.observation_lines() == [said]


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("kind", ["vector", "no axis", "choice", "text", "graph"])
def test_a_vector_of_every_autoreset_mode_is_learned_from(kind: str, mode: AutoresetMode) -> None:
    space = KINDS[kind][0]
    check_lives(spaces.Tuple((space, spaces.Dict(a=space))), "vector of gymnasium", mode)


KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6) | st.sampled_from(
    ["a.b", "a/b", "items", "keys", "forward", "training", "type", "window", "mask", "nodes", "text", "", "self"]
)
SLOW = {"frames", "frames of colors", "frames of gray", "image of floats", "large choice", "large choices", "planes"}
LEAVES = st.sampled_from([space for kind, (space, _) in KINDS.items() if kind not in SLOW])
DICTS = (spaces.Dict, spaces.Tuple)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.dictionaries(KEYS, inner, min_size=1, max_size=3).map(spaces.Dict)
        | st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple)
    ),
    max_leaves=4,
)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(space=NESTED.filter(lambda space: isinstance(space, DICTS)), how=st.sampled_from(AROUND))
def test_spaces_of_any_nesting_and_keys_are_learned_from(space: Space, how: str) -> None:
    check_lives(space, how)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("how", AROUND)
def test_what_has_no_form_as_arrays_is_refused_with_its_place_and_the_cure(kind: str, how: str) -> None:
    space = spaces.Dict(fine=spaces.Discrete(2), other=spaces.Tuple((REFUSED[kind],)))
    if kind == "no number":
        space = spaces.Dict(only=REFUSED[kind])
    with pytest.raises((ValueError, NotImplementedError), match=r"(other/0|only).*(wrapper|Wrapper)"):
        trained(around(space, how))


@pytest.mark.parametrize("kind", ["gray image", "frames of colors", "image of floats", "grid of bytes", "large choice"])
def test_images_may_be_scaled_already(kind: str) -> None:
    space = KINDS[kind][0]
    for observed in (space, spaces.Dict(a=space, b=spaces.Discrete(2))):
        trained(Sampled(observed), normalize_images=False)


def test_floats_of_any_range_are_images_where_they_are_said_to_be_scaled() -> None:
    model = trained(Sampled(box(-1, 1, (3, 12, 12))), normalize_images=False)
    assert model.policy.observation_lines() == ["image 12 x 12, 3 channels -> image"]


def test_a_setting_says_otherwise_for_a_part() -> None:
    space = spaces.Dict(camera=box(0, 255, (40, 40, 3), BYTES), grid=KINDS["grid of bytes"][0])
    model = trained(Sampled(space), features_extractor_kwargs=dict(encoders={"grid": "flatten"}))
    assert model.policy.observation_lines() == [
        "camera: image 40 x 40, 3 channels -> nature_cnn",
        "grid: grid 7 x 7, 3 channels, categories of up to 256 -> flatten",
    ]
    with pytest.raises(ValueError, match=r"'grid' of the observation.*reads images of at least 8 x 8"):
        trained(Sampled(space), features_extractor_kwargs=dict(encoders={"grid": "image"}))
    with pytest.raises(ValueError, match="a name in encoders must be 'camera' or 'grid', got 'gird'; did you mean"):
        trained(Sampled(space), features_extractor_kwargs=dict(encoders={"gird": "image"}))


def test_a_tuple_given_as_a_vector_of_stable_baselines3_is_learned_from() -> None:
    space = spaces.Tuple((spaces.Discrete(3, start=1), box(0, 1, (2,))))
    model = trained(DummyVecEnv([lambda: Sampled(space)] * 2))
    assert list(model.observation_space) == ["0", "1"]  # type: ignore[call-overload]


def test_predict_takes_a_tuple_as_its_environment_gives_it_and_not_what_reset_returns() -> None:
    env = Sampled(spaces.Tuple((spaces.Discrete(3), spaces.Dict(a=box(0, 1, (2,))))))
    model = trained(env)
    observation, _ = env.reset()
    flat = {"0": observation[0], "1/a": observation[1]["a"]}
    assert model.predict(observation, deterministic=True)[0] == model.predict(flat, deterministic=True)[0]
    with pytest.raises(ValueError, match=r"observation, info = env.reset\(\)"):
        model.predict(env.reset())
    vector = around(box(0, 1, (2,)), "vector of gymnasium")
    with pytest.raises(ValueError, match=r"observation, info = env.reset\(\)"):
        trained(vector).predict(vector.reset())


def test_predict_of_a_text_says_what_makes_arrays_of_it() -> None:
    env = Sampled(spaces.Text(4))
    with pytest.raises(ValueError, match=r"lacks 'text'.*model.get_env\(\).*envs.as_arrays\(env\)"):
        trained(env).predict(env.reset()[0])


@pytest.mark.parametrize("memory", MEMORIES)
def test_acting_on_a_large_choice_takes_no_table_of_all_pairs(memory: str) -> None:
    n = 20_000
    owner = MEMORIES[memory](n)
    step = owner.numpy_index_step()
    if step is None:
        return
    state = tuple(part.numpy() for part in owner.initial_state(2))
    tracemalloc.start()
    step(np.array([1, n - 1]), state, np.zeros(2, dtype=bool))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * n
