"""What trainers of language models share: their settings, the optimiser's step, and runs that are saved and go on."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jaxtyping import Array, Float, Int, PyTree

from advantage.disk import sync
from advantage.equations.objectives import clip_by_global_norm
from advantage.llm import lora, sharding
from advantage.llm.decoder import Decoder
from advantage.llm.folder import read_json, read_tensors
from advantage.llm.model import LanguageModel, load_model
from advantage.llm.tokenizer import Tokenizer

T = TypeVar("T")
S = TypeVar("S")  # a run's state: a tree of arrays with a `step`
SCHEDULES = ("linear", "cosine", "constant")
Network = PyTree
"""A decoder, or one with more beside it, such as a value function."""
Loss = Callable[[Any, Network, PyTree], tuple[Array, dict[str, Array]]]
"""`(config, network, batch) -> (sum of the losses, sums of what is reported)`.

The report's `"count"` divides the losses, and its `"tokens"` all else, both over the whole step.
"""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of every trainer, under transformers' names.

    Raises:
        ValueError: a setting that cannot work.
    """

    output_dir: str = "out"  # of checkpoints, logs and the model
    learning_rate: float | int = 2e-5  # of AdamW, at its highest
    lr_scheduler_type: str = "linear"  # to 0 at the end, or "cosine", or "constant"
    warmup_steps: int = 0  # steps in which the learning rate rises from 0
    per_device_train_batch_size: int = 8  # texts that pass the network at once, on each device that has its own
    gradient_accumulation_steps: int = 1  # such batches for a step
    num_train_epochs: float | int = 3.0  # passes over the dataset
    max_steps: int = -1  # steps in all, in place of epochs; -1: by epochs
    weight_decay: float | int = 0.0  # AdamW's
    adam_beta1: float | int = 0.9  # decay of the mean gradient
    adam_beta2: float | int = 0.999  # decay of the mean squared gradient
    adam_epsilon: float | int = 1e-8  # added to its root
    max_grad_norm: float | int = 1.0  # the gradient's norm at most
    bf16: bool = False  # compute in bfloat16; the weights that learn stay float32
    gradient_checkpointing: bool = False  # keep each block's input only, and compute the rest twice
    logging_steps: int = 10  # steps between two rows of the log
    save_steps: int = 500  # steps between two checkpoints
    save_total_limit: int | None = None  # how many are kept; None: all
    seed: int = 42  # of the order of rows, and of what is drawn
    mesh: tuple[int, int, int] = (1, 1, 1)  # devices that batches, weights and batches, heads are split over; see `sharding`
    report_to: tuple[str, ...] | list[str] | str = ("stdout", "csv")  # formats of the log, of `loggers.FORMATS`; "none"

    def __post_init__(self):
        wanted = {
            "at least 1": ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "save_steps"),
            "above 0": ("learning_rate", "max_grad_norm", "num_train_epochs", "adam_epsilon"),
            "at least 0": ("warmup_steps", "weight_decay", "adam_beta1", "adam_beta2"),
        }
        fits = {"at least 1": lambda x: x >= 1, "above 0": lambda x: 0 < x < math.inf, "at least 0": lambda x: 0 <= x < math.inf}
        for words, names in wanted.items():
            for name in names:
                if not fits[words](getattr(self, name)):
                    raise ValueError(f"{name}={getattr(self, name)!r} has to be {words}")
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} has to be at least 1, or -1 for num_train_epochs")
        if self.lr_scheduler_type not in SCHEDULES:
            raise ValueError(f"lr_scheduler_type={self.lr_scheduler_type!r} is not known: choose from {', '.join(SCHEDULES)}")
        if not isinstance(self.mesh, tuple | list) or len(self.mesh) != 3 or min(self.mesh) < 1:
            raise ValueError(f"mesh={self.mesh!r} has to be three sizes of at least 1: devices along data, fsdp and tensor, such as (1, 8, 1)")
        object.__setattr__(self, "mesh", tuple(self.mesh))
        if self.save_total_limit is not None and self.save_total_limit < 1:
            raise ValueError(f"save_total_limit={self.save_total_limit} has to be at least 1, or None")

    def arithmetic(self) -> TrainingConfig:
        """These settings without those that no step depends on; the seed decides which rows it gets."""
        return dataclasses.replace(self, output_dir="", logging_steps=1, save_steps=1, save_total_limit=None, report_to=(), seed=0,
                                   per_device_train_batch_size=self.batch_size, mesh=(1, 1, 1))  # fmt: skip

    @property
    def batch_size(self) -> int:
        """Texts that pass the network at once, on all devices."""
        return self.per_device_train_batch_size * self.mesh[0] * self.mesh[1]

    @property
    def formats(self) -> list[str]:
        """Of the log."""
        given = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [name for name in given if name != "none"]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """An adapter that is trained in place of the weights, under PEFT's names."""

    r: int = 16
    lora_alpha: float | int = 32.0
    target_modules: tuple[str, ...] | list[str] | str = "all-linear"


