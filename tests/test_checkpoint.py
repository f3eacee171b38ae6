"""Checkpoints: what is saved comes back to the bit, on any backend; what is damaged or does not fit is refused."""

import errno
import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from spaces import Space

import gpuopt
from gpuopt import schedules, tensorfile
from gpuopt.checkpoint import CheckpointError

DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]


def bits(x: np.ndarray[Any, Any]) -> tuple[object, ...]:
    return x.dtype, x.shape, x.tobytes()


def contents(opt: gpuopt.Optimizer) -> dict[str, Any]:
    """Everything that an optimizer holds, comparable."""
    held = opt.state_dict()
    params = {path: bits(gpuopt.backends.to_numpy(x)) for path, x in held["params"].items()}
    state = {path: {n: bits(gpuopt.backends.to_numpy(x)) for n, x in s.items()} for path, s in held["state"].items()}
    return {**held, "params": params, "state": state}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.safetensors"


# Files


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        np.asfortranarray,
        lambda x: x[::2, ::-1],
        lambda x: x.T,
        lambda x: x[:0],
        lambda x: x[1, 2],
        lambda x: x[1, 2].reshape(()),
        lambda x: x.astype(x.dtype.newbyteorder(">")),
        lambda x: np.broadcast_to(x[0], (2, *x[0].shape)),
    ],
)
def test_arrays_come_back(path: Path, dtype: str, make: Callable[[Any], Any]) -> None:
    x = make(np.arange(12).reshape(3, 4).astype(dtype))
    tensorfile.write(path, {"x": x, "one": np.ones(1, np.int8)}, {"note": "é"})
    tensors, metadata = tensorfile.read(path)
    assert bits(tensors["x"]) == bits(np.array(x, dtype=dtype))
    assert list(tensors["one"]) == [1]
    assert metadata["note"] == "é"


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=10).map(lambda text: f"params/{text}"),
        hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
        max_size=4,
    )
)
def test_any_names_and_bits_come_back_and_the_library_reads_them(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any]
) -> None:
    from safetensors.numpy import load_file

    path = tmp_path_factory.mktemp("any") / "x"
    tensorfile.write(path, tensors, {})
    for read in (tensorfile.read(path)[0], load_file(path)):
        assert {name: bits(x) for name, x in read.items()} == {name: bits(x) for name, x in tensors.items()}


def test_data_are_aligned(path: Path) -> None:
    sizes = {"a": "i1", "b": "f8", "c": "f4", "d": "f2", "e": "f8"}
    tensorfile.write(path, {name: np.ones(3, dtype) for name, dtype in sizes.items()}, {})
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    assert all(header[name]["data_offsets"][0] % np.dtype(dtype).itemsize == 0 for name, dtype in sizes.items())


def test_dtypes_that_cannot_be_saved(path: Path) -> None:
    with pytest.raises(
        TypeError, match=r"params/w: dtype complex128 cannot be saved; known: float16, float32, float64"
    ):
        tensorfile.write(path, {"params/w": np.ones(3, complex)}, {})
    assert not path.exists()


def test_names_that_cannot_be_saved(path: Path) -> None:
    with pytest.raises(
        ValueError, match=r": 'params/\\ud800': has '\\ud800', which is no character, .*; rename the key$"
    ):
        tensorfile.write(path, {"params/\ud800": np.ones(3)}, {})
    assert not path.exists()


# Optimizers

RULES = {
    "SGD": gpuopt.SGD(lr=0.1),
    "momentum": gpuopt.SGD(lr=0.1, momentum=0.9),
    "AdaGrad": gpuopt.AdaGrad(),
    "RMSProp": gpuopt.RMSProp(),
    "Adam": gpuopt.Adam(lr=schedules.inverse_time(0.1, decay=0.1)),
}


def tree(dtype: str = "f4", scale: float = 1.0) -> dict[str, Any]:
    """Leaves of every kind: nested, 0-d, empty, Fortran-ordered, strided, with a name that has everything in it."""
    x = np.random.RandomState(0).standard_normal((6, 4)).astype(dtype) * np.dtype(dtype).type(scale)
    return {
        "dense": {"w": x.copy(), "b": x[0].copy()},
        "layers": [x[1].copy(), (x[2].copy(),)],
        "scalar": np.array(x[0, 0]),
        "empty": x[:0].copy(),
        "fortran": np.asfortranarray(x),
        "strided": np.repeat(x, 2, axis=1)[:, ::2],
        "ü/w": x[3].copy(),
    }


