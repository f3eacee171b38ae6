"""The CUDA kernels as NVIDIA's own compiler makes them: registers, spilled ones, and how wide memory is read and written.

python -m benchmarks.kernels [--only Adam LBFGS] [--dtypes float32 float16] [--architectures 70 90] [--all]

No GPU is needed, but NVRTC and `ptxas`: of a CUDA toolkit, or of ``pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvcc-cu12``, whose
`ptxas` has to be on PATH. Widths are those of machine code where there is an `nvdisasm` that knows the device, and else those of PTX.
Kernels that keep anything in memory for want of registers, or whose main loop moves an array by less than 128 bits, are marked.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import gpuopt
from benchmarks.timing import table
from gpuopt import nvrtc
from gpuopt.engines.cuda import code as cuda_code
from gpuopt.engines.cuda import reductions
from gpuopt.engines.cuda import verdict as cuda_verdict
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.program.cutting import stages
from gpuopt.engines.program.passes import update
from gpuopt.engines.program.symbols import Kind, ShapeNeededError
from gpuopt.engines.program.trace import trace
from gpuopt.engines.storage import FITTING
from gpuopt.engines.table import Variant, reduction_passes
from gpuopt.rules import RULES
from gpuopt.rules.pairs import ComplexError
from gpuopt.transforms import TRANSFORMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuopt.engines.program.program import Program

ARCHITECTURES = ("70", "80", "90", "100")
SHAPE = (96, 48)
"""Of the leaf of a rule that looks at it."""
PACKAGES = "nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvcc-cu12"


@dataclass(frozen=True)
class Kernel:
    """One kernel: what it is of, its text, and how many arrays it reads and writes 128 bits at a time, where they are aligned."""

    name: str
    stored: str
    kind: str
    text: str
    loads: int = 0
    stores: int = 0


def rules() -> dict[str, gpuopt.Rule]:
    """Every rule, and every transform beside Adam, by name."""
    found: dict[str, gpuopt.Rule] = {name: rule() for name, rule in RULES.items()}
    for name, transform in TRANSFORMS.items():
        own = transform(np.ones(SHAPE)) if name == "Scale" else transform()
        members = (gpuopt.Adam(), own) if "after" in vars(transform) else (own, gpuopt.Adam())
        found[f"Adam, {name}"] = gpuopt.chain(*members)
    return found


def storages(dtypes: list[str]) -> Iterator[tuple[str, str]]:
    """Every dtype with the precisions that CUDA has of it; there are no kernels for "split"."""
    for dtype in dtypes:
        yield from (
            (dtype, way) for way in (("state32", "param", "stochastic") if dtype in FITTING["stochastic"] else ("",))
        )


def programs(rule: gpuopt.Rule, dtype: str) -> list[tuple[str, Program]]:
    """The programs of loops that a step consists of; none of a rule that refuses complex leaves."""
    is_complex = DTYPES[dtype].parts == 2
    try:
        whole = trace(rule, is_complex=is_complex)
    except ShapeNeededError:
        whole = trace(rule, is_complex=is_complex, kind=Kind(SHAPE, DTYPES[dtype].arithmetic))
    except ComplexError:
        return []
    found = stages(whole, SHAPE, (0, 1)).programs
    return [
        (f"{'fold' if program.folds else 'step'}{f' {n}' if len(found) > 1 else ''}", program)
        for n, program in enumerate(found, 1)
    ]


def kernels(only: list[str], dtypes: list[str]) -> Iterator[Kernel]:
    """The kernels of these rules and dtypes, and the one that looks at gradients."""
    yield Kernel("every rule", "all", "verdict", cuda_verdict.source())
    for name, rule in rules().items():
        for dtype, way in storages(dtypes) if name in only else ():
            stored = f"{dtype} {way}".strip()
            for kind, program in programs(rule, dtype):
                own = (Variant(program, dtype, way),)
                yield Kernel(name, stored, kind, cuda_code.source(own), *wide(program))
                for k in range(reduction_passes(own)):
                    yield Kernel(name, stored, f"{kind}, sums {k + 1}", reductions.source(k, own))


def wide(program: Program) -> tuple[int, int]:
    """How many arrays like the leaf the last loop reads and writes; a sum along an axis is of neighbours by neighbours."""
    last = update(program)
    read = {program.nodes[i].args[0] for i in last.elements if program.nodes[i].op == "load"} - program.spread
    return (0, 0) if program.folds else (len(read), len({store.name for store in last.stores}))


@cache
def library() -> ctypes.CDLL:
    """NVRTC, of a package or of a toolkit."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.*")]
    try:
        return ctypes.CDLL(str(found[0]) if found else "libnvrtc.so")
    except OSError as error:
        raise SystemExit(f"NVRTC: not found; pip install {PACKAGES}") from error


