"""The file of an agent: where it lies, that it is written atomically, and that what is damaged or forged is refused."""

import io
import json
import os
import pickle
import random
import resource
import signal
import stat
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from agents import RecurrentPPO
from agents.checkpoint import CheckpointError, SavedAgent, check_parameters, container, read_parameters
from tests.agents.checkpoint.test_checkpoint import assert_equal, assert_same_weights
from tests.saved_files import Bomb, assert_explodes, edited, forged, members_of, rewritten, saved, zipped

Model = Any


@pytest.fixture(scope="module")
def file(trained: Model) -> io.BytesIO:
    return saved(trained)


def test_paths_are_those_of_stable_baselines3(trained: Model, tmp_path: Path) -> None:
    trained.save(str(tmp_path / "a" / "b" / "agent"))
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["agent.zip"]
    trained.save(tmp_path / "agent.v1")
    assert (tmp_path / "agent.v1").is_file()
    for path in (tmp_path / "a" / "b" / "agent", str(tmp_path / "a" / "b" / "agent.zip"), tmp_path / "agent.v1"):
        assert_same_weights(RecurrentPPO.load(path, device="cpu"), trained)
    with open(tmp_path / "open", "wb") as stream:
        trained.save(stream)
    with open(tmp_path / "open", "rb") as stream:
        assert_same_weights(RecurrentPPO.load(stream, device="cpu"), trained)


def test_a_missing_file_and_a_folder_are_named(trained: Model, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"agent"):
        RecurrentPPO.load(tmp_path / "agent")
    with pytest.raises(CheckpointError, match="is not a file"):
        RecurrentPPO.load(tmp_path)
    (tmp_path / "taken.zip").mkdir()
    with pytest.raises(CheckpointError, match=r"taken\.zip: could not be written \(Is a directory\)"):
        trained.save(tmp_path / "taken.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.zip"]


def test_a_link_stays_a_link_and_a_mode_stays_as_it_was(trained: Model, tmp_path: Path) -> None:
    target, link, plain = tmp_path / "real.zip", tmp_path / "link.zip", tmp_path / "plain"
    trained.save(target)
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode
    target.chmod(0o640)
    link.symlink_to(target)
    before = target.stat().st_ino
    trained.save(link)
    assert link.is_symlink()
    assert target.stat().st_ino != before
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


# Written atomically


