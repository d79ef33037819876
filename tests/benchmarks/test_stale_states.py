"""The benchmark of stale states compares like with like, measures what it states."""

import dataclasses
import pathlib
from typing import Any

import pytest
import records
import stale_states

import configs
from agents import RecurrentPPO


@pytest.mark.parametrize("task", stale_states.TASKS, ids=lambda task: task.name)
def test_all_variants_get_the_same_settings_but_for_their_states(task: stale_states.Task) -> None:
    by_variant = {
        variant: configs.parse(stale_states.words(task, variant, 5)).settings for variant in stale_states.VARIANTS
    }
    without = by_variant["none"]
    assert (without.algorithm.n_steps, without.algorithm.sequence_length, without.algorithm.n_epochs) == (128, 16, 10)
    chosen = {variant: (each.algorithm.refresh_states, each.algorithm.burn_in) for variant, each in by_variant.items()}
    assert chosen == {
        "none": (False, 0),
        "burn_in 8": (False, 8),
        "refresh": (True, 0),
        "refresh, burn_in 8": (True, 8),
    }
    for settings in by_variant.values():
        assert dataclasses.replace(settings.algorithm, refresh_states=False, burn_in=0) == without.algorithm
        assert dataclasses.replace(settings, algorithm=without.algorithm) == without


def test_states_are_exact_before_an_update_and_stale_after_it() -> None:
    from envs.vector.vectorize import make

    class Measured(RecurrentPPO):
        def train(self) -> None:
            before = stale_states.staleness(self)
            super().train()
            figures.append((before, stale_states.staleness(self)))

    for kwargs in (dict(), dict(refresh_states=True), dict(burn_in=4)):
        figures: list[Any] = []
        env = make("TMaze-v0", 4, seed=0)
        settings: dict[str, Any] = dict(n_steps=32, batch_size=64, n_epochs=4, sequence_length=8, learning_rate=1e-2)
        Measured("RecurrentPolicy", env, seed=0, device="cpu", **settings, **kwargs).learn(128)
        ((before, after),) = figures
        assert max(before) < 1e-5
        assert after[0] > 1e-3
        assert after[1] > 0
        assert after[2] > 0


def test_the_page_has_a_row_of_every_variant(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "DOCS", tmp_path)
    states = dict(name="states/tmaze/none/0", distance=[0.5, 0.7], ratio=[0.25, 0.35], kl=[0.1, 0.2], update=0.125)
    returns = dict(name="return/tmaze/none/0", steps=100, seconds=2.0, returns=[1.0, 1.0], last=[0.5, 1.0], cpu="C")
    stale_states.write_docs([states, returns])
    page = (tmp_path / "stale_states.md").read_text()
    assert "| T-maze, length 10 | none | 0.6 (0.5 to 0.7) | 0.3 (0.25 to 0.35) | 0.15 (0.1 to 0.2) | 125 | 1 |" in page
    assert "| 0.750 (0.500 to 1.000) | 1.000 (1.000 to 1.000) |" in page
    assert "Processors: C." in page
