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
`categorical/`: probs, returns `[B,N]`, atoms `[N]`, projected `[B,N]`: `categorical_l2_project`; logits, next_logits
    `[B,A,N]`, selector `[B,A]`, with actions, rewards and discounts of `td/`: losses, double_losses `[B]` of
    `categorical_q_learning` and `categorical_double_q_learning`.
`quantile/`: quantiles, next_quantiles `[B,N,A]` and selector of `categorical/`, losses, double_losses `[B]`: `quantile_q_learning`
    with a Huber parameter of 1; implicit/fractions `[B,N]` and implicit/losses `[B]`: the same at other fractions.
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
    distributions = distributional(rng, actions, td_rewards, td_discounts)
    arrays = distributions | {
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


def distributional(
    rng: np.random.Generator, actions: np.ndarray, rewards: np.ndarray, discounts: np.ndarray
) -> dict[str, np.ndarray]:
    """Projections and losses of distributions of returns."""
    atoms = np.linspace(-2.0, 3.0, 11).astype(np.float32)
    count = len(atoms)
    logits, next_logits = rng.normal(size=(2, B, A, count)).astype(np.float32)
    selector = rng.normal(size=(B, A)).astype(np.float32)
    probs = np.asarray(jax.nn.softmax(next_logits[:, 0]))
    returns = np.sort(rng.normal(scale=2.5, size=(B, count)).astype(np.float32), axis=1)
    quantiles, next_quantiles = rng.normal(size=(2, B, count, A)).astype(np.float32)
    support = np.broadcast_to(atoms, (B, count))
    given = (actions, rewards, discounts)
    taus = (np.arange(count, dtype=np.float32) + 0.5) / count
    means = next_quantiles.mean(axis=1, keepdims=True)

    def quantile_losses(chooser: np.ndarray, fractions: np.ndarray) -> np.ndarray:
        def one(*x):
            return rlax.quantile_q_learning(*x, huber_param=1.0)

        return jax.vmap(one)(quantiles, np.broadcast_to(fractions, (B, count)), *given, chooser, next_quantiles)

    drawn = rng.uniform(size=(B, count)).astype(np.float32)
    means_of = np.asarray(jax.nn.softmax(next_logits)) @ atoms
    return {
        "categorical/probs": probs, "categorical/returns": returns, "categorical/atoms": atoms,
        "categorical/projected": jax.vmap(rlax.categorical_l2_project, (0, 0, None))(returns, probs, atoms),
        "categorical/logits": logits, "categorical/next_logits": next_logits, "categorical/selector": selector,
        "categorical/next_means": means_of,
        "categorical/losses": jax.vmap(rlax.categorical_q_learning)(support, logits, *given, support, next_logits),
        "categorical/double_losses": jax.vmap(rlax.categorical_double_q_learning)(
            support, logits, *given, support, next_logits, selector
        ),
        "quantile/quantiles": quantiles, "quantile/next_quantiles": next_quantiles,
        "quantile/losses": quantile_losses(means, taus),
        "quantile/double_losses": quantile_losses(selector[:, None], taus),
        "implicit/fractions": drawn, "implicit/losses": quantile_losses(means, drawn),
    }  # fmt: skip


if __name__ == "__main__":
    main()
