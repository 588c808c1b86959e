"""Pictures of results: learning curves over seeds, and films of an agent."""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from advantage.experiments.statistics import (
    FEWEST_SEEDS,
    Estimate,
    bootstrap_interval,
    iqm,
    performance_profile,
    sample_efficiency,
)

# Okabe and Ito's colours, told apart also by colour-blind readers, the strongest contrasts first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D4A99", "#444444")
INK, FAINT = "#222222", "#8a8a8a"

BOOTSTRAP_SAMPLES = 2_000
"""Per point of a curve; a band's edge needs less precision than a number in a table."""


def learning_curve(
    curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
    path: str | os.PathLike[str],
    title: str,
    reference: float | int | Mapping[str, float | int] | None = None,
) -> None:
    """Draw episode returns over environment steps as a picture of 1600 x 960 pixels.

    Each curve is the interquartile mean over seeds with its 95 % bootstrap interval as a band (from 3 seeds
    on) and one thin line per seed. NaN and infinite returns (no episode finished yet) are left out point by
    point.

    Args:
        curves: name to `(steps [points], returns [seeds, points])`; steps in environment steps.
        path: the file, an SVG where it ends so and else a PNG; its folder is made.
        title: above the picture.
        reference: a return to mark by a dashed line ("solved"), or several by name.

    Raises:
        ValueError: no curves, or shapes that don't fit.
        ImportError: matplotlib is missing.
    """
    checked = {name: _check_curve(name, steps, returns) for name, (steps, returns) in curves.items()}
    if not checked:
        raise ValueError("learning_curve needs at least one curve")
    figure, axes = _figure()
    for index, (name, (steps, returns)) in enumerate(checked.items()):
        _draw_curve(axes, name, steps, returns, COLOURS[index % len(COLOURS)])
    references = reference if isinstance(reference, Mapping) else {"reference": reference}
    for name, value in references.items():
        if value is not None:
            axes.axhline(value, color=FAINT, linewidth=1.2, linestyle=(0, (5, 3)), label=name, zorder=1)
    axes.set_xlabel("environment steps", fontsize=10.5, color=INK)
    axes.set_ylabel("episode return", fontsize=10.5, color=INK)
    _step_axis(axes)
    number, interval = _seeds_note({returns.shape[0] for _, returns in checked.values()})
    _style(axes, title, f"interquartile mean of {number}, {interval}" if interval else number)
    _save(figure, path)


def tasks_curve(
    curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], path: str | os.PathLike[str], title: str
) -> None:
    """Draw normalised scores over environment steps as a picture of 1600 x 960 pixels.

    Each curve is the interquartile mean over seeds and tasks with its stratified 95 % bootstrap interval as a band
    (from 3 seeds on).

    Args:
        curves: name to `(steps [points], scores [seeds, tasks, points])`.
        path: the file, an SVG where it ends so and else a PNG; its folder is made.
        title: above the picture.

    Raises:
        ValueError: shapes that don't fit.
        ImportError: matplotlib is missing.
    """
    figure, axes = _figure()
    for (name, (steps, scores)), colour in zip(curves.items(), itertools.cycle(COLOURS), strict=False):
        middle, low, high = sample_efficiency(scores, samples=BOOTSTRAP_SAMPLES)
        if low is not None:
            axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0, zorder=3)
        marker = "o" if len(middle) == 1 else None
        axes.plot(steps, middle, color=colour, linewidth=2.2, label=name, marker=marker, zorder=4)
    axes.set_xlabel("environment steps", fontsize=10.5, color=INK)
    axes.set_ylabel("normalised score", fontsize=10.5, color=INK)
    _step_axis(axes)
    number, interval = _seeds_note({np.shape(scores)[0] for _, scores in curves.values()})
    _style(axes, title, ", ".join(filter(None, [f"interquartile mean of {number} on each", interval])))
    _save(figure, path)


