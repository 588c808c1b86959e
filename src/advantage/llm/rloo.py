"""REINFORCE with a leave-one-out baseline (Ahmadian et al., 2024, https://arxiv.org/abs/2402.14740): a whole answer is one action."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from advantage.equations.objectives import clipped_surrogate, normalised
from advantage.equations.sequences import leave_one_out, truncated_importance
from advantage.llm import loop, plan, policy_run, rollout, training
from advantage.llm.dataset import Dataset
from advantage.llm.decoder import Decoder
from advantage.llm.model import LanguageModel
from advantage.llm.rewards import Reward, Rewards
from advantage.llm.rollout import PolicyConfig, Rollouts, Scored, Written, in_batches, log_probs
from advantage.llm.training import Learner, LoraConfig


@dataclasses.dataclass(frozen=True)
class RLOOConfig(PolicyConfig):
    """Settings of `RLOOTrainer`, under TRL's names.

    Raises:
        ValueError: a setting that cannot work.
    """

    learning_rate: float | int = 1e-6  # of AdamW, at its highest
    num_generations: int = 2  # answers to each prompt
    num_iterations: int = 1  # gradient steps on the same answers
    beta: float | int = 0.05  # what a nat of distance from the reference costs
    epsilon: float | int = 0.2  # how far an answer's probability ratio may move
    normalize_advantages: bool = False  # over a rollout

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.num_generations, int) or self.num_generations < 2:
            raise ValueError(f"num_generations={self.num_generations} has to be a whole number of at least 2: the others of a group are an answer's baseline")
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations={self.num_iterations} has to be at least 1")
        if not self.beta >= 0:
            raise ValueError(f"beta={self.beta!r} has to be at least 0")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon={self.epsilon!r} has to be above 0")


class Rows(NamedTuple):
    """What the loss reads of B answers; axes of batches may stand before B."""

    written: Written
    log_prob: Float[Array, "*parts B"]  # of whole answers, by the policy that wrote them
    advantage: Float[Array, "*parts B"]


def loss(config: RLOOConfig, decoder: Decoder, rows: Rows) -> tuple[Array, dict[str, Array]]:
    """The surrogate of whole answers, summed over them, and sums to report.

    Where the policy is the one that wrote them, its gradient is REINFORCE's: the advantage times that of `log p(answer)`.
    """
    found, entropy = log_probs(config, decoder, rows.written)
    log_prob, mask = jnp.sum(found, axis=1), rows.written.mask
    weight = truncated_importance(rows.log_prob, jnp.sum(rows.written.sampled_log_prob * mask, axis=1), config.importance_cap)
    surrogate = jnp.sum(weight * clipped_surrogate(log_prob, rows.log_prob, rows.advantage, config.epsilon))
    tokens, answers = jnp.sum(mask), jnp.float32(mask.shape[0])
    outside = jnp.abs(jnp.expm1(log_prob - rows.log_prob)) > config.epsilon
    report = {"loss": -surrogate, "entropy": jnp.sum(entropy), "clip_fraction": jnp.mean(outside) * tokens,
              "importance": jnp.mean(weight) * tokens, "count": answers, "tokens": tokens}  # fmt: skip
    return -surrogate, report


@functools.partial(jax.jit, static_argnames="config")
def prepare(config: RLOOConfig, decoder: Decoder, reference: Decoder, written: Written, reward: Array) -> tuple[Rows, dict[str, Array]]:
    """Advantages under the policy that wrote them: the reward less the price of its distance, compared with the others'."""
    log_prob = rollout.log_probs_in_batches(config, decoder, written)
    reference_log_prob = rollout.log_probs_in_batches(config, reference, written)
    apart = jnp.sum(log_prob - reference_log_prob, axis=1)
    advantage = leave_one_out(reward - config.beta * apart, config.num_generations)
    if config.normalize_advantages:
        advantage = normalised(advantage, jnp.ones_like(advantage))
    report = rollout.kl_report(log_prob, reference_log_prob, written.mask)
    return Rows(written, jnp.sum(log_prob, axis=1), advantage), {**report, "rollout/gap": rollout.gap(log_prob, written)}


class State(NamedTuple):
    """All that a run needs to go on."""

    learner: Learner
    step: Int[Array, ""]  # rollouts so far


