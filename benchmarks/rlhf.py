"""The whole way to PPO on tokens, over seeds, and what the KL penalty is for: `examples/rlhf.py`, measured.

    python benchmarks/rlhf.py run --seed 0          # about 15 minutes on one core; one file for each seed
    python benchmarks/rlhf.py clip --seed 0         # what the clip is for, ten minutes more; a file for each seed too
    python benchmarks/rlhf.py report                # rlhf.md and docs/images/rlhf.png, of all seeds that are there

A seed has its own text, tokenizer, weights, preferences and prompts. The true score is the world's rule on 256 prompts that no
training has seen, answers drawn as in training (temperature 1). The KL is that of the last ten rollouts, in nats an answer,
by samples. The other algorithms go on from the same taught model, with as many answers as PPO.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
import rlhf  # noqa: E402

from advantage.llm import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, PPOConfig, RLOOConfig, RLOOTrainer  # noqa: E402

RESULTS = HERE / "results" / "rlhf"
TABLE, FIGURE = HERE / "results" / "rlhf.md", HERE.parent / "docs" / "images" / "rlhf.png"
STEPS = 400
COEFFICIENTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
USUAL = 0.3


def run(seed: int) -> None:
    """One seed's numbers."""
    warnings.simplefilter("ignore", UserWarning)  # that the policy is far away is what is measured
    with tempfile.TemporaryDirectory() as folder:
        draw, began = random.Random(seed), time.perf_counter()
        model = rlhf.text_model(draw, seed, STEPS, folder)
        taught = time.perf_counter()
        reward = rlhf.reward_model(draw, model, seed, STEPS, folder)
        accuracy, rewarded = reward.evaluate()["eval_accuracy"], time.perf_counter()
        found: dict[str, Any] = {"seed": seed, "accuracy": accuracy, "penalty": {}}
        found |= {"teaching_s": taught - began, "reward_s": rewarded - taught, "machine": f"{platform.processor() or platform.machine()}"}
        # The usual coefficient first: its time is the pipeline's.
        for coefficient in (USUAL, *(c for c in COEFFICIENTS if c != USUAL)):
            started = time.perf_counter()
            # Of every coefficient the same prompts.
            trainer = rlhf.ppo(random.Random(seed + 1000), model, reward, seed, STEPS, folder, kl_coef=coefficient, report_to="none")
            found["penalty"][str(coefficient)] = {**measured(trainer), "seconds": time.perf_counter() - started, "load": os.getloadavg()[0]}
            print(seed, coefficient, found["penalty"][str(coefficient)]["rule"], flush=True)
        found["others"] = others(seed, model, reward, folder)
    write(f"seed{seed}", found)


CLIPPED = (("1, 0.2", 1, 0.2), ("4, 0.2", 4, 0.2), ("16, 0.2", 16, 0.2), ("4, none", 4, 1e9), ("16, none", 16, 1e9))
"""Name, passes over each rollout, and how far a ratio may move."""


def clip(seed: int) -> None:
    """PPO on rollouts that are used once and often, with the clip and without; three times the usual step. And the default penalty."""
    warnings.simplefilter("ignore", UserWarning)
    with tempfile.TemporaryDirectory() as folder:
        draw = random.Random(seed)
        model = rlhf.text_model(draw, seed, STEPS, folder)
        reward = rlhf.reward_model(draw, model, seed, STEPS, folder)
        found: dict[str, Any] = {"seed": seed, "accuracy": reward.evaluate()["eval_accuracy"], "runs": {}, "penalty": {}}
        trainer = rlhf.ppo(random.Random(seed + 1000), model, reward, seed, STEPS, folder, kl_coef=PPOConfig.kl_coef, report_to="none")
        found["penalty"][str(PPOConfig.kl_coef)] = measured(trainer)
        for name, epochs, within in CLIPPED:
            trainer = rlhf.ppo(random.Random(seed + 1000), model, reward, seed, STEPS, folder, num_ppo_epochs=epochs, cliprange=within,
                               cliprange_value=None, learning_rate=3e-4, report_to="none")  # fmt: skip
            found["runs"][name] = measured(trainer)
            found["runs"][name]["approx_kl"] = max(row["approx_kl"] for row in trainer.log_history)
            print(seed, name, found["runs"][name]["rule"], found["runs"][name]["kl"], flush=True)
    write(f"clip{seed}", found)


