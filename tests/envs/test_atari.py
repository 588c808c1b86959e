"""Atari games: what is learned from, what is reported, what is remembered, and what is played where."""

import importlib
import sys

import gymnasium
import jax
import numpy as np
import pytest

import advantage
from advantage import DQN, PPO, VecFrameStack, evaluate_policy, human_normalized_score, make_atari, make_atari_env
from advantage.cli import main
from advantage.envs.atari import PROTOCOLS, is_atari_id, rom_of
from advantage.envs.make import host_envs
from advantage.envs.vector import VectorEnvs
from advantage.experiments.atari import atari_scores
from advantage.memory import frames, uniform
from advantage.models import usual_policy
from advantage.training.evaluation import film, record_frames

suggest_module = importlib.import_module("advantage.experiments.suggest")  # a function has its name
QUIET = {"learning_starts": 10_000, "buffer_size": 20_000}


def played(env, steps, seed=3):
    """`(observations, rewards, terminated, truncated, infos)` of random play."""
    rng, rows = np.random.default_rng(0), []
    first, _ = env.reset(seed=seed)
    for _ in range(steps):
        obs, *rest = env.step(rng.integers(env.single_action_space.n, size=env.num_envs))
        rows.append((obs.copy(), *rest))
    obs, rewards, terminated, truncated, infos = zip(*rows, strict=True)
    return np.stack([first, *obs]), np.stack(rewards), np.stack(terminated), np.stack(truncated), infos


def test_a_life_lost_ends_what_is_learned_from_and_not_the_game():
    """The same games for training and for evaluation: frames, scores and ends of games agree, rewards and ends do not."""
    obs, rewards, terminated, truncated, infos = played(make_atari("ALE/Breakout-v5", 2), 700)
    same, scores, over, cut, others = played(make_atari("breakout", 2, training=False), 700)
    np.testing.assert_array_equal(obs, same)
    np.testing.assert_array_equal(np.stack([info["score"] for info in infos]), scores)
    np.testing.assert_array_equal(rewards, np.sign(scores))
    assert not truncated.any() and not cut.any()
    np.testing.assert_array_equal(np.stack([info["_final_obs"] for info in infos]), over)
    lives = np.stack([np.full(2, 5), *[info["lives"] for info in others]])
    lost = (lives[1:] < lives[:-1]) | over  # 5 lives: the last one lost is the game's end
    np.testing.assert_array_equal(terminated, lost)
    assert over.sum() >= 4 and lost.sum() == pytest.approx(5 * over.sum(), abs=10)
    assert rewards.max() == 1 and scores.max() >= 1


def test_a_stack_goes_on_over_a_life_and_begins_black_with_a_game():
    """Frame by frame: each observation is the one before with a frame more, but where a game begins."""
    obs, _, terminated, _, infos = played(make_atari("ALE/Breakout-v5", 1), 600)
    begun = np.stack([info["_final_obs"] for info in infos])[:, 0]
    goes_on = (obs[1:, 0, :-1] == obs[:-1, 0, 1:]).reshape(600, -1).all(axis=1)
    np.testing.assert_array_equal(goes_on, ~begun)
    assert terminated[goes_on].sum() >= 8
    for place in [0, *(np.flatnonzero(begun) + 1)]:
        assert not obs[place, 0, :3].any() and obs[place, 0, 3].any()
    for t in np.flatnonzero(begun):
        last = infos[t]["final_obs"][0]
        np.testing.assert_array_equal(last[:-1], obs[t, 0, 1:])
        assert last[-1].any()


def test_clipping_keeps_the_sign_of_large_scores():
    """Scores of 25 and more, in a game where all are: rewards are 1."""
    _, rewards, _, _, infos = played(make_atari("ALE/Qbert-v5", 2), 300)
    scores = np.stack([info["score"] for info in infos])
    assert scores.max() >= 25
    np.testing.assert_array_equal(rewards, (scores > 0).astype(np.float32) - (scores < 0))
    _, raw, *_ = played(make_atari("ALE/Qbert-v5", 2, clip_reward=False), 300)
    np.testing.assert_array_equal(raw, scores)


