"""An agent's step as one C99 file: weights as arrays, no allocation, nothing but libm, float32; one agent.

    void policy_reset(policy_state *state);                                     an episode starts
    void policy_step(policy_state *state, const float *observation, float reward, int32_t *action, float *distribution);

``reward`` is that of the last action, and there only if the agent sees it; ``action`` is float for numbers.

For LSTM, GRU, RNN, minGRU, FFM, the hybrid and no memory between flat observations and dense layers. The rest is
refused by name.
"""

import ctypes
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor, nn

from agents.deploy.step import AgentStep, ExportError
from agents.memory import GRU, LSTM, RNN, FastForgetful, Hybrid, MinGRU, NoMemory
from agents.memory.layers import NORM_EPSILON

FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-shared", "-fPIC")
HELPERS = {
    "add": """static void add(const float *w, const float *x, int rows, int columns, float *y) {
    for (int i = 0; i < rows; i++) {
        float sum = 0.0f;
        for (int j = 0; j < columns; j++) sum += w[i * columns + j] * x[j];
        y[i] += sum;
    }
}""",
    "sigmoid": """static float sigmoid(float x) { return 0.5f * tanhf(0.5f * x) + 0.5f; }""",
    "normalize": """static void normalize(const float *x, int n, float *y) {
    float mean = 0.0f, variance = 0.0f;
    for (int i = 0; i < n; i++) mean += x[i];
    mean /= (float)n;
    for (int i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
    variance /= (float)n;
    for (int i = 0; i < n; i++) y[i] = (x[i] - mean) / sqrtf(variance + NORM_EPSILON);
}""",
    "best": """static int best(const float *x, int n) {
    int found = 0;
    for (int i = 1; i < n; i++) if (x[i] > x[found]) found = i;
    return found;
}""",
}  # fmt: skip


def source_of(step: AgentStep) -> str:
    """The file.

    Raises:
        ExportError: something of the agent has no form in C here.
    """
    return _Source(step).text()


