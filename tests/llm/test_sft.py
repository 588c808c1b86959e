"""Supervised tuning: the loss by hand, steps, runs that go on, and a small model that learns to answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.llm import LanguageModel, LoraConfig, SFTConfig, SFTTrainer, lora, training
from advantage.llm.dataset import Batch
from advantage.llm.decoder import init
from advantage.llm.sft import token_loss

from .conftest import ANSWERS, SMALL

QUIET = {"report_to": "none", "per_device_train_batch_size": 16, "lr_scheduler_type": "cosine", "warmup_steps": 5}
NAMES = ["fox", "dog", "Zoë", "the lazy dog", "numbers", "12 and 345"]
ROWS = [{"prompt": f"Again: {a}, {b}.", "completion": f" {b}, {a}"} for a in NAMES for b in NAMES]


def model_of(tokenizer, seed=0, **changes):
    """A small one with the tokenizer's vocabulary."""
    config = dataclasses.replace(SMALL, vocab_size=300, hidden_size=64, intermediate_size=128, head_dim=32, **changes)
    return LanguageModel(init(config, jax.random.key(seed)), tokenizer)


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.decoder)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_the_loss_is_that_of_transformers_logits(llama):
    """`-log softmax` of the next token, of the tokens that are learned; whatever else there is changes nothing."""
    row, logits = ANSWERS["tokens"][:1], ANSWERS["llama/logits"][:1].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    learned = np.zeros(row.shape, bool)
    learned[0, [0, 2, 3, 7]] = True  # the first token is told by nothing, so it doesn't count
    expected = -sum(log_probs[0, t - 1, row[0, t]] for t in (2, 3, 7))
    loss, report = token_loss(SFTConfig(), llama, Batch(jnp.asarray(row, jnp.int32), jnp.asarray(learned)))
    assert float(loss) == pytest.approx(expected, rel=1e-5) and float(report["count"]) == 3
    entropy = -sum((np.exp(log_probs[0, t - 1]) * log_probs[0, t - 1]).sum() for t in (2, 3, 7))
    assert float(report["entropy"]) == pytest.approx(entropy, rel=1e-4)
    padded = Batch(jnp.asarray(np.pad(row, ((0, 1), (0, 4)), constant_values=9), jnp.int32), jnp.asarray(np.pad(learned, ((0, 1), (0, 4)))))
    again, _ = token_loss(SFTConfig(gradient_checkpointing=True), llama, padded)
    assert float(again) == pytest.approx(float(loss), rel=1e-5)


def test_small_batches_are_as_good_as_a_large_one(tokenizer, tmp_path):
    """Four of four that hold other numbers of tokens, the last ones empty: the gradient of all sixteen."""
    found = []
    for size, parts in ((16, 1), (4, 4)):
        args = SFTConfig(**QUIET | {"per_device_train_batch_size": size}, gradient_accumulation_steps=parts, max_steps=4, output_dir=str(tmp_path / str(parts)))
        found.append(SFTTrainer(model_of(tokenizer), args, ROWS[:20]).train())
    for other in found[1:]:
        for a, b in zip(leaves(found[0]), leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_every_row_once_an_epoch():
    config = SFTConfig(per_device_train_batch_size=3, gradient_accumulation_steps=2)
    assert training.steps_per_epoch(14, config) == 3 and training.total_steps(14, config) == 9
    epochs = [[row for step in range(3 * e, 3 * e + 3) for batch in training.batches_of(step, 14, config) for row in batch] for e in range(2)]
    assert all(sorted(epoch) == list(range(14)) for epoch in epochs) and epochs[0] != epochs[1]
    assert training.total_steps(14, dataclasses.replace(config, max_steps=4)) == 4
    assert training.total_steps(14, dataclasses.replace(config, num_train_epochs=0.5)) == 2


@pytest.mark.parametrize("peft", [None, LoraConfig(r=2, target_modules=["q_proj", "down_proj"])])
def test_a_run_that_goes_on_ends_with_the_same_bits(peft, tokenizer, tmp_path):
    """Stopped after a checkpoint, even within an epoch."""
    args = SFTConfig(**QUIET, max_steps=8, save_steps=3, output_dir=str(tmp_path / "whole"), learning_rate=1e-2)
    whole = SFTTrainer(model_of(tokenizer), args, ROWS, peft_config=peft).train()
    assert [path.name for path in training.checkpoints(tmp_path / "whole")] == ["checkpoint-3", "checkpoint-6", "checkpoint-8"]
    again = SFTTrainer(model_of(tokenizer), args, ROWS, peft_config=peft)
    again.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-3")
    assert same(whole, again.model)
    base = SFTTrainer(model_of(tokenizer), args, ROWS, peft_config=peft).model
    assert not same(whole, base)
    if peft is not None:
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(lora.without_lora(whole.decoder)), jax.tree.leaves(lora.without_lora(base.decoder)), strict=True))
        assert (tmp_path / "whole" / "checkpoint-8" / "adapter_model.safetensors").is_file()
    with pytest.raises(ValueError, match="was made with learning_rate=0.01, not 0.02"):
        SFTTrainer(model_of(tokenizer), dataclasses.replace(args, learning_rate=2e-2), ROWS, peft_config=peft).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="was made with seed=42, not 1"):
        SFTTrainer(model_of(tokenizer), dataclasses.replace(args, seed=1), ROWS, peft_config=peft).train(resume_from_checkpoint=True)


