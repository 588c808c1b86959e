"""Extractors by SB3's names, nested observations, and what the names of policies mean."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import crossq, dqn, ppo, sac, td3
from advantage.networks.actor_critic import Architecture
from advantage.networks.cnn import ImpalaCNN, NatureCNN
from advantage.networks.continuous import Widths
from advantage.networks.extractors import CombinedExtractor, check_policy, named, with_policy
from advantage.networks.features import Flatten, flatten
from advantage.networks.policy_kwargs import network_fields
from advantage.types import Space, Spec

KEY = jax.random.PRNGKey(0)
PICTURE = Space("box", (36, 36, 3), "uint8", 0.0, 255.0)
SMALL = Space("box", (5, 6, 3), "uint8", 0.0, 255.0)
VECTOR = Space("box", (2,), "float32", -1.0, 1.0)
CHOICE = Space("discrete", (), "int32", n=(3,), start=(0,))

pytestmark = pytest.mark.usefixtures("strict")


def fake(name, module="stable_baselines3.common.torch_layers", base=object):
    return type(name, (base,), {"__module__": module})


def extractor(config=ppo.Config, **words):
    return network_fields(config, words).get("features_extractor")


def test_nested_observations_with_two_pictures():
    """Dicts and Tuples in each other: the parts in their order, each picture through a CNN of its own."""
    space = Space("dict", parts=(
        ("inner", Space("tuple", parts=(("0", VECTOR), ("1", Space("dict", parts=(("eye", SMALL),)))))),
        ("picture", SMALL), ("what", CHOICE),
    ))  # fmt: skip
    network = jax.jit(lambda: CombinedExtractor(space, KEY, cnn_output_dim=4, cnn="ImpalaCNN"))()
    draw = np.random.default_rng(0)
    eye, other = (jnp.asarray(draw.integers(0, 256, (2, 3, 5, 6, 3)), jnp.uint8) for _ in range(2))
    obs = {
        "what": jnp.ones((2, 3), jnp.int32), "picture": other,
        "inner": (jnp.full((2, 3, 2), 0.5), {"eye": eye}),
    }  # fmt: skip
    inner, seen, _ = network.parts
    parts = lambda network, obs: (network(obs), inner.parts[1].parts[0](eye), seen(other), seen(eye))
    features, first, second, exchanged = jax.jit(parts)(network, obs)
    assert features.shape == (2, 3, network.size) == (2, 3, 2 + 4 + 4 + 3)
    np.testing.assert_array_equal(features[..., :2], 0.5)
    np.testing.assert_allclose(features[..., 2:6], first, atol=1e-6)
    np.testing.assert_allclose(features[..., 6:10], second, atol=1e-6)
    np.testing.assert_array_equal(features[..., 10:], np.broadcast_to([0, 1, 0], (2, 3, 3)))
    assert not np.allclose(exchanged, first)


def test_without_pictures_it_is_flattening():
    """So that `MultiInputPolicy` gives the networks it always gave."""
    space = Space("dict", parts=(("a", VECTOR), ("b", CHOICE)))
    network, obs = CombinedExtractor(space, KEY), {"b": jnp.int32(2), "a": jnp.ones(2)}
    assert jax.tree.leaves(network) == []
    np.testing.assert_array_equal(network(obs), flatten(space, obs))
    np.testing.assert_array_equal(CombinedExtractor(VECTOR, KEY)(jnp.ones((4, 2))), np.ones((4, 2)))


def test_a_small_picture_is_named():
    with pytest.raises(ValueError, match="observation 'b': NatureCNN needs.*5 x 6.*'cnn': 'ImpalaCNN'"):
        CombinedExtractor(Space("dict", parts=(("a", VECTOR), ("b", SMALL))), KEY)
    with pytest.raises(ValueError, match="cnn='Nature' is not known: choose from NatureCNN, ImpalaCNN"):
        CombinedExtractor(VECTOR, KEY, cnn="Nature")


@pytest.mark.parametrize("chosen", ["NatureCNN", NatureCNN, fake("NatureCNN")])
def test_extractors_by_name(chosen):
    """Our class, its name, and SB3's class are one object, which a file can name."""
    found = extractor(dqn.Config, features_extractor_class=chosen, features_extractor_kwargs={"features_dim": np.int64(9)})
    assert found is named("NatureCNN", (("features_dim", 9),)) and found.label[0] == "features"
    network = jax.eval_shape(lambda: found(PICTURE, KEY))
    assert isinstance(network, NatureCNN) and network.size == 9


def test_words_of_extractors():
    """Lists are hashed, orthogonal weights are PPO's alone, scaled pictures are passed on."""
    found = extractor(sac.Config, features_extractor_class="ImpalaCNN", features_extractor_kwargs={"channels": [4, 8]})
    assert found.label == ("features", "ImpalaCNN", (("channels", (4, 8)),))
    assert isinstance(jax.eval_shape(lambda: found(PICTURE, KEY)), ImpalaCNN)
    assert extractor(features_extractor_class="NatureCNN").label[2] == (("ortho_init", True),)
    assert extractor(features_extractor_class="NatureCNN", ortho_init=False).label[2] == ()
    assert extractor(normalize_images=False).label == ("features", "FlattenExtractor", (("normalized_image", True),))
    assert extractor(normalize_images=True) is None
    flat = extractor(features_extractor_class=fake("FlattenExtractor"))(SMALL, KEY)
    assert flat == Flatten(SMALL)
    np.testing.assert_array_equal(extractor(normalize_images=False)(SMALL, KEY)(jnp.full((5, 6, 3), 9, jnp.uint8)), 9.0)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"features_extractor_class": "NatureNet"}, "'NatureNet' is not known: choose from NatureCNN"),
        ({"features_extractor_class": 3}, "3 is not callable"),
        ({"features_extractor_class": fake("Mine", "__main__", fake("Module", "torch.nn"))}, "Mine is a torch module"),
        ({"features_extractor_class": fake("Other")}, "Other is a torch module"),
        ({"features_extractor_class": "NatureCNN", "features_extractor_kwargs": {"dim": 3}}, "do not fit NatureCNN.*dim"),
        ({"features_extractor_kwargs": {"features_dim": 3}}, "do not fit FlattenExtractor"),
    ],
)
def test_extractors_that_are_none(words, match):
    with pytest.raises(ValueError, match=match):
        network_fields(ppo.Config, words)


