"""A model card: what an agent is, how good it is, and how to load it, as the Hub reads it."""

from collections.abc import Mapping
from typing import Any

import yaml

from agents.checks.text import printable


def model_card(
    name: str, result: Mapping[str, Any], memory: str, algorithm: str, files: Mapping[str, str], source: str
) -> str:
    """README.md with front matter.

    Args:
        name: of the model.
        result: an evaluation as :meth:`agents.analysis.evaluation.Evaluation.to_json` gives it, with ``environment``.
        memory, algorithm: of the agent.
        files: what lies next to the card, and what each is.
        source: what ``from_hub`` finds it by.
    """
    environment, returns = result["environment"]["id"], result["return"]
    low, high = returns["mean_interval"]
    metric = {"type": "mean_reward", "name": "mean_reward", "value": f"{returns['mean']:.4g} ({low:.4g} to {high:.4g})"}
    front = {
        "library_name": "recurl",
        "tags": ["reinforcement-learning", "deep-reinforcement-learning", "recurl", memory, environment],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
                        "dataset": {"name": environment, "type": environment},
                        "metrics": [metric],
                    }
                ],
            }
        ],
    }
    manner = "deterministic" if result["deterministic"] else "sampled"
    listed = "\n".join(f"- `{file}`: {what}" for file, what in files.items())
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---

# {printable(name)}

An agent of RecuRL (`pip install "recurl[hub]"`) for `{environment}`: {algorithm}, memory `{memory}`.

| over {result["episodes"]} episodes, {manner} actions | value | 95 % interval |
|---|---|---|
{_rows(result)}
## Load it

```python
from recurl import Player, {algorithm}

player = Player.from_hub("{source}")             # acts: player.act(observation, reward), player.reset()
model = {algorithm}.from_hub("{source}", env)    # goes on learning
```

Files are JSON and tensors; nothing in them is executed.

{listed}
"""


def _rows(result: Mapping[str, Any]) -> str:
    returns = result["return"]
    rows = ""
    for title, name in (("mean return", "mean"), ("median", "median"), ("interquartile mean", "interquartile_mean")):
        low, high = returns[f"{name}_interval"]
        rows += f"| {title} | {returns[name]:.4g} | {low:.4g} to {high:.4g} |\n"
    if result["success_rate"] is not None:
        low, high = result["success_rate_interval"]
        rows += f"| success rate | {result['success_rate']:.1%} | {low:.1%} to {high:.1%} |\n"
    return rows
