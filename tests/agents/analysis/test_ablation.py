"""The ablation finds by how much the return falls without the memory, on tasks where that is known by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from agents.analysis import ablate
from agents.analysis.ablation import NOTHING, Ablation, Condition, WatchedMemory
from agents.analysis.episodes import with_policy_attributes
from agents.deploy.player import Player
from agents.memory import MEMORIES
from tests.agents.analysis.echo import bits, delaying, echo
from tests.agents.probe_envs import small_ppo

SEED, LENGTH, LAG = 7, 12, 2


def by_name(found: Ablation) -> dict[str, Condition]:
    return {each.name: each for each in found.conditions}


@pytest.fixture(scope="module")
def found() -> Ablation:
    return ablate(delaying(LAG), echo(4, LAG, LENGTH), 8, seed=SEED)


def named(known: Any, shown: Any) -> float:
    """What an agent earns that names at step t what ``known(t)`` says, or 0 where it knows nothing."""
    return float(sum((0 if known(t) is None else known(t)) == shown[t - LAG] for t in range(LAG, LENGTH)))


def test_the_intact_memory_is_right_at_every_step(found: Ablation) -> None:
    assert found.intact.returns.tolist() == [LENGTH - LAG] * 8
    assert (found.intact.difference, found.intact.kind) == (0.0, "intact")


@pytest.mark.parametrize("every", [1, 2, 4, 8])
def test_a_memory_wiped_every_k_steps_knows_k_steps(found: Ablation, every: int) -> None:
    # A task that needs 3 steps: with 1 or 2 the agent can only guess, as one without a memory.
    def known(t: int, shown: Any) -> Any:
        return shown[t - LAG] if t % every >= LAG else None

    condition = by_name(found)["wiped every step" if every == 1 else f"wiped every {every} steps"]
    for i, earned in enumerate(condition.returns):
        shown = bits(SEED + i)
        assert earned == named(lambda t, shown=shown: known(t, shown), shown)


def test_the_wipes_are_the_powers_of_two_up_to_the_longest_episode(found: Ablation) -> None:
    assert [each.amount for each in found.conditions if each.kind == "wiped"] == [1, 2, 4, 8]
    chosen = ablate(delaying(LAG), echo(2, LAG, LENGTH), 2, seed=SEED, wipes=[LENGTH], noises=[])
    assert by_name(chosen)["wiped every 12 steps"].returns.tolist() == [LENGTH - LAG] * 2


def test_with_another_episodes_state_the_agent_names_what_was_shown_there(found: Ablation) -> None:
    condition = by_name(found)["of another episode"]
    for i in range(8):  # two rounds of four environments
        neighbor = bits(SEED + i // 4 * 4 + (i - 1) % 4)
        assert condition.returns[i] == named(lambda t, neighbor=neighbor: neighbor[t - LAG], bits(SEED + i))


def test_noise_grows_with_the_states_standard_deviation() -> None:
    # A bit of +-1 is misread where noise of both steps exceeds it: never at a hundredth, often at three.
    found = by_name(ablate(delaying(LAG), echo(4, LAG, LENGTH), 8, seed=SEED, wipes=[], noises=[0.01, 3.0]))
    assert found["noise of 0.01 deviations"].difference == 0
    assert found["noise of 3 deviations"].mean < 0.9 * (LENGTH - LAG)


def test_the_verdict_says_by_how_much_the_return_falls(found: Ablation) -> None:
    without, exchanged = by_name(found)["wiped every step"].mean, by_name(found)["of another episode"].mean
    assert found.verdict == (
        f"the agent uses its memory: without it the return falls from 10.0 to {without:.2f}, with another episode's "
        f"to {exchanged:.2f}; even wiped only every 8 steps it falls"
    )
    assert found.fall == pytest.approx(10 - without)


def test_the_verdict_says_how_long_a_memory_is_enough() -> None:
    found = ablate(delaying(LAG), echo(4, LAG, 4), 12, seed=SEED, wipes=[1, 2, 4], noises=[])
    assert found.enough == 4
    assert found.verdict.endswith("; wiped every 4 steps it shows no loss")


def test_where_the_return_rises_without_the_memory_the_memory_hurts() -> None:
    low, high, lengths = np.zeros(8), np.full(8, 3.0), np.full(8, 5)
    intact = Condition("intact", 0, low, lengths, low)
    wiped = Condition("wiped", 1, high, lengths, low)
    assert (wiped.rises, wiped.falls, intact.rises) == (True, False, False)
    verdict = Ablation((intact, wiped), True, 0).verdict
    assert verdict == "memory hurts here: without it the return rises from 0.00 to 3.00"


def test_a_few_episodes_give_no_verdict() -> None:
    few, enough = (ablate(delaying(LAG), echo(4, LAG, LENGTH), n, seed=SEED, wipes=[1], noises=[]) for n in (4, 5))
    assert few.fall > 0
    assert few.verdict == "too few episodes to tell whether the memory is used: play at least 5"
    assert enough.verdict.startswith("the agent uses its memory")


def untrained(memory: str, **settings: Any) -> Player:
    return Player(small_ppo(echo(3), memory, **settings).policy)


@pytest.mark.parametrize("memory", [name for name in MEMORIES if name != "none"])
def test_a_memory_that_is_ignored_shows_no_fall(memory: str) -> None:
    player = untrained(memory)
    with torch.no_grad():
        player.policy.action_net.weight.zero_()
    found = ablate(player, echo(3), 5, seed=SEED, noises=[1.0])
    assert {each.kind for each in found.conditions} == {"intact", "wiped", "exchanged", "noise"}
    assert all(each.difference == 0 for each in found.conditions)
    assert found.enough == 1
    assert found.verdict.startswith("no evidence that the agent uses its memory: ")


@pytest.mark.parametrize("memory", [name for name in MEMORIES if name != "none"])
def test_noise_leaves_counts_alone_and_reaches_everything_else(memory: str) -> None:
    player = untrained(memory)
    watched = WatchedMemory(player.policy.memory_actor)
    player, env = with_policy_attributes(player, memory_actor=watched), echo(3)
    observations = env.reset()
    for _ in range(12):
        observations, _, dones, _ = env.step(player.act(observations))
        player.reset(dones)
    deviations = watched.deviations()
    assert [each.shape for each in deviations] == [part.shape[1:] for part in watched.initial_state(1)]
    is_count = [each.shape == (1,) for each in deviations]
    assert [not each.any() for each in deviations] == is_count
    assert sum(is_count) == (memory in ("gtrxl", "attention"))


@pytest.mark.parametrize("memory", ["none", "lstm", "gtrxl"])  # states of no, of several parts, and of a window
def test_the_same_seed_gives_the_same_ablation_and_the_player_stays_as_it_was(memory: str) -> None:
    player = untrained(memory)
    player.deterministic = False
    env = echo(3)
    player.act(env.reset())
    before = player._state
    first, again = (ablate(player, echo(3), 4, seed=SEED, wipes=[2], noises=[1.0]) for _ in range(2))
    assert player._state is before
    assert first.to_json() == again.to_json()


def test_there_is_nothing_to_ablate_without_memory_and_no_other_episode_in_one_environment_alone() -> None:
    found = ablate(untrained("none"), echo(3), 4, seed=SEED)
    assert (len(found.conditions), found.verdict, found.fall, found.enough) == (1, NOTHING, 0.0, None)
    alone = ablate(delaying(LAG), echo(1, LAG, LENGTH), 2, seed=SEED, noises=[])
    assert {each.kind for each in alone.conditions} == {"intact", "wiped"}


@pytest.mark.parametrize("changed", [dict(episodes=0), dict(wipes=[0]), dict(noises=[0.0]), dict(noises=[np.inf])])
def test_numbers_out_of_range_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|greater than 0"):
        ablate(delaying(LAG), echo(2), **changed)
