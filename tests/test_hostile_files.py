"""A run and an agent that an attacker wrote: nothing in them is run, whatever is done with them, and nothing explodes.

The payloads try every place in which a name or a pickle has been, or could be, taken for something to run. A module
that would show that it was imported lies where commands are started, and in the run itself.
"""

import base64
import io
import json
import os
import pickle
import resource
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch
import yaml
from hypothesis import HealthCheck, given, settings, strategies
from stable_baselines3.common.vec_env import VecNormalize

import evaluate
import train
from agents import RecurrentPPO
from agents.checkpoint import CheckpointError, SavedAgent
from agents.checkpoint.values import known_classes
from agents.checks.text import printable
from agents.deploy.contrib import import_contrib
from agents.deploy.player import Player
from agents.memory import MEMORIES
from configs import command_words
from configs import printable as printable_of_scripts
from tests.agents.probe_envs import clocks, small_ppo
from tests.saved_files import Bomb, edited, members_of, rewritten, saved, zipped

MODULE = "evilmod"
NAMES = [
    *(f"{MODULE}:Cls", f"{MODULE}:", f"{MODULE}::x", f"{MODULE}:0", f"{MODULE}:Cls-", f"0{MODULE}:Cls", "evil-mod:Cls"),
    *(f"{MODULE}é:Cls", f" {MODULE}:Cls", f"{MODULE}:Cls\n", f"runs.{MODULE}:Cls", f"{MODULE}.sub:Cls", MODULE, ":x"),
    *(f"{MODULE}\x00:x", "os:system", "lstm:x", "LSTM", "", ":"),
]
FILES = [f"{name}.py" for name in (MODULE, f"0{MODULE}", "evil-mod", f"{MODULE}é", "popgym", "matplotlib_of_run")]


@pytest.fixture(scope="module")
def agent_file() -> io.BytesIO:
    return saved(small_ppo(VecNormalize(clocks(n_envs=2)), "lstm", "separate").learn(16))


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What an imported module, or a pickle that is read, leaves; a test that leaves it fails."""
    there, path = tmp_path / "marker", list(sys.path)
    lures(tmp_path, there)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield there
    sys.path[:] = path
    assert not there.exists()


def lures(folder: Path, marker: Path) -> None:
    for name in FILES:
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\n")


def kwargs_of(agent: Any) -> Any:
    return agent["settings"]["policy_kwargs"]


PLACES: dict[str, Callable[[Any, Any], Any]] = {
    "memory": lambda agent, name: kwargs_of(agent).update(memory=name),
    "memory in a pair": lambda agent, name: agent["settings"].update(
        policy_kwargs={"$dict": [["memory", name], ["net_arch", [7]]]}
    ),
    "memory in a list": lambda agent, name: kwargs_of(agent).update(memory=[name]),
    "memory in a tuple": lambda agent, name: kwargs_of(agent).update(memory={"$tuple": [name]}),
    "memory by name": lambda agent, name: kwargs_of(agent).update(memory={"$custom": name}),
    "memory as a class": lambda agent, name: kwargs_of(agent).update(memory={"$class": ["memory", name]}),
    "a class of any kind": lambda agent, name: kwargs_of(agent).update(activation_fn={"$class": [name, name]}),
    "memory_kwargs": lambda agent, name: kwargs_of(agent).update(memory_kwargs={"cell": name}),
    "memory_kwargs of a memory": lambda agent, name: kwargs_of(agent).update(
        memory="attention", memory_kwargs={"cell": name}
    ),
    "critic_memory": lambda agent, name: kwargs_of(agent).update(critic_memory=name),
    "encoder": lambda agent, name: kwargs_of(agent).update(features_extractor_class=name),
    "encoder_kwargs": lambda agent, name: kwargs_of(agent).update(features_extractor_kwargs={"cell": name}),
    "activation": lambda agent, name: kwargs_of(agent).update(activation_fn=name),
    "optimizer": lambda agent, name: kwargs_of(agent).update(optimizer_class=name),
    "policy": lambda agent, name: agent.update(policy=name),
    "policy by name": lambda agent, name: agent.update(policy={"$custom": name}),
    "schedule": lambda agent, name: agent["settings"].update(learning_rate={"$schedule": [name, []]}),
    "a function": lambda agent, name: agent["settings"].update(clip_range={"$custom": name}),
    "device": lambda agent, name: agent["settings"].update(verbose={"$device": name}),
    "dtype": lambda agent, name: agent["settings"].update(verbose={"$torch.dtype": name}),
    "dtype of numpy": lambda agent, name: agent["settings"].update(verbose={"$dtype": name}),
    "space": lambda agent, name: agent["observation_space"]["$space"].update(kind=name),
    "dtype of a space": lambda agent, name: agent["observation_space"]["$space"].update(dtype=name),
    "algorithm": lambda agent, name: agent.update(algorithm=name, **{"class": name}),
    "attribute": lambda agent, name: agent["extras"].update({name: name, "__class__": name}),
    "normalizer": lambda agent, name: agent["normalizer"]["settings"].update(norm_obs_keys=[name], epsilon=name),
    "random states": lambda agent, name: agent["random"]["model"].update(bit_generator=name),
}


def attempt(file: io.BytesIO) -> None:
    """Everything that is done with an agent's file. What it says may be refused, or harmless."""
    for use in (
        lambda: RecurrentPPO.load(file, device="cpu").predict(np.zeros(3, np.float32)),
        lambda: RecurrentPPO.load(file, clocks(n_envs=2), device="cpu", custom_objects={}),
        lambda: Player.load(file).act(np.zeros(3, np.float32)),
        lambda: SavedAgent(file).parameters(),
        lambda: import_contrib(file, clocks(n_envs=2), device="cpu"),
    ):
        with suppress(CheckpointError):
            use()


