"""Settings files are read strictly, and what is written reads back."""

import dataclasses
import math
from pathlib import Path

import pytest

from configs import Settings, SettingsError, dump, parse, read
from configs.settings import AlgorithmSettings, EnvironmentSettings, PolicySettings, TrackingSettings, values


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def written(file: Path, text: str) -> Settings:
    file.write_text(text)
    return read(file)


def test_an_empty_file_gives_the_defaults(file: Path) -> None:
    assert written(file, "") == Settings()
    assert written(file, "# nothing yet\nenv:\n") == Settings()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(
            env=EnvironmentSettings(
                kwargs={"length": 20, "odd words": ["1e5", "off", "null", "true", "007", "1:30", "", "~", " a ", "é"]},
                wrappers=("delay", {"flicker": {"probability": 0.5}}, {"noise": None}),
            ),
            algorithm=AlgorithmSettings(learning_rate=1e-7, max_grad_norm=math.inf, clip_range_vf=0.2),
            policy=PolicySettings(memory="my_module:MyMemory", net_arch=(), critic_net_arch=None),
            tracking=TrackingSettings(wandb="offline", wandb_tags=("1", "no", "2024-01-01")),
            total_timesteps=123_456,
            name="- a: b # c",
        ),
    ],
    ids=["defaults", "awkward"],
)
def test_what_is_dumped_reads_back_the_same(file: Path, settings: Settings) -> None:
    assert written(file, dump(settings)) == settings


def test_numbers_may_be_written_as_people_write_them(file: Path) -> None:
    whole = {"1e5": 100_000, "100_000": 100_000, "1.0e+5": 100_000, "010": 10, "0x10": 16}
    for text, number in whole.items():
        steps = written(file, f"total_timesteps: {text}").total_timesteps
        assert (steps, type(steps)) == (number, int)
    for text, rate in {"1e-3": 0.001, "1": 1.0, ".5": 0.5, "5E-4": 0.0005, "1.e-2": 0.01}.items():
        found = written(file, f"algorithm:\n  learning_rate: {text}").algorithm.learning_rate
        assert (found, type(found)) == (rate, float)


