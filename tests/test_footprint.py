"""The footprint: what is told of every graph is what was loaded."""

import pytest

from dzedge import footprint, session
from dzedge.bundle import Bundle, open_bundle
from dzedge.engine import Machine, load_graph
from dzedge.export import stub
from dzedge.machine import PROVIDERS

CPU = Machine("cpu", "avx2", 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(stub.write(tmp_path_factory.mktemp("bundle") / "stub.dzp"), allow_test_key=True)


def test_every_graph(bundle: Bundle) -> None:
    found = footprint.measure(bundle, "fp32", CPU)
    assert [one.graph for one in found] == list(bundle.manifest.dzedge.graphs)
    for one in found:
        assert (one.file, one.precision, one.provider) == (f"{one.graph}.fp32.onnx", "fp32", "cpu")
        assert set(one.operators) == {PROVIDERS["cpu"]} and one.operators[PROVIDERS["cpu"]] > 0
        assert (one.elsewhere, one.cached) == ([], False)
        assert one.file_bytes == len(bundle.read(one.file))
        assert one.buffer_bytes == load_graph(bundle, one.graph, "fp32", CPU).nbytes > 0
        assert one.load_ms > 0


def test_names_what_runs_elsewhere(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    away = session.Operator("n3", "Gather", PROVIDERS["cuda"])
    monkeypatch.setattr(session, "placement", lambda *how: (session.Operator("n1", "Add", PROVIDERS["cpu"]), away))
    assert {tuple(one.elsewhere) for one in footprint.measure(bundle, "fp32", CPU)} == {
        ("n3 (Gather) on CUDAExecutionProvider",)
    }


def test_in_a_process_of_its_own(bundle: Bundle) -> None:
    here, apart = footprint.measure(bundle, "auto", CPU), footprint.measure_apart(bundle, "auto", CPU)
    assert [(one.file, one.operators, one.buffer_bytes) for one in here] == [
        (one.file, one.operators, one.buffer_bytes) for one in apart
    ]
    assert sum(one.resident_bytes for one in apart) > 0


def test_choice_without_loading(bundle: Bundle) -> None:
    chosen = footprint.chosen(bundle, "auto", CPU)
    assert chosen["text"] == {"file": "text.fp32.onnx", "precision": "fp32", "provider": "cpu"}
    assert set(chosen) == set(bundle.manifest.dzedge.graphs)


def test_table_sums_up(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found = footprint.measure(bundle, "fp32", CPU)
    columns = [list(column.cells) for column in footprint.table(found).columns]
    assert columns[0] == [*bundle.manifest.dzedge.graphs, "all"]
    assert columns[4][-1] == f"{sum(one.buffer_bytes for one in found) / 1e3:.0f}"
