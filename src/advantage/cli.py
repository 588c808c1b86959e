"""The command line: `advantage train`, `compare`, `ablate`, `suggest`, `evaluate`, `watch`, `replay`, `algorithms`, `presets`, `llm`.

Whatever is slow to import is imported by the command that needs it: help answers at once.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:
    import numpy as np

    from advantage.experiments.preset import Preset
    from advantage.models import Model

USAGE_ERROR = 2
INTERRUPTED = 130
EPISODES_WATCHED = 1_000_000
"""In a window: until it is closed."""

DESCRIPTION = """Deep reinforcement learning: train, compare, evaluate and watch agents.

First steps: advantage train PPO CartPole-v1 --n-envs 8 --seeds 3
"""

Debug = Annotated[bool, arg(help="On an error, show where it arose.")]
EnvId = Annotated[str | None, arg(metavar="ID")]
Settings = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]], arg(name="set", metavar="NAME=VALUE [...]")
]
File = Annotated[Positional[Path], arg(metavar="FILE", help="A model file, such as runs/.../model.zip.")]


class Refusal(Exception):
    """What the user asked for cannot be done; the message is one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (this process's by default) and return its exit code.

    0: done; 2: an error, told in one line on stderr; 130: Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    functions = (train, compare, ablate, suggest, evaluate, watch, replay, algorithms, presets, llm)
    commands, prog, description = {function.__name__: function for function in functions}, "advantage", DESCRIPTION
    if arguments[0] == "llm":  # commands of its own below it
        from advantage.llm.commands import COMMANDS

        commands, prog, description, arguments = COMMANDS, "advantage llm", llm.__doc__, arguments[1:] or ["--help"]
    with warnings.catch_warnings():
        warnings.showwarning = _note
        try:
            code = tyro.extras.subcommand_cli_from_dict(
                commands,
                prog=prog,
                description=description,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
            )
            return code or 0
        except SystemExit as end:  # tyro's help, or its complaint about the arguments
            return end.code if isinstance(end.code, int) else USAGE_ERROR
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            # Users see what went wrong and not where: every kind of error ends here.
            if "--debug" in arguments:
                traceback.print_exc()
            print(f"error: {_one_line(error)}", file=sys.stderr)
            return USAGE_ERROR


def train(
    algorithm: Annotated[Positional[str | None], arg(metavar="ALGO")] = None,
    env: Annotated[Positional[str | None], arg(metavar="ENV")] = None,
    /,
    *,
    total_timesteps: int | None = None,
    n_envs: int | None = None,
    vec_env: Literal["sync", "async", "native", "envpool"] = "sync",
    seeds: int = 1,
    seed: int = 0,
    normalize: bool = False,
    settings: Settings = (),
    no_preset: bool = False,
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
    log: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="FORMAT [...]")] = (),
    checkpoint_every: int | None = None,
    resume: Annotated[Path | None, arg(metavar="DIR")] = None,
    verbose: bool = False,
    debug: Debug = False,
) -> int:
    """Train agents and save them.

    Where there is a preset for the environment (see advantage presets), it is shown and used; your own options win.

    Args:
        algorithm: PPO, DQN, ...: see advantage algorithms.
        env: CartPole-v1, advantage/CartPole-v1, brax/ant, ...
        total_timesteps: Environment steps of each seed; the preset's or 100,000 by default.
        n_envs: Environments side by side, for each seed; the preset's or 1 by default.
        vec_env: One after the other, in processes (async), or stepped in one call by Gymnasium or EnvPool.
        seeds: Independent agents trained side by side.
        seed: The first seed; the others follow it.
        normalize: Normalise observations and rewards by running statistics.
        settings: Hyper-parameters: numbers, true, none, JSON lists and dicts, or lin_1e-3 (falls to 0).
        no_preset: The algorithm's own defaults in place of the preset's settings.
        out: Folder for model.zip and progress.csv; runs/ALGO_ENV_n by default.
        log: Where values go besides progress.csv: json, tensorboard, wandb, mlflow, trackio.
        checkpoint_every: Steps between checkpoints in DIR/checkpoints, from which --resume DIR goes on.
        resume: Go on with the run in this folder to its planned end; ALGO, ENV and settings are its own.
        verbose: Print a table of the training's values at every log.
    """
    from advantage.experiments.preset import find_preset
    from advantage.training.loggers import configure, run_folder

    if resume is not None:
        given = (total_timesteps, n_envs, out, checkpoint_every, *settings, *log)
        if any(x is not None for x in given) or (seeds, seed, vec_env) != (1, 0, "sync") or normalize or no_preset:
            raise Refusal("--resume goes on by the run's own settings: leave the other options out")
        return _go_on(resume, algorithm, env)
    if algorithm is None or env is None:
        raise Refusal("train needs an algorithm and an environment: advantage train PPO CartPole-v1")
    face = _face(algorithm)
    if total_timesteps is not None and total_timesteps < 1:
        raise Refusal(f"--total-timesteps {total_timesteps}: has to be at least 1")
    given = _settings([text for group in settings for text in group])
    if normalize:  # else as --set normalize=... says, if it does
        given.setdefault("normalize", True)
    given |= {} if n_envs is None else {"n_envs": n_envs}
    given |= {} if vec_env == "sync" else {"vec_env": vec_env}
    preset = None if no_preset else find_preset(face.__name__, env)
    total_timesteps = total_timesteps or (preset.total_timesteps if preset else 100_000)
    model = _made(face, env, preset, given, seeds=seeds, seed=seed)
    folder = str(out or run_folder("runs", f"{face.__name__}_{_file_name(env)}"))
    formats = dict.fromkeys(["csv", *(["stdout"] if verbose else []), *(name for group in log for name in group)])
    model.set_logger(configure(folder, list(formats)))
    if preset:
        _show_preset(preset, given, total_timesteps)
    checkpoints = None if checkpoint_every is None else Path(folder) / "checkpoints"
    return _learn(
        model, Path(folder), total_timesteps, checkpoint_dir=checkpoints, checkpoint_every=checkpoint_every
    )


