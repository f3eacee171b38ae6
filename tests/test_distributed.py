"""One optimizer over many processes: the bits of one alone, and failures of one that are those of all."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ranks
from hypothesis import given
from hypothesis import strategies as st

import gpuopt
import gpuopt.distributed
from gpuopt import tensorfile
from gpuopt.distributed.cuts import buckets_of, order_of_chunks
from gpuopt.distributed.sums import middle, plan, whole_within

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

COUNTS = [1, 2, 3, 4, 8]
AS_ROOT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # before version 5
    "OMPI_MCA_mpi_yield_when_idle": "1",  # more processes than processors: who waits gives way
}


@pytest.fixture(autouse=True)
def _a_gpu_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """For trainings of up to four processes, where CUDA is emulated."""
    monkeypatch.setenv("CUDASIM_DEVICES", "4")


def launcher() -> str:
    """The mpiexec beside this Python, or else the system's."""
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed")
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if found is None:
        pytest.skip("there is no mpiexec")
    return found


def launch(
    n: int, scenario: str, folder: Path, seconds: float = 480, env: Mapping[str, str] | None = None
) -> tuple[int, str, float]:
    """Run a scenario on n processes; return the exit status, what was printed, and how long it took."""
    command = [launcher(), "-n", str(n), sys.executable, str(Path(ranks.__file__)), scenario, str(folder)]
    start = time.monotonic()
    with subprocess.Popen(
        command,
        env={**AS_ROOT, **os.environ, "GPUOPT_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # so that the launcher ends its processes, too
            output, _ = process.communicate(timeout=30)
            raise AssertionError(
                f"{scenario} on {n} processes took longer than {seconds} s:\n{output[-6000:]}"
            ) from None
        finally:
            process.kill()
    return process.returncode, output, time.monotonic() - start


def succeeds(n: int, scenario: str, folder: Path, **env: str) -> None:
    status, output, _ = launch(n, scenario, folder, env=env)
    assert status == 0, output[-6000:]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("ranks")
    found = ranks.alone()
    opt = gpuopt.Optimizer(ranks.params(), gpuopt.Adam(lr=0.1), clip=gpuopt.clip_by_global_norm(1.0))
    for step in range(ranks.STEPS):
        opt.step(ranks.mean(step))
    gpuopt.save(folder / "alone.safetensors", opt, {"epoch": 3})
    opt = gpuopt.Optimizer(ranks.params(7), gpuopt.Adam(lr=0.1), clip=gpuopt.clip_by_global_norm(1.0))
    gpuopt.load(folder / "alone.safetensors", opt)
    found["loaded"] = ranks.digest(opt)
    return folder, found


@pytest.mark.parametrize("n", COUNTS)
def test_the_same_bits_on_any_number_of_processes(reference: tuple[Path, dict[str, str]], n: int) -> None:
    folder, want = reference
    succeeds(n, "bits", folder)
    assert json.loads((folder / f"{n}.json").read_text()) == want
    other = gpuopt.Optimizer(ranks.params(9), gpuopt.Adam(lr=0.1))
    assert gpuopt.load(folder / f"{n}.safetensors", other) == {"epoch": 4}
    assert ranks.digest(other).split()[2] == want["loaded"].split()[2]


@pytest.mark.parametrize("n", [1, 3])
def test_complex_leaves_and_those_of_16_bits(tmp_path: Path, n: int) -> None:
    succeeds(n, "kinds", tmp_path)


def test_every_way_of_keeping_16_bits(tmp_path: Path) -> None:
    ranks.precisions(None, tmp_path)


def test_every_way_of_keeping_16_bits_on_many_processes(tmp_path: Path) -> None:
    succeeds(3, "precisions", tmp_path)


def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    succeeds(2, "page", tmp_path)


def test_a_failure_of_one_process_is_that_of_all(tmp_path: Path) -> None:
    succeeds(3, "failures", tmp_path)


def test_no_memory_at_one_process_is_the_error_of_all(tmp_path: Path) -> None:
    succeeds(2, "no_memory", tmp_path)


def test_memory_of_each_process(tmp_path: Path) -> None:
    succeeds(4, "shares", tmp_path)


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("uncaught", "ArithmeticError: this rank has had enough"),
        ("everywhere", "RankError: rank 1: ValueError: grads: shape (4,), expected (3,)"),
        ("killed", ""),
        ("never", "s for another process, which has ended, is stuck or takes longer"),
    ],
)
def test_what_ends_one_process_ends_all(tmp_path: Path, scenario: str, said: str) -> None:
    status, output, seconds = launch(3, scenario, tmp_path, seconds=120)
    assert status != 0
    assert said in output
    assert seconds < 90  # of which nearly all are the start, on a busy machine
    if scenario == "everywhere":
        assert output.count("Traceback") <= 2, output  # of rank 0 alone, and what it was caused by


