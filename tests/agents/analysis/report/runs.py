"""Run directories whose contents are known, made without training."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.analysis.recording import Recording
from agents.analysis.report.groups import Scored
from agents.analysis.report.history import RunHistory
from agents.runs.directory import RunDirectory, append_row
from configs import Settings, dump

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645"
    "400000000049454e44ae426082"
)
FINDING = {
    "verdict": "the agent uses its memory: without it the return falls from 1.0 to 0.5",
    "fall": 0.5,
    "enough": None,
    "deterministic": True,
    "conditions": [
        {"name": "intact", "mean": 1.0, "mean_interval": [1.0, 1.0], "returns": [1.0, 1.0]},
        {
            "name": "wiped every step",
            "mean": 0.5,
            "mean_interval": [0.25, 0.75],
            "difference": -0.5,
            "difference_interval": [-0.75, -0.25],
            "returns": [1.0, 0.0],
        },
        {
            "name": "noise of 1 deviations",
            "mean": 1.5,
            "mean_interval": [1.25, 1.75],
            "difference": 0.5,
            "difference_interval": [0.25, 0.75],
            "returns": [1.0, 2.0],
        },
    ],
}
HORIZON = {"verdict": "memory horizon: 2 steps", "horizon": 2, "sensitivity": [1.0, 0.25, 0.125], "steps": [3, 2, 1]}


def settings(memory: str = "lstm", seed: int = 0, **changes: Any) -> Settings:
    plain = Settings()
    return replace(plain, policy=replace(plain.policy, memory=memory), seed=seed, **changes)


def record(
    root: Path,
    name: str,
    chosen: Settings,
    returns: Sequence[float] = (),
    *,
    step: int = 10,
    findings: bool = False,
) -> RunHistory:
    """A run with a periodic evaluation of each return, ``step`` steps apart, and metrics of the same numbers."""
    run = RunDirectory.create(root, name)
    run.settings.write_text(dump(chosen))
    run.write_versions()
    for i, value in enumerate(returns, 1):
        row = {"step": step * i, "episodes": 5, "success_rate": None, "mean_reward": value, "std_reward": 2.0}
        append_row(run.evaluations, row)
    if returns:
        rows = [f"{step * i},{value},{0.1 * i},{60 * i}\n" for i, value in enumerate(returns, 1)]
        run.metrics.write_text("step,rollout/ep_rew_mean,train/approx_kl,time/time_elapsed\n" + "".join(rows))
    if findings:
        run.write_result("evaluations", "best-2-ablation", FINDING)
        (run.path / "insight").mkdir()
        (run.path / "insight" / "best-horizon.png").write_bytes(PNG)
        (run.path / "insight" / "best-horizon.json").write_text(json.dumps(HORIZON))
    return RunHistory(run.path, asdict(chosen))


def scored(root: Path, name: str, chosen: Settings, *returns: float, **made: Any) -> Scored:
    """A run whose agent earned these returns when it was evaluated."""
    return Scored(record(root, name, chosen, **made), np.array(returns))


def recording(n_steps: int, observations: Any = None, **known: Any) -> Recording:
    """An episode of which only some things are known."""
    nothing, zeros = np.zeros((n_steps, 0)), np.zeros(n_steps)
    made: dict[str, Any] = {
        "actions": np.zeros(n_steps, np.int64),
        "rewards": zeros,
        "infos": {},
        "values": zeros,
        "log_probabilities": zeros,
        "probabilities": None,
        "features": nothing,
        "outputs": nothing,
        "states": (),
        "critic_states": (),
        "ended": True,
        "seed": 0,
    }
    seen = nothing if observations is None else observations
    return Recording(observations=seen, seen=seen, **{**made, **known})
