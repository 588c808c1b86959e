"""What answers are worth: reward functions and reward models, called with TRL's arguments, and what they return checked."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from advantage.llm import sharding
from advantage.llm.dataset import Row, taken
from advantage.llm.decoder import Decoder
from advantage.llm.dialogue import TextEnvironment, answers, is_environment
from advantage.llm.scorer import RewardModel, load_reward_model
from advantage.llm.tokenizer import Tokenizer

RewardFunction = Callable[..., Sequence[float | None]]
"""`f(prompts, completions, completion_ids, **columns)`, or any of these: a number an answer, or None where it has nothing to say.

Answers to chats are lists of one message, as in TRL, or of all that was said where an environment answers.
"""
Reward = RewardFunction | RewardModel | type[TextEnvironment] | str | os.PathLike
OURS = ("prompts", "completions", "completion_ids")


class Asked(NamedTuple):
    """Answers to be judged."""

    rows: Sequence[Row]  # of the dataset, one for each answer
    prompts: Sequence[Sequence[int]]  # tokens
    answers: Sequence[Sequence[int]]
    texts: Sequence[str]  # the answers
    messages: Sequence[Sequence[dict[str, Any]]] | None = None  # of conversations, what was said in turns
    earned: Sequence[float] | None = None  # of conversations, what their environment gave
    given: Sequence[Any] | None = None  # of conversations, their prompts with what the environment put behind them

    @property
    def asked(self) -> Sequence[Any]:
        """Prompts, texts or messages."""
        return [row["prompt"] for row in self.rows] if self.given is None else self.given


class Rewards:
    """All reward functions of a run, and what each weighs.

    Raises:
        TypeError: something else than a function, a `RewardModel`, a class of `TextEnvironment` or a path.
        ValueError: none, two environments, or weights that are no numbers, or not one for each.
    """

    def __init__(
        self, given: Reward | Sequence[Reward] | None, weights: Sequence[float] | None, tokenizer: Tokenizer, mesh: Sequence[int] = (1, 1, 1)
    ):
        given = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
        if not given:
            raise ValueError("reward_funcs is empty: give a function, a RewardModel or the path of one, or a list of these")
        loaded = [load_reward_model(each) if isinstance(each, str | os.PathLike) else each for each in given]
        for each in loaded:
            if not isinstance(each, RewardModel) and not callable(each):
                kind = type(each).__name__
                if answers(each):
                    raise TypeError(f"reward_funcs has an object of {kind}: give the class {kind} itself, of which each answer gets an object of its own")
                raise TypeError(f"reward_funcs has a {kind}: give a function, a RewardModel (RewardTrainer makes one of a language model) or its path")
        if weights is not None and (len(weights) != len(loaded) or not np.isfinite(weights).all()):
            raise ValueError(f"reward_weights={list(weights)} for {len(loaded)} reward functions: give a finite number for each")
        self.weights = np.ones(len(loaded)) if weights is None else np.asarray(weights, np.float64)
        self.tokenizer = tokenizer
        self.loaded = [each.of(sharding.placed(mesh, each.scorer)) if isinstance(each, RewardModel) else each for each in loaded]
        self.names = _names(self.loaded)
        self.functions = [_called(each, tokenizer) for each in self.loaded]
        environments = [each for each in self.loaded if is_environment(each)]
        if len(environments) > 1:
            raise ValueError(f"reward_funcs has {len(environments)} environments: one can answer the model; give functions beside it")
        self.environment: type[TextEnvironment] | None = environments[0] if environments else None

    @property
    def networks(self) -> list[Decoder]:
        """Of the reward models."""
        return [each.scorer.decoder for each in self.loaded if isinstance(each, RewardModel)]

    def check_context(self, longest: int) -> None:
        """Raise `ValueError` for a model that cannot read `longest` tokens."""
        for name, each in zip(self.names, self.loaded, strict=True):
            if isinstance(each, RewardModel) and each.scorer.decoder.config.max_position_embeddings < longest:
                context = each.scorer.decoder.config.max_position_embeddings
                raise ValueError(f"{name} has a context of {context} tokens, and prompt and answer may have {longest}: give one that reads as far")

    def check_columns(self, rows: Sequence[Row]) -> None:
        """Raise `ValueError` for a function that wants a column which some row lacks."""
        for name, each in zip(self.names, self.loaded, strict=True):
            if isinstance(each, RewardModel):
                continue
            environment = is_environment(each)
            needed, kind = (_required(each.reset) - {"self"}, "environment") if environment else (_required(each) - {*OURS}, "reward function")
            for wanted in needed:
                lacking = next((number for number, row in enumerate(rows) if wanted not in row), None)
                if lacking is not None:
                    raise ValueError(f"the {kind} {name} wants {wanted!r}, which row {lacking} of the dataset has not: give every row that column")

    def __call__(self, asked: Asked) -> tuple[Float[np.ndarray, " B"], dict[str, float]]:
        """`(the weighted sum for each answer, each function's mean)`.

        Raises:
            ValueError: another number of rewards than answers, one that is not finite, or an answer on which none has a say.
        """
        found = np.stack([_checked(name, f(asked), len(asked.answers)) for name, f in zip(self.names, self.functions, strict=True)])
        silent = np.flatnonzero(np.isnan(found).all(axis=0))
        if silent.size:
            raise ValueError(f"no reward function has a number for the answer {asked.texts[silent[0]]!r}: at least one must not give None")
        means = {name: float(np.nanmean(row)) if not np.isnan(row).all() else np.nan for name, row in zip(self.names, found, strict=True)}
        return np.nansum(found * self.weights[:, None], axis=0).astype(np.float32), means


def _checked(name: str, given: Any, count: int) -> Float[np.ndarray, " B"]:
    """NaN where the function has nothing to say."""
    try:
        values = list(given)
        numbers = np.array([np.nan if value is None else float(value) for value in values], np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the reward function {name} returned {given!r:.80}: give a list of numbers, one for each answer") from error
    if len(values) != count:
        raise ValueError(f"the reward function {name} returned {len(values)} rewards for {count} answers: give one for each")
    wrong = [place for place, value in enumerate(values) if value is not None and not np.isfinite(numbers[place])]
    if wrong:
        raise ValueError(f"the reward function {name} returned {values[wrong[0]]!r} for answer {wrong[0]}: give finite numbers, or None")
    return numbers


def _names(functions: Sequence[Any]) -> list[str]:
    """Under which each is logged; of one name, the later ones are numbered."""
    plain = ["reward_model" if isinstance(f, RewardModel) else getattr(f, "__name__", type(f).__name__) for f in functions]
    return [name if plain.index(name) == place else f"{name}_{plain[:place].count(name) + 1}" for place, name in enumerate(plain)]


def _required(function: RewardFunction) -> set[str]:
    """Parameters that it cannot do without."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(function).parameters
    return {name for name, p in parameters.items() if p.kind not in kinds and p.default is inspect.Parameter.empty}


