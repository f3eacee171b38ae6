"""Tensors lend their memory, and arrays of other libraries are gradients, where nothing has to be copied for it."""

import copy
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpuopt


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def network(torch: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


@pytest.mark.peers
@pytest.mark.parametrize("engine", ["auto", "array"])
def test_a_training_is_torchs_to_rounding(torch: Any, engine: Any) -> None:
    models = [network(torch), network(torch)]
    optimizers = [
        gpuopt.Optimizer(models[0].parameters(), gpuopt.like.torch.AdamW(lr=1e-2), engine=engine),
        torch.optim.AdamW(models[1].parameters(), lr=1e-2),
    ]
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    for _ in range(50):
        for model, optimizer in zip(models, optimizers, strict=True):
            model.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            optimizer.step()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


SMALL = [
    (dtype, precision)
    for dtype in ("float16", "bfloat16")
    for precision in ("state32", "param", "split", "stochastic")
    if (dtype, precision) != ("float16", "split")
]


@pytest.mark.peers
@pytest.mark.parametrize(("dtype", "precision"), SMALL)
def test_tensors_of_16_bits_lend_their_memory(torch: Any, dtype: str, precision: Any) -> None:
    own = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.float16
    torch.manual_seed(0)
    w = torch.randn(5000).to(getattr(torch, dtype)).requires_grad_()
    there, master = w.detach().float().numpy().astype(own), torch.nn.Parameter(w.detach().float())
    rule, version = gpuopt.like.torch.AdamW(lr=1e-2), w._version
    opt, numpys = (gpuopt.Optimizer(p, rule, engine="fused", precision=precision) for p in (w, there))
    torchs = torch.optim.AdamW([master], lr=1e-2)
    for _ in range(5):
        w.grad, master.grad = None, None
        (w * w).sum().backward()
        numpys.step(w.grad)  # NumPy's leaf takes the tensor's memory as its gradient
        opt.step()
        master.grad = w.grad.float()
        torchs.step()
        if precision != "split":
            master.data = master.data.to(w.dtype).float()
    np.testing.assert_array_equal(w.detach().float().numpy(), there.astype(np.float32))
    assert w._version == version + 5
    if precision in ("state32", "split"):
        torch.testing.assert_close(w.detach(), master.detach().to(w.dtype), rtol=torch.finfo(w.dtype).eps, atol=1e-3)
    loaded = {**opt.state_dict(), "params": {"": torch.full_like(w, 5.0)}}
    opt.load_state_dict(loaded)
    assert w.detach().unique().tolist() == [5.0]
    assert opt.evaluation() is w


@pytest.mark.peers
def test_averages_of_16_bit_tensors_are_tensors(torch: Any) -> None:
    pytest.importorskip("ml_dtypes")
    w = torch.ones(4, dtype=torch.bfloat16)
    opt = gpuopt.Optimizer(w, gpuopt.chain(gpuopt.SGD(lr=1.0), gpuopt.EMA(0.5)))
    opt.step(torch.ones(4))
    assert (w.tolist(), opt.evaluation().tolist(), opt.evaluation().dtype) == ([0] * 4, [0.5] * 4, torch.bfloat16)


@pytest.mark.peers
def test_what_16_bit_tensors_need(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    w = torch.ones(4, dtype=torch.bfloat16)
    gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0)).step(torch.ones(4, dtype=torch.bfloat16))
    assert w.tolist() == [0] * 4
    with pytest.raises(
        TypeError, match=r"params: a torch:cpu array, expected one of NumPy .* with the package ml_dtypes"
    ):
        gpuopt.Optimizer(w, gpuopt.SGD(), precision="split")


