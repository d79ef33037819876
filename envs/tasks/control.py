"""Classic control without velocities, vectorized in NumPy.

    CartPoleNoVel-v1, PendulumNoVel-v1, MountainCarContinuousNoVel-v0, AcrobotNoVel-v1

Dynamics, rewards, bounds, start states and pictures are gymnasium's (seed s gives gymnasium's episode of seed s, up to
rounding). Observations differ: as in RL Baselines3 Zoo, whose ids these are, an entry that is a velocity is zero and
the space is unchanged. `remove_velocities=True` leaves those entries out instead.

"Without memory" below is the best that a search over small networks of the present observation found (cross-entropy
method, three starts): a figure to beat, not a proof.

Axes: N environments, R some of them ("rows").
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.envs import classic_control
from gymnasium.envs.classic_control import utils
from numpy.typing import NDArray

from envs.tasks.batch import METADATA, BatchEnv, Outcome, Rows, Uniforms, single


class Control(BatchEnv):
    """A classic control task of which only the `shown` entries of gymnasium's observation are seen."""

    metadata = METADATA | {"render_modes": ["rgb_array"], "render_fps": 30}
    original: ClassVar[type]
    """Gymnasium's environment, which says the spaces and the constants and draws the pictures."""
    shown: ClassVar[slice]
    uniforms: ClassVar[int]
    time_limit: ClassVar[int]

    def __init__(
        self, num_envs: int = 1, *, remove_velocities: bool = False, constants: Any = None, **base: Any
    ) -> None:
        """`constants`: settings of gymnasium's environment. `base`: `max_episode_steps` and `render_mode`."""
        self._model: Any = self.original(render_mode=base.get("render_mode"), **(constants or {}))
        space = self._model.observation_space
        if remove_velocities:
            space = spaces.Box(space.low[self.shown], space.high[self.shown], dtype=space.dtype)
        base = {"max_episode_steps": self.time_limit, **base}
        super().__init__(num_envs, space, self._model.action_space, uniforms=self.uniforms, **base)
        self._entries = slice(None) if remove_velocities else self.shown
        self._observations_shape = (num_envs, *space.shape)
        self._state: NDArray[Any]  # (entries, N)

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
        self._model.state = self._state[:, row]

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
    Return: best 500; without memory about 50.
    """

    metadata = Control.metadata | {"render_fps": 50}
    original, shown, uniforms, time_limit = classic_control.CartPoleEnv, slice(0, None, 2), 4, 500

    def __init__(self, num_envs: int = 1, **base: Any) -> None:
        super().__init__(num_envs, **base)
        model = self._model
        # State and its rate of change, rows: position, velocity, angle, angular velocity.
        self._state = np.zeros((4, num_envs))
        self._change = np.zeros((4, num_envs))
        self._limits = np.array([[model.x_threshold], [model.theta_threshold_radians]])
        # Constants as arrays: NumPy is half again as fast with them as with Python's numbers.
        mass, pull = model.total_mass, model.polemass_length / model.total_mass
        self._pushes = np.array([-model.force_mag, model.force_mag]) / mass
        self._pull, self._minus_pull = np.array(pull), np.array(-pull)
        self._gravity, self._interval = np.array(model.gravity), np.array(model.tau)
        self._inertia = np.array(model.length * 4.0 / 3.0)
        self._minus_coupling = np.array(-model.length * model.masspole / mass)
        self._cosine, self._sine, self._push, self._scratch = np.empty((4, num_envs))
        self._distances, self._beyond = np.empty((2, num_envs)), np.empty((2, num_envs), dtype=np.bool_)
        self._ones = np.ones(num_envs, dtype=np.float32)

    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        low, high = utils.maybe_parse_reset_bounds(options, -0.05, 0.05)
        self._state[:, rows] = (low + (high - low) * uniforms).T

    def _advance(self, actions: Any) -> Outcome:
        """Euler steps of the equations of https://coneural.org/florian/papers/05_cart_pole.pdf, as gymnasium's."""
        cosine, sine, push, scratch, change = self._cosine, self._sine, self._push, self._scratch, self._change
        angle, angular_velocity, angular_acceleration = self._state[2], self._state[3], change[3]
        change[0::2] = self._state[1::2]
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
        np.absolute(self._state[0::2], self._distances)
        np.greater(self._distances, self._limits, self._beyond)
        return self._ones.copy(), np.logical_or(self._beyond[0], self._beyond[1])

    def _observe(self) -> NDArray[np.float32]:
        return self._show(self._state[0::2])