def test_a_disk_that_takes_no_more_leaves_the_old_file(trained: Model, tmp_path: Path) -> None:
    """A limit on file sizes makes the kernel itself refuse the write halfway."""
    path = tmp_path / "agent.zip"
    trained.save(path)
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))
            trained.save(path)
        except CheckpointError as error:
            code = 0 if "could not be written (File too large)" in str(error) and "untouched" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["agent.zip"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_the_old_file(
    trained: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    path = tmp_path / "agent.zip"
    trained.save(path)
    before = path.read_bytes()

    def fail(*args: Any) -> None:
        raise failure

    monkeypatch.setattr(container.os, step, fail)
    with pytest.raises((CheckpointError, KeyboardInterrupt), match=r"agent\.zip: could not be written .No space|^$"):
        trained.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["agent.zip"]


def test_killing_the_writer_leaves_a_file_that_loads(trained: Model, tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    trained.save(path)
    rng = random.Random(0)
    for kill in range(8):
        child = os.fork()
        if child == 0:
            while True:
                trained.num_timesteps += 1
                trained.save(path)
        time.sleep(rng.uniform(0.02, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        again = RecurrentPPO.load(path, device="cpu")
        assert_equal(again.get_parameters()["policy"], trained.get_parameters()["policy"])
        assert again.num_timesteps >= trained.num_timesteps, kill


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(trained: Model, tmp_path: Path) -> None:
    dead, alive = (tmp_path / f".agent.zip.{digit * 16}.tmp" for digit in "ab")
    other = tmp_path / ".other.zip.aaaaaaaaaaaaaaaa.tmp"
    for path in (dead, alive, other):
        path.write_bytes(b"half")
    for path in (dead, other):
        os.utime(path, (0, time.time() - container.STALE_AFTER - 1))
    trained.save(tmp_path / "agent.zip")
    assert {path.name for path in tmp_path.iterdir()} == {"agent.zip", alive.name, other.name}


# Damaged


def test_a_flipped_bit_is_noticed_or_harmless(file: io.BytesIO) -> None:
    data, weights = file.getvalue(), SavedAgent(file).parameters()
    rng = random.Random(1)
    noticed = 0
    places = [rng.randrange(len(data)) for _ in range(150)] + list(range(len(data) - 60, len(data)))
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        try:
            again = SavedAgent(io.BytesIO(damaged))
        except CheckpointError:
            noticed += 1
        else:
            assert_equal(again.parameters(), weights)
    assert noticed > 140


def test_a_file_cut_short_is_noticed(file: io.BytesIO) -> None:
    data = file.getvalue()
    for length in (0, 1, 21, 22, 100, *range(1000, len(data), 4001), len(data) - 22, len(data) - 1):
        with pytest.raises(CheckpointError, match=r"incomplete or damaged|is damaged"):
            SavedAgent(io.BytesIO(data[:length]))


def test_a_wrong_checksum_is_refused(file: io.BytesIO) -> None:
    weights = bytearray(members_of(file)["policy.safetensors"])
    weights[-1] ^= 1
    with pytest.raises(CheckpointError, match=r"policy\.safetensors is not what was written \(its checksum differs\)"):
        SavedAgent(rewritten(file, {"policy.safetensors": bytes(weights)}))


def test_a_newer_version_says_to_upgrade(file: io.BytesIO) -> None:
    manifest = {**json.loads(members_of(file)["manifest.json"]), "version": 2}
    with pytest.raises(CheckpointError, match=r"is of version 2, newer than this recurl reads \(1\); upgrade recurl"):
        SavedAgent(rewritten(file, {"manifest.json": json.dumps(manifest).encode()}))


# Forged


def test_a_forgery_that_changes_nothing_loads(trained: Model, file: io.BytesIO) -> None:
    assert_same_weights(RecurrentPPO.load(edited(file, lambda agent: None), device="cpu"), trained)


@pytest.mark.parametrize("member", ["agent.json", "policy.safetensors", "manifest.json", "data.pkl", "policy.pth"])
def test_a_pickle_inside_is_refused_and_not_run(file: io.BytesIO, tmp_path: Path, member: str) -> None:
    payload = pickle.dumps(Bomb(tmp_path / "exploded"))
    change = rewritten if member == "manifest.json" else forged
    with pytest.raises(CheckpointError):
        RecurrentPPO.load(change(file, {member: payload}))
    assert_explodes(payload, tmp_path / "exploded")


def test_a_file_of_stable_baselines3_is_named_and_not_run(tmp_path: Path) -> None:
    payload = pickle.dumps(Bomb(tmp_path / "exploded"))
    file = zipped({"data": b'{"policy_class": {":serialized:": "gASV", ":type:": "x"}}', "policy.pth": payload})
    message = r"saved by Stable-Baselines3 or sb3-contrib.*import_contrib\(path, env\)"
    with pytest.raises(CheckpointError, match=message):
        RecurrentPPO.load(file)
    assert_explodes(payload, tmp_path / "exploded")


@pytest.mark.parametrize(
    "name",
    ["../agent.json", "/etc/passwd", "..\\x.safetensors", "a/b.safetensors", "notes.txt", "C:x.safetensors", "é.json"],
)
def test_an_unknown_member_is_refused(file: io.BytesIO, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"holds .*which no checkpoint does|no checkpoint, or"):
        SavedAgent(forged(file, {name: b"x"}))


def with_a_member_twice(file: io.BytesIO) -> io.BytesIO:
    buffer = io.BytesIO(file.getvalue())
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("agent.json", b"{}")
    return buffer


def with_sizes_beyond_the_file(file: io.BytesIO) -> io.BytesIO:
    data = bytearray(file.getvalue())
    entry = data.rindex(b"PK\x01\x02")
    for at in (entry + 20, entry + 24):  # its compressed and its real size
        data[at : at + 4] = (2**31).to_bytes(4, "little")
    return io.BytesIO(data)


def with_a_shape_beyond_its_bytes(file: io.BytesIO) -> io.BytesIO:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}).encode()
    return forged(file, {"policy.safetensors": len(header).to_bytes(8, "little") + header + b"\0" * 4})


def with_a_surplus_tensor(file: io.BytesIO) -> io.BytesIO:
    tensors = safetensors.torch.load(members_of(file)["policy.safetensors"]) | {"more": torch.zeros(2)}
    return forged(file, {"policy.safetensors": safetensors.torch.save(tensors)})


FORGED: list[tuple[Callable[[io.BytesIO], io.BytesIO], str]] = [
    (with_a_member_twice, "holds a member twice"),
    (lambda file: zipped({**members_of(file), "agent.json": b" " * 10**7}, zipfile.ZIP_DEFLATED), "is compressed or"),
    (with_sizes_beyond_the_file, r"say they are larger than the file|says it has 2147483648 bytes"),
    (with_a_shape_beyond_its_bytes, r"policy\.safetensors holds no readable tensors"),
    (with_a_surplus_tensor, "the tensors of policy are not those it lists"),
    (
        lambda file: forged(file, {"extra.safetensors": members_of(file)["policy.safetensors"]}),
        "holds tensors for extra, policy",
    ),
    (lambda file: forged(file, {"agent.json": b'{"a":' * 10**5 + b"1" + b"}" * 10**5}), r"agent\.json is not JSON"),
    (lambda file: forged(file, {"agent.json": b"[]"}), r"agent\.json is not JSON .it holds a list, expected an object"),
    (lambda file: rewritten(file, {"manifest.json": b'{"format": "other"}'}), "of the format .other. None; expected"),
    (lambda file: zipped({"agent.json": b"{}"}), r"has no manifest\.json, so it is no checkpoint"),
]


@pytest.mark.parametrize(("forge", "message"), FORGED)
def test_a_forged_file_is_refused(file: io.BytesIO, forge: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        SavedAgent(forge(file)).parameters()


def kwargs_of(agent: Any) -> Any:
    return agent["settings"]["policy_kwargs"]


SETTINGS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda agent: kwargs_of(agent).update(activation_fn={"$class": ["torch.nn", "Nope"]}), "'Nope' of 'torch.nn'"),
    (lambda agent: kwargs_of(agent).update(memory={"$custom": "os:system"}), "never imports anything"),
    (lambda agent: kwargs_of(agent).update(memory={"$call": "os:system"}), "does not know"),
    (lambda agent: kwargs_of(agent).update(net_arch={"$tuple": 3}), "cannot be understood"),
    (lambda agent: kwargs_of(agent)["memory_kwargs"].update(hidden_size=10**6), "larger networks than there are"),
    (lambda agent: kwargs_of(agent).update(net_arch=[5]), "optimizer's state does not fit"),
    (lambda agent: kwargs_of(agent).update(critic_memory="shared"), "weights do not fit|state does not fit"),
    (lambda agent: agent["settings"].update(n_steps=10**12), "has more than a file may ask for .1024 MiB"),
    (lambda agent: agent["settings"].update(verbose={"$dtype": "f4," * 10**6}), "verbose cannot be understood"),
    (lambda agent: agent["settings"].update(gamma=7.0), "gamma must be between 0 and 1"),
    (lambda agent: agent["settings"].update(predict=1), "RecurrentPPO has no setting predict"),
    (lambda agent: agent["settings"].update(learning_rate={"$schedule": ["eval", []]}), "learning_rate cannot be"),
    (
        lambda agent: agent["settings"].update(learning_rate={"$schedule": ["ConstantSchedule", ["x"]]}),
        "learning_rate cannot",
    ),
    (lambda agent: agent["extras"].update(predict=1), "'predict' cannot be an attribute"),
    (lambda agent: agent["counters"].update(num_timesteps="many"), "a counter is no number"),
    (lambda agent: agent["counters"].update(policy=1), "counters holds policy"),
    (lambda agent: agent.update(n_envs=-1), "no RecurrentPPO can be built"),
    (lambda agent: agent.update(more=1), r"does not hold what an agent is \(more\)"),
    (lambda agent: agent.pop("random"), r"does not hold what an agent is \(random\)"),
    (lambda agent: agent.update(algorithm="os"), "was saved by os"),
    (lambda agent: agent.update(policy="os:system"), "policy_class is 'os:system'"),
    (lambda agent: agent.update(observation_space=3), "no RecurrentPPO can be built"),
    (lambda agent: agent["observation_space"]["$space"].update(shape=[10**6, 10**6]), "more than a file may ask"),
    (lambda agent: agent["action_space"]["$space"].update(kind="Exec"), "there is no space 'Exec'"),
    (lambda agent: agent["action_space"]["$space"].update(n=0), "action_space cannot be understood"),
    (lambda agent: agent["parameters"]["policy"].popitem(), "the tensors of policy are not those"),
    (lambda agent: agent["carried"].update(_last_state={"$tuple": []}), "_last_state has the shape"),
    (lambda agent: agent["carried"].update(_last_obs={"$array": "random.torch"}), "_last_obs has the shape"),
    (lambda agent: agent["carried"].update(_last_obs={"$array": "nope"}), "the tensor 'nope' for _last_obs is missing"),
    (lambda agent: agent["normalizer"]["settings"].pop("gamma"), "the normalizer cannot be understood"),
    (lambda agent: agent["normalizer"].update(rewards=[1, 2, 3]), "the normalizer cannot be understood"),
    (lambda agent: agent["random"].update(model={}), "random states cannot be understood"),
    (lambda agent: agent["random"]["model"].update(state={"$array": "random.torch"}), "random states cannot be"),
    (lambda agent: agent.update(algorithm=[]), r"was saved by \[\]"),
    (lambda agent: agent["carried"].update(_last_state={"a": 1}), "_last_state has the shape"),
    (lambda agent: agent["settings"].update(use_sde={"$device": "nope"}), "use_sde cannot be understood"),
    (lambda agent: agent["settings"].update(learning_rate={"$scalar": ["<f4", 1]}), "no RecurrentPPO can be built"),
    (lambda agent: agent.update(settings=[]), r"does not hold what an agent is \(settings\)"),
    (lambda agent: agent["statistics"].update(ep_info_buffer=3), "the state of its training cannot be understood"),
]


@pytest.mark.parametrize(("edit", "message"), SETTINGS)
def test_a_forged_setting_is_refused(file: io.BytesIO, edit: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        RecurrentPPO.load(edited(file, edit), device="cpu")


def test_an_optimizer_state_that_is_too_small_for_its_parameters_is_refused(trained: Model, file: io.BytesIO) -> None:
    """Fused kernels do not check it: they would read beyond the tensor."""
    state = safetensors.torch.load(members_of(file)["policy.optimizer.safetensors"])
    state["state.0.exp_avg"] = torch.zeros(1)
    data = forged(file, {"policy.optimizer.safetensors": safetensors.torch.save(state)})
    for use in (
        lambda: RecurrentPPO.load(data, device="cpu"),
        lambda: check_parameters(trained, read_parameters(data)),
        lambda: trained.set_parameters(data),
    ):
        with pytest.raises(CheckpointError, match=r"exp_avg of parameter 0 has shape \(1,\)"):
            use()


def test_kernels_are_those_of_the_device_not_of_the_file(trained: Model, file: io.BytesIO) -> None:
    def ask(agent: Any) -> None:
        agent["parameters"]["policy.optimizer"]["param_groups"][0].update(fused=None, capturable=True)

    (group,) = RecurrentPPO.load(edited(file, ask), device="cpu").policy.optimizer.param_groups
    assert group["fused"] == trained.policy.optimizer.param_groups[0]["fused"]
    assert group["capturable"] is False
