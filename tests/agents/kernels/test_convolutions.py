"""Convolutions over bytes, compiled, give what torch's give over floats, gradients included, and step aside for torch.

Axes: N observations, C channels, Y rows, X columns.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from agents import RecurrentPPO
from agents.encoders.combined import CombinedEncoder
from agents.encoders.vision import ImageEncoder
from agents.kernels import convolutions, in_torch
from agents.kernels.convolutions import Layers, convolved, layers_of
from tests.pairs import pairwise
from tests.tolerance import assert_close

compiled_only = pytest.mark.skipif(not convolutions.available, reason="built without a C compiler")

Kernel = tuple[int, Any, Any]  # channels, size, stride
NATURE: list[Kernel] = [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
KERNELS: list[list[Kernel]] = [
    [(1, 1, 1)],
    [(16, 5, 3)],
    [(5, (2, 7), (3, 1))],
    [(17, 3, 2), (3, (1, 3), (1, 2))],
    [(32, 8, 4), (40, 4, 2)],
    NATURE,
]


def network(channels: int, kernels: list[Kernel], bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for outputs, size, stride in kernels:
        modules += [nn.Conv2d(channels, outputs, size, stride, bias=bias), nn.ReLU()]
        channels = outputs
    return nn.Sequential(*modules, nn.Flatten())


def known(net: nn.Module) -> Layers:
    layers = layers_of(net)
    assert layers is not None
    return layers


def bytes_of(n: int, channels: int, rows: int = 44, columns: int = 37) -> Tensor:
    torch.manual_seed(n)
    return torch.randint(0, 256, (n, channels, rows, columns), dtype=torch.uint8)


def settle(net: nn.Sequential) -> None:
    """Biases under which each channel is either on or off wherever it looks: rounding switches no ReLU."""
    inputs = 1.0
    for layer in net[:-1:2]:
        assert isinstance(layer, nn.Conv2d)
        with torch.no_grad():
            reach = float(layer.weight.abs().sum((1, 2, 3)).max()) * inputs
            layer.weight /= reach
            assert layer.bias is not None
            layer.bias.copy_(torch.where(torch.arange(len(layer.bias)) % 3 == 1, -1.5, 1.5))
            inputs = 2.5


def weighted(output: Tensor) -> Tensor:
    torch.manual_seed(1)
    return (output * torch.randn_like(output)).sum()


@compiled_only
@pytest.mark.parametrize(
    ("kernels", "channels", "n", "bias"), pairwise(KERNELS, [1, 2, 4, 7], [1, 2, 7], [True, False])
)
def test_convolutions_of_bytes_are_torchs_of_floats(kernels: list[Kernel], channels: int, n: int, bias: bool) -> None:
    net, images = network(channels, kernels, bias), bytes_of(n, channels)
    with torch.no_grad():
        assert_close(convolved(known(net), images), net(images.float() / 255), terms=64 * 16)


@compiled_only
@pytest.mark.parametrize(("kernels", "channels", "n"), pairwise(KERNELS, [1, 2, 4, 7], [1, 2, 7]))
def test_gradients_are_torchs(kernels: list[Kernel], channels: int, n: int) -> None:
    net, images = network(channels, kernels), bytes_of(n, channels)
    settle(net)
    layers = known(net)
    wanted = torch.autograd.grad(weighted(net(images.float() / 255)), list(net.parameters()))
    found = torch.autograd.grad(weighted(convolved(layers, images)), list(net.parameters()))
    for one, other, parameter in zip(found, wanted, net.parameters(), strict=True):
        assert one.shape == parameter.shape
        assert_close(one, other, terms=64 * 64)


@compiled_only
def test_gradients_stop_exactly_where_a_relu_is_off() -> None:
    """Black and white images and whole weights: torch's sums are exact, and none is nearer to 0 than a sixteenth."""
    net = network(2, [(16, 4, 2), (24, 3, 1)])
    torch.manual_seed(0)
    with torch.no_grad():
        for layer, bias in ((net[0], 1 / 8), (net[2], 1 / 16)):
            assert isinstance(layer, nn.Conv2d)
            layer.weight.copy_(torch.randint(-2, 3, layer.weight.shape))
            assert layer.bias is not None
            layer.bias.fill_(bias)
    images = torch.randint(0, 2, (5, 2, 21, 18)).to(torch.uint8) * 255
    for found, wanted in zip(
        torch.autograd.grad(weighted(convolved(known(net), images)), list(net.parameters())),
        torch.autograd.grad(weighted(net(images.float() / 255)), list(net.parameters())),
        strict=True,
    ):
        assert_close(found, wanted, terms=64 * 16)


