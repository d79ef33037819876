"""Agents out of Python: a file with the step of a saved agent, state in and state out, checked before it is written.

    .onnx   an ONNX model, for onnxruntime and whatever else reads it
    .pt     a TorchScript module, for libtorch and for torch without this package
    .c      one C99 file without dependencies, for one agent of a flat observation; see :mod:`agents.deploy.c_source`

The first two take and give what :class:`agents.deploy.step.AgentStep` does.
"""

import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from agents.checkpoint import PreviousInputs
from agents.deploy import c_source, onnx
from agents.deploy.player import Player
from agents.deploy.step import AgentStep, ExportError, channels_first

SUFFIXES = (".onnx", ".pt", ".c")
FORMAT = 1
GAME = 1000
"""Steps of the environments that agent and file are compared on."""
C_TOLERANCE = 1e-5
DRAWN = {1: 60, 32: 20}
"""Numbers of agents, and steps of each on observations drawn from the space."""
Arrays = list[NDArray[Any]]
Run = Callable[[Arrays], Arrays]


class Exported(NamedTuple):
    """What was written.

    Args:
        path: the file.
        difference: the largest between agent and file, of any output over all steps they were compared.
        steps: how many those were, over all agents.
    """

    path: pathlib.Path
    difference: float
    steps: int


def export(
    agent: Any,
    path: str | pathlib.Path,
    *,
    value: bool = False,
    sample: bool = False,
    env: VecEnv | None = None,
) -> Exported:
    """Writes a file that acts as the agent does, at any number of agents at once.

    Args:
        agent: a ``Player``, an algorithm, or a policy; what a player knows, normalizer and previous action and reward,
            goes into the file.
        path: its ending says the format; see this module.
        value, sample: as for :class:`agents.deploy.step.AgentStep`.
        env: environments as they are before normalization; agent and file are compared on 1,000 steps of theirs too,
            each with its own memory. Without, on observations drawn from the space alone.

    Raises:
        ExportError: the ending is not known, the agent cannot be expressed in the format, or the file's numbers differ
            from the agent's by more than 1e-4 (1e-5 in C); nothing is written then.
        FileExistsError: there is such a file.
        ImportError: a package of the extra ``onnx`` is missing.
    """
    path = pathlib.Path(path)
    if path.suffix not in SUFFIXES:
        raise ExportError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}, got {path.suffix or 'none'}")
    if path.exists():
        raise FileExistsError(f"{path} is there already: remove it, or give another name")
    player = _player_of(agent)
    step = AgentStep(player, sample=sample, value=value).eval()
    content, run = {".onnx": _onnx, ".pt": _script, ".c": _c}[path.suffix](step)
    compared = Comparison(step, run)
    for n_agents, n_steps in DRAWN.items():
        for batch in _drawn(step, n_agents, n_steps):
            compared.add(batch)
    if env is not None:
        _play(compared, player, env)
    tolerance = C_TOLERANCE if path.suffix == ".c" else onnx.TOLERANCE
    if not compared.difference <= tolerance:
        raise ExportError(
            f"the exported model differs from the agent by {compared.difference:.3g} in {compared.where}, and at most "
            f"{tolerance:g} is allowed: nothing was written"
        )
    metadata = {**described(step), "difference": compared.difference, "steps": compared.steps}
    with_metadata = {".onnx": onnx.with_metadata, ".pt": _with_extra, ".c": _with_comment}[path.suffix]
    _write(path, with_metadata(content, metadata))
    return Exported(path, compared.difference, compared.steps)


def described(step: AgentStep) -> dict[str, Any]:
    """What a reader of the file needs to know: names, shapes and types in order, spaces, a checksum of the weights."""
    inputs = step.example(1)
    digest = hashlib.sha256()
    for name, part in sorted(step.policy.state_dict().items()):
        digest.update(name.encode())
        digest.update(part.detach().cpu().contiguous().numpy().tobytes())
    return {
        "format": FORMAT,
        "version": _version(),
        "inputs": step.input_names,
        "outputs": step.output_names,
        "shapes": {name: list(part.shape[1:]) for name, part in zip(step.input_names, inputs, strict=True)},
        "dtypes": {name: str(part.numpy().dtype) for name, part in zip(step.input_names, inputs, strict=True)},
        "images": [
            name for name, part in zip(step.input_names, step.observed_spaces, strict=False) if channels_first(part)
        ],
        "observation_space": str(step.observation_space),
        "action_space": str(step.action_space),
        "agent": digest.hexdigest(),
    }


def _version() -> str:
    try:
        return importlib.metadata.version("recurl")
    except importlib.metadata.PackageNotFoundError:  # a checkout
        return "unknown"


