"""Networks for pictures: SB3's numbers, both orders of channels, sizes, starting weights, refusals."""

from pathlib import Path

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.networks.cnn import ROWS, Conv, ImpalaCNN, NatureCNN, _halved
from advantage.networks.extractors import CombinedExtractor
from advantage.networks.mlp import Linear
from advantage.types import Space

SB3 = np.load(Path(__file__).parents[1] / "oracles" / "sb3_cnn.npz")
KEY = jax.random.PRNGKey(0)

pytestmark = pytest.mark.usefixtures("strict")
spaces = gymnasium.spaces


def picture(*shape):
    return Space("box", shape, "uint8", 0.0, 255.0)


def pictures(shape):
    """As `make_sb3_cnn.py` has them."""
    return (np.arange(3 * np.prod(shape)) * 7919 // 13 % 256).astype(np.uint8).reshape(3, *shape)


def waves(shape, scale, phase):
    """As `make_sb3_cnn.py` has them."""
    return (scale * np.sin(0.7 * np.arange(np.prod(shape)) + phase)).astype(np.float32).reshape(shape)


def built(make, *shape, **options):
    """A network, compiled at once: each of its operations alone takes longer."""
    return jax.jit(lambda: make(picture(*shape), KEY, **options))()


def applied(network, obs):
    return jax.jit(lambda network, obs: network(obs))(network, jax.tree.map(jnp.asarray, obs))


def torchs(network):
    """Shapes of a `NatureCNN`'s weights in torch's layout, in its order, by SB3's names."""
    shapes = {}
    for i, layer in zip((0, 2, 4), network.convolutions, strict=True):
        kernel, _, inputs, outputs = layer.weight.shape
        shapes |= {f"cnn.{i}.weight": (outputs, inputs, kernel, kernel), f"cnn.{i}.bias": (outputs,)}
    inputs, outputs = network.dense.weight.shape
    return shapes | {"linear.0.weight": (outputs, inputs), "linear.0.bias": (outputs,)}


def ours(network, weights, sides):
    """The network with weights given by SB3's names; `sides` of what the dense layer sees, `[64, *sides]` in torch."""

    def layer(i, old):
        weight = jnp.asarray(weights[f"cnn.{i}.weight"].transpose(2, 3, 1, 0))
        return type(old)(weight, jnp.asarray(weights[f"cnn.{i}.bias"]), old.stride)

    dense = weights["linear.0.weight"].reshape(-1, 64, *sides).transpose(2, 3, 1, 0).reshape(-1, network.size)
    convolutions = tuple(layer(i, old) for i, old in zip((0, 2, 4), network.convolutions, strict=True))
    dense = Linear(jnp.asarray(dense), jnp.asarray(weights["linear.0.bias"]))
    return eqx.tree_at(lambda n: (n.convolutions, n.dense), network, (convolutions, dense))


def filled(network, sides):
    """The network with the weights that `make_sb3_cnn.py` gave SB3's."""
    weights = {}
    for i, (name, shape) in enumerate(torchs(network).items()):
        scale = 0.1 if len(shape) == 1 else 2.0 / np.prod(shape[1:]) ** 0.5
        weights[name] = waves(shape, scale, i)
    return ours(network, weights, sides)


def nature():
    return filled(built(NatureCNN, 2, 44, 52, features_dim=7), (2, 3))


def test_features_are_those_of_sb3():
    """Rectangular pictures of two channels: no side can be taken for another."""
    np.testing.assert_allclose(applied(nature(), pictures((2, 44, 52))), SB3["nature/features"], atol=1e-5)


def test_gradients_are_those_of_sb3():
    """Of every layer, in torch's layout."""
    def total(network):
        return jnp.sum(network(jnp.asarray(pictures((2, 44, 52)))) * jnp.asarray(waves((3, 7), 1.0, 0)))

    gradient = jax.jit(jax.grad(total))(nature())
    found = {}
    for i, layer in zip((0, 2, 4), gradient.convolutions, strict=True):
        found |= {f"cnn.{i}.weight": layer.weight.transpose(3, 2, 0, 1), f"cnn.{i}.bias": layer.bias}
    dense = gradient.dense.weight.reshape(2, 3, 64, 7).transpose(3, 2, 0, 1)
    found |= {"linear.0.weight": dense.reshape(7, -1), "linear.0.bias": gradient.dense.bias}
    for name, value in found.items():
        value, expected = np.asarray(value, np.float64), SB3[f"nature/grad/{name}"]
        value = value if expected.ndim else np.sum(value * waves(value.shape, 1.0, 0))
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_combined_features_are_those_of_sb3():
    """Pictures through a CNN each, numbers as they are, choices one-hot, in the order of their names."""
    space = Space.from_gymnasium(
        spaces.Dict({
            "d": spaces.Box(0, 255, (1, 40, 36), np.uint8), "c": spaces.Discrete(3),
            "b": spaces.Box(0, 255, (3, 36, 40), np.uint8), "a": spaces.Box(-1, 1, (2,), np.float32),
        })  # fmt: skip
    )
    assert [name for name, _ in space.parts] == list(SB3["combined/keys"])
    network = jax.jit(lambda: CombinedExtractor(space, KEY, cnn_output_dim=5))()
    parts = tuple(filled(part, (1, 1)) if isinstance(part, NatureCNN) else part for part in network.parts)
    network = eqx.tree_at(lambda n: n.parts, network, parts)
    obs = {"a": waves((3, 2), 1.0, 0), "b": pictures((3, 36, 40)), "c": np.array([0, 2, 1], np.int32),
           "d": pictures((1, 40, 36))}  # fmt: skip
    assert network.size == SB3["combined/features"].shape[1]
    np.testing.assert_allclose(applied(network, obs), SB3["combined/features"], atol=1e-5)


@pytest.mark.parametrize(("make", "options"), [(NatureCNN, {}), (ImpalaCNN, {"channels": (2,), "blocks": 1})])
def test_both_orders_of_channels_are_one_function(make, options):
    """The same key gives the same weights, and the picture turned round the same features."""
    obs = jnp.asarray(pictures((36, 44, 3)))
    last = built(make, 36, 44, 3, features_dim=4, **options)
    first = built(make, 3, 36, 44, features_dim=4, **options)
    assert jax.tree.map(jnp.shape, jax.tree.leaves(last)) == jax.tree.map(jnp.shape, jax.tree.leaves(first))
    features = applied(last, obs)
    np.testing.assert_allclose(applied(first, obs.transpose(0, 3, 1, 2)), features, atol=1e-6)
    assert np.std(features) > 0


def test_any_leading_axes():
    """One picture, `[N]` and `[T, N]` of them; also more than pass at once."""
    network = built(NatureCNN, 36, 36, 1, features_dim=4)
    obs = jnp.asarray(pictures((2, 36, 36, 1)))
    many = jnp.concatenate([jnp.zeros((ROWS, 36, 36, 1), jnp.uint8), obs[:, 0]])

    @jax.jit
    def seen(network):
        return network(obs), network(obs[0]), network(obs[0, 1]), network(many)[-3:]

    expected, row, one, last = seen(network)
    assert expected.shape == (3, 2, 4)
    np.testing.assert_allclose(row, expected[0], atol=1e-6)
    np.testing.assert_allclose(one, expected[0, 1], atol=1e-6)
    np.testing.assert_allclose(last, expected[:, 0], atol=1e-6)


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 4)])
@pytest.mark.parametrize("mapped", ["nothing", "both", "pictures", "weights"])
def test_a_convolution_is_xlas(stride, kernel, mapped):
    """Values and gradients, in a loop too, alone and mapped over seeds; sides that the stride does not divide."""
    draw = np.random.default_rng(0)
    shapes = {"x": (3, 2, 9, 8, 2), "weight": (3, kernel, kernel, 2, 5), "bias": (3, 5)}
    axes = {"nothing": (None, None, None), "both": (0, 0, 0), "pictures": (0, None, None), "weights": (None, 0, 0)}[mapped]
    given = [
        jnp.asarray(draw.normal(size=shape if axis == 0 else shape[1:]), jnp.float32)
        for shape, axis in zip(shapes.values(), axes, strict=True)
    ]

    def answers(function):
        def total(x, weight, bias):
            y = function(x, Conv(weight, bias, stride))
            return jnp.sum(jnp.sin(y)), y

        def looped(*given):
            once = jax.grad(total, (0, 1, 2), has_aux=True)
            return jax.lax.fori_loop(0, 1, lambda _, carry: once(*given), jax.tree.map(jnp.zeros_like, once(*given)))

        return jax.jit(looped if mapped == "nothing" else jax.vmap(looped, axes))(*given)

    found, expected = answers(lambda x, layer: layer(x)), answers(lambda x, layer: convolved(x, layer, "VALID"))
    for ours, xlas in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, xlas, atol=1e-4)