@compiled_only
def test_a_layer_worked_out_by_hand() -> None:
    net = network(1, [(2, 2, 1)])
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[-1.0, 0.0], [0.0, 0.0]]]]))  # type: ignore[operator]
        net[0].bias.copy_(torch.tensor([0.5, 0.25]))  # type: ignore[operator]
    images = torch.tensor([[[[255, 0, 51], [0, 255, 0]]]], dtype=torch.uint8)  # 1, 0, 0.2; 0, 1, 0
    output = convolved(known(net), images)
    assert_close(output, torch.tensor([[5.5, 3.9, 0.0, 0.25]]))
    d_weight, d_bias = torch.autograd.grad(output @ torch.tensor([1.0, 10.0, 100.0, 1000.0]), list(net.parameters()))
    assert_close(d_weight[0, 0], torch.tensor([[1.0, 2.0], [10.0, 1.0]]))
    assert_close(d_weight[1, 0], torch.tensor([[0.0, 200.0], [1000.0, 0.0]]))
    assert_close(d_bias, torch.tensor([11.0, 1000.0]))


@compiled_only
def test_observations_do_not_depend_on_those_beside_them() -> None:
    net, images = network(4, NATURE), bytes_of(9, 4, 84, 84)
    layers = known(net)
    with torch.no_grad():
        together = convolved(layers, images)
        assert torch.equal(together, torch.cat([convolved(layers, image[None]) for image in images]))
    assert torch.equal(together, convolved(layers, images))  # where the way back is kept for


@compiled_only
def test_threads_change_no_bit() -> None:
    net, images = network(4, NATURE), bytes_of(67, 4, 84, 84)
    layers, found = known(net), []
    threads = torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        output = convolved(layers, images)
        found.append([output, *torch.autograd.grad(weighted(output), list(net.parameters()))])
    torch.set_num_threads(threads)
    for one, two, three in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@compiled_only
def test_gradients_of_many_observations_are_the_sums_of_those_of_few() -> None:
    net, images = network(2, [(16, 5, 3)]), bytes_of(75, 2)
    settle(net)
    layers, parameters = known(net), list(net.parameters())
    together = torch.autograd.grad(convolved(layers, images).sum(), parameters)
    apart = [torch.autograd.grad(convolved(layers, part).sum(), parameters) for part in images.split(15)]
    for found, parts in zip(together, zip(*apart, strict=True), strict=True):
        assert_close(found, torch.stack(parts).sum(0), terms=75 * 64)


@compiled_only
def test_images_may_be_strided_and_gradients_too() -> None:
    net = network(3, [(16, 5, 3)])
    settle(net)
    images = bytes_of(4, 44, 37, 3).permute(0, 3, 1, 2)
    output, wanted = convolved(known(net), images), net(images.float() / 255)
    assert_close(output, wanted)
    along = torch.randn(output.shape[::-1]).t()
    parameters = list(net.parameters())
    for one, other in zip(
        torch.autograd.grad(output, parameters, along), torch.autograd.grad(wanted, parameters, along), strict=True
    ):
        assert_close(one, other, terms=64 * 16)


@compiled_only
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(value: float) -> None:
    net, images = network(1, [(16, 5, 3), (8, 3, 1)]), bytes_of(2, 1)
    with torch.no_grad():
        net[0].weight[3, 0, 1, 1] = value  # type: ignore[index, operator]
    output = convolved(known(net), images)
    assert not output.isfinite().all()
    gradients = torch.autograd.grad(output.sum(), list(net.parameters()))
    assert not all(gradient.isfinite().all() for gradient in gradients)


@compiled_only
def test_weights_changed_in_place_are_seen_by_the_next_pass() -> None:
    net, images = network(2, [(16, 5, 3)]), bytes_of(2, 2)
    layers = known(net)
    with torch.no_grad():
        net[0].weight.mul_(3)  # type: ignore[operator]
        assert_close(convolved(layers, images), net(images.float() / 255))


@compiled_only
def test_frozen_layers_get_no_gradient_and_the_others_theirs() -> None:
    net, images = network(2, [(16, 5, 3), (8, 3, 1)]), bytes_of(2, 2)
    net[0].requires_grad_(False)
    convolved(known(net), images).sum().backward()  # type: ignore[no-untyped-call]
    assert [parameter.grad is None for parameter in net.parameters()] == [True, True, False, False]


