"""What a settings file or the command line may say: every setting of a run, its default, its meaning, its range.

Plain frozen dataclasses, checked when read and never changed. Nothing heavy is imported here, so that ``--help`` and
a mistake are answered at once; a test keeps the names and defaults written here equal to those of ``agents``.
"""

import dataclasses
import difflib
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

from configs.errors import SettingsError

_LAYERS = ("hidden_size", "num_layers", "learned_initial_state")
_CELL = (*_LAYERS, "bias", "dropout", "initialization")

MEMORIES: dict[str, tuple[str, ...]] = {
    "none": (),
    "rnn": (*_CELL, "nonlinearity"),
    "lstm": (*_CELL, "forget_bias", "chrono_horizon"),
    "gru": (*_CELL, "chrono_horizon"),
    "mingru": (*_LAYERS, "chrono_horizon"),
    "lru": (*_LAYERS, "state_size", "r_min", "r_max", "max_phase"),
    "deltanet": (*_LAYERS, "heads", "chrono_horizon"),
    "ffm": (*_LAYERS, "trace_size", "context_size", "chrono_horizon"),
    "hybrid": (*_LAYERS, "trace_size", "context_size", "chrono_horizon"),
    "gtrxl": (*_LAYERS, "heads", "window", "feedforward_size", "gate_bias"),
    "attention": (*_LAYERS, "cell", "window", "score"),
}
"""The memories that have a name, and the arguments each takes."""

ENCODERS: dict[str, tuple[str, ...]] = {
    "flatten": (),
    "scaled": (),
    "nature_cnn": ("features_dim", "normalized_image"),
    "image": ("features_dim", "normalized_image"),
    "embedding": ("features_dim", "embedding_size", "convolutions", "normalized_image"),
    "text": ("features_dim", "embedding_size"),
    "combined": ("cnn_output_dim", "normalized_image", "encoders"),
    "sequence": ("features_dim", "cell", "hidden_size", "num_layers", "bidirectional", "pool", "mask_key"),
    "attention": ("features_dim", "over", "score", "heads", "hidden_size", "cell", "bidirectional", "mask_key"),
    "transformer": (
        *("features_dim", "width", "num_layers", "heads", "expansion", "causal", "positions", "pool", "mask_key"),
    ),
    "impala": ("features_dim", "width", "normalized_image"),
    "seq2seq": (
        *("features_dim", "hidden_size", "cell", "bidirectional", "attention", "output_length", "pool"),
        *("predict", "auxiliary_weight", "mask_key"),
    ),
    "graph": (
        "features_dim",
        "hidden_size",
        "rounds",
        "pool",
        "both_ways",
        "output",
        "node_features",
        "auxiliary_weight",
    ),
}
"""The encoders that have a name, and the arguments each takes."""

WRAPPERS = (
    *("keep", "mask", "flicker", "dropout", "delay", "noise", "previous_action_reward", "history", "flatten"),
    *("pad_graph", "pad_sequence", "action_delay", "randomize", "trials", "atari"),
)
"""The wrappers that have a name."""

PREVIOUS = "previous_action_reward"

RENAMED_MEMORY_KWARGS = {"initialisation": "initialization"}
"""Arguments of memories under the names that such files may have them by."""

Kwargs = dict[str, Any]
Wrapper = object  # a name, or {name: {argument: value}}; checked below


class Range(NamedTuple):
    """What a value must satisfy, and how to say it."""

    holds: Callable[[Any], bool]
    words: str


AT_LEAST_0 = Range(lambda value: 0 <= value < math.inf, "at least 0")
AT_LEAST_1 = Range(lambda value: value >= 1, "at least 1")
POSITIVE = Range(lambda value: 0 < value < math.inf, "greater than 0")
FINITE = Range(math.isfinite, "a finite number")
FRACTION = Range(lambda value: 0 <= value <= 1, "between 0 and 1")
EACH_AT_LEAST_1 = Range(lambda values: all(value >= 1 for value in values), "sizes of at least 1")

Schedule = Literal["constant", "linear"]

N_STEPS = 256
"""The shortest rollout that is chosen where n_steps leaves it open."""


