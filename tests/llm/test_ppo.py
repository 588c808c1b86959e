"""PPO on tokens: it is control's PPO, its rewards and advantages by hand, runs that go on, and a small model that learns."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import ppo as control
from advantage.equations.distributions import Categorical
from advantage.equations.divergence import steered_coefficient
from advantage.llm import LanguageModel, LoraConfig, PPOConfig, PPOTrainer, RewardModel, ppo, training
from advantage.llm import decoder as decoders
from advantage.llm.policy_run import Watch
from advantage.llm.rollout import Written, log_probs_in_batches
from advantage.llm.scorer import ActorCritic, Scorer, read_out
from advantage.networks import optimisers
from advantage.types import Chunk

from .conftest import SMALL, loud
from .test_sft import NAMES, QUIET, leaves, model_of, same

PROMPTS = [{"prompt": f"Again: {a}, {b}."} for a in NAMES for b in NAMES]
SHORT = QUIET | {"max_completion_length": 12, "temperature": 1.0, "warmup_steps": 0, "lr_scheduler_type": "constant"}


def short_words(completions):
    """The more e the better, and the nearer to 8 letters."""
    return [text.count("e") / 4 - abs(len(text) - 8) / 8 for text in completions]


class AsControl(eqx.Module):
    """A policy on tokens with the methods that control's PPO calls: an observation is a prompt, an action a token."""

    policy: ActorCritic
    log_std: None = None

    def latent(self, obs):
        start = jnp.zeros(obs.reshape((-1, obs.shape[-1])).shape[0], jnp.int32)
        hidden = decoders.hidden_states(self.policy.decoder, obs.reshape((-1, obs.shape[-1])), start)[:, -1]
        return hidden.reshape((*obs.shape[:-1], -1))

    @property
    def actor(self):
        return self

    def distribution(self, latent, mask):
        return Categorical(decoders.logits(self.policy.decoder, latent) / 0.7)

    def value(self, obs):
        return read_out(self.policy.score, self.latent(obs))

    def both(self, obs, mask):
        latent = self.latent(obs)
        return self.distribution(latent, mask), read_out(self.policy.score, latent)


def test_on_a_task_of_one_step_it_is_ppo_of_control(unchecked_types):
    """Four epochs on the same prompts, tokens and rewards end with the same weights, policy's and value's."""
    decoder, reference = loud(SMALL), jax.tree.map(lambda x: 1.1 * x, loud(SMALL))
    policy = ActorCritic(decoder, 0.3 * jnp.ones((1, 16)))
    prompts = jax.random.randint(jax.random.key(1), (8, 5), 0, 64)
    token, reward = jax.random.randint(jax.random.key(2), (8,), 0, 64), jax.random.normal(jax.random.key(3), (8,))
    args = PPOConfig(
        max_completion_length=1, temperature=0.7, num_ppo_epochs=4, per_device_train_batch_size=8, learning_rate=1e-3, adam_epsilon=1e-5,
        lr_scheduler_type="constant", kl_coef=0.1, cliprange=0.1, cliprange_value=0.15, vf_coef=0.4, max_grad_norm=0.5, gamma=0.97, lam=0.9,
    )  # fmt: skip
    written = Written(jnp.concatenate([prompts, token[:, None]], axis=1), jnp.zeros(8, jnp.int32), jnp.ones((8, 1)), jnp.zeros((8, 1)))
    written = written._replace(sampled_log_prob=log_probs_in_batches(args, decoder, written))

    rows, report = ppo.prepare(args, policy, reference, written, reward, jnp.float32(0.1))
    learner = training.start(policy, training.optimiser_of(args, 4))
    for _ in range(4):
        batches = jax.tree.map(lambda x: x[None], rows)
        learner, learned = training.step(args, 4, ppo.loss, learner, policy, batches)
    tokens = training.network_of(learner, policy)

    apart = written.sampled_log_prob[:, 0] - log_probs_in_batches(args, reference, written)[:, 0]
    none = jnp.zeros((1, 8), bool)
    chunk = Chunk(
        prompts[None], ~none, None, token[None], (reward - 0.1 * apart)[None], ~none, none, ~none, prompts[None], prompts,
    )  # fmt: skip
    config = control.Config(
        learning_rate=1e-3, n_steps=1, batch_size=8, n_epochs=4, gamma=0.97, gae_lambda=0.9, clip_range=0.1, clip_range_vf=0.15, vf_coef=0.4,
        max_grad_norm=0.5,
    )  # fmt: skip
    network = AsControl(policy)
    factors = {name: jnp.float32(1.0) for name in control.ADAPTED}
    state = control.State(network, optimisers.init(config.optimizer, network), jnp.int32(0), factors, jax.random.key_data(jax.random.key(0)))
    state, _, metrics = control.update(config, state, None, chunk)

    assert float(metrics["train/clip_fraction"]) > 0  # so that clipping is compared too
    for ours, theirs, before in zip(*(jax.tree.leaves(x) for x in (tokens, state.network.policy, policy)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
        assert np.abs(np.asarray(ours) - np.asarray(before)).max() > 1e-3
    assert float(report["rollout/kl"]) == pytest.approx(float(jnp.mean(apart)), rel=1e-5)


MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], np.float32)


