"""`quantization_config` in and out: keys of every kind of wrong type, patterns, other people's files."""

import copy
import itertools
import random
import re

import numpy as np
import pytest

from qsim.errors import QsimError
from qsim.layouts import Fact, patterns, read_plan, write_plan
from qsim.layouts.parts import Notes, Parts
from qsim.safetensors import NUMPY_OF, Stored
from qsim.scheme import get_scheme, quantize

LAYER = "model.layers.0.mlp.up_proj"
WRITTEN = [("w4a16-g32", "compressed-tensors"), ("w8a8-tensor-static", "compressed-tensors"),
           ("fp8-tensor-kvfp8", "compressed-tensors"), ("nvfp4", "compressed-tensors"), ("w4a16-g32", "gptq_v2"),
           ("w4a16-g32", "awq"), ("fp8-block128", "fp8"), ("fp8-static", "fp8")]  # fmt: skip
JUNK = [None, "x", -3, 0, 3.5, [], {}, [1, 2], True, {"a": 1}, ["re:("], 10**30, -(10**400), float("nan"), 1e300,
        {"a": None}, [None], [10**30, 1], "9" * 5000 + "x1", ["re:a{99999999999}"],
        {"re:" + "(" * 5000: {}}]  # fmt: skip


def written(name: str, layout: str) -> dict:
    scheme = get_scheme(name)
    kv = scheme.kv_cache if scheme.kv_cache.is_quantized else None
    return write_plan(layout, {LAYER: Fact(scheme=scheme)}, ["lm_head"], kv, "0")


