"""GGUF files (llama.cpp's): weights, whatever their quantisation, and the tokenizer that is in them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from advantage.llm import families
from advantage.llm.decoder import Decoder, DecoderConfig
from advantage.llm.folder import NotAModelFolder, assemble
from advantage.llm.rope import Rope, frequencies
from advantage.llm.tokenizer import Tokenizer

try:
    import gguf
except ImportError as error:
    raise ImportError(f"GGUF files need {error.name}: pip install 'advantage[llm]'") from error

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}
TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LETTERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = {"llama-bpe": _LETTERS.replace("DIGITS", "{1,3}"), "qwen2": _LETTERS.replace("DIGITS", "")}
"""How these split a text into words before anything is merged; the others by GPT-2's own expression."""
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>")
"""What ends a turn of a chat, as llama.cpp has it, though a file may name another end."""
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens
SCALED_BY_LAYERS = {"gemma2": 46, "gemma3": 62}
"""Gemma's models of 27B scale attention by the hidden size, the others by the head's; the file doesn't say, its depth does."""


def read_gguf(file: str | os.PathLike, dtype: str | None = None) -> tuple[Decoder, dict[str, Any], Tokenizer]:
    """`(decoder, contents of a config.json, tokenizer)`; quantised weights become floating ones.

    Raises:
        NotAModelFolder: no such file, or not in this form.
        ValueError: an architecture or a tokenizer that isn't supported.
    """
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, OSError) as error:
        raise NotAModelFolder(f"{file} is no GGUF file: {error}") from error
    architecture = _field(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{file}: architecture {architecture!r} is not supported: {', '.join(ARCHITECTURES)} are")
    found = {tensor.name: tensor for tensor in reader.tensors}
    contents = _config(reader, architecture, found)
    config = families.config_of(contents)
    found.pop("rope_freqs.weight", None)  # the config has it
    tensors = {_name(name, config): _array(tensor, name, config, architecture) for name, tensor in found.items()}
    decoder = assemble(config, tensors, dtype, str(file))
    return decoder, families.json_of(config, str(decoder.norm.dtype)), _tokenizer(reader)


def _field(reader: gguf.GGUFReader, name: str, default: Any = None) -> Any:
    field = reader.get_field(name)
    return default if field is None else field.contents()


def _config(reader: gguf.GGUFReader, architecture: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """What `config.json` would say."""

    def of(name: str) -> Any:
        return _field(reader, f"{architecture}.{name}")

    heads, embedding = of("attention.head_count"), tensors["token_embd.weight"]
    contents = {
        "model_type": ARCHITECTURES[architecture],
        "vocab_size": int(embedding.shape[1]),
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv") or heads,
        "head_dim": of("attention.key_length") or of("embedding_length") // heads,
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base") or 10_000.0,
        "tie_word_embeddings": "output.weight" not in tensors,
        "sliding_window": of("attention.sliding_window"),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }
    if architecture in SCALED_BY_LAYERS:
        whole_model = contents["num_hidden_layers"] == SCALED_BY_LAYERS[architecture]
        contents["query_pre_attn_scalar"] = contents["hidden_size"] // heads if whole_model else contents["head_dim"]
        caps = {name: of(name) for name in ("attn_logit_softcapping", "final_logit_softcapping")}
        contents |= {name: cap for name, cap in caps.items() if cap is not None}
    if of("rope.scaling.type") in ("linear", "yarn"):
        original = of("rope.scaling.original_context_length")
        contents["rope_scaling"] = {"rope_type": of("rope.scaling.type"), "factor": of("rope.scaling.factor"),
                                    "original_max_position_embeddings": original or contents["max_position_embeddings"]}  # fmt: skip
    if "rope_freqs.weight" in tensors:
        contents["rope_scaling"] = _llama3_scaling(np.asarray(tensors["rope_freqs.weight"].data), contents)
    return contents


def _llama3_scaling(factors: np.ndarray, contents: dict[str, Any]) -> dict[str, Any]:
    """The file has what each frequency was divided by; Llama 3.1's, or 3.2's, settings give it."""
    for factor in (8.0, 32.0):
        rope = Rope(contents["rope_theta"], "llama3", factor, 8192, 1.0, 4.0)
        plain, scaled = (frequencies(r, contents["head_dim"])[0] for r in (Rope(rope.theta), rope))
        if np.allclose(plain / scaled, factors, rtol=1e-3):
            return {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": 8192,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # fmt: skip
    raise ValueError("rope_freqs.weight of this file is neither Llama 3.1's nor 3.2's, and others are not supported")


def _name(name: str, config: DecoderConfig) -> str:
    """A tensor's name in a Hugging Face folder."""
    if name in TENSORS:
        return TENSORS[name]
    if name.count(".") != 3:
        return name  # unknown, and refused as such
    _, layer, kind, part = name.split(".")
    if kind == "ffn_norm":
        kind = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    return f"model.layers.{layer}.{TENSORS.get(kind, kind)}.{part}"


def _array(tensor: Any, name: str, config: DecoderConfig, architecture: str) -> np.ndarray:
    """A tensor's numbers, as Hugging Face's folders have them."""
    array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if config.norm_offset and name.split(".")[-2].endswith("norm"):
        return array - config.norm_offset  # llama.cpp's are with the offset
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        # llama.cpp turns neighbours where Hugging Face's code turns halves of a head.
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        paired = array.reshape((heads, config.head_dim // 2, 2, *array.shape[1:]))
        return paired.swapaxes(1, 2).reshape(array.shape)
    return array


def _tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """The tokenizer that is in the file, for the library `tokenizers`."""
    kind, tokens = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.tokens")
    if kind == "gpt2":
        backend = _byte_level(tokens, _field(reader, "tokenizer.ggml.merges"), _field(reader, "tokenizer.ggml.pre", "default"))
    elif kind == "llama":
        prefix = _field(reader, "tokenizer.ggml.add_space_prefix", True)
        backend = _sentencepiece(tokens, _field(reader, "tokenizer.ggml.scores"), prefix)
    else:
        raise ValueError(f"a tokenizer of kind {kind!r} is not supported: gpt2 and llama are")
    kinds = _field(reader, "tokenizer.ggml.token_type", [])
    for token, its_kind in zip(tokens, kinds, strict=False):
        if its_kind in (CONTROL, USER_DEFINED):
            backend.add_tokens([tokenizers.AddedToken(token, special=its_kind == CONTROL, normalized=False)])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    numbers = {name: _field(reader, f"tokenizer.ggml.{theirs}_token_id") for name, theirs in names.items()}
    settings: dict[str, Any] = {name: tokens[number] for name, number in numbers.items() if number is not None}
    begins = kind == "llama" or _field(reader, "tokenizer.ggml.pre") == "llama-bpe"  # where the file doesn't say
    if _field(reader, "tokenizer.ggml.add_bos_token", begins) and "bos_token" in settings:
        begin = settings["bos_token"]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, tokens.index(begin))]
        )
    turns = [_field(reader, "tokenizer.ggml.eot_token_id"), *(backend.token_to_id(token) for token in TURN_ENDS)]
    return Tokenizer(backend, settings, _field(reader, "tokenizer.chat_template"), [end for end in turns if end is not None])


def _byte_level(tokens: list[str], merges: list[str], words: str) -> tokenizers.Tokenizer:
    """Byte-pair encoding over bytes, as GPT-2's."""
    numbers = {token: number for number, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    backend = tokenizers.Tokenizer(models.BPE(numbers, pairs, ignore_merges=words == "llama-bpe"))
    first: list[Any] = []
    if words in WORDS:
        first = [pre_tokenizers.Split(tokenizers.Regex(WORDS[words]), "isolated")]
    elif words == "smollm":
        first = [pre_tokenizers.Digits(individual_digits=True)]
    elif words not in ("default", "gpt-2"):
        raise ValueError(f"a tokenizer that splits words like {words!r} is not supported: smollm, gpt-2, {', '.join(WORDS)} are")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words not in WORDS)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(tokens: list[str], scores: list[float], prefix: bool) -> tokenizers.Tokenizer:
    """SentencePiece's byte-pair encoding: of two neighbours the pair is merged that makes the best token."""
    numbers = {token: number for number, token in enumerate(tokens)}
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        inside = [part for part in parts if part[0] in numbers and part[1] in numbers]
        merges += [(-score, numbers[part[0]], numbers[part[1]], part) for part in inside]
    merges.sort(key=lambda merge: merge[:3])
    backend = tokenizers.Tokenizer(
        models.BPE(numbers, [merge[-1] for merge in merges], unk_token=tokens[0], fuse_unk=True, byte_fallback=True)
    )
    begin = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*begin, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return backend