def gradients(step: int, dtype: str = "f4") -> dict[str, Any]:
    return tree(dtype, scale=0.1 * (step + 1))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_a_run_goes_on_to_the_same_bits(path: Path, rule: gpuopt.Rule, steps: int, dtype: str) -> None:
    opt = gpuopt.Optimizer(tree(dtype), rule)
    for step in range(steps):
        opt.step(gradients(step, dtype))
    gpuopt.save(path, opt)

    params = tree(dtype, scale=0)
    other = gpuopt.Optimizer(params, rule)
    assert gpuopt.load(path, other) == {}
    assert contents(other) == contents(opt)
    for step in range(steps, steps + 3):
        opt.step(gradients(step, dtype))
        other.step(gradients(step, dtype))
    assert contents(other) == contents(opt)
    assert other.params is params


def test_bare_array(path: Path) -> None:
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.Adam())
    opt.step(np.ones(3))
    gpuopt.save(path, opt)
    assert set(tensorfile.read(path)[0]) == {"params/", "state//m", "state//v"}
    other = gpuopt.Optimizer(np.zeros(3), gpuopt.Adam())
    gpuopt.load(path, other)
    assert contents(other) == contents(opt)


def test_groups_and_tuned_hyperparameters(path: Path) -> None:
    rules = {"dense.*": gpuopt.SGD(lr=0.1), "*": gpuopt.Adam()}
    opt = gpuopt.Optimizer(tree(), rules)
    opt.tune("dense.*", lr=0.5)
    opt.tune("*", lr=schedules.linear_warmup(schedules.cosine(1.0, 100), 10), beta1=0.8)
    opt.step(gradients(0))
    gpuopt.save(path, opt)
    other = gpuopt.Optimizer(tree(scale=0), rules)
    gpuopt.load(path, other)
    assert contents(other) == contents(opt)
    assert other.rule == opt.rule
    assert other.lr == opt.lr == {"dense.*": 0.5, "*": 0.1}


@pytest.mark.parametrize(
    "extra", [None, {}, {"epoch": 3, "loss": [0.5, None], "name": "ü", "deep": {"a": {"b": True}}}]
)
def test_extra(path: Path, extra: dict[str, Any] | None) -> None:
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.SGD())
    gpuopt.save(path, opt, extra)
    assert gpuopt.load(path, opt) == (extra or {})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([1], "extra: expected a dict of JSON's types, got list"),
        (
            {"x": np.ones(3)},
            "extra['x']: array([1., 1., 1.]) (ndarray), expected JSON's types; x.tolist() is made of them",
        ),
        ({"a": [0, {"loss": np.float32(1)}]}, "extra['a'][1]['loss']: "),
        ({"x": {1, 2}}, "extra['x']: {1, 2} (set), expected JSON's types"),
        ({"losses": {10: 0.5}}, "extra['losses']: the key 10 would come back as a text, expected texts as keys"),
    ],
)
def test_extra_that_is_not_json(path: Path, extra: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        gpuopt.save(path, gpuopt.Optimizer(np.ones(3), gpuopt.SGD()), extra)
    assert str(caught.value).startswith(message)
    assert not path.exists()


def test_a_function_of_ones_own_cannot_be_saved(path: Path) -> None:
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.SGD(lr=lambda step: 0.1 / (step + 1)))
    gpuopt.save(path, opt)  # the rule belongs to the program; only what tune changed belongs to the run
    opt.tune(lr=lambda step: 0.2 / (step + 1))
    before = path.read_bytes()
    with pytest.raises(
        TypeError, match=r"^SGD of '\*': lr: <function .* set by tune and no file can hold; .* gpuopt\.schedules"
    ):
        gpuopt.save(path, opt)
    assert path.read_bytes() == before


def test_file_layout(path: Path) -> None:
    opt = gpuopt.Optimizer({"dense": {"w": np.ones(2)}}, gpuopt.Adam())
    gpuopt.save(str(path), opt, {"epoch": 1})
    tensors, metadata = tensorfile.read(str(path))
    assert set(tensors) == {"params/dense.w", "state/dense.w/m", "state/dense.w/v"}
    assert set(metadata) == {"gpuopt", "crc32"}
    rules = {"*": {"name": "Adam", "tuned": {}}}
    assert json.loads(metadata["gpuopt"]) == {"format": 1, "steps": 0, "rules": rules, "extra": {"epoch": 1}}