def places(value, at=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from places(inner, (*at, key))


@pytest.mark.parametrize(("name", "layout"), WRITTEN)
def test_what_is_written_is_read(name, layout):
    notes = Notes()
    plan = read_plan(written(name, layout), notes)
    assert notes.lines() == ()
    found = plan.layer(LAYER)
    assert found.scheme == get_scheme(name)
    assert not found.skipped
    assert plan.layer("lm_head").skipped


@pytest.mark.parametrize(("name", "layout"), WRITTEN)
def test_any_key_of_any_type(name, layout):
    """Junk in place of every value: it is read or refused in a sentence, never a TypeError from within."""
    config = written(name, layout)
    refused = []
    for place in places(config):
        for junk in JUNK:
            changed = copy.deepcopy(config)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = junk
            try:
                read_plan(changed, Notes()).layer(LAYER)
            except QsimError as error:
                refused.append(str(error))
    assert len(refused) > 10
    odd = [t for t in refused if not 20 < len(t) < 400 or "\n" in t or "object is not" in t]
    assert odd == []


@pytest.mark.parametrize("value", [0, -2, 10**30, 2.0, True, "32"])
@pytest.mark.parametrize(("layout", "key"), [("gptq_v2", "bits"), ("gptq_v2", "group_size"), ("awq", "bits"),
                                             ("awq", "group_size"), ("compressed-tensors", "num_bits"),
                                             ("compressed-tensors", "group_size")])  # fmt: skip
def test_sizes_are_whole_numbers_in_their_range(layout, key, value):
    config = written("w4a16-g32", layout)
    (config if key in config else config["config_groups"]["group_0"]["weights"])[key] = value
    with pytest.raises(QsimError, match=f"{key}|holds .* bits"):
        read_plan(config, Notes())


@pytest.mark.parametrize(
    ("layout", "change", "words"),
    [
        ("gptq_v2", {"group_size": "many"}, r"\(gptq\): group_size must be an integer: got 'many'"),
        ("awq", {"modules_to_not_convert": [1]}, r"\(awq\): modules_to_not_convert must be a list of texts: got \[1\]"),
        ("gptq_v2", {"dynamic": {"-:(": {}}}, r"'\(' is not a regular expression"),
        ("compressed-tensors", {"ignore": ["re:("]}, r"ignore: '\(' is not a regular expression"),
        ("compressed-tensors", {"config_groups": {"a": {"targets": ["Linear"], "weights": {"type": "nf"}}}},
         r"config_groups: a: weights: type must be one of int, float: got 'nf'"),
        ("compressed-tensors", {"config_groups": {"a": {"weights": None}}},
         r"config_groups: a: targets is missing"),
        ("compressed-tensors", {"format": "marlin-24"}, r"group group_0 has 'marlin-24'"),
        ("compressed-tensors", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is not read"),
        ("compressed-tensors", {"transform_config": {"config_groups": {"u": 1}}}, "transform_config is not read"),
        ("fp8", {"weight_scale_semantics": "sideways"}, r"weight_scale_semantics must be inverse"),
        ("fp8", {"weight_block_size": [128]}, r"weight_block_size must be two numbers"),
    ],
)  # fmt: skip
def test_the_sentence_names_key_and_rule(layout, change, words):
    config = written("fp8" if layout == "fp8" else "w4a16-g32", layout) | change
    with pytest.raises(ValueError, match=words):
        read_plan(config, Notes())


def test_unknown_keys_at_any_depth_are_listed():
    config = written("w4a16-g32", "compressed-tensors") | {"tomorrow": 1}
    config["config_groups"]["group_0"]["weights"]["colour"] = "blue"
    notes = Notes()
    read_plan(config, notes)
    assert notes.lines() == (
        "unknown keys of quantization_config (compressed-tensors) were ignored: "
        "config_groups.group_0.weights.colour, tomorrow",
    )


def weights(**changes):
    return {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32} | changes


def test_targets_of_compressed_tensors():
    """A layer's own name or pattern goes before its class; what no group targets has no scheme."""
    config = {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["lm_head", "re:.*layers.3.*"],
        "config_groups": {
            "all": {"targets": ["Linear"], "weights": weights(), "format": "pack-quantized"},
            "down": {"targets": ["re:.*down_proj$"], "weights": weights(num_bits=8), "format": "pack-quantized"},
            "one": {"targets": [LAYER], "weights": weights(num_bits=3), "format": "pack-quantized"},
        },
    }  # fmt: skip
    plan = read_plan(config, Notes())
    assert plan.layer(LAYER).scheme.weight.bits == 3
    assert plan.layer("model.layers.0.mlp.down_proj").scheme.weight.bits == 8
    assert plan.layer("model.layers.0.mlp.gate_proj").scheme.weight.bits == 4
    assert plan.layer("model.layers.3.mlp.gate_proj").skipped
    assert not plan.layer("model.layers.2.mlp.gate_proj").skipped
    del config["config_groups"]["all"]
    assert read_plan(config, Notes()).layer("model.layers.0.mlp.gate_proj") is None


def the_library_says(name: str, groups: dict[str, list[str]]) -> str | None:
    """`match_targets` and `_scheme_from_targets` of compressed-tensors, for a torch Linear."""
    of = {target: group for group, targets in groups.items() for target in targets}
    ordered = sorted(of, key=lambda target: ("re:" in target, target))
    found = [t for t in ordered if (re.match(t[3:], name) is not None if t.startswith("re:") else t == name)]
    found += [t for t in ordered if t == "Linear"]
    return of[found[0]] if found else None


def test_the_order_of_groups_and_targets_decides_nothing():
    """Names before expressions before classes, in every order; against the library's own rule."""
    rng = random.Random(0)
    layers = [f"model.layers.{i}.{n}" for i in range(3) for n in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")]
    targets = [*layers[:4], "Linear", "re:.*mlp.*", r"re:.*layers\.[12]\..*", "re:.*proj$", "re:.*q_proj", "re:nothing"]
    bits, seen = (2, 3, 4, 5, 6, 7, 8), set()
    for _ in range(60):
        chosen = rng.sample(targets, rng.randint(1, len(targets)))
        groups: dict[str, list[str]] = {}
        for target in chosen:
            groups.setdefault(f"g{rng.randrange(len(bits))}", []).append(target)
        ignore = rng.sample([*layers, "re:.*down.*", "Linear"], rng.randint(0, 3))
        for _ in range(3):
            shuffled = rng.sample(list(groups.items()), len(groups))
            config = {
                "quant_method": "compressed-tensors", "format": "pack-quantized",
                "ignore": rng.sample(ignore, len(ignore)),
                "config_groups": {
                    name: {"targets": rng.sample(own, len(own)), "weights": weights(num_bits=bits[int(name[1])])}
                    for name, own in shuffled
                },
            }  # fmt: skip
            plan = read_plan(config, Notes())
            for layer in layers:
                want, found = the_library_says(layer, groups), plan.layer(layer)
                assert (None if found is None else f"g{bits.index(found.scheme.weight.bits)}") == want
                if found is not None:
                    assert found.skipped == (the_library_says(layer, {"ignored": ignore}) is not None)
                    seen.add((want, found.skipped))
    assert len(seen) == 14


def test_a_target_of_two_groups_is_the_later_ones():
    """The library builds one table from target to group."""
    for order in (("a", "b"), ("b", "a")):
        config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
            name: {"targets": ["Linear"], "weights": weights(num_bits=4 if name == "a" else 8)} for name in order
        }}  # fmt: skip
        assert read_plan(config, Notes()).layer(LAYER).scheme.weight.bits == (8 if order[1] == "b" else 4)


@pytest.mark.parametrize("status", ["initialized", "calibration", "frozen", "compressed", None])
def test_the_status_decides_nothing(status):
    config = written("w4a16-g32", "compressed-tensors") | {"quantization_status": status}
    notes = Notes()
    assert read_plan(config, notes).layer(LAYER).scheme == get_scheme("w4a16-g32")
    assert notes.lines() == ()
    read_plan(config | {"quantization_status": "melted"}, notes)
    assert notes.lines() == ("quantization_status 'melted' is not known: layers are read as they are stored",)


def test_a_config_one_level_deeper_and_without_a_method():
    config = written("w4a16-g32", "compressed-tensors")
    del config["quant_method"]
    for wrapped in (config, {"quant_method": "compressed-tensors", "quantization_config": config}):
        assert read_plan(wrapped, Notes()).layer(LAYER).scheme == get_scheme("w4a16-g32")


# --- regular expressions ----------------------------------------------------------------------------------------

SLOW = r"(.|..|...)*[A-Z]$"  # exponential in the length of the name


@pytest.mark.parametrize("where", ["targets", "ignore", "dynamic"])
def test_matching_is_bounded(monkeypatch, where):
    monkeypatch.setattr(patterns, "BUDGET_S", 0.2)
    if where == "dynamic":
        config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {f"-:{SLOW}": {}}}
    else:
        config = written("w4a16-g32", "compressed-tensors")
        (config if where == "ignore" else config["config_groups"]["group_0"])[where] = [f"re:{SLOW}"]
    plan = read_plan(config, Notes())
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(1000)]
    with pytest.raises(QsimError, match=r"took longer than 0.2 s, at .* on layer model"):
        list(map(plan.layer, names))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("(", "is not a regular expression"),
        ("(" * 5000 + ")" * 5000, "is not a regular expression: it is nested too deeply"),
        ("a{99999999999}", "is not a regular expression"),
        ("((a{1000}){1000}){1000}", "repeats too much"),
        (r"\p{L}", "is not a regular expression"),  # of `regex` only
        ("a" * 70_000, "has 70000 characters"),
        ("[[:alpha:]]", "has a class such as"),
    ],
)  # fmt: skip
def test_expressions_that_are_none_or_too_large(expression, words):
    with pytest.raises(QsimError, match=f"ignore: .*{words}") as caught:
        patterns.Patterns([expression], "ignore")
    assert len(str(caught.value)) < 300


