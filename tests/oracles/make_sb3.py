"""Answers of Stable-Baselines3, stored for our tests: writes `sb3.npz` beside itself.

    python -m venv .bench/sb3 && .bench/sb3/bin/pip install torch==2.13.0 stable-baselines3==2.9.2
    .bench/sb3/bin/python tests/oracles/make_sb3.py

Run by hand, never by the tests. The file holds plain arrays (read it with `allow_pickle=False`); names have
parts separated by "/". T=16 steps, N=4 environments, weights as torch has them, `[out, in]`, by SB3's names.
SB3's own code computes every answer; only the inputs are made here, from fixed seeds.

`versions`: name=version strings.

`gae/`: `RolloutBuffer.compute_returns_and_advantage`.
    rewards, values, terminated, truncated, final_values `[T,N]`; last_values `[N]`; gammas, lambdas `[6]`.
    advantages, returns `[6,T,N]`: every end, also a truncation, cuts (SB3 given the rewards as they are).
    bootstrapped_advantages, bootstrapped_returns `[6,T,N]`: as SB3 trains: at a truncation
    gamma * final_values is added to the reward first. No step is both terminated and truncated.

`ppo/CASE/` with CASE `discrete`, `discrete_clip_vf` (clip_range_vf=0.2), `box`: one update, whole batch of 64
rows as one minibatch. net_arch [16, 16] for both, tanh; `box` has 2 actions and log_std.
    settings/: learning_rate, ent_coef, vf_coef, gamma, gae_lambda, clip_range, clip_range_vf (NaN: none),
        max_grad_norm, adam_eps.
    obs, final_obs `[T,N,4]` (the true successor of every row), last_obs `[N,4]`, actions `[T,N]`, `[T,N,2]`,
    rewards, terminated, truncated, is_first `[T,N]`; values, log_probs, advantages, returns `[T,N]` as in
    SB3's buffer (rewards there include the bootstrap at truncations).
    before/, after1/, after3/: weights at the start, after n_epochs=1 and n_epochs=3 (each from the start).
    log1/, log3/: what SB3 logs, by its key without `train/`. grad_norms `[3]`: at each step, before clipping.

`dqn/CASE/` with CASE `plain` and `clipped` (observations 30 times as large, gradients longer than
max_grad_norm=10): q-network [16, 16] with ReLU, 3 actions, a fixed batch of 32 through SB3's replay buffer.
    settings/: learning_rate, gamma, max_grad_norm.
    obs, next_obs `[32,4]`, actions, rewards, terminated, truncated, dones `[32]`: SB3 samples 0 at a timeout.
    before/, target/: weights of both networks; after1/, after3/: online weights after 1 and 3 steps.
    current_q, targets `[3,32]`, losses, grad_norms `[3]` (before clipping), at each of three steps.
`dqn/sync/`: tau1/, tau03/: target weights of `plain` after SB3's synchronisation with tau 1 and 0.3, online
    being after3. interval, n_envs `[5]`, synchronised `[5,40]` bool: does the vector step (first column: the
    first) synchronise? `dqn/epsilon/`: progress_remaining, value `[21]`, with the default exploration.

`sde/`: latent `[5,6]`, mean, actions `[5,2]`, log_std_full `[6,2]`, log_std_reduced `[6,1]`, and for each of
    full_exp, full_expln, reduced_exp, reduced_expln: std `[6,2]`, log_prob, entropy `[5]`.

`dist/`: categorical/ (logits `[5,3]`), multi_discrete/ (nvec `[3]`, logits `[5,9]` side by side), bernoulli/
    (logits `[5,4]`), diag_gaussian/ (mean `[5,2]`, log_std `[2]`); each: actions, log_prob, entropy, mode.

`ortho/LAYER/` (LAYER by SB3's name, 4 inputs, 2 actions, net_arch [64, 64]): shape, gain, singular_values,
    column_norms, row_norms, bias_abs_max. `dqn_init/LAYER/`: shape, weight_abs_max, weight_std, bias_abs_max.

`features/CASE/` with CASE discrete, multi_discrete, multi_binary, box: obs, features. `features/dict/`: keys
    (in the order of the space), obs/KEY, features `[3,F]`: what SB3's policy gives its network.

`explained_variance/`: predicted, true `[5,32]`, value `[5]` (NaN where `true` is constant).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common import distributions
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule, explained_variance
from stable_baselines3.common.vec_env import DummyVecEnv

T, N, B = 16, 4, 32
OBS = spaces.Box(-np.inf, np.inf, (4,), np.float32)
Arrays = dict[str, Any]


class Spaces(gymnasium.Env):
    """Only spaces: nothing here is ever stepped."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space


