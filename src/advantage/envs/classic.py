"""CartPole and Pendulum in JAX, step for step those of Gymnasium (`classic_control`).

Gymnasium integrates in float64 and returns float32; here everything is float32.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt8

from advantage.envs.jax import Transition
from advantage.types import Space, Spec


def _box(high: list[float]) -> Space:
    """A symmetric float32 box."""
    bound = np.asarray(high, np.float32)
    return Space("box", bound.shape, low=(-bound).tobytes(), high=bound.tobytes())


class CartPoleState(NamedTuple):
    """`variables` are the cart's position and velocity and the pole's angle and angular velocity."""

    variables: Float[Array, "4"]
    steps: Int[Array, ""]


_POSITION_LIMIT = 2.4
_ANGLE_LIMIT = 12 * 2 * math.pi / 360


@dataclasses.dataclass(frozen=True)
class CartPole:
    """Balance a pole on a cart: reward 1 a step until it falls (Barto, Sutton & Anderson, 1983).

    Identical to Gymnasium's `CartPole-v1`: Euler integration, termination beyond ±2.4 or ±12°,
    truncation after 500 steps (reported also where the pole falls in the last one, as Gymnasium does).
    Without `velocities` only position and angle are observed, and a policy needs a memory.
    """

    max_steps: int = 500
    velocities: bool = True

    @property
    def id(self) -> str:
        """`make_jax`'s name."""
        return "advantage/CartPole-v1" if self.velocities else "advantage/CartPoleNoVel-v1"

    @property
    def spec(self) -> Spec:
        """What is observed, and two actions."""
        high = [2 * _POSITION_LIMIT, math.inf, 2 * _ANGLE_LIMIT, math.inf]
        return Spec(_box(high if self.velocities else high[::2]), Space("discrete", dtype="int32", n=(2,), start=(0,)))

    def reset(self, key: PRNGKeyArray) -> tuple[CartPoleState, Float[Array, "V"]]:
        """Begin near the upright rest: each variable uniform in ±0.05."""
        variables = jax.random.uniform(key, (4,), jnp.float32, -0.05, 0.05)
        return CartPoleState(variables, jnp.int32(0)), self._observed(variables)

    def step(
        self, env_state: CartPoleState, action: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[CartPoleState, Transition]:
        """Push left (0) or right (1)."""
        variables = _push(env_state.variables, action == 1)
        steps = env_state.steps + jnp.int32(1)
        fallen = (jnp.abs(variables[0]) > _POSITION_LIMIT) | (jnp.abs(variables[2]) > _ANGLE_LIMIT)
        transition = Transition(self._observed(variables), jnp.float32(1.0), fallen, steps >= self.max_steps)
        return CartPoleState(variables, steps), transition

    def _observed(self, variables: Float[Array, "4"]) -> Float[Array, "V"]:
        return variables if self.velocities else variables[::2]

    def render(self, env_state: CartPoleState) -> UInt8[np.ndarray, "400 600 3"]:
        """A picture like Gymnasium's."""
        position, _, angle, _ = np.asarray(env_state.variables, np.float64)
        picture = np.full((400, 600, 3), 255.0)
        scale, track = 600 / (2 * _POSITION_LIMIT), 100
        cart = np.array([position * scale + 300, track])
        _fill(picture, cart + _rectangle(-25.0, 25.0, -15.0, 15.0), (0, 0, 0))
        axle = cart + [0, 7.5]
        pole = _rotated(_rectangle(-5.0, 5.0, -5.0, scale - 5.0), -angle)
        _fill(picture, axle + pole, (202, 152, 101))
        _disc(picture, axle, 5.0, (129, 132, 203))
        picture[track] = 0
        return _upright(picture)


def _push(variables: Float[Array, "4"], right: Bool[Array, ""]) -> Float[Array, "4"]:
    """One Euler step of 0.02 s (https://coneural.org/florian/papers/05_cart_pole.pdf)."""
    gravity, pole_mass, half_length, tau = 9.8, 0.1, 0.5, 0.02
    total_mass, mass_length = 1.0 + pole_mass, pole_mass * half_length
    _, velocity, angle, spin = variables
    force = jnp.where(right, jnp.float32(10.0), jnp.float32(-10.0))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    pushed = (force + mass_length * jnp.square(spin) * sin) / total_mass
    lever = half_length * (4.0 / 3.0 - pole_mass * jnp.square(cos) / total_mass)
    spin_rate = (gravity * sin - cos * pushed) / lever
    acceleration = pushed - mass_length * spin_rate * cos / total_mass
    return variables + tau * jnp.stack([velocity, acceleration, spin, spin_rate])


class PendulumState(NamedTuple):
    """`angle` is 0 upright and is not wrapped."""

    angle: Float[Array, ""]
    speed: Float[Array, ""]
    steps: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Pendulum:
    """Swing a pendulum up with a torque in ±2; never terminates.

    Identical to Gymnasium's `Pendulum-v1`: reward -(angle² + 0.1 speed² + 0.001 torque²) of the state
    before the step, truncation after 200 steps.
    """

    id: ClassVar[str] = "advantage/Pendulum-v1"
    spec: ClassVar[Spec] = Spec(_box([1.0, 1.0, 8.0]), Space("box", (1,), low=-2.0, high=2.0))
    max_steps: int = 200

    def reset(self, key: PRNGKeyArray) -> tuple[PendulumState, Float[Array, "3"]]:
        """Begin anywhere: the angle uniform in ±π, the speed in ±1."""
        uniform = jax.random.uniform(key, (2,), jnp.float32, -1.0, 1.0)
        state = PendulumState(uniform[0] * math.pi, uniform[1], jnp.int32(0))
        return state, _pendulum_obs(state)

    def step(
        self, env_state: PendulumState, action: Float[Array, "1"], key: PRNGKeyArray
    ) -> tuple[PendulumState, Transition]:
        """Apply a torque for 0.05 s, semi-implicit Euler."""
        angle, speed, steps = env_state
        torque = jnp.clip(action[0], -2.0, 2.0)
        wrapped = jnp.mod(angle + math.pi, 2 * math.pi) - math.pi
        cost = jnp.square(wrapped) + 0.1 * jnp.square(speed) + 0.001 * jnp.square(torque)
        speed = jnp.clip(speed + (15.0 * jnp.sin(angle) + 3.0 * torque) * 0.05, -8.0, 8.0)
        state = PendulumState(angle + speed * 0.05, speed, steps + jnp.int32(1))
        never = jnp.zeros((), bool)
        return state, Transition(_pendulum_obs(state), -cost, never, state.steps >= self.max_steps)

    def render(self, env_state: PendulumState) -> UInt8[np.ndarray, "500 500 3"]:
        """A picture like Gymnasium's, without the arrow for the torque."""
        picture, scale, red = np.full((500, 500, 3), 255.0), 500 / 4.4, (204, 77, 77)
        centre, turn = np.array([250.0, 250.0]), float(env_state.angle) + math.pi / 2
        rod = _rotated(_rectangle(0.0, scale, -0.1 * scale, 0.1 * scale), turn)
        _fill(picture, centre + rod, red)
        _disc(picture, centre, 0.1 * scale, red)
        _disc(picture, centre + _rotated(np.array([[scale, 0.0]]), turn)[0], 0.1 * scale, red)
        _disc(picture, centre, 0.05 * scale, (0, 0, 0))
        return _upright(picture)


def _pendulum_obs(state: PendulumState) -> Float[Array, "3"]:
    return jnp.stack([jnp.cos(state.angle), jnp.sin(state.angle), state.speed])


# Drawing, in NumPy: pictures are float [height, width, 3] with row 0 at the bottom until `_upright`.


def _rectangle(left: float, right: float, bottom: float, top: float) -> Float[np.ndarray, "4 2"]:
    """Corners, counter-clockwise."""
    return np.array([(left, bottom), (right, bottom), (right, top), (left, top)], float)


def _rotated(points: Float[np.ndarray, "P 2"], angle: float) -> Float[np.ndarray, "P 2"]:
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _fill(
    picture: Float[np.ndarray, "H W 3"], corners: Float[np.ndarray, "P 2"], colour: tuple[int, int, int]
) -> None:
    """Fill a convex, counter-clockwise polygon with smooth edges."""
    picture, y, x = _around(picture, corners)
    distance = np.full(picture.shape[:2], np.inf)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        inwards = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
        distance = np.minimum(distance, inwards / math.hypot(x1 - x0, y1 - y0))
    _blend(picture, distance, colour)


def _disc(
    picture: Float[np.ndarray, "H W 3"],
    centre: Float[np.ndarray, "2"],
    radius: float,
    colour: tuple[int, int, int],
) -> None:
    picture, y, x = _around(picture, np.stack([centre - radius, centre + radius]))
    _blend(picture, radius - np.hypot(x - centre[0], y - centre[1]), colour)


def _around(
    picture: Float[np.ndarray, "H W 3"], points: Float[np.ndarray, "P 2"]
) -> tuple[Float[np.ndarray, "h w 3"], Int[np.ndarray, "h 1"], Int[np.ndarray, "1 w"]]:
    """The part of a picture around some points, a view, with its pixels' `y` and `x`."""
    (left, bottom), (right, top) = (
        np.clip(edge, 0, picture.shape[1::-1]).astype(int) for edge in (points.min(0) - 1, points.max(0) + 2)
    )
    y, x = np.ogrid[bottom:top, left:right]
    return picture[bottom:top, left:right], y, x


def _blend(
    picture: Float[np.ndarray, "H W 3"], distance: Shaped[np.ndarray, "H W"], colour: tuple[int, int, int]
) -> None:
    """Paint where `distance` to the shape's edge is positive, half a pixel of transition on each side."""
    cover = np.clip(distance + 0.5, 0.0, 1.0)[..., None]
    picture += cover * (np.asarray(colour, float) - picture)


def _upright(picture: Float[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    return np.ascontiguousarray(picture[::-1].round().astype(np.uint8))