@pytest.mark.peers
def test_autograd_notices(torch: Any) -> None:
    w = torch.ones(3, requires_grad=True)
    loss, version = (w * w).sum(), w._version
    opt = gpuopt.Optimizer({"w": w}, gpuopt.SGD(lr=1.0, momentum=0.5))
    opt.step({"w": torch.ones(3, requires_grad=True) * 2})
    assert (w.tolist(), w._version) == ([-1] * 3, version + 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    state = copy.deepcopy(opt.state_dict())
    opt.load_state_dict({**state, "params": {"w": torch.full((3,), 5.0, requires_grad=True)}})
    assert (w.tolist(), w._version, w.requires_grad) == ([5] * 3, version + 2, True)


@pytest.mark.peers
def test_what_is_none_or_numpys_is_taken_too(torch: Any) -> None:
    params = {"a": torch.zeros(2), "b": torch.zeros(2), "c": np.zeros(2, np.float32)}
    opt = gpuopt.Optimizer(params, gpuopt.chain(gpuopt.SGD(lr=1.0), gpuopt.EMA(0.5)))
    opt.step({"a": None, "b": np.ones(2, np.float32), "c": torch.ones(2, dtype=torch.float64)})
    assert [params[name].tolist() for name in "abc"] == [[0, 0], [-1, -1], [-1, -1]]
    assert isinstance(opt.evaluation()["b"], torch.Tensor)
    again = copy.deepcopy(opt)
    again.step({"a": torch.ones(2), "b": None, "c": None})
    assert (again.params["a"].tolist(), params["a"].tolist()) == ([-1, -1], [0, 0])


@pytest.mark.peers
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda torch: torch.ones(3, device="meta"),
            r"params\['w'\]: a tensor on the meta device, which has no values",
        ),
        (lambda torch: torch.ones(3, requires_grad=True) * 2, r"params\['w'\]: a tensor that was computed from others"),
        (
            lambda torch: torch.ones(3).to_sparse(),
            r"params\['w'\]: a tensor of layout torch.sparse_coo, expected a dense",
        ),
        (
            lambda torch: torch.nn.LazyLinear(1).weight,
            r"params\['w'\]: a tensor without memory of its own \(Can't access",
        ),
        (
            lambda torch: freed(torch.ones(3)),
            r"params\['w'\]: a tensor without memory of its own \(its storage was freed",
        ),
        (lambda torch: torch._efficientzerotensor(3), r"params\['w'\]: a tensor without memory of its own"),
    ],
    ids=["meta", "computed", "sparse", "lazy", "freed", "zeros"],
)
def test_tensors_that_cannot_be_updated(torch: Any, make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gpuopt.Optimizer({"w": make(torch)}, gpuopt.SGD())


def test_tensors_of_more_axes_than_numpy_has(torch: Any) -> None:
    w = torch.zeros((1,) * 70)
    gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0)).step(torch.ones((1,) * 70))
    assert w.item() == -1


def freed(x: Any) -> Any:
    x.untyped_storage().resize_(0)
    return x


@pytest.mark.peers
def test_gradients_that_are_only_marked_are_read_right(torch: Any) -> None:
    one, z = torch.ones(3), torch.full((3,), 1 + 2j)
    for p in (torch.zeros(3), np.zeros(3, np.float32), torch.zeros(3, dtype=torch.bfloat16)):
        opt = gpuopt.Optimizer([p], gpuopt.SGD(lr=1.0))
        for g in (z.conj().imag, one.bfloat16(), one.double(), one):
            opt.step([g])
        assert p.tolist() == [2 - 1 - 1 - 1] * 3
    opt = gpuopt.Optimizer([p := torch.ones(3)], gpuopt.SGD(lr=1.0))
    opt.step([torch._efficientzerotensor(3)])
    assert p.tolist() == [1] * 3
    for p in (torch.zeros(3, dtype=torch.complex64), torch.zeros(3, dtype=torch.complex64).conj()):
        gpuopt.Optimizer([p], gpuopt.SGD(lr=1.0)).step([z.conj()])
        assert p.tolist() == [-1 + 2j] * 3


