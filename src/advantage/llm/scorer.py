"""Numbers from texts: a decoder whose hidden states a linear head reads, as a reward model and as a value function."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from advantage.llm import families, folder
from advantage.llm.dataset import ended, slots_for, texts_right, until_end
from advantage.llm.decoder import Decoder, hidden_states
from advantage.llm.model import LanguageModel
from advantage.llm.tokenizer import Tokenizer

SCORE = "score.weight"
"""The head's name in a file, as transformers' `...ForSequenceClassification` has it."""


class Scorer(eqx.Module):
    """`score @ hidden state`, of one text or of each token."""

    decoder: Decoder
    score: Float[Array, "1 D"]


class ActorCritic(eqx.Module):
    """A policy and its value function, which reads the policy's hidden states, or those of a decoder of its own."""

    decoder: Decoder
    score: Float[Array, "1 D"]
    trunk: Decoder | None = None


def read_out(score: Float[Array, "1 D"], hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
    """A number of each hidden state, in float32."""
    return jnp.einsum("...d,d->...", hidden, score[0], preferred_element_type=jnp.float32)


def untrained(decoder: Decoder) -> Scorer:
    """A scorer that finds everything 0."""
    return Scorer(decoder, jnp.zeros((1, decoder.config.hidden_size), decoder.norm.dtype))


def scores(
    scorer: Scorer, tokens: Int[Array, "B T"], length: Int[Array, " B"], start: Int[Array, " B"] | None = None, remat: bool = False
) -> Float[Array, " B"]:
    """Of whole texts: what is read at the last token.

    Args:
        length: slots up to and with the last token; 0 for no text, whose score means nothing.
        start: the slot of the first token; None: 0.
    """
    start = jnp.zeros(tokens.shape[0], jnp.int32) if start is None else start
    hidden = hidden_states(scorer.decoder, tokens, start, remat)
    last = jnp.maximum(length - 1, 0)[:, None, None]
    return read_out(scorer.score, jnp.take_along_axis(hidden, last, axis=1)[:, 0])


_scores = jax.jit(scores)


class RewardModel:
    """A model that says how good a text is; what `RewardTrainer` makes and `load_reward_model` reads.

    Args:
        scorer: the network.
        tokenizer: its tokens.
        contents: of its `config.json`; None: made from the decoder's config.
    """

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, contents: dict[str, Any] | None = None, name: str = ""):
        # A head over the vocabulary is nothing that a score needs.
        config = dataclasses.replace(scorer.decoder.config, tie_word_embeddings=True)
        contents = families.json_of(config, "float32") if contents is None else {**contents, "tie_word_embeddings": True}
        decoder = Decoder(scorer.decoder.embedding, scorer.decoder.blocks, scorer.decoder.norm, None, config)
        self.model = LanguageModel(decoder, tokenizer, contents, name)  # checks that both belong together
        self.scorer = Scorer(decoder, scorer.score)

    @classmethod
    def from_language_model(cls, model: LanguageModel) -> RewardModel:
        """One that finds everything equally good, to be trained."""
        return cls(untrained(model.decoder), model.tokenizer, model.contents, model.name)

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokens."""
        return self.model.tokenizer

    def encode(self, text: Any) -> list[int]:
        """Tokens of a whole text, with the one that ends it, or of messages."""
        if isinstance(text, str):
            return ended(self.tokenizer, self.tokenizer.encode(text))
        return until_end(self.tokenizer, self.tokenizer.encode(self.tokenizer.chat(text), special=False))

    def score(self, texts: Sequence[Any], batch_size: int = 16) -> list[float]:
        """How good each text, or list of messages, is.

        Raises:
            TypeError: one text where a list is wanted.
            ValueError: a text longer than the model's context.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts={texts[:40]!r} is one text: give a list, [{texts[:40]!r}]")
        return self.score_tokens([self.encode(text) for text in texts], batch_size)

    def score_tokens(self, rows: Sequence[Sequence[int]], batch_size: int = 16) -> list[float]:
        """The same of tokens."""
        context = self.scorer.decoder.config.max_position_embeddings
        for number, row in enumerate(rows):
            if not 0 < len(row) <= context:
                raise ValueError(f"text {number} has {len(row)} tokens: a reward model with a context of {context} takes 1 to {context}")
        found: list[float] = []
        for first in range(0, len(rows), batch_size):
            part = rows[first : first + batch_size]
            tokens, length = texts_right(part, batch_size, slots_for(map(len, part), context))
            found += np.asarray(_scores(self.scorer, tokens, length))[: len(part)].tolist()
        return found

    def save(self, path: str | os.PathLike) -> None:
        """Write a folder that transformers loads as `AutoModelForSequenceClassification`, adapters merged into the weights."""
        tokenizer = _padding_apart(self.tokenizer)
        contents = {**(self.model.contents or {}), "architectures": [families.FAMILIES[self.scorer.decoder.config.model_type].classifier],
                    "num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "pad_token_id": tokenizer.pad_id}  # fmt: skip
        folder.write_decoder(path, self.scorer.decoder, contents, {SCORE: np.asarray(self.scorer.score)})
        tokenizer.save(path)

    def of(self, scorer: Scorer) -> RewardModel:
        """The same with other weights."""
        return RewardModel(scorer, self.tokenizer, self.model.contents, self.model.name)


def _padding_apart(tokenizer: Tokenizer) -> Tokenizer:
    """With padding by a token that ends no text: transformers reads a score at the last token that is no padding."""
    if tokenizer.pad_id not in tokenizer.eos_ids:
        return tokenizer
    names = [tokenizer.special[name] for name in ("unk_token", "bos_token")]
    candidates = [tokenizer.backend.token_to_id(name) for name in names if name is not None] + list(range(tokenizer.size))
    pad = next((token for token in candidates if token is not None and token not in tokenizer.eos_ids), tokenizer.pad_id)
    settings = {**tokenizer.settings, "pad_token": tokenizer.backend.id_to_token(pad)}
    return Tokenizer(tokenizer.backend, settings, tokenizer.chat_template, tokenizer.eos_ids)


def load_reward_model(path: str | os.PathLike, dtype: str | None = None) -> RewardModel:
    """A reward model from a folder in Hugging Face's form, of one label.

    Raises:
        FileNotFoundError: there is no such folder.
        NotAModelFolder: it holds no model with one score.
        ValueError: an architecture that isn't supported.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no reward model at {path}: give a local folder, such as RewardTrainer's output_dir; nothing is downloaded")
    contents, tensors = folder.read_contents(path)
    score = tensors.pop(SCORE, None)
    if score is None or score.shape[0] != 1:
        found = "no score.weight" if score is None else f"{score.shape[0]} scores"
        raise folder.NotAModelFolder(f"{path} has {found}: a reward model has one score of a text; train one with RewardTrainer")
    config = dataclasses.replace(families.config_of(contents), tie_word_embeddings=True)
    decoder = folder.assemble(config, tensors, dtype, str(path))
    return RewardModel(Scorer(decoder, jnp.asarray(score, decoder.norm.dtype)), Tokenizer.read(path), contents, str(path))
