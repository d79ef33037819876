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


def test_the_network_is_that_of_the_paper() -> None:
    encoder = ImpalaCNN(images(3, 84, 84))
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 15
    assert [layer.out_channels for layer in convolutions] == [16] * 5 + [32] * 10
    assert encoder.linear[0].in_features == 11 * 11 * 32
    assert encoder.features_dim == 256


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 13), (4, 64, 64), (12, 21, 160)])
def test_images_of_any_size_are_taken(shape: tuple[int, ...], width: int) -> None:
    torch.manual_seed(0)
    encoder = ImpalaCNN(images(*shape), features_dim=7, width=width)
    seen = torch.rand(3, *shape)
    features = encoder(seen)
    assert features.shape == (3, 7)
    assert close(encoder(seen[1:2]), features[1:2])


def test_width_multiplies_the_channels() -> None:
    first, *_, last = [layer for layer in ImpalaCNN(images(3, 8, 8), width=4).modules() if isinstance(layer, nn.Conv2d)]
    assert (first.out_channels, last.out_channels) == (64, 128)


def test_every_pixel_is_seen_and_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    encoder, seen = ImpalaCNN(images(3, 9, 9)), torch.rand(4, 3, 9, 9, requires_grad=True)
    encoder(seen).square().sum().backward()
    assert seen.grad is not None
    assert (seen.grad.abs().amax(dim=(0, 1)) > 0).all()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("space", "kwargs", "said"),
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
def test_what_is_no_image_is_refused(space: spaces.Space[Any], kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImpalaCNN(space, **kwargs)


def test_scaled_images_are_taken_where_told() -> None:
    encoder = ImpalaCNN(spaces.Box(0, 1, (3, 16, 16)), normalized_image=True)
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, 256)
