"""Agents that remember: recurrent actor-critic algorithms for partially observable environments.

``RecurrentPPO`` is a drop-in for ``sb3_contrib.RecurrentPPO``; ``RecurrentA2C`` its synchronous advantage actor-critic
sibling. ``MlpLstmPolicy``, ``CnnLstmPolicy`` and ``MultiInputLstmPolicy`` are the policies of
``sb3_contrib.ppo_recurrent``, ``RecurrentActorCriticPolicy`` is the general one. Memories are listed in
``agents.memory.MEMORIES``, encoders in ``agents.encoders.ENCODERS``.
"""

from agents.algorithms.a2c import RecurrentA2C
from agents.algorithms.ppo import RecurrentPPO
from agents.policy.actor_critic import CnnLstmPolicy, MlpLstmPolicy, MultiInputLstmPolicy, RecurrentActorCriticPolicy

__all__ = [
    "CnnLstmPolicy",
    "MlpLstmPolicy",
    "MultiInputLstmPolicy",
    "RecurrentA2C",
    "RecurrentActorCriticPolicy",
    "RecurrentPPO",
    "__version__",
]

__version__ = "0.1.0"