def test_expressions_mean_what_re_says():
    names = ["model.layers.0.mlp.up_proj", "lm_head", "x{e}", "ab{e<=1}", "{}", "aa", "model.layers.10.x", "a{,2}"]
    expressions = [r".*layers\.(0|1)\..*", r".*\.\d{2}\.", "x{e}", "ab{e<=1}", "{}", "a{2}", "a{,3}$", "(?i)LM_", "[{]",
                   r"\{\}", "a{1,2}$", r"^model(?!.*mlp)", r"(?P<x>a)(?P=x)", "", "a++", r"x[{e}]+",
                   r"\N{LATIN SMALL LETTER L}m"]  # fmt: skip
    for expression, name in itertools.product(expressions, names):
        found = patterns.Patterns([expression], "ignore").first(name)
        assert (found is not None) == (re.match(expression, name) is not None), (expression, name)


# --- parts of every kind of wrong -------------------------------------------------------------------------------


def wrong(part: Stored):
    """The same part empty, scalar, negative, huge, not a number, of more axes, of other dtypes, cut, turned."""
    kind, bits = part.bits.dtype, part.bits
    if bits.ndim == 0:
        bits = bits[None]
    yield Stored(dtype=part.dtype, bits=np.zeros((0, *bits.shape[1:]), kind))
    yield Stored(dtype=part.dtype, bits=np.zeros((), kind))
    yield Stored(dtype=part.dtype, bits=bits[None])
    yield Stored(dtype=part.dtype, bits=bits[:1])
    yield Stored(dtype=part.dtype, bits=np.ascontiguousarray(bits.T))
    yield Stored(dtype=part.dtype, bits=np.zeros_like(bits))
    yield Stored(dtype=part.dtype, bits=np.full_like(bits, -1) if kind.kind in "if" else ~np.zeros_like(bits))
    if kind.kind == "f":
        yield Stored(dtype=part.dtype, bits=np.full_like(bits, np.nan))
    else:
        yield Stored(dtype=part.dtype, bits=np.full_like(bits, np.iinfo(kind).max))
    for other in ("F32", "F64", "BF16", "I8", "I64", "U8", "BOOL", "F8_E8M0"):
        yield Stored(dtype=other, bits=np.zeros(bits.shape, NUMPY_OF[other]))


