"""How much of this machine's matrix-product rate do gradient steps reach?

    python benchmarks/update_rate.py           # results/update_rate.json and .md; two minutes

One core, float32. The rate of the machine is that of a chain of products `[256, 256] @ [256, 256]` compiled by
XLA; beside it NumPy's (OpenBLAS), which is what the processor can do. A gradient step's operations are counted:
two for each multiply-add of every dense layer, forwards, backwards by weights, backwards by inputs, where each
takes place. The rest (activations, optimiser, draws, targets) takes time and is not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import advantage.platform  # noqa: E402, F401  (JAX's settings, before its backend)
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from advantage.algorithms import sac, td3  # noqa: E402
from advantage.memory.uniform import Batch  # noqa: E402
from advantage.networks.continuous import Widths  # noqa: E402
from advantage.types import Space, Spec  # noqa: E402

ROUNDS, BATCH = 7, 256
ENVS = {"Pendulum": (3, 1), "HalfCheetah": (17, 6)}


def main() -> None:
    """Measure in turns, write and print."""
    rates = {"XLA": [], "NumPy": []}
    steps = {(name, env): learner(module, env) for name, module in (("SAC", sac), ("TD3", td3)) for env in ENVS}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    product, numpy_product = xla_product(), (lambda x=np.ones((256, 256), np.float32): x @ x)
    for _ in range(ROUNDS):
        rates["XLA"].append(200 * 2 * 256**3 / timed(product) / 1e9)
        rates["NumPy"].append(200 * 2 * 256**3 / timed(lambda: [numpy_product() for _ in range(200)]) / 1e9)
        for key, step in steps.items():
            seconds[key].append(timed(step) / 50)
    machine = {name: statistics.median(values) for name, values in rates.items()}
    rows = []
    for (name, env), values in seconds.items():
        operations, second = counted(name, *ENVS[env]), statistics.median(values)
        rate = operations / second / 1e9
        rows.append({"algorithm": name, "env": env, "gflop": operations / 1e9, "per_second": 1 / second,
                     "gflop_per_second": rate, "share": rate / machine["XLA"]})  # fmt: skip
    write(machine, rows)


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def xla_product() -> Callable[[], jax.Array]:
    """200 products of 256 x 256 matrices, each of the one before."""
    x = jnp.ones((256, 256))
    chain = jax.jit(lambda x, y: jax.lax.fori_loop(0, 200, lambda _, z: (z @ y) * 0.001, x))
    jax.block_until_ready(chain(x, x))
    return lambda: chain(x, x)


def learner(algorithm: object, env: str) -> Callable[[], object]:
    """50 gradient steps on one batch, compiled."""
    observations, actions = ENVS[env]
    spec = Spec(Space("box", (observations,)), Space("box", (actions,), low=-1.0, high=1.0))
    config = algorithm.Config(net_arch=Widths((256, 256), (256, 256)))
    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    batch = Batch(
        jax.random.normal(keys[0], (BATCH, observations)), jnp.tanh(jax.random.normal(keys[1], (BATCH, actions))),
        jnp.ones(BATCH), jnp.full(BATCH, 0.99), jax.random.normal(keys[2], (BATCH, observations)),
    )  # fmt: skip
    state = jax.jit(lambda key: algorithm.init(config, spec, key))(keys[3])
    steps = jax.jit(
        lambda state: jax.lax.fori_loop(0, 50, lambda _, s: algorithm.learn(config, s, batch)[0], state)
    )
    jax.block_until_ready(steps(state))
    return lambda: steps(state)


def counted(name: str, observations: int, actions: int) -> float:
    """Operations of a gradient step's dense layers."""

    def layers(inputs: int, outputs: int) -> tuple[int, int]:
        """`(all layers, all but the first)`, in operations for a batch."""
        sizes = [inputs * 256, 256 * 256, 256 * outputs]
        return 2 * BATCH * sum(sizes), 2 * BATCH * sum(sizes[1:])

    critic, critic_inner = layers(observations + actions, 1)
    actor, actor_inner = layers(observations, 2 * actions if name == "SAC" else actions)
    # Targets and the loss forwards, the loss backwards: by weights everywhere, by inputs behind the first layer.
    critics_step = actor + 2 * (critic + critic + critic + critic_inner)
    judges = 2 if name == "SAC" else 1  # the critics that an actor follows
    # Actor and critics forwards; back through the critics by inputs alone, then through the actor.
    actor_step = actor + judges * 2 * critic + actor + actor_inner
    return critics_step + actor_step / (1 if name == "SAC" else 2)  # TD3's actor has every second step


def write(machine: dict[str, float], rows: list[dict[str, object]]) -> None:
    """`results/update_rate.json` and `.md`; the page is printed too."""
    folder = ROOT / "benchmarks" / "results"
    (folder / "update_rate.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    lines = [
        "# Gradient steps and the machine's matrix-product rate", "",
        "`python benchmarks/update_rate.py`: medians of 7 rounds, one core, networks of 2 x 256, batches of 256.",
        f"Products of 256 x 256: XLA {machine['XLA']:.0f} GFLOP/s, NumPy's OpenBLAS {machine['NumPy']:.0f}.", "",
        "| gradient step of | GFLOP | a second | GFLOP/s | of XLA's rate |", "| --- | ---: | ---: | ---: | ---: |",
        *(f"| {row['algorithm']}, {row['env']} | {row['gflop']:.3f} | {row['per_second']:.0f} |"
          f" {row['gflop_per_second']:.0f} | {row['share']:.0%} |" for row in rows), "",
    ]  # fmt: skip
    text = "\n".join(lines)
    (folder / "update_rate.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