def _called(each: RewardModel | RewardFunction | type[TextEnvironment], tokenizer: Tokenizer) -> Callable[[Asked], Any]:
    """What gives each answer a number."""
    if is_environment(each):
        return lambda asked: asked.earned
    return _model_function(each, tokenizer) if isinstance(each, RewardModel) else _function(each)


def _function(function: RewardFunction) -> Callable[[Asked], Any]:
    """Called with the arguments that it takes."""

    def call(asked: Asked) -> Any:
        chats = not isinstance(asked.asked[0], str)
        said = asked.messages or [[{"role": "assistant", "content": text}] for text in asked.texts]
        completions = [list(messages) for messages in said] if chats else list(asked.texts)
        known = {"prompts": list(asked.asked), "completions": completions,
                 "completion_ids": [list(answer) for answer in asked.answers]}  # fmt: skip
        columns = dict.fromkeys(name for row in asked.rows for name in row if name not in ("prompt", *OURS))
        known |= {name: [row.get(name) for row in asked.rows] for name in columns}
        return function(**taken(function, known))

    return call


def _model_function(model: RewardModel, tokenizer: Tokenizer) -> Callable[[Asked], Sequence[float]]:
    """The tokens as they were written, where the reward model has the same; else their text in its own."""
    if model.tokenizer.backend.get_vocab() == tokenizer.backend.get_vocab():
        return lambda asked: model.score_tokens([[*prompt, *answer] for prompt, answer in zip(asked.prompts, asked.answers, strict=True)])

    def call(asked: Asked) -> Sequence[float]:
        said = asked.messages or [[{"role": "assistant", "content": text}] for text in asked.texts]
        whole = zip(asked.asked, asked.texts, said, strict=True)
        return model.score([prompt + text if isinstance(prompt, str) else [*prompt, *messages] for prompt, text, messages in whole])

    return call