def _go_on(folder: Path, algorithm: str | None, env: str | None) -> int:
    """Resume the run of a folder."""
    from advantage.models import Model

    face = Model if algorithm is None else _face(algorithm)
    model = face.resume(folder, env)
    if model.num_timesteps >= model._stop:
        print(f"the run in {folder} has reached its end of {model._stop:,} steps")
        return 0
    print(f"going on at {model.num_timesteps:,} of {model._stop:,} steps")
    checkpoints = model._resumed["folder"]  # not one of them: that is not to be changed
    return _learn(model, checkpoints.parent if checkpoints.name == "checkpoints" else checkpoints, None)


def _learn(model: Model, folder: Path, total_timesteps: int | None, **options: Any) -> int:
    """Train, save the model to the folder whatever happens, and print what came of it."""
    path, code, began, before = folder / "model.zip", 0, time.perf_counter(), model.num_timesteps
    try:
        model.learn(total_timesteps, progress_bar=True, **options)
    except KeyboardInterrupt:
        print(f"stopped at {model.num_timesteps:,} of {total_timesteps or model._stop:,} steps", file=sys.stderr)
        code = INTERRUPTED
    finally:
        # Also after an error: the model is as after its last good update.
        seconds = time.perf_counter() - began
        model.logger.close()
        if model.num_timesteps:
            model.save(path)
            seeds = model.num_seeds
            returns = [model._driver.recent(s).returns for s in range(seeds)]
            title = f"{type(model).__name__} on {model._env_name()}: the last episodes of training"
            speed = (model.num_timesteps - before) * seeds / seconds
            print_table(title, returns, model.seed or 0, f"{speed:,.0f} steps/s")
            print(f"saved {path}")
    return code


