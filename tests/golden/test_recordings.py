"""The bits recorded on an H200 are whole, their inputs can be made again, and what is plain about them holds."""

import functools
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from qsim.tensorcore import cuda_math
from qsim.tensorcore import functions as device

GOLDEN = Path(__file__).parent
REPORTS = GOLDEN.parents[1] / "reports"


def script(name):
    """A recording script as a module; what it needs of PyTorch it imports only when it records."""
    spec = importlib.util.spec_from_file_location(name, REPORTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


functions, fused = script("h200_functions"), script("h200_fused_record")


@functools.cache
def load(name):
    with np.load(GOLDEN / f"h200_{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(arrays.pop("notes").tobytes())


def floats(codes):
    return (codes.astype(np.uint32) << 16).view(np.float32)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


# ---- approximate functions


def block(number):
    """All 2^24 float32 whose highest byte is `number`."""
    return ((np.uint32(number) << np.uint32(24)) + np.arange(1 << 24, dtype=np.uint32)).view(np.float32)


def evaluated(name, x):
    if name in ("expf", "silu: x / (1 + expf(-x))"):
        raised = cuda_math.expf(x if name == "expf" else -x)
        with np.errstate(all="ignore"):
            return raised if name == "expf" else x / (np.float32(1) + raised)
    kind, _, suffix = name.removesuffix(".f32").partition(".approx")
    return device.approximate(kind, x, ftz=suffix == ".ftz")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ex2.approx.ftz.f32", 0xC0),  # -2 to -8
        ("expf", 0xC1),  # -8 to -32
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in (
                ("rsqrt.approx.f32", 0x00), ("rsqrt.approx.ftz.f32", 0x41), ("rsqrt.approx.f32", 0x7F),
                ("ex2.approx.f32", 0xC2), ("ex2.approx.ftz.f32", 0x3F), ("ex2.approx.ftz.f32", 0xBF),
                ("rcp.approx.ftz.f32", 0xBF), ("rcp.approx.f32", 0x00), ("rcp.approx.f32", 0x7E),
                ("sqrt.approx.f32", 0x00), ("sqrt.approx.ftz.f32", 0x3E), ("expf", 0x00), ("expf", 0x3F),
                ("expf", 0x42), ("expf", 0x80), ("expf", 0xBF), ("expf", 0xC2), ("expf", 0xFE),
                ("silu: x / (1 + expf(-x))", 0x3F), ("silu: x / (1 + expf(-x))", 0xC0),
            )
        ),
    ],
)  # fmt: skip
def test_the_packages_functions_give_the_hash_of_a_block_of_inputs(name, number):
    out = evaluated(name, block(number)).view(np.uint32)
    assert functions.digest(out) == int(load("functions")[0][f"hash/{name}"][number])


def test_every_law_was_evaluated_on_the_device_and_missed_no_input():
    file, _ = load("functions")
    laws = [key for key in file if key.startswith("misses/")]
    assert len(laws) == 11
    for key in laws:
        assert file[key].shape == (512,)
        assert not file[key].any(), key


def test_pytorch_functions_that_equal_a_cuda_function_have_its_hashes():
    file, notes = load("functions")
    for torch_name, name in {
        "rsqrt": "rsqrt.approx.f32",
        "exp": "expf",
        "exp2": "ex2.approx.f32",
        "tanh": "tanhf",
    }.items():
        assert notes["differences"][torch_name][name] == 0
        same = file[f"hash/torch.{torch_name}"] == file[f"hash/{name}"]
        assert same[:0x7F].all()  # from 0x7f on and below zero there are NaNs, whose payloads may differ
    assert notes["differences"]["reciprocal"]["rcp.approx.f32"] > 0  # PyTorch divides


def test_recorded_tables_are_as_exact_as_ptx_promises():
    """PTX: rcp.approx errs by at most 1 ulp; rsqrt by 2^-22.9 relative; ex2 by 2 ulp; sqrt by 2^-23 relative."""
    m = np.arange(0, 1 << 23, 61)
    x = 1 + m * 2.0**-23

    def off(name, exact):
        return np.abs(device.table(name)[m].view(np.float32) / exact - 1).max()

    assert off("rcp", 1 / x) < 2.0**-23  # a unit of the last place of [0.5, 1] is 2^-24
    assert off("rsqrt", 1 / np.sqrt(x)) < 2.0**-22.9
    assert off("sqrt", np.sqrt(x)) < 2.0**-22.9
    assert off("ex2", np.exp2(m * 2.0**-23)) < 2 * 2.0**-23


