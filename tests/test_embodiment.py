"""Cameras, joints and ranges of a checkpoint, and whatever of conf.yaml is not understood."""

import json
from pathlib import Path

import numpy as np
import pytest

from dzedge.errors import UsageError
from dzedge.export import official_stub
from dzedge.export.embodiment import Channel, read_embodiment
from dzedge.export.model.wan_config import preset

pytest.importorskip("yaml", reason="conf.yaml needs PyYAML (extra [export])")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "experiment_cfg").mkdir()
    conf(tmp_path).write_text(official_stub.conf(preset("5B")))
    metadata(tmp_path).write_text(json.dumps({"oxe_droid": official_stub.metadata()}))
    return tmp_path


def conf(folder: Path) -> Path:
    return folder / "experiment_cfg" / "conf.yaml"


def metadata(folder: Path) -> Path:
    return folder / "experiment_cfg" / "metadata.json"


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


class TestReading:
    def test_droid(self, folder: Path) -> None:
        body = read_embodiment(folder, None, 64, 32)
        assert body.tag == "oxe_droid" and body.crop == 0.95
        assert body.cameras == ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
        assert body.action == (Channel("joint_position", 7, relative=True), Channel("gripper_position", 1))
        assert body.state == (Channel("joint_position", 7), Channel("gripper_position", 1))
        assert (body.view, body.picture()) == ((80, 160), (160, 320))
        assert (body.state_range.width, body.action_range.width) == (64, 32)
        assert body.action_range.names[6:] == ("joint_position.6", "gripper_position.0")
        np.testing.assert_array_equal(body.action_range.low[[0, 7]], [-0.25, -0.25])

    def test_one_camera_is_no_mosaic(self, folder: Path) -> None:
        changed(conf(folder), "      - video.exterior_image_1_left\n      - video.exterior_image_2_left\n", "")
        assert read_embodiment(folder, "oxe_droid", 64, 32).picture() == (80, 160)

    def test_order_is_that_of_conf(self, folder: Path) -> None:
        """Not that of metadata.json, which is sorted by name."""
        document = json.loads(metadata(folder).read_text())
        metadata(folder).write_text(json.dumps(document, sort_keys=True))
        assert read_embodiment(folder, None, 64, 32).action[0].name == "joint_position"
        changed(
            conf(folder), "      - action.joint_position\n      - action.gripper_position\n",
            "      - action.gripper_position\n      - action.joint_position\n",
        )  # fmt: skip
        body = read_embodiment(folder, None, 64, 32)
        assert body.action[0].name == "gripper_position" and body.action_range.names[0] == "gripper_position.0"

    def test_constants_are_reported(self, folder: Path) -> None:
        notes = read_embodiment(folder, None, 64, 32).notes()
        assert [note.partition(" has")[0] for note in notes] == ["state: joint_position.6", "action: joint_position.6"]

    def test_nothing_relative(self, folder: Path) -> None:
        changed(conf(folder), "relative_action: true", "relative_action: false")
        assert not any(channel.relative for channel in read_embodiment(folder, None, 64, 32).action)


class TestAbsolute:
    def test_relative_channels_alone_are_moved(self, folder: Path) -> None:
        body = read_embodiment(folder, None, 64, 32)
        action, state = np.arange(16.0).reshape(2, 8), 100.0 * np.arange(1, 9)
        found = body.absolute(action, state)
        np.testing.assert_array_equal(found[:, :7], action[:, :7] + state[:7])
        np.testing.assert_array_equal(found[:, 7], action[:, 7])
        assert action[0, 0] == 0.0  # what was given stays

    def test_state_of_the_same_name(self, folder: Path) -> None:
        """Wherever it stands among the states."""
        changed(
            conf(folder), "      - state.joint_position\n      - state.gripper_position\n",
            "      - state.gripper_position\n      - state.joint_position\n",
        )  # fmt: skip
        body = read_embodiment(folder, None, 64, 32)
        found = body.absolute(np.zeros((1, 8)), np.arange(8.0))
        np.testing.assert_array_equal(found, [[1, 2, 3, 4, 5, 6, 7, 0]])


class TestErrors:
    @pytest.mark.parametrize(
        ("old", "new", "named"),
        [
            ("action.gripper_position: q99", "action.gripper_position: min_max", "action.gripper_position .*'min_max'"),
            ("        state.gripper_position: q99\n", "", "state.gripper_position is normalised by None"),
            ("relative_action_per_horizon: false", "relative_action_per_horizon: true", "per_horizon is true"),
            ("      normalization_modes:", "      target_rotations: {state.x: rotation_6d}\n      normalization_modes:",
             r"target_rotations of state\.x"),
            ("modality_configs:", "modality_config:", "modality_configs.oxe_droid is missing"),
            ("transforms:\n  oxe_droid", "transforms:\n  yam", "missing at 'oxe_droid'"),
            ("state.joint_position", "state.joint_velocity", "modalities.state.joint_velocity"),
            ("height: 80", "height: ${image_resolution_height}", "VideoResize.*resolved"),
            ("    transforms:\n", "    transforms:\n    - ${model_specific_transform}\n", "list of tables"),
            ("      modality_keys:\n      - video.exterior_image_1_left\n      - video.exterior_image_2_left\n"
             "      - video.wrist_image_left\n", "      modality_keys: ${keys}\n", "video.modality_keys is '.{keys}'"),
            ("- joint_position\nmod", "- gripper_position\n- joint_position\nmod", ""),
        ],
    )  # fmt: skip
    def test_conf(self, folder: Path, old: str, new: str, named: str) -> None:
        changed(conf(folder), old, new)
        if not named:  # the must-differ of this list: a change that is allowed
            assert all(channel.relative for channel in read_embodiment(folder, None, 64, 32).action)
            return
        with pytest.raises(UsageError, match=named):
            read_embodiment(folder, None, 64, 32)

    def test_conf_cannot_run_code(self, folder: Path) -> None:
        conf(folder).write_text("!!python/object/apply:os.system ['exit 3']\n")
        with pytest.raises(UsageError, match=r"conf\.yaml: cannot be read"):
            read_embodiment(folder, None, 64, 32)

    def test_tags(self, folder: Path) -> None:
        table = official_stub.metadata()
        metadata(folder).write_text(json.dumps({"yam": table, "oxe_droid": table}))
        with pytest.raises(UsageError, match="several embodiments; it has: oxe_droid, yam"):
            read_embodiment(folder, None, 64, 32)
        with pytest.raises(UsageError, match="no embodiment 'agibot'"):
            read_embodiment(folder, "agibot", 64, 32)
        assert read_embodiment(folder, "oxe_droid", 64, 32).tag == "oxe_droid"

    def test_relative_to_no_state(self, folder: Path) -> None:
        changed(conf(folder), "      - state.joint_position\n", "")
        with pytest.raises(UsageError, match="width none"):
            read_embodiment(folder, None, 64, 32)

    def test_quantiles_of_another_width(self, folder: Path) -> None:
        document = json.loads(metadata(folder).read_text())
        document["oxe_droid"]["statistics"]["action"]["joint_position"]["q99"].pop()
        metadata(folder).write_text(json.dumps(document))
        with pytest.raises(UsageError, match="joint_position: q01, q99 not of its width"):
            read_embodiment(folder, None, 64, 32)

    @pytest.mark.parametrize("name", ["conf.yaml", "metadata.json"])
    def test_file_missing(self, folder: Path, name: str) -> None:
        (folder / "experiment_cfg" / name).unlink()
        with pytest.raises(UsageError, match=name):
            read_embodiment(folder, None, 64, 32)
