"""Damaged and hostile files: an error that names the file and the reason; no crash, no hang, no memory taken.

``--soak`` tries two thousand of each kind: ten thousand checkpoints and data files, and those of a run folder.
"""

import contextlib
import gc
import gzip
import json
import os
import re
import resource
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mutations import MUTATIONS

import gpuopt
from gpuopt import checkpoint, tensorfile
from gpuopt.runs.record.folder import RunFolder
from gpuopt.runs.record.history import History
from gpuopt.training import Callback, Config, Training, UsageError, load, report, resume, train
from gpuopt.training.preparing import prepared

HANGS = 30  # seconds, of which a file takes a thousandth
MEMORY = 512 << 20  # bytes that may be taken beyond what there was at the beginning
RANDOM = np.random.RandomState(3)
X, Y = RANDOM.randn(600, 3).astype("f4"), RANDOM.randint(3, size=600)  # more than zipfile reads, and checks, at once


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
    learner, content = prepared(Config.from_json(run.read_config()["config"]))
    Training(run.path, learner, content).close()
    expected = {path: x.copy() for path, x in learner.optimizer.state_dict()["params"].items()}

    def read(path: Path) -> None:
        folder = RunFolder(path.parent)
        for file in (run.config, run.metrics, run.checkpoint):
            if file.name != path.name:
                (path.parent / file.name).write_bytes(file.read_bytes())
        config = Config.from_json(folder.read_config()["config"])
        assert config == learner.config
        Training(folder.path, learner, content).close()
        found = learner.optimizer.state_dict()["params"]
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


def test_every_bit_of_an_arrays_header(tmp_path: Path) -> None:
    content, path = npz(compressed=False), tmp_path / "a.npz"
    begin, end = content.index(b"\x93NUMPY"), content.index(b"\n")
    for bit in range(8 * begin, 8 * end):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(UsageError, match=r"a\.npz: "):
            load(path)


def test_every_byte_of_a_footer(tmp_path: Path) -> None:
    """Damaged statistics end the process in pyarrow's own reading of a column's metadata."""
    content, path = parquet(a=X[:, 0], y=Y), tmp_path / "a.parquet"
    for at in range(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), len(content) - 4):
        bit = 16 if at % 2 else 1
        path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        with contextlib.suppress(UsageError):
            load(path, "y")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(("name", "make"), CATEGORIES.values(), ids=CATEGORIES)
def test_mutated_files(run: RunFolder, tmp_path: Path, request: pytest.FixtureRequest, name: str, make: Any) -> None:
    content, read = make(run)
    path = tmp_path / name
    path.write_bytes(content)
    read(path)  # as it is it can be read
    count = 2000 if request.config.getoption("--soak") else 44
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
    assert slowest < HANGS
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


def described(text: bytes) -> bytes:
    """An array whose header is `text`."""
    return b"\x93NUMPY\2\0" + len(text).to_bytes(4, "little") + text + bytes(64)


