"""What two processes that train together do, each writing what it found: run by ``test_together.py``.

RANK=0 WORLD_SIZE=2 ... python in_processes.py FOLDER
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecNormalize

import envs
from agents import RecurrentA2C, RecurrentPPO, share
from agents.algorithms.together import Together
from agents.distributed import group
from agents.distributed.gradients import average_gradients
from agents.rollout.buffer import SequenceBatch

ID = "CartPoleNoVel-v1"


class Weights(BaseCallback):
    """Keeps all weights, the optimizer's state and the normalizer's before every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def _on_rollout_start(self) -> None:
        normalizer: Any = self.model.get_vec_normalize_env()
        self.seen.append(
            {
                "weights": [part.detach().clone() for part in self.model.policy.parameters()],
                "optimizer": str(self.model.policy.optimizer.state_dict()),
                "observations": [normalizer.obs_rms.mean, normalizer.obs_rms.var, normalizer.obs_rms.count],
                "rewards": [normalizer.ret_rms.mean, normalizer.ret_rms.var, normalizer.ret_rms.count],
                "steps": self.model.num_timesteps,
                "recent": [episode["r"] for episode in self.model.ep_info_buffer or ()],
            }
        )

    def _on_step(self) -> bool:
        return True


def agent(kind: Any = RecurrentPPO, **settings: Any) -> Any:
    env = VecNormalize(envs.make(ID, share(4)))
    if kind is RecurrentPPO:
        settings = {"batch_size": 32, "n_epochs": 2, **settings}
    small = {"memory_kwargs": {"hidden_size": 8}, "net_arch": [8]}
    return kind("RecurrentPolicy", env, n_steps=16, seed=3, policy_kwargs=small, **settings)


def trained(kind: Any = RecurrentPPO, **settings: Any) -> list[dict[str, Any]]:
    """What an agent was before every rollout."""
    model, weights = agent(kind, **settings), Weights()
    evaluated = VecNormalize(envs.make(ID, 1), training=False)
    model.learn(4 * 16 * 4, [weights, EvalCallback(evaluated, eval_freq=16, n_eval_episodes=1, verbose=0)])
    return weights.seen


def beginning() -> dict[str, Any]:
    """The first observations of an agent that begins to learn, and the random numbers that it then draws."""
    model = agent()
    model._together = Together(model)
    model._together.begin()
    noise = [model.random_generator.random(), np.random.random(), torch.rand(()).item()]  # noqa: NPY002
    return {"observations": model.get_env().venv.reset(), "noise": noise}


def gradients(normalize: str) -> tuple[list[Any], list[Any]]:
    """Of one minibatch whose sequences both have, with steps that are no transitions: shared, and by one alone."""
    model = agent(normalize_advantage=normalize)
    model.learn(4 * 16)
    model._together = Together(model)
    model._together.begin()
    buffer = model.rollout_buffer
    buffer.advantages += group.rank()
    buffer.valid[3 : 6 + group.rank(), 0] = False
    buffer._all_valid = False
    model._together.end_rollout(True)
    own = next(buffer.get(None))
    parts: list[SequenceBatch] = group.gathered(own)
    shared = gradient(model, own)
    model._together, count = None, model._returns_seen()
    of_both = SequenceBatch(
        *(torch.cat(fields, 1) for fields in list(zip(*parts, strict=True))[:7]),
        state=tuple(torch.cat(each) for each in zip(*(part.state for part in parts), strict=True)),
        valid=torch.cat([part.valid for part in parts if part.valid is not None], 1),
    )
    buffer.advantages, buffer.valid = of_both.advantages, of_both.valid  # what is normalized by rollout reads these
    assert model._returns_seen() == count
    return shared, gradient(model, of_both)


def gradient(model: Any, batch: SequenceBatch) -> list[Any]:
    model.policy.optimizer.zero_grad()
    loss, _ = model._loss(batch._replace(advantages=model._normalized_advantages()(batch)))
    loss.backward()
    parameters = list(model.policy.parameters())
    if model._together is not None:
        average_gradients(parameters, batch.n_steps)
    return [None if part.grad is None else part.grad.clone() for part in parameters]


class Fails(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        if group.rank() == 1:
            raise RuntimeError("the simulator is gone")
        return super().step(action)


class Dies(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        if group.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def ending(wrapper: Any) -> str:
    """How training ends where the second process's environment fails or kills it."""
    model = RecurrentPPO("RecurrentPolicy", envs.make("CartPole-v1", 1, wrappers=[wrapper]), n_steps=8, batch_size=16)
    try:
        model.learn(1000)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refused() -> Iterator[str]:
    for settings in ({"batch_size": 33}, {"batch_size": 16, "sequence_length": 16}):
        try:
            agent(**settings)
        except ValueError as error:
            yield str(error)
    try:
        share(5)
    except ValueError as error:
        yield str(error)
    try:
        agent(gamma=0.9 if group.is_first() else 0.5).learn(100)
    except ValueError as error:
        yield str(error)


def main(folder: Path) -> None:
    found: dict[str, Any] = {
        "ppo": trained(),
        "by minibatch": trained(normalize_advantage="batch"),
        "stopped early": trained(target_kl=1e-7, learning_rate=1e-2),
        "a2c": trained(RecurrentA2C),
        "gradients": {way: gradients(way) for way in ("batch", "rollout")},
        "beginning": beginning(),
        "refused": list(refused()),
        "failed": ending(Fails),
    }
    torch.save(found, folder / f"{group.rank()}.pt")
    found["died"] = ending(Dies)
    torch.save(found, folder / f"{group.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
