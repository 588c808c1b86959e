"""Features: what SB3's policies give their first layer, in its order."""

from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.networks.features import Flatten, Frozen
from advantage.networks.mlp import Linear
from advantage.types import Space

SB3 = np.load(Path(__file__).parents[1] / "oracles" / "sb3.npz")

pytestmark = pytest.mark.usefixtures("strict")
spaces = gymnasium.spaces
SPACES = {
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-5, 5, (2, 2), np.float32),
}


def cast(space, obs):
    return jnp.asarray(obs, space.dtype)


@pytest.mark.parametrize("name", SPACES)
def test_features_are_those_of_sb3(name):
    """One-hot, zeros and ones, flat numbers; also with two batch axes and with none."""
    space = Space.from_gymnasium(SPACES[name])
    obs, expected = cast(space, SB3[f"features/{name}/obs"]), SB3[f"features/{name}/features"]
    features = Flatten(space)
    assert features.size == expected.shape[1]
    np.testing.assert_array_equal(features(obs), expected)
    np.testing.assert_array_equal(features(obs[None]), expected[None])
    np.testing.assert_array_equal(features(obs[0]), expected[0])


def test_dict_features_are_those_of_sb3():
    """Parts in the order of their sorted names, however they were given."""
    space = Space.from_gymnasium(spaces.Dict({name: SPACES[name] for name in reversed(SPACES)}))
    parts = dict(space.parts)
    obs = {name: cast(parts[name], SB3[f"features/dict/obs/{name}"]) for name in SPACES}
    assert [name for name, _ in space.parts] == list(SB3["features/dict/keys"])
    np.testing.assert_array_equal(Flatten(space)(obs), SB3["features/dict/features"])


def test_tuple_features_keep_their_order():
    """Twelve parts: "10" does not come before "2"."""
    space = Space.from_gymnasium(spaces.Tuple([spaces.Box(-1, 100, (1,), np.float32)] * 12))
    obs = tuple(jnp.full((2, 1), float(i)) for i in range(12))
    np.testing.assert_array_equal(Flatten(space)(obs)[0], np.arange(12))


def test_discrete_features_begin_at_their_start():
    """Discrete(3, start=5) observes 5, 6, 7."""
    space = Space.from_gymnasium(spaces.Discrete(3, start=5))
    np.testing.assert_array_equal(Flatten(space)(jnp.array([5, 7], jnp.int32)), [[1, 0, 0], [0, 0, 1]])
    grid = Space.from_gymnasium(spaces.MultiDiscrete([[2, 2]], start=[[1, -1]]))
    np.testing.assert_array_equal(Flatten(grid)(jnp.array([[[2, -1]]], jnp.int32)), [[0, 1, 1, 0]])


def test_pictures_are_scaled():
    """8-bit pictures to 0..1; 8-bit vectors, and bytes that are no shades, as they are, as in SB3."""
    picture = Space.from_gymnasium(spaces.Box(0, 255, (2, 2, 1), np.uint8))
    np.testing.assert_array_equal(Flatten(picture)(jnp.full((1, 2, 2, 1), 255, jnp.uint8)), np.ones((1, 4)))
    vector = Space.from_gymnasium(spaces.Box(0, 255, (2,), np.uint8))
    np.testing.assert_array_equal(Flatten(vector)(jnp.full((1, 2), 255, jnp.uint8)), np.full((1, 2), 255.0))
    bits = Space.from_gymnasium(spaces.Box(0, 1, (2, 2, 1), np.uint8))
    np.testing.assert_array_equal(Flatten(bits)(jnp.ones((1, 2, 2, 1), jnp.uint8)), np.ones((1, 4)))


def test_features_can_be_compiled():
    """The space is static: no leaf, and hashable."""
    features = Flatten(Space.from_gymnasium(SPACES["box"]))
    assert jax.tree.leaves(features) == []
    np.testing.assert_array_equal(jax.jit(lambda f, x: f(x))(features, jnp.ones((3, 2, 2))), np.ones((3, 4)))


def test_frozen_features_have_no_gradient():
    """They are the encoder's, and what is learned from them leaves it alone."""
    frozen = Frozen(Linear(jnp.full((3, 2), 0.5), jnp.zeros(2)))
    np.testing.assert_array_equal(frozen(jnp.ones((4, 3))), np.full((4, 2), 1.5))
    gradient = jax.grad(lambda frozen: jnp.sum(jnp.square(frozen(jnp.ones((4, 3))))))(frozen)
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))
