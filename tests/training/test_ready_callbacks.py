"""Ready-made callbacks: when they act, what they write, what stops training; on both drivers, alone and among seeds."""

import json
import warnings

import gymnasium
import numpy as np
import pytest

import advantage
from advantage import (
    DQN,
    PPO,
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EventCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
    evaluate_policy,
    make_vec_env,
)
from advantage.envs.jax import make_jax
from advantage.training import callbacks, progress, ready_callbacks
from advantage.training import evaluation as evaluation_module
from advantage.training.evaluation import Episodes, evaluate_seeds
from advantage.training.loggers import Logger, configure
from advantage.training.ready_callbacks import divided_by_hand

SMALL = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "policy_kwargs": {"net_arch": [4]}}
OFF_POLICY = {"learning_starts": 8, "batch_size": 8, "buffer_size": 200, "seed": 0, "policy_kwargs": {"net_arch": [4]}}
HOST, FUSED = "CartPole-v1", "advantage/CartPole-v1"


class Countdown(gymnasium.Env):
    """Episodes of `length` steps that pay 1 each; every second one is a success."""

    observation_space = gymnasium.spaces.Box(0.0, 100.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int = 5):
        self.length, self.episodes = length, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length
        return np.array([self.left], np.float32), {}

    def step(self, action):
        self.left -= 1
        over = self.left == 0
        self.episodes += over
        info = {"is_success": self.episodes % 2 == 0} if over else {}
        return np.array([self.left], np.float32), 1.0, over, False, info


class Steps(BaseCallback):
    """Notes the environment steps at which it is called."""

    def __init__(self, answer=None):
        super().__init__()
        self.at, self.events, self.answer = [], [], answer

    def _on_training_start(self):
        self.events.append("start")

    def _on_step(self):
        self.at.append(self.num_timesteps)
        return self.answer

    def _on_training_end(self):
        self.events.append("end")


class Stub:
    """What callbacks need of a model, without one."""

    def __init__(self, n_envs=1):
        self.num_timesteps, self.n_envs, self.num_seeds, self.saved = 0, n_envs, 1, []
        self.logger = Logger(None, [])

    def get_env(self):
        return "the env"

    def get_vec_normalize_env(self):
        return None

    def reward_scales(self):
        return None

    def save(self, path):
        self.saved.append(path)


def drive(callback, steps, model=None, start=0):
    """Call a callback as training would at these steps; returns its answers."""
    model = model or Stub()
    model.num_timesteps = start
    callback.init_callback(model)
    callback.on_training_start({"total_timesteps": max(steps)}, {})
    answers = []
    for model.num_timesteps in steps:
        callback.update_locals({"step": model.num_timesteps})
        answers.append(callback.on_step())
    callback.on_training_end()
    return answers


@pytest.fixture
def scripted(monkeypatch):
    """`scripted(returns, **arguments)`: an `EvalCallback` whose evaluations have these mean returns."""

    def make(returns, **arguments):
        left = iter(returns)

        def evaluate(model, env, *rest, **options):
            row = np.full((1, 2), float(next(left)))
            return Episodes(row, row.astype(np.int64), row * np.nan)

        monkeypatch.setattr(ready_callbacks, "evaluate_every_seed", evaluate)
        return EvalCallback(FUSED, eval_freq=1, verbose=0, **arguments)

    return make


def bits(model):
    """Every parameter of every seed."""
    return [model.get_parameters(s)["policy"] for s in range(model.num_seeds)]


def same(first, second):
    return all(
        np.array_equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in (a | b)
    )


# -- how often ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n_steps, steps, expected",
    [
        (10, range(4, 41, 4), [12, 20, 32, 40]),  # four environments: the first call at or after each multiple
        (10, range(1, 31), [10, 20, 30]),
        (8, range(4, 25, 4), [8, 16, 24]),
        (1, range(4, 13, 4), [4, 8, 12]),
        (10, [25, 29, 30, 75, 76], [25, 30, 75]),  # segments: several multiples within one count once
        (100, range(4, 41, 4), []),
    ],
)
def test_multiples_of_environment_steps(n_steps, steps, expected):
    inner = Steps()
    outer = EveryNTimesteps(n_steps, inner)
    assert all(drive(outer, list(steps)))
    assert inner.at == expected and inner.n_calls == len(expected) and outer.n_calls == len(steps)
    assert outer.last_time_trigger == (expected or [0])[-1]


