"""The jobs of both benchmarks: settings, steps and targets live once, here.

Imports no library, so that the workers of every peer can read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


def linear(start: float) -> Callable[[float], float]:
    """A schedule from `start` to 0, in SB3's form: a function of the remaining progress (1 to 0)."""

    def value(progress_remaining: float) -> float:
        return start * progress_remaining

    return value


# -- speed -------------------------------------------------------------------------------------------


def policy_of(algorithm: str, env: str = "") -> str:
    """The name of the policy that an algorithm is run with."""
    if env.startswith("ALE/"):
        return "CnnPolicy"
    return "MlpLstmPolicy" if algorithm.startswith("Recurrent") else "MlpPolicy"


class Run(NamedTuple):
    """What one child process trains and times: a `learn` that compiles, another, and a timed third one.

    Attributes:
        algorithm: the class's name, the same in all libraries.
        env: an environment's id.
        n_envs: parallel environments (per seed).
        settings: hyper-parameters by SB3's names.
        warmup: environment steps of the first and of the second `learn`, per seed.
        steps: environment steps of the timed third `learn`, per seed.
        seeds: agents trained at once, in one process (ours only).
        vectorised: give the environments as one natively vectorised `gymnasium.vector` env (ours only).
        progress_bar: show live progress while training.
        terminal: the child's stderr is a terminal, so that progress is drawn as for a user.
        cores: the child is pinned to this many.
        device: what it computes on, "cpu" or "cuda".
    """

    algorithm: str
    env: str
    n_envs: int
    settings: Mapping[str, Any]
    warmup: int
    steps: int
    seeds: int = 1
    vectorised: bool = False
    progress_bar: bool = False
    terminal: bool = False
    cores: int = 1
    device: str = "cpu"


GYM, FUSED = "CartPole-v1", "advantage/CartPole-v1"
PPO = {"n_steps": 256, "batch_size": 256, "n_epochs": 10}
# SB3's defaults; this one is named because SBX's default differs.
DQN = {"target_update_interval": 10_000}

CONTROL = {"policy_kwargs": {"net_arch": [256, 256]}}
# The zoo's.
TRPO_CARTPOLE = {"n_steps": 512, "batch_size": 512, "cg_damping": 1e-3, "gae_lambda": 0.98, "learning_rate": 1e-3,
                 "n_critic_updates": 20}  # fmt: skip
# Position and angle alone: see `novel.py`.
NO_VELOCITIES = "novel:CartPoleNoVel-v1"
RECURRENT = {"n_steps": 128, "batch_size": 256, "n_epochs": 10, "policy_kwargs": {"lstm_hidden_size": 64, "net_arch": [64]}}
PPO_HOPPER = {"n_steps": 256, "batch_size": 64, "n_epochs": 10, "normalize": True}
TRPO_PENDULUM = {"n_steps": 1024, "gamma": 0.9, "n_critic_updates": 15, "use_sde": True}

# SB3 takes 10 to 20 s for the timed part. In `fused` runs a step's cost doesn't depend on the policy (a reset
# is computed at every step), so they may be longer, to be measurable; runs on Gymnasium take as many steps as
# SB3's, since episodes grow longer, and resets rarer, as the agents learn.
_PPO = Run("PPO", GYM, 8, PPO, warmup=4_096, steps=40_960)
_PPO_FUSED = _PPO._replace(env=FUSED, steps=204_800)
_DQN = Run("DQN", GYM, 1, DQN, warmup=1_000, steps=16_000)
_DQN_FUSED = _DQN._replace(env=FUSED, steps=80_000)

_BREAKOUT = Run("DQN", "ALE/Breakout-v5", 1, {"buffer_size": 20_000, "learning_starts": 200, "target_update_interval": 1_000},
                warmup=400, steps=1_600)  # fmt: skip

# The suite of a GPU: games on four cores; with eight of them as many gradient steps for a step as with one.
_BREAKOUT_GPU = _BREAKOUT._replace(warmup=1_000, steps=6_000, cores=4, device="cuda")
_PPO_GPU = Run("PPO", "ALE/Breakout-v5", 8, {"n_steps": 128, "batch_size": 256, "n_epochs": 4, "clip_range": 0.1},
               warmup=1_024, steps=8_192, cores=4, device="cuda")  # fmt: skip

