"""Speed beside Stable-Baselines3 and SBX: the same jobs, one process each, in turns.

    python benchmarks/speed.py                          # all jobs, three rounds: about 15 minutes
    python benchmarks/speed.py --suite continuous       # off-policy continuous control: half an hour
    python benchmarks/speed.py --suite seeds            # four seeds of SAC on two cores; what it compiles: 10 minutes
    python benchmarks/speed.py --suite policy           # policy gradients: about 10 minutes
    python benchmarks/speed.py --suite value            # DQN from Atari's pixels: about 5 minutes
    python benchmarks/speed.py --suite gpu              # on a GPU: about 5 minutes a round
    python benchmarks/speed.py --job ppo-gym --rounds 1 # one job; its results go to .bench/

Peers cannot live in our environment: they get their own under `.bench/` on first use, unless told where they
are (`--python-sb3`, `--python-sbx`). On Linux, pip takes torch with CUDA by default, some gigabytes more than
is needed: PyTorch's own page tells where its CPU build is.

Protocol. Each measurement is one child process (`_worker.py`), pinned to one core (`ppo-fused-8seeds`: two),
with torch and XLA on what it is pinned to and JAX's persistent cache off; those of the suite `gpu` compute on the
GPU, with four cores for the games. `learn` is called three times, the
last two with `reset_num_timesteps=False`: the first compiles, the second settles, the third is timed; the
same for all libraries. CPU-seconds (user and system, all threads) are what we compare, since other work on
the machine changes them less than wall time, which is given too. The children take turns, A B C A B C, and
a ratio is formed within its round; the table has the median of the rounds and, as the range, the lowest and
highest.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import pty
import shutil
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jobs

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "benchmarks" / "_worker.py"
BENCH = ROOT / ".bench"
PEERS = {
    "sb3": ("torch==2.13.0", "stable-baselines3==2.9.2", "sb3-contrib==2.9.2",
            "gymnasium[mujoco]==1.4.0", "numpy==2.4.6", "ale-py==0.12.1", "opencv-python-headless>=4.11"),
    "sbx": ("torch==2.13.0", "stable-baselines3==2.9.2", "gymnasium[mujoco]==1.4.0", "numpy==2.4.6",
            "sbx-rl==0.28.0", "jax==0.10.2", "jaxlib==0.10.2", "flax==0.12.8", "optax==0.2.8"),
}  # fmt: skip
TIMEOUT = 300
TITLES = {
    "speed": "Speed",
    "continuous": "Speed: continuous control",
    "seeds": "Speed: four seeds of SAC on two cores, and compiling",
    "policy": "Speed: policy gradients",
    "value": "Speed: value-based, from Atari's pixels",
    "gpu": "Speed: on a GPU",
}
PATH_OPTIONS = ("--python-", "--out")

Child = tuple[str, str]
"""`(library, run)`."""


def main() -> int:
    """Measure, write and print; 1 if a child failed or a target was missed."""
    options = arguments()
    checks = [check for checks in jobs.SUITES.values() for check in checks if check.job in options.job]
    children = list(dict.fromkeys((v.library, v.run) for c in checks for v in (c.top, c.bottom) if v))
    pythons = {library: python_of(library, options) for library in dict(children)}
    before, date = os.getloadavg(), datetime.datetime.now(datetime.UTC)
    rounds = []
    for number in range(options.rounds):
        results = {}
        for child in children:
            results[child] = measure(child, pythons[child[0]])
            print(f"round {number + 1}  {describe(child, results[child])}", file=sys.stderr, flush=True)
        rounds.append(results)
    report = {
        "date": date.isoformat(timespec="seconds"),
        "command": command(),
        "machine": {**machine(), "load_before": before, "load_after": os.getloadavg()},
        "versions": versions(rounds),
        "checks": [judge(check, rounds) for check in checks],
        "measurements": {f"{library} {run}": [r[library, run] for r in rounds] for library, run in children},
    }
    write(report, options.out, options.suite)
    return 0 if all(check["met"] is not False for check in report["checks"]) else 1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", action="append", choices=jobs.JOBS, help="only this one; may be repeated")
    parser.add_argument("--suite", choices=jobs.SUITES, default="speed", help="which jobs, and their results' name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder of the results")
    for peer in PEERS:
        parser.add_argument(f"--python-{peer}", metavar="PATH", help=f"an interpreter that has {peer}")
    options = parser.parse_args()
    # A few jobs must not replace the results of all.
    options.out = options.out or (BENCH if options.job else ROOT / "benchmarks" / "results")
    options.job = options.job or [check.job for check in jobs.SUITES[options.suite]]
    return options


def command() -> str:
    """How this was called, without the paths of this machine."""
    words = ["python", "benchmarks/speed.py"]
    for before, word in zip(sys.argv, sys.argv[1:], strict=False):
        option, equals, _ = word.partition("=")
        if before.startswith(PATH_OPTIONS) and "=" not in before:
            word = "PATH"
        elif option.startswith(PATH_OPTIONS) and equals:
            word = f"{option}=PATH"
        words.append(word)
    return " ".join(words)


# -- children ----------------------------------------------------------------------------------------


def python_of(library: str, options: argparse.Namespace) -> str:
    """The interpreter that has the library; a peer's environment is made where it is missing."""
    if library not in PEERS:
        return sys.executable
    given = getattr(options, f"python_{library}")
    if given:
        return given
    folder = BENCH / library
    python, done = folder / "bin" / "python", folder / "installed.txt"
    if not done.exists() or done.read_text().split() != list(PEERS[library]):
        print(f"installing {', '.join(PEERS[library])} into .bench/{library}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS[library]], check=True)
        done.write_text("\n".join(PEERS[library]) + "\n")
    return str(python)


def measure(child: Child, python: str) -> dict[str, Any]:
    """Run one child; its JSON, or `{"error": ...}`."""
    library, name = child
    run = jobs.RUNS.get(name)
    on_gpu = bool(run and run.device == "cuda")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cuda" if on_gpu else "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TERM": "xterm-256color",
        "PYTHONPATH": path_of(library),
    }
    words = [*pinned(run.cores if run else 1), python, str(WORKER), library, name]
    load = os.getloadavg()[0]
    try:
        code, output, errors = launch(words, environment, terminal=bool(run and run.terminal))
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {TIMEOUT} s"}
    if code != 0:
        return {"error": (errors.strip() or f"exit code {code}").splitlines()[-1]}
    return {**json.loads(output.splitlines()[-1]), "load": round(load, 2)}


