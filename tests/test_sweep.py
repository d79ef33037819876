"""The sweep file starts runs that can be run: with the words that wandb's agent makes of it."""

import itertools
import random
import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

import configs
import train

ROOT = Path(__file__).parents[1]
FILE = ROOT / "configs" / "sweeps" / "memory.yaml"
SWEEP: dict[str, Any] = load_sweep_config(str(FILE)) or {}


def possible(parameter: dict[str, Any]) -> list[Any]:
    """Every value it can take, or the ends of its range."""
    return list(parameter.get("values", (parameter.get("min"), parameter.get("max"))))


def words_of(values: dict[str, Any]) -> list[str]:
    """The command line of a run, as the agent makes it."""
    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [SWEEP["program"]]}
    words = [macros[word[2:-1]] if word.startswith("${") else [word] for word in create_sweep_command(SWEEP["command"])]
    return list(itertools.chain.from_iterable(words))


def test_the_file_has_what_a_sweep_needs_and_maximizes_what_is_recorded() -> None:
    assert set(SWEEP) == {"program", "command", "method", "metric", "parameters"}
    assert SWEEP["method"] in ("grid", "random", "bayes")
    for name, parameter in SWEEP["parameters"].items():
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name)
        assert set(parameter) in ({"values"}, {"distribution", "min", "max"})
        assert len(set(possible(parameter))) == len(possible(parameter)) > 1
    assert SWEEP["metric"] == {"name": "final_return", "goal": "maximize"}


@pytest.mark.parametrize("memory", SWEEP["parameters"]["policy.memory"]["values"])
def test_every_command_it_makes_can_be_run(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(memory)
    values = {name: chance.choice(possible(parameter)) for name, parameter in SWEEP["parameters"].items()}
    values["policy.memory"] = memory
    env, python, program, *words = words_of(values)
    assert (env, python, program) == ("/usr/bin/env", "python", "train.py")
    settings = configs.parse(words).settings
    for name, value in values.items():
        group, _, key = name.replace("-", "_").partition("_kwargs.")
        found = attrgetter(f"{group}_kwargs" if key else group)(settings)
        assert (found[key] if key else found) == value
    assert settings.tracking.wandb == "online"
    assert train.main([*words, "--dry-run"]) == 0
    assert "TMaze-v0" in capsys.readouterr().out


def test_a_sweep_over_what_does_not_exist_is_refused() -> None:
    *_, last = words_of({"policy.memory-kwargs.hiden-size": 8})
    with pytest.raises(configs.SettingsError, match="did you mean 'hidden_size'"):
        configs.parse(["--config=tmaze", last])
