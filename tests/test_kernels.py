"""The CUDA kernels as NVIDIA's own compiler sees them: no spilled registers, 128 bits at a time."""

import ctypes
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conformance import ROWS, Row

import gpuopt
from gpuopt import nvrtc
from gpuopt.engines.cuda import code as cuda_code
from gpuopt.engines.cuda import reductions, verdict
from gpuopt.engines.program.cutting import stages
from gpuopt.engines.program.symbols import Kind
from gpuopt.engines.program.trace import trace
from gpuopt.engines.table import Variant

ARCHITECTURES = ["sm_70", "sm_80", "sm_90", "sm_100"]
KERNELS = {f"{row.id}_{dtype}": (row, dtype) for row in ROWS for dtype in ("float32", "float64")}
ADAM = gpuopt.Adam()
STORED = {
    "float16": (Variant(trace(ADAM), "float16", "state32"), 6, 5),
    "float16_param": (Variant(trace(ADAM), "float16", "param"), 4, 3),
    "float16_stochastic": (Variant(trace(ADAM), "float16", "stochastic"), 6, 5),
    "float16_from_float32": (Variant(trace(ADAM), "float16", "state32", "float32"), 7, 5),
    "bfloat16": (Variant(trace(ADAM), "bfloat16", "state32"), 6, 5),
    "complex64": (Variant(trace(ADAM, is_complex=True), "complex64"), 7, 5),
    "complex128": (Variant(trace(ADAM, is_complex=True), "complex128"), 7, 5),
    "complex64_adadelta": (Variant(trace(gpuopt.AdaDelta(), is_complex=True), "complex64"), 6, 4),
    "complex64_lbfgs10": (Variant(trace(gpuopt.LBFGS(), is_complex=True), "complex64"), 22, 21),
    "complex128_lbfgs10": (Variant(trace(gpuopt.LBFGS(), is_complex=True), "complex128"), 22, 21),
    "float32_rprop": (Variant(trace(gpuopt.Rprop()), "float32"), 4, 3),
}
"""Adam, stored otherwise than it is computed, and what needs many registers; loads and stores of 128 bits for 8 elements of 16 bits, 4 of complex64 (whose second
moment is real), 2 of complex128."""
REDUCING = {"lamb": gpuopt.LAMB(), "prodigy": gpuopt.Prodigy(), "lbfgs": gpuopt.LBFGS(memory=5)}
PASSES = {f"{name}_{dtype}": (rule, dtype) for name, rule in REDUCING.items() for dtype in ("float32", "float64")}
PASSES |= {f"lbfgs10_{dtype}": (gpuopt.LBFGS(memory=10), dtype) for dtype in ("float32", "float64")}
SHAPED = {
    f"{rule.name}_{dtype}_{i}": Variant(program, dtype)
    for rule in (gpuopt.Adafactor(), gpuopt.Muon())
    for dtype in ("float32", "float64")
    for i, program in enumerate(stages(trace(rule, kind=Kind((96, 48), dtype)), (96, 48), (0, 1)).programs)
}
"""Programs of the stages of rules that see a leaf's shape, and of what they add up along axes."""
MANY = {
    f"{memory}_{dtype}_{precision}": (
        Variant(trace(gpuopt.LBFGS(memory=memory), is_complex="complex" in dtype), dtype, precision),
        kinds,
        shared,
    )
    for memory, dtype, precision, kinds, shared in (
        (5, "float32", "", {"float4"}, False),
        (5, "float16", "state32", {"uint4", "float4"}, True),
        (10, "float16", "state32", {"uint2", "float4"}, True),
        (10, "float16", "param", {"uint2"}, True),
        (10, "float32", "", {"float4"}, True),
        (10, "float64", "", {"double2"}, True),
        (10, "complex64", "", {"float4"}, True),
        (10, "complex128", "", {"double2"}, True),
        (20, "float32", "", {"float2"}, True),
        (20, "float64", "", {"double"}, True),
    )
}
"""As many arrays as fit into registers by 128 bits, and more; by what they are read, and whether numbers and addresses are in shared memory."""