RUNS: dict[str, Run] = {
    "gpu-dqn-breakout": _BREAKOUT_GPU,
    "gpu-dqn-breakout-8envs": _BREAKOUT_GPU._replace(n_envs=8, settings={**_BREAKOUT.settings, "gradient_steps": 8}),
    "gpu-ppo-breakout": _PPO_GPU,
    "gpu-ppo-fused": Run("PPO", FUSED, 4_096, {"n_steps": 32, "batch_size": 32_768, "n_epochs": 4}, warmup=131_072,
                         steps=40 * 131_072, cores=4, device="cuda"),
    "dqn-breakout": _BREAKOUT,
    "dqn-breakout-2cores": _BREAKOUT._replace(cores=2),
    "ppo-gym": _PPO,
    "ppo-gymvec": _PPO._replace(vectorised=True),
    "ppo-fused": _PPO_FUSED,
    "ppo-fused-8seeds": _PPO_FUSED._replace(seeds=8, cores=2),
    "dqn-gym": _DQN,
    "dqn-gym-8seeds": _DQN._replace(seeds=8),
    "dqn-fused": _DQN_FUSED,
    # Policy gradients.
    "a2c-gym": Run("A2C", GYM, 8, {}, warmup=4_000, steps=40_000),
    "trpo-gym": Run("TRPO", GYM, 2, TRPO_CARTPOLE, warmup=2_048, steps=30_720),
    "trpo-pendulum": Run("TRPO", "Pendulum-v1", 2, TRPO_PENDULUM, warmup=4_096, steps=40_960),
    "recurrent-ppo-gym": Run("RecurrentPPO", NO_VELOCITIES, 8, RECURRENT, warmup=1_024, steps=8_192),
    "ppo-hopper": Run("PPO", "Hopper-v5", 8, PPO_HOPPER, warmup=2_048, steps=16_384),
    "ppo-gym-64envs": _PPO._replace(n_envs=64, settings={**PPO, "n_steps": 32}, steps=81_920),
    "ppo-fused-64envs": _PPO_FUSED._replace(n_envs=64, settings={**PPO, "n_steps": 32}, steps=409_600),
    # Off-policy continuous control: one environment, one gradient step a step, networks of 2 x 256.
    **{
        f"{name.lower()}-{env}": Run(name, ids, 1, CONTROL, warmup=200, steps=800)
        for name in ("SAC", "TD3")
        for env, ids in (("pendulum", "Pendulum-v1"), ("halfcheetah", "HalfCheetah-v5"))
    },
    "tqc-pendulum": Run("TQC", "Pendulum-v1", 1, CONTROL, warmup=200, steps=800),
    "crossq-pendulum": Run("CrossQ", "Pendulum-v1", 1, CONTROL, warmup=200, steps=800),
    "sac-pendulum-4seeds": Run("SAC", "Pendulum-v1", 1, CONTROL, warmup=200, steps=800, seeds=4, cores=2),
    "sac-pendulum-20gradients": Run(
        "SAC", "Pendulum-v1", 1, {**CONTROL, "gradient_steps": 20}, warmup=120, steps=60
    ),
    # Compiling: few updates before the clock starts, since `compile_cpu` takes their cost off again.
    "ppo-gym-40epochs": _PPO._replace(settings={**PPO, "n_epochs": 40}, warmup=2_048, steps=8_192),
    "dqn-gym-64gradients": _DQN._replace(settings={**DQN, "gradient_steps": 64}, warmup=200, steps=1_200),
    # Long enough for many redraws of the progress.
    "fused-plain": _PPO_FUSED._replace(steps=409_600, terminal=True),
    "fused-progress": _PPO_FUSED._replace(steps=409_600, terminal=True, progress_bar=True),
}
PROGRAMS = ("import", "help")
"""What else a worker can do: names beside those of `RUNS`."""


class Value(NamedTuple):
    """One number of one child: `library`, its `run` (in `RUNS` or `PROGRAMS`), the `field`."""

    library: str
    run: str
    field: str


class Check(NamedTuple):
    """A row of the table: `top / bottom` (or `top` alone), to be compared with the target.

    Attributes:
        job: what `--job` takes.
        label: what the row says.
        top, bottom: the values divided. Speed is SB3's seconds for a step over ours.
        sense: ">=" or "<=".
        target: the number asked for; None reports only.
    """

    job: str
    label: str
    top: Value
    bottom: Value | None
    sense: str
    target: float | None