@dataclass(frozen=True)
class EnvironmentSettings:
    """The task, and what the agent is given to see of it."""

    id: str = "CartPoleNoVel-v1"
    """A Gymnasium id; `module:id` imports the module first, so that an environment of your own is found."""
    n_envs: Annotated[int | None, AT_LEAST_1] = None
    """Environments stepped side by side; None: 32, or 16 where n_steps is chosen to be 512, written into the run's
    settings."""
    kwargs: Kwargs = field(default_factory=dict)
    """Arguments of the environment: `length=20 active=true`."""
    wrappers: tuple[Wrapper, ...] | None = None
    """Wrappers, innermost first: keep, mask, flicker, dropout, delay, noise, previous_action_reward, history, flatten,
    pad_graph, pad_sequence, action_delay, randomize, trials, atari, or `module:Class`; with arguments
    `{name: {argument: value}}`. None: of an Atari game those for small gray frames, which are printed and written into
    the run's settings; else none."""
    previous_action_reward: bool | None = None
    """Whether the agent sees its last action, the last reward and whether an episode starts with the observation,
    around all wrappers; None: where it has a memory and its encoder is chosen by the observation space."""
    backend: Literal["auto", "vector", "serial", "subprocess", "ray", "gymnasium"] = "auto"
    """How they are stepped: as one NumPy environment, one after the other, in processes, in actors of a Ray cluster, as
    `gymnasium.make_vec` makes them; auto takes the fastest that the id has."""
    workers: Annotated[int | None, AT_LEAST_1] = None
    """Processes that share the environments evenly (subprocess, ray); None: one a CPU. More serve environments that
    wait."""
    timeout: Annotated[float | None, POSITIVE] = None
    """Seconds a step may take before its worker counts as lost (subprocess, ray); None: any."""
    address: str | None = None
    """The address of a Ray cluster (ray); None: that of RAY_ADDRESS, or one of this machine's own."""
    max_restarts: Annotated[int, AT_LEAST_0] = 3
    """How often in all an environment that raises, or a worker that dies or does not answer in time, is restarted,
    its episode truncated, before that ends the run (serial, subprocess, ray)."""
    normalize_observations: bool = True
    """Scale observations to mean 0 and variance 1 as they come in (images and discrete parts are left alone)."""
    normalize_rewards: bool = True
    """Divide rewards by the standard deviation of the running return. Reported returns are the true ones."""
    clip_observations: Annotated[float, POSITIVE] = 10.0
    """Largest magnitude of a normalized observation."""
    clip_rewards: Annotated[float, POSITIVE] = 10.0
    """Largest magnitude of a normalized reward."""


