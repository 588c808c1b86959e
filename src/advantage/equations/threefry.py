"""JAX's own random numbers from keys that compile to one kernel: Threefry-2x32, written out.

Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3 (https://doi.org/10.1145/2063384.2063405).
On a CPU JAX lowers this hash to a loop with a dozen kernels around it. Written out it is one: the program that
chooses actions for 8 observations shrinks from 26 kernels to 8. The numbers are the same, bit for bit.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_prng_impl
from jaxtyping import Array, Key, UInt32

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def written_out(key: UInt32[Array, "*batch 2"]) -> Key[Array, "*batch"]:
    """A key for `jax.random` from raw key data; `jax.random.key_data` gives the data of its children."""
    return jax.random.wrap_key_data(key, impl=_IMPLEMENTATION)


def threefry(
    key: UInt32[Array, "2"], high: UInt32[Array, "..."], low: UInt32[Array, "..."]
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """The hash of counters, 20 rounds (section 3.2): two words from two words and a key."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = high + keys[0], low + keys[1]
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x = x + y
            y = x ^ (y << jnp.uint32(rotation) | y >> jnp.uint32(32 - rotation))
        x, y = x + keys[(block + 1) % 3], y + keys[(block + 2) % 3] + jnp.uint32(block + 1)
    return x, y


def _counted(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The hashes of 0, 1, 2, ... in a shape."""
    low = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return threefry(key, jnp.zeros(shape, jnp.uint32), low)


def _split(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "... 2"]:
    return jnp.stack(_counted(key, tuple(shape)), axis=-1)


def _bits(key: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]) -> Array:
    if bit_width == 64 or math.prod(shape) >= 2**32:
        return threefry_prng_impl.random_bits(key, bit_width, shape)
    x, y = _counted(key, tuple(shape))
    return (x ^ y).astype({8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bit_width])


_IMPLEMENTATION = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_bits,
    fold_in=threefry_prng_impl.fold_in,
    name="threefry2x32_written_out",
    tag="adv",
)
