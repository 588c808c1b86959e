"""The command line of language models: `advantage llm generate`, `chat`, `sft`, `reward`, `dpo`, `ppo`, `grpo`, `rloo`, `plan`."""

from __future__ import annotations

import dataclasses
import math
import runpy
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, SuppressFixed, UseAppendAction, arg

from advantage.llm import plan as plans
from advantage.llm.dpo import DPOConfig, DPOTrainer
from advantage.llm.families import config_of
from advantage.llm.folder import read_json
from advantage.llm.grpo import GRPOConfig, GRPOTrainer
from advantage.llm.model import load_model
from advantage.llm.ppo import PPOConfig, PPOTrainer
from advantage.llm.reward import RewardConfig, RewardTrainer
from advantage.llm.rloo import RLOOConfig, RLOOTrainer
from advantage.llm.sft import SFTConfig, SFTTrainer
from advantage.llm.training import LoraConfig

Model = Annotated[Positional[Path], arg(metavar="MODEL")]
Rows = Annotated[Positional[Path], arg(metavar="DATASET")]
Eval = Annotated[Path | None, arg(metavar="DATASET")]
Rewards = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="REWARD")]
Debug = Annotated[bool, arg(help="On an error, show where it arose.")]


def generate(
    model: Model,
    prompts: Annotated[Positional[tuple[str, ...]], arg(metavar="PROMPT")],
    /,
    *,
    adapter: Annotated[Path | None, arg(metavar="DIR")] = None,
    plain: bool = False,
    max_new_tokens: int = 128,
    temperature: float = 0.7,
    top_k: int = 0,
    top_p: float = 0.95,
    stop: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT")] = (),
    seed: int = 0,
    debug: Debug = False,
) -> None:
    """Answer prompts, all at once.

    Args:
        model: A folder in Hugging Face's form, or a .gguf file.
        prompts: What to answer.
        adapter: A folder with a LoRA in PEFT's form.
        plain: Go on with the text as it is, even where the model has a chat template.
        max_new_tokens: Tokens of an answer at most.
        temperature: 0 takes the most likely token always.
        top_k: Only so many of the most likely tokens; 0: all.
        top_p: Only the most likely tokens that have this probability together.
        stop: A text that ends an answer; may be repeated.
        seed: Of what is drawn.
        debug: On an error, show where it arose.
    """
    found = load_model(model, adapter=adapter)
    chat = found.tokenizer.chat_template is not None and not plain
    asked = [[{"role": "user", "content": prompt}] if chat else prompt for prompt in prompts]
    answers = found.generate(
        asked, seed=seed, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, stop_strings=stop
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        print(answer if chat else prompt + answer)


def chat(
    model: Model,
    /,
    *,
    adapter: Annotated[Path | None, arg(metavar="DIR")] = None,
    system: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
    debug: Debug = False,
) -> None:
    """Talk with a model, a line at a time; an empty line or Ctrl-D ends it.

    Args:
        model: A folder in Hugging Face's form, or a .gguf file; it needs a chat template.
        adapter: A folder with a LoRA in PEFT's form.
        system: What the model is told first.
        max_new_tokens: Tokens of an answer at most.
        temperature: 0 takes the most likely token always.
        top_p: Only the most likely tokens that have this probability together.
        seed: Of what is drawn.
        debug: On an error, show where it arose.
    """
    found = load_model(model, adapter=adapter)
    messages = [] if system is None else [{"role": "system", "content": system}]
    first = len(messages)
    found.encode([*messages, {"role": "user", "content": "?"}])  # refuses before anything is typed
    while line := _line():
        messages.append({"role": "user", "content": line})
        room = found.decoder.config.max_position_embeddings - max_new_tokens
        while len(found.encode(messages)) > room and len(messages) > first + 1:
            del messages[first : first + 2]
            print("(the oldest question and answer are forgotten: the context is full)", file=sys.stderr)
        (answer,) = found.generate(
            [messages], seed=seed + len(messages), max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p
        )
        print(answer, flush=True)
        messages.append({"role": "assistant", "content": answer})


def sft(
    model: Model, dataset: Rows, /, *, args: OmitArgPrefixes[SuppressFixed[SFTConfig]] = SFTConfig(), eval_dataset: Eval = None,
    lora: int = 0, resume: bool = False, debug: Debug = False,
) -> None:
    """Teach a model to write given texts.

    Args:
        model: A folder in Hugging Face's form, or a .gguf file.
        dataset: JSON lines or Parquet with text, prompt and completion, or messages.
        eval_dataset: Rows that are measured before and after.
        lora: Train an adapter of this rank in place of the weights; 0: the weights.
        resume: Go on from the newest checkpoint in the folder.
        debug: On an error, show where it arose.
    """  # fmt: skip
    trainer = SFTTrainer(model, args, dataset, eval_dataset, _lora(lora))
    before = None if eval_dataset is None else trainer.evaluate()
    _learn(trainer, resume)
    if before is not None:
        print(f"loss of {eval_dataset}: {before['eval_loss']:.3f} before, {trainer.evaluate()['eval_loss']:.3f} after")


def reward(
    model: Model, dataset: Rows, /, *, args: OmitArgPrefixes[SuppressFixed[RewardConfig]] = RewardConfig(), eval_dataset: Eval = None,
    lora: int = 0, resume: bool = False, debug: Debug = False,
) -> None:
    """Teach a model which of two answers is preferred: a reward model.

    Args:
        model: A folder in Hugging Face's form, or a .gguf file.
        dataset: JSON lines or Parquet with chosen and rejected, and a prompt or none.
        eval_dataset: Pairs that are measured afterwards.
        lora: Train an adapter of this rank and the score; 0: all weights.
        resume: Go on from the newest checkpoint in the folder.
        debug: On an error, show where it arose.
    """  # fmt: skip
    trainer = RewardTrainer(model, args, dataset, eval_dataset, _lora(lora))
    _learn(trainer, resume)
    if eval_dataset is not None:
        print(f"{trainer.evaluate()['eval_accuracy']:.1%} of the pairs of {eval_dataset} in the right order")


def dpo(
    model: Model, dataset: Rows, /, *, args: OmitArgPrefixes[SuppressFixed[DPOConfig]] = DPOConfig(), eval_dataset: Eval = None,
    lora: int = 0, resume: bool = False, debug: Debug = False,
) -> None:
    """Teach a model to prefer the chosen answers, without a reward model.

    Args:
        model: A folder in Hugging Face's form, or a .gguf file.
        dataset: JSON lines or Parquet with chosen and rejected, and a prompt or none.
        eval_dataset: Pairs that are measured afterwards.
        lora: Train an adapter of this rank in place of the weights; 0: the weights.
        resume: Go on from the newest checkpoint in the folder.
        debug: On an error, show where it arose.
    """  # fmt: skip
    trainer = DPOTrainer(model, args=args, train_dataset=dataset, eval_dataset=eval_dataset, peft_config=_lora(lora))
    _learn(trainer, resume)
    if eval_dataset is not None:
        print(f"{trainer.evaluate()['eval_rewards/accuracies']:.1%} of the pairs of {eval_dataset} in the right order")


def ppo(
    model: Model, dataset: Rows, /, *, reward: Rewards, args: OmitArgPrefixes[SuppressFixed[PPOConfig]] = PPOConfig(), eval_dataset: Eval = None,
    lora: int = 0, resume: bool = False, debug: Debug = False,
) -> None:
    """Teach a model to write what is rewarded, by PPO with a value function, near to where it began.

    Args:
        model: A folder in Hugging Face's form, or a .gguf file.
        dataset: JSON lines or Parquet with a prompt, and columns for the reward functions.
        reward: A reward model's folder, or a function as file.py:name; may be repeated.
        eval_dataset: Prompts that are answered before and after.
        lora: Train an adapter of this rank in place of the weights; 0: the weights.
        resume: Go on from the newest checkpoint in the folder.
        debug: On an error, show where it arose.
    """  # fmt: skip
    _reinforce(PPOTrainer(model, _rewards(reward), args, dataset, eval_dataset, peft_config=_lora(lora)), resume)


def grpo(
    model: Model, dataset: Rows, /, *, reward: Rewards, args: OmitArgPrefixes[SuppressFixed[GRPOConfig]] = GRPOConfig(),
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo"] = "dapo", eval_dataset: Eval = None,
    lora: int = 0, resume: bool = False, debug: Debug = False,
) -> None:
    """Teach a model to write what is rewarded, by comparing its answers to the same prompt.

    Args:
        model: A folder in Hugging Face's form, or a .gguf file.
        dataset: JSON lines or Parquet with a prompt, and columns for the reward functions.
        reward: A reward model's folder, or a function as file.py:name; may be repeated.
        loss: Whose objective.
        eval_dataset: Prompts that are answered before and after.
        lora: Train an adapter of this rank in place of the weights; 0: the weights.
        resume: Go on from the newest checkpoint in the folder.
        debug: On an error, show where it arose.
    """  # fmt: skip
    args = dataclasses.replace(args, loss_type=loss)
    _reinforce(GRPOTrainer(model, _rewards(reward), args, dataset, eval_dataset, peft_config=_lora(lora)), resume)


def rloo(
    model: Model, dataset: Rows, /, *, reward: Rewards, args: OmitArgPrefixes[SuppressFixed[RLOOConfig]] = RLOOConfig(), eval_dataset: Eval = None,
    lora: int = 0, resume: bool = False, debug: Debug = False,
) -> None:
    """Teach a model to write what is rewarded, by REINFORCE with the other answers as the baseline.

    Args:
        model: A folder in Hugging Face's form, or a .gguf file.
        dataset: JSON lines or Parquet with a prompt, and columns for the reward functions.
        reward: A reward model's folder, or a function as file.py:name; may be repeated.
        eval_dataset: Prompts that are answered before and after.
        lora: Train an adapter of this rank in place of the weights; 0: the weights.
        resume: Go on from the newest checkpoint in the folder.
        debug: On an error, show where it arose.
    """  # fmt: skip
    _reinforce(RLOOTrainer(model, _rewards(reward), args, dataset, eval_dataset, peft_config=_lora(lora)), resume)


def plan(
    *,
    model: Annotated[Path, arg(metavar="CONFIG")],
    devices: int | None = None,
    algorithm: Literal["sft", "reward", "dpo", "ppo", "grpo", "rloo"] = "ppo",
    mesh: tuple[int, int, int] | None = None,
    rows: int = 8,
    batches: int = 1,
    prompt: int = 512,
    completion: int = 512,
    updates: int | None = None,
    lora: int = 0,
    reward_model: bool = False,
    full_precision: bool = False,
    keep_activations: bool = False,
    memory: float = 80.0,
    debug: Debug = False,
) -> None:
    """What a run would take on so many devices: bytes on each and seconds a step, computed from shapes; nothing is loaded.

    Args:
        model: A config.json, or its folder.
        devices: How many there are; 1, or as many as the mesh has, where it is not given.
        algorithm: What is run.
        mesh: Devices along data, fsdp and tensor; all along fsdp where it is not given.
        rows: Texts, or pairs, that pass the network at once on each device.
        batches: Such batches of a step.
        prompt: Tokens of a prompt.
        completion: Tokens of an answer.
        updates: Passes over a step's texts; 4 of ppo and 1 of the others where it is not given.
        lora: Train an adapter of this rank; 0: all weights.
        reward_model: One of the same size stands beside the policy.
        full_precision: Everything in float32, not bfloat16.
        keep_activations: Nothing is computed twice: no gradient checkpointing.
        memory: Of a device, in GB.
        debug: On an error, show where it arose.
    """
    split = mesh or (1, devices or 1, 1)
    if devices is not None and math.prod(split) != devices:
        raise ValueError(f"mesh={split} has {math.prod(split)} devices and devices={devices}: give sizes with that product")
    if not memory > 0:
        raise ValueError(f"memory={memory} has to be above 0, in GB")
    file = model / "config.json" if model.is_dir() else model
    if not file.is_file():
        raise ValueError(f"model={model}: there is no file {file}; give a config.json or its folder")
    job = plans.Job(algorithm, split, rows, prompt, completion, (4 if algorithm == "ppo" else 1) if updates is None else updates, batches, lora,
                    weights="float32" if full_precision else "bfloat16", bf16=not full_precision,
                    gradient_checkpointing=not keep_activations, reward_model=reward_model)  # fmt: skip
    config = config_of(read_json(file))
    if job.tokens > config.max_position_embeddings:
        raise ValueError(f"prompt={prompt} and completion={completion} are more than the model's context of {config.max_position_embeddings}: give less")
    print(plans.described(config, job, plans.Device(memory=memory * 1e9)))


def _reinforce(trainer: PPOTrainer | GRPOTrainer | RLOOTrainer, resume: bool) -> None:
    """Learn from rewards, measured before and after where there are prompts for it."""
    before = None if trainer.eval_rollouts is None else trainer.evaluate()
    _learn(trainer, resume)
    if before is not None:
        print(f"reward: {before['eval_reward']:.3g} before, {trainer.evaluate()['eval_reward']:.3g} after")


def _learn(trainer: Any, resume: bool) -> None:
    """Train and save."""
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    print(f"saved to {trainer.args.output_dir}")


def _lora(rank: int) -> LoraConfig | None:
    """An adapter of this rank, or none."""
    return LoraConfig(r=rank, lora_alpha=2 * rank) if rank else None


def _rewards(given: tuple[str, ...]) -> list[Any]:
    """Functions of files, and folders of reward models as they are.

    Raises:
        ValueError: there is no such file, or no such function in it.
    """
    return [_function_of(*text.rsplit(":", 1)) if ".py:" in text else text for text in given]


def _function_of(file: str, name: str) -> Any:
    if not Path(file).is_file():
        raise ValueError(f"reward={file}:{name}: there is no file {file}")
    found = runpy.run_path(file).get(name)
    if not callable(found):
        raise ValueError(f"reward={file}:{name}: {file} has no function {name}")
    return found


def _line() -> str:
    """What was typed; empty at the end."""
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    return sys.stdin.readline().strip()


COMMANDS = {"generate": generate, "chat": chat, "sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo, "grpo": grpo, "rloo": rloo, "plan": plan}
