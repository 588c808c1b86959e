"""MinAtar's games in the fused driver: a million steps of five seeds, by the protocol of `compare`.

    python benchmarks/minatar.py                                      # everything that is not there yet: hours
    python benchmarks/minatar.py --game Breakout --algorithm Rainbow  # one of them, five minutes to half an hour
    python benchmarks/minatar.py --report                             # the report anew, from what is committed

Results, report and pictures are in `results/minatar/`. Needs the extra `jax-envs`. All have one hidden layer of 128
and the settings of the ablation, which nobody tuned; each seed has a core of its own where there are enough.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "minatar"
GAMES = ("Breakout", "Asterix")
PROTOCOL = {"total_timesteps": 1_000_000, "evaluations": 10, "n_eval_episodes": 30, "seeds": 5}
SHARED = {
    "learning_rate": 2.5e-4, "learning_starts": 1_000, "buffer_size": 100_000, "target_update_interval": 1_000,
    "policy_kwargs": {"net_arch": [128]},
}  # fmt: skip
EPSILON = {"exploration_fraction": 0.1, "exploration_final_eps": 0.01}
ATOMS = {"v_min": 0, "v_max": 30}
ARMS: dict[str, dict[str, Any]] = {
    "DQN": SHARED | EPSILON,
    "DoubleDQN": SHARED | EPSILON,
    "DuelingDQN": SHARED | EPSILON,
    "C51": SHARED | EPSILON | ATOMS,
    "QRDQN": SHARED | EPSILON,
    "IQN": SHARED | EPSILON,
    "Rainbow": SHARED | ATOMS,
}


def main() -> None:
    """Train what is asked for and not there yet, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", action="append", choices=GAMES, help="only this; may be repeated")
    parser.add_argument("--algorithm", action="append", choices=list(ARMS), help="only this; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--report", action="store_true", help="no training: the report anew")
    options = parser.parse_args()
    from advantage.experiments.compare import compare
    from advantage.experiments.report import write_report
    from advantage.experiments.results import read_results

    if options.report:
        print(write_report(read_results(options.out), options.out))
        return
    names = options.algorithm or list(ARMS)
    for game in options.game or GAMES:
        settings = {name: ARMS[name] for name in names}
        compare(names, f"gymnax/{game}-MinAtar", out=options.out, settings=settings, **PROTOCOL)


if __name__ == "__main__":
    main()
