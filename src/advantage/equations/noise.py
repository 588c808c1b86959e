"""Exploration noise: what is added to a deterministic action within [-1, 1], and gSDE's matrix of noise.

Noise is a hashable value with two functions, so that a `Config` holds it: `initial(num_envs, components)`
gives its carry, `draw(carry, is_first, key)` the next numbers `[N, D]`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from advantage.equations.distributions import Key


@dataclasses.dataclass(frozen=True, init=False)
class NormalActionNoise:
    """Independent Gaussian noise (Fujimoto et al., 2018; https://arxiv.org/abs/1802.09477), in SB3's words.

    `mean` and `sigma` are a number or one for each component of the action, in units of the policy's action:
    the width of the action space is 2.
    """

    mean: tuple[float, ...]
    sigma: tuple[float, ...]

    def __init__(self, mean: Any = 0.0, sigma: Any = 0.1):
        """
        Raises:
            ValueError: a number is not finite, or a sigma negative.
        """
        object.__setattr__(self, "mean", _numbers("mean", mean))
        object.__setattr__(self, "sigma", _numbers("sigma", sigma, least=0.0))

    @property
    def label(self) -> tuple[str, str, tuple[tuple[str, Any], ...]]:
        """How a model file describes it."""
        return "noise", "NormalActionNoise", tuple(dataclasses.asdict(self).items())

    def initial(self, num_envs: int, components: int) -> tuple[()]:
        """No carry."""
        return ()

    def draw(self, carry: tuple[()], is_first: Bool[Array, " N"], key: Key, components: int) -> tuple[Array, tuple[()]]:
        """`(noise [N, D], carry)`."""
        normals = jax.random.normal(key, (is_first.shape[0], components))
        return _row(self.mean, components) + _row(self.sigma, components) * normals, carry


@dataclasses.dataclass(frozen=True, init=False)
class OrnsteinUhlenbeckActionNoise:
    """Noise that drifts back to its mean, so that neighbouring steps explore alike (Lillicrap et al., 2016).

    `x + theta (mean - x) dt + sigma sqrt(dt) N(0, 1)` (https://arxiv.org/abs/1509.02971), from `initial_noise`
    (zero by default) at the beginning of every episode. Numbers as for `NormalActionNoise`.
    """

    mean: tuple[float, ...]
    sigma: tuple[float, ...]
    theta: float
    dt: float
    initial_noise: tuple[float, ...]

    def __init__(
        self, mean: Any = 0.0, sigma: Any = 0.1, theta: float = 0.15, dt: float = 1e-2, initial_noise: Any = None
    ):
        """
        Raises:
            ValueError: a number is not finite, or `sigma`, `theta` or `dt` negative.
        """
        object.__setattr__(self, "mean", _numbers("mean", mean))
        object.__setattr__(self, "sigma", _numbers("sigma", sigma, least=0.0))
        object.__setattr__(self, "theta", _numbers("theta", theta, least=0.0)[0])
        object.__setattr__(self, "dt", _numbers("dt", dt, least=0.0)[0])
        start = 0.0 if initial_noise is None else initial_noise
        object.__setattr__(self, "initial_noise", _numbers("initial_noise", start))

    @property
    def label(self) -> tuple[str, str, tuple[tuple[str, Any], ...]]:
        """How a model file describes it."""
        return "noise", "OrnsteinUhlenbeckActionNoise", tuple(dataclasses.asdict(self).items())

    def initial(self, num_envs: int, components: int) -> Float[np.ndarray, "N D"]:
        """The noise before the first step."""
        # NumPy's own: inside a compiled program JAX's numbers could not be read.
        return np.broadcast_to(np.asarray(self.initial_noise, np.float32), (num_envs, components)).copy()

    def draw(
        self, carry: Float[Array, "N D"], is_first: Bool[Array, " N"], key: Key, components: int
    ) -> tuple[Float[Array, "N D"], Float[Array, "N D"]]:
        """`(noise, carry)`, which are the same."""
        mean, sigma = _row(self.mean, components), _row(self.sigma, components)
        before = jnp.where(is_first[:, None], _row(self.initial_noise, components), carry)
        normals = jax.random.normal(key, before.shape)
        noise = before + self.theta * (mean - before) * self.dt + sigma * self.dt**0.5 * normals
        return noise, noise


ActionNoise = NormalActionNoise | OrnsteinUhlenbeckActionNoise
KNOWN = {kind.__name__: kind for kind in (NormalActionNoise, OrnsteinUhlenbeckActionNoise)}


def action_noise(value: Any) -> ActionNoise | None:
    """What `action_noise` may be given as: an object of these classes, None, or the deviation of Gaussian noise.

    Also as text, for the command line and presets: `0.1`, `normal_0.1`, `ornstein-uhlenbeck_0.5`.

    Raises:
        ValueError: anything else.
    """
    if value is None or isinstance(value, ActionNoise):
        return value
    kind, _, sigma = str(value).rpartition("_")
    kinds = {"": NormalActionNoise, "normal": NormalActionNoise, "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise}
    try:
        make, sigma = kinds[kind], float(sigma)
    except (KeyError, ValueError):
        raise ValueError(
            f"action_noise={value!r} is not understood: give a deviation such as 0.1, 'ornstein-uhlenbeck_0.1', a"
            " NormalActionNoise or an OrnsteinUhlenbeckActionNoise of advantage"
        ) from None
    return make(0.0, sigma)


def initial_noise(noise: ActionNoise | None, num_envs: int, components: int) -> Any:
    """The carry of noise, or of none."""
    return () if noise is None else noise.initial(num_envs, components)


def perturbed(
    noise: ActionNoise | None, carry: Any, action: Float[Array, "N D"], is_first: Bool[Array, " N"], key: Key
) -> tuple[Float[Array, "N D"], Any]:
    """`(action with noise, within [-1, 1], carry)`; without noise the action as it is."""
    if noise is None:
        return action, carry
    drawn, carry = noise.draw(carry, is_first, key, action.shape[1])
    return jnp.clip(action + drawn, -1.0, 1.0), carry


def check_noise(noise: ActionNoise | None, components: int) -> None:
    """Raise `ValueError` where noise has another number of components than the action."""
    lengths = {len(x) for x in dataclasses.astuple(noise) if isinstance(x, tuple)} - {1} if noise is not None else set()
    if lengths - {components}:
        raise ValueError(
            f"action_noise={noise} has {max(lengths)} components and the action {components}: give one number, or one"
            " for each"
        )


class HeldNoise(NamedTuple):
    """gSDE's exploration between two draws: unit normals `[N, L, D]` and the steps since the last draw."""

    normals: Float[Array, "N L D"]
    age: Array


def held_noise(num_envs: int, latent: int, components: int) -> HeldNoise:
    """Nothing drawn yet: the first step draws."""
    return HeldNoise(jnp.zeros((num_envs, latent, components), jnp.float32), jnp.int32(0))


def due_noise(
    held: HeldNoise, sde_sample_freq: int, steps: int, episodes: int | None, is_first: Bool[Array, " N"]
) -> Bool[Array, ""]:
    """Whether gSDE's matrix is drawn anew now: after `sde_sample_freq` steps, or as often as an update is made.

    An update is made after `steps` steps, or after `episodes` episodes: then the matrix holds for an episode.
    """
    if sde_sample_freq < 1 and episodes is not None:
        return jnp.any(is_first)
    return held.age % (steps if sde_sample_freq < 1 else sde_sample_freq) == 0


def state_dependent_noise(
    held: HeldNoise, latent: Float[Array, "N L"], std: Float[Array, "L D"], due: Bool[Array, ""], key: Key
) -> tuple[Float[Array, "N D"], HeldNoise]:
    """gSDE's noise `latent @ W`, its matrix drawn anew where it is `due` (Raffin et al., 2021, section 3).

    https://arxiv.org/abs/2005.05719
    """
    normals = jax.lax.cond(due, lambda: jax.random.normal(key, held.normals.shape), lambda: held.normals)
    noise = jnp.einsum("nl,nld->nd", latent, normals * std[None])
    return noise, HeldNoise(normals, jnp.where(due, 1, held.age + 1))


def _numbers(name: str, value: Any, least: float = -np.inf) -> tuple[float, ...]:
    numbers = tuple(float(x) for x in np.ravel(np.asarray(value, np.float64)))
    if not numbers or not all(np.isfinite(x) and x >= least for x in numbers):
        raise ValueError(f"{name}={value!r} of action noise has to be finite" + (" and not negative" if least == 0 else ""))
    return numbers


def _row(numbers: tuple[float, ...], components: int) -> Float[Array, "1 D"]:
    return jnp.broadcast_to(jnp.asarray(numbers, jnp.float32), (1, components))
