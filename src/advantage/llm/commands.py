"""The command line of language models: `advantage llm generate`, `chat` and `sft`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

Model = Annotated[Positional[Path], arg(metavar="MODEL")]
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
    from advantage.llm.model import load_model

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
    from advantage.llm.model import load_model

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
    model: Model,
    dataset: Annotated[Positional[Path], arg(metavar="DATASET")],
    /,
    *,
    out: Annotated[Path, arg(metavar="DIR")] = Path("out"),
    eval_dataset: Annotated[Path | None, arg(metavar="DATASET")] = None,
    learning_rate: float = 2e-5,
    epochs: float = 3.0,
    max_steps: int = -1,
    batch_size: int = 8,
    accumulate: int = 1,
    max_length: int = 1024,
    truncate: bool = False,
    assistant_only: bool = False,
    lora: int = 0,
    seed: int = 42,
    resume: bool = False,
    debug: Debug = False,
) -> None:
    """Teach a model to write given texts.

    Args:
        model: A folder in Hugging Face's form, or a .gguf file.
        dataset: JSON lines or Parquet with text, prompt and completion, or messages.
        out: Where checkpoints, logs and the model go.
        eval_dataset: Rows that are measured before and after.
        learning_rate: It falls to 0 at the end.
        epochs: Passes over the dataset.
        max_steps: Steps in all, in place of epochs.
        batch_size: Texts that pass the network at once.
        accumulate: Such batches for a step.
        max_length: Tokens of a row at most.
        truncate: Cut longer rows; otherwise they are refused.
        assistant_only: Of messages, learn only the assistant's.
        lora: Train an adapter of this rank in place of the weights; 0: the weights.
        seed: Of the order of rows.
        resume: Go on from the newest checkpoint in the folder.
        debug: On an error, show where it arose.
    """
    from advantage.llm import LoraConfig, SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(out), learning_rate=learning_rate, num_train_epochs=epochs, max_steps=max_steps, per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate, max_length=max_length, truncate=truncate, assistant_only_loss=assistant_only, seed=seed,
    )  # fmt: skip
    adapter = LoraConfig(r=lora, lora_alpha=2 * lora) if lora else None
    trainer = SFTTrainer(model, args, dataset, eval_dataset, adapter)
    before = None if eval_dataset is None else trainer.evaluate()
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if before is not None:
        print(f"loss of {eval_dataset}: {before['eval_loss']:.3f} before, {trainer.evaluate()['eval_loss']:.3f} after")
    print(f"saved {'the adapter' if lora else 'the model'} to {out}")


def _line() -> str:
    """What was typed; empty at the end."""
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    return sys.stdin.readline().strip()


COMMANDS = {"generate": generate, "chat": chat, "sft": sft}
