"""What Stable-Baselines3's actor-critics answered (`oracles/sb3_continuous.npz`), as our networks and batches."""

import types
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.memory.uniform import Batch
from advantage.networks import optimisers
from advantage.networks.continuous import Critics, DeterministicActor, GaussianActor
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Linear
from advantage.types import Space, Spec

ORACLE = np.load(Path(__file__).parents[1] / "oracles" / "sb3_continuous.npz")
SPEC = Spec(Space("box", (3,), low=-np.inf, high=np.inf), Space("box", (2,), low=-1.0, high=1.0))


def batch(gamma):
    """The fixed transitions; only terminations cut the bootstrap."""
    obs, actions, rewards, next_obs = (
        jnp.asarray(ORACLE[f"batch/{name}"]) for name in ("obs", "actions", "rewards", "next_obs")
    )
    discount = np.where(ORACLE["batch/terminated"], 0.0, gamma).astype(np.float32)
    return Batch(obs, actions, rewards, jnp.asarray(discount), next_obs)


def weights(name, of):
    """SB3's weights by name: `name` is `sac`, `of` for example `before` or `adam/after1`."""
    sizes = ORACLE[f"{name}/layout/shapes"]
    shapes = [tuple(shape[shape > 0]) for shape in sizes]
    parts = np.split(ORACLE[f"{name}/{of}"], np.cumsum([np.prod(shape) for shape in shapes])[:-1])
    return {str(n): x.reshape(s) for n, x, s in zip(ORACLE[f"{name}/layout/names"], parts, shapes, strict=True)}


def linear(found, *names):
    """SB3's layers `[out, in]` as one of ours `[in, out]`, side by side where there are several."""
    weight = np.concatenate([found[f"{name}.weight"] for name in names]).T
    return Linear(jnp.asarray(weight), jnp.asarray(np.concatenate([found[f"{name}.bias"] for name in names])))


def gaussian_actor(found):
    hidden = tuple(linear(found, f"actor.latent_pi.{i}") for i in (0, 2))
    head = linear(found, "actor.mu", "actor.log_std")
    return GaussianActor(Flatten(SPEC.observation), MLP(hidden, jax.nn.relu), head, None, SPEC.action)


def deterministic_actor(found, network="actor"):
    first, second, head = (linear(found, f"{network}.mu.{i}") for i in (0, 2, 4))
    return DeterministicActor(Flatten(SPEC.observation), MLP((first, second), jax.nn.relu), head, SPEC.action)


def critics(found, network="critic", count=2):
    each = [[linear(found, f"{network}.qf{c}.{i}") for i in (0, 2, 4)] for c in range(count)]
    stacked = [jax.tree.map(lambda *x: jnp.stack(x), *layers) for layers in zip(*each, strict=True)]
    return Critics(Flatten(SPEC.observation), MLP(tuple(stacked[:2]), jax.nn.relu), stacked[2])


def optimizer(case):
    """The optimiser of a case, under torch's name."""
    return optimisers.named(case.split("/")[1])


def settings(case):
    """What SB3's constructor was given."""
    prefix = f"{case}/settings/"
    return {k.removeprefix(prefix): ORACLE[k].item() for k in ORACLE if k.startswith(prefix)} | {
        "optimizer": optimizer(case)
    }


def learned(algorithm, config, state, case):
    """States and metrics of three gradient steps, given the noise that SB3 drew."""
    drawn = jnp.asarray(ORACLE[f"{case}/normals"]).reshape(3, -1, 32, 2)

    @jax.jit
    def learn(state, noise):
        queue = list(noise)
        with mock.patch("jax.random.normal", lambda key, shape: queue.pop(0)):
            return algorithm.learn(config, state, batch(config.gamma))

    answers = []
    for noise in drawn:
        # SB3 draws for the actor before it draws for the target.
        state, metrics, _ = learn(state, noise[::-1])
        answers.append((state, metrics))
    return answers


def assert_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def assert_logged(answers, case, names):
    """The means over one and three steps are those that SB3 logs."""
    for steps in (1, 3):
        for name in names:
            if f"{case}/log{steps}/{name}" in ORACLE:
                mean = np.mean([metrics[f"train/{name}"] for _, metrics in answers[:steps]])
                np.testing.assert_allclose(mean, ORACLE[f"{case}/log{steps}/{name}"], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="session")
def sb3():
    """What this file defines."""
    return types.SimpleNamespace(**globals())
