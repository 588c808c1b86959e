"""Keys written out: the numbers of `jax.random`, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.equations.threefry import threefry, written_out

pytestmark = pytest.mark.usefixtures("strict")

DRAWS = {
    "bits": lambda key: jax.random.bits(key, (5,)),
    "bytes": lambda key: jax.random.bits(key, (3, 2), jnp.uint8),
    "shorts": lambda key: jax.random.bits(key, (7,), jnp.uint16),
    "uniform": lambda key: jax.random.uniform(key, (3, 4)),
    "normal": lambda key: jax.random.normal(key, (6,)),
    "categorical": lambda key: jax.random.categorical(key, jnp.zeros((4, 3))),
    "folded": lambda key: jax.random.uniform(jax.random.fold_in(key, 7), (2,)),
    "empty": lambda key: jax.random.bits(key, (0,)),
}


def test_hash_of_the_paper():
    """Known answers of Random123, the authors' own library: all bits zero, all one, and digits of pi."""
    ones = 0xFFFFFFFF
    cases = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((ones, ones), (ones, ones), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]
    for key, counter, expected in cases:
        found = threefry(jnp.array(key, jnp.uint32), *map(jnp.uint32, counter))
        assert tuple(int(x) for x in found) == expected


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_jax(name):
    """One key, and a batch of them under `vmap`."""
    key = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(DRAWS[name](written_out(key)), DRAWS[name](key))
    keys = jax.random.split(key, 4)
    np.testing.assert_array_equal(jax.vmap(DRAWS[name])(written_out(keys)), jax.vmap(DRAWS[name])(keys))


@pytest.mark.parametrize("shape", [2, 5, (2, 3)])
def test_children_are_those_of_jax(shape):
    """Splitting."""
    key = jax.random.PRNGKey(9)
    found = jax.random.key_data(jax.random.split(written_out(key), shape))
    np.testing.assert_array_equal(found, jax.random.split(key, shape))
