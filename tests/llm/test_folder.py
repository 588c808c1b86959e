"""Folders in Hugging Face's form, adapters in PEFT's, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from advantage.llm import folder, lora
from advantage.llm.decoder import hidden_states, init, logits
from advantage.llm.families import config_of, json_of
from advantage.llm.folder import NotAModelFolder, read_adapter, read_decoder, write_adapter, write_decoder

from .conftest import ANSWERS, FAMILIES, FOLDERS, SMALL, real

TOKENS, START = jnp.asarray(ANSWERS["tokens"], jnp.int32), jnp.asarray(ANSWERS["start"], jnp.int32)


def arrays(path):
    """All tensors of a folder."""
    return {name: x for file in sorted(path.glob("model*.safetensors")) for name, x in safetensors.numpy.load_file(file).items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_read_is_written_again(name, tmp_path):
    """The same names and bits, and a `config.json` of our own that means the same."""
    decoder, contents = read_decoder(FOLDERS / name)
    write_decoder(tmp_path, decoder, contents)
    before, after = arrays(FOLDERS / name), arrays(tmp_path)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert config_of(json_of(decoder.config, "float32")) == decoder.config
    again, _ = read_decoder(tmp_path)
    assert again.config == decoder.config


def test_large_models_are_in_several_files(tmp_path, monkeypatch, small):
    monkeypatch.setattr(folder, "SHARD", 5_000)
    write_decoder(tmp_path, small)
    files = list(tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and set(index["weight_map"].values()) == {file.name for file in files}
    assert index["weight_map"].keys() == arrays(tmp_path).keys()
    again, _ = read_decoder(tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(again), strict=True))


def test_bfloat16(tmp_path, small):
    """Written and read in the precision it has; on a CPU float32 unless asked."""
    write_decoder(tmp_path, jax.tree.map(lambda x: x.astype(jnp.bfloat16), small))
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert read_decoder(tmp_path)[0].norm.dtype == jnp.float32
    narrow, _ = read_decoder(tmp_path, "bfloat16")
    assert narrow.norm.dtype == jnp.bfloat16
    out = logits(narrow, hidden_states(narrow, TOKENS, START))
    assert out.dtype == jnp.float32 and np.isfinite(out).all()


def test_an_adapter_is_that_of_peft(llama, tmp_path):
    """Logits with PEFT's adapter, merged too; and what we write of it is the same file."""
    adapted = read_adapter(FOLDERS / "adapter", llama)
    there = real(ANSWERS["start"], TOKENS.shape[1])
    expected = np.where(there, ANSWERS["adapter/logits"], 0)
    assert np.abs(expected - np.where(there, ANSWERS["llama/logits"], 0)).max() > 0.1  # it does something
    for decoder in (adapted, lora.merged(adapted)):
        np.testing.assert_allclose(np.where(there, logits(decoder, hidden_states(decoder, TOKENS, START)), 0), expected, atol=1e-4)
    write_adapter(tmp_path, adapted, "llama")
    names = ("adapter_model.safetensors", "adapter_config.json")
    before, after = (safetensors.numpy.load_file(path / names[0]) for path in (FOLDERS / "adapter", tmp_path))
    assert before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in before)
    theirs, ours = (json.loads((path / names[1]).read_text()) for path in (FOLDERS / "adapter", tmp_path))
    assert all(ours[key] == theirs[key] for key in ("r", "lora_alpha", "peft_type", "task_type", "bias", "fan_in_fan_out"))
    assert sorted(ours["target_modules"]) == sorted(theirs["target_modules"])


def test_a_new_adapter_changes_nothing_and_alone_is_trained(small):
    adapted = lora.add_lora(small, jax.random.key(1), rank=2, target_modules=["q_proj", "up_proj"])
    same = hidden_states(adapted, TOKENS, START) == hidden_states(small, TOKENS, START)
    assert bool(jnp.all(same))
    chosen = lora.trained(adapted)
    assert sum(jax.tree.leaves(chosen)) == 4  # two matrices on each of two layers
    assert all(jax.tree.leaves(lora.trained(small)))
    base = lora.without_lora(adapted)
    assert base.blocks.query.weight is adapted.blocks.query.weight  # one copy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"rank": 0}, "rank=0 has to be at least 1"), ({"target_modules": ["w_proj"]}, "no linear layer 'w_proj'; choose from q_proj"), ({"target_modules": []}, "target_modules is empty")],
)
def test_adapters_that_cannot_be(arguments, message, small):
    with pytest.raises(ValueError, match=message):
        lora.add_lora(small, jax.random.key(0), **arguments)