def make(
    algorithm: Any, policy: str, observation: spaces.Space, action: spaces.Space, n_envs: int = 1, **kw: Any
) -> Any:
    """A model of SB3 on spaces alone, that logs into a dict."""
    env = DummyVecEnv([lambda: Spaces(observation, action)] * n_envs)
    model = algorithm(policy, env, seed=0, device="cpu", **kw)
    model.set_logger(configure(None, []))
    return model


def put(arrays: Arrays, prefix: str, values: dict[str, Any]) -> None:
    """Store values under `prefix/`."""
    arrays.update({f"{prefix}/{name}": np.asarray(value) for name, value in values.items()})


def weights(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """A copy of all parameters, by name."""
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Weights and biases at which every term matters, unlike at SB3's start (tiny actions, zero biases)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            scale = 0.3 if value.ndim == 1 else 1.2 / value.shape[1] ** 0.5
            value.copy_(scale * torch.randn(value.shape, generator=generator) - 0.3 * (name == "log_std"))


@contextlib.contextmanager
def heard_norms() -> Iterator[list[float]]:
    """The gradients' global norms before clipping, overheard while SB3 trains."""
    norms: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def heard(parameters: Any, limit: float) -> torch.Tensor:
        norm = clip(parameters, limit)
        norms.append(norm.item())
        return norm

    with mock.patch("torch.nn.utils.clip_grad_norm_", heard):
        yield norms


def endings(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`(terminated, truncated)` `[T,N]`, never both; the last row has one of each."""
    kind = rng.choice(3, size=(T, N), p=[0.75, 0.13, 0.12])
    kind[-1, :3] = [0, 1, 2]
    return kind == 1, kind == 2


def first_of(ended: np.ndarray) -> np.ndarray:
    """Which steps begin an episode; the first row goes on with an episode in two of the environments."""
    first = np.concatenate([np.zeros((1, N), bool), ended[:-1]])
    first[0, :2] = True
    return first


def gae(arrays: Arrays) -> None:
    """Advantages and returns."""
    rng = np.random.default_rng(1)
    rewards, values, final_values = rng.normal(size=(3, T, N)).astype(np.float32)
    last_values = rng.normal(size=N).astype(np.float32)
    terminated, truncated = endings(rng)
    ended = terminated | truncated
    pairs = [(gamma, lam) for gamma in (0.98, 0.99) for lam in (0.8, 0.95, 1.0)]
    put(arrays, "gae", {
        "rewards": rewards, "values": values, "final_values": final_values, "last_values": last_values,
        "terminated": terminated, "truncated": truncated,
        "gammas": [gamma for gamma, _ in pairs], "lambdas": [lam for _, lam in pairs],
    })  # fmt: skip
    for prefix, bootstrap in (("", 0.0), ("bootstrapped_", 1.0)):
        answers: dict[str, list[np.ndarray]] = {"advantages": [], "returns": []}
        for gamma, lam in pairs:
            buffer = RolloutBuffer(T, OBS, spaces.Discrete(2), "cpu", lam, gamma, N)
            buffer.rewards[:] = rewards + bootstrap * gamma * final_values * truncated
            buffer.values[:], buffer.episode_starts[:] = values, first_of(ended)
            buffer.compute_returns_and_advantage(torch.tensor(last_values), ended[-1])
            answers["advantages"].append(buffer.advantages.copy())
            answers["returns"].append(buffer.returns.copy())
        put(arrays, "gae", {f"{prefix}{name}": np.stack(found) for name, found in answers.items()})


# -- PPO ---------------------------------------------------------------------------------------------


def rollout(model: PPO, rng: np.random.Generator, gamma: float) -> Arrays:
    """Fill the model's buffer as `collect_rollouts` would; what went in, and what came of it."""
    discrete = isinstance(model.action_space, spaces.Discrete)
    terminated, truncated = endings(rng)
    ended = terminated | truncated
    obs, successor = rng.normal(size=(2, T, N, 4)).astype(np.float32)
    last_obs = rng.normal(size=(N, 4)).astype(np.float32)
    following = np.concatenate([obs[1:], last_obs[None]])
    final_obs = np.where(ended[..., None], successor, following)
    rewards = rng.normal(size=(T, N)).astype(np.float32)
    actions = rng.integers(2, size=(T, N)) if discrete else rng.normal(size=(T, N, 2)).astype(np.float32)
    buffer, policy, first = model.rollout_buffer, model.policy, first_of(ended)
    buffer.reset()
    with torch.no_grad():
        for t in range(T):
            values, log_probs, _ = policy.evaluate_actions(torch.tensor(obs[t]), torch.tensor(actions[t]))
            bootstrap = policy.predict_values(torch.tensor(final_obs[t])).numpy().flatten()
            reward = rewards[t] + gamma * bootstrap * truncated[t]
            buffer.add(obs[t], actions[t], reward, first[t], values, log_probs)
        last_values = policy.predict_values(torch.tensor(last_obs))
    buffer.compute_returns_and_advantage(last_values, ended[-1])
    return {
        "obs": obs, "final_obs": final_obs, "last_obs": last_obs, "actions": actions, "rewards": rewards,
        "terminated": terminated, "truncated": truncated, "is_first": first, "values": buffer.values.copy(),
        "log_probs": buffer.log_probs.copy(), "advantages": buffer.advantages.copy(),
        "returns": buffer.returns.copy(),
    }  # fmt: skip


def ppo(arrays: Arrays) -> None:
    """Whole updates, from the same weights and rollout, of one and of three epochs."""
    settings = {"learning_rate": 0.01, "ent_coef": 0.01, "vf_coef": 0.5, "gamma": 0.98, "gae_lambda": 0.9,
                "clip_range": 0.2, "max_grad_norm": 0.5}  # fmt: skip
    cases = {
        "discrete": (spaces.Discrete(2), None),
        "discrete_clip_vf": (spaces.Discrete(2), 0.2),
        "box": (spaces.Box(-1, 1, (2,), np.float32), None),
    }
    for case, (action, clip_range_vf) in cases.items():
        prefix = f"ppo/{case}"
        for epochs in (1, 3):
            model = make(
                PPO, "MlpPolicy", OBS, action, N, n_steps=T, batch_size=T * N, n_epochs=epochs,
                clip_range_vf=clip_range_vf, policy_kwargs={"net_arch": {"pi": [16, 16], "vf": [16, 16]}},
                **settings,
            )  # fmt: skip
            randomise(model.policy, seed=2)
            put(arrays, f"{prefix}/before", weights(model.policy))
            put(arrays, prefix, rollout(model, np.random.default_rng(3), settings["gamma"]))
            with heard_norms() as norms:
                model.train()
            put(arrays, prefix, {"grad_norms": norms})
            put(arrays, f"{prefix}/after{epochs}", weights(model.policy))
            logged = {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items()}
            put(arrays, f"{prefix}/log{epochs}", logged)
        eps = model.policy.optimizer.defaults["eps"]
        limit = np.nan if clip_range_vf is None else clip_range_vf
        put(arrays, f"{prefix}/settings", {**settings, "clip_range_vf": limit, "adam_eps": eps})


# -- DQN ---------------------------------------------------------------------------------------------


def dqn_model(n_envs: int = 1, **kw: Any) -> DQN:
    """A small DQN whose two networks differ."""
    model = make(DQN, "MlpPolicy", OBS, spaces.Discrete(3), n_envs, buffer_size=B * n_envs,
                 policy_kwargs={"net_arch": [16, 16]}, **kw)  # fmt: skip
    randomise(model.q_net, seed=4)
    randomise(model.q_net_target, seed=5)
    return model


def fill(model: DQN, scale: float) -> Arrays:
    """Put the batch through SB3's replay buffer, and let `sample` always give it, in order."""
    rng = np.random.default_rng(6)
    obs, next_obs = (scale * rng.normal(size=(2, B, 4))).astype(np.float32)
    actions, rewards = rng.integers(3, size=B), (2 * rng.normal(size=B)).astype(np.float32)
    kind = rng.choice(3, size=B, p=[0.6, 0.2, 0.2])
    terminated, truncated = kind == 1, kind == 2
    for i in range(B):
        ended = np.array([terminated[i] or truncated[i]])
        infos = [{"TimeLimit.truncated": bool(truncated[i])}]
        model.replay_buffer.add(
            obs[i : i + 1], next_obs[i : i + 1], actions[i : i + 1], rewards[i : i + 1], ended, infos
        )
    batch = model.replay_buffer._get_samples(np.arange(B))
    model.replay_buffer.sample = lambda batch_size, env=None: batch
    return {
        "obs": obs, "next_obs": next_obs, "actions": actions, "rewards": rewards, "terminated": terminated,
        "truncated": truncated, "dones": batch.dones.numpy().flatten(),
    }  # fmt: skip


def dqn_steps(model: DQN, steps: int) -> Arrays:
    """Train for `steps` gradient steps, listening to SB3's own loss and clipping."""
    heard: dict[str, list[Any]] = {"current_q": [], "targets": [], "losses": []}
    smooth_l1 = torch.nn.functional.smooth_l1_loss

    def loss(current: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        value = smooth_l1(current, target)
        heard["current_q"].append(current.detach().numpy().flatten())
        heard["targets"].append(target.numpy().flatten())
        heard["losses"].append(value.item())
        return value

    with mock.patch("torch.nn.functional.smooth_l1_loss", loss), heard_norms() as norms:
        model.train(steps, B)
    return {**heard, "grad_norms": norms}


def dqn(arrays: Arrays) -> None:
    """Gradient steps on a fixed batch, and the target network's synchronisation."""
    settings = {"learning_rate": 0.01, "gamma": 0.95, "max_grad_norm": 10.0}
    for case, scale in (("plain", 1.0), ("clipped", 30.0)):
        prefix = f"dqn/{case}"
        for steps in (1, 3):
            model = dqn_model(**settings)
            put(arrays, f"{prefix}/before", weights(model.q_net))
            put(arrays, f"{prefix}/target", weights(model.q_net_target))
            put(arrays, prefix, fill(model, scale))
            put(arrays, prefix, dqn_steps(model, steps))
            put(arrays, f"{prefix}/after{steps}", weights(model.q_net))
        put(arrays, f"{prefix}/settings", settings)
    synchronisation(arrays)
    progress = np.linspace(1.0, 0.0, 21)
    schedule = LinearSchedule(1.0, 0.05, 0.1)
    put(arrays, "dqn/epsilon", {"progress_remaining": progress, "value": [schedule(p) for p in progress]})


def synchronisation(arrays: Arrays) -> None:
    """What SB3's synchronisation does, and at which vector steps."""
    for name, tau in (("tau1", 1.0), ("tau03", 0.3)):
        model = dqn_model(learning_rate=0.01, gamma=0.95, tau=tau, target_update_interval=1)
        fill(model, 1.0)
        model.train(3, B)
        model._on_step()
        put(arrays, f"dqn/sync/{name}", weights(model.q_net_target))
    cases = [(10, 1), (10, 4), (3, 4), (1, 1), (16, 8)]
    synchronised = np.zeros((len(cases), 40), bool)
    for row, (interval, n_envs) in enumerate(cases):
        model = dqn_model(n_envs, target_update_interval=interval)
        with mock.patch("stable_baselines3.dqn.dqn.polyak_update") as update:
            for step in range(synchronised.shape[1]):
                update.reset_mock()
                model._on_step()
                synchronised[row, step] = update.called
    put(arrays, "dqn/sync", {
        "interval": [interval for interval, _ in cases], "n_envs": [n for _, n in cases],
        "synchronised": synchronised,
    })  # fmt: skip


# -- distributions, layers, features -----------------------------------------------------------------


def state_dependent_noise(arrays: Arrays) -> None:
    """gSDE's density, with both forms of the standard deviation."""
    rng = np.random.default_rng(7)
    latent, mean, actions = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 6), (5, 2), (5, 2)))
    log_std = {
        "full": rng.normal(size=(6, 2)).astype(np.float32),
        "reduced": rng.normal(size=(6, 1)).astype(np.float32),
    }
    put(arrays, "sde", {"latent": latent, "mean": mean, "actions": actions})
    for form, parameter in log_std.items():
        put(arrays, "sde", {f"log_std_{form}": parameter})
        for kind in ("exp", "expln"):
            found = distributions.StateDependentNoiseDistribution(2, form == "full", kind == "expln")
            found.proba_distribution_net(latent_dim=6)
            found.proba_distribution(torch.tensor(mean), torch.tensor(parameter), torch.tensor(latent))
            put(arrays, f"sde/{form}_{kind}", {
                "std": found.get_std(torch.tensor(parameter)),
                "log_prob": found.log_prob(torch.tensor(actions)), "entropy": found.entropy(),
            })  # fmt: skip


