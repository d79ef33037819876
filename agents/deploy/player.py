"""A saved agent that acts: observation in, action out; memory and normalizer are its own.

Axes: B agents that act at once.

    player = Player.load("runs/tmaze/best.zip")
    observation = sensor.read()
    while True:
        action = player.act(observation)
        observation, episode_over = machine.do(action)
        if episode_over:
            player.reset()

An agent that learned with its last action and reward among its inputs needs the reward of each step,
``player.act(observation, reward)``; its actions it knows itself. Neither an environment nor settings are needed. For B
agents hand in batches, and say whose episode ended: ``player.reset(mask)`` with a mask (B,).
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.utils import ConstantSchedule, get_device
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_wrapper

from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.checkpoint import CheckpointError, NormalizerState, PreviousInputs, SavedAgent, hub, undisturbed
from agents.checkpoint.budget import building
from agents.checkpoint.container import PathOrFile
from agents.checkpoint.previous import Added
from agents.checks.observations import map_observations
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.rollout.masks import as_shown
from agents.rollout.numpy_actor import Predict, make_predict


class NotFiniteObservation(ValueError, FloatingPointError):
    """An observation with NaN or infinity in it: wrong input to a player, and the end of a run that meets it."""


class Player:
    """Acts with a policy, carries its memory, and normalizes observations as in training.

    Args:
        normalizer: the statistics that the policy learned with; they stand still. None for observations as they are.
        previous: the last action and reward that the policy sees; None if it does not, or its environment shows them.
        deterministic: deterministic actions in place of sampled ones.

    Raises:
        CheckpointError: policy and normalizer see different observations.
    """

    def __init__(
        self,
        policy: RecurrentActorCriticPolicy,
        normalizer: NormalizerState | None = None,
        *,
        previous: PreviousInputs | None = None,
        deterministic: bool = True,
    ) -> None:
        if normalizer is not None and not _leads_to(normalizer.observation_space, policy.observation_space):
            raise CheckpointError(
                f"the policy sees {policy.observation_space}, its normalizer {normalizer.observation_space}: a wrapper "
                "stood between them, such as a frame stack. Prepare the observations yourself: "
                "Player(RecurrentPPO.load(path).policy).act(prepared)"
            )
        self.policy, self.deterministic = policy, deterministic
        self.normalizer, self.previous = normalizer, previous
        self.seen_space: spaces.Space[Any] = (normalizer or policy).observation_space
        self.observation_space = self.seen_space if previous is None else previous.observation_space
        self._added: Added | None = None  # None if observations come with action and reward
        self._actions: NDArray[Any] | None = None
        self._state: Any = None
        self._predict: Predict | None = None  # None: the policy's own, looked up at every call
        self._batch_size: int | None = None
        self._starts = np.ones(1, dtype=bool)

    @classmethod
    def load(
        cls,
        path: PathOrFile,
        *,
        device: torch.device | str = "cpu",
        deterministic: bool = True,
        custom_objects: dict[str, Any] | None = None,
    ) -> "Player":
        """The player of a saved agent. Nothing in the file is executed.

        Args:
            custom_objects: classes of your own that the agent was made with, by name:
                ``{"features_extractor_class": MyExtractor}``.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is no agent's file, or damaged, or needs a class that was not given.
        """
        if str(path).endswith((".onnx", ".pt", ".c")):
            raise CheckpointError(
                f"{path} is an exported policy, not a saved agent: recurl.play.ExportedPolicy plays .onnx, "
                "torch.jit.load .pt; load the agent's .zip"
            )
        saved = SavedAgent(path, custom_objects)
        policy = _policy_of(saved, get_device(device))
        return cls(policy, saved.normalizer, previous=saved.previous, deterministic=deterministic)

    @classmethod
    def from_hub(
        cls, source: Any, *, filename: str = hub.AGENT, revision: str | None = None, **kwargs: Any
    ) -> "Player":
        """The player of an agent that was shared; see ``RecurrentPPO.from_hub``. ``kwargs`` as for :meth:`load`."""
        return cls.load(hub.shared_file(source, filename, revision), **kwargs)

    @classmethod
    def of(cls, algorithm: RecurrentOnPolicyAlgorithm, *, deterministic: bool = True) -> "Player":
        """The player of an algorithm as it is, with the normalizer and the inputs of its environment."""
        venv = algorithm.get_env()
        wrapper = None if venv is None else unwrap_vec_wrapper(venv, VecNormalize)
        normalizer = None if wrapper is None else NormalizerState.of(wrapper)
        return cls(algorithm.policy, normalizer, previous=PreviousInputs.of(venv), deterministic=deterministic)

    def act(self, observation: Any, reward: Any = None) -> NDArray[Any]:
        """The action for one observation, or the actions (B, ...) for a batch of them.

        Args:
            observation: as the environment gives it, not normalized: an array, a number for a Discrete space, or a dict
                of such. The first call settles whether the player acts for one agent or for B.
            reward: that of the last action, a number or (B,), if the agent sees it; at an episode's start it does not
                count. An environment that shows action and reward itself needs none.

        Raises:
            ValueError: the observation is not of the space, not finite, or of another number of agents than before; or
                the reward that the agent sees is missing.
        """
        adds = self._adds_to(observation) if self._state is None else self._added is not None
        arrays, batch_size = _checked(observation, self.observation_space if adds else self.seen_space)
        n_agents = 1 if batch_size is None else batch_size
        if self._state is None:
            self._batch_size, self._starts = batch_size, np.ones(n_agents, dtype=bool)
            self._added = self.previous.adding(n_agents) if adds and self.previous is not None else None
        elif batch_size != self._batch_size:
            raise ValueError(
                f"the player carries the memory of {_agents(self._batch_size)}, this observation is of "
                f"{_agents(batch_size)}; call reset() to start with another number"
            )
        if self._added is not None:
            arrays = self._with_previous(self._added, arrays, reward)
        if self.normalizer is not None:
            arrays = self.normalizer.normalize(arrays)
        one = batch_size is None and self._added is None
        if self._predict is not None and one:
            arrays = map_observations(lambda part: part[None], arrays)
        predict = self._predict or self.policy.predict
        actions, self._state = predict(arrays, self._state, self._starts, self.deterministic)
        if self._predict is not None and one:
            actions = actions[0]
        self._starts = np.zeros(n_agents, dtype=bool)
        if self._added is None:
            return actions
        self._actions = actions
        return actions if batch_size is not None else actions.squeeze(axis=0)

    def freeze(self) -> None:
        """Acts from now on by the policy as it is now: in NumPy where every part allows it, which is faster.

        What is done to the policy later is not seen. The memory is reset.
        """
        self.reset()
        self._predict = make_predict(self.policy)

    def around(self, env: VecEnv) -> VecEnv:
        """Environments whose observations :meth:`act` takes without rewards: wrapped, if the agent sees its last action
        and reward, or what ``action_masks()`` gives, and they do not show them."""
        env = as_shown(env, self.observation_space)
        return self.previous.wrap(env) if self.previous is not None and self.previous.missing_in(env) else env

    def normalized(self, observation: Any) -> Any:
        """An observation, or a batch of them, as the policy sees it; with last action and reward, if it sees those."""
        arrays, _ = _checked(observation, self.seen_space)
        return arrays if self.normalizer is None else self.normalizer.normalize(arrays)

    def reset(self, mask: Any = None) -> None:
        """Says that an episode starts with the next observation, for those of a mask (B,).

        None is all of them, and then the next call of ``act`` may be for another number of agents.
        """
        if mask is None:
            self._state = self._batch_size = None
        if self._state is None:
            return
        chosen = np.atleast_1d(np.asarray(mask, dtype=bool))
        if chosen.shape != self._starts.shape:
            raise ValueError(
                f"the mask has shape {chosen.shape}, the player acts for {_agents(self._batch_size)}; give each a flag"
            )
        self._starts = self._starts | chosen

    def _adds_to(self, observation: Any) -> bool:
        """Whether an observation comes without the last action and reward that the policy sees."""
        if self.previous is None:
            return False
        try:
            arrays, _ = _checked(observation, self.seen_space)
        except NotFiniteObservation:
            return False
        except ValueError:
            return True
        # A batch of choices can have the shape of one observation with action and reward; those are no whole numbers.
        return not isinstance(arrays, dict) and arrays.dtype.kind != "f"

    def _with_previous(self, added: Added, arrays: Any, reward: Any) -> Any:
        """Observations, one or (B, ...), with the last actions and rewards: (B, ...)."""
        batch = arrays if self._batch_size is not None else map_observations(lambda part: part[None], arrays)
        rewards = np.atleast_1d(np.asarray(0.0 if reward is None else reward, np.float32))
        given = reward is not None and rewards.shape == self._starts.shape
        if not self._starts.all() and not (given and np.isfinite(rewards[~self._starts]).all()):
            raise ValueError(
                f"this agent sees the reward of its last action too: expected act(observation, reward) with a number "
                f"for {_agents(self._batch_size)}, got reward={reward!r}"
            )
        return added(batch, self._actions, rewards, self._starts)


def _agents(batch_size: int | None) -> str:
    return "one agent" if batch_size is None else f"a batch of {batch_size}"


def _policy_of(saved: SavedAgent, device: torch.device) -> RecurrentActorCriticPolicy:
    """The policy alone, without rollout buffer and environment."""
    policy_class = saved.policy_class(RecurrentOnPolicyAlgorithm.policy_aliases)
    kwargs = saved.with_encoder(saved.policy_kwargs(), policy_class)
    use_sde = bool(saved.setting("use_sde", False))
    saved.warn_of_numbers()
    with undisturbed(), building("policy", saved.file, saved.n_weights):
        seen, acted, unused = saved.observation_space, saved.action_space, ConstantSchedule(0.0)
        policy: RecurrentActorCriticPolicy = policy_class(seen, acted, unused, use_sde=use_sde, **kwargs).to(device)
        policy.load_state_dict(saved.parameters(device)["policy"])
        if use_sde:
            policy.reset_noise()
    policy.set_training_mode(False)
    return policy


def _leads_to(normalized: spaces.Space[Any], seen: spaces.Space[Any]) -> bool:
    """Whether the policy sees what comes out of the normalizer, images transposed or not."""
    if isinstance(normalized, spaces.Dict) and isinstance(seen, spaces.Dict) and normalized.keys() == seen.keys():
        return all(_leads_to(normalized[key], seen[key]) for key in seen)
    shape = tuple(normalized.shape or ())
    return seen.shape in (shape, (*shape[-1:], *shape[:-1]))


def _checked(observation: Any, space: spaces.Space[Any]) -> tuple[Any, int | None]:
    """The observation as arrays, and how many it is of: B, or None for a single one."""
    if not isinstance(space, spaces.Dict):
        return _checked_array(observation, space, "the observation")
    if not isinstance(observation, dict) or set(observation) != set(space.spaces):
        came = sorted(observation) if isinstance(observation, dict) else type(observation).__name__
        raise ValueError(f"the observation must be a dict with the keys {sorted(space.spaces)}, got {came}")
    arrays, sizes = {}, {}
    for key, part in space.spaces.items():
        arrays[key], sizes[key] = _checked_array(observation[key], part, f"the observation's {key!r}")
    if len(set(sizes.values())) > 1:
        described = ", ".join(f"{key} is of {_agents(size)}" for key, size in sizes.items())
        raise ValueError(f"the observation has parts of different numbers of agents: {described}")
    return arrays, next(iter(sizes.values()), None)


def _checked_array(observation: Any, space: spaces.Space[Any], name: str) -> tuple[NDArray[Any], int | None]:
    if isinstance(observation, dict):
        raise ValueError(f"{name} is a dict, expected an array of {space}")
    array = np.asarray(observation.cpu() if isinstance(observation, torch.Tensor) else observation)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} is of dtype {array.dtype}, expected numbers of {space}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise NotFiniteObservation(f"{name} is not finite at {np.argwhere(~np.isfinite(array))[:3].tolist()}: {array}")
    for shape in _shapes(space):
        if array.shape == shape:
            return array, None
        if array.shape[1:] == shape and array.ndim > len(shape) and len(array) > 0:
            return array, len(array)
    expected = " or ".join(str(shape) for shape in _shapes(space))
    raise ValueError(
        f"{name} has shape {array.shape}, expected {expected} for one agent, or with a leading axis for a batch"
    )


def _shapes(space: spaces.Space[Any]) -> list[tuple[int, ...]]:
    """The shapes of one observation: an image may come channels last, though the policy reads them first."""
    shape = tuple(space.shape or ())
    if isinstance(space, spaces.Box) and is_image_space(space) and is_image_space_channels_first(space):
        return [shape, (*shape[1:], shape[0])]
    return [shape]
