"""Encoders serve Stable-Baselines3's algorithms and ours alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import VecEnv

import envs
import evaluate
import train
from agents import RecurrentPPO
from agents.encoders import ENCODERS
from envs.wrappers.transforms import wrap
from tests.agents.probe_envs import policy_arguments
from tests.pairs import each
from tests.tolerance import close

from .observations import PAD_GRAPH, SEQ2SEQ, SETS, SETTINGS, WINDOWS, Case, MaskedNoise, Noise

DISCRETE, BOX = spaces.Discrete(3), spaces.Box(-1, 1, (2,))
IMPALA = Case("impala", {"features_dim": 16})
GRAPHS = [Case("graph", {"hidden_size": 8, "features_dim": 8, "output": output}) for output in ("graph", "nodes")]
BY_SETTING = [
    ("window", Case("sequence", {"hidden_size": 8, "bidirectional": True})),
    ("window", Case("attention", {"hidden_size": 8, "heads": 2})),
    ("set", Case("attention", {"hidden_size": 8, "over": "set"})),
    ("box", Case("transformer", {"width": 8, "heads": 2})),
    ("image", IMPALA),
    *(("graph", case) for case in GRAPHS),
    ("sequence", Case("seq2seq", {"hidden_size": 8, "auxiliary_weight": 1.0})),
]
FEW: dict[str, Any] = dict(n_steps=8, batch_size=8, n_epochs=1)
ALGORITHMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "PPO": (PPO, DISCRETE, FEW),
    "SAC": (SAC, BOX, dict(buffer_size=50, learning_starts=8, batch_size=4)),
    "QRDQN": (QRDQN, DISCRETE, dict(buffer_size=50, learning_starts=8, batch_size=4)),
    "MaskablePPO": (MaskablePPO, DISCRETE, FEW),
}
HISTORY = [{"history": {"length": 5, "mask": True}}]


def extractor(case: Case) -> dict[str, Any]:
    return dict(features_extractor_class=ENCODERS[case.name], features_extractor_kwargs=case.kwargs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("setting", "case"), BY_SETTING, ids=str)
def test_an_encoder_serves_the_algorithms_of_stable_baselines3(setting: str, case: Case, algorithm: str) -> None:
    cls, action_space, kwargs = ALGORITHMS[algorithm]
    space, observe, wrappers = SETTINGS[setting]
    env = wrap(MaskedNoise(space, action_space, observe), list(wrappers))
    is_dict = isinstance(env.observation_space, spaces.Dict)
    policy = "MultiInputPolicy" if is_dict else "CnnPolicy" if setting == "image" else "MlpPolicy"
    policy_kwargs = dict(net_arch=[8], **extractor(case))
    model = cls(policy, env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(24)
    after = list(model.policy.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(new, old) for new, old in zip(after, before, strict=True))
    observation, _ = env.reset(seed=1)
    action, _ = model.predict(observation, deterministic=True)
    assert action_space.contains(action if algorithm == "SAC" else int(action))


class Watched(RecurrentPPO):
    """Compares, before each update, what learning computes with what acting stored."""

    n_checked = 0

    def train(self) -> None:
        self.policy.set_training_mode(True)
        for batch in self.rollout_buffer.get(self.batch_size):
            values, log_probs, _ = self.policy.evaluate_actions(
                batch.observations, batch.actions, batch.state, batch.episode_starts
            )
            assert (log_probs - batch.old_log_probs).abs().max() <= 1e-5
            assert (values - batch.old_values).abs().max() <= 1e-5
            self.n_checked += values.numel()
        super().train()


def check_first_ratio(env: Any, memory: str, policy: str = "RecurrentPolicy", **policy_kwargs: Any) -> Watched:
    """Over a few updates of a policy that moves: two environments, two sequences each a rollout."""
    settings: dict[str, Any] = dict(n_steps=16, batch_size=16, sequence_length=8, n_epochs=1, learning_rate=1e-2)
    policy_kwargs = policy_arguments(memory, **policy_kwargs)
    model = Watched(policy, env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **settings)
    before = [parameter.detach().clone() for parameter in model.policy.features_extractor.parameters()]
    model.learn(96)
    assert model.n_checked == 96
    after = model.policy.features_extractor.parameters()
    moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert not moved or np.mean(moved) > 0.8
    return model


def noise(setting: str, action_space: spaces.Space[Any] | None = None) -> VecEnv:
    space, observe, wrappers = SETTINGS[setting]
    return envs.make(lambda: Noise(space, action_space, observe), 2, wrappers=list(wrappers), seed=0)


@pytest.mark.parametrize(
    ("case", "memory"), each([*WINDOWS, *SETS, IMPALA, *GRAPHS, *SEQ2SEQ], ["none", "lstm"]), ids=str
)
def test_the_first_ratio_is_one_over_an_encoder(case: Case, memory: str) -> None:
    settings = {"impala": "image", "graph": "graph"}
    if case.name in settings:
        env = noise(settings[case.name])
    else:
        env = envs.make("CartPoleNoVel-v1", 2, seed=0, wrappers=HISTORY)
    check_first_ratio(env, memory, **extractor(case))


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_the_first_ratio_is_one_over_sequences_of_varying_length(memory: str) -> None:
    case = Case("seq2seq", {"hidden_size": 8, "bidirectional": True, "predict": "reconstruct"})
    check_first_ratio(noise("sequence"), memory, **extractor(case))


@pytest.mark.parametrize("critic_memory", ["shared", "detached", "separate", "none"])
def test_the_first_ratio_is_one_for_actions_about_nodes(critic_memory: str) -> None:
    env = envs.make(
        lambda: Noise(SETTINGS["graph"].space, spaces.Discrete(5), SETTINGS["graph"].observe),
        2,
        wrappers=list(PAD_GRAPH),
        seed=0,
    )
    sizes = {"features_extractor_kwargs": {"hidden_size": 8, "features_dim": 8}}
    check_first_ratio(env, "lstm", "NodeActionPolicy", critic_memory=critic_memory, **sizes)


@pytest.mark.parametrize(("side", "name"), [(36, "nature_cnn"), (35, "impala"), (8, "impala"), (7, "flatten")])
def test_images_of_every_size_have_an_encoder_by_default(side: int, name: str) -> None:
    env = Noise(spaces.Box(0, 255, (40, side, 3), np.uint8))
    model = RecurrentPPO("RecurrentPolicy", env, n_steps=4, batch_size=4, n_epochs=1, device="cpu")
    assert type(model.policy.features_extractor) is ENCODERS[name]
    model.learn(8)


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_a_dict_has_an_encoder_for_images_of_every_size(memory: str) -> None:
    images = {
        name: spaces.Box(0, 255, (side, 40, 3), np.uint8) for name, side in dict(large=36, small=35, tiny=7).items()
    }
    env = envs.make(lambda: Noise(spaces.Dict(**images, speed=spaces.Box(-1, 1, (2, 2)))), 2, seed=0)
    model = check_first_ratio(env, memory, **extractor(Case("combined", {"cnn_output_dim": 5})))
    of = model.policy.features_extractor.extractors
    assert [type(of[name]).__name__ for name in ("large", "small", "tiny")] == ["NatureCNN", "ImpalaCNN", "Flatten"]
    assert model.policy.features_extractor.features_dim == 5 + 5 + 7 * 40 * 3 + 4


def test_a_dict_of_large_images_is_encoded_as_stable_baselines3_does() -> None:
    space = spaces.Dict(seen=spaces.Box(0, 255, (3, 36, 40), np.uint8), speed=spaces.Box(-1, 1, (2,)))
    observations = {"seen": torch.rand(4, 3, 36, 40), "speed": torch.randn(4, 2)}
    encoders = []
    for cls in (ENCODERS["combined"], CombinedExtractor):
        torch.manual_seed(0)
        encoders.append(cls(space).requires_grad_(False))
    ours, theirs = encoders
    assert torch.equal(ours(observations), theirs(observations))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("backend", ["vector", "serial"])
def test_a_window_at_an_episodes_start_is_encoded_like_a_short_one(backend: str) -> None:
    env = envs.make("CartPoleNoVel-v1", 2, seed=0, wrappers=HISTORY, backend=backend)
    torch.manual_seed(0)
    encoder: Any = ENCODERS["sequence"](env.observation_space)
    observations = env.reset()
    for n_valid in (1, 2, 3):
        assert observations["mask"].sum(axis=1).tolist() == [n_valid] * 2
        given = {key: torch.as_tensor(part).float() for key, part in observations.items()}
        lengths = torch.full((2,), n_valid)
        states = encoder.recurrence(given["history"][:, -n_valid:], lengths)
        assert close(encoder(given), encoder.projection(encoder.recurrence.final(states, lengths)))
        observations, *_ = env.step(np.zeros(2, dtype=np.int64))
    env.close()


TINY = [
    *("--env.id", "RepeatPrevious-v0", "--env.n-envs", "2", "--algorithm.n-steps", "16", "--algorithm.batch-size"),
    *("16", "--algorithm.n-epochs", "1", "--policy.memory", "none", "--evaluation.every", "0"),
    *("--evaluation.final-episodes", "0", "--total-timesteps", "32", "--no-progress", "--tracking.no-tensorboard"),
]


@pytest.mark.parametrize("backend", ["vector", "serial"])
def test_a_run_with_an_encoder_is_trained_and_evaluated(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    window = ["--env.wrappers", "{history: {length: 4, mask: true}}", "--env.backend", backend]
    encoder = ["--policy.encoder", "transformer", "--policy.encoder-kwargs", "width=8", "heads=2", "causal=true"]
    run = ["--runs", str(tmp_path), "--name", "run"]
    assert train.main([*TINY, *window, *encoder, *run]) == 0, capsys.readouterr().err
    assert evaluate.main([str(tmp_path / "run"), "--episodes", "1"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("encoder", ["sequence", "attention", "transformer", "seq2seq"])
def test_a_run_without_a_window_says_how_to_get_one(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY, "--policy.encoder", encoder, "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "reads a window" in error
    assert "--env.wrappers" in error
    assert "Traceback" not in error
