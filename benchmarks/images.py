"""Training on images: sb3-contrib's CnnLstmPolicy and ours at RL Zoo's settings for it, in turn.

    python benchmarks/images.py                        both cases, printed
    python benchmarks/images.py --only breakout        one of them
    python benchmarks/images.py --write-docs           into docs/results/images.jsonl and docs/performance.md

Each contender runs in a process of its own, so that its peak memory is its own, and they take turns (A B A B ...), each
turn one iteration: a rollout and an update. A ratio is taken within a turn. Seconds are the processor's, which other
programs do not lengthen; each process has one thread, and its environments are in it. The learning rate is 0, so that
every iteration of a contender meets the same kind of episodes; all is computed.

Settings: `ppo_lstm.yml` of RL Baselines3 Zoo. Breakout needs the extra "atari", CarRacing the extra "box2d".
"""

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import tyro
from measuring import DOCS, described, environment_of_measurement, use_threads
from records import keep, read, results_file, table

THEIRS, OURS = "sb3-contrib", "RecuRL"
BEGIN, END = "<!-- images.py: begin -->", "<!-- images.py: end -->"
MEASURES = ("iteration", "collecting", "training")


@dataclass(frozen=True)
class Settings:
    """Training on images, sb3-contrib and ours."""

    only: str = ""
    """Only cases whose name contains this."""
    turns: int = 3
    """Turns of each contender."""
    warm_up: int = 1
    """Iterations of each contender before the first turn."""
    epochs: int = 0
    """Epochs of an update in place of RL Zoo's, for a trial that is printed, not kept. 0: RL Zoo's."""
    write_docs: bool = False
    """Keep the results, and write the section of docs/performance.md."""


def breakout() -> Any:
    """Breakout as Stable-Baselines3 preprocesses it: 84 x 84, four frames."""
    import ale_py
    import gymnasium
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    game = dict(frameskip=1, repeat_action_probability=0.0, full_action_space=False)
    wrapper = dict(terminal_on_life_loss=False)
    return VecFrameStack(make_atari_env("ALE/Breakout-v5", 8, seed=0, env_kwargs=game, wrapper_kwargs=wrapper), 4)


def car_racing() -> Any:
    """CarRacing, every second frame, gray, 64 x 64, two frames."""
    import gymnasium
    from gymnasium.wrappers import GrayscaleObservation, ResizeObservation
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack

    os.environ["SDL_VIDEODRIVER"] = "dummy"

    class EverySecondFrame(gymnasium.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            total = 0.0
            for _ in range(2):
                observation, reward, terminated, truncated, info = self.env.step(action)
                total += float(reward)
                if terminated or truncated:
                    break
            return observation, total, terminated, truncated, info

    def make() -> gymnasium.Env[Any, Any]:
        return GrayscaleObservation(ResizeObservation(EverySecondFrame(gymnasium.make("CarRacing-v3")), (64, 64)), True)

    return VecFrameStack(make_vec_env(make, 8, seed=0), 2)


def of_breakout() -> dict[str, Any]:
    return dict(n_steps=128, n_epochs=4, batch_size=256, clip_range=0.1, vf_coef=0.5, ent_coef=0.01)


def of_car_racing() -> dict[str, Any]:
    from torch import nn

    policy = dict(
        log_std_init=-2, ortho_init=False, enable_critic_lstm=False, activation_fn=nn.GELU, lstm_hidden_size=128
    )
    sizes = dict(n_steps=512, n_epochs=20, batch_size=128)
    exploration = dict(use_sde=True, sde_sample_freq=4)
    return dict(**sizes, **exploration, gamma=0.99, gae_lambda=0.9, clip_range=0.4, policy_kwargs=policy)


CASES: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "breakout": (breakout, of_breakout),
    "car_racing": (car_racing, of_car_racing),
}


def contend(name: str, case: str, epochs: int, channel: Connection) -> None:
    """A contender's process: an iteration for each message that is true, then its peak memory in MiB."""
    use_threads(1)
    import sb3_contrib

    import agents

    make, settings = CASES[case]
    algorithm: Any = agents.RecurrentPPO if name == OURS else sb3_contrib.RecurrentPPO
    chosen = settings() | (dict(n_epochs=epochs) if epochs else {})
    model = algorithm("CnnLstmPolicy", make(), learning_rate=0.0, seed=0, device="cpu", **chosen)
    update, training = model.train, [0.0]

    def train() -> None:
        began = time.process_time()
        update()
        training[0] = time.process_time() - began

    model.train = train
    channel.send(str(model.policy.plan().encoder) if name == OURS else "torch")
    while channel.recv():
        began = time.process_time()
        model.learn(chosen["n_steps"] * model.n_envs, reset_num_timesteps=False)
        seconds = time.process_time() - began
        channel.send((seconds, seconds - training[0], training[0]))
    channel.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(case: str, settings: Settings) -> dict[str, Any]:
    """Seconds of each turn of both contenders, and their peak memory."""
    context = multiprocessing.get_context("spawn")
    channels, processes = {}, []
    for name in (THEIRS, OURS):
        channels[name], far = context.Pipe()
        processes.append(context.Process(target=contend, args=(name, case, settings.epochs, far)))
        processes[-1].start()
        far.close()
    encoders = {name: channel.recv() for name, channel in channels.items()}
    turns: dict[str, list[Any]] = {name: [] for name in channels}
    for _ in range(settings.warm_up + settings.turns):
        for name, channel in channels.items():
            channel.send(True)
            turns[name].append(channel.recv())
    result: dict[str, Any] = {"name": case, "encoders": encoders, "measured": environment_of_measurement(1)}
    for name, channel in channels.items():
        channel.send(False)
        seconds = list(zip(*turns[name][settings.warm_up :], strict=True))
        result[name] = dict(zip(MEASURES, seconds, strict=True), memory=channel.recv())
    for process in processes:
        process.join()
    return result


def ratio(result: dict[str, Any], measure: str) -> float:
    """How many times ours is faster: the median over turns."""
    pairs = zip(result[THEIRS][measure], result[OURS][measure], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    found = []
    for result in results:
        for measure in MEASURES:
            medians = [statistics.median(result[name][measure]) for name in (THEIRS, OURS)]
            figures = [f"{median:.1f} s" for median in medians]
            found.append([result["name"].replace("_", " "), measure, *figures, f"{ratio(result, measure):.1f}x"])
        memory = [result[name]["memory"] for name in (THEIRS, OURS)]
        figures = [f"{mebibytes:,.0f} MiB" for mebibytes in memory]
        found.append([result["name"].replace("_", " "), "peak memory", *figures, f"{memory[1] / memory[0]:.2f}x"])
    return found


def as_table(results: list[dict[str, Any]]) -> str:
    return "\n".join(table(f"task | one iteration | {THEIRS} | {OURS} | ratio", rows(results)))


def main(settings: Settings) -> None:
    for case in CASES:
        if settings.only not in case:
            continue
        result = measure(case, settings)
        print(as_table([result]), flush=True)
        if settings.write_docs and not settings.epochs:
            kept = [other for other in read("images") if other["name"] != case]
            results_file("images").unlink(missing_ok=True)
            for each in (*kept, result):
                keep("images", each)
    if settings.write_docs:
        write_docs(sorted(read("images"), key=lambda result: list(CASES).index(result["name"])))


def write_docs(results: list[dict[str, Any]]) -> None:
    """The section's tables, between its marks."""
    page = DOCS / "performance.md"
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    lines = [described(results[-1]["measured"]), "", as_table(results)]
    page.write_text("\n".join([before + BEGIN, *lines, END + after]))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
