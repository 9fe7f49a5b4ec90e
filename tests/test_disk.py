"""The disk: whole or not at all, links followed, devices written through, neighbours left alone."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from refimpl import disk
from refimpl.conventions import OutputError
from tests.command_line import PATIENCE


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_the_rights_that_the_umask_leaves(tmp_path) -> None:
    code = (
        "import os, sys; from refimpl.disk import write_atomically; os.umask(0o027);"
        "write_atomically(sys.argv[1], b'new')"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "file"], check=True)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_the_umask_is_never_touched(tmp_path, monkeypatch) -> None:
    """It belongs to the whole process: another thread would make a file that all may write."""

    def umask(mask: int) -> int:
        raise AssertionError(mask)

    monkeypatch.setattr(os, "umask", umask)
    disk.write_atomically(tmp_path / "file", b"new")
    with disk.new_folder(tmp_path / "folder"):
        pass
    assert listing(tmp_path) == ["file", "folder"]


def test_a_private_file_stays_private(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    disk.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_followed(tmp_path) -> None:
    (tmp_path / "deep").mkdir()
    target, link, chain = tmp_path / "deep" / "target", tmp_path / "link", tmp_path / "chain"
    link.symlink_to(Path("deep") / "target")
    chain.symlink_to("link")
    for data in (b"first", b"second"):  # where the target is not there, and where it is
        disk.write_atomically(chain, data)
        assert target.read_bytes() == data
        assert not target.is_symlink()
    assert os.readlink(link) == "deep/target"
    assert os.readlink(chain) == "link"
    assert listing(tmp_path) == ["chain", "deep", "link"]


def test_a_pipe_is_written_through(tmp_path) -> None:
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    disk.require_free(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    disk.write_atomically(path, b"through")
    reader.join(timeout=PATIENCE)
    assert got == [b"through"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_device_is_written_through(tmp_path) -> None:
    path = tmp_path / "null"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        path.write_bytes(b"")
    except OSError:
        pytest.skip("makes a device node, which needs root")
    disk.require_free(path)
    disk.write_atomically(path, b"gone")
    assert stat.S_ISCHR(path.stat().st_mode)
    assert listing(tmp_path) == ["null"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
def test_standard_output_is_appended_to(tmp_path, name) -> None:
    """The shell's `>> log`: what is in the log stays, before and after."""
    if not os.path.exists(name):
        pytest.skip(f"no {name}")
    log = tmp_path / "log"
    log.write_text("kept\n")
    code = (
        "import sys; from refimpl import disk; print('before');"
        f"disk.require_free({name!r}); disk.write_atomically({name!r}, b'data\\n'); print('after')"
    )
    with log.open("a") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert log.read_text() == "kept\nbefore\ndata\nafter\n"
    assert listing(tmp_path) == ["log"]