def test_protocols():
    classic, machado = make_atari("ALE/Pong-v5"), make_atari("ALE/Pong-v5", protocol="machado")
    assert (classic.single_action_space.n, machado.single_action_space.n) == (6, 18)
    assert classic.single_observation_space == gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    _, _, terminated, _, infos = played(make_atari("ALE/Breakout-v5@machado", 1), 400)
    np.testing.assert_array_equal(terminated, np.stack([info["_final_obs"] for info in infos]))
    assert terminated.any()
    # Without sticky actions nor idle frames a game is the same whatever its seed; with them it is not.
    def frames(seed, **settings):
        return played(make_atari("ALE/Breakout-v5@machado", 1, **settings), 60, seed)[0]

    assert (frames(1) != frames(2)).any()
    np.testing.assert_array_equal(frames(1, action_repeat_probability=0.0), frames(2, action_repeat_probability=0.0))
    assert machado.id == "ALE/Pong-v5@machado" and machado.is_plain() and classic.id == "ALE/Pong-v5"
    assert not make_atari("ALE/Pong-v5", frame_skip=2).is_plain()
    assert set(PROTOCOLS["classic"]) == set(PROTOCOLS["machado"])


def test_time_limit():
    """A game that is cut is truncated, and its last observation is there."""
    _, _, terminated, truncated, infos = played(make_atari("ALE/Pong-v5", 1, max_frames=400), 120)
    places = np.flatnonzero(truncated[:, 0])
    assert len(places) >= 1 and not terminated[places].any() and infos[places[0]]["final_obs"].any()


@pytest.mark.parametrize(
    ("env_id", "rom"),
    [("ALE/MsPacman-v5", "ms_pacman"), ("PongNoFrameskip-v4", "pong"), ("up_n_down", "up_n_down"),
     ("ALE/Qbert-v5@machado", "qbert"), ("SpaceInvaders-v4", "space_invaders")],
)  # fmt: skip
def test_names(env_id, rom):
    assert rom_of(env_id) == rom


def test_sb3s_names():
    """`make_atari_env` and `VecFrameStack` give what `make_atari` does."""
    venv = VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", n_envs=2, seed=4, wrapper_kwargs={"noop_max": 5}), n_stack=4)
    env = make_atari("BreakoutNoFrameskip-v4", 2, seed=4, noop_max=5)
    assert venv.settings == env.settings and venv.id == env.id and venv.first_seed == 4
    np.testing.assert_array_equal(venv.reset()[0], env.reset()[0])
    with pytest.raises(ValueError, match="stacks of 4 frames: leave VecFrameStack out"):
        VecFrameStack(venv, n_stack=2)
    with pytest.raises(ValueError, match="this is a DummyVecEnv: wrap each environment"):
        VecFrameStack(advantage.make_vec_env("CartPole-v1"), n_stack=4)


