"""Low-rank adapters (LoRA; Hu et al., 2022, https://arxiv.org/abs/2106.09685) on a decoder's linear layers."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from advantage.llm.decoder import Decoder, Linear, Lora
from advantage.llm.families import LINEARS

Key = Array
BESIDE = (".score", ".trunk")  # a head that was added, and what it reads where that is no adapted decoder


def add_lora(
    decoder: Decoder, key: Key, rank: int = 16, alpha: float | int = 32.0, target_modules: Sequence[str] | str = "all-linear"
) -> Decoder:
    """The decoder with an adapter on each of the named layers, which changes nothing yet: `up` is 0.

    Args:
        rank: of the change.
        alpha: it is multiplied by `alpha / rank`.
        target_modules: PEFT's names, such as `["q_proj", "v_proj"]`, or `"all-linear"`.

    Raises:
        ValueError: a rank below 1, a layer that isn't there, or an adapter that is there already.
    """
    if adapters(decoder):
        raise ValueError("the decoder has a LoRA already: add it to the weights first, by lora.merged, or load the model without it")
    if rank < 1:
        raise ValueError(f"rank={rank} has to be at least 1")
    known = {theirs.split(".")[-1]: ours for ours, theirs in LINEARS.items()}
    names = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    names = list(known) if names == ["all-linear"] else names
    if not names:
        raise ValueError("target_modules is empty: name at least one layer, or 'all-linear'")
    for name in names:
        if name not in known:
            raise ValueError(f"target_modules: no linear layer {name!r}; choose from {', '.join(known)}, or 'all-linear'")
    for name, subkey in zip(names, jax.random.split(key, len(names)), strict=True):
        weight = getattr(decoder.blocks, known[name]).weight
        layers, outputs, inputs = weight.shape
        bound = inputs**-0.5  # torch's Kaiming initialisation with a = sqrt(5), as PEFT
        down = jax.random.uniform(subkey, (layers, rank, inputs), minval=-bound, maxval=bound).astype(weight.dtype)
        up = jnp.zeros((layers, outputs, rank), weight.dtype)
        decoder = replaced(decoder, known[name], Lora(down, up, alpha / rank))
    return decoder


def adapters(decoder: Decoder) -> dict[str, Lora]:
    """The adapters that are there, by our name of the layer."""
    linears = {name: getattr(decoder.blocks, name) for name in LINEARS}
    return {name: linear.lora for name, linear in linears.items() if linear.lora is not None}


def replaced(decoder: Decoder, name: str, lora: Lora | None) -> Decoder:
    """The decoder with another adapter, or none, on a layer."""
    return eqx.tree_at(lambda d: getattr(d.blocks, name).lora, decoder, lora, is_leaf=lambda x: x is None or isinstance(x, Lora))


def without_lora(decoder: Decoder) -> Decoder:
    """The weights below the adapters, not copied: under LoRA, the reference model."""
    for name in adapters(decoder):
        decoder = replaced(decoder, name, None)
    return decoder


def merged(decoder: Decoder) -> Decoder:
    """A decoder without adapters that computes the same."""
    for name, lora in adapters(decoder).items():
        linear = getattr(decoder.blocks, name)
        change = lora.scale * jnp.einsum("lor,lri->loi", lora.up, lora.down)
        whole = Linear(linear.weight + change.astype(linear.weight.dtype), linear.bias)
        decoder = eqx.tree_at(lambda d, n=name: getattr(d.blocks, n), decoder, whole)
    return decoder


def trained(network: PyTree) -> PyTree[bool]:
    """Which leaves are trained: where there are adapters, these and what stands beside the decoder, else all."""
    paths = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path), network)
    only = any(".lora." in path for path in jax.tree.leaves(paths))
    return jax.tree.map(lambda path: not only or ".lora." in path or path.startswith(BESIDE), paths)
