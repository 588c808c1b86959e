"""Answers of Stable-Baselines3's `VecNormalize`, stored for our tests: writes `sb3_normalise.npz` beside itself.

    python -m venv .bench/sb3 && .bench/sb3/bin/pip install torch==2.13.0 stable-baselines3==2.9.2
    .bench/sb3/bin/python tests/oracles/make_sb3_normalise.py

Run by hand, never by the tests; names have parts separated by "/". The environments replay what is stored: T=300
steps of N=3 environments, observations with means and scales far from 0 and 1.

`raw/`: obs `[T+1,N,3]` (first: of the reset), final_obs `[T,N,3]`, rewards `[T,N]`, dones `[T,N]`, truncated `[T,N]`.
`CASE/` with CASE `plain`, `tight` (clip_obs 1.5, clip_reward 0.2, gamma 0.9, epsilon 0.01), `no_obs` (norm_obs=False)
    and `dict` (observations {"a": obs, "b": 2 obs}, norm_obs_keys ["a"]; what is stored is of "a"):
    obs `[T+1,N,3]`, rewards `[T,N]` as `VecNormalize` gives them, terminal `[E,3]` its terminal observations in
    order; mean, var `[T+1,3]`, count `[T+1]`, ret_var, ret_mean, ret_count `[T+1]`: statistics after each.
    `training` is False from step 200 to 249, `norm_reward` from 230 to 269.
`running/`: sizes, numbers `[sum(sizes),2]`, mean, var `[len(sizes),2]`, count: `RunningMeanStd` batch by batch.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

T, N = 300, 3
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tight": {"clip_obs": 1.5, "clip_reward": 0.2, "gamma": 0.9, "epsilon": 0.01},
    "no_obs": {"norm_obs": False},
    "dict": {"norm_obs_keys": ["a"]},
}


def raw() -> dict[str, np.ndarray]:
    """What the environments do."""
    rng = np.random.default_rng(3)
    scale, shift = np.array([1e-3, 1.0, 500.0]), np.array([0.0, -4.0, 2000.0])
    obs, final_obs = (rng.normal(size=(t, N, 3)) * scale + shift for t in (T + 1, T))
    dones = rng.random((T, N)) < 0.04
    return {
        "obs": obs.astype(np.float32),
        "final_obs": final_obs.astype(np.float32),
        "rewards": (rng.normal(size=(T, N)) * 20 + 7).astype(np.float32),
        "dones": dones,
        "truncated": dones & (rng.random((T, N)) < 0.5),
    }


class Replayed(VecEnv):
    """Gives what is stored, as a `DummyVecEnv` would."""

    def __init__(self, data: dict[str, np.ndarray], keys: bool):
        box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.data, self.keys, self.render_mode = data, keys, None
        super().__init__(N, spaces.Dict({"a": box, "b": box}) if keys else box, spaces.Discrete(2))

    def seen(self, obs: np.ndarray) -> Any:
        return {"a": obs.copy(), "b": 2 * obs} if self.keys else obs.copy()

    def reset(self) -> Any:
        self.t = 0
        return self.seen(self.data["obs"][0])

    def step_async(self, actions: Any) -> None:
        pass

    def step_wait(self) -> tuple:
        t, data = self.t, self.data
        self.t += 1
        infos: list[dict[str, Any]] = [{} for _ in range(N)]
        for n in np.flatnonzero(data["dones"][t]):
            infos[n] = {"terminal_observation": self.seen(data["final_obs"][t, n])}
            infos[n]["TimeLimit.truncated"] = bool(data["truncated"][t, n])
        return self.seen(data["obs"][t + 1]), data["rewards"][t].copy(), data["dones"][t].copy(), infos

    def get_attr(self, attr_name: str, indices: Any = None) -> list:
        return [None] * N

    def close(self) -> None: ...
    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...
    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list: ...
    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list: ...


def answers(env: VecNormalize) -> dict[str, np.ndarray]:
    """Everything `VecNormalize` says over the T steps."""
    rows: dict[str, list] = {}

    def note(obs: Any, rewards: np.ndarray | None, infos: list) -> None:
        plain = obs["a"] if isinstance(obs, dict) else obs
        ret = env.ret_rms
        values = {"obs": plain, "ret_mean": ret.mean, "ret_var": ret.var, "ret_count": ret.count}
        if rewards is not None:
            values["rewards"] = rewards
        if env.norm_obs:
            rms = env.obs_rms["a"] if isinstance(obs, dict) else env.obs_rms
            values |= {"mean": rms.mean, "var": rms.var, "count": rms.count}
        for name, value in values.items():
            rows.setdefault(name, []).append(np.array(value))
        for info in infos:
            if "terminal_observation" in info:
                last = info["terminal_observation"]
                rows.setdefault("terminal", []).append(last["a"] if isinstance(last, dict) else last)

    note(env.reset(), None, [])
    for t in range(T):
        env.training, env.norm_reward = not 200 <= t < 250, not 230 <= t < 270
        obs, rewards, _, infos = env.step(np.zeros(N, int))
        note(obs, rewards, infos)
    return {name: np.stack(values) for name, values in rows.items()}


def running() -> dict[str, np.ndarray]:
    """`RunningMeanStd` batch by batch."""
    rng, rms = np.random.default_rng(4), RunningMeanStd(shape=(2,))
    sizes = np.array([1, 5, 1, 40, 3])
    numbers, rows = rng.normal(size=(sizes.sum(), 2)) * [0.1, 30.0] + [5.0, -2.0], []
    for batch in np.split(numbers, np.cumsum(sizes)[:-1]):
        rms.update(batch)
        rows.append((rms.mean.copy(), rms.var.copy(), rms.count))
    mean, var, count = (np.array(x) for x in zip(*rows, strict=True))
    return {"sizes": sizes, "numbers": numbers, "mean": mean, "var": var, "count": count}


def main() -> None:
    """Ask everything and write the file."""
    data = raw()
    parts = {"raw": data, "running": running()}
    for case, settings in CASES.items():
        parts[case] = answers(VecNormalize(Replayed(data, case == "dict"), **settings))
    arrays = {f"{part}/{name}": x for part, values in parts.items() for name, x in values.items()}
    names = ("stable_baselines3", "numpy")
    arrays["versions"] = np.array([f"{name}={importlib.metadata.version(name)}" for name in names])
    path = Path(__file__).with_name("sb3_normalise.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
