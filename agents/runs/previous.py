"""Hands the environments' wrapper of the last action and reward to the checkpoints of agents that learned with it."""

from agents.checkpoint.previous import PreviousInputs
from envs.vector.vectorize import WrappedVecEnv
from envs.wrappers.transforms import PreviousActionReward


def hand_in_wrapper() -> None:
    PreviousInputs.transform, PreviousInputs.vectorized = PreviousActionReward, WrappedVecEnv