def test_rewards_of_tokens_by_hand():
    """The score stands at the last real token; every real token pays for its log-ratio."""
    log_prob, reference = np.full((3, 4), -1.0, np.float32), np.array([[-2.0, -1, -1, 9], [-1, 9, 9, 9], [-1, -1, -1, 0]], np.float32)
    found = ppo.token_rewards(jnp.asarray(log_prob), jnp.asarray(reference), jnp.asarray(MASK), jnp.array([1.0, 2, 3]), jnp.float32(0.5))
    np.testing.assert_allclose(found, [[-0.5, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 3.5]], atol=1e-6)


def test_advantages_by_hand():
    """Each answer is an episode that ends with its last token; what stands behind it counts nowhere."""
    rewards = np.array([[0.1, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 1]], np.float32)
    value = np.array([[0.5, 0.2, 0.4, 0], [1, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]], np.float32)
    gamma, lam = 0.9, 0.8
    expected = np.zeros((3, 4))
    for row in range(3):
        following = 0.0
        for t in reversed(range(int(MASK[row].sum()))):
            after = value[row, t + 1] if t + 1 < MASK[row].sum() else 0.0
            following = expected[row, t] = rewards[row, t] + gamma * after - value[row, t] + gamma * lam * following
    config = PPOConfig(gamma=gamma, lam=lam, whiten_advantages=False)
    found, returns = ppo.advantages(config, jnp.asarray(rewards), jnp.asarray(value), jnp.asarray(MASK))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(returns, (expected + value) * MASK, atol=1e-6)
    white, _ = ppo.advantages(dataclasses.replace(config, whiten_advantages=True), jnp.asarray(rewards), jnp.asarray(value), jnp.asarray(MASK))
    real = expected[MASK > 0]
    np.testing.assert_allclose(np.asarray(white)[MASK > 0], (real - real.mean()) / real.std(ddof=1), atol=1e-5)
    assert np.all(np.asarray(white)[MASK == 0] == 0)


def test_the_coefficient_is_steered():
    """Ziegler et al. (2019), section 2.2, with a gain of 0.1: up to 2% a rollout."""
    for kl, expected in ((6.0, 0.1), (6.6, 0.1 * 1.01), (60.0, 0.1 * 1.02), (0.0, 0.1 * 0.98)):
        assert float(steered_coefficient(jnp.float32(0.1), jnp.float32(kl), 6.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("peft", [None, LoraConfig(r=4)])
def test_at_first_there_is_no_distance(peft, tokenizer, tmp_path):
    """KL and ratio of the first rollout, of prompts of several lengths and another temperature; sampler and trainer agree."""
    args = PPOConfig(**SHORT | {"temperature": 0.6}, max_steps=1, num_ppo_epochs=1, output_dir=str(tmp_path), logging_steps=1, learning_rate=1e-3)
    trainer = PPOTrainer(model_of(tokenizer), short_words, args, PROMPTS, peft_config=peft)
    trainer.train()
    (row,) = trainer.log_history
    assert row["kl"] == 0.0 and row["kl_k3"] == 0.0
    assert row["gap"] < 1e-4 and row["importance"] == pytest.approx(1.0, abs=1e-4)
    assert row["clip_fraction"] == 0.0 and row["approx_kl"] < 1e-6
    assert row["reward"] == pytest.approx(row["reward_less_kl"], abs=1e-5) == pytest.approx(row["rewards/short_words"], abs=1e-5)


@pytest.mark.parametrize("peft", [None, LoraConfig(r=4)])
def test_a_run_that_goes_on_ends_with_the_same_bits(peft, tokenizer, tmp_path):
    """With its value function and its steered coefficient."""
    args = PPOConfig(**SHORT, max_steps=4, num_mini_batches=2, target_kl=0.5, save_steps=2, logging_steps=1, output_dir=str(tmp_path), learning_rate=1e-3, gradient_accumulation_steps=2)
    args = dataclasses.replace(args, per_device_train_batch_size=4)
    whole = PPOTrainer(model_of(tokenizer), short_words, args, PROMPTS, peft_config=peft)
    whole.train()
    again = PPOTrainer(model_of(tokenizer), short_words, args, PROMPTS, peft_config=peft)
    again.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(whole.policy), jax.tree.leaves(again.policy), strict=True))
    steered = whole.log_history[-1]["kl_coef"]
    assert steered == again.log_history[-1]["kl_coef"] and abs(steered - args.kl_coef) > 1e-3
    base = model_of(tokenizer)
    assert not same(whole.model, base) if peft is None else np.array_equal(whole.model.decoder.embedding, base.decoder.embedding)
    assert float(jnp.abs(whole.policy.score).max()) > 0