@pytest.mark.parametrize("place", PLACES)
def test_no_name_in_an_agents_file_is_imported(place: str, agent_file: io.BytesIO, marker: Path) -> None:
    for name in NAMES if place == "memory" else [*NAMES[:2], "evil-mod:Cls", "os:system"]:
        attempt(edited(agent_file, lambda agent, name=name: PLACES[place](agent, name)))
        assert not marker.exists(), name


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MEMORIES])
def test_a_memory_that_is_not_registered_is_refused_as_data(name: str, agent_file: io.BytesIO) -> None:
    forged = edited(agent_file, lambda agent: kwargs_of(agent).update(memory=name))
    for load in (lambda: RecurrentPPO.load(forged, device="cpu"), lambda: Player.load(forged)):
        with pytest.raises(CheckpointError, match=r"not a part of this package .there are rnn, lstm.* never imports"):
            load()


LETTERS = strategies.text(min_size=0, max_size=12)
MODULES = strategies.one_of(LETTERS, strategies.sampled_from([MODULE, "os", "antigravity", "xmlrpc.server", "lstm"]))


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategies.lists(strategies.tuples(MODULES, strategies.sampled_from(["", ":", "::", "."]), LETTERS), max_size=2))
def test_random_names_are_refused_and_no_module_is_there_that_was_not(
    agent_file: io.BytesIO, parts: list[tuple[str, str, str]]
) -> None:
    before = set(sys.modules) | {"encodings.cp437"}  # zipfile's own, of a member's name
    for name in map("".join, parts):
        if name not in MEMORIES:
            with pytest.raises(CheckpointError):
                Player.load(edited(agent_file, lambda agent, name=name: kwargs_of(agent).update(memory=name)))
    assert set(sys.modules) <= before


def test_every_class_that_a_file_may_name_is_data_for_a_network() -> None:
    """No function, and nothing outside torch, NumPy, Stable-Baselines3 and this package."""
    roots = {"torch", "numpy", "stable_baselines3", "agents", "builtins", "tests"}
    for known in known_classes().values():
        for cls in known.values():
            assert isinstance(cls, type)
            assert cls.__module__.partition(".")[0] in roots


# What a file may ask for


def shaped(*shape: int) -> Any:
    return {"$space": {"kind": "Box", "shape": list(shape), "dtype": "<f4", "low": 0.0, "high": 1.0}}


def many_spaces(count: int, *shape: int) -> Any:
    return {"$space": {"kind": "Dict", "spaces": [[f"{i}", shaped(*shape)["$space"]] for i in range(count)]}}


