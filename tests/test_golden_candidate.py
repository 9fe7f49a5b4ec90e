"""Candidates: what a port dumped, read strictly; everything hostile is one line that names it."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from refimpl.conventions import GoldenFileError
from refimpl.golden import candidate, npy

Z = np.arange(12, dtype=np.float64).reshape(2, 3, 2)
BIT = np.array([[5, 0, 0, 0, 0, 0, 0, 0]], np.uint8)
ARRAYS = {"blocks.0.attn.q.z": Z, "blocks.0.attn.q.bit": BIT, "grads/logits": Z.astype(np.float32)}


class Trap:
    """Unpickling it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def encoded(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def header(text: str, version: int = 1) -> bytes:
    """The start of a .npy file with this header, whatever it says."""
    length = struct.pack("<H" if version == 1 else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode("latin1") + b"\n"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def refused(path: Path, *words: str) -> None:
    """The candidate, read whole, gives one line that names the file and holds the words."""
    with pytest.raises(GoldenFileError) as caught:
        for array in candidate.read(path).values():
            array.sum()
    text = str(caught.value)
    assert "\n" not in text
    assert path.name in text
    for word in words:
        assert word in text, text


# --- what is read ---------------------------------------------------------------------------------


def test_the_ends_of_a_run_are_read_under_the_names_that_a_bundle_gives_them(tmp_path) -> None:
    """Else a port that dumps no other logits than these would not be held to them."""
    other = encoded(Z + 1)
    ends = {"input_0.npy": encoded(Z), "output_0.npy": other}
    folder = write(tmp_path / "c", {"taps/3.x.npy": encoded(BIT), **ends})
    found = candidate.read(folder)
    assert set(found) == {"x", "input", "logits"}
    np.testing.assert_array_equal(found["input"], Z)
    np.testing.assert_array_equal(found["logits"], Z + 1)
    write(folder, {"taps/4.logits.npy": encoded(Z), "input.npy": other})
    found = candidate.read(folder)  # where there are taps of these names, the others are copies
    assert set(found) == {"x", "input", "logits"}
    np.testing.assert_array_equal(found["input"], Z + 1)
    np.testing.assert_array_equal(found["logits"], Z)
    renamed = candidate.read(folder, {"output_0": "y"})
    np.testing.assert_array_equal(renamed["y"], Z + 1)


def test_what_lies_deeper_is_said(tmp_path):
    """A wrong tap in a folder of its own would be passed over without a word."""
    files = {"logits.npy": encoded(Z), "blocks.0/mid.NPY": encoded(Z), "blocks.1/x.txt": b""}
    found = candidate.read(write(tmp_path / "dump", files))
    assert set(found) == {"logits"} and found.unread == "blocks.0/mid.NPY"
    files = {"logits.NPY": encoded(Z), "taps/x.Npy": encoded(Z), "__MACOSX/y.npy": b""}
    found = candidate.read(write(tmp_path / "other", files))
    assert set(found) == {"logits", "x"} and found.unread is None


def as_flat_folder(path: Path) -> Path:
    return write(path / "flat" , {
        "blocks.0.attn.q.z.npy": encoded(Z),
        "blocks.0.attn.q.bit.npy": encoded(BIT),
        "grads/logits.npy": encoded(ARRAYS["grads/logits"]),
        "notes.txt": b"words",
    })  # fmt: skip


def as_bundle_folder(path: Path) -> Path:
    return write(path / "bundle", {
        "taps/003.blocks.0.attn.q.z.npy": encoded(Z),
        "taps/1004.blocks.0.attn.q.bit.npy": encoded(BIT),
        "grads/000.logits.npy": encoded(ARRAYS["grads/logits"]),
        "manifest.json": b"{}",
    })  # fmt: skip


def as_npz(path: Path) -> Path:
    np.savez(path / "c.npz", **ARRAYS)
    return path / "c.npz"


def as_compressed_npz(path: Path) -> Path:
    names = ("taps/000.blocks.0.attn.q.z", "1.blocks.0.attn.q.bit", "grads/2.logits")
    np.savez_compressed(path / "z.npz", **dict(zip(names, ARRAYS.values(), strict=True)))
    return path / "z.npz"


def as_safetensors(path: Path) -> Path:
    save_file(ARRAYS, path / "c.safetensors")
    return path / "c.safetensors"


@pytest.mark.parametrize(
    "make", [as_flat_folder, as_bundle_folder, as_npz, as_compressed_npz, as_safetensors]
)
def test_every_container_gives_the_same_taps(tmp_path, make) -> None:
    found = candidate.read(make(tmp_path))
    assert set(found) == set(ARRAYS)
    assert len(found) == 3
    for name, array in ARRAYS.items():
        assert name in found
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("dtype", sorted(set(npy.DTYPES) - {"bfloat16"}))
def test_every_type_of_number_is_read_in_either_order(tmp_path, dtype) -> None:
    array = np.arange(30).reshape(2, 3, 5).astype(dtype)
    write(tmp_path, {"c.npy": encoded(array), "f.npy": encoded(np.asfortranarray(array))})
    for found in candidate.read(tmp_path).values():
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, array)


@given(shape=st.lists(st.integers(0, 4), max_size=4), fortran=st.booleans())
def test_any_shape_is_read_as_numpy_reads_it(tmp_path_factory, shape, fortran) -> None:
    folder = tmp_path_factory.mktemp("shape")
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    np.save(folder / "x.npy", np.asfortranarray(array) if fortran else array)
    np.testing.assert_array_equal(candidate.read(folder)["x"], np.load(folder / "x.npy"))


def bfloat16(array: np.ndarray) -> np.ndarray:
    """Exact numbers -> their upper halves."""
    return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_bfloat16_is_read_from_every_container(tmp_path) -> None:
    """NumPy has no such type: ml_dtypes saves it as two raw bytes, safetensors as BF16."""
    array = np.array([[1.0, -2.5], [0.0, 3e38], [1.0078125, -0.0]], np.float32)
    upper = bfloat16(array)
    write(tmp_path / "folder", {"x.npy": encoded(upper.view("V2"))})
    np.savez(tmp_path / "x.npz", x=upper.view("V2"))
    entry = {"dtype": "BF16", "shape": [3, 2], "data_offsets": [0, 12]}
    text = json.dumps({"x": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + upper.tobytes())
    for name in ("folder", "x.npz", "x.safetensors"):
        found = candidate.read(tmp_path / name)
        assert found.dtypes == {"x": "bfloat16"}
        expected = (upper.astype(np.uint32) << 16).view(np.float32)
        assert found["x"].dtype == np.float32
        np.testing.assert_array_equal(found["x"], expected)


def test_a_bfloat16_scalar_is_read_as_one(tmp_path) -> None:
    """As the gradient of alpha is."""
    write(tmp_path, {"x.npy": encoded(bfloat16(np.array(-2.5)).view("V2"))})
    found = candidate.read(tmp_path)["x"]
    assert (found.shape, found.dtype, found) == ((), np.float32, -2.5)


def test_what_a_finder_leaves_is_passed_over(tmp_path) -> None:
    junk = {"._x.npy": b"words", "taps/._001.z.npy": b"words", ".DS_Store": b"words"}
    folder = write(tmp_path / "c", {**junk, "x.npy": encoded(Z)})
    assert set(candidate.read(folder)) == {"x"}
    members = {"__MACOSX/._x.npy": b"words", "__MACOSX/x.npy": b"words", **junk}
    path = write_zip(tmp_path / "c.npz", {**members, "x.npy": encoded(Z)})
    assert set(candidate.read(path)) == {"x"}
    refused(write(tmp_path / "d", junk), "no arrays in it")


def test_a_safetensors_file_that_is_cut_after_it_was_opened(tmp_path) -> None:
    """The port that writes it begins anew: to read a mapped file then ends the process."""
    path = as_safetensors(tmp_path)
    found = candidate.read(path)
    with open(path, "r+b") as file:
        file.truncate(8)
    for name in found:
        with pytest.raises(GoldenFileError, match=f"{name}: the file was changed while it was"):
            found[name]


def test_an_array_that_is_cut_while_it_is_read(tmp_path, monkeypatch) -> None:
    folder = write(tmp_path / "c", {"x.npy": encoded(Z)})
    found = candidate.read(folder)
    original = npy.header

    def cut(file, size, where):
        header = original(file, size, where)
        os.truncate(folder / "x.npy", size - 8)
        return header

    monkeypatch.setattr(npy, "header", cut)
    with pytest.raises(GoldenFileError, match="x.npy: truncated while it was read: 88 of 96"):
        found["x"]


def test_a_safetensors_file_that_would_fill_the_memory(tmp_path) -> None:
    entry = {"dtype": "F32", "shape": [2**16, 2**16], "data_offsets": [0, 2**34]}
    text = json.dumps({"x": entry}).encode()
    with open(tmp_path / "c.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2**34)  # a hole
    refused(tmp_path / "c.safetensors", "claims float32 (65536, 65536)", "expected at most")


def test_version_2_of_the_format(tmp_path) -> None:
    write(tmp_path, {"x.npy": encoded(Z, version=(2, 0))})
    np.testing.assert_array_equal(candidate.read(tmp_path)["x"], Z)


def test_a_map_renames_by_the_whole_name_or_by_the_name_without_number(tmp_path) -> None:
    write(tmp_path, {"taps/7.theirs.npy": encoded(Z), "other.npy": encoded(BIT)})
    names = tmp_path / "names.json"
    for theirs in ("theirs", "taps/7.theirs"):
        text = json.dumps({theirs: "ours", "not there": "nothing"})
        names.write_text(text, encoding="utf-8-sig")  # with the mark that some editors set
        found = candidate.read(tmp_path, candidate.read_names(names))
        assert set(found) == {"ours", "other"}
        np.testing.assert_array_equal(found["ours"], Z)


# --- what is refused ------------------------------------------------------------------------------

FLOATS = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }"

BROKEN = {
    "empty": (b"", "not a readable .npy file"),
    "no npy": (b"words" * 10, "not a readable .npy file"),
    "only the magic": (b"\x93NUMPY\x01\x00", "not a readable .npy file"),
    "a version to come": (b"\x93NUMPY\x09\x00" + bytes(200), "version 9.0"),
    "truncated": (encoded(Z)[:-1], "truncated: 95 bytes of values; float64 (2, 3, 2) has 96"),
    "truncated header": (encoded(Z)[:50], "not a readable .npy file"),
    "too long": (encoded(Z) + b"\0", "too long: 97 bytes"),
    "big-endian": (encoded(Z.astype(">f8")), "big-endian float64"),
    "big-endian integers": (encoded(Z.astype(">i4")), "big-endian int32"),
    "complex": (encoded(Z.astype(complex)), "dtype complex128"),
    "text": (encoded(np.array(["a"])), "dtype <U1"),
    "dates": (encoded(np.array([0], "M8[s]")), "dtype datetime64"),
    "raw bytes": (encoded(np.zeros(2, "V3")), "dtype |V3"),
    "fields": (encoded(np.zeros(2, [("a", "f8")])), "dtype"),
    "huge claim": (header(FLOATS % "99999999, 99999999"), "at most 1073741824"),
    "huge and empty": (header(FLOATS % "0, 10 ** 30"), "not a readable .npy file"),
    "huge beside none": (header(FLOATS % ("0, " + "9" * 40)), "expected sizes of at least 0"),
    "negative": (header(FLOATS % "-1, -8") + bytes(64), "expected sizes of at least 0"),
    "too many axes": (header(FLOATS % ("1, " * 60)) + bytes(8), "shape"),
    "no dtype": (
        header("{'descr': (), 'fortran_order': False, 'shape': (1,), }"), "not a readable"
    ),
    "half a dtype": (
        header("{'descr': ('<f4',), 'fortran_order': False, 'shape': (1,), }"), "not a readable"
    ),
    "shape of truths": (header(FLOATS % "True, 1") + bytes(8), "expected sizes of at least 0"),
    "shape of words": (header(FLOATS % "'a', 'b'"), "not a readable .npy file"),
    "header runs code": (header("__import__('os').abort()"), "not a readable .npy file"),
    "deep header": (header("(" * 5000 + ")" * 5000), "not a readable .npy file"),
    "long header": (header(FLOATS % ("1, " * 9000), version=2), "not a readable .npy file"),
    "keys missing": (header("{'descr': '<f8'}"), "not a readable .npy file"),
    "descr is no dtype": (header(FLOATS.replace("<f8", "!!") % "1,"), "not a readable .npy file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_arrays_are_one_line_in_a_folder_and_in_an_npz(tmp_path, kind) -> None:
    data, words = BROKEN[kind]
    refused(write(tmp_path / "folder", {"taps/000.good.npy": encoded(Z), "x.npy": data}), words)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        refused(write_zip(tmp_path / "c.npz", {"x.npy": data}, compression=method), "x.npy", words)


def test_a_pickle_is_never_loaded(tmp_path) -> None:
    trap = tmp_path / "trapped"
    array = np.empty(1, object)
    array[0] = Trap(trap)
    data = encoded(array, allow_pickle=True)
    bare = pickle.dumps(Trap(trap))
    refused(write(tmp_path / "a", {"x.npy": data}), "a pickle")
    refused(write(tmp_path / "b", {"x.npy": bare}), "not a readable .npy file")
    refused(write_zip(tmp_path / "c.npz", {"x.npy": data}), "a pickle")
    (tmp_path / "d.npz").write_bytes(bare)
    refused(tmp_path / "d.npz", "not a readable .npz file")
    (tmp_path / "e.safetensors").write_bytes(bare)
    refused(tmp_path / "e.safetensors", "not a readable safetensors file")
    (tmp_path / "f.pkl").write_bytes(bare)
    refused(tmp_path / "f.pkl", "expected a folder of .npy files")
    assert not trap.exists()


@pytest.mark.parametrize("target", ["file", "folder", "inside"])
def test_links_are_not_followed(tmp_path, target) -> None:
    outside = write(tmp_path / "outside", {"secret.npy": encoded(Z)})
    folder = write(tmp_path / "c", {"x.npy": encoded(Z)})
    if target == "folder":
        (folder / "taps").symlink_to(outside)
    else:
        (folder / "y.npy").symlink_to(outside / "secret.npy" if target == "file" else "x.npy")
    refused(folder, "is a link")


def test_a_candidate_may_itself_be_reached_by_a_link(tmp_path) -> None:
    (tmp_path / "link").symlink_to(write(tmp_path / "c", {"x.npy": encoded(Z)}))
    np.testing.assert_array_equal(candidate.read(tmp_path / "link")["x"], Z)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_folders_are_no_arrays(tmp_path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    os.mkfifo(folder / "x.npy")
    refused(folder, "no ordinary file")
    (folder / "x.npy").unlink()
    (folder / "x.npy").mkdir()
    refused(folder, "no ordinary file")
    for suffix in ("npz", "safetensors"):
        os.mkfifo(tmp_path / f"pipe.{suffix}")
        refused(tmp_path / f"pipe.{suffix}", "no ordinary file")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["c/x.npy", "c.npz", "c.safetensors"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(POINTER)
    refused(path.parent if path.suffix == ".npy" else path, f"{name}: a pointer of Git LFS")


@pytest.mark.parametrize(
    "name", ["/etc/x.npy", "../x.npy", "taps/../../x.npy", "\\x.npy", "C:\\x.npy"]
)
def test_names_of_an_npz_that_leave_it(tmp_path, name) -> None:
    refused(write_zip(tmp_path / "c.npz", {name: encoded(Z)}), "leaves the archive")


def test_a_bundle_cannot_name_files_outside_of_it(tmp_path) -> None:
    folder = write(tmp_path / "c", {"x.npy": encoded(Z)})
    write(tmp_path, {"secret.npy": encoded(Z)})
    for name in ("../secret.npy", str(tmp_path / "secret.npy"), "a/../../secret.npy"):
        with pytest.raises(GoldenFileError, match="leaves the folder"):
            npy.read(folder, name)
    with pytest.raises(GoldenFileError, match="null"):
        npy.read(folder, "x\0.npy")


def test_links_encryption_and_other_compressions_in_an_npz(tmp_path) -> None:
    link = zipfile.ZipInfo("x.npy")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.npz", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "link.npz", "is a link")
    packed = write_zip(tmp_path / "lzma.npz", {"x.npy": encoded(Z)}, compression=zipfile.ZIP_LZMA)
    refused(packed, "compression 14")
    data = bytearray(write_zip(tmp_path / "plain.npz", {"x.npy": encoded(Z)}).read_bytes())
    data[6] |= 1  # the flag of encryption, in front of the file and in the list at the end
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "secret.npz").write_bytes(data)
    refused(tmp_path / "secret.npz", "encrypted")


def test_damaged_npz(tmp_path) -> None:
    good = write_zip(tmp_path / "c.npz", {"x.npy": encoded(Z)}).read_bytes()
    deflated = write_zip(
        tmp_path / "c.npz", {"x.npy": encoded(Z)}, compression=zipfile.ZIP_DEFLATED
    ).read_bytes()
    damaged = bytearray(good)
    damaged[good.index(b"PK\x01\x02") - 3] ^= 1  # a value
    twisted = bytearray(deflated)
    twisted[60:70] = bytes(10)
    for data in (b"", b"words", good[:-30], good[:60], bytes(damaged), bytes(twisted)):
        (tmp_path / "c.npz").write_bytes(data)
        refused(tmp_path / "c.npz")


def test_an_npz_that_would_fill_the_memory_is_refused_by_its_header(tmp_path) -> None:
    start = header(FLOATS % f"{npy.MAX_BYTES // 8 + 1},")
    path = write_zip(tmp_path / "bomb.npz", {"x.npy": start}, compression=zipfile.ZIP_DEFLATED)
    refused(path, "at most 1073741824")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"words and more words",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 5) + b"words",
    ],
)
def test_damaged_safetensors(tmp_path, content) -> None:
    (tmp_path / "c.safetensors").write_bytes(content)
    refused(tmp_path / "c.safetensors")


def test_safetensors_with_a_lying_header(tmp_path) -> None:
    for entry, words in (
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, ""),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, ""),
        ({"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}, ""),
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "dtype F8_E4M3"),
        ({"dtype": "X", "shape": [2], "data_offsets": [0, 4]}, ""),
    ):
        text = json.dumps({"x": entry}).encode()
        (tmp_path / "c.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        refused(tmp_path / "c.safetensors", words)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x.npy", "taps/x.npy"),
        ("x.npy", "000.x.npy"),
        ("taps/001.x.npy", "taps/002.x.npy"),
        ("grads/x.npy", "grads/4.x.npy"),
    ],
)
def test_one_tap_twice(tmp_path, first, second) -> None:
    files = {first: encoded(Z), second: encoded(Z)}
    refused(write(tmp_path / "c", files), "both give")
    refused(write_zip(tmp_path / "c.npz", files), "both give")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_member_of_an_npz_twice(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("x.npy", encoded(Z))
        archive.writestr("x.npy", encoded(Z + 1))
    refused(tmp_path / "c.npz", "both give 'x'")


def test_two_names_that_a_map_makes_one(tmp_path) -> None:
    write(tmp_path, {"a.npy": encoded(Z), "b.npy": encoded(Z)})
    with pytest.raises(GoldenFileError, match="'a' and 'b' both give 'b'"):
        candidate.read(tmp_path, {"a": "b"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a readable map"),
        ("words", "not a readable map"),
        ("[" * 100_000, "not a readable map"),
        ("[]", "expected a JSON object of strings"),
        ("3", "expected a JSON object of strings"),
        ('[["a", "b"]]', "expected a JSON object of strings"),
        ('{"a": 3}', "expected a JSON object of strings"),
        ('{"a": {"b": "c"}}', "expected a JSON object of strings"),
        ('{"a": "x", "b": "x"}', "'x' stands there 2 times"),
        ('{"a": "x", "a": "y"}', "'a' stands there 2 times"),
    ],
)
def test_maps_that_are_none(tmp_path, text, words) -> None:
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(GoldenFileError, match=words) as caught:
        candidate.read_names(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_joined_archives_are_no_candidate(tmp_path) -> None:
    """Of them Python reads the last one, and half of the dump would be missing without a word."""
    for name, tap in (("a", "tokens"), ("b", "logits")):
        np.savez(tmp_path / f"{name}.npz", **{tap: np.zeros(3)})
    joined = tmp_path / "joined.npz"
    joined.write_bytes((tmp_path / "a.npz").read_bytes() + (tmp_path / "b.npz").read_bytes())
    with pytest.raises(GoldenFileError, match=r"joined\.npz: goes on after its end"):
        candidate.read(joined)


def test_a_map_that_is_not_there_or_no_text(tmp_path) -> None:
    with pytest.raises(GoldenFileError, match="not a readable map"):
        candidate.read_names(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GoldenFileError, match="not a readable map"):
        candidate.read_names(tmp_path / "bytes.json")


def test_nothing_to_read(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no arrays in it")
    refused(tmp_path / "none", "not found")
    refused(write_zip(tmp_path / "empty.npz", {}), "no arrays in it")
    refused(write(tmp_path / "bundle", {"manifest.json": b"{}"}), "no arrays in it")


def test_names_that_would_break_the_report(tmp_path) -> None:
    refused(write_zip(tmp_path / "c.npz", {"a\nb.npy": encoded(Z)}), "cannot be printed")
    refused(write_zip(tmp_path / "d.npz", {"a\x1b[2Jb.npy": encoded(Z)}), "cannot be printed")
    mapped = write_zip(tmp_path / "e.npz", {"a.npy": encoded(Z)})
    with pytest.raises(GoldenFileError, match=r"e.npz: the name 'x\\x1b\[2J' cannot be printed"):
        candidate.read(mapped, {"a": "x\x1b[2J"})
