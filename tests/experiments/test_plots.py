"""Pictures: drawn without warnings, of the right size, readable; films small, looping and at true speed."""

import sys

import numpy as np
import pytest

from advantage.experiments.plots import learning_curve, paid_and_true, profile_picture, save_gif, step_label


def cartpole_like(count, height=400, width=600):
    """Frames with a moving cart and a turning pole, in few colours, as CartPole draws them."""
    frames = []
    rows, columns = np.mgrid[:height, :width]
    for index in range(count):
        frame = np.full((height, width, 3), 255, np.uint8)
        centre = width / 2 + 0.3 * width * np.sin(index / 17)
        frame[299:301] = 0
        frame[(np.abs(columns - centre) < 25) & (np.abs(rows - 300) < 15)] = 0
        along = 300 - rows
        pole = (np.abs(columns - centre - np.sin(index / 5) * along) < 5) & (along > 0) & (along < 125)
        frame[pole] = (202, 152, 101)
        frames.append(frame)
    return frames


def total_duration(image):
    total = 0
    for index in range(image.n_frames):
        image.seek(index)
        total += image.info["duration"]
    return total


@pytest.mark.parametrize("seeds, points", [(1, 20), (8, 20), (2, 1)])
@pytest.mark.parametrize("reference", [None, 475.0, {"solved": 475.0, "random": 20.0}])
def test_learning_curve_is_a_png(tmp_path, seeds, points, reference):
    pytest.importorskip("matplotlib")
    image_module = pytest.importorskip("PIL.Image")
    path = tmp_path / "made" / "curve.png"
    steps = np.arange(points) * 10_000
    returns = np.random.default_rng(0).normal(size=(seeds, points))
    learning_curve({"PPO": (steps, returns), "DQN": (steps, returns + 1)}, path, "CartPole-v1", reference)
    with image_module.open(path) as image:
        assert image.format == "PNG" and image.size == (1600, 960)
        assert len(image.convert("RGB").getcolors(10**6)) > 10


