"""The face: load, write, save, adapters."""

import dataclasses

import jax
import numpy as np
import pytest

from advantage.llm import LanguageModel, load_model
from advantage.llm.decoder import init
from advantage.llm.folder import write_decoder

from .conftest import SMALL, loud

CHAT = [{"role": "user", "content": "The fox?"}]
CHAT_AND_TEXT = [CHAT, "The fox"]


@pytest.fixture
def model(tokenizer):
    """Small, with the tokenizer's own vocabulary."""
    return LanguageModel(loud(dataclasses.replace(SMALL, vocab_size=300)), tokenizer)


def test_texts_and_chats_are_answered(model):
    answers = model.generate(["The fox", CHAT], max_new_tokens=8)
    assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)
    assert model.generate(["The fox", CHAT], max_new_tokens=8) == answers  # one seed, one answer
    assert model.generate(["The fox", CHAT], max_new_tokens=8, seed=1) != answers
    assert model.generate(CHAT_AND_TEXT, max_new_tokens=8, stop_strings="e") == model.generate(CHAT_AND_TEXT, max_new_tokens=8, stop_strings=["e"])
    assert model.encode(CHAT) == model.tokenizer.encode(model.tokenizer.chat(CHAT, add_generation_prompt=True), special=False)


def test_saved_and_loaded(model, tmp_path):
    model.add_lora(rank=2)
    before = model.write(["The fox"], temperature=0, max_new_tokens=8)
    model.save(tmp_path / "whole")
    model.save_adapter(tmp_path / "adapter")
    model.decoder = load_model(tmp_path / "whole").decoder  # merged: the adapter is still 0
    again = load_model(tmp_path / "whole", adapter=tmp_path / "adapter")
    for other in (model, again):
        np.testing.assert_allclose(other.write(["The fox"], temperature=0, max_new_tokens=8).log_prob, before.log_prob, atol=1e-5)


def test_what_is_no_model(model, tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        load_model("HuggingFaceTB/SmolLM2-135M")
    with pytest.raises(ValueError, match="the decoder has no LoRA"):
        model.save_adapter(tmp_path)
    with pytest.raises(TypeError, match=r"is one text: give a list"):
        model.generate("The fox")
    with pytest.raises(TypeError, match="is neither a text nor a list of messages"):
        model.generate(CHAT)
    with pytest.raises(TypeError, match="max_tokens"):
        model.generate(["The fox"], max_tokens=3)
    write_decoder(tmp_path, init(SMALL, jax.random.key(0)))
    tokenizer.save(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has 300 tokens and the model 64: they do not belong together"):
        load_model(tmp_path)
