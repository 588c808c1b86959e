"""What priorities cost: a draw from a memory of a million rows, uniform against prioritised.

    python benchmarks/replay.py           # results/replay.json and .md; two minutes

One core, and the time that it worked (not the clock: others may work on it too). A round is a compiled loop of draws, as
an update of many gradient steps has: a batch is drawn, all that it holds is read, and (prioritised) its rows get new
priorities. Beside it DQN's whole update of so many gradient steps. Rounds of both kinds take turns; medians.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import advantage.platform  # noqa: E402, F401  (JAX's settings, before its backend)
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from advantage.algorithms import dqn  # noqa: E402
from advantage.equations.threefry import written_out  # noqa: E402
from advantage.memory.prioritised import PrioritizedReplayBuffer  # noqa: E402
from advantage.memory.replayed import kind_of, replayed  # noqa: E402
from advantage.types import Chunk, Space, Spec  # noqa: E402

ROWS, ROUNDS, DRAWS = 1_000_000, 9, 500
SPEC = Spec(Space("box", (4,), low=-np.inf, high=np.inf), Space("discrete", (), "int32", n=(2,), start=(0,)))
KINDS = {"uniform": None, "prioritised": PrioritizedReplayBuffer()}
BATCHES = (32, 256)


def main() -> None:
    """Measure in turns, write and print."""
    loops = {
        (what, batch, name): (draws if what == "draw" else gradient_steps)(name, batch)
        for what in ("draw", "gradient step") for batch in BATCHES for name in KINDS
    }  # fmt: skip
    seconds: dict[tuple[str, int, str], list[float]] = {key: [] for key in loops}
    for _ in range(ROUNDS):
        for key, run in loops.items():
            began = time.process_time()
            run()
            seconds[key].append((time.process_time() - began) / DRAWS)
    rows = []
    for what in ("draw", "gradient step"):
        for batch in BATCHES:
            micros = {name: 1e6 * statistics.median(seconds[what, batch, name]) for name in KINDS}
            rows.append({"what": what, "batch": batch, **micros, "ratio": micros["prioritised"] / micros["uniform"]})
    write(rows)


def filled(name: str) -> object:
    """A full memory of random rows, with priorities of all sizes."""
    kind, rng = kind_of(KINDS[name]), np.random.default_rng(0)
    rows, priorities = kind.split(kind.init(dqn.Config(buffer_size=ROWS), SPEC, 1))
    obs, next_obs = rng.normal(size=(2, ROWS, 4)).astype(np.float32)
    rows = rows._replace(
        obs=jnp.asarray(obs), next_obs=jnp.asarray(next_obs), reward=jnp.asarray(rng.normal(size=ROWS), jnp.float32),
        size=jnp.array([ROWS], jnp.int32),
    )  # fmt: skip
    errors = jnp.asarray(np.exp(rng.normal(size=ROWS)), jnp.float32)
    return rows, kind.reprioritise(priorities, jnp.arange(ROWS, dtype=jnp.int32), errors, jnp.asarray(True))


def draws(name: str, batch_size: int) -> Callable[[], object]:
    """`DRAWS` draws from a full memory, compiled and run once."""
    kind, config = kind_of(KINDS[name]), dqn.Config(batch_size=batch_size, replay_beta=0.5)
    rows, priorities = filled(name)

    def step(_, carry, rows):
        key, priorities = carry
        key, now = jax.random.split(written_out(key))
        batch, row = kind.sample(config, kind.join(rows, priorities), now)
        # All is read: by the errors, and by the next draw.
        errors = sum(jnp.sum(jnp.abs(x).reshape(batch_size, -1), axis=1) for x in jax.tree.leaves(batch))
        priorities = kind.reprioritise(priorities, row, errors, jnp.sum(errors) < jnp.inf)
        return jax.random.key_data(key) ^ (jnp.sum(errors) > 0).astype(jnp.uint32), priorities

    program = jax.jit(
        lambda carry, rows: jax.lax.fori_loop(0, DRAWS, lambda k, carry: step(k, carry, rows), carry), donate_argnums=0
    )
    return repeated(lambda carry: program(carry, rows), (jax.random.PRNGKey(1), priorities))


def gradient_steps(name: str, batch_size: int) -> Callable[[], object]:
    """DQN's update with `DRAWS` gradient steps, compiled and run once."""
    agent, kind = replayed(dqn, KINDS[name]), kind_of(KINDS[name])
    config = dqn.Config(batch_size=batch_size, replay_beta=0.5, gradient_steps=DRAWS, learning_starts=0)
    state = jax.jit(lambda key: dqn.init(config, SPEC, key))(jax.random.PRNGKey(0))
    flags, obs = jnp.zeros((4, 1), bool), jnp.zeros((4, 1, 4))
    chunk = Chunk(obs, flags, None, jnp.zeros((4, 1), jnp.int32), jnp.zeros((4, 1)), flags, flags, ~flags, obs, obs[0])
    program = jax.jit(functools.partial(agent.update, config), donate_argnums=(0, 1))
    return repeated(lambda carry: program(*carry, chunk)[:2], (state, kind.join(*filled(name))))


def repeated(program: Callable, begun: object) -> Callable[[], object]:
    """Call by call it goes on where it was; the first compiles."""
    held = [begun]

    def run() -> None:
        held[0] = jax.block_until_ready(program(held[0]))

    run()
    return run


def write(rows: list[dict[str, object]]) -> None:
    """`results/replay.json` and `.md`; the page is printed too."""
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "jax": importlib.metadata.version("jax")}
    folder = ROOT / "benchmarks" / "results"
    (folder / "replay.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    lines = [
        "# What priorities cost", "",
        f"`python benchmarks/replay.py`: medians of {ROUNDS} rounds of {DRAWS} draws, one core, CPU time, JAX {machine['jax']}; a",
        f"memory of {ROWS:,} rows of 4 numbers. A draw reads its batch and gives its rows new priorities; a gradient step is",
        "DQN's (2 x 64), with its draw.", "",
        "| | batch | uniform | prioritised | ratio |", "| --- | ---: | ---: | ---: | ---: |",
        *(f"| {row['what']} | {row['batch']} | {row['uniform']:.1f} us | {row['prioritised']:.1f} us |"
          f" {row['ratio']:.2f} |" for row in rows), "",
    ]  # fmt: skip
    text = "\n".join(lines)
    (folder / "replay.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
