"""Settings are checked before anything runs, and agree with what they are handed to."""

import dataclasses
import inspect
from typing import Any

import pytest

from configs import Settings, SettingsError
from configs.settings import (
    ENCODERS,
    MEMORIES,
    PPO_ONLY,
    SCHEDULED,
    WRAPPERS,
    AlgorithmSettings,
    EnvironmentSettings,
    PolicySettings,
    changed,
    problems,
    wrappers,
)

WRONG: dict[str, list[Any]] = {
    "algorithm.gamma": [9.9, -0.1, float("nan")],
    "algorithm.gae_lambda": [1.1],
    "algorithm.clip_range": [-1.0, 0.0],
    "algorithm.clip_range_vf": [0.0],
    "algorithm.learning_rate": [0.0, float("inf")],
    "algorithm.learning_rate_schedule": ["cosine"],
    **{f"algorithm.{name}": [0] for name in ("n_steps", "batch_size", "n_epochs", "sequence_length")},
    **{f"algorithm.{name}": [-1.0] for name in ("ent_coef", "vf_coef")},
    **{f"algorithm.{name}": [0.0] for name in ("max_grad_norm", "target_kl", "sde_sample_freq")},
    "algorithm.burn_in": [-1, 257],
    "env.n_envs": [0],
    "env.id": [" "],
    "env.backend": ["threads"],
    "env.clip_observations": [0.0],
    "env.workers": [2],  # without processes
    "env.timeout": [2.0],
    "env.wrappers": [(1,), ("flickr",), ({"flicker": 3},), ({"flicker": {}, "delay": {}},)],
    "policy.memory": ["lstn", ":"],
    "policy.encoder": ["resnet"],
    "policy.net_arch": [(64, 0)],
    "policy.critic_memory": ["both"],
    "evaluation.every": [-1],
    "evaluation.episodes": [0],
    "checkpoint.keep": [0],
    "tracking.wandb": ["on"],
    "total_timesteps": [0],
    "seed": [-1, 2**31],
    "threads": [0],
    "name": ["", "..", "a/b"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_value_out_of_range_is_named(key: str, value: Any) -> None:
    settings = changed(Settings(), {key: value})
    assert len(problems(settings)) == 1
    with pytest.raises(SettingsError, match=key):
        settings.check()


def test_all_mistakes_are_named_at_once() -> None:
    wrong = {"algorithm.gamma": 2.0, "algorithm.clip_range": -1.0, "seed": -1}
    with pytest.raises(SettingsError) as caught:
        changed(Settings(), wrong).check()
    assert [line.split()[0] for line in str(caught.value).splitlines()] == list(wrong)


def test_a_rollout_that_sequences_do_not_tile_is_told_what_would_fit() -> None:
    settings = changed(Settings(), {"algorithm.n_steps": 100, "algorithm.sequence_length": 32})
    expected = r"algorithm.n_steps \(100\) must be a multiple of sequence_length \(32\); use 96 or 128"
    with pytest.raises(SettingsError, match=expected):
        settings.check()


def test_a_misspelt_argument_of_a_memory_is_told_the_nearest_and_those_of_ones_own_are_left_to_it() -> None:
    settings = changed(Settings(), {"policy.memory": "gru", "policy.memory_kwargs": {"hiden_size": 8}})
    with pytest.raises(SettingsError, match="'hiden_size', which gru does not take; did you mean 'hidden_size'"):
        settings.check()
    assert problems(changed(settings, {"policy.memory": "mine:Memory"})) == []


def test_actions_about_nodes_need_the_graph_encoder_and_alone_have_a_first_node() -> None:
    def found(**chosen: Any) -> list[tuple[str, str]]:
        return problems(dataclasses.replace(Settings(), policy=PolicySettings(**chosen)))

    assert found(actions="nodes", first_node=1) == found(actions="nodes", encoder="graph") == []
    assert found(actions="nodes", encoder="mine:Graphs") == []
    expected = "nodes are those of encoder graph, not of flatten; use that, or actions flat"
    assert found(actions="nodes", encoder="flatten") == [("policy.actions", expected)]
    assert found(first_node=1) == [
        ("policy.first_node", "goes with policy.actions nodes, not with flat; leave it out"),
    ]


@pytest.mark.parametrize("name", PPO_ONLY)
def test_a_setting_of_ppo_is_refused_for_a2c(name: str) -> None:
    other: Any = {"batch_size": 64, "n_epochs": 3, "clip_range": 0.1, "clip_range_schedule": "linear"}.get(name, 0.5)
    algorithm = dataclasses.replace(AlgorithmSettings(name="a2c"), **{name: other})
    with pytest.raises(SettingsError, match=f"algorithm.{name} is a setting of ppo"):
        dataclasses.replace(Settings(), algorithm=algorithm).check()


def test_the_names_and_arguments_here_are_those_there_are() -> None:
    from agents import encoders, memory
    from envs.wrappers.transforms import WRAPPERS as REGISTERED

    registries: Any = [(MEMORIES, memory.MEMORIES, "input_size"), (ENCODERS, encoders.ENCODERS, "observation_space")]
    for named, registered, given in registries:
        signatures = {name: inspect.signature(kind).parameters.keys() for name, kind in registered.items()}
        assert {name: set(arguments) for name, arguments in named.items()} == {
            name: set(parameters) - {given} for name, parameters in signatures.items()
        }
    assert set(WRAPPERS) == set(REGISTERED)


def test_every_argument_that_shapes_learning_is_a_setting() -> None:
    from agents import RecurrentA2C, RecurrentPPO

    elsewhere = {
        *("policy", "env", "policy_kwargs", "seed", "device"),  # settings in other groups
        *("stats_window_size", "tensorboard_log", "verbose", "_init_setup_model"),  # train.py is responsible for
    }
    ours = {each.name for each in dataclasses.fields(AlgorithmSettings)}
    ppo = set(inspect.signature(RecurrentPPO).parameters) - elsewhere
    a2c = set(inspect.signature(RecurrentA2C).parameters) - elsewhere - {"rms_prop_eps", "use_rms_prop"}
    assert ours - {"name", *(f"{name}_schedule" for name in SCHEDULED)} == ppo
    assert ppo - a2c == set(PPO_ONLY) - {"clip_range_schedule"}


def test_every_setting_says_what_it_means() -> None:
    groups: list[Any] = [Settings()]
    groups += [value for value in vars(groups[0]).values() if dataclasses.is_dataclass(value)]
    for group in groups:
        source = inspect.getsource(type(group))
        for name, value in vars(group).items():
            _, _, after = source.partition(f"    {name}: ")
            assert dataclasses.is_dataclass(value) or after.split("\n    ")[1].startswith('"""'), name


def test_help_names_every_memory_encoder_and_wrapper() -> None:
    source = inspect.getsource(PolicySettings) + inspect.getsource(EnvironmentSettings)
    assert all(name in source for name in (*MEMORIES, *ENCODERS, *WRAPPERS))


def test_an_agent_with_a_memory_sees_its_last_action_and_reward_unless_told_otherwise() -> None:
    def around(env: dict[str, Any], policy: dict[str, Any]) -> tuple[Any, ...]:
        return wrappers(Settings(env=EnvironmentSettings(**env), policy=PolicySettings(**policy)))

    seen = {"previous_action_reward": {"start": True}}
    assert around({}, {}) == (seen,)
    assert around({"wrappers": ("delay",)}, {"memory": "gru"}) == ("delay", seen)
    assert around({"previous_action_reward": False}, {}) == around({}, {"memory": "none"}) == ()
    assert around({}, {"encoder": "nature_cnn"}) == ()
    assert around({"previous_action_reward": True}, {"memory": "none"}) == (seen,)
    assert around({"wrappers": ("previous_action_reward",)}, {}) == ("previous_action_reward",)
