"""Figures of ``speed.py`` and ``gpu.py`` as lines on a terminal, a page and a plot."""

import json
import pathlib
from typing import Any

from measuring import described, ratio
from records import save_plot, subplots

BASES = ("sb3-contrib", "CleanRL loop", "PufferLib", "rsl_rl", "skrl", "Sample Factory")
OURS = "RecuRL"


def training_ratio(result: dict[str, Any], name: str, base: str) -> float | None:
    rates = {row["contender"]: row["training"] for row in result["rows"] if not row["error"]}
    return rates[name] / rates[base] if name in rates and base in rates else None


def print_case(name: str, result: dict[str, Any], base: str = "") -> None:
    """``base``: a contender whose speed all others are divided by; none: ours is divided by each."""
    print(f"\n{name}")
    title = f"over {base}" if base else "ours over it"
    print(f"  {'':32}{'steps/s':>9}{'range':>19}{'collecting':>12}{'training':>11}   {title}")
    for row in result["rows"]:
        contender = row["contender"]
        if row["error"]:
            print(f"  {contender:32}not measured: {row['error']}")
            continue
        over = ratio(result, contender, base) if base else ratio(result, OURS, contender)
        text = _with_range(over) if over and contender != (base or OURS) else ""
        spread = "{:,.0f} - {:,.0f}".format(*row["whole_range"])
        figures = f"{row['whole']:9,.0f}{spread:>19}{row['collecting']:12,.0f}{row['training']:11,.0f}"
        print(f"  {contender:32}{figures}   {text}")
    for line in limit_lines(result) if result["limits"] else ():
        print(f"  {line}")


def _with_range(over: tuple[float, float, float]) -> str:
    return "{:.2f}x ({:.2f} - {:.2f})".format(*over)


def limit_lines(result: dict[str, Any]) -> list[str]:
    """Milliseconds of an iteration: ours, and what no implementation gets under."""
    limits, rollout = result["limits"], result["rollout"]
    floor = limits["environment"] + limits["acting"]
    lines = [
        f"environment alone: usual {rollout / limits['usual_environment']:,.0f} steps/s, "
        f"vectorized {rollout / limits['environment']:,.0f} steps/s"
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


PAGE = """# Speed

{measured}

    python benchmarks/speed.py --write-docs

Figures are environment steps per second, medians over turns; contenders take turns in one process. Every row
of a table has the same network, environments, rollout, minibatches and epochs, and a learning rate of 0, so
that all is computed and the episodes stay what they are. *early*: an untrained policy, episodes of about 20
steps. *late*: episodes of 500 steps, as a trained policy has them (the pole's limits are lifted, so that every
episode reaches the time limit). *separate*: the critic has an LSTM of its own, sb3-contrib's default;
*detached*: it reads the actor's without shaping it, sb3-contrib's `shared_lstm`; *shared*: it reads and
shapes it.

- *sb3-contrib*: `RecurrentPPO` over `DummyVecEnv` and `Monitor`, as its users run it.
- *sb3-contrib, loop removed*: the same with its loop over time replaced by one fused call, which its buffer
  allows; a subclass in `benchmarks/contenders.py`.
- *sb3-contrib, fast env*: sb3-contrib over our vectorized environment, what the environment alone gives.
- *RecuRL, same env*: ours over sb3-contrib's environment, what the algorithm alone gives.
- *RecuRL*: ours over our vectorized environment, as its users run it.
- *CleanRL loop*: the loop of CleanRL's PPO with an LSTM, rewritten in `benchmarks/peers.py`, over
  gymnasium's `SyncVectorEnv`. The other peers are themselves, see there.

"""


def page(results: dict[str, Any]) -> str:
    lines = [PAGE.format(measured=described(next(iter(results.values()))["measured"])) + _summary(results)[0]]
    lines += [*_summary(results)[1:], ""]
    for name, result in results.items():
        lines += _case_table(name, result)
    return "\n".join(lines) + "\n"


def _summary(results: dict[str, Any]) -> list[str]:
    lines = ["| complete run, RecuRL over ... | " + " | ".join(BASES) + " | sb3-contrib, loop removed |"]
    lines.append("|---|" + "---|" * (len(BASES) + 1))
    for name, result in results.items():
        cells = [ratio(result, OURS, base) for base in (*BASES, "sb3-contrib, loop removed")]
        lines.append(f"| {name} | " + " | ".join(f"{cell[0]:.1f}x" if cell else "" for cell in cells) + " |")
    return lines


def _case_table(name: str, result: dict[str, Any]) -> list[str]:
    lines = [f"## {name}", "", "| | total | range | collecting | training | RecuRL over it: total | training |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in result["rows"]:
        if row["error"]:
            lines.append(f"| {row['contender']} | not measured: {row['error']} | | | | | |")
            continue
        over, training = ratio(result, OURS, row["contender"]), training_ratio(result, OURS, row["contender"])
        is_peer = row["contender"] != OURS
        whole_text = _with_range(over) if is_peer and over else ""
        training_text = f"{training:.2f}x" if is_peer and training else ""
        low, high = row["whole_range"]
        lines.append(
            f"| {row['contender']} | {row['whole']:,.0f} | {low:,.0f} - {high:,.0f} | {row['collecting']:,.0f} "
            f"| {row['training']:,.0f} | {whole_text} | {training_text} |"
        )
    return [*lines, "", *(f"- {line}" for line in limit_lines(result)), ""]


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Steps per second of every contender, one panel for each case in which there was a peer."""
    results = {name: result for name, result in results.items() if _has_peer(result)}
    if not results:
        return
    columns = min(len(results), 3)
    n_rows = -(-len(results) // columns)
    figure, axes = subplots(n_rows, columns, 6.2, 2.1)
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
    figure.supxlabel("environment steps per second, complete training run", fontsize=9)
    save_plot(figure, path)


def _has_peer(result: dict[str, Any]) -> bool:
    return any(not row["error"] and not row["contender"].startswith(OURS) for row in result["rows"])
