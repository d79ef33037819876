"""The residual network over images."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from agents.encoders.vision import ImpalaCNN
from tests.tolerance import close


def images(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize("width", [1, 4])
def test_the_network_has_the_layers_of_the_paper_width_times_as_wide(width: int) -> None:
    encoder = ImpalaCNN(images(3, 84, 84), width=width)
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [16 * width] * 5 + [32 * width] * 10
    assert encoder.linear[0].in_features == 11 * 11 * 32 * width
    assert encoder.features_dim == 256


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 13), (4, 64, 64), (12, 21, 160)])
def test_images_of_any_size_are_encoded(shape: tuple[int, ...], width: int) -> None:
    torch.manual_seed(0)
    encoder = ImpalaCNN(images(*shape), features_dim=7, width=width)
    pixels = torch.rand(3, *shape)
    features = encoder(pixels)
    assert features.shape == (3, 7)
    assert close(encoder(pixels[1:2]), features[1:2])


def test_every_pixel_is_seen_and_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    encoder, pixels = ImpalaCNN(images(3, 9, 9)), torch.rand(4, 3, 9, 9, requires_grad=True)
    encoder(pixels).square().sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad.abs().amax(dim=(0, 1)) > 0).all()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (spaces.Box(-1, 1, (4,)), {}, r"reads images.*got Box.*normalized_image=True"),
        (spaces.Box(0, 1, (3, 16, 16)), {}, r"normalized_image=True"),
        (spaces.Discrete(3), {"normalized_image": True}, "reads images"),
        (images(3, 7, 16), {}, r"at least 8 x 8.*got \(3, 7, 16\).*enlarge"),
        (images(16, 16, 3), {}, r"channels first; got \(16, 16, 3\)"),
        (images(3, 16, 16), {"width": 0}, "width must be a whole number of at least 1"),
        (images(3, 16, 16), {"features_dim": 0}, "features_dim must be"),
    ],
)
def test_a_space_that_is_no_image_is_refused(space: spaces.Space[Any], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImpalaCNN(space, **kwargs)


def test_scaled_images_are_accepted_with_normalized_image() -> None:
    encoder = ImpalaCNN(spaces.Box(0, 1, (3, 16, 16)), normalized_image=True)
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, 256)