def test_a_training_that_is_killed_goes_on_with_fewer_processes(tmp_path: Path) -> None:
    status, output, _ = launch(3, "training", tmp_path)
    assert status != 0, output
    assert not (tmp_path / "training.json").exists()
    succeeds(2, "training", tmp_path)
    opt = gpuopt.Optimizer(ranks.params(), gpuopt.Adam(lr=0.1))
    for step in range(12):
        opt.step(ranks.mean(step))
    found = json.loads((tmp_path / "training.json").read_text())
    assert found.split()[2] == ranks.digest(opt).split()[2]


def test_a_loop_of_ones_own_on_any_number_of_processes(tmp_path: Path) -> None:
    """Stopped on 3 by a signal that one of them got, gone on with on 2: to the bit what one process does alone."""
    alone = tmp_path / "alone"
    alone.mkdir()
    ranks.own_loop(None, alone)
    succeeds(3, "own_loop", tmp_path)
    succeeds(2, "own_loop", tmp_path)
    assert (tmp_path / "run.json").read_text() == (alone / "run.json").read_text()
    rows = [
        [
            {name: value for name, value in json.loads(line).items() if name != "seconds"}
            for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (tmp_path, alone)
    ]
    assert rows[0] == rows[1]


def test_what_breaks_a_loop_on_rank_0_breaks_it_on_all(tmp_path: Path) -> None:
    succeeds(3, "broken_loop", tmp_path)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gpuopt", "train", *arguments, "--no-report"]


def trained(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Arrays of the checkpoint, and rows of metrics but for the time."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    arrays, _ = tensorfile.read(folder / "checkpoint.safetensors")
    return arrays, [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_training_of_the_size_of_mnist_is_the_same_on_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices that are large enough for a BLAS to take several threads, whose number it must not depend on."""
    launcher()
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (1000, 28, 28), np.uint8), rng.integers(0, 10, 1000)
    np.savez(tmp_path / "data.npz", x_train=x[:800], y_train=y[:800], x_test=x[800:], y_test=y[800:])
    options = ["--data", str(tmp_path / "data.npz"), "--hidden", "128", "--batch-size", "400", "--epochs", "2"]
    for n in (1, 2, 4):
        many = [] if n == 1 else ["--processes", str(n)]
        done = run_to_the_end(*options, "--parts", "4", *many, "--out", str(tmp_path / str(n)))
        assert done.returncode == 0, done.stdout
        assert_same_training(tmp_path / str(n), tmp_path / "1")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_on_4_goes_on_on_2_and_alone(tmp_path: Path, signum: signal.Signals) -> None:
    launcher()
    options = [
        "--epochs",
        "150",
        "--batch-size",
        "70",
        "--optimizer",
        "lamb",
        "--dropout",
        "0.1",
        "--report-every",
        "10",
    ]
    alone = tmp_path / "alone"
    subprocess.run(command(*options, "--parts", "4", "--out", str(alone)), check=True, timeout=120, capture_output=True)
    folder = tmp_path / "run"

    def stop(process: subprocess.Popen[str]) -> None:
        process.send_signal(signum)

    status, output = disturbed(command(*options, "--processes", "4", "--out", str(folder)), folder, stop)
    assert f"stopped by {signum.name} after" in output
    assert status == 128 + signum
    before = len(trained(folder)[1])
    assert before < len(trained(alone)[1])
    many = "3" if signum == signal.SIGINT else "1"
    done = run_to_the_end("--resume", str(folder), "--processes", many)
    assert done.returncode == 0, done.stdout
    assert_same_training(folder, alone)


def test_a_command_of_which_a_process_is_killed_goes_on_with_fewer(tmp_path: Path) -> None:
    """On 3, of which rank 1 is killed; then on 2, of which rank 0 is; then alone."""
    launcher()
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc, to find the process of a rank")
    options = [
        "--epochs",
        "50",
        "--batch-size",
        "70",
        "--dropout",
        "0.1",
        "--report-every",
        "2",
        "--checkpoint-every",
        "3",
    ]
    alone, folder = tmp_path / "alone", tmp_path / "run"
    done = run_to_the_end(*options, "--parts", "3", "--out", str(alone))
    assert done.returncode == 0, done.stdout
    for arguments, rank in (([*options, "--processes", "3", "--out"], 1), (["--processes", "2", "--resume"], 0)):
        start = time.monotonic()

        def kill(process: subprocess.Popen[str], rank: int = rank) -> None:
            while process.poll() is None and not (folder / "checkpoint.safetensors").exists():
                time.sleep(0.05)
            os.kill(process_of(rank, folder), signal.SIGKILL)

        status, output = disturbed(command(*arguments, str(folder)), folder, kill)
        assert status not in {0, 1, 2}, output
        assert "processes was lost" in output
        assert "`gpuopt train --resume FOLDER` goes on from the last checkpoint" in output
        assert "signal 9" in output.lower() or "signal: 9" in output.lower(), output  # the launcher's own words
        assert time.monotonic() - start < 90
    done = run_to_the_end("--resume", str(folder))
    assert done.returncode == 0, done.stdout
    assert_same_training(folder, alone)


def run_to_the_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), check=False, timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def disturbed(
    command: Sequence[str], folder: Path, disturb: Callable[[subprocess.Popen[str]], object]
) -> tuple[int, str]:
    """Start a training, disturb it once it has written two more rows; return exit status and output."""

    def rows() -> int:
        written = folder / "metrics.jsonl"
        return written.read_text().count("\n") if written.exists() else 0

    before = rows()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            end = time.monotonic() + 60
            while rows() < before + 2:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < end
                time.sleep(0.05)
            disturb(process)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, output


def process_of(rank: int, folder: Path) -> int:
    """The process of a rank of the training with this folder."""
    ranks_of = {f"{name}={rank}".encode() for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = set((process / "environ").read_bytes().split(b"\0"))
            if ranks_of & told and str(folder).encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    (one,) = found
    return one


def assert_same_training(folder: Path, want: Path) -> None:
    """The same bits, and the same rows but for those of events."""
    (arrays, rows), (found, found_rows) = trained(want), trained(folder)
    assert [row for row in found_rows if "event" not in row] == rows
    assert found.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--processes", "0"], "--processes 0: expected a positive integer"),
        (["--parts", "2", "--processes", "3"], "--processes 3: more than the 2 parts that each batch of this run has"),
        (["--processes", "2", "--data", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_a_command_that_cannot_be_run_says_so_once(tmp_path: Path, arguments: list[str], said: str) -> None:
    launcher()
    done = subprocess.run(
        command(*arguments, "--out", str(tmp_path / "run")), check=False, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 2, done
    assert (done.stdout + done.stderr).count(said) == 1, done
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.environ.get("CUDASIM") != "1", reason="needs an emulator of CUDA with NCCL between processes")
@pytest.mark.parametrize(
    ("n", "more"),
    [
        (2, {}),
        (2, {"CUDASIM_ASYNC": "1"}),
        (4, {"CUDASIM_NCCL_ORDER": "ring"}),
        (2, {"CUDASIM_NCCL_ORDER": "tree"}),
        (3, {"CUDASIM_NCCL_ORDER": "reverse", "CUDASIM_ASYNC": "1"}),
    ],
)
def test_cuda_the_same_bits_by_nccl_and_by_the_host(
    reference: tuple[Path, dict[str, str]], n: int, more: dict[str, str]
) -> None:
    folder, want = reference
    succeeds(n, "on_devices", folder, **more)
    found = json.loads((folder / f"{n}.json").read_text())
    counts = {way: found.pop(f"{way} counts") for way in ("host", "nccl")}
    for way, rows in found.items():
        assert rows == {name: want[name] for name in rows}, way
    assert counts["nccl"]["d2h"] == counts["nccl"]["h2d"] == 0
    if n == 2:  # two buckets: a send, a receive, and the shares of both; with four processes some have no share
        assert counts["nccl"]["nccl_ops"] == 2 * (1 + 1 + 2)
    assert counts["host"]["nccl_ops"] == 0


@pytest.mark.skipif(os.environ.get("CUDASIM") != "1", reason="needs an emulator of CUDA with NCCL between processes")
def test_cuda_the_code_of_the_page_runs(tmp_path: Path) -> None:
    succeeds(2, "page_with_cupy", tmp_path)


@pytest.mark.skipif(os.environ.get("CUDASIM") != "1", reason="needs an emulator of CUDA with NCCL between processes")
@pytest.mark.parametrize("n", [2, 3])
def test_cuda_a_gpu_for_each_process(tmp_path: Path, n: int) -> None:
    succeeds(n, "devices", tmp_path, CUDASIM_DEVICES="2", CUDASIM_NCCL_SHARED_DEVICES="1")


@pytest.mark.skipif(os.environ.get("CUDASIM") != "1", reason="needs an emulator of CUDA with NCCL between processes")
def test_cuda_no_memory_at_one_process_is_the_error_of_all(tmp_path: Path) -> None:
    succeeds(2, "no_memory_on_devices", tmp_path)


@pytest.mark.skipif(os.environ.get("CUDASIM") != "1", reason="needs an emulator of CUDA with NCCL between processes")
def test_cuda_a_process_is_killed_in_an_exchange(tmp_path: Path) -> None:
    status, _, seconds = launch(2, "killed_on_devices", tmp_path, seconds=120)
    assert status != 0
    assert seconds < 90


# ---- one process, without MPI


def test_one_process_needs_no_mpi(reference: tuple[Path, dict[str, str]]) -> None:
    _, want = reference
    found = ranks.together(None)
    assert found == {name: want[name] for name in found}


def test_what_one_process_is_told() -> None:
    opt = gpuopt.distributed.Optimizer({"w": np.zeros(2)}, gpuopt.Adam(), None, parts=2, nonfinite="raise")
    opt.add({"w": np.zeros(2)})
    opt.add({"w": np.zeros(3)})
    opt.add({"w": np.zeros(2)})  # an error is kept
    with pytest.raises(ValueError, match=r"grads\['w'\]: shape \(3,\), expected \(2,\)"):
        opt.step()
    with pytest.raises(ValueError, match="step: gradients, but parts was given"):
        opt.step({"w": np.zeros(2)})
    opt.add({"w": np.ones(2)})
    opt.add({"w": None})
    with pytest.raises(ValueError, match="None in part 1, expected an array as in the part before"):
        opt.step()
    for value in (1.0, np.nan):
        opt.add({"w": np.full(2, value)})
    with pytest.raises(FloatingPointError, match=r"grads\['w'\]: NaN or infinity at step 0"):
        opt.step()
    assert opt.steps == 0
    with pytest.raises(TypeError, match=r"gpuopt\.save writes a file"):
        opt.__getstate__()
    assert repr(opt).endswith("rank 0 of 1)")


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"transport": "smoke"}, ValueError, "transport: 'smoke', expected one of"),
        ({"timeout": 0}, ValueError, "timeout: 0, expected seconds"),
        ({"parts": 0}, ValueError, "parts: 0, expected a whole number of at least 1"),
        ({"parts": 1.5}, ValueError, "parts: 1.5, expected a whole number"),
    ],
)
def test_options_that_are_refused(more: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gpuopt.distributed.Optimizer(np.zeros(2), gpuopt.Adam(), None, **more)


def test_arrays_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="expected an array without gaps; copy it"):
        gpuopt.distributed.Optimizer(np.zeros((4, 4))[:, ::2], gpuopt.Adam(), None)


def test_without_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r"`pip install gpuopt\[mpi\]` installs it"):
        gpuopt.distributed.Optimizer(np.zeros(2), gpuopt.Adam(), object())


# ---- cuts and sums


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=6), st.integers(1, 9))
def test_shares_are_all_elements_once_cut_between_chunks(sizes: list[int], processes: int) -> None:
    buckets = (
        buckets_of(sizes, ["float32", "float64"] * 3, processes)
        if len(sizes) == 6
        else buckets_of(sizes, ["float32"] * len(sizes), processes)
    )
    owned = [piece for bucket in buckets for rank in range(processes) for piece in bucket.pieces_of(rank)]
    found = {i: sorted((p.start, p.stop) for p in owned if p.leaf == i) for i in range(len(sizes))}
    for i, size in enumerate(sizes):
        ends = [0, *(stop for _, stop in found[i])]
        assert [start for start, _ in found[i]] == ends[:-1]
        assert ends[-1] == size
        assert all(start % 4096 == 0 for start, _ in found[i])
    order, counts = order_of_chunks(buckets, processes, len(sizes))
    assert counts == [-(-size // 4096) for size in sizes]
    assert sorted(order) == list(range(sum(counts)))


@given(st.integers(1, 40), st.integers(1, 9))
def test_a_tree_of_parts_is_the_same_on_any_number_of_processes(parts: int, processes: int) -> None:
    def tree(first: int, last: int) -> str:
        if last - first == 1:
            return str(first)
        return f"({tree(first, middle((first, last)))}+{tree(middle((first, last)), last)})"

    bounds = [parts * rank // processes for rank in range(processes + 1)]
    nodes = [
        (node, rank != 0) for rank in range(processes) for node in whole_within((0, parts), *bounds[rank : rank + 2])
    ]
    sums = [tree(*node) for node, _ in nodes]
    additions = plan(nodes, (0, parts))
    for target, source in additions:
        left, right = sorted((target, source))
        sums[target] = f"({sums[left]}+{sums[right]})" if nodes[left][0] < nodes[right][0] else ""
        assert nodes[target][1]
    assert sums[additions[-1][0] if additions else 0] == tree(0, parts)


@dataclass(frozen=True)
class Sorts(gpuopt.Rule):
    """Looks at whole leaves."""

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:
        return p - xp.sort(g), {}


def test_rules_that_cannot_be_traced_are_refused() -> None:
    with pytest.raises(TypeError, match="Sorts looks at whole leaves, of which a process has only parts"):
        gpuopt.distributed.Optimizer(np.zeros(2), Sorts(), None)


@pytest.mark.parametrize("clip", [None, gpuopt.clip_by_global_norm(0.5)], ids=repr)
def test_more_groups_than_one_call_has_room_for(clip: Any) -> None:
    """Some calls then have passes that others have not."""

    def optimizer(make: Callable[..., Any], **options: Any) -> Any:
        params = {f"p{i:02}": np.random.default_rng(i).normal(size=(3, 3000 if i % 20 == 0 else 5)) for i in range(80)}
        rules = {f"p{i:02}": (gpuopt.Adam if i < 40 else gpuopt.LAMB)(lr=0.01 * (i + 1)) for i in range(80)}
        return make(params, rules, clip=clip, **options)

    plain = optimizer(gpuopt.Optimizer)
    parted = optimizer(gpuopt.distributed.Optimizer, comm=None, parts=np.int64(2), average=False)
    rng = np.random.default_rng(0)
    for step in range(3):
        grads = [{path: rng.normal(size=p.shape) for path, p in plain.params.items()} for _ in parted.mine]
        for own in grads if step == 1 else ():
            own["p05"] = None
        for own in grads:
            parted.add(own)
        parted.step()
        plain.step({p: None if grads[0][p] is None else grads[0][p] + grads[1][p] for p in plain.params})
    np.testing.assert_equal(parted.params, plain.params)