class _Source:
    """What is written, as it comes: arrays, helpers in use, and the statements of a step."""

    def __init__(self, step: AgentStep) -> None:
        self._step, policy = step, step.policy
        self._arrays: list[str] = []
        self._helpers: list[str] = []
        self._body: list[str] = []
        if step.value or step.sample:
            raise ExportError("a C file takes the deterministic action and knows no value: leave out both options")
        if (
            isinstance(step.observation_space, spaces.Dict)
            or type(policy.pi_features_extractor) is not FlattenExtractor
        ):
            raise ExportError(
                f"a C file reads flat observations, not {step.observation_space} by "
                f"{type(policy.pi_features_extractor).__name__}: export it as .onnx"
            )
        memory: Any = policy.memory_actor
        self._memory = MEMORIES.get(type(memory))
        if self._memory is None or getattr(memory, "dropout", False):
            what = f"{type(memory).__name__}{' with dropout' if type(memory) in MEMORIES else ''}"
            known = ", ".join(cls.__name__ for cls in MEMORIES)
            raise ExportError(f"{what} has no form in C, only {known} have: export it as .onnx")

    def text(self) -> str:
        step = self._step
        assert self._memory is not None
        hidden = self._memory(self, step.policy.memory_actor, self._observed())
        output = self._dense(step.policy.mlp_extractor.policy_net, hidden)
        output = self._dense(step.policy.action_net, output)
        self._act(output)
        n_state, n_previous = sizes_of(step)
        initial = np.concatenate([part.numpy().ravel() for part in self._initial()] or [np.zeros(0, np.float32)])
        reset = f"    memcpy(state->memory, {self.array(initial)}, sizeof state->memory);\n" if n_state else ""
        kind = "float" if isinstance(step.action_space, spaces.Box) else "int32_t"
        reward = "float reward, " if step.sees_reward else ""
        helpers = "\n\n".join(HELPERS[name] for name in self._helpers)
        arrays, body = "\n".join(self._arrays), "\n".join(f"    {line}" for line in self._body)
        comment = "\n   ".join(
            (
                "One step of an agent: policy_reset() where an episode starts, policy_step() for every observation.",
                f"observation: {len(_encodings(step.observation_space))} numbers, {step.observation_space}",
                f"action: as the environment takes it, {step.action_space}",
                f"distribution: {self._n_outputs} logits or means",
            )
        )
        return f"""/* {comment} */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define NORM_EPSILON {NORM_EPSILON!r}f

typedef struct {{
    float memory[{max(n_state, 1)}];
    float previous[{max(n_previous, 1)}];
    int32_t starts;
}} policy_state;

void policy_reset(policy_state *state);
void policy_step(policy_state *state, const float *observation, {reward}{kind} *action, float *distribution);

{arrays}

{helpers}

void policy_reset(policy_state *state) {{
    memset(state, 0, sizeof *state);
{reset}    state->starts = 1;
}}

void policy_step(policy_state *state, const float *observation, {reward}{kind} *action, float *distribution) {{
{body}
    state->starts = 0;
}}
"""

    def _initial(self) -> tuple[Tensor, ...]:
        parts = self._step.initial_state(1)
        return parts[:-1] if self._step.sees_reward else parts

    # Writing

    def array(self, values: Any, kind: str = "float") -> str:
        """A constant array; its name."""
        name = f"a{len(self._arrays)}"
        numbers = [float(each) for each in np.ravel(values.detach().numpy() if isinstance(values, Tensor) else values)]
        suffix = "f" if kind == "float" else ""
        lines = [
            ", ".join(f"{each:.17g}{suffix}" if "e" in (text := f"{each:.17g}") or "." in text else f"{text}.0{suffix}"
                      for each in numbers[i : i + 8])
            for i in range(0, len(numbers), 8)
        ]  # fmt: skip
        joined = ",\n    ".join(lines)
        self._arrays.append(f"static const {kind} {name}[{len(numbers)}] = {{\n    {joined}}};")
        return name

    def use(self, helper: str) -> None:
        if helper not in self._helpers:
            self._helpers.append(helper)

    def write(self, *lines: str) -> None:
        self._body += lines

    def room(self, size: int) -> str:
        name = f"v{sum('float v' in line for line in self._body)}"
        self.write(f"float {name}[{size}];")
        return name

    def each(self, size: int, statement: str) -> None:
        self.write(f"for (int i = 0; i < {size}; i++) {statement}")

    def affine(self, weight: Tensor, bias: Tensor | None, x: str) -> str:
        """W x + b"""
        rows, columns = weight.shape
        y = self.room(rows)
        self.use("add")
        if bias is None:
            self.each(rows, f"{y}[i] = 0.0f;")
        else:
            self.write(f"memcpy({y}, {self.array(bias)}, sizeof {y});")
        self.write(f"add({self.array(weight)}, {x}, {rows}, {columns}, {y});")
        return y

    # Parts of a step

    def _observed(self) -> str:
        """What the memory reads."""
        step = self._step
        inside = _encodings(step.observation_space)
        n_previous = sizes_of(step)[1]
        start = n_previous > 0 and step.sees_start
        size = sum(n or 1 for n, _ in inside) + (n_previous + 1 + start if n_previous else 0)
        seen, at = self.room(size), 0
        for place, (n, first) in enumerate(inside):
            if not n:
                self.write(f"{seen}[{at}] = observation[{place}];")
            else:
                self.write(
                    f"for (int i = 0; i < {n}; i++) {seen}[{at} + i] = i == (int)observation[{place}] - ({first});"
                )
            at += n or 1
        if n_previous:
            self.each(n_previous, f"{seen}[{at} + i] = state->starts ? 0.0f : state->previous[i];")
            self.write(f"{seen}[{at + n_previous}] = state->starts ? 0.0f : reward;")
            if start:
                self.write(f"{seen}[{at + n_previous + 1}] = (float)state->starts;")
        moments = step.moments("")
        if moments is not None:
            mean, deviation, limit = moments
            mean_name, deviation_name = self.array(mean, "double"), self.array(deviation, "double")
            scaled = (
                f"(float)fmax(fmin(((double){seen}[i] - {mean_name}[i]) / {deviation_name}[i], {limit!r}), -{limit!r})"
            )
            self.each(size, f"{seen}[i] = {scaled};")
        self._n_outputs = size
        return seen

    def _dense(self, network: nn.Module, x: str) -> str:
        for layer in network if isinstance(network, nn.Sequential) else [network]:
            if type(layer) is nn.Linear:
                x, self._n_outputs = self.affine(layer.weight, layer.bias, x), layer.out_features
            elif type(layer) in ACTIVATIONS:
                self.each(self._n_outputs, f"{x}[i] = {ACTIVATIONS[type(layer)].format(f'{x}[i]')};")
            else:
                raise ExportError(f"{type(layer).__name__} has no form in C: export it as .onnx")
        return x

    def _act(self, output: str) -> None:
        """Distribution, action and what of it is seen at the next step."""
        space, n = self._step.action_space, self._n_outputs
        self.each(n, f"distribution[i] = {output}[i];")
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            self.use("best")
            at = 0
            for place, (size, first) in enumerate(_encodings(space)):
                self.write(f"action[{place}] = best({output} + {at}, {size}) + ({first});")
                at += size
        elif isinstance(space, spaces.MultiBinary):
            self.each(n, f"action[i] = {output}[i] > 0.0f;")
        else:
            low, high = self.array(np.ravel(space.low)), self.array(np.ravel(space.high))
            if self._step.policy.squash_output:
                self.each(n, f"{output}[i] = {low}[i] + 0.5f * ({output}[i] + 1.0f) * ({high}[i] - {low}[i]);")
            self.each(n, f"action[i] = fminf(fmaxf({output}[i], {low}[i]), {high}[i]);")
        if not self._step.sees_reward:
            return
        at = 0
        for place, (size, first) in enumerate(_encodings(space)):
            if size:
                chosen = f"i == (int)action[{place}] - ({first})"
                self.each(size, f"state->previous[{at} + i] = {chosen};")
            else:
                self.write(f"state->previous[{at}] = (float)action[{place}];")
            at += size or 1