def test_a_second_learn_goes_on_or_begins_anew():
    inner = Steps()
    outer, model = EveryNTimesteps(10, inner), Stub()
    drive(outer, [5, 10, 15], model)
    drive(outer, [18, 21, 30], model, start=15)
    assert inner.at == [10, 21, 30]
    drive(outer, [5, 10], model)  # counted from 0 again
    assert inner.at == [10, 21, 30, 10]
    fresh = Steps()  # of a model that was loaded: neither at once nor at a step of its own
    drive(EveryNTimesteps(10, fresh), [26, 30, 40], start=25)
    assert fresh.at == [30, 40]


@pytest.mark.parametrize("seeds", [1, 2])
def test_checkpoints_of_four_environments_on_the_host(tmp_path, seeds):
    saver = CheckpointCallback(10, tmp_path / "a" / "b", name_prefix="m")
    model = PPO("MlpPolicy", lambda_env(4), seeds=seeds, **SMALL)
    model.learn(40, callback=saver)
    assert names(tmp_path / "a" / "b") == {f"m_{step}_steps.zip" for step in (12, 20, 32, 40)}
    model.learn(20, callback=saver, reset_num_timesteps=False)
    assert names(tmp_path / "a" / "b") == {f"m_{step}_steps.zip" for step in (12, 20, 32, 40, 52, 60)}
    loaded = PPO.load(tmp_path / "a" / "b" / "m_60_steps.zip")
    assert loaded.num_timesteps == 60 and loaded.num_seeds == seeds


@pytest.mark.parametrize("seeds", [1, 2])
def test_checkpoints_on_jax_environments(tmp_path, capsys, seeds):
    """One call per segment: at most one file for it, named by the segment's end."""
    seen = Steps()
    saver = CheckpointCallback(20, tmp_path, verbose=2)
    model = PPO("MlpPolicy", FUSED, n_envs=2, seeds=seeds, **SMALL).learn(160, callback=[seen, saver])
    expected, before = [], 0
    for step in seen.at:
        expected += [step] if step // 20 > before // 20 else []
        before = step
    assert names(tmp_path) == {f"rl_model_{step}_steps.zip" for step in expected} and expected[-1] == 160
    assert capsys.readouterr().out.count("saved the model to") == len(expected)
    assert same(bits(PPO.load(tmp_path / "rl_model_160_steps.zip")), bits(model))


def lambda_env(n_envs, length=5):
    return make_vec_env(Countdown, n_envs, seed=0, env_kwargs={"length": length})


def names(folder):
    return {path.name for path in folder.iterdir()}


# -- frequencies that look divided ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frequency, n_envs, whole",
    [
        (125, 8, 1_000), (125, 4, 500), (1_250, 8, 10_000), (3_333, 3, 10_000), (1_666, 6, 10_000), (625, 16, 10_000),
        (3_125, 8, 25_000), (1_562, 16, 25_000), (12_500, 8, 100_000), (833, 12, 10_000),
        (1, 4, 4), (3, 4, 4), (4, 4, None), (1, 1, None), (125, 1, None),
        (2_500, 4, None), (5_000, 2, None), (10_000, 4, None), (1_234, 4, None), (125, 3, None),
    ],
)  # fmt: skip
def test_what_looks_divided(frequency, n_envs, whole):
    assert divided_by_hand(frequency, n_envs) == whole


def test_ordinary_frequencies_never_look_divided():
    ordinary = [digits * power for digits in (1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 8) for power in (1_000, 10_000, 1_000_000)]
    ordinary += [500, 2_048, 1_024, 4_096, 8_192, 16_384, 1_536, 20_480]
    assert not [(x, n) for x in map(int, ordinary) for n in range(1, 501) if divided_by_hand(x, n)]


