"""Training on CuPy: what crosses to the host, and what happens when the GPU fails in the middle of it.

All of it needs an emulated device, which counts and fails on demand.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spaces import assert_same_bits
from typer.testing import CliRunner, Result

import gpuopt
from gpuopt.cli import app
from gpuopt.runs.saving.explosions import OnExplosion
from gpuopt.training import Callback, Config, ExplodedError, GPUFailure, Training, resume, train

cudasim = pytest.importorskip("cudasim", reason="needs an emulated device")


@pytest.fixture(autouse=True, scope="module")
def pool() -> Iterator[None]:
    """A memory pool of its own: what other tests left in the common one could serve a request when nothing is left."""
    import cupy

    cupy.cuda.set_allocator(cupy.cuda.MemoryPool().malloc)
    yield
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Six epochs of four steps, the last one smaller; rows after 1, 3 and 6."""
    gpuopt.backend("cuda", matmul=True)  # tried out while all is well
    random = np.random.RandomState(0)
    x = random.randn(230, 5).astype("f4")
    y = (x @ random.randn(5, 3)).argmax(axis=1)
    np.savez(tmp_path / "data.npz", x_train=x[:190], y_train=y[:190], x_test=x[190:], y_test=y[190:])
    data = str(tmp_path / "data.npz")
    return Config(
        data=data, device="cuda", hidden=(8,), epochs=6, batch_size=50, report_every=3, checkpoint_every="99s"
    )


class At(Callback):
    """Does something after a certain step."""

    def __init__(self, step: int, action: Callable[[Training], object]) -> None:
        self.step_, self.action = step, action

    def step(self, training: Training) -> None:
        if training.optimizer.steps == self.step_:
            self.action(training)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) | {"seconds": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]


def arrays(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder / "checkpoint.safetensors")  # type: ignore[no-any-return]


# What crosses


def counted(config: Config, out: Path, first: int, last: int) -> Any:
    """The counters of the steps after `first`, until `last` is done."""
    counter = cudasim.count()
    callbacks = [At(first, lambda _: counter.__enter__()), At(last, lambda _: counter.__exit__(None, None, None))]
    train(config, out=out, callbacks=callbacks)
    return counter


def test_a_step_of_an_epoch_that_is_not_reported(config: Config, tmp_path: Path) -> None:
    counter = counted(config, tmp_path / "run", 17, 18)
    # Launches: take the samples (2); add, compare, convert and multiply in the hidden layer (4), add in the last one;
    # softmax and the loss's gradient (6: max, subtract, exp, divide, subtract the targets, divide by the samples);
    # the mask on the way back (1); the optimizer (1). Products: two forwards, softmax's sums, five backwards (of weights,
    # of biases, and of the hidden layer's outputs).
    assert counter.summary == {**dict.fromkeys(counter.summary, 0), "launches": 15, "library_calls": 8}


def test_a_step_with_all_samples_at_once(config: Config, tmp_path: Path) -> None:
    config = replace(config, batch_size="full", epochs=20, report_every=20)
    counter = counted(config, tmp_path / "run", 9, 19)  # that is also ten epochs
    assert counter.summary == {**dict.fromkeys(counter.summary, 0), "launches": 130, "library_calls": 80}


def test_an_epoch_copies_the_order_of_its_samples_and_if_reported_its_scores(config: Config, tmp_path: Path) -> None:
    quiet = counted(config, tmp_path / "quiet", 13, 17)  # the border between epochs 4 and 5
    assert (quiet.summary["h2d"], quiet.summary["d2h"], quiet.summary["syncs"]) == (1, 0, 0)
    assert quiet.stats["memcpy"]["H2D"]["bytes"] == 8 * 190
    told = counted(config, tmp_path / "told", 9, 13)  # epoch 3 is reported: training set and test set
    # Two scores and the norms for the metrics, one score to see whether the loss jumped, and a copy of the state to go
    # back to. They are not waited for until the next step has been launched.
    copied = [x.nbytes for x in arrays(tmp_path / "told").values()]
    bytes_ = told.stats["memcpy"]["D2H"]["bytes"]
    assert (told.summary["h2d"], told.summary["d2h"], bytes_) == (1, 4 + len(copied), 4 * 16 + sum(copied))
    assert told.summary["blocking_memcpy"] == 0
    assert told.summary["mallocs"] <= 1  # a block for the first report, which is kept
    within = counted(config, tmp_path / "within", 9, 11)  # scores are summed up on the device
    assert within.summary == {
        **dict.fromkeys(within.summary, 0),
        **{k: within.summary[k] for k in ("launches", "library_calls")},
    }