def add_lora(model: LanguageModel, config: LoraConfig | Any, args: TrainingConfig) -> None:
    """Give the model the adapter of our config, or of PEFT's own."""
    targets = config.target_modules
    model.add_lora(config.r, config.lora_alpha, targets if isinstance(targets, str) else sorted(targets), args.seed)
    model.decoder = sharding.placed(args.mesh, model.decoder)


def loaded(model: LanguageModel | str | os.PathLike, args: TrainingConfig, processing_class: Any | None = None) -> LanguageModel:
    """A trainer's model, on the devices that train it.

    Raises:
        ValueError: `processing_class` has another vocabulary than the model's own tokenizer, or there are too few devices.
    """
    found = model if isinstance(model, LanguageModel) else load_model(model)
    check_processing_class(processing_class, found)
    found.decoder = sharding.placed(args.mesh, found.decoder)
    return found


class Learner(NamedTuple):
    """What a step changes: all that is needed to go on."""

    learned: PyTree[Float[Array, "..."]]  # the weights that learn, in float32; None where a weight does not
    optimiser: PyTree
    step: Int[Array, ""]


def optimiser_of(config: TrainingConfig, total: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019, https://arxiv.org/abs/1711.05101) by the schedule over `total` steps."""
    rest = max(total - config.warmup_steps, 1)
    after = {
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
        "constant": optax.constant_schedule(config.learning_rate),
    }[config.lr_scheduler_type]
    warmup = optax.linear_schedule(0.0, config.learning_rate, max(config.warmup_steps, 1))
    schedule = optax.join_schedules([warmup, after], [config.warmup_steps]) if config.warmup_steps else after
    return optax.adamw(schedule, config.adam_beta1, config.adam_beta2, config.adam_epsilon, weight_decay=config.weight_decay)


def start(network: Network, optimiser: optax.GradientTransformation) -> Learner:
    """Before the first step; copies, since a step gives its memory back."""
    learned = eqx.filter(network, lora.trained(network))
    learned = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), learned)
    return Learner(learned, optimiser.init(learned), jnp.zeros((), jnp.int32))


def network_of(learner: Learner, network: Network) -> Network:
    """The network as it has been learned, in its own precision; only until the next step, which gives its memory back."""
    before = eqx.filter(network, lora.trained(network))
    return eqx.combine(jax.tree.map(lambda new, old: new.astype(old.dtype), learner.learned, before), network)


def decoder_of(network: Network) -> Decoder:
    """The network, or the decoder in it."""
    return network if isinstance(network, Decoder) else network.decoder


def copied(network: Network) -> Network:
    """For good; what does not learn is never given back, and stays where it is."""
    learned, rest = eqx.partition(network, lora.trained(network))
    return eqx.combine(jax.tree.map(lambda x: jnp.array(x, copy=True), learned), rest)


def computing(config: TrainingConfig, network: Network) -> Network:
    """The network in the precision that products are computed in."""
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), network) if config.bf16 else network


