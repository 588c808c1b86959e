"""Text to tokens and back by the model's own `tokenizer.json`, chats by its own template. Neither is ours."""

from __future__ import annotations

import datetime
import functools
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from advantage.llm.folder import NotAModelFolder, read_json

try:
    import jinja2
    import jinja2.sandbox
    import tokenizers
except ImportError as error:
    raise ImportError(f"language models need {error.name}: pip install 'advantage[llm]'") from error

Messages = Sequence[dict[str, Any]]
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template of a chat between `<|im_start|>` and `<|im_end|>`, for tokenizers that come with none."""


class Tokenizer:
    """A model's tokenizer, its special tokens and its chat template.

    Args:
        backend: of the library `tokenizers`.
        settings: the contents of `tokenizer_config.json`: special tokens, and more that is kept for saving.
        chat_template: in Jinja; None: chats are refused.
        eos_ids: tokens that end a text; empty: the `eos_token` of the settings.

    Raises:
        ValueError: no token ends a text, or one that the tokenizer doesn't have.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        settings: dict[str, Any],
        chat_template: str | None = None,
        eos_ids: Sequence[int] = (),
    ):
        self.backend, self.settings, self.chat_template = backend, settings, chat_template
        self.special = {name: _text(settings.get(name)) for name in SPECIAL}
        own = self._id("eos_token")
        self.eos_ids = tuple(dict.fromkeys([*eos_ids, *([own] if own is not None else [])]))
        if not self.eos_ids:
            raise ValueError(
                "no end-of-sequence token: give eos_token in tokenizer_config.json, or eos_token_id in generation_config.json; "
                "without it no answer ever ends"
            )
        self.eos_id = self.eos_ids[0] if own is None else own  # what a text that is learned ends with
        pad = self._id("pad_token")
        self.pad_id = self.eos_id if pad is None else pad  # nothing reads it: lengths say what is padding

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Tokenizer:
        """The tokenizer of a model's folder.

        Raises:
            NotAModelFolder: there is no `tokenizer.json`.
            ValueError: no token ends a text.
        """
        folder = pathlib.Path(folder)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise NotAModelFolder(f"{folder} has no tokenizer.json: save the tokenizer in its fast form (use_fast=True)")
        settings = read_json(folder / "tokenizer_config.json")
        for name, token in read_json(folder / "special_tokens_map.json").items():
            settings.setdefault(name, token)
        alone = folder / "chat_template.jinja"
        template = alone.read_text(encoding="utf-8") if alone.is_file() else _default_template(settings.get("chat_template"))
        ends: list[int] = []
        for name in ("generation_config.json", "config.json"):
            said = read_json(folder / name).get("eos_token_id")
            ends += [] if said is None else [said] if isinstance(said, int) else said
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise NotAModelFolder(f"{file} cannot be read: {error}") from error
        # A file may ask for padding or a length of its own: lengths are ours.
        backend.no_padding()
        backend.no_truncation()
        return cls(backend, settings, template, ends)

    def save(self, folder: str | os.PathLike) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and the template."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.settings}
        settings.pop("chat_template", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        generation = {"eos_token_id": list(self.eos_ids), "pad_token_id": self.pad_id}
        if self._id("bos_token") is not None:
            generation["bos_token_id"] = self._id("bos_token")
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")

    @property
    def size(self) -> int:
        """One more than the largest token."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, special: bool = True) -> list[int]:
        """A text's tokens; `special`: with those that the tokenizer puts around it, such as a beginning."""
        return self.backend.encode(text, add_special_tokens=special).ids

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """The text; special tokens are left out."""
        return self.backend.decode([int(token) for token in tokens], skip_special_tokens=not special)

    def continuation(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of `tokens` behind others: alone, some tokenizers drop the space that they begin with."""
        first, both = self.decode(before), self.decode([*before, *tokens])
        return both[len(first) :] if both.startswith(first) else self.decode(tokens)

    def chat(self, messages: Messages, add_generation_prompt: bool = False, **variables: Any) -> str:
        """Messages, each with a `role` and `content`, as the model's own template writes them.

        Args:
            add_generation_prompt: with the beginning of the answer.
            variables: more that the template knows, such as `tools` or `enable_thinking`.

        Raises:
            ValueError: there is no template, or it refuses these messages.
        """
        if self.chat_template is None:
            raise ValueError("the tokenizer has no chat template: give plain text, or set tokenizer.chat_template, such as to CHATML")
        known = {name: token for name, token in self.special.items() if token is not None}
        variables = {"tools": None, "documents": None, **known, **variables}
        try:
            return _compiled(self.chat_template).render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **variables
            )
        except Exception as error:  # whatever a template raises
            raise ValueError(f"the chat template refuses these messages: {error}") from error

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """What each token adds to a text, in UTF-8; special tokens their names."""
        special = {token for token, kept in self.backend.get_added_tokens_decoder().items() if kept.special}
        byte_level = "ByteLevel" in str(json.loads(self.backend.to_str()).get("decoder"))
        pieces = [self.backend.id_to_token(token) for token in range(self.size)]
        table = _bytes_of_characters()

        def one(token: int, piece: str | None) -> bytes:
            if piece is None or token in special:
                return (piece or "").encode()
            if byte_level and all(character in table for character in piece):
                return bytes(table[character] for character in piece)
            if not byte_level and (match := re.fullmatch(r"<0x([0-9A-F]{2})>", piece)):
                return bytes([int(match[1], 16)])
            return piece.replace("▁", " ").encode()

        return [one(token, piece) for token, piece in enumerate(pieces)]

    def _id(self, name: str) -> int | None:
        """A special token's number."""
        token = self.special[name]
        if token is None:
            return None
        number = self.backend.token_to_id(token)
        if number is None:
            raise ValueError(f"{name}={token!r} is no token of the tokenizer")
        return number


def _text(token: str | dict[str, Any] | None) -> str | None:
    """A special token is its text, or a table with it."""
    return token.get("content") if isinstance(token, dict) else token


def _default_template(given: str | list[dict[str, str]] | None) -> str | None:
    """Of several, the one named default."""
    if isinstance(given, list):
        return {entry["name"]: entry["template"] for entry in given}.get("default")
    return given


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    """In a sandbox: a template comes with the model, from anywhere."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda x, indent=None, **_: json.dumps(x, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def _bytes_of_characters() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for (Radford et al., 2019): printable ones for themselves."""
    itself = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(256 + place): byte for place, byte in enumerate(others)}