@dataclass(frozen=True)
class AlgorithmSettings:
    """How the agent learns."""

    name: Literal["ppo", "a2c"] = "ppo"
    """ppo: clipped updates over several epochs. a2c: one update on the full rollout."""
    learning_rate: Annotated[float | None, POSITIVE] = None
    """Step size of the optimizer, at the start; None: 1e-3, where images are seen 2.5e-4, written into the run's
    settings."""
    learning_rate_schedule: Schedule = "linear"
    """constant, or linear: falling to 0 at the end of training."""
    n_steps: Annotated[int | None, AT_LEAST_1] = None
    """Steps collected from each environment between two updates; None: 256, or 512 where there is a memory and an
    episode may be longer than 128, written into the run's settings."""
    batch_size: Annotated[int, AT_LEAST_1] = 512
    """Steps in a minibatch, made of complete sequences (ppo)."""
    n_epochs: Annotated[int | None, AT_LEAST_1] = None
    """Passes over a rollout (ppo); None: 5, where images are seen 3, written into the run's settings."""
    sequence_length: Annotated[int | None, AT_LEAST_1] = None
    """Steps through which gradients flow back; a divisor of n_steps. None: the full rollout, or batch_size where that
    is shorter."""
    gamma: Annotated[float, FRACTION] = 0.99
    """Discount of a reward one step later."""
    gae_lambda: Annotated[float, FRACTION] = 0.95
    """Weight of longer returns in the advantage (GAE's lambda): 0 one step, 1 the full episode."""
    clip_range: Annotated[float, POSITIVE] = 0.2
    """Largest change of the probability ratio that is rewarded, at the start (ppo)."""
    clip_range_schedule: Schedule = "constant"
    """constant, or linear: falling to 0 at the end of training (ppo)."""
    clip_range_vf: Annotated[float | None, POSITIVE] = None
    """Largest change of the value in one update; None: no limit (ppo)."""
    normalize_advantage: Literal["rollout", "batch"] | bool = "rollout"
    """Scale advantages to mean 0 and variance 1: once a rollout, with a floor under the deviation, so that what is
    solved stays so; true or batch: in every minibatch, as sb3-contrib; false: not at all."""
    ent_coef: Annotated[float | None, AT_LEAST_0] = None
    """Weight of the entropy bonus, at the start; None: 0.05, written into the run's settings."""
    ent_coef_schedule: Schedule | None = None
    """constant, or linear: falling to 0 at the end of training; None: linear where ent_coef is None, else constant,
    written into the run's settings."""
    vf_coef: Annotated[float, AT_LEAST_0] = 0.5
    """Weight of the value loss."""
    max_grad_norm: Annotated[float, Range(lambda value: value > 0, "greater than 0")] = 0.5
    """Largest norm of the gradient; .inf: no limit."""
    noise_correlation: Annotated[float | None, Range(lambda value: 0 <= value < 1, "at least 0 and below 1")] = None
    """Correlation of the noise of actions from one step to the next, in one environment of eight, at the start: noise
    that lasts finds rare rewards, and a memory learns not to mind actions that are the same again and again; None: 0.9
    for continuous actions, 0.99 for others where a memory reads the previous ones, else, and with use_sde, 0, written
    into the run's settings."""
    noise_correlation_schedule: Schedule | None = None
    """constant, or linear: falling to 0 at the end of training; None: linear for continuous actions where
    noise_correlation is None, else constant, written into the run's settings."""
    use_sde: bool = False
    """Generalized state-dependent exploration, for continuous actions: noise that lasts, where a reward is rare."""
    sde_sample_freq: Annotated[int, Range(lambda value: value == -1 or value >= 1, "-1 or at least 1")] = -1
    """Steps between two draws of its noise; -1: once a rollout."""
    target_kl: Annotated[float | None, POSITIVE] = None
    """Stop an update where the policy has moved further than this; None: never (ppo)."""
    autocast: Literal["bfloat16"] | None = None
    """Precision of encoder, memory and hidden layers: bfloat16, for large networks on a GPU; None: float32. Recurrent
    cells, last layers, losses and weights are float32 in any case."""
    refresh_states: bool = False
    """Between epochs, recompute the states that sequences start from with the current weights (ppo)."""
    burn_in: Annotated[int, AT_LEAST_0] = 0
    """Steps before a sequence that warm the state it starts from; at most sequence_length (ppo)."""


@dataclass(frozen=True)
class PolicySettings:
    """The network: encoder, memory, heads."""

    memory: str = "hybrid"
    """What is carried between steps: none, rnn, lstm, gru, mingru, lru, ffm, deltanet, hybrid, gtrxl,
    attention, `module:Class`. hybrid learns most tasks (docs/robustness.md); lstm and gru train in half its time."""
    memory_kwargs: Kwargs = field(default_factory=dict)
    """Arguments of the memory: `hidden_size=128 num_layers=2`."""
    critic_memory: Literal["shared", "detached", "separate", "none"] = "shared"
    """The critic's memory: shared with the actor, detached (shared, without its gradient), separate, or none."""
    encoder: str | None = None
    """What turns an observation into features: flatten, scaled, nature_cnn, impala, image, embedding, text, combined,
    sequence, attention, transformer, seq2seq, graph, or `module:Class`; None: chosen by the observation space, part by
    part, and printed as training starts."""
    encoder_kwargs: Kwargs = field(default_factory=dict)
    """Arguments of the encoder; of parts of a Dict that are to have another one: `encoders='{camera: impala}'`."""
    actions: Literal["flat", "nodes", "links"] = "flat"
    """What actions are about: flat: the whole observation; nodes, links: an action for each node or edge of a graph,
    encoder graph."""
    first_node: Annotated[int, AT_LEAST_0] = 0
    """The node that the first action is about, where actions are about nodes."""
    net_arch: Annotated[tuple[int, ...] | None, EACH_AT_LEAST_1] = (64,)
    """Hidden layers between memory and actions; None: as Stable-Baselines3."""
    critic_net_arch: Annotated[tuple[int, ...] | None, EACH_AT_LEAST_1] = None
    """Hidden layers between memory and value; None: as net_arch."""
    activation: Literal["tanh", "relu", "leaky_relu", "elu", "gelu", "silu"] = "tanh"
    """Activation of the hidden layers."""
    log_std_init: Annotated[float, FINITE] = 0.0
    """Logarithm of the first standard deviation of continuous actions."""
    kwargs: Kwargs = field(default_factory=dict)
    """Further policy_kwargs, passed on as they are."""


