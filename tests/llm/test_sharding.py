"""Networks on many devices: the rules, runs on eight that end as on one, and what a plan says of them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as Spec

from advantage.cli import main
from advantage.llm import DecoderConfig, LoraConfig, PPOConfig, PPOTrainer, SFTConfig, SFTTrainer, lora, plan, sharding, training
from advantage.llm.decoder import blank, init

from .conftest import SMALL
from .test_ppo import PROMPTS, SHORT, short_words
from .test_sft import QUIET, ROWS, model_of

# Llama 2 7B (Touvron et al., 2023).
LLAMA = DecoderConfig(
    model_type="llama", vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=32, head_dim=128, max_position_embeddings=4096,
)  # fmt: skip


def mesh_of(*sizes):
    """One without devices."""
    return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What `eight_devices` found."""
    command = [sys.executable, "-m", "tests.llm.eight_devices", str(tmp_path_factory.mktemp("eight"))]
    # No check of types: they are checked on one device.
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"}, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "grpo"])
def test_eight_devices_end_as_one(eight, name):
    """All weights and a LoRA, PPO with a trunk, a reference and a reward model beside it: an order of sums is all that differs."""
    found = eight[name]
    assert found["apart"] < 1e-4 < found["moved"] / 10 and found["evaluations apart"] < 1e-3, found
    assert found["a part of query"] == 0.25  # over fsdp and tensor


def test_a_run_goes_on_with_another_mesh(eight):
    """From a checkpoint of one device."""
    assert eight["goes on"] < 1e-5


def test_each_device_has_its_own_logits(eight):
    """Where logits are computed in parts, each part's rows are shared: an eighth of the products, and a little."""
    assert eight["products in parts"] < 0.2


def test_a_plans_bytes_are_those_of_a_compiled_step(eight):
    """What lasts to the byte, but for two counters; what XLA adds while it learns to a fifth."""
    for found in eight["memory"]:
        assert 0 <= found["lasting"] - found["lasting by the plan"] <= 8
        assert found["step by the plan"] == pytest.approx(found["step"], rel=0.2), found


def test_rules():
    """Each weight of two axes is split by both kinds of devices, one by either; what they do not divide stays whole."""
    decoder = jax.eval_shape(lambda: lora.add_lora(blank(LLAMA, "float32"), jax.random.key(0), 16))
    for path, leaf in jax.tree.leaves_with_path(decoder):
        name = jax.tree_util.keystr(path)
        spec = sharding.spec_of(name, leaf.shape, mesh_of(1, 4, 2))
        if "norm" in name:
            assert spec == Spec()
        elif ".lora." in name:
            assert len([axis for axis in spec if axis]) == 1, name
        else:
            assert {axis for axis in spec if axis} == {"fsdp", "tensor"}, name
    assert sharding.spec_of(".blocks.query.weight", (32, 4096, 4096), mesh_of(1, 4, 2)) == Spec(None, "tensor", "fsdp")
    assert sharding.spec_of(".optimiser[0].mu.blocks.down.weight", (32, 4096, 11008), mesh_of(1, 4, 2)) == Spec(None, "fsdp", "tensor")
    assert sharding.spec_of(".blocks.key.weight", (2, 8, 15), mesh_of(1, 4, 2)) == Spec(None, "tensor", None)
    norms = (2 * 32 + 1) * 4096
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 2 * 32000 * 4096
    plain = jax.eval_shape(lambda: blank(LLAMA, "float32"))
    assert plan.on_a_device(mesh_of(2, 4, 2), plain) == 4 * (weights // 8 + norms)


def test_a_plan_by_hand():
    """7B on eight: 6.74 billion weights, of each 2 bytes as loaded, 4 that learn and 8 of Adam's, an eighth on each device."""
    job = plan.Job("ppo", (1, 8, 1), rows=8, prompt=512, completion=512)
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096) + 2 * 32000 * 4096 + 4096
    sizes = plan.memory(LLAMA, job)
    for name, bytes_ in (("the model as loaded", 2), ("weights that learn, float32", 4), ("Adam's moments, float32", 8)):
        assert sizes[name] == pytest.approx(bytes_ * weights / 8, rel=1e-3)  # norms are whole
    assert sizes.get("weights to write with, whole along fsdp") == 2 * weights
    assert sizes.get("keys and values") == 8 * 1024 * 32 * 2 * 4096 * 2
    found = plan.seconds(LLAMA, job, plan.Device(share=1.0))
    forward = 8 * 1024 * (2 * (weights - 32000 * 4096) + 4 * 32 * 1024 * 4096) / 989e12
    assert found["learn: products"] == pytest.approx(4 * forward)
    assert sizes["prompts that are read"] == 8 * 512 * (2 * (8 * 4096 + 5 * 4096 + 6 * 11008) + 512 * 32 * 9)
    read = 512 * (2 * weights + sizes["keys and values"] * 0.75) / 3.35e12
    assert found["write: weights, keys and values read"] == pytest.approx(read)
    small = plan.memory(LLAMA, dataclasses.replace(job, lora=16))
    assert small["weights that learn, float32"] < sizes["weights that learn, float32"] / 25
    more = sum(plan.memory(LLAMA, dataclasses.replace(job, reward_model=True)).values()) - sum(sizes.values())
    assert more == pytest.approx(2 * (weights - 32000 * 4096) / 8, rel=1e-3)  # a score needs no head
    # Of a LoRA nothing is copied that is in its precision already.
    tuned = plan.memory(LLAMA, plan.Job("sft", rows=1, lora=16))
    assert tuned["weights to compute with"] == pytest.approx(tuned["weights that learn, float32"] / 2)