def changed(tmp_path, **changes):
    """A copy of the llama's folder with other settings; None takes one away."""
    target = tmp_path / "model"
    shutil.copytree(FOLDERS / "llama", target)
    contents = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps({name: x for name, x in contents.items() if x is not None}))
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type='mamba' is not supported: llama, mistral, qwen2"),
        ({"vocab_size": None}, "config.json has no 'vocab_size'"),
        ({"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type='longrope' is not supported: default, linear"),
        ({"intermediate_size": 25}, r"gate_proj.weight' is \(24, 16\), and config.json asks for \(25, 16\)"),
        ({"num_hidden_layers": 0}, "config.json has num_hidden_layers=0: it has to be a whole number of at least 1"),
        ({"layer_types": ["full_attention"]}, "config.json has 1 layer_types and num_hidden_layers=3"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is not supported"),
        ({"num_hidden_layers": 4}, "has no tensor 'model.layers.3"),
        ({"num_hidden_layers": 2}, "has the tensor 'model.layers.2.input_layernorm.weight', for which its config.json has no place"),
    ],
)
def test_models_that_cannot_be_read(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_decoder(changed(tmp_path, **changes))


def test_folders_that_are_none(tmp_path, llama):
    with pytest.raises(NotAModelFolder, match="has no config.json"):
        read_decoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(json_of(SMALL, "float32")))
    with pytest.raises(NotAModelFolder, match="has no model.*safetensors"):
        read_decoder(tmp_path)
    with pytest.raises(NotAModelFolder, match="no adapter_config.json of a LoRA"):
        read_adapter(tmp_path, llama)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "use_dora": True}))
    with pytest.raises(NotAModelFolder, match="adapters with 'use_dora' are not supported"):
        read_adapter(tmp_path, llama)


def test_an_adapter_of_another_model(tmp_path):
    for changes, message in (({"hidden_size": 12}, "is missing or does not fit"), ({"head_dim": 4, "num_attention_heads": 4, "num_key_value_heads": 2}, "the model has no place")):
        other = init(dataclasses.replace(SMALL, **changes), jax.random.key(0))
        with pytest.raises(NotAModelFolder, match=message):
            read_adapter(FOLDERS / "adapter", other)


def test_weights_of_another_model_do_not_stay(small, tmp_path, monkeypatch):
    """One file, then several, then one again: what is read is what was written last."""
    for number, limit in enumerate((2**30, 5_000, 9_000, 2**30)):
        monkeypatch.setattr(folder, "SHARD", limit)
        decoder = jax.tree.map(lambda x, n=number: x + n, small)
        write_decoder(tmp_path, decoder)
        assert np.array_equal(read_decoder(tmp_path)[0].embedding, decoder.embedding)
        assert (tmp_path / "model.safetensors").exists() != (tmp_path / folder.INDEX).exists()


def test_damaged_files_are_named(tmp_path):
    target = changed(tmp_path)
    weights = (target / "model.safetensors").read_bytes()
    for contents in (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", weights[:-8]):
        (target / "model.safetensors").write_bytes(contents)
        with pytest.raises(NotAModelFolder, match=r"model.safetensors cannot be read .*fetch the whole file again"):
            read_decoder(target)
    for contents, message in (("{'a': 1}", "is no JSON"), ("[1]", "holds a list")):
        (target / "config.json").write_text(contents)
        with pytest.raises(NotAModelFolder, match=f"config.json {message}"):
            read_decoder(target)
    with pytest.raises(NotAModelFolder, match="holds an adapter alone: load its base model"):
        read_decoder(FOLDERS / "adapter")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "is nothing that a gemma can have"),
        ({"attention_softcap": 0.5}, "attention_softcap=0.5 is nothing that a llama can have, which would be read with None"),
        ({"layer_windows": (2, None)}, r"layer_windows=\(2, None\) is nothing that a llama can have"),
        ({"embedding_scale": 3.0}, "embedding_scale=3.0 is nothing"),
        ({"qk_norm": True}, "qk_norm=True is nothing"),
        ({"qkv_bias": True}, "output_bias=False is nothing|qkv_bias=True is nothing"),
        ({"model_type": "foo"}, "model_type='foo' is not supported"),
    ],
)
def test_a_model_that_could_not_be_read_again_is_not_written(changes, message, tmp_path):
    decoder = init(dataclasses.replace(SMALL, **changes), jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        write_decoder(tmp_path / "model", decoder)


def test_adapters_that_change_more_than_they_say(llama, tmp_path):
    """PiSSA's file is the change of weights that PEFT has changed first."""
    target = tmp_path / "adapter"
    shutil.copytree(FOLDERS / "adapter", target)
    contents = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps(contents | {"init_lora_weights": "pissa"}))
    with pytest.raises(NotAModelFolder, match="init_lora_weights='pissa' is not supported"):
        read_adapter(target, llama)
    (target / "adapter_config.json").write_text(json.dumps(contents | {"target_modules": r".*\.(q|v|down)_proj"}))
    assert lora.adapters(read_adapter(target, llama)).keys() == {"query", "value", "down"}
    with pytest.raises(ValueError, match="the decoder has a LoRA already"):
        lora.add_lora(read_adapter(target, llama), jax.random.key(0))
