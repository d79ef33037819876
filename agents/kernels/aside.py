"""Where compiled code and NumPy step aside for torch's own operations: what is going on, and what is hooked into.

A compiled function reads numbers behind torch's back. So nothing that follows torch's operations sees it: a tracer
would keep what it gave as a constant, a transform or a mode would miss it, a hook would not be called. All that
decides between the two asks here.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_modules
from torch.utils._device import DeviceContext

MISSING = "the compiled parts are missing"


class Part(NamedTuple):
    """How a part of a policy is computed, and why not faster; no reason where nothing faster is known."""

    how: str
    why: str | None = None

    def __str__(self) -> str:
        return self.how if self.why is None else f"{self.how}, because {self.why}"


@contextmanager
def in_torch() -> Iterator[None]:
    """Within it all is computed by torch's own operations: for second derivatives, and to compare with."""
    token = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(token)


_asked: ContextVar[bool] = ContextVar("in_torch", default=False)


def why_torch() -> str | None:
    """What follows torch's operations at this moment, so that they must compute; None where nothing does."""
    if torch.compiler.is_compiling():
        return "torch.compile or torch.export follows the operations"
    if torch._C._is_tracing():  # as the tracing ONNX exporter does
        return "torch.jit.trace or torch.onnx.export follows the operations"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is at work"
    if torch._C._len_torch_dispatch_stack() > 0:
        return "a torch dispatch mode is active"
    if torch._C._len_torch_function_stack() > 0 and any(map(_sees_operations, _function_modes())):
        return "a torch function mode is active"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if torch.is_anomaly_enabled():
        return "torch.autograd.detect_anomaly is on"
    return "in_torch() asks for it" if _asked.get() else None


def _function_modes() -> Iterator[Any]:
    return (torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack()))


def _sees_operations(mode: Any) -> bool:
    """All modes but the one that ``torch.set_default_device`` and ``with torch.device(...)`` put there."""
    return type(mode) is not DeviceContext


def plain(*tensors: Tensor) -> bool:
    """Whether compiled functions may read and write these tensors: float32 on a CPU, of no subclass, unobserved."""
    for tensor in tensors:  # a loop, since this is asked some dozen times a minibatch
        if type(tensor) not in _PLAIN or tensor.dtype is not torch.float32 or not tensor.is_cpu:
            return False
    return why_torch() is None


_PLAIN = (Tensor, nn.Parameter)


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The ``backward`` of a compiled function, whose own derivative is an error and not, in silence, zero."""

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True asks for a second derivative, which compiled functions do not have; compute the "
                "forward pass within `with agents.kernels.in_torch():`, where all is torch's own"
            )
        return backward(ctx, *gradients)

    return run


def all_modules_hooked() -> bool:
    """Whether ``torch.nn.modules.module.register_module_forward_hook`` or one of its kind has been called."""
    return bool(torch_modules._has_any_global_hook())  # type: ignore[no-untyped-call]


def touched(module: nn.Module, name: str) -> str | None:
    """What would be passed by if a module's numbers were computed from its weights without calling it; None: nothing.

    Hooks of any kind, its own or those for all modules; a ``forward`` of its own in place of its class's; weights that
    are computed from others (``torch.nn.utils.parametrize``; pruning and the older norms are hooks).

    Args:
        name: what to call the module in the answer.
    """
    if module._forward_pre_hooks or module._forward_hooks:
        return f"{name} has a forward hook"
    if module._backward_hooks or module._backward_pre_hooks:
        return f"{name} has a backward hook"
    if "forward" in vars(module) or "__call__" in vars(module):
        return f"{name} has a forward of its own"
    if "parametrizations" in module._modules:
        return f"{name} has parametrized weights"
    return None


def touched_within(name: str, module: nn.Module) -> str | None:
    """The first answer of ``touched`` for a module and all modules in it, or for all modules at once."""
    if all_modules_hooked():
        return "all modules have a hook"
    waiting = [(name, module)]
    while waiting:
        name, module = waiting.pop()
        if reason := touched(module, name):
            return reason
        waiting += [(f"{name}.{child}", part) for child, part in module._modules.items() if part is not None]
    return None


def overridden(of: object, base: type, harmless: Collection[str] = ()) -> str | None:
    """What an object or a class below ``base`` has put in place of something callable of ``base``; None: nothing.

    Args:
        harmless: names that may be replaced, since what is decided on does not go through them.
    """
    cls = type(of)
    for defining in cls.__mro__[: cls.__mro__.index(base)]:
        for name, value in vars(defining).items():
            if name not in harmless and hasattr(base, name) and _is_code(value):
                return f"{cls.__name__} has {name} of its own"
    for name, value in vars(of).items():
        if name not in harmless and callable(value) and callable(getattr(base, name, None)):
            return f"{name} of this {cls.__name__} was replaced"
    return None


def _is_code(value: Any) -> bool:
    return callable(value) or inspect.isdatadescriptor(value) or isinstance(value, classmethod | staticmethod)
