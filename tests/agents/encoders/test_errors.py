"""What an encoder cannot use is refused as it is built, with what to do instead."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from agents.algorithms.ppo import RecurrentPPO
from agents.encoders import ENCODERS
from agents.encoders.graph import GraphEncoder

from .observations import GRAPH, IMAGE, MASKED, TOKENS, F, K

WINDOW_ENCODERS = ("sequence", "attention", "transformer", "seq2seq")
FLAT = spaces.Box(-1, 1, (4,))


@pytest.mark.parametrize("name", WINDOW_ENCODERS)
@pytest.mark.parametrize(
    "space",
    [FLAT, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.Dict(a=FLAT, b=spaces.Discrete(2))],
    ids=str,
)
def test_an_encoder_of_windows_without_one_asks_for_the_history_wrapper(name: str, space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match=rf'encoder "{name}" reads a window.*got .*--env.wrappers .*history'):
        ENCODERS[name](space)


def test_several_choices_are_words_of_a_transformer_and_no_window() -> None:
    space = spaces.MultiDiscrete([3, 3])
    for name in ("sequence", "attention", "seq2seq"):
        with pytest.raises(ValueError, match=r"got MultiDiscrete.*history"):
            ENCODERS[name](space)
    assert ENCODERS["transformer"](space).reader.length == 2  # type: ignore[union-attr]


def test_an_encoder_of_sets_without_one_says_what_a_set_is() -> None:
    with pytest.raises(ValueError, match=r"reads a set of tokens.*got Box.*entities as Box \(E, F\)"):
        ENCODERS["attention"](FLAT, over="set")  # type: ignore[call-arg]


@pytest.mark.parametrize("name", WINDOW_ENCODERS)
@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(-1, 1, (0, 3)), "an axis of 0"),
        (spaces.Box(-1, 1, (3, 0)), "an axis of 0"),
        (IMAGE, "image.*impala"),
        (spaces.Dict(a=IMAGE, mask=spaces.MultiBinary(3)), "image.*combined"),
        (spaces.Sequence(FLAT), "which has none.*pad_sequence"),
        (spaces.Dict(a=TOKENS, b=spaces.Box(-1, 1, (K + 1, F))), "different K"),
        (spaces.Dict(history=TOKENS, real_mask=spaces.MultiBinary(K)), "under 'mask'.*real_mask.*mask_key"),
        (spaces.Dict(history=TOKENS, mask=spaces.MultiBinary(K + 1)), rf"its mask 'mask' is .*MultiBinary\({K}\)"),
        (spaces.Dict(history=TOKENS, mask=spaces.Discrete(K)), rf"its mask 'mask' is .*MultiBinary\({K}\)"),
        (spaces.Dict(history=TOKENS, mask=spaces.Box(0, 1, (K,))), "a normalizer would change"),
        (spaces.Dict(mask=spaces.MultiBinary(K)), "which has none"),
    ],
)
def test_a_space_whose_parts_do_not_fit_is_refused(name: str, space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ENCODERS[name](space)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("sequence", {"cell": "gruu"}, r"cell must be 'rnn' or 'lstm' or 'gru', got 'gruu'; did you mean 'gru'\?"),
        ("sequence", {"pool": "max"}, "pool must be 'last' or 'mean' or 'attention', got 'max'"),
        ("sequence", {"hidden_size": 0}, "hidden_size must be a whole number of at least 1"),
        ("sequence", {"num_layers": 0}, "num_layers must be"),
        ("sequence", {"features_dim": 0}, "features_dim must be"),
        ("sequence", {"bidirectional": "no"}, "bidirectional must be True or False"),
        ("sequence", {"mask_key": "valid"}, "under 'valid', got the keys .*'history', 'mask'"),
        ("attention", {"over": "sets"}, "over must be 'window' or 'set', got 'sets'; did you mean 'set'"),
        ("attention", {"score": "cosine"}, "score must be 'additive' or 'dot'"),
        ("attention", {"cell": "lsmt"}, "did you mean 'lstm'"),
        ("attention", {"over": "set", "cell": "gru"}, "a set has no order"),
        ("attention", {"hidden_size": 6, "heads": 4}, r"heads \(4\) must divide hidden_size \(6\); use one of 1, 2, 3"),
        ("transformer", {"width": 6, "heads": 4}, r"heads \(4\) must divide width \(6\)"),
        ("transformer", {"heads": 0}, "heads must be a whole number"),
        ("transformer", {"width": 12, "heads": 4}, "must be even, got 12 / 4; use a width of 16"),
        ("transformer", {"positions": "rotray"}, "did you mean 'rotary'"),
        ("transformer", {"pool": "first"}, "pool must be 'last' or 'mean' or 'cls'"),
        ("transformer", {"causal": 1}, "causal must be True or False"),
        ("seq2seq", {"cell": "rnn"}, "cell must be 'gru' or 'lstm', got 'rnn'"),
        ("seq2seq", {"attention": "cosine"}, "attention must be 'additive' or 'dot', got 'cosine'"),
        ("seq2seq", {"pool": "max"}, "pool must be 'flatten' or 'mean' or 'last', got 'max'"),
        ("seq2seq", {"predict": "past"}, "predict must be 'next' or 'reconstruct', got 'past'"),
        ("seq2seq", {"output_length": 0}, "output_length must be a whole number of at least 1, got 0"),
        ("seq2seq", {"auxiliary_weight": -1}, "auxiliary_weight must be at least 0, got -1"),
        ("graph", {"pool": "max"}, "pool must be 'attention' or 'mean' or 'sum', got 'max'"),
        ("graph", {"output": "edges"}, "output must be 'graph' or 'nodes' or 'both' or 'links' or .*, got 'edges'"),
        ("graph", {"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ("graph", {"hidden_size": 1.5}, "hidden_size must be a whole number of at least 1, got 1.5"),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ENCODERS[name](MASKED, **kwargs)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict(history=TOKENS, mask=spaces.Box(0, 1, (K,), np.int8)),
        spaces.Dict(history=TOKENS, action_mask=spaces.MultiBinary(2)),
        spaces.Dict(a=TOKENS, b=spaces.MultiBinary((K, 2)), mask=spaces.MultiBinary(K)),
        spaces.Dict(a=TOKENS, picture=IMAGE),
        spaces.Box(-1, 1, (K, 2, 3)),
        spaces.Box(-1, 1, (1, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", WINDOW_ENCODERS)
def test_a_space_with_tokens_is_accepted(name: str, space: spaces.Space[Any]) -> None:
    assert ENCODERS[name](space).features_dim == 64


def test_a_mask_is_found_under_another_name() -> None:
    space = spaces.Dict(history=TOKENS, real_mask=spaces.MultiBinary(K))
    assert ENCODERS["sequence"](space, mask_key="real_mask").reader.context_size == 0  # type: ignore[call-arg,union-attr]
    assert ENCODERS["sequence"](space, mask_key=None).reader.context_size == K  # type: ignore[call-arg,union-attr]


PADDED: dict[str, spaces.Space[Any]] = {
    "nodes": spaces.Box(-9.0, 9.0, (5, 3)),
    "edges": spaces.Box(-9.0, 9.0, (7, 2)),
    "edge_index": spaces.Box(0, 4, (7, 2), np.int64),
    "node_mask": spaces.MultiBinary(5),
    "edge_mask": spaces.MultiBinary(7),
}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (GRAPH, "put the wrapper 'pad_graph' around it"),
        (FLAT, "reads a Dict observation with nodes, edge_index, node_mask, edge_mask"),
        (spaces.Dict(nodes=PADDED["nodes"]), "got the keys nodes; .*'pad_graph' makes one"),
        (spaces.Dict({**PADDED, "nodes": FLAT}), r"'nodes' must be a Box of shape \(nodes, features\)"),
        (spaces.Dict({**PADDED, "nodes": spaces.Box(-1, 1, (0, 3))}), r"'nodes' must be a Box .*with a node at least"),
        (spaces.Dict({**PADDED, "node_mask": spaces.MultiBinary(4)}), r"'node_mask' must be .*MultiBinary of .*\(5\)"),
        (spaces.Dict({**PADDED, "edges": spaces.Box(-1, 1, (6, 2))}), r"'edges' must be a Box of shape \(7, "),
        (
            spaces.Dict({**PADDED, "edge_index": spaces.Box(0, 5, (7, 2), np.int64)}),
            "from 0 to 5, but there are 5 nodes: its Box must have low 0 and high 4",
        ),
    ],
)
def test_a_space_that_is_no_padded_graph_is_refused(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphEncoder(space)


class Mixed(gymnasium.Env[Any, Any]):
    """Measurements, a category and an image."""

    observation_space = spaces.Dict(
        a=spaces.Box(-1, 1, (3,), np.float32), b=spaces.Discrete(4), c=spaces.Box(0, 255, (40, 40, 3), np.uint8)
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_reads_a_dict_of_parts_or_refuses_it_in_a_sentence(name: str) -> None:
    settings: dict[str, Any] = {
        "n_steps": 8,
        "batch_size": 8,
        "n_epochs": 1,
        "policy_kwargs": {"features_extractor_class": ENCODERS[name]},
    }
    if name in ("flatten", "combined"):
        RecurrentPPO("RecurrentPolicy", Mixed(), **settings).learn(8)
        return
    with pytest.raises(ValueError, match="Dict"):
        RecurrentPPO("RecurrentPolicy", Mixed(), **settings)