def compare(
    algorithms: Annotated[Positional[tuple[str, ...]], arg(metavar="ALGO [...]")],
    /,
    *,
    env: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="ID")],
    total_timesteps: int = 100_000,
    seeds: int = 10,
    seed: int = 0,
    evaluations: int = 10,
    n_eval_episodes: int = 20,
    settings: Settings = (),
    presets: bool = False,
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
    debug: Debug = False,
) -> None:
    """Train algorithms over the same seeds and say which is better, and how sure that is.

    What is stored in DIR is not trained again: later calls add algorithms and seeds.

    Args:
        algorithms: PPO, DQN, ...: see advantage algorithms.
        env: CartPole-v1, advantage/CartPole-v1, brax/ant, ...; may be repeated.
        total_timesteps: Environment steps of each seed.
        seeds: Independent agents of each algorithm; 10 or more tell something.
        seed: The first seed; the others follow it.
        evaluations: Evenly spaced, the last one at the end.
        n_eval_episodes: Of each evaluation, for each seed.
        settings: Hyper-parameters of all, or of one: n_envs=8, PPO.n_steps=128.
        presets: Each algorithm's preset for each environment, beneath these; by default nobody gets tuned settings.
        out: Folder for results, report and pictures; runs/compare_ENV by default.
    """
    from advantage.experiments.compare import compare as run

    if not env:
        raise Refusal("--env ID is missing: name one environment or, by repeating it, several")
    names = [_face(name).__name__ for name in algorithms]
    folder = out or Path("runs") / f"compare_{'_'.join(map(_file_name, env))}"
    report = run(
        names, envs=env, out=folder, presets=presets, total_timesteps=total_timesteps, seeds=seeds, seed=seed,
        evaluations=evaluations, n_eval_episodes=n_eval_episodes, settings=_settings_of(names, settings), progress_bar=True,
    )  # fmt: skip
    print(f"{report}\n")
    print(f"saved {folder}: {', '.join(path.name for path in report.files)}")


def ablate(
    algorithm: Annotated[Positional[str], arg(metavar="ALGO")],
    env: Annotated[Positional[str], arg(metavar="ENV")],
    /,
    *,
    total_timesteps: int = 100_000,
    seeds: int = 5,
    seed: int = 0,
    evaluations: int = 10,
    n_eval_episodes: int = 20,
    settings: Settings = (),
    alone: bool = False,
    out: Annotated[Path | None, arg(metavar="DIR")] = None,
    debug: Debug = False,
) -> None:
    """Train Rainbow without each of its parts in turn, and say what each brings.

    What is stored in DIR is not trained again: later calls add seeds.

    Args:
        algorithm: Rainbow, which is made of parts.
        env: CartPole-v1, gymnax/Breakout-MinAtar, ...
        total_timesteps: Environment steps of each seed.
        seeds: Independent agents of each variant.
        seed: The first seed; the others follow it.
        evaluations: Evenly spaced, the last one at the end.
        n_eval_episodes: Of each evaluation, for each seed.
        settings: Hyper-parameters of all variants, over Rainbow's own: learning_rate=1e-4 v_max=100.
        alone: Also DQN with each of the parts alone.
        out: Folder for results, report and pictures; runs/ablate_ENV by default.
    """
    from advantage.experiments.ablate import ablate as run

    folder = out or Path("runs") / f"ablate_{_file_name(env)}"
    report = run(
        algorithm, env, out=folder, total_timesteps=total_timesteps, seeds=seeds, seed=seed, evaluations=evaluations,
        n_eval_episodes=n_eval_episodes, settings=_settings([text for group in settings for text in group]), alone=alone,
        progress_bar=True,
    )  # fmt: skip
    print(f"{report}\n")
    print(f"saved {folder}: {', '.join(path.name for path in report.files)}")


def evaluate(
    file: File,
    /,
    *,
    env: EnvId = None,
    episodes: int = 20,
    seed: int = 0,
    stochastic: bool = False,
    epsilon: float = 0.0,
    debug: Debug = False,
) -> None:
    """Play whole episodes with a saved model, each seed's agent in turn.

    Args:
        env: The environment; by default the one it was trained on.
        episodes: For each seed.
        seed: Of the environment.
        stochastic: Sample actions instead of taking the best.
        epsilon: Probability of a random action, such as 0.001 for Atari games.
    """
    from advantage.experiments.atari import human_normalized_score
    from advantage.training.evaluation import evaluate_seeds

    model = _load(file)
    env = _env_of(model, env, file)
    began = time.perf_counter()
    returns = evaluate_seeds(model, env, episodes, not stochastic, seed=seed, epsilon=epsilon)
    note = f"{episodes} episodes each, {time.perf_counter() - began:.1f} s"
    human = human_normalized_score(env, returns.mean())
    note += "" if human is None else f", {human:.0%} of a human's score over random play"
    print_table(f"{type(model).__name__} on {env}", list(returns), model.seed or 0, note)