@dataclass(frozen=True)
class ImitationSettings:
    """A teacher, whose actions the agent learns before it learns from rewards."""

    teacher: str | None = None
    """A run, an agent's file (.zip) or an exported policy (.onnx) that says what it would do; None: no teacher."""
    key: str | None = None
    """The part of a Dict observation that the teacher sees, one of the policy's privileged keys; None: the observation
    as the environment gives it, or the keys that the teacher knows."""
    steps: Annotated[int, AT_LEAST_1] = 8192
    """Environment steps in which it teaches; they do not count among total_timesteps."""
    n_steps: Annotated[int, AT_LEAST_1] = 64
    """Steps collected from each environment between two updates."""
    sequence_length: Annotated[int, AT_LEAST_1] = 32
    """Steps through which gradients flow back."""
    n_epochs: Annotated[int, AT_LEAST_1] = 20
    """Passes over all that was seen so far, after each n_steps."""
    batch_size: Annotated[int, AT_LEAST_1] = 512
    """Steps in a minibatch."""
    learning_rate: Annotated[float, POSITIVE] = 1e-3
    """Step size of the optimizer."""
    mixing: Annotated[float, FRACTION] = 0.0
    """The teacher acts itself with this probability to the power of the rollout's number: in the first always."""
    critic_steps: Annotated[int, AT_LEAST_0] = 8192
    """Environment steps after that in which the critic alone learns; 0: none."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Periodic evaluation on separate environments; the best agent is kept as best.zip."""

    every: Annotated[int, AT_LEAST_0] = 20_000
    """Environment steps between two evaluations; 0: never."""
    episodes: Annotated[int, AT_LEAST_1] = 40
    """Episodes each time, half of them with sampled actions and half with deterministic ones."""
    final_episodes: Annotated[int, AT_LEAST_0] = 100
    """Episodes of each evaluation after training, of the best agent and of the last one, both ways; 0: none."""
    n_envs: Annotated[int | None, AT_LEAST_1] = None
    """Environments evaluated side by side, at most the number of episodes; None: as many as in training."""
    deterministic: bool = True
    """Choose the best agent by its return with deterministic actions, instead of sampled ones, and act so."""
    max_steps: Annotated[int | None, AT_LEAST_1] = 10_000
    """Steps after which an episode is truncated; None: never. Needed where an environment has no time limit."""
    share: Annotated[float | None, Range(lambda value: 0 < value <= 1, "greater than 0 and at most 1")] = 0.1
    """Environment steps that evaluations may take, those after training included, as a share of the steps of training:
    where episodes are long, fewer are played, and less often; None: any."""
    stop_at_return: Annotated[float | None, FINITE] = None
    """End training when an evaluation's mean return reaches this; None: train to the end."""


@dataclass(frozen=True)
class CheckpointSettings:
    """Models saved while training."""

    every: Annotated[int, AT_LEAST_0] = 100_000
    """Environment steps between two checkpoints; 0: only the last."""
    keep: Annotated[int, AT_LEAST_1] = 3
    """Checkpoints kept, the latest ones."""


