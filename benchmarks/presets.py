"""Do the presets learn? Trains them over seeds and sets the returns beside those published by their source.

    python benchmarks/presets.py PPO/CartPole-v1 DQN/CartPole-v1 ...   # trains; records into results/presets.json
    python benchmarks/presets.py --report                              # from these records results/presets.md, and
                                                                       # docs/presets.md's table and picture

Protocol: all seeds of a preset at once, in one process, by exactly its settings and budget; then each plays 50 whole
episodes of the deterministic policy on environments of its own. The score of a seed is the mean of these. A preset is
`verified` in its YAML where at least 5 seeds were trained and the 95 % interval of their interquartile mean reaches the
published mean less its deviation, which is over episodes of one run: ours are not shown to be worse. Where nothing is
published, it stays unverified. The line to put there is printed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FILE = "benchmarks/results/presets.json"
EPISODES, EVALUATION_SEED = 50, 10_000

Record = dict[str, Any]


def main() -> None:
    """Train or report, as the command line says."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("presets", nargs="*", metavar="ALGO/ENV", help="which to train")
    parser.add_argument("--seeds", type=int, default=5, help="agents trained at once (5)")
    parser.add_argument("--report", action="store_true", help="no training: the table from the records")
    options = parser.parse_args()
    for name in options.presets:
        algorithm, _, env = name.partition("/")
        record = train(algorithm, env, options.seeds)
        kept = [one for one in records() if (one["algorithm"], one["env"]) != (record["algorithm"], env)]
        text = ",\n".join(json.dumps(one) for one in sorted([*kept, record], key=_order))
        (ROOT / FILE).write_text(f"[\n{text}\n]\n", encoding="utf-8")
        print(f"{name}: {verified_line(record)}", flush=True)
    if options.report or options.presets:
        (RESULTS / "presets.md").write_text(report(records()), encoding="utf-8")
        write_docs()


def records() -> list[Record]:
    """What was trained so far."""
    path = ROOT / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _order(record: Record) -> tuple[str, str]:
    return record["algorithm"], record["env"]


def train(algorithm: str, env: str, seeds: int) -> Record:
    """Train a preset's seeds and evaluate them."""
    import advantage
    from advantage.training.evaluation import evaluate_seeds

    preset, load = advantage.preset(algorithm, env), os.getloadavg()[0]
    began = time.perf_counter()
    model = advantage.ALGORITHMS[preset.algorithm]("MlpPolicy", env, seed=0, seeds=seeds, **preset.settings)
    model.learn(preset.total_timesteps)
    seconds = time.perf_counter() - began
    returns = evaluate_seeds(model, env, EPISODES, seed=EVALUATION_SEED).mean(axis=1)
    versions = {package: importlib.metadata.version(package) for package in ("jax", "equinox", "gymnasium")}
    return {
        "algorithm": preset.algorithm, "env": env, "settings": preset.settings,
        "total_timesteps": preset.total_timesteps, "returns": [round(float(x), 2) for x in returns],
        "seconds": round(seconds, 1), "load_before": round(load, 2), "advantage": advantage.__version__, **versions,
    }  # fmt: skip


def summary(record: Record) -> dict[str, Any]:
    """The record as a preset's YAML names it."""
    from advantage.experiments.statistics import bootstrap_interval, iqm

    low, high = bootstrap_interval(record["returns"])
    numbers = {"iqm": float(iqm(record["returns"])), "low": low, "high": high}
    return {"file": FILE, "seeds": len(record["returns"]), **{k: round(v, 1) for k, v in numbers.items()}}


def reached(record: Record) -> bool | None:
    """Whether the published return was reached; None where none is published."""
    from advantage.experiments.preset import preset

    published = preset(record["algorithm"], record["env"]).published
    return None if published is None else summary(record)["high"] >= published[0] - published[1]


def verified_line(record: Record) -> str:
    """For the YAML."""
    fields = ", ".join(f"{name}: {value}" for name, value in summary(record).items())
    good = len(record["returns"]) >= 5 and reached(record)
    return f"verified: {{{fields}}}" if good else f"verified: no  # {fields}"


def report(done: list[Record]) -> str:
    """The table."""
    from advantage.experiments.preset import preset

    lines = [
        "# Presets, trained\n",
        "`python benchmarks/presets.py ALGO/ENV ...`, then `--report`; protocol in the head of that file. Return:"
        " interquartile mean over seeds of the mean over 50 episodes, 95 % bootstrap interval in brackets. Published:"
        " one run of the source, mean ± deviation over episodes. Seconds: training of all seeds together, with"
        " compilation, on two shared cores; load: of the machine just before.\n",
        "| preset | steps | seeds | return | worst | best | published | reached | seconds | load |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for one in done:
        s, published = summary(one), preset(one["algorithm"], one["env"]).published
        cells = [
            f"{one['algorithm']} {one['env']}", f"{one['total_timesteps']:,}", s["seeds"],
            f"{s['iqm']:.1f} [{s['low']:.1f}, {s['high']:.1f}]", f"{min(one['returns']):.1f}",
            f"{max(one['returns']):.1f}", "–" if published is None else f"{published[0]} ± {published[1]}",
            {True: "yes", False: "no", None: "–"}[reached(one)], f"{one['seconds']:.0f}", one["load_before"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def write_docs() -> None:
    """The table of all presets, and the picture of the verified ones."""
    from advantage.experiments.plots import intervals_picture
    from advantage.experiments.preset import presets
    from advantage.experiments.statistics import Estimate
    from advantage.experiments.tasks import OURS, SCALES

    lines = ["| algorithm | environment | steps | ours | published |", "|---|---|---:|---|---:|"]
    rows: dict[str, dict[str, Any]] = {}
    for one in presets():
        v, published = (
            one.verified,
            "–" if one.published is None else f"{one.published[0]} ± {one.published[1]}",
        )
        ours = f"{v.iqm} ({v.low} to {v.high}), {v.seeds} seeds" if v else "unverified"
        normalised = ", `normalize`" if one.settings.get("normalize") else ""
        lines.append(
            f"| {one.algorithm} | `{one.env}`{normalised} | {one.total_timesteps:,} | {ours} | {published} |"
        )
        scale = SCALES.get(one.env.removeprefix(OURS))
        if v and scale:
            scores = [(x - scale[0]) / (scale[1] - scale[0]) for x in (v.iqm, v.low, v.high)]
            rows.setdefault(one.env, {})[one.algorithm] = Estimate(*scores)
    page = ROOT / "docs" / "presets.md"
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- table -->\n")
    after = rest.partition("<!-- /table -->")[2]
    table = "\n".join(lines)
    page.write_text(f"{before}<!-- table -->\n{table}\n<!-- /table -->{after}", encoding="utf-8")
    note = "interquartile mean of 5 to 10 seeds, 95% interval"
    intervals_picture(rows, ROOT / "docs" / "images" / "presets.png", "Verified presets", note)


if __name__ == "__main__":
    main()