def watch(
    file: File,
    /,
    *,
    env: EnvId = None,
    gif: Annotated[Path | None, arg(metavar="FILE")] = None,
    seed_index: int = 0,
    seed: int = 0,
    max_steps: int = 1000,
    debug: Debug = False,
) -> None:
    """Watch a saved model play, in a window or as a GIF.

    Args:
        env: The environment; by default the one it was trained on.
        gif: Write one episode to this file instead of opening a window.
        seed_index: Which of the agents trained side by side plays: 0, 1, ...
        seed: Of the environment.
        max_steps: Steps of an episode at most.
    """
    from advantage.experiments.plots import save_gif
    from advantage.training.evaluation import frames_per_second, record_frames, renderable

    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if not _has_display():
        if gif is None:
            raise Refusal(f"there is no display for a window: write a film with --gif {file.stem}.gif")
        os.environ["SDL_VIDEODRIVER"] = "dummy"  # SDL would complain about it in its own words
        os.environ.setdefault("MUJOCO_GL", "egl")  # draws without a window; "osmesa" where there is no EGL
    model = _load(file)
    made = renderable(_env_of(model, env, file))
    fps = frames_per_second(made)
    if gif is None:
        _window(model, made, fps, seed, seed_index, max_steps)
        return
    frames, total = record_frames(model, made, max_steps, seed, seed_index=seed_index)
    save_gif(frames, gif, fps)
    print(f"saved {gif}: {len(frames) - 1} steps, return {total:,.4g}")


def replay(
    file: Annotated[Positional[Path], arg(metavar="FILE", help="The file that the error named.")],
    /,
    *,
    debug: Debug = False,
) -> int:
    """Do once more what a run stopped for with NaN or infinity; 1 if it does not happen again."""
    from advantage.experiments.replay import replay as run

    found = run(file)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("quantity", "value"):
        table.add_column(column)
    for name, value in found.metrics.items():
        table.add_row(name, f"{value:.4g}" if value == value and abs(value) != float("inf") else f"[red]{value}[/red]")
    console = Console(highlight=False)
    if found.metrics:
        console.print(table)
    stopped = f"training of seed {found.seed} stopped at step {found.step:,} for {found.expected}"
    console.print(f"{stopped}\nonce more: {found.what or 'nothing'} is NaN or infinite")
    return 0 if found.what else 1


def algorithms(*, debug: Debug = False) -> None:
    """List the algorithms."""
    from advantage.models import ALGORITHMS

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "family", "policy", "action spaces", "paper"):
        table.add_column(column, no_wrap=column != "family")
    for name, face in sorted(ALGORITHMS.items()):
        title, paper = _title((face.about or face.algorithm).__doc__ or "")
        policy = "off-policy" if hasattr(face.algorithm, "learn") else "on-policy"
        spaces = "\n".join(face.algorithm.ACTION_SPACES)
        table.add_row(name, title, policy, spaces, paper)
    Console().print(table)


def presets(*, debug: Debug = False) -> None:
    """List the presets: tuned settings by environment, which advantage train uses."""
    from advantage.experiments.preset import presets as every

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "environment", "steps", "return of our seeds"):
        table.add_column(column, no_wrap=True, justify="right" if column == "steps" else "left")
    for one in every():
        v = one.verified
        ours = f"{v.iqm:,.1f} ({v.low:,.1f} to {v.high:,.1f}), {v.seeds} seeds" if v else "[dim]unverified[/dim]"
        table.add_row(one.algorithm, one.env, f"{one.total_timesteps:,}", ours)
    Console(highlight=False).print(table)


