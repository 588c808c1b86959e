"""What reward functions are called with, and what they may not return."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from advantage.llm import PPOConfig, PPOTrainer, RewardModel
from advantage.llm.preferences import pairs_of
from advantage.llm.rewards import Asked, Rewards
from advantage.llm.rollout import Rollouts
from advantage.llm.scorer import Scorer
from advantage.llm.tokenizer import CHATML, Tokenizer

from .conftest import SMALL, loud
from .test_ppo import PROMPTS, SHORT
from .test_sft import model_of

TEXTS = ["a fox", "dogs"]


def asked(tokenizer, prompt="Again:"):
    rows = [{"prompt": prompt, "answer": 3, "other": None}, {"prompt": prompt, "answer": 5, "other": 1}]
    return Asked(rows, [tokenizer.encode("Again:")] * 2, [tokenizer.encode(text) for text in TEXTS], TEXTS)


def test_arguments_are_those_of_trl(tokenizer):
    """All to one that takes all, and to another what it takes; columns of the dataset by their names."""
    seen = {}

    def everything(prompts, completions, **others):
        seen.update(others, prompts=prompts, completions=completions)
        return [1.0, 2.0]

    def some(completions, answer):
        return [len(text) + a for text, a in zip(completions, answer, strict=True)]

    rewards = Rewards([everything, some], None, tokenizer)
    found, means = rewards(asked(tokenizer))
    np.testing.assert_allclose(found, [1 + 8, 2 + 9])
    assert means == {"everything": 1.5, "some": 8.5}
    assert seen["answer"] == [3, 5] and seen["other"] == [None, 1] and seen["completions"] == TEXTS and seen["prompts"] == ["Again:"] * 2
    assert seen["completion_ids"] == [tokenizer.encode(text) for text in TEXTS]
    rewards(asked(tokenizer, [{"role": "user", "content": "Again"}]))
    assert seen["completions"] == [[{"role": "assistant", "content": text}] for text in TEXTS]


def test_several_are_weighed_and_may_be_silent(tokenizer):
    def one(completions):
        return [1.0, None]

    rewards = Rewards([one, lambda completions: np.array([2.0, 3.0])], [10.0, 0.5], tokenizer)
    found, means = rewards(asked(tokenizer))
    np.testing.assert_allclose(found, [11.0, 1.5])
    assert means == {"one": 1.0, "<lambda>": 2.5}
    assert Rewards([one, one], None, tokenizer).names == ["one", "one_2"]
    with pytest.raises(ValueError, match="no reward function has a number for the answer 'dogs'"):
        Rewards(one, None, tokenizer)(asked(tokenizer))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "the reward function f returned 1 rewards for 2 answers"),
        ([1.0, math.nan], "the reward function f returned nan for answer 1: give finite numbers, or None"),
        (["good", "bad"], "the reward function f returned .*: give a list of numbers"),
        ([math.inf, 1.0], "the reward function f returned inf for answer 0"),
        (1.0, "the reward function f returned 1.0: give a list of numbers"),
        (None, "the reward function f returned None: give a list of numbers"),
    ],
)
def test_what_is_no_reward(returned, message, tokenizer):
    def f(**_):
        return returned

    with pytest.raises(ValueError, match=message):
        Rewards(f, None, tokenizer)(asked(tokenizer))


def test_weights_for_each(tokenizer):
    with pytest.raises(ValueError, match=r"reward_weights=\[1.0\] for 2 reward functions: give a finite number for each"):
        Rewards([len, len], [1.0], tokenizer)


def test_what_is_refused_before_training(tokenizer, unchecked_types):
    """Weights that are no numbers, things that judge nothing, columns that are not there, models that read less."""
    model, args = model_of(tokenizer), PPOConfig(**SHORT)
    with pytest.raises(ValueError, match="give a finite number for each"):
        Rewards(len, [math.nan], tokenizer)
    with pytest.raises(TypeError, match="reward_funcs has a LanguageModel: give a function, a RewardModel"):
        PPOTrainer(model, [model], args, PROMPTS)
    with pytest.raises(ValueError, match="the reward function f wants 'answer', which row 1 of the dataset has not"):
        PPOTrainer(model, named(lambda completions, answer: [0.0]), args, [{"prompt": "a", "answer": 1}, {"prompt": "b"}])
    short = RewardModel(Scorer(loud(dataclasses.replace(SMALL, vocab_size=300, max_position_embeddings=16)), jnp.ones((1, 16))), tokenizer)
    with pytest.raises(ValueError, match="reward_model has a context of 16 tokens, and prompt and answer may have"):
        PPOTrainer(model, short, args, PROMPTS)
    with pytest.raises(ValueError, match="value_model has a context of 16 tokens and model one of 64"):
        PPOTrainer(model, named(lambda completions: [0.0]), args, PROMPTS, value_model=short)
    with pytest.raises(ValueError, match="processing_class has another vocabulary"):
        PPOTrainer(model, named(lambda completions: [0.0]), args, PROMPTS, processing_class=tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0})))
    PPOTrainer(model, named(lambda completions: [0.0]), args, PROMPTS, processing_class=tokenizer)


def named(function):
    function.__name__ = "f"
    return function


def test_a_reward_model_reads_the_tokens_that_were_written(tokenizer, tmp_path):
    """Its own where it has the same; from a path too."""
    model = RewardModel(Scorer(loud(dataclasses.replace(SMALL, vocab_size=300)), jnp.ones((1, 16))), tokenizer)
    given = asked(tokenizer)
    by_tokens = model.score_tokens([[*p, *a] for p, a in zip(given.prompts, given.answers, strict=True)])
    np.testing.assert_allclose(Rewards(model, None, tokenizer)(given)[0], by_tokens, rtol=1e-6)
    model.save(tmp_path / "reward")
    np.testing.assert_allclose(Rewards(str(tmp_path / "reward"), None, tokenizer)(given)[0], by_tokens, rtol=1e-5)


def test_a_chat_is_scored_where_the_reward_model_was_trained(tokenizer):
    """At the token that ends the answer, though the template puts a line break behind it."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    chats = Tokenizer(backend, {"eos_token": "<|im_end|>"}, CHATML)
    model = RewardModel(Scorer(loud(dataclasses.replace(SMALL, vocab_size=chats.size)), jnp.ones((1, 16))), chats)
    prompt, answer = [{"role": "user", "content": "fox?"}], {"role": "assistant", "content": "dog"}
    written = [*chats.encode("dog"), chats.eos_id]
    row = {"prompt": prompt}
    tokens = chats.encode(chats.chat(prompt, add_generation_prompt=True), special=False)
    found = Rewards(model, None, chats)(Asked([row], [tokens], [written], ["dog"]))[0]
    np.testing.assert_allclose(found, model.score([[*prompt, answer]]), rtol=1e-5)
    pair = pairs_of(chats, [{"prompt": prompt, "chosen": [answer], "rejected": "cat"}], 64, False)[0]
    assert pair.chosen.tokens == [*tokens, *written] and pair.rejected.tokens == [*tokens, *chats.encode("cat"), chats.eos_id]
    whole = pairs_of(chats, [{"prompt": "fox?", "chosen": [*prompt, answer], "rejected": [*prompt, {"role": "assistant", "content": "cat"}]}], 64, False)[0]
    assert whole.chosen.tokens == pair.chosen.tokens and whole.chosen.learned == pair.chosen.learned


