"""Defaults, then the file, then the command line; and no answer about settings waits for torch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import train
from configs import Settings, SettingsError, read
from configs.command_line import find_config, parse
from configs.help import CALLED, TOPICS, setting_options
from configs.settings import ENCODERS, MEMORIES, SETTINGS, PolicySettings
from tests.pairs import each

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

FILE = """
env:
  id: TMaze-v0
  kwargs: {length: 20, active: true}
  wrappers: [delay]
algorithm:
  gamma: 0.9
  learning_rate: 1e-3
policy:
  memory: lstm
  memory_kwargs: {hidden_size: 32, forget_bias: 3}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "maze.yaml"
    path.write_text(FILE)
    return str(path)


def test_the_command_line_beats_the_file_and_the_file_the_defaults(file: str) -> None:
    settings = parse(["--config", file, "--algorithm.gamma", "0.5"]).settings
    assert (settings.env.id, settings.algorithm.gamma, settings.algorithm.learning_rate) == ("TMaze-v0", 0.5, 0.001)
    assert settings.algorithm.n_steps == Settings().algorithm.n_steps
    assert parse([]).settings == Settings()
    assert parse([f"--config={file}", "--algorithm.gamma=0.5"]).settings == settings


def test_numbers_may_have_exponents() -> None:
    settings = parse(["--total-timesteps", "1e5", "--algorithm.learning-rate", "1e-3", "--env.n-envs", "1_0"]).settings
    assert (settings.total_timesteps, settings.algorithm.learning_rate, settings.env.n_envs) == (100_000, 0.001, 10)
    for word in (".inf", "inf"):
        assert parse(["--algorithm.max-grad-norm", word]).settings.algorithm.max_grad_norm == float("inf")


def test_words_of_a_mapping_are_added_to_those_of_the_file_and_no_words_empty_it(file: str) -> None:
    added = parse(["--config", file, "--env.kwargs", "length=50", "rewards={good: 4}"]).settings
    assert added.env.kwargs == {"length": 50, "active": True, "rewards": {"good": 4}}
    emptied = parse(["--config", file, "--env.kwargs", "--env.wrappers"]).settings
    assert (emptied.env.kwargs, emptied.env.wrappers) == ({}, ())


@pytest.mark.parametrize(
    "words",
    [
        ["--env.kwargs.length=50", "--env.kwargs.active=false", "--seed", "3"],
        ["--env.kwargs.length", "50", "--seed", "3", "--env.kwargs.active", "false"],
        ["--env.kwargs", "length=50", "--seed=3", "--env.kwargs.active=false"],
        ["--env.kwargs=length=50", "--env.kwargs.active=false", "--seed=3"],
        ["--env.kwargs.active=false", "--env.kwargs", "length=50", "--seed=3"],
        ["--env.kwargs", "width=9", "--env.kwargs.active=false", "--seed=3", "--env.kwargs", "length=50"],
    ],
)
def test_one_word_of_a_mapping_can_be_an_option_of_its_own(file: str, words: list[str]) -> None:
    settings = parse(["--config", file, *words]).settings
    assert (settings.env.kwargs, settings.seed) == ({"length": 50, "active": False}, 3)


