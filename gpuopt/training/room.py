"""Networks and batches for which there is no memory: refused before all of it is taken."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from gpuopt.errors import UsageError
from gpuopt.limits import available
from gpuopt.rules.slots import is_number, starts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuopt.rules import Rule
    from gpuopt.runs.record.folder import RunFolder
    from gpuopt.training.config import Config
    from gpuopt.training.data import Dataset

__all__ = ["expect_room", "expect_saved"]


def expect_room(widths: Sequence[int], config: Config, data: Dataset) -> int:
    """Refuse a network and batches for which there is no memory, before all of it is taken; bytes that both take."""
    count = _parameters(widths)
    need, room = _bytes_a_parameter(config.rule()) * count, available()
    if need > room:
        gib = f"about {need / 2**30:,.1f} GiB to train, and {room / 2**30:,.1f} GiB are free"
        raise UsageError(f"--hidden {','.join(map(str, config.hidden))}: {count:,} parameters take {gib}")
    samples = len(data.train) + (0 if data.test is None else len(data.test))
    targets = 4 * samples * data.outputs if data.classes is not None else 0
    batch = len(data.train) if config.batch_size == "full" else min(config.batch_size, len(data.train))
    # Inputs of each layer, slopes and gradients, and the order of the samples.
    units = 4 * batch * (2 * widths[0] + 3 * sum(widths[1:-1]) + 5 * widths[-1]) + 8 * len(data.train)
    if need + targets + units > room:
        parts = f"targets of {data.outputs:,} classes {targets / 2**30:,.1f} GiB, " if targets else ""
        parts += f"a batch of {batch:,} samples {units / 2**30:,.1f} GiB"
        raise UsageError(f"--batch-size {config.batch_size}: {parts}, and {room / 2**30:,.1f} GiB are free")
    return need + units


def expect_saved(config: Config, folder: RunFolder) -> None:
    """Refuse a network that is larger than the one in the checkpoint, before it is made."""
    from gpuopt import checkpoint, tensorfile

    try:
        saved, _ = tensorfile.read(folder.checkpoint, lambda *_: False)
    except (checkpoint.CheckpointError, OSError):
        return  # what is wrong with it is said when it is loaded
    count = sum(math.prod(x.shape) for name, x in saved.items() if name.startswith("params/"))
    if _parameters([1, *config.hidden, 1]) > count:
        hidden = ",".join(map(str, config.hidden))
        raise UsageError(f"--hidden {hidden:.60}: more parameters than the {count:,} in {folder.checkpoint.name}")


def _bytes_a_parameter(rule: Rule) -> int:
    """In float32: parameter and state, a copy of them to be saved, gradients of two steps, what was before, how far it moved."""
    state = sum(not is_number(start) for start in starts(rule.slots).values())
    return 4 * (2 * (1 + state) + 4)


def _parameters(widths: Sequence[int]) -> int:
    return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))
