"""The one place that decides how a policy is computed: compiled, in NumPy, or by torch.

    print(model.policy.plan())
    encoder: torch; memory: compiled; heads: torch, because action_net has a forward hook; ...

A plan is made by looking at the policy as it is: when a rollout starts (``acting_of``), when an update starts, and
for a call of one of the policy's methods from outside (``heads_of`` and what it asks). All else asks the plan. Fast
paths are for what is known here; whatever is not known, hooked into or replaced is computed by torch, by calling the
modules themselves.

This stands on the lowest floor and so knows a policy by its parts alone; the policy says which class they are written
for.
"""

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from torch import Tensor, nn

from agents.kernels import convolutions
from agents.kernels import heads as fused
from agents.kernels.aside import MISSING, Part, all_modules_hooked, overridden, touched, touched_within, why_torch

_EXPERIMENTAL = "compiling for a GPU is experimental and to be asked for: policy.compiles_on_gpu = True"


class Heads(NamedTuple):
    """What the heads of a policy are made of: the layers that one compiled call takes, None where torch computes."""

    policy_layers: fused.Layers | None
    value_layers: fused.Layers | None
    memories_called: bool
    part: Part


class Images(NamedTuple):
    """An encoder of images whose convolutions are one compiled call, and what comes before and after them."""

    arranged: Callable[[Tensor], Tensor]
    layers: convolutions.Layers
    linear: nn.Module

    def takes(self, observations: Any) -> bool:
        """Whether these are bytes."""
        return isinstance(observations, Tensor) and observations.dtype is torch.uint8

    def __call__(self, observations: Tensor) -> Tensor:
        """Bytes (N, ...) -> (N, F)."""
        features: Tensor = self.linear(convolutions.convolved(self.layers, self.arranged(observations)))
        return features


class Parts(NamedTuple):
    """An encoder of a Dict, part by part, that computes images of bytes by one compiled call each."""

    images: dict[str, Images]  # by the keys of the observation
    read: tuple[tuple[Callable[[Any], Any], Callable[[Any], Tensor]], ...]  # what a part is, and what reads it
    prepared: Callable[..., Any]  # (observations, keys that stay as they are) -> what the others read
    untouched: frozenset[str]

    def takes(self, observations: Any) -> bool:
        """Whether all these images are bytes."""
        return all(images.takes(observations[key]) for key, images in self.images.items())

    def __call__(self, observations: Any) -> Tensor:
        """Dict of (N, ...), images as bytes -> (N, F)."""
        seen = self.prepared(observations, self.untouched)
        return torch.cat([encoder(part(seen)) for part, encoder in self.read], dim=1)


class Encoders(NamedTuple):
    """What encodes images for actor and critic; None where the encoder is called, which is torch's own."""

    actor: Images | Parts | None
    critic: Images | Parts | None
    part: Part


class Acting(NamedTuple):
    """How a rollout acts: "NumPy", "torch" or "torch.compile"; for NumPy the steps of actor's and critic's memories,
    and what encodes observations for both, in torch: None for those that are only flattened."""

    part: Part
    steps: tuple[Any, ...] = ()
    encoder: Callable[[Any], Tensor] | None = None


class Plan(NamedTuple):
    """How each part of a policy is computed, and why not faster."""

    encoder: Part
    memory: Part
    critic_memory: Part | None
    heads: Part
    distribution: Part
    objective: Part
    acting: Part

    def as_dict(self) -> dict[str, str]:
        """The part's name -> how it is computed, and why."""
        return {name.replace("_", " "): str(part) for name, part in self._asdict().items() if part is not None}

    def __str__(self) -> str:
        return "; ".join(f"{name}: {part}" for name, part in self.as_dict().items())


def plan_of(policy: Any, base: type, action_heads: tuple[type, ...]) -> Plan:
    """The plan of a policy as it is now.

    Args:
        base: the class that the fast paths compute for; what a subclass of it has put in place is called.
        action_heads: the kinds of action heads that are known.
    """
    return Plan(
        encoders_of(policy).part,
        _of_memory(policy.memory_actor, "memory_actor"),
        None if policy.memory_critic is None else _of_memory(policy.memory_critic, "memory_critic"),
        heads_of(policy).part,
        _distribution_of(policy),
        objective_of(policy, base),
        acting_of(policy, base, action_heads).part,
    )


def missing() -> str | None:
    """What it costs that nothing is compiled, where that is so."""
    if fused.available:
        return None
    return (
        f"{MISSING}: there was no C compiler at installation. An iteration with an LSTM takes about twice as long, "
        "with a GRU five times (CPU time: 64 units, 8 environments of 128 steps, 4 epochs); install a compiler, then "
        "this"
    )


