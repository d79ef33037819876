"""Classic control without velocities, vectorised in NumPy.

    CartPoleNoVel-v1, PendulumNoVel-v1, MountainCarContinuousNoVel-v0, AcrobotNoVel-v1

The dynamics, rewards, bounds and start states are gymnasium's (an episode with seed s is gymnasium's with seed s), and
pictures are drawn by gymnasium's own environments. What differs is what is shown: as in RL Baselines3 Zoo, whose ids
these are, an entry that is a velocity is zero and the space is unchanged, so that results and models can be compared.
`remove_velocities=True` leaves those entries out instead.

Axes: N environments, R some of them ("rows").
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv as GymnasiumCartPole
from gymnasium.envs.classic_control import utils
from numpy.typing import NDArray

from envs.batch import METADATA as BATCH_METADATA
from envs.batch import BatchEnv, Rows, SingleEnv

METADATA = {**BATCH_METADATA, "render_modes": ["rgb_array"], "render_fps": 30}
CART_POLE_METADATA = {**METADATA, "render_fps": 50}


class Control(BatchEnv):
    """A classic control task of which only the `shown` entries of gymnasium's observation are seen."""

    metadata = METADATA
    shown: ClassVar[slice]

    def __init__(
        self,
        model: Any,
        num_envs: int,
        *,
        uniforms: int,
        max_episode_steps: int | None,
        render_mode: str | None,
        remove_velocities: bool,
    ) -> None:
        """`model`: gymnasium's environment, which says the spaces and the constants and draws the pictures."""
        space = model.observation_space
        if remove_velocities:
            space = spaces.Box(space.low[self.shown], space.high[self.shown], dtype=space.dtype)
        super().__init__(
            num_envs,
            space,
            model.action_space,
            uniforms=uniforms,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )
        self._model = model
        self._entries = slice(None) if remove_velocities else self.shown
        self._observations_shape = (num_envs, *space.shape)

    def _show(self, seen: NDArray[Any]) -> NDArray[np.float32]:
        """(shown entries, N) -> (N, entries) with zeros where the velocities are."""
        observations = np.zeros(self._observations_shape, np.float32)
        observations[:, self._entries] = seen.T
        return observations

    def _picture(self, row: int) -> NDArray[np.uint8]:
        self._pose(row)
        picture: NDArray[np.uint8] = self._model.render()
        return picture

    def _pose(self, row: int) -> None:
        """Put gymnasium's environment in the state of environment `row`."""
        raise NotImplementedError

    def close_extras(self, **kwargs: Any) -> None:
        self._model.close()


class CartPole(Control):
    """CartPoleNoVel-v1: balance a pole on a cart that is pushed left or right, seeing positions only.

    Observation, Box (4,) float32: 0 cart position, m, in [-4.8, 4.8]; 2 pole angle, rad, in [-0.42, 0.42]; 1 and 3, the
    velocities, are zero. With `remove_velocities`, Box (2,): position, angle.
    Actions, Discrete(2): 0 pushes left, 1 right, with 10 N for 0.02 s.
    Reward: 1 a step, the last included.
    Start: all four state entries uniform in [-0.05, 0.05] (reset options "low" and "high").
    End: terminated beyond 2.4 m or 12 degrees (0.2095 rad); truncated after 500 steps.
    Return: best 500. Without memory the velocity is unknown and the pole falls: see the table of measured returns in
    `MEMORYLESS_RETURNS`.
    """

    metadata = CART_POLE_METADATA
    shown = slice(0, None, 2)

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = 500,
        render_mode: str | None = None,
        remove_velocities: bool = False,
    ) -> None:
        model = GymnasiumCartPole(render_mode=render_mode)
        super().__init__(
            model,
            num_envs,
            uniforms=4,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            remove_velocities=remove_velocities,
        )
        # State and its rate of change, rows: position, velocity, angle, angular velocity.
        self._state = np.zeros((4, num_envs))
        self._change = np.zeros((4, num_envs))
        self._positions, self._velocities = self._state[0::2], self._state[1::2]
        self._limits = np.array([[model.x_threshold], [model.theta_threshold_radians]])
        # Constants as arrays: NumPy is half again as fast with them as with Python's numbers.
        mass, pull = model.total_mass, model.polemass_length / model.total_mass
        self._pushes = np.array([-model.force_mag, model.force_mag]) / mass
        self._pull, self._minus_pull = np.array(pull), np.array(-pull)
        self._gravity, self._interval = np.array(model.gravity), np.array(model.tau)
        self._inertia = np.array(model.length * 4.0 / 3.0)
        self._minus_coupling = np.array(-model.length * model.masspole / mass)
        self._cosine, self._sine, self._push, self._scratch = np.empty((4, num_envs))
        self._distances = np.empty((2, num_envs))
        self._beyond = np.empty((2, num_envs), dtype=np.bool_)
        self._ones = np.ones(num_envs, dtype=np.float32)

    def _begin(self, rows: Rows, uniforms: NDArray[np.float64], options: dict[str, Any]) -> None:
        low, high = utils.maybe_parse_reset_bounds(options, -0.05, 0.05)
        self._state[:, rows] = (low + (high - low) * uniforms).T

    def _advance(self, actions: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Euler steps of the equations of https://coneural.org/florian/papers/05_cart_pole.pdf, as gymnasium's."""
        cosine, sine, push, scratch, change = self._cosine, self._sine, self._push, self._scratch, self._change
        angle, angular_velocity, angular_acceleration = self._state[2], self._state[3], change[3]
        change[0::2] = self._velocities
        np.cos(angle, cosine)
        np.sin(angle, sine)
        # push = (force + pole mass * length * angular velocity^2 * sine) / total mass
        np.multiply(angular_velocity, angular_velocity, push)
        np.multiply(push, sine, push)
        np.multiply(push, self._pull, push)
        np.add(push, self._pushes[actions], push)
        # angular acceleration = (g sine - cosine push) / (length (4/3 - pole mass cosine^2 / total mass))
        np.multiply(sine, self._gravity, sine)
        np.multiply(cosine, push, scratch)
        np.subtract(sine, scratch, sine)
        np.multiply(cosine, cosine, scratch)
        np.multiply(scratch, self._minus_coupling, scratch)
        np.add(scratch, self._inertia, scratch)
        np.divide(sine, scratch, angular_acceleration)
        # acceleration = push - pole mass * length * angular acceleration * cosine / total mass
        np.multiply(angular_acceleration, cosine, scratch)
        np.multiply(scratch, self._minus_pull, scratch)
        np.add(scratch, push, change[1])
        np.multiply(change, self._interval, change)
        np.add(self._state, change, self._state)
        np.absolute(self._positions, self._distances)
        np.greater(self._distances, self._limits, self._beyond)
        return self._ones.copy(), np.logical_or(self._beyond[0], self._beyond[1])

    def _observe(self) -> NDArray[np.float32]:
        return self._show(self._positions)

    def _pose(self, row: int) -> None:
        self._model.state = self._state[:, row]


class CartPoleEnv(SingleEnv):
    """One `CartPole`."""

    metadata = CART_POLE_METADATA

    def __init__(self, render_mode: str | None = None, remove_velocities: bool = False) -> None:
        super().__init__(CartPole(1, None, render_mode, remove_velocities))
