"""Codes by embedding, texts, integers by their bounds, and images in any layout."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor

from agents.encoders import ENCODERS
from agents.encoders.kinds import layout_of
from agents.kernels import in_torch
from tests.tolerance import close

from .observations import Noise

BYTES = np.uint8
SPACES: dict[str, list[spaces.Space[Any]]] = {
    "embedding": [
        spaces.Discrete(700),
        spaces.MultiDiscrete([3, 900]),
        spaces.Box(0, 255, (3, 7, 7), BYTES),
        spaces.Box(-2, 5, (4, 6), np.int64),
    ],
    "text": [spaces.MultiDiscrete([5, 5, 5])],
    "scaled": [spaces.Box(0, 255, (128,), BYTES)],
    "image": [spaces.Box(0, 255, (8, 9), BYTES), spaces.Box(0, 255, (3, 8, 9), BYTES)],
}
CASES = [(name, space) for name, each in SPACES.items() for space in each]


def samples(space: spaces.Space[Any], n: int = 5) -> Tensor:
    space.seed(0)
    return torch.as_tensor(np.stack([space.sample() for _ in range(n)]))


def made(name: str, space: spaces.Space[Any], **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return ENCODERS[name](space, **kwargs)


@pytest.mark.parametrize(("name", "space"), CASES, ids=str)
def test_features_are_the_same_before_and_after_the_preprocessing_of_stable_baselines3(
    name: str, space: spaces.Space[Any]
) -> None:
    encoder, observations = made(name, space), samples(space)
    features = encoder(observations)
    assert features.shape == (5, encoder.features_dim)
    assert close(encoder(preprocess_obs(observations, space)), features)
    assert close(encoder(observations[2:3]), features[2:3])


REPEATED = [
    (name, space) for name, space in CASES if name == "text" or (name == "embedding" and len(space.shape or ()) > 1)
]


@pytest.mark.parametrize("n_distinct", [1, 5, 40])
@pytest.mark.parametrize(("name", "space"), REPEATED, ids=str)
def test_observations_that_come_more_than_once_are_encoded_once_to_the_same_numbers(
    name: str, space: spaces.Space[Any], n_distinct: int
) -> None:
    observations = samples(space, n_distinct)[torch.randint(n_distinct, (40,))]
    encoder, read = made(name, space).double(), list[int]()

    def results() -> list[Tensor]:
        encoder.zero_grad()
        features = encoder(observations)
        (features * torch.arange(40.0)[:, None]).sum().backward()
        return [features.detach(), *(parameter.grad.clone() for parameter in encoder.parameters())]

    def noting(codes: Tensor) -> Tensor:
        read.append(len(codes))
        return type(encoder)._read(encoder, codes)

    encoder._read = noting
    with in_torch():
        expected = results()
    for ours, theirs in zip(results(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    distinct = len(torch.unique(observations.flatten(1), dim=0))
    assert read == [40, distinct if distinct <= 30 else 40]


@pytest.mark.parametrize(("name", "space"), [case for case in CASES if case[0] != "scaled"], ids=str)
def test_every_parameter_has_a_gradient(name: str, space: spaces.Space[Any]) -> None:
    encoder = made(name, space)
    encoder(samples(space, 200)).square().sum().backward()
    for label, parameter in encoder.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize(("name", "space"), CASES, ids=str)
def test_they_serve_stable_baselines3s_ppo(name: str, space: spaces.Space[Any]) -> None:
    kwargs = dict(features_extractor_class=ENCODERS[name])
    PPO("MlpPolicy", Noise(space), n_steps=4, batch_size=4, n_epochs=1, device="cpu", policy_kwargs=kwargs).learn(4)


def test_codes_of_a_channel_share_a_vector_in_all_cells_and_another_channels_do_not() -> None:
    encoder = made("embedding", spaces.Box(0, 3, (5, 5, 2), np.int8), convolutions=0)
    cells = encoder._grid(torch.tensor([1, 3]).expand(1, 5, 5, 2)).view(-1, 25)
    table = encoder._grid.table.weight
    assert close(cells, (table[1] + table[4 + 3])[:, None].expand(-1, 25))


def test_an_integer_is_brought_from_its_bounds_to_zero_and_one() -> None:
    encoder = made("scaled", spaces.Box(np.array([0, -100]), np.array([200, 100]), dtype=np.int64))
    assert encoder(torch.tensor([[50, -100], [200, 0]])).tolist() == [[0.25, 0.0], [1.0, 0.5]]


def test_what_is_padding_after_a_text_is_not_read() -> None:
    short, long = (made("text", spaces.MultiDiscrete([5] * length)) for length in (2, 6))
    assert close(long(torch.tensor([[3, 1, 0, 0, 0, 0], [1, 2, 3, 4, 4, 4]]))[:1], short(torch.tensor([[3, 1]])))
    assert not long(torch.zeros(1, 6, dtype=torch.int64)).any()


def test_a_picture_has_the_same_features_in_every_layout_and_as_floats() -> None:
    picture = samples(spaces.Box(0, 255, (3, 20, 24), BYTES), 2)
    features = made("image", spaces.Box(0, 255, (3, 20, 24), BYTES))(picture)
    last = picture.permute(0, 2, 3, 1)
    for shown in (last, picture.unsqueeze(1), last.unsqueeze(1), picture.float(), last.float()):
        high, dtype = 255, BYTES if shown.dtype == torch.uint8 else np.float32
        assert close(made("image", spaces.Box(0, high, shown.shape[1:], dtype))(shown), features)
    scaled = spaces.Box(0, 1, (20, 24, 3))
    assert close(made("image", scaled)(last / 255), features)
    assert close(made("image", scaled, normalized_image=True)(last / 255), features)


@pytest.mark.parametrize(
    ("shape", "order", "sizes"),
    [
        ((20, 24), (0, 1), (1, 1, 20, 24)),
        ((4, 84, 84), (0, 1, 2), (4, 1, 84, 84)),
        ((84, 84, 4), (2, 0, 1), (4, 1, 84, 84)),
        ((210, 160, 3), (2, 0, 1), (3, 1, 210, 160)),
        ((3, 210, 160), (0, 1, 2), (3, 1, 210, 160)),
        ((7, 7, 20), (2, 0, 1), (20, 1, 7, 7)),
        ((3, 3, 3), (2, 0, 1), (3, 1, 3, 3)),
        ((4, 84, 84, 3), (0, 3, 1, 2), (3, 4, 84, 84)),
        ((4, 3, 84, 84), (0, 1, 2, 3), (3, 4, 84, 84)),
        ((4, 84, 84, 1), (0, 3, 1, 2), (1, 4, 84, 84)),
    ],
)
def test_where_channels_and_frames_are(shape: tuple[int, ...], order: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    assert tuple(layout_of(shape)) == (order, *sizes)


@pytest.mark.parametrize(
    ("name", "space", "message"),
    [
        ("embedding", spaces.Box(-1, 1, (4,)), "reads Discrete, MultiDiscrete and grids of integers"),
        ("embedding", spaces.Box(-1, 1, (4, 4)), "reads Discrete, MultiDiscrete and grids of integers"),
        ("embedding", spaces.MultiBinary(3), "reads Discrete, MultiDiscrete and grids of integers"),
        ("text", spaces.MultiDiscrete([2, 3]), "equal choices.*envs.make makes them of Text"),
        ("scaled", spaces.Box(-1, 1, (4,)), 'bounded integers.*use "flatten"'),
        ("image", spaces.Box(0, 255, (7, 7, 3), BYTES), 'at least 8 x 8.*"embedding"'),
        ("image", spaces.Discrete(3), "a Box of 2 to 4 axes"),
    ],
)
def test_a_space_that_is_none_of_theirs_is_refused(name: str, space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, space)
