"""The command line: one JSON document, exit codes, one clear sentence for what goes wrong."""

import importlib.metadata
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dzedge import cli, config, console, errors, evaluate, footprint, lockstep, report, robot, supervisor
from dzedge.bundle import Graph, Language, Variant
from dzedge.hardware.sim.scene import draw_layout
from dzedge.history import History, Imagination, RunResult, Seen, Status
from dzedge.latency import Latency
from dzedge.picture import Imaginer


def make_history(ticks: int = 200) -> History:
    """Joint 0 moves ever faster; a chunk every 20 ticks, a frame every 6."""
    history = History()
    for k in range(ticks):
        time_ns = 10**9 + k * 10**7
        pose = np.array([(k / ticks) ** 2, 0, 0, 0, 0, 0])
        history.times_ns.append(time_ns)
        history.states.append(4)
        history.chunk_ids.append(k // 20)
        history.commands.append(pose)
        history.positions.append(pose)
        if k % 6 == 0:
            history.seen.append(Seen(time_ns, np.full((120, 160, 3), k, np.uint8)))
        if k % 20 == 0:
            history.imaginations.append(Imagination(k // 20, time_ns, np.zeros(4, np.float32)))
    return history


def make_result(history: History, success: bool | None = True) -> RunResult:
    stages = {"inference.policy": {"count": 10, "p50_ms": 4.0, "p99_ms": 9.0}}
    return RunResult("reach the red cube", success, 3, 2.0, 10, {"stale": 2}, 0, "ab", stages, history)


def imaginer() -> Imaginer:
    return Imaginer(lambda latents, present: np.zeros((4, 72, 96, 3), np.uint8), 200_000_000, 4)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """`call("run", "--json")` -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DZEDGE_TRACEBACK", raising=False)

    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["dzedge", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    return run


@pytest.fixture
def played(monkeypatch):
    """Runs end at once with what `played.result` says; `played.calls` holds what was asked."""
    seen = SimpleNamespace(result=make_result(make_history()), calls=[])
    words = {word: i + 1 for i, word in enumerate(["reach", "the", "red", "cube"])}
    section = SimpleNamespace(
        model_id="fake", language=Language(words=8, vocabulary=words), samplers=("flash(1)",), horizon=8, dt_ns=10**8,
        graphs={"text": Graph(variants=(Variant(file="text.fp32.onnx", precision="fp32", ep="any", isa="any"),))},
        files=(),
    )  # fmt: skip
    one = footprint.Footprint("text", "text.fp32.onnx", "fp32", "cpu", {"CPU": 3}, [], True, 1.5, 83_000, 448, 10**6)
    bundle = SimpleNamespace(name="fake", digest="ab", manifest=SimpleNamespace(dzedge=section))

    def runner(config, bundle, **asked):
        seen.calls.append(asked | {"config": config})
        return seen.result

    monkeypatch.setattr(supervisor, "run_robot", runner)
    monkeypatch.setattr(lockstep, "run_lockstep", runner)
    monkeypatch.setattr(robot, "verified_bundle", lambda config: bundle)
    monkeypatch.setattr(robot, "packaged_bundles", lambda: [Path("fake.dzp")])
    monkeypatch.setattr(evaluate, "verified_bundle", lambda config: bundle)
    monkeypatch.setattr(evaluate, "_opened", {})
    monkeypatch.setattr(report, "imaginer", lambda config, bundle: imaginer())
    monkeypatch.setattr(footprint, "measure_apart", lambda bundle, precision, machine: [one])
    return seen


def one_document(text: str) -> dict:
    (line,) = text.splitlines()
    return json.loads(line)


class TestRun:
    def test_json_is_one_document(self, call, played, tmp_path):
        code, out, _ = call("run", "--json", "--seed", "5", "--task", "reach the red cube", "--out", "here")
        document = one_document(out)
        assert code == 0
        assert set(document) == {
            "task", "success", "seed", "duration_s", "chunks", "refused", "restarts", "wire_sha256", "stages", "files",
            "graphs",
        }  # fmt: skip
        assert document["success"] is True
        assert document["files"] == ["here/summary.png", "here/summary.json"]
        assert document["graphs"] == {"text": {"file": "text.fp32.onnx", "precision": "fp32", "provider": "cpu"}}
        assert json.loads((tmp_path / "here/summary.json").read_text())["task"] == "reach the red cube"
        asked = played.calls[0]
        assert asked["seed"] == 5 and asked["config"].sim.seed == 5
        assert asked["task"] == "reach the red cube" and asked["duration_s"] is None

    @pytest.mark.parametrize(("success", "wanted"), [(True, 0), (None, 0), (False, 1)])
    def test_exit_code_follows_success(self, call, played, success, wanted):
        played.result = make_result(make_history(), success)
        code, out, _ = call("run", "--headless")
        assert code == wanted
        assert "inference.policy" in out and "wrote runs" in out

    def test_folder_that_cannot_be_made(self, call, played, tmp_path):
        (tmp_path / "file").touch()
        code, _, err = call("run", "--out", "file/inside")
        assert code == 2 and "--out" in err

    def test_lockstep_refuses_a_real_arm(self, call, played, tmp_path):
        real = config.default_path().with_name("so101.toml")
        code, _, err = call("run", str(real), "--lockstep")
        assert code == 2 and "needs a simulated robot" in err

    def test_first_motion(self):
        history = make_history()
        moved_ns = report.first_motion_ns(history)
        index = history.times_ns.index(moved_ns)
        assert abs(history.positions[index][0] - history.positions[0][0]) > report.MOTION
        assert abs(history.positions[index - 1][0] - history.positions[0][0]) <= report.MOTION
        del history.positions[index:]
        assert report.first_motion_ns(history) is None


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "wanted", "words"),
        [
            (("run", "absent.toml"), 2, "absent.toml"),
            (("run", "--policy", "absent.dzp"), 5, "absent.dzp"),
            (("run", "--seed", "-1"), 2, "--seed"),
            (("run", "--no-such-option"), 2, "no-such-option"),
            (("evaluate", "--suite", "chess"), 2, "must be reach"),
            (("bundle", "verify", "absent.dzp"), 5, "absent.dzp"),
        ],
    )
    def test_exit_code_and_sentence(self, call, arguments, wanted, words):
        code, out, err = call(*arguments)
        assert code == wanted and words in err and out == ""
        assert "Traceback" not in err

    def test_words_that_the_policy_does_not_know_move_nothing(self, call, played):
        code, _, err = call("run", "--task", "reach the rad cube")
        assert code == 2 and "'rad'" in err and "'red'" in err and not played.calls

    def test_unknown_key_is_named(self, call, tmp_path):
        text = config.default_path().read_text().replace("rate_hz = 100", "rate_hz = 100\nspeed = 3", 1)
        (tmp_path / "robot.toml").write_text(text)
        code, _, err = call("run", "robot.toml")
        assert code == 2 and "speed" in err and "robot.toml" in err

    def test_json_has_the_error(self, call):
        code, out, _ = call("run", "absent.toml", "--json")
        document = one_document(out)
        assert document["exit_code"] == code == 2 and document["error"] == "ConfigError"

    def test_every_branch_has_its_code(self, call, played, monkeypatch):
        kinds = [errors.UsageError, errors.PortError, errors.SafetyError, errors.BundleError, errors.PolicyError]
        for kind in kinds:

            def fail(*args, kind=kind, **asked):
                raise kind("it is so")

            monkeypatch.setattr(supervisor, "run_robot", fail)
            code, _, err = call("run")
            assert code == kind.exit_code and err == "dzedge: it is so\n"

    def test_faults_of_ours_say_how_to_report(self, call, played, monkeypatch):
        def fail(*args, **asked):
            raise ZeroDivisionError("division by zero")

        monkeypatch.setattr(supervisor, "run_robot", fail)
        code, _, err = call("run")
        assert code == 1 and "DZEDGE_TRACEBACK=1" in err and "Traceback" not in err
        monkeypatch.setenv("DZEDGE_TRACEBACK", "1")
        monkeypatch.setattr(sys, "argv", ["dzedge", "run"])
        with pytest.raises(ZeroDivisionError):
            cli.main()

    @pytest.mark.parametrize("command", ["export", "train"])
    def test_training_without_torch(self, call, monkeypatch, command):
        monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
        code, _, err = call(command, "--anything")
        assert code == 2 and "torch" in err and "dzedge[export]" in err


class TestOtherCommands:
    def test_profile(self, call, played):
        code, out, _ = call("profile", "--json", "--seconds", "3")
        document = one_document(out)
        assert code == 0 and "inference.policy" in document["stages"]
        assert document["graphs"][0]["operators"] == {"CPU": 3} and document["graphs"][0]["buffer_bytes"] == 448
        assert played.calls[0]["duration_s"] == 3.0
        out = call("profile", "--lockstep")[1]
        assert "p50 [ms]" in out and "memory [MB]" in out

    def test_imagine(self, call, played, tmp_path):
        code, out, _ = call("imagine", "--json", "--out", "chunk.png", "--seed", "4")
        document = one_document(out)
        assert code == 0 and 0 < document["difference"] < 1
        assert document["files"] == ["chunk.png"] and (tmp_path / "chunk.png").exists()
        assert [asked["seed"] for asked in played.calls] == [4]  # the fake model knows no motion's word

    def test_imagine_a_named_task(self, call, played):
        code, out, _ = call("imagine", "--json", "--task", "reach the red cube")
        (asked,) = played.calls
        assert code == 0 and asked["task"] == "reach the red cube"
        assert 0 in draw_layout(asked["seed"]).colours
        assert one_document(out)["dreams"][0]["split"] == "seen"
        without_red = next(seed for seed in range(100) if 0 not in draw_layout(seed).colours)
        code, _, err = call("imagine", "--task", "reach the red cube", "--seed", str(without_red))
        assert code == 2 and f"--seed {without_red}: 'reach the red cube' cannot be done in that scene" in err

    def test_evaluate(self, call, played, monkeypatch):
        measured = Latency.of([4.0], "fake", 200)
        monkeypatch.setattr(lockstep, "measure", lambda config, bundle, on_decision: measured)
        code, out, _ = call("evaluate", "--episodes", "10", "--workers", "1", "--seeds", "2", "--json")
        (entry,) = one_document(out)["results"]
        assert code == 0 and entry["policy"] == "fake"
        seen = entry["seen"]
        assert seen["success"] == 1.0 and seen["n"] == 10 and seen["high"] == 1.0
        assert seen["verbs"]["reach"]["n"] == 10
        assert [asked["seed"] for asked in played.calls] == list(range(2000, 2010))
        assert entry["latency"] == measured.document() and entry["settings"]["seeds"] == [2]
        assert {asked["conditions"].latency for asked in played.calls} == {measured}
        assert "10 of 10" in call("evaluate", "--episodes", "10", "--workers", "1")[1]

    def test_evaluate_without_a_bundle_takes_all_that_came_along(self, call, played, monkeypatch):
        monkeypatch.setattr(robot, "packaged_bundles", lambda: [Path("one.dzp"), Path("two.dzp")])
        out = call(*["evaluate", "--episodes", "1", "--workers", "1", "--latency", "default", "--json"])[1]
        assert len(one_document(out)["results"]) == 2
        assert [Path(asked["config"].policy.bundle).stem for asked in played.calls] == ["one", "two"]

    def test_every_knob_of_evaluate_arrives(self, call, played):
        knobs = "--no-prefix --no-smoothing --delay 200 --execute 4 --latency default --precision fp32"
        _, out, _ = call(*f"evaluate --episodes 1 --workers 1 {knobs} --sampler joint(4) --json".split())
        (entry,) = one_document(out)["results"]
        (asked,) = played.calls
        conditions, policy = asked["conditions"], asked["config"].policy
        assert (conditions.prefix, conditions.smoothing, conditions.delay_ms) == (False, False, 200.0)
        assert (policy.rate_hz, policy.precision, policy.sampler) == (2.5, "fp32", "joint(4)")
        told = entry["settings"]
        assert (told["prefix"], told["smoothing"], told["delay_ms"], told["execute"]) == (False, False, 200.0, 4)
        assert (told["sampler"], told["precision"], told["synchronous"]) == ("joint(4)", "fp32", False)
        call(*["evaluate", "--episodes", "1", "--workers", "1", "--synchronous", "--json"])
        assert played.calls[-1]["conditions"].synchronous
        call(*["evaluate", "--episodes", "1", "--realtime", "--json"])
        assert "conditions" not in played.calls[-1]

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ("--suite imagination --delay 5", "--delay"),
            ("--suite imagination --no-prefix", "--no-prefix"),
            ("--realtime --workers 2", "--workers"),
            ("--synchronous --latency default", "--latency"),
            ("--pair a b --episodes 3", "--episodes"),
            ("some.dzp --pair a b", "BUNDLE"),
        ],
    )
    def test_evaluate_refuses_what_would_have_no_effect(self, call, played, arguments, named):
        code, out, err = call("evaluate", *arguments.split())
        assert (code, out, played.calls) == (2, "", [])
        assert f"{named}: " in err and "leave it out" in err

    def test_evaluate_compares_two_documents(self, call, played, tmp_path):
        for name, success in (("a", True), ("b", False)):
            played.result = make_result(make_history(), success)
            out = call(*["evaluate", "--episodes", "4", "--workers", "1", "--latency", "default", "--json"])[1]
            (tmp_path / name).write_text(out)
        code, out, _ = call("evaluate", "--pair", "a", "b", "--json")
        assert code == 0 and one_document(out)["pairings"][0]["all"]["difference"] == 1.0
        assert "+1.000" in call("evaluate", "--pair", "a", "b")[1]

    def test_evaluate_asks_nothing_that_the_policy_cannot_embed(self, call, played):
        code, _, err = call(*["evaluate", "--suite", "verbs", "--episodes", "1"])
        assert code == 2 and "unknown word" in err and not played.calls

    def test_doctor(self, call, tmp_path):
        code, out, _ = call("doctor", "--json")
        document = one_document(out)
        assert document["ok"] is (code == 0)
        assert {"python", "kernels", "onnxruntime", "bundle", "real time"} <= {c["name"] for c in document["checks"]}
        (tmp_path / "bad.toml").write_text("[robot]\n")
        code, out, _ = call("doctor", "bad.toml")
        assert code == 1 and "fail" in out and "robot file" in out

    def test_doctor_of_a_file_that_is_not_there(self, call):
        code, out, err = call("doctor", "nosuch.toml")
        assert code == 2 and out == "" and err.count("nosuch.toml") == 1 and "Errno" not in err
        assert (code, out, err) == call("run", "nosuch.toml")

    def test_versions_load_nothing(self, call, monkeypatch):
        installed = {"dzedge": "1.2.3", "pyrealsense2": "2.59.1"}

        def version(name: str) -> str:
            if name not in installed:
                raise importlib.metadata.PackageNotFoundError(name)
            return installed[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        assert call("--version") == (0, "dzedge 1.2.3\nlibrealsense 2.59.1\n", "")

    @pytest.mark.parametrize("group", [(), ("camera",)])
    def test_summaries_of_commands_are_whole(self, call, group):
        code, out, _ = call(*group, "--help")
        assert code == 0 and "Commands:" in out and "..." not in out.partition("Commands:")[2]


class TestStatusLine:
    def test_says_what_happens(self):
        status = Status(
            "reach the red cube", "HOLD", "no new chunk in time", 3.2, np.array([0.5, -0.25]), 7, 0.031,
            {"control.bus": {"p50_ms": 1.25, "p99_ms": 2.0}},
        )  # fmt: skip
        recorder = console.Console(record=True, width=140, file=io.StringIO())
        recorder.print(console.status_lines(status, ["pan", "lift"]))
        text = recorder.export_text()
        for words in ("HOLD", "reach the red cube", "3.2 s", "7 chunks", "3.1 cm", "no new chunk", "+0.50", "-0.25"):
            assert words in text
        assert "control  bus 1.2" in text and "ms" in text

    def test_log_lines_are_made_readable(self):
        assert console.readable('{"stage": "control", "event": "RUN"}').rstrip() == "control: RUN"
        for other in ("Traceback", "[1, 2]", '{"a": 1}', ""):
            assert console.readable(other + "\n") == other

    def test_on_a_terminal_shows_status_and_logs(self):
        code = (
            "import sys, numpy; from dzedge import console; from dzedge.history import Status\n"
            "with console.live(['pan'], True) as show:\n"
            "    sys.stderr.write('a log line\\n'); sys.stderr.flush()\n"
            "    show(Status('reach', 'RUN', '', 1.0, numpy.zeros(1), 2, None, {}))\n"
            "sys.stderr.write('after\\n')"
        )
        main, terminal = os.openpty()
        subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True, timeout=60)
        os.close(terminal)
        text = os.read(main, 65536).decode()
        os.close(main)
        assert "a log line" in text and "RUN" in text and text.rstrip().endswith("after")

    def test_stays_silent_without_a_terminal(self, capsys):
        with console.live(["pan"], wanted=True) as on_status:
            on_status(None)
        assert capsys.readouterr().err == ""
