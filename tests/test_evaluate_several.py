"""Several seeds are trained as a group, several runs compared in one table, and every run found again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import configs
import evaluate
import train
from agents.runs.directory import RunDirectory
from configs import EnvironmentFault, Settings

WORDS = [
    *("--env.id", "TMaze-v0", "--env.kwargs", "length=3", "--env.n-envs", "2", "--threads", "1"),
    *("--algorithm.n-steps", "16", "--algorithm.batch-size", "16", "--algorithm.n-epochs", "1"),
    *("--policy.memory", "gru", "--policy.memory-kwargs", "hidden_size=4", "--total-timesteps", "64"),
    *("--evaluation.every", "32", "--evaluation.episodes", "2", "--evaluation.final-episodes", "3"),
    *("--tracking.no-tensorboard", "--no-progress"),
]
OTHER = ["--policy.memory", "none", "--policy.memory-kwargs", "--name", "other"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("several")
    assert train.main([*WORDS, "--runs", str(runs), "--seeds", "2", "--seed", "5", "--name", "pair"]) == 0
    assert train.main([*WORDS, "--runs", str(runs), *OTHER]) == 0
    return runs


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def test_seeds_are_runs_of_their_own_in_one_group(runs: Path) -> None:
    pair = [configs.read(runs / f"pair-{seed}" / "settings.yaml") for seed in (5, 6)]
    assert [(each.seed, each.group, each.name) for each in pair] == [(5, "pair", "pair-5"), (6, "pair", "pair-6")]
    assert (
        train.wandb_arguments(configs.Settings(group="pair", tracking=configs.TrackingSettings(wandb="offline")))[  # type: ignore[index]
            "group"
        ]
        == "pair"
    )


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
    failed = train.SeedsFailed({3: EnvironmentFault("the wheel came off")}, 5)
    assert (failed.exit_code, str(failed)) == (3, "1 of 5 seeds failed. seed 3: the wheel came off")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--seeds", "3", "--seed", str(2**31 - 2)], "go beyond 2147483647"),
    ],
)
def test_seeds_that_there_are_not_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_dry_run_names_the_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--seeds", "3", "--seed", "4", "--dry-run"]) == 0
    assert "seeds         4 to 6" in capsys.readouterr().out


def test_several_runs_give_one_table_one_file_and_one_page(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(runs / name) for name in ("pair-5", "pair-6", "other")]
    words += ["--episodes", "4", "--json", str(tmp_path / "all.json"), "--report", str(tmp_path / "all.html")]
    assert evaluate.main(words) == 0
    out = capsys.readouterr().out
    for told in ("pair-5", "pair-6", "other", "2 seeds", "probability that", "over episodes", "memory none"):
        assert told in out
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
    for name in ("checkpoints", "evaluations"):
        shutil.rmtree(young / name)
    (young / "evaluations.csv").unlink()
    assert evaluate.main([str(young), "--report", str(tmp_path / "young.html")]) == 0
    assert "holds no saved agent yet" in capsys.readouterr().err
    assert episode_of(tmp_path / "young.html") is None
    assert "There is no periodic evaluation" in (tmp_path / "young.html").read_text()


def on_another_environment(runs: Path) -> list[str]:
    file = runs / "other" / "settings.yaml"
    file.write_text(file.read_text().replace("TMaze-v0", "RepeatFirst-v0"))
    return [str(runs / "pair-5"), str(runs / "other")]


def with_a_run_that_saved_nothing(runs: Path) -> list[str]:
    (runs / "other" / "best.zip").unlink()
    shutil.rmtree(runs / "other" / "checkpoints")
    return [str(runs / "pair-5"), str(runs / "other")]


def with_a_file_in_the_way(runs: Path) -> list[str]:
    (runs / "taken.html").write_text("mine")
    return [str(runs / "other"), "--report", str(runs / "taken.html")]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (on_another_environment, 2, "returns of different tasks cannot be compared"),
        (with_a_file_in_the_way, 2, "exists and is not overwritten"),
        (lambda runs: [], 2, "--list shows the runs there are"),
        (lambda runs: [str(runs / "pair-5"), str(runs / "nothing")], 5, "is no directory"),
        (lambda runs: [str(runs), str(runs / "other")], 5, "holds no settings.yaml"),
        (lambda runs: [str(runs / "other"), f"{runs}/other/"], 2, "is given twice"),
        (lambda runs: [str(runs / "pair-5"), str(runs / "other"), "--report"], 2, "give --report a file"),
        (lambda runs: [str(runs / "pair-5"), str(runs / "other"), "--video", "a.mp4"], 2, "give one run"),
        (lambda runs: [str(runs / "other"), "--report", str(runs)], 2, "put the runs before --report"),
        (lambda runs: [str(runs / "other"), "--report", str(runs / "no" / "a.html")], 2, "there is no directory"),
        (lambda runs: [str(runs / "other"), "--json", str(runs / "no" / "a.json")], 2, "there is no directory"),
        (with_a_run_that_saved_nothing, 5, "other holds no saved agent"),
        (lambda runs: ["--list", str(runs / "other")], 2, "--list stands alone"),
        (lambda runs: ["--list", "--runs", str(runs / "nothing")], 2, "is no directory"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_evaluated(
    words: Any, code: int, said: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(runs.rglob("*"))
    asked = words(runs)
    assert evaluate.main(asked) == code
    told = capsys.readouterr().err
    assert said in told
    assert "Error: " not in told
    assert "Traceback" not in told
    assert set(runs.rglob("*")) - set(before) <= {runs / "taken.html"}


def test_runs_are_listed_as_their_directories_are(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # no name is cut short
    shutil.rmtree(runs / "pair-6")
    (runs / "other" / "settings.yaml").write_text("sede: 1\n")
    stopped = RunDirectory.create(runs, "a-run-of-a-long-name-that-was-stopped-early")
    stopped.write_settings(configs.dump(Settings()))
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


def test_an_empty_folder_holds_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--list", "--runs", str(tmp_path)]) == 0
    assert "there are no runs" in capsys.readouterr().out