class Pendulum(Control):
    """PendulumNoVel-v1: swing a pendulum up and hold it there, seeing its angle only.

    Observation, Box (3,) float32: 0 cosine and 1 sine of the angle (upright: 1, 0); 2, the angular velocity, is zero.
    With `remove_velocities`, Box (2,): cosine, sine.
    Actions, Box (1,) float32: torque in [-2, 2] N m, clipped.
    Reward: -(angle^2 + 0.1 velocity^2 + 0.001 torque^2) of the state acted in, angle in [-pi, pi) rad, velocity in
    rad/s: from -16.3 to 0.
    Start: angle uniform in [-pi, pi], velocity in [-1, 1] (reset options "x_init" and "y_init": these bounds).
    End: truncated after 200 steps.
    Return: best unknown, about -150 with velocities seen; without memory about -1000.
    """

    original, shown, uniforms, time_limit = classic_control.PendulumEnv, slice(0, 2), 2, 200

    def __init__(self, num_envs: int = 1, *, g: float = 10.0, **base: Any) -> None:
        """`g`: gravity, m/s^2."""
        super().__init__(num_envs, constants={"g": g}, **base)
        self._angle, self._velocity, self._torque = np.zeros((3, num_envs))
        self._seen = np.empty((2, num_envs))

    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        for state, bound, draw in (
            (self._angle, options.get("x_init", np.pi), uniforms[:, 0]),
            (self._velocity, options.get("y_init", 1.0), uniforms[:, 1]),
        ):
            high = utils.verify_number_and_cast(bound)
            state[rows] = -high + 2 * high * draw
        self._torque[rows] = 0.0

    def _advance(self, actions: Any) -> Outcome:
        model, angle, velocity, torque = self._model, self._angle, self._velocity, self._torque
        torque[:] = actions[:, 0]
        _clip(torque, -model.max_torque, model.max_torque)
        offset = (angle + np.pi) % (2 * np.pi) - np.pi
        costs = offset * offset + 0.1 * (velocity * velocity) + 0.001 * (torque * torque)
        pull, drive = 3 * model.g / (2 * model.l) * model.dt, 3 / (model.m * model.l**2) * model.dt
        velocity += pull * np.sin(angle) + drive * torque
        _clip(velocity, -model.max_speed, model.max_speed)
        angle += velocity * model.dt
        return np.negative(costs, dtype=np.float32), np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self) -> NDArray[np.float32]:
        np.cos(self._angle, self._seen[0])
        np.sin(self._angle, self._seen[1])
        return self._show(self._seen)

    def _pose(self, row: int) -> None:
        self._model.state = (self._angle[row], self._velocity[row])
        self._model.last_u = self._torque[row]


class MountainCarContinuous(Control):
    """MountainCarContinuousNoVel-v0: rock a weak car out of a valley, seeing its position only.

    Observation, Box (2,) float32: 0 position in [-1.2, 0.6]; 1, the velocity, is zero. With `remove_velocities`,
    Box (1,).
    Actions, Box (1,) float32: force in [-1, 1], clipped.
    Reward: -0.1 force^2 a step (of the force before clipping), and 100 on reaching the goal.
    Start: position uniform in [-0.6, -0.4] (reset options "low" and "high"), at rest.
    End: terminated at position 0.45 moving right or at rest; truncated after 999 steps.
    Return: best unknown, below 100 and above 90; without memory 0, for standing still.
    """

    original, shown, uniforms, time_limit = classic_control.Continuous_MountainCarEnv, slice(0, 1), 1, 999

    def __init__(self, num_envs: int = 1, *, goal_velocity: float = 0.0, **base: Any) -> None:
        """`goal_velocity`: the least velocity at which the goal counts as reached."""
        super().__init__(num_envs, constants={"goal_velocity": goal_velocity}, **base)
        self._state = np.zeros((2, num_envs), dtype=np.float32)
        self._left_wall = np.float32(self._model.min_position)

    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        low, high = utils.maybe_parse_reset_bounds(options, -0.6, -0.4)
        self._state[0, rows] = low + (high - low) * uniforms[:, 0]
        self._state[1, rows] = 0.0

    def _advance(self, actions: Any) -> Outcome:
        model, force, (position, velocity) = self._model, actions[:, 0], self._state
        push = np.minimum(np.maximum(force, model.min_action), model.max_action)
        slope = 0.0025 * np.cos(3 * position, dtype=np.float64)
        velocity += push * model.power - slope.astype(np.float32)
        _clip(velocity, -model.max_speed, model.max_speed)
        position += velocity
        _clip(position, model.min_position, model.max_position)
        # The left wall stops the car.
        velocity[(position == self._left_wall) & (velocity < 0)] = 0.0
        terminated = (position >= model.goal_position) & (velocity >= model.goal_velocity)
        rewards = 100.0 * terminated - 0.1 * (force * force)
        return rewards.astype(np.float32), terminated

    def _observe(self) -> NDArray[np.float32]:
        return self._show(self._state[:1])


