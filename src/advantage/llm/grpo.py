"""Group-relative policy optimisation (Shao et al., 2024, https://arxiv.org/abs/2402.03300): PPO's surrogate without a value function.

Each prompt is answered several times, and an answer is as good as it is better than the others of its group. The losses are the
paper's and those that came after it; they differ in how tokens are weighed and what is clipped, and each is a function of its own.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from advantage.equations.objectives import clipped_surrogate, kl_estimate
from advantage.equations.sequences import (
    asymmetric_surrogate,
    centred_in_groups,
    normalised_in_groups,
    of_whole_answers,
    truncated_importance,
)
from advantage.llm import loop, plan, policy_run, rollout, training
from advantage.llm.dataset import Dataset
from advantage.llm.decoder import Decoder
from advantage.llm.model import LanguageModel
from advantage.llm.rewards import Reward, Rewards
from advantage.llm.rollout import PolicyConfig, Rollouts, Scored, Written, in_batches, log_probs
from advantage.llm.training import Learner, LoraConfig

Surrogate = Callable[[Array, Array, Array], tuple[Array, Array]]
"""Of log-probabilities, those of the policy that wrote, and advantages, `[B]`: what is to become large, and which ratios are clipped."""


@dataclasses.dataclass(frozen=True)
class GRPOConfig(PolicyConfig):
    """Settings of `GRPOTrainer`, under TRL's names.

    Raises:
        ValueError: a setting that cannot work.
    """

    learning_rate: float | int = 1e-6  # of AdamW, at its highest
    num_generations: int = 8  # answers to each prompt
    num_iterations: int = 1  # gradient steps on the same answers
    beta: float | int = 0.0  # what a nat of distance from the reference costs; 0: there is no reference
    epsilon: float | int = 0.2  # how far a probability ratio may fall, and rise
    epsilon_high: float | int | None = None  # how far it may rise, with "dapo" and "gspo"; None: 0.28 and epsilon
    loss_type: str | Callable[..., Any] = "dapo"  # of `LOSSES`, or a function like these
    scale_rewards: str | bool | None = None  # "group": divided by their group's deviation, or "none"; None: as in the loss's paper
    mask_truncated_completions: bool = False  # answers that were cut teach nothing

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.num_generations, int) or self.num_generations < 2:
            raise ValueError(f"num_generations={self.num_generations} has to be a whole number of at least 2: an answer is compared with others to its prompt")
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations={self.num_iterations} has to be at least 1")
        if not self.beta >= 0:
            raise ValueError(f"beta={self.beta!r} has to be at least 0")
        for name in ("epsilon", "epsilon_high"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} has to be above 0")
        if not callable(self.loss_type) and self.loss_type not in LOSSES:
            raise ValueError(f"loss_type={self.loss_type!r} is not known: choose from {', '.join(LOSSES)}, or give a function")
        if self.scale_rewards not in (None, True, False, "group", "none"):
            raise ValueError(f"scale_rewards={self.scale_rewards!r} is not known: choose from group, none")

    def high(self, default: float | int) -> float | int:
        """How far a ratio may rise."""
        return default if self.epsilon_high is None else self.epsilon_high


class Rows(NamedTuple):
    """What the losses read of B answers; axes of batches may stand before B."""

    written: Written
    log_prob: Float[Array, "*parts B G"] | None  # by the policy that wrote them; None: it is the one that learns
    reference: Float[Array, "*parts B G"] | None  # None: there is no penalty
    advantage: Float[Array | np.ndarray, "*parts B"]


def grpo_loss(config: GRPOConfig, decoder: Decoder, rows: Rows) -> tuple[Array, dict[str, Array]]:
    """Shao et al. (2024), eq. 3: a mean over answers of means over their tokens."""

    def surrogate(log_prob: Array, old: Array, advantage: Array) -> tuple[Array, Array]:
        found = clipped_surrogate(log_prob, old, advantage, config.epsilon)
        return found, _outside(log_prob - old, config.epsilon, config.epsilon)

    terms, report = _terms(config, decoder, rows, surrogate)
    return _mean_over_answers(terms, rows.written.mask, report)


def dr_grpo_loss(config: GRPOConfig, decoder: Decoder, rows: Rows) -> tuple[Array, dict[str, Array]]:
    """Liu et al. (2025, https://arxiv.org/abs/2503.20783), algorithm 1: every token weighs the same, however long its answer."""

    def surrogate(log_prob: Array, old: Array, advantage: Array) -> tuple[Array, Array]:
        found = clipped_surrogate(log_prob, old, advantage, config.epsilon)
        return found, _outside(log_prob - old, config.epsilon, config.epsilon)

    terms, report = _terms(config, decoder, rows, surrogate)
    loss = -jnp.sum(terms) / config.max_completion_length
    return loss, {**report, "loss": loss, "count": jnp.float32(len(terms))}


def dapo_loss(config: GRPOConfig, decoder: Decoder, rows: Rows) -> tuple[Array, dict[str, Array]]:
    """Yu et al. (2025, https://arxiv.org/abs/2503.14476), eq. 8: a mean over all tokens, and more room upwards."""

    high = config.high(0.28)

    def surrogate(log_prob: Array, old: Array, advantage: Array) -> tuple[Array, Array]:
        found = asymmetric_surrogate(log_prob, old, advantage, config.epsilon, high)
        return found, _outside(log_prob - old, config.epsilon, high)

    terms, report = _terms(config, decoder, rows, surrogate)
    loss = -jnp.sum(terms)
    return loss, {**report, "loss": loss, "count": report["tokens"]}


def gspo_loss(config: GRPOConfig, decoder: Decoder, rows: Rows) -> tuple[Array, dict[str, Array]]:
    """Zheng et al. (2025, https://arxiv.org/abs/2507.18071), eq. 5: the ratio is that of whole answers, to the power of 1 / length.

    It moves much less than a token's: the paper has epsilon=3e-4 and epsilon_high=4e-4.
    """
    mask, high = rows.written.mask, config.high(config.epsilon)

    def surrogate(log_prob: Array, old: Array, advantage: Array) -> tuple[Array, Array]:
        ratio = of_whole_answers((log_prob - old).reshape(mask.shape), mask).reshape(-1)
        found = asymmetric_surrogate(ratio, jnp.zeros_like(ratio), advantage, config.epsilon, high)
        return found, _outside(ratio, config.epsilon, high)

    terms, report = _terms(config, decoder, rows, surrogate)
    return _mean_over_answers(terms, mask, report)


LOSSES = {"grpo": grpo_loss, "dr_grpo": dr_grpo_loss, "dapo": dapo_loss, "gspo": gspo_loss}
"""By TRL's names."""


def _terms(config: GRPOConfig, decoder: Decoder, rows: Rows, surrogate: Surrogate) -> tuple[Float[Array, "B G"], dict[str, Array]]:
    """The surrogate less the penalty at each token, 0 behind the ends, and sums to report."""
    written = rows.written
    log_prob, entropy = log_probs(config, decoder, written)
    old = jax.lax.stop_gradient(log_prob) if rows.log_prob is None else rows.log_prob
    advantage = jnp.broadcast_to(rows.advantage[:, None], log_prob.shape)
    weight = truncated_importance(old, written.sampled_log_prob, config.importance_cap) * written.mask
    found, clipped = (x.reshape(log_prob.shape) for x in surrogate(log_prob.reshape(-1), old.reshape(-1), advantage.reshape(-1)))
    terms = weight * found
    tokens = jnp.sum(written.mask)
    report = {"entropy": jnp.sum(entropy), "importance": jnp.sum(weight), "tokens": tokens,
              "gap": jnp.sum(jnp.abs(old - written.sampled_log_prob) * written.mask),
              "clip_fraction": jnp.sum(clipped * written.mask)}  # fmt: skip
    if rows.reference is not None:
        apart = kl_estimate((rows.reference - log_prob).reshape(-1)).reshape(log_prob.shape)  # k3, whose gradient is that of the KL
        terms = terms - config.beta * apart * written.mask
        report |= {"kl": jnp.sum((log_prob - rows.reference) * written.mask), "kl_k3": jnp.sum(apart * written.mask)}
    return terms, report


def _mean_over_answers(terms: Float[Array, "B G"], mask: Float[Array, "B G"], report: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Each answer's mean counts once, as 0 where it is to teach nothing."""
    loss = -jnp.sum(jnp.sum(terms, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1.0))
    return loss, {**report, "loss": loss, "count": jnp.float32(len(terms))}


def _outside(log_ratio: Float[Array, " B"], low: float | int, high: float | int) -> Float[Array, " B"]:
    """1 where a ratio is beyond the clip."""
    moved = jnp.expm1(log_ratio)
    return ((moved < -low) | (moved > high)).astype(jnp.float32)


class State(NamedTuple):
    """All that a run needs to go on."""

    learner: Learner
    step: Int[Array, ""]  # rollouts so far


class GRPOTrainer:
    """Teaches a model to write answers that are better than its other answers to the same prompt.

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
        args: GRPOConfig = GRPOConfig(),
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
        self.reference = training.reference_of(self.model, ref_model, args) if args.beta else None
        if peft_config is not None:
            training.add_lora(self.model, peft_config, args)
        apart = [self.reference] if ref_model and self.reference is not None else []
        plan.require_room("grpo", self.model.decoder, args, self.rollouts.lengths, rewards.networks + apart)
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
        loss = LOSSES[args.loss_type] if isinstance(args.loss_type, str) else args.loss_type

        def learn(state: State, decoder: Decoder, scored: Scored, number: int) -> tuple[State, loop.Report]:
            batches = in_batches(args, self._rows(decoder, scored))
            learner, reports = state.learner, []
            for _ in range(args.num_iterations):
                learner, report = training.step(args.arithmetic(), total * args.num_iterations, loss, learner, base, batches)
                reports.append(report)
            return State(learner, state.step + 1), in_answers(training.mean_report(reports), reports[0], scored)

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

    def _rows(self, decoder: Decoder, scored: Scored) -> Rows:
        """Advantages, and what the losses compare with."""
        args, written = self.args, scored.written
        config = args.arithmetic()
        if args.mask_truncated_completions:
            written = written._replace(mask=written.mask * scored.ended[:, None])
        advantage = np.asarray(_advantage_of(args)(jnp.asarray(scored.reward), args.num_generations))
        old = None if args.num_iterations == 1 else _log_probs(config, decoder, written)
        return Rows(written, old, None if self.reference is None else _log_probs(config, self.reference, written), advantage)


_log_probs = jax.jit(rollout.log_probs_in_batches, static_argnames="config")


def _advantage_of(args: GRPOConfig) -> Callable[[Array, int], Array]:
    """How rewards become advantages."""
    scaled = args.loss_type != "dr_grpo" if args.scale_rewards is None else args.scale_rewards in (True, "group")
    return normalised_in_groups if scaled else centred_in_groups


def in_answers(report: loop.Report, first: loop.Report, scored: Scored) -> loop.Report:
    """The KL in nats an answer and not a token, before the first gradient step; and what belongs to the rollout under its name."""
    tokens = float(scored.written.mask.sum())
    found = {name: value for name, value in report.items() if name not in ("kl", "kl_k3", "gap")}
    per_answer = {f"rollout/{name}": first[name] * tokens / len(scored.reward) for name in ("kl", "kl_k3") if name in first}
    return {**per_answer, "rollout/gap": first["gap"], **found}
