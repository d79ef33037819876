"""train.py leaves a complete run behind, and reports every fault by its exit code."""

import json
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch

import configs
import evaluate
import train
from agents import RecurrentA2C, RecurrentPPO
from tests.runs import OWN, PPO, QUIET, rows_of, weights
from tests.runs import TINY as UPDATES

TINY = [
    *(*UPDATES, "--checkpoint.every", "32", "--checkpoint.keep", "2"),
    *("--evaluation.episodes", "2", "--evaluation.final-episodes", "3", "--evaluation.every", "64"),
]
LAST = "checkpoints/step_000000000128.zip"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went to its end."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    assert train.main([*TINY, *PPO, "--runs", str(runs), "--seed", "3"]) == 0
    (run,) = runs.iterdir()
    return run


def assert_equal_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one / LAST), weights(other / LAST)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_leaves_everything_behind(trained: Path) -> None:
    assert re.fullmatch(r"CartPoleNoVel-v1-hybrid-3-\d{8}-\d{6}", trained.name)
    assert {path.name for path in trained.iterdir()} == {
        *("settings.yaml", "versions.json", "metrics.csv", "tensorboard", "evaluations.csv", "evaluations"),
        *("checkpoints", "best.zip"),
    }
    assert [path.name for path in sorted((trained / "checkpoints").iterdir())] == [
        "step_000000000096.zip",
        "step_000000000128.zip",
    ]
    assert len(list((trained / "tensorboard").iterdir())) == 1
    assert [row["step"] for row in rows_of(trained / "evaluations.csv")] == ["64", "128"]
    rows = rows_of(trained / "metrics.csv")
    assert [row["step"] for row in rows] == ["32", "64", "64", "96", "128", "128"]
    named = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "train/loss", "train/approx_kl", "train/explained_variance"}
    assert named | {"eval/mean_reward", "eval/mean_ep_length"} <= rows[0].keys()
    evaluations = {path.name: path for path in (trained / "evaluations").iterdir()}
    names = {f"{which}-3-{way}.json" for which in ("best", "step_000000000128") for way in ("deterministic", "sampled")}
    assert set(evaluations) == names
    assert all(json.loads(path.read_text())["episodes"] == 3 for path in evaluations.values())
    assert "torch" in json.loads((trained / "versions.json").read_text())["packages"]


def test_the_settings_of_a_run_repeat_it(trained: Path, runs: Path) -> None:
    settings = configs.read(trained / "settings.yaml")
    assert (settings.seed, settings.policy.memory_kwargs) == (3, {"hidden_size": 4})
    assert train.main(["--config", str(trained / "settings.yaml"), "--runs", str(runs)]) == 0
    (again,) = runs.iterdir()
    assert_equal_weights(trained, again)
    assert rows_of(trained / "metrics.csv") == rows_of(again / "metrics.csv")


def test_the_last_lines_are_commands_that_work_in_the_folder_that_the_user_is_in(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main([*TINY, *PPO, *QUIET, "--runs", "runs"]) == 0
    commands = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert commands[1].startswith(f"{commands[0]} --insight --report")
    for command in commands:
        python, script, *words = shlex.split(command)
        assert shutil.which(python) == shutil.which(sys.executable)
        assert Path(script).resolve() == Path(evaluate.__file__)
        assert evaluate.main([*words, "--episodes", "1"]) == 0


def test_commands_are_written_as_the_user_can_type_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, python = Path(train.__file__).parent, tmp_path / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    assert configs.command_words("evaluate") == [str(python), "evaluate.py"]
    monkeypatch.chdir(tmp_path)
    assert configs.command_words("evaluate") == [".venv/bin/python", str(root / "evaluate.py")]
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(python.parent))  # as in an activated environment
    assert configs.command_words("evaluate") == ["python", str(root / "evaluate.py")]
    monkeypatch.setattr(sys, "argv", [str(python.with_name("recurl-train"))])
    assert configs.command_words("evaluate") == [str(python.with_name("recurl-evaluate"))]
    python.with_name("recurl-evaluate").touch(mode=0o755)
    assert configs.command_words("evaluate") == ["recurl-evaluate"]


@pytest.mark.parametrize("requested", ["None", "1"])
def test_a_run_writes_down_on_how_many_threads_it_computed(
    requested: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY, *PPO, *QUIET, "--runs", str(runs), "--threads", requested]) == 0
    (run,) = runs.iterdir()
    threads = configs.read(run / "settings.yaml").threads
    assert threads == torch.get_num_threads()
    assert (f"computing on {threads} thread(s)" in capsys.readouterr().out) == (requested == "None")
    torch.set_num_threads(1)


