"""Vector environments behind SB3's VecEnv tell the same story whatever steps them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from counting import IDS, Broken, Composed, Counting, Faulty, Waiting, assert_same
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import VecEnv

import envs
from agents import RecurrentPPO
from envs.vector.adapter import VectorEnvAdapter
from envs.vector.errors import EnvError, UnknownEnvError
from envs.vector.infos import RESET_STEP, Infos
from envs.vector.processes import SubprocessVecEnv
from envs.vector.serial import SerialVecEnv

BACKENDS = ["serial", "subprocess", "vector"]


def counting(backend: str, numbers: int = 3, **settings: Any) -> VecEnv:
    makers = [partial(Counting, i, **settings) for i in range(numbers)]
    if backend == "serial":
        return SerialVecEnv(makers)
    if backend == "subprocess":
        return SubprocessVecEnv(makers, workers=2)
    return VectorEnvAdapter(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize(
    "wrappers", [[], ["previous_action_reward", ("history", {"length": 3})]], ids=["bare", "wrapped"]
)
def test_all_backends_live_the_same_episodes(id: str, wrappers: list[Any]) -> None:
    limit = {"max_episode_steps": 70} if "NoVel" in id or "Battleship" in id else {}  # the others end, and soon
    venvs = [envs.make(id, 3, seed=11, backend=b, wrappers=wrappers, env_kwargs=limit) for b in BACKENDS]  # type: ignore[arg-type]
    first, *others = venvs
    expected = first.reset()
    for venv in others:
        assert venv.observation_space == first.observation_space
        assert_same(venv.reset(), expected)
    first.action_space.seed(1)
    ended = 0
    for _ in range(200):
        actions = np.stack([first.action_space.sample() for _ in range(3)])
        expected, rewards, dones, infos = first.step(actions)
        for venv in others:
            observations, other_rewards, other_dones, other_infos = venv.step(actions)
            assert_same(observations, expected)
            np.testing.assert_array_equal(other_rewards, rewards)
            np.testing.assert_array_equal(other_dones, dones)
            for i in dones.nonzero()[0]:
                ended += 1
                assert_same(other_infos[i]["terminal_observation"], infos[i]["terminal_observation"])
                assert other_infos[i]["TimeLimit.truncated"] == infos[i]["TimeLimit.truncated"]
                assert other_infos[i]["episode"]["r"] == pytest.approx(infos[i]["episode"]["r"])
                assert other_infos[i]["episode"]["l"] == infos[i]["episode"]["l"]
    assert ended >= 6
    for venv in venvs:
        venv.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_episode_is_told_from_its_first_to_its_last_observation(backend: str) -> None:
    venv = counting(backend)
    np.testing.assert_array_equal(venv.reset(), [[i, 1, 0] for i in range(3)])
    assert [info["started"] for info in venv.reset_infos] == [1, 1, 1]
    actions = np.full(3, 5)
    observations, rewards, dones, infos = venv.step(actions)
    np.testing.assert_array_equal(observations, [[i, 1, 1] for i in range(3)])
    np.testing.assert_array_equal(rewards, [11, 111, 211])
    assert rewards.dtype == np.float32
    assert dones.dtype == np.bool_
    assert not dones.any()
    assert all(info.get("t") == 1 and "episode" not in info for info in infos)
    observations, rewards, dones, infos = venv.step(actions)
    assert dones.all()
    np.testing.assert_array_equal(observations, [[i, 2, 0] for i in range(3)])
    for i, info in enumerate(infos):
        np.testing.assert_array_equal(info["terminal_observation"], [i, 1, 2])
        assert info["TimeLimit.truncated"] is False
        assert (info["episode"]["r"], info["episode"]["l"]) == (200 * i + 23, 2)
        assert info["t"] == 2
    assert [info["started"] for info in venv.reset_infos] == [2, 2, 2]
    for _ in range(3):
        observations, rewards, dones, infos = venv.step(actions)
    for i, info in enumerate(infos):
        np.testing.assert_array_equal(info["terminal_observation"], [i, 2, 3])
        assert info["TimeLimit.truncated"] is True
        assert (info["episode"]["r"], info["episode"]["l"]) == (300 * i + 66, 3)
    venv.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_step_returned_is_not_changed_by_the_next(backend: str) -> None:
    venv = counting(backend)
    kept = [venv.reset()]
    for _ in range(4):
        kept.append(venv.step(np.full(3, 6))[0])
    np.testing.assert_array_equal(
        [observations[1] for observations in kept], [[1, 1, 0], [1, 1, 1], [1, 2, 0], [1, 2, 1], [1, 2, 2]]
    )
    venv.close()


def test_a_vector_that_resets_in_the_next_step_marks_that_step() -> None:
    makers = [partial(Counting, i, length=2 + i) for i in range(2)]
    venv = VectorEnvAdapter(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP))
    venv.reset()
    told = []
    for _ in range(7):
        observations, rewards, dones, infos = venv.step(np.full(2, 5))
        told.append((observations[0].tolist(), float(rewards[0]), bool(dones[0]), RESET_STEP in infos[0]))
        if dones[0]:
            np.testing.assert_array_equal(infos[0]["terminal_observation"], observations[0])
            lengths = {1: (23, 2), 2: (66, 3)}[int(observations[0][1])]
            assert (infos[0]["episode"]["r"], infos[0]["episode"]["l"]) == lengths
            assert infos[0]["TimeLimit.truncated"] == (observations[0][1] == 2)
    assert told == [
        ([0, 1, 1], 11, False, False),
        ([0, 1, 2], 12, True, False),
        ([0, 2, 0], 0, False, True),
        ([0, 2, 1], 21, False, False),
        ([0, 2, 2], 22, False, False),
        ([0, 2, 3], 23, True, False),
        ([0, 3, 0], 0, False, True),
    ]
    assert venv.reset_infos[0]["started"] == 3


def test_gymnasiums_own_vector_is_used_when_asked_for_and_auto_prefers_one_that_resets_in_the_same_step() -> None:
    assert isinstance(envs.make("CartPole-v1", 2), SerialVecEnv)
    assert isinstance(envs.make("CartPoleNoVel-v1", 2), VectorEnvAdapter)
    venv = envs.make("CartPole-v1", 4, backend="vector", seed=0)
    venv.reset()
    ended, marked, steps = 0, 0, np.zeros(4)
    for _ in range(100):
        _, _, dones, infos = venv.step(np.ones(4, dtype=np.int64))
        for i in range(4):
            marked += RESET_STEP in infos[i]
            steps[i] = 0 if RESET_STEP in infos[i] else steps[i] + 1
            if dones[i]:
                ended += 1
                assert infos[i]["episode"]["l"] == infos[i]["episode"]["r"] == steps[i]
    assert ended >= 20
    assert ended - 4 <= marked <= ended


def test_a_vector_that_never_resets_lives_the_episodes_of_one_that_does_in_the_same_step() -> None:
    makers = [partial(Counting, i) for i in range(3)]
    modes = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
    first, other = (VectorEnvAdapter(SyncVectorEnv(makers, autoreset_mode=mode)) for mode in modes)
    assert_same(other.reset(), first.reset())
    for _ in range(20):
        steps = [venv.step(np.full(3, 5)) for venv in (first, other)]
        assert_same(steps[1][:3], steps[0][:3])
        for infos in zip(*(step[3] for step in steps), strict=True):
            for info in infos:
                info.get("episode", {}).pop("t", None)  # of the clock
            assert_same(*infos)
        assert other.reset_infos == first.reset_infos


@pytest.mark.parametrize("backend", BACKENDS)
def test_attributes_and_methods_reach_the_environments(backend: str) -> None:
    from stable_baselines3.common.monitor import Monitor

    venv = counting(backend)
    venv.reset()
    assert venv.get_attr("number") == [0, 1, 2]
    assert venv.get_attr("number", [2, 0]) == [2, 0]
    assert venv.get_attr("number", 1) == [1]
    assert venv.has_attr("length")
    assert not venv.has_attr("nothing_of_the_kind")
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        venv.get_attr("nothing_of_the_kind")
    venv.set_attr("number", 7, [1])
    assert venv.get_attr("number") == [0, 7, 2]
    assert venv.env_method("double", 10, indices=[1, 2], plus=100) == [127, 122]
    assert venv.env_is_wrapped(gymnasium.wrappers.TimeLimit) == [False] * 3
    assert venv.env_is_wrapped(Monitor, [0]) == [True]
    venv.step(np.full(3, 5))
    venv.close()


@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_seeds_and_options_go_to_one_reset_only(backend: str) -> None:
    venv = counting(backend)
    assert venv.seed(30) == [30, 31, 32]
    venv.set_options([{"a": i} for i in range(3)])
    venv.reset()
    venv.reset()
    assert venv.get_attr("seeds") == [[30, None], [31, None], [32, None]]
    assert venv.get_attr("options") == [[{"a": i}, None] for i in range(3)]
    venv.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("id", ["CartPoleNoVel-v1", "RepeatFirst-v0"])
def test_a_seed_decides_and_environments_differ(id: str, backend: Any) -> None:
    def episode(seed: int) -> np.ndarray:
        venv = envs.make(id, 4, seed=seed, backend=backend)
        seen = [venv.reset()] + [venv.step(np.zeros(4, dtype=np.int64))[0] for _ in range(60)]
        venv.close()
        return np.stack(seen)

    np.testing.assert_array_equal(episode(5), episode(5))
    assert (episode(5) != episode(6)).any()
    seen = episode(5)
    for i in range(3):
        assert (seen[:, i] != seen[:, i + 1]).any()
        # One seed on, the environments are the same, one place up.
        np.testing.assert_array_equal(episode(6)[:, i], seen[:, i + 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_actions_arrive_as_they_were_given(backend: str) -> None:
    venv = counting(backend)
    venv.reset()
    venv.step(np.array([5, 6, 7]))
    venv.step(np.array([7, 5, 6]))
    assert venv.get_attr("actions") == [[5, 7], [6, 5], [7, 6]]
    venv.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_come_from_every_environment(backend: str) -> None:
    venv = counting(backend, render_mode="rgb_array")
    assert venv.render_mode == "rgb_array"
    venv.reset()
    venv.step(np.full(3, 5))
    images = venv.get_images()
    assert [int(image[0, 0, 0]) for image in images] == [1, 11, 21]
    assert venv.render().shape == (8, 12, 3)
    venv.close()


@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_nested_observations_come_flattened(backend: Any) -> None:
    venv = envs.make(partial(Composed, 4), 2, backend=backend)
    assert set(venv.observation_space.spaces) == {"where/count", "where/parity", "pair/0", "pair/1"}
    observations = venv.reset()
    np.testing.assert_array_equal(observations["where/count"], [[4, 1, 0]] * 2)
    venv.step(np.full(2, 5))
    observations, _, dones, infos = venv.step(np.full(2, 5))
    assert dones.all()
    assert venv.observation_space.contains({key: value[0] for key, value in observations.items()})
    np.testing.assert_array_equal(observations["pair/0"], [4, 4])
    last = infos[1]["terminal_observation"]
    np.testing.assert_array_equal(last["where/count"], [4, 1, 2])
    assert (last["pair/0"], last["where/parity"]) == (6, 0)
    assert venv.observation_space.contains(last)
    venv.close()


def test_an_observation_without_a_form_as_arrays_is_refused_with_its_place_and_the_cure() -> None:
    class Either(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Dict({"outer": spaces.Dict({"one": spaces.OneOf([spaces.Discrete(2)])})})

    with pytest.raises(ValueError, match=r"the part 'outer/one' of the observation: .*OneOf.*ObservationWrapper"):
        envs.make(Either, 1)


@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_an_environment_that_raises_is_named_with_its_step(backend: str) -> None:
    makers = [partial(Counting, 0, length=100), partial(Faulty, 1, "raise")]
    venv = SerialVecEnv(makers) if backend == "serial" else SubprocessVecEnv(makers, workers=1)
    venv.reset()
    for _ in range(2):
        venv.step(np.full(2, 5))
    with pytest.raises(
        EnvError, match=r"environment 1 \(Faulty\) failed in step 3: ZeroDivisionError: the wheel came"
    ) as error:
        venv.step(np.full(2, 5))
    if backend == "subprocess":
        assert "counting.py" in str(error.value)
        with pytest.raises(EnvError, match="make new environments"):
            venv.step(np.full(2, 5))
    else:
        assert isinstance(error.value.__cause__, ZeroDivisionError)
    venv.close()


def test_a_worker_that_is_killed_is_an_error_not_a_wait() -> None:
    makers = [partial(Counting, i, length=100) for i in range(3)] + [partial(Faulty, 3, "die")]
    venv = SubprocessVecEnv(makers, workers=2)
    venv.reset()
    for _ in range(2):
        venv.step(np.full(4, 5))
    with pytest.raises(EnvError, match=r"the worker process with environments 2 to 3 died in step 3 \(signal 9"):
        venv.step(np.full(4, 5))
    assert not any(process.is_alive() for process in venv._processes)
    venv.close()


def test_a_worker_that_dies_is_noticed_while_another_is_waited_for() -> None:
    venv = SubprocessVecEnv([partial(Faulty, 0, "hang"), partial(Faulty, 1, "die")], workers=2)
    venv.reset()
    for _ in range(2):
        venv.step(np.full(2, 5))
    with pytest.raises(EnvError, match=r"with environment 1 died in step 3"):
        venv.step(np.full(2, 5))


def test_a_worker_that_hangs_is_an_error_where_a_timeout_is_set() -> None:
    venv = SubprocessVecEnv([partial(Faulty, 0, "hang")], timeout=250.0)  # a busy machine may start it slowly
    venv.reset()
    for _ in range(2):
        venv.step(np.full(1, 5))
    venv._timeout = 1.0
    with pytest.raises(EnvError, match="environment 0 did not answer within 1 seconds in step 3"):
        venv.step(np.full(1, 5))


def test_workers_step_while_this_process_does_something_else(tmp_path: Path) -> None:
    venv = SubprocessVecEnv([partial(Waiting, i, tmp_path) for i in range(3)], workers=3)
    venv.reset()
    venv.step_async(np.full(3, 5))
    # Every environment is in the middle of its step, and none can end it, before this process goes on here.
    while len(list(tmp_path.glob("inside *"))) < 3:
        time.sleep(0.01)
    assert not list(tmp_path.glob("done *"))
    (tmp_path / "go on").touch()
    # They end their steps unasked, before this process waits for them.
    while len(list(tmp_path.glob("done *"))) < 3:
        time.sleep(0.01)
    observations, *_ = venv.step_wait()
    np.testing.assert_array_equal(observations, [[0, 1, 1], [1, 1, 1], [2, 1, 1]])
    venv.close()


@pytest.mark.parametrize(("workers", "shares"), [(1, [5]), (2, [2, 3]), (5, [1] * 5), (9, [1] * 5)])
def test_workers_share_the_environments_evenly(workers: int, shares: list[int]) -> None:
    venv = envs.make(Counting, 5, backend="subprocess", workers=workers)
    processes = venv.env_method("process")
    assert sorted(processes.count(process) for process in set(processes)) == sorted(shares)
    assert os.getpid() not in processes
    assert processes == sorted(processes, key=processes.index)  # neighbours share
    venv.close()


def test_steps_travel_through_shared_memory() -> None:
    venv = SubprocessVecEnv([partial(Counting, i) for i in range(2)], workers=2)
    venv.reset()
    venv.step_async(np.full(2, 7))
    for connection in venv._connections:
        assert connection.poll(None)
    # What the workers wrote is there before any of their messages is read.
    np.testing.assert_array_equal(venv._arrays.observations, [[0, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(venv._arrays.rewards, [11, 111])
    assert venv._arrays.observations.base is not None
    venv.step_wait()
    venv.close()


def test_torch_and_blas_in_a_worker_compute_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    venv = envs.make(Counting, 1, backend="subprocess")
    assert venv.env_method("threads") == [{"torch": 1, "variables": {"1"}}]
    venv.close()


def test_an_environment_that_cannot_be_made_says_why() -> None:
    with pytest.raises(EnvError, match="OSError: no such simulator"):
        SubprocessVecEnv([Broken])


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("CartPoleNoVell-v1", "no environment has the id 'CartPoleNoVell-v1'. Perhaps you meant 'CartPoleNoVel-v1'"),
        ("cartpolenovel-v1", "Perhaps you meant 'CartPoleNoVel-v1'"),
        ("CartPoleNoVel-v7", "'CartPoleNoVel-v1'"),
        ("popgym-Nowhere-v0", "pip install popgym|Perhaps|module:id"),
        ("Zzzzzzqqq-v0", "'module:id'"),
    ],
)
def test_an_unknown_id_is_answered_with_the_nearest_or_what_to_install(id: str, message: str) -> None:
    with pytest.raises(UnknownEnvError, match=message):
        envs.make(id)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_envs": 0}, "n_envs must be at least 1, not 0"),
        ({"backend": "fast"}, "backend must be one of"),
        (
            {"id": "CartPole-v1", "backend": "vector", "wrappers": ["gymnasium.wrappers:FlattenObservation"]},
            "one environment at a time",
        ),
        ({"backend": "subprocess", "workers": 0}, "workers must be at least 1, or None for one a CPU, not 0"),
        (
            {"backend": "serial", "workers": 2},
            "a number of workers goes with the backend 'subprocess' or 'ray', not with 'serial'",
        ),
        ({"id": Counting, "backend": "vector"}, "a function makes one environment"),
        ({"id": "MountainCar-v0", "backend": "vector"}, "MountainCar-v0 has no vector_entry_point"),
        ({"wrappers": ["flikcer"]}, "Perhaps you meant 'flicker'"),
        (
            {"wrappers": [("delay", {"step": 2})]},
            "wrapper 'delay' has no setting 'step'; its settings are: steps, vary, keys",
        ),
        ({"wrappers": ["mask"]}, "wrapper 'mask' needs a value for 'indices'"),
        ({"wrappers": [("mask", {"indices": [9]})]}, r"indices \[9\] are not all entries"),
        ({"wrappers": [("mask", {"indices": [1], "keys": ["a"]})]}, "has no keys"),
        ({"id": "RepeatFirst-v0", "wrappers": ["noise"]}, "works on Box observations"),
        ({"wrappers": [("flicker", {"probability": 2})]}, r"probability must lie in \[0, 1\], not be 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        envs.make(**{"id": "CartPoleNoVel-v1", "n_envs": 1, **settings})


def test_gymnasium_wrappers_go_inside_and_those_after_them_around() -> None:
    from envs.vector.vectorize import WrappedVecEnv
    from envs.wrappers.transforms import WrappedEnv

    scale = partial(gymnasium.wrappers.TransformReward, func=lambda reward: 3 * reward)
    venv = envs.make(Counting, 2, wrappers=["delay", scale, "previous_action_reward"])
    assert isinstance(venv, WrappedVecEnv)
    assert isinstance(venv.venv, SerialVecEnv)
    assert venv.env_is_wrapped(gymnasium.wrappers.TransformReward) == [True, True]
    assert venv.env_is_wrapped(WrappedEnv) == [True, True]
    venv.reset()
    observations, rewards, _, _ = venv.step(np.array([5, 7]))
    np.testing.assert_array_equal(rewards, [33, 33])
    # The delayed observation, the action one-hot (it counts from 5), the reward.
    np.testing.assert_array_equal(observations, [[0, 1, 0, 1, 0, 0, 33], [0, 1, 0, 0, 0, 1, 33]])


def test_a_function_has_to_make_a_new_environment_each_time() -> None:
    one = Counting()
    with pytest.raises(ValueError, match="given more than once"):
        envs.make(lambda: one, 2)
    with pytest.raises(TypeError, match=r"expected a gymnasium.Env"):
        envs.make(lambda: "no environment", 1)  # type: ignore[arg-type, return-value]


def test_infos_are_a_sequence_of_dicts_that_can_be_kept_and_written() -> None:
    import pickle

    infos = Infos(3, {"a": np.array([1, 2, 3]), "_a": np.array([True, False, True])})
    assert infos[0] == {"a": 1}
    assert infos[-2] == {}
    infos[1]["b"] = 5
    infos[2] = {"c": 6}
    assert list(infos) == [{"a": 1}, {"b": 5}, {"c": 6}] == infos[:]
    assert pickle.loads(pickle.dumps(infos)) == list(infos)
    assert len(infos) == 3
    with pytest.raises(IndexError):
        infos[3]


def test_importing_envs_imports_neither_torch_nor_sb3() -> None:
    code = "import envs, envs.vector.worker, sys; print('torch' in sys.modules, 'stable_baselines3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_environments_that_can_be_resumed_need_no_seed() -> None:
    venv = SerialVecEnv([Counting, Counting, Counting], resumable=True)
    assert len(venv.reset()) == len(venv.reset()) == 3
    venv.close()


@pytest.mark.parametrize(
    ("id", "module", "install"),
    [
        ("highway-fast-v0", "highway_env", "highway-env"),
        ("PointMaze_UMaze-v3", "gymnasium_robotics", "gymnasium-robotics"),
        ("FetchReach-v2", "gymnasium_robotics", "gymnasium-robotics"),
        ("CrafterReward-v1", "crafter", "crafter"),
        ("MiniWorld-Maze-v0", "miniworld", "miniworld"),
        ("BreakoutNoFrameskip-v4", "ale_py", "ale-py opencv-python-headless"),
        ("ALE/Breakout-v5", "ale_py", "ale-py opencv-python-headless"),
    ],
)
@pytest.mark.parametrize("made_by", [envs.make, partial(RecurrentPPO, "RecurrentPolicy")])
def test_an_id_of_a_package_that_is_not_installed_names_it_and_no_other_id(
    id: str, module: str, install: str, made_by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.delitem(gymnasium.registry, id, raising=False)
    with pytest.raises(UnknownEnvError) as error:
        made_by(id)
    assert str(error.value).endswith(f"Its package {module} is not installed: pip install {install}")


def test_a_package_that_fails_to_import_says_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "miniworld.py").write_text("raise OSError('no display to draw on')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnknownEnvError, match="miniworld is installed, but fails to import: OSError: no display"):
        envs.make("MiniWorld-Maze-v0")


def test_the_backend_of_gymnasium_takes_wrappers_of_one_environment_and_of_vectors() -> None:
    wrappers = ["gymnasium.wrappers:FlattenObservation", "gymnasium.wrappers.vector:RecordEpisodeStatistics", "history"]
    venv = envs.make("CartPole-v1", 3, backend="gymnasium", wrappers=wrappers, seed=0)
    assert isinstance(venv.unwrapped, VectorEnvAdapter)
    assert isinstance(venv.unwrapped.env, gymnasium.wrappers.vector.RecordEpisodeStatistics)
    assert venv.reset().shape == (3, 4, 4)
    returns = []
    for _ in range(40):
        _, _, dones, infos = venv.step(np.ones(3, dtype=np.int64))
        returns += [float(infos[i]["episode"]["r"]) for i in np.flatnonzero(dones)]
    assert len(returns) >= 6
    assert all(7 <= each <= 12 for each in returns)
    with pytest.raises(ValueError, match="backend 'gymnasium' needs an id"):
        envs.make(Counting, 2, backend="gymnasium")


def test_an_assertion_without_words_is_shown_with_its_line() -> None:
    class Asserting(Counting):
        def reset(self, **_: Any) -> Any:
            raise AssertionError

    with pytest.raises(EnvError, match=r"AssertionError, raised by: raise AssertionError"):
        envs.make(Asserting, 1).reset()
