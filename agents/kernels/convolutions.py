"""The convolutions of an image encoder over images of bytes, on a CPU, by the functions in ``convolutions.c``.

torch reads images as floats, four times their size, and keeps those. Here bytes are read where they lie, the division
by 255 is part of the first layer's weights, and an observation goes through all layers while it is in a near cache. No
gradient reaches the images. Where it cannot run (not compiled, another device or precision, a tool of torch that looks
at single operations) torch's operations serve, and so they do for derivatives of derivatives.

Axes: N observations, C channels, Y rows, X columns, D layers, O outputs of an observation.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agents.kernels.aside import plain
from agents.kernels.binding import WIDTH_OF_TILE, Library
from agents.kernels.reference import differentiated

library = Library("convolutions")
available = library.available

Shape = tuple[int, int, int, int, int]
"""Of a layer: its channels, rows and columns of its kernel, and its strides along both."""


class Layers(NamedTuple):
    """Convolutions without padding, a ReLU after each, over images of so many channels."""

    channels: int
    shapes: tuple[Shape, ...]
    weights: list[Tensor]
    biases: list[Tensor | None]


def takes(*tensors: Tensor) -> bool:
    """Whether the compiled functions can run on these: built, all float32 on a CPU, nothing that follows."""
    return available and plain(*tensors) and not torch.is_autocast_enabled("cpu")


def layers_of(network: nn.Module) -> Layers | None:
    """A network as layers for :func:`convolved`, or None where it is not of the kind known here.

    Known is a sequence of convolutions without padding, each with a ReLU behind it, and last ``nn.Flatten``; of float32
    on a CPU. Whether something hooks into them ``agents.kernels.plan`` has checked before.
    """
    modules = list(network._modules.values()) if type(network) is nn.Sequential else []
    convolutions: list[Any] = modules[:-1:2]
    kinds = [nn.Conv2d, nn.ReLU] * len(convolutions) + [nn.Flatten]
    if not available or not convolutions or [type(module) for module in modules] != kinds:
        return None
    flatten: Any = modules[-1]
    if (flatten.start_dim, flatten.end_dim) != (1, -1) or not all(map(_is_plain, convolutions)):
        return None
    weights = [layer._parameters.get("weight") for layer in convolutions]
    biases = [layer._parameters.get("bias") for layer in convolutions]
    given = [part for part in (*weights, *biases) if part is not None]
    if any(weight is None for weight in weights) or not takes(*given):
        return None
    channels = before = int(weights[0].shape[1]) if weights[0].dim() == 4 else 0
    for layer, weight, bias in zip(convolutions, weights, biases, strict=True):
        shape = (layer.out_channels, before, *layer.kernel_size)
        if 0 in shape or weight.shape != shape or (bias is not None and bias.shape != shape[:1]):
            return None
        before = layer.out_channels
    shapes = tuple(
        (len(weight), *weight.shape[2:], *layer.stride) for layer, weight in zip(convolutions, weights, strict=True)
    )
    return Layers(channels, shapes, weights, biases)


def _is_plain(layer: nn.Conv2d) -> bool:
    return layer.padding in ((0, 0), "valid") and layer.dilation == (1, 1) and layer.groups == 1


def convolved(layers: Layers, images: Tensor) -> Tensor:
    """Bytes (N, C, Y, X), taken as numbers in [0, 1] -> (N, O), as ``nn.Flatten`` lays them out."""
    parameters = (*layers.weights, *layers.biases)
    if not _fits(layers, images) or not takes(*[part for part in parameters if part is not None]):
        return _in_torch(images, layers.shapes, *parameters)  # which says what does not fit
    keeps = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parameters)
    if not keeps:
        return _forward(images.contiguous(), layers.shapes, parameters, keeps)[0]
    output: Tensor = _Convolutions.apply(images.contiguous(), layers.shapes, *parameters)  # type: ignore[no-untyped-call]
    return output


def _fits(layers: Layers, images: Tensor) -> bool:
    is_known = images.dtype is torch.uint8 and images.is_cpu and type(images) is Tensor
    return (
        is_known
        and images.dim() == 4
        and images.shape[1] == layers.channels
        and len(images) > 0
        and (_sizes(layers.shapes, *images.shape[1:]) is not None)
    )


class _Sizes(NamedTuple):
    """Of one observation: O, the numbers kept for the way back, and the products of the way forward."""

    outputs: int
    kept: int
    products: int


@functools.lru_cache(maxsize=64)
def _sizes(shapes: tuple[Shape, ...], before: int, rows: int, columns: int) -> _Sizes | None:
    """For images of so many channels, rows and columns; None where a kernel is larger than what it would read."""
    outputs = kept = products = 0
    for channels, height, width, down, along in shapes:
        if height > rows or width > columns:
            return None
        rows, columns = (rows - height) // down + 1, (columns - width) // along + 1
        outputs = channels * rows * columns
        kept += -(-channels // WIDTH_OF_TILE) * WIDTH_OF_TILE * rows * columns
        products += outputs * before * height * width
        before = channels
    return _Sizes(outputs, kept, products)


def _threads(n_images: int, sizes: _Sizes) -> int:
    """Each has a tenth of a millisecond of work or so."""
    return max(1, min(torch.get_num_threads(), n_images, n_images * sizes.products // _WORTH_A_THREAD))


_WORTH_A_THREAD = 4_000_000  # products


@functools.lru_cache(maxsize=64)
def _as_tensor(shapes: tuple[Shape, ...]) -> Tensor:
    return torch.tensor(shapes, dtype=torch.int64)


def _in_torch(images: Tensor, shapes: tuple[Shape, ...], *parameters: Tensor | None) -> Tensor:
    x, depth = images.float() / 255, len(shapes)
    for i, (*_, down, along) in enumerate(shapes):
        weight: Any = parameters[i]
        x = torch.relu(nn.functional.conv2d(x, weight, parameters[depth + i], (down, along)))
    return x.flatten(1)


def _flat(shapes: tuple[Shape, ...], parameters: tuple[Tensor | None, ...]) -> Tensor:
    """(P,): of each layer its weights, then its biases."""
    depth, parts = len(shapes), []
    for weight, bias in zip(parameters[:depth], parameters[depth:], strict=True):
        assert weight is not None
        parts += [weight.detach().flatten(), weight.new_zeros(len(weight)) if bias is None else bias.detach()]
    return torch.cat(parts)


def _forward(
    images: Tensor, shapes: tuple[Shape, ...], parameters: tuple[Tensor | None, ...], keeps: bool
) -> tuple[Tensor, Tensor]:
    sizes = _sizes(shapes, *images.shape[1:])
    assert sizes is not None
    flat = _flat(shapes, parameters)
    n_images = len(images)
    kept, out = flat.new_empty(n_images * sizes.kept if keeps else 0), flat.new_empty(n_images, sizes.outputs)
    library["convolutions_forward"]((_as_tensor(shapes), images, flat, kept, out), (_threads(n_images, sizes),))
    return out, kept


class _Convolutions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, shapes: tuple[Shape, ...], *parameters: Tensor | None) -> Tensor:
        out, kept = _forward(images, shapes, parameters, keeps=True)
        ctx.save_for_backward(images, kept, *parameters)
        ctx.shapes = shapes
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        images, kept, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():  # this way back is to be differentiated in its turn
            function = functools.partial(_in_torch, images, ctx.shapes)
            return None, None, *differentiated(function, parameters, ctx.needs_input_grad[2:], [d_out])
        flat = _flat(ctx.shapes, tuple(parameters))
        d_flat, sizes = torch.empty_like(flat), _sizes(ctx.shapes, *images.shape[1:])
        assert sizes is not None
        arrays = (_as_tensor(ctx.shapes), images, flat, kept, d_out.contiguous(), d_flat)
        library["convolutions_backward"](arrays, (_threads(len(images), sizes),))
        weights, biases = parameters[: len(ctx.shapes)], parameters[len(ctx.shapes) :]
        d_parts = torch.split(d_flat, [size for weight in weights for size in (weight.numel(), len(weight))])
        d_weights = [d.view_as(weight) for d, weight in zip(d_parts[::2], weights, strict=True)]
        d_biases = [None if bias is None else d for d, bias in zip(d_parts[1::2], biases, strict=True)]
        return None, None, *d_weights, *d_biases
