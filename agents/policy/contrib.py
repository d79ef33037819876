"""The policies of ``sb3_contrib.RecurrentPPO``, argument by argument, as cases of the general policy."""

from collections.abc import Mapping
from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from torch import nn, optim

from agents.encoders.vision import SMALLEST_OF_NATURE_CNN
from agents.memory import Memory, State
from agents.policy.actor_critic import RecurrentActorCriticPolicy

_OURS = ("memory", "memory_kwargs", "critic_memory", "action_mask", "privileged")
_THEIRS = ("lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs")


class LstmPolicy(RecurrentActorCriticPolicy):
    """``"MlpLstmPolicy"``: the policy of ``sb3_contrib.RecurrentPPO``.

    Args:
        lstm_hidden_size: units of each layer.
        n_lstm_layers: layers.
        shared_lstm: the critic reads the actor's LSTM without shaping it (our ``critic_memory="detached"``).
        enable_critic_lstm: the critic has an LSTM of its own (``"separate"``).
        lstm_kwargs: ``bias`` and ``dropout`` of ``torch.nn.LSTM``. Dropout masks are drawn once a rollout and used in
            acting and learning alike, so that probability ratios start at one (Hausknecht & Wagener 2022).

    The state of ``predict`` is (hidden, cell), each (layers, B, units), as there. Initial weights are torch's own; the
    general policy with ``memory="lstm"`` initializes with more care.
    """

    _default_extractor: type[BaseFeaturesExtractor] = FlattenExtractor
    _adam: ClassVar[Mapping[str, Any]] = {"eps": 1e-5}  # as there

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[optim.Optimizer] = optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        lstm_hidden_size: int = 256,
        n_lstm_layers: int = 1,
        shared_lstm: bool = False,
        enable_critic_lstm: bool = True,
        lstm_kwargs: dict[str, Any] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__", *_THEIRS)}
        if features_extractor_class is None:
            _check_extractor_fits(type(self), self._default_extractor, observation_space, not normalize_images)
            given["features_extractor_class"] = self._default_extractor
        self.lstm_hidden_size, self.n_lstm_layers = lstm_hidden_size, n_lstm_layers
        self.shared_lstm, self.enable_critic_lstm = shared_lstm, enable_critic_lstm
        self.lstm_kwargs = dict(lstm_kwargs or {})
        super().__init__(
            **given,
            memory="lstm",
            memory_kwargs=dict(
                hidden_size=lstm_hidden_size,
                num_layers=n_lstm_layers,
                initialization="torch",
                chrono_horizon=None,
                **_checked_lstm_kwargs(self.lstm_kwargs),
            ),
            critic_memory=_critic_memory_of(shared_lstm, enable_critic_lstm),
        )

    @property
    def lstm_output_dim(self) -> int:
        """Size of what the actor's memory gives, and its heads read."""
        return self.memory_actor.output_size

    @property
    def lstm_actor(self) -> Memory:
        """The actor's memory."""
        return self.memory_actor

    @property
    def lstm_critic(self) -> Memory | None:
        """The critic's own LSTM, None if it has none."""
        return self.memory_critic if self.enable_critic_lstm else None

    @property
    def lstm_hidden_state_shape(self) -> tuple[int, int, int]:
        """(layers, 1, units): of one environment's hidden or cell state in ``predict``."""
        return (self.n_lstm_layers, 1, self.lstm_hidden_size)

    def _batch_first(self, state: State) -> State:
        return tuple(part.transpose(0, 1) for part in state)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        kept = {name: value for name, value in parameters.items() if name not in _OURS}
        return {**kept, **{name: getattr(self, name) for name in _THEIRS}}


MlpLstmPolicy = LstmPolicy


class CnnLstmPolicy(LstmPolicy):
    """``"CnnLstmPolicy"``: the same for images."""

    _default_extractor = NatureCNN


class MultiInputLstmPolicy(LstmPolicy):
    """``"MultiInputLstmPolicy"``: the same for Dict observations."""

    _default_extractor = CombinedExtractor


def own_policy(policy: Any) -> Any:
    """The name of our policy where a class of ``sb3_contrib.ppo_recurrent`` is given; anything else unchanged."""
    theirs = {
        "RecurrentActorCriticPolicy": "MlpLstmPolicy",
        "RecurrentActorCriticCnnPolicy": "CnnLstmPolicy",
        "RecurrentMultiInputActorCriticPolicy": "MultiInputLstmPolicy",
    }
    if isinstance(policy, type) and policy.__module__ == "sb3_contrib.common.recurrent.policies":
        return theirs.get(policy.__name__, policy)
    return policy


def _check_extractor_fits(
    policy: type[LstmPolicy], extractor: type[BaseFeaturesExtractor], space: spaces.Space[Any], normalized_image: bool
) -> None:
    """sb3-contrib's policies each have an extractor of their own, for one kind of observation."""
    fits = CombinedExtractor if isinstance(space, spaces.Dict) else FlattenExtractor
    is_image = is_image_space(space, check_channels=False, normalized_image=normalized_image)
    if extractor is not fits and not (extractor is NatureCNN and is_image):
        name = "MultiInputLstmPolicy" if fits is CombinedExtractor else "MlpLstmPolicy"
        hint = ", normalize_images=False if these are images of any type and range," if extractor is NatureCNN else ""
        raise ValueError(
            f'{policy.__name__} is not for observations of {space}; use "{name}"{hint} or give an extractor'
        )
    for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]:
        if extractor is not FlattenExtractor and is_image_space(part, normalized_image=normalized_image):
            _check_size(policy, f"the part {key!r} of " if key else "", part)


def _check_size(policy: type[LstmPolicy], where: str, image: spaces.Space[Any]) -> None:
    """sb3-contrib's CNN has layers that leave nothing of a smaller image."""
    sides = sorted(image.shape or ())[1:]
    if min(sides) < SMALLEST_OF_NATURE_CNN:
        raise ValueError(
            f"{policy.__name__}: {where}the observation is an image of {image.shape}, and its CNN reads images of at "
            f'least {SMALLEST_OF_NATURE_CNN} x {SMALLEST_OF_NATURE_CNN}; use "RecurrentPolicy", which has an encoder '
            "for every size, or give an extractor"
        )


def _critic_memory_of(shared_lstm: bool, enable_critic_lstm: bool) -> str:
    if shared_lstm and enable_critic_lstm:
        raise ValueError(
            "shared_lstm=True and enable_critic_lstm=True exclude each other: the critic reads the actor's LSTM or has "
            "its own; set enable_critic_lstm=False to share"
        )
    return "detached" if shared_lstm else "separate" if enable_critic_lstm else "none"


def _checked_lstm_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """``bias`` and ``dropout``; others are refused unless they switch off what is refused."""
    reasons = {
        "proj_size": "the hidden and cell state would differ in size; set lstm_hidden_size instead",
        "bidirectional": "a policy cannot read the future; encoders over a window can",
        "batch_first": "the policy decides the layout",
        "device": "use the algorithm's device argument",
        "dtype": "policies are float32",
    }
    taken = {name: value for name, value in kwargs.items() if name in ("bias", "dropout")}
    for name in kwargs.keys() - taken.keys():
        if kwargs[name] or name not in reasons:
            reason = reasons.get(name, "it is no argument of an LSTM memory")
            raise ValueError(
                f"lstm_kwargs: {name}={kwargs[name]!r} is not supported: {reason}. Supported are bias and dropout"
            )
    return taken