def _faster(job: str, peer: str, peer_run: str, target: float | None, clock: str = "cpu") -> list[Check]:
    """Rows that say how many times faster our run `job` is than a peer's: CPU time and wall time."""
    return [
        Check(
            job,
            f"{job}: {kind.replace('cpu', 'CPU')} time of {peer.upper()} / ours",
            Value(peer, peer_run, f"{kind}_per_step"),
            Value("ours", job, f"{kind}_per_step"),
            ">=",
            target if kind == clock else None,
        )
        for kind in ("cpu", "wall")
    ]


def _alone(job: str, label: str, value: Value, target: float | None) -> Check:
    return Check(job, label, value, None, "<=", target)


def _ratio(job: str, label: str, top: Value, bottom: Value, target: float | None) -> Check:
    return Check(job, label, top, bottom, "<=", target)


CHECKS: list[Check] = [
    *_faster("ppo-gym", "sb3", "ppo-gym", 4.5),
    *_faster("ppo-gym", "sbx", "ppo-gym", 3.5),
    *_faster("ppo-gymvec", "sb3", "ppo-gym", 5.5),
    *_faster("ppo-fused", "sb3", "ppo-gym", 9.0),
    *_faster("ppo-fused-8seeds", "sb3", "ppo-gym", 20.0, clock="wall"),
    *_faster("dqn-gym", "sb3", "dqn-gym", 3.0),
    *_faster("dqn-gym", "sbx", "dqn-gym", None),
    *_faster("dqn-gym-8seeds", "sb3", "dqn-gym", 8.0),
    *_faster("dqn-fused", "sb3", "dqn-gym", 12.0),
    _alone("compile", "compile: PPO, CPU-seconds", Value("ours", "ppo-gym", "compile_cpu"), 4.0),
    _alone("compile", "compile: PPO fused, CPU-seconds", Value("ours", "ppo-fused", "compile_cpu"), None),
    _alone("compile", "compile: DQN, CPU-seconds", Value("ours", "dqn-gym", "compile_cpu"), 4.0),
    _alone("compile", "compile: DQN fused, CPU-seconds", Value("ours", "dqn-fused", "compile_cpu"), None),
    _alone("compile", "compile: SBX's PPO, CPU-seconds", Value("sbx", "ppo-gym", "compile_cpu"), None),
    _alone("compile", "compile: SBX's DQN, CPU-seconds", Value("sbx", "dqn-gym", "compile_cpu"), None),
    _ratio("compile", "compile: PPO, n_epochs 40 / 10", Value("ours", "ppo-gym-40epochs", "compile_cpu"),
           Value("ours", "ppo-gym", "compile_cpu"), 1.2),
    _ratio("compile", "compile: DQN, gradient_steps 64 / 1",
           Value("ours", "dqn-gym-64gradients", "compile_cpu"),
           Value("ours", "dqn-gym", "compile_cpu"), 1.2),
    _ratio("import", "import: `import advantage` / `import jax`, CPU time", Value("ours", "import", "package_cpu"),
           Value("jax", "import", "cpu"), 1.2),
    _ratio("import", "import: advantage and PPO / jax, CPU time", Value("ours", "import", "cpu"),
           Value("jax", "import", "cpu"), None),
    _ratio("import", "import: advantage and PPO / jax, wall time", Value("ours", "import", "wall"),
           Value("jax", "import", "wall"), None),
    _ratio("import", "import: advantage and PPO / SB3 and PPO, CPU time", Value("ours", "import", "cpu"),
           Value("sb3", "import", "cpu"), None),
    _ratio("import", "import: advantage and PPO / SBX and PPO, CPU time", Value("ours", "import", "cpu"),
           Value("sbx", "import", "cpu"), None),
    _alone("import", "import: `import advantage`, seconds", Value("ours", "import", "package_wall"), None),
    _alone("import", "import: `advantage --help`, seconds", Value("ours", "help", "wall"), None),
    _ratio("memory", "memory: peak of PPO, ours / SB3", Value("ours", "ppo-gym", "peak_mb"),
           Value("sb3", "ppo-gym", "peak_mb"), 0.9),
    _ratio("memory", "memory: peak of DQN, ours / SB3", Value("ours", "dqn-gym", "peak_mb"),
           Value("sb3", "dqn-gym", "peak_mb"), 0.9),
    _ratio("progress", "progress: CPU time with / without", Value("ours", "fused-progress", "cpu_per_step"),
           Value("ours", "fused-plain", "cpu_per_step"), 1.03),
    _ratio("progress", "progress: wall time with / without", Value("ours", "fused-progress", "wall_per_step"),
           Value("ours", "fused-plain", "wall_per_step"), 1.03),
]  # fmt: skip

