"""A decoder-only transformer (Vaswani et al., 2017): one module for Llama, SmolLM2, Mistral, Qwen2, Qwen3 and Gemma.

https://arxiv.org/abs/1706.03762. B sequences of T tokens, D the hidden size, V the vocabulary, L blocks, N heads of which K
have keys and values, H numbers a head. A sequence stands in the slots from its `start` on; what is left of it is padding,
and so is what is right of its last token, which no token before it can see. No token's id says that it is padding.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from advantage.llm import sharding
from advantage.llm.rope import Rope, rotated, rotations

Key = Array
Attend = Callable[[Array, Array, Array], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What fixes a decoder's shapes and arithmetic, under the names of Hugging Face's `config.json`.

    Raises:
        ValueError: sizes that do not go together.
    """

    model_type: str  # the family, such as "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int  # the context: tokens of a sequence at most
    rms_norm_eps: float = 1e-6
    rope: Rope = Rope()
    local_rope: Rope | None = None  # of the layers that look back a window only; None: the same
    layer_windows: tuple[int | None, ...] | None = None  # how far back each layer looks, in tokens; None: to the start
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # queries and keys normalised, as in Qwen3 and Gemma 3
    post_norms: bool = False  # what attention and MLP give is normalised too, as in Gemma 2 and 3
    norm_offset: float = 0.0  # added to a norm's weights: 1 in Gemma
    embedding_scale: float = 1.0  # what embeddings are multiplied by: sqrt(D) in Gemma
    attention_scale: float | None = None  # what products of query and key are multiplied by; None: 1 / sqrt(H)
    attention_softcap: float | None = None  # these products kept within, by a tanh; Gemma 2
    logit_softcap: float | None = None  # logits kept within, by a tanh; Gemma 2
    hidden_act: str = "silu"  # of the gated MLP: "silu" (SwiGLU) or "gelu_pytorch_tanh" (GeGLU)

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} has to be a multiple of num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} has to be even: rotary embeddings turn pairs")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act={self.hidden_act!r} is not known: choose from {', '.join(ACTIVATIONS)}")


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class Lora(eqx.Module):
    """A change of low rank, `scale * up @ down`, to a linear layer that stays (Hu et al., 2022, https://arxiv.org/abs/2106.09685)."""

    down: Float[Array, "*L R I"]
    up: Float[Array, "*L O R"]
    scale: float = eqx.field(static=True)


class Linear(eqx.Module):
    """`x @ weight.T + bias`, in the layout of the files; stacked over layers in a decoder."""

    weight: Float[Array, "*L O I"]
    bias: Float[Array, "*L O"] | None = None
    lora: Lora | None = None

    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        out = jnp.einsum("...i,oi->...o", x, self.weight)
        if self.bias is not None:
            out = out + self.bias.reshape((1,) * (out.ndim - 1) + (-1,))
        if self.lora is not None:
            low = jnp.einsum("...i,ri->...r", x, self.lora.down)
            out = out + self.lora.scale * jnp.einsum("...r,or->...o", low, self.lora.up)
        return out


class Block(eqx.Module):
    """One layer: attention and a gated MLP, each behind a norm and added to what came in."""

    attention_norm: Float[Array, "*L D"]
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: Float[Array, "*L H"] | None
    key_norm: Float[Array, "*L H"] | None
    attention_post_norm: Float[Array, "*L D"] | None
    mlp_norm: Float[Array, "*L D"]
    gate: Linear
    up: Linear
    down: Linear
    mlp_post_norm: Float[Array, "*L D"] | None


class Decoder(eqx.Module):
    """Embeddings, L blocks stacked along their first axis, a norm, and the head; `head=None` is the embeddings again."""

    embedding: Float[Array, "V D"]
    blocks: Block
    norm: Float[Array, " D"]
    head: Float[Array, "V D"] | None
    config: DecoderConfig = eqx.field(static=True)


class Cache(NamedTuple):
    """A layer's keys and values of the tokens so far, one slot for each."""

    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K H"]


def init(config: DecoderConfig, key: Key, dtype: str = "float32") -> Decoder:
    """A decoder of random weights: normal with deviation 0.02, as the families' own; norms of 1, biases of 0."""
    shapes = jax.eval_shape(lambda: blank(config, dtype))
    leaves, structure = jax.tree.flatten_with_path(shapes)
    keys = jax.random.split(key, len(leaves))

    def leaf(path, shape, key):
        name = jax.tree_util.keystr(path)
        if "norm" in name:
            return jnp.full(shape.shape, 1.0 - config.norm_offset, shape.dtype)
        if "bias" in name:
            return jnp.zeros(shape.shape, shape.dtype)
        return (0.02 * jax.random.normal(key, shape.shape)).astype(shape.dtype)

    return jax.tree.unflatten(structure, [leaf(*leaf_, k) for leaf_, k in zip(leaves, keys, strict=True)])


