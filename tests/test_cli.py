"""The command line: what it prints, what it writes, and how it fails."""

import csv
import json
import shlex
import subprocess
import sys

import pytest

from advantage import PPO, cli, preset
from advantage.experiments.cost import Cost
from advantage.experiments.preset import presets
from advantage.models import ALGORITHMS

SMALL = "--set n_steps=16 batch_size=32 n_epochs=2 --total-timesteps 64"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs a command line in an empty folder: `(exit code, stdout, stderr)`."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(line))
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A model file of two seeds."""
    path = tmp_path_factory.mktemp("model") / "model.zip"
    small = {"n_steps": 16, "batch_size": 32, "n_epochs": 2}
    PPO("MlpPolicy", "advantage/CartPole-v1", n_envs=2, seeds=2, seed=3, **small).learn(64).save(path)
    return path


def refused(answer: tuple[int, str, str]) -> str:
    """The one line on stderr of a command that failed."""
    code, out, err = answer
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0 and all(command in out for command in ("train", "compare", "ablate", "evaluate", "watch"))
    assert run("")[:2] == (0, out)
    code, out, _ = run("train --help")
    assert code == 0 and "NAME=VALUE" in out and "--total-timesteps" in out


def test_train(run, tmp_path):
    code, out, err = run(f"train ppo CartPole-v1 --n-envs 2 --seeds 2 --seed 4 --out here {SMALL}")
    assert code == 0, err
    rows = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == ["4", "5", "IQM"]
    assert "steps/s" in out and "here/model.zip" in out
    assert "64/64" in err  # progress
    model = PPO.load(tmp_path / "here" / "model.zip")
    assert (model.num_timesteps, model.num_seeds, model.seed, model.n_epochs) == (64, 2, 4, 2)
    with open(tmp_path / "here" / "progress.csv", encoding="utf-8") as progress:
        assert [row["time/total_timesteps"] for row in csv.DictReader(progress)] == ["32", "64"]


def test_train_logs_where_it_is_told(run, tmp_path):
    """Besides progress.csv; an unknown format is named before any training."""
    code, _, err = run(f"train ppo CartPole-v1 --n-envs 2 --out here --log json tensorboard {SMALL}")
    assert code == 0, err
    assert len((tmp_path / "here" / "progress.json").read_text().splitlines()) == 2
    assert list((tmp_path / "here").glob("events.out.tfevents*"))
    code, _, err = run(f"train ppo CartPole-v1 --n-envs 2 --out there --log jsn {SMALL}")
    assert code == 2 and "unknown log format 'jsn': expected one of stdout, log, csv, json" in err
    assert not (tmp_path / "there").exists()


def test_train_numbers_its_folders_and_prints_tables(run, tmp_path):
    line = f"train PPO advantage/CartPole-v1 --n-envs 2 --verbose {SMALL}"
    assert "| train/ " in run(line)[1]
    assert run(line)[0] == 0
    names = [path.name for path in sorted((tmp_path / "runs").iterdir())]
    assert names == ["PPO_advantage-CartPole-v1_1", "PPO_advantage-CartPole-v1_2"]


@pytest.fixture
def untrained(monkeypatch):
    """PPO that only says what it was asked for: `{"fields": ..., "total_timesteps": ...}`."""
    seen = {}

    class Untrained(PPO):
        def __init__(self, policy, env=None, **fields):
            seen["fields"] = fields
            super().__init__(policy, env, **fields)

        def learn(self, total_timesteps, **options):
            seen["total_timesteps"] = total_timesteps
            return self

    Untrained.__name__ = "PPO"
    monkeypatch.setitem(ALGORITHMS, "PPO", Untrained)
    return seen


def test_a_preset_is_used_and_shown(run, untrained):
    code, out, err = run("train ppo CartPole-v1")
    assert code == 0, err
    expected = preset("PPO", "CartPole-v1")
    assert untrained["fields"] == {**expected.settings, "seed": 0, "seeds": 1}
    assert untrained["total_timesteps"] == expected.total_timesteps == 100_000
    said = " ".join(out.split())
    assert said.startswith(f"preset PPO CartPole-v1, {expected.status} n_envs=8, n_steps=32, ")
    assert said.endswith("ent_coef=0.0; 100,000 steps; --no-preset refuses it")


def test_the_users_options_win_over_the_preset(run, untrained):
    code, out, err = run("train ppo CartPole-v1 --n-envs 2 --set n_steps=128 gamma=0.5 vf_coef=1 --total-timesteps 64")
    assert code == 0, err
    fields = untrained["fields"]
    assert (fields["n_envs"], fields["n_steps"], fields["gamma"], fields["vf_coef"]) == (2, 128, 0.5, 1)
    assert fields["gae_lambda"] == 0.8 and untrained["total_timesteps"] == 64
    said = " ".join(out.split())
    assert "n_envs=2 (yours), n_steps=128 (yours), batch_size=256, " in said and "gamma=0.5 (yours)" in said
    assert "64 steps in place of the preset's 100,000" in said


@pytest.mark.parametrize("line", ["train ppo CartPole-v1 --no-preset", "train ppo advantage/ProbeMatch-v0"])
def test_without_a_preset_there_are_defaults(run, untrained, line):
    code, out, err = run(line)
    assert code == 0, err
    assert untrained == {"fields": {"seed": 0, "seeds": 1}, "total_timesteps": 100_000} and "preset" not in out


def test_n_envs_may_be_a_setting(run, untrained):
    assert run("train ppo CartPole-v1 --set n_envs=16")[0] == 0
    assert untrained["fields"]["n_envs"] == 16


def test_where_a_preset_is_in_the_way_it_is_named(run):
    said = refused(run("train ppo CartPole-v1 --n-envs 4"))
    assert "batch_size=256 is larger than the rollout" in said
    assert said.endswith("(from the preset PPO CartPole-v1: override it with --set, or give --no-preset)\n")
    assert "preset" not in refused(run("train ppo CartPole-v1 --set vf_coef=high"))


def test_presets(run):
    code, out, _ = run("presets")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    rows = [line.split() for line in out.splitlines()]
    assert ["PPO", "LunarLander-v3", "1,000,000", "unverified"] in rows
    assert any(row[:5] == ["PPO", "CartPole-v1", "100,000", "500.0", "(498.4"] for row in rows)
    assert len(rows) == 1 + len(presets())


def test_suggest(run, monkeypatch):
    cost = Cost(50_000, 2, 100.0, 4.0, 1040.0, 500_000_000, 80_000_000, 120_000, "cpu")
    monkeypatch.setattr("advantage.experiments.suggest.env_speed", lambda *_: 90_000.0)
    monkeypatch.setattr("advantage.experiments.suggest.estimate", lambda *_, **__: cost)
    code, out, err = run("suggest CartPole-v1 --budget 50000 --seeds 2 --algorithm dqn")
    assert code == 0, err
    rows = [" ".join(line.strip("│").split()) for line in out.splitlines()]
    said = " ".join(rows)
    assert rows[0] == "DQN on CartPole-v1" and "│ 90,000 steps/s on its own" in said
    assert "1.7 minutes (4.0 seconds of it to compile, then 1,040" in said
    assert "500 MB, of it 80 MB replay" in said and "50,000 steps for each of 2 seeds" in said
    assert "not PPO │ possible" in said and "advantage train DQN CartPole-v1 --seeds 2" in said
    assert max(map(len, out.splitlines())) <= 80
    found = json.loads(run("suggest CartPole-v1 --json")[1])
    assert found["algorithm"] == "PPO" and found["cost"]["seconds"] == 100.0
    assert found["command"].startswith("advantage train PPO CartPole-v1")


def test_normalize(run, tmp_path):
    """The flag, and settings in its place."""
    for given, reward in (("--normalize", True), ("--set 'normalize={\"norm_reward\": false}'", False)):
        code, _, err = run(f"train ppo CartPole-v1 --n-envs 2 --out here {given} {SMALL}")
        assert code == 0, err
        assert PPO.load(tmp_path / "here" / "model.zip").normalize["norm_reward"] == reward
    assert run("evaluate here/model.zip --episodes 2")[0] == 0
    said = refused(run(f"train ppo CartPole-v1 --set 'normalize={{\"x\": 1}}' {SMALL}"))
    assert "normalisation has no setting 'x'" in said


def test_settings():
    texts = [
        "learning_rate=lin_1e-3", "n-steps=32", "gamma=.9", "use_sde=false", "target_kl=None",
        "normalize_advantage=True",
        'policy_kwargs={"net_arch": {"pi": [8], "vf": [16]}, "ortho_init": false}', "policy=a=b",
    ]  # fmt: skip
    assert cli._settings(texts) == {
        "learning_rate": "lin_1e-3",
        "n_steps": 32,
        "gamma": 0.9,
        "use_sde": False,
        "target_kl": None,
        "normalize_advantage": True,
        "policy_kwargs": {"net_arch": {"pi": [8], "vf": [16]}, "ortho_init": False},
        "policy": "a=b",
    }


def test_settings_may_be_repeated(run, tmp_path):
    more = """--set gamma=0.5 --set 'policy_kwargs={"net_arch": [4]}'"""
    assert run(f"train PPO CartPole-v1 --n-envs 2 --out x {SMALL} {more}")[0] == 0
    model = PPO.load(tmp_path / "x" / "model.zip")
    assert model.gamma == 0.5 and model.n_steps == 16 and model.net_arch.pi == (4,)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train PPOO CartPole-v1", "did you mean PPO?"),
        ("train XYZ CartPole-v1", "choose from DQN, DoubleDQN, DuelingDQN, C51, QRDQN, IQN, Rainbow, PPO"),
        ("train PPO CartPol-v1", "did you mean CartPole-v1"),
        ("train PPO advantage/Cartpole-v1", "nearest: advantage/CartPole-v1"),
        ("train DQN Pendulum-v1", "DQN cannot choose actions from a box space"),
        ("train PPO CartPole-v1 --set n_step=3", "did you mean 'n_steps'?"),
        ("train PPO CartPole-v1 --set gamma=high", "gamma"),
        ("train PPO CartPole-v1 --set gamma", "write name=value"),
        ("train PPO CartPole-v1 --set policy=MlpPolcy", "MlpPolicy"),
        ("train PPO CartPole-v1 --set policy_kwargs={net_arch:", "is no list or dict"),
        ("train PPO CartPole-v1 --total-timesteps 0", "at least 1"),
        ("compare PPO DQM --env CartPole-v1", "did you mean DQN?"),
        ("compare PPO PPO --env CartPole-v1", "names one twice: name each once"),
        ("compare PPO DQN --env Pendulum-v1", "DQN cannot choose actions from a box space"),
        ("compare PPO --env CartPole-v1 --total-timesteps 0", "total_timesteps=0 has to be a whole number"),
        ("compare PPO --env CartPole-v1 --set DQN.gamma=0.5", "--set DQN.gamma: DQN is not compared"),
        ("compare PPO --env CartPole-v1 --set PPO.n_step=3", "did you mean 'n_steps'?"),
        ("compare PPO --total-timesteps 64", "--env ID is missing"),
        ("ablate PPO CartPole-v1", "algorithm='PPO' is not made of parts: choose from Rainbow"),
        ("ablate Rainbow CartPol-v1", "did you mean CartPole-v1"),
        ("ablate Rainbow CartPole-v1 --set v_min=5 v_max=5", "v_min=5.0 has to be less than v_max=5.0"),
        ("compare PPO --env CartPole-v1 --env CartPole-v1", "has to be a list of ids, each once"),
        ("compare PPO --env CartPole-v0 --presets", "there are some for CartPole-v1"),
        ("suggest CartPol-v1", "did you mean CartPole-v1"),
        ("suggest CartPole-v1 --algorithm DQM", "did you mean DQN?"),
        ("suggest CartPole-v1 --budget 0", "budget=0 has to be a whole number"),
        ("evaluate nothing.zip", "no model file at nothing.zip"),
    ],
)
def test_errors_are_one_line(run, tmp_path, line, said):
    assert said in refused(run(line))
    assert not list(tmp_path.iterdir())


def test_arguments_that_do_not_parse(run):
    for line in ("trian PPO CartPole-v1", "train PPO", "train PPO CartPole-v1 --seeds many"):
        code, out, err = run(line)
        assert code == 2 and out == "" and err


def test_debug_shows_where(run):
    code, _, err = run("evaluate nothing.zip --debug")
    assert code == 2 and "Traceback" in err and "error: no model file" in err


def test_an_unexpected_error_names_its_kind(run, monkeypatch, file):
    def broken(path):
        raise KeyError("odd")

    monkeypatch.setattr("advantage.training.files.read_model", broken)
    assert "KeyError: 'odd' (--debug shows where)" in refused(run(f"evaluate {file}"))


def test_a_stopped_run_is_saved(run, monkeypatch, tmp_path):
    class Stopped(PPO):
        def learn(self, total_timesteps, **options):
            super().learn(total_timesteps // 2, **options)
            raise KeyboardInterrupt

    Stopped.__name__ = "PPO"
    monkeypatch.setitem(ALGORITHMS, "PPO", Stopped)
    code, out, err = run(f"train PPO CartPole-v1 --n-envs 2 --out here {SMALL}")
    assert code == 130 and "stopped at 32 of 64 steps" in err and "saved here/model.zip" in out
    assert PPO.load(tmp_path / "here" / "model.zip").num_timesteps == 32


def test_compare(run, tmp_path):
    line = "compare PPO --env advantage/CartPole-v1 --evaluations 2 --n-eval-episodes 2 --set n_envs=2"
    code, out, err = run(f"{line} --seeds 2 --set PPO.n_steps=16 ppo.batch_size=32 --total-timesteps 64")
    assert code == 0, err
    assert "PPO on advantage/CartPole-v1" in out and "none: 2 seeds, at least 3 needed" in out
    assert "PPO: n_envs=2, n_steps=16, batch_size=32." in out
    assert "saved runs/compare_advantage-CartPole-v1: report.md" in out
    folder = tmp_path / "runs" / "compare_advantage-CartPole-v1"
    assert (folder / "results.jsonl").exists() and (folder / "sample_efficiency.png").exists()
    assert "total_timesteps=100000, but the results in" in refused(run(line))


def test_compare_on_several_environments(run, tmp_path):
    line = "compare PPO --env advantage/CartPole-v1 --env advantage/ProbeMatch-v0 --evaluations 1 --n-eval-episodes 2"
    code, out, err = run(f"{line} --seeds 1 --set n_steps=16 batch_size=16 --total-timesteps 32")
    assert code == 0, err
    assert "PPO on 2 environments" in out and "## Over 2 environments" in out
    assert (tmp_path / "runs" / "compare_advantage-CartPole-v1_advantage-ProbeMatch-v0" / "intervals.png").exists()


def test_evaluate(run, file):
    code, out, _ = run(f"evaluate {file} --episodes 4")
    assert code == 0 and "PPO on advantage/CartPole-v1" in out and "IQM" in out
    lines = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line[1:3]] for line in lines] == [["3", "4"], ["4", "4"], ["IQM", "8"]]
    assert "PPO on CartPole-v1" in run(f"evaluate {file} --env CartPole-v1 --episodes 2 --stochastic")[1]
    assert "env's observation space" in refused(run(f"evaluate {file} --env advantage/Pendulum-v1"))


def test_evaluate_a_file_without_an_environment(run, file, tmp_path):
    model = PPO.load(file)
    model.env_id = None
    model.save(tmp_path / "unknown.zip")
    assert "add --env ID" in refused(run("evaluate unknown.zip"))
    (tmp_path / "text.zip").write_text("no model")
    assert "not an advantage model" in refused(run("evaluate text.zip"))


def test_watch(run, file, tmp_path, monkeypatch):
    from PIL import Image

    code, out, _ = run(f"watch {file} --gif films/one.gif --max-steps 20 --seed-index 1")
    assert code == 0 and "saved films/one.gif" in out
    with Image.open(tmp_path / "films" / "one.gif") as film:
        assert film.n_frames > 3
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert "no display for a window: write a film with --gif" in refused(run(f"watch {file}"))


def test_watch_in_a_window(run, file, monkeypatch):
    """On SDL's dummy driver: it plays until the window is closed."""
    pygame = pytest.importorskip("pygame")
    shown = []

    def get():
        shown.append(pygame.display.get_caption()[0])
        return [pygame.event.Event(pygame.QUIT)] if len(shown) == 3 else []

    monkeypatch.setattr(pygame.event, "get", get)
    assert run(f"watch {file}")[0] == 0
    assert shown == ["episode 1: return 0", "episode 1: return 1", "episode 1: return 2"]


