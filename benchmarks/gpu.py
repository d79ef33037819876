"""Training speed on a GPU: RecuRL compiled or not and with bfloat16 or not, and sb3-contrib, in turn.

    python benchmarks/gpu.py                    every case, some minutes; a record goes to docs/results/gpu.json
    python benchmarks/gpu.py --envs 8 --units 64 --turns 3 --no-record

CartPole without velocities, rollouts of 128 steps, 4 minibatches, 4 epochs, one LSTM each for actor and critic. Every
contender has the same network, policy and sizes, and they take turns (A B C A B C ...); a ratio is taken within a turn.
The learning rate is 0, so that every iteration meets the same kind of episodes. sb3-contrib has the environment its
users have (``DummyVecEnv``) and, beside it, our vectorised one. Without a GPU nothing is measured and nothing written.
"""

import json
import os
import pathlib
import statistics
import sys
from dataclasses import dataclass
from typing import Any

import tyro

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "results" / "gpu.json"
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
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))  # from a checkout, installed or not
    import torch

    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured, nothing is written")
        return 0
    torch.set_num_threads(1)
    cases = []
    for n_envs in settings.envs:
        for units in settings.units:
            cases.append(measure(n_envs, units, settings))
            print_case(cases[-1])
    if settings.record:
        append({"measured": described(settings), "cases": cases}, RECORD)
        print(f"\nrecorded in {RECORD.relative_to(ROOT)}")
    return 0


def measure(n_envs: int, units: int, settings: Settings) -> dict[str, Any]:
    """Steps per second of every contender, turn by turn, with the share of collecting and training."""
    from cases import Case, Network
    from contenders import Unavailable

    name = f"{n_envs} environments, {units} units"
    batch_size = n_envs * settings.steps // 4
    case = Case(name, "early", Network(units), (), n_envs=n_envs, n_steps=settings.steps, batch_size=batch_size)
    contenders: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for contender, build in builders(settings.device).items():
        try:
            contenders[contender] = Timed(build(case), case.rollout, settings)
        except (Unavailable, RuntimeError) as error:  # too little memory, say
            absent[contender] = f"{type(error).__name__}: {error}".splitlines()[0]
    for _ in range(settings.turns):
        for contender in contenders.values():
            contender.take_turn()
    rows = {contender: timed.row() for contender, timed in contenders.items()}
    return {"case": name, "n_envs": n_envs, "units": units, "rows": rows, "not measured": absent}


class Timed:
    """A contender, and the steps per second of its turns: in all, collecting, training."""

    def __init__(self, contender: Any, rollout: int, settings: Settings) -> None:
        self._contender, self._rollout, self._device = contender, rollout, settings.device
        self._turns: list[tuple[float, ...]] = []
        self._iterate(2)  # kernels are loaded and chosen, acting is compiled
        self._n_iterations = max(1, int(settings.seconds / self._iterate(1).whole + 0.5))

    def take_turn(self) -> None:
        taken = self._iterate(self._n_iterations)
        self._turns.append(tuple(self._rollout * self._n_iterations / seconds for seconds in taken))

    def row(self) -> dict[str, Any]:
        """Medians over turns, and the turns of the whole."""
        medians = [statistics.median(column) for column in zip(*self._turns, strict=True)]
        names = ("whole", "collecting", "training")
        return {**dict(zip(names, medians, strict=True)), "turns": [whole for whole, _, _ in self._turns]}

    def _iterate(self, n_iterations: int) -> Any:
        return self._contender.iterate(n_iterations)


def builders(device: str) -> dict[str, Any]:
    """The contenders by name, each a function of the case."""
    import sb3_contrib
    from cases import fast_env, usual_env

    import agents

    def theirs(env_of: Any) -> Any:
        return lambda case: contender(sb3_contrib.RecurrentPPO, case, env_of(case), device)

    def ours(compiled: bool, autocast: str | None) -> Any:
        def build(case: Any) -> Any:
            return contender(agents.RecurrentPPO, case, fast_env(case), device, compiled, autocast=autocast)

        return build

    return {
        BASE: theirs(usual_env),
        "sb3-contrib, fast env": theirs(fast_env),
        "RecuRL, not compiled": ours(False, None),
        "RecuRL": ours(True, None),
        "RecuRL, bfloat16, not compiled": ours(False, "bfloat16"),
        "RecuRL, bfloat16": ours(True, "bfloat16"),
    }


def contender(algorithm: Any, case: Any, env: Any, device: str, compiled: bool = True, **settings: Any) -> Any:
    """An algorithm on a device, its collecting and its training timed until the device is done with them."""
    import sb3_contrib
    import torch
    from contenders import Sb3Contender

    torch.manual_seed(0)
    widths = list(case.network.heads)
    model = algorithm(
        "MlpLstmPolicy",
        env,
        learning_rate=0.0,
        n_steps=case.n_steps,
        batch_size=case.batch_size,
        n_epochs=case.n_epochs,
        seed=0,
        device=device,
        policy_kwargs=dict(lstm_hidden_size=case.network.hidden, net_arch=dict(pi=widths, vf=widths)),
        **settings,
    )
    if algorithm is not sb3_contrib.RecurrentPPO:
        model.policy.compiles_on_gpu = compiled
    if device.startswith("cuda"):
        model.collect_rollouts = finished(model.collect_rollouts)
        model.train = finished(model.train)
    return Sb3Contender(model)


def finished(function: Any) -> Any:
    """The function, over when the device has done what it asked for."""
    import torch

    def run(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        torch.cuda.synchronize()
        return result

    return run


def ratios(case: dict[str, Any], name: str, base: str) -> tuple[float, float, float] | None:
    """Median, smallest and largest of a contender's speed over another's, turn by turn."""
    rows = case["rows"]
    if name not in rows or base not in rows:
        return None
    each = [mine / theirs for mine, theirs in zip(rows[name]["turns"], rows[base]["turns"], strict=True)]
    return statistics.median(each), min(each), max(each)


def print_case(case: dict[str, Any]) -> None:
    print(f"\n{case['case']}")
    print(f"  {'':32}{'steps/s':>11}{'collecting':>12}{'training':>12}   over {BASE}")
    for name, row in case["rows"].items():
        over = ratios(case, name, BASE)
        text = f"{over[0]:.2f}x ({over[1]:.2f} - {over[2]:.2f})" if over and name != BASE else ""
        print(f"  {name:32}{row['whole']:>11,.0f}{row['collecting']:>12,.0f}{row['training']:>12,.0f}   {text}")
    for name, reason in case["not measured"].items():
        print(f"  {name:32}not measured: {reason}")


def described(settings: Settings) -> dict[str, Any]:
    """The hardware's name, versions, the day, and how it was measured."""
    import torch
    from report import environment_of_measurement

    found: dict[str, Any] = environment_of_measurement(threads=1)
    if settings.device.startswith("cuda"):
        found |= {"gpu": torch.cuda.get_device_name(settings.device), "cuda": str(torch.version.cuda)}
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found | {"steps": settings.steps, "turns": settings.turns, "seconds of a turn": settings.seconds}


def append(record: dict[str, Any], path: pathlib.Path) -> None:
    """Adds a record to a file that holds a list of them; the file is replaced whole or not at all."""
    records = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps([*records, record], indent=1) + "\n")
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
