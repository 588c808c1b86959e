"""Exploration noise: moments, a recursion written by hand, resets, gSDE's matrix, and mistakes explained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.equations.noise import (
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    action_noise,
    check_noise,
    due_noise,
    held_noise,
    initial_noise,
    perturbed,
    state_dependent_noise,
)

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.PRNGKey(4)


def test_normal_noise_has_its_moments():
    """Of each component, over 40,000 draws: mean, deviation, and no correlation."""
    noise, begins = NormalActionNoise([0.1, -0.2], [0.3, 0.05]), jnp.zeros(40_000, bool)
    drawn, carry = noise.draw(noise.initial(40_000, 2), begins, KEY, 2)
    assert carry == ()
    np.testing.assert_allclose(np.mean(drawn, axis=0), [0.1, -0.2], atol=0.01)
    np.testing.assert_allclose(np.std(drawn, axis=0), [0.3, 0.05], rtol=0.02)
    assert abs(np.corrcoef(np.asarray(drawn).T)[0, 1]) < 0.03


def by_hand(noise, is_first, normals):
    """Ornstein and Uhlenbeck's recursion over `[T, N, D]`, one number at a time."""
    mean, sigma, start = (np.broadcast_to(x, normals.shape[2:]) for x in (noise.mean, noise.sigma, noise.initial_noise))
    answer = np.zeros(normals.shape)
    for n in range(normals.shape[1]):
        for d in range(normals.shape[2]):
            x = start[d]
            for t in range(normals.shape[0]):
                x = start[d] if is_first[t, n] else x
                x += noise.theta * (mean[d] - x) * noise.dt + sigma[d] * np.sqrt(noise.dt) * normals[t, n, d]
                answer[t, n, d] = x
    return answer


@pytest.mark.parametrize("initial", [None, [0.5, -0.25]])
def test_ornstein_uhlenbeck_is_the_recursion(initial):
    """Thirty steps of two environments, with episodes that begin in between: there the noise begins anew."""
    noise = OrnsteinUhlenbeckActionNoise([0.1, -0.3], [0.2, 0.4], theta=0.6, dt=0.05, initial_noise=initial)
    is_first = np.zeros((30, 2), bool)
    is_first[0] = is_first[7, 1] = is_first[20, 0] = is_first[21, 0] = True
    keys = jax.random.split(KEY, 30)
    normals = np.stack([jax.random.normal(key, (2, 2)) for key in keys])
    carry, found = initial_noise(noise, 2, 2), []
    for key, begins in zip(keys, is_first, strict=True):
        drawn, carry = noise.draw(jnp.asarray(carry), jnp.asarray(begins), key, 2)
        found.append(drawn)
    np.testing.assert_allclose(found, by_hand(noise, is_first, normals), atol=1e-6)
    # One number stands for all components; the first noise can be asked for inside a compiled program.
    np.testing.assert_array_equal(jax.jit(lambda: OrnsteinUhlenbeckActionNoise(0.0, 0.2).initial(3, 2))(), np.zeros((3, 2)))


def test_ornstein_uhlenbeck_drifts():
    """Neighbouring steps are alike: the correlation of one with the next is 1 - theta dt."""
    noise = OrnsteinUhlenbeckActionNoise(0.0, 1.0, theta=2.0, dt=0.1)
    begins = jnp.zeros(500, bool)

    def step(carry, key):
        drawn, carry = noise.draw(carry, begins, key, 1)
        return carry, drawn

    _, drawn = jax.lax.scan(step, jnp.asarray(noise.initial(500, 1)), jax.random.split(KEY, 100))
    late = np.asarray(drawn)[50:, :, 0]
    assert abs(np.corrcoef(late[:-1].ravel(), late[1:].ravel())[0, 1] - 0.8) < 0.02


def test_perturbed_actions_stay_within_their_bounds():
    """Noise is added and the sum clipped to ±1; without noise the action is untouched."""
    action, begins = jnp.asarray([[0.9, -0.9], [0.0, 0.2]]), jnp.zeros(2, bool)
    constant = NormalActionNoise([0.3, -0.4], 0.0)
    found, carry = perturbed(constant, (), action, begins, KEY)
    np.testing.assert_allclose(found, [[1.0, -1.0], [0.3, -0.2]], rtol=1e-6)
    assert perturbed(None, (), action, begins, KEY) == (action, ()) and carry == initial_noise(None, 2, 2) == ()


