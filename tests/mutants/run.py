"""Apply each wrong version of `mutants.yaml` to a copy of the source and see the named tests fail.

    python tests/mutants/run.py [NAME ...]

Exit code 0: every mutant was killed. 1: one survived, or was broken rather than wrong. 2: the list itself
does not fit the tree (text not found exactly once, a test that already fails, ...).
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

HERE = Path(__file__).parent
FIELDS = {"name", "file", "find", "replace", "killed_by"}
SECONDS = 600  # a mutant may loop for ever


class ListError(Exception):
    """The list of mutants does not fit the source or the tests."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One wrong version: `find` becomes `replace` in `file`, and every test of `killed_by` must notice."""

    name: str
    file: str
    find: str
    replace: str
    killed_by: tuple[str, ...]


def read(path: Path) -> list[Mutant]:
    """The mutants of a YAML list; raises `ListError` where an entry is incomplete or a name there twice."""
    mutants = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")) or []:
        if not isinstance(entry, dict) or set(entry) != FIELDS or not entry["killed_by"]:
            raise ListError(f"{path.name}: expected an entry with {sorted(FIELDS)}, got {entry!r}")
        if not isinstance(entry["killed_by"], list):
            raise ListError(f"{entry['name']}: killed_by is a list of nodes, got {entry['killed_by']!r}")
        mutants.append(Mutant(**{**entry, "killed_by": tuple(entry["killed_by"])}))
    names = [mutant.name for mutant in mutants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ListError(f"{path.name}: {sorted(twice)} appear more than once")
    return mutants


def mutated(mutant: Mutant, root: Path) -> str:
    """The wrong version of the mutant's file; raises `ListError` unless `find` is there exactly once."""
    path = root / mutant.file
    if not mutant.file.startswith("src/") or not path.is_file():
        raise ListError(f"{mutant.name}: {mutant.file} is not a file under src/")
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.find) != 1 or mutant.find == mutant.replace:
        raise ListError(
            f"{mutant.name}: `find` must be in {mutant.file} exactly once and differ from `replace`;"
            f" it is there {text.count(mutant.find)} times: {mutant.find!r}"
        )
    return text.replace(mutant.find, mutant.replace)


def pytest(root: Path, source: Path, package: str, options: list[str]) -> tuple[int, dict, str]:
    """Run tests against `source`: `(exit code, what witness.py saw, output)`."""
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "seen.json"
        environment = {
            **os.environ,
            # PYTHONPATH comes before the path of an editable install; the witness checks what was imported.
            "PYTHONPATH": os.pathsep.join([str(source), str(HERE)]),
            # A stale compiled file would hide a mutant of equal length written within the same second.
            "PYTHONDONTWRITEBYTECODE": "1",
            "MUTANTS_PACKAGE": package,
            "MUTANTS_SOURCE": str(source.resolve()),
            "MUTANTS_SEEN": str(seen),
        }
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "witness", "-pno:cacheprovider"]
        how = {"cwd": root, "env": environment, "text": True, "timeout": SECONDS}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        try:
            done = subprocess.run([*command, *options], **how, **pipes)
        except subprocess.TimeoutExpired:
            return -1, {}, f"no end after {SECONDS} s"
        what = json.loads(seen.read_text(encoding="utf-8")) if seen.exists() else {}
        return done.returncode, what, done.stdout


def baseline(root: Path, package: str, mutants: list[Mutant]) -> None:
    """Raise `ListError` unless every named test passes on the unmodified source."""
    nodes = sorted({node for mutant in mutants for node in mutant.killed_by})
    code, seen, output = pytest(root, root / "src", package, nodes)
    if code != 0 or not seen.get("right_source"):
        state = f"pytest: {code}; {package} imported from {seen.get('imported')}"
        raise ListError(f"the named tests must pass on the unmodified source ({state})\n{output}")


def verdict(root: Path, package: str, mutant: Mutant) -> tuple[str, str]:
    """`(killed | survived | broken, why)` of one mutant."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(root / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / mutant.file).write_text(mutated(mutant, root), encoding="utf-8")
        for node in mutant.killed_by:
            code, seen, output = pytest(root, source, package, ["-x", node])
            if seen and not seen["right_source"]:
                return "broken", f"{node} tested {package} from {seen['imported']}, not the mutant"
            if code == 0:
                return "survived", node
            if code != 1 or not seen.get("failed"):
                return "broken", f"{node}: pytest ended with {code}\n{output}"
            if not all(seen["failed"].values()):
                return "broken", f"{node} failed, but by no assertion\n{output}"
    return "killed", ""


def main() -> int:
    """Read the command line, run, print a table."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutants")
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="the project (default: this one)")
    parser.add_argument("--list", type=Path, default=HERE / "mutants.yaml", help="the list of mutants")
    parser.add_argument("--package", default="advantage", help="the package under src/")
    options = parser.parse_args()
    root = options.root.resolve()
    try:
        mutants = read(options.list)
        if unknown := set(options.names) - {mutant.name for mutant in mutants}:
            raise ListError(f"no such mutants: {sorted(unknown)}")
        mutants = [mutant for mutant in mutants if not options.names or mutant.name in options.names]
        for mutant in mutants:
            mutated(mutant, root)
        if mutants:
            print(f"the named tests on the unmodified source, then {len(mutants)} mutants", flush=True)
            baseline(root, options.package, mutants)
    except ListError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    counts = {"killed": 0, "survived": 0, "broken": 0}
    width = max((len(mutant.name) for mutant in mutants), default=0)
    for mutant in mutants:
        start = time.perf_counter()
        what, why = verdict(root, options.package, mutant)
        counts[what] += 1
        seconds = time.perf_counter() - start
        print(f"  {mutant.name:<{width}}  {what:<8}  {seconds:5.1f} s  {mutant.file}", flush=True)
        if why:
            print("    " + why.replace("\n", "\n    "), flush=True)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return 0 if counts["killed"] == len(mutants) else 1


if __name__ == "__main__":
    raise SystemExit(main())