SIZES: dict[str, Callable[[Any], Any]] = {
    "a space of 2**28": lambda agent: agent.update(observation_space=shaped(2**28)),
    "sixty spaces of 2**28": lambda agent: agent.update(observation_space=many_spaces(60, 2**28)),
    "sixty spaces of 2**20": lambda agent: agent.update(observation_space=many_spaces(60, 2**20)),
    "a negative shape": lambda agent: agent.update(observation_space=shaped(-1, 5)),
    "the normalizer's space": lambda agent: agent["normalizer"].update(observation_space=shaped(2**27)),
    "2**40 categories": lambda agent: agent.update(
        observation_space={"$space": {"kind": "Discrete", "n": 2**40, "start": 0, "dtype": "<i8"}}
    ),
    "2**33 bits": lambda agent: agent.update(
        action_space={"$space": {"kind": "MultiBinary", "n": [2**33], "flat": True}}
    ),
    "a rollout": lambda agent: agent["settings"].update(n_steps=2**30, sequence_length=None),
    "environments": lambda agent: agent.update(n_envs=2**30),
    "a window": lambda agent: kwargs_of(agent).update(memory="gtrxl", memory_kwargs={"window": 2**30}),
    "units": lambda agent: kwargs_of(agent).update(memory_kwargs={"hidden_size": 2**14}),
    "layers": lambda agent: kwargs_of(agent).update(memory_kwargs={"num_layers": 2**30}),
    "heads": lambda agent: kwargs_of(agent).update(net_arch=[2**20, 2**20]),
    "copies of a tensor": lambda agent: agent["extras"].update(x=[{"$array": "random.torch"}] * 100_000),
    "values": lambda agent: agent["extras"].update(x=[[]] * (2**21 + 1)),
}


