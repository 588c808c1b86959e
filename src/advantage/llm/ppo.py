"""Proximal policy optimisation on tokens (Schulman et al., 2017; Ouyang et al., 2022, step 3, https://arxiv.org/abs/2203.02155).

A prompt is an episode's first observation, a token an action, and an answer the episode. It is rewarded at its last token; at
each token the policy pays for its distance from a reference. What is left are the equations of PPO in control.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from advantage.equations.divergence import steered_coefficient
from advantage.equations.objectives import clipped_surrogate, clipped_value, kl_estimate, normalised, squared_error
from advantage.equations.returns import generalised_advantage
from advantage.equations.sequences import truncated_importance
from advantage.llm import loop, lora, plan, policy_run, rollout, sharding, training
from advantage.llm.dataset import Dataset
from advantage.llm.decoder import Decoder, hidden_states
from advantage.llm.likelihood import of_targets
from advantage.llm.model import LanguageModel, load_model
from advantage.llm.rewards import Reward, Rewards
from advantage.llm.rollout import PolicyConfig, Rollouts, Scored, Written, in_batches
from advantage.llm.scorer import ActorCritic, RewardModel, Scorer, load_reward_model, read_out, untrained
from advantage.llm.training import Learner, LoraConfig


@dataclasses.dataclass(frozen=True)
class PPOConfig(PolicyConfig):
    """Settings of `PPOTrainer`, under TRL's names.

    `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches` answers make one rollout.

    Raises:
        ValueError: a setting that cannot work.
    """

    learning_rate: float | int = 3e-6  # of AdamW, at its highest
    max_completion_length: int = 53
    temperature: float | int = 0.7
    num_ppo_epochs: int = 4  # passes over each rollout
    num_mini_batches: int = 1  # gradient steps of a pass
    total_episodes: int | None = None  # answers in all, in place of epochs
    kl_coef: float | int = 0.05  # what a nat of distance from the reference costs
    target_kl: float | int | None = None  # nats an answer that kl_coef is steered to; None: it stays
    cliprange: float | int = 0.2  # how far a token's probability ratio may move
    cliprange_value: float | int | None = 0.2  # how far a value may; None: as far as it wants
    vf_coef: float | int = 0.1  # weight of the value loss
    gamma: float | int = 1.0  # discount per token
    lam: float | int = 0.95  # bias against variance of advantages
    whiten_advantages: bool = True  # over the real tokens of a rollout

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_ppo_epochs", "num_mini_batches", "total_episodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} has to be at least 1")
        for name, most in (("kl_coef", math.inf), ("vf_coef", math.inf), ("gamma", 1), ("lam", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)!r} has to be between 0 and {most}")
        for name in ("cliprange", "cliprange_value", "target_kl"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value!r} has to be above 0")

        if self.target_kl is not None and not self.kl_coef:
            raise ValueError("target_kl with kl_coef=0 steers nothing, since steps are parts of it: give kl_coef, such as 0.05")

    @property
    def gradient_steps(self) -> int:
        """Of one rollout."""
        return self.num_ppo_epochs * self.num_mini_batches


class Rows(NamedTuple):
    """What the loss reads of B answers; axes of batches may stand before B."""

    written: Written
    log_prob: Float[Array, "*parts B G"]  # by the policy that wrote them
    value: Float[Array, "*parts B G"]
    advantage: Float[Array, "*parts B G"]
    returns: Float[Array, "*parts B G"]


def loss(config: PPOConfig, policy: ActorCritic, rows: Rows) -> tuple[Array, dict[str, Array]]:
    """Clipped surrogate and value error (eq. 9), summed over the real tokens, and sums to report."""
    found = measured(config, policy, rows.written)
    there = rows.written.mask.reshape(-1)
    old, advantage, old_value, returns, log_prob, value = (
        x.reshape(-1) for x in (rows.log_prob, rows.advantage, rows.value, rows.returns, found.log_prob, found.value)
    )
    weight = truncated_importance(old, rows.written.sampled_log_prob.reshape(-1), config.importance_cap)
    surrogate = weight * clipped_surrogate(log_prob, old, advantage, config.cliprange)
    if config.cliprange_value is not None:
        value = clipped_value(value, old_value, config.cliprange_value)
    errors = squared_error(value, returns)

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(there > 0, x, 0.0))

    policy_loss, value_loss, tokens = -total(surrogate), total(errors), jnp.sum(there)
    whole = policy_loss + config.vf_coef * value_loss
    log_ratio = log_prob - old
    report = {"loss": whole, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": jnp.sum(found.entropy),
              "approx_kl": total(kl_estimate(log_ratio)), "clip_fraction": total(jnp.abs(jnp.expm1(log_ratio)) > config.cliprange),
              "importance": total(weight), "count": tokens, "tokens": tokens}  # fmt: skip
    return whole, report


class Measured(NamedTuple):
    """Of the answers' tokens; 0 behind their ends."""

    log_prob: Float[Array, "B G"]
    entropy: Float[Array, "B G"]
    value: Float[Array, "B G"]  # of what stands before each


