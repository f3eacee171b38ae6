"""The network: its gradient against finite differences and torch, on every array library."""

from typing import Any

import array_api_compat
import numpy as np
import pytest
from spaces import Host, Space

from gpuopt.training import Perceptron, initial_params

WIDTHS = [[4, 3], [4, 6, 3], [4, 6, 5, 3], [1, 2, 1]]
KINDS = ["classes", "numbers"]


def problem(widths: list[int], kind: str, samples: int = 7) -> tuple[Any, Host, Host]:
    """Parameters with biases, samples and targets, in float64."""
    random = np.random.RandomState(1)
    params = initial_params(random, widths)
    for layer in params["layers"]:
        layer["w"] = layer["w"].astype("f8")
        layer["b"] = random.standard_normal(layer["b"].shape)
    labels = random.randint(widths[-1], size=samples)
    y = np.eye(widths[-1])[labels] if kind == "classes" else random.standard_normal((samples, widths[-1]))
    return params, random.standard_normal((samples, widths[0])), y


def on(space: Space, params: Any) -> Any:
    return {"layers": [{name: space.put(x) for name, x in layer.items()} for layer in params["layers"]]}


def network(space: Space, kind: str, **options: Any) -> Perceptron:
    return Perceptron(array_api_compat.array_namespace(space.put(0.0)), kind == "classes", **options)


def mean_loss(params: Any, x: Host, y: Host, kind: str) -> float:
    """Written down once more, one sample and one unit at a time where that is clearer."""
    losses = []
    for a, target in zip(x, y, strict=True):
        for number, layer in enumerate(params["layers"], 1):
            a = a @ layer["w"] + layer["b"]  # noqa: PLW2901
            if number < len(params["layers"]):
                a = np.array([max(unit, 0.0) for unit in a])  # noqa: PLW2901
        if kind == "classes":
            losses.append(-np.log(np.exp(a) / np.exp(a).sum())[target.argmax()])
        else:
            losses.append(np.mean([(out - want) ** 2 for out, want in zip(a, target, strict=True)]))
    return float(np.mean(losses))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_gradient_is_that_of_the_loss(space: Space, widths: list[int], kind: str) -> None:
    params, x, y = problem(widths, kind)
    with space.use():
        outputs, grads = network(space, kind).gradients(on(space, params), space.put(x), space.put(y))
        score = space.get(network(space, kind).score(outputs, space.put(y)))
    assert score[0] / len(x) == pytest.approx(mean_loss(params, x, y, kind), rel=1e-12)
    step = 1e-6
    for layer, grad in zip(params["layers"], grads["layers"], strict=True):
        assert layer.keys() == grad.keys()
        for name, p in layer.items():
            expected = np.zeros_like(p)
            for i in np.ndindex(p.shape):
                kept = p[i]
                p[i] = kept + step
                above = mean_loss(params, x, y, kind)
                p[i] = kept - step
                expected[i] = (above - mean_loss(params, x, y, kind)) / (2 * step)
                p[i] = kept
            np.testing.assert_allclose(space.get(grad[name]), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.peers
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_torch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    params, x, y = problem([20, 30, 10, 5], kind, samples=40)
    leaves = [torch.tensor(p, requires_grad=True) for layer in params["layers"] for p in layer.values()]
    a = torch.tensor(x)
    for number in range(0, len(leaves), 2):
        a = (torch.relu(a) if number else a) @ leaves[number] + leaves[number + 1]
    loss = torch.nn.CrossEntropyLoss() if kind == "classes" else torch.nn.MSELoss()
    loss(a, torch.tensor(y)).backward()
    outputs, grads = Perceptron(array_api_compat.array_namespace(x), kind == "classes").gradients(params, x, y)
    np.testing.assert_allclose(outputs, a.detach().numpy(), rtol=1e-10)
    ours = [g for layer in grads["layers"] for g in layer.values()]
    for g, leaf in zip(ours, leaves, strict=True):
        np.testing.assert_allclose(g, leaf.grad.numpy(), rtol=1e-9, atol=1e-14)


def in_float32(params: Any, *arrays: Host) -> list[Any]:
    layers = [{name: x.astype("f4") for name, x in layer.items()} for layer in params["layers"]]
    return [{"layers": layers}, *(x.astype("f4") for x in arrays)]


@pytest.mark.parametrize("matmul", [None, "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_stays_float32(space: Space, kind: str, matmul: str | None) -> None:
    params, x, y = in_float32(*problem([4, 6, 3], kind))
    net = network(space, kind)
    if matmul is not None:
        net = network(space, kind, matmul=net.xp.float64)
    with space.use():
        outputs, grads = net.gradients(on(space, params), space.put(x), space.put(y))
        assert str(net.score(outputs, space.put(y)).dtype).endswith("float64")
        np.testing.assert_array_equal(space.get(outputs), space.get(net.outputs(on(space, params), space.put(x))))
    for a in [outputs, *(g for layer in grads["layers"] for g in layer.values())]:
        assert space.get(a).dtype == np.float32


def test_products_in_float64_are_correctly_rounded() -> None:
    params, x, _ = in_float32(*problem([50, 3], "classes", samples=30))
    layer = params["layers"][0]
    net = Perceptron(array_api_compat.array_namespace(x), matmul=np.float64)
    exact = x.astype("f16") @ layer["w"].astype("f16")
    np.testing.assert_array_equal(net.outputs(params, x), exact.astype("f4") + layer["b"])


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_outputs_do_not_overflow(space: Space, size: float) -> None:
    params, x, y = in_float32(*problem([4, 3], "classes"))
    params["layers"][0]["w"] *= np.float32(size)
    net = network(space, "classes")
    with space.use():
        outputs, grads = net.gradients(on(space, params), space.put(x), space.put(y))
        assert np.isfinite(space.get(net.score(outputs, space.put(y)))).all()
    assert all(np.isfinite(space.get(g)).all() for g in grads["layers"][0].values())


def test_score_adds_up_over_batches(space: Space) -> None:
    params, x, y = in_float32(*problem([4, 6, 3], "classes", samples=12))
    net = network(space, "classes")
    with space.use():
        outputs = net.outputs(on(space, params), space.put(x))
        whole = space.get(net.score(outputs, space.put(y)))
        cuts = [(0, 5), (5, 10), (10, 12)]
        parts = [space.get(net.score(outputs[i:j, :], space.put(y[i:j]))) for i, j in cuts]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)
    assert whole[1] == (space.get(outputs).argmax(axis=1) == y.argmax(axis=1)).sum()


@pytest.mark.parametrize(("init", "deviation"), [("he", (2 / 400) ** 0.5), ("small", 0.01)])
def test_initial_weights(init: Any, deviation: float) -> None:
    first, second = initial_params(np.random.RandomState(0), [400, 300, 10], init)["layers"]
    assert first["w"].std() == pytest.approx(deviation, rel=0.01)
    assert [a.shape for a in (*first.values(), *second.values())] == [(400, 300), (300,), (300, 10), (10,)]
    assert {a.dtype for a in (*first.values(), *second.values())} == {np.dtype("f4")}
    assert not first["b"].any()


def test_small_initial_weights_are_the_books_to_the_bit() -> None:
    layers = initial_params(np.random.RandomState(3), [2, 64, 3], "small")["layers"]
    random = np.random.RandomState(3)
    for layer, shape in zip(layers, [(2, 64), (64, 3)], strict=True):
        np.testing.assert_array_equal(layer["w"], np.float32(0.01) * random.randn(*shape).astype("f4"))
