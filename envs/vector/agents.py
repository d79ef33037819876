"""Games of several agents by parameter sharing: each agent of each game is an environment of its own to the policy.

Axes: G games, A agents of each; N = G A environments, those of a game side by side.

See Terry et al. 2020, "Revisiting Parameter Sharing in Multi-Agent Deep Reinforcement Learning".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from envs.tasks.observations import copied, is_array_space, put, take
from envs.vector.episodes import Episodes
from envs.vector.errors import EnvError
from envs.vector.group import is_game as is_game
from envs.vector.infos import RESET_STEP

Infos = list[dict[str, Any]]
MASK = "action_mask"


class ParallelGames(VecEnv):
    """PettingZoo environments of the parallel API as an SB3 `VecEnv`; agents have to have the same spaces.

    An agent's episode ends when it is terminated or truncated. Where others of its game go on, its steps until the next
    game are marked infos[i][RESET_STEP] = True, and are no transitions: they are not learned from. The next game starts
    in the step that ends the last agent's episode.

    Which actions are allowed is in the observation, a Dict with "action_mask", or becomes part of it where agents'
    infos have "action_mask": name it to the policy, `action_mask="action_mask"`.
    """

    def __init__(self, makers: Sequence[Callable[[], Any]]) -> None:
        """`makers`: each makes a game."""
        self.games = [maker() for maker in makers]
        self.agents = list(self.games[0].possible_agents)
        for number, game in enumerate(self.games):
            if list(game.possible_agents) != self.agents:
                raise ValueError(f"game {number} has the agents {game.possible_agents}, game 0 has {self.agents}")
        seen, acts = (self._shared(kind) for kind in ("observation_space", "action_space"))
        self._masks = self._masks_in_infos(seen)
        if self._masks is not None:
            seen = spaces.Dict({"observation": seen, MASK: spaces.MultiBinary(self._masks)})
        super().__init__(len(self.games) * len(self.agents), seen, acts)
        self._observations: Any = _room(seen, self.num_envs)
        self._episodes = Episodes(self.num_envs)
        self._idle = np.ones(self.num_envs, dtype=np.bool_)

    def _shared(self, kind: str) -> Any:
        """The space that all agents have."""
        found = {agent: getattr(self.games[0], kind)(agent) for agent in self.agents}
        first = found[self.agents[0]]
        for agent, space in found.items():
            if space != first:
                raise ValueError(
                    f"agents that share a policy need the same {kind}: {agent} has {space}, {self.agents[0]} has "
                    f"{first}; pad them to one, as supersuit's pad_observations_v0 and pad_action_space_v0 do"
                )
        return first

    def _masks_in_infos(self, seen: spaces.Space[Any]) -> int | None:
        """How many entries a mask in the infos has; None where there is none."""
        if isinstance(seen, spaces.Dict) and MASK in seen.spaces:
            return None
        _, infos = self.games[0].reset()
        mask = infos.get(self.agents[0], {}).get(MASK)
        return None if mask is None else len(mask)

    def reset(self) -> VecEnvObs:
        for number in range(len(self.games)):
            first = number * len(self.agents)
            self._begin(number, seed=self._seeds[first], options=self._options[first] or None)
        self._reset_seeds()
        self._reset_options()
        return copied(self._observations)  # type: ignore[no-any-return]

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        rewards, dones = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, dtype=np.bool_)
        infos: Infos = [{RESET_STEP: True} if idle else {} for idle in self._idle.tolist()]
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        acting = ~self._idle
        for number in range(len(self.games)):
            self._step(number, rewards, dones, truncated, infos)
        self._episodes.add(rewards)
        ended = np.flatnonzero(dones & acting).tolist()
        for row, episode in zip(ended, self._episodes.end(ended), strict=True):
            infos[row]["terminal_observation"] = take(self._observations, row)
            infos[row]["TimeLimit.truncated"] = bool(truncated[row])
            infos[row]["episode"] = episode
        for number, game in enumerate(self.games):
            if not game.agents:
                self._begin(number)
        return copied(self._observations), rewards, dones, infos

    def _step(
        self,
        number: int,
        rewards: NDArray[np.float32],
        dones: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        infos: Infos,
    ) -> None:
        """One step of a game, into the arrays."""
        rows = self._rows(number)
        playing = [agent for agent in rows if agent in self.games[number].agents]
        actions = {agent: self._actions[rows[agent]] for agent in playing}
        try:
            seen, given, terminations, truncations, agent_infos = self.games[number].step(actions)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise EnvError(f"game {number} ({self.games[number]}) failed in step: {reason}") from error
        for agent in playing:
            row, ends = rows[agent], bool(terminations[agent])
            rewards[row] = given[agent]
            dones[row] = ends or bool(truncations[agent])
            truncated[row] = dones[row] and not ends
            infos[row].update(agent_infos.get(agent, {}))
            self._idle[row] = dones[row]
        self._see(number, seen, agent_infos)
        for agent in set(self.games[number].agents) - set(playing):  # one that enters starts an episode
            self._idle[rows[agent]] = False
            self._episodes.start([rows[agent]])

    def _begin(self, number: int, **arguments: Any) -> None:
        seen, agent_infos = self.games[number].reset(**arguments)
        rows = self._rows(number)
        for agent, row in rows.items():
            self._idle[row] = agent not in self.games[number].agents
            self.reset_infos[row] = dict(agent_infos.get(agent, {}))
        self._episodes.start(rows.values())
        self._see(number, seen, agent_infos)

    def _see(self, number: int, seen: dict[str, Any], agent_infos: dict[str, Any]) -> None:
        rows = self._rows(number)
        for agent, observation in seen.items():
            if self._masks is not None:
                allowed = agent_infos.get(agent, {}).get(MASK)
                mask = np.ones(self._masks, np.int8) if allowed is None else np.asarray(allowed, np.int8)
                observation = {"observation": observation, MASK: mask}
            put(self._observations, rows[agent], observation, self.observation_space)

    def _rows(self, number: int) -> dict[str, int]:
        return {agent: number * len(self.agents) + i for i, agent in enumerate(self.agents)}

    def snapshot(self) -> None:
        """Only the games know where they stand."""

    def restore(self, state: Mapping[str, Any]) -> bool:
        return False

    def close(self) -> None:
        for game in self.games:
            game.close()

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        return [game.render() for game in self.games for _ in self.agents]

    def _of(self, indices: VecEnvIndices) -> Iterable[Any]:
        return (self.games[row // len(self.agents)] for row in self._get_indices(indices))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(game, attr_name) for game in self._of(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        for game in self._of(indices):
            setattr(game, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        return [getattr(game, method_name)(*args, **kwargs) for game in self._of(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def _room(space: Any, n: int) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _room(part, n) for key, part in space.items()}
    if not is_array_space(space):
        raise ValueError(f"agents' observations must be arrays or a Dict of them, not {space}: change them before")
    return np.zeros((n, *space.shape), space.dtype)