def test_silu_of_bfloat16_is_the_float32_function_rounded_once():
    """PyTorch widens to float32, whose error (some 2^-23) moves the BF16 rounding of at most a few codes by one."""
    file, _ = load("functions")
    got = functions.half(file, "torch.silu.bf16")
    codes = np.arange(65536)
    codes = codes[((codes & 0x7FFF) < 0x7F80) & ((codes & 0x7FFF) > 0x0D80) & (codes < 0xC2A0)]  # 2^-100 on; over -80
    x = floats(codes).astype(np.float64)
    away = np.abs(got[codes].astype(np.int64) - fused.bf16((x / (1 + np.exp(-x))).astype(np.float32)))
    assert away.max() <= 1
    assert (away > 0).sum() < 20


def test_a_packed_table_comes_back_with_its_repeats():
    smooth = (1 / np.linspace(1, 1.01, 1 << 13) * 2.0**20).astype(np.uint32)
    table = np.repeat(smooth, 4)
    table[8:12] += 60
    packed = functions.squeeze(table)
    assert int(packed["repeat"]) == 4
    np.testing.assert_array_equal(device.unpacked(packed), table)
    table[8:12] += 1000
    with pytest.raises(ValueError, match="not smooth"):
        functions.squeeze(table)


# ---- kernels that serve quantised models


remade = functools.cache(fused.inputs)


def test_recorded_products_are_those_of_inputs_made_again():
    """Float64 products of the remade inputs. Bounds: half a unit of BF16 (2^-9) of the result, and of the sum of the
    magnitudes of its products 2^-9 for weights rounded to BF16 and 2^-8 for the 13 fraction bits of an FP8 accumulator.
    """
    arrays, notes = load("kernels")
    cases = notes["kernels"]["cases"]
    assert len(cases) == 92
    for key, case in cases.items():
        kind, shape, m, distribution = key.rsplit(".", 3)
        n, k = map(int, shape.split("x"))
        made = remade(n, k, int(m), distribution)
        got = floats(arrays[key]).astype(np.float64)
        assert got.shape == (min(int(m), fused.SHOWN), n)
        assert case["repeatable"]
        assert len(case["sha256"]) == 64
        if len(got) == int(m):
            assert sha256(arrays[key]) == case["sha256"]
        a, b = operands(kind, made, len(got))
        wide = np.abs(a) @ np.abs(b).T
        error = np.abs(got - a @ b.T)
        share = 2.0**-8 if kind.startswith("scaled") else 2.0**-9
        assert (error <= 2.0**-8 * np.abs(got) + share * wide).all(), key


def operands(kind, made, count):
    """The two float64 matrices whose product a kernel computes, the first cut to `count` rows."""
    if not kind.startswith("scaled"):
        scale, zero = (np.repeat(values, fused.GROUP, 1) for values in (floats(made["scale"]), made["zero"]))
        return floats(made["x"][:count]).astype(np.float64), (made["codes"].astype(np.float64) - zero) * scale
    x, w = e4m3_values(made["xe"][:count]), e4m3_values(made["we"])
    by_group = np.repeat(made["x_blocks"][:count].astype(np.float64), fused.GROUP, 1)
    if "tensor" in kind:
        return x * made["x_scale"][0], w * made["w_scale"][0]
    if "row" in kind:
        return x * made["x_scale"][:count].astype(np.float64), w * made["w_scale"].astype(np.float64)
    if "block" in kind:
        return x * by_group, w * np.kron(made["w_blocks"], np.ones((fused.GROUP, fused.GROUP)))
    return x * by_group, w * np.repeat(made["w_groups"].astype(np.float64), fused.GROUP, 1)


def e4m3_values(codes):
    all_codes = np.arange(128)
    exponent, fraction = all_codes >> 3, all_codes & 7
    size = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10))
    return np.concatenate((size, -size))[codes]


def test_the_seeded_e4m3_rounding_agrees_with_the_project():
    import qsim

    x = np.concatenate([np.random.default_rng(0).standard_normal(20000) * 2.0**s for s in (-8, -3, 0, 5, 9)])
    x = np.clip(x, -448, 448).astype(np.float32)
    x = np.concatenate(
        (x, e4m3_values(np.arange(127, dtype=np.uint8)).astype(np.float32), np.float32([17, 19, 2**-10]))
    )
    np.testing.assert_array_equal(fused.e4m3(x), qsim.encode(x, "float8_e4m3fn"))