def simple_distributions(arrays: Arrays) -> None:
    """Densities of the other action distributions."""
    rng = np.random.default_rng(8)
    nvec = [3, 2, 4]
    sizes = {"categorical": 3, "multi_discrete": sum(nvec), "bernoulli": 4}
    logits = {name: rng.normal(size=(5, size)).astype(np.float32) for name, size in sizes.items()}
    mean, log_std = rng.normal(size=(5, 2)).astype(np.float32), rng.normal(size=2).astype(np.float32)
    cases = {
        "categorical": (distributions.CategoricalDistribution(3), rng.integers(3, size=5)),
        "multi_discrete": (distributions.MultiCategoricalDistribution(nvec), rng.integers(nvec, size=(5, 3))),
        "bernoulli": (
            distributions.BernoulliDistribution(4),
            rng.integers(2, size=(5, 4)).astype(np.float32),
        ),
        "diag_gaussian": (
            distributions.DiagGaussianDistribution(2),
            rng.normal(size=(5, 2)).astype(np.float32),
        ),
    }
    for name, (found, actions) in cases.items():
        given = {"logits": logits[name]} if name in logits else {"mean": mean, "log_std": log_std}
        found.proba_distribution(*map(torch.tensor, given.values()))
        put(arrays, f"dist/{name}", {
            **given, "actions": actions, "log_prob": found.log_prob(torch.tensor(actions)),
            "entropy": found.entropy(), "mode": found.mode(),
        })  # fmt: skip
    put(arrays, "dist/multi_discrete", {"nvec": nvec})