def blank(config: DecoderConfig, dtype: str) -> Decoder:
    """A decoder of zeros: its shapes."""
    layers, d, heads = config.num_hidden_layers, config.hidden_size, config.head_dim
    wide, narrow = config.num_attention_heads * heads, config.num_key_value_heads * heads

    def zeros(*shape: int) -> Array:
        return jnp.zeros(shape, dtype)

    def linear(inputs: int, outputs: int, bias: bool) -> Linear:
        return Linear(zeros(layers, outputs, inputs), zeros(layers, outputs) if bias else None)

    def norm(size: int, there: bool = True) -> Array | None:
        return zeros(layers, size) if there else None

    blocks = Block(
        attention_norm=norm(d),
        query=linear(d, wide, config.qkv_bias),
        key=linear(d, narrow, config.qkv_bias),
        value=linear(d, narrow, config.qkv_bias),
        output=linear(wide, d, config.output_bias),
        query_norm=norm(heads, config.qk_norm),
        key_norm=norm(heads, config.qk_norm),
        attention_post_norm=norm(d, config.post_norms),
        mlp_norm=norm(d),
        gate=linear(d, config.intermediate_size, config.mlp_bias),
        up=linear(d, config.intermediate_size, config.mlp_bias),
        down=linear(config.intermediate_size, d, config.mlp_bias),
        mlp_post_norm=norm(d, config.post_norms),
    )
    head = None if config.tie_word_embeddings else zeros(config.vocab_size, d)
    return Decoder(zeros(config.vocab_size, d), blocks, zeros(d), head, config)


def hidden_states(
    decoder: Decoder, tokens: Int[Array, "B T"], start: Int[Array, " B"], remat: bool = False
) -> Float[Array, "B T D"]:
    """What the head reads, for whole sequences. `remat` keeps each block's input only, and computes the rest again for gradients."""
    slots = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    places = _places(decoder.config, slots, slots, start)

    def layer(x, block_and_kind):
        block, local = block_and_kind
        here = places.of(local)

        def attend(query: Array, key: Array, value: Array) -> tuple[Array, tuple]:
            return _attention(decoder.config, query, key, value, here.mask), ()

        return _block(decoder.config, block, x, here, attend)

    x, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, _embedded(decoder, tokens), _layers(decoder))
    return _rms_norm(decoder.config, x, decoder.norm)


def hidden_states_cached(
    decoder: Decoder,
    layers: Sequence[Block],
    tokens: Int[Array, "B T"],
    start: Int[Array, " B"],
    caches: Sequence[Cache],
    at: Int[Array, ""] | int,
) -> tuple[Float[Array, "B T D"], list[Cache]]:
    """The same for tokens that stand in the slots from `at` on, behind those in the caches, which come back with them.

    Not a loop but a program as long as the model is deep: a loop copies each layer's weights out of the stack before it
    reads them, which for a few tokens takes as long as the products themselves.

    Args:
        layers: those of `unstacked`.
        caches: one for each layer.
    """
    config = decoder.config
    slots = jnp.asarray(at, jnp.int32) + jnp.arange(tokens.shape[1], dtype=jnp.int32)
    places = _places(config, slots, jnp.arange(caches[0].key.shape[1], dtype=jnp.int32), start)
    windows = config.layer_windows or (None,) * len(layers)
    x, kept = _embedded(decoder, tokens), []
    for block, window, cache in zip(layers, windows, caches, strict=True):
        here = places.whole if window is None else places.window

        def attend(query: Array, key: Array, value: Array, cache: Cache = cache, here: _Place = here) -> tuple[Array, Cache]:
            new = Cache(*(jax.lax.dynamic_update_slice(old, x.astype(old.dtype), (0, slots[0], 0, 0))
                          for old, x in zip(cache, (key, value), strict=True)))  # fmt: skip
            return _attention(config, query, *new, here.mask), new

        x, new = _block(config, block, x, here, attend)
        kept.append(new)
    return _rms_norm(config, x, decoder.norm), kept


def unstacked(decoder: Decoder) -> list[Block]:
    """Each layer's own weights."""
    return [jax.tree.map(lambda x, layer=layer: x[layer], decoder.blocks) for layer in range(decoder.config.num_hidden_layers)]


def empty_caches(config: DecoderConfig, batch: int, slots: int, dtype: jnp.dtype) -> list[Cache]:
    """Room for so many tokens of each sequence."""
    shape = (batch, slots, config.num_key_value_heads, config.head_dim)
    return [Cache(*(sharding.split(jnp.zeros(shape, dtype), sharding.ROWS, None, "tensor") for _ in "kv")) for _ in range(config.num_hidden_layers)]


def logits(decoder: Decoder, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """The unnormalised log-probabilities of the next token, in float32."""
    head = sharding.split(decoder.embedding if decoder.head is None else decoder.head, "tensor")
    out = jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)
    return _capped(out, decoder.config.logit_softcap)


class _Place(NamedTuple):
    """Where a layer's tokens stand: the cosines and sines that turn them, and whom they see."""

    cos: Float[Array, "B T 1 h"]
    sin: Float[Array, "B T 1 h"]
    mask: Bool[Array, "B 1 T S"]


