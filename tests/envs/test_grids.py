"""MiniGrid's observations made without copies of the world are MiniGrid's own."""

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest

import envs
from envs.vector.grids import _observation, see_directly

minigrid_env = pytest.importorskip("minigrid.minigrid_env")
world_object = pytest.importorskip("minigrid.core.world_object")
MiniGridEnv: Any = minigrid_env.MiniGridEnv

# left, right, forward, pick up, drop, toggle, done
CHANCES = [0.15, 0.15, 0.4, 0.1, 0.05, 0.1, 0.05]


def ids() -> list[str]:
    """An id of every kind of world, but for those whose patterns the package was published without."""
    known = [id for id in gymnasium.registry if id.startswith("MiniGrid-") and "WFC" not in id]
    worlds = {str(gymnasium.spec(id).entry_point): id for id in known}
    return [*worlds.values(), "BabyAI-GoToLocal-v0", "BabyAI-UnlockToUnlock-v0", "BabyAI-PutNextS5N2Carrying-v0"]


def made(id: str, direct: bool, **kwargs: Any) -> Any:
    env = gymnasium.make(id, disable_env_checker=True, **kwargs)
    if direct:
        see_directly(env)
    assert ("gen_obs" in vars(env.unwrapped)) == direct
    return env


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one) == list(other)
    assert one["image"].dtype == other["image"].dtype
    assert one["image"].flags.writeable
    np.testing.assert_array_equal(one["image"], other["image"])
    assert [one[key] for key in one if key != "image"] == [other[key] for key in other if key != "image"]


def assert_same_episodes(direct: Any, plain: Any, n_steps: int = 40) -> None:
    rng = np.random.default_rng(0)
    assert_same(direct.reset(seed=1)[0], plain.reset(seed=1)[0])
    for _ in range(n_steps):
        action = int(rng.choice(7, p=CHANCES))
        (observation, *rest), (expected, *expected_rest) = direct.step(action), plain.step(action)
        assert_same(observation, expected)
        assert rest == expected_rest
        if rest[1] or rest[2]:
            assert_same(direct.reset()[0], plain.reset()[0])


@pytest.mark.parametrize("id", ids())
def test_every_world_is_seen_as_minigrid_shows_it(id: str) -> None:
    assert_same_episodes(made(id, True), made(id, False))


@pytest.mark.parametrize("kwargs", [{"agent_view_size": 3}, {"agent_view_size": 9}, {"see_through_walls": True}])
def test_views_of_any_size_and_through_walls_are_the_same(kwargs: dict[str, Any]) -> None:
    direct, plain = (made("MiniGrid-Playground-v0", direct, **kwargs) for direct in (True, False))
    assert_same_episodes(direct, plain, n_steps=200)


def test_what_is_carried_is_seen() -> None:
    direct, plain = (made("MiniGrid-Empty-5x5-v0", direct) for direct in (True, False))
    for env in (direct, plain):
        env.reset(seed=0)
        env.unwrapped.carrying = world_object.Key("yellow")
    observation, expected = direct.unwrapped.gen_obs(), plain.unwrapped.gen_obs()
    assert observation["image"][3, 6].tolist() == [5, 4, 0]  # key, yellow, at the agent's place
    assert_same(observation, expected)


def test_a_copy_sees_its_own_world() -> None:
    env = made("MiniGrid-FourRooms-v0", True)
    env.reset(seed=0)
    other = copy.deepcopy(env)
    before = env.unwrapped.gen_obs()
    for _ in range(4):
        other.step(2)
        other.step(0)
    assert_same(env.unwrapped.gen_obs(), before)
    assert_same(other.unwrapped.gen_obs(), MiniGridEnv.gen_obs(other.unwrapped))


def test_a_world_with_a_view_of_its_own_keeps_it() -> None:
    from minigrid.envs.empty import EmptyEnv

    class Dark(EmptyEnv):
        def gen_obs_grid(self, agent_view_size: Any = None) -> Any:
            grid, visible = super().gen_obs_grid(agent_view_size)  # type: ignore[no-untyped-call]
            return grid, visible & False

    env = Dark()
    see_directly(env)
    assert not env.reset(seed=0)[0]["image"].any()


def test_an_environment_made_here_sees_directly_in_workers_too() -> None:
    for backend in ("serial", "subprocess"):
        venv = envs.make(
            "MiniGrid-Empty-5x5-v0",
            2,
            seed=0,
            backend=backend,
            wrappers=["minigrid.wrappers:ImgObsWrapper"],
        )
        try:
            views = venv.get_attr("gen_obs")
            assert [getattr(view, "func", None) for view in views] == [_observation, _observation]
            observations: Any = venv.reset()
            expected, _ = gymnasium.make("MiniGrid-Empty-5x5-v0").reset(seed=0)
            np.testing.assert_array_equal(observations[0], expected["image"])
        finally:
            venv.close()
