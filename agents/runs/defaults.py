"""What a run does where its settings leave it open: by the environment's family, how long its episodes may be, and what
is observed.

What is chosen stands in the run's settings from then on, so that they repeat it. A setting that has a value stays.
"""

from dataclasses import replace
from typing import Any

from gymnasium import spaces

from agents.encoders.kinds import parts_of
from configs import EnvironmentFault, Settings, reported_as
from configs.settings import N_STEPS, remembers_actions
from envs.vector.families import family_of, fit, longest_episode

N_ENVS = 32
N_ENVS_OF_LONG, N_STEPS_OF_LONG = 16, 512
"""Where episodes may be longer than half of N_STEPS: no gradient leads from one rollout into the one before, and of
episodes of 200 steps one in five or so lies within one of 256 steps."""

LEARNING_RATE, N_EPOCHS = 1e-3, 5
OF_IMAGES = 2.5e-4, 3
"""Learning rate and epochs of Schulman et al. 2017, "Proximal Policy Optimization", table 5 (Atari)."""
ENT_COEF = 0.05
"""At the start; it falls to 0 at the end of training. A small one loses its way before a rare reward is found, one
that stays keeps the last policy from being sure."""
NOISE_CORRELATION = 0.9
"""Of the noise of continuous actions at the start; it falls to 0 at the end of training. Independent noise cancels out
where only many steps one way reach a reward."""
NOISE_CORRELATION_OF_CHOICES = 0.99
"""Of that of other actions, where a memory reads the previous ones; it stays. By independent noise alone a memory never
sees actions like those of the policy that does not explore, and such a policy then forgets."""


def fitted_to_family(settings: Settings) -> tuple[Settings, list[str]]:
    """Settings whose wrappers are chosen, and a line about what was.

    Raises:
        EnvironmentFault: the family's package cannot be imported, or knows no such id.
    """
    env = settings.env
    if env.wrappers is not None:
        return settings, []
    with reported_as(EnvironmentFault, f"environment {env.id}"):
        found = fit(env.id, env.kwargs, has_memory=settings.policy.memory != "none")
    family = family_of(env.id)
    if found is None or family is None:
        return replace(settings, env=replace(env, wrappers=())), []
    fitted = replace(env, wrappers=found.wrappers, kwargs=found.kwargs)
    return replace(settings, env=fitted), [f"{family.name}: {found.why} (--env.wrappers for others)"]


def fitted_to_episodes(settings: Settings) -> tuple[Settings, list[str]]:
    """Settings whose rollout has a size, and a line about it unless usual: twice as long as an episode may be, up to
    ``N_STEPS_OF_LONG``, and a multiple of a sequence."""
    env, algorithm = settings.env, settings.algorithm
    if env.n_envs is not None and algorithm.n_steps is not None:
        return settings, []
    longest = None if settings.policy.memory == "none" else longest_episode(env.id, env.kwargs)
    is_long = algorithm.n_steps is None and longest is not None and 2 * longest > N_STEPS
    n_envs, n_steps = (N_ENVS_OF_LONG, N_STEPS_OF_LONG) if is_long else (N_ENVS, N_STEPS)
    n_envs, length = env.n_envs or n_envs, algorithm.sequence_length or 1
    n_steps = algorithm.n_steps or max(n_steps // length, 1) * length
    fitted = replace(settings, env=replace(env, n_envs=n_envs), algorithm=replace(algorithm, n_steps=n_steps))
    line = f"rollouts of {n_steps} steps of {n_envs} environments, for an episode may have {longest}"
    return fitted, [f"{line} (--algorithm.n-steps, --env.n-envs for others)"] if is_long else []


def fitted_to_spaces(
    settings: Settings, observations: spaces.Space[Any], actions: spaces.Space[Any]
) -> tuple[Settings, list[str]]:
    """Settings whose learning rate, epochs, entropy bonus and noise are chosen, and a line about what was unless
    usual."""
    algorithm = settings.algorithm
    sees_images = any(part.kind == "image" for part in parts_of(observations))
    rate, n_epochs = OF_IMAGES if sees_images else (LEARNING_RATE, N_EPOCHS)
    changes: dict[str, Any] = {}
    if algorithm.learning_rate is None:
        changes["learning_rate"] = rate
    if algorithm.n_epochs is None and algorithm.name != "a2c":
        changes["n_epochs"] = n_epochs
    changed = " and ".join(f"{name} {value:g}" for name, value in changes.items())
    lines = [f"{changed}, for images are seen (--algorithm.learning-rate, --algorithm.n-epochs for others)"]
    lines = lines if sees_images and changes else []
    if algorithm.ent_coef is None:
        changes["ent_coef"] = ENT_COEF
    if algorithm.ent_coef_schedule is None:
        changes["ent_coef_schedule"] = "linear" if algorithm.ent_coef is None else "constant"
    is_continuous, chosen = isinstance(actions, spaces.Box), algorithm.noise_correlation is None
    if chosen:
        of_others = NOISE_CORRELATION_OF_CHOICES if remembers_actions(settings) else 0.0
        correlation = NOISE_CORRELATION if is_continuous else of_others
        changes["noise_correlation"] = 0.0 if algorithm.use_sde else correlation
    if algorithm.noise_correlation_schedule is None:
        is_falling = chosen and is_continuous and changes["noise_correlation"] > 0
        changes["noise_correlation_schedule"] = "linear" if is_falling else "constant"
    return replace(settings, algorithm=replace(algorithm, **changes)), lines
