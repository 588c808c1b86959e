"""Folders in Hugging Face's form: `config.json` and safetensors to and from a `Decoder`; LoRA adapters in PEFT's form."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from advantage.llm import families, lora
from advantage.llm.decoder import Decoder, DecoderConfig, blank

INDEX = "model.safetensors.index.json"
DTYPES = ("float32", "bfloat16", "float16")
SHARD = 4 * 2**30  # bytes of one file of weights at most
COPIES = ("lm_head.weight",)  # what some files hold twice, where the head is the embeddings


class NotAModelFolder(ValueError):
    """The folder holds no model in Hugging Face's form, or one whose weights do not fit its `config.json`."""


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The contents of a JSON file; empty where there is none.

    Raises:
        NotAModelFolder: it is damaged, or no table.
    """
    if not path.is_file():
        return {}
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NotAModelFolder(f"{path} is no JSON: {error}") from error
    if not isinstance(contents, dict):
        raise NotAModelFolder(f"{path} holds a {type(contents).__name__}, where a table is wanted")
    return contents


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a file.

    Raises:
        NotAModelFolder: it is missing, cut short, or something else, such as the pointer that git keeps in its place.
    """
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise NotAModelFolder(f"{path} cannot be read ({error}): fetch the whole file again") from error


def read_decoder(folder: str | os.PathLike, dtype: str | None = None) -> tuple[Decoder, dict[str, Any]]:
    """`(decoder, contents of config.json)`.

    Args:
        dtype: of the weights here, such as `"bfloat16"`; None: float32 on a CPU, the file's own elsewhere.

    Raises:
        NotAModelFolder: there is no such folder, no weights, or weights that do not fit.
        ValueError: a family that isn't supported.
    """
    contents, tensors = read_contents(pathlib.Path(folder))
    return assemble(families.config_of(contents), tensors, dtype, str(folder)), contents


def read_contents(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`(contents of config.json, all tensors)`.

    Raises:
        NotAModelFolder: one of them is missing or damaged.
        ValueError: a family that isn't supported.
    """
    contents = read_json(folder / "config.json")
    if not contents and (folder / "adapter_config.json").is_file():
        raise NotAModelFolder(f"{folder} holds an adapter alone: load its base model, and give it as adapter=...")
    if not contents:
        raise NotAModelFolder(f"{folder} has no config.json: give a folder in Hugging Face's form, or a .gguf file")
    families.config_of(contents)  # of an unknown family, its name is the better message
    index = read_json(folder / INDEX)
    names = sorted(set(index["weight_map"].values())) if index else ()
    files = [folder / name for name in names] or sorted(folder.glob("model*.safetensors"))
    if not files:
        raise NotAModelFolder(f"{folder} has no model*.safetensors: save the model with safe_serialization=True")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors |= read_tensors(file)
    return contents, tensors


def assemble(config: DecoderConfig, tensors: dict[str, np.ndarray], dtype: str | None, where: str) -> Decoder:
    """A decoder from a file's tensors, layers stacked.

    Raises:
        NotAModelFolder: a tensor is missing, of another shape, or unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not known: choose from {', '.join(DTYPES)}")
    names = families.weight_names(config)
    shapes, structure = jax.tree.flatten_with_path(jax.eval_shape(lambda: blank(config, "float32")))
    dtype = dtype or default_dtype(tensors[names["norm"]].dtype.name if names["norm"] in tensors else "float32")

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise NotAModelFolder(f"{where} has no tensor {name!r}, which its config.json asks for")
        if tensors[name].shape != shape:
            raise NotAModelFolder(f"{where}: {name!r} is {tensors[name].shape}, and config.json asks for {shape}")
        return tensors[name]

    leaves, used = [], set(COPIES if config.tie_word_embeddings else ())
    for path, shape in shapes:
        name = names[jax.tree_util.keystr(path, simple=True, separator=".")]
        here = [name.format(layer) for layer in range(shape.shape[0])] if "{}" in name else [name]
        used |= set(here)
        parts = [read(each, shape.shape[1:] if "{}" in name else shape.shape) for each in here]
        leaves.append(jnp.asarray(np.stack(parts) if "{}" in name else parts[0], dtype))
    unknown = sorted(name for name in tensors.keys() - used if not name.endswith("inv_freq"))  # a table that old files hold
    if unknown:
        raise NotAModelFolder(f"{where} has the tensor {unknown[0]!r}, for which its config.json has no place")
    return jax.tree.unflatten(structure, leaves)


def default_dtype(stored: str) -> str:
    """float32 on a CPU, where products of bfloat16 are slower; elsewhere what the file has."""
    return "float32" if jax.default_backend() == "cpu" else stored


def tensors_of(decoder: Decoder) -> dict[str, np.ndarray]:
    """A decoder's weights under the names of the files, each layer its own."""
    names, tensors = families.weight_names(decoder.config), {}
    for path, leaf in jax.tree.leaves_with_path(decoder):
        name = names[jax.tree_util.keystr(path, simple=True, separator=".")]
        if "{}" in name:
            tensors |= {name.format(layer): part for layer, part in enumerate(np.asarray(leaf))}
        else:
            tensors[name] = np.asarray(leaf)
    return tensors


def write_decoder(
    folder: str | os.PathLike, decoder: Decoder, contents: dict[str, Any] | None = None, beside: dict[str, np.ndarray] | None = None
) -> None:
    """Write `config.json` and the weights; a LoRA's change is added to them.

    Args:
        contents: of the `config.json` that the decoder was read with.
        beside: more tensors, by name, such as a score's.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if contents is None:
        families.check_expressible(decoder.config)
    decoder = lora.merged(decoder)
    dtype = str(decoder.norm.dtype)
    contents = {**(contents or families.json_of(decoder.config, dtype)), "torch_dtype": dtype}
    contents.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    _write_weights(folder, {**tensors_of(decoder), **(beside or {})})


def _write_weights(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """One file, or several and their index."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = np.ascontiguousarray(tensor)
        size += tensor.nbytes
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    files = ["model.safetensors"] if len(shards) == 1 else files
    for file, shard in zip(files, shards, strict=True):
        safetensors.numpy.save_file(shard, folder / f".{file}", metadata={"format": "pt"})
    # Weights of another model, or in other parts, would be read with these.
    for old in (*folder.glob("model*.safetensors"), folder / INDEX):
        old.unlink(missing_ok=True)
    for file in files:
        (folder / f".{file}").rename(folder / file)
    if len(shards) > 1:
        where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_adapter(folder: str | os.PathLike, decoder: Decoder, base: str) -> None:
    """Write a decoder's LoRA in PEFT's form: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        base: name or path of the model that it changes.

    Raises:
        ValueError: the decoder has no LoRA.
    """
    folder, adapters = pathlib.Path(folder), lora.adapters(decoder)
    if not adapters:
        raise ValueError("the decoder has no LoRA: call add_lora first, or save the whole model")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, adapter in adapters.items():
        for part, leaf in (("lora_A", adapter.down), ("lora_B", adapter.up)):
            for layer, array in enumerate(np.asarray(leaf)):
                tensors[_adapter_name(layer, name, part)] = np.ascontiguousarray(array)
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = next(iter(adapters.values())).down.shape[1]
    contents = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": next(iter(adapters.values())).scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(families.LINEARS[name].split(".")[-1] for name in adapters),
    }
    (folder / "adapter_config.json").write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def _adapter_name(layer: int, name: str, part: str) -> str:
    """PEFT's name of one of an adapter's matrices, `lora_A` or `lora_B`."""
    return f"base_model.model.model.layers.{layer}.{families.LINEARS[name]}.{part}.weight"