def test_a_name_of_the_longest_length_can_be_written(tmp_path) -> None:
    path = tmp_path / ("é" * 127)  # 254 bytes
    disk.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        disk.write_atomically(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_removed_and_no_neighbour(tmp_path) -> None:
    path = tmp_path / "digits.csv"
    code = (
        "import os, sys; from refimpl import disk;"
        "os.fsync = lambda handle: os.kill(os.getpid(), 9);"
        "disk.write_atomically(sys.argv[1], b'new')"
    )
    subprocess.run([sys.executable, "-c", code, path], check=False)
    (left,) = listing(tmp_path)
    neighbours = [".digits.csv.original", ".digits.csv.12345678", ".digits.csv", "digits.csv"]
    for name in neighbours:
        (tmp_path / name).write_bytes(b"mine")
    disk.remove_leftovers(path)
    assert left not in listing(tmp_path)
    assert listing(tmp_path) == sorted(neighbours)


def test_what_must_not_be_written_to(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("none/file")
    refused = {"file": "exists", "link": "exists", "none/file": "no such folder"}
    always = {"": "is a folder", "file/new": "Not a directory", "nowhere": "no such folder"}
    for name, reason in (refused | always | {"loop": "symbolic links"}).items():
        with pytest.raises(OutputError, match=reason):
            disk.require_free(tmp_path / name)
    for name in ("file", "link", "new"):
        disk.require_free(tmp_path / name, overwrite=True)
    for name, reason in always.items():
        with pytest.raises(OutputError, match=reason):
            disk.require_free(tmp_path / name, overwrite=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(OutputError, match="cannot be written"):
        disk.require_free(tmp_path / "new")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path) -> None:
    with disk.new_folder(tmp_path / "whole") as folder:
        (folder / "file").write_bytes(b"1")
        assert not (tmp_path / "whole").exists()
    assert (tmp_path / "whole" / "file").read_bytes() == b"1"
    with pytest.raises(KeyError), disk.new_folder(tmp_path / "half") as folder:
        (folder / "file").write_bytes(b"1")
        raise KeyError
    assert listing(tmp_path) == ["whole"]
    (tmp_path / "empty").mkdir()
    with disk.new_folder(tmp_path / "empty") as folder:
        (folder / "file").write_bytes(b"1")
    assert listing(tmp_path / "empty") == ["file"]
    with pytest.raises(OutputError, match="whole: exists"), disk.new_folder(tmp_path / "whole"):
        pass
    with pytest.raises(KeyError), disk.new_folder(tmp_path / "whole", overwrite=True) as folder:
        raise KeyError
    assert listing(tmp_path / "whole") == ["file"]
    with disk.new_folder(tmp_path / "whole", overwrite=True) as folder:
        (folder / "other").write_bytes(b"1")
    assert listing(tmp_path / "whole") == ["other"]
    assert listing(tmp_path) == ["empty", "whole"]
    (tmp_path / "name").write_bytes(b"1")
    with pytest.raises(OutputError), disk.new_folder(tmp_path / "name", overwrite=True):
        pass
    (tmp_path / "name").unlink()
    inside = tmp_path / "none" / "folder"
    with pytest.raises(OutputError, match="no such folder as .*none"), disk.new_folder(inside):
        pass


@pytest.mark.parametrize(
    ("name", "words"),  # beside its files, in the place of one, and one of the user's
    [("mine", "would not be written again"), ("a/mine", "no earlier run"), ("a", "no earlier run")],
)
def test_a_folder_of_files_is_overwritten_where_it_holds_nothing_else(
    tmp_path, name, words
) -> None:
    folder, contents = tmp_path / "folder", {"a": b"made\n1", "b": b"made\n2"}
    disk.write_folder(folder, contents)
    disk.write_folder(folder, contents | {"a": b"made\n3"}, overwrite=True)
    assert (folder / "a").read_bytes() == b"made\n3"
    (folder / "a").unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match=rf"holds {Path(name).parts[0]}, which {words}"):
        disk.write_folder(folder, contents, overwrite=True)
    assert (folder / name).read_bytes() == b"mine"


@pytest.mark.parametrize("name", [".", "../here", "..", "../link"])
def test_the_folder_that_one_is_in_is_never_replaced(tmp_path, monkeypatch, name) -> None:
    """A shell would go on in a folder that has no name any more."""
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(tmp_path / "here")
    for overwrite in (True, False) if name != ".." else (True,):
        with (
            pytest.raises(OutputError, match=f"{name}: is the folder that you are in.*expected"),
            disk.new_folder(name, overwrite=overwrite),
        ):
            pass
    assert listing(tmp_path) == ["here", "link"]


@pytest.mark.parametrize("at", ["rename", "rmtree"])
@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_in_the_middle_of_a_replacement_leaves_nothing(
    tmp_path, monkeypatch, at, call
) -> None:
    """It comes before or after the call; there is the old folder or the new one, and no third."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    where = Path if at == "rename" else shutil
    done, calls = getattr(where, at), []

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(None)
        if len(calls) == call and at == "rmtree":
            raise KeyboardInterrupt
        found = done(*arguments, **options)
        if len(calls) == call:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(where, at, interrupted)
    with (
        contextlib.suppress(KeyboardInterrupt),
        disk.new_folder(tmp_path / "folder", overwrite=True) as new,
    ):
        (new / "new").touch()
    assert listing(tmp_path) == ["folder"]
    assert listing(tmp_path / "folder") in (["old"], ["new"])