def test_algorithms(run):
    code, out, _ = run("algorithms")
    assert code == 0 and all(name in out for name in ALGORITHMS)
    assert max(map(len, out.splitlines())) <= 80
    assert "arXiv:1707.06347" in out and "off-policy" in out and "multi_binary" in out
    assert all(f"arXiv:{paper}" in out for paper in ("1509.06461", "1511.06581", "1710.02298", "1806.06923"))


def test_a_walker_by_its_preset(run, tmp_path, monkeypatch):
    """MuJoCo: the preset is found by the id; where MuJoCo can draw, the film is written."""
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    small = """--set learning_starts=20 batch_size=8 buffer_size=100 'policy_kwargs={"net_arch": [8]}'"""
    code, out, err = run(f"train SAC HalfCheetah-v5 --total-timesteps 40 --seed 1 --out walker {small}")
    assert code == 0, err
    assert "preset" in out
    # In a process of its own, as from a shell: MuJoCo chooses how to draw when it is imported.
    command = "from advantage.cli import main; raise SystemExit(main())"
    watch = [sys.executable, "-c", command, "watch", "walker/model.zip", "--gif", "walker.gif", "--max-steps", "5"]
    done = subprocess.run(watch, capture_output=True, text=True, timeout=300)
    if done.returncode and "GL" in done.stderr:
        pytest.skip(f"MuJoCo cannot draw here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "walker.gif").stat().st_size > 1000