def test_evaluating_on_the_way_changes_nothing(trained: Path, runs: Path) -> None:
    words = ["--config", str(trained / "settings.yaml"), "--runs", str(runs), "--evaluation.every", "0"]
    assert train.main([*words, "--evaluation.final-episodes", "0", "--checkpoint.every", "0"]) == 0
    (run,) = runs.iterdir()
    assert not (run / "best.zip").exists()
    assert_equal_weights(trained, run)


def test_a_checkpoint_can_be_trained_on_as_an_agent_of_stable_baselines3(trained: Path) -> None:
    import envs

    env = envs.make("CartPoleNoVel-v1", 2, wrappers=[("previous_action_reward", {"start": True})])
    agent = RecurrentPPO.load(trained / "best.zip", env=env, device="cpu")
    assert agent.get_vec_normalize_env() is not None
    agent.learn(32)


def test_a2c_any_memory_and_an_environment_in_the_users_folder_run_too(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("from tests.own_environments import *")
    monkeypatch.chdir(tmp_path)
    words = [*TINY, *QUIET, "--algorithm.name", "a2c", "--policy.memory", "gru", "--policy.critic-memory", "separate"]
    words += ["--env.id", "mine:Frail-v0", "--env.no-normalize-observations", "--env.no-normalize-rewards"]
    assert train.main([*words, "--runs", str(runs), "--name", "mine"]) == 0
    agent = RecurrentA2C.load(runs / "mine" / LAST, device="cpu")
    assert agent.policy_kwargs["critic_memory"] == "separate"


@pytest.mark.parametrize(
    ("seen", "done"), [("picture", "choices"), ("mixed", "numbers"), ("choices", "bits"), ("bits", "choices")]
)
def test_any_spaces_train_and_evaluate_by_the_defaults(seen: str, done: str, runs: Path) -> None:
    words = [*TINY, *PPO, "--env.id", f"{OWN}Shown-v0", "--env.kwargs", f"seen={seen}", f"done={done}"]
    assert train.main([*words, "--runs", str(runs)]) == 0
    (path,) = runs.glob("*/evaluations/best-*-deterministic.json")
    result = json.loads(path.read_text())
    assert (result["return"]["mean"], result["success_rate"], result["lengths"]) == (10.0, 1.0, [10, 10, 10])


def test_training_ends_where_an_evaluation_reaches_the_requested_return(runs: Path) -> None:
    assert train.main([*TINY, *PPO, "--runs", str(runs), "--evaluation.stop-at-return", "1"]) == 0
    (run,) = runs.iterdir()
    assert [path.name for path in sorted((run / "checkpoints").iterdir())][-1] == "step_000000000064.zip"
    assert (run / "best.zip").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--env.id", "CartPoleNoVl-v1"], 3, "CartPoleNoVel-v1"),
        (["--env.id", "nothing.like.this:Env-v0"], 3, "nothing"),
        (["--env.kwargs", "lenght=3"], 3, "lenght"),
        (["--env.wrappers", "flickr"], 2, "did you mean 'flicker'"),
        (["--env.wrappers", "{flicker: {chance: 1}}"], 3, "chance"),
        (["--runs", "/dev/null/runs"], 2, "cannot make the run's directory"),
        (["--policy.memory", "no.such.module:Memory"], 2, "no.such.module"),
        (["--policy.encoder", "json:Nothing"], 2, "the module 'json' has no 'Nothing'"),
        (["--policy.encoder", "nature_cnn"], 2, "agent"),
        (["--algorithm.use-sde"], 2, "agent"),
        (["--device", "cudda"], 2, "device 'cudda': expected auto, cpu, cuda"),
        (["--env.id", "CartPoleNoVl-v1", "--dry-run"], 3, "CartPoleNoVel-v1"),
        (["--device", "cudda", "--dry-run"], 2, "device 'cudda'"),
        (["--device", "cudda", "--seeds", "3"], 2, "error: device 'cudda'"),
        (["--policy.kwargs", "wrong=1"], 2, "wrong"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_fault_is_reported_without_a_traceback(
    words: list[str], code: int, message: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY, *QUIET, "--runs", str(runs), *words]) == code
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") or "\nerror: " in errors
    assert message in errors
    assert "Traceback" not in errors
    assert [*runs.parent.rglob("settings.yaml")] == []


def test_a_named_run_is_never_overwritten_and_debug_shows_the_traceback(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY, "--runs", str(trained.parent), "--name", trained.name, "--debug"]) == 2
    errors = capsys.readouterr().err
    assert "exists and a run is never overwritten" in errors
    assert "Traceback" in errors