def layers(arrays: Arrays) -> None:
    """How SB3 initialises layers, before anything is learned."""
    policy = make(PPO, "MlpPolicy", OBS, spaces.Discrete(2)).policy
    for name, layer in policy.named_modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.detach().numpy()
            gain = {"action_net": 0.01, "value_net": 1.0}.get(name, 2**0.5)
            put(arrays, f"ortho/{name}", {
                "shape": weight.shape, "gain": gain,
                "singular_values": np.linalg.svd(weight, compute_uv=False),
                "column_norms": np.linalg.norm(weight, axis=0), "row_norms": np.linalg.norm(weight, axis=1),
                "bias_abs_max": np.abs(layer.bias.detach().numpy()).max(),
            })  # fmt: skip
    for name, layer in make(DQN, "MlpPolicy", OBS, spaces.Discrete(2), buffer_size=1).q_net.named_modules():
        if isinstance(layer, torch.nn.Linear):
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            put(arrays, f"dqn_init/{name}", {
                "shape": weight.shape, "weight_abs_max": np.abs(weight).max(), "weight_std": weight.std(),
                "bias_abs_max": np.abs(bias).max(),
            })  # fmt: skip


def features(arrays: Arrays) -> None:
    """What reaches the network from each kind of observation, in SB3's order."""
    parts = {
        "discrete": (spaces.Discrete(4), np.array([0, 3, 1])),
        "multi_discrete": (spaces.MultiDiscrete([2, 3]), np.array([[0, 2], [1, 0], [1, 1]])),
        "multi_binary": (spaces.MultiBinary(3), np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0]])),
        "box": (spaces.Box(-5, 5, (2, 2), np.float32), np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 4),
    }
    for name, (space, obs) in parts.items():
        policy = make(PPO, "MlpPolicy", space, spaces.Discrete(2)).policy
        put(arrays, f"features/{name}", {"obs": obs, "features": extracted(policy, obs)})
    # Given out of the alphabet's order, which Gymnasium then brings in.
    space = spaces.Dict(
        {name: parts[name][0] for name in ("multi_discrete", "box", "discrete", "multi_binary")}
    )
    obs = {name: parts[name][1] for name in space.spaces}
    policy = make(PPO, "MultiInputPolicy", space, spaces.Discrete(2)).policy
    put(arrays, "features/dict", {"keys": list(space.spaces), "features": extracted(policy, obs)})
    put(arrays, "features/dict/obs", obs)


