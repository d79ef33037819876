"""A teacher for a recurrent student: DAgger, behavior cloning, and a critic warmed up for what comes after.

The student acts, the teacher says at every step what it would have done, and the student learns those actions by
truncated backpropagation through time over everything seen so far (Ross et al. 2011, "A Reduction of Imitation Learning
and Structured Prediction to No-Regret Online Learning"). The teacher may see more than the student.

    student = RecurrentPPO("RecurrentPolicy", env, policy_kwargs=dict(privileged=["teacher"], critic_memory="separate"))
    lessons = Imitation(student, Player.load("runs/teacher/best.zip"), key="teacher")
    lessons.run(8192)               # or lessons.clone(episodes), from recordings
    lessons.warm_up_critic(8192)
    student.learn(100_000)

Axes: T steps, B environments (or rows of episodes laid end to end), L steps of a sequence, A components of an action.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from agents.algorithms.losses import clip_gradients
from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.checks.arguments import check_count, check_counts, check_positive, check_range
from agents.checks.observations import leaves, map_observations
from agents.distributed import group
from agents.memory import State
from agents.policy.actor_critic import RecurrentActorCriticPolicy

CRITICS_OWN = ("value_net.", "mlp_extractor.value_net.", "memory_critic.", "vf_features_extractor.")
"""How the names of parameters begin that no action depends on."""


class Teacher(Protocol):
    """Any policy as Stable-Baselines3 has it. What has ``act`` and ``reset`` instead, a ``Player``, is taken too."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]: ...


class Lesson(NamedTuple):
    """What came of one rollout and the epochs after it.

    Args:
        steps: environment steps so far.
        loss: mean of -log p of the teacher's actions, in the last epoch.
        agreement: of the last rollout, the share of actions in which the student would have done as the teacher, before
            it learned from it; NaN for continuous actions.
    """

    steps: int
    loss: float
    agreement: float


class Experience(NamedTuple):
    """Steps to learn from; observations before normalization."""

    observations: Any  # (T, B, ...)
    actions: NDArray[Any]  # (T, B, A) or (T, B): the teacher's, as the policy stores actions
    starts: NDArray[np.bool_]  # (T, B)
    valid: NDArray[np.bool_]  # (T, B)