@pytest.mark.parametrize("what", SIZES)
def test_what_is_too_large_is_refused_before_it_is_built(what: str, agent_file: io.BytesIO) -> None:
    """Measured in memory, in a process of its own: the largest that a process has had never falls."""
    forged = edited(agent_file, SIZES[what])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        outcomes = []
        for load in (lambda: RecurrentPPO.load(forged, device="cpu"), lambda: Player.load(forged)):
            try:
                load()
                outcomes.append("loaded")
            except CheckpointError:
                outcomes.append("refused")
            except BaseException as error:
                outcomes.append(repr(error))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        os.write(writer, json.dumps([outcomes, grown]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        outcomes, peak = json.loads(answer.read())
    os.waitpid(child, 0)
    assert outcomes[0] == "refused"
    assert outcomes[1] in ("refused", "loaded")  # a player keeps no rollout and no environments
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    assert peak < before + 1500


# Files of sb3-contrib


@pytest.fixture(scope="module")
def contrib_file() -> io.BytesIO:
    settings = dict(n_steps=8, batch_size=8, n_epochs=1, device="cpu", policy_kwargs=dict(lstm_hidden_size=4))
    return saved(sb3_contrib.RecurrentPPO("MlpLstmPolicy", clocks(n_envs=1), **settings).learn(8))  # type: ignore[arg-type]


def torch_file(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def pickled(content: bytes) -> bytes:
    """A file of torch around any pickle."""
    return zipped({"archive/data.pkl": content}).getvalue()


def nested(times: int) -> Any:
    value: Any = []
    for _ in range(times):
        value = [value, value]
    return value


DAMAGED: dict[str, Any] = {
    "a list": [torch.ones(2)],
    "a number": 3,
    "None": None,
    "a tensor": torch.ones(2),
    "empty": {},
    "weights that are lists": {"action_net.weight": [1.0]},
    "weights that are None": {"action_net.weight": None},
    "names that are numbers": {1: torch.ones(2)},
    "other weights": {"x": torch.ones(2)},
    "a tensor of one number that says it is 2**30": {"x": torch.zeros(1).expand(2**30)},
    "a sparse tensor": {"x": torch.ones(3).to_sparse()},
    "a tensor without data": {"x": torch.empty(2**40, device="meta")},
    "a list of lists of lists": {"x": nested(60)},
}
# A pair of a pair of ... of (): sixty of them, and a walk through all would not end.
PAIRS = b")" + b"q\x00h\x00\x86" * 60
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
RAW: dict[str, bytes] = {
    "a pickle of bytes that allocates 8 GiB": b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b".",
    "a memo of 2**32": b"\x80\x02}r\xff\xff\xff\xff.",
    "bytearray(2**33)": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R.",
    "os.mkdir": b"\x80\x02cos\nmkdir\nX\x06\x00\x00\x00marker\x85R.",
    "the module": f"\x80\x02c{MODULE}\nCls\n)R.".encode("latin-1"),
    "a module by inst": f"(i{MODULE}\nCls\n.".encode("latin-1"),
    "no end": b"\x80\x02}",
    "nothing": b"",
    "a storage that is not there": b"\x80\x02}X\x01\x00\x00\x00x" + STORAGE + b"s.",
    "a name of pairs of pairs": b"\x80\x02}" + PAIRS + b"K\x01s.",
    "a storage of pairs of pairs": b"\x80\x02(" + PAIRS + b"K\x00K\x00K\x00K\x00tQ.",
    "a shape of pairs of pairs": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    + (STORAGE + b"K\x00" + PAIRS + b"q\x00h\x00tR."),
}


@pytest.mark.parametrize("member", ["policy.pth", "policy.optimizer.pth"])
@pytest.mark.parametrize("damage", [*DAMAGED, *RAW])
def test_damaged_weights_of_sb3_contrib_are_refused(
    damage: str, member: str, contrib_file: io.BytesIO, marker: Path
) -> None:
    data = torch_file(DAMAGED[damage]) if damage in DAMAGED else pickled(RAW[damage])
    began = time.process_time()
    with pytest.raises(CheckpointError):
        import_contrib(rewritten(contrib_file, {member: data}), clocks(n_envs=1), device="cpu")
    assert time.process_time() - began < 60  # one that is walked for ever would not end at all


@pytest.mark.parametrize(
    "field", ["policy_kwargs", "clip_range", "policy_class", "observation_space", "rollout_buffer"]
)
@pytest.mark.parametrize("value", [{"memory": f"{MODULE}:Cls"}, f"{MODULE}:Cls", [1], {"x": {"y": 1}}, None, 2**70])
def test_forged_fields_of_sb3_contrib_run_nothing(
    value: Any, field: str, contrib_file: io.BytesIO, marker: Path
) -> None:
    data = {**json.loads(members_of(contrib_file)["data"]), field: value}
    bomb = base64.b64encode(pickle.dumps(Bomb(marker))).decode()
    data["learning_rate"] = {":type:": "<class 'function'>", ":serialized:": bomb}
    forged = rewritten(contrib_file, {"data": json.dumps(data).encode()})
    with warnings.catch_warnings(), suppress(CheckpointError):
        warnings.simplefilter("ignore")
        import_contrib(forged, clocks(n_envs=1), device="cpu").predict(np.zeros(3, np.float32))


# Runs


WORDS = [
    *("--env.id", "CartPoleNoVel-v1", "--env.n-envs", "2", "--algorithm.n-steps", "8", "--algorithm.batch-size", "8"),
    *("--algorithm.n-epochs", "1", "--policy.memory", "gru", "--policy.memory-kwargs", "hidden_size=4"),
    *("--total-timesteps", "32", "--evaluation.every", "0", "--evaluation.final-episodes", "0", "--threads", "1"),
    *("--tracking.no-tensorboard", "--no-progress", "--name", "run"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert train.main([*WORDS, "--runs", str(runs)]) == 0
    return runs / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path, marker: Path) -> Path:
    """Somebody's run, with the lures in it too."""
    copied = Path(shutil.copytree(trained, tmp_path / "runs" / "run"))
    lures(copied, marker)
    return copied


def written(run: Path) -> Any:
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    settings["tracking"]["wandb"] = "off"  # which that reads as false
    return settings


def set_in(run: Path, group: str, name: str, value: Any) -> None:
    settings = written(run)
    settings[group][name] = value
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))


NAMED = [
    ("env", "id", f"{MODULE}:CartPoleNoVel-v1"),
    ("env", "id", f"runs.run.{MODULE}:CartPoleNoVel-v1"),
    ("env", "wrappers", [f"{MODULE}:Cls"]),
    ("env", "wrappers", [{f"{MODULE}:Cls": {"x": 1}}]),
    ("policy", "memory", f"{MODULE}:Cls"),
    ("policy", "encoder", f"{MODULE}:Cls"),
    ("policy", "kwargs", {"memory": f"{MODULE}:Cls"}),
    ("policy", "kwargs", {"memory": f"{MODULE}:a:b"}),
]
USES: dict[str, Callable[[str], int]] = {
    "evaluate": lambda run: evaluate.main([run, "--episodes", "1"]),
    "insight": lambda run: evaluate.main([run, "--episodes", "1", "--insight"]),
    "video": lambda run: evaluate.main([run, "--episodes", "1", "--video", "x.gif"]),
    "report": lambda run: evaluate.main([run, "--report"]),
    "compare": lambda run: evaluate.main([run, run + "/../run2", "--episodes", "1"]),
    "resume": lambda run: train.main(["--resume", run, "--total-timesteps", "64"]),
    "plan": lambda run: train.main(["--resume", run, "--dry-run"]),
    "list": lambda run: evaluate.main(["--list", "--runs", str(Path(run).parent)]),
}
LOOKS_ONLY = ("list",)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("group", "name", "value"), NAMED)
def test_a_strangers_run_imports_nothing(
    group: str, name: str, value: Any, use: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_in(run, group, name, value)
    if use == "compare":
        shutil.copytree(run, run.parent / "run2")
    assert USES[use](str(run)) == (0 if use in LOOKS_ONLY else 2)
    if use not in LOOKS_ONLY:
        message = capsys.readouterr().err
        assert "which would run that code" in message or "lies in the run itself" in message
        assert "--trust" in message or "lies in the run itself" in message


@pytest.mark.parametrize("use", USES)
def test_a_runs_directory_is_never_searched_for_modules(
    use: str, run: Path, monkeypatch: pytest.MonkeyPatch, marker: Path
) -> None:
    """Whoever stands in it has it on the path of modules else: a package that is missing would be found there."""
    set_in(run, "env", "id", "popgym-RepeatFirstEasy-v0")
    monkeypatch.chdir(run)
    sys.path[:] = [entry for entry in sys.path if entry != str(marker.parent)] + [""]
    monkeypatch.setitem(sys.modules, "popgym", None) if "popgym" in sys.modules else None
    if use == "compare":
        shutil.copytree(run, run.parent / "run2")
    USES[use](str(run))


OWN = """
import gymnasium
gymnasium.register("OfMine-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=9)
"""


def test_ones_own_run_is_trusted_and_anothers_once_it_is_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = list(sys.path)
    try:
        (tmp_path / "module_of_mine.py").write_text(OWN)
        words = [*WORDS, "--env.id", "module_of_mine:OfMine-v0"]
        assert train.main(words) == 0
        assert evaluate.main(["runs/run", "--episodes", "1"]) == 0
        assert train.main(["--resume", "runs/run", "--total-timesteps", "64"]) == 0
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "somebody else's"))
        capsys.readouterr()
        assert evaluate.main(["runs/run", "--episodes", "1"]) == 2
        told = capsys.readouterr().err
        command = shlex.join(command_words("evaluate"))
        assert f"If you trust it: {command} runs/run --episodes 1 --trust module_of_mine" in told
        assert evaluate.main(["runs/run", "--episodes", "1", "--trust", "something_else"]) == 2
        assert evaluate.main(["runs/run", "--episodes", "1", "--trust", "module_of_mine"]) == 0
        assert evaluate.main(["runs/run", "--episodes", "1"]) == 0
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")  # the same name may be another module there
        assert evaluate.main(["../runs/run", "--episodes", "1"]) == 2
        assert train.main(["--resume", "../runs/run", "--total-timesteps", "99"]) == 2
    finally:
        sys.path[:] = path
        sys.modules.pop("module_of_mine", None)


