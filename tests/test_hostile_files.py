"""Damaged and hostile files: an error that names the file and the reason; no crash, no hang, no memory taken.

``--soak`` tries ten thousand of them.
"""

import gc
import resource
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mutations import MUTATIONS

from gpuopt.training import Callback, Config, Training, UsageError, load, train
from gpuopt.training.checkpoints import Checkpoints
from gpuopt.training.folder import RunFolder
from gpuopt.training.run import _prepared

MEMORY = 512 << 20  # bytes that may be taken beyond what there was at the beginning
RANDOM = np.random.RandomState(3)
X, Y = RANDOM.randn(40, 3).astype("f4"), RANDOM.randint(3, size=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that was stopped on its way."""
    folder = tmp_path_factory.mktemp("whole") / "run"

    class Stop(Callback):
        def epoch(self, training: Training) -> None:
            if training.epoch == 4:
                training.stop("enough")

    train(Config(epochs=8, hidden=(4,), checkpoint_every=1), out=folder, callbacks=[Stop()])
    return RunFolder(folder)


def npz(compressed: bool) -> bytes:
    file = BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, x_train=X, y_train=Y, x_test=X, y_test=Y)
    return file.getvalue()


def table(kind: str) -> bytes:
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(y=Y)
    return frame.to_csv(index=False).encode() if kind == "csv" else bytes(frame.to_parquet(index=False))


Read = Callable[[Path], object]


def restored(run: RunFolder, name: str) -> tuple[bytes, Read]:
    """A file of a run, and reading it where the other files are whole."""
    training, _ = _prepared(Config.from_json(run.read_config()["config"]))
    original = Checkpoints(run, training.config)
    original.restore(training)
    expected = {path: x.copy() for path, x in training.optimizer.state_dict()["params"].items()}

    def read(path: Path) -> None:
        folder = RunFolder(path.parent)
        for file in (run.config, run.metrics, run.checkpoint):
            if file.name != path.name:
                (path.parent / file.name).write_bytes(file.read_bytes())
        config = Config.from_json(folder.read_config()["config"])
        assert config == training.config
        with folder.locked():
            Checkpoints(folder, replace(config)).restore(training)
        found = training.optimizer.state_dict()["params"]
        assert all(found[leaf].tobytes() == x.tobytes() for leaf, x in expected.items()), "other parameters"

    return (run.path / name).read_bytes(), read


CATEGORIES: dict[str, tuple[str, Callable[[RunFolder], tuple[bytes, Read]]]] = {
    "checkpoint": ("checkpoint.safetensors", lambda run: restored(run, "checkpoint.safetensors")),
    "config": ("config.json", lambda run: restored(run, "config.json")),
    "metrics": ("metrics.jsonl", lambda run: restored(run, "metrics.jsonl")),
    "npz": ("data.npz", lambda _: (npz(compressed=False), load)),
    "npz, compressed": ("data.npz", lambda _: (npz(compressed=True), load)),
    "csv": ("data.csv", lambda _: (table("csv"), lambda path: load(path, "y"))),
    "parquet": ("data.parquet", lambda _: (table("parquet"), lambda path: load(path, "y"))),
}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(("name", "make"), CATEGORIES.values(), ids=CATEGORIES)
def test_mutated_files(run: RunFolder, tmp_path: Path, request: pytest.FixtureRequest, name: str, make: Any) -> None:
    content, read = make(run)
    path = tmp_path / name
    path.write_bytes(content)
    read(path)  # as it is it can be read
    count = 1430 if request.config.getoption("--soak") else 44
    random, outcomes, before, slowest, began = Random(name), Counter[str](), peak(), 0.0, time.perf_counter()
    for number in range(count):
        mutation = MUTATIONS[number % len(MUTATIONS)]
        path.write_bytes(mutation(content, random))
        begin = time.perf_counter()
        try:
            read(path)
        except UsageError as error:
            outcomes["refused" if name in str(error) else f"refused without its name: {error}"] += 1
        except BaseException as error:
            error.add_note(f"{mutation.__name__}, number {number}")
            raise
        else:
            outcomes["read"] += 1
        slowest = max(slowest, time.perf_counter() - begin)
    gc.collect()
    grown = peak() - before
    print(
        f"{request.node.callspec.id}: {count} files, {dict(outcomes)}, {time.perf_counter() - began:.1f} s, "
        f"the slowest {slowest:.3f} s, {grown / 2**20:.0f} MiB more memory"
    )
    assert outcomes.keys() <= {"refused", "read"}
    assert grown < MEMORY


# Files that ask for much


def archive(member: bytes, **claims: Any) -> bytes:
    """An .npz file whose array x is `member`, packed well, and whose directory claims something else."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("x.npy", member)
        packed.writestr("y.npy", member)
        for name, value in claims.items():
            for info in packed.filelist:
                setattr(info, name, value)
    return file.getvalue()


def header(shape: tuple[int, ...], dtype: str = "<f4", version: int = 1) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little") + text.encode()


def bomb() -> bytes:
    """Half a gibibyte of zeros in half a mebibyte."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("x.npy", "y.npy"):
            with packed.open(name, "w") as member:
                member.write(header((1 << 27, 1)))
                for _ in range(512):
                    member.write(bytes(1 << 20))
    return file.getvalue()


def parquet_bomb() -> bytes:
    """Two hundred million ones, run-length encoded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, part = BytesIO(), pa.table({"x": np.ones(10_000_000), "y": np.ones(10_000_000, int)})
    with pq.ParquetWriter(file, part.schema) as writer:
        for _ in range(10):
            writer.write_table(part)
    return file.getvalue()


GREEDY: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "header of an array": ("a.npz", lambda: archive(header((10**12, 4)) + bytes(100)), "x: damaged: shape .* takes"),
    "negative": ("a.npz", lambda: archive(header((-4, 4)) + bytes(100)), "a.npz: "),
    "items": ("a.npz", lambda: archive(header((1,), "S999999999999") + bytes(100)), "a.npz: "),
    "objects": ("a.npz", lambda: archive(header((1,), "|O") + bytes(100)), "x: holds Python objects"),
    "version": ("a.npz", lambda: archive(header((1,), version=3)), r"x: is of version 3.0"),
    "size in the directory": ("a.npz", lambda: archive(header((1,)), file_size=1 << 31), "x: damaged: .* cannot come"),
    "another compression": ("a.npz", lambda: archive(header((1,)), compress_type=14), "a.npz: "),
    "encrypted": ("a.npz", lambda: archive(header((1,)), flag_bits=1), "x: is packed in a way"),
    "bomb": ("a.npz", bomb, "x: .* bytes that unpack to .*: no real data do"),
    "table in a few bytes": ("a.parquet", parquet_bomb, "the table: .* bytes that unpack to"),
}


