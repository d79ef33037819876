"""Agents that remember: recurrent actor-critic algorithms for partially observable environments.

``RecurrentPPO`` is a drop-in for ``sb3_contrib.RecurrentPPO``; ``RecurrentA2C`` its synchronous advantage actor-critic
sibling. ``MlpLstmPolicy``, ``CnnLstmPolicy`` and ``MultiInputLstmPolicy`` are the policies of
``sb3_contrib.ppo_recurrent``, ``RecurrentActorCriticPolicy`` is the general one. ``MEMORIES`` and ``ENCODERS`` list
what can be chosen by name; a memory of your own is a ``Memory``. ``evaluate`` measures an agent, ``Player`` acts with
a saved one, ``import_contrib`` reads a model of ``sb3_contrib``, ``share`` divides environments among processes that
train together.
"""

from agents import checkpoint
from agents.algorithms.a2c import RecurrentA2C
from agents.algorithms.imitation import Imitation
from agents.algorithms.ppo import RecurrentPPO
from agents.analysis.evaluation import evaluate
from agents.deploy.contrib import import_contrib
from agents.deploy.player import Player
from agents.distributed.group import share
from agents.encoders import ENCODERS
from agents.memory import MEMORIES, Memory
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.policy.contrib import CnnLstmPolicy, MlpLstmPolicy, MultiInputLstmPolicy
from agents.rollout.masks import ActionMaskVecEnv
from agents.runs.environments import hand_in_environments

__all__ = [
    "ENCODERS",
    "MEMORIES",
    "ActionMaskVecEnv",
    "CnnLstmPolicy",
    "Imitation",
    "Memory",
    "MlpLstmPolicy",
    "MultiInputLstmPolicy",
    "Player",
    "RecurrentA2C",
    "RecurrentActorCriticPolicy",
    "RecurrentPPO",
    "__version__",
    "evaluate",
    "import_contrib",
    "share",
]

__version__ = "0.1.0"

# What the checkpoints use or show of what lies above them.
hand_in_environments()
checkpoint.import_contrib = import_contrib
