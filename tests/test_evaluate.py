"""evaluate.py needs nothing but the directories of runs, says what is wrong with them, and shows what they remember."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch
import yaml
from stable_baselines3 import PPO

import configs
import evaluate
import train
from agents import Player, RecurrentPPO
from agents.checkpoint import CheckpointError
from agents.checks.extras import install_command
from agents.runs.directory import RunDirectory
from agents.runs.several import SeedsFailed
from configs import EnvironmentFault, Settings

WORDS = [
    *("--env.id", "TMaze-v0", "--env.kwargs", "length=3", "--env.n-envs", "2", "--threads", "1"),
    *("--env.wrappers", "previous_action_reward", "--checkpoint.every", "32"),
    *("--algorithm.n-steps", "16", "--algorithm.batch-size", "16", "--algorithm.n-epochs", "1"),
    *("--policy.memory", "gru", "--policy.memory-kwargs", "hidden_size=4", "--total-timesteps", "64"),
    *("--evaluation.every", "32", "--evaluation.episodes", "2", "--evaluation.final-episodes", "3"),
    *("--tracking.no-tensorboard", "--no-progress"),
]
OTHER = ["--policy.memory", "none", "--policy.memory-kwargs", "--name", "other"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("trained")
    assert train.main([*WORDS, "--runs", str(runs), "--seeds", "2", "--seed", "5", "--name", "pair"]) == 0
    assert train.main([*WORDS, "--runs", str(runs), *OTHER]) == 0
    for run in runs.iterdir():
        shutil.rmtree(run / "evaluations")  # those at the end of training
    return runs


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy in another place: a run is its directory."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture
def run(runs: Path) -> Path:
    return runs / "pair-5"


def results(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((run / "evaluations").glob("*.json"))]


def test_the_table_and_the_file_say_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--episodes", "7", "--n-envs", "3", "--checkpoint", "32", "--json", str(run / "result.json")]
    assert evaluate.main([str(run), *words]) == 0
    (result,) = results(run)
    assert json.loads((run / "result.json").read_text()) == result
    shown = capsys.readouterr().out
    for row in ("mean return", "median", "interquartile mean", "standard deviation", "mean length", "95 % interval"):
        assert row in shown
    assert f"{result['return']['mean']:.3f}"[:4] in shown
    assert (result["episodes"], len(result["returns"]), result["deterministic"]) == (7, 7, True)
    assert result["return"]["mean"] == pytest.approx(sum(result["returns"]) / 7)
    assert result["checkpoint"] == "step_000000000032.zip"
    assert result["environment"]["wrappers"] == ["previous_action_reward"]


def test_the_same_seed_gives_the_same_episodes_and_nothing_is_overwritten(run: Path) -> None:
    for seed in ("5", "5", "6"):
        assert evaluate.main([str(run), "--episodes", "4", "--stochastic", "--seed", seed]) == 0
    by_seed = {(result["seed"], *result["lengths"], *result["returns"]) for result in results(run)}
    assert (len(results(run)), sorted(each[0] for each in by_seed)) == (3, [5, 6])


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_is_recorded(run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "videos" / f"pole{suffix}"
    assert evaluate.main([str(run), "--episodes", "1", "--video", str(path)]) == 0
    assert path.read_bytes()[:3] == b"GIF" if suffix == ".gif" else b"ftyp" in path.read_bytes()[:12]
    assert f"to {path}" in capsys.readouterr().out


def test_a_missing_extra_is_told_how_to_install_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # so Python says it is not there
    assert evaluate.main([str(run), "--episodes", "1", "--video", str(tmp_path / "pole.mp4")]) == 2
    assert '[video]"' in capsys.readouterr().err


def test_a_run_that_cannot_be_written_to_is_evaluated_all_the_same(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "evaluations").write_text("in the way of the folder")
    assert evaluate.main([str(run), "--episodes", "1"]) == 0
    captured = capsys.readouterr()
    assert "mean return" in captured.out
    assert "was not written into the run" in captured.err


# Several runs


def test_seeds_are_runs_of_their_own_in_one_group(runs: Path) -> None:
    pair = [configs.read(runs / f"pair-{seed}" / "settings.yaml") for seed in (5, 6)]
    assert [(each.seed, each.group, each.name) for each in pair] == [(5, "pair", "pair-5"), (6, "pair", "pair-6")]


def test_a_run_of_several_seeds_is_the_one_of_that_seed_alone(runs: Path, tmp_path: Path) -> None:
    assert train.main([*WORDS, "--runs", str(tmp_path), "--seed", "6", "--name", "alone"]) == 0
    evaluations = [(path / "evaluations.csv").read_text() for path in (runs / "pair-6", tmp_path / "alone")]
    assert evaluations[0] == evaluations[1]


def test_a_failed_seed_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "three-1").mkdir()  # this seed's place is taken
    words = [*WORDS, "--runs", str(tmp_path), "--seeds", "3", "--name", "three", "--evaluation.every", "0"]
    assert train.main(words) == 2
    captured = capsys.readouterr()
    assert "1 of 3 seeds failed. seed 1:" in captured.err
    assert "three-1 exists" in captured.err
    assert "2 seeds" in captured.out  # the table over those that were trained
    assert all((tmp_path / f"three-{seed}" / "checkpoints").is_dir() for seed in (0, 2))


def test_the_exit_code_is_that_of_the_first_failure() -> None:
    failed = SeedsFailed({3: EnvironmentFault("the wheel came off")}, 5)
    assert (failed.exit_code, str(failed)) == (3, "1 of 5 seeds failed. seed 3: the wheel came off")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--seeds", "0"], 2, "--seeds must be at least 1, got 0"),
        (["--seeds", "3", "--seed", str(2**31 - 2)], 2, "exceed 2147483647"),
        (["--seeds", "3", "--seed", "4", "--dry-run"], 0, "seeds         4 to 6"),
    ],
)
def test_seeds_are_named_before_they_are_trained_or_refused(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(words) == code
    assert message in "".join(capsys.readouterr())


def test_several_runs_give_one_table_one_file_and_one_page(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(runs / name) for name in ("pair-5", "pair-6", "other")]
    words += ["--episodes", "4", "--json", str(tmp_path / "all.json"), "--report", str(tmp_path / "all.html")]
    assert evaluate.main(words) == 0
    out = capsys.readouterr().out
    for text in ("pair-5", "pair-6", "other", "2 seeds", "one seed", "memory none"):
        assert text in out
    written = json.loads((tmp_path / "all.json").read_text())
    assert [len(each["returns"]) for each in written["runs"]] == [4, 4, 4]
    assert [group["seeds"] for group in written["groups"]] == [[5, 6], [0]]
    first, second, _ = written["runs"]
    assert written["groups"][0]["means"] == [first["return"]["mean"], second["return"]["mean"]]
    assert "memory none" in (tmp_path / "all.html").read_text()


def episode_of(page: Path) -> Any:
    return json.loads(page.read_text().split('<script type="application/json" id="data">')[1].split("</script>")[0])


def test_a_runs_report_lies_in_the_run_and_is_numbered_where_there_is_one(runs: Path) -> None:
    for _ in range(2):
        assert evaluate.main([str(runs / "other"), "--episodes", "2", "--report"]) == 0
    episode = episode_of(runs / "other" / "report.html")
    assert episode["steps"] == len(episode["rewards"]) > 0
    assert (runs / "other" / "report-2.html").is_file()


def test_how_far_an_export_differs_from_the_agent_is_in_its_runs_report(runs: Path, tmp_path: Path) -> None:
    words, page = [str(runs / "other"), "--episodes", "2"], tmp_path / "page.html"
    assert evaluate.main([*words, "--export", str(tmp_path / "policy.c")]) == 0
    assert evaluate.main([*words, "--report", str(page)]) == 0
    (left,) = (runs / "other" / "insight").glob("*-export-c.json")
    compared = json.loads(left.read_text())
    assert compared["file"] == "policy.c"
    assert compared["steps_compared"] >= 1000
    assert compared["largest_difference"] < 1e-5
    shown = page.read_text()
    assert all(text in shown for text in ("Exports", "policy.c", f"{compared['largest_difference']:.1g}"))


def test_a_report_is_replaced_on_request(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert evaluate.main([str(runs / "other"), "--episodes", "2", "--report", str(page)]) == 0
    first = page.read_text()
    assert evaluate.main([str(runs / "pair-5"), "--episodes", "2", "--report", str(page), "--overwrite"]) == 0
    assert "pair-5" in page.read_text() != first
    for _ in range(2):
        assert evaluate.main([str(runs / "other"), "--episodes", "2", "--report", "--overwrite"]) == 0
    assert [path.name for path in (runs / "other").glob("report*")] == ["report.html"]


def test_a_directory_without_an_agent_does_not_stop_a_comparison_and_is_named(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "empty").mkdir()
    (runs / "note.txt").touch()
    shutil.rmtree(runs / "other" / "checkpoints")
    (runs / "other" / "best.zip").unlink()
    assert evaluate.main([*map(str, sorted(runs.iterdir())), "--episodes", "2"]) == 0
    captured = capsys.readouterr()
    for name in ("empty", "note.txt", "other"):
        assert f"left out: {runs / name}" in captured.err
        assert f" {name} " not in captured.out
    assert "2 seeds" in captured.out


def test_an_agents_file_is_evaluated_as_its_run_is(runs: Path, tmp_path: Path) -> None:
    """In its run, and moved away from it, with its last action and reward as in training."""
    (tmp_path / "moved.zip").write_bytes((runs / "pair-5" / "best.zip").read_bytes())
    task = tmp_path / "task.yaml"
    task.write_text("env: {id: TMaze-v0, kwargs: {length: 3}, wrappers: [previous_action_reward]}")
    file, words = tmp_path / "all.json", ["--episodes", "8", "--stochastic", "--json", str(tmp_path / "all.json")]
    found = []
    for chosen in (
        [str(runs / "pair-5")],
        [str(runs / "pair-5" / "best.zip")],
        *([[str(tmp_path / "moved.zip"), "--config", str(task)]] * 2),
    ):
        assert evaluate.main([*chosen, *words]) == 0
        found.append(json.loads(file.read_text())["returns"])
    assert found[1:] == [found[0]] * 3
    (made,) = tmp_path.glob("moved-evaluation*")
    assert configs.read(made / "settings.yaml").policy.memory == "gru"
    assert len(results(made)) == 2


def test_a_model_of_sb3_contrib_is_evaluated_in_the_environment_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = sb3_contrib.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    theirs.save(tmp_path / "theirs")
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8).save(tmp_path / "other")
    (tmp_path / "text.zip").write_text("hello")
    words = ["--env", "CartPole-v1", "--episodes", "3"]
    assert evaluate.main([str(tmp_path / "theirs.zip"), *words]) == 0
    for name, typed, code, message in (
        ("theirs", [], 2, "its environment is not known; add --env ID"),
        ("theirs", ["--env", "Pendulum-v1"], 5, "theirs.zip in Pendulum-v1: "),
        ("other", words, 5, "holds no LSTM"),
        ("text", words, 5, "is no checkpoint"),
    ):
        assert evaluate.main([str(tmp_path / f"{name}.zip"), *typed]) == code
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["theirs-evaluation"]


def test_the_help_shows_commands_by_topic(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert evaluate.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert "the memory:" in shown
    assert max(map(len, shown.splitlines())) <= 120  # the commands are as long as the path of this Python


def test_the_episode_of_a_report_is_one_that_an_evaluation_plays(runs: Path, tmp_path: Path) -> None:
    words = ["--episodes", "1", "--n-envs", "1", "--seed", "3", "--json", str(tmp_path / "one.json")]
    assert evaluate.main([str(runs / "pair-5"), *words, "--report", str(tmp_path / "one.html")]) == 0
    (played,) = json.loads((tmp_path / "one.json").read_text())["returns"]
    assert episode_of(tmp_path / "one.html")["total"] == pytest.approx(played)


def test_a_run_that_has_not_saved_an_agent_yet_still_has_a_report(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    young = runs / "other"
    (young / "best.zip").unlink()
    shutil.rmtree(young / "checkpoints")
    (young / "evaluations.csv").unlink()
    assert evaluate.main([str(young), "--report", str(tmp_path / "young.html")]) == 0
    assert "holds no saved agent yet" in capsys.readouterr().err
    assert episode_of(tmp_path / "young.html") is None
    assert "There is no periodic evaluation" in (tmp_path / "young.html").read_text()


def test_runs_are_listed_as_their_directories_are(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # no name is cut short
    shutil.rmtree(runs / "pair-6")
    (runs / "other" / "settings.yaml").write_text("sede: 1\n")
    stopped = RunDirectory.create(runs, "a-run-of-a-long-name-that-was-stopped-early")
    stopped.settings.write_text(configs.dump(Settings()))
    assert evaluate.main(["--list", "--runs", str(runs), "--json", str(tmp_path / "list.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[1:]}
    assert rows.keys() == {"pair-5", "other", stopped.path.name}
    assert rows["pair-5"].split()[1:6] == ["TMaze-v0", "gru", "5", "pair", "64"]
    assert rows["pair-5"].rstrip().endswith("finished")
    assert "settings unreadable" in rows["other"]
    assert rows[stopped.path.name].rstrip().endswith("stopped")
    listed = {row["run"]: row for row in json.loads((tmp_path / "list.json").read_text())["runs"]}
    assert (listed["pair-5"]["steps"], listed["pair-5"]["group"]) == (64, "pair")


# What a run remembers


def analyzed(run: Path, *words: str) -> int:
    return evaluate.main([str(run), "--episodes", "4", "--n-envs", "2", *words])


def test_insight_writes_all_of_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert analyzed(run, "--insight") == 0
    name = "best"
    assert sorted(path.name for path in (run / "insight").iterdir()) == sorted(
        f"{name}-{rest}"
        for rest in (
            *("horizon.json", "horizon.png", "inside.json", "inside.npz"),
            *("inside-components.png", "inside-gates.png", "inside-state.png"),
        )
    )
    shown = capsys.readouterr().out
    for words in ("intact", "wiped every step", "wiped every 2 steps", "of another episode", "noise of 0.1"):
        assert words in shown
    ablation = json.loads((run / "evaluations" / f"{name}-4-deterministic-ablation.json").read_text())
    horizon = json.loads((run / "insight" / f"{name}-horizon.json").read_text())
    assert ablation["verdict"] in shown.replace("\n", " ")
    assert horizon["verdict"] in shown
    plain = json.loads((run / "evaluations" / f"{name}-4-deterministic.json").read_text())
    assert len(ablation["conditions"][0]["returns"]) == plain["episodes"] == 4
    arrays = np.load(run / "insight" / f"{name}-inside.npz")
    inside = json.loads((run / "insight" / f"{name}-inside.json").read_text())
    assert arrays["rewards"].sum() == pytest.approx(inside["return"])
    assert arrays["states.0"].shape == (inside["steps"] + 1, 1, 4)
    assert set(inside["gates"]) == {"reset", "update"}


def test_nothing_is_overwritten(run: Path) -> None:
    for _ in range(2):
        assert analyzed(run, "--horizon", "1") == 0
    found = sorted((run / "insight").iterdir())
    assert [path.name[5:] for path in found] == ["horizon-2.json", "horizon-2.png", "horizon.json", "horizon.png"]
    assert len(json.loads(found[0].read_text())["sensitivity"]) == 2
    assert found[0].read_text() == found[2].read_text()


def test_an_agent_without_memory_is_said_to_have_none(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyzed(runs / "other", "--insight") == 0
    shown = capsys.readouterr().out
    assert "there is nothing to ablate" in shown
    assert "there is nothing to draw" in shown
    assert "memory horizon: 0 steps" in shown


def test_without_matplotlib_it_is_told_before_anything_is_played(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # so Python says it is not there
    assert analyzed(run, "--insight") == 2
    captured = capsys.readouterr()
    assert '[plots]"' in captured.err
    assert "mean return" not in captured.out
    assert analyzed(run, "--ablate") == 0  # draws nothing


def test_diagnostics_can_be_switched_off(trained: Path, tmp_path: Path) -> None:
    words = [*WORDS, "--runs", str(tmp_path), "--name", "off", "--tracking.no-memory-diagnostics"]
    assert train.main(words) == 0
    assert "memory/" not in (tmp_path / "off" / "metrics.csv").read_text()
    assert "memory/gradient_lag_0" in (trained / "pair-5" / "metrics.csv").read_text()


# Faults


def run_of(runs: Path) -> list[str]:
    return [str(runs / "pair-5")]


def without_settings(runs: Path) -> list[str]:
    (runs / "pair-5" / "settings.yaml").unlink()
    return run_of(runs)


def without_agents(runs: Path) -> list[str]:
    (runs / "pair-5" / "best.zip").unlink()
    shutil.rmtree(runs / "pair-5" / "checkpoints")
    return run_of(runs)


def with_a_broken_agent(runs: Path) -> list[str]:
    content = bytearray((runs / "pair-5" / "best.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (runs / "pair-5" / "best.zip").write_bytes(content)
    return run_of(runs)


def with_broken_settings(runs: Path) -> list[str]:
    (runs / "pair-5" / "settings.yaml").write_text("seed: 1\nsede: 2\n")
    return run_of(runs)


def of_another_environment(runs: Path) -> list[str]:
    settings = yaml.safe_load((runs / "pair-5" / "settings.yaml").read_text())
    settings["env"], settings["tracking"] = {"id": "PendulumNoVel-v1"}, {}
    (runs / "pair-5" / "settings.yaml").write_text(yaml.safe_dump(settings))
    return run_of(runs)


def with_a_file_in_the_way(runs: Path) -> list[str]:
    (runs / "taken.html").touch()
    return [*run_of(runs), "--report", str(runs / "taken.html")]


def with_a_file_for_a_folder(runs: Path) -> list[str]:
    (runs / "pair-5" / "insight").touch()
    return [*run_of(runs), "--episodes", "1", "--inside"]


def words_of(*words: str) -> Any:
    """Where a word is the name of a run, or of what could lie among the runs, its path."""
    return lambda runs: [str(runs / word.removeprefix("runs/")) if word.startswith("runs/") else word for word in words]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (without_settings, 5, "settings.yaml"),
        (without_agents, 5, "pair-5 holds no saved agent"),
        (with_a_broken_agent, 5, "best.zip"),
        (with_broken_settings, 2, "settings.yaml:2: unknown setting sede"),
        (of_another_environment, 5, "does not fit PendulumNoVel-v1"),
        (lambda runs: [*of_another_environment(runs), str(runs / "other")], 5, "does not fit PendulumNoVel-v1"),
        (lambda runs: [*without_agents(runs), str(runs)], 5, "none of the directories holds a saved agent"),
        (with_a_file_in_the_way, 2, "exists and is not overwritten"),
        (with_a_file_for_a_folder, 2, "--inside"),
        (words_of(), 2, "--list shows the runs there are"),
        (words_of("runs/nothing"), 5, "is no directory"),
        (words_of("runs/pair-5", "runs/nothing"), 5, "is no directory"),
        (words_of("runs/other", "runs/../runs/other"), 2, "is given twice"),
        (words_of("runs/other", "--checkpoint", "33"), 5, "has no checkpoint '33'; there are best, last, 32, 64"),
        (words_of("runs/other", "--checkpoint", "settings.yaml"), 5, "settings.yaml"),
        (words_of("runs/other", "--episodes", "0"), 2, "must be at least 1, got 0"),
        (words_of("runs/other", "--horizon", "-1"), 2, "must be at least 0, got -1"),
        (words_of("runs/other", "--video", "pole.avi"), 2, "ends in .mp4 or .gif"),
        (words_of("runs/other", "--json", "runs/no/a.json"), 2, "there is no directory"),
        (words_of("runs/other", "--report", "runs/no/a.html"), 2, "there is no directory"),
        (words_of("runs/other", "--report", "runs/"), 2, "put the runs before --report"),
        (words_of("runs/pair-5", "runs/other", "--report"), 2, "give --report a file"),
        (words_of("runs/pair-5", "runs/other", "--video", "a.mp4"), 2, "give one run"),
        (words_of("runs/pair-5", "runs/other", "--insight"), 2, "give one run"),
        (words_of("runs/other", "--overwrite"), 2, "--overwrite goes with --report"),
        (words_of("runs/other", "--env", "CartPole-v1"), 2, "go with an agent's file"),
        (words_of("runs/nothing.zip"), 2, "there is no such file"),
        (lambda runs: [*with_a_file_in_the_way(runs), "--overwrite"], 2, "is no report of this program"),
        (words_of("runs/other", "--episods", "3"), 2, "no option --episods; did you mean --episodes?"),
        (words_of("runs/other", "--gif", "a.gif"), 2, "no option --gif; did you mean --video?"),
        (words_of("runs/other", "--device", "cudda"), 2, "--device 'cudda': expected auto, cpu, cuda"),
        (words_of("--list", "runs/other"), 2, "--list evaluates nothing"),
        (words_of("--list", "--runs", "runs/nothing"), 2, "is no directory"),
        (words_of("runs/other", "--inside", "--colour", "reward"), 2, "is called --color now"),
        (words_of("runs/other", "--inside", "--color", "rewards"), 2, "--color rewards: no step of the episode has"),
    ],
)
def test_a_fault_is_reported_in_a_sentence_and_leaves_nothing_behind(
    words: Any, code: int, message: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(runs.rglob("*"))
    typed = words(runs)
    assert evaluate.main(typed) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Error: " not in error
    assert "Traceback" not in error
    new = {path.parent.name for path in set(runs.rglob("*")) - before}
    assert new <= ({"evaluations", "other", "pair-5"} if "--inside" in typed else {"runs", "pair-5"})


def test_an_agent_is_shared_as_a_folder_and_comes_back_from_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "--episodes", "3", "--push-to-hub", "me/maze", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    folder = run / "hub"
    files = {"README.md", "agent.zip", "report.html", "results.json", "settings.yaml"}
    assert {path.name for path in folder.iterdir()} == files
    assert all(file in shown for file in files)
    assert "this would be sent to me/maze; nothing was sent" in shown
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    (model,) = yaml.safe_load(front)["model-index"]
    returns = json.loads((folder / "results.json").read_text())["return"]
    assert model["results"][0]["metrics"][0]["value"].startswith(f"{returns['mean']:.4g} (")
    assert model["results"][0]["dataset"]["name"] == "TMaze-v0"
    assert f"| mean return | {returns['mean']:.4g} |" in text
    texts = [path.read_text() for path in folder.iterdir() if path.suffix != ".zip"]
    assert not any(str(run.parent) in text for text in texts)  # where it lies on this machine is nobody's business
    model = RecurrentPPO.from_hub(folder, device="cpu")
    again = RecurrentPPO.load(RunDirectory(run).best, device="cpu")
    assert all(map(torch.equal, model.policy.parameters(), again.policy.parameters()))
    assert Player.from_hub(folder).policy.action_space == model.action_space


def test_sharing_says_what_is_missing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, fault in (
        (["--push-to-hub", "maze"], "--push-to-hub maze: expected owner/name"),
        (["--dry-run"], "--dry-run goes with --push-to-hub owner/name"),
    ):
        assert evaluate.main([str(run), *words]) == 2
        assert fault in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"holds no agent.zip: write it with evaluate.py RUN --card"):
        RecurrentPPO.from_hub(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere is no folder, and no repository of the Hub, such as owner/name"):
        RecurrentPPO.from_hub("nowhere")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert evaluate.main([str(run), "--episodes", "1", "--push-to-hub", "me/maze"]) == 2
    assert f"install it with: {install_command('hub')}" in capsys.readouterr().err
