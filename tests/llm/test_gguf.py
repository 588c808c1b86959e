"""GGUF files: what llama.cpp's converter makes of a model, read back."""

import json

import gguf
import numpy as np
import pytest

from advantage.llm import families, folder
from advantage.llm.folder import NotAModelFolder, read_decoder
from advantage.llm.gguf_files import ARCHITECTURES, TENSORS, read_gguf
from advantage.llm.model import load_model
from advantage.llm.tokenizer import Tokenizer

from .conftest import CHATS, FOLDERS

NAMES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3"}
KINDS = {theirs: ours for ours, theirs in TENSORS.items()}


def tokens_of(writer):
    """The tokenizer of transformers' folder."""
    contents = json.loads((FOLDERS / "llama" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = contents["model"]["vocab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([3, 3] + [1] * (len(vocabulary) - 2))
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in contents["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages[0].content }}{{ eos_token }}")
    return len(vocabulary)


def written(path, name, architecture, quantised=None, turn_end=None):
    """A file as llama.cpp's converter writes it: other names, heads in its order, Gemma's norms with their offset."""
    decoder, _ = read_decoder(FOLDERS / name)
    config = decoder.config
    writer = gguf.GGUFWriter(path, architecture)
    vocabulary = tokens_of(writer)
    if turn_end is not None:
        writer.add_eot_token_id(turn_end)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    windows = [window for window in config.layer_windows or () if window]
    if windows:
        writer.add_sliding_window(windows[0])
    for key, tensor in folder.tensors_of(decoder).items():
        ours = gguf_name(key, config)
        if key.endswith(("embed_tokens.weight", "lm_head.weight")):
            tensor = np.concatenate([tensor, np.zeros((vocabulary - len(tensor), tensor.shape[1]), tensor.dtype)])
        if config.norm_offset and "norm" in key:
            tensor = tensor + 1
        if architecture == "llama" and ("q_proj" in key or "k_proj" in key):
            halves = tensor.reshape((-1, 2, config.head_dim // 2, *tensor.shape[1:]))
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        kind = quantised if quantised and tensor.ndim == 2 and tensor.shape[1] % 32 == 0 else None
        writer.add_tensor(ours, gguf.quants.quantize(tensor, kind) if kind else tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoder


def gguf_name(key, config):
    """llama.cpp's name of a tensor."""
    if key in KINDS:
        return KINDS[key]
    _, _, layer, *middle, part = key.split(".")
    kind = ".".join(middle)
    feed_forward = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    return f"blk.{layer}.{'ffn_norm' if kind == feed_forward else KINDS[kind]}.{part}"


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_the_one_that_was_converted(name, tmp_path):
    decoder = written(tmp_path / "model.gguf", name, NAMES[name])
    found, contents, _ = read_gguf(tmp_path / "model.gguf")
    before, after = folder.tensors_of(decoder), folder.tensors_of(found)
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_allclose(after[key][: len(before[key])], before[key], atol=1e-6)
    assert families.config_of(contents) == found.config
    for field in ("qkv_bias", "qk_norm", "norm_offset", "head_dim", "tie_word_embeddings", "model_type"):
        assert getattr(found.config, field) == getattr(decoder.config, field)


def test_all_architectures_are_tested():
    assert set(NAMES.values()) == set(ARCHITECTURES)


def test_the_tokenizer_in_the_file(tmp_path):
    written(tmp_path / "model.gguf", "llama", "llama")
    model = load_model(tmp_path / "model.gguf")
    for text, tokens in CHATS["texts"]:
        assert model.tokenizer.encode(text) == tokens and model.tokenizer.decode(tokens) == text
    assert model.tokenizer.eos_ids == (1,)
    assert model.encode([{"role": "user", "content": "The"}])[-1] == 1
    model.save(tmp_path / "folder")
    again = load_model(tmp_path / "folder")
    assert again.decoder.config == model.decoder.config
    assert again.tokenizer.encode(CHATS["texts"][0][0]) == CHATS["texts"][0][1]


def test_sentencepiece(tmp_path):
    """Merges follow the scores: `ab` before `bc`; spaces are marked; bytes where there is no piece."""
    from advantage.llm.gguf_files import _sentencepiece

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "c", "ab", "bc", "▁ab"]
    scores = [0.0] * 257 + [-9.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0]
    backend = _sentencepiece(pieces, scores, prefix=True)
    assert backend.encode("abc").tokens == ["▁ab", "c"]
    assert backend.encode("bc é").tokens == ["▁", "bc", "▁", "<0xC3>", "<0xA9>"]
    assert backend.decode(backend.encode("bc é abc").ids) == "bc é abc"
    tokenizer = Tokenizer(backend, {"eos_token": "<unk>"})
    before, behind = backend.encode("ab").ids, [pieces.index("▁ab")]
    assert tokenizer.continuation(before, behind) == " ab" and tokenizer.decode(behind) == "ab"  # alone it loses its space


def test_turns_end_too(tmp_path):
    """Though the file names another end, as Llama 3's do."""
    written(tmp_path / "model.gguf", "llama", "llama", turn_end=7)
    assert load_model(tmp_path / "model.gguf").tokenizer.eos_ids == (7, 1)


def test_quantised_weights(tmp_path):
    """Near those that were quantised: eight bits keep a weight within 1/127 of its block's largest, or half that."""
    decoder = written(tmp_path / "model.gguf", "gemma", "gemma", gguf.GGMLQuantizationType.Q8_0)
    found, _, _ = read_gguf(tmp_path / "model.gguf")
    weights = np.asarray(decoder.blocks.output.weight)
    assert weights.shape[-1] % 32 == 0
    error = np.abs(np.asarray(found.blocks.output.weight) - weights).max()
    assert 0 < error <= np.abs(weights).max() / 127


def test_files_that_are_none(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(NotAModelFolder, match="is no GGUF file"):
        read_gguf(tmp_path / "x.gguf")
    writer = gguf.GGUFWriter(tmp_path / "y.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture 'mamba' is not supported: llama, qwen2"):
        read_gguf(tmp_path / "y.gguf")
