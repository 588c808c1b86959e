"""`policy_kwargs`: SB3's words in all their forms, torch's classes by name, errors that say what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import dqn, ppo
from advantage.networks.actor_critic import Architecture
from advantage.networks.policy_kwargs import activation, architecture, network_fields


def fake(name, module="torch.nn.modules.activation"):
    """A class as torch's look from outside."""
    return type(name, (), {"__module__": module})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ((), (), ())),
        ([64, 32], ((), (64, 32), (64, 32))),
        ((64,), ((), (64,), (64,))),
        (np.array([8, 8]), ((), (8, 8), (8, 8))),
        ({"pi": [64], "vf": [32, 16]}, ((), (64,), (32, 16))),
        ({"pi": [64]}, ((), (64,), ())),
        ([{"pi": [64], "vf": [32]}], ((), (64,), (32,))),
        ([128, {"pi": [64], "vf": [32]}], ((128,), (64,), (32,))),
        ([128, {"vf": [32]}], ((128,), (), (32,))),
        (Architecture((1,), (2,), (3,)), ((1,), (2,), (3,))),
    ],
)
def test_net_arch(given, expected):
    """Every form SB3 has or had."""
    fields = network_fields(ppo.Config, {"net_arch": given})
    assert fields == {"net_arch": Architecture(*expected)}
    assert hash(fields["net_arch"]) == hash(Architecture(*expected))


def test_net_arch_of_q_networks():
    """One list of widths."""
    assert network_fields(dqn.Config, {"net_arch": [32, 16]}) == {"net_arch": (32, 16)}


@pytest.mark.parametrize(
    "wrong", [[0], [-1, 4], ["wide"], [[64]], {"pi": [64], "q": [64]}, [{"pi": [0]}], 64]
)
def test_net_arch_errors(wrong):
    """What is no architecture is refused by name."""
    with pytest.raises(ValueError, match="net_arch"):
        network_fields(ppo.Config, {"net_arch": wrong})


@pytest.mark.parametrize("wrong", [64, {"pi": [64]}, [8, "x"]])
def test_net_arch_errors_of_q_networks(wrong):
    """So is what has no meaning for one network."""
    with pytest.raises(ValueError, match="net_arch"):
        network_fields(dqn.Config, {"net_arch": wrong})


def test_architecture_leaves_its_argument_alone():
    """A user's list is not shortened."""
    given = [8, {"pi": [4]}]
    architecture(given)
    assert given == [8, {"pi": [4]}]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("tanh", jnp.tanh),
        ("ReLU", jax.nn.relu),
        ("leaky_relu", jax.nn.leaky_relu),
        (fake("Tanh"), jnp.tanh),
        (fake("ReLU"), jax.nn.relu),
        (fake("LeakyReLU"), jax.nn.leaky_relu),
        (fake("SiLU"), jax.nn.silu),
        (fake("GELU", "torch.nn.functional"), jax.nn.gelu),
        (jnp.sin, jnp.sin),
        (jax.nn.relu, jax.nn.relu),
    ],
)
def test_activations(given, expected):
    """By name, by torch's class, or a function of one's own."""
    assert activation(given) is expected
    assert network_fields(ppo.Config, {"activation_fn": given}) == {"activation_fn": expected}


@pytest.mark.parametrize("wrong", ["tanhh", fake("Softsign"), 3, None])
def test_activation_errors(wrong):
    """Unknown ones are refused with the known."""
    with pytest.raises(ValueError, match="tanh"):
        activation(wrong)


def test_own_class_named_like_torchs():
    """A user's module `torchlike` is no torch: its callable is taken as it is."""
    own = fake("Tanh", "torchlike.layers")
    assert activation(own) is own


def test_optimizer_words():
    """Class and options; options alone are Adam's, as in SB3; equal choices are one object."""
    by_class = network_fields(ppo.Config, {"optimizer_class": fake("RMSprop", "torch.optim.rmsprop")})
    assert by_class["optimizer"] is network_fields(ppo.Config, {"optimizer_class": "rmsprop"})["optimizer"]
    alone = network_fields(ppo.Config, {"optimizer_kwargs": {"eps": 1e-5}})["optimizer"]
    assert alone.label == ("optimizer", "adam", (("eps", 1e-5),))
    with pytest.raises(ValueError, match="adamw"):
        network_fields(ppo.Config, {"optimizer_class": "lion9"})
    with pytest.raises(ValueError, match="optimizer_kwargs"):
        network_fields(ppo.Config, {"optimizer_kwargs": {"momentums": 1}})
    with pytest.raises(ValueError, match="optimizer_class"):
        network_fields(ppo.Config, {"optimizer_class": 3})


def test_options_in_torchs_words():
    """`betas` as torch gives them, and no weight decay written out."""
    fields = network_fields(ppo.Config, {"optimizer_kwargs": {"betas": (0.5, 0.9), "weight_decay": 0}})
    state = fields["optimizer"](1.0).init(jnp.zeros(1))
    updates, _ = fields["optimizer"](1.0).update(jnp.ones(1), state, jnp.zeros(1))
    np.testing.assert_allclose(updates, [-1.0], rtol=1e-5)


def test_own_features_extractor():
    """SB3's pair of words becomes one function with its arguments."""

    def extractor(space, key, width):
        return width

    words = {"features_extractor_class": extractor, "features_extractor_kwargs": {"width": 5}}
    assert network_fields(ppo.Config, words)["features_extractor"]("space", "key") == 5


def test_other_fields_pass():
    """What `Config` itself knows."""
    words = {"ortho_init": False, "log_std_init": -2.0, "normalize_images": True}
    assert network_fields(ppo.Config, words) == {"ortho_init": False, "log_std_init": -2.0}


def test_unknown_words_name_the_nearest():
    """A misspelling, a word of another algorithm, and a field that is no word of `policy_kwargs`."""
    with pytest.raises(TypeError, match="net_arch"):
        network_fields(ppo.Config, {"net_arc": [64]})
    with pytest.raises(TypeError, match="log_std_init"):
        network_fields(dqn.Config, {"log_std_init": 0.0})
    with pytest.raises(TypeError, match="learning_rate"):
        network_fields(ppo.Config, {"learning_rate": 1e-3})


@pytest.mark.parametrize("word", ["n_steps", "gamma", "batch_size", "clip_range"])
def test_hyper_parameters_are_no_words(word):
    """A hyper-parameter of the algorithm hidden in `policy_kwargs` would be lost on `model.gamma`."""
    with pytest.raises(TypeError, match=word):
        network_fields(ppo.Config, {word: 1})