@pytest.mark.parametrize(("name", "layout"), [
    ("w4a16-g32", "gptq"), ("w3a16-g32", "gptq_v2"), ("w4a16-g32", "awq"), ("w4a16-g32", "compressed-tensors"),
    ("w8a8-tensor-static", "compressed-tensors"), ("w5a16-channel", "compressed-tensors"),
    ("fp8-static", "compressed-tensors"),
    ("nvfp4", "compressed-tensors"), ("mxfp4", "compressed-tensors"), ("mxfp8", "compressed-tensors"),
    ("fp8-block128", "fp8"), ("fp8-static", "fp8"),
])  # fmt: skip
def test_any_part_of_any_kind(name, layout):
    """Every part of a layer in every wrong form is read or refused in a sentence."""
    from qsim.layouts import LAYOUTS

    scheme = get_scheme(name)
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    qt = quantize(w, scheme, name=LAYER, input_scale=0.5)
    parts = LAYOUTS[layout].encode(qt)
    plan = read_plan(written(name, layout), Notes()).layer(LAYER)
    assert plan.decode(Parts(LAYER, parts), plan.scheme, Notes()).shape == qt.shape
    refused = []
    for key in parts:
        for other in (None, *wrong(parts[key])):
            changed = {k: v for k, v in parts.items() if k != key} | ({} if other is None else {key: other})
            try:
                plan.decode(Parts(LAYER, changed), plan.scheme, Notes())
            except QsimError as error:
                refused.append(str(error))
    assert len(refused) > 8 * len(parts)
    assert all(LAYER in text for text in refused)