def suggest(
    env: Annotated[Positional[str], arg(metavar="ENV")],
    /,
    *,
    budget: Annotated[int | None, arg(metavar="STEPS")] = None,
    algorithm: Annotated[str | None, arg(metavar="ALGO")] = None,
    seeds: int = 1,
    checkpoint: bool = False,
    as_json: Annotated[bool, arg(name="json")] = False,
    debug: Debug = False,
) -> None:
    """Recommend what to train an environment with, and estimate time, memory and disk.

    Steps the environment for two seconds and tries the training for a few; keeps nothing of both.

    Args:
        env: CartPole-v1, advantage/CartPole-v1, brax/ant, ...
        budget: Environment steps of each seed; the preset's or 100,000 by default.
        algorithm: Estimate this one, whatever would be recommended.
        seeds: Independent agents trained side by side.
        checkpoint: Count a checkpoint's replay memory as disk space, too.
        as_json: Print JSON, for programs.
    """
    from advantage.experiments.suggest import suggest as ask

    name = None if algorithm is None else _face(algorithm).__name__
    suggestion = ask(env, budget, algorithm=name, seeds=seeds, checkpoint=checkpoint)
    print(json.dumps(suggestion.as_dict())) if as_json else Console(highlight=False).print(suggestion)


def llm() -> None:
    """Language models: generate, chat, sft, reward, dpo, ppo, grpo and rloo; see advantage llm --help."""


def _made(face: type[Model], env: str, preset: Preset | None, given: Mapping[str, Any], **options: int) -> Model:
    """A model by a preset's settings and the user's own, which win."""
    from advantage.models import usual_policy

    fields = {**(preset.settings if preset else {}), **given}
    try:
        return face(fields.pop("policy", usual_policy(face, env)), env, **options, **fields)
    except (TypeError, ValueError) as error:
        # What the user did not give has to say where it comes from.
        if preset and any(name in str(error) for name in preset.settings if name not in given):
            where = f"preset {preset.algorithm} {preset.env}: override it with --set, or give --no-preset"
            raise Refusal(f"{error} (from the {where})") from None
        raise


def _show_preset(preset: Preset, given: Mapping[str, Any], total_timesteps: int) -> None:
    """Which preset is used, whether anybody checked it, and its settings as they are."""
    used = {name: given.get(name, value) for name, value in preset.settings.items()}
    settings = ", ".join(f"{name}={value}{' (yours)' * (name in given)}" for name, value in used.items())
    budget = f"{total_timesteps:,} steps"
    if total_timesteps != preset.total_timesteps:
        budget += f" in place of the preset's {preset.total_timesteps:,}"
    text = f"[bold]preset {escape(f'{preset.algorithm} {preset.env}')}[/bold], {escape(preset.status)}"
    Console(highlight=False).print(text, f"{escape(settings)}; {budget}; --no-preset refuses it", sep="\n")


def print_table(title: str, returns: list[np.ndarray], first_seed: int, note: str) -> None:
    """Returns `[episodes]` of each seed, and the interquartile mean of the seeds' means."""
    import numpy as np

    from advantage.experiments.statistics import bootstrap_interval, iqm

    table = Table()
    for column in ("seed", "episodes", "return", "std", "min", "max"):
        table.add_column(column, justify="right")
    for i, row in enumerate(returns):
        numbers = (np.mean(row), np.std(row), np.min(row), np.max(row)) if len(row) else ()
        table.add_row(str(first_seed + i), str(len(row)), *([f"{x:,.1f}" for x in numbers] or ["-"] * 4))
    means, notes = [np.mean(row) for row in returns if len(row)], []
    if len(means) > 1:
        table.add_section()
        table.add_row("IQM", str(sum(map(len, returns))), f"[bold]{iqm(means):,.1f}[/bold]")
        low, high = bootstrap_interval(means)
        notes = [f"IQM: interquartile mean over seeds, 95% interval {low:,.1f} to {high:,.1f}"]
    console = Console(highlight=False)
    console.print(f"[bold]{escape(title)}[/bold]", table, "\n".join([note, *notes]), sep="\n")