# A pass through the policy


def heads_of(policy: Any) -> Heads:
    """What an update runs in one compiled call each."""
    policy_layers, why = policy_layers_of(policy)
    value_layers, why_values = value_layers_of(policy)
    reason = why or why_values
    part = Part("compiled" if reason is None else "torch", reason)
    return Heads(policy_layers, value_layers, memories_called(policy), part)


def policy_layers_of(policy: Any) -> tuple[fused.Layers | None, str | None]:
    """The actor's hidden layers and, unless exploration depends on the state, the last one; or why not."""
    if reason := _why_not_compiled(policy):
        return None, reason
    last = () if policy.use_sde else (("action_net", policy.action_net),)
    return _layers(("mlp_extractor.policy_net", policy.mlp_extractor.policy_net), *last)


def value_layers_of(policy: Any) -> tuple[fused.Layers | None, str | None]:
    """The critic's hidden layers and the last one; or why not."""
    if reason := _why_not_compiled(policy):
        return None, reason
    return _layers(("mlp_extractor.value_net", policy.mlp_extractor.value_net), ("value_net", policy.value_net))


def encoders_of(policy: Any) -> Encoders:
    """What an update encodes images with."""
    actor, why = images_of(policy, policy.pi_features_extractor)
    if policy.vf_features_extractor is policy.pi_features_extractor:
        return Encoders(actor, actor, Part("torch" if actor is None else "compiled", why))
    critic, why_critic = images_of(policy, policy.vf_features_extractor)
    how = "torch" if actor is None or critic is None else "compiled"
    return Encoders(actor, critic, Part(how, why or why_critic))


def images_of(policy: Any, extractor: Any) -> tuple[Images | Parts | None, str | None]:
    """An encoder of images, or of a Dict with some, as it is now, with its convolutions as layers of one compiled call;
    or why not, unless nothing compiled is known for such an encoder."""
    is_theirs = type(extractor).forward is CombinedExtractor.forward
    combines = CombinedExtractor if is_theirs else _ours(type(extractor), "extractor_of")
    if combines is None:
        return _images_in(policy, policy.observation_space, extractor, "features_extractor")
    images: dict[str, Images] = {}
    read: list[tuple[Callable[[Any], Any], Any]] = []
    reason = None
    for key, space, part, encoder in _parts_of(policy, extractor):
        found, why = _images_in(policy, space, encoder, f"features_extractor.extractors.{key}")
        read.append((part, found or encoder))
        images |= {key: found} if found else {}
        reason = reason or why
    if not images:
        return None, reason
    if why := overridden(extractor, combines, _CONSTRUCTION) or touched(extractor, "features_extractor"):
        return None, why
    untouched = frozenset({*images, *getattr(extractor, "unprocessed", ())})
    return Parts(images, tuple(read), policy.prepared, untouched), reason


def _parts_of(policy: Any, extractor: Any) -> Iterator[tuple[str, Any, Callable[[Any], Any], Any]]:
    """Of an encoder of a Dict for every part its key, its space, what of an observation it is, and what reads it."""
    if isinstance(extractor, CombinedExtractor):
        for key, encoder in extractor.extractors.items():
            yield key, policy.observation_space[key], itemgetter(key), encoder
    else:
        for name, part in extractor.parts.items():
            yield name, part.space, part.of, extractor.extractor_of(name)


def _images_in(policy: Any, space: spaces.Space[Any], encoder: Any, name: str) -> tuple[Images | None, str | None]:
    """Of an encoder of images from a space, as ``images_of``. `name`: what to call it in the answer."""
    arranges = _ours(type(encoder), "arranged")
    if arranges is not None and isinstance(encoder.cnn, NatureCNN):
        arranged, cnn, base, scales = encoder.arranged, encoder.cnn, arranges, encoder.scales_bytes
    elif isinstance(encoder, NatureCNN):
        arranged, cnn, base, scales = _as_they_are, encoder, NatureCNN, is_image_space(space)
    else:
        return None, None
    reason = MISSING if not convolutions.available else None
    reason = reason or _why_not_scaled(policy, space, scales) or overridden(encoder, base, _CONSTRUCTION)
    reason = reason or touched(encoder, name)
    if cnn is not encoder:
        reason = reason or overridden(cnn, NatureCNN, _CONSTRUCTION) or touched(cnn, f"{name}.cnn")
    reason = reason or touched_within(f"{name}.cnn", cnn.cnn) or why_torch()
    layers = None if reason else convolutions.layers_of(cnn.cnn)
    if layers is None:
        return None, reason or "its convolutions are not float32 on a CPU, each with a ReLU and without padding"
    return Images(arranged, layers, cnn.linear), None