def test_small_batches_are_as_good_as_a_large_one(tokenizer, tmp_path):
    """Advantages are whitened over a rollout, whatever passes the network at once."""
    found = []
    for size, parts in ((8, 1), (2, 4)):
        args = PPOConfig(**SHORT | {"per_device_train_batch_size": size}, gradient_accumulation_steps=parts, max_steps=2, learning_rate=1e-4, output_dir=str(tmp_path / str(parts)))
        found.append(PPOTrainer(model_of(tokenizer), short_words, args, PROMPTS).train())
    for a, b in zip(leaves(found[0]), leaves(found[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_every_pass_has_every_answer_once():
    args = PPOConfig(num_ppo_epochs=3, num_mini_batches=2)
    parts = ppo.orders(args, 5, 8)
    assert len(parts) == 6 and all(sorted([*parts[i], *parts[i + 1]]) == list(range(8)) for i in (0, 2, 4))
    assert [p.tolist() for p in parts] == [p.tolist() for p in ppo.orders(args, 5, 8)] != [p.tolist() for p in ppo.orders(args, 6, 8)]


def test_a_value_function_of_its_own(tokenizer, tmp_path):
    """It begins as the reward model, and the policy's weights get no gradient of the value loss."""
    reward_model = RewardModel(Scorer(loud(dataclasses.replace(SMALL, vocab_size=300)), jnp.ones((1, 16))), tokenizer)
    args = PPOConfig(**SHORT, max_steps=1, learning_rate=1e-3, output_dir=str(tmp_path))
    trainer = PPOTrainer(model_of(tokenizer), None, args, PROMPTS, reward_model=reward_model, value_model=reward_model)
    np.testing.assert_array_equal(trainer.policy.trunk.embedding, reward_model.scorer.decoder.embedding)
    trainer.train()
    assert not np.array_equal(trainer.policy.trunk.embedding, reward_model.scorer.decoder.embedding)
    assert trainer.log_history[-1]["rewards/reward_model"] == pytest.approx(trainer.log_history[-1]["reward"])
    shared = ActorCritic(model_of(tokenizer).decoder, jnp.ones((1, 64)))
    written = Written(*(jnp.asarray(x) for x in (np.arange(12).reshape(2, 6) % 300, np.zeros(2, np.int32), np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32))))

    def value(policy):
        return jnp.sum(ppo.measured(args, policy, written).value)

    for policy in (shared, dataclasses.replace(shared, trunk=shared.decoder)):
        gradient = eqx.filter_grad(value)(policy)
        assert (float(jnp.abs(gradient.decoder.blocks.gate.weight).max()) > 0) is (policy.trunk is None)


def test_a_value_function_with_an_adapter_leaves_the_policy_to_learn(tokenizer, tmp_path):
    """As a reward model that was trained by LoRA has one: its change is added to its weights."""
    language_model = model_of(tokenizer, 1)
    language_model.add_lora(2)
    args = PPOConfig(**SHORT, max_steps=1, learning_rate=1e-3, output_dir=str(tmp_path))
    trainer = PPOTrainer(model_of(tokenizer), short_words, args, PROMPTS, value_model=RewardModel.from_language_model(language_model))
    trainer.train()
    assert not np.array_equal(trainer.model.decoder.blocks.gate.weight, model_of(tokenizer).decoder.blocks.gate.weight)


@pytest.mark.parametrize("peft", [None, LoraConfig(r=4)])
@pytest.mark.parametrize("bf16", [False, True])
def test_weights_in_bfloat16(bf16, peft, tokenizer, tmp_path):
    """What writes, what learns and the reference are the same model: no distance, and ratios of 1; the weights that learn are not rounded."""
    model = model_of(tokenizer)
    model.decoder = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.decoder)
    args = PPOConfig(**SHORT, max_steps=1, num_ppo_epochs=1, learning_rate=1e-3, bf16=bf16, output_dir=str(tmp_path), logging_steps=1)
    trainer = PPOTrainer(model, short_words, args, PROMPTS, peft_config=peft)
    trainer.train()
    (row,) = trainer.log_history
    assert row["kl"] == 0.0 and row["kl_k3"] == 0.0 and row["approx_kl"] < 1e-7 and row["gap"] < 1e-2
    assert trainer.model.decoder.norm.dtype == jnp.bfloat16


def test_the_sampler_computes_as_the_trainer_does(tokenizer, tmp_path):
    """In bfloat16 too, where the weights are float32."""
    args = PPOConfig(**SHORT, max_steps=1, bf16=True, output_dir=str(tmp_path), logging_steps=1)
    trainer = PPOTrainer(model_of(tokenizer), short_words, args, PROMPTS)
    trainer.train()
    assert trainer.log_history[0]["gap"] < 5e-3


def test_what_the_sampler_found_less_likely_counts_more_up_to_a_cap():
    """Weights are min(trainer / sampler, cap), and have no gradient."""
    policy = ActorCritic(loud(SMALL), jnp.zeros((1, 16)))
    tokens = jax.random.randint(jax.random.key(0), (2, 6), 0, 64)
    written = Written(tokens, jnp.zeros(2, jnp.int32), jnp.ones((2, 3)), jnp.zeros((2, 3)))
    args = PPOConfig(temperature=1.0, importance_cap=1.5, vf_coef=0.0)
    old = log_probs_in_batches(dataclasses.replace(args, per_device_train_batch_size=2), policy.decoder, written)
    shifts = jnp.log(jnp.array([[1.0, 0.5, 3.0], [1.2, 1.0, 1.0]]))  # trainer / sampler
    written = written._replace(sampled_log_prob=old - shifts)
    advantage = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    found, report = ppo.loss(args, policy, ppo.Rows(written, old, jnp.zeros((2, 3)), advantage, jnp.zeros((2, 3))))
    weights = np.array([[1.0, 0.5, 1.5], [1.2, 1.0, 1.0]])
    assert float(found) == pytest.approx(-(weights * np.asarray(advantage)).sum(), rel=1e-4)
    assert float(report["importance"]) == pytest.approx(weights.sum(), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_small_model_learns_what_is_rewarded(seed, tokenizer, tmp_path):
    args = PPOConfig(**SHORT | {"per_device_train_batch_size": 32}, max_steps=40, learning_rate=2e-3, seed=seed, output_dir=str(tmp_path), logging_steps=20, kl_coef=0.01)
    trainer = PPOTrainer(model_of(tokenizer, seed), short_words, args, PROMPTS, PROMPTS)
    before = trainer.evaluate()
    with pytest.warns(UserWarning, match="nats an answer from its reference"):
        trainer.train()
    after = trainer.evaluate()
    assert before["eval_reward"] < 0.0 and after["eval_reward"] > 1.0 and after["eval_rewards/short_words"] == pytest.approx(after["eval_reward"])


def test_the_penalty_keeps_it_near(tokenizer, tmp_path):
    """The same run with a large coefficient, and one that is steered to a KL, stay nearer."""
    ends = {}
    for name, changes in {"free": {"kl_coef": 0.0}, "fixed": {"kl_coef": 1.0}}.items():
        args = PPOConfig(**SHORT | {"per_device_train_batch_size": 32}, max_steps=15, learning_rate=2e-3, output_dir=str(tmp_path / name), logging_steps=5, **changes)
        trainer = PPOTrainer(model_of(tokenizer), short_words, args, PROMPTS)
        trainer.train()
        ends[name] = trainer.log_history[-1]["kl"]
    assert ends["free"] > 2 * ends["fixed"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_ppo_epochs": 0}, "num_ppo_epochs=0 has to be at least 1"),
        ({"kl_coef": -0.1}, "kl_coef=-0.1 has to be between 0 and inf"),
        ({"gamma": 1.1}, "gamma=1.1 has to be between 0 and 1"),
        ({"cliprange": 0.0}, "cliprange=0.0 has to be above 0"),
        ({"temperature": 0}, "temperature=0 has to be above 0"),
        ({"max_completion_length": 0}, "max_new_tokens=0 has to be at least 1"),
        ({"importance_cap": 0.5}, "importance_cap=0.5 has to be at least 1"),
        ({"max_prompt_length": 0}, "max_prompt_length=0 has to be at least 1"),
        ({"target_kl": 6.0, "kl_coef": 0}, "target_kl with kl_coef=0 steers nothing"),
        ({"total_episodes": 0}, "total_episodes=0 has to be at least 1"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**changes)


def test_what_cannot_be_done(tokenizer, tmp_path):
    model, args = model_of(tokenizer), PPOConfig(**SHORT, output_dir=str(tmp_path))
    reward_model = RewardModel.from_language_model(model)
    with pytest.raises(ValueError, match="reward_funcs is empty: give a function"):
        PPOTrainer(model, None, args, PROMPTS)
    with pytest.raises(ValueError, match="reward_model and reward_funcs are given"):
        PPOTrainer(model, short_words, args, PROMPTS, reward_model=reward_model)
    with pytest.raises(ValueError, match="row 0 of the dataset has no 'prompt'"):
        PPOTrainer(model, short_words, args, [{"text": "fox"}])
    with pytest.raises(ValueError, match="prompt 0 has .* tokens, and there is room for 52"):
        PPOTrainer(model, short_words, args, [{"prompt": "x" * 100}])
    with pytest.raises(ValueError, match="leaves no room for a prompt in a context of 64"):
        PPOTrainer(model, short_words, dataclasses.replace(args, max_completion_length=64), PROMPTS)
    with pytest.raises(ValueError, match="evaluate needs eval_dataset"):
        PPOTrainer(model, short_words, args, PROMPTS).evaluate()
    cut = PPOTrainer(model, short_words, dataclasses.replace(args, truncate_prompts=True, max_prompt_length=5), [{"prompt": "x" * 100 + "fox"}])
    assert tokenizer.decode(cut.rollouts.prompts[0]).endswith("fox") and len(cut.rollouts.prompts[0]) == 5


def test_warnings():
    """Once each: a reward that rises far from the reference, or with the length; a sampler that is another model."""
    watch = Watch(PPOConfig(), 10.0)
    quiet = {"rollout/reward": 1.0, "rollout/length": 5.0, "rollout/kl": 1.0, "rollout/gap": 1e-6}
    watch.look(quiet)
    watch.look(quiet | {"rollout/kl": 50.0, "rollout/length": 50.0})  # no better: nothing is hidden
    with pytest.warns(UserWarning, match=r"is 50\.0 nats an answer from its reference \(more than 10\)"):
        watch.look(quiet | {"rollout/reward": 2.0, "rollout/kl": 50.0})
    with pytest.warns(UserWarning, match="answers have grown from 5 to 11 tokens"):
        watch.look(quiet | {"rollout/reward": 2.0, "rollout/kl": 50.0, "rollout/length": 11.0})
    with pytest.warns(UserWarning, match=r"sampler and trainer differ by 0\.020"):
        watch.look(quiet | {"rollout/gap": 0.02})
    watch.look(quiet | {"rollout/reward": 2.0, "rollout/kl": 50.0, "rollout/length": 11.0, "rollout/gap": 0.02})


def test_answers_are_shown(tokenizer, tmp_path, capsys):
    args = PPOConfig(**SHORT | {"report_to": ("stdout",)}, max_steps=1, logging_steps=1, output_dir=str(tmp_path), num_completions_to_print=1)
    PPOTrainer(LanguageModel(model_of(tokenizer).decoder, tokenizer), short_words, args, PROMPTS).train()
    assert "step 1, reward" in capsys.readouterr().out
    assert len((tmp_path / "completions.jsonl").read_text(encoding="utf-8").splitlines()) == 1
