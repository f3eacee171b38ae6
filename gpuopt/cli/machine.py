"""What this machine has, and whether it computes right: ``gpuopt info`` and ``check``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gpuopt.cli.application import aligned

__all__ = ["check", "info"]


def info() -> None:
    """Print what was found: versions, devices and their memory, and the backend that would be taken, and why."""
    from gpuopt import backends

    found = backends.report()
    packages = f" ({', '.join(found.cupy_packages)})" if found.cupy_packages else ""
    rows = [("gpuopt", found.gpuopt), ("Python", found.python), ("NumPy", found.numpy)]
    rows += [("CuPy", f"{found.cupy or 'not usable'}{packages}"), ("CUDA of CuPy", found.runtime or "-")]
    rows += [("CUDA of the driver", found.driver or "no NVIDIA driver")]
    rows += [("extra for it", f"gpuopt[{found.extra}]" if found.extra else "-")]
    for device in found.devices:
        memory = ""
        if device.free_bytes is not None and device.total_bytes is not None:
            memory = f", {device.free_bytes / 2**30:.1f} of {device.total_bytes / 2**30:.1f} GiB of memory free"
        about = f"{device.name}, compute capability {device.compute_capability}{memory}"
        rows.append((f"device cuda:{device.index}", about))
    rows += [("backend", found.backend or "none"), ("because", found.reason)]
    if found.training:
        rows.append(("for training", found.training))
    width = max(len(name) for name, _ in rows)
    typer.echo("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def check(
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    seconds: Annotated[
        float,
        typer.Option(min=0, metavar="N", help="How long it may take, about; every rule is compared all the same."),
    ] = 30.0,
) -> None:
    """Find out whether every device of this machine computes the same bits as the plain formulas, and how fast.

    Every rule runs with both dtypes, several shapes and hard values (subnormals, infinities, NaN) on the CPU and on each CUDA
    device. Exit status 0 only if all bits agree (however little time there is, of every rule with its defaults); else the
    smallest case that differs is shown. Without a GPU the CPU's engines are compared.
    """
    import dataclasses
    import json

    from rich.console import Console

    from gpuopt.check import check as findings

    found = []
    for finding in findings(seconds=seconds):
        found.append(finding)
        if not as_json:
            Console().print(finding.table()) if sys.stdout.isatty() else typer.echo(aligned(finding.rows()))
    if as_json:
        typer.echo(
            json.dumps([dataclasses.asdict(finding) | {"agrees": finding.agrees} for finding in found], indent=1)
        )
    if not all(finding.agrees for finding in found):
        raise typer.Exit(1)
