"""Figures of ``speed.py`` as lines on a terminal, a page and a plot."""

import json
import pathlib
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

BASES = ("sb3-contrib", "CleanRL loop", "PufferLib", "rsl_rl", "skrl", "Sample Factory")
OURS = "RecuRL"
PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib", "rsl-rl-lib", "skrl", "sample-factory")


def environment_of_measurement(threads: int) -> dict[str, str]:
    """Hardware, versions and the day."""
    found = {"day": time.strftime("%Y-%m-%d"), "processor": _processor(), "threads": str(threads)}
    found["python"] = platform.python_version()
    for package in (*PACKAGES, "pufferlib", "pufferlib-core"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


def ratio(result: dict[str, Any], name: str, base: str) -> tuple[float, float, float] | None:
    """Median, smallest and largest of a contender's speed over another's, turn by turn."""
    turns = {row["contender"]: row["turns"] for row in result["rows"]}
    if not turns.get(name) or not turns.get(base):
        return None
    ratios = [mine / theirs for mine, theirs in zip(turns[name], turns[base], strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def training_ratio(result: dict[str, Any], name: str, base: str) -> float | None:
    rates = {row["contender"]: row["training"] for row in result["rows"] if not row["error"]}
    return rates[name] / rates[base] if name in rates and base in rates else None


def print_case(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}")
    print(f"  {'':28}{'steps/s':>9}{'spread':>17}{'collecting':>12}{'training':>11}   ours over it")
    for row in result["rows"]:
        if row["error"]:
            print(f"  {row['contender']:28}not measured: {row['error']}")
            continue
        low, high = row["whole_range"]
        over = ratio(result, OURS, row["contender"])
        text = f"{over[0]:.2f}x ({over[1]:.2f} - {over[2]:.2f})" if over and row["contender"] != OURS else ""
        spread = f"{low:,.0f} - {high:,.0f}"
        print(
            f"  {row['contender']:28}{row['whole']:9,.0f}{spread:>17}{row['collecting']:12,.0f}{row['training']:11,.0f}"
            f"   {text}"
        )
    for line in limit_lines(result):
        print(f"  {line}")


def limit_lines(result: dict[str, Any]) -> list[str]:
    """Milliseconds of an iteration: ours, and what nothing gets under."""
    limits, rollout = result["limits"], result["rollout"]
    floor = limits["environment"] + limits["acting"]
    lines = [
        f"environment alone: usual {rollout / limits['usual_environment']:,.0f} steps/s, "
        f"vectorised {rollout / limits['environment']:,.0f} steps/s"
    ]
    ours = next((row for row in result["rows"] if row["contender"] == OURS and not row["error"]), None)
    if ours is None:
        return lines
    collecting, training = rollout / ours["collecting"], rollout / ours["training"]
    lines.append(
        f"collecting {collecting * 1e3:.1f} ms, {collecting / floor:.1f} times environment + acting arithmetic "
        f"({floor * 1e3:.1f} ms)"
    )
    lines.append(
        f"training {training * 1e3:.1f} ms, {training / limits['training']:.1f} times fused passes without resets and "
        f"heads ({limits['training'] * 1e3:.1f} ms)"
    )
    return lines


def write_docs(results: dict[str, Any], order: list[str], kept_file: pathlib.Path) -> None:
    """docs/results/speed.json, docs/speed.md and docs/speed.png."""
    kept_file.parent.mkdir(parents=True, exist_ok=True)
    ordered = {name: results[name] for name in order if name in results}
    kept_file.write_text(json.dumps(ordered, indent=1) + "\n")
    docs = kept_file.parent.parent
    (docs / "speed.md").write_text(page(ordered))
    plot(ordered, docs / "speed.png")


def page(results: dict[str, Any]) -> str:
    measured = next(iter(results.values()))["measured"]
    versions = ", ".join(
        f"{name} {text}" for name, text in measured.items() if name not in ("day", "processor", "threads")
    )
    lines = [
        "# Speed",
        "",
        f"Measured {measured['day']} on {measured['processor']}, {measured['threads']} thread(s), with {versions}:",
        "",
        "    python benchmarks/speed.py --write-docs",
        "",
        "Figures are environment steps per second, medians over turns; contenders take turns in one process. Every row",
        "of a table has the same network, environments, rollout, minibatches and epochs, and a learning rate of 0, so",
        "that all is computed and the episodes stay what they are. *early*: an untrained policy, episodes of about 20",
        "steps. *late*: episodes of 500 steps, as a trained policy has them (the pole's limits are lifted, so that any",
        "policy lives to the time limit). *separate*: the critic has an LSTM of its own, sb3-contrib's default;",
        "*detached*: it reads the actor's without shaping it, sb3-contrib's `shared_lstm`; *shared*: it reads and",
        "shapes it.",
        "",
        "- *sb3-contrib*: `RecurrentPPO` over `DummyVecEnv` and `Monitor`, as its users run it.",
        "- *sb3-contrib, loop removed*: the same with its loop over time replaced by one fused call, which its buffer",
        "  allows; a subclass in `benchmarks/contenders.py`.",
        "- *sb3-contrib, fast env*: sb3-contrib over our vectorised environment, what the environment alone gives.",
        "- *RecuRL, same env*: ours over sb3-contrib's environment, what the algorithm alone gives.",
        "- *RecuRL*: ours over our vectorised environment, as its users run it.",
        "- *CleanRL loop*: the loop of CleanRL's PPO with an LSTM, written anew in `benchmarks/peers.py`, over",
        "  gymnasium's `SyncVectorEnv`. The other peers are themselves, see there.",
        "",
    ]
    lines += [*_summary(results), ""]
    for name, result in results.items():
        lines += _case_table(name, result)
    return "\n".join(lines) + "\n"


def _summary(results: dict[str, Any]) -> list[str]:
    lines = ["| whole run, RecuRL over ... | " + " | ".join(BASES) + " | sb3-contrib, loop removed |"]
    lines.append("|---|" + "---|" * (len(BASES) + 1))
    for name, result in results.items():
        cells = [ratio(result, OURS, base) for base in (*BASES, "sb3-contrib, loop removed")]
        lines.append(f"| {name} | " + " | ".join(f"{cell[0]:.1f}x" if cell else "" for cell in cells) + " |")
    return lines


def _case_table(name: str, result: dict[str, Any]) -> list[str]:
    lines = [f"## {name}", "", "| | whole | spread | collecting | training | RecuRL over it: whole | training |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in result["rows"]:
        if row["error"]:
            lines.append(f"| {row['contender']} | not measured: {row['error']} | | | | | |")
            continue
        over, training = ratio(result, OURS, row["contender"]), training_ratio(result, OURS, row["contender"])
        shown = row["contender"] != OURS and over is not None and training is not None
        whole_text = f"{over[0]:.2f}x ({over[1]:.2f} - {over[2]:.2f})" if shown and over else ""
        training_text = f"{training:.2f}x" if shown and training else ""
        low, high = row["whole_range"]
        lines.append(
            f"| {row['contender']} | {row['whole']:,.0f} | {low:,.0f} - {high:,.0f} | {row['collecting']:,.0f} "
            f"| {row['training']:,.0f} | {whole_text} | {training_text} |"
        )
    return [*lines, "", *(f"- {line}" for line in limit_lines(result)), ""]


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Steps per second of every contender, one panel for each case in which there was a peer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = {name: result for name, result in results.items() if _has_peer(result)}
    if not results:
        return
    columns = min(len(results), 3)
    n_rows = -(-len(results) // columns)
    figure, axes = plt.subplots(n_rows, columns, figsize=(6.2 * columns, 2.1 * n_rows), squeeze=False)
    for axis in axes.flat[len(results) :]:
        axis.axis("off")
    for axis, (name, result) in zip(axes.flat, results.items(), strict=False):
        rows = [row for row in reversed(result["rows"]) if not row["error"]]
        names, rates = [row["contender"] for row in rows], [row["whole"] for row in rows]
        bars = axis.barh(names, rates, color=["#c44e52" if name.startswith(OURS) else "#8c96a3" for name in names])
        axis.bar_label(bars, [f" {rate:,.0f}" for rate in rates], fontsize=7)
        axis.set(title=name, xlim=(0, max(rates) * 1.2))
        axis.title.set_fontsize(8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("environment steps per second, whole training run", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _has_peer(result: dict[str, Any]) -> bool:
    return any(not row["error"] and not row["contender"].startswith(OURS) for row in result["rows"])
