"""What a policy that is trained on its own answers needs: prompts in, scored answers out, and numbers that say how it goes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from advantage.equations.objectives import kl_estimate, masked_mean
from advantage.llm import training
from advantage.llm.dataset import Dataset, read_rows, require
from advantage.llm.decoder import Decoder
from advantage.llm.dialogue import Conversation, Table
from advantage.llm.generate import Generation, GenerationConfig, Key, bucket, check, padded_left
from advantage.llm.likelihood import likelihood
from advantage.llm.model import LanguageModel
from advantage.llm.rewards import Asked, Rewards
from advantage.llm.training import TrainingConfig



@dataclasses.dataclass(frozen=True)
class PolicyConfig(TrainingConfig):
    """Settings of every trainer that learns from a policy's own answers, under TRL's names.

    `per_device_train_batch_size * gradient_accumulation_steps` answers make one gradient step.

    Raises:
        ValueError: a setting that cannot work.
    """

    max_completion_length: int = 256  # tokens of an answer at most
    max_prompt_length: int | None = None  # tokens of a prompt at most; None: what the context has room for
    truncate_prompts: bool = False  # of longer prompts the end is kept; False: refused
    temperature: float | int = 1.0  # of what is drawn, and so of the policy that learns
    stop_strings: tuple[str, ...] | list[str] | str | None = ()  # an answer ends with any of these
    missing_eos_penalty: float | int | None = None  # taken from the reward of an answer that was cut, or of a conversation
    reward_weights: tuple[float | int, ...] | list[float | int] | None = None  # of several reward functions; None: 1 each
    importance_cap: float | int = 2.0  # how much a token counts at most that the sampler found less likely than the trainer
    max_turns: int = 8  # answers of a conversation at most, where an environment answers; each of max_completion_length at most
    num_completions_to_print: int = 2  # answers shown with each row of the log

    def __post_init__(self):
        super().__post_init__()
        GenerationConfig(max_new_tokens=self.max_completion_length, stop_strings=self.stop_strings)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature!r} has to be above 0: a policy that always does the same learns nothing")
        if self.max_prompt_length is not None and self.max_prompt_length < 1:
            raise ValueError(f"max_prompt_length={self.max_prompt_length} has to be at least 1, or None")
        if self.max_turns < 1:
            raise ValueError(f"max_turns={self.max_turns} has to be at least 1")
        if not self.importance_cap >= 1:
            raise ValueError(f"importance_cap={self.importance_cap!r} has to be at least 1")
        object.__setattr__(self, "stop_strings", GenerationConfig(stop_strings=self.stop_strings).stop_strings)
        if self.reward_weights is not None:
            object.__setattr__(self, "reward_weights", tuple(self.reward_weights))

    def arithmetic(self) -> PolicyConfig:
        """See `TrainingConfig.arithmetic`."""
        return dataclasses.replace(super().arithmetic(), num_completions_to_print=0)

    @property
    def generation(self) -> GenerationConfig:
        """How answers are written."""
        return GenerationConfig(self.max_completion_length, temperature=self.temperature, stop_strings=self.stop_strings)


class Written(NamedTuple):
    """B answers of at most G tokens behind prompts of P slots; axes of batches may stand before B."""

    tokens: Int[Array | np.ndarray, "*parts B PG"]  # prompt and answer
    start: Int[Array | np.ndarray, "*parts B"]  # where each prompt begins
    mask: Float[Array | np.ndarray, "*parts B G"]  # 1 for tokens that the model wrote; those that it was told may lie between
    sampled_log_prob: Float[Array | np.ndarray, "*parts B G"]  # of each token, by what it was drawn from


class Scored(NamedTuple):
    """Answers and what they are worth."""

    written: Written
    reward: Float[np.ndarray, " B"]
    ended: Bool[np.ndarray, " B"]  # by themselves
    report: dict[str, float]


class Answers(NamedTuple):
    """Answers that are not judged yet."""

    written: Written
    asked: Asked
    ended: Bool[np.ndarray, " B"]
    more: dict[str, float]  # to report


class Sample(NamedTuple):
    """An answer to be read."""

    prompt: Any
    completion: str
    reward: float


class Rollouts:
    """Prompts of a dataset in, scored answers out.

    Args:
        model: whose prompts, and how they are written.
        args: settings.
        dataset: rows with `prompt`, a text or messages; other columns are given to the reward functions.
        rewards: what answers are worth.
        group: answers to each prompt.

    Raises:
        ValueError: no rows, rows without `prompt`, prompts that are longer than there is room for, a reward function
            that wants other columns or reads less, or a batch that is no multiple of the group.
    """

    def __init__(
        self, model: LanguageModel, args: PolicyConfig, dataset: Dataset, rewards: Rewards, group: int, batches: int = 1
    ):
        self.model, self.args, self.group, self.rewards = model, args, group, rewards
        self.rows = read_rows(dataset)
        require(self.rows, ("prompt",))
        rewards.check_columns(self.rows)
        self.table = self._table()
        self.prompts = self._encoded() if self.table is None else self.table.check(self.rows)
        self.answers = args.batch_size * args.gradient_accumulation_steps * batches
        if self.answers % group:
            raise ValueError(
                f"the {self.answers} answers of a step (per_device_train_batch_size * gradient_accumulation_steps, on all devices) are no multiple of "
                f"num_generations={group}: choose them so that every prompt of a step gets all its answers"
            )
        check(model.decoder, self.prompts, args.generation, model.tokenizer.eos_ids)
        rewards.check_context(max(map(len, self.prompts)) + args.max_completion_length)
        self.samples: list[Sample] = []

    def _encoded(self) -> list[list[int]]:
        """Each row's prompt as it is."""
        rows = enumerate(self.rows)
        return [_fitted(f"prompt {number}", self.model.encode(row["prompt"]), self.model.decoder, self.args) for number, row in rows]

    def _table(self) -> Table | None:
        """Where the environment answers, if there is one. No conversation is longer than policy and reward models can read."""
        if self.rewards.environment is None:
            return None
        decoder, args = self.model.decoder, self.args
        context = min(network.config.max_position_embeddings for network in [decoder, *self.rewards.networks])
        fitted = functools.partial(_fitted, "the prompt", decoder=decoder, args=args)
        return Table(self.model, self.rewards.environment, args.generation, args.max_turns, context, fitted)

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of a prompt and of an answer at most; of a conversation of its answers, without what is said to them."""
        prompt, turns = max(map(len, self.prompts)), 1 if self.table is None else self.args.max_turns
        return prompt, min(turns * self.args.max_completion_length, self.model.decoder.config.max_position_embeddings - prompt)

    @property
    def per_epoch(self) -> int:
        """Steps in which every prompt is answered."""
        return max(-(-len(self.rows) * self.group // self.answers), 1)

    def at(self, decoder: Decoder, step: int) -> Scored:
        """The answers of a step: the same for the same weights, step and seed."""
        chosen = [row for row in self._rows_of(step) for _ in range(self.group)]
        return self._answered(decoder, chosen, jax.random.fold_in(jax.random.key(self.args.seed), step))

    def evaluated(self, decoder: Decoder) -> dict[str, float]:
        """Means over one answer to every prompt, drawn as in training."""
        sums: dict[str, float] = {}
        for first in range(0, len(self.rows), self.answers):
            chosen = list(range(len(self.rows)))[first : first + self.answers]
            found = self._answered(decoder, chosen, jax.random.fold_in(jax.random.key(self.args.seed), first))
            for name, value in found.report.items():
                sums[name] = sums.get(name, 0.0) + value * len(chosen)
        wanted = {name: name.removeprefix("rollout/") for name in sums if name != "rollout/reward_std"}
        return {f"eval_{short}": sums[name] / len(self.rows) for name, short in wanted.items()}

    def _answered(self, decoder: Decoder, chosen: Sequence[int], key: Key) -> Scored:
        """An answer to each of these rows."""
        written, asked, ended, more = self._alone(decoder, chosen, key) if self.table is None else self._in_turns(self.table, decoder, chosen, key)
        reward, by_function = self.rewards(asked)
        if self.args.missing_eos_penalty is not None:
            reward = np.where(ended, reward, reward - self.args.missing_eos_penalty).astype(np.float32)
        self.samples = [Sample(row["prompt"], text, float(r)) for row, text, r in zip(asked.rows, asked.texts, reward, strict=True)]
        report = {"reward": float(reward.mean()), "reward_std": float(reward.std()), "length": float(written.mask.sum() / len(chosen)),
                  "truncated": float(1.0 - ended.mean()), **more, **{f"rewards/{name}": mean for name, mean in by_function.items()}}  # fmt: skip
        return Scored(written, reward, ended, {f"rollout/{name}": value for name, value in report.items()})

    def _alone(self, decoder: Decoder, chosen: Sequence[int], key: Key) -> Answers:
        """One answer each, and no more."""
        rows, prompts = [self.rows[row] for row in chosen], [self.prompts[row] for row in chosen]
        found = self.model.continued(decoder, prompts, self.args.generation, key)
        answers = found.answers()
        texts = [self.model.tokenizer.continuation(*pair) for pair in zip(prompts, answers, strict=True)]
        return Answers(_trimmed(found), Asked(rows, prompts, answers, texts), found.ended, {})

    def _in_turns(self, table: Table, decoder: Decoder, chosen: Sequence[int], key: Key) -> Answers:
        """What was said in turns with the environment."""
        rows = [self.rows[row] for row in chosen]
        talks = table.hold(decoder, rows, key)
        asked = Asked(
            rows, [talk.prompt for talk in talks], [talk.tokens for talk in talks], [talk.text for talk in talks],
            [talk.messages for talk in talks], [talk.reward for talk in talks], [talk.asked for talk in talks],
        )  # fmt: skip
        turns = float(np.mean([talk.turns for talk in talks]))
        return Answers(_side_by_side(talks), asked, np.array([talk.ended for talk in talks]), {"turns": turns})

    def _rows_of(self, step: int) -> list[int]:
        """The prompts of a step: each once in as many steps as it takes, in an order of its own every time."""
        count, wanted = len(self.rows), self.answers // self.group
        places = range(step * wanted, (step + 1) * wanted)
        orders = {place // count for place in places}
        order = {epoch: np.random.default_rng([self.args.seed, epoch]).permutation(count) for epoch in orders}
        return [int(order[place // count][place % count]) for place in places]


def _trimmed(found: Generation) -> Written:
    """As few columns as the longest answer needs, of few lengths, so that few programs are compiled."""
    columns = min(bucket(int(found.length.max())), found.log_prob.shape[1])
    mask = (np.arange(columns)[None] < found.length[:, None]).astype(np.float32)
    return Written(found.tokens[:, : found.prompt_slots + columns], found.start, mask, found.sampled_log_prob[:, :columns])


def _side_by_side(talks: Sequence[Conversation]) -> Written:
    """Conversations as answers in which some tokens do not count."""
    longest = max(max(len(talk.tokens) for talk in talks), 1)
    before, start = padded_left([talk.prompt for talk in talks], bucket(max(len(talk.prompt) for talk in talks)))

    def behind(rows: Sequence[Sequence[Any]], kind: type) -> np.ndarray:
        found = np.zeros((len(talks), bucket(longest)), kind)
        for number, row in enumerate(rows):
            found[number, : len(row)] = row
        return found

    tokens = np.concatenate([before, behind([talk.tokens for talk in talks], np.int32)], axis=1)
    return Written(tokens, start, behind([talk.own for talk in talks], np.float32), behind([talk.log_prob for talk in talks], np.float32))


def _fitted(name: str, prompt: list[int], decoder: Decoder, args: PolicyConfig) -> list[int]:
    """The prompt's tokens, of which the last are kept where that is wanted."""
    context = decoder.config.max_position_embeddings
    room = context - args.max_completion_length
    if room < 1:
        raise ValueError(f"max_completion_length={args.max_completion_length} leaves no room for a prompt in a context of {context}")
    longest = room if args.max_prompt_length is None else min(room, args.max_prompt_length)
    if len(prompt) > longest and not args.truncate_prompts:
        raise ValueError(
            f"{name} has {len(prompt)} tokens, and there is room for {longest} by max_prompt_length={args.max_prompt_length} and a "
            f"context of {context} with max_completion_length={args.max_completion_length}: shorten it, or give truncate_prompts=True, "
            "which keeps its end"
        )
    return prompt[-longest:]