ACTIVATIONS: dict[type[nn.Module], str] = {nn.Tanh: "tanhf({0})", nn.ReLU: "fmaxf({0}, 0.0f)"}


def _none(source: _Source, memory: NoMemory, x: str) -> str:
    return x


def _recurrent(source: _Source, memory: Any, x: str) -> str:
    """Layers of LSTM, GRU and RNN, one on the other."""
    depth, size = memory.num_layers, memory.hidden_size
    if not isinstance(memory, RNN):
        source.use("sigmoid")
    for layer in range(depth):
        w_ih, w_hh, b_ih, b_hh = memory.layer_parameters(layer)
        h = f"(state->memory + {layer * size})"
        given, recurrent = source.affine(w_ih, b_ih, x), source.affine(w_hh, b_hh, h)
        x = h
        if isinstance(memory, LSTM):
            source.each(4 * size, f"{given}[i] += {recurrent}[i];")
            gate = [f"{given}[{k * size} + i]" for k in range(4)]
            c = f"state->memory[{(depth + layer) * size} + i]"
            source.each(size, f"{c} = sigmoid({gate[1]}) * {c} + sigmoid({gate[0]}) * tanhf({gate[2]});")
            source.each(size, f"{h}[i] = sigmoid({gate[3]}) * tanhf({c});")
        elif isinstance(memory, GRU):
            r, z, n = (f"{given}[{k * size} + i]" for k in range(3))
            of_h = [f"{recurrent}[{k * size} + i]" for k in range(3)]
            source.each(size, f"{z} = sigmoid({z} + {of_h[1]});")
            source.each(size, f"{n} = tanhf({n} + sigmoid({r} + {of_h[0]}) * {of_h[2]});")
            source.each(size, f"{h}[i] = (1.0f - {z}) * {n} + {z} * {h}[i];")
        else:
            total = f"{given}[i] + {recurrent}[i]"
            source.each(
                size, f"{h}[i] = {f'tanhf({total})' if memory.nonlinearity == 'tanh' else f'fmaxf({total}, 0.0f)'};"
            )
    return x