CONTINUOUS: list[Check] = [
    *(
        check
        for job in ("sac-pendulum", "sac-halfcheetah", "td3-pendulum", "td3-halfcheetah")
        for peer, target in (("sb3", 2.5), ("sbx", 1.2))
        for check in _faster(job, peer, job, target)
    ),
    *(
        check
        for job in ("tqc-pendulum", "crossq-pendulum")
        for peer, target in (("sb3", 3.0), ("sbx", 1.1))
        for check in _faster(job, peer, job, target)
    ),
]  # fmt: skip

SEEDS: list[Check] = [
    Check(
        "sac-pendulum-4seeds", "sac-pendulum-4seeds: steps/s of all seeds on two cores / one seed on one core",
        Value("ours", "sac-pendulum", "wall_per_step"), Value("ours", "sac-pendulum-4seeds", "wall_per_step"),
        ">=", 1.8,
    ),
    _ratio("compile-continuous", "compile: SAC, gradient_steps 20 / 1",
           Value("ours", "sac-pendulum-20gradients", "compile_jax"),
           Value("ours", "sac-pendulum", "compile_jax"), 1.2),
    _alone("compile-continuous", "compile: SAC, CPU-seconds", Value("ours", "sac-pendulum", "compile_cpu"), None),
    _alone("compile-continuous", "compile: SBX's SAC, CPU-seconds", Value("sbx", "sac-pendulum", "compile_cpu"), None),
]  # fmt: skip

VALUE: list[Check] = [
    *_faster("dqn-breakout", "sb3", "dqn-breakout", 1.1),
    *_faster("dqn-breakout-2cores", "sb3", "dqn-breakout-2cores", 1.5, clock="wall"),
]

GPU: list[Check] = [
    *_faster("gpu-dqn-breakout", "sb3", "gpu-dqn-breakout", 4.0, clock="wall"),
    *_faster("gpu-dqn-breakout-8envs", "sb3", "gpu-dqn-breakout-8envs", None, clock="wall"),
    *_faster("gpu-ppo-breakout", "sb3", "gpu-ppo-breakout", None, clock="wall"),
    Check("gpu-ppo-fused", "gpu-ppo-fused: PPO on 4,096 CartPoles in JAX, steps/s", Value("ours", "gpu-ppo-fused", "steps_per_second"),
          None, ">=", None),
]  # fmt: skip

POLICY: list[Check] = [
    *_faster("a2c-gym", "sb3", "a2c-gym", 4.0),
    *_faster("trpo-gym", "sb3", "trpo-gym", 4.0),
    *_faster("trpo-pendulum", "sb3", "trpo-pendulum", 4.0),
    *_faster("ppo-hopper", "sb3", "ppo-hopper", 2.5),
    *_faster("recurrent-ppo-gym", "sb3", "recurrent-ppo-gym", 10.0),
    *_faster("ppo-fused-64envs", "sb3", "ppo-gym-64envs", 9.0),
]

SUITES = {"speed": CHECKS, "continuous": CONTINUOUS, "seeds": SEEDS, "policy": POLICY, "value": VALUE, "gpu": GPU}
"""What is measured in one run, by the name of its results."""
JOBS = list(dict.fromkeys(check.job for checks in SUITES.values() for check in checks))


# -- learning ----------------------------------------------------------------------------------------


class Learning(NamedTuple):
    """A job whose learning curve is set beside SB3's.

    Attributes:
        solved: a return to mark in the picture.
        episodes: whole episodes of each evaluation.
    """

    algorithm: str
    env: str
    steps: int
    n_envs: int
    settings: Mapping[str, Any]
    solved: float | None = None
    episodes: int = 20