def test_metrics_are_waited_for_when_the_next_step_has_been_launched(config: Config, tmp_path: Path) -> None:
    counters: list[Any] = []

    class Between(Callback):
        def epoch(self, training: Training) -> None:
            if training.epoch == 3:
                counters.append(cudasim.count())
                counters[0].__enter__()

        def reported(self, training: Training, row: dict[str, Any]) -> None:
            if row["epoch"] == 3:
                counters[0].__exit__(None, None, None)
                assert training.optimizer.steps == 3 * 4 + 1

    train(config, out=tmp_path / "run", callbacks=[Between()])
    (counter,) = counters
    assert counter.stats["kernels"]["step"] == 1
    assert counter.summary["blocking_memcpy"] == 0
    assert counter.stats["synchronizations"] == {"device": 0, "stream": 0, "event": 1}


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_a_device_that_lags_behind_gives_the_same(config: Config, tmp_path: Path, policy: OnExplosion) -> None:
    config = replace(config, on_explosion=policy, device="cuda:1", lr=1.0)
    outcomes = []
    for lags in (False, True):
        cudasim.set_async(lags)
        try:
            train(config, out=tmp_path / str(lags))
        except ExplodedError as error:
            assert policy != "skip"
            outcomes.append(str(error).partition(" To go on")[0])
        finally:
            cudasim.set_async(False)
    assert outcomes[:1] == outcomes[1:]
    assert_same_bits(*(arrays(tmp_path / str(lags)) for lags in (False, True)))
    assert rows(tmp_path / "False") == rows(tmp_path / "True")


def test_the_curve_is_that_on_numpy(config: Config, tmp_path: Path) -> None:
    config = replace(config, report_every=1)
    train(config, out=tmp_path / "gpu")
    train(replace(config, device="cpu"), out=tmp_path / "cpu")
    for on_gpu, on_cpu in zip(rows(tmp_path / "gpu"), rows(tmp_path / "cpu"), strict=True):
        assert on_gpu == pytest.approx(on_cpu, abs=1e-5)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_every_device_trains_alike(config: Config, tmp_path: Path, device: str) -> None:
    import cupy

    train(config, out=tmp_path / "first")
    result = train(replace(config, device=device), out=tmp_path / "run")
    assert (result.device, result.backend) == (device, "cupy")
    assert_same_bits(arrays(tmp_path / "first"), arrays(tmp_path / "run"))
    assert rows(tmp_path / "first") == rows(tmp_path / "run")
    assert cupy.cuda.runtime.getDevice() == 0


# When it fails


def out_of_memory(_: object) -> None:
    import cupy

    # An empty pool: the one there was may have what serves every request until the end.
    cupy.cuda.set_allocator(cupy.cuda.MemoryPool().malloc)
    cudasim.set_memory_limit(1)


