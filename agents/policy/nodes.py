"""Actions about the nodes or the links of a graph: an actor-critic policy with a logit for each.

    observation -> graph encoder -> graph features -> memory -> heads -> latent a
                        `-> z_1 .. z_N of nodes or links, past the memory -> logit_i = w . tanh(A a + B z_i + b)

The memory carries what the graph as a whole was; its output is compared with every node (or link) that is there, with
the same weights for each, so that permuted nodes have permuted probabilities. The logits are those of a pointer network
(Vinyals, Fortunato & Jaitly, 2015).

Axes: T time, B observations, N nodes or links, G features of a graph, Z of a node or a link, H of the memory.
"""

from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from agents.encoders.graph import GraphEncoder
from agents.memory import Memory, State
from agents.policy.actor_critic import Projection, RecurrentActorCriticPolicy
from agents.policy.heads import Parameters


class Passing(Memory):
    """A memory that reads the first features and lets the last ``passed`` by: (B, F + P) -> (B, H + P)."""

    def __init__(self, memory: Memory, passed: int) -> None:
        super().__init__(memory.input_size + passed, memory.output_size + passed)
        self.memory, self.passed = memory, passed

    def initial_state(self, batch_size: int) -> State:
        return self.memory.initial_state(batch_size)

    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        read, by = self._split(features)
        output, state = self.memory(read, state, episode_starts)
        return torch.cat((output, by), dim=-1), state

    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        read, by = self._split(features)
        return torch.cat((self.memory(read, state, episode_starts), by), dim=-1)

    def reset(self, state: State, episode_starts: Tensor) -> State:
        return self.memory.reset(state, episode_starts)

    def renew(self, state: State) -> State:
        return self.memory.renew(state)

    def _split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features[..., : self.memory.input_size].contiguous(), features[..., self.memory.input_size :]


class PassingHeads(nn.Module):
    """Hidden layers of actor and critic over the first latents; the actor's last ``passed`` are let by."""

    def __init__(self, heads: MlpExtractor, passed: int) -> None:
        super().__init__()
        self.policy_net, self.value_net = heads.policy_net, heads.value_net
        self.latent_dim_pi, self.latent_dim_vf = heads.latent_dim_pi + passed, heads.latent_dim_vf
        self.passed = passed

    def forward_actor(self, latents: Tensor) -> Tensor:
        hidden = self.policy_net(latents[:, : -self.passed])
        return torch.cat((hidden, latents[:, -self.passed :]), dim=1)

    def forward_critic(self, latents: Tensor) -> Tensor:
        value: Tensor = self.value_net(latents[:, : -self.passed])
        return value


class Pointer(nn.Module):
    """(B, H + N * Z) -> (B, n): the logits of nodes, or links, ``first`` to ``first + n - 1``."""

    def __init__(self, latent_size: int, node_features: int, first: int, n: int, hidden_size: int = 64) -> None:
        super().__init__()
        self.latent_size, self.node_features = latent_size, node_features
        self.nodes = slice(first, first + n)
        self.ask = nn.Linear(latent_size, hidden_size)
        self.key = nn.Linear(node_features, hidden_size, bias=False)
        self.score = nn.Linear(hidden_size, 1, bias=False)
        # Nearly equal probabilities at the start, as Stable-Baselines3's heads give them.
        nn.init.orthogonal_(self.score.weight, gain=0.01)

    def forward(self, latents: Tensor) -> Tensor:
        nodes = latents[:, self.latent_size :].view(len(latents), -1, self.node_features)[:, self.nodes]
        query = self.ask(latents[:, : self.latent_size])[:, None]
        logits: Tensor = self.score(torch.tanh(query + self.key(nodes))).squeeze(2)
        return logits