LEARNING: dict[str, Learning] = {
    "ppo-cartpole": Learning(
        "PPO", "CartPole-v1", 100_000, 8,
        {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8,
         "learning_rate": linear(1e-3), "clip_range": linear(0.2)}, 475.0,
    ),
    "dqn-cartpole": Learning(
        "DQN", "CartPole-v1", 50_000, 1,
        {"learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000,
         "gamma": 0.99, "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128,
         "exploration_fraction": 0.16, "exploration_final_eps": 0.04,
         "policy_kwargs": {"net_arch": [256, 256]}}, 475.0,
    ),
    "dqn-cartpole-seed-page": Learning(
        "DQN", "CartPole-v1", 100_000, 1,
        {"learning_rate": 1e-4, "buffer_size": 100_000, "exploration_fraction": 0.1}, 475.0,
    ),
    "ppo-pendulum": Learning(
        "PPO", "Pendulum-v1", 100_000, 4,
        {"n_steps": 1024, "gamma": 0.9, "gae_lambda": 0.95, "learning_rate": 1e-3, "use_sde": True,
         "sde_sample_freq": 4},
    ),
    "a2c-cartpole": Learning("A2C", "CartPole-v1", 100_000, 8, {}, 475.0),
    "trpo-cartpole": Learning("TRPO", "CartPole-v1", 100_000, 2, TRPO_CARTPOLE, 475.0),
    "a2c-cartpole-tensorflow": Learning(
        "A2C", "CartPole-v1", 100_000, 8,
        {"policy_kwargs": {"optimizer_class": "rmsproptflike", "optimizer_kwargs": {"eps": 1e-5}}}, 475.0,
    ),
    "recurrent-ppo-cartpole": Learning(
        "RecurrentPPO", NO_VELOCITIES, 300_000, 8,
        {**RECURRENT, "learning_rate": linear(1e-3), "normalize": True}, 475.0,
    ),
    "ppo-cartpole-no-velocities": Learning(
        "PPO", NO_VELOCITIES, 300_000, 8,
        {"n_steps": 128, "batch_size": 256, "n_epochs": 10, "learning_rate": linear(1e-3), "normalize": True}, 475.0,
    ),
    "ppo-hopper": Learning("PPO", "Hopper-v5", 300_000, 8, PPO_HOPPER, episodes=10),
    "sac-pendulum": Learning("SAC", "Pendulum-v1", 10_000, 1, {"learning_rate": 1e-3}),
    "td3-pendulum": Learning(
        "TD3", "Pendulum-v1", 10_000, 1,
        {"gamma": 0.98, "buffer_size": 200_000, "learning_starts": 1000, "learning_rate": 1e-3},
    ),
    "sac-hopper": Learning("SAC", "Hopper-v5", 100_000, 1, {"learning_starts": 10_000}, episodes=10),
    "td3-hopper": Learning("TD3", "Hopper-v5", 100_000, 1, {"learning_starts": 10_000}, episodes=10),
    # Critics as wide as SAC's: with CrossQ's own 1024 a step takes ten times as long.
    "crossq-hopper": Learning(
        "CrossQ", "Hopper-v5", 100_000, 1,
        {"learning_starts": 10_000, "policy_kwargs": {"net_arch": {"pi": [256, 256], "qf": [256, 256]}}}, episodes=10,
    ),
    "sac-halfcheetah": Learning("SAC", "HalfCheetah-v5", 100_000, 1, {"learning_starts": 10_000}, episodes=10),
}  # fmt: skip
FULL: dict[str, Learning] = {
    f"{algorithm.lower()}-{env.split('-')[0].lower()}-1m": Learning(
        algorithm, env, 1_000_000, 1, {"learning_starts": 10_000}, episodes=10
    )
    for algorithm in ("SAC", "TD3")
    for env in ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5")
}
"""Jobs of a day or a GPU, whose returns are published; run only if named, or by `make learn-full`."""
EVERY = LEARNING | FULL
CONTINUOUS_CONTROL = ("SAC", "TD3", "DDPG", "TQC", "CrossQ")
EVALUATIONS = 10
EVALUATION_SEED = 10_000
"""Episode i of every evaluation is reset with this seed plus i."""