def test_what_action_noise_may_be():
    """A number is the deviation of Gaussian noise; equal noises are one static value of a Config."""
    assert action_noise(0.2) == NormalActionNoise(0.0, 0.2) == action_noise(NormalActionNoise(np.zeros(1), [0.2]))
    assert hash(action_noise(0.2)) == hash(NormalActionNoise(0, 0.2))
    assert action_noise(None) is None and action_noise(0.2) != action_noise(0.1)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NormalActionNoise(0.0, -0.1), "sigma=-0.1"),
        (lambda: NormalActionNoise(np.nan, 0.1), "mean=nan"),
        (lambda: NormalActionNoise([], 0.1), r"mean=\[\]"),
        (lambda: OrnsteinUhlenbeckActionNoise(0.0, [0.1, -0.1]), "sigma="),
        (lambda: OrnsteinUhlenbeckActionNoise(theta=-1.0), "theta=-1.0"),
        (lambda: OrnsteinUhlenbeckActionNoise(dt=-0.1), "dt=-0.1"),
        (lambda: OrnsteinUhlenbeckActionNoise(initial_noise=np.inf), "initial_noise=inf"),
        (lambda: action_noise(-0.1), "sigma=-0.1"),
        (lambda: action_noise("normal"), "action_noise='normal' is not understood: give a deviation"),
        (lambda: action_noise(True), "action_noise=True is not understood"),
        (lambda: check_noise(NormalActionNoise(0.0, [0.1, 0.2, 0.3]), 2), "3 components and the action 2"),
        (lambda: check_noise(OrnsteinUhlenbeckActionNoise([0.0, 0.0]), 1), "2 components and the action 1"),
        (lambda: check_noise(OrnsteinUhlenbeckActionNoise([0.0] * 2, [0.1] * 3), 2), "3 components and the action 2"),
    ],
)
def test_bad_noise_is_explained(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_noise_of_the_right_length_passes():
    for noise in (None, NormalActionNoise(0.0, 0.1), NormalActionNoise([0.0, 0.0], 0.1)):
        check_noise(noise, 2)


def test_gsde_holds_its_matrix_until_it_is_due():
    """Drawn at the first step and every third after; in between equal states get equal noise."""
    latent = jnp.asarray([[1.0, -2.0, 0.5]] * 2)
    std = jnp.asarray([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    held, matrices = held_noise(2, 3, 2), []
    for key in jax.random.split(KEY, 7):
        due = due_noise(held, 3, 1, None, jnp.zeros(2, bool))
        noise, held = state_dependent_noise(held, latent, std, due, key)
        matrices.append(np.asarray(held.normals))
        expected = [latent[n] @ (held.normals[n] * std) for n in range(2)]
        np.testing.assert_allclose(noise, expected, rtol=1e-5)
    changed = [not np.array_equal(a, b) for a, b in zip(matrices, matrices[1:], strict=False)]
    assert changed == [False, False, True, False, False, True]
    assert np.abs(matrices[0]).min() > 0 and not np.array_equal(matrices[0][0], matrices[0][1])


@pytest.mark.parametrize("freq,steps,episodes,is_first,due", [
    (-1, 4, None, False, [True, False, False, False, True]),  # every update
    (2, 4, None, False, [True, False, True, False, True]),
    (-1, 1, 1, False, [False] * 5),  # the same matrix for an episode
    (-1, 1, 1, True, [True] * 5),
    (2, 1, 1, False, [True, False, True, False, True]),
])  # fmt: skip
def test_when_gsde_draws_anew(freq, steps, episodes, is_first, due):
    """By its own frequency, else as often as an update is made: after some steps, or with each episode."""
    held, found, latent, std = held_noise(1, 3, 2), [], jnp.ones((1, 3)), jnp.ones((3, 2))
    for key in jax.random.split(jax.random.PRNGKey(0), 5):
        now = due_noise(held, freq, steps, episodes, jnp.full(1, is_first))
        found.append(bool(now))
        _, held = state_dependent_noise(held, latent, std, now, key)
    assert found == due