class NodeActionPolicy(RecurrentActorCriticPolicy):
    """``"NodeActionPolicy"``: action i of Discrete(n) is about node ``first_node + i`` of a graph observation.

    With MultiBinary(n) each node gets a yes or a no. Nodes that are not there have probability 0; ``action_mask``
    forbids others too. The encoder is the graph encoder with ``output="both"``, which is set here; its other settings
    go in ``features_extractor_kwargs``.

    Args:
        first_node: the node that action 0 is about: 1 where node 0 is the agent's own place, say.

    The other arguments are those of the general policy. A critic with an extractor of its own is not for this policy.
    """

    items: ClassVar[str] = "nodes"
    mask_key: ClassVar[str] = "node_mask"
    output: ClassVar[str] = "both"

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        first_node: int = 0,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if not isinstance(action_space, spaces.Discrete | spaces.MultiBinary):
            raise ValueError(
                f"{name} chooses one of the {self.items}, Discrete(n), or says yes or no for each, MultiBinary(n); got "
                f"{action_space}"
            )
        encoder = kwargs.pop("features_extractor_class", None) or GraphEncoder
        if not (isinstance(encoder, type) and issubclass(encoder, GraphEncoder)):
            raise ValueError(f"{name} needs the features of {self.items}, so the graph encoder; got {encoder!r}")
        if kwargs.get("privileged") or not kwargs.get("share_features_extractor", True):
            raise ValueError(f"with {name} actor and critic share the encoder: no privileged keys")
        self.first_node = first_node
        kwargs["features_extractor_kwargs"] = {**(kwargs.get("features_extractor_kwargs") or {}), "output": self.output}
        kwargs["features_extractor_class"] = encoder
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        encoder, n, first = self._encoder, int(self.action_net.out_features), self.first_node  # type: ignore[arg-type]
        if not 0 <= first <= encoder.max_items - n:
            kind, setting = type(self.action_space).__name__, ", or set first_node" if self.items == "nodes" else ""
            raise ValueError(
                f"{n} actions about {self.items} {first} to {first + n - 1}, but the observation has room for "
                f"{encoder.max_items} {self.items}; make the action space {kind}({encoder.max_items - first}) or "
                f"smaller{setting}"
            )
        latent_size = self.mlp_extractor.latent_dim_pi - self._passed
        self.action_net = Pointer(latent_size, encoder.node_features, first, n).to(self.device)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _make_memory(self, input_size: int) -> Memory:
        return Passing(super()._make_memory(input_size - self._passed), self._passed)

    def _make_projection(self, input_size: int) -> Memory:
        graph_features, output_size = input_size - self._passed, self.memory_actor.output_size - self._passed
        return Passing(Projection(graph_features, output_size), self._passed)

    def _build_mlp_extractor(self) -> None:
        heads = self._make_heads(self.memory_actor.output_size - self._passed)
        self.mlp_extractor = PassingHeads(heads, self._passed)  # type: ignore[assignment]

    @property
    def _encoder(self) -> GraphEncoder:
        assert isinstance(self.features_extractor, GraphEncoder)
        return self.features_extractor

    @property
    def _passed(self) -> int:
        return self._encoder.max_items * self._encoder.node_features

    def distribution_parameters(self, latent: Tensor, obs: Any) -> Parameters:
        (logits,) = super().distribution_parameters(latent, obs)
        there = obs[self.mask_key][:, self.first_node : self.first_node + logits.shape[1]].bool()
        return (logits.masked_fill(~there, torch.finfo(logits.dtype).min),)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "first_node": self.first_node}


class LinkActionPolicy(NodeActionPolicy):
    """``"LinkActionPolicy"``: action i of Discrete(n) is about edge i of a graph observation: follow it, say.

    With MultiBinary(n) each edge gets a yes or a no: which to add, which to remove. All else is as for actions about
    nodes; a link's features are made of both its ends and of its own.
    """

    items = "links"
    mask_key = "edge_mask"
    output = "graph and links"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.pop("first_node", 0):
            raise ValueError("first_node goes with NodeActionPolicy: action i of LinkActionPolicy is about edge i")
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        del parameters["first_node"]
        return parameters
