"""Linear algebra of small matrices, written out in scalar expressions."""

from __future__ import annotations

from vinppl.native.elementwise import where
from vinppl.native.expressions import Expression

__all__ = ["Matrix", "cholesky", "solve", "solve_lower"]

Matrix = list[list[Expression]]


def solve(a: Matrix, b: Matrix) -> Matrix:
    """Return a^-1 b, shapes `(n, n)` and `(n, m)`, by elimination with row exchanges."""
    n = len(a)
    rows = [[*x, *y] for x, y in zip(a, b, strict=True)]
    for k in range(n):
        for i in range(k + 1, n):
            larger = rows[i][k].apply("abs").apply("gt", rows[k][k].apply("abs"))
            pairs = list(zip(rows[k], rows[i], strict=True))
            rows[k] = [where(larger, y, x) for x, y in pairs]
            rows[i] = [where(larger, x, y) for x, y in pairs]
        for i in range(k + 1, n):
            factor = rows[i][k] / rows[k][k]
            for c in range(k + 1, len(rows[i])):
                rows[i][c] = rows[i][c] - factor * rows[k][c]
    for k in reversed(range(n)):
        for c in range(n, len(rows[k])):
            rest = rows[k][c]
            for m in range(k + 1, n):
                rest = rest - rows[k][m] * rows[m][c]
            rows[k][c] = rest / rows[k][k]
    return [row[n:] for row in rows]


def cholesky(a: Matrix) -> Matrix:
    """Return the lower Cholesky factor of a symmetric matrix `(n, n)`; NaN where there is none."""
    n = len(a)
    zero = a[0][0].graph.constant(0.0)
    factor = [[zero] * n for _ in range(n)]
    for j in range(n):
        for i in range(j, n):
            rest = a[i][j]
            for k in range(j):
                rest = rest - factor[i][k] * factor[j][k]
            factor[i][j] = rest.apply("sqrt") if i == j else rest / factor[j][j]
    return factor


def solve_lower(factor: Matrix, right: list[Expression], *, transposed: bool = False) -> list[Expression]:
    """Return L^-1 b, or L^-T b, for a lower triangular matrix `(n, n)` and a vector `(n,)`."""
    n = len(right)
    x = list(right)
    for i in reversed(range(n)) if transposed else range(n):
        for k in range(i + 1, n) if transposed else range(i):
            x[i] = x[i] - (factor[k][i] if transposed else factor[i][k]) * x[k]
        x[i] = x[i] / factor[i][i]
    return x