class _Places(NamedTuple):
    """Those of the layers that see everything, and of those that look back a window; None where there are none."""

    whole: _Place | None
    window: _Place | None

    def of(self, local: Bool[Array, ""]) -> _Place:
        """A layer's own."""
        if self.whole is None or self.window is None:
            return self.whole or self.window
        return jax.tree.map(lambda a, b: jnp.where(local, a, b), self.window, self.whole)


def _places(config: DecoderConfig, queries: Int[Array, " T"], keys: Int[Array, " S"], start: Int[Array, " B"]) -> _Places:
    """Positions are counted from each sequence's start."""
    position = jnp.maximum(queries[None] - start[:, None], 0)
    behind = queries[:, None] - keys[None, :]
    mask = ((behind >= 0)[None] & (keys[None] >= start[:, None])[:, None, :])[:, None]
    windows = set(config.layer_windows or (None,))
    if len(windows - {None}) > 1:
        raise ValueError(f"layer_windows has {sorted(windows - {None})}: windows of one size are supported")

    def place(rope: Rope, mask: Array) -> _Place:
        return _Place(*rotations(rope, config.head_dim, position), mask)

    whole = place(config.rope, mask) if None in windows else None
    local = [place(config.local_rope or config.rope, mask & (behind < w)[None, None]) for w in windows if w is not None]
    return _Places(whole, local[0] if local else None)


def _layers(decoder: Decoder) -> tuple[Block, Bool[Array, " L"]]:
    """What a loop over the layers reads: each block, and whether it looks back a window only."""
    windows = decoder.config.layer_windows or (None,) * decoder.config.num_hidden_layers
    return decoder.blocks, jnp.asarray(np.array([window is not None for window in windows]))


def _block(config: DecoderConfig, block: Block, x: Float[Array, "B T D"], here: _Place, attend: Attend):
    """`(x after the block, what attend kept)`."""
    block = sharding.gathered(block)

    def heads(linear: Linear, norm: Array | None) -> Array:
        out = linear(normed).reshape((*x.shape[:2], -1, config.head_dim))
        return out if norm is None else _rms_norm(config, out, norm)

    normed = _rms_norm(config, x, block.attention_norm)
    query = rotated(heads(block.query, block.query_norm), here.cos, here.sin)
    key = rotated(heads(block.key, block.key_norm), here.cos, here.sin)
    attended, kept = attend(query, key, heads(block.value, None))
    x = x + _post(config, block.output(attended.reshape((*x.shape[:2], -1))), block.attention_post_norm)
    normed = _rms_norm(config, x, block.mlp_norm)
    gated = ACTIVATIONS[config.hidden_act](block.gate(normed)) * block.up(normed)
    return sharding.split(x + _post(config, block.down(gated), block.mlp_post_norm), sharding.ROWS), kept


def _attention(config: DecoderConfig, query: Array, key: Array, value: Array, mask: Array) -> Float[Array, "B T N H"]:
    """Softmax of scaled products of queries and keys, each key serving N / K heads.

    Ainslie et al. (2023), https://arxiv.org/abs/2305.13245
    """
    key, value = key.astype(query.dtype), value.astype(query.dtype)
    scale = config.attention_scale or config.head_dim**-0.5
    if config.attention_softcap is None:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=scale)
    batch, length, _, size = query.shape
    grouped = query.reshape((batch, length, config.num_key_value_heads, -1, size))
    products = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32) * scale
    products = jnp.where(mask[:, :, None], _capped(products, config.attention_softcap), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(products, axis=-1).astype(query.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, value).reshape(query.shape)


def _embedded(decoder: Decoder, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """A token's vector."""
    x = sharding.split(decoder.embedding, "tensor")[tokens]
    scale = decoder.config.embedding_scale
    # In the weights' own precision, as the families' own code has it.
    return sharding.split(x if scale == 1.0 else x * jnp.asarray(scale, x.dtype), sharding.ROWS)


def _rms_norm(config: DecoderConfig, x: Float[Array, "*batch D"], weight: Float[Array, " D"]) -> Float[Array, "*batch D"]:
    """`x / rms(x) * weight` (Zhang & Sennrich, 2019, https://arxiv.org/abs/1910.07467), the mean in float32."""
    wide = x.astype(jnp.float32)
    scaled = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + config.rms_norm_eps)
    weight = weight.reshape((1,) * (x.ndim - 1) + (-1,))
    if config.norm_offset:
        return (scaled * (config.norm_offset + weight.astype(jnp.float32))).astype(x.dtype)
    return scaled.astype(x.dtype) * weight


def _post(config: DecoderConfig, x: Array, weight: Array | None) -> Array:
    """Normalised where the family does."""
    return x if weight is None else _rms_norm(config, x, weight)


def _capped(x: Array, cap: float | None) -> Array:
    """Kept within `cap`, smoothly."""
    return x if cap is None else cap * jnp.tanh(x / cap)
