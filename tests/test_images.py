"""Pictures from end to end: `CnnPolicy` and `MultiInputPolicy` in both drivers, with seeds, files and normalisation."""

from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from advantage import DDPG, DQN, PPO, SAC, TD3, TQC, CrossQ, DiscreteSAC, make_vec_env
from advantage.algorithms.normalised import Normalised
from advantage.memory.uniform import Batch
from advantage.types import Space, Spec

SB3 = np.load(Path(__file__).parent / "oracles" / "sb3_cnn.npz")
REPLAY = {"buffer_size": 64, "learning_starts": 4, "batch_size": 4}
TINY = {"features_extractor_class": "ImpalaCNN", "features_extractor_kwargs": {"channels": [2], "blocks": 0, "features_dim": 8}}
ROLLOUT = {"n_steps": 8, "batch_size": 8, "n_epochs": 1}
EYES = {"eye": spaces.Box(0, 255, (3, 36, 40), np.uint8), "other": spaces.Box(0, 255, (40, 36, 1), np.uint8)}
SMALL = spaces.Box(0, 255, (3, 6, 8), np.uint8)


class Seeing(gymnasium.Env):
    """Noise before two eyes, and numbers."""

    def __init__(self, eyes=EYES):
        self.observation_space = spaces.Dict({**eyes, "body": spaces.Box(-1e3, 1e3, (2,), np.float32)})
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, bool(self.np_random.random() < 0.2), False, {}


class Flat(Seeing):
    """One picture, of floats where asked for."""

    def __init__(self, space=SMALL, action=spaces.Discrete(2)):
        self.observation_space, self.action_space = space, action


def arrays(model):
    return jax.tree.leaves(model._full_state())


def same(one, two):
    return all(np.array_equal(x, y) for x, y in zip(arrays(one), arrays(two), strict=True))


def test_dict_of_pictures_in_gymnasiums_environments(tmp_path):
    """PPO with normalised numbers beside raw pictures, two seeds; a file, and predict."""
    words = {"features_extractor_kwargs": {"cnn_output_dim": 4}, "net_arch": [4], "ortho_init": False}
    model = PPO("MultiInputPolicy", make_vec_env(Seeing, 2), seed=1, seeds=2, normalize=True, policy_kwargs=words, **ROLLOUT)
    model.learn(32)
    assert all(np.isfinite(x).all() for x in arrays(model))
    assert sorted(model._full_state().normaliser.obs) == ["body"]
    model.save(tmp_path / "model")
    back = PPO.load(tmp_path / "model")
    assert same(model, back) and back.features_extractor is model.features_extractor
    obs = model.observation_space.sample()
    batch = {name: np.stack([x] * 3) for name, x in obs.items()}
    actions, _ = back.predict(batch, deterministic=True)
    assert actions.tolist() == [int(model.predict(obs, deterministic=True)[0])] * 3


def test_pictures_are_not_normalised():
    """`normalize=True` leaves the bytes of pictures as they are, and refuses where there is nothing else."""
    algorithm = PPO("MultiInputPolicy", normalize=True).algorithm
    assert isinstance(algorithm, Normalised)
    space = Space.from_gymnasium(Seeing().observation_space)
    statistics = {"body": (jnp.ones(2), jnp.ones(2))}
    obs = {"eye": jnp.full((1, 3, 36, 40), 7, jnp.uint8), "other": jnp.zeros((1, 40, 36, 1), jnp.uint8), "body": jnp.ones((1, 2))}
    seen = algorithm.seen(statistics, obs)
    assert seen["eye"].dtype == jnp.uint8 and np.all(seen["eye"] == 7) and not seen["body"].any()
    assert algorithm.inner_spec(Spec(space, space)).observation == space
    with pytest.raises(ValueError, match="not pictures: set norm_obs=False"):
        PPO("CnnPolicy", Flat(), normalize=True, policy_kwargs=TINY, **ROLLOUT)