def test_a_run_moves_between_backends(path: Path, cupy_space: Space) -> None:
    backend = gpuopt.backend("cupy")

    def moved(leaves: Any) -> Any:
        return {name: backend.asarray(x) for name, x in leaves.items()}

    x = np.random.RandomState(0).standard_normal((6, 4))
    leaves = {"w": x, "f": np.asfortranarray(x), "s": np.repeat(x, 2, axis=1)[:, ::2], "n": x[0, 0].reshape(())}
    grads = {name: leaf * 0.1 for name, leaf in leaves.items()}
    there = gpuopt.Optimizer(moved(leaves), gpuopt.Adam())
    here = gpuopt.Optimizer({name: np.zeros_like(leaf) for name, leaf in leaves.items()}, gpuopt.Adam())
    again = gpuopt.Optimizer(moved({name: np.zeros_like(leaf) for name, leaf in leaves.items()}), gpuopt.Adam())
    there.step(moved(grads))
    gpuopt.save(path, there)
    gpuopt.load(path, here)
    assert contents(here) == contents(there)
    there.step(moved(grads))
    here.step(grads)
    gpuopt.save(path, here)
    gpuopt.load(path, again)
    assert contents(again) == contents(here) == contents(there)
    assert all(backend.name in type(x).__module__ for x in again.state_dict()["params"].values())


def test_a_run_moves_between_devices_of_a_library() -> None:
    one, two = array_api_strict.Device("CPU_DEVICE"), array_api_strict.Device("device1")
    here, there = (
        gpuopt.Optimizer(array_api_strict.asarray([1.0, 2.0], device=device), gpuopt.Adam()) for device in (one, two)
    )
    here.step(here.params * 0.5)
    there.load_state_dict(here.state_dict())
    assert there.params.device == two
    assert np.array_equal(there.params.to_device(one), here.params)
    there.step(there.params * 0.5)
    here.step(here.params * 0.5)
    assert np.array_equal(there.params.to_device(one), here.params)


# Files that do not fit


def test_mismatches_are_listed_and_change_nothing(path: Path) -> None:
    gpuopt.save(path, gpuopt.Optimizer({"a": np.ones(3), "b": np.ones(3), "c": np.ones(3)}, gpuopt.Adam()))
    other = gpuopt.Optimizer({"a": np.zeros(4), "b": np.zeros(3, "f4"), "d": np.zeros(3)}, gpuopt.SGD(momentum=0.9))
    before = contents(other)
    with pytest.raises(CheckpointError) as caught:
        gpuopt.load(path, other)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    for part in ("a", "(3,)", "(4,)", "b", "float64", "float32", "c", "d", "Adam", "SGD"):
        assert part in message
    assert contents(other) == before


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, str]], object]) -> None:
    tensors, metadata = tensorfile.read(path)
    del metadata["crc32"]
    change(tensors, metadata)
    tensorfile.write(path, tensors, metadata)


def about(**changes: Any) -> Callable[[dict[str, Any], dict[str, str]], object]:
    def change(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata["gpuopt"] = json.dumps({**json.loads(metadata["gpuopt"]), **changes})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (about(format=2), "checkpoint of format 2; this version of gpuopt knows format 1"),
        (about(format="1"), "damaged: the metadata 'gpuopt' cannot be read"),
        (about(steps=-1), "damaged: the metadata 'gpuopt' cannot be read"),
        (about(steps=1.5), "damaged: the metadata 'gpuopt' cannot be read"),
        (about(rules=[]), "damaged: the metadata 'gpuopt' cannot be read"),
        (about(extra=None), "damaged: the metadata 'gpuopt' cannot be read"),
        (lambda tensors, metadata: metadata.clear(), "a safetensors file, but not one of gpuopt's checkpoints"),
        *(
            (lambda tensors, metadata, text=text: metadata.update(gpuopt=text), "damaged: the metadata 'gpuopt' cannot")
            for text in ("", "{", "[]", "[" * 100_000, '{"format": 1}')
        ),
        (lambda tensors, metadata: tensors.update(other=np.ones(1)), "unexpected array 'other'"),
        (lambda tensors, metadata: tensors.update({"state/m": np.ones(1)}), "unexpected array 'state/m'"),
        (lambda tensors, metadata: tensors.update({"state/x/m": np.ones(1)}), ""),
        (lambda tensors, metadata: tensors.pop("state/w/m"), ""),
        (lambda tensors, metadata: tensors.pop("params/w"), ""),
    ],
)
def test_other_files_of_the_same_format(path: Path, change: Any, message: str) -> None:
    opt = gpuopt.Optimizer({"w": np.ones(3)}, gpuopt.Adam())
    gpuopt.save(path, opt)
    before = contents(opt)
    rewritten(path, change)
    with pytest.raises(CheckpointError) as caught:
        gpuopt.load(path, opt)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert contents(opt) == before


