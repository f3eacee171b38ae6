"""The conventions of other libraries, against these libraries: float64, five shapes, 200 steps (60 with reductions)."""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

import gpuopt

Leaves: TypeAlias = list[Any]
Peer: TypeAlias = Callable[[str, dict[str, Any], Leaves, list[Leaves]], Leaves]

SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (3, 4), (2, 3, 5)]
LR = 2.0**-7  # exact in float32, in which MLX keeps it
MATRICES: list[tuple[int, ...]] = [(3, 4), (4, 3), (1, 6), (6, 1), (12, 16)]
"""Shapes for rules that take no others."""
REDUCE = {"lamb", "lars", "novograd", "fromage", "prodigy", "Lamb"}

# Of each library: algorithm, arguments beside the learning rate, and the deviation allowed where the peer keeps float32.
CASES: dict[str, list[tuple[str, dict[str, Any], float]]] = {
    "torch": [
        ("SGD", {}, 1e-11),
        ("SGD", {"momentum": 0.9}, 1e-11),
        ("SGD", {"momentum": 0.9, "dampening": 0.25, "weight_decay": 0.01}, 1e-11),
        ("SGD", {"momentum": 0.9, "nesterov": True, "maximize": True}, 1e-11),
        ("Adam", {}, 1e-11),
        ("Adam", {"amsgrad": True, "weight_decay": 0.01}, 1e-11),
        ("Adam", {"maximize": True, "weight_decay": 0.01, "decoupled_weight_decay": True}, 1e-11),
        ("AdamW", {}, 1e-11),
        ("AdamW", {"amsgrad": True}, 1e-11),
        ("NAdam", {}, 1e-7),
        ("NAdam", {"weight_decay": 0.01, "decoupled_weight_decay": True}, 1e-7),
        ("RAdam", {"weight_decay": 0.01}, 1e-11),
        ("Adamax", {"weight_decay": 0.01}, 1e-11),
        ("Adadelta", {"weight_decay": 0.01}, 1e-11),
        ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.1}, 1e-11),
        ("RMSprop", {}, 1e-11),
        ("RMSprop", {"momentum": 0.9, "centered": True}, 1e-11),
        ("Rprop", {}, 1e-11),
        ("ASGD", {}, 1e-7),
        ("ASGD", {"t0": 20.0, "weight_decay": 0.01}, 1e-7),
        ("Adafactor", {}, 1e-11),
        ("Adafactor", {"eps": (1e-6, 1e-2), "d": 1.25, "weight_decay": 0.1, "maximize": True}, 1e-11),
        ("Muon", {}, 1e-2),  # it iterates in bfloat16
        ("Muon", {"nesterov": False, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}, 1e-2),
    ],
    "optax": [
        ("sgd", {}, 1e-11),
        ("sgd", {"momentum": 0.9, "nesterov": True}, 1e-11),
        ("adam", {"eps_root": 1e-6}, 1e-11),
        ("adam", {"nesterov": True}, 1e-11),
        ("adamw", {}, 1e-11),
        ("nadam", {}, 1e-11),
        ("nadamw", {}, 1e-11),
        ("amsgrad", {}, 1e-11),
        ("adamax", {}, 1e-11),
        ("adamaxw", {}, 1e-11),
        ("adadelta", {"weight_decay": 0.01}, 1e-11),
        ("adagrad", {}, 1e-11),
        ("rmsprop", {}, 1e-11),
        ("rmsprop", {"centered": True, "momentum": 0.9, "nesterov": True}, 1e-11),
        ("rmsprop", {"eps_in_sqrt": False, "bias_correction": True, "initial_scale": 0.1}, 1e-11),
        ("radam", {}, 1e-11),
        ("radam", {"nesterov": True, "eps_root": 1e-6}, 1e-11),
        ("yogi", {}, 1e-11),
        ("adabelief", {}, 1e-11),
        ("adabelief", {"nesterov": True}, 1e-11),
        ("adan", {"weight_decay": 0.01}, 1e-11),
        ("lion", {}, 1e-11),
        ("rprop", {}, 1e-11),
        ("rprop", {"max_step_size": 2.0**-9}, 1e-11),  # which the first one is beyond
        ("rprop", {"min_step_size": 2.0**-5}, 1e-11),
        ("lamb", {"weight_decay": 0.01}, 1e-11),
        ("lars", {"weight_decay": 0.01, "nesterov": True}, 1e-11),
        ("novograd", {"weight_decay": 0.01}, 1e-11),
        ("fromage", {}, 1e-11),
        ("prodigy", {"weight_decay": 0.01, "estim_lr0": 0.01}, 1e-11),
        ("prodigy", {"safeguard_warmup": True}, 1e-11),
        ("schedule_free_sgd", {"weight_decay": 0.01}, 1e-11),
        ("schedule_free_adamw", {"weight_decay": 0.01}, 1e-11),
        ("adafactor", {"min_dim_size_to_factor": 3}, 1e-6),  # its decay is float32
        ("adafactor", {"clipping_threshold": None, "momentum": 0.9, "weight_decay_rate": 0.01}, 1e-6),
        ("adafactor", {"min_dim_size_to_factor": 1, "multiply_by_parameter_scale": False}, 1e-6),
        ("muon", {}, 1e-11),
        ("muon", {"nesterov": False, "weight_decay": 0.1, "consistent_rms": 0.2}, 1e-11),
    ],
    "keras": [
        ("SGD", {}, 1e-11),
        ("SGD", {"momentum": 0.9, "nesterov": True}, 1e-11),
        ("Adam", {}, 1e-11),
        ("Adam", {"amsgrad": True, "weight_decay": 0.01}, 1e-11),
        ("Adam", {"clipvalue": 0.125}, 1e-11),
        ("Adam", {"clipnorm": 0.125}, 1e-7),  # it compares a float64 with a number in float32
        ("Adam", {"global_clipnorm": 0.125}, 1e-7),
        ("AdamW", {}, 1e-11),
        ("Nadam", {}, 1e-11),
        ("Adamax", {}, 1e-11),
        ("Adadelta", {}, 1e-11),
        ("Adagrad", {}, 1e-11),
        ("RMSprop", {}, 1e-11),
        ("RMSprop", {"momentum": 0.9, "centered": True}, 1e-11),
        ("Lion", {}, 1e-11),
        ("Lamb", {}, 1e-11),
    ],
    "mlx": [
        ("SGD", {}, 1e-11),
        ("SGD", {"momentum": 0.9, "dampening": 0.25, "weight_decay": 0.01}, 1e-11),
        ("SGD", {"momentum": 0.9, "nesterov": True}, 1e-11),
        ("RMSprop", {}, 1e-11),
        ("Adagrad", {}, 1e-11),
        ("AdaDelta", {}, 1e-11),
        ("Adam", {}, 1e-11),
        ("Adam", {"bias_correction": True}, 1e-4),  # its powers of beta are float32
        ("AdamW", {}, 1e-11),
        ("Adamax", {}, 1e-11),
        ("Lion", {"weight_decay": 0.01}, 1e-11),
    ],
}