def test_a_divided_frequency_warns_once(tmp_path):
    saver, evaluation = CheckpointCallback(125, tmp_path), EvalCallback(FUSED, eval_freq=1, verbose=0)
    with pytest.warns(UserWarning, match=r"save_freq=125 counts environment steps.*1,000 // 8.*undivided"):
        saver.init_callback(Stub(8))
    with pytest.warns(UserWarning, match="eval_freq=1 counts environment steps.*every vector step"):
        evaluation.init_callback(Stub(8))
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        saver.init_callback(Stub(8))
        evaluation.init_callback(Stub(8))
        # At events 1 means each of them, and `n_steps` counts environment steps in SB3 too.
        EveryNTimesteps(125, CheckpointCallback(1, tmp_path)).init_callback(Stub(8))
        CheckpointCallback(10_000, tmp_path).init_callback(Stub(8))
    assert not again


# -- evaluation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("env", [HOST, FUSED])
def test_evaluations_are_those_of_evaluate_policy(tmp_path, env, seeds):
    """Numbers, log rows, files: beside a direct evaluation at the same step of the same model."""
    direct, means = [], []

    def beside(local, _):
        model = local["self"]
        if len(evaluation.evaluations_timesteps) > len(direct):
            played = [
                evaluate_policy(model, env, 3, return_episode_rewards=True, seed_index=s) for s in range(seeds)
            ]
            direct.append((model.num_timesteps, *(np.array([p[k] for p in played]) for k in (0, 1))))
            means.append(evaluate_seeds(model, env, 3).mean())

    evaluation = EvalCallback(
        env, n_eval_episodes=3, eval_freq=20, log_path=tmp_path, best_model_save_path=tmp_path / "best", verbose=0
    )
    model = PPO("MlpPolicy", env, n_envs=2, seeds=seeds, **SMALL | {"learning_rate": 0.01})
    model.set_logger(configure(tmp_path / "log", ["json"]))
    model.learn(64, callback=[evaluation, beside], log_interval=None)
    model.logger.close()

    steps = [step for step, _, _ in direct]
    assert steps == ([20, 40, 60] if env == HOST else steps) and len(steps) >= 2
    with np.load(tmp_path / "evaluations.npz") as file:
        assert sorted(file) == ["ep_lengths", "results", "timesteps"]
        assert file["timesteps"].tolist() == evaluation.evaluations_timesteps == steps
        shape = (len(steps), 3) if seeds == 1 else (len(steps), seeds, 3)
        for name, column in (("results", 1), ("ep_lengths", 2)):
            assert file[name].shape == shape
            expected = np.array([row[column] for row in direct]).reshape(shape)
            assert np.array_equal(np.sort(file[name]), np.sort(expected))
    assert evaluation.last_mean_reward == pytest.approx(means[-1])
    assert evaluation.best_mean_reward == pytest.approx(max(means))
    rows = [json.loads(line) for line in (tmp_path / "log" / "progress.json").read_text().splitlines()]
    assert [row["time/total_timesteps"] for row in rows] == steps
    assert [row["eval/mean_reward"] for row in rows] == pytest.approx(means)
    assert [row["eval/mean_ep_length"] for row in rows] == pytest.approx(means)  # CartPole pays 1 a step
    assert "eval/success_rate" not in rows[0]

    best = PPO.load(tmp_path / "best" / "best_model.zip")
    assert best.num_seeds == seeds and best.num_timesteps == steps[int(np.argmax(means))]
    assert evaluate_seeds(best, env, 3).mean() == pytest.approx(max(means))


