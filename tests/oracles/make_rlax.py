"""Answers of rlax, stored for our tests: writes `rlax.npz` beside itself.

    python -m venv .bench/rlax && .bench/rlax/bin/pip install rlax==0.1.9
    .bench/rlax/bin/python tests/oracles/make_rlax.py

Run by hand, never by the tests. Read the file with `numpy.load(path, allow_pickle=False)`.

`gae/`: rewards, discounts `[T]` (gamma, 0 after a termination), values `[T+1]`, lambdas `[3]`,
    advantages `[3,T]`: `truncated_generalized_advantage_estimation`.
`n_step/`: rewards, discounts, next_values `[T]`, n `[5]`, targets `[5,T]`: `n_step_bootstrapped_returns`,
    which bootstraps from the last value where the data ends.
`surrogate/`: ratio, advantages `[B]`, epsilons `[3]`, losses `[3]`: `clipped_surrogate_pg_loss`.
`huber/`: errors, values `[B]`: `huber_loss`.
`td/`: q, next_q `[B,A]`, actions, rewards, discounts, errors `[B]`: `q_learning`.
`double/`: selector `[B,A]`, errors `[B]`: `double_q_learning` of `td/`, where `next_q` judges what `selector` chooses.
"""

from pathlib import Path

import jax
import numpy as np
import rlax

T, B, A = 12, 10, 4


def main() -> None:
    """Ask everything and write the file."""
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=T).astype(np.float32), rng.normal(size=T + 1).astype(np.float32)
    discounts = np.where(np.isin(np.arange(T), (3, 8)), 0.0, 0.9).astype(np.float32)
    lambdas = np.array([0.0, 0.8, 1.0], np.float32)
    steps = np.arange(1, 6)
    gae = [
        rlax.truncated_generalized_advantage_estimation(rewards, discounts, lam, values) for lam in lambdas
    ]
    n_step = [rlax.n_step_bootstrapped_returns(rewards, discounts, values[1:], int(n)) for n in steps]
    ratio, advantages = (
        np.exp(rng.normal(size=B) / 2).astype(np.float32),
        rng.normal(size=B).astype(np.float32),
    )
    epsilons = np.array([0.1, 0.2, 0.5], np.float32)
    errors = (3 * rng.normal(size=B)).astype(np.float32)
    q, next_q = rng.normal(size=(2, B, A)).astype(np.float32)
    actions, td_rewards = rng.integers(A, size=B), rng.normal(size=B).astype(np.float32)
    td_discounts = rng.choice([0.0, 0.95], size=B).astype(np.float32)
    selector = rng.normal(size=(B, A)).astype(np.float32)
    double = jax.vmap(rlax.double_q_learning)(q, actions, td_rewards, td_discounts, next_q, selector)
    arrays = {
        "gae/rewards": rewards, "gae/discounts": discounts, "gae/values": values, "gae/lambdas": lambdas,
        "gae/advantages": gae, "n_step/rewards": rewards, "n_step/discounts": discounts,
        "n_step/next_values": values[1:], "n_step/n": steps, "n_step/targets": n_step,
        "surrogate/ratio": ratio, "surrogate/advantages": advantages, "surrogate/epsilons": epsilons,
        "surrogate/losses": [rlax.clipped_surrogate_pg_loss(ratio, advantages, e) for e in epsilons],
        "huber/errors": errors, "huber/values": rlax.huber_loss(errors),
        "td/q": q, "td/next_q": next_q, "td/actions": actions, "td/rewards": td_rewards,
        "td/discounts": td_discounts,
        "td/errors": jax.vmap(rlax.q_learning)(q, actions, td_rewards, td_discounts, next_q),
        "double/selector": selector, "double/errors": double,
    }  # fmt: skip
    np.savez_compressed(Path(__file__).with_name("rlax.npz"), **{k: np.asarray(v) for k, v in arrays.items()})


if __name__ == "__main__":
    main()