ODD = "a\x1b[2J\x07b[red]c[/x] ] \u2028\u202e</script><b>\x9b31m"


def test_what_is_not_ours_is_shown_as_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = written(run)
    settings["group"], settings["tracking"]["wandb_tags"] = ODD, [ODD]
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))
    versions = json.loads((run / "versions.json").read_text())
    (run / "versions.json").write_text(json.dumps({**versions, "commit": ODD, "process": 2**70}))
    (run / "evaluations").mkdir()
    (run / "evaluations" / "bad.json").write_text('{"return": {"mean": "x"}, "returns": [1]}')
    (run / "evaluations" / "deep.json").write_text("[" * 100_000)
    odd = run.rename(run.parent / ODD.replace("/", ""))
    assert evaluate.main(["--list", "--runs", str(odd.parent)]) == 0
    assert evaluate.main([str(odd), "--episodes", "1", "--report"]) == 0
    assert evaluate.main([str(odd.parent / ODD.replace("/", "!"))]) == 5
    captured = capsys.readouterr()
    for text in (captured.out, captured.err, page := (odd / "report.html").read_text()):
        assert printable(text) == text
    assert "[red]c[x] ]" in captured.out
    assert "<b>" not in page


@pytest.mark.parametrize("text", ["", "plain, é and 中\n\t", ODD, "\ud800", "\x00\x7f\x85\u200f"])
def test_scripts_and_package_show_text_alike(text: str) -> None:
    shown = printable(text)
    assert shown == printable_of_scripts(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    shown.encode()
