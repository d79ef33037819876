"""What an encoder cannot use is refused as it is built, with what to do instead."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from agents.encoders import ENCODERS

from .observations import IMAGE, MASKED, TOKENS, F, K

WINDOW_ENCODERS = ("sequence", "attention", "transformer")
FLAT = spaces.Box(-1, 1, (4,))


@pytest.mark.parametrize("name", WINDOW_ENCODERS)
@pytest.mark.parametrize(
    "space",
    [FLAT, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.Dict(a=FLAT, b=spaces.Discrete(2))],
    ids=str,
)
def test_an_encoder_of_windows_given_none_asks_for_the_history_wrapper(name: str, space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match=rf'encoder "{name}" reads a window.*got .*--env.wrappers .*history'):
        ENCODERS[name](space)


@pytest.mark.parametrize("name", ["sequence", "attention"])
def test_several_numbers_of_one_observation_are_no_window(name: str) -> None:
    space = spaces.MultiDiscrete([3, 3])
    with pytest.raises(ValueError, match=r"got MultiDiscrete.*history"):
        ENCODERS[name](space)
    assert ENCODERS["transformer"](space).reader.length == 2  # type: ignore[union-attr]


def test_an_encoder_of_sets_given_none_says_what_a_set_is() -> None:
    with pytest.raises(ValueError, match=r"reads a set of tokens.*got Box.*entities as Box \(E, F\)"):
        ENCODERS["attention"](FLAT, over="set")  # type: ignore[call-arg]


@pytest.mark.parametrize("name", WINDOW_ENCODERS)
@pytest.mark.parametrize(
    ("space", "said"),
    [
        (spaces.Box(-1, 1, (0, 3)), "an axis of 0"),
        (spaces.Box(-1, 1, (3, 0)), "an axis of 0"),
        (IMAGE, "image.*impala"),
        (spaces.Dict(a=IMAGE, mask=spaces.MultiBinary(3)), "image.*combined"),
        (spaces.Dict(a=TOKENS, b=spaces.Box(-1, 1, (K + 1, F))), "different K"),
        (spaces.Dict(history=TOKENS, real_mask=spaces.MultiBinary(K)), "under 'mask'.*real_mask.*mask_key"),
        (spaces.Dict(history=TOKENS, mask=spaces.MultiBinary(K + 1)), rf"its mask 'mask' is .*MultiBinary\({K}\)"),
        (spaces.Dict(history=TOKENS, mask=spaces.Discrete(K)), rf"its mask 'mask' is .*MultiBinary\({K}\)"),
        (spaces.Dict(history=TOKENS, mask=spaces.Box(0, 1, (K,))), "a normaliser would move"),
        (spaces.Dict(mask=spaces.MultiBinary(K)), "which has none"),
    ],
)
def test_a_space_whose_parts_do_not_fit_is_refused(name: str, space: spaces.Space[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ENCODERS[name](space)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("sequence", {"cell": "gruu"}, r"cell must be 'rnn', 'lstm', 'gru'; got 'gruu'; did you mean 'gru'\?"),
        ("sequence", {"pool": "max"}, "pool must be 'last', 'mean', 'attention'; got 'max'"),
        ("sequence", {"hidden_size": 0}, "hidden_size must be a whole number of at least 1"),
        ("sequence", {"num_layers": 0}, "num_layers must be"),
        ("sequence", {"features_dim": 0}, "features_dim must be"),
        ("sequence", {"bidirectional": "no"}, "bidirectional must be True or False"),
        ("sequence", {"mask_key": "valid"}, "under 'valid', got the keys .*'history', 'mask'"),
        ("attention", {"over": "sets"}, "over must be 'window', 'set'; got 'sets'; did you mean 'set'"),
        ("attention", {"score": "cosine"}, "score must be 'additive', 'dot'"),
        ("attention", {"cell": "lsmt"}, "did you mean 'lstm'"),
        ("attention", {"over": "set", "cell": "gru"}, "a set has no order"),
        (
            "attention",
            {"hidden_size": 6, "heads": 4},
            r"heads \(4\) must divide hidden_size \(6\); use one of 1, 2, 3, 6",
        ),
        ("transformer", {"width": 6, "heads": 4}, r"heads \(4\) must divide width \(6\)"),
        ("transformer", {"heads": 0}, "heads must be a whole number"),
        ("transformer", {"width": 12, "heads": 4}, "must be even, got 12 / 4; use a width of 16"),
        ("transformer", {"positions": "rotray"}, "did you mean 'rotary'"),
        ("transformer", {"pool": "first"}, "pool must be 'last', 'mean', 'cls'"),
        ("transformer", {"causal": 1}, "causal must be True or False"),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ENCODERS[name](MASKED, **kwargs)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict(history=TOKENS, mask=spaces.Box(0, 1, (K,), np.int8)),
        spaces.Dict(history=TOKENS, action_mask=spaces.MultiBinary(2)),
        spaces.Dict(a=TOKENS, b=spaces.MultiBinary((K, 2)), mask=spaces.MultiBinary(K)),
        spaces.Box(-1, 1, (K, 2, 3)),
        spaces.Box(-1, 1, (1, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", WINDOW_ENCODERS)
def test_what_has_tokens_is_taken(name: str, space: spaces.Space[Any]) -> None:
    assert ENCODERS[name](space).features_dim == 64


def test_a_mask_by_another_name_is_taken_where_told() -> None:
    space = spaces.Dict(history=TOKENS, real_mask=spaces.MultiBinary(K))
    assert ENCODERS["sequence"](space, mask_key="real_mask").reader.context_size == 0  # type: ignore[call-arg,union-attr]
    assert ENCODERS["sequence"](space, mask_key=None).reader.context_size == K  # type: ignore[call-arg,union-attr]
