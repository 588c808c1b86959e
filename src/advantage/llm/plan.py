"""What a run takes, computed before it: bytes on each device, by the shapes and rules that training uses, and seconds a step.

A network's bytes are exact. What is in between is counted as XLA keeps it: of each layer some `8 D + 3 NH + 2 KH + 6 F` numbers a
token, and two and a mask a pair of tokens and head; with checkpointed gradients of one layer at a time, and D of the others.
Seconds are sums of products, bytes read and bytes sent at given shares of what the devices can do at most: a budget, not a measurement.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType
from jaxtyping import PyTree

from advantage.llm import lora, sharding
from advantage.llm.decoder import Decoder, DecoderConfig, blank
from advantage.llm.likelihood import LOGITS
from advantage.llm.training import TrainingConfig, decoder_of
from advantage.platform import room_on

GIB = 2**30
WRITERS = ("ppo", "grpo", "rloo")
COMPARED = {"dpo": 1, "ppo": 2, "rloo": 2, "grpo": 0}
"""Passes over a step's texts before it is learned: by the policy, and by the reference; of GRPO with beta=0 neither."""
MARGIN = 1.2
"""How much more than there is a run has to need before it is refused: what lies between the layers is an estimate."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be trained, and on what.

    Raises:
        ValueError: a name or a size that cannot work.
    """

    algorithm: str  # "sft", "reward", "dpo", "ppo", "grpo" or "rloo"
    mesh: tuple[int, int, int] = (1, 1, 1)  # devices along data, fsdp and tensor
    rows: int = 8  # texts that pass the network at once, on each device that has its own; of pairs both count
    prompt: int = 512  # tokens
    completion: int = 512
    updates: int = 1  # passes over the texts of a step
    batches: int = 1  # batches of a step: more texts are written than pass the network at once
    lora: int = 0  # rank; 0: all weights learn
    weights: str = "bfloat16"  # of the model as loaded, of what it is compared with, and of a reward model
    bf16: bool = True  # compute in bfloat16
    gradient_checkpointing: bool = True
    reward_model: bool = False  # of the same size, beside the policy

    def __post_init__(self):
        if self.algorithm not in ("sft", "reward", *COMPARED):
            raise ValueError(f"algorithm={self.algorithm!r} is not known: choose from sft, reward, {', '.join(COMPARED)}")
        for name in ("rows", "prompt", "completion", "updates", "batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 1")
        if len(self.mesh) != 3 or min(self.mesh) < 1:
            raise ValueError(f"mesh={self.mesh} has to be three sizes of at least 1: devices along data, fsdp and tensor")

    @property
    def tokens(self) -> int:
        """Of a text."""
        return self.prompt + self.completion

    @property
    def compute(self) -> str:
        """The precision of products."""
        return "bfloat16" if self.bf16 else self.weights


@dataclasses.dataclass(frozen=True)
class Device:
    """What one device can do; the defaults are the published figures of an H100 SXM with 80 GB."""

    memory: float = 80e9  # bytes
    flops: float = 989e12  # products and sums a second in bfloat16
    bandwidth: float = 3.35e12  # bytes a second from its memory
    link: float = 450e9  # bytes a second to the others
    share: float = 0.4  # of each that a program reaches


# -- bytes -------------------------------------------------------------------------------------------


