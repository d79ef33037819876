"""How fast memories go through sequences with resets (learning), and through one step (acting).

    python benchmarks/memory.py unroll --memory lstm gru --units 64 --sequences 2 8 --mean-episode 20 100
    python benchmarks/memory.py step
    python benchmarks/memory.py scan
    python benchmarks/memory.py encoder
    python benchmarks/memory.py codes

Learning, forward and backward through (T, B) steps, against other ways to the same result:

- ``limit``: one call of torch's layer that knows no resets; what is lost to resets is ours / limit;
- ``loop``: torch's layer step by step, the state masked where an episode starts, as sb3-contrib and CleanRL do it;
- ``padded``: episode segments, padded to the longest and run as a batch in one call of torch's layer.

Linear recurrences (minGRU, LRU, FFM, hybrid): an iteration by ``train.py``'s defaults, with the scan compiled and in
torch, and with FFM's inputs spread out to complex numbers.

Encoders: the same, acting in NumPy behind an encoder of torch's, and acting in torch; grids of codes, equal ones
encoded once, and each for itself.

The ways take turns, so that what slows the machine for a while slows all; printed are medians in milliseconds
and, since absolute times depend on the machine, ratios of medians.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from unittest import mock

import numpy as np
import torch
import tyro
from measuring import medians_in_turn
from records import agent_of
from torch import Tensor, nn

from agents.algorithms import on_policy
from agents.encoders import codes
from agents.kernels import recurrent, scan
from agents.memory import Memory, make_memory
from agents.rollout.actor import TorchActor

Way = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """Speed of memories."""

    what: Annotated[Literal["unroll", "step", "scan", "encoder", "codes"], tyro.conf.Positional]
    """Learning, acting, or an iteration with a linear recurrence or with an encoder."""
    memory: tuple[Literal["lstm", "gru", "rnn"], ...] = ("lstm", "gru", "rnn")
    """Memories."""
    units: tuple[int, ...] = (64, 256)
    """Hidden units."""
    sequences: tuple[int, ...] = (2, 8, 32)
    """B; environments for step."""
    steps: int = 128
    """T."""
    mean_episode: tuple[int, ...] = (10, 20, 100, 500)
    """Mean steps of an episode."""
    against: tuple[Literal["limit", "loop", "padded"], ...] = ("limit", "loop", "padded")
    """The ways to compare with."""
    repeats: int = 7
    """Turns of each way."""
    threads: int = 1
    """Threads of torch."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu if other work is running."""
    portable: bool = False
    """Without the compiled kernels."""


def main(settings: Settings) -> None:
    recurrent.available = recurrent.available and not settings.portable
    torch.set_num_threads(settings.threads)
    times = {
        "unroll": time_unrolls,
        "step": time_steps,
        "scan": time_scans,
        "encoder": time_encoders,
        "codes": time_codes,
    }
    times[settings.what](settings)


def time_unrolls(settings: Settings) -> None:
    kernels = "compiled kernels" if recurrent.available else "no compiled kernels"
    print(f"forward + backward, T = {settings.steps}, {settings.threads} thread(s), {kernels}, ms (ratio to ours)")
    print(f"{'memory':8}{'units':>6}{'B':>4}{'mean':>6}{'ours':>9}" + "".join(f"{way:>17}" for way in settings.against))
    cases = itertools.product(settings.memory, settings.units, settings.sequences, settings.mean_episode)
    for memory, units, sequences, mean in cases:
        ways = ways_through(memory, units, settings.steps, sequences, mean)
        medians = milliseconds({name: ways[name] for name in ("ours", *settings.against)}, settings)
        row = "".join(f"{medians[way]:9.2f} ({medians[way] / medians['ours']:5.2f})" for way in settings.against)
        print(f"{memory:8}{units:6}{sequences:4}{mean:6}{medians['ours']:9.2f}{row}", flush=True)


def time_steps(settings: Settings) -> None:
    print("one acting step, microseconds")
    print(f"{'memory':8}{'units':>6}{'B':>4}{'numpy_step':>12}{'step':>8}{'ratio':>7}")
    for memory_name, units, n_envs in itertools.product(settings.memory, settings.units, settings.sequences):
        memory = make_memory(memory_name, units, {"hidden_size": units})
        ways = {"numpy_step": numpy_steps(memory, n_envs), "step": torch_steps(memory, n_envs)}
        medians = milliseconds(ways, settings)
        ours, eager = (1000 * medians[way] / STEPS_IN_TURN for way in ("numpy_step", "step"))
        print(f"{memory_name:8}{units:6}{n_envs:4}{ours:12.1f}{eager:8.1f}{eager / ours:7.2f}", flush=True)


def time_scans(settings: Settings) -> None:
    print("an iteration on CartPoleNoVel-v1, ms: compiled, in torch, ratio")
    words = ["--env.id", "CartPoleNoVel-v1", "--policy.memory"]
    for memory in ("mingru", "lru", "ffm", "hybrid"):
        print_with_and_without(memory, [*words, memory], (scan, "available"), False, settings)
    print("the same: traces of real inputs, of as many complex ones, ratio")
    for memory in ("ffm", "hybrid"):
        print_with_and_without(memory, [*words, memory], (scan, "takes_traces"), lambda *_: False, settings)


def time_encoders(settings: Settings) -> None:
    print("an iteration, ms: acting in NumPy, in torch, ratio")
    for id in ("Battleship-v0", "PacketRouting-v0", "GraphSearch-v0"):
        words = ["--env.id", id, "--policy.memory", "lstm"]
        print_with_and_without(id, words, (on_policy, "make_actor"), acting_in_torch, settings)