class RLOOTrainer:
    """Teaches a model to write answers that are better than its others to the same prompt, near to where it began.

    Args:
        model: a `LanguageModel`, or the path of one.
        reward_funcs: what an answer is worth: a function `f(prompts, completions, completion_ids, **columns)` that returns a
            number for each (or takes some of these), a `RewardModel`, the path of one, a class of `TextEnvironment` that answers
            the model, or a list of these.
        args: settings.
        train_dataset: rows with `prompt`, a text or messages, and columns for the reward functions. A list of dicts, a path of
            JSON lines or Parquet, or a `datasets.Dataset`.
        eval_dataset: rows that `evaluate` takes.
        ref_model: what the policy is kept near; None: the model as it is now, of which a LoRA needs no copy.
        peft_config: train a LoRA instead of the weights: ours, or PEFT's own.
        processing_class: TRL's name of a tokenizer; the model's own is used.

    Raises:
        ValueError: a dataset without `prompt`, empty, or with prompts that are longer than there is room for; no reward
            function; a batch that is no multiple of `num_generations`; models of different vocabularies.
    """

    def __init__(
        self,
        model: LanguageModel | str | os.PathLike,
        reward_funcs: Reward | Sequence[Reward],
        args: RLOOConfig = RLOOConfig(),
        train_dataset: Dataset = (),
        eval_dataset: Dataset | None = None,
        *,
        ref_model: LanguageModel | str | os.PathLike | None = None,
        peft_config: LoraConfig | Any | None = None,
        processing_class: Any | None = None,
    ):
        self.model, self.args = training.loaded(model, args, processing_class), args
        rewards = Rewards(reward_funcs, args.reward_weights, self.model.tokenizer, args.mesh)
        self.rollouts = Rollouts(self.model, args, train_dataset, rewards, args.num_generations)
        self.eval_rollouts = None if eval_dataset is None else Rollouts(self.model, args, eval_dataset, rewards, 1)
        self.reference = training.reference_of(self.model, ref_model, args)
        if peft_config is not None:
            training.add_lora(self.model, peft_config, args)
        apart = [self.reference] if ref_model and self.reference is not None else []
        plan.require_room("rloo", self.model.decoder, args, self.rollouts.lengths, rewards.networks + apart)
        self.log_history: list[dict[str, float]] = []

    def train(self, resume_from_checkpoint: bool | str | os.PathLike | None = None) -> LanguageModel:
        """Learn, and return the model, which is `self.model`.

        Args:
            resume_from_checkpoint: go on from this folder, or with True from the newest of `output_dir`: with the same bits
                as a run that was never stopped.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            FloatingPointError: a gradient that is not finite; the model is as it was before it, and saved.
            ValueError: a checkpoint of another model or plan, or rewards that are no numbers.
        """
        args, base, total = self.args, self.model.decoder, policy_run.total_rollouts(self.rollouts)

        def learn(state: State, decoder: Decoder, scored: Scored, number: int) -> tuple[State, loop.Report]:
            rows, report = prepare(args.arithmetic(), decoder, self.reference, scored.written, scored.reward)
            batches, learner, reports = in_batches(args, rows), state.learner, []
            for _ in range(args.num_iterations):
                learner, learned = training.step(args.arithmetic(), total * args.num_iterations, loss, learner, base, batches)
                reports.append(learned)
            return State(learner, state.step + 1), {**report, **training.mean_report(reports)}

        learner = training.start(base, training.optimiser_of(args, total * args.num_iterations))
        state = State(learner, jnp.int32(0))
        policy_run.run(self.rollouts, total, base, state, learn, policy_run.FAR, resume_from_checkpoint, self.log_history)
        return self.model

    def evaluate(self) -> dict[str, float]:
        """`eval_reward`, each function's `eval_rewards/NAME`, `eval_length` and `eval_truncated`, over `eval_dataset`.

        Raises:
            ValueError: there is none.
        """
        return policy_run.evaluated(self.eval_rollouts)

    def save_model(self, output_dir: str | os.PathLike | None = None) -> None:
        """Write the model, or its adapter where that is what was trained, to `output_dir`."""
        self.model.save_learned(output_dir or self.args.output_dir)