def problem(steps: int, name: str = "") -> tuple[Leaves, list[Leaves]]:
    """Parameters between 1 and 2, and gradients of many sizes."""
    random = np.random.RandomState(0)
    shapes = MATRICES if name.lower() == "muon" else SHAPES
    p = [np.asarray(1 + random.random_sample(shape)) for shape in shapes]
    sizes = 10 ** random.uniform(-3, 0, (steps, len(shapes)))
    gradients = [
        [np.asarray(random.standard_normal(shape) * size) for shape, size in zip(shapes, row, strict=True)]
        for row in sizes
    ]
    return p, gradients


def of_torch(name: str, h: dict[str, Any], p: Leaves, gradients: list[Leaves]) -> Leaves:
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(x, requires_grad=True) for x in p]
    optimizer = getattr(torch.optim, name)(tensors, **h)
    for own in gradients:
        for tensor, g in zip(tensors, own, strict=True):
            tensor.grad = torch.tensor(g)
        optimizer.step()
    return [tensor.detach().numpy() for tensor in tensors]


def of_optax(name: str, h: dict[str, Any], p: Leaves, gradients: list[Leaves]) -> Leaves:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    optimizer = getattr(optax, name, None) or getattr(optax.contrib, name)
    made = optimizer(**h)
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        arrays = [jax.numpy.asarray(x) for x in p]
        state = made.init(arrays)

        @jax.jit  # type: ignore[untyped-decorator]
        def step(arrays: Leaves, state: Any, own: Leaves) -> tuple[Leaves, Any]:
            moves, state = made.update(own, state, arrays)
            return optax.apply_updates(arrays, moves), state

        for own in gradients:
            arrays, state = step(arrays, state, [jax.numpy.asarray(g) for g in own])
        return [np.asarray(x) for x in arrays]