def run(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kernels of all rules and dtypes in one file."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    if os.environ.get("CUDASIM") == "1":
        pytest.skip("does not depend on devices, and is tested without an emulator")
    folder = tmp_path_factory.mktemp("kernels")
    sources = []
    for name, (row, dtype) in KERNELS.items():
        source = cuda_code.source((Variant(trace(row.make()), dtype),))
        sources.append(f"namespace {name} {{\n{source.replace('step(', f'{name}(')}\n}}\n")
    for name, (variant, _, _) in STORED.items():
        source = cuda_code.source((variant,)).replace("step(", f"stored_{name}(")
        sources.append(f"namespace stored_{name} {{\n{source}\n}}\n")
    for name, variant in SHAPED.items():
        source = cuda_code.source((variant,)).replace("step(", f"shaped_{name}(")
        sources.append(f"namespace shaped_{name} {{\n{source}\n}}\n")
    for name, (rule, dtype) in PASSES.items():
        variants = (Variant(trace(rule), dtype),)
        for last, source in ((True, cuda_code.source(variants)), (False, reductions.source(0, variants))):
            own = re.sub(r"\b(step|reduce)\(", f"{name}_last(" if last else f"{name}(", source)
            undefined = "".join(f"#undef {macro}\n" for macro in re.findall(r"#define (\w+)", own))
            sources.append(f"namespace {name}_{last} {{\n{own}\n}}\n{undefined}")
    (folder / "kernels.cu").write_text("".join(sources))
    return folder


@pytest.fixture(scope="module")
def resources(folder: Path) -> dict[tuple[str, str], str]:
    """What the assembler says of each kernel on each architecture that this compiler has."""
    known = run("nvcc", "--list-gpu-code", folder=folder).split()
    targets = [a for a in ARCHITECTURES if a in known]
    codes = [f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in targets]
    said = run("nvcc", "-fatbin", "-fmad=false", "-Xptxas=-v", "--threads=0", *codes, "kernels.cu", folder=folder)
    blocks = re.split(r"Compiling entry function '(\w+)' for '(\w+)'", said)[1:]
    found = {(name, target): text for name, target, text in zip(blocks[::3], blocks[1::3], blocks[2::3], strict=True)}
    names = [*KERNELS, *PASSES, *(f"{name}_last" for name in PASSES), *(f"stored_{name}" for name in STORED)]
    names += [f"shaped_{name}" for name in SHAPED]
    assert found.keys() == {(name, target) for name in names for target in targets}
    return found


@pytest.fixture(scope="module")
def ptx(folder: Path) -> dict[str, str]:
    """The PTX of each kernel."""
    run("nvcc", "-ptx", "-fmad=false", "kernels.cu", folder=folder)
    blocks = re.split(r"\.entry (\w+)\(", (folder / "kernels.ptx").read_text())[1:]
    return dict(zip(blocks[::2], blocks[1::2], strict=True))


@pytest.mark.slow
def test_no_register_is_spilled(resources: dict[tuple[str, str], str]) -> None:
    spilling = {
        key: said
        for key, said in resources.items()
        if "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" not in said
    }
    assert not spilling


@pytest.mark.parametrize("name", KERNELS)
def test_the_main_path_moves_128_bits_at_a_time(name: str, ptx: dict[str, str]) -> None:
    row: Row
    row, dtype = KERNELS[name]
    vector = {"float32": r"\.v4\.[fb]32", "float64": r"\.v2\.[fb]64"}[dtype]
    loads, stores = (len(re.findall(rf"\b{op}\.global(?:\.\w+)*{vector}", ptx[name])) for op in ("ld", "st"))
    arrays = 1 + len(row.slots)  # the gradient is read only; the loop may be unrolled
    assert stores >= arrays
    assert loads * arrays == stores * (arrays + 1)


@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_otherwise_moves_128_bits_at_a_time(name: str, ptx: dict[str, str]) -> None:
    _, loads, stores = STORED[name]
    found = [re.findall(rf"\b{op}\.global(?:\.\w+)*(\.v\d\.\w+)", ptx[f"stored_{name}"]) for op in ("ld", "st")]
    assert all(re.fullmatch(r"\.v4\.[fbu]32|\.v2\.[fbu]64", kind) for kinds in found for kind in kinds)
    assert len(found[1]) >= stores
    assert len(found[0]) * stores == len(found[1]) * loads  # the loop may be unrolled


@pytest.mark.parametrize("name", [*KERNELS, *(f"stored_{name}" for name in STORED)])
def test_the_text_moves_128_bits_at_a_time(name: str) -> None:
    """Of every array, without a compiler."""
    row, dtype = KERNELS.get(name, (None, ""))
    variant = Variant(trace(row.make()), dtype) if row else STORED[name.removeprefix("stored_")][0]
    found = vectors(variant)
    assert {label for _, label in found} == {"p", "g", *(f"slot{k}" for k in range(len(variant.program.slots)))}
    assert {kind for kind, _ in found} <= {"float4", "double2", "uint4"}


@pytest.mark.parametrize(("variant", "kinds"), [(own, kinds) for own, kinds, _ in MANY.values()], ids=MANY)
def test_of_many_arrays_fewer_elements_are_read_at_a_time(variant: Variant, kinds: set[str]) -> None:
    assert {kind for kind, _ in vectors(variant)} == kinds


@pytest.mark.parametrize(("variant", "shared"), [(own, shared) for own, _, shared in MANY.values()], ids=MANY)
def test_of_many_numbers_few_are_in_registers(variant: Variant, shared: bool) -> None:
    text = cuda_code.source((variant,))
    (parameters,) = re.findall(r"void element0\((.*)\)", text)
    assert "bool " not in parameters
    assert "unsigned int truths" in parameters
    assert ("__shared__" in text) == shared


@pytest.mark.parametrize("name", [*KERNELS, *(f"stored_{name}" for name in STORED), *(f"shaped_{n}" for n in SHAPED)])
def test_only_many_numbers_leave_registers(name: str) -> None:
    row, dtype = KERNELS.get(name, (None, ""))
    shaped = SHAPED.get(name.removeprefix("shaped_"))
    variant = Variant(trace(row.make()), dtype) if row else shaped or STORED[name.removeprefix("stored_")][0]
    many = name.endswith("lbfgs10")
    assert bool(re.search("__shared__|truths", cuda_code.source((variant,)))) == many


def vectors(variant: Variant) -> set[tuple[str, str]]:
    """Types by which the main loop reads and writes, each with the name of an array."""
    return set(re.findall(r"\(\(([\w ]+)\*\)&at_(\w+)\[", cuda_code.source((variant,))))


@pytest.mark.parametrize("architecture", ["compute_60", "compute_70", "compute_90"])
@pytest.mark.parametrize("kernel", ["step", "measure"])
def test_nvrtc_compiles_it_for_old_and_new_devices(kernel: str, architecture: str) -> None:
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.cuda_nvrtc") is None:
        pytest.skip("needs NVIDIA's package of NVRTC")
    variants = tuple(Variant(trace(row.make()), dtype) for row, dtype in KERNELS.values())
    text = verdict.source() if kernel == "measure" else cuda_code.source(variants)
    (folder,) = importlib.import_module("nvidia.cuda_nvrtc").__path__
    library = ctypes.CDLL(str(next(Path(folder).glob("lib/libnvrtc.so.*"))))
    assert nvrtc._compiled(library, text, architecture)


@pytest.mark.parametrize(
    "name", [*KERNELS, *PASSES, *(f"{name}_last" for name in PASSES), *(f"stored_{name}" for name in STORED)]
)
def test_nothing_is_contracted_or_flushed(name: str, ptx: dict[str, str]) -> None:
    assert not re.findall(r"\bfma\.|\.ftz|\.approx", ptx[name])