def bomb() -> bytes:
    """More than a quarter of a gibibyte of zeros in a quarter of a mebibyte."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        with packed.open("x.npy", "w") as member:
            member.write(header((65 << 20, 1)))
            for _ in range(260):
                member.write(bytes(1 << 20))
        packed.writestr("y.npy", header((1,)) + bytes(4))
    return file.getvalue()


def parquet_bomb() -> bytes:
    """Forty million ones, run-length encoded."""
    return parquet(x=np.ones(20_000_000), y=np.ones(20_000_000, int))


def parquet(**columns: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = BytesIO()
    pq.write_table(pa.table(columns), file, compression="zstd")
    return file.getvalue()


def text_bomb() -> bytes:
    """A label of many megabytes, which stands in the file once."""
    return parquet(x=np.arange(100.0), y=["z" * (5 << 20)] * 100)


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
    "long text": ("a.parquet", text_bomb, "column 'y': a text of 5,242,880 characters, expected at most 256"),
    "lists": ("a.parquet", lambda: parquet(x=[[0] * 10_000] * 9, y=[0] * 9), "column 'x': holds list.*, expected numb"),
    "list as a label": ("a.parquet", lambda: parquet(x=[0.5] * 9, y=[[0]] * 9), "column 'y': holds list"),
    "text as features": (
        "a.parquet",
        lambda: parquet(x=["z" * 9] * 9, y=[0] * 9),
        "column 'x': holds text such as 'zzzzzzzzz', a feature must be numbers",
    ),
    "commas": ("a.csv", lambda: b"," * 10_000_000, "a table of 4,194,305 columns, expected at most 30,000"),
    "commas in the second line": ("a.csv", lambda: b"a,y\n" + b"1," * 3_000_000, "a table of .* columns, expected"),
    "commas after a blank line": ("a.csv", lambda: b" \t\n\r\n" + b"," * 200_000, "a table of 200,001 columns"),
    "commas within quotes": ("a.csv", lambda: b'a,"\n",' * 20_000, "a table of 40,001 columns"),
    "blank lines": ("a.csv", lambda: b"\n" * 5_000_000 + b"a,y\n1,2\n", "the first rows in its first 4,194,304 char"),
    "blank lines after the header": ("a.csv", lambda: b"a,y\n" + b"\n" * 5_000_000 + b"1,2,3\n", "the first rows in"),
    "zeros as text": ("a.csv", lambda: b"a,y\n" + bytes(10_000_000), "a.csv: "),
    "a quote that never ends": ("a.csv", lambda: b'a,y\n"' + b"1,2\n" * 5_000_000, "a.csv: "),
    "packed text": ("a.csv", lambda: gzip.compress(b"a,y\n" + b"1,2\n" * 1_000_000), "a.csv: "),
    "brackets": ("a.npz", lambda: archive(described(b"(" * 100_000)), "a.npz: "),
    "power": ("a.npz", lambda: archive(described(b"{'descr': '<f4', 'shape': (9**9**9,)}")), "a.npz: "),
    "a call": ("a.npz", lambda: archive(described(b"__import__('os').abort()")), "a.npz: "),
    "no dtype": (
        "a.npz",
        lambda: archive(described(b"{'descr': (), 'fortran_order': False, 'shape': ()}")),
        "IndexError",
    ),
    "list as a key": ("a.npz", lambda: archive(described(b"{[]: 1}")), "TypeError"),
    "number as a key": ("a.npz", lambda: archive(described(b"{1: 2, 'a': 3}")), "TypeError"),
    "indented": ("a.npz", lambda: archive(described(b"{'descr'\n\t:1\n }")), "a.npz: "),
    "true rows": (
        "a.npz",
        lambda: archive(described(b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 16)}")),
        "a.npz: ",
    ),
    "digits": ("a.npz", lambda: archive(described(b"{'descr': '<f4', 'shape': (" + b"9" * 6000 + b",)}")), "a.npz: "),
}


@pytest.mark.parametrize(("name", "make", "message"), GREEDY.values(), ids=GREEDY)
def test_files_that_ask_for_much(tmp_path: Path, name: str, make: Callable[[], bytes], message: str) -> None:
    path = tmp_path / name
    path.write_bytes(make())
    before = peak()
    with pytest.raises(UsageError, match=message):
        load(path, None if path.suffix == ".npz" else "y")
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
@pytest.mark.parametrize("what", ["loop", "pipe", "device", "folder", "nothing"])
def test_no_files(tmp_path: Path, name: str, what: str) -> None:
    path = tmp_path / name
    make_no_file(path, what)
    with pytest.raises(
        UsageError, match=f"{name}: (Too many levels of symbolic links|not a regular file|No such file)"
    ):
        load(path, "y")


def make_no_file(path: Path, what: str) -> None:
    match what:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "elsewhere":
            path.symlink_to(path.with_name("precious"))


# Run folders, as somebody hostile hands them on: the checksums are right


def handed_on(run: RunFolder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "run"))


@pytest.mark.parametrize("what", ["loop", "pipe", "device", "folder", "elsewhere"])
@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "checkpoint.safetensors", "best.safetensors", "summary.json"]
)
def test_a_run_folder_with_no_files(run: RunFolder, tmp_path: Path, name: str, what: str) -> None:
    folder = handed_on(run, tmp_path)
    (folder / "precious").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    make_no_file(folder / name, what)
    with pytest.raises(UsageError, match=re.escape(name)):
        resume(folder)
    assert (folder / "precious").read_text() == "{}"


@pytest.mark.parametrize("name", ["x.tmp", "summary.json.tmp"])
def test_a_run_folder_with_a_folder_where_files_are_written(run: RunFolder, tmp_path: Path, name: str) -> None:
    folder = handed_on(run, tmp_path)
    (folder / name).mkdir()
    with pytest.raises(UsageError, match=f"{name}: cannot be removed: Is a directory"):
        resume(folder)
    (tmp_path / "new" / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=f"{name}: cannot be removed: Is a directory"):
        train(Config(epochs=1), out=tmp_path / "new")


def test_a_device_is_not_replaced_by_a_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=f"not a regular file.*{name}"):
            gpuopt.save(tmp_path / name, gpuopt.Optimizer(np.ones(3), gpuopt.SGD()))
    assert (tmp_path / "pipe").is_fifo()


CONFIGS: dict[str, Any] = {
    "epochs": [0, "x", [1], 1.5, 10**400],
    "hidden": [[10**9], [10**400], "ab", [[1]], [1] * 100_000, [1000] * 1000],
    "data": ["/dev/zero", 5, "a\0b.npz"],
    "batch_size": [-1, {}, "half"],
    "seed": [-1, 2**64, "a"],
    "lr": ["inf", -1, {}, [], {"schedule": "join", "arguments": {}}, {"schedule": "__import__", "arguments": {}}],
    "checkpoint_every": ["-1s", {}, None, "9" * 5000],
    "clip_norm": [10**400, True, "x", [1]],
    "keep": [-1, "x"],
    "on_explosion": [[], "hope"],
    "device": [5, "\0", "cuda:x"],
    "task": [[], "x"],
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_that_nobody_wrote(run: RunFolder, tmp_path: Path, name: str) -> None:
    folder = handed_on(run, tmp_path)
    content = run.read_config()
    for value in CONFIGS[name]:
        RunFolder(folder).write_config({**content, "config": {**content["config"], name: value}})
        before = (folder / "metrics.jsonl").read_bytes()
        with pytest.raises((UsageError, gpuopt.BackendUnavailable)):
            resume(folder, epochs=None if name == "epochs" else 9)
        assert (folder / "metrics.jsonl").read_bytes() == before


POSITIONS: dict[str, Any] = {
    "position": [
        {"epoch": 10**30}, {"epoch": -3}, {"epoch": "4"}, {"epoch": 1.5}, {"batch": -1}, {"score": "x"}, {"score": None},
        {"score": [1, 2, 3]}, {"seconds": "x"}, {"seconds": float("nan")}, {"lr": "x"}, {"norms": [1]}, {"norms": [0, "x"]},
        {"other": 1},
    ],
    "explosions": [{"first": "x"}, {"rollbacks": "x"}, {"skipped": -1}, {"jumped_at": "x"}, {"other": 1}],
}  # fmt: skip


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_that_nobody_wrote(run: RunFolder, tmp_path: Path, name: str) -> None:
    folder = handed_on(run, tmp_path)
    learner, _ = prepared(Config.from_json(run.read_config()["config"]))
    extra = checkpoint.load(run.checkpoint, learner.optimizer)
    cases = [{**extra, name: {**extra[name], **changed}} for changed in POSITIONS[name]]
    cases += [{**extra, "metrics": value} for value in ([-5, 0], [10**30, 0], ["a", 0], [1.5, 0], 5)]
    cases += [{}, {**extra, "lowest": []}]
    for case in cases:
        checkpoint.save(folder / run.checkpoint.name, learner.optimizer, case)
        before = (folder / "metrics.jsonl").read_bytes()
        with pytest.raises(UsageError, match=r"checkpoint\.safetensors: is no checkpoint of a run"):
            resume(folder)
        assert (folder / "metrics.jsonl").read_bytes() == before


RULES: dict[str, Any] = {
    "list": [],
    "text": {"*": "SGD"},
    "no name": {"*": {"tuned": {}}},
    "nothing tuned": {"*": {"name": "SGD"}},
    "a list tuned": {"*": {"name": "SGD", "tuned": [1]}},
    "text tuned": {"*": {"name": "SGD", "tuned": {"lr": "x"}}},
    "negative": {"*": {"name": "SGD", "tuned": {"lr": -1}}},
    "unknown": {"*": {"name": "SGD", "tuned": {"rate": 1}}},
    "schedule": {"*": {"name": "SGD", "tuned": {"lr": {"schedule": "__import__", "arguments": {}}}}},
    "arguments": {"*": {"name": "SGD", "tuned": {"lr": {"schedule": "join", "arguments": {"schedules": 5}}}}},
}


@pytest.mark.parametrize(
    "about",
    [
        *({"format": 1, "steps": 1, "rules": rules, "extra": {}} for rules in RULES.values()),
        *(
            {"format": 1, "steps": n, "rules": {"*": {"name": "SGD", "tuned": {}}}, "extra": {}}
            for n in (-1, 10**300, 0.5)
        ),
        *({"format": n, "steps": 1, "rules": {"*": {"name": "SGD", "tuned": {}}}, "extra": {}} for n in (2, "1", None)),
        {"format": 1, "steps": 1, "rules": {"*": {"name": "SGD", "tuned": {}}}, "extra": []},
    ],
    ids=[*RULES, "before the first step", "10**300 steps", "half a step", "format 2", "text", "none", "list as extra"],
)
def test_metadata_that_nobody_wrote(tmp_path: Path, about: dict[str, Any]) -> None:
    w = np.ones(3)
    opt = gpuopt.Optimizer(w, gpuopt.SGD())
    tensorfile.write(tmp_path / "file", {"params/": np.zeros(3)}, {"gpuopt": json.dumps(about)})
    with pytest.raises(gpuopt.CheckpointError, match="file: "):
        gpuopt.load(tmp_path / "file", opt)
    assert (opt.steps, w.tolist(), opt.lr) == (0, [1, 1, 1], 0.01)


@pytest.mark.parametrize("text", ["[" * 500_000, '{"a":' * 100_000, '{"format": ' + "9" * 5000 + "}", "", "null"])
def test_metadata_that_are_no_metadata(tmp_path: Path, text: str) -> None:
    tensorfile.write(tmp_path / "file", {"params/": np.zeros(3)}, {"gpuopt": text})
    with pytest.raises(gpuopt.CheckpointError, match="file: damaged: the metadata"):
        gpuopt.load(tmp_path / "file", gpuopt.Optimizer(np.ones(3), gpuopt.SGD()))


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
@pytest.mark.parametrize(
    "what", ["pipe", "device", "folder", b"[" * 500_000 + b"\n", bytes(100_000) + b"\n", b"5\n", b'{"step": []}\n']
)
def test_what_pictures_read(run: RunFolder, tmp_path: Path, name: str, what: Any) -> None:
    folder = handed_on(run, tmp_path)
    (folder / name).unlink(missing_ok=True)
    if isinstance(what, bytes):
        (folder / name).write_bytes(what if name != "summary.json" or what[:1] != b"{" else b"{")
    else:
        make_no_file(folder / name, what)
    with pytest.raises(UsageError, match=re.escape(name)):
        History.read(folder)


WRONG_ROWS: list[dict[str, Any]] = [
    {"step": 10**400}, {"step": 0}, {"step": True}, {"epoch": 0}, {"epoch": 1.5}, {"epoch": None}, {"loss": 10**400},
    {"loss": "x"}, {"loss": float("inf")}, {"accuracy": {}}, {"lr": [0.1]}, {"update_norm": []}, {"seconds": "x"},
    {"event": []}, {"event": 5}, {"event": "pause", "step": -1}, {"event": "tune", "step": 10**400},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_ROWS, ids=lambda row: f"{row}"[:40])
def test_metrics_that_cannot_be_drawn(run: RunFolder, tmp_path: Path, wrong: dict[str, Any]) -> None:
    folder = handed_on(run, tmp_path)
    row = json.loads(run.metrics.read_text().splitlines()[0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row | wrong) + "\n")
    with pytest.raises(UsageError, match=r"metrics\.jsonl: line 5 is not readable"):
        History.read(folder)


ODD_EVENTS: list[dict[str, Any]] = [
    {"event": "pause", "loss": []}, {"event": "tune", "name": "lr", "old": {}, "new": 1},
    {"event": "tune", "old": 1, "new": 1}, {"event": "tune", "name": "lr", "old": 1, "new": 10**400},
    {"event": "tune", "name": "lr", "old": 1, "new": 2, "schedule": 3},
    {"event": "rollback", "back_to_step": 1, "lr": None}, {"event": "explosion"},
    {"event": "explosion", "action": "rollback", "reason": "x"}, {"event": "skip"},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD_EVENTS, ids=lambda row: f"{row}"[:40])
def test_events_that_lack_what_ours_have_are_told_by_their_names(
    run: RunFolder, tmp_path: Path, odd: dict[str, Any]
) -> None:
    folder = handed_on(run, tmp_path)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3} | odd) + "\n")
    report.draw(folder)
    assert f"<td>{odd['event']}</td>" in (folder / "report.html").read_text()


def test_a_configuration_that_cannot_be_drawn(run: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(handed_on(run, tmp_path))
    content = run.read_config()
    folder.write_config({**content, "config": {**content["config"], "keep": 0}})
    with pytest.raises(UsageError, match=r"config\.json: --keep 0: expected"):
        report.draw(folder.path)


@pytest.mark.parametrize("state", [None, [], {"params": []}, {"rules": {1: {}}}, {"state": {"": []}}])
def test_states_that_are_no_states(state: Any) -> None:
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.SGD())
    with pytest.raises(ValueError, match="the state does not fit"):
        opt.load_state_dict(state)


@pytest.mark.parametrize("kind", ["params", "state", "rules"])
def test_states_with_many_foreign_names(kind: str) -> None:
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.SGD())
    state = opt.state_dict()
    foreign: Any = {"params": np.ones(1), "state": {"m": np.ones(1)}, "rules": {"name": "SGD", "tuned": {}}}[kind]
    state[kind] = {**state[kind], **{f"k\x1b{i}": foreign for i in range(100_000)}}
    with pytest.raises(ValueError, match="the state does not fit") as error:
        opt.load_state_dict(state)
    assert "\x1b" not in str(error.value)
    assert re.search("100,00[01] (groups|entries)", str(error.value))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("kind", ["params/k{}", "arrays/k{}", "state/k{}/m", "odd{}"])
def test_a_checkpoint_with_many_foreign_arrays(run: RunFolder, tmp_path: Path, kind: str) -> None:
    folder = handed_on(run, tmp_path)
    arrays, about = checkpoint.verified(run.checkpoint)
    foreign = {kind.format(number): np.zeros((), np.float32) for number in range(5000)}
    tensorfile.write(folder / "checkpoint.safetensors", {**arrays, **foreign}, {"gpuopt": json.dumps(about)})
    with pytest.raises(UsageError, match=r"checkpoint\.safetensors: ") as error:
        resume(folder, epochs=9)
    assert len(str(error.value)) < 1500
