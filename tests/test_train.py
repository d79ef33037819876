"""train.py leaves a whole run behind, whatever ends it, and tells every fault by its exit code."""

import csv
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import configs
import train
from agents import RecurrentA2C, RecurrentPPO
from agents.checkpoint import read_parameters

TINY = [
    *("--env.n-envs", "2", "--algorithm.n-steps", "16", "--policy.memory-kwargs", "hidden_size=4"),
    *("--evaluation.episodes", "2", "--evaluation.final-episodes", "3", "--evaluation.every", "64"),
    *("--checkpoint.every", "32", "--checkpoint.keep", "2", "--total-timesteps", "128", "--no-progress"),
    *("--threads", "1"),
]
PPO = ["--algorithm.batch-size", "16", "--algorithm.n-epochs", "1"]
QUICK = ["--evaluation.every", "0", "--evaluation.final-episodes", "0", "--tracking.no-tensorboard"]

MODULE = '''
import time
import gymnasium, numpy as np

class Faulty(gymnasium.Env):
    """Does what its argument says at the step given."""
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, fault="none", at=42, render_mode=None):
        self.fault, self.at, self.steps = fault, at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        bad = self.steps == self.at
        if bad and self.fault == "hang":
            open("hanging", "w").close()
            time.sleep(600)
        if bad and self.fault == "raise":
            raise ZeroDivisionError("the wheel came off")
        observation = np.full(2, np.nan if bad and self.fault == "observation" else 0.5, np.float32)
        reward = float("nan") if bad and self.fault == "reward" else 1.0
        return observation, reward, self.steps % 5 == 0, False, {}

SPACES = {
    "picture": gymnasium.spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "mixed": gymnasium.spaces.Dict(
        numbers=gymnasium.spaces.Box(-5, 5, (3,)),
        inner=gymnasium.spaces.Dict(choice=gymnasium.spaces.Discrete(3)),
    ),
    "choices": gymnasium.spaces.MultiDiscrete([2, 3]),
    "bits": gymnasium.spaces.MultiBinary(3),
    "numbers": gymnasium.spaces.Box(-2, 2, (2, 2)),
}

class Shown(gymnasium.Env):
    """Observations and actions of any space; episodes of ten steps, all of them successes."""
    def __init__(self, seen, done, render_mode=None):
        self.observation_space, self.action_space, self.steps = SPACES[seen], SPACES[done], 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 10, False, {"is_success": True}

gymnasium.register("Faulty-v0", entry_point=Faulty)
gymnasium.register("Shown-v0", entry_point=Shown)
'''


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


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's own environment, in a module in the folder that train.py is called from."""
    (tmp_path / "own_environments.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("Faulty-v0", "Shown-v0"):
        monkeypatch.delitem(gymnasium.registry, name, raising=False)
    monkeypatch.delitem(sys.modules, "own_environments", raising=False)
    return "own_environments:Faulty-v0"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    parameters: dict[str, torch.Tensor] = read_parameters(path)["policy"]
    return parameters


def test_a_run_leaves_everything_behind(trained: Path) -> None:
    assert re.fullmatch(r"CartPoleNoVel-v1-lstm-3-\d{8}-\d{6}", trained.name)
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
    last = "checkpoints/step_000000000128.zip"
    ours, theirs = weights(trained / last), weights(again / last)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    untimed = [
        [
            {key: value for key, value in row.items() if not key.startswith("time/")}
            for row in rows_of(run / "metrics.csv")
        ]
        for run in (trained, again)
    ]
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize("asked", ["None", "1"])
def test_a_run_writes_down_on_how_many_threads_it_computed(
    asked: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY, *PPO, *QUICK, "--runs", str(runs), "--threads", asked]) == 0
    (run,) = runs.iterdir()
    threads = configs.read(run / "settings.yaml").threads
    assert threads == torch.get_num_threads()
    assert (f"computing on {threads} thread(s)" in capsys.readouterr().out) == (asked == "None")
    torch.set_num_threads(1)


def test_metrics_bear_stable_baselines3s_names(trained: Path) -> None:
    rows = rows_of(trained / "metrics.csv")
    assert [row["step"] for row in rows] == ["32", "64", "64", "96", "128", "128"]
    expected = "rollout/ep_rew_mean rollout/ep_len_mean time/fps time/total_timesteps train/loss train/approx_kl"
    assert {*expected.split(), "eval/mean_reward", "eval/mean_ep_length", "train/explained_variance"} <= rows[0].keys()