def test_values_seen_with_stream_k_lie_around_the_batch_invariant_output():
    """Each part of K is rounded to BF16 (2^-9) before it is added, and so is each sum: parts + 1 roundings of numbers
    no larger than the sum of the magnitudes of the parts, here taken as 16 times the typical output.
    """
    arrays, notes = load("kernels")
    cases = notes["stream_k"]
    assert len(cases) == len(fused.STREAM_K)
    several = 0
    for key, case in cases.items():
        seen, invariant = arrays[f"stream_k.{key}.seen"], floats(arrays[f"stream_k.{key}.invariant"])
        assert sum(case["counts"]) == fused.REPEATS
        assert len(case["counts"]) == case["distinct"]
        assert seen.shape[:2] == invariant.shape
        assert (np.diff(seen.astype(np.int64), axis=-1) >= 0).all()
        assert seen.shape[-1] <= case["most_values_of_an_element"]
        several += case["distinct"] > 1
        typical = np.sqrt(np.mean(invariant.astype(np.float64) ** 2))
        assert np.abs(floats(seen) - invariant[..., None]).max() < 16 * typical * 2.0**-7
    assert several > len(cases) // 2


def test_stream_k_inputs_are_made_again_from_their_seeds():
    made, bits = fused.fused_inputs("w4a16_g128_zp", 384, 4096, 16)
    arrays, _ = load("kernels")
    weight = (made["codes"].astype(np.float64) - np.repeat(made["zero"], 128, 1)) * np.repeat(
        floats(made["weight_scale"]), 128, 1
    )
    wanted = floats(made["x"]).astype(np.float64) @ weight.T
    got = floats(arrays["stream_k.w4a16_g128_zp.384x4096.16.invariant"])
    wide = np.abs(floats(made["x"])).astype(np.float64) @ np.abs(weight).T
    assert bits == 4
    assert (np.abs(got - wanted[: len(got)]) < 2.0**-8 * np.abs(got) + 2.0**-9 * wide[: len(got)]).all()


# ---- one decoder block


@pytest.mark.parametrize("label", ["bf16", "fp8", "w4a16"])
def test_the_elementwise_steps_of_the_recorded_block_follow_from_their_inputs(label):
    """Sums and products of two BF16 numbers are exact in float64, so one rounding must give the recorded codes."""
    arrays, notes = load("block")

    def value(name):
        return floats(arrays[f"block.{label}.{name}"]).astype(np.float64)

    def rounded(exact):  # a float32 on the way loses nothing: 24 bits hold both, or the sum is rounded to odd below
        return fused.bf16(exact.astype(np.float32))

    np.testing.assert_array_equal(rounded(value("embedding") + value("o")), arrays[f"block.{label}.residual1"])
    np.testing.assert_array_equal(rounded(value("residual1") + value("down")), arrays[f"block.{label}.residual2"])
    np.testing.assert_array_equal(rounded(value("silu") * value("up")), arrays[f"block.{label}.act"])
    assert notes["block"][f"{label}.repeatable"]
    assert len(notes["block"]["kernels"][label]) > 50
    if label == "bf16":
        for name, digest in notes["block"]["sha256"][label].items():
            assert sha256(arrays[f"block.{label}.{name}"]) == digest, name


def test_the_recorded_softmax_sums_to_one_and_is_causal():
    arrays, _ = load("block")
    p = arrays["block.bf16.softmax.f32"].view(np.float32)
    assert p.shape == (6, 64, 64)
    assert not np.triu(p, 1).any()
    assert np.abs(p.sum(-1, dtype=np.float64) - 1).max() < 64 * 2.0**-24


def test_reduction_trees_count_elements_outside_a_partial_sum():
    arrays, notes = load("block")
    anchors = notes["reductions"]["anchors"]
    trees = [key for key in arrays if key.startswith("tree.")]
    assert len(trees) == 24
    for key in trees:
        length = int(key.split(".")[2])
        assert arrays[key].shape[1] == length
        assert (arrays[key] <= length).all()
        for i, row in enumerate(arrays[key]):
            assert row[anchors[i]] == length  # all ones
            others = np.delete(row, anchors[i])
            assert (others <= length - 2).all()
            assert (others == 0).any()  # some element meets the anchor only at the root
