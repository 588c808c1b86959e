"""Write `sb3_signatures.json`: the names and defaults of Stable-Baselines3's constructors, in order.

    python tests/oracles/make_signatures.py        (with stable-baselines3 installed; see README.md)
"""

import inspect
import json
from pathlib import Path

import sb3_contrib
import stable_baselines3


NAMES = ("DQN", "PPO", "A2C", "SAC", "TD3", "DDPG")


def described(default: object) -> object:
    """A default in JSON's types; `"required"` where there is none."""
    return "required" if default is inspect.Parameter.empty else default


faces = {
    face.__name__: {
        parameter.name: described(parameter.default)
        for parameter in inspect.signature(face).parameters.values()
    }
    for face in (*(getattr(stable_baselines3, name) for name in NAMES), sb3_contrib.TRPO)
}
target = Path(__file__).with_name("sb3_signatures.json")
target.write_text(json.dumps({"version": stable_baselines3.__version__, **faces}, indent=1) + "\n", encoding="utf-8")
