"""What to train an environment with, why, and what it will cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import gymnasium
import jax
import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from advantage.envs.jax import JaxEnv, is_jax_env, reset_envs, step_envs
from advantage.envs.make import reserve_threads, resolve_env
from advantage.envs.masking import spec_of
from advantage.experiments.cost import TRIAL_SECONDS, Cost, estimate, free_memory, policy_of
from advantage.experiments.preset import Preset, find_preset
from advantage.models import ALGORITHMS, Model, algorithm_named
from advantage.training.hyperparameters import whole
from advantage.types import Space, Spec

ENV_SECONDS = 2.0
"""For which the environment alone is stepped."""
DEAR = 1_000
"""Steps per second below which experience is dear: then what was seen once should be learned from often."""
SIDE_BY_SIDE = 8
"""Environments of an on-policy algorithm without a preset."""
BUDGET = 100_000
"""Environment steps where neither a preset nor the user names any, as for `advantage train`."""


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A recommendation; `print(suggestion)` shows it.

    Attributes:
        env: the id.
        observation, action: its spaces, in words.
        env_steps_per_second: of the environment alone: one on the host, or a JAX one compiled (8 side by side).
        algorithm: the one recommended.
        preset: where its settings come from; None where there is none.
        settings: keywords for the algorithm; empty for its defaults.
        reasons: why, a sentence each.
        others: every other algorithm, and why not.
        cost: what training would take.
    """

    env: str
    observation: str
    action: str
    env_steps_per_second: float
    algorithm: str
    preset: Preset | None
    settings: dict[str, Any]
    reasons: tuple[str, ...]
    others: dict[str, str]
    cost: Cost

    @property
    def code(self) -> str:
        """The line of Python that trains it."""
        arguments = [repr(self.settings.get("policy", "MlpPolicy")), repr(self.env)]
        arguments += [f"{name}={value!r}" for name, value in self.settings.items() if name != "policy"]
        arguments += [f"seeds={self.cost.seeds}"] if self.cost.seeds > 1 else []
        return f"{self.algorithm}({', '.join(arguments)}).learn({self.cost.total_timesteps})"

    @property
    def command(self) -> str:
        """The command line that trains it."""
        parts, settings = [f"advantage train {self.algorithm} {self.env}"], dict(self.settings)
        if self.preset is None or self.cost.total_timesteps != self.preset.total_timesteps:
            parts.append(f"--total-timesteps {self.cost.total_timesteps}")
        if self.cost.seeds > 1:
            parts.append(f"--seeds {self.cost.seeds}")
        if self.preset is None and settings:
            parts.append(f"--n-envs {settings.pop('n_envs')}" if "n_envs" in settings else "")
            parts.append(" ".join(["--set", *(f"{n}={v}" for n, v in settings.items())]) if settings else "")
        return " ".join(filter(None, parts))

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {**dataclasses.asdict(self), "code": self.code, "command": self.command}

    def __str__(self) -> str:
        cost = self.cost
        lines = [
            f"{self.algorithm} on {self.env}: {cost.total_timesteps:,} steps in about {duration(cost.seconds)},"
            f" {size(cost.memory)} of memory, {size(cost.disk)} on disk",
            *self.reasons,
            *(f"{name}: {why}." for name, why in self.others.items()),
            self.code,
        ]
        return "\n".join(lines)

    def __rich__(self) -> RenderableType:
        """For a terminal: `rich.print(suggestion)`."""
        cost, table = self.cost, Table(show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        rows = {
            "observations": self.observation,
            "actions": self.action,
            "environment": f"{self.env_steps_per_second:,.0f} steps/s on its own",
            "algorithm": self.algorithm,
            "settings": ", ".join(f"{name}={value}" for name, value in self.settings.items()) or "defaults",
            "why": "\n".join(self.reasons),
            **{f"not {name}": why for name, why in self.others.items()},
            "budget": f"{cost.total_timesteps:,} steps"
            + f" for each of {cost.seeds} seeds" * (cost.seeds > 1),
            "time": f"{duration(cost.seconds)} ({duration(cost.compile_seconds)} of it to compile, then"
            f" {cost.steps_per_second:,.0f} steps/s)",
            "memory": size(cost.memory) + f", of it {size(cost.replay)} replay" * (cost.replay > 0),
            "disk": size(cost.disk),
            "train it": self.command,
        }
        for name, value in rows.items():
            table.add_row(name, escape(value))
        return Group(f"[bold]{escape(f'{self.algorithm} on {self.env}')}[/bold]", table)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """An algorithm that can be trained on the environment."""

    face: type[Model]
    preset: Preset | None
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return self.face.__name__

    @property
    def off_policy(self) -> bool:
        return hasattr(self.face.algorithm, "learn")

    def rank(self, dear: bool) -> tuple[bool, bool, float, float, bool]:
        """The higher the better: what is proven first, then what fits the price of experience."""
        verified = self.preset.verified if self.preset else None
        proven = (verified.iqm, verified.low) if verified else (-np.inf, -np.inf)
        return verified is not None, self.preset is not None, *proven, self.off_policy == dear


def suggest(
    env: str | JaxEnv,
    budget: int | None = None,
    *,
    algorithm: str | None = None,
    seeds: int = 1,
    checkpoint: bool = False,
) -> Suggestion:
    """Recommend an algorithm and its settings for an environment, and estimate what training takes.

    The environment alone is stepped for two seconds, and the recommended training is tried for a few; nothing of
    both is kept. Algorithms with a verified preset come first, then those with another preset; among equals an
    off-policy one where a step of the environment takes more than a millisecond, else an on-policy one.

    Args:
        env: an id such as "CartPole-v1" or "advantage/CartPole-v1", or a JAX environment.
        budget: environment steps of each seed; the preset's by default, or 100,000.
        algorithm: estimate this one, whatever would be recommended.
        seeds: agents trained side by side.
        checkpoint: count a checkpoint's replay memory as disk space, too.

    Raises:
        ValueError: an unknown environment, algorithm or number, or no algorithm takes these spaces.
        ImportError: the environment needs a package that is not installed.
    """
    if not isinstance(env, str) and not is_jax_env(env):
        raise ValueError(
            f"env={env!r} has to be an id, such as 'CartPole-v1': register an environment of your own"
        )
    budget = None if budget is None else whole("budget", budget)
    seeds = whole("seeds", seeds)
    try:
        only = None if algorithm is None else algorithm_named(algorithm).__name__
    except ValueError:
        raise ValueError(f"algorithm={algorithm!r} is not known: choose from {', '.join(ALGORITHMS)}") from None
    reserve_threads(env)
    made = resolve_env(env, 1)
    name, spec = env if isinstance(env, str) else env.id, spec_of(made)
    speed = env_speed(made, ENV_SECONDS)
    choices, others = _choices(name, spec, is_jax_env(made))
    wanted = [c for c in choices if only in (None, c.name)]
    if not wanted:
        raise ValueError(
            f"env={name!r}: " + "; ".join(others[n] for n in others if only in (None, n))
        )
    ranked = sorted(wanted, key=lambda c: c.rank(speed < DEAR), reverse=True)
    best = ranked[0]
    others |= {c.name: _why_not(c, best, speed) for c in choices if c is not best}
    steps = budget or (best.preset.total_timesteps if best.preset else BUDGET)
    cost = estimate(
        best.name, env, steps, best.settings, seeds=seeds, checkpoint=checkpoint, seconds=TRIAL_SECONDS
    )
    reasons = tuple(_reasons(best, spec, speed, steps, cost))
    return Suggestion(
        name, words(spec.observation), words(spec.action), speed, best.name, best.preset, best.settings, reasons,
        others, cost,
    )  # fmt: skip


def _choices(env: str, spec: Spec, fused: bool) -> tuple[list[_Choice], dict[str, str]]:
    """`(algorithms that take the environment, why the others do not)`: each face is asked itself."""
    choices, others = [], {}
    for name, face in ALGORITHMS.items():
        if face.__base__ is not Model:
            others[name] = f"{name} is another name of {face.__base__.__name__}."
            continue
        preset = find_preset(name, env)
        settings = _policy(spec) | preset.settings if preset else _defaults(face, spec)
        fields = dict(settings)
        try:
            model = face(fields.pop("policy", None) or policy_of(spec), None, **fields)
            model._check(spec, model.n_envs, fused)
        except (TypeError, ValueError) as error:
            others[name] = str(error)
        else:
            choices.append(_Choice(face, preset, settings))
    return choices, others


def _defaults(face: type[Model], spec: Spec) -> dict[str, Any]:
    """Settings without a preset: the defaults, an on-policy rollout shared by several environments."""
    settings = _policy(spec)
    rollout = face.algorithm.Config().steps_per_update
    if not hasattr(face.algorithm, "learn"):
        settings["n_envs"] = SIDE_BY_SIDE
        if rollout >= 32 * SIDE_BY_SIDE:
            settings["n_steps"] = rollout // SIDE_BY_SIDE
    return settings


def _policy(spec: Spec) -> dict[str, Any]:
    """The policy, where it is not the usual one."""
    return {} if policy_of(spec) == "MlpPolicy" else {"policy": policy_of(spec)}


def _reasons(best: _Choice, spec: Spec, speed: float, steps: int, cost: Cost) -> Iterator[str]:
    yield f"{best.name} chooses {'continuous' if spec.action.kind == 'box' else 'discrete'} actions."
    if best.preset is None:
        yield "There is no preset for this environment: these settings are no more than a start."
    else:
        yield f"It has a preset, {best.preset.status}."
    if best.off_policy:
        yield "It is off-policy: each step is learned from many times, which pays where steps are slow."
    else:
        yield "It is on-policy: each step is used once, which pays where steps are fast."
    if best.preset and steps < best.preset.total_timesteps:
        yield f"The preset was tuned for {best.preset.total_timesteps:,} steps: fewer may not be enough."
    if cost.memory > free_memory():
        yield f"It takes more memory than the {size(free_memory())} that are free: lower buffer_size or seeds."


def _why_not(other: _Choice, best: _Choice, speed: float) -> str:
    """Why one that could be trained is not the one recommended."""
    statuses = ["no preset" if c.preset is None else "an unverified preset" if c.preset.verified is None else
                f"a verified preset with a return of {c.preset.verified.iqm:,.1f}"
                f" ({c.preset.verified.low:,.1f} to {c.preset.verified.high:,.1f})" for c in (other, best)]  # fmt: skip
    if statuses[0] != statuses[1]:
        return f"possible; it has {statuses[0]}, {best.name} {statuses[1]}"
    kind = "off-policy" if best.off_policy else "on-policy"
    return f"possible; at {speed:,.0f} environment steps/s the {kind} {best.name} comes first"


def env_speed(env: Any, seconds: float | int = ENV_SECONDS) -> float:
    """Steps per second of what `resolve_env` gives, with random actions and nothing else.

    One environment on the host; a JAX environment compiled, 8 side by side, without the time to compile.
    """
    if is_jax_env(env):
        return _jax_speed(env, seconds)
    return _host_speed(env if isinstance(env, gymnasium.vector.VectorEnv) else env.envs[0], seconds)


def _host_speed(env: gymnasium.Env | gymnasium.vector.VectorEnv, seconds: float | int) -> float:
    actions = [env.action_space.sample() for _ in range(256)]
    env.reset(seed=0)
    began, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        _, _, terminated, truncated, _ = env.step(actions[steps % len(actions)])
        steps += 1
        if isinstance(env, gymnasium.Env) and (terminated or truncated):
            env.reset()
    return steps / passed


def _jax_speed(env: JaxEnv, seconds: float | int, length: int = 256) -> float:
    space = env.spec.action.to_gymnasium()
    samples = [[space.sample() for _ in range(SIDE_BY_SIDE)] for _ in range(length)]
    actions = jax.tree.map(
        lambda *x: np.stack(x), *[jax.tree.map(lambda *x: np.stack(x), *row) for row in samples]
    )

    @jax.jit
    def run(carried: Any, key: jax.Array) -> Any:
        def step(carried: Any, given: Any) -> tuple[Any, None]:
            env_state, out = step_envs(env, carried[0], carried[1], *given)
            return (env_state, out.observed), None

        return jax.lax.scan(step, carried, (actions, jax.random.split(key, length)))[0]

    keys = jax.random.split(jax.random.PRNGKey(0), SIDE_BY_SIDE)
    carried = jax.block_until_ready(run(jax.jit(lambda keys: reset_envs(env, keys))(keys), keys[0]))
    began, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        carried = jax.block_until_ready(run(carried, keys[steps // length % SIDE_BY_SIDE]))
        steps += length
    return steps * SIDE_BY_SIDE / passed


def words(space: Space) -> str:
    """A space in a few words: `box of 4 float32`, `discrete, 2 choices`."""
    if space.parts:
        return f"{space.kind} of {', '.join(f'{name}: {words(part)}' for name, part in space.parts)}"
    if space.kind == "box":
        return f"box of {' x '.join(map(str, space.shape)) or 1} {space.dtype}"
    return f"{space.kind.replace('_', '-')}, {' x '.join(map(str, space.n))} choices"


def duration(seconds: float | int) -> str:
    """Seconds as people say them."""
    for unit, name in ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.1f} seconds"


def size(count: float | int) -> str:
    """Bytes as people say them."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}" if count < 10 * unit else f"{count / unit:.0f} {name}"
    return f"{count:.0f} bytes"
