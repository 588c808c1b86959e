"""Supervised tuning: the next token of given texts (Radford et al., 2018; Ouyang et al., 2022, step 1, https://arxiv.org/abs/2203.02155)."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from advantage.llm import loop, plan, sharding, training
from advantage.llm.dataset import Batch, Dataset, Example, encoded, fitted, form_of, padded_right, read_rows, slots_for
from advantage.llm.decoder import Decoder, hidden_states
from advantage.llm.likelihood import in_parts, of_targets
from advantage.llm.model import LanguageModel
from advantage.llm.sampling import log_prob_of
from advantage.llm.training import Learner, LoraConfig, TrainingConfig


@dataclasses.dataclass(frozen=True)
class SFTConfig(TrainingConfig):
    """Settings of `SFTTrainer`, under TRL's names.

    Raises:
        ValueError: a setting that cannot work.
    """

    max_length: int = 1024  # tokens of a row at most; no more than the model's context
    truncate: bool = False  # longer rows are cut; False: refused
    completion_only_loss: bool = True  # of prompt and completion, only the completion is learned
    assistant_only_loss: bool = False  # of messages, only the assistant's are learned

    def __post_init__(self):
        super().__post_init__()
        if self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} has to be at least 2: a token is told by the one before it")


def token_loss(config: TrainingConfig, decoder: Decoder, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """`-log p(token | those before it)`, summed over the tokens that are learned, and sums to report."""
    tokens, learned = batch
    start = jnp.zeros(tokens.shape[0], jnp.int32)
    hidden = hidden_states(decoder, tokens[:, :-1], start, config.gradient_checkpointing)
    found = of_targets(decoder, hidden, tokens[:, 1:])
    log_prob, entropy, count = (jnp.sum(jnp.where(learned[:, 1:], x, 0.0)) for x in (*found, jnp.ones(found.log_prob.shape)))
    return -log_prob, {"loss": -log_prob, "entropy": entropy, "count": count, "tokens": count}


class SFTTrainer:
    """Teaches a model to write given texts.

    Args:
        model: a `LanguageModel`, or the path of one.
        args: settings.
        train_dataset: rows with `text`; with `prompt` and `completion`, texts or messages; or with `messages`. A list of
            dicts, a path of JSON lines or Parquet, or a `datasets.Dataset`.
        eval_dataset: rows that `evaluate` takes.
        peft_config: train a LoRA instead of the weights: ours, or PEFT's own.
        processing_class: TRL's name of a tokenizer; the model's own is used.

    Raises:
        ValueError: a dataset without these columns, empty, or with rows longer than `max_length` or the model's context; a model
            that has a LoRA already, where there is a `peft_config`.
    """

    def __init__(
        self,
        model: LanguageModel | str | os.PathLike,
        args: SFTConfig = SFTConfig(),
        train_dataset: Dataset = (),
        eval_dataset: Dataset | None = None,
        peft_config: LoraConfig | Any | None = None,
        *,
        processing_class: Any | None = None,
    ):
        self.model, self.args = training.loaded(model, args, processing_class), args
        context = self.model.decoder.config.max_position_embeddings
        self.length = min(args.max_length, context)
        self.train_examples = self._examples(train_dataset)
        self.eval_examples = None if eval_dataset is None else self._examples(eval_dataset)
        if peft_config is not None:
            training.add_lora(self.model, peft_config, args)
        plan.require_room("sft", self.model.decoder, args, (1, max(len(example.tokens) for example in self.train_examples)))
        self.log_history: list[dict[str, float]] = []

    def _examples(self, dataset: Dataset) -> list[Example]:
        rows = read_rows(dataset)
        form, args = form_of(rows), self.args
        tokenizer = self.model.tokenizer
        found = [encoded(tokenizer, row, form, args.completion_only_loss, args.assistant_only_loss) for row in rows]
        return fitted(found, self.length, args.truncate)

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
        args, base, rows = self.args, self.model.decoder, len(self.train_examples)
        total = training.total_steps(rows, args)

        def advance(learner: Learner, number: int) -> tuple[Learner, loop.Report]:
            return training.step(args.arithmetic(), total, token_loss, learner, base, self._batches(number))

        def save(learner: Learner, path: pathlib.Path) -> None:
            self.model.of(training.network_of(learner, base)).save_learned(path)

        def finish(learner: Learner) -> None:
            self.model.decoder = training.copied(training.network_of(learner, base))

        work = loop.Plan(total, training.steps_per_epoch(rows, args), training.said_of(args, rows))
        learner = training.start(base, training.optimiser_of(args, total))
        loop.run(args, work, learner, advance, save, finish, resume_from_checkpoint, self.log_history)
        return self.model

    def evaluate(self) -> dict[str, float]:
        """`eval_loss` in nats a token and `eval_mean_token_accuracy`, over `eval_dataset`.

        Raises:
            ValueError: there is none.
        """
        if self.eval_examples is None:
            raise ValueError("evaluate needs eval_dataset: give it to SFTTrainer")
        size, sums = self.args.batch_size, np.zeros(3)
        with sharding.over(self.args.mesh):
            for first in range(0, len(self.eval_examples), size):
                examples = self.eval_examples[first : first + size]
                batch = padded_right(examples, size, slots_for((len(example.tokens) for example in examples), self.length))
                sums += np.asarray(_measured(self.model.decoder, *batch))
        return {"eval_loss": float(sums[0] / sums[2]), "eval_mean_token_accuracy": float(sums[1] / sums[2])}

    def save_model(self, output_dir: str | os.PathLike | None = None) -> None:
        """Write the model, or its adapter where that is what was trained, to `output_dir`."""
        self.model.save_learned(output_dir or self.args.output_dir)

    def _batches(self, number: int) -> Batch:
        """A step's batches, stacked; all of one length."""
        chosen = training.parts_of(number, self.train_examples, self.args)
        slots = slots_for((len(example.tokens) for rows in chosen for example in rows), self.length)
        batches = [padded_right(rows, self.args.batch_size, slots) for rows in chosen]
        return jax.tree.map(lambda *parts: np.stack(parts), *batches)


@jax.jit
def _measured(decoder: Decoder, tokens: Int[Array, "B T"], learned: Bool[Array, "B T"]) -> Array:
    """`[loss, right, count]` over the learned tokens: sums."""
    hidden = hidden_states(decoder, tokens[:, :-1], jnp.zeros(tokens.shape[0], jnp.int32))
    there = learned[:, 1:]

    def measure(scores: Array, target: Array) -> tuple[Array, Array]:
        return log_prob_of(scores, target), (jnp.argmax(scores, axis=-1) == target).astype(jnp.float32)

    log_prob, right = in_parts(decoder, hidden, tokens[:, 1:], measure)
    return jnp.stack([jnp.sum(jnp.where(there, x, 0.0)) for x in (-log_prob, right, jnp.ones(there.shape))])