def intervals_picture(
    rows: Mapping[str, Mapping[str, Estimate]],
    path: str | os.PathLike[str],
    title: str,
    note: str,
    unit: str = "normalised score",
) -> None:
    """Draw estimates and their intervals, a row for each task, as a picture 1600 pixels wide.

    Args:
        rows: from top to bottom, a row's name to its estimates by algorithm; without bounds only the dot is drawn.
        path: the file, an SVG where it ends so and else a PNG; its folder is made.
        title, note: above the picture.
        unit: below it.

    Raises:
        ImportError: matplotlib is missing.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure, axes = _figure(height=1.6 + 0.35 * (len(names) + 0.6) * len(rows))
    for index, name in enumerate(names):
        colour, places, found = COLOURS[index % len(COLOURS)], [], []
        for place, row in enumerate(rows.values()):
            if name in row:
                places.append(place + 0.5 * ((index + 0.5) / len(names) - 0.5))
                found.append(row[name])
        axes.plot([e.value for e in found], places, "o", color=colour, markersize=7, label=name, zorder=4)
        for place, estimate in zip(places, found, strict=True):
            if estimate.low is not None:
                ends = [estimate.low, estimate.high]
                axes.plot(ends, [place] * 2, color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt", zorder=3)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
    axes.set_xlabel(unit, fontsize=10.5, color=INK)
    _style(axes, title, note)
    axes.margins(x=0.04)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    _save(figure, path)


def profile_picture(
    scores: Mapping[str, npt.ArrayLike], path: str | os.PathLike[str], title: str, unit: str = "final return"
) -> None:
    """Draw performance profiles as a picture of 1600 x 960 pixels: the share of runs above each score.

    Each is a line with its pointwise 95 % bootstrap interval as a band (from 3 seeds on). A line above
    another everywhere is better whatever score matters; where two cross, it depends on that.

    Args:
        scores: name to the final scores `[seeds]` or `[seeds, tasks]`.
        path: the file, an SVG where it ends so and else a PNG; its folder is made.
        title: above the picture.
        unit: what a score is, beneath the axis.

    Raises:
        ValueError: no scores, NaN, or shapes that don't fit.
        ImportError: matplotlib is missing.
    """
    if not scores:
        raise ValueError("profile_picture needs the scores of at least one algorithm")
    checked = {name: np.asarray(values, np.float64) for name, values in scores.items()}
    every = np.unique(np.concatenate([values.ravel() for values in checked.values()]))
    margin = 0.05 * (np.ptp(every) or 1.0)
    thresholds = np.array([every[0] - margin, *every, every[-1] + margin])
    figure, axes = _figure()
    for index, (name, values) in enumerate(checked.items()):
        colour = COLOURS[index % len(COLOURS)]
        share, low, high = performance_profile(values, thresholds, samples=BOOTSTRAP_SAMPLES)
        # Shares fall at the scores and nowhere between.
        if low is not None:
            band = {"color": colour, "alpha": 0.16, "linewidth": 0, "zorder": 3}
            axes.fill_between(thresholds, low, high, step="post", **band)
        axes.step(thresholds, share, where="post", color=colour, linewidth=2.2, label=name, zorder=4)
    axes.set_xlabel(unit, fontsize=10.5, color=INK)
    axes.set_ylabel("share of runs above", fontsize=10.5, color=INK)
    axes.yaxis.set_major_formatter("{x:.0%}")
    number, interval = _seeds_note({len(values) for values in checked.values()})
    _style(axes, title, ", ".join(filter(None, [number, interval])))
    _save(figure, path)


def paid_and_true(
    runs: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]],
    path: str | os.PathLike[str],
    title: str,
    marked: Mapping[str, tuple[float | int, float | int]] | None = None,
) -> None:
    """Draw shaped returns over true ones, a column of two panels for each run. Curves as in `learning_curve`.

    Args:
        runs: name to `(steps [points], shaped returns [seeds, points], true returns [seeds, points])`.
        path: the file, an SVG where it ends so and else a PNG; its folder is made.
        title: above the picture.
        marked: name to `(first, last)` environment steps to shade: where the two went apart.

    Raises:
        ValueError: no runs, or shapes that don't fit.
        ImportError: matplotlib is missing.
    """
    if not runs:
        raise ValueError("paid_and_true needs at least one run")
    figure = _blank((8, 5.4) if len(runs) == 1 else (3.4 * len(runs) + 0.8, 5.4))
    panels = figure.subplots(2, len(runs), sharex="col", squeeze=False)
    rows = (("what the agent is paid", COLOURS[1]), ("what it is meant to do", COLOURS[0]))
    for column, (name, (steps, *both)) in enumerate(runs.items()):
        for axes, returns, (meaning, colour) in zip(panels[:, column], both, rows, strict=True):
            _draw_curve(axes, name, *_check_curve(name, steps, returns), colour)
            _bare(axes)
            if marked and name in marked:
                axes.axvspan(*marked[name], color=COLOURS[4], alpha=0.18, linewidth=0, zorder=0)
            if column == 0:
                axes.set_ylabel(f"{'shaped' if axes is panels[0, 0] else 'true'} return\n({meaning})", fontsize=10, color=INK)
        panels[0, column].set_title(name if len(runs) > 1 else "", loc="left", fontsize=11.5, color=INK)
        panels[1, column].set_xlabel("environment steps", fontsize=10.5, color=INK)
        _step_axis(panels[1, column], nbins=7 if len(runs) == 1 else 4)
    # True returns mean the same everywhere.
    ends = [axes.get_ylim() for axes in panels[1]]
    for axes in panels[1]:
        axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    note = ", ".join(filter(None, _seeds_note({np.shape(shaped)[0] for _, shaped, _ in runs.values()})))
    figure.suptitle(f"{title}  ({note})", x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    _save(figure, path)


def need_matplotlib() -> None:
    """Raise `ImportError`, with what to install, where there is no matplotlib."""
    _blank((1, 1))


def _blank(size: tuple[float | int, float | int]) -> Any:
    """A figure of this size in inches."""
    try:
        # Not pyplot: no global state and no display.
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures of results need matplotlib: pip install "advantage[plot]"') from None
    figure = Figure(figsize=size, dpi=200, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    return figure


def _figure(height: float = 4.8) -> tuple[Any, Any]:
    """A figure of 8 by `height` inches, and its axes."""
    figure = _blank((8, height))
    return figure, figure.add_subplot()


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, format="svg" if str(path).lower().endswith(".svg") else "png")


def _seeds_note(seeds: set[int]) -> tuple[str, str]:
    """`("3 seeds", "95% bootstrap interval")`; the second is empty for a single seed."""
    fewest, most = min(seeds), max(seeds)
    number = f"{most} seed{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} seeds"
    if most >= FEWEST_SEEDS:
        return number, "95% bootstrap interval"
    return number, f"too few for an interval (at least {FEWEST_SEEDS})" if most > 1 else ""


def _check_curve(name: str, steps: npt.ArrayLike, returns: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    steps, returns = np.asarray(steps, dtype=np.float64), np.asarray(returns, dtype=np.float64)
    if steps.ndim != 1 or returns.ndim != 2 or returns.shape[1] != steps.size or 0 in returns.shape:
        raise ValueError(
            f"curve {name!r}: expected steps [points] and returns [seeds, points], "
            f"got shapes {steps.shape} and {returns.shape}"
        )
    return steps, returns


def _draw_curve(axes: Any, name: str, steps: np.ndarray, returns: np.ndarray, colour: str) -> None:
    middle = np.full(steps.size, np.nan)
    low, high = middle.copy(), middle.copy()
    for point, scores in enumerate(returns.T):
        scores = scores[np.isfinite(scores)]
        if scores.size:
            middle[point] = iqm(scores)
            if scores.size >= FEWEST_SEEDS:
                low[point], high[point] = bootstrap_interval(scores, samples=BOOTSTRAP_SAMPLES)
    if returns.shape[0] > 1:
        finite = np.where(np.isfinite(returns), returns, np.nan)
        axes.plot(steps, finite.T, color=colour, linewidth=0.6, alpha=0.28, zorder=2)
        axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0, zorder=3)
    marker = "o" if steps.size == 1 else None
    axes.plot(steps, middle, color=colour, linewidth=2.2, label=name, marker=marker, zorder=4)


def _step_axis(axes: Any, nbins: int = 7) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: step_label(value)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=nbins, steps=[1, 2, 2.5, 5, 10]))


def _style(axes: Any, title: str, note: str) -> None:
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", color=INK, pad=24)
    axes.text(0, 1.025, note, transform=axes.transAxes, fontsize=9.5, color="#666666", va="bottom")
    _bare(axes)
    # Many names would cover the curves: beside them then.
    handles, names = axes.get_legend_handles_labels()
    place = {"loc": "best"} if len(names) <= 5 else {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    axes.legend(handles, names, fontsize=9.5, framealpha=0.85, edgecolor="none", labelcolor=INK, **place)


def _bare(axes: Any) -> None:
    """Axes with a grid and little else."""
    axes.margins(x=0.01, y=0.06)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    axes.tick_params(colors="#444444", labelsize=9.5, length=0, pad=6)


def step_label(steps: float | int) -> str:
    """A number of steps as an axis shows it: 0, 500, 50k, 1.5M, 2B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(steps) >= size:
            return f"{steps / size:g}{letter}"
    return f"{steps:g}"


