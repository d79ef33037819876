"""A sweep's file is read as strictly as a settings file, and every value is checked before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from configs import Settings, SettingsError, read_space
from configs.command_line import parse
from configs.settings import AlgorithmSettings, PolicySettings
from configs.space import Stop

FILE = Path(__file__).parents[2] / "configs" / "sweeps" / "memory.yaml"


def space(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def parameters(tmp_path: Path, *lines: str, top: str = "") -> Path:
    return space(tmp_path, "\n".join([top, "parameters:", *(f"  {line}" for line in lines)]))


def test_the_file_of_weights_and_biases_is_read_and_can_be_searched_on_its_task() -> None:
    read = read_space(FILE)
    assert (read.method, read.stop) == ("bayes", Stop("median", 1, 3))
    by_key = {each.key: each for each in read.parameters}
    assert by_key["policy.memory_kwargs.hidden_size"].choices == (32, 64, 128, 256)
    rate = by_key["algorithm.learning_rate"]
    assert (rate.low, rate.high, rate.log, rate.whole, rate.choices) == (1e-4, 3e-3, True, False, ())
    read.check(parse(["--config", "tmaze"]).settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("algorithm.learning-rat: {min: 1.0e-4, max: 1.0e-3}", "did you mean 'algorithm.learning_rate'"),
        ("algorithm.gamma: {values: [0.9, high]}", "must be a number, got 'high'"),
        ("algorithm.gamma: {values: [0.9, 1.5]}", "must be between 0 and 1, got 1.5"),
        ("algorithm.gamma: {vaules: [0.9]}", "did you mean 'values'"),
        ("algorithm.gamma: {values: []}", "must be a list of some"),
        ("algorithm.gamma: {values: 0.9}", "must be a list of some"),
        ("algorithm.gamma: {values: [0.9], min: 0.8}", "categorical is given by values, not by values, min"),
        ("algorithm.gamma: {}", "uniform is given by min, max, not by nothing"),
        ("algorithm.gamma: 0.9", "expected a mapping"),
        ("algorithm.gamma: {min: 0.9, max: 0.8}", "min must be less than max"),
        ("algorithm.gamma: {min: 0.9, max: .inf}", "max must be a number, got inf"),
        ("algorithm.gamma: {distribution: log_uniform_value, min: 0.1, max: 1}", "did you mean 'log_uniform_values'"),
        ("algorithm.ent-coef: {distribution: log_uniform_values, min: 0, max: 1.0}", "min must be greater than 0"),
        ("algorithm.n-epochs: {min: 1.0, max: 8.0}", "whole numbers are int_uniform"),
        ("algorithm.n-epochs: {distribution: log_uniform_values, min: 1, max: 8}", "q_log_uniform_values with q: 1"),
        ("algorithm.n-epochs: {min: 0, max: 8}", "must be at least 1"),
        ("algorithm.n-epochs: {distribution: q_uniform, min: 2, max: 8, q: 0}", "q must be greater than 0"),
        ("policy.memory: {values: [lstm, lstmm]}", "policy.memory 'lstmm': policy.memory must be"),
        ("policy.memory-kwargs.hiden-size: {values: [8]}", "hiden_size"),
        ("policy.memory-kwargs.hidden-size: {min: 8, max: 8}", "min must be less than max"),
        ("seed: {values: [1, 2]}", "does not decide what is learned"),
        ("tracking.wandb: {values: [online]}", "does not decide what is learned"),
        ("env.id: {values: [CartPole-v1]}", "does not decide what is learned"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    file = parameters(tmp_path, "algorithm.gae-lambda: {min: 0.8, max: 1.0}", line)
    with pytest.raises(SettingsError) as raised:
        read_space(file).check(Settings())
    assert str(raised.value).startswith(f"{file}:4: ")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "parameters are missing"),
        ("parameters:", "must be named by settings"),
        ("parameters: {}", "parameters are missing"),
        ("- a", "expected a mapping"),
        ("paramters: {}", ":1: 'paramters' is no field of a sweep; did you mean 'parameters'"),
        ("method: grid\nparameters: {algorithm.gamma: {values: [1]}}", "method must be one of bayes, random"),
        ("metric: {goal: minimize}\nparameters: {algorithm.gamma: {values: [1]}}", "goal must be maximize"),
        ("early_terminate: {type: medain}\nparameters: {a: 1}", "did you mean 'median'"),
        ("early_terminate: {min_iter: 0}\nparameters: {a: 1}", "whole number of at least 1"),
        ("early_terminate: {s: 2}\nparameters: {a: 1}", "'s' is no field of early_terminate"),
        ("parameters: {algorithm.gamma: {values: [1]}, algorithm.gamma: {values: [1]}}", "is set twice"),
        ("parameters: [", "expected the node content"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        read_space(space(tmp_path, text))
    assert message in str(raised.value)


def test_arguments_apply_to_the_memories_that_take_them(tmp_path: Path) -> None:
    file = parameters(
        tmp_path,
        "policy.memory-kwargs.forget-bias: {values: [1, 3]}",
        "policy.memory-kwargs.hidden-size: {min: 8, max: 16}",
        "policy.memory: {values: [lstm, gru, none]}",
    )
    read, base = read_space(file), Settings()
    read.check(base)
    assert read.parameters[0].key == "policy.memory"  # the others depend on it
    applying = {
        memory: [each.key.rpartition(".")[2] for each in read.parameters if read.applies(each, base, chosen)]
        for memory in ("lstm", "gru", "none")
        if (chosen := {"policy.memory": memory})
    }
    assert applying == {
        "lstm": ["memory", "forget_bias", "hidden_size"],
        "gru": ["memory", "hidden_size"],
        "none": ["memory"],
    }
    base = replace(base, policy=PolicySettings(memory_kwargs={"forget_bias": 3, "num_layers": 2}))
    chosen = {"policy.memory": "gru", "policy.memory_kwargs.hidden_size": 8}
    assert read.settings(base, chosen).policy.memory_kwargs == {"num_layers": 2, "hidden_size": 8}


def test_settings_are_in_a_space_where_all_that_they_say_is(tmp_path: Path) -> None:
    read = read_space(
        parameters(tmp_path, "algorithm.gamma: {min: 0.9, max: 0.99}", "algorithm.n-steps: {values: [128]}")
    )
    assert read.of(Settings()) is None
    base = replace(Settings(), algorithm=AlgorithmSettings(n_steps=128, gamma=0.95))
    assert read.of(base) == {"algorithm.gamma": 0.95, "algorithm.n_steps": 128}


def test_a_value_with_which_nothing_can_be_trained_is_refused(tmp_path: Path) -> None:
    lines = ("algorithm.n-steps: {values: [128, 100]}", "algorithm.sequence-length: {values: [32, 64]}")
    with pytest.raises(SettingsError, match=r":3: algorithm.n_steps 100: .* must be a multiple of sequence_length"):
        read_space(parameters(tmp_path, *lines)).check(Settings())
