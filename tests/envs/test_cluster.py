"""Environments on a Ray cluster step as those of one process do, and a node that is lost costs restarts."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import Counting

import envs
from envs.vector.errors import EnvError
from envs.vector.infos import FAILED

STORE = 80 * 2**20  # bytes, the least that Ray takes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine; this process is on the first."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


def made(cluster: Any, n_envs: int, **more: Any) -> Any:
    return envs.make(partial(Counting, 0, 5), n_envs, backend="ray", address=cluster.address, seed=3, **more)


def lowest(venv: Any) -> Any:
    return np.full(venv.num_envs, venv.action_space.start)


def digest_of(venv: Any) -> str:
    """Of a rollout: observations, rewards, ends, infos."""
    space, chance = venv.action_space, np.random.default_rng(0)
    found = hashlib.sha256(venv.reset().tobytes())
    for _ in range(40):
        actions = chance.integers(space.start, space.start + space.n, venv.num_envs)
        observations, rewards, dones, infos = venv.step(actions)
        for array in (observations, rewards, dones):
            found.update(np.ascontiguousarray(array).tobytes())
        for info in infos:
            episode = {key: each for key, each in info.get("episode", {}).items() if key != "t"}
            found.update(repr((info.get("t"), episode, info.get("TimeLimit.truncated"))).encode())
    return found.hexdigest()


@pytest.mark.slow
def test_a_rollout_on_two_nodes_is_that_of_one_process_hash_for_hash(cluster: Any) -> None:
    node = cluster.add_node(num_cpus=2, object_store_memory=STORE)
    try:
        for id in ("CartPole-v1", partial(Counting, 0, 5)):
            one: Any = envs.make(id, 6, backend="serial", seed=3, resumable=True)
            rays: Any = envs.make(id, 6, backend="ray", address=cluster.address, seed=3, workers=4, resumable=True)
            assert 0 < len(rays._remote) < 4  # on both nodes
            assert digest_of(one) == digest_of(rays)
            if id == "CartPole-v1":
                assert rays.restore(one.snapshot())
                np.testing.assert_array_equal(rays.step(lowest(rays))[0], one.step(lowest(one))[0])
            rays.close()
    finally:
        cluster.remove_node(node)


@pytest.mark.slow
def test_a_node_that_is_lost_costs_restarts_and_no_run(cluster: Any) -> None:
    node = cluster.add_node(num_cpus=2, object_store_memory=STORE)
    venv = made(cluster, 4, workers=4, max_restarts=8, resumable=True)
    venv.reset()
    lost = set(venv._remote)
    assert lost
    venv.step(np.full(4, 5))
    cluster.remove_node(node, allow_graceful=False)
    ended: dict[int, str] = {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        while ended.keys() != lost:  # its workers end when they miss it
            infos = venv.step(np.full(4, 5))[3]
            ended |= {i: info[FAILED] for i, info in enumerate(infos) if FAILED in info}
            time.sleep(0.05)
    assert all("the Ray worker with environment" in reason for reason in ended.values())
    assert any("restarted" in str(each.message) for each in told)
    assert venv._remote == set()  # all on the node that is left
    assert venv.restarts == len(lost)
    pids = venv.env_method("process")
    os.kill(pids[0], signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match="the Ray worker with environment 0 died in step"):
        assert venv.step(np.full(4, 5))[2].tolist()[0]
    venv.close()
    with pytest.raises(EnvError):
        venv.step(np.full(4, 5))


@pytest.mark.slow
def test_an_environment_that_fails_on_the_cluster_is_named(cluster: Any) -> None:
    with pytest.raises(EnvError, match="environment 0 could not be made"):
        envs.make(partial(sys.exit, "no licence"), 2, backend="ray", address=cluster.address, workers=1)


def test_without_ray_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"the package ray is needed .* pip install 'ray>=2.50'"):
        envs.make("CartPole-v1", 2, backend="ray")


def test_an_address_goes_with_ray_alone() -> None:
    with pytest.raises(ValueError, match="an address goes with the backend 'ray', not with 'serial'"):
        envs.make("CartPole-v1", 2, backend="serial", address="127.0.0.1:6379")


def test_the_actor_imports_no_torch() -> None:
    code = "import sys, envs.vector.actor; assert 'torch' not in sys.modules"
    root = str(Path(__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