def of_keras(name: str, h: dict[str, Any], p: Leaves, gradients: list[Leaves]) -> Leaves:
    keras = pytest.importorskip("keras")
    before = keras.backend.floatx()
    keras.backend.set_floatx("float64")
    try:
        variables = [keras.Variable(x, dtype="float64") for x in p]
        optimizer = getattr(keras.optimizers, name)(**h)
        optimizer.build(variables)
        for own in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(g, dtype="float64") for g in own], variables)
        return [keras.ops.convert_to_numpy(x) for x in variables]
    finally:
        keras.backend.set_floatx(before)


def of_mlx(name: str, h: dict[str, Any], p: Leaves, gradients: list[Leaves]) -> Leaves:
    mx = pytest.importorskip("mlx.core", exc_type=ImportError)
    optimizers = pytest.importorskip("mlx.optimizers")
    mx.set_default_device(mx.cpu)
    arrays = {str(i): mx.array(x, dtype=mx.float64) for i, x in enumerate(p)}
    optimizer = getattr(optimizers, name)(**h)
    optimizer.init(arrays)
    for own in gradients:
        given = {str(i): mx.array(g, dtype=mx.float64) for i, g in enumerate(own)}
        arrays = optimizer.apply_gradients(given, arrays)
        mx.eval(arrays)
    return [np.array(arrays[str(i)]) for i in range(len(p))]


PEERS: dict[str, Peer] = {"torch": of_torch, "optax": of_optax, "keras": of_keras, "mlx": of_mlx}


def made(library: str, name: str, h: dict[str, Any]) -> gpuopt.Rule:
    rule: gpuopt.Rule = getattr(getattr(gpuopt.like, library), name)(**h)
    return rule


def steps_of(rule: gpuopt.Rule, p: Leaves, gradients: list[Leaves], engine: Any) -> Leaves:
    opt = gpuopt.Optimizer([x.copy() for x in p], rule, engine=engine)
    for own in gradients:
        opt.step(own)
    found: Leaves = opt.params
    return found


def deviation(ours: Leaves, theirs: Leaves, start: Leaves) -> float:
    """The largest deviation, in units of the distance moved."""
    moved = max(float(np.max(np.abs(x - y))) for x, y in zip(theirs, start, strict=True))
    return max(float(np.max(np.abs(x - y))) for x, y in zip(ours, theirs, strict=True)) / moved


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # those of the other libraries
@pytest.mark.parametrize(
    ("library", "name", "h", "most"),
    [
        pytest.param(library, name, h, most, id=f"{library}.{name}({', '.join(f'{k}={v}' for k, v in h.items())})")
        for library, cases in CASES.items()
        for name, h, most in cases
    ],
)
def test_goes_where_the_other_library_goes(library: str, name: str, h: dict[str, Any], most: float) -> None:
    lr = "lr" if library == "torch" else "learning_rate"
    h = {lr: 1.0 if name == "prodigy" else LR, **h}
    p, gradients = problem(60 if name in REDUCE else 200, name)
    theirs = PEERS[library](name, h, p, gradients)
    for engine in ("array", "auto"):
        assert deviation(steps_of(made(library, name, h), p, gradients, engine), theirs, p) <= most