def _as_they_are(observations: Tensor) -> Tensor:
    return observations


def _ours(encoder: type, name: str) -> type | None:
    """The class of ours that brings so named a method of an encoder, if one does."""
    ours = __name__.partition(".")[0]
    classes = (cls for cls in encoder.__mro__ if cls.__module__.partition(".")[0] == ours)
    return next((cls for cls in classes if name in vars(cls)), None)


def _why_not_scaled(policy: Any, space: spaces.Space[Any], scales: bool) -> str | None:
    """Why images do not come as bytes that are divided by 255 in float32."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return "observations are not bytes"
    if not policy.normalize_images or not scales:
        return "images are not scaled to [0, 1]"
    if policy.autocast is not None or torch.is_autocast_enabled("cpu"):
        return "it is computed under autocast"
    return None


def memories_called(policy: Any) -> bool:
    """Whether something is to see each memory being called on its own."""
    return all_modules_hooked() or any(
        memory is not None and touched(memory, "") is not None for memory in (policy.memory_actor, policy.memory_critic)
    )


def _why_not_compiled(policy: Any) -> str | None:
    if not fused.available:
        return MISSING
    if all_modules_hooked():
        return "all modules have a hook"
    if policy.autocast is not None:
        return "they are computed under autocast"
    nets = policy.mlp_extractor
    if type(nets) is not MlpExtractor:
        return f"mlp_extractor is {type(nets).__name__}"
    if vars(nets).keys() & {"forward_actor", "forward_critic"}:
        return "a method of mlp_extractor was replaced"
    return why_torch()


def _layers(*networks: tuple[str, nn.Module]) -> tuple[fused.Layers | None, str | None]:
    """Networks one after the other as layers of one compiled call, or why not."""
    for name, network in networks:
        parts = network._modules.values() if type(network) is nn.Sequential else ()
        for module in (network, *parts):
            if reason := touched(module, name):
                return None, reason
    layers = fused.layers_of(*(network for _, network in networks))
    names = " and ".join(name for name, _ in networks)
    return layers, None if layers else f"{names} are not float32 linear layers with one of Tanh and ReLU between"


def _of_memory(memory: Any, name: str) -> Part:
    part: Part = memory.computed_by()
    reason = touched_within(name, memory)
    return part if reason is None else Part(part.how, f"it is called, since {reason}")


def _distribution_of(policy: Any) -> Part:
    if not policy.head.has_kernel:
        return Part("torch", f"{type(policy.head).__name__} has no compiled form")
    reason = why_torch() if fused.available else MISSING
    return Part("compiled" if reason is None and policy.device.type == "cpu" else "torch", reason)


def objective_of(policy: Any, base: type) -> Part:
    """How PPO's objective and, if compiled on a GPU, the heads before it are computed."""
    if policy.device.type != "cuda":
        reason = why_torch() if fused.available else MISSING
        return Part("compiled" if reason is None else "torch", reason)
    if not policy.compiles_on_gpu:
        return Part("torch", _EXPERIMENTAL)
    reason = why_torch() or overridden(policy, base, _NOT_IN_AN_UPDATE) or touched_within("policy", policy)
    return Part("torch.compile" if reason is None else "torch", reason)


# Acting


def acting_of(policy: Any, base: type, action_heads: tuple[type, ...]) -> Acting:
    """How a rollout acts with the policy as it is when it starts."""
    if policy.device.type != "cpu" and not policy.compiles_on_gpu:
        return Acting(Part("torch", _EXPERIMENTAL))
    reason = why_torch() or overridden(policy, base, _NOT_IN_ACTING) or touched_within("policy", policy)
    if policy.device.type != "cpu":
        if isinstance(policy.action_dist, StateDependentNoiseDistribution):
            reason = "state-dependent exploration replaces its noise matrices"
        return Acting(Part("torch.compile" if reason is None else "torch", reason))
    if reason := reason or _why_no_numpy(policy, action_heads):
        return Acting(Part("torch", reason))
    encoder = None if _only_flattens(policy) else _encoder_of(policy)
    memories = [memory for memory in (policy.memory_actor, policy.memory_critic) if memory is not None]
    steps = []
    one_hot = encoder is None and isinstance(policy.observation_space, spaces.Discrete)
    for memory in memories:
        reason = _why_not_stepped(memory)
        step = None if reason else memory.numpy_index_step() if one_hot else memory.numpy_step()
        if step is None:
            return Acting(Part("torch", reason or f"{type(memory).__name__} has no step in NumPy"))
        steps.append(step)
    return Acting(Part("NumPy"), tuple(steps), encoder)


