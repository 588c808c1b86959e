"""A reward model from preferences (Ouyang et al., 2022, step 2, https://arxiv.org/abs/2203.02155)."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from advantage.equations.preferences import bradley_terry
from advantage.llm import loop, plan, sharding, training
from advantage.llm.dataset import Dataset
from advantage.llm.model import LanguageModel, load_model
from advantage.llm.preferences import Pair, Pairs, batches_of, longest, pairs_of
from advantage.llm.scorer import RewardModel, Scorer, scores
from advantage.llm.training import Learner, LoraConfig, TrainingConfig


@dataclasses.dataclass(frozen=True)
class RewardConfig(TrainingConfig):
    """Settings of `RewardTrainer`, under TRL's names.

    Raises:
        ValueError: a setting that cannot work.
    """

    learning_rate: float | int = 1e-4  # of AdamW, at its highest
    max_length: int = 1024  # tokens of a text at most; no more than the model's context
    truncate: bool = False  # longer texts are cut; False: refused
    center_rewards_coefficient: float | int | None = None  # weight of `(chosen + rejected)^2`; None: rewards have no centre

    def __post_init__(self):
        super().__post_init__()
        if self.max_length < 1:
            raise ValueError(f"max_length={self.max_length} has to be at least 1")
        if self.center_rewards_coefficient is not None and not self.center_rewards_coefficient >= 0:
            raise ValueError(f"center_rewards_coefficient={self.center_rewards_coefficient!r} has to be at least 0, or None")


def pair_loss(config: RewardConfig, scorer: Scorer, batch: Pairs) -> tuple[Array, dict[str, Array]]:
    """Bradley and Terry's loss, summed over the pairs, and sums to report.

    The mean reward may be kept at 0 (Eisenstein et al., 2023, https://arxiv.org/abs/2312.09244).
    """
    both = jnp.concatenate([batch.chosen, batch.rejected])
    length = jnp.concatenate([batch.chosen_length, batch.rejected_length])
    chosen, rejected = jnp.split(scores(scorer, both, length, remat=config.gradient_checkpointing), 2)
    losses = bradley_terry(chosen, rejected)
    if config.center_rewards_coefficient is not None:
        losses = losses + config.center_rewards_coefficient * jnp.square(chosen + rejected)
    there = batch.chosen_length > 0

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(there, x, 0.0))

    pairs, loss = total(jnp.ones(there.shape)), total(losses)
    report = {"loss": loss, "accuracy": total(chosen > rejected), "margin": total(chosen - rejected),
              "mean_reward": total((chosen + rejected) / 2), "count": pairs, "tokens": pairs}  # fmt: skip
    return loss, report


class RewardTrainer:
    """Teaches a model which of two answers is preferred.

    Args:
        model: a `RewardModel` to go on with, a `LanguageModel` that gets a score, or the path of one.
        args: settings.
        train_dataset: rows with `chosen` and `rejected`: whole texts or messages; or what follows their `prompt`. A list of
            dicts, a path of JSON lines or Parquet, or a `datasets.Dataset`.
        eval_dataset: rows that `evaluate` takes.
        peft_config: train a LoRA and the score instead of all weights: ours, or PEFT's own.
        processing_class: TRL's name of a tokenizer; the model's own is used.

    Raises:
        ValueError: a dataset without these columns, empty, with texts longer than `max_length` or the model's context, or
            with a pair of equal texts.
    """

    def __init__(
        self,
        model: RewardModel | LanguageModel | str | os.PathLike,
        args: RewardConfig = RewardConfig(),
        train_dataset: Dataset = (),
        eval_dataset: Dataset | None = None,
        peft_config: LoraConfig | Any | None = None,
        *,
        processing_class: Any | None = None,
    ):
        if not isinstance(model, RewardModel):
            language_model = model if isinstance(model, LanguageModel) else load_model(model)
            if peft_config is not None:
                language_model = language_model.of(language_model.decoder)
                training.add_lora(language_model, peft_config, args)
            model = RewardModel.from_language_model(language_model)
        elif peft_config is not None:
            raise ValueError("peft_config with a RewardModel: give the language model that it is to be made of")
        self.model, self.args = model.of(sharding.placed(args.mesh, model.scorer)), args
        training.check_processing_class(processing_class, model.model)
        self.length = min(args.max_length, model.scorer.decoder.config.max_position_embeddings)
        self.train_pairs = self._pairs(train_dataset)
        self.eval_pairs = None if eval_dataset is None else self._pairs(eval_dataset)
        plan.require_room("reward", model.scorer.decoder, args, (1, longest(self.train_pairs)))
        self.log_history: list[dict[str, float]] = []

    def _pairs(self, dataset: Dataset) -> list[Pair]:
        return pairs_of(self.model.tokenizer, dataset, self.length, self.args.truncate)

    def train(self, resume_from_checkpoint: bool | str | os.PathLike | None = None) -> RewardModel:
        """Learn, and return the model, which is `self.model`.

        Args:
            resume_from_checkpoint: go on from this folder, or with True from the newest of `output_dir`: with the same bits
                as a run that was never stopped.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            FloatingPointError: a gradient that is not finite; the model is as it was before it, and saved.
            ValueError: a checkpoint of another model or plan.
        """
        args, base, rows = self.args, self.model.scorer, len(self.train_pairs)
        total = training.total_steps(rows, args)

        def advance(learner: Learner, number: int) -> tuple[Learner, loop.Report]:
            batches = batches_of(training.parts_of(number, self.train_pairs, args), args.batch_size, self.length)
            return training.step(args.arithmetic(), total, pair_loss, learner, base, batches)

        def save(learner: Learner, path: pathlib.Path) -> None:
            self.model.of(training.network_of(learner, base)).save(path)

        def finish(learner: Learner) -> None:
            self.model = self.model.of(training.copied(training.network_of(learner, base)))

        work = loop.Plan(total, training.steps_per_epoch(rows, args), training.said_of(args, rows))
        learner = training.start(base, training.optimiser_of(args, total))
        loop.run(args, work, learner, advance, save, finish, resume_from_checkpoint, self.log_history)
        return self.model

    def evaluate(self) -> dict[str, float]:
        """`eval_loss`, `eval_accuracy` and `eval_margin` over `eval_dataset`.

        Raises:
            ValueError: there is none.
        """
        if self.eval_pairs is None:
            raise ValueError("evaluate needs eval_dataset: give it to RewardTrainer")
        with sharding.over(self.args.mesh):
            chosen = np.array(self.model.score_tokens([pair.chosen.tokens for pair in self.eval_pairs]))
            rejected = np.array(self.model.score_tokens([pair.rejected.tokens for pair in self.eval_pairs]))
        loss = float(np.mean(np.logaddexp(0.0, rejected - chosen)))
        return {"eval_loss": loss, "eval_accuracy": float(np.mean(chosen > rejected)), "eval_margin": float(np.mean(chosen - rejected))}

    def save_model(self, output_dir: str | os.PathLike | None = None) -> None:
        """Write the reward model to `output_dir`, adapters merged into the weights."""
        self.model.save(output_dir or self.args.output_dir)