# What is not plain is torch's


@pytest.mark.parametrize(
    "change",
    [
        lambda net: nn.Sequential(net[0], nn.Tanh(), net[4]),
        lambda net: nn.Sequential(net[0], net[4]),
        lambda net: nn.Sequential(net[0], net[2], net[1], net[4]),
        lambda net: nn.Sequential(*net[:4]),
        lambda net: nn.Sequential(*net[:4], nn.Flatten(2)),
        lambda net: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten()),
        lambda net: nn.Sequential(nn.Conv2d(2, 4, 3, dilation=2), nn.ReLU(), nn.Flatten()),
        lambda net: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten()),
        lambda net: net.double(),
        lambda net: net.to("meta"),
        lambda net: nn.Flatten(),
    ],
)
def test_what_is_not_plain_is_left_to_torch(change: Callable[[nn.Sequential], nn.Module]) -> None:
    assert layers_of(change(network(2, [(16, 5, 3), (16, 3, 1)]))) is None


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 44, 37, dtype=torch.uint8),
        torch.zeros(2, 2, 4, 37, dtype=torch.uint8),
        torch.zeros(44, 37, dtype=torch.uint8),
    ],
)
@compiled_only
def test_images_that_do_not_fit_raise_torchs_error(images: Tensor) -> None:
    layers = known(network(2, [(16, 5, 3), (16, 3, 1)]))
    with pytest.raises(RuntimeError, match=r"channels|Kernel size|size"):
        convolved(layers, images)


@compiled_only
def test_no_observations_and_floats_are_computed_by_torch() -> None:
    net = network(2, [(16, 5, 3)])
    assert convolved(known(net), bytes_of(2, 2)[:0]).shape == (0, net(torch.zeros(1, 2, 44, 37)).shape[1])
    assert_close(convolved(known(net), bytes_of(2, 2).float()), net(bytes_of(2, 2).float() / 255))


@compiled_only
def test_second_derivatives_are_torchs() -> None:
    net, images = network(2, [(16, 5, 3), (8, 3, 1)]), bytes_of(3, 2)
    settle(net)
    layers, parameters = known(net), list(net.parameters())

    def penalty(output: Tensor) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(output.square().sum(), parameters, create_graph=True)
        size = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        return torch.autograd.grad(size, parameters)

    for found, wanted in zip(penalty(convolved(layers, images)), penalty(net(images.float() / 255)), strict=True):
        assert_close(found, wanted, terms=64 * 64)


class Corridor(gymnasium.Env[Any, Any]):
    """Images of random bytes; an episode lasts five steps."""

    def __init__(self, shape: tuple[int, ...] = (1, 36, 40), dtype: Any = np.uint8, in_dict: bool = False) -> None:
        high = 255 if dtype is np.uint8 else 1
        self.observation_space: Any = gymnasium.spaces.Box(0, high, shape, dtype)
        if in_dict:
            parts = dict(image=self.observation_space, place=gymnasium.spaces.Box(-1, 1, (3,), np.float32))
            self.observation_space = gymnasium.spaces.Dict(parts, way=gymnasium.spaces.Discrete(4))
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = 5
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        return self.observation_space.sample(), float(action), self._left == 0, False, {}


def agent(policy: str = "CnnLstmPolicy", env: gymnasium.Env[Any, Any] | None = None, **kwargs: Any) -> RecurrentPPO:
    chosen: dict[str, Any] = {} if policy == "RecurrentPolicy" else dict(lstm_hidden_size=8)
    settings: dict[str, Any] = dict(n_steps=12, batch_size=6, n_epochs=2, seed=0, device="cpu")
    return RecurrentPPO(policy, env or Corridor(), policy_kwargs=chosen | kwargs, **settings)


def sampled(model: RecurrentPPO) -> Any:
    space = model.observation_space
    if not isinstance(space, gymnasium.spaces.Dict):
        return torch.as_tensor(np.stack([space.sample() for _ in range(3)]))
    return {key: torch.as_tensor(np.stack([part.sample() for _ in range(3)])) for key, part in space.items()}


def encoded(model: RecurrentPPO) -> Tensor:
    images = sampled(model)
    features, _ = model.policy.encode(images, torch.Size([3]))
    with in_torch():
        assert_close(features, model.policy.encode(images, torch.Size([3]))[0], terms=64 * 16)
    return features


