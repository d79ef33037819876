"""Plays a policy exported as .onnx with onnxruntime and NumPy alone: neither torch nor the rest of RecuRL is imported.

    policy = ExportedPolicy("policy.onnx")
    observation = sensor.read()
    while True:
        action = policy.act(observation)
        observation, episode_over = machine.do(action)
        if episode_over:
            policy.reset()

This file stands alone: it can be copied next to the model. Axes: B agents that act at once.
"""

import importlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
"""Of the files that this version reads."""
State = tuple[NDArray[Any], ...]


class ExportedPolicyError(ValueError):
    """A file that cannot be played, or input that it does not take; the message says what to do."""


class ExportedPolicy:
    """A policy in a file: normalizer, memory and last action are inside of it.

    ``act`` and ``reset`` are those of ``agents.Player``, which carries the memory itself; ``predict`` is that of a
    policy, with the state handed in and out.

    Args:
        path: a model that ``evaluate.py RUN --export policy.onnx`` or ``agents.deploy.export`` wrote.
        seed: of the actions, in a file that draws them.
        threads: that onnxruntime computes with.

    Raises:
        FileNotFoundError: there is no such file.
        ExportedPolicyError: it is no such model, or one of another version.
        ImportError: onnxruntime is missing.

    Attributes:
        metadata: what the file says of itself: ``inputs``, ``shapes``, ``dtypes``, ``observation_space``,
            ``action_space``, ``version``, ``difference`` (from its agent when it was written), ``agent`` (checksum).
        sees_reward: whether ``act`` and ``predict`` need the reward of the last action.
        draws: whether actions are sampled; else they are deterministic.
    """

    def __init__(self, path: str | pathlib.Path, *, seed: int = 0, threads: int = 1) -> None:
        self._session = _session(pathlib.Path(path), threads)
        properties = self._session.get_modelmeta().custom_metadata_map
        self.metadata: dict[str, Any] = {
            name.removeprefix("recurl."): json.loads(value)
            for name, value in properties.items()
            if name.startswith("recurl.")
        }
        _check_format(self.metadata, path)
        inputs: list[str] = self.metadata["inputs"]
        self._observed = [name for name in inputs if name.partition(".")[0] == "observation"]
        self._images: list[str] = self.metadata.get("images", [])
        self._states = [name for name in inputs if name.startswith("state_in_")]
        self.sees_reward, self.draws = "reward" in inputs, "seed" in inputs
        self._used = {each.name for each in self._session.get_inputs()}  # what no output depends on is left out
        self._outputs = [each.name for each in self._session.get_outputs()]
        after = [self._outputs.index(name.replace("_in_", "_out_")) for name in self._states]
        self._after = slice(min(after, default=0), max(after, default=-1) + 1)
        self._seed = seed
        self._calls = 0
        self._state: State | None = None
        self._batch_size: int | None = None
        self._starts = np.ones(1, dtype=bool)

    def act(self, observation: Any, reward: Any = None) -> NDArray[Any]:
        """The action for one observation, or the actions (B, ...) for a batch of them; the memory is carried on.

        Args:
            observation: as the environment gives it: an array, a number, or a dict of such; images may have their
                channels last.
            reward: that of the last action, a number or (B,), if the policy sees it; at an episode's start it does not
                count.

        Raises:
            ExportedPolicyError: the observation has another shape or number of agents, or the reward is missing.
        """
        arrays, batch_size = self._checked(observation)
        if self._state is None:
            self._batch_size, self._starts = batch_size, np.ones(batch_size or 1, dtype=bool)
        elif batch_size != self._batch_size:
            raise ExportedPolicyError(
                f"the policy carries the memory of {_agents(self._batch_size)}, this observation is of "
                f"{_agents(batch_size)}; call reset() to start with another number"
            )
        actions, self._state = self._step(arrays, self._state, self._starts, reward)
        self._starts = np.zeros(len(self._starts), dtype=bool)
        return actions if batch_size is not None else actions[0]

    def reset(self, mask: Any = None) -> None:
        """Says that an episode starts with the next observation, for those of a mask (B,).

        None is all of them, and then the next call of ``act`` may be for another number of agents.
        """
        if mask is None:
            self._state = self._batch_size = None
        elif self._state is not None:
            chosen = np.atleast_1d(np.asarray(mask, dtype=bool))
            if chosen.shape != self._starts.shape:
                raise ExportedPolicyError(
                    f"the mask has shape {chosen.shape}, the policy acts for {_agents(self._batch_size)}; give each a "
                    "flag"
                )
            self._starts = self._starts | chosen

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: Any = None,
        deterministic: bool | None = None,
        *,
        reward: Any = None,
    ) -> tuple[NDArray[Any], State]:
        """Actions for one observation or a batch, and the state to hand in with the next call.

        Args:
            state: what the last call returned; None starts an episode.
            episode_start: (B,), true where the observation starts an episode; None: nowhere.
            deterministic: None, as the file was exported; it can do one of both.
            reward: as for :meth:`act`.

        Raises:
            ExportedPolicyError: the observation, the state or the reward is not what the file takes.
        """
        if deterministic is not None and deterministic is self.draws:
            raise ExportedPolicyError(
                "this file takes deterministic actions; export it with --with-sampling for deterministic=False"
                if self.draws is False
                else "this file samples its actions; export it without --with-sampling for deterministic=True"
            )
        arrays, batch_size = self._checked(observation)
        n_agents = 1 if batch_size is None else batch_size
        starts = np.full(n_agents, state is None)
        if episode_start is not None and state is not None:
            starts = np.asarray(episode_start, dtype=bool).reshape(-1)
        if len(starts) != n_agents:
            raise ExportedPolicyError(f"episode_start has {len(starts)} entries for {_agents(batch_size)}")
        if state is not None:
            self._check_state(state, n_agents)
        actions, after = self._step(arrays, state, starts, reward)
        return (actions if batch_size is not None else actions[0]), after

    def initial_state(self, batch_size: int) -> State:
        """What the file takes where all agents start an episode, (B, ...) each; it is not read there."""
        shapes, dtypes = self.metadata["shapes"], self.metadata["dtypes"]
        return tuple(np.zeros((batch_size, *shapes[name]), dtypes[name]) for name in self._states)

    def _step(
        self, arrays: Sequence[NDArray[Any]], state: State | None, starts: NDArray[np.bool_], reward: Any
    ) -> tuple[NDArray[Any], State]:
        state = self.initial_state(len(starts)) if state is None else state
        given: dict[str, Any] = dict(zip(self._observed, arrays, strict=True))
        given.update(zip(self._states, state, strict=True))
        given["episode_start"] = starts
        if self.sees_reward:
            given["reward"] = self._checked_reward(reward, starts)
        if self.draws:
            self._calls += 1
            given["seed"] = np.array(self._seed * 1_000_003 + self._calls, np.int64)
        outputs = self._session.run(None, {name: part for name, part in given.items() if name in self._used})
        return outputs[0], tuple(outputs[self._after])

    def _checked(self, observation: Any) -> tuple[list[NDArray[Any]], int | None]:
        """The observation's parts with an axis of agents, and of how many it is; None for a single one."""
        names = {name.partition(".")[2]: name for name in self._observed}
        if names.keys() == {""}:
            observation = {"": observation}
        elif not isinstance(observation, Mapping) or not names.keys() <= observation.keys():
            came = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
            raise ExportedPolicyError(f"the observation must be a dict with the keys {sorted(names)}, got {came}")
        parts = [self._checked_part(observation[key], name) for key, name in names.items()]
        sizes = {size for _, size in parts}
        if len(sizes) > 1:
            raise ExportedPolicyError(
                f"the observation's parts are of different numbers of agents: {', '.join(map(_agents, sizes))}"
            )
        return [array for array, _ in parts], sizes.pop()

    def _checked_part(self, observation: Any, name: str) -> tuple[NDArray[Any], int | None]:
        shape, dtype = tuple(self.metadata["shapes"][name]), np.dtype(self.metadata["dtypes"][name])
        array = np.asarray(observation)
        if array.dtype.kind not in ("biuf" if dtype.kind == "f" else "biu"):
            raise ExportedPolicyError(f"{name} is of dtype {array.dtype}, expected numbers as {dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportedPolicyError(f"{name} is not finite: {array}; mend what gives it")
        if name in self._images and array.shape[-3:] == (*shape[1:], shape[0]):
            array = np.moveaxis(array, -1, -3)
        if array.shape == shape:
            return array[None].astype(dtype, copy=False), None
        if array.shape[1:] == shape and array.ndim == len(shape) + 1 and len(array):
            return array.astype(dtype, copy=False), len(array)
        raise ExportedPolicyError(
            f"{name} has shape {array.shape}, expected {shape} for one agent, or with a leading axis for a batch"
        )

    def _checked_reward(self, reward: Any, starts: NDArray[np.bool_]) -> NDArray[Any]:
        if reward is None and starts.all():
            return np.zeros(len(starts), np.float32)
        rewards = np.atleast_1d(np.asarray(np.nan if reward is None else reward, np.float32))
        if rewards.shape != starts.shape or not np.isfinite(rewards[~starts]).all():
            raise ExportedPolicyError(
                f"this policy sees the reward of its last action too: expected act(observation, reward) with a number "
                f"for each of {len(starts)} agents, got reward={reward!r}"
            )
        return rewards

    def _check_state(self, state: State, n_agents: int) -> None:
        expected = [(n_agents, *self.metadata["shapes"][name]) for name in self._states]
        came = [np.shape(part) for part in state]
        if came != expected:
            raise ExportedPolicyError(
                f"the state has parts of shape {came}, expected {expected}: hand in what the last call returned"
            )


def _session(path: pathlib.Path, threads: int) -> Any:
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError("an exported policy needs onnxruntime: pip install onnxruntime") from error
    if path.suffix in (".pt", ".c"):
        cure = "torch.jit.load plays it" if path.suffix == ".pt" else "a C compiler does"
        raise ExportedPolicyError(f"{path}: expected an exported policy.onnx, got {path.suffix}: {cure}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: write one with evaluate.py RUN --export {path.name}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception of its own for every fault
        reason = str(error).splitlines()[0]
        raise ExportedPolicyError(
            f"{path} is no ONNX model, or one that this onnxruntime cannot read ({reason}): write it again with "
            f"evaluate.py RUN --export {path.name}"
        ) from error


def _check_format(metadata: Mapping[str, Any], path: str | pathlib.Path) -> None:
    format = metadata.get("format")
    if format is None:
        raise ExportedPolicyError(
            f"{path} is an ONNX model that RecuRL did not write: write one with evaluate.py RUN --export policy.onnx"
        )
    if format != FORMAT:
        raise ExportedPolicyError(
            f"{path} is of format {format} (RecuRL {metadata.get('version')}), and this version plays format "
            f"{FORMAT}: export it again with this version, or install that one"
        )


def _agents(batch_size: int | None) -> str:
    return "one agent" if batch_size is None else f"a batch of {batch_size}"