def measured(config: PPOConfig, policy: ActorCritic, written: Written) -> Measured:
    """Log-probabilities, entropies and values, in one pass where both share a trunk."""
    first = written.tokens.shape[1] - written.mask.shape[1]

    def states(decoder: Decoder) -> Array:
        return hidden_states(decoder, written.tokens[:, :-1], written.start, config.gradient_checkpointing)[:, first - 1 :]

    hidden = states(policy.decoder)
    found = of_targets(policy.decoder, hidden, written.tokens[:, first:], config.temperature)
    value = read_out(policy.score, hidden if policy.trunk is None else states(policy.trunk))
    return Measured(*(jnp.where(written.mask > 0, x, 0.0) for x in (*found, value)))


@functools.partial(jax.jit, static_argnames="config")
def prepare(
    config: PPOConfig, policy: ActorCritic, reference: Decoder, written: Written, reward: Array, kl_coef: Array
) -> tuple[Rows, dict[str, Array]]:
    """Advantages of all tokens under the policy that wrote them, and what to report."""
    computing = training.computing(config, policy)
    parts = jax.lax.map(lambda part: measured(config, computing, part), in_batches(config, written))
    found = jax.tree.map(lambda x: x.reshape(written.mask.shape), parts)
    reference_log_prob = rollout.log_probs_in_batches(config, reference, written)
    rewards = token_rewards(found.log_prob, reference_log_prob, written.mask, reward, kl_coef)
    advantage, returns = advantages(config, rewards, found.value, written.mask)
    report = rollout.kl_report(found.log_prob, reference_log_prob, written.mask)
    report |= {"rollout/gap": rollout.gap(found.log_prob, written), "rollout/kl_coef": kl_coef,
               "rollout/reward_less_kl": jnp.mean(jnp.sum(rewards, axis=1))}  # fmt: skip
    return Rows(written, found.log_prob, found.value, advantage, returns), report


def token_rewards(
    log_prob: Float[Array, "B G"], reference: Float[Array, "B G"], mask: Float[Array, "B G"], reward: Float[Array, " B"], kl_coef: Array
) -> Float[Array, "B G"]:
    """`-kl_coef log(policy / reference)` at each token, and the reward at the last (Ziegler et al., 2019, eq. 2)."""
    return last_of(mask) * reward[:, None] - kl_coef * (log_prob - reference) * mask


