"""Many processes that train one network: rank 0 has the run, and all compute parts of each batch.

A batch is cut into the same number of parts on any number of processes, and their gradients are added in one fixed tree. So
a run that was stopped on four processes goes on on two, or alone, to the bits of one that was not.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gpuopt import backends
from gpuopt.arrays import to_numpy
from gpuopt.errors import UsageError
from gpuopt.runs.processes import wishing
from gpuopt.training.learner import Learner, hash_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpuopt.optimizer import Nonfinite
    from gpuopt.training.config import Config
    from gpuopt.training.learner import Array
    from gpuopt.training.model import Params

__all__ = ["Team", "Together", "team_of_job"]

LAUNCHED = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMI_RANK"}
"""Variables of which a launcher sets one at least."""
LEADER = "GPUOPT_LEADER"
"""The variable with the file to which rank 0 writes its process id, for whoever started the launcher."""


def team_of_job() -> Team | None:
    """The processes that an MPI launcher started; None if this one is alone; UsageError if several cannot find each other."""
    if not LAUNCHED.intersection(os.environ):
        return None
    from gpuopt.distributed.mpi import world

    try:
        comm = world()
    except ImportError as error:
        raise UsageError(f"started by an MPI launcher, but {error}") from None
    team = Team(comm)
    if team.size == 1:
        return None
    if team.leads and (file := os.environ.get(LEADER)):
        new = Path(f"{file}.new")
        new.write_text(str(os.getpid()))
        new.replace(file)
    return team


class Team:
    """The processes of a training; a context manager, whose end on rank 0 is the end of all.

    Parameters
    ----------
    comm
        A communicator of mpi4py; None: this process alone.

    Examples
    --------
    >>> with Team(None) as team:
    ...     team.leads, team.size
    (True, 1)

    """

    def __init__(self, comm: Any) -> None:
        from gpuopt.distributed.connecting import connect

        self.comm = comm
        self._transport = connect(comm, np.zeros(1), "host", None)
        self.size, self.leads = self._transport.size, self._transport.rank == 0
        self._here, self._neighbours = self._transport.here()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.leads:
            self._transport.say(("over", ()))

    def device(self, name: str) -> str:
        """The device of this process: of several GPUs each takes its own, unless one was named; UsageError if they are too few."""
        if backends.backend(name, matmul=True).device is None:
            return name
        there = backends.choices(name)
        if there == 0 or self._neighbours == 1 or (there == 1 and LEADER not in os.environ):
            return name  # where a scheduler started the processes, each may see another GPU as its only one
        if self._neighbours > there:
            gpus = "one GPU" if there == 1 else f"{there} GPUs"
            several = f"{self._neighbours} processes on a machine with {gpus}"
            raise UsageError(f"--device {name}: {several}; expected a GPU for each, or --device cpu")
        return f"cuda:{self._here}"

    def optimizer(
        self, params: Params, config: Config, nonfinite: Nonfinite, given: tuple[Config, Any], checksum: str | None
    ) -> Any:
        """Make the optimizer of all, which others begin to make when they hear the config and the arrays that were given."""
        from gpuopt import distributed
        from gpuopt.distributed.agreement import agree

        if config.parts is None or config.parts < self.size:
            more = f"more than the {config.parts or 1} parts that each batch of this run has"
            raise UsageError(f"--processes {self.size}: {more}; expected as many at most")
        if self.leads:
            self._transport.say(("begin", given))
        agree(self._transport, None, {"data": checksum})
        return distributed.Optimizer(
            params, config.rule(), self.comm, parts=config.parts, average=False, clip=config.clip, nonfinite=nonfinite
        )

    def serve(self) -> None:
        """On all but rank 0: compute what rank 0 asks for, until it is over."""
        from gpuopt.distributed.agreement import agree
        from gpuopt.training.preparing import prepared

        word, args = self._transport.hear()
        while word == "begin":
            config, arrays = args
            try:
                learner, _ = prepared(config, arrays, self)
            except Exception as error:
                from gpuopt.distributed import RankError

                if not isinstance(error, RankError):
                    agree(self._transport, error, {})
                raise
            assert isinstance(learner, Together)
            word, args = learner.follow()


class Together(Learner):
    """What learns batches in parts, of which each process computes its own."""

    optimizer: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        try:
            from threadpoolctl import ThreadpoolController
        except ImportError:
            raise UsageError("a training in parts needs threadpoolctl; `pip install gpuopt[train]`") from None
        self._threads = ThreadpoolController()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """As alone; matrices by one thread of each process, as more threads, and other numbers of them, give other bits."""
        with super().computing(), self._threads.limit(limits=1, user_api="blas"):
            yield

    def follow(self) -> tuple[str, tuple[Any, ...]]:
        """On all but rank 0: step whenever rank 0 does; return the word that ended its run, and what came with it."""
        from gpuopt.distributed import RankError

        with self.computing(), wishing(self.optimizer):
            while True:
                try:
                    word, args = self.optimizer.follow()
                    if word in {"begin", "over"}:
                        return word, args
                    if word == "step":
                        self._take(*args)
                except RankError as error:
                    if not error.everywhere:
                        raise  # else rank 0 says what follows

    def _take(self, step: int) -> None:
        epoch, batch = divmod(step, self.batches)
        reported = self.reports(epoch + 1)
        x, y = self.samples(epoch, batch)
        self._compute(x, y, scored=reported, measured=reported and batch + 1 == self.batches)

    def update(self, x: Array, y: Array, *, scored: bool, measured: bool) -> tuple[Any, Any]:
        """As alone."""
        rows, norm = self._compute(x, y, scored=scored, measured=measured)
        score = np.zeros(2)
        for row in rows:
            score += row
        return self.backend.asarray(score), self.backend.asarray(np.float64(norm) ** 2)

    def _compute(self, x: Array, y: Array, *, scored: bool, measured: bool) -> tuple[Sequence[Any], float]:
        """Compute the gradients of this process's parts, and step with those of all; return the scores of all parts and the gradients' norm."""
        network, optimizer, parts = self.network, self.optimizer, self.config.parts
        assert parts is not None
        samples = y.shape[0]
        own = np.zeros((len(optimizer.mine), 2))
        for k, part in enumerate(optimizer.mine):
            first, last = samples * part // parts, samples * (part + 1) // parts
            if first == last:
                optimizer.add(_scaled(optimizer.params, 0.0))
                continue
            key = [hash_of(self.config.seed, optimizer.steps * parts + part)] if network.dropout else []
            outputs, grads = network.gradients(optimizer.params, x[first:last, :], y[first:last, :], *key)
            optimizer.add(_scaled(grads, (last - first) / samples))
            if scored:
                own[k] = to_numpy(network.score(outputs, y[first:last, :]))
        optimizer.measures = measured
        optimizer.step()
        return optimizer.rows_of(own) if scored else [], optimizer.gradient_norm


def _scaled(grads: Params, share: float) -> Params:
    """Gradients of a mean over a part, as their share of the mean over all."""
    return {"layers": [{name: x * x.dtype.type(share) for name, x in layer.items()} for layer in grads["layers"]]}
