"""How many CPU threads torch should compute on: measured on the agent's own work before training starts.

    model = RecurrentPPO(...)
    torch.set_num_threads(choose_threads(model).threads)

Small networks are fastest on one thread, hundreds of units or images on several, and where other processes compute on
the same cores several threads wait for one another: only a measurement knows. On another number of threads sums are
taken in another order, and numbers may differ in their last bits.

Axes: L steps of a sequence, S sequences of a minibatch.
"""

import copy
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.checkpoint import undisturbed
from agents.distributed import group
from agents.rollout.buffer import number_of_minibatches
from envs.vector.cpus import available_cpus

WORTHWHILE = 1.15
"""How many times faster more threads must be to be taken: a core that gains less serves another process better."""

_TURNS = 2  # of each number of threads, alternating
_PASSES = 3  # timed in a turn, after one that is not: starting threads takes time once
_STARTING_THREADS = 0.02  # seconds


class ThreadChoice(NamedTuple):
    """The number of threads to take, and the milliseconds of a forward and backward pass on those that were tried."""

    threads: int
    milliseconds: dict[int, float]

    def __str__(self) -> str:
        tried = ", ".join(f"{n}: {ms:.1f} ms" for n, ms in self.milliseconds.items())
        measured = f", the best of a measured pass through a minibatch ({tried})" if tried else ""
        return f"{self.threads} thread(s){measured}"


def choose_threads(
    agent: RecurrentOnPolicyAlgorithm, *, limit: int | None = None, seconds: float = 0.8
) -> ThreadChoice:
    """Times a learning pass through a minibatch of made-up data on 1, 2, 4, ... threads, while more are clearly faster.

    Nothing of the agent or the process moves. On an accelerator it takes one thread, unmeasured.

    Args:
        limit: at most so many threads; None for ``available_cpus()``, or ``OMP_NUM_THREADS`` where that is less.
        seconds: what the measurement may take, roughly. A pass that is too long for it is timed on shorter sequences.

    Raises:
        ValueError: a limit below 1.
    """
    most = _most_threads() if limit is None else limit
    if most < 1:
        raise ValueError(f"limit must be at least 1 thread, or None for every CPU there is, not {limit}")
    if most == 1 or agent.device.type != "cpu":
        return ThreadChoice(1, {})
    numbers = [2**power for power in range(most.bit_length()) if 2**power < most] + [most]
    with undisturbed(), _restored(agent):
        torch.set_num_threads(1)
        try:
            one_pass = _affordable_pass(agent, seconds / (2 * (len(numbers) - 1) * _TURNS * (_PASSES + 1)))
        except Exception as error:
            reason = (
                f"the network fails on samples of its observation space ({type(error).__name__}: {error}), so that no "
                "number of threads could be measured: training on one; set the number of threads to choose another"
            )
            warnings.warn(reason, UserWarning, stacklevel=2)
            return ThreadChoice(1, {})
        return _climb(numbers, lambda n, patience: _time(one_pass, n, patience))


def _most_threads() -> int:
    """The CPUs there are for this process; fewer where OMP_NUM_THREADS says so (of a list, the first number counts)."""
    requested = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    own = max(1, available_cpus() // group.on_this_machine())
    return min(own, int(requested) if requested.isdigit() and int(requested) else own)


def _climb(numbers: list[int], times: Callable[[int, float], list[float]]) -> ThreadChoice:
    """Goes on to the next number of threads as long as it is clearly faster than the last.

    ``times(n, patience)``: seconds of passes on n threads, given up after ``patience`` seconds in all: threads that
    wait for a core others use can take a hundred times as long as one.
    """
    chosen = numbers[0]
    milliseconds: dict[int, float] = {}
    for higher in numbers[1:]:
        slow, fast = [], []
        for _ in range(_TURNS):
            slow += times(chosen, math.inf)
            fast += times(higher, max(3 * sum(slow), _STARTING_THREADS))
            now, then = statistics.median(slow), statistics.median(fast)
            if then > 2 * now:
                break
        milliseconds.setdefault(chosen, 1e3 * now)
        milliseconds[higher] = 1e3 * then
        if then * WORTHWHILE > now:
            break
        chosen = higher
    return ThreadChoice(chosen, milliseconds)


def _time(one_pass: Callable[[], None], threads: int, patience: float) -> list[float]:
    torch.set_num_threads(threads)
    taken: list[float] = []
    while len(taken) <= _PASSES:
        start = time.perf_counter()
        one_pass()
        taken.append(time.perf_counter() - start)
        if sum(taken) > patience:
            return taken
    return taken[1:]


def _affordable_pass(agent: RecurrentOnPolicyAlgorithm, seconds: float) -> Callable[[], None]:
    """A pass that takes no longer than ``seconds`` or so: of a full minibatch, or of a part of its steps."""
    length, n_sequences = minibatch_shape(agent)
    tried = min(length, 8)
    one_pass = _pass_through(agent, tried, n_sequences)
    one_pass()  # what is loaded and allocated once
    start = time.perf_counter()
    one_pass()
    affordable = int(tried * seconds / (time.perf_counter() - start))
    return _pass_through(agent, max(min(length, affordable), tried), n_sequences)


def minibatch_shape(agent: RecurrentOnPolicyAlgorithm) -> tuple[int, int]:
    """(L, S) of the minibatches the agent trains on."""
    length = agent.rollout_buffer.sequence_length
    n_sequences = agent.n_envs * (agent.n_steps // length)
    return length, -(-n_sequences // number_of_minibatches(n_sequences, length, agent.own_batch_size))


def _pass_through(agent: RecurrentOnPolicyAlgorithm, length: int, n_sequences: int) -> Callable[[], None]:
    """The policy's learning pass over an invented minibatch (L, S), gradients included and thrown away."""
    policy, shape = agent.policy, (length, n_sequences)
    sample = copy.deepcopy(policy.observation_space)  # sampling moves a space's random state
    sample.seed(0)
    observations = _repeated(sample.sample(), sample, shape)
    if policy.action_mask is not None:
        observations[policy.action_mask].fill_(1)
    actions = torch.zeros((*shape, *policy.head.shape), dtype=policy.head.dtype)
    state = policy.initial_state(n_sequences)
    # Episodes of a hundred steps that end at different times.
    starts = (torch.arange(length)[:, None] + torch.arange(n_sequences) * 100 // n_sequences) % 100 == 0
    learned = [parameter for parameter in policy.parameters() if parameter.requires_grad]

    def run() -> None:
        values, log_probs, entropy = policy.evaluate_actions(observations, actions, state, starts)
        loss = values.mean() + log_probs.mean() + (0 if entropy is None else entropy.mean())
        torch.autograd.grad(loss, learned, allow_unused=True)

    return run


def _repeated(sample: Any, space: spaces.Space[Any], shape: tuple[int, int]) -> Any:
    """One observation -> (L, S, ...), in the dtype that a buffer keeps."""
    if isinstance(space, spaces.Dict):
        return {key: _repeated(sample[key], part, shape) for key, part in space.spaces.items()}
    one = torch.as_tensor(np.asarray(sample))
    one = one.float() if one.dtype == torch.float64 else one
    return one.expand(*shape, *one.shape).contiguous()


@contextmanager
def _restored(agent: RecurrentOnPolicyAlgorithm) -> Iterator[None]:
    """Puts back the number of threads, and what a network counts as it is run (batch statistics)."""
    threads = torch.get_num_threads()
    states = [(buffer, buffer.clone()) for buffer in agent.policy.buffers()]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        with torch.no_grad():
            for buffer, kept in states:
                buffer.copy_(kept)
