"""Who is measured: every contender trains the network of a case and reports what its iterations took.

The learning rate is 0 everywhere: all is computed, optimizer included, and no weight moves, so that every iteration of
a contender meets the same kind of episodes.
"""

from collections.abc import Callable
from typing import Any

import peers
import sb3_contrib
import torch
from cases import Case, fast_env, usual_env
from measuring import Contender, Sb3Contender, Unavailable
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

import agents


class FusedContribPolicy(RecurrentActorCriticPolicy):
    """sb3-contrib's policy without its loop over time, which its own buffer makes needless.

    The buffer cuts at every episode's start, so within a padded sequence only the first step can start an episode: the
    initial state is masked there and the sequence takes one fused call.
    """

    @staticmethod
    def _process_sequence(  # type: ignore[override]
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: nn.LSTM
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        n_sequences = lstm_states[0].shape[1]
        sequence = features.reshape(n_sequences, -1, lstm.input_size).swapaxes(0, 1)
        alive = (1.0 - episode_starts.reshape(n_sequences, -1)[:, 0]).view(1, n_sequences, 1)
        output, states = lstm(sequence, (alive * lstm_states[0], alive * lstm_states[1]))
        return output.transpose(0, 1).flatten(0, 1), states


def model_of(case: Case, algorithm: Any, env: VecEnv, policy: Any = "MlpLstmPolicy", **settings: Any) -> Any:
    """The agent of a case, by the policy names and arguments that sb3-contrib's users write.

    Raises:
        Unavailable: the critic is "shared", which sb3-contrib has not; ours then is by the general policy.
    """
    critic, widths = case.network.critic, list(case.network.heads)
    kwargs = dict(net_arch=dict(pi=widths, vf=widths), **case.policy)
    if critic != "shared":
        kwargs["lstm_hidden_size"] = case.network.hidden
        kwargs |= dict(shared_lstm=critic == "detached", enable_critic_lstm=critic == "separate")
    elif algorithm is agents.RecurrentPPO:
        policy = "RecurrentPolicy"
        kwargs |= dict(memory="lstm", memory_kwargs=dict(hidden_size=case.network.hidden))
    else:
        raise Unavailable("its critic cannot shape the actor's LSTM")
    sizes = dict(n_steps=case.n_steps, batch_size=case.batch_size, n_epochs=case.n_epochs)
    torch.manual_seed(0)
    settings = {**dict(learning_rate=0.0, seed=0, device="cpu"), **sizes, **case.algorithm, **settings}
    return algorithm(policy, env, policy_kwargs=kwargs, **settings)


def contrib(case: Case, env: VecEnv, policy: Any = "MlpLstmPolicy") -> Contender:
    return Sb3Contender(model_of(case, sb3_contrib.RecurrentPPO, env, policy))


def recurl(case: Case, env: VecEnv) -> Sb3Contender:
    return Sb3Contender(model_of(case, agents.RecurrentPPO, env))


CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    "sb3-contrib": lambda case: contrib(case, usual_env(case)),
    "sb3-contrib, loop removed": lambda case: contrib(case, usual_env(case), FusedContribPolicy),
    "sb3-contrib, fast env": lambda case: contrib(case, fast_env(case)),
    "CleanRL loop": peers.CleanrlLoop,
    "PufferLib": peers.Pufferlib,
    "rsl_rl": peers.RslRl,
    "skrl": peers.Skrl,
    "Sample Factory": peers.SampleFactory,
    "RecuRL, same env": lambda case: recurl(case, usual_env(case)),
    "RecuRL": lambda case: recurl(case, fast_env(case)),
}
