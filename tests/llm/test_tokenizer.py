"""Texts and chats: those of transformers' tokenizer and template, and what is refused."""

import json
import shutil

import pytest
import tokenizers

from advantage.llm.folder import NotAModelFolder
from advantage.llm.tokenizer import CHATML, Tokenizer

from .conftest import CHATS, FOLDERS


@pytest.mark.parametrize(("text", "tokens"), CHATS["texts"])
def test_tokens_are_those_of_transformers(text, tokens, tokenizer):
    assert tokenizer.encode(text) == tokens
    assert tokenizer.decode(tokens) == text
    assert b"".join(tokenizer.token_bytes[token] for token in tokens) == text.encode()


@pytest.mark.parametrize(("messages", "options", "text"), CHATS["chats"])
def test_chats_are_those_of_transformers(messages, options, text, tokenizer):
    assert tokenizer.chat(messages, **options) == text


def test_special_tokens(tokenizer):
    begin, end = tokenizer.encode("<s>The</s>")[0], tokenizer.encode("<s>The</s>")[-1]
    assert (begin, end) == (0, 1) and tokenizer.eos_ids == (1,)
    assert tokenizer.token_bytes[0] == b"<s>"
    assert tokenizer.decode([0, *tokenizer.encode("The"), 1]) == "The"
    assert tokenizer.decode([0, *tokenizer.encode("The"), 1], special=True) == "<s>The</s>"


def test_saved_and_read(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.read(tmp_path)
    assert (again.eos_ids, again.pad_id, again.special, again.chat_template) == (
        tokenizer.eos_ids, tokenizer.pad_id, tokenizer.special, tokenizer.chat_template,
    )  # fmt: skip
    assert all(again.encode(text) == tokens for text, tokens in CHATS["texts"])


def copy(tmp_path):
    """The folder's tokenizer, to be changed."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDERS / "llama" / name, tmp_path / name)
    return tmp_path


def test_several_tokens_may_end_a_text(tmp_path):
    """As Llama 3's chats do; `generation_config.json` says so. A padding token that is the end is no obstacle."""
    folder = copy(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.read(folder)
    assert tokenizer.eos_ids == (5, 7, 1) and tokenizer.pad_id == 1


def test_templates_of_older_folders(tmp_path):
    """Inside `tokenizer_config.json`, as a text or one of several; a file of its own wins."""
    folder = copy(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes {{ bos_token }}"}]
    for given in ("yes {{ bos_token }}", several):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": given}))
        assert Tokenizer.read(folder).chat([]) == "yes <s>"
    (folder / "chat_template.jinja").write_text("own")
    assert Tokenizer.read(folder).chat([]) == "own"


def test_no_end(tmp_path):
    folder = copy(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    with pytest.raises(ValueError, match="no end-of-sequence token: give eos_token"):
        Tokenizer.read(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<end>"}))
    with pytest.raises(ValueError, match="eos_token='<end>' is no token of the tokenizer"):
        Tokenizer.read(folder)


def test_no_tokenizer(tmp_path):
    with pytest.raises(NotAModelFolder, match="has no tokenizer.json"):
        Tokenizer.read(tmp_path)


def test_chats_that_are_refused(tokenizer):
    with pytest.raises(ValueError, match="the chat template refuses these messages: unknown role"):
        tokenizer.chat([{"role": "poet", "content": "x"}])
    plain = Tokenizer(tokenizer.backend, tokenizer.settings)
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        plain.chat([{"role": "user", "content": "x"}])
    plain.chat_template = CHATML
    assert plain.chat([{"role": "user", "content": "x"}], add_generation_prompt=True).endswith("<|im_start|>assistant\n")


def test_templates_run_nothing(tokenizer):
    """They come with models from anywhere: a sandbox."""
    for template in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% for i in range(10**9) %}{% endfor %}"):
        with pytest.raises(ValueError, match="refuses these messages"):
            Tokenizer(tokenizer.backend, tokenizer.settings, template).chat([])


def test_padding_in_a_file_is_not_ours(tmp_path, tokenizer):
    """Lengths are ours: a `tokenizer.json` that pads or cuts is read without."""
    folder, backend = copy(tmp_path), tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.enable_padding(length=50)
    backend.enable_truncation(max_length=2)
    backend.save(str(folder / "tokenizer.json"))
    assert Tokenizer.read(folder).encode(CHATS["texts"][0][0]) == CHATS["texts"][0][1]