def last_of(mask: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """1 at each answer's last token, be there others between its tokens or not."""
    return mask * (jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1)


def advantages(
    config: PPOConfig, rewards: Float[Array, "B G"], value: Float[Array, "B G"], mask: Float[Array, "B G"]
) -> tuple[Float[Array, "B G"], Float[Array, "B G"]]:
    """`(advantages, returns)` of answers, each an episode that ends with its last token.

    Its steps are the model's own tokens: what it was told between them is part of what it sees next.
    """
    order = jnp.argsort(mask == 0, axis=1, stable=True)  # own tokens first, and in their order
    rewards, value, mask = (jnp.take_along_axis(x, order, axis=1) for x in (rewards, value, mask))
    found, returns = _advantages(config, rewards, value, mask)
    back = jnp.argsort(order, axis=1)
    return jnp.take_along_axis(found, back, axis=1), jnp.take_along_axis(returns, back, axis=1)


def _advantages(config: PPOConfig, rewards: Array, value: Array, mask: Array) -> tuple[Array, Array]:
    """The same of answers without gaps."""
    following = jnp.pad(value[:, 1:], ((0, 0), (0, 1)))  # values behind an end are 0
    ended = (last_of(mask) > 0) | (mask == 0)
    found = generalised_advantage(rewards.T, value.T, following.T, ended.T, config.gamma, config.lam).T * mask
    returns = found + value
    if config.whiten_advantages:
        found = normalised(found.reshape(-1), mask.reshape(-1)).reshape(mask.shape) * mask
    return found, returns


class State(NamedTuple):
    """All that a run needs to go on."""

    learner: Learner
    step: Int[Array, ""]  # rollouts so far
    kl_coef: Float[Array, ""]


class PPOTrainer:
    """Teaches a model to write answers that are rewarded, near to where it began.

    Args:
        model: a `LanguageModel`, or the path of one.
        reward_funcs: what an answer is worth: a function `f(prompts, completions, completion_ids, **columns)` that returns a
            number for each (or takes some of these), a `RewardModel`, the path of one, a class of `TextEnvironment` that answers
            the model, or a list of these.
        args: settings.
        train_dataset: rows with `prompt`, a text or messages, and columns for the reward functions. A list of dicts, a path of
            JSON lines or Parquet, or a `datasets.Dataset`.
        eval_dataset: rows that `evaluate` takes.
        reward_model: another name for a single one of `reward_funcs`.
        ref_model: what the policy is kept near; None: the model as it is now, of which a LoRA needs no copy.
        value_model: whose hidden states values are read from; None: the policy's own.
        peft_config: train a LoRA instead of the weights: ours, or PEFT's own.
        processing_class: TRL's name of a tokenizer; the model's own is used.

    Raises:
        ValueError: a dataset without `prompt`, empty, or with prompts that are longer than there is room for; no reward
            function; models of different vocabularies.
    """

    def __init__(
        self,
        model: LanguageModel | str | os.PathLike,
        reward_funcs: Reward | Sequence[Reward] | None = None,
        args: PPOConfig = PPOConfig(),
        train_dataset: Dataset = (),
        eval_dataset: Dataset | None = None,
        *,
        reward_model: RewardModel | str | os.PathLike | None = None,
        ref_model: LanguageModel | str | os.PathLike | None = None,
        value_model: RewardModel | LanguageModel | str | os.PathLike | None = None,
        peft_config: LoraConfig | Any | None = None,
        processing_class: Any | None = None,
    ):
        if reward_model is not None and reward_funcs is not None:
            raise ValueError("reward_model and reward_funcs are given: put both in reward_funcs=[...]")
        reward_funcs = reward_model if reward_funcs is None else reward_funcs
        self.model, self.args = training.loaded(model, args, processing_class), args
        rewards = Rewards(reward_funcs, args.reward_weights, self.model.tokenizer, args.mesh)
        self.rollouts = Rollouts(self.model, args, train_dataset, rewards, 1, args.num_mini_batches)
        self.eval_rollouts = None if eval_dataset is None else Rollouts(self.model, args, eval_dataset, rewards, 1, args.num_mini_batches)
        self.reference = training.reference_of(self.model, ref_model, args)
        critic = _critic(self.model, value_model)
        if peft_config is not None:
            training.add_lora(self.model, peft_config, args)
        policy = ActorCritic(self.model.decoder, critic.score, None if value_model is None else critic.decoder)
        self.policy = sharding.placed(args.mesh, policy)
        plan.require_room("ppo", self.policy, args, self.rollouts.lengths, rewards.networks + ([self.reference] if ref_model else []))
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
        args, base, total = self.args, self.policy, self._total()

        def learn(state: State, policy: ActorCritic, scored: Scored, number: int) -> tuple[State, loop.Report]:
            rows, report = prepare(args.arithmetic(), policy, self.reference, scored.written, scored.reward, state.kl_coef)
            learner, reports = state.learner, []
            for order in orders(args, number, self.rollouts.answers):
                batches = in_batches(args, jax.tree.map(lambda x, order=order: x[order], rows))
                learner, learned = training.step(args.arithmetic(), total * args.gradient_steps, loss, learner, base, batches)
                reports.append(learned)
            kl_coef = state.kl_coef if args.target_kl is None else steered_coefficient(state.kl_coef, report["rollout/kl"], args.target_kl)
            return State(learner, state.step + 1, kl_coef), {**report, **training.mean_report(reports)}

        learner = training.start(base, training.optimiser_of(args, total * args.gradient_steps))
        state = State(learner, jnp.int32(0), jnp.float32(args.kl_coef))
        budget = policy_run.FAR if args.target_kl is None else 2 * args.target_kl
        self.policy = policy_run.run(self.rollouts, total, base, state, learn, budget, resume_from_checkpoint, self.log_history)
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

    def _total(self) -> int:
        """Rollouts of a whole run."""
        episodes = self.args.total_episodes
        return policy_run.total_rollouts(self.rollouts) if episodes is None else math.ceil(episodes / self.rollouts.answers)


def orders(args: PPOConfig, number: int, answers: int) -> list[Int[np.ndarray, " B"]]:
    """Which answers each gradient step of a rollout has: in every pass each once."""
    draw = np.random.default_rng([args.seed, number, 1])
    return [part for _ in range(args.num_ppo_epochs) for part in np.split(draw.permutation(answers), args.num_mini_batches)]


def _critic(model: LanguageModel, value_model: RewardModel | LanguageModel | str | os.PathLike | None) -> Scorer:
    """A value function that finds everything 0, or that of a reward model."""
    if value_model is None:
        return untrained(model.decoder)
    value_model = load_reward_model(value_model) if isinstance(value_model, str | os.PathLike) else value_model
    scorer = value_model.scorer if isinstance(value_model, RewardModel) else untrained(value_model.decoder)
    training.check_fits("value_model", value_model.model if isinstance(value_model, RewardModel) else value_model, model)
    # An adapter of its own would say that nothing else is to learn.
    return Scorer(lora.merged(scorer.decoder), scorer.score)
