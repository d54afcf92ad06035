"""The machine: which int8 arithmetic is right, what a device is told apart by, and a sound ONNX Runtime."""

import importlib.metadata
import os
import sys
import types
from pathlib import Path

import pytest

from dzedge import machine
from dzedge.errors import PolicyError
from dzedge.machine import Machine, cpu_isa


class TestIsa:
    @pytest.mark.parametrize(
        ("cpuinfo", "architecture", "isa"),
        [
            ("flags\t\t: fpu sse4_2 avx2 fma", "x86_64", "avx2"),
            ("flags\t\t: fpu avx2 avx512f avx512_vnni", "x86_64", "vnni"),
            ("flags\t\t: fpu avx2 avx_vnni", "x86_64", "vnni"),
            ("flags\t\t: fpu sse4_2", "x86_64", "plain"),
            ("Features\t: fp asimd asimddp", "aarch64", "neon"),
            ("Features\t: fp asimd", "aarch64", "plain"),
            ("model name\t: avx2 avx_vnni", "x86_64", "plain"),
            ("", "riscv64", "plain"),
        ],
    )
    def test_from_cpuinfo(self, cpuinfo: str, architecture: str, isa: str) -> None:
        assert cpu_isa(cpuinfo, architecture) == isa

    def test_this_machine(self) -> None:
        found = Machine.detect()
        assert found.ep == "cpu"
        assert 1 <= found.threads <= max(1, len(os.sched_getaffinity(0)) - 1)
        assert Machine.detect(threads=3).threads == 3


class TestDevice:
    """Equal texts, equal devices: what was optimized for one is not run on another."""

    CPU = "processor : 0\nmodel name\t: A\nflags\t\t: fpu avx2\ncpu MHz\t\t: 2000.1\n"

    def text(self, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, ep: str = "cpu") -> str:
        monkeypatch.setattr(machine, "_cpuinfo", lambda: cpuinfo)
        return machine.device(ep)

    def test_clock_and_number_of_cores_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = self.text(monkeypatch, self.CPU)
        assert "avx2" in one
        assert one == self.text(monkeypatch, self.CPU * 2) == self.text(monkeypatch, self.CPU.replace("2000.1", "3000"))

    def test_model_and_flags_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = self.text(monkeypatch, self.CPU)
        assert one != self.text(monkeypatch, self.CPU.replace(": A", ": B"))
        assert one != self.text(monkeypatch, self.CPU.replace("avx2", "avx2 avx_vnni"))

    def test_a_gpus_own_matter_to_a_gpu(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        card = tmp_path / "0000:01:00.0" / "information"
        card.parent.mkdir()
        monkeypatch.setattr(machine, "GPUS", tmp_path)
        texts = []
        for model in ("Model: one", "Model: two"):
            card.write_text(model)
            texts.append((self.text(monkeypatch, self.CPU, "cuda"), self.text(monkeypatch, self.CPU)))
        assert texts[0][0] != texts[1][0]
        assert texts[0][1] == texts[1][1]


class TestInstallation:
    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(PolicyError, match=r"not installed: pip install 'dzedge\[cpu\]'"):
            machine.runtime()

    def test_one_removed_over_the_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
        with pytest.raises(PolicyError, match="uninstall both, then install one"):
            machine.runtime()

    def test_both_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: name)
        with pytest.raises(PolicyError, match="onnxruntime and onnxruntime-gpu own the same module"):
            machine.runtime()
