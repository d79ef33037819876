"""Hands what agents need of the environments to them, who do not import these."""

from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.checkpoint import SavableAlgorithm
from agents.checkpoint.previous import PreviousInputs
from envs.vector.vectorize import WrappedVecEnv, adapted, find
from envs.wrappers.transforms import PreviousActionReward


def hand_in_environments() -> None:
    PreviousInputs.transform, PreviousInputs.vectorized = PreviousActionReward, WrappedVecEnv
    RecurrentOnPolicyAlgorithm.adapted = staticmethod(adapted)
    SavableAlgorithm.find = staticmethod(lambda id: find(id).id)
