"""Every argument is checked before anything runs, and says what was expected, what came and what to do."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from agents import RecurrentA2C, RecurrentPPO
from agents.checks.spaces import check_observation_space
from tests.agents.probe_envs import MaskedClock, policy_arguments, small_ppo, vectorized
from tests.pairs import each

NAN, INF = float("nan"), float("inf")


BOX, TWO = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)


class Stub(gym.Env[Any, Any]):
    """An environment of any spaces, with the numbers that a test wants in its observations and rewards."""

    def __init__(
        self,
        observation_space: spaces.Space[Any] = BOX,
        action_space: spaces.Space[Any] = TWO,
        observe: Callable[[int], Any] | None = None,
        reward: Callable[[int], float] = lambda t: 1.0,
        length: int = 3,
        truncates: bool = True,
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self._observe, self._reward, self._length, self._truncates = observe, reward, length, truncates
        self._t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._t = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = self._reward(self._t)
        self._t += 1
        over = self._t >= self._length
        return self._observation(), reward, over and not self._truncates, over and self._truncates, {}

    def _observation(self) -> Any:
        return self.observation_space.sample() if self._observe is None else self._observe(self._t)


def train(
    env: Any = None, policy: Any = "RecurrentPolicy", learn: Any = 16, cls: Any = RecurrentPPO, **kwargs: Any
) -> Any:
    """Builds a model and lets it learn: by default this works."""
    settings: dict[str, Any] = dict(n_steps=8, device="cpu", seed=0)
    if cls is RecurrentPPO:
        settings.update(batch_size=8, n_epochs=1)
    if isinstance(policy, str) and policy == "RecurrentPolicy":
        settings["policy_kwargs"] = dict(memory_kwargs=dict(hidden_size=4))
    return cls(policy, Stub() if env is None else env, **{**settings, **kwargs}).learn(learn)


OF_BOTH = [
    ("gamma", 9.9, "gamma must be between 0 and 1, got 9.9"),
    ("gamma", NAN, "gamma must be a finite number, got nan"),
    ("gamma", None, "gamma must be a finite number, got None"),
    ("gae_lambda", 1.1, "gae_lambda must be between 0 and 1"),
    ("gae_lambda", True, "gae_lambda must be a finite number, got True"),
    ("learning_rate", -1e-3, "learning_rate must be at least 0"),
    ("learning_rate", "1e-3", "learning_rate must be a finite number, got '1e-3'"),
    ("n_steps", 0, "n_steps must be a whole number of at least 1, got 0"),
    ("n_steps", 2.5, "n_steps must be a whole number of at least 1, got 2.5"),
    ("autocast", "float16", "autocast must be None or 'bfloat16', got 'float16'"),
    ("sequence_length", 3, "use n_steps 6 or 9, or another sequence_length"),
    ("sequence_length", 0, "sequence_length must be a whole number of at least 1"),
    ("sequence_length", 4.0, "sequence_length must be a whole number of at least 1"),
    ("ent_coef", INF, "ent_coef must be a finite number"),
    ("vf_coef", -0.5, "vf_coef must be at least 0"),
    ("max_grad_norm", 0, "max_grad_norm must be a number above 0"),
    ("max_grad_norm", NAN, "max_grad_norm must be a number above 0"),
    ("use_sde", "yes", "use_sde|continuous actions"),
    ("sde_sample_freq", 0, "sde_sample_freq must be -1 .* or a number of steps, got 0"),
    ("normalize_advantage", "no", "normalize_advantage must be True, False, 'batch' or 'rollout', got 'no'"),
    ("stats_window_size", 0, "stats_window_size must be a whole number"),
    ("policy_kwargs", 3, "policy_kwargs must be a dict of arguments, got 3"),
    ("seed", -1, "seed must be None or a whole number from 0"),
    ("seed", "one", "seed must be None or a whole number"),
    ("seed", 2**32, r"2\*\*32 - 1"),
]

OF_PPO = [
    ("batch_size", 0, "batch_size must be a whole number of at least 1, got 0"),
    ("n_epochs", 0, "n_epochs must be a whole number of at least 1"),
    ("n_epochs", True, "n_epochs must be a whole number"),
    ("clip_range", 0, "clip_range must be a number above 0"),
    ("clip_range", None, "clip_range must be a number above 0"),
    ("clip_range_vf", -1, "clip_range_vf must be a number above 0"),
    ("target_kl", 0, "target_kl must be a number above 0"),
    ("target_kl", INF, "target_kl must be a finite number"),
    ("refresh_states", "no", "refresh_states must be True or False, got 'no'"),
    ("burn_in", -1, "burn_in must be a whole number of at least 0, got -1"),
]

OF_A2C = [("rms_prop_eps", 0, "rms_prop_eps must be a number above 0"), ("rms_prop_eps", NAN, "rms_prop_eps must be")]


@pytest.mark.parametrize(
    ("cls", "name", "value", "message"),
    [(RecurrentPPO, *case) for case in OF_BOTH + OF_PPO] + [(RecurrentA2C, *case) for case in OF_BOTH + OF_A2C],
)
def test_a_wrong_setting_is_refused_at_construction(cls: Any, name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(cls=cls, learn=0, **{name: value})


@pytest.mark.parametrize("cls", [RecurrentPPO, RecurrentA2C])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", 0),
        ("gamma", 1),
        ("gamma", np.float32(0.5)),
        ("n_steps", np.int64(4)),
        ("sequence_length", np.int64(2)),
        ("learning_rate", 0.0),
        ("learning_rate", np.float32(1e-3)),
        ("ent_coef", np.float64(0.1)),
        ("max_grad_norm", np.int64(1)),
        ("learning_rate", lambda progress: 1e-3 * progress),
        ("max_grad_norm", INF),
        ("ent_coef", -0.01),
        ("normalize_advantage", np.True_),
        ("normalize_advantage", "batch"),
        ("normalize_advantage", "rollout"),
        ("seed", None),
        ("seed", np.int64(7)),
    ],
)
def test_settings_at_the_edge_of_what_makes_sense_work(cls: Any, name: str, value: Any, tmp_path: Path) -> None:
    model = train(cls=cls, **{name: value})
    assert model.num_timesteps == 16
    if not callable(value):
        model.save(tmp_path / "model.zip")
        assert cls.load(tmp_path / "model.zip", env=Stub(), device="cpu").learn(16).num_timesteps == 16


@pytest.mark.parametrize(
    ("total", "message"),
    [(NAN, "got nan"), (-5, "got -5"), ("1000", "got '1000'"), (None, "got None"), (True, "got True")],
)
@pytest.mark.parametrize("cls", [RecurrentPPO, RecurrentA2C])
def test_a_total_that_is_no_number_of_steps_is_refused(cls: Any, total: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"total_timesteps must be a number of at least 0, {message}"):
        train(cls=cls, learn=total)


def test_a_total_may_be_a_float_and_zero_trains_nothing() -> None:
    assert train(learn=1.6e1).num_timesteps == 16
    assert train(learn=0).num_timesteps == 0


NOT_SUPPORTED, GENERAL = NotImplementedError, "RecurrentPolicy"
POLICIES = [
    ("MlpLstm", ValueError, "no policy is called 'MlpLstm'; did you mean 'MlpLstmPolicy'"),
    ("MlpPolicy", ValueError, "did you mean 'MlpLstmPolicy'.*there are RecurrentPolicy, MlpLstmPolicy, CnnLstmPolicy"),
    ("xyz", ValueError, "no policy is called 'xyz'; there are"),
    (ActorCriticPolicy, ValueError, "subclass of agents.RecurrentActorCriticPolicy .*got stable_baselines3"),
    (nn.Linear, ValueError, "subclass of agents.RecurrentActorCriticPolicy .*got torch.nn"),
    (3, ValueError, "subclass of agents.RecurrentActorCriticPolicy .*got 3"),
]
ARGUMENTS: list[tuple[dict[str, Any], Any, str]] = [
    (dict(memory="lstn"), ValueError, "did you mean 'lstm'"),
    (dict(memory=3), TypeError, "memory must be a name, 'module:Class' or a subclass"),
    (dict(memory=nn.LSTM), TypeError, "subclass of agents.memory.Memory"),
    (dict(memory_kwargs=dict(hiden_size=3)), TypeError, "did you mean 'hidden_size'"),
    (dict(memory_kwargs=dict(hidden_size=0)), ValueError, "hidden_size must be a whole number of at least 1"),
    (dict(memory="none", memory_kwargs=dict(hidden_size=3)), TypeError, "takes no 'hidden_size'"),
    (dict(memory_kwargs=3), ValueError, "memory_kwargs must be a dict of arguments, got 3"),
    (dict(critic_memory="both"), ValueError, "critic_memory is one of shared, detached, separate, none"),
    (dict(share_features_extractor=False), ValueError, 'use critic_memory="separate"'),
    (dict(action_mask="mask"), ValueError, "action_mask names a key of a Dict observation"),
    (dict(privileged=["state"]), ValueError, "privileged is a list of keys of a Dict observation"),
    (dict(foo=1), TypeError, "unexpected keyword argument 'foo'"),
    (dict(squash_output=True), (ValueError, AssertionError), "gSDE"),
]
LSTM_ARGUMENTS = [
    (dict(shared_lstm=True, enable_critic_lstm=True), "exclude each other.*set enable_critic_lstm=False to share"),
    (dict(lstm_kwargs=dict(proj_size=3)), "proj_size=3 is not supported: .*set lstm_hidden_size instead"),
    (dict(lstm_kwargs=dict(bidirectional=True)), "a policy cannot read the future"),
    (dict(lstm_kwargs=dict(batch_first=True)), "batch_first=True is not supported"),
    (dict(lstm_kwargs=dict(num_layers=2)), "no argument of an LSTM memory. Supported are bias and dropout"),
    (dict(lstm_hidden_size=0), "hidden_size must be a whole number"),
    (dict(n_lstm_layers=0), "num_layers must be a whole number"),
]
TINY = spaces.Box(0, 255, (7, 7, 3), np.uint8)
OBSERVATIONS = [
    ("MlpLstmPolicy", spaces.Dict(a=BOX), ValueError, "MultiInputLstmPolicy"),
    ("CnnLstmPolicy", spaces.Dict(a=BOX), ValueError, "MultiInputLstmPolicy"),
    ("MultiInputLstmPolicy", BOX, ValueError, "MlpLstmPolicy"),
    ("CnnLstmPolicy", BOX, ValueError, "MlpLstmPolicy"),
    (GENERAL, spaces.Box(0, 1, (0,)), NOT_SUPPORTED, "hold no number; give them a constant one in a wrapper"),
    (GENERAL, spaces.Dict(a=BOX, b=spaces.OneOf([BOX])), ValueError, "the part 'b' of .*OneOf.*ObservationWrapper"),
    ("MlpLstmPolicy", spaces.Tuple((BOX,)), ValueError, "MultiInputLstmPolicy"),
    ("CnnLstmPolicy", TINY, ValueError, "at least 36 x 36.*RecurrentPolicy"),
    ("MultiInputLstmPolicy", spaces.Dict(a=TINY), ValueError, "'a' .*at least 36 x 36.*RecurrentPolicy"),
]
ACTIONS = [spaces.Text(3), spaces.MultiDiscrete([[2, 2], [3, 3]])]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *((dict(policy=policy), error, message) for policy, error, message in POLICIES),
        *((dict(policy_kwargs=kwargs), error, message) for kwargs, error, message in ARGUMENTS),
        *((dict(policy="MlpLstmPolicy", policy_kwargs=kwargs), ValueError, text) for kwargs, text in LSTM_ARGUMENTS),
        *((dict(policy=policy, env=Stub(space)), error, text) for policy, space, error, text in OBSERVATIONS),
        *((dict(env=Stub(action_space=space)), NOT_SUPPORTED, "use Discrete, MultiDiscrete") for space in ACTIONS),
        (dict(use_sde=True), ValueError, "can only be used with continuous actions"),
    ],
)
def test_a_policy_or_space_that_cannot_be_trained_is_refused_with_what_to_do(
    arguments: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        train(**arguments)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(3),
        spaces.MultiBinary((2, 2)),
        spaces.Box(-1, 1, (2, 3), dtype=np.float64),
        spaces.Box(-5, 5, (2,), dtype=np.int32),
        spaces.Dict(a=BOX, b=spaces.Discrete(3), c=spaces.MultiDiscrete([2, 2])),
        spaces.MultiDiscrete([[2, 3], [4, 2]]),
        spaces.Dict({"arm.joint": BOX, "items": spaces.MultiDiscrete([[2, 3]]), "": BOX, "=61": BOX, "a": BOX}),
    ],
)
def test_every_other_observation_space_is_learned_from(space: Any) -> None:
    model = train(Stub(space))
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_an_environment_is_needed_to_train() -> None:
    with pytest.raises(ValueError, match="env is None: give an environment"):
        RecurrentPPO("MlpLstmPolicy", None)


def test_the_policy_is_not_built_where_a_setting_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("built a policy")

    monkeypatch.setattr("agents.policy.actor_critic.RecurrentActorCriticPolicy.__init__", build)
    with pytest.raises(ValueError, match="gamma"):
        train(gamma=9.9)


def one_at(t_of_nan: int, value: float) -> Callable[[int], Any]:
    return lambda t: np.array([value if t == t_of_nan else 0.5, 1.0], dtype=np.float32)


@pytest.mark.parametrize(
    ("memory", "action_space", "cls"),
    each(["lstm", "none"], [spaces.Discrete(2), BOX, spaces.MultiBinary(2)], [RecurrentPPO, RecurrentA2C]),
)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_an_observation_that_is_not_finite_names_its_environment_and_step_and_spares_the_weights(
    memory: str, action_space: Any, cls: Any
) -> None:
    env = vectorized(
        lambda i: Stub(action_space=action_space, observe=one_at(2 if i == 1 else -1, NAN), length=5), n_envs=3
    )
    model = cls("RecurrentPolicy", env, n_steps=8, device="cpu", seed=0, policy_kwargs=policy_arguments(memory))
    with pytest.raises(FloatingPointError, match=r"the observation of environment 1 at step 2 of .* is not finite"):
        model.learn(100)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_a_terminal_observation_that_is_not_finite_is_named() -> None:
    with pytest.raises(FloatingPointError, match=r"the last observation of the episode of environment 0 .* at step 4"):
        train(Stub(observe=one_at(5, NAN), length=5))


def test_the_observation_after_the_last_step_is_checked_too() -> None:
    with pytest.raises(FloatingPointError, match="the observation of environment 0 after the rollout of 8 steps"):
        train(Stub(observe=one_at(8, NAN), length=50))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_reward_that_is_not_finite_names_its_environment_and_step(value: float) -> None:
    env = vectorized(lambda i: Stub(reward=lambda t: value if i == 2 and t == 3 else 1.0, length=5), n_envs=3)
    model = RecurrentPPO("RecurrentPolicy", env, n_steps=8, batch_size=24, device="cpu", seed=0)
    with pytest.raises(FloatingPointError, match=r"the reward of environment 2 at step 3 of .* is not finite"):
        model.learn(100)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_weights_that_are_not_finite_are_distinguished_from_bad_data() -> None:
    model = train()
    with torch.no_grad():
        model.policy.value_net.bias.fill_(NAN)
    with pytest.raises(FloatingPointError, match="training diverged; lower learning_rate"):
        model.learn(16)


class Normalizing(BaseFeaturesExtractor):
    """An extractor with one more layer."""

    def __init__(self, space: Any, layer: Callable[[], nn.Module], freeze: bool = False) -> None:
        super().__init__(space, 2)
        self.layer = layer()
        self._freeze = freeze

    def forward(self, observations: Any) -> Any:
        return self.layer(observations)

    def train(self, mode: bool = True) -> Any:
        return super().train(mode and not self._freeze)


@pytest.mark.parametrize(
    "layer", [lambda: nn.BatchNorm1d(2), lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(2, track_running_stats=False)]
)
def test_layers_that_differ_between_acting_and_learning_are_refused(layer: Any) -> None:
    kwargs = dict(features_extractor_class=Normalizing, features_extractor_kwargs=dict(layer=layer))
    with pytest.raises(ValueError, match=r"features_extractor.layer \(.*\) computes something else in training"):
        train(policy_kwargs=kwargs)


@pytest.mark.parametrize(
    ("layer", "freeze"),
    [(lambda: nn.LayerNorm(2), False), (lambda: nn.Dropout(0.0), False), (lambda: nn.BatchNorm1d(2), True)],
)
def test_layers_that_compute_the_same_are_not(layer: Any, freeze: bool) -> None:
    kwargs = dict(features_extractor_class=Normalizing, features_extractor_kwargs=dict(layer=layer, freeze=freeze))
    assert train(policy_kwargs=kwargs).num_timesteps == 16


def test_an_action_mask_of_another_size_or_for_continuous_actions_is_refused() -> None:
    class WrongMask(MaskedClock):
        def __init__(self, action_space: Any) -> None:
            super().__init__(0, spaces.Discrete(3))
            self.action_space = action_space

    for space, message in (
        (spaces.Discrete(4), "has 3 entries, the action space .* needs 4"),
        (BOX, "can be masked for Discrete, MultiDiscrete and MultiBinary"),
    ):
        with pytest.raises(ValueError, match=message):
            small_ppo(WrongMask(space), policy_kwargs=dict(action_mask="mask"))


def test_a_normalizer_that_would_change_the_action_mask_is_refused() -> None:
    class BoxMask(MaskedClock):
        def __init__(self, index: int) -> None:
            super().__init__(index, spaces.Discrete(3))
            self.observation_space["mask"] = spaces.Box(0, 1, (3,), dtype=np.int8)

    def model(**kwargs: Any) -> Any:
        env = VecNormalize(vectorized(BoxMask, 2), **kwargs)
        return small_ppo(env, policy_kwargs=dict(action_mask="mask"))

    with pytest.raises(ValueError, match="name the other keys in its norm_obs_keys"):
        model().learn(16)
    model(norm_obs_keys=["clock"]).learn(16)  # the environment refuses forbidden actions


def test_a_batch_that_no_sequence_length_fits_warns_and_takes_whole_rollouts() -> None:
    with pytest.warns(UserWarning, match=re.escape("no sequence length near batch_size (5) divides n_steps (7)")):
        model = train(n_steps=7, batch_size=5)
    assert model.rollout_buffer.sequence_length == 7


@pytest.mark.parametrize(
    ("n_steps", "batch_size", "sequence_length"),
    [(128, 100, 64), (128, 128, 128), (128, 1000, 128), (96, 40, 32), (8, 1, 1)],
)
def test_without_a_sequence_length_the_longest_that_fits_a_minibatch_is_taken(
    n_steps: int, batch_size: int, sequence_length: int
) -> None:
    model = train(n_steps=n_steps, batch_size=batch_size, learn=0)
    assert model.rollout_buffer.sequence_length == sequence_length


def test_any_key_and_choices_of_several_axes_are_learned_from_by_the_lstm_policies_too(tmp_path: Path) -> None:
    space = spaces.Dict({"arm.joint": BOX, "items": spaces.MultiDiscrete([[2, 3], [4, 2]])})
    model = train(Stub(space), policy="MultiInputLstmPolicy", policy_kwargs=dict(lstm_hidden_size=4))
    assert model.policy.features_extractor.features_dim == 2 + 11
    model.save(tmp_path / "model")
    loaded = RecurrentPPO.load(tmp_path / "model", device="cpu")
    observation = space.sample()
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize(("low", "high"), [(-np.inf, np.inf), (0.0, np.inf), (-np.inf, 0.0)])
def test_actions_are_clipped_only_where_their_space_has_a_bound(low: float, high: float, use_sde: bool) -> None:
    taken = []

    class Noting(Stub):
        def step(self, action: Any) -> Any:
            taken.append(action)
            return super().step(action)

    train(Noting(action_space=spaces.Box(low, high, (2,))), use_sde=use_sde, learn=64)
    actions = np.array(taken)
    assert (actions >= low).all()
    assert (actions <= high).all()
    assert (actions < 0).any() == (low < 0)
    assert (actions > 0).any() == (high > 0)
    assert use_sde or np.abs(actions).max() > 1


def test_squashed_actions_need_bounds() -> None:
    with pytest.raises(ValueError, match=r"squash_output=True scales actions to the bounds .*infinite"):
        train(
            Stub(action_space=spaces.Box(0, np.inf, (2,))),
            use_sde=True,
            policy_kwargs=dict(squash_output=True),
            learn=0,
        )


@pytest.mark.parametrize("diverge", ["weights", "log_std"])
def test_an_action_that_is_not_finite_is_blamed_on_the_policy_and_reaches_no_environment(diverge: str) -> None:
    class Strict(Stub):
        def step(self, action: Any) -> Any:
            assert np.isfinite(action).all()
            return super().step(action)

    model = train(Strict(action_space=spaces.Box(-1, 1, (2,))), learn=0)
    with torch.no_grad():
        if diverge == "weights":
            model.policy.action_net.weight.fill_(NAN)
        else:
            model.policy.log_std.fill_(100.0)
    with pytest.raises(FloatingPointError, match=r"the policy chose an action that is not finite.*lower learning_rate"):
        model.learn(16)


def test_a_policy_whose_weights_diverged_does_not_act_in_silence() -> None:
    model = train(learn=0)
    with torch.no_grad():
        model.policy.action_net.weight.fill_(NAN)
    with pytest.raises(FloatingPointError, match="the policy's output is not finite"):
        model.predict(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Tuple((BOX,)),
        spaces.Box(0, 1, ()),
        spaces.Dict(a=spaces.Dict(b=BOX)),
        spaces.Text(3),
        spaces.Sequence(BOX),
        spaces.Graph(BOX, None),
        spaces.Discrete(3, start=1),
        spaces.Dict(a=spaces.MultiDiscrete([3, 2], start=[0, 1])),
    ],
    ids=str,
)
def test_a_policy_built_on_observations_that_are_no_arrays_says_what_makes_them_such(space: spaces.Space[Any]) -> None:
    with pytest.raises(NotImplementedError, match=r"observation.* envs.as_arrays\(env\)"):
        check_observation_space(space)


def test_masks_of_an_action_masker_give_a_warning_to_policies_of_sb3_contrib() -> None:
    class Masking(Stub):
        def action_masks(self) -> Any:
            return np.array([True, False])

    with pytest.warns(UserWarning, match=r"action_masks\(\).*no effect.*RecurrentPolicy"):
        train(Masking(), "MlpLstmPolicy", learn=0)


def test_a_batch_that_does_not_divide_the_rollout_gives_a_warning() -> None:
    two = vectorized(lambda i: Stub(), 2)
    with pytest.warns(UserWarning, match=r"16 steps in sequences of 8 cannot .*batch_size=12: .* 2 of 8 steps"):
        RecurrentPPO("MlpLstmPolicy", two, n_steps=8, batch_size=12, sequence_length=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch_size in (None, 8, 16, 128):  # a batch larger than the rollout is the rollout
            RecurrentPPO("MlpLstmPolicy", two, n_steps=8, batch_size=batch_size, sequence_length=8)


def test_observations_of_a_vector_environment_are_neither_broadcast_nor_changed() -> None:
    class Changed(DummyVecEnv):
        change: Callable[[Any], Any] = staticmethod(lambda part: part)

        def step_wait(self) -> Any:
            observations, *rest = super().step_wait()
            return self.change(observations), *rest

    changes = {
        "the shape": lambda part: part[:1],
        "cannot hold": lambda part: np.where(part == part, 300, 0),
        "is nan": lambda part: np.full(part.shape, NAN),
        r"is 2\.5": lambda part: np.full(part.shape, 2.5),
    }
    for message, change in changes.items():
        env = Changed([lambda: Stub(spaces.Box(0, 255, (3,), np.uint8))] * 2)
        env.change = change
        with pytest.raises(ValueError, match=message):
            train(env)


@pytest.mark.parametrize("cls", [RecurrentPPO, RecurrentA2C])
def test_updates_that_change_no_weight_give_one_warning(cls: Any) -> None:
    class Standstill(torch.optim.SGD):
        def step(self, closure: Any = None) -> None: ...

    arguments = dict(memory_kwargs=dict(hidden_size=4), optimizer_class=Standstill)
    model = train(cls=cls, learn=0, policy_kwargs=arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(32)
    messages = [str(warning.message) for warning in caught if "changed no weight" in str(warning.message)]
    assert len(messages) == 1
    assert "vf_coef (0.5)" in messages[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(cls=cls)
        train(cls=cls, learning_rate=0.0)  # asked for


def test_large_returns_give_one_warning_where_the_critic_shapes_the_actors_memory() -> None:
    def warned(reward: float = 100.0, normalized: bool = False, **policy_kwargs: Any) -> list[str]:
        env: Any = vectorized(lambda _: Stub(reward=lambda t: reward), 2)
        policy = dict(memory_kwargs=dict(hidden_size=4)) | policy_kwargs
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(VecNormalize(env) if normalized else env, learn=48, policy_kwargs=policy)
        return [str(each.message) for each in caught if "returns are large" in str(each.message)]

    (message,) = warned()
    assert "VecNormalize(env)" in message
    assert 'policy_kwargs={"critic_memory": "separate"}' in message
    assert not warned(reward=1.0)
    assert not warned(normalized=True)
    assert not any(warned(critic_memory=each) for each in ("separate", "detached", "none"))
    assert not warned(memory="none", memory_kwargs={})


@pytest.mark.parametrize("within", ["alone", "in a dict"])
def test_one_observation_and_several_of_choices_along_two_axes_are_distinguished(within: str) -> None:
    space: spaces.Space[Any] = spaces.MultiDiscrete([[2, 3], [4, 2]])
    one: Any = np.array([[1, 2], [3, 0]])
    several: Any = np.stack([one, one, one])
    if within == "in a dict":
        space, one, several = spaces.Dict(a=space), {"a": one}, {"a": several}
    model = train(Stub(space), learn=0)
    action, _ = model.predict(one, deterministic=True)
    actions, _ = model.predict(several, deterministic=True)
    assert action.shape == ()
    np.testing.assert_array_equal(actions, [action] * 3)
