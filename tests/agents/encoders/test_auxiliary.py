"""Auxiliary losses of any module of a policy are found, added to the loss and logged."""

import copy
from typing import Any

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents import RecurrentA2C, RecurrentPPO
from agents.encoders.auxiliary import AuxiliaryTerms
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from tests.tolerance import close

from .observations import Noise

BOX = spaces.Box(-1, 1, (3,))


def auxiliary_losses(module: nn.Module) -> dict[str, Tensor]:
    return AuxiliaryTerms(module).losses()


class Reconstructing(BaseFeaturesExtractor):
    """Features from which the observation can be reconstructed."""

    def __init__(self, observation_space: spaces.Space[Any], features_dim: int = 2, weight: float = 0.5) -> None:
        super().__init__(observation_space, features_dim)
        self.weight = weight
        self.down, self.up = nn.Linear(3, features_dim), nn.Linear(features_dim, 3)
        self._losses: dict[str, Tensor] = {}

    def forward(self, observations: Tensor) -> Tensor:
        features: Tensor = self.down(observations)
        self._losses = {}
        if self.training:
            error = (self.up(features) - observations).square().mean()
            self._losses = {"reconstruction_loss": self.weight * error}
        return features

    def auxiliary_losses(self) -> dict[str, Tensor]:
        losses, self._losses = self._losses, {}
        return losses


def policy(**kwargs: Any) -> RecurrentActorCriticPolicy:
    torch.manual_seed(0)
    return RecurrentActorCriticPolicy(
        BOX, spaces.Discrete(2), lambda _: 1e-3, features_extractor_class=Reconstructing, **kwargs
    )


def evaluated(of: RecurrentActorCriticPolicy, observations: Tensor) -> None:
    starts = torch.zeros(observations.shape[:2], dtype=torch.bool)
    of.evaluate_actions(
        observations, torch.zeros(starts.shape, dtype=torch.long), of.initial_state(starts.shape[1]), starts
    )


def test_auxiliary_losses_are_those_of_the_last_pass_in_training() -> None:
    learner, observations = policy(), torch.randn(4, 2, 3)
    assert auxiliary_losses(learner) == {}
    learner.set_training_mode(True)
    evaluated(learner, 2 * observations)
    evaluated(learner, observations)
    losses = auxiliary_losses(learner)
    encoder = learner.features_extractor
    rows = observations.flatten(0, 1)
    expected = 0.5 * (encoder.up(encoder.down(rows)) - rows).square().mean()
    assert list(losses) == ["reconstruction_loss"]
    assert close(losses["reconstruction_loss"], expected)
    losses["reconstruction_loss"].backward()
    assert encoder.down.weight.grad is not None
    assert auxiliary_losses(learner) == {}
    copy.deepcopy(learner)
    evaluated(learner, observations)
    learner.set_training_mode(False)
    evaluated(learner, observations)
    assert auxiliary_losses(learner) == {}


def test_losses_of_the_same_name_are_added_up() -> None:
    learner, observations = policy(share_features_extractor=False, critic_memory="separate"), torch.randn(4, 2, 3)
    learner.set_training_mode(True)
    evaluated(learner, observations)
    apart = [
        dict(part._losses)["reconstruction_loss"]
        for part in (learner.pi_features_extractor, learner.vf_features_extractor)
    ]
    assert apart[0] != apart[1]
    assert close(auxiliary_losses(learner)["reconstruction_loss"], apart[0] + apart[1])


def test_a_module_with_losses_hides_those_of_modules_inside_it() -> None:
    inner = Reconstructing(BOX)
    inner(torch.randn(2, 3))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def auxiliary_losses(self) -> dict[str, Tensor]:
            return {f"inner_{name}": loss for name, loss in self.inner.auxiliary_losses().items()}

    assert list(auxiliary_losses(nn.Sequential(Outer()))) == ["inner_reconstruction_loss"]


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    class Wrong(nn.Module):
        def auxiliary_losses(self) -> dict[str, Tensor]:
            return {"each": torch.zeros(3)}

    with pytest.raises(ValueError, match=r"Wrong.auxiliary_losses\(\) must hold scalars; 'each' is \(3,\)"):
        auxiliary_losses(Wrong())


@pytest.mark.parametrize("algorithm", [RecurrentPPO, RecurrentA2C])
@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_an_algorithm_minimizes_and_logs_the_losses(algorithm: Any, weight: float) -> None:
    """The decoder of the observation has a gradient of the auxiliary loss alone."""
    extractor = dict(features_extractor_class=Reconstructing, features_extractor_kwargs=dict(weight=weight))
    model = algorithm(
        "RecurrentPolicy",
        Noise(BOX),
        n_steps=16,
        learning_rate=1e-2,
        seed=0,
        policy_kwargs=dict(memory="gru", **extractor),
    )
    decoder = model.policy.features_extractor.up.weight
    before = decoder.detach().clone()
    model.learn(32)
    logged = model.logger.name_to_value["train/reconstruction_loss"]
    assert (logged > 0) == (not torch.equal(decoder, before)) == (weight > 0)
