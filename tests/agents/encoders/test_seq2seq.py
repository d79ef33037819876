"""The sequence-to-sequence encoder against its equations, worked out step by step for one sequence.

Axes: N observations, K tokens of a window, F numbers of a token, M outputs.
"""

import copy
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents.encoders.seq2seq import CELLS, PREDICTIONS, SequenceToSequenceEncoder
from tests.tolerance import close, near

from .observations import SEQ2SEQ, Case

K, F, M = 6, 3, 4


def encoder(length: int = K, **settings: Any) -> SequenceToSequenceEncoder:
    torch.manual_seed(0)
    space = spaces.Dict(window=spaces.Box(-9.0, 9.0, (length, F)), mask=spaces.MultiBinary(length))
    made = SequenceToSequenceEncoder(space, **{"hidden_size": 8, "output_length": M, **settings})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
        made.start.normal_()
    return made


def sequences(lengths: tuple[int, ...] = (3, 1, 5, 2), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, F, generator=generator) for length in lengths]


def padded(given: list[Tensor], length: int = K, places: list[list[int]] | None = None) -> dict[str, Tensor]:
    """The sequences at their places, by default the last ones, with meaningless numbers as padding."""
    window = torch.full((len(given), length, F), torch.nan)
    mask = torch.zeros(len(given), length)
    for row, sequence in enumerate(given):
        at = places[row] if places else list(range(length - len(sequence), length))
        window[row, at], mask[row, at] = sequence, 1.0
    return {"window": window, "mask": mask}


def by_hand(model: SequenceToSequenceEncoder, shown: Tensor, before: list[Tensor | None], steps: int) -> list[Tensor]:
    """The outputs for one sequence, (n, F), by torch's own loop over it and the equations of the module's docstring."""
    states, final = [], []
    for backwards, reader in zip((False, True), model.readers, strict=False):
        run = reader(shown.flip(0)[None] if backwards else shown[None])[0][0]
        final.append(run[-1])
        states.append(run.flip(0) if backwards else run)
    h = torch.cat(states, dim=1)
    s = torch.tanh(model.begin(torch.cat(final)))
    carry, y, outputs = torch.zeros_like(s), model.start, []
    for j in range(steps):
        teacher = before[j] if j < len(before) else None
        if model.attention == "additive":
            scores = torch.stack([model.score(torch.tanh(model.ask(s) + model.key(h_i)))[0] for h_i in h])
        else:
            scores = torch.stack([model.ask(s) @ h_i / len(h_i) ** 0.5 for h_i in h])
        weights = torch.exp(scores) / torch.exp(scores).sum()
        c = sum(a * h_i for a, h_i in zip(weights, h, strict=True))
        inputs = torch.cat((y if teacher is None else teacher, c))
        if isinstance(model.decoder, torch.nn.LSTMCell):
            s, carry = model.decoder(inputs, (s, carry))
        else:
            s = model.decoder(inputs, s)
        y = model.emit(torch.cat((s, c)))
        outputs.append(y)
    return outputs


@pytest.mark.parametrize("case", SEQ2SEQ, ids=str)
def test_outputs_are_those_of_the_equations(case: Case) -> None:
    model = encoder(**case.kwargs)
    given = sequences()
    outputs, weights = model.outputs(padded(given))
    assert outputs.shape == (4, M, F)
    for row, each in enumerate(given):
        assert close(outputs[row], torch.stack(by_hand(model, each, [], M)))
        assert close(weights[row].sum(dim=1), torch.ones(M))
        assert (weights[row, :, len(each) :] == 0).all()


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_auxiliary_loss_is_the_mean_error_of_the_decoders_targets(cell: str, predict: str) -> None:
    given = sequences((3, 1, 6))
    model = encoder(cell=cell, bidirectional=True, predict=predict, auxiliary_weight=0.5)
    model(padded(given))
    errors = []
    for each in given:
        n_targets = min(len(each) - 1, M) if predict == "next" else len(each)
        shown = each[: len(each) - n_targets] if predict == "next" else each
        targets = each[len(each) - n_targets :]
        outputs = by_hand(model, shown, [None, *targets[:-1]], n_targets)
        errors += [(output - target).square() for output, target in zip(outputs, targets, strict=True)]
    losses = model.auxiliary_losses()
    assert set(losses) == {"window_prediction" if predict == "next" else "window_reconstruction"}
    assert next(iter(losses.values())).item() == near(0.5 * torch.cat(errors).mean().item())


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_padding_is_invisible_to_the_auxiliary_loss(predict: str) -> None:
    given, losses = sequences((3, 0, 5, 1)), []
    for length, places in ((K, None), (9, [[0, 4, 8], [], [0, 1, 2, 6, 7], [5]])):
        model = encoder(length, bidirectional=True, predict=predict, auxiliary_weight=0.5)
        model(padded(given, length, places))
        losses.append(next(iter(model.auxiliary_losses().values())))
    assert losses[0] > 0.01
    assert losses[0].item() == near(losses[1].item())


def test_the_loss_is_of_the_last_pass_in_training_and_only_if_it_has_a_weight() -> None:
    given = padded(sequences())
    model, without = encoder(auxiliary_weight=1.0), encoder()
    assert model.auxiliary_losses() == {}
    for each in (model, without):
        each(given)
    first = model.auxiliary_losses()["window_prediction"]
    assert model.auxiliary_losses() == without.auxiliary_losses() == {}
    model(padded(sequences(seed=3)))
    assert model.auxiliary_losses()["window_prediction"] != first
    copy.deepcopy(model)
    model.eval()
    model(given)
    assert model.auxiliary_losses() == {}


def test_without_anything_to_predict_the_loss_and_its_gradient_are_zero() -> None:
    model = encoder(auxiliary_weight=1.0)
    model(padded(sequences((1, 0))))
    loss = model.auxiliary_losses()["window_prediction"]
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or (parameter.grad == 0).all() for parameter in model.parameters())