def test_what_does_not_fit_is_refused(tokenizer, tmp_path, monkeypatch):
    """Before anything is trained, with all sizes; with an adapter it fits."""
    monkeypatch.setattr(plan, "room_on", lambda device: 4e6)
    shared = SHORT | {"output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"needs about 0\.\d GiB .*Adam's moments, float32 0\.\d\d.*per_device_train_batch_size"):
        PPOTrainer(model_of(tokenizer), short_words, PPOConfig(**shared), PROMPTS)
    with pytest.raises(ValueError, match="gradient_checkpointing=True"):
        SFTTrainer(model_of(tokenizer), SFTConfig(**QUIET, output_dir=str(tmp_path)), ROWS)
    monkeypatch.setattr(plan, "room_on", lambda device: 2e7)
    little = SFTConfig(**QUIET | {"per_device_train_batch_size": 2, "gradient_checkpointing": True}, output_dir=str(tmp_path))
    SFTTrainer(model_of(tokenizer), little, ROWS, peft_config=LoraConfig(r=2))


def test_meshes_that_cannot_be(tokenizer, unchecked_types):
    """Three sizes, of devices that are there."""
    with pytest.raises(ValueError, match=r"mesh=\(1, 0, 1\) has to be three sizes"):
        SFTConfig(mesh=(1, 0, 1))
    with pytest.raises(ValueError, match="mesh=8 has to be three sizes"):
        SFTConfig(mesh=8)
    with pytest.raises(ValueError, match=r"mesh=\(64, 1, 1\) wants 64 devices, and there are"):
        training.loaded(model_of(tokenizer), SFTConfig(mesh=(64, 1, 1)))
    assert SFTConfig(mesh=(2, 4, 1), per_device_train_batch_size=3).batch_size == 24
    decoder = init(SMALL, jax.random.key(0))
    assert sharding.placed((1, 1, 1), decoder) is decoder


def test_plan_on_the_command_line(tmp_path, capsys):
    """A table of a folder's config; a mesh of another number of devices is refused."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
              "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
              "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(["llm", "plan", "--model", str(tmp_path), "--devices", "8"]) == 0
    said = capsys.readouterr().out
    assert said == plan.described(LLAMA, plan.Job("ppo", (1, 8, 1), updates=4), plan.Device()) + "\n"
    assert "6.74 billion" in said and "it fits into 80 GB" in said
    assert main(["llm", "plan", "--model", str(tmp_path), "--algorithm", "sft"]) == 0
    assert "it does NOT fit" in capsys.readouterr().out
    assert main(["llm", "plan", "--model", str(tmp_path), "--mesh", "1", "2", "2"]) == 0
    assert "on 4 devices" in capsys.readouterr().out
    for options, words in ((["--devices", "8", "--mesh", "1", "2", "2"], "has 4 devices and devices=8"), (["--updates", "0"], "updates=0"),
                           (["--prompt", "8000"], "more than the model's context of 4096"), (["--memory", "-1"], "memory=-1.0 has to be")):  # fmt: skip
        assert main(["llm", "plan", "--model", str(tmp_path), *options]) == 2
        assert words in capsys.readouterr().err
