"""LeRobotDataset v3.0: what was written is read again, through every split of files, and nothing else is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from dzedge.export import dataset_format as fmt
from dzedge.export import dataset_stats
from dzedge.export.dataset import Dataset, DatasetError, Writer
from dzedge.export.dataset_columns import to_numpy
from dzedge.export.video import Decoder, Encoder

WRIST, TOP = "observation.images.wrist", "observation.images.top"
SIZE = (32, 48)
FEATURES = {
    "action": {"dtype": "float32", "shape": (6,), "names": list("abcdef")},
    "observation.state": {"dtype": "float64", "shape": (6,), "names": None},
    "cubes": {"dtype": "float32", "shape": (2, 3), "names": None},
    "done": {"dtype": "bool", "shape": (1,), "names": None},
    "seed": {"dtype": "int64", "shape": (1,), "names": None},
    "note": {"dtype": "string", "shape": (1,), "names": None},
    WRIST: {"dtype": "video"},
    TOP: {"dtype": "video"},
}
LENGTHS = [7, 1, 12, 5, 9, 16, 3, 8]
TASKS = ["reach the red cube", "", "reach the red cube", "größer", "", "press", "press", "a/b"]


def numbered(first: int, count: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Pictures that carry their number: 12 bits, each a block of 8 x 8 pixels, black or white, over grey."""
    height, width = size
    images = np.full((count, height, width, 3), 120, np.uint8)
    for i, image in enumerate(images):
        for bit in range(12):
            row, column = 8 * (bit // 6), 8 * (bit % 6)
            image[row : row + 8, column : column + 8] = 235 if (first + i) >> bit & 1 else 20
    return images


def numbers(images: NDArray[np.uint8]) -> list[int]:
    bits = images[:, 4:16:8, 4:48:8, 1].reshape(len(images), 12) > 128
    return [int(row @ (1 << np.arange(12))) for row in bits]


def episode(e: int) -> tuple[dict[str, NDArray], dict[str, NDArray[np.uint8]], str]:
    rng = np.random.default_rng(e)
    n, first = LENGTHS[e], sum(LENGTHS[:e])
    columns = {
        "action": rng.normal(size=(n, 6)).astype(np.float32),
        "observation.state": rng.normal(size=(n, 6)),
        "cubes": rng.normal(size=(n, 2, 3)).astype(np.float32),
        "done": rng.random(n) < 0.3,
        "seed": rng.integers(0, 1 << 40, n),
        "note": np.array([f"row {i} ä" for i in range(n)], object),
    }
    return columns, {WRIST: numbered(first, n), TOP: numbered(4095 - first, n)[:, ::-1]}, TASKS[e]


def write(root: Path, *, fps: int = 10, **limits: float) -> Path:
    with Writer(root, FEATURES, fps, "so101", SIZE, **limits) as writer:
        for e in range(len(LENGTHS)):
            assert writer.add(*episode(e)) == e
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "whole")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Limits so small that episodes spread over several files of each kind."""
    return write(tmp_path_factory.mktemp("data") / "split", data_files_size_in_mb=0.004, video_files_size_in_mb=1e-4)


@pytest.fixture(params=["whole", "split"])
def root(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "damaged"))


def test_columns_come_back_exactly(root: Path) -> None:
    data = Dataset(root)
    parts = [episode(e)[0] for e in range(len(LENGTHS))]
    for name in parts[0]:
        wanted = np.concatenate([part[name] for part in parts])
        found = data.column(name)
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)
    assert not np.array_equal(data.column("action"), data.column("action")[::-1])


def test_index_columns_and_tasks(root: Path) -> None:
    data = Dataset(root)
    assert (data.fps, data.episodes, len(data), data.robot_type) == (10, len(LENGTHS), sum(LENGTHS), "so101")
    assert np.array_equal(data.offsets, np.cumsum([0, *LENGTHS]))
    assert data.tasks == TASKS
    assert np.array_equal(data.column("index"), np.arange(sum(LENGTHS)))
    assert np.array_equal(data.column("episode_index"), np.repeat(np.arange(len(LENGTHS)), LENGTHS))
    assert np.array_equal(data.column("frame_index"), np.concatenate([np.arange(n) for n in LENGTHS]))
    assert np.allclose(data.column("timestamp"), data.column("frame_index") / 10, atol=1e-6)
    assert data.column("timestamp").dtype == np.float32


def test_every_frame_in_its_place(root: Path) -> None:
    data = Dataset(root)
    seen = {camera: [numbers(images) for images in data.video(camera)] for camera in (WRIST, TOP)}
    assert [n for numbers_ in seen[WRIST] for n in numbers_] == list(range(sum(LENGTHS)))
    assert [len(numbers_) for numbers_ in seen[WRIST]] == LENGTHS
    for e in (5, 0, 7, 2, 2):
        first = sum(LENGTHS[:e])
        assert numbers(data.frames(WRIST, e)) == list(range(first, first + LENGTHS[e]))
        assert numbers(data.frames(TOP, e)[:, ::-1]) == [4095 - first + i & 4095 for i in range(LENGTHS[e])]


def test_splits_make_many_files(whole: Path, split: Path) -> None:
    for kind in ("data/**/*.parquet", f"videos/{WRIST}/**/*.mp4", "meta/episodes/**/*.parquet"):
        assert len(list(whole.glob(kind))) == 1
    for kind in ("data/**/*.parquet", f"videos/{WRIST}/**/*.mp4"):
        assert len(list(split.glob(kind))) > 2


def test_pictures_are_close_and_differ(tmp_path: Path) -> None:
    y, x = np.mgrid[0:120, 0:160]
    images = np.stack([np.stack([y + i, x, 128 + 60 * np.sin(x / 9 + i)], -1) for i in range(20)]).astype(np.uint8)
    with Writer(tmp_path / "d", {"cam": {"dtype": "video"}}, 15, None, (120, 160)) as writer:
        writer.add({}, {"cam": images}, "")
    found = Dataset(tmp_path / "d").frames("cam", 0)
    assert found.shape == images.shape
    assert psnr(found, images) > 35
    assert psnr(found[1:], images[:-1]) < psnr(found, images) - 3


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def test_statistics_of_columns(root: Path) -> None:
    data = Dataset(root)
    stats = json.loads((root / fmt.STATS_PATH).read_text())
    assert set(stats) == set(data.features) - {"note"}
    for name in ("action", "observation.state", "cubes", "done", "seed", "index"):
        values = data.column(name).astype(float)
        rows = values if values.ndim > 1 else values[:, None]
        assert stats[name]["count"] == [sum(LENGTHS)]
        for key, wanted in {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}.items():
            assert np.allclose(stats[name][key], wanted, rtol=1e-12)
        for q in (1, 10, 50, 90, 99):
            assert np.allclose(stats[name][f"q{q:02d}"], np.quantile(rows, q / 100, axis=0), rtol=1e-12)
    assert stats["action"]["q01"] != stats["action"]["q10"]


def test_statistics_of_pixels() -> None:
    images = np.random.default_rng(3).integers(0, 200, (5, 16, 24, 3), np.uint8)
    images[..., 2] //= 2
    stats = dataset_stats.of_pixels(dataset_stats.histogram(images), 5)
    sample = images[:, ::2, ::2].reshape(-1, 3) / 255
    assert all(value.shape == (3, 1, 1) for name, value in stats.items() if name != "count")
    assert np.allclose(stats["mean"].ravel(), sample.mean(0))
    assert np.allclose(stats["std"].ravel(), sample.std(0))
    assert np.allclose(stats["min"].ravel(), sample.min(0))
    assert np.allclose(stats["max"].ravel(), sample.max(0))
    for name, q in dataset_stats.QUANTILES.items():
        assert np.allclose(stats[name].ravel(), np.quantile(sample, q, axis=0, method="inverted_cdf"))


def test_statistics_of_an_episode_lie_in_its_row(whole: Path) -> None:
    table = pq.read_table(whole / fmt.EPISODES_PATH.format(chunk_index=0, file_index=0))
    third = episode(2)[0]["action"].astype(float)
    assert np.allclose(table.column("stats/action/mean")[2].as_py(), third.mean(0))
    assert np.allclose(table.column("stats/action/q90")[2].as_py(), np.quantile(third, 0.9, axis=0))
    assert np.shape(table.column(f"stats/{WRIST}/mean")[2].as_py()) == (3, 1, 1)
    assert table.column("dataset_to_index").to_pylist() == np.cumsum(LENGTHS).tolist()


def test_same_twice_and_another_differs(whole: Path, tmp_path: Path) -> None:
    def contents(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    assert contents(write(tmp_path / "again")) == contents(whole)
    assert contents(write(tmp_path / "faster", fps=11)) != contents(whole)


def test_unfinished_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Writer(tmp_path / "d", FEATURES, 10, None, SIZE) as writer:
        writer.add(*episode(0))
        raise ZeroDivisionError
    assert not (tmp_path / "d").exists()
    for name in ("d", "d.unfinished"):
        with pytest.raises(DatasetError, match="not written to its end"):
            Dataset(tmp_path / name)
    with pytest.raises(DatasetError, match="exists already"):
        Writer(tmp_path / "d", FEATURES, 10, None, SIZE)
    with pytest.raises(DatasetError, match="is closed"):
        writer.add(*episode(1))


def test_a_torn_episode_spoils_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path / "d", FEATURES, 10, None, SIZE)
    writer.add(*episode(0))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(Encoder, "add", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        writer.add(*episode(1))
    with pytest.raises(DatasetError, match="torn"):
        writer.close()
    assert not (tmp_path / "d").exists()


def test_empty_and_existing_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no episode"), Writer(tmp_path / "d", FEATURES, 10, None, SIZE):
        pass
    with pytest.raises(DatasetError, match="exists already"):
        Writer(whole, FEATURES, 10, None, SIZE)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("action", np.zeros((7, 5), np.float32), r"action: shape \(7, 5\)"),
        ("action", np.zeros((6, 6), np.float32), "frames by feature"),
        ("action", np.full((7, 6), np.nan), "row 0 is not finite"),
        ("seed", np.zeros(7), "float64 does not fit into int64"),
        ("note", np.zeros(7), "something else than texts"),
        ("extra", np.zeros(7), "columns"),
        (WRIST, numbered(0, 7)[:, :-2], "expected uint8"),
        (WRIST, numbered(0, 7).astype(float), "expected uint8"),
        ("side", numbered(0, 7), "cameras"),
    ],
)
def test_episodes_that_do_not_fit(tmp_path: Path, key: str, value: NDArray, message: str) -> None:
    columns, images, task = episode(0)
    bad_columns, bad_images = ({}, {key: value}) if key in (WRIST, "side") else ({key: value}, {})
    with Writer(tmp_path / "d", FEATURES, 10, None, SIZE) as writer:
        with pytest.raises(DatasetError, match=message):
            writer.add(columns | bad_columns, images | bad_images, task)
        writer.add(columns, images, task)
    assert Dataset(tmp_path / "d").episodes == 1


@pytest.mark.parametrize(
    ("features", "fps", "size"),
    [
        ({"index": {"dtype": "int64", "shape": (1,)}}, 10, SIZE),
        ({"a/b": {"dtype": "int64", "shape": (1,)}}, 10, SIZE),
        ({"a": {"dtype": "complex64", "shape": (1,)}}, 10, SIZE),
        ({"a": {"dtype": "float33", "shape": (1,)}}, 10, SIZE),
        ({"a": {"dtype": "float32", "shape": ()}}, 10, SIZE),
        ({"a": {"dtype": "float32", "shape": (0,)}}, 10, SIZE),
        ({"a": {"shape": (1,)}}, 10, SIZE),
        ({}, 0, SIZE),
        ({}, 10.5, SIZE),
        ({}, 10, (31, 48)),
    ],
)
def test_features_the_format_does_not_hold(tmp_path: Path, features: dict, fps: int, size: tuple[int, int]) -> None:
    with pytest.raises(DatasetError):
        Writer(tmp_path / "d", features, fps, None, size)
    assert not list(tmp_path.iterdir())


def edit(root: Path, **changes: object) -> None:
    path = root / fmt.INFO_PATH
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_other_versions_are_refused_with_the_way_out(damaged: Path) -> None:
    edit(damaged, codebase_version="v2.1")
    with pytest.raises(DatasetError, match="convert_dataset_v21_to_v30"):
        Dataset(damaged)
    edit(damaged, codebase_version="v4.0")
    with pytest.raises(DatasetError, match=r"v4\.0"):
        Dataset(damaged)
    with pytest.raises(DatasetError, match="no LeRobotDataset"):
        Dataset(damaged / "data")


DATA, VIDEO = "data/chunk-000/file-000.parquet", f"videos/{WRIST}/chunk-000/file-000.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.mark.parametrize("name", [fmt.INFO_PATH, fmt.TASKS_PATH, EPISODES, DATA, VIDEO])
def test_missing_files_are_named(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    with pytest.raises(DatasetError, match=r"missing|holds no table") as error:
        Dataset(damaged)
    assert name in str(error.value) or name == EPISODES


@pytest.mark.parametrize("name", [fmt.INFO_PATH, fmt.TASKS_PATH, EPISODES, DATA])
def test_files_cut_off_are_named(damaged: Path, name: str) -> None:
    content = (damaged / name).read_bytes()
    for part in (content[: len(content) // 2], b""):
        (damaged / name).write_bytes(part)
        with pytest.raises(DatasetError) as error:
            Dataset(damaged)
        assert str(damaged / name) in str(error.value)


def test_video_cut_off_is_named(damaged: Path) -> None:
    content = (damaged / VIDEO).read_bytes()
    (damaged / VIDEO).write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"file-000\.mp4: no readable video"):
        Dataset(damaged).frames(WRIST, 0)
    assert len(Dataset(damaged).frames(TOP, 0)) == LENGTHS[0]


def test_video_of_another_dataset_is_too_short(damaged: Path) -> None:
    encoder = Encoder(damaged / VIDEO, 10, SIZE)
    encoder.add(numbered(0, 20))
    encoder.close()
    data = Dataset(damaged)
    assert numbers(data.frames(WRIST, 2)) == list(range(8, 20))
    with pytest.raises(DatasetError, match="0 of 5 frames"):
        data.frames(WRIST, 3)


def test_video_at_another_rate_is_refused(damaged: Path) -> None:
    encoder = Encoder(damaged / VIDEO, 7, SIZE)
    encoder.add(numbered(0, 100))
    encoder.close()
    with pytest.raises(DatasetError, match="constant rate"):
        list(Dataset(damaged).video(WRIST))


def test_rows_of_another_dataset_are_refused(damaged: Path, tmp_path: Path) -> None:
    rows = pq.read_table(damaged / DATA)
    pq.write_table(rows.slice(1), damaged / DATA)
    with pytest.raises(DatasetError, match=f"{sum(LENGTHS) - 1} rows"):
        Dataset(damaged)
    pq.write_table(rows.take(pa.array(range(len(rows) - 1, -1, -1))), damaged / DATA)
    with pytest.raises(DatasetError, match="order of the episodes"):
        Dataset(damaged)
    pq.write_table(rows.drop_columns("action"), damaged / DATA)
    with pytest.raises(DatasetError, match="no column 'action'"):
        Dataset(damaged).column("action")
    short = rows.drop_columns("action").append_column("action", pa.array([[1.0, 2.0]] * len(rows)))
    pq.write_table(short, damaged / DATA)
    with pytest.raises(DatasetError, match=r"'action' is no float32 \(6,\)"):
        Dataset(damaged).column("action")


def test_paths_may_not_leave_the_dataset(damaged: Path, tmp_path: Path) -> None:
    shutil.copy(damaged / DATA, tmp_path / "other.parquet")
    edit(damaged, data_path="../other.parquet")
    with pytest.raises(DatasetError, match="outside"):
        Dataset(damaged)
    edit(damaged, data_path="data/{nothing}.parquet")
    with pytest.raises(DatasetError, match="template"):
        Dataset(damaged)


def test_counts_of_info_must_agree(damaged: Path) -> None:
    edit(damaged, total_frames=3)
    with pytest.raises(DatasetError, match="total_frames"):
        Dataset(damaged)
    edit(damaged, total_episodes=3)
    with pytest.raises(DatasetError, match="8 episodes"):
        Dataset(damaged)


def test_unknown_names_are_answered_with_the_known(whole: Path) -> None:
    data = Dataset(whole)
    with pytest.raises(DatasetError, match=r"no column 'actions'.*'action'"):
        data.column("actions")
    with pytest.raises(DatasetError, match="no column"):
        data.column(WRIST)
    with pytest.raises(DatasetError, match=f"no camera 'wrist'.*{WRIST}"):
        data.frames("wrist", 0)
    with pytest.raises(DatasetError, match=r"no episode 8; there are 0\.\.7"):
        data.frames(WRIST, 8)


def test_empty_cells_are_refused() -> None:
    feature = fmt.Feature("float32", (2,))
    assert to_numpy(pa.chunked_array([pa.array([[1.0, 2.0], [3.0, 4.0]])]), feature).tolist() == [[1, 2], [3, 4]]
    for cells in ([[1.0, None]], [[1.0, 2.0], None]):
        with pytest.raises(ValueError, match="empty cells"):
            to_numpy(pa.chunked_array([pa.array(cells)]), feature)


def test_decoder_jumps_and_steps_back(tmp_path: Path) -> None:
    encoder = Encoder(tmp_path / "a.mp4", 10, SIZE)
    for first in range(0, 600, 50):
        encoder.add(numbered(first, 50))
    encoder.close()
    decoder = Decoder(tmp_path / "a.mp4", 10)
    for first in (0, 3, 100, 570, 20, 20, 22):
        assert numbers(decoder.read(first / 10, 5)) == list(range(first, first + 5))
    decoder.close()