def time_codes(settings: Settings) -> None:
    print("an iteration, ms: equal grids encoded once, each for itself, ratio")
    for id in ("MiniGrid-MemoryS9-v0", "MiniGrid-DoorKey-8x8-v0"):
        words = ["--env.id", id, "--env.wrappers", "minigrid.wrappers:ImgObsWrapper", "--policy.memory", "lstm"]
        print_with_and_without(id, words, (codes, "MOST_DISTINCT"), 0.0, settings)


def print_with_and_without(label: str, words: list[str], of: tuple[Any, str], other: Any, settings: Settings) -> None:
    """Iterations of ``train.py`` with these words, with what a module has under a name and with another value."""
    ways = {"with": iterations(words, *of, getattr(*of)), "without": iterations(words, *of, other)}
    medians = milliseconds(ways, settings)
    ratio = medians["without"] / medians["with"]
    print(f"{label:26}{medians['with']:10.1f}{medians['without']:10.1f}{ratio:7.2f}", flush=True)


def acting_in_torch(policy: Any, rng: Any, forward: Any, noise: Any) -> TorchActor:
    return TorchActor(policy, forward, noise)


def iterations(words: Sequence[str], module: Any, name: str, value: Any) -> Way:
    """Iterations of ``train.py`` with these words, in which something of a module has another value."""
    model, _ = agent_of([*words, "--total-timesteps", "100000000"])

    def run() -> None:
        with mock.patch.object(module, name, value):
            model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)

    return run


def milliseconds(ways: dict[str, Way], settings: Settings) -> dict[str, float]:
    clock = time.perf_counter if settings.clock == "wall" else time.process_time
    return {name: 1000 * seconds for name, seconds in medians_in_turn(ways, settings.repeats, clock).items()}


STEPS_IN_TURN = 300


def numpy_steps(memory: Memory, n_envs: int) -> Way:
    step = memory.numpy_step()
    assert step is not None
    features = np.random.default_rng(0).normal(size=(n_envs, memory.input_size)).astype(np.float32)
    starts = np.zeros(n_envs, dtype=np.bool_)

    def run() -> None:
        state = tuple(part.numpy() for part in memory.initial_state(n_envs))
        for _ in range(STEPS_IN_TURN):
            _, state = step(features, state, starts)

    return run


def torch_steps(memory: Memory, n_envs: int) -> Way:
    features, starts = torch.randn(n_envs, memory.input_size), torch.zeros(n_envs, dtype=torch.bool)

    def run() -> None:
        state = memory.initial_state(n_envs)
        with torch.no_grad():
            for _ in range(STEPS_IN_TURN):
                _, state = memory.step(features, state, starts)

    return run


def ways_through(memory_name: str, units: int, n_steps: int, n_sequences: int, mean_episode: int) -> dict[str, Way]:
    """Each way once forward and backward: gradients of features and parameters for given gradients of the output."""
    torch.manual_seed(0)
    memory = make_memory(memory_name, units, {"hidden_size": units})
    layer: nn.RNNBase = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[memory_name](units, units)
    layer.load_state_dict(memory.state_dict())
    starts = torch.rand(n_steps, n_sequences) < 1 / mean_episode
    features = torch.randn(n_steps, n_sequences, units, requires_grad=True)
    gradient = torch.randn(n_steps, n_sequences, units)

    def with_gradients(forward: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Way:
        return lambda: torch.autograd.grad(forward(), [features, *parameters], gradient)

    ours = list(memory.parameters())
    theirs = list(layer.parameters())
    initial = memory.initial_state(n_sequences)
    return {
        "ours": with_gradients(lambda: memory.unroll(features, initial, starts), ours),
        "limit": with_gradients(lambda: layer(features)[0], theirs),
        "loop": with_gradients(lambda: step_by_step(layer, features, starts), theirs),
        "padded": with_gradients(lambda: padded(layer, features, starts), theirs),
    }


def step_by_step(layer: nn.RNNBase, features: Tensor, starts: Tensor) -> Tensor:
    is_lstm = isinstance(layer, nn.LSTM)
    parts = tuple(torch.zeros(1, features.shape[1], layer.hidden_size) for _ in range(2 if is_lstm else 1))
    outputs = []
    for x, start in zip(features.unsqueeze(1), starts, strict=True):
        keep = (~start).float().view(1, -1, 1)
        parts = tuple(keep * part for part in parts)
        output, after = layer(x, parts if is_lstm else parts[0])
        parts = after if is_lstm else (after,)
        outputs.append(output)
    return torch.cat(outputs)


def padded(layer: nn.RNNBase, features: Tensor, starts: Tensor) -> Tensor:
    """The episode segments of a block that starts from zero states."""
    n_steps, n_sequences = starts.shape
    first = starts.T.numpy().copy()
    first[:, 0] = True
    begin = np.flatnonzero(first)
    lengths = np.diff(begin, append=first.size)
    within = np.arange(lengths.max())[:, None]
    valid = torch.from_numpy(within < lengths)
    steps = torch.from_numpy(np.minimum(begin + within, first.size - 1))
    outputs = layer(features.transpose(0, 1).flatten(0, 1)[steps])[0]
    by_sequence: Tensor = outputs.transpose(0, 1)[valid.T]
    return by_sequence.view(n_sequences, n_steps, -1).transpose(0, 1)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
