"""Which models there are: `config.json` in Hugging Face's form to and from `DecoderConfig`, and the names of the weights."""

import dataclasses
import math
from typing import Any, NamedTuple

from advantage.llm.decoder import ACTIVATIONS, DecoderConfig
from advantage.llm.rope import KINDS, Rope


class Family(NamedTuple):
    """What a family's `config.json` may leave out, or never says."""

    architecture: str  # transformers' class
    defaults: dict[str, Any]
    qkv_bias: bool = False  # where `attention_bias` doesn't say
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False

    @property
    def classifier(self) -> str:
        """Transformers' class with scores in place of the vocabulary."""
        # The name of Gemma 3's without "Text" is that of its model of pictures.
        return self.architecture.replace("Gemma3", "Gemma3Text").replace("ForCausalLM", "ForSequenceClassification")


_PLAIN = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}
_GEMMA = {**_PLAIN, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256, "max_position_embeddings": 8192}
FAMILIES = {
    "llama": Family("LlamaForCausalLM", {**_PLAIN, "max_position_embeddings": 2048}),  # SmolLM and SmolLM2 too
    "mistral": Family("MistralForCausalLM", {**_PLAIN, "max_position_embeddings": 131_072, "sliding_window": 4096}),
    "qwen2": Family("Qwen2ForCausalLM", {**_PLAIN, "max_position_embeddings": 32_768}, qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", {**_PLAIN, "max_position_embeddings": 32_768, "head_dim": 128}, qk_norm=True),
    "gemma": Family("GemmaForCausalLM", _GEMMA, norm_offset=1.0, scaled_embedding=True),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        {**_GEMMA, "query_pre_attn_scalar": 256, "sliding_window": 4096,
         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        norm_offset=1.0, scaled_embedding=True, post_norms=True,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        {**_GEMMA, "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1_000_000.0,
         "rope_local_base_freq": 10_000.0, "max_position_embeddings": 131_072},
        norm_offset=1.0, scaled_embedding=True, post_norms=True, qk_norm=True,
    ),
}  # fmt: skip
SHAPES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def config_of(given: dict[str, Any]) -> DecoderConfig:
    """A decoder's config from the contents of `config.json`.

    Raises:
        ValueError: a family, an activation or a kind of position that isn't supported, or a size that is missing.
    """
    kind = given.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"model_type={kind!r} is not supported: {', '.join(FAMILIES)} are (SmolLM2 is a llama)")
    family = FAMILIES[kind]
    said = {**family.defaults, **{name: value for name, value in given.items() if value is not None}}
    missing = [name for name in SHAPES if name not in said]
    if missing:
        raise ValueError(f"config.json has no {missing[0]!r}: a {kind} model needs {', '.join(SHAPES)}")
    _check(said)
    activation = _activation(said)
    heads = said["num_attention_heads"]
    windows = _windows(kind, said, "sliding_window" in given and given["sliding_window"] is None)
    rope, local = _ropes(said)
    biased = said.get("attention_bias", family.qkv_bias)
    scalar = said.get("query_pre_attn_scalar")
    return DecoderConfig(
        model_type=kind,
        **{name: int(said[name]) for name in SHAPES},
        num_key_value_heads=int(said.get("num_key_value_heads", heads)),
        head_dim=int(said.get("head_dim", said["hidden_size"] // heads)),
        max_position_embeddings=_context(said, rope),
        rms_norm_eps=float(said["rms_norm_eps"]),
        rope=rope,
        local_rope=local,
        layer_windows=windows,
        tie_word_embeddings=bool(said["tie_word_embeddings"]),
        qkv_bias=bool(biased or family.qkv_bias),
        output_bias=bool(biased) and not family.qkv_bias,
        mlp_bias=bool(said.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        post_norms=family.post_norms,
        norm_offset=family.norm_offset,
        embedding_scale=math.sqrt(said["hidden_size"]) if family.scaled_embedding else 1.0,
        attention_scale=scalar**-0.5 if scalar else None,
        attention_softcap=_cap(given, said, "attn_logit_softcapping"),
        logit_softcap=_cap(given, said, "final_logit_softcapping"),
        hidden_act=activation,
    )


def check_expressible(config: DecoderConfig) -> None:
    """Raise `ValueError` for a config that its family's `config.json` cannot say, so that what is saved is what was trained."""
    if config.model_type not in FAMILIES:
        raise ValueError(f"model_type={config.model_type!r} is not supported: {', '.join(FAMILIES)} are")
    again = config_of(json_of(config, "float32"))
    for field in dataclasses.fields(config):
        wanted, said = getattr(config, field.name), getattr(again, field.name)
        if wanted != said:
            raise ValueError(
                f"{field.name}={wanted!r} is nothing that a {config.model_type} can have, which would be read with {said!r}: "
                "choose another model_type, or that value"
            )


def json_of(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """The contents of `config.json`, for a decoder that came from none; see `check_expressible`."""
    family = FAMILIES[config.model_type]
    names = (*SHAPES, "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    contents: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": config.model_type,
        "torch_dtype": dtype,
        **{name: getattr(config, name) for name in names},
        "attention_bias": config.output_bias or (config.qkv_bias and not family.qkv_bias),
        "rope_theta": config.rope.theta,
        "rope_scaling": _scaling_of(config.rope),
    }
    if config.model_type == "llama":
        contents["mlp_bias"] = config.mlp_bias
    gemma = config.model_type.startswith("gemma")
    contents["hidden_activation" if gemma else "hidden_act"] = config.hidden_act
    if config.attention_scale is not None:
        scalar = config.attention_scale**-2
        contents["query_pre_attn_scalar"] = round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar
    if config.model_type in ("gemma2", "gemma3_text"):
        contents["attn_logit_softcapping"] = config.attention_softcap
        contents["final_logit_softcapping"] = config.logit_softcap
    if config.local_rope is not None:
        contents["rope_local_base_freq"] = config.local_rope.theta
    windows = config.layer_windows or (None,) * config.num_hidden_layers
    window = next((w for w in windows if w is not None), None)
    if config.model_type == "mistral" or window is not None:
        contents["sliding_window"] = window
    if config.model_type in ("qwen2", "qwen3"):
        contents["use_sliding_window"] = window is not None
    if config.model_type not in ("llama", "mistral", "gemma"):
        contents["layer_types"] = ["full_attention" if w is None else "sliding_attention" for w in windows]
    return contents


def weight_names(config: DecoderConfig) -> dict[str, str]:
    """Our name of each weight to the file's; `{}` stands for the layer's number."""
    layer = "model.layers.{}."
    norms = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
    names = {
        "embedding": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "head": "lm_head.weight",
        "blocks.attention_norm": layer + "input_layernorm.weight",
        "blocks.query_norm": layer + "self_attn.q_norm.weight",
        "blocks.key_norm": layer + "self_attn.k_norm.weight",
        "blocks.attention_post_norm": layer + "post_attention_layernorm.weight",
        "blocks.mlp_norm": layer + (norms[0] if config.post_norms else "post_attention_layernorm") + ".weight",
        "blocks.mlp_post_norm": layer + norms[1] + ".weight",
    }
    for ours, theirs in LINEARS.items():
        for part in ("weight", "bias"):
            names[f"blocks.{ours}.{part}"] = f"{layer}{theirs}.{part}"
    return names


LINEARS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Our name of each linear layer to that of the files; LoRA's `target_modules` are the last words of these."""


def _check(said: dict[str, Any]) -> None:
    """Refuse what would be read as something else."""
    for name in SHAPES:
        if not isinstance(said[name], int) or said[name] < 1:
            raise ValueError(f"config.json has {name}={said[name]!r}: it has to be a whole number of at least 1")
    if said.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is not supported: this decoder sees what came before only")
    if "num_key_value_heads" not in said and said["model_type"] != "llama":
        raise ValueError("config.json has no 'num_key_value_heads': write it down, families differ in what they take it for")
    kinds = said.get("layer_types")
    if kinds is not None and len(kinds) != said["num_hidden_layers"]:
        layers = said["num_hidden_layers"]
        raise ValueError(f"config.json has {len(kinds)} layer_types and num_hidden_layers={layers}: they have to agree")


def _activation(said: dict[str, Any]) -> str:
    name = said.get("hidden_activation") or said["hidden_act"]
    # Gemma's first files say "gelu" and mean its approximation.
    name = "gelu_pytorch_tanh" if said["model_type"] == "gemma" else name
    if name not in ACTIVATIONS:
        raise ValueError(f"hidden_act={name!r} is not supported: {', '.join(ACTIVATIONS)} are")
    return name


def _context(said: dict[str, Any], rope: Rope) -> int:
    """How many tokens there may be: some files with yarn say how many there were before it."""
    stretched = rope.factor * rope.original_max_position_embeddings if rope.rope_type == "yarn" else 0
    return max(int(said["max_position_embeddings"]), int(stretched))


def _cap(given: dict[str, Any], said: dict[str, Any], name: str) -> float | None:
    """A file that says null wants none."""
    if name in given and given[name] is None:
        return None
    value = said.get(name)
    return None if value is None else float(value)


def _windows(kind: str, said: dict[str, Any], none: bool) -> tuple[int | None, ...] | None:
    """How far back each layer looks."""
    layers, window = int(said["num_hidden_layers"]), said.get("sliding_window")
    if none or window is None or kind in ("llama", "gemma"):
        return None
    if kind.startswith("qwen") and not said.get("use_sliding_window", False):
        return None
    if "layer_types" in said:
        local = [name == "sliding_attention" for name in said["layer_types"]]
    elif kind.startswith("qwen"):
        local = [layer >= int(said.get("max_window_layers", 28)) for layer in range(layers)]
    elif kind == "gemma2":
        local = [layer % 2 == 0 for layer in range(layers)]
    elif kind == "gemma3_text":
        local = [(layer + 1) % int(said.get("sliding_window_pattern", 6)) != 0 for layer in range(layers)]
    else:
        local = [True] * layers
    return tuple(int(window) if here else None for here in local)


def _ropes(said: dict[str, Any]) -> tuple[Rope, Rope | None]:
    """Rotations of the whole layers and of those with a window, of either form of `config.json`."""
    parameters = said.get("rope_parameters") or {}
    if "full_attention" in parameters:  # one set for each kind of layer
        return _rope(said, parameters["full_attention"]), _rope(said, parameters.get("sliding_attention", {}))
    scaling = {**(said.get("rope_scaling") or {}), **parameters}
    local = Rope(float(said["rope_local_base_freq"])) if "rope_local_base_freq" in said else None
    return _rope(said, scaling), local


def _rope(said: dict[str, Any], scaling: dict[str, Any]) -> Rope:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in KINDS:
        raise ValueError(f"rope_type={kind!r} is not supported: {', '.join(KINDS)} are")
    if scaling.get("mscale") or scaling.get("mscale_all_dim"):
        raise ValueError("mscale of yarn is not supported: attention_factor is")
    if scaling.get("partial_rotary_factor", said.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ValueError("partial_rotary_factor is not supported: a model that turns whole heads is")
    length = scaling.get("original_max_position_embeddings", said["max_position_embeddings"])
    known = {name: scaling[name] for name in Rope._fields if scaling.get(name) is not None}
    theta = float(known.pop("rope_theta", scaling.get("rope_theta", said["rope_theta"])))
    known |= {"theta": theta, "rope_type": kind, "original_max_position_embeddings": int(length)}
    if kind == "default":
        return Rope(theta)
    return Rope(**known)


def _scaling_of(rope: Rope) -> dict[str, Any] | None:
    if rope.rope_type == "default":
        return None
    yarn = ("factor", "original_max_position_embeddings", *Rope._fields[6:])
    names = {"linear": ("factor",), "llama3": Rope._fields[2:6], "yarn": yarn}
    fields = {name: getattr(rope, name) for name in names[rope.rope_type]}
    return {"rope_type": rope.rope_type, **{name: value for name, value in fields.items() if value is not None}}