@pytest.mark.parametrize(("name", "make", "message"), GREEDY.values(), ids=GREEDY)
def test_files_that_ask_for_much(tmp_path: Path, name: str, make: Callable[[], bytes], message: str) -> None:
    path = tmp_path / name
    path.write_bytes(make())
    before = peak()
    with pytest.raises(UsageError, match=message):
        load(path, "y" if path.suffix == ".parquet" else None)
    assert peak() - before < MEMORY


def test_a_checkpoint_that_asks_for_much(run: RunFolder, tmp_path: Path) -> None:
    content, read = restored(run, "checkpoint.safetensors")
    for claim in (b'"shape": [4]', b'"shape":[4]'):
        content = content.replace(claim, claim.replace(b"4", b"999999999999"))
    size = int.from_bytes(content[:8], "little") + len(content) - run.checkpoint.stat().st_size
    path = tmp_path / run.checkpoint.name
    for length in (size, 1 << 40, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little") + content[8:])
        with pytest.raises(UsageError, match=r"checkpoint\.safetensors: "):
            read(path)


@pytest.mark.parametrize("name", ["a.npz", "a.csv", "a.parquet"])
@pytest.mark.parametrize("what", ["loop", "pipe", "device"])
def test_no_files(tmp_path: Path, name: str, what: str) -> None:
    import os

    path = tmp_path / name
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if what == "loop" else "/dev/zero")
    with pytest.raises(UsageError, match=f"{name}: (Too many levels of symbolic links|not a regular file)"):
        load(path, "y")
