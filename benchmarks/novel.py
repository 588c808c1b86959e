"""`CartPoleNoVel-v1`: Gymnasium's CartPole of which only position and angle are seen, for every library alike."""

import gymnasium
import numpy as np

ID = "CartPoleNoVel-v1"


def make(**options) -> gymnasium.Env:
    """The environment; imported by `id` as `novel:CartPoleNoVel-v1`."""
    env = gymnasium.make("CartPole-v1", **options)
    low, high = env.observation_space.low[::2], env.observation_space.high[::2]
    return gymnasium.wrappers.TransformObservation(env, lambda obs: obs[::2], gymnasium.spaces.Box(low, high, dtype=np.float32))


gymnasium.register(ID, make)