def reference_of(model: LanguageModel, given: LanguageModel | str | os.PathLike | None, args: TrainingConfig) -> Decoder:
    """What a policy is kept near; by default the model as it is now, whose memory it shares.

    Raises:
        ValueError: the given one has another vocabulary.
    """
    if given is None:
        return model.decoder
    reference = loaded(given, args)
    check_fits("ref_model", reference, model)
    return reference.decoder


def check_fits(name: str, other: LanguageModel, model: LanguageModel) -> None:
    """Raise `ValueError` for a model that cannot read what another one does."""
    if other.tokenizer.backend.get_vocab() != model.tokenizer.backend.get_vocab():
        raise ValueError(f"{name} has another vocabulary than model: it would read other tokens; give one with the same tokenizer")
    theirs, ours = (each.decoder.config.max_position_embeddings for each in (other, model))
    if theirs < ours:
        raise ValueError(f"{name} has a context of {theirs} tokens and model one of {ours}: give one that reads as far")


def check_processing_class(given: Any, model: LanguageModel) -> None:
    """TRL's name of a tokenizer: the model has its own, so another one is refused.

    Raises:
        ValueError: it has another vocabulary.
    """
    if given is not None:
        backend = given.backend if isinstance(given, Tokenizer) else given
        if backend.get_vocab() != model.tokenizer.backend.get_vocab():
            raise ValueError("processing_class has another vocabulary than the model's own tokenizer: leave it out, or load the model with it")


@functools.partial(jax.jit, static_argnames=("config", "total", "loss"), donate_argnames="learner")
def step(
    config: TrainingConfig, total: int, loss: Loss, learner: Learner, network: Network, batches: PyTree
) -> tuple[Learner, dict[str, Array]]:
    """One of `total` steps: `(learner, report)`; batches are stacked along their first axis.

    The gradient is that of the mean over all that the batches count, as if they were one. One that is not finite changes
    nothing, and the report's `"finite"` says so.

    Args:
        config: by `arithmetic`, so that a run with another log is no other program.
        network: its weights that do not learn are read.
    """

    def compute(learned: PyTree, batch: PyTree) -> tuple[Array, dict[str, Array]]:
        # Rounded as what writes and what is compared with it are, so that all three are the same model.
        return loss(config, computing(config, network_of(learner._replace(learned=learned), network)), batch)

    gradient = jax.value_and_grad(compute, has_aux=True)

    def accumulate(sums: PyTree, batch: PyTree) -> tuple[PyTree, None]:
        (_, report), gradients = gradient(learner.learned, batch)
        return jax.tree.map(jnp.add, sums, (gradients, report)), None

    (_, report), gradients = jax.eval_shape(lambda: gradient(learner.learned, jax.tree.map(lambda x: x[0], batches)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradients, report))
    (gradients, report), _ = jax.lax.scan(accumulate, zeros, batches)
    count = jnp.maximum(report["count"], 1.0)
    gradients, norm = clip_by_global_norm(jax.tree.map(lambda g: g / count, gradients), config.max_grad_norm)
    changes, state = optimiser_of(config, total).update(gradients, learner.optimiser, learner.learned)
    finite = jnp.isfinite(norm)
    moved = Learner(optax.apply_updates(learner.learned, changes), state, learner.step + 1)
    kept = sharding.by_rules(jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, learner))
    tokens = jnp.maximum(report["tokens"], 1.0)
    means = {name: sum_ / (count if name == "loss" else tokens) for name, sum_ in report.items() if name != "count"}
    return kept, {**means, "grad_norm": norm, "finite": finite, "tokens": report["tokens"]}