def save_gif(
    frames: Sequence[Any],
    path: str | os.PathLike[str],
    fps: float | int = 30.0,
    *,
    max_bytes: int = 1_500_000,
    max_width: int = 480,
) -> None:
    """Save frames as a GIF that loops for ever, at their true speed.

    Frames are scaled to `max_width` and shown at 25 per second at most; if the file is still larger than
    `max_bytes`, it is made again with smaller and then with fewer frames, down to 96 pixels and 5 per second.

    Args:
        frames: RGB images `[height, width, 3]` uint8, all of one size.
        path: the GIF; its folder is made.
        fps: frames per second at which they were recorded.
        max_bytes: aim for the file's size; 500 CartPole frames need a tenth of the default.
        max_width: pixels.

    Raises:
        ValueError: no frames, another shape or type, frames of different sizes, or `fps` not positive.
        ImportError: Pillow is missing.
    """
    _check_frames(frames, fps)
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ImportError('GIFs need Pillow: pip install "advantage[plot]"') from None
    width = frames[0].shape[1]
    scale = min(1.0, max_width / width)
    stride = max(1, math.ceil(fps / 25.0 - 1e-6))
    while True:
        data = _encode_gif(frames[::stride], scale, stride / fps)
        # A size falls with the area, somewhat slower than that: aim a little below.
        factor = 0.9 * max_bytes / len(data)
        if factor >= 0.9:
            break
        if scale * width > 240:
            scale = max(scale * math.sqrt(factor), 240 / width)
        elif fps / stride > 10:
            stride = max(stride + 1, min(math.ceil(stride / factor), math.ceil(fps / 10)))
        elif scale * width > 96:
            scale = max(scale * math.sqrt(factor), 96 / width)
        elif fps / stride > 5:
            stride += 1
        else:
            break
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def _check_frames(frames: Sequence[Any], fps: float | int) -> None:
    if len(frames) == 0:
        raise ValueError("save_gif needs at least one frame")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    shape = np.shape(frames[0])
    for index, frame in enumerate(frames):
        dtype = getattr(frame, "dtype", type(frame).__name__)
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or frame.shape != shape:
            raise ValueError(
                f"frame {index}: expected RGB [height, width, 3] uint8, all of one size, "
                f"got shape {np.shape(frame)} and {dtype} (frame 0 has {shape})"
            )


def _encode_gif(frames: Sequence[np.ndarray], scale: float, seconds: float) -> bytes:
    """Encode frames shown for `seconds` each, with one palette for the film so that colours don't flicker."""
    from PIL import Image

    height, width = frames[0].shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    if scale < 1.0:
        images = [image.resize(size, Image.Resampling.BOX, reducing_gap=2.0) for image in images]
    samples = images[:: max(1, len(images) // 12)]
    sheet = Image.new("RGB", (size[0], size[1] * len(samples)))
    for row, image in enumerate(samples):
        sheet.paste(image, (0, row * size[1]))
    palette = sheet.quantize(colors=128, method=Image.Quantize.MEDIANCUT)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    # GIF counts in hundredths of a second: rounding the times, not the durations, keeps the speed. Browsers
    # slow anything shorter than two hundredths down to ten.
    times = [round(100 * index * seconds) for index in range(len(images) + 1)]
    durations = [10 * max(2, after - before) for before, after in zip(times[:-1], times[1:], strict=True)]
    buffer = io.BytesIO()
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True
    )
    return buffer.getvalue()
