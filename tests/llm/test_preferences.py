"""Reward models and direct preference optimisation: losses by hand, pairs to tokens, runs that go on, and what is learned."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from advantage.equations.preferences import bradley_terry, direct_preference
from advantage.llm import DPOConfig, DPOTrainer, LoraConfig, RewardConfig, RewardModel, RewardTrainer, load_reward_model
from advantage.llm.dpo import Compared, preference_loss
from advantage.llm.folder import NotAModelFolder, read_contents, read_decoder
from advantage.llm.likelihood import likelihood
from advantage.llm.preferences import batch_of, pairs_of
from advantage.llm.reward import pair_loss
from advantage.llm.scorer import Scorer, scores
from advantage.llm.tokenizer import Tokenizer

from .conftest import ANSWERS, FAMILIES, FOLDERS, SMALL, loud
from .test_sft import NAMES, QUIET, leaves, model_of

POLITE = [{"prompt": f"{name}?", "chosen": f" {name}, please", "rejected": f" {other}"} for name in NAMES for other in NAMES]


def test_bradley_terry_by_hand():
    chosen, rejected = jnp.array([1.0, 0.0, -2.0]), jnp.array([0.0, 0.0, 1.0])
    expected = [-math.log(1 / (1 + math.exp(-d))) for d in (1.0, 0.0, -3.0)]
    np.testing.assert_allclose(bradley_terry(chosen, rejected), expected, rtol=1e-6)
    assert float(bradley_terry(jnp.array([-200.0]), jnp.array([200.0]))[0]) == 400.0  # no overflow


def test_direct_preference_by_hand():
    """Eq. 7: `-log sigmoid(beta (log-ratio of the chosen - that of the rejected))`."""
    found = direct_preference(jnp.array([-3.0]), jnp.array([-5.0]), jnp.array([-4.0]), jnp.array([-4.5]), 0.5)
    assert float(found[0]) == pytest.approx(-math.log(1 / (1 + math.exp(-0.5 * (1.0 - -0.5)))), rel=1e-6)


def pairs_in(tokenizer, rows=POLITE, length=64):
    return pairs_of(tokenizer, rows, length, False)


def test_a_score_is_read_at_the_last_token(small):
    """Whatever stands behind it, and however far the text is moved to the right."""
    scorer = Scorer(small, jnp.ones((1, 16)))
    text = [3, 9, 5, 7]
    alone = scores(scorer, jnp.array([text]), jnp.array([4]))
    padded = scores(scorer, jnp.array([[*text, 1, 2], [*text, 0, 0]]), jnp.array([4, 4]))
    moved = scores(scorer, jnp.array([[8, 8, *text]]), jnp.array([6]), jnp.array([2]))
    np.testing.assert_allclose(padded, np.repeat(alone, 2), rtol=1e-5)
    np.testing.assert_allclose(moved, alone, rtol=1e-5)
    assert float(scores(scorer, jnp.array([text]), jnp.array([3]))[0]) != pytest.approx(float(alone[0]), rel=1e-3)


CLASSIFIERS = [f"{name}ForSequenceClassification" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text")]
SCORES = np.load(FOLDERS / "scores.npz", allow_pickle=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_transformers(name, tokenizer, tmp_path):
    """Of each family, whose head over the vocabulary no reward model has; and the folder that we write scores the same."""
    decoder = read_decoder(FOLDERS / name)[0]
    scorer = Scorer(decoder, jnp.linspace(-1, 1, 16)[None])
    tokens, start = jnp.asarray(ANSWERS["tokens"], jnp.int32), jnp.asarray(ANSWERS["start"], jnp.int32)
    whole = jnp.full(3, tokens.shape[1])
    np.testing.assert_allclose(scores(scorer, tokens, whole, start), SCORES[name], atol=1e-4)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<end>": 0, "fox": 1}, unk_token="<end>"))
    RewardModel(scorer, Tokenizer(words, {"eos_token": "<end>"}), json.loads((FOLDERS / name / "config.json").read_text())).save(tmp_path)
    contents, tensors = read_contents(tmp_path)
    assert contents["architectures"][0].endswith("ForSequenceClassification") and "lm_head.weight" not in tensors
    assert tensors["score.weight"].shape == (1, 16)
    assert contents["architectures"][0] in CLASSIFIERS
    # Padding that ends no text: transformers reads at the last token that is no padding.
    assert contents["pad_token_id"] != 0 and Tokenizer.read(tmp_path).pad_id == contents["pad_token_id"]
    loaded = load_reward_model(tmp_path).scorer
    np.testing.assert_allclose(scores(loaded, tokens, whole, start), SCORES[name], atol=1e-4)


def test_the_pairs_loss_by_hand(tokenizer):
    """Of each pair by itself; empty rows count nothing."""
    pairs = pairs_in(tokenizer)[:3]
    scorer = Scorer(loud(dataclasses.replace(SMALL, vocab_size=300)), jnp.linspace(-1, 1, 16)[None])
    loss, report = pair_loss(RewardConfig(center_rewards_coefficient=0.1), scorer, jax.tree.map(jnp.asarray, batch_of(pairs, 5, 32)))
    found = [[float(scores(scorer, jnp.array([side.tokens]), jnp.array([len(side.tokens)]))[0]) for side in pair] for pair in pairs]
    by_hand = sum(math.log1p(math.exp(r - c)) + 0.1 * (c + r) ** 2 for c, r in found)
    assert float(loss) == pytest.approx(by_hand, rel=1e-4) and float(report["count"]) == 3
    assert float(report["accuracy"]) == sum(c > r for c, r in found)
    assert float(report["margin"]) == pytest.approx(sum(c - r for c, r in found), rel=1e-4)


def test_the_preference_loss_by_hand(tokenizer):
    """From the log-probabilities of the answers' tokens alone."""
    pairs = pairs_in(tokenizer)[:2]
    decoder, reference = loud(dataclasses.replace(SMALL, vocab_size=300)), model_of(tokenizer).decoder

    def log_prob(which, side):
        found = likelihood(which, jnp.array([side.tokens]), jnp.array([0]), 1).log_prob[0]
        return float(sum(x for x, answer in zip(found, side.learned[1:], strict=True) if answer))

    given = [[log_prob(reference, side) for side in pair] for pair in pairs]
    ratios = [[log_prob(decoder, side) - r for side, r in zip(pair, g, strict=True)] for pair, g in zip(pairs, given, strict=True)]
    by_hand = sum(math.log1p(math.exp(-0.3 * (c - r))) for c, r in ratios)
    batch = Compared(jax.tree.map(jnp.asarray, batch_of(pairs, 2, 32)), *jnp.array(given).T)
    loss, report = preference_loss(DPOConfig(beta=0.3), decoder, batch)
    assert float(loss) == pytest.approx(by_hand, rel=1e-4)
    assert float(report["rewards/chosen"]) == pytest.approx(0.3 * sum(c for c, _ in ratios), rel=1e-4)


