"""Conversations: an environment answers what the model writes, and the model goes on, until one of them ends it.

Only the model's own tokens are learned; what it was told stands between them as what it has read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from advantage.llm.dataset import Row, taken
from advantage.llm.decoder import Decoder
from advantage.llm.generate import GenerationConfig, Key, bucket
from advantage.llm.model import LanguageModel, Prompt

Message = dict[str, Any]
Told = str | Message | Sequence[Message]
"""A text; in a chat also a message with its role, such as "tool", or several."""

MARK = "[[answer-7f3a]]"
"""What stands for an answer where a template is asked what follows one."""


@runtime_checkable
class TextEnvironment(Protocol):
    """What answers: one object for each conversation, made without arguments."""

    def reset(self, **columns: Any) -> str | None:
        """Begin anew with the row's columns (or those of them that it takes); a text is put behind the prompt.

        Called once for each row before training, and then for each answer; whatever is dear to make should wait for a step.
        """

    def step(self, text: str) -> tuple[Told, float, bool]:
        """`(what the model is told, reward, whether this was the end)` for what it wrote."""


def is_environment(given: Any) -> bool:
    """A class with `reset` and `step`; a function is none."""
    return inspect.isclass(given) and answers(given)


def answers(given: Any) -> bool:
    """Whether it has `reset` and `step`, be it a class or not."""
    return callable(getattr(given, "reset", None)) and callable(getattr(given, "step", None))


class Conversation(NamedTuple):
    """One that has ended."""

    asked: Prompt  # with what `reset` put behind it
    prompt: list[int]  # its tokens
    tokens: list[int]  # behind the prompt
    own: list[bool]  # which of them the model wrote
    log_prob: list[float]  # of its own, by what they were drawn from; 0 of the others
    messages: list[Message]  # in turns: "assistant" is the model
    reward: float  # of all steps
    turns: int
    ended: bool  # by the environment, and no answer was cut

    @property
    def text(self) -> str:
        """All that was said behind the prompt, as it was said."""
        return "".join(str(message["content"]) for message in self.messages)


class Table:
    """Holds as many conversations as there are rows, side by side.

    Args:
        model: who writes.
        made: a class of `TextEnvironment`.
        config: how each of its answers is written.
        max_turns: answers in a conversation at most.
        context: tokens of a conversation at most, its prompt included.
        fitted: takes a prompt's tokens, and cuts or refuses what is too long.

    Raises:
        ValueError: a class that cannot be made without arguments.
    """

    def __init__(
        self, model: LanguageModel, made: Callable[[], TextEnvironment], config: GenerationConfig, max_turns: int, context: int,
        fitted: Callable[[list[int]], list[int]] = list,
    ):  # fmt: skip
        self.model, self.made, self.config, self.max_turns, self.context, self.fitted = model, made, config, max_turns, context, fitted
        try:
            self.environments = [made()]
        except TypeError as error:
            raise ValueError(f"the environment {getattr(made, '__name__', made)} cannot be made without arguments ({error}): give defaults") from error

    def check(self, rows: Sequence[Row]) -> list[list[int]]:
        """Each row's prompt, with what `reset` puts behind it.

        Raises:
            ValueError: one is too long, `reset` returned no text, or a chat's template leaves no place for what is said next.
        """
        prompts = []
        for number, row in enumerate(rows):
            try:
                asked, tokens = self._asked(self.environments[0], row)
            except ValueError as error:
                raise ValueError(f"row {number}, with what {type(self.environments[0]).__name__}.reset put behind its prompt: {error}") from error
            prompts.append(tokens)
            if number == 0 and not isinstance(asked, str):
                _after(self.model, asked, [], [{"role": "user", "content": "?"}])
        return prompts

    def _asked(self, environment: TextEnvironment, row: Row) -> tuple[Prompt, list[int]]:
        asked = _behind(row["prompt"], _reset(environment, row))
        return asked, self.fitted(self.model.encode(asked))

    def hold(self, decoder: Decoder, rows: Sequence[Row], key: Key) -> list[Conversation]:
        """A conversation about each row, by the decoder's weights.

        Raises:
            ValueError: a step returned something else than it should.
        """
        self.environments += [self.made() for _ in range(len(rows) - len(self.environments))]
        pairs = zip(self.environments, rows, strict=False)
        open_ = [_Open(environment, *self._asked(environment, row)) for environment, row in pairs]
        live = list(open_)
        for turn in range(self.max_turns):
            if not live:
                break
            self._answer(decoder, live, jax.random.fold_in(key, turn))
            live = [talk for talk in live if not talk.over]
        return [talk.closed() for talk in open_]

    def _answer(self, decoder: Decoder, live: Sequence[_Open], key: Key) -> None:
        """One answer in each of these, and what is said to it."""
        prompts = [talk.prompt + talk.tokens for talk in live]
        # Of few numbers of rows, so that few programs are compiled.
        prompts += [prompts[-1]] * (min(bucket(len(live)), len(self.environments)) - len(live))
        tokenizer = self.model.tokenizer
        found = self.model.continued(decoder, prompts, self.config, key)
        for talk, before, answer, ended, log_prob in zip(
            live, prompts, found.answers(), found.ended, found.sampled_log_prob, strict=False
        ):
            talk.wrote(answer, tokenizer.continuation(before, answer), bool(ended), log_prob)
            if not talk.over:
                between = _between(self.model, talk, answer[-1] in tokenizer.eos_ids)
                room = self.context - self.config.max_new_tokens
                if len(talk.prompt) + len(talk.tokens) + len(between) > room:
                    talk.over = True  # cut: there is no room for another answer
                else:
                    talk.heard(between)


class _Open:
    """A conversation that goes on."""

    def __init__(self, environment: TextEnvironment, asked: Prompt, prompt: list[int]):
        self.environment, self.asked, self.prompt = environment, asked, prompt
        self.tokens: list[int] = []
        self.own: list[bool] = []
        self.log_prob: list[float] = []
        self.messages: list[Message] = []
        self.reward, self.turns, self.over, self.ended = 0.0, 0, False, False

    def wrote(self, answer: list[int], text: str, ended: bool, log_prob: np.ndarray) -> None:
        """The model; then the environment takes its step. An answer that was cut is the last."""
        self.tokens += answer
        self.own += [True] * len(answer)
        self.log_prob += log_prob[: len(answer)].tolist()
        self.messages.append({"role": "assistant", "content": text})
        self.turns += 1
        told, reward, done = _stepped(self.environment, text)
        self.reward += reward
        self.over, self.ended = done or not ended, done and ended
        if not self.over:
            self.messages += _messages(told)

    def heard(self, between: list[int]) -> None:
        """What was said to it."""
        self.tokens += between
        self.own += [False] * len(between)
        self.log_prob += [0.0] * len(between)

    def closed(self) -> Conversation:
        """As it ended; what was said last and not answered is left out."""
        last = max((place + 1 for place, own in enumerate(self.own) if own), default=0)
        messages = self.messages[: max((n + 1 for n, message in enumerate(self.messages) if message["role"] == "assistant"), default=0)]
        return Conversation(self.asked, self.prompt, self.tokens[:last], self.own[:last], self.log_prob[:last], messages, self.reward, self.turns, self.ended)


def _between(model: LanguageModel, talk: _Open, ended: bool) -> list[int]:
    """Tokens between an answer and the next: in a chat, as its template writes them.

    What was written stays as it is, token by token, so that what is learned is what was drawn.
    """
    count = next(n for n, message in enumerate(reversed(talk.messages)) if message["role"] == "assistant")
    told = talk.messages[len(talk.messages) - count :]
    tokenizer = model.tokenizer
    if isinstance(talk.asked, str):
        return tokenizer.encode("".join(str(message["content"]) for message in told), special=False)
    after = _after(model, talk.asked, talk.messages[: -count - 1], told)
    if ended:
        # The answer has its end already, whatever space the template puts before it.
        ends = map(tokenizer.backend.id_to_token, tokenizer.eos_ids)
        after = next((after.lstrip().removeprefix(end) for end in ends if after.lstrip().startswith(end)), after)
    return tokenizer.encode(after, special=False)


def _after(model: LanguageModel, asked: Prompt, before: Sequence[Message], told: Sequence[Message]) -> str:
    """What a chat's template writes behind an answer, up to the beginning of the next."""
    whole = model.tokenizer.chat([*asked, *before, {"role": "assistant", "content": MARK}, *told], add_generation_prompt=True)
    if MARK not in whole:
        raise ValueError("the chat template does not write what the assistant said as it is: an environment needs one that does, such as CHATML")
    return whole.partition(MARK)[2]


