"""A language model: a decoder, its tokenizer, and where they came from."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from advantage.llm import families, folder, lora
from advantage.llm.decoder import Decoder
from advantage.llm.generate import Generation, GenerationConfig, Key, generate
from advantage.llm.tokenizer import Tokenizer

Prompt = Any
"""A text, or a list of messages, each a dict with `role` and `content`."""


class LanguageModel:
    """What `load_model` gives.

    Args:
        decoder: the network.
        tokenizer: its tokens.
        contents: of its `config.json`, which saving writes again; None: made from the decoder's config.
        name: of the folder or file, which an adapter refers to.

    Raises:
        ValueError: the tokenizer has tokens that the decoder does not know, or no `config.json` could say its config.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, contents: dict[str, Any] | None = None, name: str = ""):
        if tokenizer.size > decoder.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.size} tokens and the model {decoder.config.vocab_size}: they do not belong together"
            )
        if contents is None:
            families.check_expressible(decoder.config)
        self.decoder, self.tokenizer, self.contents, self.name = decoder, tokenizer, contents, name

    def encode(self, prompt: Prompt) -> list[int]:
        """A text's tokens, or those of a chat with the beginning of its answer."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if isinstance(prompt, dict) or not all(isinstance(message, dict) for message in prompt):
            raise TypeError(f"prompt {str(prompt)[:60]!r} is neither a text nor a list of messages: give a list of prompts")
        return self.tokenizer.encode(self.tokenizer.chat(prompt, add_generation_prompt=True), special=False)

    def generate(self, prompts: Sequence[Prompt], seed: int = 0, **config: Any) -> list[str]:
        """An answer to each prompt, a text or a list of messages.

        Args:
            prompts: a list of them.
            seed: of what is drawn.
            config: fields of `GenerationConfig`, such as `max_new_tokens`, `temperature` or `stop_strings`.

        Raises:
            ValueError: a prompt that is empty or too long, a setting that cannot work.
            TypeError: one text where a list is wanted, or a setting that isn't there.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts={prompts[:40]!r} is one text: give a list, [{prompts[:40]!r}]")
        written = self.write(prompts, seed, **config)
        before = [row[start : written.prompt_slots].tolist() for row, start in zip(written.tokens, written.start, strict=True)]
        return [self.tokenizer.continuation(*pair) for pair in zip(before, written.answers(), strict=True)]

    def write(self, prompts: Sequence[Prompt], seed: int = 0, **config: Any) -> Generation:
        """The same with tokens and log-probabilities."""
        settings = GenerationConfig(**config)
        return self.continued(self.decoder, [self.encode(prompt) for prompt in prompts], settings, jax.random.key(seed))

    def continued(self, decoder: Decoder, prompts: Sequence[Sequence[int]], config: GenerationConfig, key: Key) -> Generation:
        """Answers to prompts of tokens, by other weights of the same shapes."""
        token_bytes = self.tokenizer.token_bytes if config.stop_strings else None
        return generate(decoder, prompts, config, self.tokenizer.eos_ids, key, token_bytes)

    def save(self, path: str | os.PathLike) -> None:
        """Write a folder in Hugging Face's form, adapters merged into the weights, in the precision they have here."""
        folder.write_decoder(path, self.decoder, self.contents)
        self.tokenizer.save(path)

    def save_adapter(self, path: str | os.PathLike) -> None:
        """Write the LoRA alone, in PEFT's form.

        Raises:
            ValueError: there is none.
        """
        folder.write_adapter(path, self.decoder, self.name)
        self.tokenizer.save(path)

    def save_learned(self, path: str | os.PathLike) -> None:
        """The LoRA alone where there is one, else the model."""
        self.save_adapter(path) if lora.adapters(self.decoder) else self.save(path)

    def of(self, decoder: Decoder) -> LanguageModel:
        """The same with other weights."""
        return LanguageModel(decoder, self.tokenizer, self.contents, self.name)

    def add_lora(
        self, rank: int = 16, alpha: float | int = 32.0, target_modules: Sequence[str] | str = "all-linear", seed: int = 0
    ) -> None:
        """Train a change of low rank from now on, in place of the weights; see `lora.add_lora`."""
        self.decoder = lora.add_lora(self.decoder, jax.random.key(seed), rank, alpha, target_modules)


def load_model(path: str | os.PathLike, dtype: str | None = None, adapter: str | os.PathLike | None = None) -> LanguageModel:
    """A model from a folder in Hugging Face's form (Llama, SmolLM2, Mistral, Qwen2 and 2.5, Qwen3, Gemma 1 to 3) or a GGUF file.

    Args:
        path: of the folder or the `.gguf` file. A folder of a PEFT adapter is refused: give its base, and it as `adapter`.
        dtype: of the weights; None: float32 on a CPU, the file's own elsewhere.
        adapter: a folder with a LoRA in PEFT's form.

    Raises:
        FileNotFoundError: there is no such folder or file.
        NotAModelFolder: it holds no model, or weights that do not fit their config.
        ValueError: an architecture that isn't supported, or a tokenizer without an end.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no model at {path}: give a local folder or .gguf file; nothing is downloaded")
    if path.suffix == ".gguf":
        from advantage.llm.gguf_files import read_gguf

        decoder, contents, tokenizer = read_gguf(path, dtype)
    else:
        decoder, contents = folder.read_decoder(path, dtype)
        tokenizer = Tokenizer.read(path)
    if adapter is not None:
        decoder = folder.read_adapter(adapter, decoder)
    return LanguageModel(decoder, tokenizer, contents, str(path))
