"""Hadamard rotations of a model's channels, for any size that is a power of two times a known order."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from qsim.errors import QsimError

F32 = np.float32
_LARGEST = 1024  # a core is multiplied as a dense matrix


def hadamard(n: int) -> np.ndarray:
    """The orthogonal Hadamard matrix of order n over sqrt(n), (n, n) float32, as `rotate` applies it.

    Order n = m 2^k with m 1 or an order that Paley's constructions give from a prime (12, 20, 28, 44, 60, ...).

    Raises:
        ValueError: no such m.

    Source: R. E. A. C. Paley, "On orthogonal matrices", J. Math. Phys. 12 (1933); Sylvester's doubling.
    """
    odd, power = _split(n)
    return (np.kron(_core(odd), _sylvester(power)) / np.sqrt(n)).astype(F32)


def rotate(x: np.ndarray) -> np.ndarray:
    """x @ hadamard(K) for the last axis of x, in O(K (m + 2^(k/2))) operations each row; float32."""
    odd, power = _split(x.shape[-1])
    left = 1 << (power.bit_length() // 2)
    right = power // left
    y = x.reshape(-1, odd, left, right) @ _sylvester(right)
    y = np.einsum("malb,lk->makb", y, _sylvester(left), optimize=True) if left > 1 else y
    if odd > 1:
        y = np.einsum("malb,ac->mclb", y, _core(odd), optimize=True)
    return (y.reshape(x.shape) * F32(1 / np.sqrt(x.shape[-1]))).astype(F32, copy=False)


@lru_cache(maxsize=32)
def _split(n: int) -> tuple[int, int]:
    """n = m * 2^k with the smallest m that a construction knows."""
    power = n & -n
    while power:
        if _prime_of(n // power) is not None:
            return n // power, power
        power //= 2
    raise QsimError(f"no Hadamard matrix is known here for {n} channels: {n} is not a power of two times one of "
                     "12, 20, 24, 28, ..., the orders p + 1 and 2p + 2 of primes p")  # fmt: skip


def _prime_of(order: int) -> int | None:
    """The prime of Paley's construction of this order, 1 for the trivial order."""
    if order == 1:
        return 1
    if order % 4 or order > _LARGEST:
        return None
    for p, kind in ((order - 1, 3), (order // 2 - 1, 1)):
        if p % 4 == kind and _is_prime(p):
            return p
    return None


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


@lru_cache(maxsize=8)
def _core(order: int) -> np.ndarray:
    """A Hadamard matrix of +-1 by Paley's first (p = 3 mod 4) or second (p = 1 mod 4) construction."""
    p = _prime_of(order)
    assert p is not None
    if p == 1:
        return np.ones((1, 1), F32)
    squares = {(i * i) % p for i in range(1, p)}
    character = np.array([0] + [1 if i in squares else -1 for i in range(1, p)], np.int64)
    jacobsthal = character[(np.arange(p)[:, None] - np.arange(p)[None, :]) % p]
    bordered = np.zeros((p + 1, p + 1), np.int64)
    bordered[0, 1:] = 1
    bordered[1:, 0] = -1 if p % 4 == 3 else 1
    bordered[1:, 1:] = jacobsthal
    if p % 4 == 3:
        return (bordered + np.eye(p + 1, dtype=np.int64)).astype(F32)
    unit = np.eye(p + 1, dtype=np.int64)
    return (np.kron(bordered, [[1, 1], [1, -1]]) + np.kron(unit, [[1, -1], [-1, -1]])).astype(F32)


@lru_cache(maxsize=16)
def _sylvester(n: int) -> np.ndarray:
    out = np.ones((1, 1), F32)
    while out.shape[0] < n:
        out = np.block([[out, out], [out, -out]])
    return out
