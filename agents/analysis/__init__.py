"""What an agent remembers, and whether it uses it: pure functions from an agent to arrays, and plots of these.

    ablate            the same episodes with the memory wiped, exchanged, or made noisy
    memory_horizon    how far back an input still moves the action
    record            one episode with all that the agent saw, did and carried
    units             what was carried, step by step, as a matrix
    principal_components, gates, attention, graph_weights

``agents.analysis.plots`` draws them; it needs matplotlib (the extra ``plots``), nothing here does.
"""

from agents.analysis.ablation import Ablation, Condition, ablate
from agents.analysis.horizon import Horizon, memory_horizon
from agents.analysis.inside import (
    Attention,
    Components,
    Gates,
    GraphWeights,
    attention,
    gates,
    graph_weights,
    principal_components,
)
from agents.analysis.recording import Recording, record, units

__all__ = [
    "Ablation",
    "Attention",
    "Components",
    "Condition",
    "Gates",
    "GraphWeights",
    "Horizon",
    "Recording",
    "ablate",
    "attention",
    "gates",
    "graph_weights",
    "memory_horizon",
    "principal_components",
    "record",
    "units",
]