def test_shared_encoder_in_both_drivers(tmp_path):
    """TD3 and DDPG train with one encoder, which is as the critics' at the end; two seeds; a file brings it back."""
    words = TINY | {"share_features_extractor": True, "net_arch": [4]}
    env = "advantage/ProbePictureContinuous-v0"
    model = TD3("CnnPolicy", env, seeds=2, seed=0, policy_kwargs=words, **REPLAY).learn(16)
    model.save(tmp_path / "model")
    back = TD3.load(tmp_path / "model")
    assert same(model, back) and back.share_features_extractor
    host = DDPG("CnnPolicy", Flat(action=spaces.Box(-1, 1, (1,), np.float32)), seed=0, policy_kwargs=words, **REPLAY).learn(12)
    for state in (model._full_state(), host._full_state()):
        for x, y in zip(jax.tree.leaves(state.actor.features), jax.tree.leaves(state.critics.features), strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.isfinite(x).all()
    with pytest.raises(ValueError, match="share_features_extractor is built into the agent"):
        host.share_features_extractor = False


@pytest.mark.parametrize("face", [PPO, DQN, SAC, TD3, DDPG])
def test_sizes_are_those_of_sb3(face):
    """`CnnPolicy` learns as many numbers as SB3's on pictures of 84 x 84 x 4."""
    config = face("CnnPolicy", **({} if face is PPO else {"buffer_size": 1}))._config
    discrete = face in (PPO, DQN)
    action = Space("discrete", (), "int32", n=(3,), start=(0,)) if discrete else Space("box", (3,), low=-1.0, high=1.0)
    spec = Spec(Space("box", (84, 84, 4), "uint8", 0.0, 255.0), action)
    state = jax.eval_shape(lambda: face.algorithm.init(config, spec, jax.random.PRNGKey(0)))
    learned = [state.network] if discrete else [state.actor, state.critics]
    assert sum(x.size for x in jax.tree.leaves(learned)) == SB3[f"parameters/{face.__name__}"]


@pytest.mark.parametrize("face", [DQN, SAC, TD3, DDPG, TQC, CrossQ, DiscreteSAC])
@pytest.mark.parametrize("share", [False, True])
def test_a_gradient_step_from_pictures_keeps_every_shape(face, share):
    """Traced, not run: what comes out of `learn` is what went in, whoever has an encoder."""
    words = {} if face is DQN else {"share_features_extractor": share}
    config = face("CnnPolicy", policy_kwargs=TINY | words, **REPLAY)._config
    discrete = face in (DQN, DiscreteSAC)
    action = Space("discrete", (), "int32", n=(3,), start=(0,)) if discrete else Space("box", (3,), low=-1.0, high=1.0)
    obs = jnp.zeros((4, 3, 6, 8), jnp.uint8)
    batch = Batch(obs, jnp.zeros(4, jnp.int32) if discrete else jnp.zeros((4, 3)), jnp.zeros(4), jnp.zeros(4), obs)
    state = jax.eval_shape(lambda: face.algorithm.init(config, Spec(Space.from_gymnasium(SMALL), action), jax.random.PRNGKey(0)))
    after, *_ = jax.eval_shape(lambda state: face.algorithm.learn(config, state, batch), state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [x.shape for x in jax.tree.leaves(after)] == [x.shape for x in jax.tree.leaves(state)]


def test_what_policies_do_not_take():
    """Each refusal says what to use; a picture that is flattened is told of."""
    with pytest.raises(ValueError, match="CnnPolicy.*use policy='MlpPolicy'"):
        DQN("CnnPolicy", "CartPole-v1", **REPLAY)
    with pytest.raises(ValueError, match="at least 36 x 36 pixels, and these have 6 x 8"):
        DQN("CnnPolicy", Flat(), **REPLAY)
    with pytest.raises(ValueError, match="policy='MultiInputPolicy'"):
        PPO("CnnPolicy", Seeing(), **ROLLOUT)
    with pytest.raises(ValueError, match="observation 'eye': NatureCNN needs"):
        PPO("MultiInputPolicy", Seeing({"eye": SMALL}), **ROLLOUT)
    with pytest.warns(UserWarning, match="flattens pictures.*CnnPolicy"):
        PPO("MlpPolicy", Flat(), policy_kwargs={"net_arch": [4]}, **ROLLOUT)
    scaled = Flat(spaces.Box(0, 1, (6, 8, 3), np.float32))
    with pytest.raises(ValueError, match="normalize_images"):
        PPO("CnnPolicy", scaled, policy_kwargs=TINY, **ROLLOUT)
    PPO("CnnPolicy", scaled, policy_kwargs={"normalize_images": False, **TINY}, **ROLLOUT)


def test_loading_with_the_words_of_making(tmp_path):
    """`policy_kwargs` given again, or not: the extractor is the file's."""
    words = {"features_extractor_kwargs": {"features_dim": 8}}
    model = DQN("CnnPolicy", "advantage/ProbePicture-v0", policy_kwargs=words, seed=0)
    model.save(tmp_path / "model.zip")
    for given in ({"policy_kwargs": words}, {}):
        found = DQN.load(tmp_path / "model.zip", **given)
        assert found._config.features_extractor is model._config.features_extractor