@pytest.mark.parametrize("env", [HOST, FUSED])
@pytest.mark.parametrize("face", [PPO, DQN])
def test_training_does_not_notice_an_evaluation(face, env):
    kwargs = SMALL if face is PPO else OFF_POLICY
    watched, alone = (face("MlpPolicy", env, n_envs=2, **kwargs) for _ in range(2))
    watched.learn(64, callback=EvalCallback(env, eval_freq=10, n_eval_episodes=2, deterministic=False, verbose=0))
    assert same(bits(watched), bits(alone.learn(64)))


def test_success_rate_and_what_is_printed(tmp_path, capsys):
    """`is_success` at the ends of episodes is logged, and kept in the file."""
    evaluation = EvalCallback(Countdown(), n_eval_episodes=4, eval_freq=8, log_path=str(tmp_path))
    model = PPO("MlpPolicy", lambda_env(2), **SMALL)
    model.set_logger(configure(tmp_path, ["json"]))
    model.learn(16, callback=evaluation, log_interval=None)
    model.logger.close()
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [row["eval/success_rate"] for row in rows] == [0.5, 0.5]
    with np.load(tmp_path / "evaluations.npz") as file:
        assert file["successes"].tolist() == [[0.0, 1.0, 0.0, 1.0]] * 2
        assert file["results"].tolist() == [[5.0] * 4] * 2 and file["ep_lengths"].dtype == np.int64
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "evaluation at step 8 (4 episodes): return 5.00 +/- 0.00, length 5.0 +/- 0.0, success rate 50.0%"
    assert out[1] == "a new best mean return" and len(out) == 3  # 5 again is no new best


def test_the_environment_in_training_is_copied():
    """As `evaluate_policy` does: evaluating on the very same object leaves training alone."""
    env = lambda_env(2)
    model = PPO("MlpPolicy", env, **SMALL).learn(32, callback=EvalCallback(env, eval_freq=8, verbose=0))
    assert same(bits(model), bits(PPO("MlpPolicy", lambda_env(2), **SMALL).learn(32)))


def test_an_adapted_environment_asks_for_its_threads_first(monkeypatch):
    """The callback may be made before the model, which is too late for that (see `platform`)."""
    asked = []
    monkeypatch.setattr(evaluation_module, "reserve_threads", asked.append)
    monkeypatch.setattr(evaluation_module, "_jax_env", lambda name: asked.append("made") or make_jax(name))
    EvalCallback(FUSED)
    assert asked == [FUSED, "made"]


def test_callbacks_of_an_evaluation(scripted):
    """On a new best one and after each; both are asked, also where the first one stops training."""
    best, after = Steps(), Steps()
    evaluation = scripted([1, 3, 2, 3, 4], callback_on_new_best=best, callback_after_eval=[after])
    assert drive(evaluation, [4, 8, 12, 16, 20]) == [True] * 5
    assert best.at == [4, 8, 20] and after.at == [4, 8, 12, 16, 20]
    assert best.parent is after.parent is evaluation
    assert best.locals["step"] == after.locals["step"] == 20
    assert best.events == after.events == ["start", "end"]
    assert (evaluation.best_mean_reward, evaluation.last_mean_reward) == (4.0, 4.0)

    after = Steps()
    evaluation = scripted([1, 2], callback_on_new_best=Steps(False), callback_after_eval=after)
    assert drive(evaluation, [4, 8]) == [False, False] and after.at == [4, 8]
    assert drive(scripted([1], callback_after_eval=lambda a, b: False), [4]) == [False]


def test_the_best_model_is_saved_at_each_new_best(scripted, tmp_path):
    model = Stub()
    drive(scripted([2, 1, 3], best_model_save_path=tmp_path), [1, 2, 3], model)
    assert model.saved == [str(tmp_path / "best_model.zip")] * 2


# -- when to stop -----------------------------------------------------------------------------------------


def test_stop_at_a_threshold(scripted, capsys):
    rule = StopTrainingOnRewardThreshold(200, verbose=1)
    evaluation = scripted([50, 199.9, 100, 200], callback_on_new_best=rule)
    assert drive(evaluation, [1, 2, 3, 4]) == [True, True, True, False]
    assert capsys.readouterr().out == "training stops: the mean return 200.00 has reached the threshold 200\n"


