"""Conversations with an environment: what is said, what of it is learned, and a small model that learns to answer back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.llm import GRPOConfig, GRPOTrainer, PPOConfig, PPOTrainer, RewardModel, RLOOConfig, RLOOTrainer, grpo, ppo
from advantage.llm.dialogue import Table, _between, _Open
from advantage.llm.generate import GenerationConfig, generate
from advantage.llm.rewards import Rewards
from advantage.llm.rollout import PolicyConfig, Rollouts, log_probs
from advantage.llm.tokenizer import CHATML, Tokenizer

from .test_groups import TRAINERS
from .test_ppo import PROMPTS, SHORT
from .test_sft import leaves, model_of, same

STOP = tuple("eaio .,")
ROWS = [{"prompt": f"Number {number}:", "number": number} for number in range(8)]


class Echo:
    """Says again what was said, three times, and rewards letters by their number."""

    def reset(self, number):
        self.left, self.number = 3, number
        return f" from {number}."

    def step(self, text):
        self.left -= 1
        return f" You said {len(text)}.", len(text) + self.number / 10, self.left == 0


def held(tokenizer, rows=ROWS[:3], environment=Echo, max_turns=8, most=6, **changes):
    """Conversations of a small model that ends its answers by length alone, or by a letter."""
    model = model_of(tokenizer, max_position_embeddings=512)
    config = GenerationConfig(most, stop_strings=changes.pop("stop", STOP))
    table = Table(model, environment, config, max_turns, 512)
    table.check(rows)
    return model, table.hold(model.decoder, rows, jax.random.key(0))


def test_what_is_said(tokenizer):
    """Each answer is to all before it, token by token; what was told lies between as the tokenizer has it, and earns nothing."""
    model, talks = held(tokenizer, most=60)
    for row, talk in zip(ROWS, talks, strict=False):
        assert talk.ended and talk.turns == 3
        assert talk.prompt == model.encode(f"{row['prompt']} from {row['number']}.")
        answers = [message["content"] for message in talk.messages if message["role"] == "assistant"]
        assert talk.reward == pytest.approx(sum(len(text) + row["number"] / 10 for text in answers))
        told = [message["content"] for message in talk.messages if message["role"] == "user"]
        assert told == [f" You said {len(text)}." for text in answers[:2]]
        others = [token for token, own in zip(talk.tokens, talk.own, strict=True) if not own]
        assert others == [token for text in told for token in tokenizer.encode(text, special=False)]
        assert talk.asked == f"{row['prompt']} from {row['number']}."
        assert [p == 0 for p in talk.log_prob] == [not own for own in talk.own]
        assert talk.own[0] and talk.own[-1]
    # The second answers are what `generate` writes behind all that was said.
    ends = [next(n for n in range(1, len(talk.own)) if talk.own[n] and not talk.own[n - 1]) for talk in talks]
    prompts = [talk.prompt + talk.tokens[:end] for talk, end in zip(talks, ends, strict=True)]
    config = GenerationConfig(60, stop_strings=STOP)
    again = generate(model.decoder, prompts, config, tokenizer.eos_ids, jax.random.fold_in(jax.random.key(0), 1), tokenizer.token_bytes)
    for talk, end, answer in zip(talks, ends, again.answers(), strict=True):
        assert talk.tokens[end : end + len(answer)] == answer


def test_an_answer_that_was_cut_ends_it(tokenizer):
    """As does the last turn, and a context that is full; none of them counts as an end."""
    _, talks = held(tokenizer, stop=("no such text",), most=4)
    assert all(talk.turns == 1 and not talk.ended and len(talk.tokens) == 4 for talk in talks)
    _, talks = held(tokenizer, most=60, max_turns=2)
    assert all(talk.turns == 2 and not talk.ended and talk.own[-1] for talk in talks)

    class Long(Echo):
        def step(self, text):
            return " and so on" * 150, 1.0, False

    _, talks = held(tokenizer, environment=Long, most=60)
    assert all(talk.turns == 1 and not talk.ended and all(talk.own) and len(talk.messages) == 1 for talk in talks)


def test_a_chat_goes_on_as_its_template_has_it(tokenizer):
    """What is read before the second answer is the chat so far, with the answer as it was written."""
    chats = Tokenizer(tokenizer.backend, tokenizer.settings, CHATML.replace("<|im_end|>", tokenizer.special["eos_token"]), tokenizer.eos_ids)

    class Tool(Echo):
        def reset(self, number):
            super().reset(number)

        def step(self, text):
            _, reward, done = super().step(text)
            return [{"role": "tool", "content": "It is 7."}, {"role": "user", "content": "And?"}], reward, done

    prompt = [{"role": "user", "content": "What is it?"}]
    model, talks = held(chats, [{"prompt": prompt, "number": 1}], Tool, most=60)
    (talk,) = talks
    assert talk.turns == 3 and [message["role"] for message in talk.messages] == ["assistant", "tool", "user"] * 2 + ["assistant"]
    read = talk.tokens[: max(n for n, own in enumerate(talk.own) if not own) + 1]
    whole = chats.chat([*prompt, *talk.messages[:-1]], add_generation_prompt=True)
    assert chats.decode([*talk.prompt, *read], special=True) == chats.decode(chats.encode(whole, special=False), special=True)


def test_gaps_are_no_steps():
    """Rewards and advantages of answers with gaps are those of the same without them."""
    config = PPOConfig(gamma=0.9, lam=0.8, whiten_advantages=False)
    mask = np.array([[1, 1, 0, 0, 1, 1, 0], [1, 0, 1, 0, 0, 1, 1]], np.float32)
    draw = np.random.default_rng(0)
    log_prob, reference, value = (np.where(mask > 0, draw.normal(size=mask.shape), 0).astype(np.float32) for _ in range(3))

    def together(x):
        return jnp.asarray(np.stack([row[there > 0] for row, there in zip(x, mask, strict=True)]))

    reward, coefficient = jnp.array([1.0, -2.0]), jnp.float32(0.1)
    rewards = ppo.token_rewards(jnp.asarray(log_prob), jnp.asarray(reference), jnp.asarray(mask), reward, coefficient)
    alone = ppo.token_rewards(together(log_prob), together(reference), jnp.ones((2, 4)), reward, coefficient)
    np.testing.assert_allclose(together(np.asarray(rewards)), alone, atol=1e-6)
    found = ppo.advantages(config, rewards, jnp.asarray(value), jnp.asarray(mask))
    expected = ppo.advantages(config, alone, together(value), jnp.ones((2, 4)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(together(np.asarray(ours)), theirs, atol=1e-6)
        assert not np.asarray(ours)[mask == 0].any()


def test_only_what_it_wrote_is_learned(tokenizer):
    """The trainer's log-probabilities of its own tokens are the sampler's, and those of the others are in no loss."""
    model = model_of(tokenizer, max_position_embeddings=512)
    args = PolicyConfig(per_device_train_batch_size=4, max_completion_length=60, stop_strings=STOP)
    scored = Rollouts(model, args, ROWS, Rewards([Echo], None, tokenizer), 1).at(model.decoder, 0)
    written, mask = jax.tree.map(jnp.asarray, scored.written), scored.written.mask
    assert 0 < (mask == 0).sum() and scored.report["rollout/turns"] == 3 and scored.report["rollout/truncated"] == 0
    assert scored.report["rollout/length"] == mask.sum() / 4
    log_prob, _ = log_probs(args, model.decoder, written)
    np.testing.assert_allclose(log_prob, written.sampled_log_prob, atol=1e-4)

    def gradient(written):
        rows = grpo.Rows(written, None, None, jnp.array([1.0, -1.0, 0.5, 2.0]))
        return jax.grad(lambda decoder: grpo.dapo_loss(GRPOConfig(beta=0.0), decoder, rows)[0])(model.decoder)

    other = written._replace(sampled_log_prob=jnp.where(mask > 0, written.sampled_log_prob, 7.0))
    for ours, theirs in zip(jax.tree.leaves(gradient(written)), jax.tree.leaves(gradient(other)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Again:
    """Asks twice, and rewards the second answer alone: that it has a letter e."""

    def reset(self):
        self.turn = 0

    def step(self, text):
        self.turn += 1
        return " Again:", float(self.turn == 2 and "e" in text), self.turn == 2


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo"])
def test_small_models_learn_from_conversations(tokenizer, tmp_path, name):
    """What is rewarded is the answer to the answer."""
    shared = SHORT | {"output_dir": str(tmp_path), "max_steps": 30, "learning_rate": 3e-3, "per_device_train_batch_size": 64,
                      "stop_strings": STOP}  # fmt: skip
    if name == "ppo":
        trainer = PPOTrainer(model_of(tokenizer), Again, PPOConfig(**shared, kl_coef=0.0, vf_coef=0.01), PROMPTS)
    else:
        kind, config = TRAINERS[name]
        trainer = kind(model_of(tokenizer), Again, config(**shared, num_generations=8, beta=0.0), PROMPTS)
    trainer.train()
    rewards = [row["reward"] for row in trainer.log_history]
    assert rewards[-1] > 0.8 > 0.4 > rewards[0], rewards


def test_it_goes_on_with_the_same_bits(tokenizer, tmp_path):
    """A run that was stopped, with an environment that begins anew with each row."""
    shared = SHORT | {"save_steps": 2, "per_device_train_batch_size": 8, "stop_strings": STOP, "max_steps": 4}
    config = GRPOConfig(**shared, output_dir=str(tmp_path), num_generations=4)
    whole = GRPOTrainer(model_of(tokenizer), Again, config, PROMPTS).train()
    again = GRPOTrainer(model_of(tokenizer), Again, config, PROMPTS).train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert same(whole, again) and any(leaf.any() for leaf in leaves(again))


class Wrong:
    """Returns what it is told to."""

    found = None

    def reset(self):
        return None

    def step(self, text):
        return self.found


@pytest.mark.parametrize(
    ("found", "words"),
    [(1.0, r"Wrong.step returned 1.0: give \(what the model is told"), (("", float("nan"), False), "the reward nan: give a finite"),
     ((3, 0.0, False), "returned 3 to be told: give a text, or messages"),
     (({"role": "tool"}, 0.0, False), "give a text, or messages with role and content")],
)  # fmt: skip
def test_wrong_steps(tokenizer, unchecked_types, found, words):
    """Named with what they returned."""
    with pytest.raises(ValueError, match=words):
        held(tokenizer, [{"prompt": "a"}], type("Wrong", (Wrong,), {"found": found}))


def test_wrong_input(tokenizer, tmp_path):
    """Before anything is written."""
    with pytest.raises(ValueError, match="the environment Echo wants 'number', which row 0"):
        RLOOTrainer(model_of(tokenizer), Echo, RLOOConfig(output_dir=str(tmp_path), max_completion_length=8), [{"prompt": "a"}])
    with pytest.raises(ValueError, match="has 2 environments: one can answer"):
        Rewards([Echo, Again], None, tokenizer)
    with pytest.raises(ValueError, match="max_turns=0"):
        PolicyConfig(max_turns=0)
    with pytest.raises(ValueError, match="reset returned 3: give a text"):
        held(tokenizer, [{"prompt": "a"}], type("Three", (Wrong,), {"reset": lambda self: 3}))


def test_what_an_environment_cannot_be(tokenizer, tmp_path, unchecked_types):
    """Found before training: an object, a class that wants arguments, prompts that it makes too long, a template that hides answers."""
    args = RLOOConfig(output_dir=str(tmp_path), max_completion_length=8, report_to="none")
    rows = [{"prompt": "a", "number": 1}, {"prompt": "a", "number": 2}]

    class Wants(Echo):
        def __init__(self, path):
            self.path = path

    class Long(Echo):
        def reset(self, number):
            return " b" * (300 if number == 2 else 1)

    for given, error, words in [
        (Echo(), TypeError, "an object of Echo: give the class Echo itself"),
        (Wants, ValueError, "the environment Wants cannot be made without arguments"),
        (Long, ValueError, r"row 1, with what Long.reset put behind its prompt: the prompt has \d+ tokens"),
    ]:
        with pytest.raises(error, match=words):
            RLOOTrainer(model_of(tokenizer), given, args, rows)
    hidden = Tokenizer(tokenizer.backend, tokenizer.settings, "{{ messages[-1].content }}", tokenizer.eos_ids)
    chats = [{"prompt": [{"role": "user", "content": "a"}], "number": 1}]
    with pytest.raises(ValueError, match="the chat template does not write what the assistant said"):
        RLOOTrainer(model_of(hidden), Echo, args, chats)


def test_functions_beside_it_see_what_was_asked(tokenizer):
    """The prompt with what the environment put behind it, and all that was said; so does a reward model of another vocabulary."""
    seen = []

    def beside(prompts, completions):
        seen.append((prompts, completions))
        return [0.0] * len(prompts)

    args = PolicyConfig(per_device_train_batch_size=4, max_completion_length=60, stop_strings=STOP)
    model = model_of(tokenizer, max_position_embeddings=512)
    rollouts = Rollouts(model, args, ROWS, Rewards([Echo, beside], None, tokenizer), 1)
    rollouts.at(model.decoder, 0)
    ((prompts, completions),) = seen
    assert all(prompt.startswith("Number ") and prompt.endswith(f" from {prompt[7]}.") for prompt in prompts)
    assert [sample.completion for sample in rollouts.samples] == completions and "You said" in completions[0]
    assert rollouts.lengths == (max(map(len, rollouts.prompts)), 8 * 60)


def test_no_longer_than_a_reward_model_reads(tokenizer):
    """A conversation is cut where the model that judges it has no more room."""
    model, judge = model_of(tokenizer, max_position_embeddings=512), model_of(tokenizer, max_position_embeddings=128)
    args = PolicyConfig(per_device_train_batch_size=4, max_completion_length=60, stop_strings=STOP)
    rewards = Rewards([Echo, RewardModel.from_language_model(judge)], None, tokenizer)
    found = Rollouts(model, args, ROWS, rewards, 1).at(model.decoder, 0)
    assert np.isfinite(found.reward).all() and found.report["rollout/turns"] < 3


def test_an_end_with_a_space_before_it(tokenizer):
    """As Llama 2's template has it: the end that was written is not written again."""
    end = tokenizer.special["eos_token"]
    template = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} " + end + "{% endif %}{% endfor %}"
    chats = Tokenizer(tokenizer.backend, tokenizer.settings, template, tokenizer.eos_ids)
    talk = _Open(Echo(), [{"role": "user", "content": "a"}], [1])
    talk.messages = [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    model = model_of(chats)
    assert chats.decode(_between(model, talk, True), special=True).strip() == "[INST] c [/INST]"
    assert chats.decode(_between(model, talk, False), special=True).count(end) == 1