def write(name: str, found: dict[str, Any]) -> None:
    """A file of numbers."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measured(trainer: Any) -> dict[str, Any]:
    """Before, after and on the way."""
    before = trainer.evaluate()
    trainer.train()
    after, history = trainer.evaluate(), trainer.log_history
    kept = ("total_timesteps", "rewards/rule", "rewards/reward_model", "kl", "length", "entropy")
    return {
        "before": before["eval_rewards/rule"],
        "rule": after["eval_rewards/rule"],
        "reward_model": after.get("eval_rewards/reward_model"),
        "kl": history[-1].get("kl"),
        "curve": [{name: row[name] for name in kept if name in row} for row in history],
        "samples": [sample.completion for sample in trainer.rollouts.samples[:3]],
    }


def others(seed: int, model: Any, reward: Any, folder: str) -> dict[str, Any]:
    """RLOO by the reward model, GRPO by the rule itself, DPO from pairs."""
    draw = random.Random(seed + 2000)
    prompts, held = [rlhf.question(draw) for _ in range(4000)], [rlhf.question(draw) for _ in range(256)]
    shared = {"output_dir": f"{folder}/others", "max_steps": STEPS // 4, "per_device_train_batch_size": 64, "max_completion_length": 24,
              "lr_scheduler_type": "constant", "seed": seed, "report_to": "none", "save_steps": 10**9, "logging_steps": 10}  # fmt: skip
    rloo = RLOOConfig(**shared, learning_rate=2e-4, beta=USUAL, num_generations=4, reward_weights=[1.0, 0.0])
    grpo = GRPOConfig(**shared, learning_rate=2e-4, beta=0.04, num_generations=8)
    found = {"RLOO": measured(RLOOTrainer(model.of(model.decoder), [reward.model, rlhf.rule], rloo, prompts, held))}
    found["GRPO"] = measured(GRPOTrainer(model.of(model.decoder), rlhf.rule, grpo, prompts, held))
    names = ("output_dir", "lr_scheduler_type", "seed", "report_to", "save_steps", "logging_steps")
    dpo = DPOConfig(**{name: shared[name] for name in names}, max_steps=STEPS // 4, learning_rate=2e-5, per_device_train_batch_size=32)
    trainer = DPOTrainer(model.of(model.decoder), args=dpo, train_dataset=rlhf.compared(draw, 1000), eval_dataset=rlhf.compared(draw, 500))
    before = trainer.evaluate()
    tuned = trainer.train()
    found["DPO"] = {"before": truth(model, held), "rule": truth(tuned, held), "pairs_before": before, "pairs": trainer.evaluate()}
    return found


def truth(model: Any, rows: list[dict[str, str]]) -> float:
    """The rule's mean on answers to these prompts."""
    answers = model.generate([row["prompt"] for row in rows], max_new_tokens=24)
    return float(np.mean(rlhf.rule(answers, [row["name"] for row in rows], [row["place"] for row in rows])))


