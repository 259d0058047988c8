"""The steps of the method in float64, written as loops over plain lists: slow, and easy to check by eye.

Nothing here is shared with the package. A model is a list of flat lists of floats; `gradient(weights)`
returns the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Weights = list[list[float]]


class SGD:
    def __init__(self, momentum=0.9):
        self.momentum, self.buffer = momentum, {}

    def update(self, key, g, t, theta):
        self.buffer[key] = g if t == 1 else self.momentum * self.buffer[key] + g
        return self.buffer[key]


class Adam:
    def __init__(self, beta1=0.9, beta2=0.999, eps=1e-8):
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.m, self.v = {}, {}

    def update(self, key, g, t, theta):
        self.m[key] = self.beta1 * self.m.get(key, 0.0) + (1 - self.beta1) * g
        self.v[key] = self.beta2 * self.v.get(key, 0.0) + (1 - self.beta2) * g * g
        m_hat = self.m[key] / (1 - self.beta1**t)
        v_hat = self.v[key] / (1 - self.beta2**t)
        return m_hat / (math.sqrt(v_hat) + self.eps)


class Adagrad:
    def __init__(self, eps=1e-10):
        self.eps, self.total = eps, {}

    def update(self, key, g, t, theta):
        self.total[key] = self.total.get(key, 0.0) + g * g
        return g / (math.sqrt(self.total[key]) + self.eps)


class Lion:
    def __init__(self, beta1=0.9, beta2=0.99):
        self.beta1, self.beta2, self.m = beta1, beta2, {}

    def update(self, key, g, t, theta):
        m = self.m.get(key, 0.0)
        mixed = self.beta1 * m + (1 - self.beta1) * g
        self.m[key] = self.beta2 * m + (1 - self.beta2) * g
        return (mixed > 0) - (mixed < 0)


def train(
    weights: Weights,
    gradient: Callable[[Weights], Weights],
    base,
    timing: str,
    coupling: str,
    learning_rates: list[float],
    rates: list[float],
    scales: list[float],
) -> list[Weights]:
    """Returns the weights at rest after each step.

    For each list in `weights`, `rates` holds lambda, and `scales` the factor of the learning rate.
    """
    theta = [list(tensor) for tensor in weights]
    history = []
    for t, learning_rate in enumerate(learning_rates, start=1):
        etas = [learning_rate * scale for scale in scales]
        share = [eta * rate if coupling == "lr" else rate for eta, rate in zip(etas, rates, strict=True)]
        if timing == "pwd":
            theta = [[(1 - share[k]) * x for x in tensor] for k, tensor in enumerate(theta)]
        gradients = gradient(theta)
        result = []
        for k, tensor in enumerate(theta):
            eta, row = etas[k], []
            for i, x in enumerate(tensor):
                g = gradients[k][i]
                if timing == "l2":
                    g += rates[k] * x
                u = base.update((k, i), g, t, x)
                if timing == "wd":
                    row.append(x - eta * u - share[k] * x)
                elif timing == "rwd":
                    row.append((1 - share[k]) * (x - eta * u))
                else:
                    row.append(x - eta * u)
            result.append(row)
        theta = result
        history.append([list(tensor) for tensor in theta])
    return history


def train_adafactor(
    weights: Weights,
    columns: int,
    gradient: Callable[[Weights], Weights],
    timing: str,
    coupling: str,
    learning_rates: list[float],
    rates: list[float],
    scales: list[float],
    beta2_decay: float = -0.8,
    eps2: float = 1e-3,
    clip: float = 1.0,
) -> list[Weights]:
    """As `train`, with `torch.optim.Adafactor` over matrices of `columns` columns.

    Its update depends on the weights, through their root mean square.
    """
    eps1 = 2.0**-52
    theta = [list(tensor) for tensor in weights]
    rows_of = [len(tensor) // columns for tensor in theta]
    row_means = [[0.0] * rows for rows in rows_of]
    column_means = [[0.0] * columns for _ in theta]
    history = []
    for t, learning_rate in enumerate(learning_rates, start=1):
        etas = [learning_rate * scale for scale in scales]
        share = [eta * rate if coupling == "lr" else rate for eta, rate in zip(etas, rates, strict=True)]
        if timing == "pwd":
            theta = [[(1 - share[k]) * x for x in tensor] for k, tensor in enumerate(theta)]
        gradients = gradient(theta)
        result = []
        for k, tensor in enumerate(theta):
            g = list(gradients[k])
            if timing == "l2":
                g = [a + rates[k] * x for a, x in zip(g, tensor, strict=True)]
            eta = etas[k]
            one_minus_beta2 = t**beta2_decay
            rho = min(eta, 1 / math.sqrt(t))
            alpha = max(eps2, math.sqrt(sum(x * x for x in tensor) / len(tensor))) * rho
            for r in range(rows_of[k]):
                mean = sum(g[r * columns + c] ** 2 for c in range(columns)) / columns
                row_means[k][r] += one_minus_beta2 * (mean - row_means[k][r])
            for c in range(columns):
                mean = sum(g[r * columns + c] ** 2 for r in range(rows_of[k])) / rows_of[k]
                column_means[k][c] += one_minus_beta2 * (mean - column_means[k][c])
            row_average = max(sum(row_means[k]) / rows_of[k], eps1)
            update = []
            for i, a in enumerate(g):
                r, c = divmod(i, columns)
                variance = row_means[k][r] * column_means[k][c] / row_average
                update.append(a / math.sqrt(max(variance, eps1 * eps1)))
            rms = math.sqrt(sum(u * u for u in update) / len(update))
            scale = alpha / max(1.0, rms / clip)
            row = []
            for x, u in zip(tensor, update, strict=True):
                if timing == "wd":
                    row.append(x - scale * u - share[k] * x)
                elif timing == "rwd":
                    row.append((1 - share[k]) * (x - scale * u))
                else:
                    row.append(x - scale * u)
            result.append(row)
        theta = result
        history.append([list(tensor) for tensor in theta])
    return history