def predicting_of(policy: Any, base: type, action_heads: tuple[type, ...]) -> Acting:
    """How an agent acts outside of rollouts, by ``predict``, for as long as the policy stays as it is."""
    acting = acting_of(policy, base, action_heads)
    reason = overridden(policy, base, _NOT_IN_PREDICTING)
    if policy.use_sde:
        reason = reason or "noise depends on the state"
    return acting if reason is None or acting.part.how != "NumPy" else Acting(Part("torch", reason))


def _only_flattens(policy: Any) -> bool:
    """Whether actor and critic read one array as it is, or the one-hot row of a category."""
    extractors, space = (policy.pi_features_extractor, policy.vf_features_extractor), policy.observation_space
    is_flat = isinstance(space, spaces.Box | spaces.Discrete) and not is_image_space(space)
    return is_flat and all(type(extractor) is FlattenExtractor for extractor in extractors)


def _encoder_of(policy: Any) -> Callable[[Any], Tensor]:
    """What encodes observations for actor and critic: by compiled convolutions, or as the policy calls it."""
    extractor = policy.pi_features_extractor
    images, _ = images_of(policy, extractor)
    if images is not None:
        return images.__call__
    untouched = getattr(extractor, "unprocessed", ())
    return lambda observations: extractor(policy.prepared(observations, untouched))


def _why_no_numpy(policy: Any, action_heads: tuple[type, ...]) -> str | None:
    """What of a policy, apart from its memories and encoders, has no form in NumPy."""
    if any(parameter.dtype != torch.float32 or parameter.device.type != "cpu" for parameter in policy.parameters()):
        return "not all parameters are float32 on a CPU"
    if policy.autocast is not None:
        return "it is computed under autocast"
    if policy.vf_features_extractor is not policy.pi_features_extractor and not _only_flattens(policy):
        return "actor and critic have encoders of their own"
    if policy.squash_output:
        return "actions are squashed"
    nets, head, distribution = policy.mlp_extractor, policy.head, policy.action_dist
    if type(nets) is not MlpExtractor:
        return f"mlp_extractor is {type(nets).__name__}"
    if type(head) not in action_heads:
        return f"the action head is {type(head).__name__}"
    for part in (nets, head, policy.features_extractor, policy.vf_features_extractor):
        if reason := overridden(part, type(part), {"to_environment"}):  # which is called behind an action
            return reason
    if isinstance(distribution, StateDependentNoiseDistribution) and (
        reason := overridden(distribution, StateDependentNoiseDistribution)
    ):
        return reason
    layers = [*nets.policy_net, policy.action_net, *nets.value_net, policy.value_net]
    others = [type(layer).__name__ for layer in layers if type(layer) not in _LAYERS_IN_NUMPY]
    return f"there are layers of {others[0]}" if others else None


def _why_not_stepped(memory: Any) -> str | None:
    """What a memory's step in NumPy would pass by. One that a class brings is taken to be that class's own step."""
    ours, steps = __name__.partition(".")[0], {"numpy_step", "numpy_index_step"}
    base = next(
        cls for cls in type(memory).__mro__ if vars(cls).keys() & steps or cls.__module__.partition(".")[0] == ours
    )
    return overridden(memory, base, _NOT_IN_A_STEP)


_LAYERS_IN_NUMPY = (nn.Linear, nn.Tanh, nn.ReLU)

_CONSTRUCTION = {
    *("__init__", "_build", "_build_mlp_extractor", "_make_heads", "make_features_extractor"),
    *("_make_memory", "_make_projection"),
    *("_get_constructor_parameters", "_get_data", "save", "load", "extra_repr"),
}
_STATES = {"initial_state", "reset_state", "renew", "reset_noise", "set_training_mode"}
_PREDICTING = {
    *("predict", "_predict", "get_distribution", "predict_values", "obs_to_tensor", "is_vectorized_observation"),
    *("import_state", "export_state", "_batch_first", "_warn_of_lost_memory"),
}
_LEARNING = {"evaluate_actions", "evaluate_heads", "unroll", "states_along", "_states_along"}

# What may be replaced since it is not passed by; all other methods may not, whichever they are.
_NOT_IN_ACTING = _CONSTRUCTION | _STATES | _PREDICTING | _LEARNING
_NOT_IN_PREDICTING = _NOT_IN_ACTING - {"predict", "_predict", "obs_to_tensor"}
_NOT_IN_AN_UPDATE = _CONSTRUCTION | _STATES | _PREDICTING | {"forward", "step_hidden", "states_along", "_states_along"}
_NOT_IN_A_STEP = _CONSTRUCTION | {"initial_state", "renew", "unroll", "states_along", "attention_weights"}