def extracted(policy: Any, obs: Any) -> np.ndarray:
    """The features of a batch of observations."""
    tensors, _ = policy.obs_to_tensor(obs)
    with torch.no_grad():
        return policy.extract_features(tensors, policy.features_extractor).numpy()


def explained(arrays: Arrays) -> None:
    """Explained variance: good, useless, perfect, worse than useless, and of a constant."""
    rng = np.random.default_rng(9)
    true = rng.normal(size=(5, 32)).astype(np.float32)
    true[4] = 1.5
    noise = rng.normal(size=32).astype(np.float32)
    predicted = np.stack([true[0] + 0.3 * noise, np.zeros(32, np.float32), true[2], -true[3], noise])
    values = [explained_variance(p, t) for p, t in zip(predicted, true, strict=True)]
    put(arrays, "explained_variance", {"predicted": predicted, "true": true, "value": values})


def main() -> None:
    """Ask everything and write the file."""
    torch.set_num_threads(1)
    arrays: Arrays = {}
    for ask in (gae, ppo, dqn, state_dependent_noise, simple_distributions, layers, features, explained):
        # SB3 shuffles even a single minibatch by NumPy's global generator: sums then differ in the last bits.
        np.random.seed(0)
        torch.manual_seed(0)
        ask(arrays)
    names = ("stable_baselines3", "torch", "gymnasium", "numpy")
    arrays["versions"] = np.array([f"{name}={importlib.metadata.version(name)}" for name in names])
    path = Path(__file__).with_name("sb3.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
