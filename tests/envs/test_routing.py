"""The network whose loads are seen one node at a time is what its docstring says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.tasks.routing import PacketRouting

SIZES = [{}, {"routes": 2, "hops": 3}, {"routes": 4, "hops": 4}]


def play(env: PacketRouting, remember: bool, seed: int = 0) -> Any:
    """Returns of one episode each: along the route with no relay that was seen congested, or along the first link."""
    n, rows = env.num_envs, np.arange(env.num_envs)
    seen, _ = env.reset(seed=seed)
    bad = np.zeros((n, env._n_nodes), dtype=np.bool_)
    returns, over = np.zeros(n), np.zeros(n, dtype=np.bool_)
    for _ in range(env._relays + env.hops):
        bad |= seen["nodes"][:, :, 3] > 0
        actions = np.zeros(n, np.int64)
        for row in rows:
            follows = {int(a): int(b) for a, b in seen["edge_index"][row]}  # of a relay there is one link
            for link in np.flatnonzero(seen["action_mask"][row])[::-1].tolist():
                node, route = int(seen["edge_index"][row, link, 1]), []
                while node in follows and len(route) < env.hops:
                    route.append(node)
                    node = follows[node]
                if not remember or not bad[row, route].any():
                    actions[row] = link
        seen, rewards, ended, _, _ = env.step(actions)
        returns += np.where(over, 0.0, rewards)
        over |= ended
    assert over.all()
    return returns


@pytest.mark.parametrize("sizes", SIZES)
def test_who_remembers_the_loads_gets_through_and_who_does_not_has_the_memoryless_return(sizes: dict[str, int]) -> None:
    env = PacketRouting(1500 if not sizes else 300, **sizes)
    assert (play(env, remember=True) == 1.0).all()
    if not sizes:
        assert play(env, remember=False).mean() == pytest.approx(env.memoryless_return, abs=0.04)


@pytest.mark.parametrize("sizes", SIZES)
def test_every_relay_is_shown_once_and_one_route_is_free(sizes: dict[str, int]) -> None:
    env = PacketRouting(200, **sizes)
    seen, _ = env.reset(seed=1)
    shown, congested = np.zeros((2, 200, env._n_nodes))
    for _ in range(env._relays):
        assert (seen["nodes"][:, :, 2].sum(axis=1) == 1).all()
        assert not seen["nodes"][:, :, 0].any()
        assert seen["action_mask"].all()
        shown += seen["nodes"][:, :, 2]
        congested += seen["nodes"][:, :, 3]
        seen, rewards, ended, _, _ = env.step(np.zeros(200, np.int64))
        assert not rewards.any()
        assert not ended.any()
    assert set(np.unique(shown)) == {0.0, 1.0}
    assert (shown.sum(axis=1) == env._relays).all()
    assert (congested.sum(axis=1) == env.routes - 1).all()
    assert (seen["nodes"][:, :, 0].sum(axis=1) == 1).all()
    assert (seen["action_mask"].sum(axis=1) == env.routes).all()


def test_the_labels_are_hops_to_the_target_and_who_is_on_one_route() -> None:
    env = PacketRouting(1, routes=2, hops=3, labels=True)
    seen, _ = env.reset(seed=3)
    hops, links = seen["node_labels"][0], seen["edge_index"][0]
    assert (hops[links[:, 0]] == hops[links[:, 1]] + 1).all()
    assert hops[seen["nodes"][0, :, 1] == 1].tolist() == [0]
    after = {int(a): int(b) for a, b in links if hops[a] < 3}
    for (first, other), same in zip(seen["pair_index"][0].tolist(), seen["pair_labels"][0].tolist(), strict=True):
        assert hops[first] == 2
        assert same == (other in (first, after[first]))


def test_a_link_from_elsewhere_leaves_the_packet_and_time_runs_out() -> None:
    env = PacketRouting(1, routes=2, hops=2)
    seen, _ = env.reset(seed=0)
    for _ in range(env._relays):
        seen, *_ = env.step(np.zeros(1, np.int64))
    wrong = np.flatnonzero(seen["action_mask"][0] == 0)[:1]
    packet = seen["nodes"][0, :, 0].copy()
    seen, _, ended, _, _ = env.step(wrong)
    np.testing.assert_array_equal(seen["nodes"][0, :, 0], packet)
    assert not ended[0]
    assert env.step(wrong)[2][0]
    with pytest.raises(ValueError, match="hops must be at least 2, not 1"):
        PacketRouting(hops=1)
