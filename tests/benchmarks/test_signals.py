"""The tiny tasks show what they say in every kind of space, and the table has a row for every case that was run."""

import pathlib

import families
import numpy as np
import pytest
import signals
from gymnasium.utils.env_checker import check_env

import configs


@pytest.mark.parametrize("kind", signals.KINDS)
def test_a_signal_shows_its_bit_in_an_observation_of_its_space(kind: str) -> None:
    space, show = signals.KINDS[kind]
    rng = np.random.default_rng(0)
    assert all(space.contains(show(rng, bit)) for bit in (0, 1) for _ in range(20))


@pytest.mark.parametrize("actions", signals.ACTIONS)
def test_who_names_the_bit_before_returns_one(actions: str) -> None:
    env = signals.Signal(actions=actions)
    act = {
        "Discrete": int,
        "Box": lambda bit: np.full(2, 2 * bit - 1, np.float32),
        "MultiBinary": lambda bit: np.full(3, bit),
    }
    total, before, is_over = 0.0, 0, False
    observation, _ = env.reset(seed=1)
    while not is_over:
        bit = int(observation[0] > 0)
        observation, reward, is_over, _, _ = env.step(act[actions](before))  # type: ignore[operator]
        total, before = total + reward, bit
    assert total == pytest.approx(1.0)


def test_locks_open_at_the_places_shown_before_and_jammed_ones_are_an_error() -> None:
    env = signals.Locks()
    places, _ = env.reset(seed=0)
    total, is_over, turned = 0.0, False, np.array([int(env.action_masks()[:3].argmax()), 0])
    turned[1] = int(env.action_masks()[3:].argmax())
    while not is_over:
        after, reward, is_over, _, _ = env.step(turned)
        total, turned, places = total + reward, places, after
    assert total == pytest.approx(1.0)
    env.reset(seed=0)
    jammed = [int(part.argmin()) for part in (env.action_masks()[:3], env.action_masks()[3:])]
    assert not env.action_masks().all()
    with pytest.raises(ValueError, match="a dial is jammed"):
        env.step(np.array(jammed))


@pytest.mark.parametrize("env", [signals.Signal(), signals.Signal("Graph"), signals.Signal(actions="Box")])
def test_signals_are_environments_of_gymnasium(env: signals.Signal) -> None:
    check_env(env, skip_render_check=True)


def test_the_words_of_what_is_learned_can_be_read() -> None:
    for task in families.LEARNED.values():
        configs.parse(list(task.words))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, task in families.LEARNED.items() if "signals" in str(task.words)])
def test_image_with_vector_and_masked_actions_are_learned(name: str) -> None:
    task = families.LEARNED[name]
    found = families.learns(task, seed=0)(0)
    assert min(np.mean(found["sampled"]), np.mean(found["deterministic"])) > 0.9


@pytest.mark.parametrize("cases", [families.FAMILIES, families.SPACES, families.ACTIONS, families.VECTORS])
def test_the_words_of_a_case_can_be_read(cases: list[families.Case]) -> None:
    case = cases[-1]
    assert configs.parse(list(case.words)).settings.env.id == case.words[1]


def test_the_table_has_a_row_for_every_case_that_was_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(families.records, "DOCS", tmp_path)
    marked = "before\n<!-- families -->\nold\n<!-- /families -->\n<!-- learned -->\n<!-- /learned -->\nafter\n"
    (tmp_path / "environments.md").write_text(marked)
    run = {"steps": 40_960, "seen": ["observation: 3 measurements -> flatten"], "script": 700.4, "cpu": "a processor"}
    families.write_page(
        [
            {
                "name": "learned/MultiDiscrete actions with masks/0",
                "steps": 9,
                "seconds": 120.0,
                "sampled": [1.0, 1.0],
                "deterministic": [0.5, 0.5],
                "cpu": "a processor",
            },
            {
                "name": "learned/Hopper without velocities/0",
                "steps": 9,
                "seconds": 30.0,
                "sampled": [1509.4, 1509.4],
                "deterministic": [12.34, 12.34],
                "cpu": "a processor",
            },
            {**run, "name": "space/vector", "command_line": 1234.5, "return": 0.987},
            {
                "steps": 1,
                "name": "atari/ALE/Pong-v5",
                "command_line": "it broke",
                "script": "too",
                "cpu": "a processor",
            },
        ]
    )
    page = (tmp_path / "environments.md").read_text()
    assert "| MultiDiscrete actions with masks | 1 | 9 | 1 (1 to 1) | 0.5 (0.5 to 0.5) | 0.5 | 1 | 0.53 | 2.0 |" in page
    assert (
        "| Hopper without velocities | 1 | 9 | 1509 (1509 to 1509) | 12.3 (12.3 to 12.3) | 12.3 |  |  | 0.5 |" in page
    )
    assert "| space: vector | `3 measurements -> flatten` | 1,234 | 700 | 0.99 | 40,960 |" in page
    assert "| atari: ALE/Pong-v5 |  | failed: it broke | failed: too | no episode ended | 1 |" in page
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