@pytest.mark.peers
@pytest.mark.parametrize("half", ["torch's", "ours"])
@pytest.mark.parametrize(("name", "h", "most"), CASES["torch"], ids=str)
def test_goes_on_from_the_state_of_torch_and_the_reverse(name: str, h: dict[str, Any], most: float, half: str) -> None:
    torch = pytest.importorskip("torch")
    p, gradients = problem(12, name)
    names = ["b", "a", "c", "e", "d"]  # torch's order, which is not that of the leaves
    h = {"lr": LR, **h}

    def optimizers() -> tuple[gpuopt.Optimizer, Any, Leaves]:
        ours = gpuopt.Optimizer({name: x.copy() for name, x in zip(names, p, strict=True)}, made("torch", name, h))
        tensors = [torch.tensor(x, requires_grad=True) for x in p]
        return ours, getattr(torch.optim, name)(tensors, **h), tensors

    def go(optimizer: Any, tensors: Leaves, own: list[Leaves]) -> None:
        for given in own:
            if isinstance(optimizer, gpuopt.Optimizer):
                optimizer.step(dict(zip(names, given, strict=True)))
            else:
                for tensor, g in zip(tensors, given, strict=True):
                    tensor.grad = torch.tensor(g)
                optimizer.step()

    ours, theirs, tensors = optimizers()
    go(theirs, tensors, gradients[:5])
    if half == "torch's":
        for key, tensor in zip(names, tensors, strict=True):
            ours.params[key][...] = tensor.detach().numpy()
        gpuopt.like.torch.load_state_dict(ours, theirs.state_dict(), names)
        assert ours.steps == (
            {"SGD": int("momentum" in h), "Muon": 1}.get(name, 5)
        )  # who does not need it has no count
        go(ours, [], gradients[5:])
    else:
        go(ours, [], gradients[:5])
        _, other, others = optimizers()
        with torch.no_grad():
            for key, tensor in zip(names, others, strict=True):
                tensor[...] = torch.tensor(ours.params[key])
        if "lr_decay" not in h:  # of a schedule, torch gets the number of the next step
            other.load_state_dict(gpuopt.like.torch.state_dict(ours, names))
            go(other, others, gradients[5:])
            for key, tensor in zip(names, others, strict=True):
                ours.params[key][...] = tensor.detach().numpy()
        else:
            go(ours, [], gradients[5:])
    go(theirs, tensors, gradients[5:])
    ended = [ours.params[key] for key in names]
    most *= 2 if name == "Muon" else 1  # bfloat16 errs more in few steps than in many
    assert deviation(ended, [tensor.detach().numpy() for tensor in tensors], p) <= most


@pytest.mark.peers
def test_states_of_torch_that_do_not_fit() -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    theirs = torch.optim.Adam(tensors)
    tensors[0].grad = torch.ones(2)
    theirs.step()
    state, like = theirs.state_dict(), gpuopt.like.torch
    opt = gpuopt.Optimizer({"a": np.ones(2, "f4"), "b": np.ones(3, "f4")}, like.Adam())
    like.load_state_dict(opt, state, ["a", "b"])
    assert (opt.steps, opt.state_dict()["state"]["b"]["m"].tolist()) == (1, [0.0, 0.0, 0.0])
    for names, words in (
        (None, "names: None, expected the leaves' paths in torch's order"),
        (["a", "c"], r"names: \['c'\], expected each of 'a', 'b' once"),
        (["a"], "names: 1 leaves, expected one for each of torch's 2 parameters"),
        (["b", "a"], r"state/b/m: shape \(2,\), expected \(3,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            like.load_state_dict(opt, state, names)
    tensors[1].grad = torch.ones(3)
    theirs.step()
    with pytest.raises(ValueError, match=r"step: {'a': 2, 'b': 1}, expected one for all"):
        like.load_state_dict(opt, theirs.state_dict(), ["a", "b"])
    like.load_state_dict(opt, theirs.state_dict(), ["a", "b"], steps=2)
    assert opt.steps == 2
    for rule, words in (
        (gpuopt.Lion(), "Lion: torch has no such"),
        (gpuopt.SGD(momentum=0.5), "not what torch.optim.SGD"),
    ):
        with pytest.raises(ValueError, match=words):
            like.state_dict(gpuopt.Optimizer(np.ones(2), rule))
    named = torch.optim.Adam({"b": tensors[1], "a": tensors[0]}.items())
    named.step()
    like.load_state_dict(opt, named.state_dict())
    assert opt.steps == 1


@pytest.mark.peers
@pytest.mark.parametrize("memory", [1, 3, 10])
def test_lbfgs_goes_where_that_of_optax_goes(memory: int) -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    random = np.random.RandomState(0)
    root = random.standard_normal((20, 20))
    a, b = root @ root.T / 20 + np.eye(20), random.standard_normal(20)

    def gradient(p: Leaves) -> Leaves:
        g = a @ np.concatenate([np.ravel(x) for x in p]) - b
        return [g[:5], g[5:11].reshape(2, 3), g[11:].reshape(3, 3)]

    start = [np.ones(5), np.ones((2, 3)), np.ones((3, 3))]
    rule, optimizer = gpuopt.LBFGS(lr=0.5, memory=memory), optax.lbfgs(0.5, memory_size=memory, linesearch=None)
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        p, state = start, gpuopt.init(rule, start)
        q: Leaves = [jax.numpy.asarray(x) for x in start]
        theirs = optimizer.init(q)
        for _ in range(12):
            p, state = gpuopt.update(rule, p, gradient(p), state)
            moves, theirs = optimizer.update(
                [jax.numpy.asarray(g) for g in gradient([np.asarray(x) for x in q])], theirs, q
            )
            q = optax.apply_updates(q, moves)
            assert deviation(p, [np.asarray(x) for x in q], start) <= 1e-10


@pytest.mark.parametrize("library", CASES)
def test_every_name_has_its_case(library: str) -> None:
    module = getattr(gpuopt.like, library)
    assert set(module.__all__) - {"load_state_dict", "state_dict"} == {name for name, _, _ in CASES[library]}
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name))