@pytest.mark.parametrize(
    "returns, most, least, stops",
    [
        # An evaluation that equals the best one is no improvement; a new best one starts the count anew.
        ([1, 1, 1, 1], 2, 0, 4),
        ([1, 0, 2, 0, 0, 0], 2, 0, 6),
        ([1, 0, 0, 2, 0, 0, 3], 2, 0, None),
        ([5, 4], 0, 0, 2),
        # The first three are not counted: the fourth is the first without improvement.
        ([9, 1, 1, 1, 1], 1, 3, 5),
    ],
)
def test_stop_without_improvement(scripted, returns, most, least, stops):
    rule = StopTrainingOnNoModelImprovement(most, least)
    answers = drive(scripted(returns, callback_after_eval=rule), list(range(1, len(returns) + 1)))
    assert answers == [n != stops for n in range(1, len(returns) + 1)]


def test_stop_without_improvement_says_so(scripted, capsys):
    drive(scripted([1, 1], callback_after_eval=StopTrainingOnNoModelImprovement(0, verbose=1)), [1, 2])
    assert capsys.readouterr().out == "training stops: no new best mean return in the last 1 evaluations\n"


@pytest.mark.parametrize("seeds", [1, 2])
def test_stop_after_episodes_on_the_host(seeds, capsys):
    """Episodes of 5 steps, 3 for each of 2 environments: 15 vector steps, in the middle of a chunk."""
    rule = StopTrainingOnMaxEpisodes(3, verbose=1)
    model = PPO("MlpPolicy", lambda_env(2), seeds=seeds, **SMALL).learn(1_000, callback=rule)
    assert model.num_timesteps == 30 and rule.n_episodes == 6 * seeds and rule.n_calls == 15
    assert f"step 30: {6 * seeds} episodes" in capsys.readouterr().out
    # What was collected is kept: the chunk goes on where it was left.
    model.learn(6, reset_num_timesteps=False)
    assert model.num_timesteps == 36
    # All calls count together, as in SB3.
    model.learn(100, callback=rule, reset_num_timesteps=False)
    assert model.num_timesteps == 38


@pytest.mark.parametrize("seeds", [1, 2])
def test_stop_after_episodes_on_jax_environments(seeds):
    rule = StopTrainingOnMaxEpisodes(3)
    model = PPO("MlpPolicy", FUSED, n_envs=2, seeds=seeds, **SMALL).learn(1_000_000, callback=rule)
    assert model.num_timesteps < 1_000_000
    assert rule.n_episodes == model._driver.episodes() >= 6 * seeds


@pytest.mark.parametrize("env", [HOST, FUSED])
def test_an_evaluation_stops_training(env):
    rule = StopTrainingOnRewardThreshold(1)
    evaluation = EvalCallback(env, callback_on_new_best=rule, eval_freq=20, n_eval_episodes=1, verbose=0)
    model = PPO("MlpPolicy", env, n_envs=2, **SMALL).learn(100_000, callback=evaluation)
    assert model.num_timesteps == evaluation.evaluations_timesteps[0] < 100_000
    assert env == FUSED or model.num_timesteps == 20


# -- events, logs, progress -----------------------------------------------------------------------------


def test_an_event_callback_of_your_own():
    class Even(EventCallback):
        def _on_step(self):
            return self._on_event() if self.n_calls % 2 == 0 else True

    inner = Steps()
    assert drive(Even(inner), [1, 2, 3, 4]) == [True] * 4 and inner.at == [2, 4]
    assert drive(Even(lambda a, b: False), [1, 2]) == [True, False]
    assert drive(Even(), [1, 2]) == [True, True] and drive(EventCallback(inner), [1, 2]) == [True, True]


def test_events_within_lists_and_events(tmp_path):
    """SB3's idiom: `save_freq=1` inside another frequency saves at each of its events."""
    model = Stub(4)
    inner = EveryNTimesteps(8, CallbackList([CheckpointCallback(1, tmp_path)]))
    drive(CallbackList([[inner]]), [4, 8, 12, 16], model)
    assert [path.rpartition("_model_")[2] for path in model.saved] == ["8_steps.zip", "16_steps.zip"]