@pytest.mark.usefixtures("no_account")
def test_weights_and_biases_without_a_key_records_settings_and_metrics_offline_and_asks_nothing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("somebody was asked something")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("getpass.getpass", asked)
    words = [*TINY, *PPO, *QUIET, "--runs", str(runs), "--tracking.wandb", "online", "--tracking.wandb-timeout", "1"]
    words += ["--evaluation.final-episodes", "2"]
    assert train.main(words) == 0
    assert "there is no key (`wandb login` stores one); recording offline" in capsys.readouterr().err
    (record,) = runs.glob("*/wandb/offline-run-*/run-*.wandb")
    expected = (b"train/value_loss", b"rollout/ep_rew_mean", b"gae_lambda", b"final_return_low")
    while not all(word in record.read_bytes() for word in expected):  # its service writes a moment after the end
        time.sleep(0.1)
    assert [path.name for path in record.parent.glob("files/media/videos/videos/*")] != []


@pytest.mark.usefixtures("no_account")
def test_what_cannot_be_filmed_is_trained_all_the_same(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, *PPO, *QUIET, "--runs", str(runs), "--env.id", f"{OWN}Walk-v0", "--tracking.wandb", "offline"]
    assert train.main(words) == 0
    assert capsys.readouterr().err.count("no video: ") == 1
    assert list(runs.glob("*/videos/*")) == []


@pytest.mark.slow
def test_the_main_job_balances_the_pole(runs: Path) -> None:
    assert train.main(["--config", "cartpole_novel", "--runs", str(runs)]) == 0
    results = [json.loads(path.read_text()) for path in runs.glob("*/evaluations/*-100-*.json")]
    assert len(results) == 4  # the last policy and the best one, sampled and deterministic
    assert min(each["return"]["mean"] for each in results) >= 475


def test_a_dry_run_prints_what_computes_the_agent(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", "cartpole_novel", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("environment   ")  # the plan comes first
    assert "setting       env.id" not in shown  # the default's
    assert "acting: NumPy" in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_by_the_command_and_warned_of_in_a_script(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = r"device 'cuda': torch .* finds no CUDA device on this machine; use auto or cpu"
    assert train.main([*TINY, "--device", "cuda", "--runs", str(runs)]) == 2
    assert re.search(f"^error: {message}$", capsys.readouterr().err)
    assert not runs.exists()
    with pytest.warns(UserWarning, match=f"^{message}; computing on the CPU") as warned:
        RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, device="cuda")  # Stable-Baselines3's goes on, too
    assert warned[0].filename == __file__


def test_a_start_that_is_interrupted_leaves_no_directory(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agents.runs.launch.make_agent", interrupted)
    assert train.main([*TINY, *PPO, "--runs", str(runs)]) == 130
    assert [*runs.iterdir()] == []


def test_a_run_that_did_not_learn_ends_with_what_to_try(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, *PPO, "--env.id", "TMaze-v0", "--env.kwargs", "length=20", "--algorithm.learning-rate", "1e-9"]
    words += ["--evaluation.every", "32", "--total-timesteps", "256", "--runs", str(runs)]
    assert train.main(words) == 0
    note = "gradients end at the start of a sequence of 16 steps while episodes last 21: try --algorithm.n-steps 32"
    assert note in capsys.readouterr().out


@pytest.mark.parametrize("env", ["highway-fast-v0", "Pendulum-v1"])
def test_a_command_that_fails_before_training_leaves_no_directory(
    env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    actions_are_no_nodes = ["--policy.actions", "nodes"]
    assert train.main(["--env.id", env, *actions_are_no_nodes, "--runs", str(tmp_path)]) != 0
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_vector_of_gymnasium_is_trained_in_and_the_observation_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--env.id", "CartPole-v1", "--env.backend", "gymnasium", "--env.n-envs", "2", "--algorithm.n-steps", "16"]
    words += ["--algorithm.batch-size", "16", "--total-timesteps", "64", "--evaluation.final-episodes", "2"]
    words += ["--evaluation.every", "0", "--no-progress", "--tracking.no-tensorboard", "--threads", "1"]
    assert train.main([*words, "--runs", str(tmp_path)]) == 0, capsys.readouterr().err
    (run,) = tmp_path.iterdir()
    n_weights = sum(each.numel() for each in RecurrentPPO.load(run / LAST.replace("128", "064")).policy.parameters())
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        f"run           {run}",
        f"device        {'cuda' if torch.cuda.is_available() else 'cpu'}",
        "observation   8 measurements -> flatten",
        "memory        hybrid, output size 128; the critic's: shared",
        f"parameters    {n_weights:,}",
    ]