def test_dynamic_rules_of_gptq():
    config = {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True,
        "dynamic": {r"-:.*\.1\..*": {}, r"+:.*down_proj": {"bits": 8, "group_size": -1}, ".*up_proj": {"sym": False}},
    }  # fmt: skip
    plan = read_plan(config, Notes())
    assert plan.layer("model.layers.1.mlp.up_proj").skipped
    assert plan.layer("model.layers.0.mlp.down_proj").scheme == get_scheme("w8a16-channel-sym")
    assert plan.layer("model.layers.0.mlp.up_proj").scheme == get_scheme("w4a16-g32-asym")
    assert plan.layer("model.layers.0.mlp.gate_proj").scheme == get_scheme("w4a16-g32-sym")


def test_the_first_rule_of_gptq_that_matches_counts():
    """`dynamic_get` of GPTQModel and `get_dynamic_override` of vLLM: file order, from the start of a name."""
    rng = random.Random(0)
    rules = {r"-:.*\.1\..*": {}, r"+:.*down_proj": {"bits": 8}, ".*up_proj": {"bits": 2}, r"-:.*up_proj$": None,
             r"model\.layers\.2": {"bits": 3}, "layers": {"bits": 8}, ".*": {"group_size": 64}}  # fmt: skip
    layers = [f"model.layers.{i}.mlp.{n}" for i in range(3) for n in ("up_proj", "down_proj", "gate_proj")]
    for _ in range(40):
        chosen = dict(rng.sample(list(rules.items()), rng.randint(1, len(rules))))
        plan = read_plan({"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": chosen}, Notes())
        for layer in layers:
            found = plan.layer(layer)
            hit = next((p for p in chosen if re.match(p.removeprefix("-:").removeprefix("+:"), layer)), None)
            assert found.skipped == (hit is not None and hit.startswith("-:"))
            want = {"bits": 4, "group_size": 32} | ((chosen[hit] or {}) if hit is not None else {})
            assert (found.scheme.weight.bits, found.scheme.weight.group_size) == (want["bits"], want["group_size"])


def test_strategies_that_are_left_out():
    """compressed-tensors infers them from the group size."""
    for size, kind in ((None, "tensor"), (-1, "channel"), (64, "group")):
        group = {"targets": ["Linear"], "weights": {"num_bits": 8, "group_size": size}}
        config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}}
        assert read_plan(config, Notes()).layer(LAYER).scheme.weight.granularity.kind == kind


@pytest.mark.parametrize(("bits", "group", "name"), [(4, 32, "mxfp4"), (6, 32, "mxfp6_e2m3"), (4, 16, "nvfp4")])
def test_block_formats_without_a_scale_dtype(bits, group, name):
    """Older configs tell MX and NVFP4 by bits and group size."""
    strategy = "tensor_group" if name == "nvfp4" else "group"
    part = {"num_bits": bits, "type": "float", "strategy": strategy, "group_size": group, "symmetric": True}
    config = {"quant_method": "compressed-tensors", "format": f"{name[:5]}-pack-quantized",
              "config_groups": {"g": {"targets": ["Linear"], "weights": part}}}  # fmt: skip
    assert read_plan(config, Notes()).layer(LAYER).scheme.weight.format.name == name


def test_a_kv_cache_that_is_not_supported_is_left_and_noted():
    config = written("w4a16-g32", "compressed-tensors")
    for strategy in ("attn_head", "tensor"):
        config["kv_cache_scheme"] = {"num_bits": 8, "type": "int", "strategy": strategy, "dynamic": False}
        notes = Notes()
        assert read_plan(config, notes).kv_cache is None
        assert notes.lines()[0].startswith("the KV cache is not quantised here")


def test_configs_without_a_method():
    awq = {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}
    assert read_plan(awq, Notes()).layer(LAYER).scheme == get_scheme("w4a16-g128")
    gptq = {"bits": 4, "group_size": 128, "sym": True, "desc_act": False, "damp_percent": 0.01}
    assert read_plan(gptq, Notes()).layer(LAYER).scheme == get_scheme("w4a16-g128-sym")
    with pytest.raises(ValueError, match="key 'quant_method' is missing; there are load_in_4bit"):
        read_plan({"load_in_4bit": True}, Notes())