def test_what_policies_mean():
    """SB3's extractor, and its widths behind a CNN; what is given comes first."""
    widths = {ppo: Architecture((), (), ()), dqn: (), sac: Widths(), td3: Widths(), crossq: Widths((256, 256), (1024, 1024))}
    for algorithm, expected in widths.items():
        fields = network_fields(algorithm.Config, with_policy("CnnPolicy", algorithm.Config, {}))
        assert fields.pop("features_extractor").label[1] == "NatureCNN"
        assert (fields or {"net_arch": algorithm.Config().net_arch}) == {"net_arch": expected}
    mine = {"features_extractor_class": Flatten, "net_arch": [3]}
    assert with_policy("CnnPolicy", ppo.Config, mine) == mine
    assert with_policy("MultiInputPolicy", dqn.Config, {})["features_extractor_class"] == "CombinedExtractor"
    assert network_fields(dqn.Config, with_policy("MlpPolicy", dqn.Config, {})) == {}
    fields = network_fields(ppo.Config, with_policy("CnnPolicy", ppo.Config, {"net_arch": [8]}))
    assert fields["net_arch"] == Architecture((), (8,), (8,))


def test_policies_are_checked():
    """What a policy cannot take is refused with what can; flattened pictures are told of."""
    cnn, combined = named("NatureCNN"), named("CombinedExtractor")
    assert check_policy("CnnPolicy", PICTURE, cnn) == check_policy("MlpPolicy", VECTOR, None) == []
    assert check_policy("MultiInputPolicy", Space("dict", parts=(("a", PICTURE),)), combined) == []
    with pytest.raises(ValueError, match="use policy='MlpPolicy'"):
        check_policy("CnnPolicy", VECTOR, cnn)
    with pytest.raises(ValueError, match="use 'MultiInputPolicy'"):
        check_policy("MlpPolicy", Space("dict", parts=(("a", VECTOR),)), None)
    for space in (PICTURE, Space("tuple", parts=(("0", VECTOR), ("1", PICTURE)))):
        (note,) = check_policy("MlpPolicy", space, None)
        assert "flattens pictures" in note and "CnnPolicy" in note
    assert check_policy("MlpPolicy", PICTURE, named("FlattenExtractor")) == []
    own = lambda space, key: eqx.nn.Identity()
    assert check_policy("CnnPolicy", VECTOR, own) == []


@pytest.mark.parametrize("share", [True, False])
def test_extractors_of_an_actor_critic(share):
    """Shared, both losses reach one extractor; apart, each its own, which begin with other weights."""
    config = ppo.Config(features_extractor=named("ImpalaCNN", (("blocks", 0), ("channels", (2,)), ("features_dim", 4))),
                        share_features_extractor=share, net_arch=Architecture((), (), ()))  # fmt: skip
    network = jax.jit(lambda: ppo.init(config, Spec(SMALL, CHOICE), KEY))().network
    obs = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3)), jnp.uint8)

    @jax.jit
    def asked(network):
        valued = jax.grad(lambda network: jnp.sum(network.both(obs, None)[1]))(network)
        chosen = jax.grad(lambda network: jnp.sum(network.both(obs, None)[0].logits[:, 0]))(network)
        return valued, chosen, network.value(obs), network.both(obs, None)[1]

    valued, chosen, alone, value = asked(network)

    def reached(gradient):
        return any(np.any(x) for x in jax.tree.leaves(gradient))

    assert reached(chosen.actor.features) and reached(valued.actor.features) == share
    if share:
        assert network.features is None
    else:
        assert reached(valued.features) and not reached(chosen.features)
        assert not np.array_equal(network.features.dense.weight, network.actor.features.dense.weight)
    np.testing.assert_allclose(alone, value, atol=1e-6)


def test_own_extractors_share_no_layers():
    config = ppo.Config(features_extractor=named("NatureCNN"), share_features_extractor=False,
                        net_arch=Architecture((8,), (), ()))  # fmt: skip
    with pytest.raises(ValueError, match="share_features_extractor=False leaves no layer to share"):
        ppo.init(config, Spec(PICTURE, CHOICE), KEY)


def test_sharing_words():
    """A field where there are two networks; DQN has one."""
    assert network_fields(ppo.Config, {"share_features_extractor": False}) == {"share_features_extractor": False}
    assert network_fields(sac.Config, {"share_features_extractor": True}) == {"share_features_extractor": True}
    assert network_fields(dqn.Config, {"share_features_extractor": True}) == {}
    with pytest.raises(ValueError, match="share_features_extractor'. has to be True"):
        network_fields(dqn.Config, {"share_features_extractor": False})