def test_evaluating_on_the_way_changes_nothing(trained: Path, runs: Path) -> None:
    words = ["--config", str(trained / "settings.yaml"), "--runs", str(runs), "--evaluation.every", "0"]
    assert train.main([*words, "--evaluation.final-episodes", "0", "--checkpoint.every", "0"]) == 0
    (run,) = runs.iterdir()
    assert {path.name for path in run.iterdir()} >= {"settings.yaml", "checkpoints"}
    assert not (run / "best.zip").exists()
    ours, theirs = (weights(path / "checkpoints" / "step_000000000128.zip") for path in (trained, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_can_be_trained_on_as_an_agent_of_stable_baselines3(trained: Path) -> None:
    import envs

    env = envs.make("CartPoleNoVel-v1", 2, wrappers=[("previous_action_reward", {"start": True})])
    agent = RecurrentPPO.load(trained / "best.zip", env=env, device="cpu")
    assert agent.get_vec_normalize_env() is not None
    agent.learn(32)


def test_a2c_and_any_memory_and_no_normalisation_run_too(runs: Path, own_module: str) -> None:
    words = [*TINY, *QUICK, "--algorithm.name", "a2c", "--policy.memory", "gru", "--policy.critic-memory", "separate"]
    words += ["--env.id", own_module, "--env.no-normalize-observations", "--env.no-normalize-rewards"]
    assert train.main([*words, "--runs", str(runs), "--name", "mine"]) == 0
    agent = RecurrentA2C.load(runs / "mine" / "checkpoints" / "step_000000000128.zip", device="cpu")
    assert agent.policy_kwargs["critic_memory"] == "separate"


@pytest.mark.parametrize(
    ("seen", "done"), [("picture", "choices"), ("mixed", "numbers"), ("choices", "bits"), ("bits", "choices")]
)
def test_any_spaces_train_and_evaluate_by_the_defaults(seen: str, done: str, runs: Path, own_module: str) -> None:
    words = [
        *TINY,
        *PPO,
        "--env.id",
        own_module.replace("Faulty", "Shown"),
        "--env.kwargs",
        f"seen={seen}",
        f"done={done}",
    ]
    assert train.main([*words, "--runs", str(runs)]) == 0
    (path,) = runs.glob("*/evaluations/best-*-deterministic.json")
    result = json.loads(path.read_text())
    assert (result["return"]["mean"], result["success_rate"], result["lengths"]) == (10.0, 1.0, [10, 10, 10])


def test_a_named_run_is_never_overwritten(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*TINY, "--runs", str(trained.parent), "--name", trained.name]) == 2
    assert "exists and a run is never overwritten" in capsys.readouterr().err


def test_training_ends_where_an_evaluation_reaches_what_was_asked_for(runs: Path) -> None:
    assert train.main([*TINY, *PPO, "--runs", str(runs), "--evaluation.stop-at-return", "1"]) == 0
    (run,) = runs.iterdir()
    assert [path.name for path in sorted((run / "checkpoints").iterdir())][-1] == "step_000000000064.zip"
    assert (run / "best.zip").is_file()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--env.id", "CartPoleNoVl-v1"], 3, "CartPoleNoVel-v1"),
        (["--env.id", "nothing.like.this:Env-v0"], 3, "nothing"),
        (["--env.kwargs", "lenght=3"], 3, "lenght"),
        (["--env.wrappers", "flickr"], 2, "did you mean 'flicker'"),
        (["--env.wrappers", "{flicker: {chance: 1}}"], 3, "chance"),
        (["--runs", "/dev/null/runs"], 2, "cannot make the run's directory"),
        (["--policy.memory", "no.such.module:Memory"], 2, "no.such.module"),
        (["--policy.encoder", "json:Nothing"], 2, "cannot be imported"),
        (["--policy.encoder", "nature_cnn"], 2, "agent"),
        (["--algorithm.use-sde"], 2, "agent"),
        (["--device", "cudda"], 2, "agent"),
        (["--policy.kwargs", "wrong=1"], 2, "wrong"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_fault_is_told_without_a_traceback(
    words: list[str], code: int, said: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY, *QUICK, "--runs", str(runs), *words]) == code
    told = capsys.readouterr().err
    assert told.startswith("error: ") or "\nerror: " in told
    assert said in told
    assert "Traceback" not in told


def test_debug_shows_the_traceback(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*TINY, "--runs", str(runs), "--env.id", "Nothing-v0", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("raise", 3, "the wheel came off"),
        ("observation", 4, "finite"),
        ("reward", 4, "finite"),
    ],
)
@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_an_environment_that_fails_on_the_way_is_named(
    fault: str, code: int, said: str, backend: str, own_module: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, *PPO, *QUICK, "--runs", str(runs), "--env.id", own_module, "--env.backend", backend]
    words += ["--env.max-restarts", "0"]
    if backend == "subprocess":
        words += ["--env.workers", "2"]
    assert train.main([*words, "--env.kwargs", f"fault={fault}"]) == code
    told = capsys.readouterr().err
    assert said in told
    if fault == "raise":
        assert "own_environments.py" in told
    if backend == "serial":
        assert "Traceback" not in told
    (run,) = runs.iterdir()
    # What was saved before the fault is whole.
    for path in (run / "checkpoints").iterdir():
        assert all(np.isfinite(part.numpy()).all() for part in weights(path).values())


