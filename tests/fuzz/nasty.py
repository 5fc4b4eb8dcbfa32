"""Hypothesis strategies for what files and callers get wrong."""

from __future__ import annotations

import copy
import json
import struct
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

# Values that real files have held, and the edges of every type.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 8, 16, 31, 127, 128, 255, 256, 4096, 2**31 - 1, 2**31, 2**63, 10**6, 10**30,
    10**400, -(10**30), 0.0, -0.0, 0.5, 1.5, -1.0, 4.0, 1e-320, 1e-45, 1e300, float("inf"), float("-inf"),
    float("nan"), "", " ", "0", "2", "nan", "Infinity", "llama", "re:", "re:(", "re:(a+)+$", "re:.*", "Linear", "auto",
    "../x", "/etc/passwd", "x" * 5000, "ключ", "\x00", "\ud7ff", [], {}, [None], [1, "a"], [[]], [-1], [True],
    {"a": 1}, {"": {}}, [0] * 100, [1e400], [[[[1]]]],
)  # fmt: skip


def deep(levels: int) -> Any:
    """Lists within lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def values() -> st.SearchStrategy[Any]:
    """One odd value, which nothing else holds."""
    return st.one_of(
        st.sampled_from(VALUES).map(copy.deepcopy),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.builds(deep, st.integers(1, 200)),
    )


def places(tree: Any) -> list[tuple[Any, ...]]:
    """The paths of all values of a tree of dicts and lists, but the root; at most a thousand."""
    found: list[tuple[Any, ...]] = []
    left: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    while left and len(found) < 1000:
        path, value = left.pop(0)
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            found.append((*path, key))
            left.append(((*path, key), inner))
    return found


@st.composite
def trees(draw: Any, base: Any, extra_keys: tuple[str, ...] = (), most: int = 3) -> Any:
    """A tree like `base` with up to `most` things wrong: a value replaced, deleted, renamed, moved or added."""
    tree = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, most))):
        at = places(tree)
        if not at:
            return draw(values())
        path = draw(st.sampled_from(at))
        home = tree
        for key in path[:-1]:
            home = home[key]
        what = draw(st.sampled_from(("replace", "replace", "replace", "delete", "rename", "add", "swap", "scale")))
        if what == "delete":
            del home[path[-1]]
        elif what == "rename" and isinstance(home, dict):
            home[draw(st.sampled_from([*extra_keys, "x", path[-1].upper(), path[-1] + "_"]))] = home.pop(path[-1])
        elif what == "add" and isinstance(home, dict):
            home[draw(st.sampled_from([*extra_keys, "unknown_key"]))] = draw(values())
        elif what == "swap":
            other = tree
            for key in draw(st.sampled_from(at)):
                other = other[key] if isinstance(other, dict | list) and _has(other, key) else other
            home[path[-1]] = copy.deepcopy(other)
        elif what == "scale" and isinstance(home[path[-1]], int | float) and not isinstance(home[path[-1]], bool):
            home[path[-1]] = home[path[-1]] * draw(st.sampled_from((-1, 0, 0.5, 2, 3, 1000, 10**9)))
        else:
            home[path[-1]] = draw(values())
    return tree


def _has(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else isinstance(key, int) and 0 <= key < len(container)


@st.composite
def json_texts(draw: Any, base: Any, extra_keys: tuple[str, ...] = ()) -> bytes:
    """The text of a JSON file like `base`; one in six is damaged as text, too."""
    text = json.dumps(draw(trees(base, extra_keys)), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 5)):
        return text
    return draw(damaged(text))


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """Bytes that were cut, overwritten, doubled or joined with others."""
    what = draw(st.sampled_from(("cut", "set", "double", "insert", "front")))
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    if what == "cut":
        return data[:at]
    if what == "set":
        return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at + 8 :]
    if what == "double":
        return data[:at] + data[at:] * 2
    if what == "insert":
        return (
            data[:at] + draw(st.sampled_from((b"[" * 2000, b"\xff\xfe", b"\x00" * 16, b'"', b"1" * 5000))) + data[at:]
        )
    return draw(st.sampled_from((b"\xef\xbb\xbf", b"\n\n", b"#", b"\xff"))) + data


@st.composite
def safetensors(draw: Any, header: dict[str, Any], data: bytes) -> bytes:
    """A safetensors file whose header, its length or its data may be wrong."""
    text = draw(json_texts(header, ("__metadata__", "dtype", "shape", "data_offsets")))
    length = draw(st.sampled_from((len(text), len(text), len(text), len(text) + 1, 0, 2**40, 2**63, len(text) - 1)))
    body = data if draw(st.booleans()) else data[: draw(st.integers(0, len(data)))]
    return struct.pack("<Q", max(length, 0)) + text + body


def arrays(max_side: int = 40) -> st.SearchStrategy[Any]:
    """Arrays, scalars and things that are none, of every dtype, with NaN, Inf and subnormals among the floats."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=max_side)
    kinds = st.one_of(
        hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.boolean_dtypes(),
        hnp.complex_number_dtypes(), hnp.datetime64_dtypes(), hnp.timedelta64_dtypes(), hnp.unicode_string_dtypes(),
        st.just(np.dtype(object)),
    )  # fmt: skip
    return st.one_of(
        hnp.arrays(st.shared(kinds, key="dtype").filter(lambda d: d != np.dtype(object)), shapes),
        hnp.arrays(np.float32, shapes, elements=st.floats(width=32)),
        hnp.arrays(np.float64, shapes, elements=st.floats()),
        hnp.arrays(np.float64, shapes, elements=st.floats()).map(np.asfortranarray),
        hnp.arrays(np.float32, shapes, elements=st.floats(-10, 10, width=32)).map(lambda a: a[::-1] if a.ndim else a),
        hnp.arrays(np.float32, shapes, elements=st.floats(-2, 2, width=32)).map(
            lambda a: np.ma.array(a, mask=np.zeros(a.shape, bool))
        ),
        values(),
    )