def read_adapter(folder: str | os.PathLike, decoder: Decoder) -> Decoder:
    """The decoder with a LoRA in PEFT's form.

    Raises:
        NotAModelFolder: no adapter there, one of another kind, or one that does not fit the decoder.
    """
    folder = pathlib.Path(folder)
    contents = read_json(folder / "adapter_config.json")
    if contents.get("peft_type") != "LORA":
        raise NotAModelFolder(f"{folder} has no adapter_config.json of a LoRA")
    other = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "lora_bias",
             "target_parameters", "alora_invocation_tokens", "use_qalora")  # fmt: skip
    for name in other:
        if contents.get(name):
            raise NotAModelFolder(f"{folder}: adapters with {name!r} are not supported, plain LoRA is")
    if contents.get("init_lora_weights", True) not in (True, False, "gaussian"):  # others change the model below too
        begun = contents["init_lora_weights"]
        raise NotAModelFolder(f"{folder}: init_lora_weights={begun!r} is not supported: save the merged model instead")
    tensors = read_tensors(folder / "adapter_model.safetensors")
    words = {name.split(".")[-3] for name in tensors}
    targets = [name for name in (theirs.split(".")[-1] for theirs in families.LINEARS.values()) if name in words]
    decoder = lora.add_lora(decoder, jax.random.key(0), int(contents["r"]), float(contents.get("lora_alpha", 8)), targets)
    used = set()
    for name, adapter in lora.adapters(decoder).items():
        parts = []
        for part, leaf in (("lora_A", adapter.down), ("lora_B", adapter.up)):
            keys = [_adapter_name(layer, name, part) for layer in range(leaf.shape[0])]
            missing = [key for key in keys if key not in tensors or tensors[key].shape != leaf.shape[1:]]
            if missing:
                raise NotAModelFolder(f"{folder}: {missing[0]!r} is missing or does not fit the model")
            used |= set(keys)
            parts.append(jnp.asarray(np.stack([tensors[key] for key in keys]), leaf.dtype))
        decoder = lora.replaced(decoder, name, lora.Lora(*parts, adapter.scale))
    if tensors.keys() - used:
        raise NotAModelFolder(f"{folder} has {min(tensors.keys() - used)!r}, for which the model has no place")
    return decoder