@pytest.mark.parametrize("given", [{}, {"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}])
def test_nesterov_without_momentum_is_refused_as_by_torch(given: Any) -> None:
    with pytest.raises(ValueError, match=r"^SGD: nesterov=True with momentum=.*, expected a momentum above 0"):
        gpuopt.like.torch.SGD(nesterov=True, **given)
    assert gpuopt.like.torch.SGD(nesterov=True, momentum=lambda step: 0.9).nesterov  # type: ignore[attr-defined]


def test_keras_takes_one_clip_and_an_average() -> None:
    with pytest.raises(ValueError, match=r"^clipnorm and clipvalue: expected one of them$"):
        gpuopt.like.keras.Adam(clipnorm=1.0, clipvalue=1.0)
    rule = gpuopt.like.keras.SGD(1.0, use_ema=True, ema_momentum=0.5)
    state = gpuopt.init(rule, np.zeros(2))
    p, state = gpuopt.update(rule, np.zeros(2), np.array([1.0, 2.0]), state)
    assert gpuopt.evaluation(rule, p, state).tolist() == [-0.5, -1.0]


@pytest.mark.parametrize(
    ("library", "name", "meant"),
    [("torch", "Adamm", "Adam"), ("optax", "lambb", "lamb"), ("keras", "Lambb", "Lamb"), ("mlx", "Lyon", "Lion")],
)
def test_unknown_name_says_which_one_was_meant(library: str, name: str, meant: str) -> None:
    with pytest.raises(
        AttributeError, match=rf"^module 'gpuopt.like.{library}' has no attribute '{name}' .*'{meant}'\?\)$"
    ):
        getattr(getattr(gpuopt.like, library), name)


PARAMETERS = {
    "list": [np.ones(3)],
    "dict": {"w": np.ones(3)},
    "array": np.ones(3),
    "generator": (x for x in [np.ones(3)]),
}


@pytest.mark.parametrize("params", PARAMETERS)
def test_parameters_go_to_the_optimizer(params: str) -> None:
    """As the first argument, which is that of the optimizers of torch."""
    given: Any = PARAMETERS[params]
    makers = [getattr(getattr(gpuopt.like, library), name) for library in CASES for name, _, _ in CASES[library]]
    for make in (*makers, gpuopt.SGD, gpuopt.Adam):
        rate = next(iter(inspect.signature(make).parameters))
        for options in ({}, {rate: 0.1}, {"nonsense": 1}):
            with pytest.raises(TypeError, match=r"parameters go to gpuopt\.Optimizer\(params, rule\)$|'nonsense'"):
                make(given, **options)


@pytest.mark.parametrize(
    ("make", "rates", "options", "words"),
    [
        (
            gpuopt.like.torch.Adam,
            (),
            {"learning_rate": 0.1},
            r"^Adam: unknown argument 'learning_rate' .*'lr'\?\); usage: Adam",
        ),
        (
            gpuopt.like.optax.adam,
            (),
            {"lr": 0.1},
            r"^adam: unknown argument 'lr' .*'learning_rate'\?\); usage: adam\(learn",
        ),
        (
            gpuopt.like.keras.Adam,
            (),
            {"clip_norm": 1.0},
            r"^Adam: unknown argument 'clip_norm' .*'clipnorm'\?\); usage: ",
        ),
        (gpuopt.like.mlx.SGD, (), {}, r"^SGD: missing a required argument: 'learning_rate'; usage: SGD\(learning_rate"),
        (gpuopt.EMA, (0.9,), {"decay": 0.9}, r"^EMA: multiple values for argument 'decay'; usage: EMA\(decay\)$"),
    ],
    ids=["torch", "optax", "keras", "mlx", "transform"],
)
def test_arguments_that_do_not_fit(make: Callable[..., Any], rates: Any, options: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        make(*rates, **options)


@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), "ab"], ids=str)
@pytest.mark.parametrize("make", [gpuopt.like.torch.AdamW, gpuopt.like.mlx.Adam], ids=["torch", "mlx"])
def test_betas_are_two(make: Callable[..., Any], betas: Any) -> None:
    with pytest.raises(TypeError, match=r"^betas: .*, expected two, as in betas=\(0.9, 0.999\)$"):
        make(1e-3, betas=betas)


def test_a_threshold_that_torch_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^d: 0.5, expected a number from 1 on"):
        gpuopt.like.torch.Adafactor(d=0.5)
    assert gpuopt.like.torch.Adafactor(d=1) == gpuopt.like.torch.Adafactor()


# Arguments that none of our rules has in that form. Name: call, words of the TypeError.
FORMS: dict[str, tuple[Callable[[], Any], str]] = {
    "a number for two": (lambda: gpuopt.like.torch.Adafactor(eps=1e-3), r"^eps: 0.001, expected two, as in eps=\(None"),  # type: ignore[arg-type]
    "one shifts the others": (
        lambda: gpuopt.like.torch.Rprop(etas=(0.5, 1.2, 1e-6), step_sizes=(50.0,)),  # type: ignore[arg-type]
        r"^etas: \(0.5, 1.2, 1e-06\), expected two",
    ),
    "sizes": (lambda: gpuopt.like.torch.Rprop(step_sizes=1), "^step_sizes: 1, expected two"),  # type: ignore[arg-type]
    "two for three": (
        lambda: gpuopt.like.torch.Muon(ns_coefficients=(1.0, 2.0)),  # type: ignore[arg-type]
        r"^ns_coefficients: \(1.0, 2.0\), expected three",
    ),
    "a number for three": (lambda: gpuopt.like.optax.muon(0.1, ns_coeffs=3), "^ns_coeffs: 3, expected three"),  # type: ignore[arg-type]
    "a text for a flag": (lambda: gpuopt.like.torch.Adam(maximize="no"), "^maximize: got 'no', expected True or False"),  # type: ignore[arg-type]
    "a number for a flag": (
        lambda: gpuopt.like.torch.NAdam(decoupled_weight_decay=1),  # type: ignore[arg-type]
        "^decoupled_weight_decay: got 1, expected True or False",
    ),
    "an average or none": (lambda: gpuopt.like.keras.SGD(use_ema="yes"), "^use_ema: got 'yes', expected True or"),  # type: ignore[arg-type]
    "no text is no decay": (lambda: gpuopt.like.torch.SGD(weight_decay=""), "^L2: rate: got '' "),  # type: ignore[arg-type]
    "decays of elements": (lambda: gpuopt.like.torch.SGD(weight_decay=np.ones(2)), r"^L2: rate: got array"),  # type: ignore[arg-type]
    "True is no decay": (lambda: gpuopt.like.torch.SGD(weight_decay=True), "^L2: rate: got True"),
    "True is no decay of MLX": (lambda: gpuopt.like.mlx.Lion(0.1, weight_decay=True), "^WeightDecay: rate: got True"),
    "no list is no momentum": (lambda: gpuopt.like.optax.sgd(0.1, momentum=[]), r"^SGD: momentum: got \[\]"),  # type: ignore[arg-type]
    "a falling rate": (
        lambda: gpuopt.like.torch.Adagrad(lambda step: 0.1, lr_decay="a"),  # type: ignore[arg-type]
        "^lr_decay: got 'a'",
    ),
    "nesterov": (lambda: gpuopt.like.torch.SGD(momentum="x", nesterov=True), "^SGD: momentum: got 'x'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", FORMS)
def test_arguments_of_another_form(case: str) -> None:
    call, words = FORMS[case]
    with pytest.raises(TypeError, match=words):
        call()