FAILURES: dict[str, tuple[Callable[[Training], object], str]] = {
    "out of memory": (out_of_memory, r"out of memory: \S+ \w+ were needed beyond the \S+ \w+ in use; of the device's"),
    "a launch that fails": (lambda _: cudasim.fail_launch(1, 701), "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
    "the optimizer's launch fails": (lambda _: cudasim.fail_launch(15, 701), "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
    "a late launch fails": (lambda _: cudasim.fail_launch(40, 701), "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
}


STICKY = "CUDA_ERROR_LAUNCH_FAILED"


def heal() -> None:
    """Let the device work again, which a real one would only do in another process."""
    cudasim.reset_error()
    cudasim.fail_launch(0)
    cudasim.set_memory_limit(8 << 30)


@pytest.fixture(autouse=True)
def healed() -> Iterator[None]:
    yield
    heal()


class Failure(Callback):
    """Takes note of how far the run was when the GPU failed."""

    def end(self, training: Training) -> None:
        if training.error is not None:
            self.steps = training.optimizer.steps


def assert_resumed_on_cpu(config: Config, run: Path, steps: int) -> None:
    """The run is the one that stopped after so many steps without a failure, and was resumed on the CPU."""
    heal()
    whole = run.with_name("whole")
    train(config, out=whole, callbacks=[At(steps, lambda training: training.stop("enough"))])
    resume(whole, device="cpu")
    assert_same_bits(arrays(run), arrays(whole))
    assert rows(run) == rows(whole)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
@pytest.mark.parametrize("step", [1, 8, 10])
@pytest.mark.parametrize(("fail", "words"), FAILURES.values(), ids=FAILURES)
def test_the_cpu_goes_on_from_the_last_step(
    config: Config, tmp_path: Path, fail: Callable[[Training], object], words: str, step: int, device: str
) -> None:
    config = replace(config, device=device, on_gpu_error="cpu")
    failure = Failure()
    result = train(config, out=tmp_path / "run", callbacks=[At(step, fail), failure])
    assert (result.device, result.backend, result.epochs, result.steps) == ("cpu", "numpy", 6, 24)
    assert re.match(f"{device} failed after {failure.steps} steps \\(.*{words}", result.reason)
    assert failure.steps >= step
    assert_resumed_on_cpu(config, tmp_path / "run", failure.steps)


@pytest.mark.parametrize(("fail", "words"), FAILURES.values(), ids=FAILURES)
def test_the_last_step_is_on_disk(
    config: Config, tmp_path: Path, fail: Callable[[Training], object], words: str
) -> None:
    failure = Failure()
    with pytest.raises(GPUFailure) as raised:
        train(config, out=tmp_path / "run", callbacks=[At(10, fail), failure])
    message = str(raised.value)
    assert re.match(f"cuda:0 failed after {failure.steps} steps \\(.*{words}.*\\); saved. To go on", message)
    assert message.endswith(f": gpuopt train --resume {tmp_path / 'run'} --device cpu")
    assert not (tmp_path / "run" / "summary.json").exists()
    heal()
    stop = At(failure.steps, lambda training: training.stop("enough"))
    train(config, out=tmp_path / "stopped", callbacks=[stop])
    assert_same_bits(arrays(tmp_path / "run"), arrays(tmp_path / "stopped"))
    resume(tmp_path / "run", device="cpu")
    assert_resumed_on_cpu(config, tmp_path / "run", failure.steps)


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_on_the_command_line(tmp_path: Path, quiet: list[str]) -> None:
    def gpuopt_(*options: str) -> Result:
        arguments = [
            "train",
            "--epochs",
            "9",
            "--device",
            "cuda",
            "--out",
            str(tmp_path / options[-1]),
            *quiet,
            *options,
        ]
        cudasim.fail_launch(150, 701)
        return CliRunner().invoke(app, arguments, prog_name="gpuopt")

    stopped = gpuopt_("--on-gpu-error", "stop")
    words = r"cuda:0 failed after \d+ steps \(CUDADriverError: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: .*\)"
    assert stopped.exit_code == 1
    assert re.fullmatch(
        rf"gpuopt: {words}; saved. To go on .*: gpuopt train --resume \S+ --device cpu\n", stopped.stderr
    )
    went_on = gpuopt_("--on-gpu-error", "cpu")
    assert (went_on.exit_code, went_on.stderr) == (0, "")
    lines = went_on.stdout.splitlines()
    if quiet:
        assert lines == []
    else:
        (again,) = (i for i, line in enumerate(lines) if line.startswith("Device:  cpu"))
        assert re.fullmatch(rf"Device:  cpu \({words}\)", lines[again])
        assert lines[again + 1].startswith("Resumed after ")
        assert [line.split(":")[0] for line in lines if line[0] != " "][:3] == ["Device", "Data", "Network"]
        assert sum(line.startswith(("Data:", "Network:")) for line in lines) == 2


# After some errors no call of CUDA works: what is needed has to be on disk already.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # events of a device that is broken
@pytest.mark.parametrize("saved", [True, False])
def test_after_an_error_that_lasts_the_cpu_goes_on_from_the_last_checkpoint(
    config: Config, tmp_path: Path, saved: bool
) -> None:
    config = replace(config, on_gpu_error="cpu", checkpoint_every=1 if saved else "99s")
    fail = At(14, lambda _: cudasim.fail_launch(35 if saved else 5, 719))  # before a checkpoint the loss is looked at
    result = train(config, out=tmp_path / "run", callbacks=[fail])
    assert re.match(f"cuda:0 failed after 14 steps .*{STICKY}", result.reason)
    assert (result.device, result.steps) == ("cpu", 24)
    if saved:
        assert_resumed_on_cpu(config, tmp_path / "run", 14)
    else:  # from the beginning
        train(replace(config, device="cpu"), out=tmp_path / "cpu")
        assert_same_bits(arrays(tmp_path / "run"), arrays(tmp_path / "cpu"))
        assert rows(tmp_path / "run") == rows(tmp_path / "cpu")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # events of a device that is broken
def test_after_an_error_that_lasts_the_message_says_where_the_checkpoint_is(config: Config, tmp_path: Path) -> None:
    fail = At(14, lambda _: cudasim.fail_launch(5, 719))
    with pytest.raises(
        GPUFailure, match=rf"after 14 steps \(.*{STICKY}.*; the last checkpoint is the one after 0 steps. To"
    ):
        train(config, out=tmp_path / "run", callbacks=[fail])
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    heal()
    fail = At(14, lambda _: cudasim.fail_launch(35, 719))
    with pytest.raises(GPUFailure, match=r"after 14 steps \(.*; saved"):
        train(replace(config, checkpoint_every=1), out=tmp_path / "other", callbacks=[fail])
    heal()
    resume(tmp_path / "other", device="cpu")
    assert_resumed_on_cpu(config, tmp_path / "other", 14)


# Before the first step and after the last one


def test_data_that_do_not_fit(config: Config, tmp_path: Path) -> None:
    out_of_memory(None)
    words = r"cuda:0 failed before the first step \(out of memory: \S+ \w+ were needed beyond the .* in use"
    with pytest.raises(GPUFailure, match=words + r".*\); nothing was written. .*: gpuopt train --device cpu$"):
        train(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    out_of_memory(None)
    result = train(replace(config, on_gpu_error="cpu"), out=tmp_path / "run")
    assert result.device == "cpu"
    assert re.match(words, result.reason)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["device"] == "cuda"


def test_a_failure_in_the_last_evaluation(config: Config, tmp_path: Path) -> None:
    class Last(Callback):
        def end(self, training: Training) -> None:
            cudasim.fail_launch(1, 701)

    result = train(replace(config, on_gpu_error="cpu"), out=tmp_path / "run", callbacks=[Last()])
    assert (result.device, result.steps) == ("cpu", 24)


def test_other_errors_are_left_alone(config: Config, tmp_path: Path) -> None:
    def bug(_: Training) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(replace(config, on_gpu_error="cpu"), out=tmp_path / "run", callbacks=[At(5, bug)])


def test_a_run_resumed_may_fall_back_too(config: Config, tmp_path: Path) -> None:
    train(config, out=tmp_path / "run", callbacks=[At(5, lambda training: training.stop("enough"))])
    fail = At(10, lambda _: cudasim.fail_launch(1, 701))
    result = resume(tmp_path / "run", on_gpu_error="cpu", callbacks=[fail])
    assert (result.device, result.steps) == ("cpu", 24)
    assert_resumed_on_cpu(config, tmp_path / "run", 10)


# Data that stay on the host


def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all samples on the host, as if they did not fit."""
    from gpuopt.training import learner
    from gpuopt.training.feed import Streamed

    monkeypatch.setattr(learner, "feed", lambda backend, samples, classes, *_: Streamed(backend, samples, classes))


@pytest.mark.parametrize("batch_size", [50, "full"])
@pytest.mark.parametrize("lags", [False, True])
def test_samples_that_stay_on_the_host_give_the_same_bits(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: Any, lags: bool
) -> None:
    config = replace(config, batch_size=batch_size, device="cuda:1")
    train(config, out=tmp_path / "resident")
    streamed(monkeypatch)
    cudasim.set_async(lags)
    try:
        train(config, out=tmp_path / "streamed")
    finally:
        cudasim.set_async(False)
    assert_same_bits(arrays(tmp_path / "resident"), arrays(tmp_path / "streamed"))
    assert rows(tmp_path / "resident") == rows(tmp_path / "streamed")


def test_batches_travel_ahead_and_nobody_waits(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed(monkeypatch)
    counter = counted(config, tmp_path / "run", 17, 18)  # in an epoch that is not reported
    # Features and targets of the batch after it; nothing is taken on the device, nothing waited for.
    assert counter.summary["h2d"] == 2
    assert counter.summary["d2h"] == counter.summary["syncs"] == counter.summary["blocking_memcpy"] == 0
    assert counter.stats["memcpy"]["H2D"]["bytes"] == 4 * (5 + 3) * 50


def test_what_fits_is_decided_by_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuopt.training import Samples, UsageError
    from gpuopt.training.feed import Resident, Streamed, feed

    backend = gpuopt.backend("cuda", matmul=True)
    samples = Samples(np.zeros((1000, 10), "f4"), np.zeros(1000, int))
    for free, expected in ((48_000 + 100, Resident), (48_000 + 99, Streamed), (12 * 12 * 50 + 100, Streamed)):
        monkeypatch.setattr(gpuopt.backends.Backend, "free", free)
        assert type(feed(backend, samples, 2, 50, 100)) is expected
    monkeypatch.setattr(gpuopt.backends.Backend, "free", 12 * 12 * 50 + 99)
    with pytest.raises(UsageError, match=r"--batch-size 50: three batches and the network take .* GiB are too few"):
        feed(backend, samples, 2, 50, 100)