@dataclass(frozen=True)
class TrackingSettings:
    """Where metrics go. metrics.csv in the run directory is always written."""

    log_interval: Annotated[int, AT_LEAST_1] = 1
    """Updates between two rows of metrics."""
    memory_diagnostics: bool = True
    """Log gradients by lag, norms and saturation of the memory, and ratios by position, sampled every few updates."""
    tensorboard: bool = True
    """Write TensorBoard events too."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases; online becomes offline where there is no key or no network."""
    wandb_project: str = "recurl"
    """Project there."""
    wandb_entity: str | None = None
    """User or team there; None: your default."""
    wandb_group: str | None = None
    """Group of runs there; None: the runs that differ in nothing but their seed share one."""
    wandb_tags: tuple[str, ...] = ()
    """Tags of the run there."""
    wandb_timeout: Annotated[float, POSITIVE] = 8.0
    """Seconds to wait for its server, at the start and again at the end."""
    wandb_video: bool = True
    """Film an episode of the best agent for it when training has ended, where the environment can be rendered and
    `recurl[video]` is installed."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run."""

    env: EnvironmentSettings = EnvironmentSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    policy: PolicySettings = PolicySettings()
    imitation: ImitationSettings = ImitationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()
    total_timesteps: Annotated[int, AT_LEAST_1] = 500_000
    """Environment steps to train for, over all environments."""
    seed: Annotated[int, Range(lambda value: 0 <= value < 2**31, "between 0 and 2147483647")] = 0
    """Decides every random number: the same seed, and threads, on the same machine give the same run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    threads: Annotated[int | None, AT_LEAST_1] = None
    """CPU threads of torch. None: measured on the agent before training and written into the run's settings, which
    repeat the run bit for bit; a number makes this command do so too, whatever else the machine is doing."""
    runs: str = "runs"
    """Folder in which the run's directory is created."""
    name: str | None = None
    """Name of that directory; None: environment, memory, seed and time."""
    group: str | None = None
    """Name of the runs that differ in their seed alone; given by --seeds."""
    progress: bool = True
    """Show the progress of training."""

    @property
    def rollout(self) -> tuple[int, int]:
        """Environments, and the steps of each between two updates, of settings in which both are chosen."""
        n_envs, n_steps = self.env.n_envs, self.algorithm.n_steps
        assert n_envs is not None
        assert n_steps is not None
        return n_envs, n_steps

    def check(self) -> None:
        """Raises :class:`SettingsError` that names every setting out of range."""
        found = problems(self)
        if found:
            raise SettingsError("\n".join(f"{key} {message}" for key, message in found))


class Declared(NamedTuple):
    """A setting's type and range."""

    type: Any
    limit: Range | None