def test_a_product_of_a_hessian():
    """Forward over reverse, as TRPO does it, against XLA's own convolution."""
    draw = np.random.default_rng(0)
    x, weight, way = (jnp.asarray(draw.normal(size=s), jnp.float32) for s in ((2, 8, 8, 2), (4, 4, 2, 3), (4, 4, 2, 3)))

    def product(function):
        def total(weight):
            return jnp.sum(jnp.sin(function(x, Conv(weight, jnp.zeros(3), 2))))

        return jax.jit(lambda way: jax.linearize(jax.grad(total), weight)[1](way))(way)

    expected = product(lambda x, layer: convolved(x, layer, "VALID"))
    np.testing.assert_allclose(product(lambda x, layer: layer(x)), expected, atol=1e-4)


def test_the_pool_by_hand():
    """The largest of 3 x 3 at every second place, with its gradient; sides of both parities."""
    for shape in ((1, 5, 4, 1), (1, 4, 5, 1)):
        x = jnp.asarray(np.random.default_rng(0).permutation(20).reshape(shape), jnp.float32)
        places = -(-shape[1] // 2), -(-shape[2] // 2)
        padded = np.full((7, 7), -np.inf)
        offset = tuple(1 if side % 2 else 0 for side in shape[1:3])  # an odd side has a border on both ends
        padded[offset[0] : offset[0] + shape[1], offset[1] : offset[1] + shape[2]] = x[0, :, :, 0]
        expected = [[padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max() for j in range(places[1])] for i in range(places[0])]
        pooled, gradient = jax.jit(lambda x: (_halved(x), jax.grad(lambda x: jnp.sum(_halved(x)))(x)))(x)
        np.testing.assert_array_equal(pooled[0, :, :, 0], expected)
        gradient = np.asarray(gradient)[0, :, :, 0]
        found, counts = np.unique(expected, return_counts=True)
        wanted = {int(value): int(count) for value, count in zip(found, counts, strict=True)}
        assert {int(x[0, i, j, 0]): int(gradient[i, j]) for i, j in np.argwhere(gradient > 0)} == wanted


def convolved(x, layer, padding):
    """What XLA's convolution gives."""
    y = jax.lax.conv_general_dilated(
        x, layer.weight, (layer.stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + layer.bias.reshape(1, 1, 1, -1)


def test_impala_is_what_it_says():
    """Written once more with XLA's convolutions: convolution, pool, two residual blocks, in each section."""
    network = built(ImpalaCNN, 13, 10, 2, features_dim=5, channels=(3, 4), blocks=2)
    obs = jnp.asarray(pictures((13, 10, 2)))
    features, expected = applied(network, obs), jax.jit(impala)(network, obs)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert np.std(expected) > 0


def impala(network, obs):
    """As the paper draws it."""
    x = obs.astype(jnp.float32) / 255.0
    for section in network.sections:
        x = convolved(x, section.first, "SAME")
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        for one, two in section.residual:
            x = x + convolved(jax.nn.relu(convolved(jax.nn.relu(x), one, "SAME")), two, "SAME")
    x = jax.nn.relu(x).reshape(3, -1)
    assert x.shape[1] == 4 * 3 * 4
    return jax.nn.relu(x @ network.dense.weight + network.dense.bias.reshape(1, -1))


def test_sizes_are_those_of_the_papers():
    """Nature: 1,684,128 numbers and 512 features at 84 x 84 x 4; IMPALA: 3 x 5 convolutions, 256 features."""
    def count(make, **options):
        shapes = jax.eval_shape(lambda: make(picture(4, 84, 84), KEY, **options))
        return sum(x.size for x in jax.tree.leaves(shapes))

    assert count(NatureCNN) == 8224 + 32832 + 36928 + 3136 * 512 + 512
    blocks = (9 * 4 * 16 + 16) + 4 * (9 * 256 + 16) + (9 * 16 * 32 + 32) + 9 * (9 * 32 * 32 + 32)
    assert count(ImpalaCNN) == blocks + 11 * 11 * 32 * 256 + 256
    assert count(ImpalaCNN, features_dim=8, channels=(4,), blocks=0) == 9 * 4 * 4 + 4 + 42 * 42 * 4 * 8 + 8


def test_starting_weights():
    """Torch's default, uniform within 1 / sqrt(fan_in); or orthogonal of gain sqrt(2), biases zero."""
    uniform = built(NatureCNN, 44, 52, 2, features_dim=8)
    orthogonal = built(NatureCNN, 44, 52, 2, features_dim=8, ortho_init=True)
    for layer, other in zip((*uniform.convolutions, uniform.dense), (*orthogonal.convolutions, orthogonal.dense),
                            strict=True):  # fmt: skip
        weight = np.asarray(layer.weight).reshape(-1, layer.bias.size)
        bound = 1 / np.sqrt(len(weight))
        assert 0.95 * bound < np.abs(weight).max() <= bound and np.abs(layer.bias).max() <= bound
        np.testing.assert_allclose(weight.std(), bound / np.sqrt(3), rtol=0.1)
        values = np.linalg.svd(np.asarray(other.weight).reshape(weight.shape), compute_uv=False)
        np.testing.assert_allclose(values, np.sqrt(2), rtol=1e-4)
        assert not np.any(other.bias)


def test_scaled_pictures_are_taken_as_they_are():
    """`normalized_image`: floats of 0..1, or bits that are no shades."""
    small = {"channels": (2,), "blocks": 0, "features_dim": 4}
    eight = built(ImpalaCNN, 6, 8, 1, **small)
    words = {"normalized_image": True, **small}
    scaled = jax.jit(lambda: ImpalaCNN(Space("box", (6, 8, 1), "float32", 0.0, 1.0), KEY, **words))()
    obs = pictures((6, 8, 1))
    np.testing.assert_allclose(applied(scaled, obs.astype(np.float32) / 255.0), applied(eight, obs), atol=1e-6)
    bits = jax.jit(lambda: ImpalaCNN(Space("box", (6, 8, 1), "uint8", 0.0, 1.0), KEY, **words))()
    np.testing.assert_allclose(applied(bits, obs // 128), applied(eight, obs // 128 * 255), atol=1e-6)


@pytest.mark.parametrize(
    ("space", "match"),
    [
        (picture(35, 84, 3), "at least 36 x 36 pixels, and these have 35 x 84.*ImpalaCNN"),
        (picture(3, 40, 20), "these have 40 x 20"),
        (Space("box", (4,), "float32", -1.0, 1.0), r"not Box\(-1.0, 1.0, \(4,\), float32\): use policy='MlpPolicy'"),
        (Space("box", (84, 84), "uint8", 0.0, 255.0), "a third axis, of one channel"),
        (Space("box", (84, 84, 1), "float32", 0.0, 1.0), "normalize_images"),
        (Space("box", (84, 84, 1), "uint8", 0.0, 1.0), "normalize_images"),
        (Space("dict", parts=(("a", picture(84, 84, 1)),)), "use policy='MultiInputPolicy'"),
    ],
)
def test_what_is_no_picture_is_refused(space, match):
    """One error each, with what to do."""
    with pytest.raises(ValueError, match=match):
        NatureCNN(space, KEY)


def test_other_convolutions():
    """Filters, kernels and strides as they are given: sizes by hand, and the numbers of `jax.lax`'s convolutions."""
    network = built(NatureCNN, 84, 84, 4, features_dim=256, layers=[(32, 5, 5), (64, 5, 5)])
    shapes = [layer.weight.shape for layer in network.convolutions]
    assert shapes == [(5, 5, 4, 32), (5, 5, 32, 64)] and network.dense.weight.shape == (3 * 3 * 64, 256)
    small = built(NatureCNN, 13, 10, 2, features_dim=5, layers=[(3, 4, 2), (6, 2, 1)])
    obs = pictures((13, 10, 2))
    x = jnp.asarray(obs, jnp.float32) / 255.0
    for layer in small.convolutions:
        strides = (layer.stride, layer.stride)
        x = jax.lax.conv_general_dilated(x, layer.weight, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + layer.bias.reshape(1, 1, 1, -1))
    expected = jax.nn.relu(x.reshape(3, -1) @ small.dense.weight + small.dense.bias[None])
    np.testing.assert_allclose(applied(small, obs), expected, atol=1e-5)


@pytest.mark.parametrize("wrong", [[], [(32, 5, 2)], [(32, 2, 5)], [(32, 5)], 3, [(0, 5, 5)], [(1.5, 5, 5)]])
def test_convolutions_that_are_none(wrong):
    """Kernels are multiples of their strides, and all three are whole numbers from 1 on."""
    with pytest.raises(ValueError, match=r"features_extractor_kwargs: .*(layers=.*has to hold|has to be a whole number)"):
        NatureCNN(picture(36, 36, 1), KEY, layers=wrong)


@pytest.mark.parametrize(("layers", "least"), [([(32, 5, 5), (64, 5, 5)], 25), ([(8, 3, 1)], 3), ([(8, 4, 2), (8, 2, 1)], 6)])
def test_the_smallest_picture_of_other_convolutions(layers, least):
    with pytest.raises(ValueError, match=f"at least {least} x {least} pixels, and these have {least - 1} x 40"):
        NatureCNN(picture(least - 1, 40, 1), KEY, layers=layers)
    assert built(NatureCNN, least, least, 1, layers=layers).dense.weight.shape[0] == layers[-1][0]


@pytest.mark.parametrize("wrong", [0, -3])
def test_sizes_that_are_none(wrong):
    with pytest.raises(ValueError, match="has to be a whole number"):
        NatureCNN(picture(36, 36, 1), KEY, features_dim=wrong)