def test_rows_of_the_log_by_environment_steps(tmp_path):
    model = PPO("MlpPolicy", lambda_env(2), **SMALL)
    model.set_logger(configure(tmp_path, ["json"]))
    model.learn(64, callback=LogEveryNTimesteps(24), log_interval=None)
    model.logger.close()
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [row["time/total_timesteps"] for row in rows] == [24, 48]
    # Two updates between the rows, and the last one's metrics.
    assert [row["time/iterations"] for row in rows] == [1, 2]
    assert all("rollout/ep_rew_mean" in row and "train/loss" in row for row in rows)
    with pytest.raises(ValueError, match="callback of learn"):
        model.dump_logs()


@pytest.mark.parametrize("env", [HOST, FUSED])
def test_the_progress_bar(env, capsys):
    model = PPO("MlpPolicy", env, n_envs=2, seeds=2, **SMALL)
    model.learn(16)
    model.learn(32, callback=ProgressBarCallback(), reset_num_timesteps=False, progress_bar=True)
    assert "PPO: 32/32" in capsys.readouterr().err.splitlines()[-1]
    assert progress._active is None


# -- what goes wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [HOST, FUSED])
def test_a_callback_that_raises(env):
    """Training stops with the callback's own exception; bars are closed; the model predicts, saves, goes on."""

    def broken(local, _):
        if local["self"].num_timesteps >= 20:
            raise RuntimeError("the user's own")

    steps, model = Steps(), PPO("MlpPolicy", env, n_envs=2, **SMALL)
    with pytest.raises(RuntimeError, match="the user's own") as caught:
        model.learn(1_000_000, callback=[ProgressBarCallback(), EveryNTimesteps(1, [steps, broken])])
    assert any(entry.name == "broken" for entry in caught.traceback)
    assert steps.events == ["start", "end"] and progress._active is None
    at = model.num_timesteps
    assert at == steps.at[-1] >= 20 and (env == FUSED or at == 20)
    model.predict(np.zeros(4, np.float32))
    model.learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == at + 40
    if env == HOST:  # what was collected is kept: the bits of an unbroken run to the same horizon
        unbroken = PPO("MlpPolicy", env, n_envs=2, **SMALL).learn(at + 40)
        assert same(bits(model), bits(unbroken))


def test_a_callback_that_raises_at_the_start_closes_the_others():
    class Broken(Steps):
        def _on_training_start(self):
            raise RuntimeError("the user's own")

    first = Steps()
    with pytest.raises(RuntimeError, match="the user's own"):
        drive(CallbackList([first, ProgressBarCallback(), Broken()]), [1])
    assert first.events == ["start", "end"] and progress._active is None


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EvalCallback(FUSED, eval_freq=0), "eval_freq=0 .*at least 1"),
        (lambda: EvalCallback(FUSED, eval_freq=2.5), "eval_freq=2.5 .*whole number"),
        (lambda: EvalCallback(FUSED, n_eval_episodes=0), "n_eval_episodes=0 .*at least 1"),
        (lambda: EvalCallback("CartPoel-v1"), "did you mean CartPole-v1"),
        (lambda: CheckpointCallback(-1, "x"), "save_freq=-1 .*at least 1"),
        (lambda: CheckpointCallback(1, "x", "a/b"), "name_prefix='a/b' .*save_path"),
        (lambda: EveryNTimesteps(0, None), "n_steps=0 .*at least 1"),
        (lambda: LogEveryNTimesteps(0), "n_steps=0 .*at least 1"),
        (lambda: StopTrainingOnMaxEpisodes(0), "max_episodes=0 .*at least 1"),
        (lambda: StopTrainingOnNoModelImprovement(-1), "max_no_improvement_evals=-1 .*at least 0"),
        (lambda: StopTrainingOnNoModelImprovement(1, -1), "min_evals=-1 .*at least 0"),
        (lambda: StopTrainingOnRewardThreshold(float("nan")), "reward_threshold=nan"),
    ],
)
def test_bad_input_is_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_wrong_kinds_are_refused_at_once():
    with pytest.raises(TypeError, match="env is a dict: give an id"):
        EvalCallback({})
    with pytest.raises(TypeError, match="class Steps: give an instance"):
        EventCallback(Steps)


