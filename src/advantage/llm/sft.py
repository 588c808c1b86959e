"""Supervised tuning: the next token of given texts (Radford et al., 2018; Ouyang et al., 2022, step 1, https://arxiv.org/abs/2203.02155)."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from advantage.llm import lora, training
from advantage.llm.dataset import Batch, Dataset, Example, encoded, fitted, form_of, padded_right, read_rows, slots_for
from advantage.llm.decoder import Decoder, hidden_states
from advantage.llm.likelihood import in_parts, of_targets
from advantage.llm.model import LanguageModel, load_model
from advantage.llm.sampling import log_prob_of
from advantage.llm.training import Learner, LoraConfig, TrainingConfig
from advantage.training.interrupt import Interrupt
from advantage.training.loggers import configure


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
    return -log_prob, {"loss": -log_prob, "entropy": entropy, "count": count}


class SFTTrainer:
    """Teaches a model to write given texts.

    Args:
        model: a `LanguageModel`, or the path of one.
        args: settings.
        train_dataset: rows with `text`; with `prompt` and `completion`, texts or messages; or with `messages`. A list of
            dicts, a path of JSON lines or Parquet, or a `datasets.Dataset`.
        eval_dataset: rows that `evaluate` takes.
        peft_config: train a LoRA instead of the weights: ours, or PEFT's own.

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
    ):
        self.model = model if isinstance(model, LanguageModel) else load_model(model)
        self.args = args
        context = self.model.decoder.config.max_position_embeddings
        self.length = min(args.max_length, context)
        self.train_examples = self._examples(train_dataset)
        self.eval_examples = None if eval_dataset is None else self._examples(eval_dataset)
        if peft_config is not None:
            targets = peft_config.target_modules
            targets = targets if isinstance(targets, str) else sorted(targets)
            self.model.add_lora(peft_config.r, peft_config.lora_alpha, targets, args.seed)
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
        args, folder = self.args, pathlib.Path(self.args.output_dir)
        total = training.total_steps(len(self.train_examples), args)
        learner = training.start(self.model.decoder, training.optimiser_of(args, total))
        learner = self._resumed(learner, folder, resume_from_checkpoint, total)
        logger = configure(folder, args.formats, append=bool(resume_from_checkpoint))
        reports: list[dict[str, Array]] = []
        began = time.perf_counter()
        with Interrupt() as interrupt:
            for number in range(int(learner.step), total):
                batches = self._batches(number)
                learner, report = training.step(args.arithmetic(), total, token_loss, learner, self.model.decoder, batches)
                reports.append(report)
                last = number + 1 == total or interrupt.requested
                finite = bool(report["finite"])
                if (number + 1) % args.logging_steps == 0 or last or not finite:
                    self._log(logger, number + 1, reports, time.perf_counter() - began)
                    reports, began = [], time.perf_counter()
                if not finite:
                    self._keep(learner, folder, total)
                    raise FloatingPointError(f"the gradient of step {number + 1} is not finite; the model before it is in {folder}")
                if (number + 1) % args.save_steps == 0 or last:
                    self._keep(learner, folder, total)
                if interrupt.requested:
                    break
        logger.close()
        self.model.decoder = training.decoder_of(learner, self.model.decoder)
        return self.model

    def evaluate(self) -> dict[str, float]:
        """`eval_loss` in nats a token and `eval_mean_token_accuracy`, over `eval_dataset`.

        Raises:
            ValueError: there is none.
        """
        if self.eval_examples is None:
            raise ValueError("evaluate needs eval_dataset: give it to SFTTrainer")
        size, sums = self.args.per_device_train_batch_size, np.zeros(3)
        for first in range(0, len(self.eval_examples), size):
            examples = self.eval_examples[first : first + size]
            batch = padded_right(examples, size, slots_for(examples, self.length))
            sums += np.asarray(_measured(self.model.decoder, *batch))
        return {"eval_loss": float(sums[0] / sums[2]), "eval_mean_token_accuracy": float(sums[1] / sums[2])}

    def save_model(self, output_dir: str | os.PathLike | None = None) -> None:
        """Write the model, or its adapter where that is what was trained, to `output_dir`."""
        self._save(pathlib.Path(output_dir or self.args.output_dir))

    def _save(self, path: pathlib.Path) -> None:
        self.model.save_adapter(path) if lora.adapters(self.model.decoder) else self.model.save(path)

    def _batches(self, number: int) -> Batch:
        """A step's batches, stacked; all of one length."""
        rows_of = training.batches_of(number, len(self.train_examples), self.args)
        chosen = [[self.train_examples[row] for row in rows] for rows in rows_of]
        slots = slots_for((example for rows in chosen for example in rows), self.length)
        chosen += [[]] * (self.args.gradient_accumulation_steps - len(chosen))  # an epoch's last step may have fewer
        batches = [padded_right(rows, self.args.per_device_train_batch_size, slots) for rows in chosen]
        return jax.tree.map(lambda *parts: np.stack(parts), *batches)

    def _log(self, logger: Any, number: int, reports: Sequence[dict[str, Array]], seconds: float) -> None:
        """Means over the steps since the last row."""
        tokens = sum(float(report["tokens"]) for report in reports)
        row = {f"train/{name}": float(np.mean([report[name] for report in reports])) for name in ("loss", "entropy", "grad_norm")}
        row |= {"time/tokens_per_second": tokens / seconds, "time/total_timesteps": number,
                "train/epoch": number / training.steps_per_epoch(len(self.train_examples), self.args)}  # fmt: skip
        for name, value in row.items():
            logger.record(name, value)
        logger.dump(number)
        self.log_history.append({name.partition("/")[2]: value for name, value in row.items()})

    def _plan(self, total: int) -> dict[str, Any]:
        """What has to be the same for a run that goes on."""
        said = json.loads(json.dumps(dataclasses.asdict(self.args.arithmetic())))
        return {**said, "total": total, "rows": len(self.train_examples), "seed": self.args.seed}

    def _keep(self, learner: Learner, folder: pathlib.Path, total: int) -> None:
        self.model.decoder = training.decoder_of(learner, self.model.decoder)
        training.write_checkpoint(folder, learner, self._plan(total), self._save, self.args.save_total_limit)

    def _resumed(self, learner: Learner, folder: pathlib.Path, wanted: bool | str | os.PathLike | None, total: int) -> Learner:
        if not wanted:
            return learner
        found = training.checkpoints(folder) if wanted is True else [pathlib.Path(wanted)]
        if not found:
            raise FileNotFoundError(f"no checkpoint in {folder}: train without resume_from_checkpoint first")
        return training.read_checkpoint(found[-1], learner, self._plan(total))


@jax.jit
def _measured(decoder: Decoder, tokens: Int[Array, "B T"], learned: Bool[Array, "B T"]) -> Array:
    """`[loss, right, count]` over the learned tokens: sums."""
    hidden = hidden_states(decoder, tokens[:, :-1], jnp.zeros(tokens.shape[0], jnp.int32))
    there = learned[:, 1:]

    def measure(scores: Array, target: Array) -> tuple[Array, Array]:
        return log_prob_of(scores, target), (jnp.argmax(scores, axis=-1) == target).astype(jnp.float32)

    log_prob, right = in_parts(decoder, hidden, tokens[:, 1:], measure)
    return jnp.stack([jnp.sum(jnp.where(there, x, 0.0)) for x in (-log_prob, right, jnp.ones(there.shape))])