def test_free_values_follow_yaml_1_2(file: Path) -> None:
    text = "env:\n  kwargs: {a: 1e5, b: off, c: 1:30, d: 2024-01-01, e: -.inf, f: yes, g: true, h: ~, i: '1'}"
    expected = dict(a=1e5, b="off", c="1:30", d="2024-01-01", e=-math.inf, f="yes", g=True, h=None, i="1")
    assert written(file, text).env.kwargs == expected
    assert written(file, "tracking:\n  wandb: off").tracking.wandb == "off"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("seed: 1\nalgoritm:\n  gamma: 1", 2, ["unknown setting algoritm", "did you mean 'algorithm'"]),
        ("env:\n  id: A\n  n_env: 3", 3, ["unknown setting env.n_env", "did you mean 'n_envs'"]),
        ("env:\n  xyzzy: 3", 2, ["unknown setting env.xyzzy", "n_envs"]),
        ("seed: 1\nname: a\nseed: 2", 3, ["'seed' is set twice"]),
        ("env:\n  kwargs:\n    a: 1\n    a: 2", 4, ["'a' is set twice"]),
        ("total_timesteps: 1.5", 1, ["total_timesteps must be a whole number, got 1.5"]),
        ("total_timesteps: many", 1, ["total_timesteps must be a whole number, got 'many'"]),
        ("seed: true", 1, ["seed must be a whole number, got true"]),
        ("algorithm:\n  gamma: high", 2, ["algorithm.gamma must be a number, got 'high'"]),
        ("progress: yes", 1, ["progress must be true or false, got 'yes'"]),
        ("env:\n  id: 5", 2, ["env.id must be a text, got 5", "quotes"]),
        ("env:\n  kwargs: [1]", 2, ["env.kwargs must map names to values"]),
        ("policy:\n  net_arch: 64", 2, ["policy.net_arch must be a list, got 64"]),
        ("policy:\n  activation: rleu", 2, ["policy.activation must be one of", "did you mean 'relu'"]),
        ("- a", 1, ["the file must hold settings"]),
        ("env: 3", 1, ["env must hold settings"]),
        ("env: [", 1, ["expected"]),
        ("name: a\n---\nname: b", 2, ["another document"]),
        ("env:\n  {[1]: 2}", 2, ["a name was expected"]),
        ("env:\n  kwargs: {[1]: 2}", 2, ["a name was expected"]),
        ("env:\n  kwargs: &a {b: *a}", 2, ["recursive"]),
        ("name: a\nalgorithm:\n  gamma: 9.9", 3, ["algorithm.gamma must be between 0 and 1, got 9.9"]),
    ],
)
def test_a_mistake_names_file_line_and_key(file: Path, text: str, line: int, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        written(file, text)
    message = str(caught.value)
    assert message.startswith(f"{file}:{line}: ")
    assert all(word in message for word in words), message


def test_a_tag_that_would_run_code_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="could not determine a constructor"):
        written(file, f"name: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    assert not (tmp_path / "made").exists()


def test_aliases_of_aliases_are_counted_before_they_are_written_out(file: Path) -> None:
    """Twelve lines that stand for a billion values; a few aliases are let be."""
    lines = [f"    a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    file.write_text("\n".join(["env:", "  kwargs:", "    a0: &a0 [x, y]", *lines]))
    for reading in (lambda: read(file), lambda: parse(["--config", str(file), "--dry-run"])):
        with pytest.raises(SettingsError, match="more than 10000 values with every alias written out"):
            reading()
    settings = written(file, "env:\n  kwargs: {a: &a [1, 2], b: *a, c: [*a, *a]}")
    assert settings.env.kwargs == {"a": [1, 2], "b": [1, 2], "c": [[1, 2], [1, 2]]}


@pytest.mark.parametrize("text", ["# " + "x" * 2**20, "env:\n  kwargs: {a: " + "[" * 1000 + "]" * 1000 + "}"])
def test_a_file_that_is_too_long_or_too_deep_is_no_settings_file(file: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"more than 1048576 characters|nested too deeply"):
        written(file, text)


def test_what_is_no_text_or_no_file_is_an_error(file: Path, tmp_path: Path) -> None:
    for content in (b"\xff\xfe\x00", b"name: \x00"):
        file.write_bytes(content)
        with pytest.raises(SettingsError, match=r"settings\.yaml"):
            read(file)
    with pytest.raises(SettingsError, match=r"no settings file .*nothing\.yaml"):
        read(tmp_path / "nothing.yaml")
    with pytest.raises(SettingsError, match="cannot read settings file"):
        read(tmp_path)


def test_every_setting_refuses_a_mapping_or_a_text_where_it_has_another_type(file: Path) -> None:
    for key, value in values(Settings()).items():
        *groups, name = key.split(".")
        wrong = "{a: {b: c}}" if not isinstance(value, dict) else "[1]"
        text = "".join(f"{'  ' * depth}{group}:\n" for depth, group in enumerate(groups))
        with pytest.raises(SettingsError, match=f"{name} must be|{name} must map"):
            written(file, f"{text}{'  ' * len(groups)}{name}: {wrong}\n")


def test_a_run_of_an_older_version_keeps_what_a_setting_was_before_it_had_a_name(file: Path) -> None:
    whole = dump(Settings())
    older = "\n".join(line for line in whole.splitlines() if "previous_action_reward" not in line)
    assert older != whole
    assert written(file, older).env.previous_action_reward is False
    assert written(file, whole) == Settings()
    assert written(file, "seed: 1").env.previous_action_reward is None


def test_the_former_name_of_initialization_is_read_in_a_run_and_refused_elsewhere(file: Path) -> None:
    policy = dataclasses.replace(Settings().policy, memory="gru", memory_kwargs={"initialization": "torch"})
    older = dump(dataclasses.replace(Settings(), policy=policy)).replace("initialization", "initialisation")
    assert written(file, older).policy.memory_kwargs == {"initialization": "torch"}
    with pytest.raises(SettingsError, match="did you mean 'initialization'"):
        written(file, "policy: {memory: gru, memory_kwargs: {initialisation: torch}}")