def _file_name(env: str) -> str:
    """An environment's id without what folders' names lack."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", env)


def _settings_of(names: Sequence[str], groups: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Settings of each algorithm: `PPO.name=value` is for one, `name=value` for all."""
    given: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in _settings([text for group in groups for text in group]).items():
        owner, dot, name = key.rpartition(".")
        owner = _face(owner).__name__ if dot else ""
        if dot and owner not in given:
            raise Refusal(f"--set {key}: {owner} is not compared: choose from {', '.join(names)}")
        for one in [owner] if dot else names:
            given[one][name] = value
    return given


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts as keywords."""
    given = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise Refusal(f"--set {text!r}: write name=value, such as --set learning_rate=3e-4")
        given[name.strip().replace("-", "_")] = _value(value.strip())
    return given


def _value(text: str) -> Any:
    """A number, boolean, None, list or dict as JSON or Python write it; else the text itself."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    python = re.sub(r"\b(true|false|null)\b", lambda m: str(words[m[0]]), text) if text[:1] in "[{(" else text
    try:
        return ast.literal_eval(python)
    except (ValueError, SyntaxError):
        if text[:1] in "[{(":
            raise Refusal(f"--set: {text!r} is no list or dict: write it as JSON, in quotes") from None
        return text


def _face(name: str) -> type[Model]:
    from advantage.models import algorithm_named

    return algorithm_named(name)


def _load(file: Path) -> Model:
    from advantage.training.files import read_model

    return _face(str(read_model(file)[0].get("algorithm"))).load(file)


def _env_of(model: Model, env: str | None, file: Path) -> str:
    if env is None and model.env_id is None:
        raise Refusal(f"{file} does not say on which environment it was trained: add --env ID")
    if env is None and not model._env_plain:
        said = f"note: {file} was trained on {model.env_id} with wrappers or arguments of its own: played without them"
        print(said, file=sys.stderr)
    return env or str(model.env_id)


def _title(docstring: str) -> tuple[str, str]:
    """`(name, citation)` of a module whose docstring is `Name (Authors, year, link).`"""
    first = " ".join(docstring.strip().split("\n\n")[0].split())
    match = re.match(r"(?P<name>[^(]+?) \((?P<authors>.+?), (?P<link>https?://[^)\s]+)\)", first)
    if match is None:
        return first, ""
    link = match["link"].replace("https://arxiv.org/abs/", "arXiv:").replace("https://doi.org/", "doi:")
    return match["name"], f"{match['authors']}\n{link}"


def _has_display() -> bool:
    shown = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    return not sys.platform.startswith("linux") or any(os.environ.get(name) for name in shown)


def _window(model: Model, env: Any, fps: float, seed: int, seed_index: int, max_steps: int) -> None:
    """Episode after episode, until the window is closed (or Escape or Q pressed)."""
    from advantage.training.evaluation import film

    try:
        import pygame
    except ImportError:
        raise ImportError('a window needs pygame: pip install "advantage[classic]"') from None
    screen, clock = None, pygame.time.Clock()
    pygame.display.init()
    try:
        for episode in range(EPISODES_WATCHED):
            total = 0.0
            with contextlib.closing(film(model, env, seed + episode, seed_index=seed_index)) as pictures:
                for frame, total in _at_most(pictures, max_steps):
                    if screen is None:
                        screen = pygame.display.set_mode((frame.shape[1], frame.shape[0]))
                    pygame.display.set_caption(f"episode {episode + 1}: return {total:,.4g}")
                    screen.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
                    pygame.display.flip()
                    clock.tick(fps)
                    if any(_closes(pygame, event) for event in pygame.event.get()):
                        return
            print(f"episode {episode + 1}: return {total:,.4g}")
    finally:
        pygame.display.quit()


def _at_most(pictures: Iterator[Any], steps: int) -> Iterator[Any]:
    return (pair for pair, _ in zip(pictures, range(steps + 1), strict=False))


def _closes(pygame: Any, event: Any) -> bool:
    keys = (pygame.K_ESCAPE, pygame.K_q)
    return event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key in keys)


def _note(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning as one line."""
    print(f"note: {_flat(str(message))}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    """What was given, expected and to be done, where the library says so; else the error's kind too."""
    text = _flat(str(error))
    own = isinstance(error, Refusal | ValueError | ImportError | OSError | TypeError | RuntimeError)
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    cause = " (--debug shows where)" if not own or error.__cause__ is not None else ""
    return f"{text if own and text else f'{type(error).__name__}: {text}'}{cause}"


def _flat(text: str) -> str:
    return " ".join(text.split())
