"""The other peers, each on the network of a case and on gymnasium's environments, set up by its own means.

Importing this module needs torch and gymnasium only; a peer's package is imported when the peer is built. Some change
Python's or torch's settings as they are imported; ``contained`` restores those for the other contenders.
"""

import contextlib
import io
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from cases import Case, gymnasium_envs
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from measuring import Seconds, Stopwatch, Unavailable
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

GAMMA, LAMBDA, CLIP, VALUE_WEIGHT, MAX_NORM = 0.99, 0.95, 0.2, 0.5, 0.5


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Silences what is printed, and restores warning filters, the interrupt handler and torch's argument checks."""
    on_interrupt, checks = signal.getsignal(signal.SIGINT), Distribution._validate_args
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, on_interrupt)
            Distribution.set_default_validate_args(checks)


def sync_vector_env(case: Case) -> SyncVectorEnv:
    """Gymnasium's ordinary vector environment, an episode's next one started in the step that ended it."""
    return SyncVectorEnv(gymnasium_envs(case), autoreset_mode=AutoresetMode.SAME_STEP)


def _needs(case: Case, critic: str) -> None:
    if case.network.critic != critic:
        raise Unavailable(f"its critic's LSTM is {critic}")


class OneLstm(nn.Module):
    """Observation -> LSTM -> logits and value, the LSTM stepped in Python over time with resets by multiplication."""

    def __init__(self, n_features: int, n_actions: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(n_features, hidden)
        self.actor, self.critic = nn.Linear(hidden, n_actions), nn.Linear(hidden, 1)

    def hidden(
        self, observations: Tensor, state: tuple[Tensor, Tensor], starts: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(T, B, F), (1, B, H) each, (T, B) -> (T, B, H) and the state after."""
        outputs = []
        for observation, start in zip(observations, starts, strict=True):
            alive = (1.0 - start).view(1, -1, 1)
            output, state = self.lstm(observation[None], (alive * state[0], alive * state[1]))
            outputs.append(output)
        return torch.cat(outputs), state


class CleanrlLoop:
    """The algorithm of CleanRL's ppo_atari_lstm, rewritten for vectors of features.

    One LSTM for actor and critic, minibatches of complete environments, the loop over time in Python, a torch
    distribution a step, Adam's default implementation, value clipping.
    """

    def __init__(self, case: Case) -> None:
        _needs(case, "shared")
        self._case, self._env = case, sync_vector_env(case)
        n_features = self._env.single_observation_space.shape[0]  # type: ignore[index]
        self._net = OneLstm(n_features, 2, case.network.hidden)
        self._optimizer = torch.optim.Adam(self._net.parameters(), lr=0.0, eps=1e-5)
        steps = (case.n_steps, case.n_envs)
        self.observations = torch.zeros(*steps, n_features)
        self.actions, self.log_probs, self.rewards, self.starts, self.values = (torch.zeros(steps) for _ in range(5))
        first, _ = self._env.reset(seed=0)
        self._observation, self._start = torch.as_tensor(first), torch.zeros(case.n_envs)
        self._state = (
            torch.zeros(1, case.n_envs, case.network.hidden),
            torch.zeros(1, case.n_envs, case.network.hidden),
        )

    def iterate(self, n_iterations: int) -> Seconds:
        collecting, training = Stopwatch(), Stopwatch()
        for _ in range(n_iterations):
            with collecting.running():
                state_before = self._state
                returns = self.collect()
            with training.running():
                self.train(state_before, returns)
        return Seconds(collecting.seconds + training.seconds, collecting.seconds, training.seconds)

    @torch.no_grad()
    def collect(self) -> Tensor:
        """Fills the rollout; (T, B) returns by generalized advantages."""
        for step in range(self._case.n_steps):
            self.observations[step], self.starts[step] = self._observation, self._start
            action, log_prob, _, value = self._act()
            self.values[step], self.actions[step], self.log_probs[step] = value, action, log_prob
            observation, reward, terminated, truncated, _ = self._env.step(action.numpy())
            self.rewards[step] = torch.as_tensor(reward)
            self._observation = torch.as_tensor(observation)
            self._start = torch.as_tensor(terminated | truncated, dtype=torch.float32)
        last_hidden, _ = self._net.hidden(self._observation[None], self._state, self._start[None])
        return self._advantages(self._net.critic(last_hidden).view(-1)) + self.values

    def _act(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden, self._state = self._net.hidden(self._observation[None], self._state, self._start[None])
        distribution: Any = Categorical(logits=self._net.actor(hidden[0]))
        action = distribution.sample()
        return action, distribution.log_prob(action), distribution.entropy(), self._net.critic(hidden[0]).view(-1)

    def _advantages(self, next_value: Tensor) -> Tensor:
        advantages, running = torch.zeros_like(self.rewards), torch.zeros(self._case.n_envs)
        next_start = self._start
        for step in reversed(range(self._case.n_steps)):
            continues = 1.0 - next_start
            error = self.rewards[step] + GAMMA * next_value * continues - self.values[step]
            running = error + GAMMA * LAMBDA * continues * running
            advantages[step], next_value, next_start = running, self.values[step], self.starts[step]
        return advantages

    def train(self, state: tuple[Tensor, Tensor], returns: Tensor) -> None:
        environments = np.arange(self._case.n_envs)
        for _ in range(self._case.n_epochs):
            np.random.default_rng().shuffle(environments)
            for chosen in np.split(environments, self._case.n_minibatches):
                loss = self.loss((state[0][:, chosen], state[1][:, chosen]), chosen, returns)
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self._net.parameters(), MAX_NORM)
                self._optimizer.step()

    def loss(self, state: tuple[Tensor, Tensor], chosen: Any, returns: Tensor) -> Tensor:
        hidden, _ = self._net.hidden(self.observations[:, chosen], state, self.starts[:, chosen])
        distribution: Any = Categorical(logits=self._net.actor(hidden))
        value: Tensor = self._net.critic(hidden).squeeze(-1)
        old_value, target = self.values[:, chosen], returns[:, chosen]
        log_ratio = distribution.log_prob(self.actions[:, chosen]) - self.log_probs[:, chosen]
        self.largest_log_ratio = log_ratio.detach().abs().max().item()
        ratio, advantage = log_ratio.exp(), target - old_value
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
        clipped = old_value + (value - old_value).clamp(-CLIP, CLIP)
        value_loss = 0.5 * torch.max((value - target) ** 2, (clipped - target) ** 2).mean()
        loss: Tensor = policy_loss - 0.01 * distribution.entropy().mean() + VALUE_WEIGHT * value_loss
        return loss


class Pufferlib:
    """PufferLib 3's trainer and LSTM wrapper over its serial vectorization, without its dashboard.

    It zeroes the state at every rollout's start and resets none inside. Where its compiled advantage cannot be loaded
    (the published build wants a CUDA build of torch), the same recurrence runs in NumPy, 0.3 ms a call.
    """

    def __init__(self, case: Case) -> None:
        _needs(case, "shared")
        with contained():
            import pufferlib.emulation
            import pufferlib.models
            import pufferlib.pufferl
            import pufferlib.vector

            if not getattr(pufferlib.pufferl, "_C_AVAILABLE", True):
                pufferlib.pufferl.compute_puff_advantage = puffer_advantage
            makers = [
                lambda make=make, buf=None, seed=0: pufferlib.emulation.GymnasiumPufferEnv(  # type: ignore[misc]
                    env_creator=make, buf=buf, seed=seed
                )
                for make in gymnasium_envs(case)
            ]
            env = pufferlib.vector.make(
                makers,
                env_args=[[] for _ in makers],
                env_kwargs=[{} for _ in makers],
                backend="Serial",
                num_envs=case.n_envs,
            )
            hidden = case.network.hidden
            network = pufferlib.models.LSTMWrapper(env, _PufferHeads(env, hidden), env_width(env), hidden)
            quiet = type("QuietPuffeRL", (pufferlib.pufferl.PuffeRL,), {"print_dashboard": lambda *_, **__: None})
            self._trainer = quiet(_puffer_settings(case), env, network)
            self._trainer.utilization.stop()

    def iterate(self, n_iterations: int) -> Seconds:
        collecting, training = Stopwatch(), Stopwatch()
        with contained():
            for _ in range(n_iterations):
                with collecting.running():
                    self._trainer.evaluate()
                with training.running():
                    self._trainer.train()
        return Seconds(collecting.seconds + training.seconds, collecting.seconds, training.seconds)


class _PufferHeads(nn.Module):
    """What PufferLib's LSTM wrapper asks of a policy: no encoder, linear heads."""

    is_continuous = False

    def __init__(self, env: Any, hidden: int) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.actor, self.value = nn.Linear(hidden, int(env.single_action_space.n)), nn.Linear(hidden, 1)

    def encode_observations(self, observations: Tensor, state: Any = None) -> Tensor:
        return observations.view(len(observations), -1)

    def decode_actions(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(hidden), self.value(hidden)


def env_width(env: Any) -> int:
    return int(np.prod(env.single_observation_space.shape))


def puffer_advantage(
    values: Tensor,
    rewards: Tensor,
    terminals: Tensor,
    ratio: Tensor,
    advantages: Tensor,
    gamma: float,
    gae_lambda: float,
    rho_clip: float,
    c_clip: float,
) -> Tensor:
    """PufferLib's advantages, all (B, T): generalized advantages with V-trace's clipped ratios.

    Rewards and ends are those of the step before, as its buffer keeps them.
    """
    continues = (1.0 - terminals[:, 1:]).numpy()
    ratio = ratio.detach()
    delta = rewards[:, 1:].numpy() + gamma * values[:, 1:].numpy() * continues - values[:, :-1].numpy()
    delta = np.ascontiguousarray((np.minimum(ratio[:, :-1].numpy(), rho_clip) * delta).T)
    decay = np.ascontiguousarray((gamma * gae_lambda * np.minimum(ratio[:, :-1].numpy(), c_clip) * continues).T)
    for step in range(len(delta) - 2, -1, -1):
        delta[step] += decay[step] * delta[step + 1]
    advantages[:, :-1] = torch.from_numpy(delta.T)
    return advantages


def _puffer_settings(case: Case) -> dict[str, Any]:
    return dict(
        env="cartpole",
        seed=0,
        torch_deterministic=True,
        cpu_offload=False,
        device="cpu",
        data_dir="",
        use_rnn=True,
        compile=False,
        compile_mode="default",
        compile_fullgraph=False,
        precision="float32",
        batch_size="auto",
        bptt_horizon=case.n_steps,
        minibatch_size=case.batch_size,
        max_minibatch_size=case.batch_size,
        update_epochs=case.n_epochs,
        total_timesteps=10**12,
        checkpoint_interval=10**12,
        optimizer="adam",
        learning_rate=0.0,
        anneal_lr=False,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_eps=1e-5,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_coef=CLIP,
        vf_coef=VALUE_WEIGHT,
        vf_clip_coef=CLIP,
        max_grad_norm=MAX_NORM,
        ent_coef=0.01,
        prio_alpha=0.0,
        prio_beta0=1.0,
        vtrace_rho_clip=1.0,
        vtrace_c_clip=1.0,
    )


class RslRl:
    """rsl_rl's runner, which trains continuous actions only: the sign of one pushes the cart."""

    def __init__(self, case: Case) -> None:
        _needs(case, "separate")
        with contained():
            from rsl_rl.runners import OnPolicyRunner

            model = dict(
                class_name="rsl_rl.models.RNNModel",
                hidden_dims=list(case.network.heads),
                activation="tanh",
                rnn_type="lstm",
                rnn_hidden_dim=case.network.hidden,
            )
            distribution = dict(class_name="rsl_rl.modules.GaussianDistribution", init_std=1.0)
            settings = dict(
                num_steps_per_env=case.n_steps,
                save_interval=10**9,
                check_for_nan=False,
                obs_groups=dict(actor=["policy"], critic=["policy"]),
                actor=model | dict(distribution_cfg=distribution),
                critic=dict(model),
                algorithm=dict(
                    class_name="rsl_rl.algorithms.PPO",
                    num_learning_epochs=case.n_epochs,
                    num_mini_batches=case.n_minibatches,
                    learning_rate=0.0,
                    schedule="fixed",
                    max_grad_norm=MAX_NORM,
                    gamma=GAMMA,
                    lam=LAMBDA,
                ),
            )
            self._runner = OnPolicyRunner(_rsl_env(case), settings, log_dir=None, device="cpu")
        self._training = Stopwatch()
        self._runner.alg.update = self._training.timed(self._runner.alg.update)

    def iterate(self, n_iterations: int) -> Seconds:
        self._training.seconds = 0.0
        start = time.perf_counter()
        with contained():
            self._runner.learn(n_iterations)
        whole = time.perf_counter() - start
        return Seconds(whole, whole - self._training.seconds, self._training.seconds)


def _rsl_env(case: Case) -> Any:
    from rsl_rl.env import VecEnv
    from tensordict import TensorDict

    class RslEnv(VecEnv):  # type: ignore[misc]
        """rsl_rl's interface over gymnasium's vector environment."""

        def __init__(self) -> None:
            self._env = sync_vector_env(case)
            self.num_envs, self.num_actions, self.max_episode_length = case.n_envs, 1, 500
            self.device = "cpu"
            self.cfg: dict[str, Any] = {}
            self.episode_length_buf = torch.zeros(case.n_envs, dtype=torch.long)
            self._last = self._pack(self._env.reset(seed=0)[0])

        def get_observations(self) -> Any:
            return self._last

        def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
            pushes = (actions[:, 0] > 0).long().numpy()
            observations, rewards, terminated, truncated, _ = self._env.step(pushes)
            self._last = self._pack(observations)
            time_outs = torch.as_tensor(truncated)
            dones = torch.as_tensor(terminated | truncated)
            return self._last, torch.as_tensor(rewards, dtype=torch.float32), dones, {"time_outs": time_outs}

        def _pack(self, observations: Any) -> Any:
            return TensorDict({"policy": torch.as_tensor(observations)}, batch_size=[case.n_envs])

    return RslEnv()


class Skrl:
    """skrl's recurrent PPO with models as its users write them: the LSTM called on the segments between resets.

    skrl switches torch's argument checks off as it is imported; it is measured so, and the others are not.
    """

    def __init__(self, case: Case) -> None:
        _needs(case, "separate")
        with contained():
            from skrl.agents.torch.ppo import PPO_RNN
            from skrl.envs.wrappers.torch import wrap_env
            from skrl.memories.torch import RandomMemory

            env = wrap_env(sync_vector_env(case), verbose=False)
            models = _skrl_models(env, case)
            memory = RandomMemory(memory_size=case.n_steps, num_envs=case.n_envs, device="cpu")
            settings = dict(
                rollouts=case.n_steps,
                learning_epochs=case.n_epochs,
                mini_batches=case.n_minibatches,
                learning_rate=0.0,
                grad_norm_clip=MAX_NORM,
                experiment=dict(write_interval=0, checkpoint_interval=0),
            )
            self._agent = PPO_RNN(
                models=models,
                memory=memory,
                cfg=settings,
                observation_space=env.observation_space,
                action_space=env.action_space,
                device="cpu",
            )
            self._agent.init()
            self._agent.enable_training_mode(True)
        self._case, self._env = case, env
        self._training = Stopwatch()
        self._agent.update = self._training.timed(self._agent.update)
        self._observations, _ = env.reset()
        self._step = 0

    def iterate(self, n_iterations: int) -> Seconds:
        self._training.seconds = 0.0
        with contained():
            Distribution.set_default_validate_args(False)
            start = time.perf_counter()
            for _ in range(n_iterations * self._case.n_steps):
                self._interact()
            whole = time.perf_counter() - start
        return Seconds(whole, whole - self._training.seconds, self._training.seconds)

    def _interact(self) -> None:
        """A step of skrl's sequential trainer."""
        at: dict[str, Any] = dict(timestep=self._step, timesteps=10**9)
        self._agent.pre_interaction(**at)
        with torch.no_grad():
            actions, _ = self._agent.act(self._observations, None, **at)
            following, rewards, terminated, truncated, infos = self._env.step(actions)
            self._agent.record_transition(
                observations=self._observations,
                states=None,
                actions=actions,
                rewards=rewards,
                next_observations=following,
                next_states=None,
                terminated=terminated,
                truncated=truncated,
                infos=infos,
                **at,
            )
        self._agent.post_interaction(**at)
        self._observations, self._step = following, self._step + 1


def _skrl_models(env: Any, case: Case) -> dict[str, Any]:
    from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model

    hidden, n_steps, n_envs = case.network.hidden, case.n_steps, case.n_envs

    class Recurrent(Model):  # type: ignore[misc]
        def build(self, n_outputs: int) -> None:
            width = int(np.prod(env.observation_space.shape))
            self.lstm = nn.LSTM(width, hidden, batch_first=True)
            layers: list[nn.Module] = []
            last = hidden
            for size in case.network.heads:
                layers += [nn.Linear(last, size), nn.Tanh()]
                last = size
            self.net = nn.Sequential(*layers, nn.Linear(last, n_outputs))

        def get_specification(self) -> dict[str, Any]:
            return {"rnn": {"sequence_length": n_steps, "sizes": [(1, n_envs, hidden)] * 2}}

        def compute(self, inputs: dict[str, Any], role: str) -> tuple[Tensor, dict[str, Any]]:
            observations, state = inputs["observations"], (inputs["rnn"][0], inputs["rnn"][1])
            if not self.training:
                output, state = self.lstm(observations[:, None], tuple(part.contiguous() for part in state))
                return self.net(output[:, 0]), {"rnn": list(state)}
            sequences = observations.view(-1, n_steps, observations.shape[-1])
            start: Any = tuple(part[:, ::n_steps].contiguous() for part in state)
            ended = (inputs["terminated"] | inputs["truncated"]).view(-1, n_steps)
            output = self._between_resets(sequences, start, ended)
            return self.net(output.flatten(0, 1)), {"rnn": list(state)}

        def _between_resets(self, sequences: Tensor, state: Any, ended: Tensor) -> Tensor:
            """One LSTM call for every segment in which no sequence ends an episode."""
            cuts = (ended[:, :-1].any(dim=0).nonzero().flatten() + 1).tolist()
            outputs = []
            for first, last in zip([0, *cuts], [*cuts, n_steps], strict=True):
                output, state = self.lstm(sequences[:, first:last], state)
                outputs.append(output)
                alive = (~ended[:, last - 1]).float().view(1, -1, 1)
                state = (state[0] * alive, state[1] * alive)
            return torch.cat(outputs, dim=1)

    class Policy(CategoricalMixin, Recurrent):  # type: ignore[misc]
        def __init__(self) -> None:
            Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device="cpu")
            CategoricalMixin.__init__(self)
            self.build(int(env.action_space.n))

    class Value(DeterministicMixin, Recurrent):  # type: ignore[misc]
        def __init__(self) -> None:
            Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device="cpu")
            DeterministicMixin.__init__(self)
            self.build(1)

    return {"policy": Policy(), "value": Value()}


class SampleFactory:
    """Sample Factory in its synchronous serial mode: one run per turn, timed from its first update to its last."""

    def __init__(self, case: Case) -> None:
        _needs(case, "shared")
        with contained():
            from sample_factory.algo.learning.learner import Learner
            from sample_factory.envs.env_utils import register_env
            from sample_factory.utils.utils import log

            log.setLevel("ERROR")
            _let_sample_factory_run_on_numpy_2()
            makers = gymnasium_envs(case)

            def make(name: str, settings: Any, env_config: Any, render_mode: str | None = None) -> Any:
                return makers[0 if env_config is None else env_config.env_id % case.n_envs]()

            register_env("benchmark", make)
            self._learner = Learner
        self._case, self._runs = case, 0
        self.iterate(1)  # what cannot be set up here is reported as the case begins

    def iterate(self, n_iterations: int) -> Seconds:
        from sample_factory.algo.runners import runner as runners
        from sample_factory.algo.utils.env_info import extract_env_info
        from sample_factory.algo.utils.make_env import make_env_func_batched
        from sample_factory.train import make_runner

        # It looks at the environment's spaces in a process of its own, to which a local function does not travel.
        runners.obtain_env_info_in_a_separate_process = lambda settings: extract_env_info(
            make_env_func_batched(settings, env_config=None), settings
        )

        self._runs += 1
        training, marks = Stopwatch(), []
        rollout = self._case.rollout

        class Marks(runners.AlgoObserver):  # type: ignore[misc]
            """When each update ended, and the seconds of training up to then."""

            def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
                marks.append((time.perf_counter(), training.seconds))

        plain = self._learner.train
        with contained(), contextlib.redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory() as folder:
            self._learner.train = training.timed(plain)
            try:
                settings = self._settings(folder, (n_iterations + 1) * rollout)
                _, runner = make_runner(settings)
                runner.register_observer(Marks())
                runner.init()
                runner.run()
            finally:
                self._learner.train = plain
        if len(marks) <= n_iterations:
            raise Unavailable(f"its run ended after {len(marks)} of {n_iterations + 1} updates")
        (first, trained_before), (last, trained) = marks[0], marks[n_iterations]
        whole, learned = last - first, trained - trained_before
        return Seconds(whole, whole - learned, learned)

    def _settings(self, folder: str, steps: int) -> Any:
        from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args

        case = self._case
        settings = dict(
            algo="APPO",
            env="benchmark",
            experiment=f"run_{self._runs}",
            train_dir=folder,
            device="cpu",
            serial_mode=True,
            async_rl=False,
            num_workers=1,
            num_envs_per_worker=case.n_envs,
            worker_num_splits=1,
            rollout=case.n_steps,
            recurrence=case.n_steps,
            batch_size=case.batch_size,
            num_batches_per_epoch=case.n_minibatches,
            num_epochs=case.n_epochs,
            use_rnn=True,
            rnn_type="lstm",
            rnn_size=case.network.hidden,
            rnn_num_layers=1,
            nonlinearity="tanh",
            normalize_input=False,
            normalize_returns=False,
            actor_critic_share_weights=True,
            learning_rate=0.0,
            gamma=GAMMA,
            gae_lambda=LAMBDA,
            ppo_clip_ratio=CLIP,
            max_grad_norm=MAX_NORM,
            train_for_env_steps=steps,
            save_every_sec=10**9,
            with_wandb=False,
        )
        arguments = [f"--{name}={value}" for name, value in settings.items()] + ["--encoder_mlp_layers"]
        parser, _ = parse_sf_args(arguments)
        return parse_full_cfg(parser, arguments)


def _let_sample_factory_run_on_numpy_2() -> None:
    """It writes arrays of one entry into scalar slots, which NumPy 2.4 refuses: they are given the slot's shape."""
    from sample_factory.algo.utils.tensor_dict import TensorDict

    plain = TensorDict._set_data_func
    if plain.__module__ == __name__:
        return

    def set_data(self: Any, kept: Any, index: Any, data: Any) -> None:
        if isinstance(kept, np.ndarray) and isinstance(data, np.ndarray):
            kept[index] = data.reshape(np.shape(kept[index]))
        else:
            plain(self, kept, index, data)

    TensorDict._set_data_func = set_data
