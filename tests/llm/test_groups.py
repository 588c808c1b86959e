"""GRPO and RLOO: advantages, losses and gradients by hand, runs that go on, and small models that learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.equations.sequences import (
    asymmetric_surrogate,
    centred_in_groups,
    leave_one_out,
    normalised_in_groups,
    of_whole_answers,
    truncated_importance,
)
from advantage.llm import GRPOConfig, GRPOTrainer, LoraConfig, RLOOConfig, RLOOTrainer, grpo, rloo, training
from advantage.llm.rollout import Written, log_probs, log_probs_in_batches

from .conftest import SMALL, loud
from .test_ppo import PROMPTS, SHORT, short_words
from .test_sft import leaves, model_of

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
REWARDS = jnp.array([1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 5.0])


def test_advantages_by_hand():
    """Groups of four: mean 3 and deviation sqrt(14 / 3), and one in which all are equal."""
    np.testing.assert_allclose(centred_in_groups(REWARDS, 4), [-2, -1, 0, 3, 0, 0, 0, 0], atol=1e-6)
    deviation = np.sqrt(14 / 3) + 1e-4
    np.testing.assert_allclose(normalised_in_groups(REWARDS, 4), np.array([-2, -1, 0, 3, 0, 0, 0, 0]) / deviation, rtol=1e-5)
    others = [(2 + 3 + 6) / 3, (1 + 3 + 6) / 3, (1 + 2 + 6) / 3, (1 + 2 + 3) / 3]
    np.testing.assert_allclose(leave_one_out(REWARDS, 4)[:4], REWARDS[:4] - np.array(others), rtol=1e-5)


def test_surrogates_by_hand():
    """Upwards there is more room; where clipped, the pessimistic one counts."""
    ratio, advantage = np.array([1.25, 1.5, 0.7, 0.7, 1.5]), np.array([1.0, 1.0, 1.0, -1.0, -1.0])
    found = asymmetric_surrogate(jnp.log(jnp.asarray(ratio)), jnp.zeros(5), jnp.asarray(advantage), 0.2, 0.28)
    np.testing.assert_allclose(found, [1.25, 1.28, 0.7, -0.8, -1.5], rtol=1e-5)
    log_ratio, mask = jnp.array([[0.3, 0.1, 9.0], [0.6, 0.0, 0.3]]), jnp.array([[1.0, 1, 0], [1, 1, 1]])
    np.testing.assert_allclose(of_whole_answers(log_ratio, mask), [[0.2] * 3, [0.3] * 3], rtol=1e-5)
    weight, gradient = jax.value_and_grad(lambda x: truncated_importance(x, jnp.float32(0.0), 2.0))(jnp.float32(0.5))
    assert float(weight) == pytest.approx(np.exp(0.5)) and float(gradient) == 0.0
    assert float(truncated_importance(jnp.float32(5.0), jnp.float32(0.0), 2.0)) == 2.0


def answered(lengths=(3, 1, 2, 3)):
    """Answers of these lengths by a loud model, with what was before an update, rewards and a reference."""
    decoder = loud(SMALL)
    tokens = jax.random.randint(jax.random.key(0), (4, 7), 0, 64)
    mask = (jnp.arange(3)[None] < jnp.asarray(lengths)[:, None]).astype(jnp.float32)
    written = Written(tokens, jnp.array([0, 1, 0, 2], jnp.int32), mask, jnp.zeros((4, 3)))
    new = np.asarray(log_probs(GRPOConfig(), decoder, written)[0])
    old = new - np.log(np.array([[1.1, 1.25, 0.7], [1.5, 1, 1], [0.6, 1.0, 1], [0.95, 1.27, 1.4]]))
    old = jnp.asarray(np.where(np.asarray(mask) > 0, old, 0.0), jnp.float32)
    return decoder, written._replace(sampled_log_prob=old), new, old


ADVANTAGE = np.array([1.0, -1.0, 2.0, 0.5])


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_losses_by_hand(name):
    """Each paper's objective, in loops over answers and their tokens."""
    decoder, written, new, old = answered()
    reference = old + 0.1 * written.mask
    config = GRPOConfig(loss_type=name, beta=0.3, max_completion_length=5)
    rows = grpo.Rows(written, old, reference, jnp.asarray(ADVANTAGE))
    loss, report = grpo.LOSSES[name](config, decoder, rows)
    low, high = 0.8, {"dapo": 1.28}.get(name, 1.2)
    answers = []
    for i, length in enumerate((3, 1, 2, 3)):
        ratios = np.exp(new[i, :length] - np.asarray(old)[i, :length])
        if name == "gspo":
            ratios = np.full(length, np.prod(ratios) ** (1 / length))
        clipped = np.minimum(ratios * ADVANTAGE[i], np.clip(ratios, low, high) * ADVANTAGE[i])
        apart = np.asarray(reference)[i, :length] - new[i, :length]
        answers.append(clipped - 0.3 * (np.exp(apart) - apart - 1))
    by_hand = {
        "grpo": np.mean([a.mean() for a in answers]),
        "gspo": np.mean([a.mean() for a in answers]),
        "dr_grpo": sum(a.sum() for a in answers) / (5 * 4),
        "dapo": sum(a.sum() for a in answers) / 9,
    }[name]
    assert float(loss / report["count"]) == pytest.approx(-by_hand, rel=1e-4)
    assert float(report["tokens"]) == 9
    ratios = np.exp(new - np.asarray(old))
    whole = np.stack([np.full(3, np.prod(ratios[i, :n]) ** (1 / n)) for i, n in enumerate((3, 1, 2, 3))])
    seen = whole if name == "gspo" else ratios
    outside = ((seen < low) | (seen > high)) * np.asarray(written.mask)
    assert float(report["clip_fraction"]) == outside.sum() > 0 or name == "gspo"
    k1 = sum((new[i, :n] - np.asarray(reference)[i, :n]).sum() for i, n in enumerate((3, 1, 2, 3)))
    assert float(report["kl"]) == pytest.approx(k1, rel=1e-3)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_the_first_step_is_the_policy_gradient(name):
    """Without the old log-probabilities the ratio is 1, and the gradient that of the advantages times log p."""
    decoder, written, _, _ = answered()
    written = written._replace(sampled_log_prob=log_probs(GRPOConfig(), decoder, written)[0])
    config = GRPOConfig(loss_type=name, max_completion_length=5)
    mask = np.asarray(written.mask)
    weights = {"grpo": mask / mask.sum(1, keepdims=True), "gspo": mask / mask.sum(1, keepdims=True), "dr_grpo": mask / 5, "dapo": mask}[name]

    def reinforce(decoder):
        return -jnp.sum(weights * ADVANTAGE[:, None] * log_probs(config, decoder, written)[0])

    found = jax.grad(lambda d: grpo.LOSSES[name](config, d, grpo.Rows(written, None, None, jnp.asarray(ADVANTAGE)))[0])(decoder)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(jax.grad(reinforce)(decoder)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_whole_answers_are_the_actions_of_rloo():
    """Its advantages charge the answer's distance; its gradient is that of `advantage * log p(answer)`."""
    decoder, written, _, _ = answered()
    config = RLOOConfig(beta=0.2, num_generations=4, per_device_train_batch_size=4)
    written = written._replace(sampled_log_prob=log_probs(config, decoder, written)[0])
    reference = jax.tree.map(lambda x: 1.1 * x, decoder)
    reward = jnp.array([1.0, 2.0, 3.0, 4.0])
    rows, report = rloo.prepare(config, decoder, reference, written, reward)
    apart = np.asarray(jnp.sum(written.sampled_log_prob - log_probs_in_batches(config, reference, written), axis=1))
    charged = np.asarray(reward) - 0.2 * apart
    expected = [charged[i] - np.mean(np.delete(charged, i)) for i in range(4)]
    np.testing.assert_allclose(rows.advantage, expected, rtol=1e-4)
    assert float(report["rollout/kl"]) == pytest.approx(apart.mean(), rel=1e-4)

    def reinforce(decoder):
        return -jnp.sum(jnp.asarray(expected) * jnp.sum(log_probs(config, decoder, written)[0], axis=1))

    found = jax.grad(lambda d: rloo.loss(config, d, rows)[0])(decoder)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(jax.grad(reinforce)(decoder)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)
    moved = rows._replace(log_prob=rows.log_prob - jnp.log(1.5))  # where whole answers have become likelier than the clip allows
    away = rows.written._replace(sampled_log_prob=rows.written.sampled_log_prob - jnp.log(1.5) / written.mask.sum(1, keepdims=True) * written.mask)
    loss, report = rloo.loss(config, decoder, moved._replace(written=away))
    by_hand = -sum(min(1.5 * a, 1.2 * a) for a in expected)
    assert float(loss) == pytest.approx(by_hand, rel=1e-4) and float(report["clip_fraction"] / report["tokens"]) == 1.0


@pytest.mark.parametrize(("name", "peft"), [("grpo", None), ("grpo", LoraConfig(r=4)), ("rloo", None), ("rloo", LoraConfig(r=4))])
def test_a_run_that_goes_on_ends_with_the_same_bits(name, peft, tokenizer, tmp_path):
    """And begins with no distance from the reference, and a sampler that agrees with the trainer."""
    trainer, config = TRAINERS[name]
    args = config(**SHORT | {"per_device_train_batch_size": 4, "temperature": 0.8}, gradient_accumulation_steps=2, num_generations=4, num_iterations=2,
                  max_steps=4, save_steps=2, logging_steps=1, learning_rate=1e-3, beta=0.1, output_dir=str(tmp_path))  # fmt: skip
    whole = trainer(model_of(tokenizer), short_words, args, PROMPTS, peft_config=peft)
    whole.train()
    first = whole.log_history[0]
    assert abs(first["kl"]) < 1e-5 and abs(first["kl_k3"]) < 1e-5 and first["gap"] < 1e-4 and whole.log_history[-1]["kl_k3"] > 1e-4
    again = trainer(model_of(tokenizer), short_words, args, PROMPTS, peft_config=peft).train(tmp_path / "checkpoint-2")
    assert all(np.array_equal(a, b) for a, b in zip(leaves(whole.model), leaves(again), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(leaves(again), jax.tree.leaves(training.copied(model_of(tokenizer).decoder)), strict=False))


@pytest.mark.filterwarnings("ignore:the reward rises")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("changes", [{"loss_type": name} for name in grpo.LOSSES] + [{"rloo": True}], ids=str)
def test_small_models_learn_what_is_rewarded(changes, seed, tokenizer, tmp_path):
    trainer, config = TRAINERS["rloo" if "rloo" in changes else "grpo"]
    args = config(**SHORT | {"per_device_train_batch_size": 32}, num_generations=4, max_steps=35, learning_rate=3e-3, seed=seed, beta=0.0,
                  output_dir=str(tmp_path), logging_steps=35, **{k: v for k, v in changes.items() if k != "rloo"})  # fmt: skip
    found = trainer(model_of(tokenizer, seed), short_words, args, PROMPTS, PROMPTS)
    before = found.evaluate()["eval_reward"]
    found.train()
    after = found.evaluate()["eval_reward"]
    assert before < 0.0 and after > 0.8, (before, after)


def test_answers_that_were_cut_may_teach_nothing(tokenizer, tmp_path):
    """Their tokens have no weight; in their groups their rewards still count."""
    args = GRPOConfig(**SHORT | {"max_completion_length": 2}, mask_truncated_completions=True, num_generations=8, output_dir=str(tmp_path))
    trainer = GRPOTrainer(model_of(tokenizer), short_words, args, PROMPTS)
    scored = trainer.rollouts.at(trainer.model.decoder, 0)
    rows = trainer._rows(trainer.model.decoder, scored)
    assert 0 < scored.ended.sum() < len(scored.ended)
    np.testing.assert_array_equal(rows.written.mask, scored.written.mask * scored.ended[:, None])
    np.testing.assert_allclose(rows.advantage, normalised_in_groups(jnp.asarray(scored.reward), 8), rtol=1e-6)
    for name in ("grpo", "dr_grpo", "gspo"):  # so that a step is as large with them as without
        assert float(grpo.LOSSES[name](args, trainer.model.decoder, jax.tree.map(jnp.asarray, rows))[1]["count"]) == 16


def test_how_rewards_are_scaled(tokenizer, tmp_path):
    """As each loss's paper has it, unless told otherwise."""
    assert grpo._advantage_of(GRPOConfig()) is normalised_in_groups
    assert grpo._advantage_of(GRPOConfig(loss_type="dr_grpo")) is centred_in_groups
    assert grpo._advantage_of(GRPOConfig(loss_type="dr_grpo", scale_rewards="group")) is normalised_in_groups
    assert grpo._advantage_of(GRPOConfig(scale_rewards=False)) is centred_in_groups


def test_a_loss_of_ones_own(tokenizer, tmp_path):
    """A function in the place of a name."""
    seen = []

    def positive_only(config, decoder, rows):
        seen.append(rows.advantage.shape)
        return grpo.dapo_loss(config, decoder, rows._replace(advantage=jnp.maximum(rows.advantage, 0.0)))

    args = GRPOConfig(**SHORT, loss_type=positive_only, max_steps=1, num_generations=4, learning_rate=1e-3, output_dir=str(tmp_path))
    GRPOTrainer(model_of(tokenizer), short_words, args, PROMPTS).train()
    assert seen and seen[0] == (16,)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (GRPOConfig, {"num_generations": 1}, "num_generations=1 has to be a whole number of at least 2: an answer is compared with others"),
        (RLOOConfig, {"num_generations": 1}, "num_generations=1 has to be a whole number of at least 2: the others of a group"),
        (GRPOConfig, {"num_iterations": 0}, "num_iterations=0 has to be at least 1"),
        (GRPOConfig, {"beta": -1.0}, "beta=-1.0 has to be at least 0"),
        (GRPOConfig, {"epsilon": 0.0}, "epsilon=0.0 has to be above 0"),
        (GRPOConfig, {"loss_type": "ppo"}, "loss_type='ppo' is not known: choose from grpo, dr_grpo, dapo, gspo"),
        (GRPOConfig, {"scale_rewards": "batch"}, "scale_rewards='batch' is not known: choose from group, none"),
        (RLOOConfig, {"epsilon": 0.0}, "epsilon=0.0 has to be above 0"),
        (RLOOConfig, {"beta": -1.0}, "beta=-1.0 has to be at least 0"),
    ],
)
def test_settings_that_cannot_work(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_batch_that_is_no_multiple_of_the_group(tokenizer):
    args = GRPOConfig(**SHORT | {"per_device_train_batch_size": 6}, num_generations=4)
    with pytest.raises(ValueError, match="the 6 answers of a step .* are no multiple of num_generations=4"):
        GRPOTrainer(model_of(tokenizer), short_words, args, PROMPTS)


def test_every_prompt_once_before_any_twice(tokenizer):
    """Though 36 prompts are no multiple of the 5 of a step; each of a step's groups is one prompt."""
    args = GRPOConfig(**SHORT | {"per_device_train_batch_size": 20}, num_generations=4)
    rollouts = GRPOTrainer(model_of(tokenizer), short_words, args, PROMPTS).rollouts
    order = [row for step in range(36) for row in rollouts._rows_of(step)]
    assert all(sorted(order[first : first + 36]) == list(range(36)) for first in range(0, 180, 36))
    assert order[:36] != order[36:72] and rollouts.per_epoch == 8
    rollouts.at(loud(dataclasses.replace(SMALL, vocab_size=300)), 0)
    assert [sample.prompt for sample in rollouts.samples[::4]] == [sample.prompt for sample in rollouts.samples[3::4]]
