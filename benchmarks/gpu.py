"""Training speed on a GPU: RecuRL compiled or not and with bfloat16 or not, and sb3-contrib, in turn.

    python benchmarks/gpu.py                    every case, some minutes; a record goes to docs/results/gpu.json
    python benchmarks/gpu.py --envs 8 --units 64 --turns 3 --no-record

CartPole without velocities, rollouts of 128 steps, 4 minibatches, 4 epochs, one LSTM each for actor and critic. Every
contender has the same network, policy and sizes, and they take turns as in speed.py. sb3-contrib has the environment
its users have (``DummyVecEnv``) and our vectorized one. Without a GPU nothing is measured and nothing written.
"""

import json
import pathlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import tyro
from measuring import DOCS, ROOT, Contender, Sb3Contender, environment_of_measurement, take_turns, use_threads

RECORD = DOCS / "results" / "gpu.json"
BASE = "sb3-contrib"


@dataclass(frozen=True)
class Settings:
    """Training speed on a GPU."""

    envs: tuple[int, ...] = (8, 32, 1024)
    """Numbers of environments."""
    units: tuple[int, ...] = (64, 256)
    """Numbers of hidden units."""
    steps: int = 128
    """Steps of each environment in a rollout."""
    turns: int = 5
    """Turns of each contender."""
    seconds: float = 2.0
    """A turn takes as many iterations as fit into this, at least one."""
    device: str = "cuda"
    """The device to measure."""
    record: bool = True
    """Append what was measured to docs/results/gpu.json."""


def main(settings: Settings) -> int:
    """Measures every case and returns the exit code."""
    use_threads(1)
    import torch
    from report import print_case

    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured, nothing is written")
        return 0
    cases = []
    for n_envs in settings.envs:
        for units in settings.units:
            cases.append(measure(n_envs, units, settings))
            print_case(cases[-1]["case"], cases[-1], base=BASE)
    if settings.record:
        append({"measured": described(settings), "cases": cases}, RECORD)
        print(f"\nrecorded in {RECORD.relative_to(ROOT)}")
    return 0


def measure(n_envs: int, units: int, settings: Settings) -> dict[str, Any]:
    """The rows of every contender."""
    from cases import Case, Network

    name, batch_size = f"{n_envs} environments, {units} units", n_envs * settings.steps // 4
    case = Case(name, "early", Network(units), (), n_envs=n_envs, n_steps=settings.steps, batch_size=batch_size)
    result = take_turns(case, builders(settings.device), settings.turns, settings.seconds)
    return {"case": name, "n_envs": n_envs, "units": units, **asdict(result)}


def builders(device: str) -> dict[str, Callable[[Any], Contender]]:
    """The contenders by name, each a function of the case."""
    import sb3_contrib
    import torch
    from cases import fast_env, usual_env
    from contenders import model_of

    import agents

    finish = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def theirs(env_of: Any) -> Any:
        return lambda case: Sb3Contender(model_of(case, sb3_contrib.RecurrentPPO, env_of(case), device=device), finish)

    def ours(compiled: bool, autocast: str | None) -> Any:
        def build(case: Any) -> Contender:
            model = model_of(case, agents.RecurrentPPO, fast_env(case), device=device, autocast=autocast)
            model.policy.compiles_on_gpu = compiled
            return Sb3Contender(model, finish)

        return build

    return {
        BASE: theirs(usual_env),
        "sb3-contrib, fast env": theirs(fast_env),
        "RecuRL, not compiled": ours(False, None),
        "RecuRL": ours(True, None),
        "RecuRL, bfloat16, not compiled": ours(False, "bfloat16"),
        "RecuRL, bfloat16": ours(True, "bfloat16"),
    }


def described(settings: Settings) -> dict[str, Any]:
    """The hardware's name, versions, the day, and how it was measured."""
    import torch

    found: dict[str, Any] = environment_of_measurement(threads=1)
    if settings.device.startswith("cuda"):
        found |= {"gpu": torch.cuda.get_device_name(settings.device), "cuda": str(torch.version.cuda)}
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found | {"steps": settings.steps, "turns": settings.turns, "seconds of a turn": settings.seconds}


def append(record: dict[str, Any], path: pathlib.Path) -> None:
    """Adds a record to a file that holds a list of them; the file is replaced at once or not at all."""
    records = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps([*records, record], indent=1) + "\n")
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
