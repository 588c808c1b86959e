"""What a checkpoint costs, and that a run killed and resumed is the run that was not.

    python benchmarks/checkpoints.py             # measures: results/checkpoints.json and .md, then the picture
    python benchmarks/checkpoints.py --report    # the picture alone, docs/images/checkpoints.png

The pause is the wall-clock time of `save_checkpoint`, in which training stands still: DQN with observations of 17
numbers and replay memories of 10,000 to 1,000,000 transitions, the median and the longest of seven, files fsynced.
The resumed run is DQN on CartPole-v1, in processes of its own: the first one gets `kill -9` after its checkpoint
at 20,000 of 40,000 steps, the second one goes on. Beside it the same run without a stop.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA, PICTURE = ROOT / "benchmarks" / "results" / "checkpoints.json", ROOT / "docs" / "images" / "checkpoints.png"
ROWS, REPEATS = (10_000, 100_000, 1_000_000), 7
STEPS, KILLED_AT = 40_000, 20_000
SETTINGS = {"learning_rate": 1e-3, "learning_starts": 1_000, "exploration_fraction": 0.3, "target_update_interval": 500}

WHOLE = f"""
import sys
from advantage import DQN
from advantage.training.loggers import configure
model = DQN("MlpPolicy", "CartPole-v1", seed=0, **{SETTINGS!r})
model.set_logger(configure(sys.argv[1], ["csv"]))
checkpoints = {{"checkpoint_dir": sys.argv[1] + "/checkpoints", "checkpoint_every": {KILLED_AT}}}
model.learn({STEPS}, log_interval=10, **(checkpoints if len(sys.argv) > 2 else {{}})).save(sys.argv[1] + "/end")
"""
RESUMED = """
import sys
from advantage import DQN
DQN.resume(sys.argv[1] + "/checkpoints").learn().save(sys.argv[1] + "/end")
"""


class Numbers(gymnasium.Env):
    """Observations of 17 numbers, the size of many robots'."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (17,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        super().reset(seed=seed)
        return np.zeros(17, np.float32), {}

    def step(self, action: Any) -> tuple:
        return np.zeros(17, np.float32), 1.0, False, False, {}


def pauses() -> list[dict[str, Any]]:
    """Seconds that training stands still for a checkpoint, by rows of replay memory."""
    from advantage import DQN

    measured = []
    for rows in ROWS:
        model = DQN("MlpPolicy", Numbers(), buffer_size=rows, learning_starts=100).learn(200)
        with tempfile.TemporaryDirectory() as folder:
            seconds = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                path = model.save_checkpoint(folder)
                seconds.append(time.perf_counter() - began)
            size = sum(file.stat().st_size for file in path.iterdir())
        measured.append({"rows": rows, "median": float(np.median(seconds)), "longest": max(seconds), "bytes": size})
    return measured


def curves() -> dict[str, Any]:
    """Steps and returns of both runs, and how many bytes of their models differ."""
    from advantage import DQN

    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        subprocess.run([sys.executable, "-c", WHOLE, whole], check=True)
        process = subprocess.Popen([sys.executable, "-c", WHOLE, killed, "checkpoints"])
        while not list((killed / "checkpoints").glob("step_*")):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        died_at = _column(killed / "progress.csv", "time/total_timesteps")[-1]
        subprocess.run([sys.executable, "-c", RESUMED, killed], check=True)
        arrays = [DQN.load(run / "end").get_parameters()["policy"] for run in (whole, killed)]
        different = sum(x.tobytes() != arrays[1][name].tobytes() for name, x in arrays[0].items())
        lines = {
            name: [_column(run / "progress.csv", key) for key in ("time/total_timesteps", "rollout/ep_rew_mean")]
            for name, run in (("whole", whole), ("resumed", killed))
        }
    return {"lines": lines, "different_arrays": different, "arrays": len(arrays[0]), "died_after": died_at}


def _column(path: Path, key: str) -> list[float]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    place = rows[0].index(key)
    return [float(row[place]) for row in rows[1:]]


def draw(data: dict[str, Any]) -> None:
    """The picture for the docs."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), gridspec_kw={"width_ratios": (3, 2)})
    lines = data["curves"]["lines"]
    left.plot(*lines["whole"], color="#0072B2", linewidth=5, alpha=0.35, label="never stopped")
    left.plot(*lines["resumed"], color="#D55E00", linewidth=1.5, label="killed and resumed")
    left.axvline(KILLED_AT, color="#444444", linestyle=":", label="the checkpoint it went on from")
    left.set(xlabel="environment steps", ylabel="mean return of the last 100 episodes")
    left.set_title("DQN on CartPole-v1, kill -9 and resume", loc="left", fontsize=11)
    left.legend(frameon=False, loc="lower right")
    rows = [row["rows"] for row in data["pauses"]]
    for key, colour in (("median", "#0072B2"), ("longest", "#D55E00")):
        right.plot(rows, [row[key] for row in data["pauses"]], "o-", color=colour, label=f"{key} of {REPEATS}")
    right.axhline(1.0, color="#444444", linestyle=":", label="the most that was allowed")
    right.set(xscale="log", yscale="log", xlabel="transitions in the replay memory", ylabel="seconds")
    right.set_title("Training stands still for", loc="left", fontsize=11)
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def report(data: dict[str, Any]) -> str:
    """The table."""
    rows = "\n".join(
        f"| {row['rows']:,} | {row['median']:.2f} | {row['longest']:.2f} | {row['bytes'] / 1e6:.0f} |"
        for row in data["pauses"]
    )
    curves = data["curves"]
    return f"""# Checkpoints

`python benchmarks/checkpoints.py`, {data["date"]}, {data["machine"]}, load {data["load"]:.1f} at the start.

| transitions in the replay memory | pause, median (s) | longest of {REPEATS} (s) | size (MB) |
|---:|---:|---:|---:|
{rows}

A run of DQN on CartPole-v1 over {STEPS:,} steps got `kill -9` after it had logged step {curves["died_after"]:,.0f} and was
resumed from its checkpoint at {KILLED_AT:,}: {curves["different_arrays"]} of its {curves["arrays"]} arrays differ from those of the run
that was never stopped, and so do {_different_rows(curves["lines"])} of {len(curves["lines"]["whole"][0])} rows of the log.
"""


def _different_rows(lines: dict[str, Any]) -> int:
    pairs = zip(*(zip(*line, strict=True) for line in lines.values()), strict=True)
    return sum(one != other for one, other in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="write table and picture from the stored numbers")
    if not parser.parse_args().report:
        load = os.getloadavg()[0]
        data = {
            "date": time.strftime("%Y-%m-%d"), "machine": f"{os.cpu_count()} cores, {platform.machine()}", "load": load,
            "pauses": pauses(), "curves": curves(),
        }  # fmt: skip
        DATA.write_text(json.dumps(data, indent=1) + "\n")
    data = json.loads(DATA.read_text())
    DATA.with_suffix(".md").write_text(report(data))
    draw(data)


if __name__ == "__main__":
    main()