class Acrobot(Control):
    """AcrobotNoVel-v1: swing the tip of two hanging links above a line by the torque between them, seeing angles only.

    Observation, Box (6,) float32: 0 cosine and 1 sine of the first link's angle (hanging: 1, 0), 2 and 3 the same of
    the second link's relative to the first; 4 and 5, the angular velocities, are zero. With `remove_velocities`,
    Box (4,).
    Actions, Discrete(3): torque of -1, 0, 1 N m for 0.2 s.
    Reward: -1 a step, 0 on reaching the goal.
    Start: all four state entries uniform in [-0.1, 0.1] (reset options "low" and "high"; rad and rad/s).
    End: terminated when the tip is above the line, -cos(angle 1) - cos(angle 1 + angle 2) > 1; truncated after 500
    steps.
    Return: best unknown, above -100; without memory about -170.
    """

    metadata = Control.metadata | {"render_fps": 15}
    original, shown, uniforms, time_limit = classic_control.AcrobotEnv, slice(0, 4), 4, 500

    def __init__(self, num_envs: int = 1, **base: Any) -> None:
        super().__init__(num_envs, **base)
        # Rows: angle 1, angle 2 and their velocities.
        self._state = np.zeros((4, num_envs))
        self._seen = np.empty((4, num_envs))
        self._torques = np.array(self._model.AVAIL_TORQUE)
        self._bounds = np.array([[self._model.MAX_VEL_1], [self._model.MAX_VEL_2]])

    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        low, high = utils.maybe_parse_reset_bounds(options, -0.1, 0.1)
        # Gymnasium rounds the start, and the episodes are to be the same.
        self._state[:, rows] = (low + (high - low) * uniforms).T.astype(np.float32)

    def _advance(self, actions: Any) -> Outcome:
        """One Runge-Kutta step of fourth order."""
        start, interval, torque = self._state, self._model.dt, self._torques[actions]
        first = self._change(start, torque)
        second = self._change(start + interval / 2 * first, torque)
        third = self._change(start + interval / 2 * second, torque)
        fourth = self._change(start + interval * third, torque)
        self._state += interval / 6 * (first + 2 * (second + third) + fourth)
        angles, velocities = self._state[:2], self._state[2:]
        angles -= 2 * np.pi * np.ceil((angles - np.pi) / (2 * np.pi))
        _clip(velocities, -self._bounds, self._bounds)
        terminated = -np.cos(angles[0]) - np.cos(angles[0] + angles[1]) > 1.0
        return terminated.astype(np.float32) - np.float32(1.0), terminated

    def _change(self, state: NDArray[np.float64], torque: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rate of change of the state, (4, N): the equations of Sutton and Barto's book, both links of 1 m and 1 kg."""
        angle, bend, velocity, bend_velocity = state
        change = np.empty_like(state)
        sines = np.sin(np.stack((angle, bend, angle + bend)))
        half_cosine = 0.5 * np.cos(bend)
        inertia, coupling = 3.5 + 2 * half_cosine, 1.25 + half_cosine
        weight_2 = 4.9 * sines[2]
        spin = bend_velocity * (0.5 * bend_velocity + velocity)
        weight_1 = 14.7 * sines[0] + weight_2 - spin * sines[1]
        ratio = coupling / inertia
        change[:2] = state[2:]
        change[3] = torque + ratio * weight_1 - 0.5 * velocity * velocity * sines[1] - weight_2
        change[3] /= 1.25 - ratio * coupling
        change[2] = -(coupling * change[3] + weight_1) / inertia
        return change

    def _observe(self) -> NDArray[np.float32]:
        np.cos(self._state[:2], self._seen[0::2])
        np.sin(self._state[:2], self._seen[1::2])
        return self._show(self._seen)


def _clip(values: NDArray[Any], low: Any, high: Any) -> None:
    """In place, and without the overhead of `np.clip` on small arrays."""
    np.minimum(values, high, out=values)
    np.maximum(values, low, out=values)


# Single environments, for gymnasium.make.
CartPoleEnv = single(CartPole)
PendulumEnv = single(Pendulum)
MountainCarContinuousEnv = single(MountainCarContinuous)
AcrobotEnv = single(Acrobot)