def _declared(group: type[Any], prefix: str = "") -> Iterator[tuple[str, Declared]]:
    for name, hint in get_type_hints(group, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from _declared(cast(type[Any], hint), f"{prefix}{name}.")
        else:
            kind, limit = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
            yield f"{prefix}{name}", Declared(kind, limit)


SETTINGS: dict[str, Declared] = dict(_declared(Settings))
"""Every setting by its dotted key: algorithm.gamma."""


def values(settings: Settings) -> dict[str, Any]:
    """The value of every setting by its dotted key."""
    return {key: attrgetter(key)(settings) for key in SETTINGS}


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings with other values, by dotted key."""
    groups: dict[str, dict[str, Any]] = {"": {}}
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        groups.setdefault(group, {})[name] = value
    own = groups.pop("")
    replaced = {group: dataclasses.replace(getattr(settings, group), **each) for group, each in groups.items()}
    return dataclasses.replace(settings, **replaced, **own)


BEFORE: dict[str, Any] = {
    "env.previous_action_reward": False,
    "env.address": None,
    "algorithm.ent_coef_schedule": "constant",
    "algorithm.noise_correlation": 0.0,
    "algorithm.noise_correlation_schedule": "constant",
    "evaluation.share": None,
    **{f"imitation.{each.name}": each.default for each in dataclasses.fields(ImitationSettings)},
}
"""What settings meant before they had a name: in a file that names all others, which a run has written, they are so."""


def as_meant(found: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file by dotted key, and where an older run has written all of them what has a name since."""
    unsaid = SETTINGS.keys() - found.keys()
    if not found or not unsaid <= BEFORE.keys():
        return dict(found)
    whole = {**{key: BEFORE[key] for key in unsaid}, **found}
    if whole["algorithm.name"] == "a2c":
        whole["algorithm.n_epochs"] = None  # once it had a value there too
    if whole["policy.memory"] in MEMORIES:
        kwargs = whole["policy.memory_kwargs"]
        whole["policy.memory_kwargs"] = {RENAMED_MEMORY_KWARGS.get(name, name): it for name, it in kwargs.items()}
    return whole


def wrappers(settings: Settings) -> tuple[Wrapper, ...]:
    """The wrappers that are chosen, and around them what lets the agent see its last action and reward."""
    chosen, wanted = settings.env.wrappers or (), settings.env.previous_action_reward
    if wanted is None:
        wanted = settings.policy.memory != "none" and settings.policy.encoder is None and not _shows_previous(chosen)
    return (*chosen, {PREVIOUS: {"start": True}}) if wanted else chosen


def remembers_actions(settings: Settings) -> bool:
    """Whether there is a memory, and the last action is among what it reads."""
    return settings.policy.memory != "none" and _shows_previous(wrappers(settings))


def _shows_previous(chosen: Sequence[Wrapper]) -> bool:
    return any(each == PREVIOUS or (isinstance(each, dict) and PREVIOUS in each) for each in chosen)


SCHEDULED = ("learning_rate", "ent_coef", "clip_range", "noise_correlation")
"""Settings of the algorithm that have a schedule, under their name and `_schedule`."""

PPO_ONLY = (
    *("batch_size", "n_epochs", "clip_range", "clip_range_schedule", "clip_range_vf", "target_kl"),
    *("refresh_states", "burn_in"),
)
"""Settings of the algorithm that a2c has not."""

MAY_DIFFER = (
    *("total_timesteps", "device", "threads", "progress", "evaluation", "checkpoint", "tracking"),
    *("env.workers", "env.timeout", "env.address", "env.max_restarts"),
)
"""Settings, or groups of them, that a run can be resumed with others of: they do not decide what it has learned."""


def check_resumable(recorded: Settings, requested: Settings) -> None:
    """Raises :class:`SettingsError` that names every setting a run cannot be resumed with, and both its values."""
    before, now = values(recorded), values(requested)
    found = [
        f"{key} is {shown(now[key])}, but the run was made with {shown(before[key])}"
        for key in SETTINGS
        if now[key] != before[key] and key not in MAY_DIFFER and key.partition(".")[0] not in MAY_DIFFER
    ]
    if found:
        may = ", ".join(MAY_DIFFER)
        raise SettingsError("\n".join([*found, f"leave it out, or start a new run; what may differ is {may}"]))


def problems(settings: Settings) -> list[tuple[str, str]]:
    """(dotted key, what is wrong with it) for every setting that cannot be used."""
    algorithm, policy, env = settings.algorithm, settings.policy, settings.env
    found = [*_out_of_range(settings), *_unusable_algorithm(algorithm), *_unusable_policy(policy)]
    found += [*_unusable_environment(env), *_unusable_imitation(settings.imitation, policy)]
    if (name := settings.name) is not None and (name in {"", ".", ".."} or any(mark in name for mark in "/\\\0")):
        found.append(("name", f"must be the name of one directory, got {name!r}; runs chooses the folder around it"))
    return found


def _out_of_range(settings: Settings) -> Iterator[tuple[str, str]]:
    for key, value in values(settings).items():
        kind, limit = SETTINGS[key]
        if limit is not None and value is not None and not limit.holds(value):
            yield key, f"must be {limit.words}, got {shown(value)}"
        choices = _choices(kind)
        if choices and value not in choices:
            yield key, f"must be one of {', '.join(map(str, choices))}; got {value!r}"


def _unusable_algorithm(algorithm: AlgorithmSettings) -> Iterator[tuple[str, str]]:
    steps, length = algorithm.n_steps, algorithm.sequence_length
    if steps is not None and length is not None and length >= 1 and steps % length:
        below = steps // length * length
        use = f"{below} or {below + length}" if below > 0 else f"{length}"
        yield "algorithm.n_steps", f"({steps}) must be a multiple of sequence_length ({length}); use {use}"
    longest = next((each for each in (length, steps) if each is not None), N_STEPS)
    if algorithm.burn_in > longest >= 1:
        yield "algorithm.burn_in", f"must be at most sequence_length ({longest}), got {algorithm.burn_in}"
    if algorithm.name == "a2c":
        for name in PPO_ONLY:
            if getattr(algorithm, name) != getattr(AlgorithmSettings, name):
                yield f"algorithm.{name}", "is a setting of ppo; a2c has none, leave it out"


def _unusable_policy(policy: PolicySettings) -> Iterator[tuple[str, str]]:
    yield from _unknown_choice("memory", policy.memory, policy.memory_kwargs, MEMORIES)
    if policy.encoder is not None:
        yield from _unknown_choice("encoder", policy.encoder, policy.encoder_kwargs, ENCODERS)
    if policy.actions != "nodes" and policy.first_node:
        yield "policy.first_node", f"goes with policy.actions nodes, not with {policy.actions}; leave it out"
    if policy.actions != "flat" and policy.encoder in ENCODERS and policy.encoder != "graph":
        yield (
            "policy.actions",
            f"{policy.actions} are those of encoder graph, not of {policy.encoder}; use that, or actions flat",
        )


def _unusable_imitation(imitation: ImitationSettings, policy: PolicySettings) -> Iterator[tuple[str, str]]:
    if imitation.teacher is None:
        if imitation != ImitationSettings():
            yield "imitation.teacher", "is missing: give a run or a file, or leave the other settings of imitation out"
        return
    if imitation.key is not None and imitation.key not in policy.kwargs.get("privileged", ()):
        yield (
            "imitation.key",
            f"names what the teacher sees, and the actor would act on it: --policy.kwargs "
            f"'privileged=[{imitation.key}]' --policy.critic-memory separate",
        )


def _unknown_choice(
    kind: str, name: str, kwargs: Kwargs, known: dict[str, tuple[str, ...]]
) -> Iterator[tuple[str, str]]:
    if name not in known and not _is_class(name):
        hint = did_you_mean(name, tuple(known))
        yield f"policy.{kind}", f"must be {', '.join(known)} or module:Class; got {name!r}{hint}"
    taken = known.get(name, tuple(kwargs))
    for argument in (each for each in kwargs if each not in taken):
        hint = did_you_mean(argument, taken) or f"; known are {', '.join(taken) or 'none'}"
        yield f"policy.{kind}_kwargs", f"holds {argument!r}, which {name} does not take{hint}"


_PROCESSES = ("subprocess", "ray")
"""Backends whose environments are stepped in other processes."""


def _unusable_environment(env: EnvironmentSettings) -> Iterator[tuple[str, str]]:
    if not env.id.strip():
        yield "env.id", "is empty; give a Gymnasium id, such as CartPoleNoVel-v1"
    for name, backends in (("workers", _PROCESSES), ("timeout", _PROCESSES), ("address", ("ray",))):
        if getattr(env, name) is not None and env.backend not in backends:
            yield f"env.{name}", f"goes with env.backend {' or '.join(backends)}, not with {env.backend}; leave it out"
    chosen: tuple[Any, ...] = env.wrappers or ()
    for wrapper in chosen:
        is_pair = isinstance(wrapper, dict) and len(wrapper) == 1
        name, kwargs = next(iter(wrapper.items())) if is_pair else (wrapper, {})
        if not isinstance(name, str) or not isinstance(kwargs, dict | None):
            listed = isinstance(wrapper, list)
            hint = "; give each wrapper as a word of its own, without brackets around them" if listed else ""
            yield "env.wrappers", f"must hold names or {{name: {{argument: value}}}}, got {wrapper!r}{hint}"
        elif any(isinstance(key, str) and ":" in key and value is None for key, value in (kwargs or {}).items()):
            yield (
                "env.wrappers",
                f"must hold {{name: {{argument: value}}}}, with a space after each colon; got {wrapper!r}",
            )
        elif name not in WRAPPERS and not _is_class(name):
            hint = did_you_mean(name, WRAPPERS)
            yield "env.wrappers", f"must hold {', '.join(WRAPPERS)} or module:Class; got {name!r}{hint}"


def did_you_mean(name: str, known: tuple[str, ...]) -> str:
    """``; did you mean 'lstm'?`` where a known name is near, else nothing."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _is_class(name: str) -> bool:
    module, _, attribute = name.partition(":")
    return bool(module) and attribute.isidentifier()


def _choices(declared: Any) -> tuple[Any, ...]:
    """The values of a Literal, None, or true and false, among them where it may be that; none for any other type."""
    kinds = get_args(declared) if get_origin(declared) in (Union, types.UnionType) else (declared,)
    named = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    further = {type(None): (None,), bool: (True, False)}
    return (*named, *(choice for kind in kinds for choice in further.get(kind, ()))) if named else ()


def shown(value: Any) -> str:
    """A setting's value as a person writes it."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={each}" for key, each in value.items()) or "empty"
    return (" ".join(map(str, value)) if isinstance(value, tuple) else str(value)) or "empty"