def test_pairs_to_tokens(tokenizer):
    """With a prompt, as chats, and as whole texts, whose prompt is what both begin with."""
    with_prompt = pairs_in(tokenizer, [{"prompt": "fox", "chosen": " dog", "rejected": " numbers"}])[0]
    whole = pairs_in(tokenizer, [{"chosen": "fox dog", "rejected": "fox numbers"}])[0]
    assert with_prompt.chosen.tokens == whole.chosen.tokens and with_prompt.chosen.tokens[-1] == tokenizer.eos_id
    first = [place for place, answer in enumerate(whole.chosen.learned) if answer][0]
    assert whole.chosen.tokens[:first] == whole.rejected.tokens[:first]
    assert tokenizer.decode(whole.chosen.tokens[:first]).startswith("fox")
    chat = [{"role": "user", "content": "fox"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("dog", "cat")]
    given = pairs_in(tokenizer, [{"prompt": chat, "chosen": answers[0], "rejected": answers[1]}])[0]
    implied = pairs_in(tokenizer, [{"chosen": chat + answers[0], "rejected": chat + answers[1]}])[0]
    assert given.chosen.tokens == implied.chosen.tokens and given.rejected.tokens == implied.rejected.tokens


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "chosen": "b"}], "row 0 of the dataset has no 'rejected': every row needs chosen, rejected"),
        ([{"chosen": "b", "rejected": "b"}], "row 0 of the dataset has the same chosen and rejected"),
        ([{"chosen": "x" * 200, "rejected": "b"}], "tokens, and max_length is 64"),
        ([], "the dataset is empty"),
    ],
)
def test_pairs_that_cannot_be_learned(rows, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        RewardTrainer(model_of(tokenizer), RewardConfig(**QUIET), rows)
    with pytest.raises(ValueError, match=message):
        DPOTrainer(model_of(tokenizer), args=DPOConfig(**QUIET), train_dataset=rows)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (DPOConfig, {"beta": 0}, "beta=0 has to be above 0"),
        (DPOConfig, {"max_length": 1}, "max_length=1 has to be at least 2"),
        (RewardConfig, {"max_length": 0}, "max_length=0 has to be at least 1"),
        (RewardConfig, {"center_rewards_coefficient": -1.0}, "center_rewards_coefficient=-1.0 has to be at least 0"),
    ],
)
def test_settings_that_cannot_work(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize("peft", [None, LoraConfig(r=4)])
def test_a_reward_model_is_saved_and_goes_on(peft, tokenizer, tmp_path):
    """It begins with a loss of log 2; a run from a checkpoint ends with the same bits; a folder scores as the model did."""
    args = RewardConfig(**QUIET | {"warmup_steps": 0}, max_steps=5, save_steps=3, learning_rate=3e-3, output_dir=str(tmp_path), logging_steps=1)
    trainer = RewardTrainer(model_of(tokenizer), args, POLITE, POLITE, peft)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), rel=1e-6)
    base = np.asarray(trainer.model.scorer.decoder.blocks.query.weight)
    whole = trainer.train()
    assert trainer.log_history[0]["loss"] == pytest.approx(math.log(2), rel=1e-6) and trainer.log_history[-1]["loss"] < 0.6
    again = RewardTrainer(model_of(tokenizer), args, POLITE, peft_config=peft).train(tmp_path / "checkpoint-3")
    texts = ["fox? fox, please", "dog? numbers"]
    assert whole.score(texts) == again.score(texts) and whole.score(texts)[0] > whole.score(texts)[1]
    if peft is not None:
        assert np.array_equal(base, whole.scorer.decoder.blocks.query.weight)
    trainer.save_model(tmp_path / "model")
    loaded = load_reward_model(tmp_path / "model")
    np.testing.assert_allclose(loaded.score(texts), whole.score(texts), rtol=1e-4)
    on = RewardTrainer(loaded, dataclasses.replace(args, max_steps=1), POLITE).train()
    assert on.score(texts) != loaded.score(texts)