def _min_gru(source: _Source, memory: MinGRU, x: str) -> str:
    size = memory.hidden_size
    for helper in ("sigmoid", "normalize"):
        source.use(helper)
    stream = source.affine(memory.embedding.weight, memory.embedding.bias, x)
    for number, layer in enumerate(memory.layers):
        normalized, h = source.room(size), f"state->memory[{number * size} + i]"
        source.write(f"normalize({stream}, {size}, {normalized});")
        gates = source.affine(layer.gates.weight, layer.gates.bias, normalized)
        z, n = f"sigmoid({gates}[i])", f"{gates}[{size} + i]"
        candidate = f"({n} >= 0.0f ? {n} + 0.5f : sigmoid({n}))"
        source.each(size, f"{h} += {z} * ({candidate} - {h});")
        output = source.affine(layer.output.weight, layer.output.bias, f"(state->memory + {number * size})")
        source.each(size, f"{stream}[i] += {output}[i] * sigmoid({output}[{size} + i]);")
    return stream


def _traces(source: _Source, memory: FastForgetful, x: str, at: int = 0) -> str:
    """Layers of FFM; their states begin at this number of the memory's."""
    size = memory.hidden_size
    for helper in ("sigmoid", "normalize"):
        source.use(helper)
    stream = source.affine(memory.embedding.weight, memory.embedding.bias, x)
    for layer in memory.layers:
        normalized, read, decays = source.room(size), source.room(size), layer.decays()
        n_traces, n_contexts, n_state = len(layer.alpha), len(layer.omega), decays.numel()
        source.write(f"normalize({stream}, {size}, {normalized});")
        seen = source.affine(layer.inputs.weight, layer.inputs.bias, normalized)
        source.each(n_traces, f"{seen}[i] *= sigmoid({seen}[{n_traces} + i]);")
        a, state = source.array(decays), f"state->memory[{at} + 2 * i]"
        turned = f"{a}[2 * i] * s[1] + {a}[2 * i + 1] * s[0]"
        shrunk = f"{a}[2 * i] * s[0] - {a}[2 * i + 1] * s[1] + {seen}[i / {n_contexts}]"
        source.each(
            n_state // 2, f"{{ float *s = &{state}; const float turned = {turned}; s[0] = {shrunk}; s[1] = turned; }}"
        )
        gates = source.affine(layer.gates.weight, layer.gates.bias, normalized)
        joined = source.affine(layer.readout.weight, layer.readout.bias, f"(state->memory + {at})")
        source.write(f"normalize({joined}, {size}, {read});")
        passed, gate = f"{gates}[i]", f"sigmoid({gates}[{size} + i])"
        source.each(size, f"{stream}[i] += {passed} + {gate} * ({read}[i] - {passed});")
        at += n_state
    return stream


def _hybrid(source: _Source, memory: Hybrid, x: str) -> str:
    size = memory.hidden_size
    kept = _recurrent(source, memory.gated, x)
    seen = _traces(source, memory.traces, x, at=memory.gated.carried_parts * size)
    both = source.room(2 * size)
    source.write(f"memcpy({both}, {kept}, {size} * sizeof(float));")
    source.write(f"memcpy({both} + {size}, {seen}, {size} * sizeof(float));")
    return both


MEMORIES: dict[type[Any], Callable[[_Source, Any, str], str]] = {
    NoMemory: _none,
    RNN: _recurrent,
    LSTM: _recurrent,
    GRU: _recurrent,
    MinGRU: _min_gru,
    FastForgetful: _traces,
    Hybrid: _hybrid,
}


