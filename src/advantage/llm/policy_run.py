"""A run of a policy that learns from its own answers: rollouts and what is learned from each, watched."""

from __future__ import annotations

import json
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from advantage.llm import loop, sharding, training
from advantage.llm.rollout import PolicyConfig, Rollouts, Sample, Scored
from advantage.llm.training import Network, S

Learn = Callable[[S, Network, Scored, int], tuple[S, loop.Report]]
"""`(state, policy, answers, number of the rollout) -> (state, report)`."""

FAR = 20.0  # nats an answer from the reference, above which there is a warning
GAP = 1e-2  # between sampler's and trainer's log-probabilities, above which there is a warning


def run(
    rollouts: Rollouts, total: int, base: Network, state: S, learn: Learn, kl_budget: float,
    resume: bool | str | os.PathLike | None, history: list[dict[str, float]],
) -> Network:
    """The policy after `total` rollouts, each written by the policy as it then is.

    Args:
        base: the network before training, a decoder or one with more beside it.
        state: before the first rollout; its `learner` has the weights, its `step` says how many there were.
        kl_budget: see `Watch`.

    Raises:
        FileNotFoundError, FloatingPointError, ValueError: see `loop.run`; and for rewards that are no numbers.
    """  # fmt: skip
    args, watch = rollouts.args, Watch(rollouts.args, kl_budget)

    def advance(state: S, number: int) -> tuple[S, loop.Report]:
        policy = training.network_of(state.learner, base)
        scored = rollouts.at(training.computing(args, training.decoder_of(policy)), number)
        state, report = learn(state, policy, scored, number)
        report = {**scored.report, **report, "tokens": float(scored.written.mask.sum())}
        watch.look(report)
        if (number + 1) % args.logging_steps == 0:
            show(args, rollouts.samples, number + 1)
        return state, report

    def save(state: S, path: pathlib.Path) -> None:
        rollouts.model.of(training.decoder_of(training.network_of(state.learner, base))).save_learned(path)

    plan = loop.Plan(total, rollouts.per_epoch, training.said_of(args, len(rollouts.rows)))
    network = base

    def finish(state: S) -> None:
        nonlocal network
        network = training.copied(training.network_of(state.learner, base))
        rollouts.model.decoder = training.decoder_of(network)

    loop.run(args, plan, state, advance, save, finish, resume, history)
    return network


def total_rollouts(rollouts: Rollouts) -> int:
    """Of a whole run."""
    args = rollouts.args
    return args.max_steps if args.max_steps > 0 else int(np.ceil(args.num_train_epochs * rollouts.per_epoch))


def evaluated(rollouts: Rollouts | None) -> dict[str, float]:
    """A trainer's `evaluate`.

    Raises:
        ValueError: there is no `eval_dataset`.
    """
    if rollouts is None:
        raise ValueError("evaluate needs eval_dataset: give it to the trainer")
    with sharding.over(rollouts.args.mesh):
        return rollouts.evaluated(rollouts.model.decoder)


class Watch:
    """Warns, once each, of what a rising reward may hide, and of a sampler that is another model than the trainer's.

    Args:
        args: settings.
        kl_budget: nats an answer, above which the policy counts as far from its reference.
    """

    def __init__(self, args: PolicyConfig, kl_budget: float = FAR):
        self.args, self.budget = args, kl_budget
        self.first: dict[str, float] = {}
        self.warned: set[str] = set()

    def look(self, report: dict[str, Any]) -> None:
        """At one step's report."""
        numbers = {name: float(report.get(name, np.nan)) for name in ("rollout/reward", "rollout/length", "rollout/kl", "rollout/gap")}
        self.first = self.first or numbers
        better = numbers["rollout/reward"] > self.first["rollout/reward"]
        if better and numbers["rollout/kl"] > self.budget:
            self._warn("kl", f"the reward rises while the policy is {numbers['rollout/kl']:.1f} nats an answer from its reference (more than "
                       f"{self.budget:g}): read the answers, and raise the KL's coefficient or lower learning_rate")  # fmt: skip
        if better and numbers["rollout/length"] > 2 * self.first["rollout/length"]:
            self._warn("length", f"the reward rises while answers have grown from {self.first['rollout/length']:.0f} to "
                       f"{numbers['rollout/length']:.0f} tokens: read them; does length alone earn reward?")  # fmt: skip
        if numbers["rollout/gap"] > GAP:
            self._warn("gap", f"sampler and trainer differ by {numbers['rollout/gap']:.3f} in a token's log-probability (more than "
                       f"{GAP:g}): answers are weighed by min(ratio, {self.args.importance_cap:g}); in float32 they agree")  # fmt: skip

    def _warn(self, kind: str, words: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            warnings.warn(words, stacklevel=4)


def show(args: PolicyConfig, samples: Sequence[Sample], step: int) -> None:
    """A few answers on the console and in `completions.jsonl`."""
    chosen = samples[: args.num_completions_to_print]
    if not chosen or not args.formats:
        return
    folder = pathlib.Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "completions.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps({"step": step, **sample._asdict()}, ensure_ascii=False) + "\n" for sample in chosen)
    if "stdout" in args.formats:
        for prompt, completion, reward in chosen:
            asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            print(f"step {step}, reward {reward:.3g}: {asked!r:.200} -> {completion!r:.400}", flush=True)