class Comparison:
    """An agent's step and what runs its export, side by side: each with its own state, over the same episodes."""

    def __init__(self, step: AgentStep, run: Run) -> None:
        self._step, self._run = step, run
        self.difference, self.steps, self.where = 0.0, 0, ""
        self._n_agents = self._n_calls = 0
        self._rng = np.random.default_rng(0)
        self._ours: Arrays = []
        self._theirs: Arrays = []

    def add(self, observation: Any, reward: Any = None, starts: Any = None, expected: Any = None) -> None:
        """One step of all agents on observations (B, ...), rewards (B,) and episode starts (B,).

        Without the latter rewards are drawn, and now and then an agent starts an episode. ``expected`` are the actions
        that both should take.
        """
        parts = [observation] if not isinstance(observation, dict) else [observation[key] for key in self._step.keys]
        n_agents = len(parts[0])
        rewards = self._rng.standard_normal(n_agents) if reward is None else reward
        starts = self._rng.random(n_agents) < 0.05 if starts is None else starts
        if n_agents != self._n_agents or self.steps == 0:
            self._n_agents, starts = n_agents, np.ones(n_agents, dtype=bool)
            self._ours = [part.numpy() for part in self._step.initial_state(n_agents)]
            self._theirs = self._ours
        reward = [np.asarray(rewards, np.float32)] if self._step.sees_reward else []
        seed = [np.array(self._n_calls, np.int64)] if self._step.sample else []
        before, after = [np.asarray(part) for part in parts] + reward, [starts, *seed]
        with torch.no_grad():
            given = [torch.as_tensor(part) for part in (*before, *self._ours, *after)]
            ours = [part.numpy() for part in self._step(*given)]
        theirs = self._run([*before, *self._theirs, *after])
        pairs = list(zip(self._step.output_names, ours, theirs, strict=True))
        if expected is not None and not self._step.sample:
            pairs.append(("action", expected.astype(ours[0].dtype), ours[0]))
        for name, one, other in pairs:
            if one.shape != other.shape:
                raise ExportError(f"{name} is {other.shape} in the exported model and {one.shape} in the agent")
            apart = self._tied(ours, one, other) if name == "action" else _apart(one, other)
            if not apart <= self.difference:
                self.difference, self.where = apart, f"{name} at step {self._n_calls} of {n_agents} agents"
        numbers = [i for i, name in enumerate(self._step.output_names) if name.startswith("state_out_")]
        self._ours, self._theirs = [ours[i] for i in numbers], [theirs[i] for i in numbers]
        self.steps += n_agents
        self._n_calls += 1

    def _tied(self, ours: Arrays, one: NDArray[Any], other: NDArray[Any]) -> float:
        """Of actions; of choices 0 where the two that were taken are as good as equally probable."""
        if isinstance(self._step.action_space, spaces.Box):
            return _apart(one, other)
        rows = np.flatnonzero((one != other).reshape(len(one), -1).any(axis=1))
        logits = ours[1][rows]
        close = np.abs(np.sort(logits, axis=1)[:, -1:] - np.sort(logits, axis=1)[:, -2:-1]) < onnx.TOLERANCE
        return 0.0 if bool(close.all()) or self._step.sample else 1.0


def _play(compared: Comparison, player: Player, env: VecEnv) -> None:
    """Episodes of the environments as the player plays them, whose memory is its own too."""
    inside: Any = env.venv if PreviousInputs.of(env) is not None else env  # type: ignore[attr-defined]
    observation, rewards, starts = inside.reset(), np.zeros(env.num_envs), np.ones(env.num_envs, dtype=bool)
    player.reset()
    for _ in range(max(GAME // env.num_envs, 1)):
        actions = player.act(observation, rewards)
        compared.add(observation, rewards, starts, actions)
        observation, rewards, starts, _ = inside.step(actions)
        player.reset(starts)


def _apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest difference, of numbers above 1 relative to them; infinite where only one is a number."""
    if not one.size:
        return 0.0
    a, b = one.astype(np.float64), other.astype(np.float64)
    if (np.isfinite(a) != np.isfinite(b)).any():
        return float("inf")
    return float(np.nan_to_num(np.abs(a - b) / np.maximum(np.abs(a), 1.0)).max())


def _player_of(agent: Any) -> Player:
    if isinstance(agent, Player):
        return agent
    return Player.of(agent) if hasattr(agent, "policy") else Player(agent)


def _drawn(step: AgentStep, n_agents: int, n_steps: int) -> Iterator[Any]:
    step.observation_space.seed(0)
    for _ in range(n_steps):
        parts = [step.observation_space.sample() for _ in range(n_agents)]
        if isinstance(parts[0], dict):
            yield {key: np.stack([part[key] for part in parts]) for key in parts[0]}
        else:
            yield np.stack(parts)


def _onnx(step: AgentStep) -> tuple[bytes, Run]:
    content = onnx.model_of(step)
    return content, onnx.OnnxStep(onnx.with_metadata(content, {"inputs": step.input_names}))


def _script(step: AgentStep) -> tuple[bytes, Run]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(step, step.example(2), check_trace=False)  # type: ignore[no-untyped-call]
        file = io.BytesIO()
        torch.jit.save(traced, file)

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            return [part.numpy() for part in traced(*map(torch.as_tensor, inputs))]

    return file.getvalue(), run


def _c(step: AgentStep) -> tuple[bytes, Run]:
    source = c_source.source_of(step)
    return source.encode(), c_source.compiled(step, source)


def _with_comment(content: bytes, metadata: dict[str, Any]) -> bytes:
    return f"/* {json.dumps(metadata)} */\n".encode() + content


def _with_extra(content: bytes, metadata: dict[str, Any]) -> bytes:
    """A TorchScript file with its metadata, ``recurl.json``, as torch.jit.load's ``_extra_files`` reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(io.BytesIO(content))  # type: ignore[no-untyped-call]
        file = io.BytesIO()
        torch.jit.save(module, file, {"recurl.json": json.dumps(metadata)})
    return file.getvalue()


def _write(path: pathlib.Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)  # fails where a file of this name has come meanwhile
    finally:
        partial.unlink(missing_ok=True)
