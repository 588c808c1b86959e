"""A language model from nothing to PPO: pre-training, supervised tuning, a reward model, and PPO with a KL penalty.

The world is small, so that all of it takes minutes: somebody is somewhere, and is asked for. A good answer names the right
place and is kind. The reward model sees pairs of answers of which one is good; what is good is a rule, which says how much of
the reward is true.
    python examples/rlhf.py
"""

import argparse
import random

import jax
import tokenizers

from advantage.llm import (
    DecoderConfig,
    LanguageModel,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    Tokenizer,
)
from advantage.llm.decoder import init

NAMES = "Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Klara Leo".split()
PLACES = "garden kitchen cellar school library station harbour forest museum bakery".split()
KIND = ["Thank you for asking.", "You are welcome.", "Have a nice day."]
UNKIND = ["", "Why do you ask?", "Look for yourself.", "I do not care."]
GOOD = 0.3  # of the answers that the model is taught


def question(draw: random.Random) -> dict[str, str]:
    """A prompt, and what is true."""
    name, place = draw.choice(NAMES), draw.choice(PLACES)
    return {"prompt": f"{name} is in the {place}. Where is {name}?", "name": name, "place": place}


def answer(draw: random.Random, row: dict[str, str], right: bool, kind: bool) -> str:
    """One that may be wrong, unkind or both."""
    where = row["place"] if right else draw.choice([other for other in PLACES if other != row["place"]])
    return f" {row['name']} is in the {where}. {draw.choice(KIND if kind else UNKIND)}".rstrip()


def bad(draw: random.Random, row: dict[str, str]) -> str:
    """One that is."""
    return answer(draw, row, *draw.choice([(True, False), (False, True), (False, False)]))


def rule(completions: list[str], name: list[str], place: list[str], **_) -> list[float]:
    """1 for a good answer: the right place, one kind sentence, nothing else."""
    good = [[f" {who} is in the {where}. {kind}" for kind in KIND] for who, where in zip(name, place, strict=True)]
    return [float(text in these) for text, these in zip(completions, good, strict=True)]


def read(draw: random.Random, count: int) -> list[dict[str, str]]:
    """Text to learn the language from: true, kind or not."""
    rows = [question(draw) for _ in range(count)]
    return [{"text": row["prompt"] + answer(draw, row, True, draw.random() < 0.5)} for row in rows]


def taught(draw: random.Random, count: int) -> list[dict[str, str]]:
    """Questions with good answers and bad ones."""
    rows = [question(draw) for _ in range(count)]
    return [{**row, "completion": answer(draw, row, True, True) if draw.random() < GOOD else bad(draw, row)} for row in rows]


def compared(draw: random.Random, count: int) -> list[dict[str, str]]:
    """Questions with a good answer and a bad one."""
    rows = [question(draw) for _ in range(count)]
    return [{"prompt": row["prompt"], "chosen": answer(draw, row, True, True), "rejected": bad(draw, row)} for row in rows]


def untrained(draw: random.Random, seed: int) -> LanguageModel:
    """Random weights, and a tokenizer that has learned its words from the world's text."""
    texts = [row["text"] for row in read(draw, 2000)]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=512, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(backend, {"eos_token": "<end>"})
    config = DecoderConfig(
        model_type="llama", vocab_size=tokenizer.size, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return LanguageModel(init(config, jax.random.key(seed)), tokenizer)


def text_model(draw: random.Random, seed: int, steps: int, folder: str) -> LanguageModel:
    """Pre-trained on the world's text, then taught to answer."""
    shared = {"per_device_train_batch_size": 32, "lr_scheduler_type": "cosine", "warmup_steps": steps // 20, "seed": seed, "save_steps": 10**9}
    before = SFTConfig(output_dir=f"{folder}/pretrained", max_steps=steps, learning_rate=2e-3, logging_steps=max(steps // 4, 1), **shared)
    model = SFTTrainer(untrained(draw, seed), before, read(draw, 8000)).train()
    after = SFTConfig(output_dir=f"{folder}/taught", max_steps=steps // 2, learning_rate=1e-3, logging_steps=max(steps // 8, 1), **shared)
    return SFTTrainer(model, after, taught(draw, 6000)).train()


def reward_model(draw: random.Random, model: LanguageModel, seed: int, steps: int, folder: str) -> RewardTrainer:
    """Trained on pairs, and measured on others."""
    args = RewardConfig(
        output_dir=f"{folder}/reward", max_steps=steps * 3, learning_rate=3e-4, per_device_train_batch_size=32, seed=seed,
        warmup_steps=steps // 20,
        lr_scheduler_type="cosine", logging_steps=max(steps // 8, 1), save_steps=10**9,
    )  # fmt: skip
    trainer = RewardTrainer(model, args, compared(draw, 4000), compared(draw, 500))
    trainer.train()
    return trainer


def ppo(draw: random.Random, model: LanguageModel, reward: RewardTrainer, seed: int, steps: int, folder: str, **changes) -> PPOTrainer:
    """Answers are rewarded by the reward model; the rule is only reported, since it weighs nothing."""
    settings = {
        "output_dir": f"{folder}/ppo", "max_steps": steps // 4, "learning_rate": 1e-4, "per_device_train_batch_size": 64,
        "max_completion_length": 24, "temperature": 1.0, "kl_coef": 0.3, "vf_coef": 0.01, "lr_scheduler_type": "constant", "seed": seed,
        "logging_steps": max(steps // 40, 1), "save_steps": 10**9, "reward_weights": [1.0, 0.0], **changes,
    }  # fmt: skip
    prompts, held = [question(draw) for _ in range(4000)], [question(draw) for _ in range(256)]
    return PPOTrainer(model.of(model.decoder), [reward.model, rule], PPOConfig(**settings), prompts, held)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="of pre-training; the others are parts of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="runs/rlhf")
    given = parser.parse_args()

    draw = random.Random(given.seed)
    model = text_model(draw, given.seed, given.steps, given.folder)
    reward = reward_model(draw, model, given.seed, given.steps, given.folder)
    print(f"reward model: {reward.evaluate()['eval_accuracy']:.0%} of held-out pairs in the right order")
    trainer = ppo(draw, model, reward, given.seed, given.steps, given.folder)
    before = trainer.evaluate()["eval_rewards/rule"]
    trainer.train()
    print(f"good answers: {before:.0%} before PPO, {trainer.evaluate()['eval_rewards/rule']:.0%} after")
    trainer.save_model(f"{given.folder}/model")
    for row in [question(draw) for _ in range(3)]:
        print(row["prompt"] + trainer.model.generate([row["prompt"]], max_new_tokens=24)[0])