def kill_once(condition: Callable[[], bool], number: int, times: int = 1) -> threading.Thread:
    """Sends a signal to this process as soon as something is so."""

    def wait_and_kill() -> None:
        while not condition():
            time.sleep(0.01)
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.05)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def has_updated(runs: Path) -> Callable[[], bool]:
    """Whether a run has logged three updates."""
    return lambda: any(len(path.read_text().splitlines()) > 3 for path in runs.glob("*/metrics.csv"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_says_where(
    number: int, code: int, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    thread = kill_once(has_updated(runs), number)
    words = [*TINY, *PPO, *QUICK, "--runs", str(runs), "--total-timesteps", "1e9", "--checkpoint.every", "0"]
    assert train.main(words) == code
    thread.join()
    told = capsys.readouterr().err
    (path,) = runs.glob("*/checkpoints/*.zip")
    assert f"saved {path}" in told
    agent = RecurrentPPO.load(path, device="cpu")
    # The agent was saved on a whole update.
    assert agent.num_timesteps % 32 == 0
    assert signal.getsignal(number) is before
    assert int(rows_of(path.parents[1] / "metrics.csv")[-1]["step"]) <= agent.num_timesteps


def test_a_second_signal_ends_at_once_and_still_saves(
    runs: Path, own_module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, *PPO, *QUICK, "--runs", str(runs), "--total-timesteps", "1e9", "--checkpoint.every", "0"]
    # The update that the first signal waits for never comes: the environment hangs.
    thread = kill_once((tmp_path / "hanging").exists, signal.SIGINT, times=2)
    assert train.main([*words, "--env.id", own_module, "--env.kwargs", "fault=hang"]) == 130
    thread.join()
    assert "saved" in capsys.readouterr().err
    assert len(list(runs.glob("*/checkpoints/*.zip"))) == 1


@pytest.mark.usefixtures("no_account")
def test_weights_and_biases_without_a_key_records_settings_and_metrics_offline_and_asks_nothing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("somebody was asked something")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("getpass.getpass", asked)
    words = [*TINY, *PPO, *QUICK, "--runs", str(runs), "--tracking.wandb", "online", "--tracking.wandb-timeout", "1"]
    assert train.main(words) == 0
    assert "there is no key (`wandb login` stores one); recording offline" in capsys.readouterr().err
    (record,) = runs.glob("*/wandb/offline-run-*/run-*.wandb")
    expected = (b"train/value_loss", b"rollout/ep_rew_mean", b"gae_lambda")
    while not all(word in record.read_bytes() for word in expected):  # its service writes a moment after the end
        time.sleep(0.1)
    assert [path.name for path in record.parent.glob("files/media/videos/videos/*")] != []


@pytest.mark.usefixtures("no_account")
def test_what_cannot_be_filmed_is_trained_all_the_same(
    runs: Path, own_module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, *PPO, *QUICK, "--runs", str(runs), "--env.id", own_module, "--tracking.wandb", "offline"]
    assert train.main(words) == 0
    assert capsys.readouterr().err.count("no video: ") == 1
    assert list(runs.glob("*/videos/*")) == []


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.slow
def test_the_main_job_balances_the_pole(runs: Path) -> None:
    assert train.main(["--config", "cartpole_novel", "--runs", str(runs)]) == 0
    (result,) = runs.glob("*/evaluations/best-100-*.json")
    assert json.loads(result.read_text())["return"]["mean"] >= 475


def test_a_dry_run_prints_what_computes_the_agent(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", "cartpole_novel", "--dry-run"]) == 0
    assert "acting: NumPy" in capsys.readouterr().out