def test_what_can_only_be_seen_at_the_start(tmp_path):
    """Before anything is trained."""
    model = PPO("MlpPolicy", lambda_env(2), **SMALL)
    for callback, message in [
        (EvalCallback(HOST), "observation space .* evaluate on an environment of the same spaces"),
        (StopTrainingOnRewardThreshold(1), r"no EvalCallback triggers it.*callback_on_new_best=StopTrainingOnRew"),
        (EveryNTimesteps(8, StopTrainingOnNoModelImprovement(1)), r"callback_after_eval=StopTrainingOnNoModel"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.learn(16, callback=callback)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        model.learn(16, callback=CheckpointCallback(8, tmp_path / "file"))
    assert model.num_timesteps == 0


def test_they_can_be_imported_as_from_sb3():
    for name in ready_callbacks.__all__:
        assert getattr(callbacks, name) is getattr(advantage, name) is getattr(ready_callbacks, name)
        assert name in callbacks.__all__ and name in advantage.__all__
    with pytest.raises(AttributeError, match="no attribute 'EvalCalback'"):
        _ = callbacks.EvalCalback


SCRIPT = """
import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback, CallbackList, CheckpointCallback, EvalCallback, EveryNTimesteps, ProgressBarCallback,
    StopTrainingOnMaxEpisodes, StopTrainingOnNoModelImprovement, StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env

train_env, eval_env = make_vec_env("CartPole-v1", n_envs=2, seed=0), make_vec_env("CartPole-v1", n_envs=1, seed=1)
stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=3, min_evals=5, verbose=1)
good = StopTrainingOnRewardThreshold(reward_threshold=500, verbose=1)
evaluation = EvalCallback(
    eval_env, callback_on_new_best=good, callback_after_eval=stop, eval_freq=32, n_eval_episodes=2,
    log_path="./logs/", best_model_save_path="./logs/best_model", deterministic=True, render=False, warn=False,
)
saving = CheckpointCallback(save_freq=32, save_path="./checkpoints/", name_prefix="ppo")
rare = EveryNTimesteps(n_steps=64, callback=CheckpointCallback(save_freq=1, save_path="./rare/"))
callback = CallbackList([evaluation, saving, rare, StopTrainingOnMaxEpisodes(max_episodes=1000)])
model = PPO("MlpPolicy", train_env, n_steps=16, batch_size=16, n_epochs=1, seed=0)
model.learn(128, callback=callback)
file = np.load("logs/evaluations.npz")
best = PPO.load("logs/best_model/best_model")
"""


def test_a_script_for_sb3_runs_with_its_imports_swapped(tmp_path, monkeypatch):
    """The same files by the same names; each frequency of 32 is half as long here with two environments."""
    swaps = {
        "stable_baselines3.common.callbacks": "advantage.training.callbacks",
        "stable_baselines3.common.env_util": "advantage",
        "stable_baselines3": "advantage",
    }
    script = SCRIPT
    for theirs, ours in swaps.items():
        script = script.replace(f"from {theirs} import", f"from {ours} import")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(script, "script.py", "exec"), namespace)
    assert names(tmp_path / "checkpoints") == {f"ppo_{step}_steps.zip" for step in (32, 64, 96, 128)}
    assert names(tmp_path / "rare") == {"rl_model_64_steps.zip", "rl_model_128_steps.zip"}
    with namespace["file"] as file:
        assert file["timesteps"].tolist() == [32, 64, 96, 128] and file["results"].shape == (4, 2)
    assert namespace["best"].num_timesteps in (32, 64, 96, 128)