def test_ids():
    assert all(map(is_atari_id, ("ALE/Pong-v5", "ALE/Pong-v5@machado", "PongNoFrameskip-v4")))
    assert not any(map(is_atari_id, ("CartPole-v1", "Pong-v5", "gymnax/Breakout-MinAtar", None)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_atari("ALE/Brekout-v5"), "env='ALE/Brekout-v5' is no game of ALE's: did you mean breakout"),
        (lambda: DQN("CnnPolicy", "ALE/Pog-v5"), "did you mean pong"),
        (lambda: make_atari("ALE/Xyzzyqw-v5"), "choose from adventure, "),
        (lambda: make_atari("pong", protocol="nature"), "protocol='nature' is not known: choose from classic, machado"),
        (lambda: make_atari("pong@machado", protocol="classic"), "protocol='classic', and env='pong@machado' names another"),
        (lambda: make_atari("pong", clip_rewards=True), "no setting 'clip_rewards': did you mean 'clip_reward'"),
        (lambda: advantage.make_vec_env("ALE/Pong-v5", 2), "use make_atari('ALE/Pong-v5', n_envs=2)"),
        (lambda: advantage.EvalCallback("CartPole-v1", epsilon=-0.1), "epsilon=-0.1 is a probability"),
        (lambda: make_atari("pong", stack="4"), "stack='4' has to be a whole number of at least 1"),
        (lambda: make_atari("pong", clip_reward="yes"), "clip_reward='yes' has to be True or False"),
        (lambda: make_atari("pong", action_repeat_probability="x"), "action_repeat_probability='x' has to be at least 0"),
        (lambda: make_atari("pong", seed=2**32), "seed=4294967296 has to be at most 2147483646"),
        (lambda: make_atari("pong", num_threads=0), "num_threads=0 has to be a whole number of at least 1"),
        (lambda: make_atari("ALE/Pong-ram-v5"), "env='ALE/Pong-ram-v5' is no game of ALE's"),
        (lambda: make_atari("pong", frame_skip=0), "frame_skip=0 has to be a whole number of at least 1"),
        (lambda: make_atari("pong", n_envs=0), "n_envs=0 has to be a whole number of at least 1"),
        (lambda: make_atari("pong", action_repeat_probability=1.0), "action_repeat_probability=1.0 has to be at least 0 and less than 1"),
        (lambda: DQN("CnnPolicy", "ALE/Pong-v5", vec_env="async"), "ALE has its own threads: leave vec_env out"),
        (lambda: evaluate_policy(None, "CartPole-v1", epsilon=1.5), "epsilon=1.5 is a probability"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "actions", [np.array([6, 0]), np.array([-1, 0]), np.array([0]), np.array([0.5, 0.5]), np.zeros((2, 1), int)]
)
def test_no_actions_of_the_games(actions):
    """ALE would wait for them for ever."""
    env = make_atari("ALE/Pong-v5", 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions=.* have to be 2 whole number\(s\) of 0 to 5"):
        env.step(actions)
    env.step(np.array([5, 0]))


def test_scores_of_others_are_theirs():
    """An environment whose info has a `score`, with same-step resets, is trained on as ever."""

    class Scored(gymnasium.Wrapper):
        def step(self, action):
            *answer, info = self.env.step(action)
            return *answer, {**info, "score": 7.0}

    env = gymnasium.vector.SyncVectorEnv(
        [lambda: Scored(gymnasium.make("CartPole-v1"))] * 2, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=1, seed=0).learn(128)
    games = driver_of(model).recent(0)
    np.testing.assert_array_equal(games.returns, games.lengths)
    assert len(games.returns) > 0


def test_callbacks_see_whole_games():
    """An `episode` in the infos for every game, and none for a life."""
    found = []

    def look(locals_, globals_):
        found.extend(info["episode"] for info in locals_["infos"] if "episode" in info)
        return True

    model = DQN("CnnPolicy", "ALE/Breakout-v5", n_envs=2, seed=0, **QUIET)
    with pytest.warns(UserWarning, match="learning_starts"):
        model.learn(600, callback=look)
    games = driver_of(model).recent(0)
    assert games.total >= 2
    assert [(one["r"], one["l"]) for one in found] == list(zip(games.returns, games.lengths, strict=True))


def test_a_plain_name_becomes_an_id(tmp_path):
    """So that a model's file says on what it was trained."""
    for name, expected in (("pong", "ALE/Pong-v5"), ("up_n_down@machado", "ALE/UpNDown-v5@machado"), ("ALE/Pong-v5", "ALE/Pong-v5")):
        env = make_atari(name)
        assert env.id == expected and make_atari(env.id).settings == env.settings and is_atari_id(env.id)


def test_policies_of_pictures():
    assert usual_policy(advantage.RecurrentPPO, "ALE/Pong-v5") == "CnnLstmPolicy"
    assert usual_policy(advantage.DQN, "ALE/Pong-v5") == "CnnPolicy"
    assert usual_policy(advantage.DQN, "CartPole-v1") == "MlpPolicy"


def test_without_ale(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ImportError, match=r'Atari games need ALE: pip install "advantage\[atari\]"'):
        DQN("CnnPolicy", "ALE/Pong-v5")


def test_a_first_seed_is_used_once():
    one, two = make_atari("ALE/Breakout-v5", seed=5), make_atari("ALE/Breakout-v5")
    np.testing.assert_array_equal(one.reset()[0], two.reset(seed=5)[0])
    first = {one.reset()[1]["episode_frame_number"][0] for _ in range(4)}
    assert len(first) > 1, "games that follow begin after other numbers of idle frames"


def driver_of(model):
    return model._driver


def test_what_is_reported_is_of_whole_games():
    """Returns and lengths of the log are raw scores and steps of whole games; what is remembered are signs and lives."""
    model = DQN("CnnPolicy", "ALE/Breakout-v5", n_envs=2, seed=0, **QUIET)
    env, played = model.get_env(), [[], []]
    step, scores, steps = env.step, np.zeros(2), np.zeros(2)

    def counted(actions):
        answer = step(actions)
        scores[:], steps[:] = scores + answer[4]["score"], steps + 1
        for n in np.flatnonzero(answer[4]["_final_obs"]):
            played[0].append(scores[n]), played[1].append(steps[n])
            scores[n] = steps[n] = 0
        return answer

    env.step = counted
    with pytest.warns(UserWarning, match="learning_starts"):
        model.learn(1_200)
    games = driver_of(model).recent(0)
    assert 4 <= games.total == len(games.returns) and games.lengths.min() > 90
    np.testing.assert_array_equal((games.returns, games.lengths), played)
    _, memory = driver_of(model)._layout.unpack(driver_of(model)._arrays)
    flags, size = np.asarray(memory.flags[0]), np.asarray(memory.size[0]).sum()
    ends = (flags & uniform.TERMINATED > 0).sum()
    assert size == 1_200 and ends >= 4 * games.total and (flags & uniform.FIRST > 0).sum() == games.total + 2
    assert set(np.unique(memory.reward)) <= {0.0, 1.0}
    scored = model.get_env().settings["clip_reward"] and np.asarray(memory.reward).sum()
    assert 0 < scored <= games.returns.sum() + scores.sum()


def test_what_is_remembered_is_what_was_seen():
    """Every observation of a run, over games and lives, comes out of the replay as it was seen."""
    model = DQN("CnnPolicy", "ALE/Breakout-v5", n_envs=2, seed=1, train_freq=5, **QUIET)
    assert model._spec.stacked
    driver, seen, after = driver_of(model), [], []
    step = driver.envs.step

    def watched(action):
        seen.append(driver._observed.obs[0].copy())
        answer = step(action)
        after.append(answer.final_obs[0].copy())
        return answer

    driver.envs.step = watched
    with pytest.warns(UserWarning, match="learning_starts"):
        model.learn(600)
    memory = jax.tree.map(lambda x: x[0], driver._layout.unpack(driver._arrays)[1])
    rows = np.arange(300, dtype=np.int32)
    for n in range(2):
        place = jax.numpy.asarray(rows + n * (20_000 // 2))
        np.testing.assert_array_equal(frames.seen(memory, place), np.stack(seen)[:, n])
        np.testing.assert_array_equal(frames.followed(memory, place), np.stack(after)[:, n])


def test_time_steps():
    """`is_first` is a game's beginning; scores and ends of games are beside rewards and ends that are learned from."""
    envs = VectorEnvs([make_atari("ALE/Breakout-v5", 2)])
    envs.reset(np.array([[3, 0]]))
    rng, steps = np.random.default_rng(0), []
    for _ in range(700):
        steps.append(envs.step(rng.integers(4, size=(1, 2))))
    first = np.stack([x.observed.is_first for x in steps])
    over = np.stack([x.played[1] for x in steps])
    terminated = np.stack([x.terminated for x in steps])
    np.testing.assert_array_equal(first, over)
    assert terminated.sum() > 2 * over.sum() > 0 and terminated[over].all()


def test_seeds_have_games_of_their_own():
    envs = host_envs(make_atari("ALE/Breakout-v5", 2), 2)
    first = envs.reset(np.array([[1, 0], [2, 0]])).obs
    again = host_envs(make_atari("ALE/Breakout-v5", 2), 2).reset(np.array([[1, 0], [2, 0]])).obs
    np.testing.assert_array_equal(first, again)
    begun = [[info["episode_frame_number"].tolist() for info in [env.reset(seed=s)[1]]] for s, env in enumerate(envs.envs)]
    assert begun[0] != begun[1] and first.shape == (2, 2, 4, 84, 84)


def test_on_policy():
    """PPO learns from the same games."""
    model = PPO("CnnPolicy", "ALE/Breakout-v5", n_envs=2, seed=0, n_steps=8, batch_size=16, n_epochs=1)
    before = model.get_parameters()["policy"]
    model.learn(16)
    assert any((before[name] != x).any() for name, x in model.get_parameters()["policy"].items())


@pytest.fixture(scope="module")
def model():
    model = DQN("CnnPolicy", "ALE/Breakout-v5", seed=0, learning_starts=50, buffer_size=2_000, target_update_interval=50)
    return model.learn(90)


def test_learning_changes_the_network(model, tmp_path):
    fresh = DQN("CnnPolicy", "ALE/Breakout-v5", seed=0, buffer_size=2_000)
    before, after = (m.get_parameters()["policy"] for m in (fresh, model))
    assert any((before[name] != after[name]).any() for name in before)
    model.save(tmp_path / "model.zip")
    loaded = DQN.load(tmp_path / "model.zip")
    obs = make_atari("breakout", 3).reset(seed=1)[0]
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert loaded.env_id == "ALE/Breakout-v5" and loaded._spec.stacked
    loaded.set_env("ALE/Breakout-v5")
    loaded.learn(54)


def test_evaluation_plays_whole_games(model):
    """By id, on an environment for evaluation and on one for training: the same raw scores of whole games."""
    options = {"n_eval_episodes": 1, "epsilon": 0.3, "seed": 4, "return_episode_rewards": True}
    expected = evaluate_policy(model, "ALE/Breakout-v5", **options)
    assert min(expected[1]) > 100
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(make_atari("ALE/Breakout-v5"))
    others = (make_atari("ALE/Breakout-v5"), make_atari("ALE/Breakout-v5", training=False), model.get_env(), wrapped)
    for env in others:
        assert evaluate_policy(model, env, **options) == expected
    with pytest.raises(ValueError, match="evaluate on an environment of the same spaces"):
        evaluate_policy(model, "ALE/Breakout-v5@machado")


def test_callbacks_of_an_evaluation_see_scores():
    """Not their signs: in Qbert all are 25 and more."""

    class Still:
        def predict(self, obs, **options):
            return np.zeros(len(obs), np.int64), None

    rewards = []
    returns, _ = evaluate_policy(
        Still(), "ALE/Qbert-v5", 1, epsilon=1.0, return_episode_rewards=True,
        callback=lambda locals_, _: rewards.append(float(locals_["reward"])),
    )  # fmt: skip
    assert max(rewards) >= 25 and sum(rewards) == returns[0]


def test_a_callback_evaluates_with_epsilon(model):
    """It plays the games that `evaluate_policy` does, and with no random action other ones."""
    callback = advantage.EvalCallback(
        make_atari("ALE/Breakout-v5", max_frames=400), n_eval_episodes=1, eval_freq=40, verbose=0, epsilon=1.0
    )
    greedy = advantage.EvalCallback(make_atari("ALE/Breakout-v5", max_frames=400), n_eval_episodes=1, eval_freq=40, verbose=0)
    model.learn(40, callback=[callback, greedy])
    expected = evaluate_policy(
        model, make_atari("ALE/Breakout-v5", max_frames=400), 1, epsilon=1.0, return_episode_rewards=True
    )
    np.testing.assert_array_equal((callback.evaluations_results[0], callback.evaluations_length[0]), expected)
    assert expected != (greedy.evaluations_results[0].tolist(), greedy.evaluations_length[0].tolist())


def test_epsilon_is_the_share_of_random_actions():
    """A policy that never moves, on a discrete and on a Box environment."""
    class Still:
        def predict(self, obs, **options):
            return np.zeros(len(obs), np.int64), None

    lengths = [evaluate_policy(Still(), "CartPole-v1", 40, epsilon=e, return_episode_rewards=True, warn=False)[1] for e in (0.0, 1.0)]
    assert np.mean(lengths[0]) < 11 < 15 < np.mean(lengths[1]) < 40
    with pytest.raises(ValueError, match="epsilon=0.5 is for Discrete actions"):
        evaluate_policy(Still(), "Pendulum-v1", 1, epsilon=0.5, warn=False)


def test_a_film_is_of_the_game_that_is_played(model):
    """Pictures in colour; the return is that of the same game played by hand, with the same actions."""
    frames, total = record_frames(model, "ALE/Breakout-v5", max_steps=80, seed=2)
    assert len(frames) == 81 and frames[0].shape == (210, 160, 3) and frames[0].dtype == np.uint8
    assert any((frames[0] != frame).any() for frame in frames[10:])
    env = make_atari("ALE/Breakout-v5", 1, training=False)
    obs, score = env.reset(seed=2)[0], 0.0
    small = []
    for _ in range(80):
        obs, reward, *_ = env.step(model.predict(obs, deterministic=True)[0])
        small.append(obs[0, -1])
        score += float(reward[0])
    assert score == total
    # Brightness of the picture and of what the policy sees go together, frame by frame.
    bright = [np.asarray(frame, np.float32).mean() for frame in frames[1:]]
    assert np.corrcoef(bright, [x.mean() for x in small])[0, 1] > 0.9
    again, same = record_frames(model, make_atari("ALE/Breakout-v5"), max_steps=80, seed=2)
    assert same == total and all((a == b).all() for a, b in zip(frames, again, strict=True))
    with pytest.raises(ValueError, match="the model trains on"):
        next(film(model, model.get_env()))


def test_human_normalized_scores():
    """Of 57 games, by hand for two."""
    assert len(atari_scores()) == 57 and all(low != high for low, high in atari_scores().values())
    assert human_normalized_score("ALE/Breakout-v5", 1.7) == pytest.approx(0.0)
    assert human_normalized_score("BreakoutNoFrameskip-v4", 30.5) == pytest.approx(1.0)
    assert human_normalized_score("gymnax/Breakout-MinAtar", 10.0) is None
    assert human_normalized_score("MsPacman", 6951.6) == human_normalized_score("ms_pacman@machado", 6951.6) == 1.0
    assert human_normalized_score("pong", 21.0) == pytest.approx((21 + 20.7) / (14.6 + 20.7))
    assert human_normalized_score("CartPole-v1", 500.0) is None
    for game in atari_scores():
        assert rom_of(game) == game


def test_other_settings_are_not_forgotten(tmp_path, capsys):
    """A model's file says that an id is not all; the command line says so where it evaluates by the id."""
    model = DQN("CnnPolicy", make_atari("ALE/Breakout-v5", frame_skip=2), buffer_size=1_000, seed=0)
    model.save(tmp_path / "model.zip")
    DQN.load(tmp_path / "model.zip").save(tmp_path / "again.zip")
    assert main(["watch", str(tmp_path / "again.zip"), "--gif", str(tmp_path / "game.gif"), "--max-steps", "3"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "was trained on ALE/Breakout-v5 with wrappers or arguments of its own" in said


def test_suggestions(monkeypatch):
    """One that can be trained as it is said, by the games' preset; the trial itself is tested elsewhere."""
    tried = []

    def trial(*arguments, **settings):
        tried.append((arguments, settings))
        raise StopIteration

    monkeypatch.setattr(suggest_module, "estimate", trial)
    monkeypatch.setattr(suggest_module, "ENV_SECONDS", 0.1)
    with pytest.raises(StopIteration):
        suggest_module.suggest("ALE/Breakout-v5")
    assert "CnnPolicy" in str(tried) and suggest_module.env_speed(make_atari("ALE/Breakout-v5"), 0.1) > 100


def test_the_command_line(tmp_path, monkeypatch, capsys):
    """It takes pictures' policy and the games' preset by itself, evaluates whole games and writes a film."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    settings = ["--set", "learning_starts=40", "buffer_size=1000"]
    assert main(["train", "DQN", "ALE/Breakout-v5", "--total-timesteps", "80", "--out", str(out), *settings]) == 0
    said = capsys.readouterr().out
    assert "preset DQN ALE/Breakout-v5" in said and "target_update_interval=1000" in said
    assert advantage.DQN.load(out / "model.zip").policy_name == "CnnPolicy"
    assert main(["evaluate", str(out / "model.zip"), "--episodes", "1", "--epsilon", "0.5"]) == 0
    assert "of a human's score over random play" in " ".join(capsys.readouterr().out.split())
    assert main(["watch", str(out / "model.zip"), "--gif", str(tmp_path / "game.gif"), "--max-steps", "20"]) == 0
    assert (tmp_path / "game.gif").stat().st_size > 1_000
    # Without a preset too, and with another algorithm.
    assert main(["train", "C51", "ALE/Breakout-v5@machado", "--total-timesteps", "40", "--out", str(tmp_path / "c51"),
                 "--set", "learning_starts=20", "buffer_size=1000"]) == 0  # fmt: skip
    loaded = advantage.C51.load(tmp_path / "c51" / "model.zip")
    assert loaded.policy_name == "CnnPolicy" and loaded.env_id == "ALE/Breakout-v5@machado" and loaded.action_space.n == 18