def test_old_checkpoints_go(tokenizer, tmp_path):
    args = SFTConfig(**QUIET, max_steps=4, save_steps=1, save_total_limit=2, output_dir=str(tmp_path))
    SFTTrainer(model_of(tokenizer), args, ROWS).train()
    assert [path.name for path in training.checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-4"]


def test_checkpoints_of_an_earlier_run(tokenizer, tmp_path):
    """Of more steps, in the same folder: what was just written stays, and is the newest."""
    for steps in (4, 2):
        args = SFTConfig(**QUIET, max_steps=steps, save_steps=10, save_total_limit=1, output_dir=str(tmp_path))
        SFTTrainer(model_of(tokenizer), args, ROWS).train()
    assert [path.name for path in training.checkpoints(tmp_path)] == ["checkpoint-2"]


def test_bfloat16_learns_in_float32(tokenizer, tmp_path):
    """Products in bfloat16 are another result, and steps smaller than its precision are not lost."""
    args = SFTConfig(**QUIET, max_steps=3, output_dir=str(tmp_path), learning_rate=1e-6)
    narrow = SFTTrainer(model_of(tokenizer), dataclasses.replace(args, bf16=True), ROWS).train()
    wide, base = SFTTrainer(model_of(tokenizer), args, ROWS).train(), model_of(tokenizer)
    assert not same(narrow, base) and not same(narrow, wide)
    for a, b in zip(leaves(narrow), leaves(wide), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_gradient_that_is_not_finite(tokenizer, tmp_path):
    """Nothing that was learned before is lost."""
    model = model_of(tokenizer)
    model.decoder = jax.tree.map(lambda x: x * jnp.inf if x.shape == model.decoder.norm.shape else x, model.decoder)
    with pytest.raises(FloatingPointError, match="the gradient of step 1 is not finite"):
        SFTTrainer(model, SFTConfig(**QUIET, max_steps=3, output_dir=str(tmp_path)), ROWS).train()
    assert (tmp_path / "checkpoint-0" / "model.safetensors").is_file()


def test_the_log(tokenizer, tmp_path):
    args = SFTConfig(**QUIET | {"report_to": ("csv",)}, max_steps=5, logging_steps=2, output_dir=str(tmp_path))
    trainer = SFTTrainer(model_of(tokenizer), args, ROWS)
    trainer.train()
    assert [row["total_timesteps"] for row in trainer.log_history] == [2, 4, 5]
    assert trainer.log_history[0]["loss"] == pytest.approx(np.log(300), rel=0.05)  # an untrained model knows nothing
    assert "train/loss" in (tmp_path / "progress.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_small_model_learns_to_answer(seed, tokenizer, tmp_path):
    """It repeats two names in the other order, for pairs that it has seen; only the completion is learned."""
    args = SFTConfig(**QUIET, max_steps=150, learning_rate=3e-3, seed=seed, output_dir=str(tmp_path), save_steps=1000)
    trainer = SFTTrainer(model_of(tokenizer, seed), args, ROWS, eval_dataset=ROWS)
    before = trainer.evaluate()
    model = trainer.train()
    after = trainer.evaluate()
    assert before["eval_loss"] > 5 and after["eval_loss"] < 0.1 and after["eval_mean_token_accuracy"] > 0.97
    answers = model.generate([row["prompt"] for row in ROWS], temperature=0, max_new_tokens=40)
    right = np.mean([answer == row["completion"] for answer, row in zip(answers, ROWS, strict=True)])
    assert right > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0 has to be above 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 has to be at least 1"),
        ({"max_steps": 0}, "max_steps=0 has to be at least 1, or -1"),
        ({"lr_scheduler_type": "step"}, "lr_scheduler_type='step' is not known: choose from linear, cosine, constant"),
        ({"max_length": 1}, "max_length=1 has to be at least 2"),
        ({"save_total_limit": 0}, "save_total_limit=0 has to be at least 1"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        SFTConfig(**changes)


def test_what_cannot_be_done(tokenizer, tmp_path):
    args = SFTConfig(**QUIET, output_dir=str(tmp_path))
    trainer = SFTTrainer(model_of(tokenizer), args, ROWS)
    with pytest.raises(ValueError, match="evaluate needs eval_dataset"):
        trainer.evaluate()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="the dataset is empty"):
        SFTTrainer(model_of(tokenizer), args)
    with pytest.raises(ValueError, match="tokens, and max_length is 64"):  # the model's context
        SFTTrainer(model_of(tokenizer), args, [{"text": "x" * 100}])