@pytest.mark.peers
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda torch: torch.ones(3, device="meta"), r"grads\[0\]: a tensor on the meta device"),
        (lambda torch: torch.ones(3).to_sparse(), r"grads\[0\]: a tensor of layout torch.sparse_coo"),
        (lambda torch: freed(torch.ones(3)), r"grads\[0\]: a tensor without memory of its own \(its storage was freed"),
        (
            lambda torch: freed(torch.ones(3, dtype=torch.bfloat16)),
            r"grads\[0\]: a tensor without memory of its own \(its storage was freed",
        ),
    ],
    ids=["meta", "sparse", "freed", "freed bfloat16"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_that_are_no_gradients(torch: Any, make: Any, words: str, dtype: str) -> None:
    with pytest.raises(ValueError, match=words):
        gpuopt.Optimizer([torch.ones(3, dtype=getattr(torch, dtype))], gpuopt.SGD()).step([make(torch)])
    with pytest.raises(ValueError, match=words):
        gpuopt.Optimizer([np.ones(3)], gpuopt.SGD()).step([make(torch)])


@pytest.mark.peers
def test_gradients_of_a_dtype_that_numpy_has_not(torch: Any) -> None:
    with pytest.raises(TypeError, match=r"grads\[0\]: dtype torch.float8_e4m3fn, expected a real one, best float32"):
        gpuopt.Optimizer([torch.ones(3)], gpuopt.SGD()).step([torch.ones(3).to(torch.float8_e4m3fn)])


@pytest.mark.peers
@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda layer: layer, r"params: Linear, .*; x.parameters\(\) are its tensors"),
        (lambda layer: layer.named_parameters(), r"params\[0\]\[0\]: str, .*; of pairs .* dict\(pairs\)"),
    ],
    ids=["module", "named"],
)
def test_what_has_tensors(torch: Any, give: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        gpuopt.Optimizer(give(torch.nn.Linear(2, 2)), gpuopt.SGD())


@pytest.mark.peers
def test_tensors_that_share_memory_or_were_replaced(torch: Any) -> None:
    w = torch.ones(4)
    with pytest.raises(ValueError, match=r"params\[0\] and params\[1\] share memory"):
        gpuopt.Optimizer([w, w[:2]], gpuopt.SGD())
    opt = gpuopt.Optimizer([w], gpuopt.SGD())
    w.data = torch.zeros(4)
    with pytest.raises(ValueError, match=r"params\[0\]: another array than the one that this optimizer updates"):
        opt.step([torch.ones(4)])
    with pytest.raises(
        TypeError, match=r"step: no gradients given, and params\[0\], a numpy array, has none of its own"
    ):
        gpuopt.Optimizer([np.ones(3)], gpuopt.SGD()).step()


@pytest.mark.peers
def test_gradients_of_jax_are_read_where_they_are() -> None:
    jnp = pytest.importorskip("jax").numpy
    w = np.zeros(3, np.float32)
    opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0))
    opt.step(jnp.ones(3))
    opt.step(jnp.ones(3, jnp.bfloat16))
    assert w.tolist() == [-2] * 3
    (gone := jnp.ones(3)).delete()
    with pytest.raises(ValueError, match="grads: an array of jaxlib that was deleted"):
        opt.step(gone)
    with pytest.raises(ValueError, match="params: an array of jaxlib that was deleted"):
        gpuopt.init(gpuopt.SGD(), gone)
    with pytest.raises(
        ValueError, match=r"a read-only jax.* array, expected one that can be updated in place; use gpuopt.init"
    ):
        gpuopt.Optimizer(jnp.ones(3), gpuopt.SGD())


def stranger(library: str, name: str) -> Any:
    """An object of a class that says it is of this library."""
    return type(name, (), {"__module__": ModuleType(library).__name__})()


def wrapping(library: str, **members: Any) -> Any:
    """One that has something in it."""
    found = stranger(library, "Wrapped")
    vars(found).update(members)
    return found


def with_unit() -> Any:
    """An array with a unit, of a subclass as astropy has it: the unit would get lost."""
    return np.zeros(3).view(type("Quantity", (np.ndarray,), {"__module__": "astropy.units"}))


class Exporter:
    """What can nothing but lend its memory."""

    def __init__(self, x: Any) -> None:
        self._x = x

    def __dlpack__(self, **options: Any) -> Any:
        return self._x.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._x.__dlpack_device__()


def test_gradients_of_whatever_lends_its_memory() -> None:
    w, rule = np.zeros(3, np.float32), gpuopt.SGD(lr=1.0)
    gpuopt.Optimizer(w, rule).step(Exporter(np.ones(3, np.float32)))
    new, _ = gpuopt.update(rule, w, Exporter(np.ones(3, np.float32)), gpuopt.init(rule, w))
    assert (w.tolist(), new.tolist()) == ([-1] * 3, [-2] * 3)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (stranger("xarray.core", "DataArray"), r"DataArray, expected .*; x\.values is its array"),
        (stranger("xarray.core", "Dataset"), r"Dataset, expected .*; x\[name\]\.values is the array of one of its"),
        (wrapping("xarray.core", data=stranger("dask.array", "Array")), r"its blocks .*: x\.compute\(\) is an array"),
        (stranger("pandas", "Series"), r"Series, expected .*; x\.to_numpy\(\) is its array"),
        (stranger("pint", "Quantity"), r"Quantity, expected .*; x\.magnitude is its array"),
        (with_unit(), r"\['w'\]: Quantity, expected .*; x\.value is its array"),
        (stranger("dask.array", "Array"), r"Array, expected .*no memory to update: x\.compute\(\) is an array"),
        (type("csr_matrix", (), {"toarray": np.ones})(), r"csr_matrix, expected .*; x\.toarray\(\) is its array"),
        (np.zeros(3).__dlpack__(), r"PyCapsule, expected .*; a capsule can be taken once"),
    ],
    ids=["xarray", "data set", "lazy xarray", "pandas", "pint", "astropy", "dask", "scipy.sparse", "capsule"],
)
def test_hints(x: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        gpuopt.Optimizer({"w": x}, gpuopt.SGD())
    with pytest.raises(TypeError, match=words):
        gpuopt.Optimizer({"w": np.zeros(3)}, gpuopt.SGD()).step({"w": x})