@dataclass(frozen=True)
class Made:
    """What became of a kernel for an architecture."""

    registers: int
    stack: int
    moves: Counter[str]

    def faults(self, kernel: Kernel) -> str:
        """What is not as it should be, in words."""
        narrow = self.moves["load 128"] < kernel.loads or self.moves["store 128"] < kernel.stores
        return ", ".join(["spills"] * (self.stack > 0) + ["narrow"] * narrow)


def made(kernel: Kernel, architecture: str, assembler: str) -> Made:
    """Compile a kernel as a device of this architecture has it compiled."""
    ptx = nvrtc._compiled(library(), kernel.text, f"compute_{architecture}").rstrip(b"\0").decode()
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [assembler, "-v", f"-arch=sm_{architecture}", str(source), "-o", str(cubin)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        sass = disassembled(cubin)
    registers = max(map(int, re.findall(r"Used (\d+) registers", said)))
    stack = max(map(int, re.findall(r"(\d+) bytes stack frame", said)))
    return Made(registers, stack, moves_of_sass(sass) if sass else moves_of_ptx(ptx))


def disassembled(cubin: Path) -> str:
    """Machine code as text; empty where there is no disassembler, or only one that does not know the device."""
    tool = shutil.which("nvdisasm")
    done = subprocess.run([tool, str(cubin)], capture_output=True, text=True, check=False) if tool else None
    return done.stdout if done and done.returncode == 0 else ""


def moves_of_sass(text: str) -> Counter[str]:
    """Accesses of global memory in machine code by what they do and how many bits."""
    found = re.findall(r"\b(LDG|STG|LD|ST)\.E((?:\.\w+)*)", text)
    return Counter(f"{'load' if op[0] == 'L' else 'store'} {_bits(rest)}" for op, rest in found)


def _bits(rest: str) -> str:
    widths = re.findall(r"\.[US]?(8|16|64|128|256)\b", rest)
    return widths[0] if widths else "32"


def moves_of_ptx(text: str) -> Counter[str]:
    """The same in PTX."""
    found = re.findall(r"\b(ld|st)(?:\.volatile)?\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfsu](\d+)", text)
    return Counter(f"{'load' if op == 'ld' else 'store'} {int(n or 1) * int(size)}" for op, n, size in found)


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(rules())
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="RULE", help=", ".join(names))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), metavar="DTYPE")
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, metavar="CC", help="of sm_CC")
    parser.add_argument(
        "--all", action="store_true", help="every row, and not only the most registers and what is marked"
    )
    options = parser.parse_args()
    assembler = shutil.which("ptxas")
    if assembler is None:
        raise SystemExit(f"ptxas: not on PATH; pip install {PACKAGES}")
    work = [(kernel, cc) for kernel in kernels(options.only, options.dtypes) for cc in options.architectures]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(lambda own: made(own[0], own[1], assembler), work))
    rows, most = list[tuple[str, ...]](), dict[tuple[str, str], int]()
    for (kernel, cc), one in zip(work, results, strict=True):
        kind = kernel.kind.rstrip("0123456789. "), cc
        most[kind] = max(most.get(kind, 0), one.registers)
        if options.all or one.faults(kernel):
            widths = ", ".join(f"{count} {width}" for width, count in sorted(one.moves.items()))
            cells = (kernel.stored, kernel.kind, f"sm_{cc}", str(one.registers), str(one.stack), widths)
            rows.append((kernel.name, *cells, one.faults(kernel)))
    if rows:
        header = ("rule", "leaf", "kernel", "device", "registers", "bytes of stack", "accesses by bits", "")
        print(f"{table(header, rows)}\n")
    print(table(("most registers", "device", ""), [(kind, f"sm_{cc}", str(n)) for (kind, cc), n in most.items()]))
    marked = sum(bool(one.faults(kernel)) for (kernel, _), one in zip(work, results, strict=True))
    print(f"\n{len(work)} kernels, {marked} of them marked")


if __name__ == "__main__":
    main()