class Imitation:
    """Trains a student on a teacher's actions.

    The student's weights, its normalizer and nothing else of it change; its ``learn`` goes on from there. Where its
    actions are continuous, the standard deviation of its exploration stays as it is.

    Args:
        student: an algorithm with an environment.
        teacher: acts on what the student's environment shows before normalization, or on a part of it. None for
            :meth:`clone` alone.
        key: the part of a Dict observation that the teacher sees. None: all that its own space has.
        n_steps: of each environment in a rollout.
        sequence_length: steps that gradients flow back through.
        n_epochs: passes over all that was seen, after each rollout.
        batch_size: steps of a minibatch.
        learning_rate: of Adam.
        mixing: a step of rollout i is the teacher's own with probability ``mixing ** i``; the first is all the
            teacher's.
        capacity: steps kept to learn from; the oldest rollouts are forgotten.

    Raises:
        ValueError: the student has no environment, the actor would see the teacher's key, or a number is out of range.
    """

    def __init__(
        self,
        student: RecurrentOnPolicyAlgorithm,
        teacher: Any = None,
        *,
        key: str | None = None,
        n_steps: int = 64,
        sequence_length: int = 32,
        n_epochs: int = 20,
        batch_size: int = 512,
        learning_rate: float = 1e-3,
        mixing: float = 0.0,
        capacity: int = 500_000,
    ) -> None:
        check_counts(n_steps=n_steps, sequence_length=sequence_length, n_epochs=n_epochs)
        check_counts(batch_size=batch_size, capacity=capacity)
        check_positive("learning_rate", learning_rate)
        check_range("mixing", mixing, 0.0, 1.0)
        if group.size() > 1:
            raise ValueError(f"imitation learns in one process, and here are {group.size()}: start it without torchrun")
        _check_key(student, key)
        self.student, self._teacher, self._key = student, teacher, key
        self.n_steps, self.sequence_length, self.n_epochs = n_steps, sequence_length, n_epochs
        self.batch_size, self.mixing, self.capacity = batch_size, mixing, capacity
        self.steps = 0
        self._rollouts: list[Experience] = []
        self._actor, self._critic = _parameters(student.policy)
        self._optimizer = torch.optim.Adam(self._actor, lr=learning_rate, eps=1e-5)
        self._critics_optimizer = torch.optim.Adam(self._critic, lr=learning_rate, eps=1e-5)
        self._collecting: _Collecting | None = None

    def run(self, steps: int, after: Callable[[Lesson], bool | None] = lambda lesson: None) -> list[Lesson]:
        """DAgger for at least so many environment steps.

        Args:
            after: called after each rollout and its epochs; False ends it.

        Raises:
            ValueError: there is no teacher or no environment, or they do not fit.
        """
        if self._teacher is None:
            raise ValueError("run() needs a teacher: Imitation(student, teacher); recorded episodes go to clone()")
        if self.student.get_env() is None:
            raise ValueError("the student has no environment to be taught in: load it with env=..., or set_env()")
        check_count("steps", steps)
        lessons: list[Lesson] = []
        self._collecting = self._collecting or _Collecting(self.student, self._teacher, self._key)
        last = self.steps + steps
        while self.steps < last:
            experience, agreement = self._collecting.rollout(self.n_steps, self.mixing ** len(self._rollouts))
            self._keep(experience)
            self.steps += experience.starts.size
            loss = self._fit(_joined(self._rollouts), self.n_epochs)
            lessons.append(Lesson(self.steps, loss, agreement))
            if after(lessons[-1]) is False:
                break
        self.student._last_obs = None  # the environments have moved on: learn() resets them
        return lessons

    def clone(self, episodes: Iterable[tuple[Any, Any]], n_epochs: int | None = None) -> float:
        """Behavior cloning from recorded episodes.

        Args:
            episodes: of each the observations (T, ...), as the student's environment shows them before normalization,
                and the actions (T, ...), as it takes them.
            n_epochs: passes over them; None: as the constructor says.

        Returns:
            The mean of -log p of the actions, in the last epoch.

        Raises:
            ValueError: there is no episode, or one is not of the student's spaces.
        """
        experience = _laid_out(list(episodes), self.student, self.batch_size // self.sequence_length)
        normalizer = self.student.get_vec_normalize_env()
        if normalizer is not None and normalizer.norm_obs and normalizer.training:
            _count(normalizer, experience)
        return self._fit(experience, self.n_epochs if n_epochs is None else n_epochs)

    def warm_up_critic(self, steps: int) -> None:
        """Lets the student act, and its critic alone learn, for at least so many environment steps.

        A critic that knows nothing would lead the first updates of PPO away from what was learned. What it shares with
        the actor stays as it is.
        """
        student: Any = self.student
        student.train = self._train_critic
        try:
            student.learn(steps)
        finally:
            del student.train
        student._last_obs = None

    def _train_critic(self) -> None:
        """One update on a rollout, in place of the student's own."""
        student, policy = self.student, self.student.policy
        policy.set_training_mode(True)
        for _ in range(getattr(student, "n_epochs", 5)):
            for batch in student.rollout_buffer.get(student.batch_size):
                values, _, _ = policy.evaluate_actions(
                    batch.observations, batch.actions, student.state_before(batch), batch.episode_starts
                )
                loss = (batch.steps(values) - batch.steps(batch.returns)).square().mean()
                self._step(loss, self._critic, self._critics_optimizer)
        student._n_updates += 1

    def _keep(self, experience: Experience) -> None:
        self._rollouts.append(experience)
        while len(self._rollouts) > 1 and sum(each.starts.size for each in self._rollouts) > self.capacity:
            del self._rollouts[0]

    def _fit(self, experience: Experience, n_epochs: int) -> float:
        """Epochs over experience; the mean loss of the last."""
        policy = self.student.policy
        policy.set_training_mode(True)
        tensors = _tensors(experience, self.student)
        rows = np.arange(experience.starts.shape[1])
        n_groups = max(len(rows) * self.sequence_length // self.batch_size, 1)
        total = 0.0
        for _ in range(n_epochs):
            losses = [
                self._pass(tensors, torch.as_tensor(chosen, device=policy.device))
                for chosen in np.array_split(self.student.random_generator.permutation(rows), n_groups)
                if len(chosen)
            ]
            weights = sum(count for _, count in losses)
            total = sum(loss for loss, _ in losses) / max(weights, 1)
        policy.set_training_mode(False)
        return total

    def _pass(self, tensors: "_Tensors", rows: Tensor) -> tuple[float, int]:
        """Through all steps of some rows in order, a gradient step each sequence; the sum of losses and their number.

        The state is recomputed on the way with the weights as they are, and gradients stop where a sequence begins.
        """
        policy, total, count = self.student.policy, 0.0, 0
        state: State = policy.initial_state(len(rows))
        for part in tensors.sequences(self.sequence_length, rows):
            n_valid = int(part.valid.sum())
            if not n_valid:
                continue
            _, log_probs, _ = policy.evaluate_actions(part.observations, part.actions, state, part.starts)
            loss = -log_probs[part.valid].sum()
            self._step(loss / n_valid, self._actor, self._optimizer)
            total, count = total + float(loss.detach()), count + n_valid
            after = policy.states_along(part.observations, state, part.starts, [len(part.starts)])
            state = tuple(each[0] for each in after)
        return total, count

    def _step(self, loss: Tensor, parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        clip_gradients(parameters, self.student.max_grad_norm)
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None


class _Collecting:
    """The student in its environments, with the teacher at its side; both carry their own memory."""

    def __init__(self, student: RecurrentOnPolicyAlgorithm, teacher: Any, key: str | None) -> None:
        self._student, self._policy, self._rng = student, student.policy, student.random_generator
        env = student.get_env()
        assert env is not None
        self._env = env
        self._teacher = _Asked(teacher, key)
        self._seen = self._env.reset()
        self._starts = np.ones(self._env.num_envs, dtype=bool)
        self._rewards = np.zeros(self._env.num_envs, np.float32)
        self._state = self._policy.initial_state(self._env.num_envs)

    def rollout(self, n_steps: int, mixing: float) -> tuple[Experience, float]:
        """Steps of the student, each labeled, and the share in which both would have done the same."""
        self._policy.set_training_mode(False)
        if self._student.use_sde:
            self._policy.reset_noise(self._env.num_envs)
        steps, agreed = [], []
        for _ in range(n_steps):
            shown = map_observations(np.array, self._original())
            labels = as_stored(self._teacher(shown, self._rewards, self._starts), self._policy)
            chosen, own = self._chosen()
            agreed.append((own == labels).reshape(len(labels), -1).all(axis=1).mean())
            steps.append((shown, labels, self._starts))
            is_teachers = self._rng.random(len(labels)) < mixing
            acted = np.where(is_teachers.reshape(-1, *[1] * (labels.ndim - 1)), labels, chosen)
            self._seen, rewards, self._starts, _ = self._env.step(self._policy.head.to_environment(acted))
            normalizer = self._student.get_vec_normalize_env()
            self._rewards = rewards if normalizer is None else normalizer.get_original_reward()
        observations, actions, starts = zip(*steps, strict=True)
        stacked = map_observations(lambda *parts: np.stack(parts), *observations)
        all_starts = np.stack(starts)
        experience = Experience(stacked, np.stack(actions), all_starts, np.ones(all_starts.shape, dtype=bool))
        is_continuous = isinstance(self._policy.action_space, spaces.Box)
        return experience, float("nan") if is_continuous else float(np.mean(agreed))

    def _original(self) -> Any:
        normalizer = self._student.get_vec_normalize_env()
        return self._seen if normalizer is None else _before(normalizer, self._seen)

    def _chosen(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(B, A): the student's sampled and its deterministic actions, as stored; its state moves on."""
        device = self._policy.device
        with torch.no_grad():
            tensors = map_observations(lambda part: torch.as_tensor(part, device=device), self._seen)
            starts = torch.as_tensor(self._starts, device=device)
            hidden, after = self._policy.actor_hidden(tensors, self._state, starts)
            parameters = self._policy.distribution_parameters(hidden, tensors)
            head = self._policy.head
            sampled, mode = head.sample(parameters).cpu().numpy(), head.mode(parameters).cpu().numpy()
        self._state = (*after, *self._state[len(after) :])
        return sampled, mode


class _Asked:
    """A teacher's actions for what the student's environments show."""

    def __init__(self, teacher: Any, key: str | None) -> None:
        # A copy: one that acts for itself somewhere keeps its memory.
        self._teacher, self._key, self._state = copy.copy(teacher), key, None
        self._acts = hasattr(teacher, "act") and hasattr(teacher, "reset")
        if not self._acts and not hasattr(teacher, "predict"):
            raise ValueError(
                f"a teacher has predict(observation, state, episode_start, deterministic); got {teacher!r}"
            )
        space = getattr(teacher, "observation_space", None)
        self._keys = list(space.spaces) if isinstance(space, spaces.Dict) else []
        if self._acts:
            self._teacher.reset()

    def __call__(self, shown: Any, rewards: Any, starts: NDArray[np.bool_]) -> NDArray[Any]:
        seen = self._part(shown)
        if self._acts:
            self._teacher.reset(None if starts.all() else starts)
            return np.asarray(self._teacher.act(seen, rewards))
        actions, self._state = self._teacher.predict(seen, self._state, starts, True)
        return np.asarray(actions)

    def _part(self, shown: Any) -> Any:
        if self._key is not None:
            return shown[self._key]
        if self._keys and isinstance(shown, dict):
            missing = [key for key in self._keys if key not in shown]
            if missing:
                raise ValueError(
                    f"the teacher sees {self._keys}, and the student's environment does not show {missing}: let it "
                    "show them, as privileged keys of the student"
                )
            return {key: shown[key] for key in self._keys}
        return shown


class _Tensors(NamedTuple):
    """Experience on the student's device, observations as its policy sees them."""

    observations: Any
    actions: Tensor
    starts: Tensor
    valid: Tensor

    def sequences(self, length: int, rows: Tensor) -> Iterator["_Tensors"]:
        """Of some rows, one after the other in time, (L, B, ...) each."""
        for first in range(0, len(self.starts), length):

            def take(part: Tensor, steps: slice = slice(first, first + length)) -> Tensor:
                return part[steps].index_select(1, rows)

            yield _Tensors(
                map_observations(take, self.observations), take(self.actions), take(self.starts), take(self.valid)
            )


def as_stored(actions: NDArray[Any], policy: RecurrentActorCriticPolicy) -> NDArray[Any]:
    """Actions as an environment takes them, (B, ...) -> as the policy stores them, (B,) or (B, A)."""
    space: Any = policy.action_space
    flat: NDArray[Any]
    if isinstance(space, spaces.Discrete):
        return actions.reshape(-1).astype(np.int64) - int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        flat = actions.reshape(-1, len(space.nvec)).astype(np.int64) - np.asarray(space.start)
        return flat
    flat = actions.reshape(-1, int(np.prod(space.shape))).astype(np.float32)
    if policy.squash_output:
        low, high = np.ravel(space.low), np.ravel(space.high)
        flat = (2.0 * (flat - low) / (high - low) - 1.0).astype(np.float32)
    return flat


def _check_key(student: RecurrentOnPolicyAlgorithm, key: str | None) -> None:
    if key is None:
        return
    space = student.observation_space
    if not isinstance(space, spaces.Dict) or key not in space.spaces:
        raise ValueError(f"key names what the teacher sees in a Dict observation; {key!r} is not in {space}")
    if key not in student.policy.privileged:
        raise ValueError(
            f"the student would act on {key!r}, which the teacher sees: keep it from the actor with "
            f"policy_kwargs=dict(privileged=[{key!r}], critic_memory='separate')"
        )


def _parameters(policy: RecurrentActorCriticPolicy) -> tuple[list[Tensor], list[Tensor]]:
    """Those that actions depend on, and the critic's own. The deviation of exploration is none of them."""
    actor: list[Tensor] = []
    critic: list[Tensor] = []
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and name != "log_std":
            (critic if name.startswith(CRITICS_OWN) else actor).append(parameter)
    return actor, critic


def _before(normalizer: VecNormalize, seen: Any) -> Any:
    """Observations before normalization; where something around the normalizer changes them too, computed back."""
    original = normalizer.get_original_obs()
    shapes = zip(leaves(original), leaves(seen), strict=True)
    same = all(np.shape(one) == np.shape(other) for one, other in shapes)
    return original if same else normalizer.unnormalize_obs(seen)


def _joined(rollouts: list[Experience]) -> Experience:
    """One after the other in time."""
    observations = map_observations(lambda *parts: np.concatenate(parts), *[each.observations for each in rollouts])
    rest = [np.concatenate(parts) for parts in zip(*[each[1:] for each in rollouts], strict=True)]
    rest[1][0] = True  # what came before the first rollout is forgotten
    return Experience(observations, *rest)


def _tensors(experience: Experience, student: RecurrentOnPolicyAlgorithm) -> _Tensors:
    normalizer, device = student.get_vec_normalize_env(), student.policy.device
    seen = experience.observations
    if normalizer is not None:
        seen = normalizer.normalize_obs(seen)
    observations = map_observations(lambda part: _tensor(part, device), seen)
    return _Tensors(observations, *(torch.as_tensor(part, device=device) for part in experience[1:]))


def _tensor(part: NDArray[Any], device: torch.device) -> Tensor:
    return torch.as_tensor(part.astype(np.float32) if part.dtype == np.float64 else part, device=device)


def _laid_out(episodes: list[tuple[Any, Any]], student: RecurrentOnPolicyAlgorithm, n_rows: int) -> Experience:
    """Episodes end to end in rows of about the same length, each row filled up with steps that are not valid."""
    if not episodes:
        raise ValueError("clone() needs episodes: pairs of observations (T, ...) and actions (T, ...)")
    lengths = [_length(i, *episode, student) for i, episode in enumerate(episodes)]
    rows: list[list[int]] = [[] for _ in range(min(max(n_rows, 1), len(episodes)))]
    filled = [0] * len(rows)
    for i in sorted(range(len(episodes)), key=lambda i: -lengths[i]):
        shortest = filled.index(min(filled))
        rows[shortest].append(i)
        filled[shortest] += lengths[i]
    n_steps = max(filled)

    def row_of(row: list[int], parts: list[NDArray[Any]]) -> NDArray[Any]:
        laid = np.concatenate([parts[i] for i in row])
        return np.concatenate([laid, np.repeat(laid[-1:], n_steps - len(laid), axis=0)])

    def laid_out(*parts: Any) -> NDArray[Any]:
        return np.stack([row_of(row, list(parts)) for row in rows], axis=1)

    actions = [as_stored(np.asarray(actions), student.policy) for _, actions in episodes]
    starts = [np.arange(length) == 0 for length in lengths]
    valid = np.arange(n_steps)[:, None] < np.array(filled)
    observations = map_observations(laid_out, *[map_observations(np.asarray, each) for each, _ in episodes])
    return Experience(observations, laid_out(*actions), laid_out(*starts) & valid, valid)


def _length(number: int, observations: Any, actions: Any, student: RecurrentOnPolicyAlgorithm) -> int:
    """Steps of an episode.

    Raises:
        ValueError: it has none, or is not of the student's spaces.
    """
    space = student.observation_space
    if isinstance(space, spaces.Dict) != isinstance(observations, dict):
        raise ValueError(f"the observations of episode {number} are {type(observations).__name__}, expected {space}")
    parts = (
        {"": (observations, space)}
        if not isinstance(space, spaces.Dict)
        else {key: (observations.get(key), part) for key, part in space.spaces.items()}
    )
    n_steps = len(np.asarray(actions))
    for key, (part, inside) in parts.items():
        if np.shape(part) != (n_steps, *(inside.shape or ())):
            raise ValueError(
                f"the observations{f' under {key!r}' if key else ''} of episode {number} have the shape "
                f"{np.shape(part)}, expected {(n_steps, *(inside.shape or ()))} for its {n_steps} actions"
            )
    if not n_steps:
        raise ValueError(f"episode {number} has no step; leave it out")
    return n_steps


def _count(normalizer: VecNormalize, experience: Experience) -> None:
    """Lets a normalizer learn from recorded observations what it would have learned from its environments."""
    statistics: Any = normalizer.obs_rms
    if isinstance(statistics, dict):
        for key, each in statistics.items():
            each.update(experience.observations[key][experience.valid])
    else:
        statistics.update(experience.observations[experience.valid])
