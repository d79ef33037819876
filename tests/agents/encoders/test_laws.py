"""What holds for every encoder of tokens: padding and the rest of the batch are invisible, all else is seen.

Axes: N observations, K tokens, F numbers of a token.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.tolerance import close

from .observations import ALL, SETS, TOKENS, VALID, WINDOWS, WITH_CONTEXT, Case, F, K, make, masked, some_tokens

RELATIVE = [case for case in ALL if case.kwargs.get("positions") != "learned"]


@pytest.mark.parametrize("garbage", [7.0, math.nan])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_padding_is_invisible(case: Case, garbage: float) -> None:
    encoder, values = make(case), some_tokens()
    others = values.masked_fill(VALID.unsqueeze(2) == 0, garbage).requires_grad_()
    features = encoder(masked(others))
    assert torch.equal(features, encoder(masked(values)))
    features.square().sum().backward()
    assert others.grad is not None
    assert (others.grad[VALID == 0] == 0).all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize("case", RELATIVE, ids=str)
def test_features_do_not_depend_on_the_place_of_padding(case: Case) -> None:
    encoder, values = make(case), some_tokens(5)
    features = []
    for valid in ([0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]):
        placed = torch.zeros_like(values)
        placed[:, torch.tensor(valid) == 1] = values[:, :3]
        features.append(encoder(masked(placed, torch.tensor(valid).expand(5, -1))))
    assert close(features[0], features[1])
    assert close(features[0], features[2])


@pytest.mark.parametrize("case", ALL, ids=str)
def test_features_do_not_depend_on_the_rest_of_the_batch(case: Case) -> None:
    encoder, values = make(case), some_tokens()
    together = encoder(masked(values))
    assert together.shape == (len(VALID), 32)
    for rows in ([0], [2], [5, 2], [1, 3], [4, 0, 1]):
        assert close(encoder(masked(values[rows], VALID[rows])), together[rows])


@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_box_is_a_window_of_valid_tokens(case: Case) -> None:
    encoder, values = make(case), some_tokens()
    plain = make(case, TOKENS)(values)
    assert close(encoder(masked(values, torch.ones_like(VALID))), plain)
    one_full = VALID.clone()
    one_full[0] = 1  # in a batch with padding it takes another path
    assert close(encoder(masked(values, one_full))[0], plain[0])


@pytest.mark.parametrize("case", [case for case in ALL if case.name != "seq2seq"], ids=str)
def test_an_observation_without_a_valid_token_has_the_features_of_zeros(case: Case) -> None:
    encoder = make(case)
    features = encoder(masked(some_tokens(), torch.zeros_like(VALID)))
    assert isinstance(encoder.projection, nn.Module)
    inputs = encoder.projection[0].in_features  # type: ignore[index,union-attr]
    assert close(features, encoder.projection(torch.zeros(len(VALID), inputs)))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_valid_token_is_seen_and_every_parameter_has_a_gradient(case: Case) -> None:
    encoder, values = make(case), some_tokens(2, seed=1).requires_grad_()
    encoder(masked(values, torch.ones(2, K))).square().sum().backward()
    assert values.grad is not None
    assert (values.grad.abs().sum(dim=2) > 0).all()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-9, name


@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_the_order_of_a_window_is_seen(case: Case) -> None:
    encoder, values = make(case, TOKENS), some_tokens()
    assert not torch.allclose(encoder(values[:, [1, 0, 2, 4, 3, 5]]), encoder(values), atol=1e-4)


@pytest.mark.parametrize("case", SETS, ids=str)
def test_the_order_of_a_set_is_not_seen(case: Case) -> None:
    encoder, values = make(case), some_tokens()
    for order in torch.stack([torch.randperm(K) for _ in range(3)]):
        assert close(encoder(masked(values[:, order], VALID[:, order])), encoder(masked(values)))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_training_computes_what_acting_computes(case: Case) -> None:
    encoder, observations = make(case), masked(some_tokens())
    learning = encoder.train()(observations)
    with torch.no_grad():
        assert torch.equal(learning, encoder.eval()(observations))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_gpu_computes_what_a_cpu_computes(case: Case) -> None:
    encoder, observations = make(case), masked(some_tokens())
    expected = encoder(observations)
    on_gpu = encoder.cuda()({key: part.cuda() for key, part in observations.items()})
    assert close(on_gpu.cpu(), expected)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_context_is_seen_and_is_no_token(case: Case) -> None:
    encoder, values = make(case, WITH_CONTEXT), some_tokens()

    def features(of_me: float, job: int, valid: Tensor = VALID) -> Tensor:
        context = {"me": torch.full((len(VALID), 2), of_me), "job": torch.eye(3)[[job] * len(VALID)]}
        result: Tensor = encoder({"entities": values, "mask": valid.float(), **context})
        return result

    assert (encoder.reader.token_size, encoder.reader.context_size) == (F, 5)  # type: ignore[union-attr]
    assert not torch.allclose(features(0.5, 1), features(-0.5, 1), atol=1e-4)
    assert not torch.allclose(features(0.5, 1), features(0.5, 2), atol=1e-4)
    assert features(0.5, 1, torch.zeros_like(VALID)).isfinite().all()