def mean_report(reports: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Of several steps: what they report on average, on how many tokens in all, and whether all were finite."""
    means = {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]}
    tokens, finite = sum(report["tokens"] for report in reports), jnp.all(jnp.stack([report["finite"] for report in reports]))
    return {**means, "tokens": tokens, "finite": finite}


def batches_of(step: int, rows: int, config: TrainingConfig) -> list[list[int]]:
    """Which rows each batch of a step has: the same for the same seed, so that a run which goes on needs no memory of it.

    Every epoch has all rows once, in an order of its own; its last step has what is left.
    """
    size = config.batch_size
    a_step = size * config.gradient_accumulation_steps
    epoch, place = divmod(step, steps_per_epoch(rows, config))
    order = np.random.default_rng([config.seed, epoch]).permutation(rows)[place * a_step : (place + 1) * a_step]
    return [order[first : first + size].tolist() for first in range(0, len(order), size)]


def parts_of(step: int, rows: Sequence[T], config: TrainingConfig) -> list[list[T]]:
    """A step's rows, batch by batch; the last batches of an epoch's last step may be empty."""
    parts = [[rows[row] for row in part] for part in batches_of(step, len(rows), config)]
    return parts + [[]] * (config.gradient_accumulation_steps - len(parts))


def steps_per_epoch(rows: int, config: TrainingConfig) -> int:
    """The last of them may have fewer rows."""
    return -(-rows // (config.batch_size * config.gradient_accumulation_steps))


def total_steps(rows: int, config: TrainingConfig) -> int:
    """Steps of a whole run."""
    return config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * steps_per_epoch(rows, config))


def said_of(config: TrainingConfig, rows: int) -> dict[str, Any]:
    """What has to be the same for a run that goes on, as JSON has it."""
    said = json.loads(json.dumps(dataclasses.asdict(config.arithmetic()), default=_name))
    del said["mesh"]  # another one ends the same but for rounding
    return {**said, "rows": rows, "seed": config.seed}


def _name(function: Callable[..., Any]) -> str:
    """A function's, which is all that JSON can hold of it."""
    return getattr(function, "__qualname__", repr(function))


# -- checkpoints -------------------------------------------------------------------------------------


def write_checkpoint(
    folder: pathlib.Path, state: PyTree, plan: dict[str, Any], save: Callable[[pathlib.Path], None], most: int | None
) -> None:
    """`checkpoint-STEP` with the model by `save`, the run's state and its plan; whole or not at all. The newest `most` are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint-{int(state.step)}"
    temporary = pathlib.Path(tempfile.mkdtemp(dir=folder, prefix=".checkpoint-"))
    try:
        save(temporary)
        arrays = {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(state))}
        safetensors.numpy.save_file(arrays, temporary / "learner.safetensors")
        (temporary / "trainer.json").write_text(json.dumps({"step": int(state.step), **plan}, indent=1) + "\n", encoding="utf-8")
        for file in temporary.iterdir():
            sync(file)
        os.chmod(temporary, 0o755)
        if path.exists():
            shutil.rmtree(path)
        os.rename(temporary, path)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in checkpoints(folder)[: -most if most else 0]:
        shutil.rmtree(old)


def checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    """All that are there, the newest last."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    # By time, since a folder may hold those of an earlier run, of more steps.
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, int(path.name.partition("-")[2])))


def read_checkpoint(path: pathlib.Path, state: S, plan: dict[str, Any]) -> S:
    """The state of a checkpoint, on the host; `state` is one of the same shapes.

    Raises:
        FileNotFoundError: it is no checkpoint.
        ValueError: it is of another model, or of a run with another plan, which could not go on as it was.
    """
    said = read_json(path / "trainer.json")
    if not said:
        raise FileNotFoundError(f"{path} is no checkpoint of a language model: give an output_dir's checkpoint-N")
    for name, value in plan.items():
        if said.get(name) != value:
            was = said.get(name)
            raise ValueError(f"{path} was made with {name}={was!r}, not {value!r}: go on with the settings that it began with")
    arrays = read_tensors(path / "learner.safetensors")
    leaves, structure = jax.tree.flatten(state)
    if len(arrays) != len(leaves) or any(arrays[str(n)].shape != leaf.shape for n, leaf in enumerate(leaves)):
        raise ValueError(f"{path} is of another model: load the one that it began with")
    return jax.tree.unflatten(structure, [np.asarray(arrays[str(n)], leaf.dtype) for n, leaf in enumerate(leaves)])
