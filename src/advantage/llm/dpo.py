"""Direct preference optimisation (Rafailov et al., 2023, https://arxiv.org/abs/2305.18290): preferences without a reward model."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from advantage.equations.preferences import direct_preference
from advantage.llm import loop, plan, sharding, training
from advantage.llm.dataset import Dataset
from advantage.llm.decoder import Decoder, hidden_states
from advantage.llm.likelihood import of_targets
from advantage.llm.model import LanguageModel
from advantage.llm.preferences import Pair, Pairs, batches_of, longest, pairs_of
from advantage.llm.training import Learner, LoraConfig, TrainingConfig


@dataclasses.dataclass(frozen=True)
class DPOConfig(TrainingConfig):
    """Settings of `DPOTrainer`, under TRL's names.

    Raises:
        ValueError: a setting that cannot work.
    """

    learning_rate: float | int = 1e-6  # of AdamW, at its highest
    beta: float | int = 0.1  # how much a nat of distance from the reference counts
    max_length: int = 1024  # tokens of prompt and answer at most; no more than the model's context
    truncate: bool = False  # longer ones are cut; False: refused

    def __post_init__(self):
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta!r} has to be above 0: with 0 every policy is as good as any other")
        if self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} has to be at least 2: a token is told by the one before it")


class ComparedPair(NamedTuple):
    """A pair, and how likely the reference finds its answers."""

    pair: Pair
    chosen: float
    rejected: float


class Compared(NamedTuple):
    """A batch of them."""

    pairs: Pairs
    reference_chosen: Float[Array | np.ndarray, "*parts B"]
    reference_rejected: Float[Array | np.ndarray, "*parts B"]


def preference_loss(config: DPOConfig, decoder: Decoder, batch: Compared) -> tuple[Array, dict[str, Array]]:
    """The loss of eq. 7, summed over the pairs, and sums to report."""
    chosen, rejected = answers_log_prob(decoder, batch.pairs, config.gradient_checkpointing)
    losses = direct_preference(chosen, rejected, batch.reference_chosen, batch.reference_rejected, config.beta)
    rewards = config.beta * (chosen - batch.reference_chosen), config.beta * (rejected - batch.reference_rejected)
    there = batch.pairs.chosen_length > 0

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(there, x, 0.0))

    loss, pairs = total(losses), total(jnp.ones(there.shape))
    report = {"loss": loss, "rewards/accuracies": total(rewards[0] > rewards[1]), "rewards/margins": total(rewards[0] - rewards[1]),
              "rewards/chosen": total(rewards[0]), "rewards/rejected": total(rewards[1]), "logps/chosen": total(chosen),
              "logps/rejected": total(rejected), "count": pairs, "tokens": pairs}  # fmt: skip
    return loss, report


def answers_log_prob(decoder: Decoder, pairs: Pairs, remat: bool = False) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """`log p(answer | prompt)` of the chosen and of the rejected."""
    tokens = jnp.concatenate([pairs.chosen, pairs.rejected])
    answer = jnp.concatenate([pairs.chosen_answer, pairs.rejected_answer])
    hidden = hidden_states(decoder, tokens[:, :-1], jnp.zeros(tokens.shape[0], jnp.int32), remat)
    log_prob = of_targets(decoder, hidden, tokens[:, 1:]).log_prob
    chosen, rejected = jnp.split(jnp.sum(jnp.where(answer[:, 1:], log_prob, 0.0), axis=1), 2)
    return chosen, rejected


@functools.partial(jax.jit, static_argnames="config")
def _reference(config: DPOConfig, decoder: Decoder, pairs: Pairs) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    return answers_log_prob(training.computing(config, decoder), pairs)


class DPOTrainer:
    """Teaches a model to prefer the chosen answers by as much as keeps it near where it began.

    Args:
        model: a `LanguageModel`, or the path of one.
        ref_model: what it is kept near; None: the model as it is now.
        args: settings.
        train_dataset: rows with `chosen` and `rejected`: whole texts or messages; or what follows their `prompt`. A list of
            dicts, a path of JSON lines or Parquet, or a `datasets.Dataset`.
        eval_dataset: rows that `evaluate` takes.
        peft_config: train a LoRA instead of the weights: ours, or PEFT's own.
        processing_class: TRL's name of a tokenizer; the model's own is used.

    Raises:
        ValueError: a dataset without these columns, empty, with texts longer than `max_length` or the model's context, or
            with a pair of equal texts; a `ref_model` with another vocabulary.
    """

    def __init__(
        self,
        model: LanguageModel | str | os.PathLike,
        ref_model: LanguageModel | str | os.PathLike | None = None,
        args: DPOConfig = DPOConfig(),
        train_dataset: Dataset = (),
        eval_dataset: Dataset | None = None,
        peft_config: LoraConfig | Any | None = None,
        *,
        processing_class: Any | None = None,
    ):
        self.model, self.args = training.loaded(model, args, processing_class), args
        self.length = min(args.max_length, self.model.decoder.config.max_position_embeddings)
        self.train_pairs = self._pairs(train_dataset)
        self.eval_pairs = None if eval_dataset is None else self._pairs(eval_dataset)
        self.reference = training.reference_of(self.model, ref_model, args)
        if peft_config is not None:
            training.add_lora(self.model, peft_config, args)
        plan.require_room("dpo", self.model.decoder, args, (1, longest(self.train_pairs)), [self.reference] if ref_model else [])
        self.log_history: list[dict[str, float]] = []

    def _pairs(self, dataset: Dataset) -> list[Pair]:
        return pairs_of(self.model.tokenizer, dataset, self.length, self.args.truncate)

    def train(self, resume_from_checkpoint: bool | str | os.PathLike | None = None) -> LanguageModel:
        """Learn, and return the model, which is `self.model`.

        Args:
            resume_from_checkpoint: go on from this folder, or with True from the newest of `output_dir`: with the same bits
                as a run that was never stopped.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            FloatingPointError: a gradient that is not finite; the model is as it was before it, and saved.
            ValueError: a checkpoint of another model or plan.
        """
        args, base, rows = self.args, self.model.decoder, self._compared(self.train_pairs)
        total = training.total_steps(len(rows), args)

        def advance(learner: Learner, number: int) -> tuple[Learner, loop.Report]:
            batches = self._batches(training.parts_of(number, rows, args))
            return training.step(args.arithmetic(), total, preference_loss, learner, base, batches)

        def save(learner: Learner, path: pathlib.Path) -> None:
            self.model.of(training.network_of(learner, base)).save_learned(path)

        def finish(learner: Learner) -> None:
            self.model.decoder = training.copied(training.network_of(learner, base))

        work = loop.Plan(total, training.steps_per_epoch(len(rows), args), training.said_of(args, len(rows)))
        learner = training.start(base, training.optimiser_of(args, total))
        loop.run(args, work, learner, advance, save, finish, resume_from_checkpoint, self.log_history)
        return self.model

    def evaluate(self) -> dict[str, float]:
        """`eval_loss`, and by `eval_rewards/` the `accuracies` and `margins` of the rewards that the policy implies, over `eval_dataset`.

        Raises:
            ValueError: there is none.
        """
        if self.eval_pairs is None:
            raise ValueError("evaluate needs eval_dataset: give it to DPOTrainer")
        rows, size = self._compared(self.eval_pairs), self.args.batch_size
        sums: dict[str, float] = {}
        for first in range(0, len(rows), size):
            batch = jax.tree.map(lambda x: x[0], self._batches([rows[first : first + size]]))
            with sharding.over(self.args.mesh):
                _, report = _measured(self.args.arithmetic(), self.model.decoder, batch)
            sums = {name: sums.get(name, 0.0) + float(value) for name, value in report.items()}
        return {f"eval_{name}": sums[name] / len(rows) for name in ("loss", "rewards/accuracies", "rewards/margins")}

    def save_model(self, output_dir: str | os.PathLike | None = None) -> None:
        """Write the model, or its adapter where that is what was trained, to `output_dir`."""
        self.model.save_learned(output_dir or self.args.output_dir)

    def _batches(self, parts: Sequence[Sequence[ComparedPair]]) -> Compared:
        """A step's batches, stacked."""
        size = self.args.batch_size
        pairs = batches_of([[row.pair for row in part] for part in parts], size, self.length)
        numbers = np.zeros((2, len(parts), size), np.float32)
        for place, part in enumerate(parts):
            numbers[0, place, : len(part)] = [row.chosen for row in part]
            numbers[1, place, : len(part)] = [row.rejected for row in part]
        return Compared(pairs, *numbers)

    def _compared(self, pairs: Sequence[Pair]) -> list[ComparedPair]:
        """With the reference's log-probabilities, which do not change while the policy does."""
        size, config = self.args.batch_size, self.args.arithmetic()
        found: list[ComparedPair] = []
        for first in range(0, len(pairs), size):
            part = pairs[first : first + size]
            batch = jax.tree.map(lambda x: x[0], batches_of([part], size, self.length))
            with sharding.over(self.args.mesh):
                chosen, rejected = (np.asarray(x).tolist() for x in _reference(config, self.reference, batch))
            found += [ComparedPair(*row) for row in zip(part, chosen, rejected, strict=False)]  # the last batch has empty rows
        return found


@functools.partial(jax.jit, static_argnames="config")
def _measured(config: DPOConfig, decoder: Decoder, batch: Compared) -> tuple[Array, dict[str, Array]]:
    return preference_loss(config, training.computing(config, decoder), batch)