def report() -> str:
    """Tables, and the figure."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("seed*.json"))]

    def shown(values: list[float], form: str = "{:.2f}") -> str:
        """The mean, and the least and most."""
        low, high = min(values), max(values)
        return f"{form} [{form}, {form}]".format(np.mean(values), low, high)

    def minutes(one: dict[str, Any]) -> float:
        return (one["teaching_s"] + one["reward_s"] + one["penalty"][str(USUAL)]["seconds"]) / 60

    clipped = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("clip*.json"))]
    for one, other in itertools.product(found, clipped):
        one["penalty"] |= other["penalty"] if one["seed"] == other["seed"] else {}
    usual = [one["penalty"][str(USUAL)] for one in found]
    lines = [
        "# From text to PPO", "", f"`benchmarks/rlhf.py`, {len(found)} seeds, each on one core: the mean, and the least and the most.", "",
        "| | |", "| --- | ---: |",
        f"| reward model: held-out pairs in the right order | {shown([100 * one['accuracy'] for one in found], '{:.1f}')} % |",
        f"| good answers before PPO | {shown([100 * one['before'] for one in usual], '{:.0f}')} % |",
        f"| good answers after PPO, kl_coef={USUAL} | {shown([100 * one['rule'] for one in usual], '{:.0f}')} % |",
        f"| KL to the reference, nats an answer | {shown([one['kl'] for one in usual])} |",
        f"| minutes: pre-training, teaching, reward model, PPO | {shown([minutes(one) for one in found], '{:.1f}')} |",
        "", "## What the penalty is for", "",
        "| kl_coef | KL, nats an answer | reward model's score | good answers, % | an answer |", "| ---: | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    for coefficient in sorted(float(name) for name in set.intersection(*(set(one["penalty"]) for one in found))):
        rows = [one["penalty"][str(coefficient)] for one in found]
        lines.append(
            f"| {coefficient:g} | {shown([row['kl'] for row in rows])} | {shown([row['reward_model'] for row in rows])} | "
            f"{shown([100 * row['rule'] for row in rows], '{:.0f}')} | `{rows[0]['samples'][0].strip()}` |"
        )
    lines += ["", "## The others", "", "| | good answers before, % | after, % |", "| --- | ---: | ---: |"]
    for name, how in (("RLOO", "by the reward model"), ("GRPO", "by the rule"), ("DPO", "from pairs")):
        rows = [one["others"][name] for one in found]
        lines.append(f"| {name}, {how} | {shown([100 * r['before'] for r in rows], '{:.0f}')} | {shown([100 * r['rule'] for r in rows], '{:.0f}')} |")
    pairs = [one["others"]["DPO"] for one in found]
    order = [[100 * one[key]["eval_rewards/accuracies"] for one in pairs] for key in ("pairs_before", "pairs")]
    margin = shown([one["pairs"]["eval_rewards/margins"] for one in pairs])
    lines += ["", f"DPO: {shown(order[1], '{:.1f}')} % of held-out pairs in the right order, with a margin of {margin} (before: 0)."]
    if clipped:
        lines += ["", "## What the clip is for", "", f"{len(clipped)} seeds, `learning_rate=3e-4`, three times that of above.", "",
                  "| passes over a rollout, cliprange | good answers, % | KL to the reference, nats an answer | largest KL of a rollout's updates, nats a token |",
                  "| --- | ---: | ---: | ---: |"]  # fmt: skip
        for name, *_ in CLIPPED:
            rows = [one["runs"][name] for one in clipped]
            lines.append(
                f"| {name} | {shown([100 * row['rule'] for row in rows], '{:.0f}')} | {shown([row['kl'] for row in rows])} | "
                f"{shown([row['approx_kl'] for row in rows], '{:.3f}')} |"
            )
    _draw(found)
    return "\n".join(lines) + "\n"


def _draw(found: list[dict[str, Any]]) -> None:
    """Truth and reward against the KL, a point for each seed and coefficient."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(COEFFICIENTS)))
    for coefficient, colour in zip(COEFFICIENTS, colours, strict=True):
        rows = [one["penalty"][str(coefficient)] for one in found]
        kl = [max(row["kl"], 0.05) for row in rows]
        axes[0].scatter(kl, [100 * row["rule"] for row in rows], color=colour, label=f"{coefficient:g}", s=36)
        axes[1].scatter(kl, [row["reward_model"] for row in rows], color=colour, s=36)
    for axis, name in zip(axes, ("good answers, by the rule (%)", "score of the reward model"), strict=True):
        axis.set(xscale="log", xlabel="KL to the reference (nats an answer)", ylabel=name)
        axis.grid(alpha=0.3)
    axes[0].axhline(100 * np.mean([one["penalty"]["0.0"]["before"] for one in found]), color="grey", ls="--", lw=1)
    axes[0].legend(title="kl_coef", fontsize=8)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["run", "clip", "report"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.job == "report":
        TABLE.write_text(report(), encoding="utf-8")
    else:
        {"run": run, "clip": clip}[options.job](options.seed)
