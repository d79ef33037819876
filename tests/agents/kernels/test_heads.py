"""What is compiled gives what torch's operations give, gradients included.

Axes: N steps, K inputs and M outputs of a layer, A axes of an action.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.algorithms import losses
from agents.kernels import heads
from agents.kernels.heads import CategoricalSampler, PackedPerceptron, layers_of, perceptron
from agents.policy import heads as actions
from tests.pairs import pairwise
from tests.tolerance import assert_close

pytestmark = pytest.mark.skipif(not heads.available, reason="built without a C compiler")


def network(widths: list[int], kind: type[nn.Module], activate_last: bool, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(len(widths))
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs, bias=bias))
        if activate_last or i < len(widths) - 2:
            layers.append(kind())
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("widths", "kind", "activate_last", "bias", "n_steps"),
    pairwise(
        [[64, 64, 64, 2], [8, 1], [3, 50, 17, 5], [40, 16], [256, 64, 64, 1]],
        [nn.Tanh, nn.ReLU],
        [True, False],
        [True, False],
        [1, 2, 5, 7, 64, 1100],
    ),
)
def test_a_perceptron_and_its_gradients_are_torchs(
    widths: list[int], kind: type[nn.Module], activate_last: bool, bias: bool, n_steps: int
) -> None:
    theirs = network(widths, kind, activate_last, bias)
    layers = layers_of(theirs)
    assert layers is not None
    torch.manual_seed(n_steps)
    x = torch.randn(n_steps, widths[0], requires_grad=True)
    weighting = torch.randn(n_steps, widths[-1])
    expected = theirs(x)
    assert_close(perceptron(layers, x), expected)
    assert_close(torch.from_numpy(PackedPerceptron(layers)(x.detach().numpy())), expected.detach())
    wanted = torch.autograd.grad((expected * weighting).sum(), [x, *theirs.parameters()])
    found = torch.autograd.grad((perceptron(layers, x) * weighting).sum(), [x, *theirs.parameters()])
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, terms=n_steps + max(widths))


def test_inputs_that_need_no_gradient_get_none_and_weights_still_do() -> None:
    theirs = network([8, 16, 2], nn.Tanh, False)
    layers = layers_of(theirs)
    assert layers is not None
    x = torch.randn(6, 8)
    perceptron(layers, x).sum().backward()  # type: ignore[no-untyped-call]
    found = [parameter.grad for parameter in theirs.parameters()]
    theirs.zero_grad()
    theirs(x).sum().backward()
    for one, parameter in zip(found, theirs.parameters(), strict=True):
        assert_close(one, parameter.grad)


def test_strided_inputs_and_gradients_of_a_perceptron_are_read_correctly() -> None:
    theirs = network([16, 16, 3], nn.ReLU, False)
    layers = layers_of(theirs)
    assert layers is not None
    x = torch.randn(16, 9).t().requires_grad_()
    assert_close(perceptron(layers, x), theirs(x))
    weighting = torch.randn(3, 9).t()
    (found,) = torch.autograd.grad(perceptron(layers, x), x, weighting)
    assert_close(found, torch.autograd.grad(theirs(x), x, weighting)[0])


def test_weights_changed_in_place_are_seen_by_the_next_pass() -> None:
    theirs = network([8, 4], nn.Tanh, False)
    layers = layers_of(theirs)
    assert layers is not None
    x = torch.randn(2, 8)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(3)
    assert_close(perceptron(layers, x), theirs(x))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Linear(4, 4), nn.GELU()],
        [nn.Linear(4, 4), nn.Linear(4, 4)],
        [nn.Tanh(), nn.Linear(4, 4)],
        [nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU()],
        [Doubled(4, 4)],
        [nn.Linear(4, 4).double()],
        [nn.Linear(4, 4), nn.Tanh(), nn.Dropout()],
        [],
    ],
    ids=str,
)
def test_what_is_not_a_plain_perceptron_is_left_to_torch(modules: list[nn.Module]) -> None:
    assert layers_of(nn.Sequential(*modules)) is None
    assert layers_of(*modules) is None


def test_a_sequence_within_a_sequence_is_left_to_torch() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    assert layers_of(nn.Sequential(inner, nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.uint8])
def test_actions_may_be_numbers_of_any_kind(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, taken = torch.randn(4, 5), torch.tensor([[0, 1], [2, 0], [1, 0], [0, 1]])
    for one, other in zip(
        heads.categorical(logits, (3, 2), taken.to(dtype)), heads.categorical(logits, (3, 2), taken), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("taken", [[[0], [3]], [[-1], [0]], [[0]], [[0, 1], [1, 0]]])
def test_an_action_that_is_no_choice_is_refused(taken: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="actions"):
        heads.categorical(torch.randn(2, 3), (3,), torch.tensor(taken))


def test_gaussian_actions_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="actions"):
        heads.gaussian(torch.randn(4, 2), torch.zeros(2), torch.randn(4, 1))


@pytest.mark.parametrize("sizes", [(2,), (5,), (3, 2, 4)])
def test_probabilities_of_choices_and_their_gradients_are_torchs(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gymnasium as gym

    torch.manual_seed(0)
    head = actions.CategoricalHead(gym.spaces.MultiDiscrete(sizes))
    logits = (3 * torch.randn(7, sum(sizes))).requires_grad_()
    taken = torch.stack([torch.randint(n, (7,)) for n in sizes], dim=-1)
    by_log_prob, by_entropy = torch.randn(7), torch.randn(7)

    def evaluated() -> list[Tensor]:
        log_probs, entropies = head.evaluate((logits,), taken)
        assert entropies is not None
        total = (by_log_prob * log_probs + by_entropy * entropies).sum()
        return [log_probs, entropies, *torch.autograd.grad(total, logits)]

    compiled = evaluated()
    monkeypatch.setattr(heads, "available", False)
    for one, other in zip(compiled, evaluated(), strict=True):
        assert_close(one, other)


def test_a_forbidden_choice_has_probability_zero_and_adds_nothing() -> None:
    lowest = torch.finfo(torch.float32).min
    logits = torch.tensor([[0.0, lowest, 0.0], [lowest, 5.0, lowest]], requires_grad=True)
    log_probs, entropies = heads.categorical(logits, (3,), torch.tensor([[2], [1]]))
    assert_close(log_probs, torch.tensor([-np.log(2), 0.0], dtype=torch.float32))
    assert_close(entropies, torch.tensor([np.log(2), 0.0], dtype=torch.float32))
    (gradient,) = torch.autograd.grad((log_probs + entropies).sum(), logits)
    assert_close(gradient, torch.tensor([[-0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]))


def test_a_logit_that_is_not_a_number_stays_one() -> None:
    logits = torch.tensor([[0.0, float("nan")], [0.0, 1.0]])
    log_probs, entropies = heads.categorical(logits, (2,), torch.tensor([[0], [0]]))
    assert log_probs.isnan().tolist() == entropies.isnan().tolist() == [True, False]


def test_log_densities_of_a_gaussian_and_their_gradients_are_torchs() -> None:
    torch.manual_seed(0)
    means, log_std = torch.randn(9, 3, requires_grad=True), torch.tensor([-1.0, 0.0, 0.7], requires_grad=True)
    taken, weighting = torch.randn(9, 3), torch.randn(9)
    expected = torch.distributions.Normal(means, log_std.exp()).log_prob(taken).sum(-1)
    assert_close(heads.gaussian(means, log_std, taken), expected)
    wanted = torch.autograd.grad(expected, [means, log_std], weighting)
    found = torch.autograd.grad(heads.gaussian(means, log_std, taken), [means, log_std], weighting)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)


def test_samples_follow_the_softmax_and_carry_their_joint_log_probability() -> None:
    sampler, rng = CategoricalSampler([2, 3]), np.random.default_rng(0)
    logits = np.tile(np.array([0.0, 1.0, -1.0, 0.0, 2.0], dtype=np.float32), (40_000, 1))
    taken, log_probs = sampler(logits, rng)
    for axis, part in enumerate(torch.from_numpy(logits[0]).split([2, 3])):
        expected = part.softmax(-1).numpy()
        found = np.bincount(taken[:, axis], minlength=len(expected)) / len(taken)
        assert np.abs(found - expected).max() < 0.01
    exact, _ = heads.categorical(torch.from_numpy(logits), (2, 3), torch.from_numpy(taken))
    assert_close(torch.from_numpy(log_probs), exact)
    again, _ = sampler(logits, rng)
    assert not np.array_equal(taken, again)  # and what was returned before has not been written over


def steps(n: int = 40) -> dict[str, Tensor]:
    torch.manual_seed(n)
    names = ("log_probs", "entropies", "values", "old_log_probs", "old_values", "advantages", "returns")
    drawn = {name: torch.randn(n) for name in names}
    drawn["old_log_probs"] = drawn["log_probs"] + 0.3 * torch.randn(n)
    drawn["old_values"] = drawn["values"] + 0.3 * torch.randn(n)
    return drawn


SETTINGS: dict[str, Any] = dict(normalize=True, clip_range=0.2, clip_range_vf=None, ent_coef=0.01, vf_coef=0.5)


@pytest.mark.parametrize("with_entropy", [True, False])
@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize(
    "changed", [{}, dict(normalize=False), dict(clip_range_vf=0.1), dict(ent_coef=0.0, vf_coef=2.0, clip_range=0.05)]
)
def test_ppos_objective_and_its_gradients_are_those_of_the_pure_functions(
    changed: dict[str, Any], n: int, with_entropy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = steps(n)
    if not with_entropy:
        drawn["entropies"] = None  # type: ignore[assignment]
    by = [drawn[name] for name in ("log_probs", "entropies", "values") if drawn[name] is not None]
    for part in by:
        part.requires_grad_()

    def evaluated() -> list[Tensor]:
        loss, figures = losses.ppo_objective(**drawn, **{**SETTINGS, **changed})
        assert loss.item() == figures.loss.item()
        return [*figures, *torch.autograd.grad(3 * loss, by)]

    compiled = evaluated()
    monkeypatch.setattr(heads, "available", False)
    for one, other in zip(compiled, evaluated(), strict=True):
        assert_close(one, other)


def test_a_step_outside_the_clipped_range_moves_nothing_unless_it_leads_back() -> None:
    """Ratios 0.5 and 2 with advantages of both signs: only where clipping would flatter is the gradient cut."""
    log_probs = torch.log(torch.tensor([0.5, 0.5, 2.0, 2.0])).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    zeros = torch.zeros(4)
    settings = {**SETTINGS, "normalize": False, "ent_coef": 0.0}
    loss, figures = losses.ppo_objective(log_probs, zeros, zeros, zeros, zeros, advantages, zeros, **settings)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert_close(gradient, torch.tensor([-0.5, 0.0, 0.0, 2.0]) / 4)
    assert_close(loss, torch.tensor(-(0.5 - 0.8 + 1.2 - 2.0) / 4))
    assert float(figures.clip_fraction) == 1.0


def test_what_is_not_a_number_reaches_the_loss_and_the_gradient() -> None:
    drawn = steps(4)
    drawn["advantages"][1] = float("nan")
    drawn["log_probs"].requires_grad_()
    loss, _ = losses.ppo_objective(**drawn, **{**SETTINGS, "normalize": False})
    assert loss.isnan()
    (gradient,) = torch.autograd.grad(loss, drawn["log_probs"])
    assert gradient.isnan().tolist() == [False, True, False, False]
