"""One encoder for actor and critics: the critics' loss alone moves it, and the actor always sees it as it is."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import crossq, ddpg, discrete_sac, sac, td3, tqc
from advantage.memory.uniform import Batch
from advantage.networks import optimisers
from advantage.networks.continuous import Widths
from advantage.networks.features import Flatten, Frozen
from advantage.networks.mlp import Linear
from advantage.types import Space, Spec

KEY = jax.random.PRNGKey(3)
ALGORITHMS = [sac, tqc, crossq, td3, ddpg, discrete_sac]
PICTURE = Space("box", (4, 5, 1), "uint8", 0.0, 255.0)
BOX, CHOICE = Space("box", (2,), low=-1.0, high=1.0), Space("discrete", (), "int32", n=(2,), start=(0,))

each = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda one: one.__name__.rsplit(".", 1)[1])


class Encoder(eqx.Module):
    """Four features of a picture: which kind of network it is does not matter here."""

    flatten: Flatten
    dense: Linear
    size: int = eqx.field(static=True)

    def __init__(self, space, key):
        weight = jax.random.normal(key, (20, 4)) / 20**0.5
        self.flatten, self.dense, self.size = Flatten(space), Linear(weight, jnp.zeros(4)), 4

    def __call__(self, obs):
        return jnp.tanh(self.dense(self.flatten(obs)))


def learner(algorithm):
    """Compiled without optimising: it runs once or twice."""
    return jax.jit(algorithm.learn, compiler_options={"xla_backend_optimization_level": 0})


def config_of(algorithm):
    """With an optimiser whose decay moves whatever it is given."""
    delay = {"policy_delay": 1} if hasattr(algorithm.Config(), "policy_delay") else {}
    words = {"features_extractor": Encoder, "share_features_extractor": True, "learning_rate": 0.1,
             "optimizer": optimisers.named("adamw", (("weight_decay", 0.5),))}  # fmt: skip
    return algorithm.Config(net_arch=Widths((3,), (3,)), activation_fn=jnp.tanh, **words, **delay)


def spec_of(algorithm):
    return Spec(PICTURE, CHOICE if algorithm is discrete_sac else BOX)


def begun(algorithm, config):
    return jax.jit(lambda: algorithm.init(config, spec_of(algorithm), KEY))()


def batch_of(algorithm, size=6):
    draw = np.random.default_rng(0)
    obs, following = (jnp.asarray(draw.integers(0, 256, (size, 4, 5, 1)), jnp.uint8) for _ in range(2))
    action = draw.integers(0, 2, size) if algorithm is discrete_sac else draw.uniform(-1, 1, (size, 2))
    action = jnp.asarray(action, jnp.int32 if algorithm is discrete_sac else jnp.float32)
    reward, discount = jnp.asarray(draw.normal(size=size), jnp.float32), jnp.full(size, 0.9)
    return Batch(obs, action, reward, discount, following)


def assert_same(one, two):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(x, y)


def moved(one, two):
    return any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


@each
def test_the_critics_move_it_and_the_actor_follows(algorithm):
    """After each gradient step the actor's copy is the critics' encoder, which has moved; targets have their own."""
    config = config_of(algorithm)
    state = begun(algorithm, config)
    assert isinstance(state.actor.features, Frozen)
    assert_same(state.actor.features, state.critics.features)
    # The optimiser has one moment of each kind for each number that the actor learns, and none for the encoder.
    learned = sum(x.size for x in jax.tree.leaves((state.actor.hidden, state.actor.head)))
    assert max(x.size for x in jax.tree.leaves(state.optimizer.actor)) == learned
    learn = learner(algorithm)
    for _ in range(2):
        before, (state, *_) = state, learn(config, state, batch_of(algorithm))
        assert moved(before.critics.features, state.critics.features)
        assert moved(before.actor.head, state.actor.head)
        assert_same(state.actor.features, state.critics.features)
    if hasattr(state, "target_critics"):
        assert moved(state.target_critics.features, state.critics.features)
    if hasattr(state, "target_actor"):
        assert_same(state.target_actor.features, state.target_critics.features)


@pytest.mark.parametrize("algorithm", [sac, td3], ids=["sac", "td3"])
def test_the_actors_loss_leaves_it_alone(algorithm):
    """Where the critics stand still the encoder does."""
    def still(config, critics, *rest):
        zero = 0.0 * sum(jnp.sum(x) for x in jax.tree.leaves(critics))
        metrics = {"train/critic_loss": zero}
        return zero, (metrics, rest[0]) if algorithm is crossq else metrics

    config = dataclasses.replace(config_of(algorithm), critic_loss=still, optimizer=optimisers.named("sgd"))
    state = begun(algorithm, config)
    new, *_ = learner(algorithm)(config, state, batch_of(algorithm))
    assert moved(state.actor.head, new.actor.head)
    assert_same(state.actor.features, new.actor.features)
    assert_same(state.critics.features, new.critics.features)