def path_of(library: str) -> str:
    """Where a child imports from before its interpreter's packages: what it is given, and for ours this source."""
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(filter(None, [str(ROOT / "src"), given])) if library in ("ours", "jax") else given


def pinned(cores: int) -> list[str]:
    """The words that pin what follows to the last `cores` of this process's, where that can be done."""
    if not shutil.which("taskset") or not hasattr(os, "sched_getaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", ",".join(map(str, allowed[-cores:]))]


def launch(words: list[str], environment: dict[str, str], terminal: bool) -> tuple[int, str, str]:
    """`(exit code, stdout, stderr)`; stderr is a terminal's where the child should draw as for a user."""
    if not terminal:
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        return done.returncode, done.stdout, done.stderr
    ours, theirs = pty.openpty()
    seen = bytearray()

    def drain() -> None:
        # Reading a terminal whose other end is closed is an error on Linux, not an end of file.
        try:
            while data := os.read(ours, 65536):
                seen.extend(data)
        except OSError:
            pass

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    try:
        done = subprocess.run(
            words,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    finally:
        os.close(theirs)
        reader.join(5)
        os.close(ours)
    return done.returncode, done.stdout, seen.decode(errors="replace")


def describe(child: Child, result: dict[str, Any]) -> str:
    """One line for the screen."""
    name = f"{child[0]:5} {child[1]:20}"
    if "error" in result:
        return f"{name} failed: {result['error']}"
    if "steps" not in result:
        return f"{name} {result['cpu']:.2f} CPU-s, {result['wall']:.2f} s"
    return (
        f"{name} {result['steps_per_cpu_second']:>9,.0f} steps/CPU-s "
        f"{result['steps_per_second']:>9,.0f} steps/s "
        f"compile {result['compile_cpu']:.1f} CPU-s, peak {result['peak_mb']:.0f} MB"
    )


# -- results -----------------------------------------------------------------------------------------


def judge(check: jobs.Check, rounds: list[dict[Child, dict[str, Any]]]) -> dict[str, Any]:
    """A check's number in every round, their median, and whether the target was met (None: there is none)."""
    values, errors = [], []
    for results in rounds:
        used = [value for value in (check.top, check.bottom) if value]
        found = [results[value.library, value.run] for value in used]
        errors += [result["error"] for result in found if "error" in result]
        if not any("error" in result for result in found):
            numbers = [result[value.field] for value, result in zip(used, found, strict=True)]
            values.append(numbers[0] / numbers[1] if len(numbers) == 2 else numbers[0])
    row = {name: getattr(check, name) for name in ("job", "label", "sense", "target")} | {"values": values}
    if errors or not values:
        return {**row, "median": None, "met": False, "error": errors[0] if errors else "nothing measured"}
    median = statistics.median(values)
    met = None
    if check.target is not None:
        met = median >= check.target if check.sense == ">=" else median <= check.target
    return {**row, "median": median, "met": met}


def machine() -> dict[str, Any]:
    """What this ran on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    found = {"cpu": model, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}
    if shutil.which("nvidia-smi"):
        words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return found


def versions(rounds: list[dict[Child, dict[str, Any]]]) -> dict[str, dict[str, str]]:
    """Versions by library, as the children reported them."""
    found: dict[str, dict[str, str]] = {}
    for results in rounds:
        for (library, _), result in results.items():
            if "versions" in result:
                found[library] = result["versions"]
    return found


def write(report: dict[str, Any], folder: Path, suite: str) -> None:
    """`SUITE.json` and `SUITE.md`; the table is printed too."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(report, suite)
    (folder / f"{suite}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / f"{suite}.md").write_text(text, encoding="utf-8")
    print(text)


def markdown(report: dict[str, Any], suite: str) -> str:
    """The results as a page."""
    where = report["machine"]
    loads = " to ".join(f"{where[key][0]:.2f}" for key in ("load_before", "load_after"))
    lines = [
        f"# {TITLES[suite]}",
        "",
        f"`{report['command']}`, {report['date']}; "
        f"{where['gpu'] + ', ' if where.get('gpu') else ''}{where['cpu']}, {where['cores']} cores, {where['system']}; "
        f"load average {loads}. How it was measured: the head of `benchmarks/speed.py`; jobs and settings: "
        f"`benchmarks/jobs.py`; every measurement: `{suite}.json`.",
        "",
        *(
            f"- {library}: {', '.join(f'{name} {version}' for name, version in sorted(found.items()))}"
            for library, found in sorted(report["versions"].items())
        ),
        "",
        "| what | median | lowest – highest | target | met |",
        "| --- | ---: | ---: | ---: | --- |",
        *map(check_row, report["checks"]),
        "",
        "## Measurements",
        "",
        "Medians of the rounds. Ready: wall time from `import` until the first `learn` has returned. "
        "Recompiled: compilations inside the timed part.",
        "",
        "| child | steps timed | steps/CPU-s | steps/s | import s | ready s | compile CPU-s | recompiled "
        "| peak MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(row for name, results in report["measurements"].items() if (row := measurement_row(name, results))),
    ]
    return "\n".join(lines) + "\n"


def check_row(check: dict[str, Any]) -> str:
    """A line of the first table."""
    target = "" if check["target"] is None else f"{check['sense']} {check['target']:g}"
    if check["median"] is None:
        return f"| {check['label']} | – | | {target} | failed: {check['error'].replace('|', '/')} |"
    met = {None: "", True: "yes", False: "**no**"}[check["met"]]
    low, high = min(check["values"]), max(check["values"])
    return f"| {check['label']} | {check['median']:.2f} | {low:.2f} – {high:.2f} | {target} | {met} |"


def measurement_row(name: str, results: list[dict[str, Any]]) -> str | None:
    """A line of the second table; None for children that don't train or failed."""
    results = [result for result in results if "steps" in result]
    if not results:
        return None
    middle = {key: statistics.median(result[key] for result in results) for key in results[0]
              if isinstance(results[0][key], (int, float))}  # fmt: skip
    return (
        f"| {name} | {middle['steps']:,.0f} | {middle['steps_per_cpu_second']:,.0f} "
        f"| {middle['steps_per_second']:,.0f} | {middle['import_wall']:.1f} | {middle['ready_wall']:.1f} "
        f"| {middle['compile_cpu']:.1f} | {middle['compilations_while_timed']:.0f} "
        f"| {middle['peak_mb']:.0f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
