"""The doctor on this machine: what holds wherever the tests run."""

import json

import pytest

from dzedge import cli, doctor


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """`dzedge` as the shell calls it: (exit code, stdout)."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["dzedge", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def broken(tmp_path):
    file = tmp_path / "broken.toml"
    file.write_text("[robot]\n")
    return file


def test_fix_prints_a_script_and_nothing_else(call, broken):
    code, out = call("doctor", str(broken), "--fix")
    assert code == 1, "the robot file is broken, and no command mends that"
    assert out.startswith("#!/bin/sh\n") and "which ran none of it" in out
    assert not [line for line in out.splitlines() if line.startswith(("ok", " ok", "fail"))]


def test_fix_and_json_are_one_document(call, broken):
    code, out = call("doctor", str(broken), "--fix", "--json")
    told = json.loads(out)
    assert code == 1 and told["ok"] is False and told["fix"].startswith("#!/bin/sh")


def test_devices_are_looked_at_even_where_the_robot_file_is_broken(broken):
    checks = {check.name: check for check in doctor.examine(broken)}
    assert checks["robot file"].status == "fail"
    assert {"serial adapters", "ModemManager", "brltty", "dialout", "librealsense"} <= set(checks)


def test_limits_command_is_what_the_advice_says():
    assert "rtprio 95" in doctor.LIMITS and "memlock unlimited" in doctor.LIMITS
    assert "/etc/security/limits.d/dzedge.conf" in doctor.LIMITS