POLICIES: list[tuple[str, tuple[int, ...], bool, dict[str, Any]]] = [
    ("CnnLstmPolicy", (1, 36, 40), False, {}),
    ("CnnLstmPolicy", (3, 37, 36), False, dict(share_features_extractor=False)),
    ("RecurrentPolicy", (36, 40), False, {}),
    ("RecurrentPolicy", (36, 40, 3), False, {}),
    ("RecurrentPolicy", (2, 36, 40, 3), False, dict(critic_memory="separate")),
    ("MultiInputLstmPolicy", (3, 37, 36), True, {}),
    ("RecurrentPolicy", (1, 36, 40), True, {}),
    ("RecurrentPolicy", (36, 40), True, dict(share_features_extractor=False, critic_memory="separate")),
]


@pytest.mark.parametrize(("policy", "shape", "in_dict", "kwargs"), POLICIES)
def test_the_first_ratio_of_an_image_policy_is_one(
    policy: str, shape: tuple[int, ...], in_dict: bool, kwargs: dict[str, Any]
) -> None:
    model = agent(policy, Corridor(shape, in_dict=in_dict), **kwargs)
    assert model.policy.plan().encoder.how == ("compiled" if convolutions.available else "torch")
    acts_in_numpy = convolutions.available and model.policy.share_features_extractor
    assert model.policy.plan().acting.how == ("NumPy" if acts_in_numpy else "torch")
    model.learn(12)
    model.collect_rollouts(model.get_env(), _started(model), model.rollout_buffer, 12)  # type: ignore[arg-type]
    for batch in model.rollout_buffer.get(6):
        with model.policy.planned():
            values, log_probs, _ = model.policy.evaluate_actions(
                batch.observations, batch.actions, batch.state, batch.episode_starts
            )
        assert_close(log_probs, batch.old_log_probs, scale=1.0, terms=64 * 16)
        assert_close(values, batch.old_values, scale=1.0, terms=64 * 16)
    encoded(model)


def _started(model: RecurrentPPO) -> Any:
    _, callback = model._setup_learn(12)
    return callback


@compiled_only
def test_an_encoder_shared_by_actor_and_critic_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = agent(), []
    run = convolutions.library["convolutions_forward"]._run
    monkeypatch.setattr(
        convolutions.library["convolutions_forward"], "_run", lambda *given: (calls.append(given), run(*given))
    )
    model.policy.forward(
        torch.zeros(1, 1, 36, 40, dtype=torch.uint8), model.policy.initial_state(1), torch.ones(1, dtype=torch.bool)
    )
    assert len(calls) == 1


def _hooked(policy: Any) -> None:
    policy.features_extractor.cnn[2].register_forward_hook(lambda module, given, output: output * 2)


def _hooked_as_a_whole(policy: Any) -> None:
    policy.features_extractor.register_forward_hook(lambda module, given, output: output * 2)


def _parametrized(policy: Any) -> None:
    parametrizations.weight_norm(policy.features_extractor.cnn[0])


def _replaced(policy: Any) -> None:
    cnn = policy.features_extractor
    cnn.forward = lambda images: 2 * NatureCNN.forward(cnn, images)


def _another_layer(policy: Any) -> None:
    policy.features_extractor.cnn[1] = nn.ELU()


@compiled_only
@pytest.mark.parametrize("policy", ["MultiInputLstmPolicy", "RecurrentPolicy"])
@pytest.mark.parametrize("within", [True, False])
def test_what_hooks_into_an_encoder_of_a_dict_is_obeyed(policy: str, within: bool) -> None:
    model = agent(policy, Corridor(in_dict=True))
    encoder, seen = model.policy.features_extractor, sampled(model)
    assert model.policy.plan().encoder.how == "compiled"
    before, _ = model.policy.encode(seen, torch.Size([3]))
    hooked = encoder.extractors["image"].cnn if within else encoder
    hooked.register_forward_hook(lambda module, given, output: output * 0)
    assert model.policy.plan().encoder.how == "torch"
    assert "has a forward hook" in str(model.policy.plan().encoder)
    after, _ = model.policy.encode(seen, torch.Size([3]))
    assert not torch.equal(after, before)
    assert within or not after.any()


class DoubledParts(CombinedEncoder):
    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        return 2 * super().forward(observations)


