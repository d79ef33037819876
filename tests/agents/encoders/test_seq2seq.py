"""The sequence-to-sequence encoder: padding is invisible, attention is a distribution, its loss is worked out by hand.

Axes: B observations, K elements of a window, F numbers of an element, M outputs.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import envs
from agents.encoders import ENCODERS
from agents.encoders.seq2seq import ATTENTIONS, CELLS, POOLS, PREDICTIONS, SequenceToSequenceEncoder
from envs.wrappers.transforms import wrap
from tests.tolerance import close, near

from .ragged import ALGORITHMS, RaggedSequence, deviation_of_first_ratio, extractors, trained

K, F, M = 6, 3, 4
PAD = [("pad_sequence", {"max_length": 5})]


def window_space(length: int = K, mask: int | None = None, **beside: spaces.Space[Any]) -> spaces.Dict:
    """A window and a mask as long (or of another length; 0: none), and what stands beside them."""
    parts: dict[str, spaces.Space[Any]] = {"window": spaces.Box(-9.0, 9.0, (length, F))}
    if mask != 0:
        parts["mask"] = spaces.MultiBinary(mask or length)
    return spaces.Dict({**parts, **beside})


def encoder(space: spaces.Space[Any] | None = None, **settings: Any) -> SequenceToSequenceEncoder:
    torch.manual_seed(0)
    made = SequenceToSequenceEncoder(space or window_space(), **{"hidden_size": 8, "output_length": M, **settings})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
        made.start.normal_()
    return made


def sequences(lengths: tuple[int, ...] = (3, 1, 5, 2), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, F, generator=generator) for length in lengths]


def padded(given: list[Tensor], places: list[list[int]], length: int, seed: int = 1) -> dict[str, Tensor]:
    """The sequences at the places named, (B, length, F), with numbers that mean nothing everywhere else."""
    window = 9 * torch.randn(len(given), length, F, generator=torch.Generator().manual_seed(seed))
    window[-1] = torch.nan
    mask = torch.zeros(len(given), length)
    for row, (sequence, at) in enumerate(zip(given, places, strict=True)):
        window[row, at], mask[row, at] = sequence, 1.0
    return {"window": window, "mask": mask}


def at_the_tail(given: list[Tensor], length: int = K) -> dict[str, Tensor]:
    return padded(given, [list(range(length - len(each), length)) for each in given], length)


ALL = [
    (cell, both_ways, attention, pool)
    for cell in CELLS
    for both_ways in (False, True)
    for attention, pool in zip((*ATTENTIONS, "dot"), POOLS, strict=True)
]


@pytest.mark.parametrize(("cell", "bidirectional", "attention", "pool"), ALL)
def test_padding_of_any_amount_place_and_content_changes_nothing(
    cell: str, bidirectional: bool, attention: str, pool: str
) -> None:
    settings = {"cell": cell, "bidirectional": bidirectional, "attention": attention, "pool": pool}
    given = sequences()
    small, large = encoder(**settings), encoder(window_space(9), **settings)
    large.load_state_dict(small.state_dict())
    features = small(at_the_tail(given))
    scattered = [[0, 4, 8], [3], [0, 1, 2, 6, 7], [7, 8]]
    assert close(large(padded(given, scattered, 9)), features)
    assert close(small(padded(given, [list(range(len(each))) for each in given], K)), features)
    for row, each in enumerate(given):
        alone = encoder(window_space(len(each), mask=0), **settings)
        alone.load_state_dict(small.state_dict())
        assert close(alone({"window": each[None]})[0], features[row])
    assert not torch.allclose(features[0], features[2], atol=1e-2)


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_invisible_to_the_auxiliary_loss(cell: str, predict: str) -> None:
    given, losses = sequences((3, 0, 5, 1)), []
    for length, places in ((K, None), (9, [[0, 4, 8], [], [0, 1, 2, 6, 7], [5]])):
        model = encoder(window_space(length), cell=cell, bidirectional=True, predict=predict, auxiliary_weight=0.5)
        model(at_the_tail(given) if places is None else padded(given, places, length))
        losses.append(next(iter(model.auxiliary_losses().values())))
    assert losses[0] > 0.01
    assert losses[0].item() == near(losses[1].item())


def by_hand(model: SequenceToSequenceEncoder, shown: Tensor, before: list[Tensor | None], steps: int) -> list[Tensor]:
    """The outputs for one sequence, (n, F), by torch's own loop over it and the equations of the module's docstring."""
    states, last = [], []
    for turned, reader in zip((False, True), model.readers, strict=False):
        run = reader(shown.flip(0)[None] if turned else shown[None])[0][0]
        last.append(run[-1])
        states.append(run.flip(0) if turned else run)
    h = torch.cat(states, dim=1)
    s = torch.tanh(model.begin(torch.cat(last)))
    carry, y, outputs = torch.zeros_like(s), model.start, []
    for j in range(steps):
        told = before[j] if j < len(before) else None
        if model.attention == "additive":
            scores = torch.stack([model.score(torch.tanh(model.ask(s) + model.key(h_i)))[0] for h_i in h])
        else:
            scores = torch.stack([model.ask(s) @ h_i / len(h_i) ** 0.5 for h_i in h])
        weights = torch.exp(scores) / torch.exp(scores).sum()
        c = sum(a * h_i for a, h_i in zip(weights, h, strict=True))
        given = torch.cat((y if told is None else told, c))
        if model.has_carry:
            s, carry = model.decoder(given, (s, carry))
        else:
            s = model.decoder(given, s)
        y = model.emit(torch.cat((s, c)))
        outputs.append(y)
    return outputs


@pytest.mark.parametrize(("cell", "bidirectional", "attention", "pool"), ALL)
def test_outputs_are_what_the_equations_say(cell: str, bidirectional: bool, attention: str, pool: str) -> None:
    model = encoder(cell=cell, bidirectional=bidirectional, attention=attention, pool=pool)
    given = sequences()
    outputs, weights = model.outputs(at_the_tail(given))
    assert outputs.shape == (4, M, F)
    for row, each in enumerate(given):
        expected = torch.stack(by_hand(model, each, [], M))
        assert close(outputs[row], expected)
        assert close(weights[row].sum(dim=1), torch.ones(M))
        assert (weights[row, :, len(each) :] == 0).all()


@pytest.mark.parametrize("cell", CELLS)
def test_the_auxiliary_loss_is_the_mean_error_of_what_the_decoder_is_to_say(cell: str) -> None:
    given = sequences((3, 1, 6))
    for predict in PREDICTIONS:
        model = encoder(cell=cell, bidirectional=True, predict=predict, auxiliary_weight=0.5)
        model(at_the_tail(given))
        errors = []
        for each in given:
            n_asked = min(len(each) - 1, M) if predict == "next" else len(each)
            shown = each[: len(each) - n_asked] if predict == "next" else each
            asked = each[len(each) - n_asked :]
            outputs = by_hand(model, shown, [None, *asked[:-1]], n_asked)
            errors += [(output - target).square() for output, target in zip(outputs, asked, strict=True)]
        expected = 0.5 * torch.cat(errors).mean()
        losses = model.auxiliary_losses()
        assert set(losses) == {"window_prediction" if predict == "next" else "window_reconstruction"}
        assert next(iter(losses.values())).item() == near(expected.item())


def test_the_loss_is_of_the_last_pass_in_training_and_only_where_it_has_a_weight() -> None:
    given = at_the_tail(sequences())
    model, without = encoder(auxiliary_weight=1.0), encoder()
    assert model.auxiliary_losses() == {}
    for each in (model, without):
        each(given)
    first = model.auxiliary_losses()["window_prediction"]
    assert model.auxiliary_losses() == {}
    model(at_the_tail(sequences(seed=3)))
    assert model.auxiliary_losses()["window_prediction"] != first
    assert without.auxiliary_losses() == {}
    copy.deepcopy(model)
    model.eval()
    model(given)
    assert model.auxiliary_losses() == {}


def test_where_there_is_nothing_to_predict_the_loss_is_zero_and_moves_nothing() -> None:
    model = encoder(auxiliary_weight=1.0)
    model(at_the_tail(sequences((1, 0))))
    loss = model.auxiliary_losses()["window_prediction"]
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or (parameter.grad == 0).all() for parameter in model.parameters())


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_the_loss_teaches_the_decoder(predict: str) -> None:
    torch.manual_seed(0)
    model = SequenceToSequenceEncoder(window_space(), hidden_size=16, predict=predict, auxiliary_weight=1.0)
    # What comes next is decided by what came before: each element is the one before it, turned by a right angle.
    start = torch.randn(32, 2)
    turns = torch.stack([torch.stack((start[:, 0], start[:, 1]), 1), torch.stack((-start[:, 1], start[:, 0]), 1)], 1)
    window = torch.cat((torch.cat((turns, -turns, turns), dim=1), torch.zeros(32, 6, 1)), dim=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(40):
        model({"window": window, "mask": torch.ones(32, K)})
        loss = sum(model.auxiliary_losses().values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_a_sequence_without_elements_gives_features_that_depend_on_none() -> None:
    model = encoder(bidirectional=True)
    one = model(at_the_tail(sequences((0, 3)), K))
    other = model(padded(sequences((0, 3)), [[], [3, 4, 5]], K, seed=8))
    assert torch.isfinite(one).all()
    assert close(one, other)


def test_without_a_mask_every_element_is_real() -> None:
    plain, masked = encoder(spaces.Box(-9.0, 9.0, (K, F))), encoder()
    window = torch.stack(sequences((K, K)))
    window[:, 0] = 0.0
    assert close(plain(window), masked({"window": window, "mask": torch.ones(2, K)}))


def test_windows_stand_side_by_side_and_all_else_beside_the_states() -> None:
    torch.manual_seed(0)
    model = SequenceToSequenceEncoder(window_space(other=spaces.Box(-1, 1, (K, 2, 2)), clock=spaces.MultiBinary(3)))
    given = {**at_the_tail(sequences()), "other": torch.zeros(4, K, 2, 2), "clock": torch.zeros(4, 3)}
    before = model(given)
    assert before.shape == (4, model.features_dim) == (4, 64)
    for name in ("other", "clock", "window"):
        assert (model({**given, name: torch.ones_like(given[name])}) != before).any(dim=1).all()
    assert model.outputs(given)[0].shape == (4, 4, F + 4)


@pytest.mark.parametrize("wrapper", [("history", {"length": 4}), ("history", {"length": 4, "mask": True})])
def test_it_reads_what_the_history_wrapper_gives(wrapper: tuple[str, dict[str, Any]]) -> None:
    env = envs.make("CartPoleNoVel-v1", 2, wrappers=[wrapper], seed=0)
    assert deviation_of_first_ratio(env, ENCODERS["seq2seq"], "gru", hidden_size=8) < 1e-5


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        (spaces.Box(-1.0, 1.0, (3,)), {}, "reads a window.*the wrapper 'history' makes one"),
        (spaces.Dict({"mask": spaces.MultiBinary(3)}), {}, "reads a window"),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), {}, "reads a window"),
        (spaces.Sequence(spaces.Box(-1.0, 1.0, (3,))), {}, "put 'pad_sequence' around it"),
        (
            window_space(other=spaces.Box(-1, 1, (4, 2))),
            {},
            "these have {'other': 4, 'window': 6} elements",
        ),
        (
            spaces.Dict({"w": spaces.Box(-1, 1, (6, 2)), "mask": spaces.MultiBinary(5)}),
            {},
            "'mask' must have one entry",
        ),
        (window_space(), {"cell": "rnn"}, "cell is one of gru, lstm; got 'rnn'"),
        (window_space(), {"attention": "cosine"}, "attention is one of additive, dot; got 'cosine'"),
        (window_space(), {"pool": "max"}, "pool is one of flatten, mean, last; got 'max'"),
        (window_space(), {"predict": "past"}, "predict is one of next, reconstruct; got 'past'"),
        (window_space(), {"output_length": 0}, "output_length must be a whole number of at least 1, got 0"),
        (window_space(), {"auxiliary_weight": -1}, "auxiliary_weight must be a finite number of at least 0, got -1"),
    ],
)
def test_what_is_no_window_and_impossible_settings_are_refused(
    space: spaces.Space[Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceToSequenceEncoder(space, **settings)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_serves_the_algorithms_of_other_packages(algorithm: str) -> None:
    env = wrap(RaggedSequence(continuous=algorithm == "sac"), PAD)
    model = trained(algorithm, env, ENCODERS["seq2seq"], hidden_size=8, features_dim=8, auxiliary_weight=1.0)
    assert all(isinstance(part, SequenceToSequenceEncoder) for part in extractors(model))
    observation, _ = env.reset(seed=1)
    action, _ = model.predict(observation)
    assert env.action_space.contains(action if algorithm == "sac" else int(action))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_the_first_ratio_is_one_over_sequence_observations(memory: str, cell: str) -> None:
    env = envs.make(RaggedSequence, 3, wrappers=PAD, seed=0)
    settings = {"hidden_size": 8, "cell": cell, "bidirectional": True, "predict": "reconstruct"}
    assert deviation_of_first_ratio(env, ENCODERS["seq2seq"], memory, **settings) < 1e-5