def safetensors_file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], end: int) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"abc",
        b"PK\x03\x04" + bytes(100),
        bytes(1000),
        (2**63).to_bytes(8, "little") + b"{}",
        (90_000_000).to_bytes(8, "little") + b"{}",
        safetensors_file(b"no JSON"),
        safetensors_file(b"\xff\xfe"),
        safetensors_file([]),
        safetensors_file(b"[" * 100_000),
        safetensors_file(entry("F32", [2**40], 2**42)),
        safetensors_file(entry("F32", [2**40, 2**40], 8), bytes(8)),
        safetensors_file(entry("F32", [0, 2**62], 0)),
        safetensors_file(entry("F32", [-2], 8), bytes(8)),
        safetensors_file(entry("F32", [2], 8), bytes(9)),
        safetensors_file(entry("X32", [2], 8), bytes(8)),
        safetensors_file(entry("F32", [2], 8) | {"y": entry("I8", [1], 1)["x"]}, bytes(8)),
        safetensors_file({"x": entry("I8", [1], 1)["x"] | {"data_offsets": [1, 2]}}, bytes(2)),
        safetensors_file({"x": entry("I8", [1], 1)["x"] | {"data_offsets": [0.0, 1.0]}}, bytes(1)),
        safetensors_file({"x": entry("I8", [1], 1)["x"] | {"data_offsets": [0, 1, 1]}}, bytes(1)),
        safetensors_file(entry("I8", [10**300] * 100_000, 1), bytes(1)),
        safetensors_file({"__metadata__": []}),
        safetensors_file({"__metadata__": {"a": 1}}),
    ],
)
def test_other_files(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        tensorfile.read(path)
    assert str(caught.value).startswith(f"{path}: not a safetensors file, or damaged: ")
    with pytest.raises(CheckpointError, match=path.name):
        gpuopt.load(path, gpuopt.Optimizer(np.ones(3), gpuopt.SGD()))


@pytest.mark.slow
def test_every_truncation_and_every_flipped_bit_is_noticed(path: Path) -> None:
    opt = gpuopt.Optimizer({"w": np.arange(3.0), "b": np.ones((), "f4")}, gpuopt.SGD(momentum=0.9))
    opt.step({"w": np.ones(3), "b": None})
    gpuopt.save(path, opt, {"epoch": 12})
    raw, good = path.read_bytes(), contents(opt)
    damaged = [raw[:length] for length in range(len(raw))] + [raw + b"\0"]
    damaged += [
        raw[:index] + bytes([byte ^ 1 << bit]) + raw[index + 1 :] for index, byte in enumerate(raw) for bit in range(8)
    ]
    loaded = 0
    for text in damaged:
        path.write_bytes(text)
        try:
            extra = gpuopt.load(path, opt)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
        else:
            loaded += 1
            assert extra == {"epoch": 12}  # a space in the header became another one, or the name of a checksum changed
        assert contents(opt) == good
    assert loaded < len(damaged) / 20


def test_what_does_not_fit_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a hole may well be larger than the memory."""
    opt = gpuopt.Optimizer({"w": np.ones(3)}, gpuopt.SGD())
    gpuopt.save(path, opt)
    metadata = tensorfile.read(path)[1]
    size = 2**43
    header: dict[str, Any] = {"__metadata__": metadata}
    header["params/w"] = {"dtype": "F64", "shape": [size // 8], "data_offsets": [0, size]}
    raw = safetensors_file(header)
    path.write_bytes(raw)
    try:
        os.truncate(path, len(raw) + size)
    except OSError:
        pytest.skip("no files with holes of that size here")
    with pytest.raises(CheckpointError, match=rf"params/w: shape \({size // 8},\), expected \(3,\)"):
        gpuopt.load(path, opt)


def test_dtypes_that_are_not_ours_are_not_read(path: Path) -> None:
    path.write_bytes(safetensors_file(entry("F8_E4M3", [4], 4), bytes(4)))
    tensors, _ = tensorfile.read(path)
    assert vars(tensors["x"]) == {"shape": (4,), "dtype": "F8_E4M3"}


def test_damage_is_located(path: Path) -> None:
    opt = gpuopt.Optimizer({"w": np.arange(3.0), "b": np.ones(3)}, gpuopt.SGD())
    gpuopt.save(path, opt)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="damaged: wrong checksum of 'params/w'"):
        gpuopt.load(path, opt)


def test_no_file(tmp_path: Path) -> None:
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.SGD())
    with pytest.raises(FileNotFoundError, match="missing"):
        gpuopt.load(tmp_path / "missing", opt)
    with pytest.raises(CheckpointError, match="not a file"):
        gpuopt.load(tmp_path, opt)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop"):
        gpuopt.load(tmp_path / "loop", opt)
    gpuopt.save(tmp_path / "loop", opt)
    gpuopt.load(tmp_path / "loop", opt)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="not a file"):
            gpuopt.load(tmp_path / "pipe", opt)


# Writing


def test_on_the_disk_before_it_is_renamed_and_the_folder_after(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def recorded_replace(self: Path, target: Path) -> Path:
        assert self.parent == target.parent
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    tensorfile.write(path, {"x": np.ones(3)}, {})
    assert events == ["file", "rename", "folder"][: 3 if os.name == "posix" else 2]


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str, code: int
) -> None:
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.Adam())
    gpuopt.save(path, opt, {"epoch": 1})
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(data[:5])
            raise OSError(code, os.strerror(code))

    if where == "write":
        monkeypatch.setattr("gpuopt.files.open", lambda file, mode, **_: Full(file, mode), raising=False)
    else:
        monkeypatch.setattr(os if where == "fsync" else Path, where, fail)
    with pytest.raises(OSError, match=path.name) as caught:
        gpuopt.save(path, opt, {"epoch": 2})
    assert caught.value.errno == code
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        gpuopt.save(tmp_path / "nowhere" / "x", gpuopt.Optimizer(np.ones(3), gpuopt.SGD()))


def test_an_interrupt_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorfile.write(path, {"x": np.ones(3)}, {})

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tensorfile.write(path, {"x": np.zeros(3)}, {})
    assert tensorfile.read(path)[0]["x"].tolist() == [1, 1, 1]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links as POSIX has them")
def test_permissions_and_links_are_kept(path: Path, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        tensorfile.write(path, {"x": np.ones(3)}, {})
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    link = tmp_path / "link"
    link.symlink_to(path)
    tensorfile.write(link, {"x": np.zeros(3)}, {})
    assert link.is_symlink()
    assert tensorfile.read(path)[0]["x"].tolist() == [0, 0, 0]


def test_too_much_for_a_header(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "HEADER_LIMIT", 1000)
    with pytest.raises(ValueError, match=r"names and metadata take \d+ bytes, more than safetensors' 1000"):
        tensorfile.write(path, {"x": np.ones(3)}, {"extra": "x" * 1000})
    assert not path.exists()


def test_a_missing_checksum_is_a_wrong_one(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    opt = gpuopt.Optimizer({"w": np.ones(3)}, gpuopt.SGD())
    gpuopt.save(tmp_path / "file", opt)
    arrays, metadata = tensorfile.read(tmp_path / "file")
    arrays["params/w"][0] = 7
    sums = {name: crc for name, crc in json.loads(metadata["crc32"]).items() if name != "params/w"}
    for kept, named in ((sums, "'params/w'"), ({}, "'gpuopt', 'params/w'")):
        save_file(arrays, tmp_path / "file", {**metadata, "crc32": json.dumps(kept)})
        with pytest.raises(gpuopt.CheckpointError, match=f"wrong checksum of {named}"):
            gpuopt.load(tmp_path / "file", opt)
    assert opt.params["w"].tolist() == [1, 1, 1]


def test_what_somebody_else_wrote(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"params/": np.ones(3)}, tmp_path / "file")
    with pytest.raises(gpuopt.CheckpointError, match="a safetensors file, but not one of gpuopt's checkpoints"):
        gpuopt.load(tmp_path / "file", gpuopt.Optimizer(np.ones(3), gpuopt.SGD()))


def test_a_folder_that_is_missing_is_named_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "file"
    with pytest.raises(FileNotFoundError) as error:
        gpuopt.save(path, gpuopt.Optimizer(np.ones(3), gpuopt.SGD()))
    assert error.value.filename == str(path)