@compiled_only
def test_a_subclass_of_an_encoder_of_a_dict_is_called() -> None:
    model = agent("RecurrentPolicy", Corridor(in_dict=True), features_extractor_class=DoubledParts)
    assert "DoubledParts has forward of its own" in str(model.policy.plan().encoder)
    encoded(model)


@compiled_only
def test_a_dict_whose_images_come_as_floats_is_torchs() -> None:
    model = agent("RecurrentPolicy", Corridor(in_dict=True))
    seen = sampled(model)
    expected, _ = model.policy.encode(seen, torch.Size([3]))
    found, _ = model.policy.encode({**seen, "image": seen["image"].float()}, torch.Size([3]))
    assert_close(found, expected, terms=64 * 16)


@compiled_only
@pytest.mark.parametrize("change", [_hooked, _hooked_as_a_whole, _parametrized, _replaced, _another_layer])
def test_what_hooks_into_an_encoder_is_obeyed(change: Callable[[Any], None]) -> None:
    model = agent()
    plain = encoded(model)
    change(model.policy)
    assert model.policy.plan().encoder.how == "torch"
    assert model.policy.plan().encoder.why
    images = torch.randint(0, 256, (3, 1, 36, 40), dtype=torch.uint8)
    found, _ = model.policy.encode(images, torch.Size([3]))
    assert torch.equal(found, model.policy.features_extractor(images.float() / 255))
    assert plain.shape == found.shape
    model.learn(12)


class Doubled(NatureCNN):
    def forward(self, observations: Tensor) -> Tensor:
        return 2 * super().forward(observations)


class DoubledImages(ImageEncoder):
    def arranged(self, observations: Tensor) -> Tensor:
        return super().arranged(observations) // 2


@compiled_only
@pytest.mark.parametrize(("extractor", "shape"), [(Doubled, (1, 36, 40)), (DoubledImages, (36, 40))])
def test_a_subclass_of_an_encoder_is_called(extractor: type, shape: tuple[int, ...]) -> None:
    model = agent("RecurrentPolicy", Corridor(shape), features_extractor_class=extractor)
    assert extractor.__name__ in str(model.policy.plan().encoder)
    encoded(model)


@compiled_only
def test_all_that_follows_torchs_operations_sees_the_encoders() -> None:
    policy = agent().policy
    images = torch.randint(0, 256, (3, 1, 36, 40), dtype=torch.uint8)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = policy

        def forward(self, images: Tensor) -> Tensor:
            return policy.encode(images, torch.Size([3]))[0]

    traced: Any = torch.jit.trace(Encoder(), images)  # type: ignore[no-untyped-call]
    expected = Encoder()(255 - images)
    assert_close(traced(255 - images), expected)
    with torch.autograd.set_detect_anomaly(True):
        assert policy.plan().encoder.how == "torch"
    with torch.autocast("cpu", torch.bfloat16):
        assert policy.plan().encoder.how == "torch"
        assert Encoder()(images).dtype is torch.bfloat16


@compiled_only
def test_transforms_of_torch_func_are_torchs() -> None:
    net, images = network(2, [(16, 5, 3)]), bytes_of(2, 2)
    settle(net)
    layers = known(net)

    def loss(weight: Tensor) -> Tensor:
        return weighted(convolved(layers._replace(weights=[weight]), images))

    found = torch.func.grad(loss)(layers.weights[0].detach())
    assert_close(found, torch.autograd.grad(loss(layers.weights[0]), layers.weights[0])[0], terms=64 * 64)


def test_images_that_are_not_scaled_from_bytes_are_torchs() -> None:
    kwargs: dict[str, Any] = dict(normalize_images=False, features_extractor_kwargs=dict(normalized_image=True))
    models = [
        agent(env=Corridor(dtype=np.float32), **kwargs),
        agent(**kwargs),
        agent("RecurrentPolicy", Corridor((36, 40)), features_extractor_kwargs=dict(normalized_image=True)),
    ]
    for model in models:
        assert model.policy.plan().encoder.how == "torch"
        encoded(model)


@pytest.mark.parametrize("shape", [(1, 36, 40), (36, 40)])
def test_without_what_is_compiled_torch_serves_the_same_numbers(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = agent("RecurrentPolicy", Corridor(shape))
    images = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    expected, _ = model.policy.encode(images, torch.Size([3]))
    monkeypatch.setattr(convolutions, "available", False)
    assert str(model.policy.plan().encoder) == "torch, because the compiled parts are missing"
    assert_close(model.policy.encode(images, torch.Size([3]))[0], expected, terms=64 * 16)
    model.learn(12)
