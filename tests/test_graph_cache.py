"""The graph cache: what it gives back is what was put there by this machine, or nothing."""

import os
import stat
from pathlib import Path

import pytest

from dzedge import graph_cache
from dzedge.errors import PolicyError
from dzedge.graph_cache import GraphCache, state_folder


@pytest.fixture
def cache(tmp_path: Path) -> GraphCache:
    return GraphCache(tmp_path / "state" / "graphs")


def mode(file: Path) -> int:
    return stat.S_IMODE(file.lstat().st_mode)


class TestFolder:
    def test_where(self) -> None:
        service = {"STATE_DIRECTORY": "/var/lib/dzedge:/x", "XDG_STATE_HOME": "/y"}
        assert state_folder(service) == Path("/var/lib/dzedge")
        assert state_folder({"XDG_STATE_HOME": "/y"}) == Path("/y/dzedge")
        assert state_folder({}) == Path.home() / ".local/state/dzedge"

    def test_without_a_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
        with pytest.raises(PolicyError, match=r"XDG_STATE_HOME, or policy\.cache = false"):
            state_folder({})

    def test_is_private_whatever_the_umask(self, tmp_path: Path) -> None:
        old = os.umask(0)
        try:
            made = GraphCache(tmp_path / "graphs")
            made.write("key", b"model")
        finally:
            os.umask(old)
        assert mode(made.root) == 0o700
        assert {mode(file) for file in made.root.iterdir()} == {0o600}

    @pytest.mark.parametrize("wrong", [0o755, 0o770, 0o707])
    def test_of_others_too_is_refused(self, tmp_path: Path, wrong: int) -> None:
        folder = tmp_path / "graphs"
        folder.mkdir()
        folder.chmod(wrong)
        with pytest.raises(PolicyError, match=rf"mode 700, has owner \d+ and mode {wrong:o}; remove it"):
            GraphCache(folder)

    def test_of_somebody_else_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        GraphCache(tmp_path / "graphs")
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(PolicyError, match="must be a folder of this user"):
            GraphCache(tmp_path / "graphs")

    def test_a_link_or_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / "link").symlink_to("real")
        (tmp_path / "file").write_text("")
        for name in ("link", "file"):
            with pytest.raises(PolicyError, match="must be a folder"):
                GraphCache(tmp_path / name)

    def test_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(PolicyError, match=r"policy.cache = false"):
            GraphCache(tmp_path / "file" / "graphs")


class TestModels:
    def test_comes_back_in_this_and_in_another_process(self, cache: GraphCache) -> None:
        assert cache.read("key") is None
        cache.write("key", b"model")
        assert cache.read("key") == b"model" == GraphCache(cache.root).read("key")
        cache.write("key", b"newer")
        assert cache.read("key") == b"newer"

    def test_every_changed_byte_is_found(self, cache: GraphCache) -> None:
        cache.write("key", b"model")
        file = cache.root / "key.kept"
        whole = file.read_bytes()
        for i in range(len(whole)):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            assert cache.read("key") is None
            assert not file.exists(), "what was altered stays"
            cache.write("key", b"model")
        for other in (b"", whole[:10], whole[:-1], whole + b"x"):
            file.write_bytes(other)
            assert cache.read("key") is None

    def test_is_kept_by_its_own_key_only(self, cache: GraphCache) -> None:
        cache.write("key", b"model")
        (cache.root / "key.kept").rename(cache.root / "other.kept")
        assert cache.read("other") is None

    def test_is_not_taken_over_from_another_machine(self, cache: GraphCache, tmp_path: Path) -> None:
        other = GraphCache(tmp_path / "other")
        other.write("key", b"model")
        (other.root / "key.kept").rename(cache.root / "key.kept")
        assert cache.read("key") is None

    @pytest.mark.parametrize("wrong", [0o644, 0o620])
    def test_that_others_could_read_or_write_is_not_used(self, cache: GraphCache, wrong: int) -> None:
        cache.write("key", b"model")
        (cache.root / "key.kept").chmod(wrong)
        assert cache.read("key") is None

    def test_a_link_is_not_followed(self, cache: GraphCache) -> None:
        cache.write("key", b"model")
        (cache.root / "key.kept").rename(cache.root / "elsewhere")
        (cache.root / "key.kept").symlink_to("elsewhere")
        assert cache.read("key") is None

    def test_a_lost_secret_disowns_all(self, cache: GraphCache) -> None:
        cache.write("key", b"model")
        (cache.root / graph_cache.SECRET).write_bytes(b"short")
        assert GraphCache(cache.root).read("key") is None

    def test_the_longest_unused_goes_first(self, cache: GraphCache, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graph_cache, "KEPT", 2)
        for age, key in ((30, "a"), (20, "b")):
            cache.write(key, b"model")
            file = cache.root / f"{key}.kept"
            os.utime(file, ns=(file.stat().st_mtime_ns - age * 10**9,) * 2)
        cache.read("a")
        cache.write("c", b"model")
        assert [key for key in "abc" if cache.read(key)] == ["a", "c"]

    def test_a_killed_writers_remains_go(self, cache: GraphCache) -> None:
        stale, alive = cache.root / ".999999999-00", cache.root / f".{os.getpid()}-00"
        stale.touch()
        alive.touch()
        cache.write("key", b"model")
        assert alive.exists() and not stale.exists()


class TestEngines:
    """TensorRT reads and writes files by itself: they are checked before, and sealed after."""

    def test_come_back(self, cache: GraphCache) -> None:
        with cache.engines("key") as folder:
            assert mode(folder) == 0o700 and not list(folder.iterdir())
            (folder / "a.engine").write_bytes(b"engine")
        with cache.engines("key") as folder:
            assert (folder / "a.engine").read_bytes() == b"engine"
            (folder / "a.timing").write_bytes(b"timing")
        with GraphCache(cache.root).engines("key") as folder:
            assert len(list(folder.iterdir())) == 2

    def test_are_made_again_when_anything_is_not_as_it_was_left(self, cache: GraphCache) -> None:
        def alter(folder: Path) -> None:
            (folder / "a.engine").write_bytes(b"other")

        def add(folder: Path) -> None:
            (folder / "b.engine").write_bytes(b"")

        def swap(folder: Path) -> None:
            (folder / "a.engine").rename(folder / "b.engine")

        def link(folder: Path) -> None:
            (folder / "a.engine").rename(folder.parent / "a.engine")
            (folder / "a.engine").symlink_to(folder.parent / "a.engine")

        for change in (alter, add, swap, link):
            with cache.engines("key") as folder:
                (folder / "a.engine").write_bytes(b"engine")
            change(cache.root / "key")
            with cache.engines("key") as folder:
                assert not list(folder.iterdir()), change.__name__

    def test_are_not_sealed_after_a_failure(self, cache: GraphCache) -> None:
        with pytest.raises(RuntimeError), cache.engines("key") as folder:
            (folder / "a.engine").write_bytes(b"half")
            raise RuntimeError
        with cache.engines("key") as folder:
            assert not list(folder.iterdir())