def sizes_of(step: AgentStep) -> tuple[int, int]:
    """Numbers that the memory carries, and those of the last action."""
    parts = [part[0].numel() for part in step.initial_state(1)]
    return (sum(parts[:-1]), parts[-1]) if step.sees_reward else (sum(parts), 0)


def _encodings(space: Any) -> list[tuple[int, int]]:
    """Of each number of the space's values: how many choices it stands for, and their first; 0 for a plain number."""
    if isinstance(space, spaces.Discrete):
        return [(int(space.n), int(space.start))]
    if isinstance(space, spaces.MultiDiscrete):
        return list(zip(np.ravel(space.nvec).tolist(), np.ravel(space.start).tolist(), strict=True))
    return [(0, 0)] * int(np.prod(space.shape))


def compiled(step: AgentStep, source: str) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    """The file compiled, run on arrays as :class:`agents.deploy.step.AgentStep` is on tensors.

    Raises:
        ExportError: there is no C compiler, or it does not take the file.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise ExportError("the C file could not be checked: no C compiler (cc) was found; install one")
    with tempfile.TemporaryDirectory() as folder:
        file, library = pathlib.Path(folder) / "policy.c", pathlib.Path(folder) / "policy.so"
        file.write_text(source)
        done = subprocess.run(
            [compiler, *FLAGS, str(file), "-o", str(library), "-lm"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ExportError(f"{compiler} does not take the C file: {done.stderr.strip()[-500:]}")
        loaded = ctypes.CDLL(str(library))
    return _Compiled(step, loaded)


class _Compiled:
    """Plays several agents with the C file, one after the other."""

    def __init__(self, step: AgentStep, library: Any) -> None:
        self._step, self._library = step, library
        n_state, n_previous = sizes_of(step)

        class State(ctypes.Structure):
            _fields_ = (
                ("memory", ctypes.c_float * max(n_state, 1)),
                ("previous", ctypes.c_float * max(n_previous, 1)),
                ("starts", ctypes.c_int32),
            )

        self._state: Any = State
        self._states: list[Any] = []

    def __call__(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        observations, starts = inputs[0], inputs[-1]
        if len(self._states) != len(starts):
            self._states = [self._state() for _ in starts]
        rewards = inputs[1] if self._step.sees_reward else [None] * len(starts)
        rows = [
            self._one(state, observation, reward, bool(start))
            for state, observation, reward, start in zip(self._states, observations, rewards, starts, strict=True)
        ]
        return [np.stack(parts) for parts in zip(*rows, strict=True)]

    def _one(self, state: Any, observation: NDArray[Any], reward: Any, start: bool) -> list[NDArray[Any]]:
        if start:
            self._library.policy_reset(ctypes.byref(state))
        seen = np.ascontiguousarray(observation, np.float32).ravel()
        space = self._step.action_space
        is_box = isinstance(space, spaces.Box)
        action = np.zeros(space.shape or (1,), np.float32 if is_box else np.int32)
        distribution = np.zeros(self._step.policy.head.n_outputs, np.float32)
        arguments = [ctypes.byref(state), ctypes.c_void_p(seen.ctypes.data)]
        arguments += [ctypes.c_float(reward)] if self._step.sees_reward else []
        self._library.policy_step(
            *arguments, ctypes.c_void_p(action.ctypes.data), ctypes.c_void_p(distribution.ctypes.data)
        )
        shown = [distribution, self._step.policy.log_std.detach().numpy()] if is_box else [distribution]
        carried, at, parts = np.array(state.memory), 0, []
        for part in self._step.initial_state(1)[: -1 if self._step.sees_reward else None]:
            parts.append(carried[at : at + part.numel()].reshape(part.shape[1:]))
            at += part.numel()
        parts += [np.array(state.previous)] if self._step.sees_reward else []
        return [action if space.shape else action[0], *shown, *parts]