def memory(config: DecoderConfig, job: Job, network: PyTree | None = None, beside: Sequence[PyTree] = ()) -> dict[str, int]:
    """Bytes on each device at the worst moment of a step, by what they are for.

    Args:
        network: what is trained, or its shapes; None: a decoder by the job.
        beside: what is only read, such as reward models and a reference of its own.
    """
    mesh = AbstractMesh(job.mesh, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    model = _model(config, job) if network is None else network
    learned = _as(eqx.filter(model, lora.trained(model)), "float32")
    moments = jax.eval_shape(optax.adam(1e-3).init, learned)
    lasting = {"the model as loaded": on_a_device(mesh, model), "weights that learn, float32": on_a_device(mesh, learned),
               "Adam's moments, float32": on_a_device(mesh, moments)}  # fmt: skip
    beside = [jax.eval_shape(lambda: blank(dataclasses.replace(config, tie_word_embeddings=True), job.weights))] if job.reward_model else beside
    if beside:
        lasting["models beside it, such as reward models"] = sum(on_a_device(mesh, each) for each in beside)
    if job.algorithm in WRITERS and job.weights != "float32":
        lasting["the policy that wrote"] = on_a_device(mesh, _as(learned, job.weights))
    frozen = eqx.filter(model, lora.trained(model), inverse=True)
    copied = ([learned] if job.compute != "float32" else []) + ([frozen] if job.compute != job.weights else [])
    trunks = 2 if getattr(model, "trunk", None) is not None else 1
    learning = {"gradients, float32, their sum and a batch's": 2 * on_a_device(mesh, learned),
                "weights to compute with": sum(on_a_device(mesh, _as(part, job.compute)) for part in copied),
                "between the layers": trunks * between(config, job),
                "logits": 3 * 4 * min(LOGITS, job.rows * job.tokens * config.vocab_size) // job.mesh[2]}  # fmt: skip
    if job.algorithm not in WRITERS:
        return lasting | learning
    whole = AbstractMesh((job.mesh[0], 1, job.mesh[2]), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    computing = _as(decoder_of(model), job.compute)
    writing = {"weights to write with, whole along fsdp": on_a_device(whole, computing), "keys and values": cache(config, job),
               "prompts that are read": int(job.rows * job.batches * job.prompt * _a_layer(config, job, job.prompt))}  # fmt: skip
    return lasting | max(learning, writing, key=lambda part: sum(part.values()))


def _as(tree: PyTree, dtype: str) -> PyTree[jax.ShapeDtypeStruct]:
    """Its shapes in another precision."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), tree)


def _model(config: DecoderConfig, job: Job) -> PyTree[jax.ShapeDtypeStruct]:
    """Its shapes."""

    def made() -> Decoder:
        decoder = blank(config, job.weights)
        return lora.add_lora(decoder, jax.random.key(0), job.lora) if job.lora else decoder

    return jax.eval_shape(made)


def on_a_device(mesh: AbstractMesh, shapes: PyTree) -> int:
    """Bytes of a tree's arrays on one of the mesh's devices."""
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(sharding.shardings(mesh, shapes)), strict=True)
    return sum(math.prod(split.shard_shape(x.shape)) * x.dtype.itemsize for x, split in leaves)


def between(config: DecoderConfig, job: Job) -> int:
    """Bytes that a gradient keeps of the layers' inputs and of what they compute."""
    layers, size, a_layer = config.num_hidden_layers, jnp.dtype(job.compute).itemsize, _a_layer(config, job, job.tokens)
    rows = 2 * job.rows if job.algorithm in ("reward", "dpo") else job.rows
    kept = a_layer + layers * size * config.hidden_size if job.gradient_checkpointing else layers * a_layer
    return int(rows * job.tokens * kept)


def _a_layer(config: DecoderConfig, job: Job, tokens: int) -> float:
    """Bytes of what one layer computes, for each token among so many."""
    tensor, heads, narrow = job.mesh[2], config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    numbers = 8 * config.hidden_size + (3 * heads + 2 * narrow + 6 * config.intermediate_size) / tensor
    # Attention's weights in float32 before and after the softmax, and a mask.
    return jnp.dtype(job.compute).itemsize * numbers + tokens * config.num_attention_heads / tensor * 9


def cache(config: DecoderConfig, job: Job) -> int:
    """Bytes of all layers' keys and values of the texts that are written at once."""
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return int(job.rows * job.batches * job.tokens * numbers * jnp.dtype(job.compute).itemsize / job.mesh[2])


# -- seconds -----------------------------------------------------------------------------------------


def seconds(config: DecoderConfig, job: Job, device: Device) -> dict[str, float]:
    """Of one step, by what they are for."""
    rows = job.rows * job.batches * (2 if job.algorithm in ("reward", "dpo") else 1)
    forward = rows * job.tokens * products(config, job.tokens) / job.mesh[2] / (device.flops * device.share)
    passes = (2 if job.lora else 3) + job.gradient_checkpointing
    found = {"learn: products": forward * passes * job.updates, "learn: sent between devices": _sent(config, job, device) * job.updates * job.batches}
    if COMPARED.get(job.algorithm):
        found["log-probabilities, policy and reference: products"] = forward * COMPARED[job.algorithm]
    if job.algorithm in WRITERS:
        found |= {"write: products": forward, "write: weights, keys and values read": _read(config, job, device)}
    return found | ({"reward model: products": forward} if job.reward_model else {})


def products(config: DecoderConfig, tokens: int) -> float:
    """Products and sums of a token that passes the network forward among so many: two a weight, and those of attention."""
    return 2.0 * _count(dataclasses.replace(config, tie_word_embeddings=True)) + 4.0 * config.num_hidden_layers * tokens * config.num_attention_heads * config.head_dim


def _count(config: DecoderConfig) -> int:
    """Weights."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(lambda: blank(config, "float32"))))


def _bytes(config: DecoderConfig, dtype: str) -> int:
    return _count(config) * jnp.dtype(dtype).itemsize


def _sent(config: DecoderConfig, job: Job, device: Device) -> float:
    """Seconds of a batch: weights gathered in every pass and gradients scattered, sums over `data`, and of activations over `tensor`."""
    data, fsdp, tensor = job.mesh
    weights, learned = _bytes(config, job.compute) / tensor, sum(math.prod(x.shape) for x in jax.tree.leaves(_learned(config, job))) * 4 / tensor
    gathers = (2 + job.gradient_checkpointing) * weights + learned
    activations = 4 * config.num_hidden_layers * job.rows * job.tokens * config.hidden_size * jnp.dtype(job.compute).itemsize
    sent = gathers * (fsdp - 1) / fsdp + 2 * learned / fsdp * (data - 1) / data + 2 * activations * (tensor - 1) / tensor
    return sent / (device.link * device.share)


def _learned(config: DecoderConfig, job: Job) -> PyTree:
    model = _model(config, job)
    return eqx.filter(model, lora.trained(model))


def _read(config: DecoderConfig, job: Job, device: Device) -> float:
    """Seconds of writing: for each token all weights, and the keys and values so far, half of all on average."""
    a_token = _bytes(config, job.compute) / job.mesh[2] + cache(config, job) * (job.prompt + job.completion / 2) / job.tokens
    return job.completion * a_token / (device.bandwidth * device.share)


# -- to be read, and to be refused -------------------------------------------------------------------


def described(config: DecoderConfig, job: Job, device: Device) -> str:
    """A table of both, as text."""
    sizes, times = memory(config, job), seconds(config, job, device)
    used, texts = sum(sizes.values()), job.rows * job.batches * job.mesh[0] * job.mesh[1]
    verdict = f"it fits into {device.memory / 1e9:.0f} GB" if used < device.memory else f"it does NOT fit into {device.memory / 1e9:.0f} GB"
    lines = [f"{job.algorithm} of {_count(config) / 1e9:.2f} billion weights on {math.prod(job.mesh)} devices, data x fsdp x tensor = "
             + " x ".join(map(str, job.mesh)), f"a step: {texts} texts of {job.prompt} + {job.completion} tokens", "",
             "on each device, GB"]  # fmt: skip
    lines += [f"  {size / 1e9:8.2f}  {name}" for name, size in sizes.items()] + [f"  {used / 1e9:8.2f}  in all: {verdict}", ""]
    lines += [f"a step, seconds, at {device.share:.0%} of what the devices can do at most"]
    lines += [f"  {value:8.2f}  {name}" for name, value in times.items()]
    whole = sum(times.values())
    return "\n".join([*lines, f"  {whole:8.2f}  in all: {texts * job.tokens / whole:,.0f} tokens a second"])


def require_room(algorithm: str, network: PyTree, args: TrainingConfig, lengths: tuple[int, int], beside: Sequence[PyTree] = ()) -> None:
    """Raise `ValueError`, with all sizes, for a run that a device has no room for.

    Args:
        network: a decoder, or one with more beside it.
        lengths: tokens of a prompt and of an answer at most; of whole texts 1 and the rest.
        beside: what is only read, and is no part of the network.
    """
    decoder = decoder_of(network)
    adapters = lora.adapters(decoder)
    rank = next(iter(adapters.values())).down.shape[1] if adapters else 0
    writes = algorithm in WRITERS
    batches = args.gradient_accumulation_steps * getattr(args, "num_mini_batches", 1) if writes else 1
    job = Job(algorithm, args.mesh, args.per_device_train_batch_size, *lengths, batches=batches, lora=rank, weights=str(decoder.norm.dtype),
              bf16=args.bf16, gradient_checkpointing=args.gradient_checkpointing)  # fmt: skip
    mesh = sharding.mesh_of(args.mesh)
    sizes, device = memory(decoder.config, job, network, beside), jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    # A CPU's devices share its memory.
    used = sum(sizes.values()) * (math.prod(args.mesh) if device.platform == "cpu" else 1)
    if used > MARGIN * room_on(device):
        told = ", ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.items())
        raise ValueError(
            f"the run needs about {used / GIB:.1f} GiB and there are {room_on(device) / GIB:.1f}; on a device, in GiB: {told}. Choose a smaller "
            "per_device_train_batch_size (with more gradient_accumulation_steps, where answers are not all written at once), shorter texts, "
            "gradient_checkpointing=True, bf16=True, peft_config=LoraConfig(), or a mesh of more devices"
        )
