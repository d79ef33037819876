"""Who is measured: every contender trains the network of a case and says what its iterations took.

The learning rate is 0 everywhere: all is computed, optimizer included, and no weight moves, so that every iteration of
a contender meets the same kind of episodes.
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import sb3_contrib
import torch
from cases import Case, fast_env, usual_env
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

import agents


class Seconds(NamedTuple):
    """What some iterations took: in all, collecting rollouts, updating."""

    whole: float
    collecting: float
    training: float


class Contender(Protocol):
    """Something that trains."""

    def iterate(self, n_iterations: int) -> Seconds:
        """Collects a rollout and updates, ``n_iterations`` times."""


class Unavailable(Exception):
    """A contender that cannot be had here; the message is what the table reports."""


class Sb3Contender:
    """A Stable-Baselines3 on-policy algorithm, its ``collect_rollouts`` and ``train`` timed inside ``learn``."""

    def __init__(self, model: OnPolicyAlgorithm) -> None:
        self._model = model
        self._collecting, self._training = Stopwatch(), Stopwatch()
        model.collect_rollouts = self._collecting.timed(model.collect_rollouts)  # type: ignore[method-assign]
        model.train = self._training.timed(model.train)  # type: ignore[method-assign]
        self._first = True

    def iterate(self, n_iterations: int) -> Seconds:
        steps = n_iterations * self._model.n_steps * self._model.n_envs
        self._collecting.reset()
        self._training.reset()
        start = time.perf_counter()
        self._model.learn(steps, reset_num_timesteps=self._first)
        self._first = False
        return Seconds(time.perf_counter() - start, self._collecting.seconds, self._training.seconds)


class Stopwatch:
    """Adds up the seconds spent inside a function or a block."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def reset(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Any:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return function(*args, **kwargs)

        return run

    def timed_method(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The same for a function that is to be bound to objects."""

        def run(bound: Any, *args: Any, **kwargs: Any) -> Any:
            with self.running():
                return method(bound, *args, **kwargs)

        return run


class FusedContribPolicy(RecurrentActorCriticPolicy):
    """sb3-contrib's policy without its loop over time, which its own buffer makes needless.

    The buffer cuts at every episode's start, so within a padded sequence only the first step can start an episode: the
    initial state is masked there and the sequence takes one fused call.
    """

    @staticmethod
    def _process_sequence(  # type: ignore[override]
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: nn.LSTM
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        n_sequences = lstm_states[0].shape[1]
        sequence = features.reshape(n_sequences, -1, lstm.input_size).swapaxes(0, 1)
        alive = (1.0 - episode_starts.reshape(n_sequences, -1)[:, 0]).view(1, n_sequences, 1)
        output, states = lstm(sequence, (alive * lstm_states[0], alive * lstm_states[1]))
        return output.transpose(0, 1).flatten(0, 1), states


def contrib(case: Case, policy: Any, env: VecEnv) -> Contender:
    return Sb3Contender(sb3_contrib.RecurrentPPO(policy, env, policy_kwargs=_lstm(case), **_settings(case)))


def recurl(case: Case, env: VecEnv) -> Contender:
    """Ours by the policy name that sb3-contrib's users write, or by the general one where theirs has no such critic."""
    if case.network.critic != "shared":
        return Sb3Contender(agents.RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=_lstm(case), **_settings(case)))
    policy_kwargs = dict(memory="lstm", memory_kwargs=dict(hidden_size=case.network.hidden), **_heads(case))
    return Sb3Contender(agents.RecurrentPPO("RecurrentPolicy", env, policy_kwargs=policy_kwargs, **_settings(case)))


def _lstm(case: Case) -> dict[str, Any]:
    critic = case.network.critic
    if critic == "shared":
        raise Unavailable("its critic cannot shape the actor's LSTM")
    return dict(
        lstm_hidden_size=case.network.hidden,
        shared_lstm=critic == "detached",
        enable_critic_lstm=critic == "separate",
        **_heads(case),
    )


def _heads(case: Case) -> dict[str, Any]:
    widths = list(case.network.heads)
    return dict(net_arch=dict(pi=widths, vf=widths), **case.policy)


def _settings(case: Case) -> dict[str, Any]:
    return dict(
        learning_rate=0.0,
        n_steps=case.n_steps,
        batch_size=case.batch_size,
        n_epochs=case.n_epochs,
        seed=0,
        device="cpu",
        **case.algorithm,
    )


def build(name: str, case: Case) -> Contender:
    """A contender by name.

    Raises:
        Unavailable: it cannot be had here, with the reason.
    """
    torch.manual_seed(0)
    return CONTENDERS[name](case)


def _peer(name: str) -> Callable[[Case], Contender]:
    """A peer that is imported only when asked for, and whose absence is reported."""

    def make(case: Case) -> Contender:
        import peers

        contender: Contender = getattr(peers, name)(case)
        return contender

    return make


CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    "sb3-contrib": lambda case: contrib(case, "MlpLstmPolicy", usual_env(case)),
    "sb3-contrib, loop removed": lambda case: contrib(case, FusedContribPolicy, usual_env(case)),
    "sb3-contrib, fast env": lambda case: contrib(case, "MlpLstmPolicy", fast_env(case)),
    "CleanRL loop": _peer("CleanrlLoop"),
    "PufferLib": _peer("Pufferlib"),
    "rsl_rl": _peer("RslRl"),
    "skrl": _peer("Skrl"),
    "Sample Factory": _peer("SampleFactory"),
    "RecuRL, same env": lambda case: recurl(case, usual_env(case)),
    "RecuRL": lambda case: recurl(case, fast_env(case)),
}