def _reset(environment: TextEnvironment, row: Row) -> str | None:
    told = environment.reset(**taken(environment.reset, row))
    if told is not None and not isinstance(told, str):
        raise ValueError(f"{type(environment).__name__}.reset returned {told!r:.80}: give a text to put behind the prompt, or None")
    return told


def _behind(prompt: Prompt, told: str | None) -> Prompt:
    """A prompt with a text behind it; in a chat, at the end of its last message."""
    if not told:
        return prompt
    if isinstance(prompt, str):
        return prompt + told
    if not isinstance(prompt[-1]["content"], str):
        raise ValueError("the last message's content is no text: put nothing behind it, by returning None")
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + told}]


def _stepped(environment: TextEnvironment, text: str) -> tuple[Told, float, bool]:
    """What a step returned, checked."""
    found, name = environment.step(text), type(environment).__name__
    if not isinstance(found, tuple) or len(found) != 3:
        raise ValueError(f"{name}.step returned {found!r:.80}: give (what the model is told, reward, whether this was the end)")
    told, reward, done = found
    try:
        number = float(reward)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise ValueError(f"{name}.step returned the reward {reward!r:.80}: give a finite number")
    if not done and not isinstance(told, str):
        said = [told] if isinstance(told, dict) else told
        if not isinstance(said, Sequence) or not all(isinstance(each, dict) and {"role", "content"} <= set(each) for each in said):
            raise ValueError(f"{name}.step returned {told!r:.80} to be told: give a text, or messages with role and content")
    return told, number, bool(done)


def _messages(told: Told) -> list[Message]:
    if isinstance(told, str):
        return [{"role": "user", "content": told}]
    return [told] if isinstance(told, dict) else list(told)