def test_dashes_underscores_layers_wrappers_and_none_are_words() -> None:
    words = ["--policy.memory_kwargs.hidden-size=8", "--policy.memory-kwargs.num_layers", "2"]
    words += ["--policy.net-arch", "32", "16", "--policy.critic-net-arch", "None"]
    settings = parse([*words, "--env.wrappers", "delay", "{flicker: {probability: 0.5}}"]).settings
    assert settings.policy.memory_kwargs == {"hidden_size": 8, "num_layers": 2}
    assert (settings.policy.net_arch, settings.policy.critic_net_arch) == ((32, 16), None)
    assert settings.env.wrappers == ("delay", {"flicker": {"probability": 0.5}})


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("{flicker: {probability:0.5}}", "with a space after each colon; got {'flicker': {'probability:0.5': None}}"),
        ("[delay, {flicker: {}}]", "give each wrapper as a word of its own, without brackets around them"),
    ],
)
def test_slips_in_the_words_of_a_wrapper_are_named(typed: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        parse(["--env.wrappers", typed])


def test_another_memory_keeps_those_of_the_files_arguments_that_it_takes(file: str) -> None:
    assert parse(["--config", file, "--policy.memory", "gru"]).settings.policy.memory_kwargs == {"hidden_size": 32}
    assert parse(["--config", file, "--policy.memory", "none"]).settings.policy.memory_kwargs == {}


def test_another_encoder_keeps_those_of_the_files_arguments_that_it_takes() -> None:
    def policy(*words: str) -> PolicySettings:
        return parse(["--config", "graph_search", *words]).settings.policy

    written = policy()
    assert (written.actions, written.first_node) == ("nodes", 1)
    assert policy("--policy.encoder", "graph") == written
    for words, kept in (
        (["--policy.encoder", "sequence"], {"features_dim": 64, "hidden_size": 32}),
        (["--policy.encoder=flatten"], {}),
        (["--policy.encoder", "None"], {}),
    ):
        found = policy(*words)
        assert (found.encoder_kwargs, found.actions, found.first_node) == (kept, "flat", 0)
    own = policy("--policy.encoder", "mine:Graphs")
    assert (own.encoder_kwargs, own.actions) == ({"features_dim": 64, "hidden_size": 32, "rounds": 1}, "nodes")
    added = policy("--policy.encoder", "transformer", "--policy.encoder-kwargs", "width=8")
    assert added.encoder_kwargs == {"features_dim": 64, "width": 8}


@pytest.mark.parametrize(("path", "memory", "encoder"), each(CONFIGS, MEMORIES, [None, *ENCODERS]), ids=str)
def test_any_memory_and_any_encoder_can_be_named_over_any_settings_file(
    path: Path, memory: str, encoder: str | None
) -> None:
    words = ["--config", path.stem, "--policy.memory", memory, "--policy.encoder", str(encoder)]
    settings = parse(words).settings
    assert (settings.policy.memory, settings.policy.encoder) == (memory, encoder)


def test_a_typed_argument_that_the_memory_does_not_take_is_an_error(file: str) -> None:
    with pytest.raises(SettingsError, match="'forget_bias', which gru does not take"):
        parse(["--config", file, "--policy.memory", "gru", "--policy.memory-kwargs", "forget_bias=1"])


def test_a_mistake_in_the_file_names_its_line_unless_the_command_line_mends_it(file: str) -> None:
    Path(file).write_text("seed: 3\nalgorithm:\n  gamma: 9.9\n")
    with pytest.raises(SettingsError, match=r"maze\.yaml:3: algorithm.gamma must be between 0 and 1, got 9.9"):
        parse(["--config", file])
    with pytest.raises(SettingsError) as caught:
        parse(["--config", file, "--algorithm.gamma", "8.8"])
    assert str(caught.value) == "algorithm.gamma must be between 0 and 1, got 8.8"
    assert parse(["--config", file, "--algorithm.gamma", "0.9"]).settings.algorithm.gamma == 0.9


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--policy.activation", "rleu"], "relu"),
        (["--total-timesteps", "1.5"], "must be a whole number, got 1.5"),
        (["--env.kwargs", "length"], "expected name=value, got 'length'"),
        (["--env.kwargs", "length=[1"], "is not YAML"),
        (["--env.kwargs.length"], "expected name=value, got 'length'"),
        (["--config"], "--config"),
        (["stray"], "stray"),
    ],
)
def test_words_that_cannot_be_parsed_end_with_exit_code_2_and_a_hint(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert expected in captured.err + captured.out


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--algorithm.gama", "--algorithm.gamma"),
        ("--algo", "--algorithm.name"),
        ("--gamma", "--algorithm.gamma"),
        ("--lr=3e-4", "--algorithm.learning-rate"),
        ("--policy.memroy", "--policy.memory"),
        ("--seedz", "--seed"),
    ],
)
def test_an_option_that_there_is_not_names_the_one_that_was_meant(word: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=f"there is no option {word.partition('=')[0]}; did you mean {meant}"):
        parse([word, "1"])


def test_every_hint_names_an_option_that_can_be_typed() -> None:
    options = setting_options(Settings())
    for meant in CALLED.values():
        assert meant in options or meant.rpartition(".")[0] in options


def test_every_setting_and_switch_is_a_known_option() -> None:
    for option, (kind, value) in setting_options(Settings()).items():
        if kind is bool:
            group, dot, name = option.rpartition(".")
            for switch in (f"--{option}", f"--{group}{dot}no-{name}"):
                parse([switch])
        elif isinstance(value, str):
            assert parse([f"--{option}", value]).settings == Settings()


@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_short_and_its_topics_explain_every_setting(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = {}
    for words in (["--help"], ["-h"], ["--help-all"], *(["--help", topic] for topic in TOPICS)):
        assert train.main(words) == 0
        shown[words[-1]] = capsys.readouterr().out
        assert max(map(len, shown[words[-1]].splitlines())) <= columns
    assert shown["--help"] == shown["-h"]
    assert len(shown["--help"].splitlines()) <= 45
    for key in SETTINGS:
        option, topic = f"  --{key.replace('_', '-')}", key.partition(".")[0] if "." in key else "run"
        assert option in shown[topic]
        assert option in shown["--help-all"]


def test_help_of_a_topic_shows_the_values_of_the_settings_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", "tmaze", "--help", "env"]) == 0
    assert "[TMaze-v0]" in capsys.readouterr().out


def test_files_that_come_with_the_package_are_found_by_name() -> None:
    assert [find_config(path.stem) for path in CONFIGS] == CONFIGS
    with pytest.raises(SettingsError, match=r"no settings file cartpole_nov; did you mean 'cartpole_novel'\?"):
        find_config("cartpole_nov")
    with pytest.raises(SettingsError, match=r"no settings file zzz; by name there are .*cartpole_novel"):
        find_config("zzz")


def test_a_printed_configuration_reads_back_to_the_same_settings(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", file, "--algorithm.clip-range-vf", "0.3", "--env.wrappers", "{noise: {scale: 1e-2}}"]
    words += ["--name", "1"]
    assert train.main([*words, "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert read(tmp_path / "printed.yaml") == parse(words).settings


LIGHT = """
import sys
import train
codes = [train.main(words) for words in (["--help"], ["--algorithm.gamma", "9.9"], ["--print-config"])]
heavy = {"torch", "stable_baselines3", "sb3_contrib", "wandb", "agents", "numpy", "gymnasium"} & sys.modules.keys()
print("HEAVY", sorted(heavy), "CODES", codes)
"""


def test_questions_about_settings_are_answered_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "HEAVY [] CODES [0, 2, 0]" in done.stdout
