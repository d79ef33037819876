"""Action heads against torch.distributions, and samples against their probabilities."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal

from agents.policy.heads import ActionHead, make_action_head
from tests.agents.probe_envs import ACTION_SPACES
from tests.tolerance import close, near

N = 5
TWO = spaces.Discrete(2)
PLAIN = [name for name in ACTION_SPACES if "gsde" not in name]


def n_parameters(space: spaces.Space[Any]) -> int:
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return int(np.prod(space.shape or ()))


def some_parameters(space: spaces.Space[Any], n: int = N) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    output = 2 * torch.randn(n, n_parameters(space))
    return (output, 0.5 * torch.randn(output.shape[1])) if isinstance(space, spaces.Box) else (output,)


def reference(space: spaces.Space[Any], parameters: tuple[Tensor, ...]) -> Any:
    """One torch distribution, or one for each axis of a MultiDiscrete action."""
    if isinstance(space, spaces.Discrete):
        return [Categorical(logits=parameters[0])]
    if isinstance(space, spaces.MultiDiscrete):
        return [Categorical(logits=part) for part in parameters[0].split([int(n) for n in space.nvec], dim=1)]
    if isinstance(space, spaces.MultiBinary):
        return [Independent(Bernoulli(logits=parameters[0]), 1)]
    return [Independent(Normal(parameters[0], parameters[1].exp()), 1)]


def expected(space: spaces.Space[Any], parameters: tuple[Tensor, ...], actions: Tensor) -> tuple[Tensor, Tensor]:
    """Joint log-probability and entropy."""
    parts = reference(space, parameters)
    by_part = actions.T if isinstance(space, spaces.MultiDiscrete) else [actions]
    log_probs = sum(part.log_prob(action) for part, action in zip(parts, by_part, strict=True))
    return log_probs, sum(part.entropy() for part in parts)


def head_of(name: str) -> tuple[spaces.Space[Any], ActionHead]:
    return ACTION_SPACES[name], make_action_head(ACTION_SPACES[name])


@pytest.mark.parametrize("name", PLAIN)
def test_log_probability_and_entropy_and_their_gradients_are_those_of_torch_distributions(name: str) -> None:
    space, head = head_of(name)
    parameters = tuple(part.requires_grad_() for part in some_parameters(space))

    def gradients(log_probs: Tensor, entropy: Tensor) -> list[Tensor]:
        loss = (torch.arange(1.0, N + 1) * (log_probs + 0.3 * entropy)).sum()
        return list(torch.autograd.grad(loss, parameters))

    for actions in (head.sample(parameters).detach(), head.mode(parameters).detach()):
        assert actions.shape == (N, *head.shape)
        assert actions.dtype == head.dtype
        log_probs, entropy = head.evaluate(parameters, actions)
        assert entropy is not None
        found, reference = (log_probs, entropy), expected(space, parameters, actions)
        for ours, theirs in zip((*found, *gradients(*found)), (*reference, *gradients(*reference)), strict=True):
            assert ours.shape == theirs.shape
            assert close(ours, theirs)


@pytest.mark.parametrize("name", list(ACTION_SPACES))
def test_what_the_environment_gets_lies_in_its_action_space(name: str) -> None:
    space = ACTION_SPACES[name]
    if "gsde" in name:
        squash = name == "squashed gsde"
        head, parameters = state_dependent(squash, ACTION_SPACES[name])
    else:
        head, parameters = make_action_head(space), some_parameters(space)
    for actions in (head.sample(parameters), head.mode(parameters)):
        for action in head.to_environment(actions.detach().numpy()):
            assert space.contains(action.item() if isinstance(space, spaces.Discrete) else action)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([3, 4], start=[1, -2]),
        spaces.MultiBinary((2, 3)),
        spaces.Box(np.float64(-2), np.float64(2), (3, 1, 2), dtype=np.float64),
    ],
)
def test_shifted_and_many_axed_spaces_get_actions_of_their_own(space: spaces.Space[Any]) -> None:
    head = make_action_head(space)
    parameters = some_parameters(space, n=50)
    for action in head.to_environment(head.sample(parameters).numpy()):
        assert space.contains(action.item() if isinstance(space, spaces.Discrete) else action)


def test_components_of_an_action_keep_their_places() -> None:
    box = make_action_head(spaces.Box(-100.0, 100.0, (2, 3)))
    mode = box.mode((torch.arange(12.0).view(2, 6), torch.zeros(6)))
    assert box.to_environment(mode.numpy()).tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]

    several = make_action_head(spaces.MultiDiscrete([2, 3]))
    assert several.mode((torch.tensor([[0.0, 1.0, 9.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 9.0]]),)).tolist() == [
        [1, 0],
        [0, 2],
    ]

    bits = make_action_head(spaces.MultiBinary((2, 2)))
    mode = bits.mode((torch.tensor([[1.0, -1.0, -1.0, 1.0]]),))
    assert bits.to_environment(mode.numpy()).tolist() == [[[1, 0], [0, 1]]]


def test_box_actions_are_clipped_on_their_way_out_and_nowhere_else() -> None:
    head = make_action_head(spaces.Box(-1.0, 1.0, (2,)))
    parameters = (torch.tensor([[5.0, -5.0]]), torch.zeros(2))
    assert head.mode(parameters).tolist() == [[5.0, -5.0]]
    assert head.to_environment(head.mode(parameters).numpy()).tolist() == [[1.0, -1.0]]


def test_the_ratio_of_a_joint_action_is_the_product_over_its_parts() -> None:
    head = make_action_head(spaces.MultiDiscrete([2, 3]))
    first, second = torch.randn(2, 1, 2), torch.randn(2, 1, 3)
    action = torch.tensor([[1, 2]])

    def log_prob(i: int, j: int) -> Tensor:
        return head.evaluate((torch.cat((first[i], second[j]), dim=1),), action)[0]

    both = log_prob(1, 1) - log_prob(0, 0)
    assert close(both, (log_prob(1, 0) - log_prob(0, 0)) + (log_prob(0, 1) - log_prob(0, 0)))


@pytest.mark.parametrize(
    ("space", "parameters", "joint", "limit"),  # of chi square, which 0.1 % of fair samples exceed
    [
        (spaces.Discrete(3), np.log([0.05, 0.15, 0.8]), [0.05, 0.15, 0.8], 13.8),
        (
            spaces.MultiDiscrete([2, 3]),
            np.log([0.3, 0.7, 0.2, 0.3, 0.5]),
            np.outer([0.3, 0.7], [0.2, 0.3, 0.5]).ravel(),
            20.5,
        ),
        (spaces.MultiBinary(2), [np.log(0.1 / 0.9), np.log(0.6 / 0.4)], np.outer([0.9, 0.1], [0.4, 0.6]).ravel(), 16.3),
    ],
)
def test_samples_come_as_often_as_their_joint_probabilities(
    space: Any, parameters: Any, joint: Any, limit: float
) -> None:
    torch.manual_seed(1)
    logits = torch.tensor(np.array(parameters), dtype=torch.float32).expand(20_000, -1)
    samples = make_action_head(space).sample((logits,)).long().reshape(20_000, -1)
    number = samples @ torch.tensor({"MultiDiscrete": [3, 1], "MultiBinary": [2, 1]}.get(type(space).__name__, [1]))
    assert chi_square(number.bincount(minlength=len(joint)).numpy(), joint) < limit


def test_gaussian_samples_have_their_mean_and_deviation_and_do_not_correlate() -> None:
    head = make_action_head(spaces.Box(-9.0, 9.0, (2,)))
    torch.manual_seed(1)
    samples = head.sample((torch.tensor([1.0, -2.0]).expand(20_000, 2), torch.tensor([0.5, 2.0]).log()))
    assert torch.allclose(samples.mean(0), torch.tensor([1.0, -2.0]), atol=0.06)
    assert torch.allclose(samples.std(0), torch.tensor([0.5, 2.0]), rtol=0.03)
    assert abs(float(torch.corrcoef(samples.T)[0, 1])) < 0.03


def chi_square(counts: Any, probabilities: Any) -> float:
    expected_counts = counts.sum() * np.asarray(probabilities)
    return float(((counts - expected_counts) ** 2 / expected_counts).sum())


def test_a_probability_of_zero_is_never_sampled_never_the_mode_and_adds_nothing_to_the_entropy() -> None:
    head = make_action_head(spaces.Discrete(3))
    logits = torch.tensor([[1.0, torch.finfo(torch.float32).min, 2.0]], requires_grad=True)
    many = logits.detach().expand(20_000, 3)
    assert set(head.sample((many,)).tolist()) == {0, 2}
    log_probs, entropy = head.evaluate((logits,), torch.tensor([0]))
    assert entropy is not None
    allowed = Categorical(logits=torch.tensor([[1.0, 2.0]]))
    assert entropy.item() == near(allowed.entropy().item())
    assert log_probs.item() == near(allowed.log_prob(torch.tensor(0)).item())
    (gradient,) = torch.autograd.grad(log_probs.sum() + entropy.sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[0, 1] == 0


def state_dependent(squash: bool, space: Any) -> tuple[ActionHead, tuple[Tensor, ...]]:
    """A head with state-dependent exploration over a latent of four, and parameters for it."""
    torch.manual_seed(2)
    size = n_parameters(space)
    distribution = StateDependentNoiseDistribution(size, full_std=True, use_expln=False, squash_output=squash)
    mean_net, log_std = distribution.proba_distribution_net(latent_dim=4, latent_sde_dim=4, log_std_init=-1.0)
    latent = torch.randn(N, 4)
    distribution.sample_weights(log_std, batch_size=N)
    return make_action_head(space, distribution, squash), (mean_net(latent).detach(), log_std.detach(), latent)


def test_state_dependent_exploration_has_the_deviation_that_its_latent_gives() -> None:
    head, (mean, log_std, latent) = state_dependent(False, ACTION_SPACES["gsde"])
    actions = head.sample((mean, log_std, latent))
    deviation = (latent.square() @ log_std.exp().square() + 1e-6).sqrt()
    normal = Independent(Normal(mean, deviation), 1)
    log_probs, entropy = head.evaluate((mean, log_std, latent), actions)
    assert close(log_probs, normal.log_prob(actions))
    assert entropy is not None
    assert close(entropy, normal.entropy())


def test_squashed_actions_fill_the_bounds_and_have_no_entropy_in_closed_form() -> None:
    space = ACTION_SPACES["squashed gsde"]
    head, parameters = state_dependent(True, space)
    actions = head.sample(parameters)
    assert (actions.abs() <= 1).all()
    _, entropy = head.evaluate(parameters, actions)
    assert entropy is None
    edges = np.array([[-1.0, 1.0], [0.0, 0.5]], dtype=np.float32)
    assert close(head.to_environment(edges), [[-3.0, 1.0], [-1.0, 0.0]])


@pytest.mark.parametrize(
    "space", [spaces.Text(3), spaces.Tuple((spaces.Discrete(2),)), spaces.MultiDiscrete([[2, 3], [2, 2]])]
)
def test_other_spaces_are_refused_with_what_there_is(space: spaces.Space[Any]) -> None:
    with pytest.raises(NotImplementedError, match="use Discrete, MultiDiscrete, MultiBinary or Box"):
        make_action_head(space)