# -- what trainers compute of answers -----------------------------------------------------------------


def in_batches(args: PolicyConfig, tree: Any) -> Any:
    """Rows `[B, ...]` as batches that pass the network at once, `[parts, rows, ...]`."""
    return jax.tree.map(lambda x: x.reshape((-1, args.batch_size, *x.shape[1:])), tree)


def log_probs(config: PolicyConfig, decoder: Decoder, written: Written) -> tuple[Float[Array, "B G"], Float[Array, "B G"]]:
    """`(log-probabilities, entropies)` of the answers' tokens; 0 behind their ends."""
    first = written.tokens.shape[1] - written.mask.shape[1]
    found = likelihood(decoder, written.tokens, written.start, first, config.temperature, config.gradient_checkpointing)
    there = written.mask > 0
    return jnp.where(there, found.log_prob, 0.0), jnp.where(there, found.entropy, 0.0)


def log_probs_in_batches(config: PolicyConfig, decoder: Decoder, written: Written) -> Float[Array, "B G"]:
    """The log-probabilities alone, a batch at a time, in the precision that the loss computes in."""
    decoder = training.computing(config, decoder)
    found = jax.lax.map(lambda part: log_probs(config, decoder, part)[0], in_batches(config, written))
    return found.reshape(written.mask.shape)


def kl_report(log_prob: Float[Array, "B G"], reference: Float[Array, "B G"], mask: Float[Array, "B G"]) -> dict[str, Array]:
    """The distance from the reference in nats an answer, by two estimators (Schulman, 2020, http://joschu.net/blog/kl-approx.html)."""
    k1 = jnp.mean(jnp.sum((log_prob - reference) * mask, axis=1))
    k3 = jnp.mean(jnp.sum(kl_estimate((reference - log_prob).reshape(-1)).reshape(mask.shape) * mask, axis=1))
    return {"rollout/kl": k1, "rollout/kl_k3": k3}


def gap(log_prob: Float[Array, "B G"], written: Written) -> Float[Array, ""]:
    """The mean difference, in size, between the trainer's and the sampler's log-probability of a token."""
    return masked_mean(jnp.abs(log_prob - written.sampled_log_prob), written.mask)
