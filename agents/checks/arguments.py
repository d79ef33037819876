"""What is refused before anything runs, with what to do instead."""

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn


def require(is_right: Any, name: str, expected: str, value: Any) -> None:
    """Raises ValueError, as all checks do, unless it is right."""
    if not is_right:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_range(name: str, value: Any, low: float = -np.inf, high: float = np.inf) -> None:
    """A finite number in [low, high]."""
    require(is_number(value) and np.isfinite(value), name, "a finite number", value)
    span = f"at least {low:g}" if high == np.inf else f"between {low:g} and {high:g}"
    require(low <= value <= high, name, span, value)


def check_positive(name: str, value: Any) -> None:
    """A number above 0; infinity is let through, as 'no limit'."""
    require(is_number(value) and value > 0, name, "a number above 0", value)


def check_count(name: str, value: Any, low: int = 1) -> None:
    """A whole number of at least ``low``."""
    require(is_whole(value) and value >= low, name, f"a whole number of at least {low}", value)


def check_counts(**values: Any) -> None:
    """Whole numbers of at least 1."""
    for name, value in values.items():
        check_count(name, value)


def check_heads(width_name: str, width: Any, heads: Any) -> None:
    """Counts of which the second divides the first; the error names those that do."""
    check_counts(**{width_name: width, "heads": heads})
    if width % heads:
        divisors = ", ".join(str(each) for each in range(1, width + 1) if width % each == 0)
        raise ValueError(f"heads ({heads}) must divide {width_name} ({width}); use one of {divisors}")


def check_schedule(name: str, value: Any, low: float) -> None:
    """A number of at least ``low`` or a function of the progress remaining."""
    if not callable(value):
        check_range(name, value, low)


def check_switch(name: str, value: Any) -> None:
    """True or False: a string such as "no" would count as true."""
    require(isinstance(value, bool | np.bool_), name, "True or False", value)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """One of the choices; the error names the nearest."""
    known = list(choices)
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in known):
        hint = did_you_mean(str(value), [each for each in known if isinstance(each, str)])
        raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}{hint}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'dot'?`` where a known name is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_mapping(name: str, value: Any) -> None:
    """A dict or None."""
    require(value is None or isinstance(value, Mapping), name, "a dict of arguments", value)


def imported(what: str, path: str) -> Any:
    """What ``"module:Class"`` names; imports, and so runs, the module. Raises ValueError, which says ``what`` it is."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{what} {path!r}: the module {module_name!r} cannot be imported ({error})") from error
    if not hasattr(module, name):
        raise ValueError(f"{what} {path!r}: the module {module_name!r} has no {name!r}")
    return getattr(module, name)


def check_policy_name(name: str, known: Iterable[str]) -> None:
    """A name that is known; the error names the nearest."""
    names = list(known)
    if name not in names:
        # "MlpPolicy" of Stable-Baselines3's other algorithms is as near to every memory's.
        with_lstm = str(name).replace("Policy", "LstmPolicy")
        near = [with_lstm] if with_lstm in names else difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no policy is called {name!r}; {hint}there are {', '.join(names)}")


def check_policy_class(policy: Any, expected: type[Any], names: Iterable[str]) -> None:
    """A subclass of what the algorithm can train."""
    if not (inspect.isclass(policy) and issubclass(policy, expected)):
        got = f"{policy.__module__}.{policy.__qualname__}" if inspect.isclass(policy) else repr(policy)
        hint = ""
        if inspect.isclass(policy) and any(cls.__module__.startswith("sb3_contrib.") for cls in policy.__mro__):
            hint = "; a class of your own on one of sb3-contrib's has to derive from agents.MlpLstmPolicy instead"
        raise ValueError(
            f"policy must be a subclass of agents.{expected.__name__} or one of {', '.join(names)}; got {got}{hint}"
        )


def check_acts_as_it_learns(policy: nn.Module) -> None:
    """Raises ValueError where a layer computes something else in training than in acting, as the policy stands now.

    Probability ratios would then start anywhere but at one, which is the ground PPO stands on.
    """
    for name, layer in policy.named_modules():
        if _differs_in_training(layer):
            raise ValueError(
                f"{name} ({type(layer).__name__}) computes something else in training than in acting, so that "
                "probability ratios do not start at one; use LayerNorm or GroupNorm for normalization, the memory's "
                "own dropout, or keep the layer in evaluation mode"
            )


def _differs_in_training(layer: nn.Module) -> bool:
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return layer.training or not layer.track_running_stats
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        return layer.training and layer.track_running_stats
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.training and layer.p > 0
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return layer.training and layer.dropout > 0
    return layer.training and isinstance(layer, nn.RReLU)
