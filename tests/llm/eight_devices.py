"""Runs on one device and on eight, started by `test_sharding`: what differs, as JSON.

`python -m tests.llm.eight_devices FOLDER` with `JAX_NUM_CPU_DEVICES=8`.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

from advantage.llm import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    LanguageModel,
    LoraConfig,
    PPOConfig,
    PPOTrainer,
    RewardModel,
    SFTConfig,
    SFTTrainer,
    Tokenizer,
    likelihood,
    lora,
    plan,
    sharding,
    training,
)
from advantage.llm.decoder import DecoderConfig, init
from advantage.llm.sft import token_loss

TOKENIZER = Path(__file__).parents[1] / "oracles" / "transformers" / "llama"
CONFIG = DecoderConfig(
    model_type="llama", vocab_size=304, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=8,
    num_key_value_heads=4, head_dim=8, max_position_embeddings=64,
)  # fmt: skip
MESH = (2, 2, 2)
PAIRS = [{"prompt": f"Again: {number}.", "chosen": f" {number}", "rejected": f" {number + 1}"} for number in range(32)]
ROWS = [{"prompt": f"Again: {number}.", "completion": f" {number}, {number}"} for number in range(32)]


def letters(completions):
    """The more of them the better."""
    return [float(sum(letter.isalpha() for letter in text)) for text in completions]


def trainer_of(name, mesh, folder):
    """Of few steps; on a mesh, each device has a part of the same batch."""
    model = LanguageModel(init(CONFIG, jax.random.key(0)), Tokenizer.read(TOKENIZER))
    shared = {"output_dir": f"{folder}/{name}-{mesh[1]}", "max_steps": 3, "learning_rate": 3e-3, "report_to": "none", "mesh": mesh,
              "per_device_train_batch_size": 8 // (mesh[0] * mesh[1]), "gradient_accumulation_steps": 2}  # fmt: skip
    if name == "sft":
        return SFTTrainer(model, SFTConfig(**shared, save_steps=2), ROWS, ROWS)
    if name == "dpo":
        return DPOTrainer(model, args=DPOConfig(**shared), train_dataset=PAIRS, eval_dataset=PAIRS)
    if name == "ppo":
        args = PPOConfig(**shared, max_completion_length=8, num_ppo_epochs=2)
        judge, other = RewardModel.from_language_model(model), LanguageModel(init(CONFIG, jax.random.key(1)), model.tokenizer)
        return PPOTrainer(model, [letters, judge], args, ROWS, ROWS[:8], ref_model=other, value_model=RewardModel.from_language_model(other))
    args = GRPOConfig(**shared, max_completion_length=8, num_generations=4, beta=0.1)
    return GRPOTrainer(model, letters, args, ROWS, ROWS[:8], peft_config=LoraConfig(r=4))


def compared(name, folder):
    """How far a run moved the weights, and how far from it the same on eight devices ended."""
    one = trainer_of(name, (1, 1, 1), folder)
    before = [np.asarray(x) for x in jax.tree.leaves(one.model.decoder)]
    alone = [np.asarray(x) for x in jax.tree.leaves(one.train().decoder)]
    trainer = trainer_of(name, MESH, folder)
    eight = trainer.train().decoder
    query = eight.blocks.query.weight
    mine, theirs = one.evaluate(), trainer.evaluate()
    return {
        "evaluations apart": max(abs(mine[key] - theirs[key]) for key in mine),
        "moved": max(float(np.abs(a - b).max()) for a, b in zip(alone, before, strict=True)),
        "apart": max(float(np.abs(a - np.asarray(b)).max()) for a, b in zip(alone, jax.tree.leaves(eight), strict=True)),
        "a part of query": query.addressable_shards[0].data.size / query.size,
    }


def goes_on(folder):
    """How far a run ends from one that was never stopped, where it began on one device and goes on with eight."""
    one = trainer_of("sft", (1, 1, 1), f"{folder}/on").train().decoder
    trainer = trainer_of("sft", MESH, f"{folder}/other")
    eight = trainer.train(resume_from_checkpoint=f"{folder}/on/sft-1/checkpoint-2").decoder
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True))


def products_in_parts():
    """Products of a device of eight, as a part of those of one, where logits do not fit at once."""
    likelihood.LOGITS = 2**12
    decoder, batch = init(CONFIG, jax.random.key(0)), (np.zeros((1, 16, 33), np.int32), np.ones((1, 16, 33), bool))
    found = []
    for mesh in ((1, 1, 1), (1, 8, 1)):
        args = SFTConfig(mesh=mesh)
        here = sharding.placed(mesh, decoder)
        learner = sharding.placed(mesh, training.start(here, training.optimiser_of(args, 10)))
        with sharding.over(mesh):
            found.append(training.step.lower(args.arithmetic(), 10, token_loss, learner, here, batch).compile().cost_analysis()["flops"])
    return found[1] / found[0]


def taken(checkpointed, rank):
    """Bytes of a training step on each device by the plan, and by XLA."""
    config = dataclasses.replace(CONFIG, hidden_size=128, intermediate_size=384, num_hidden_layers=6, head_dim=16, max_position_embeddings=512)
    job = plan.Job("sft", (1, 4, 2), 4, 1, 255, weights="float32", bf16=False, lora=rank, gradient_checkpointing=checkpointed)
    args = SFTConfig(mesh=job.mesh, per_device_train_batch_size=4, gradient_checkpointing=checkpointed)
    decoder = init(config, jax.random.key(0))
    decoder = sharding.placed(job.mesh, lora.add_lora(decoder, jax.random.key(0), rank) if rank else decoder)
    learner = sharding.placed(job.mesh, training.start(decoder, training.optimiser_of(args, 10)))
    batch = np.zeros((1, args.batch_size, 256), np.int32), np.ones((1, args.batch_size, 256), bool)
    with sharding.over(job.mesh):
        found = training.step.lower(args.arithmetic(), 10, token_loss, learner, decoder, batch).compile().memory_analysis()
    lasting = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((decoder, learner)))
    sizes = plan.memory(config, job)
    names = ("the model as loaded", "weights that learn, float32", "Adam's moments, float32")
    return {"lasting": lasting, "lasting by the plan": sum(sizes[name] for name in names),
            "step": lasting + found.temp_size_in_bytes, "step by the plan": sum(sizes.values())}  # fmt: skip


if __name__ == "__main__":
    results = {name: compared(name, sys.argv[1]) for name in ("sft", "dpo", "ppo", "grpo")}
    results["memory"] = [taken(checkpointed, rank) for checkpointed in (False, True) for rank in (0, 4)]
    results["goes on"], results["products in parts"] = goes_on(sys.argv[1]), products_in_parts()
    print(json.dumps(results))