def test_a_reward_model_with_other_tokens_reads_the_text(tokenizer):
    words = tokenizers.models.WordLevel({"<end>": 0, "fox": 1, "a": 2, "dogs": 3, "Again": 4, ":": 5}, unk_token="<end>")
    backend = tokenizers.Tokenizer(words)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    other = RewardModel(Scorer(loud(SMALL), jnp.ones((1, 16))), Tokenizer(backend, {"eos_token": "<end>"}, CHATML))
    given = asked(tokenizer)
    np.testing.assert_allclose(Rewards(other, None, tokenizer)(given)[0], other.score(["Again:a fox", "Again:dogs"]), rtol=1e-6)
    chat = [{"role": "user", "content": "Again"}]
    found = Rewards(other, None, tokenizer)(asked(tokenizer, chat))[0]
    np.testing.assert_allclose(found, other.score([[*chat, {"role": "assistant", "content": text}] for text in TEXTS]), rtol=1e-6)


def test_answers_without_an_end_are_charged(tokenizer):
    args = PPOConfig(**SHORT, missing_eos_penalty=2.5, seed=3)
    rollouts = Rollouts(model_of(tokenizer), args, PROMPTS, Rewards(lambda completions: [1.0] * len(completions), None, tokenizer), 1)
    scored = rollouts.at(rollouts.model.decoder, 0)
    np.testing.assert_array_equal(scored.reward, np.where(scored.ended, 1.0, -1.5))
    assert scored.report["rollout/truncated"] == pytest.approx(1 - scored.ended.mean())
    assert scored.written.mask.sum(1).mean() == pytest.approx(scored.report["rollout/length"])


def test_a_reward_function_that_fails_loses_nothing(tokenizer, tmp_path):
    """What was learned before it is saved, and the run goes on from there."""
    calls = []

    def fails_late(completions):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no connection")
        return [float(len(text)) for text in completions]

    args = PPOConfig(**SHORT, max_steps=4, output_dir=str(tmp_path), learning_rate=1e-3)
    failed = PPOTrainer(model_of(tokenizer), fails_late, args, PROMPTS)
    with pytest.raises(RuntimeError, match="no connection") as found:
        failed.train()
    assert found.value.__notes__ == [f"the model after step 2 is in {tmp_path}"] and (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    assert not np.array_equal(failed.model.decoder.embedding, model_of(tokenizer).decoder.embedding)
    resumed = PPOTrainer(model_of(tokenizer), fails_late, args, PROMPTS)
    resumed.train(resume_from_checkpoint=True)
    assert len(calls) == 5 and (tmp_path / "checkpoint-4").is_dir()
