"""What is measured: tasks, networks, sizes. Every contender of a case gets the same.

Axes: B environments, T steps of a rollout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

import envs
from envs.tasks.control import CartPole

Critic = Literal["separate", "detached", "shared"]
EPISODE = 500  # steps of an unbroken CartPole episode
ENDLESS = "benchmarks/EndlessCartPole-v0"


@dataclass(frozen=True)
class Network:
    """An LSTM behind the observation and layers of tanh between it and the outputs.

    ``critic``: ``"separate"`` has an LSTM of its own (sb3-contrib's default), ``"detached"`` reads the actor's without
    shaping it (sb3-contrib's ``shared_lstm``), ``"shared"`` reads and shapes it (CleanRL, PufferLib).
    """

    hidden: int = 64
    critic: Critic = "separate"
    heads: tuple[int, ...] = (64, 64)


@dataclass(frozen=True)
class Case:
    """One row of the table: a task, a network and the sizes of rollout and update."""

    name: str
    task: str
    network: Network
    contenders: tuple[str, ...]
    n_envs: int = 8
    n_steps: int = 128
    batch_size: int = 256
    n_epochs: int = 4
    algorithm: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)

    @property
    def rollout(self) -> int:
        """Environment steps of one iteration."""
        return self.n_envs * self.n_steps

    @property
    def n_minibatches(self) -> int:
        return self.rollout // self.batch_size


class HideVelocities(gym.ObservationWrapper[Any, Any, Any]):
    """Zeroes the velocities, as RL Baselines3 Zoo does and users do."""

    def __init__(self, env: gym.Env[Any, Any], velocities: Sequence[int]) -> None:
        super().__init__(env)
        self._mask = np.ones(env.observation_space.shape or (), np.float32)
        self._mask[list(velocities)] = 0

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return observation * self._mask


class Endless(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole whose pole never ends an episode, so that any policy has a trained one's episodes of 500 steps.

    The dynamics cost what they always do. The first episode starts at step ``already`` of 500, so that the episodes of
    several environments end at different times, as they do in training.
    """

    def __init__(self, env: gym.Env[Any, Any], already: int) -> None:
        super().__init__(env)
        cart_pole: Any = env.unwrapped
        cart_pole.x_threshold = cart_pole.theta_threshold_radians = np.inf
        self._already = already

    def reset(self, **kwargs: Any) -> Any:
        result = self.env.reset(**kwargs)
        self.env.set_wrapper_attr("_elapsed_steps", self._already)
        self._already = 0
        return result


class EndlessCartPole(CartPole):
    """The same for the NumPy-vectorized CartPole: every episode has exactly ``max_episode_steps`` steps."""

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        self._limits[:] = np.inf
        self._first = True

    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**kwargs)
        if self._first and self.max_episode_steps is not None:
            self._started_at -= already_taken(self.num_envs, self.max_episode_steps)
            self._limit_from = 0
            self._first = False
        return result


if ENDLESS not in gym.registry:
    gym.register(ENDLESS, vector_entry_point=EndlessCartPole, max_episode_steps=EPISODE)


def already_taken(n_envs: int, episode: int = EPISODE) -> NDArray[np.int64]:
    """(B,) steps of the first episode that count as taken, spread evenly over an episode."""
    return np.arange(n_envs) * episode // n_envs


def gymnasium_envs(case: Case) -> list[Callable[[], gym.Env[Any, Any]]]:
    """The case's environments the ordinary way: gymnasium's own classes, one object each, velocities hidden."""

    def make(already: int) -> gym.Env[Any, Any]:
        if case.task == "pendulum":
            return HideVelocities(gym.make("Pendulum-v1"), [2])
        env: gym.Env[Any, Any] = gym.make("CartPole-v1")
        return HideVelocities(env if case.task == "early" else Endless(env, already), [1, 3])

    return [lambda already=int(steps): make(already) for steps in already_taken(case.n_envs)]  # type: ignore[misc]


def usual_env(case: Case, seed: int = 0) -> VecEnv:
    """What a user of sb3-contrib trains on: ``DummyVecEnv`` over ``Monitor`` over the masked environment."""
    env = DummyVecEnv([lambda make=make: Monitor(make()) for make in gymnasium_envs(case)])  # type: ignore[misc]
    env.seed(seed)
    return env


def fast_env(case: Case, seed: int = 0) -> VecEnv:
    """Our NumPy-vectorized environment of the same dynamics."""
    ids = {"early": "CartPoleNoVel-v1", "late": ENDLESS, "pendulum": "PendulumNoVel-v1"}
    return envs.make(ids[case.task], case.n_envs, seed=seed)


# RL Baselines3 Zoo's settings of ppo_lstm for PendulumNoVel-v1 (hyperparams/ppo_lstm.yml).
ZOO_PENDULUM: dict[str, Any] = dict(
    n_envs=4,
    n_steps=1024,
    batch_size=128,
    n_epochs=10,
    algorithm=dict(gamma=0.9, gae_lambda=0.95, use_sde=True, sde_sample_freq=4),
    policy=dict(ortho_init=False, activation_fn=nn.ReLU),
)

SB3 = ("sb3-contrib", "sb3-contrib, loop removed", "sb3-contrib, fast env", "RecuRL, same env", "RecuRL")
ONE_LSTM = ("CleanRL loop", "PufferLib", "Sample Factory", "RecuRL, same env", "RecuRL")
TWO_LSTMS = ("rsl_rl", "skrl", "RecuRL, same env", "RecuRL")


def all_cases() -> list[Case]:
    """Every row, cheapest first."""
    cases = [
        _cart_pole(task, n_envs, hidden, critic, (64, 64), SB3)
        for n_envs in (8, 32)
        for hidden in (64, 256)
        for critic in ("separate", "detached")
        for task in ("early", "late")
    ]
    cases += [
        Case(
            f"sb3-contrib's defaults, 8 environments, 256 units, separate, {task}",
            task,
            Network(256, "separate"),
            SB3,
            batch_size=128,
            n_epochs=10,
        )
        for task in ("early", "late")
    ]
    cases += [Case("Pendulum, RL Zoo's settings", "pendulum", Network(64, "separate", (64,)), SB3, **ZOO_PENDULUM)]
    for n_envs in (8, 32):
        for task in ("early", "late"):
            cases += [
                _cart_pole(task, n_envs, hidden, "shared", (), ONE_LSTM if hidden == 64 else _WITHOUT_CLEANRL)
                for hidden in (64, 256)
            ]
            cases.append(_cart_pole(task, n_envs, 64, "separate", (64, 64), TWO_LSTMS, suffix=", peers"))
    return cases


_WITHOUT_CLEANRL = tuple(name for name in ONE_LSTM if name != "CleanRL loop")


def _cart_pole(
    task: str,
    n_envs: int,
    hidden: int,
    critic: Any,
    heads: tuple[int, ...],
    contenders: tuple[str, ...],
    suffix: str = "",
) -> Case:
    name = f"{n_envs} environments, {hidden} units, {critic}, {task}{suffix}"
    # Four minibatches, whatever the number of environments.
    return Case(name, task, Network(hidden, critic, heads), contenders, n_envs=n_envs, batch_size=n_envs * 128 // 4)