def test_learning_curve_draws_iqm_band_seeds_and_reference(tmp_path, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    returns = np.array([[0.0, 10.0], [1.0, 10.0], [2.0, np.nan], [30.0, np.nan]])
    learning_curve({"PPO": ([0, 1000], returns)}, tmp_path / "x.png", "title", {"solved": 20})
    (axes,) = drawn[0].axes
    lines = axes.get_lines()
    assert len(lines) == 4 + 1 + 1
    np.testing.assert_array_equal(lines[4].get_ydata(), [1.5, 10.0])
    assert lines[5].get_ydata()[0] == 20
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() >= 0.0 and band[:, 1].max() <= 30.0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["PPO", "solved"]


def test_shaped_over_true_returns(tmp_path, monkeypatch):
    """Two panels a run; true returns on one scale, and the window shaded in its own column."""
    figure_module = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    steps, shaped, true = [0, 500, 1000], np.array([[1.0, 2.0, 3.0]]), np.array([[5.0, 4.0, np.nan]])
    runs = {"hacked": (steps, shaped, true), "not": (steps, 10 * shaped, -10 * true)}
    paid_and_true(runs, tmp_path / "x.png", "title", {"hacked": (500, 1000)})
    axes = drawn[0].axes
    assert len(axes) == 4
    lines = [one.get_lines()[0].get_ydata() for one in axes]
    np.testing.assert_array_equal(lines, [shaped[0], 10 * shaped[0], true[0], -10 * true[0]])
    assert axes[2].get_ylim() == axes[3].get_ylim() and axes[0].get_ylim() != axes[1].get_ylim()
    assert [len(one.patches) for one in axes] == [1, 0, 1, 0]
    assert "1 seed" in drawn[0]._suptitle.get_text()
    with pytest.raises(ValueError, match="at least one run"):
        paid_and_true({}, tmp_path / "x.png", "title")


def test_two_seeds_have_no_band(tmp_path, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    learning_curve({"PPO": ([0, 1], [[1.0, 2.0], [3.0, 4.0]])}, tmp_path / "x.png", "title")
    profile_picture({"PPO": [1.0, 2.0]}, tmp_path / "x.png", "title")
    for figure in drawn:
        (axes,) = figure.axes
        assert not any(len(path.vertices) for band in axes.collections for path in band.get_paths())
        assert "too few for an interval (at least 3)" in axes.texts[0].get_text()


def test_profile_picture_falls_at_the_scores(tmp_path, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    profile_picture({"PPO": [10.0, 20.0, 20.0, 30.0], "DQN": [5.0, 10.0, 15.0]}, tmp_path / "x.png", "title")
    (axes,) = drawn[0].axes
    line = axes.get_lines()[0]
    assert line.get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(line.get_xdata()[1:-1], [5, 10, 15, 20, 30])
    np.testing.assert_array_equal(line.get_ydata(), [1, 1, 0.75, 0.75, 0.25, 0, 0])
    assert axes.texts[0].get_text() == "3 to 4 seeds, 95% bootstrap interval"


@pytest.mark.parametrize("name, begin", [("x.png", b"\x89PNG"), ("x.svg", b"<?xml"), ("x.SVG", b"<?xml")])
def test_pictures_by_the_files_ending(tmp_path, name, begin):
    pytest.importorskip("matplotlib")
    learning_curve({"PPO": ([0, 1], [[1.0, 2.0]])}, tmp_path / "a" / name, "title")
    profile_picture({"PPO": [7.0, 7.0, 7.0]}, tmp_path / "b" / name, "title")
    assert all((tmp_path / folder / name).read_bytes().startswith(begin) for folder in "ab")


def test_profile_picture_refuses_nothing_and_nan(tmp_path):
    with pytest.raises(ValueError, match="at least one algorithm"):
        profile_picture({}, tmp_path / "x.png", "title")
    with pytest.raises(ValueError, match="scores is NaN"):
        profile_picture({"PPO": [1.0, np.nan, 2.0]}, tmp_path / "x.png", "title")


def test_learning_curve_survives_points_without_any_return(tmp_path):
    pytest.importorskip("matplotlib")
    returns = np.full((3, 5), np.nan)
    learning_curve({"empty": (np.arange(5), returns)}, tmp_path / "x.png", "title")
    returns[:, 3:] = 1.0
    learning_curve({"late": (np.arange(5), returns)}, tmp_path / "x.png", "title")


def test_learning_curve_takes_many_names(tmp_path):
    pytest.importorskip("matplotlib")
    curves = {f"algorithm number {index}": ([0, 1], [[0, index]]) for index in range(12)}
    learning_curve(curves, tmp_path / "x.png", "title")
    assert (tmp_path / "x.png").stat().st_size > 0


@pytest.mark.parametrize("steps, returns", [([0, 1], [1, 2]), ([0, 1], [[1, 2, 3]]), ([], [[]])])
def test_learning_curve_refuses_shapes_that_do_not_fit(tmp_path, steps, returns):
    with pytest.raises(ValueError, match=r"'PPO': expected steps \[points\]"):
        learning_curve({"PPO": (steps, returns)}, tmp_path / "x.png", "title")


def test_learning_curve_refuses_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least one curve"):
        learning_curve({}, tmp_path / "x.png", "title")


@pytest.mark.parametrize(
    "steps, label",
    [(0, "0"), (500, "500"), (50_000, "50k"), (2_500, "2.5k"), (1_500_000, "1.5M"), (2e9, "2B")],
)
def test_step_labels(steps, label):
    assert step_label(steps) == label


def test_gif_of_500_cartpole_frames_is_small_loops_and_keeps_its_speed(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    path = tmp_path / "made" / "agent.gif"
    save_gif(cartpole_like(100) * 5, path, fps=50)
    assert path.stat().st_size < 1_500_000
    with image_module.open(path) as image:
        assert image.info["loop"] == 0
        assert image.size == (480, 320)
        assert total_duration(image) == pytest.approx(10_000, abs=50)
        assert min(image.convert("RGB").getpixel((5, 5))) >= 250


def test_gif_keeps_fractional_speeds(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    save_gif(cartpole_like(60), tmp_path / "x.gif", fps=15)
    with image_module.open(tmp_path / "x.gif") as image:
        assert image.n_frames == 60
        assert total_duration(image) == 4_000


def test_gif_of_noise_is_brought_under_the_limit(tmp_path):
    pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (90, 250, 3), dtype=np.uint8) for _ in range(20)]
    save_gif(frames, tmp_path / "x.gif", fps=30, max_bytes=80_000)
    assert (tmp_path / "x.gif").stat().st_size <= 80_000


def test_gif_that_cannot_get_under_the_limit_is_written_anyway(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    save_gif(cartpole_like(10), tmp_path / "x.gif", fps=30, max_bytes=10)
    with image_module.open(tmp_path / "x.gif") as image:
        assert image.size[0] == 96


def test_gif_refuses_other_frames(tmp_path):
    good = np.zeros((4, 5, 3), np.uint8)
    bad = [[good.astype(np.float32)], [good[..., 0]], [good, good[:2]], [[[[0, 0, 0]]]]]
    for frames in bad:
        with pytest.raises(ValueError, match=r"frame \d: expected RGB"):
            save_gif(frames, tmp_path / "x.gif")
    with pytest.raises(ValueError, match="at least one frame"):
        save_gif([], tmp_path / "x.gif")
    with pytest.raises(ValueError, match="fps must be positive"):
        save_gif([good], tmp_path / "x.gif", fps=0)


def test_missing_packages_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    for call in (
        lambda: learning_curve({"PPO": ([0, 1], [[0, 1]])}, tmp_path / "x.png", "title"),
        lambda: save_gif([np.zeros((4, 5, 3), np.uint8)], tmp_path / "x.gif"),
    ):
        with pytest.raises(ImportError, match=r'pip install "advantage\[plot\]"') as error:
            call()
        assert "\n" not in str(error.value)