def test_what_is_no_reward_model(tokenizer, tmp_path):
    model_of(tokenizer).save(tmp_path / "policy")
    with pytest.raises(NotAModelFolder, match="has no score.weight: a reward model has one score of a text"):
        load_reward_model(tmp_path / "policy")
    with pytest.raises(FileNotFoundError, match="no reward model at"):
        load_reward_model(tmp_path / "nothing")
    model = RewardModel.from_language_model(model_of(tokenizer))
    with pytest.raises(TypeError, match="is one text: give a list"):
        model.score("fox")
    with pytest.raises(ValueError, match="text 1 has .* tokens: a reward model with a context of 64 takes 1 to 64"):
        model.score(["fox", "x" * 200])
    with pytest.raises(ValueError, match="evaluate needs eval_dataset"):
        RewardTrainer(model, RewardConfig(**QUIET), POLITE).evaluate()


@pytest.mark.parametrize(("peft", "margin"), [(None, 1.0), (LoraConfig(r=8, lora_alpha=64), 0.5)])
@pytest.mark.parametrize("seed", range(2))
def test_preferences_are_learned(seed, peft, margin, tokenizer, tmp_path):
    """Held-out names too; the reference stays as it was, and before the first step the loss is log 2 to the bit."""
    held = [row for row in POLITE if NAMES[seed] in row["prompt"]]
    seen = [row for row in POLITE if row not in held]
    args = DPOConfig(**QUIET, max_steps=30, learning_rate=3e-3, output_dir=str(tmp_path), save_steps=20, seed=seed, logging_steps=1)
    trainer = DPOTrainer(model_of(tokenizer, seed), args=args, train_dataset=seen, eval_dataset=held, peft_config=peft)
    before = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(math.log(2), abs=1e-6) and before["eval_rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    model = trainer.train()
    after = trainer.evaluate()
    assert after["eval_rewards/accuracies"] > 0.9 and after["eval_rewards/margins"] > margin and after["eval_loss"] < 0.5
    again = DPOTrainer(model_of(tokenizer, seed), args=args, train_dataset=seen, peft_config=peft).train(tmp_path / "checkpoint-20")
    assert all(np.array_equal(a, b) for a, b in zip(leaves(model), leaves(again), strict=True))


def test_a_reference_of_another_vocabulary(tokenizer, tmp_path):
    words = tokenizers.models.WordLevel({"<end>": 0, "fox": 1}, unk_token="<end>")
    other = model_of(Tokenizer(tokenizers.Tokenizer(words), {"eos_token": "<end>"}))
    with pytest.raises(ValueError, match="ref_model has another vocabulary"):
        DPOTrainer(model_of(tokenizer), other, DPOConfig(**QUIET), POLITE)
