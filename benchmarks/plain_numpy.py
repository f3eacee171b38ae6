"""The spiral network in plain NumPy, the way a course would write it: what `gpuopt train` is measured against.

    python -m benchmarks.plain_numpy [float32|float64]

2-64-3 with ReLU and softmax, 10,000 full-batch epochs, Adam with learning rate 0.05 and inverse-time decay 5e-7. In float32
as `gpuopt train`, or in float64, as NumPy does who does not ask for anything else.
"""

import sys
from typing import Any

import numpy as np

DTYPE = sys.argv[1] if len(sys.argv) > 1 else "float32"


def spiral(rng: np.random.Generator, samples: int = 100, classes: int = 3) -> tuple[Any, Any]:
    x = np.zeros((samples * classes, 2), dtype=DTYPE)
    y = np.zeros(samples * classes, dtype=int)
    for c in range(classes):
        rows = slice(samples * c, samples * (c + 1))
        r = np.linspace(0, 1, samples)
        t = np.linspace(4 * c, 4 * (c + 1), samples) + 0.2 * rng.standard_normal(samples)
        x[rows] = np.stack([r * np.sin(2.5 * t), r * np.cos(2.5 * t)], axis=1)
        y[rows] = c
    return x, y


def main() -> None:
    epochs, lr, decay = 10_000, 0.05, 5e-7
    beta1, beta2, eps = 0.9, 0.999, 1e-7
    rng = np.random.default_rng(0)
    x, y = spiral(rng)
    n = len(x)
    w1 = (0.01 * rng.standard_normal((2, 64))).astype(DTYPE)
    w2 = (0.01 * rng.standard_normal((64, 3))).astype(DTYPE)
    b1 = np.zeros((1, 64), dtype=DTYPE)
    b2 = np.zeros((1, 3), dtype=DTYPE)
    params = [w1, b1, w2, b2]
    m = [np.zeros_like(p) for p in params]
    v = [np.zeros_like(p) for p in params]

    for epoch in range(epochs):
        # forward
        z1 = x @ w1 + b1
        a1 = np.maximum(0, z1)
        z2 = a1 @ w2 + b2
        e = np.exp(z2 - np.max(z2, axis=1, keepdims=True))
        p = e / np.sum(e, axis=1, keepdims=True)

        if epoch % 100 == 0:
            loss = -np.mean(np.log(p[np.arange(n), y]))
            accuracy = np.mean(np.argmax(p, axis=1) == y)
            print(f"epoch {epoch}, loss {loss:.3f}, accuracy {accuracy:.3f}")

        # backward
        dz2 = p.copy()
        dz2[np.arange(n), y] -= 1
        dz2 /= n
        dw2 = a1.T @ dz2
        db2 = np.sum(dz2, axis=0, keepdims=True)
        dz1 = dz2 @ w2.T
        dz1[z1 <= 0] = 0
        dw1 = x.T @ dz1
        db1 = np.sum(dz1, axis=0, keepdims=True)

        # Adam
        rate = lr / (1 + decay * epoch)
        t = epoch + 1
        for i, g in enumerate([dw1, db1, dw2, db2]):
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g**2
            m_hat = m[i] / (1 - beta1**t)
            v_hat = v[i] / (1 - beta2**t)
            params[i] -= rate * m_hat / (np.sqrt(v_hat) + eps)

    loss = -np.mean(np.log(p[np.arange(n), y]))
    accuracy = np.mean(np.argmax(p, axis=1) == y)
    print(f"epoch {epoch}, loss {loss:.3f}, accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
