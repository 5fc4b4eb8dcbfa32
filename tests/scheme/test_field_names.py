"""Names mean what the field means by them: the presets of compressed-tensors, and names that no scheme has."""

import pytest

from qsim.errors import QsimError
from qsim.layouts.compressed_config import compressed_args
from qsim.scheme import FIELD, get_scheme, list_schemes, preset_names

# fields of `QuantizationArgs` that say how a tensor is observed, not how it is stored
_OBSERVING = ("observer", "observer_kwargs", "actorder")


@pytest.mark.oracle
def test_every_preset_of_compressed_tensors_is_the_scheme_of_its_name():
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

    assert set(FIELD) == set(PRESET_SCHEMES)
    for preset in PRESET_SCHEMES:
        theirs = quantization.preset_name_to_scheme(preset, ["Linear"])
        ours = get_scheme(preset)
        for part, args in ((ours.weight, theirs.weights), (ours.activation, theirs.input_activations)):
            stored = compressed_args(part)
            assert (stored is None) == (args is None), (preset, part)
            if args is None or stored is None:
                continue
            given = quantization.QuantizationArgs(**stored)
            skipped = set(_OBSERVING)
            skipped |= {"scale_dtype"} if args.scale_dtype is None else set()  # the preset leaves it to the model
            skipped |= {"zp_dtype"} if args.symmetric else set()  # no zero point is stored
            compared = sorted(set(type(args).model_fields) - skipped)
            assert len(compared) >= 7
            for field in compared:
                assert getattr(given, field) == getattr(args, field), (preset, part, field)


@pytest.mark.parametrize("preset", FIELD)
def test_a_preset_means_the_same_in_any_case_and_spelled_out(preset):
    scheme = get_scheme(preset)
    assert scheme == get_scheme(preset.lower()) == get_scheme(preset.replace("_", "-").title()) == get_scheme(
        FIELD[preset])  # fmt: skip
    assert preset in preset_names(scheme)
    assert preset in preset_names(FIELD[preset] + "-kv8")


def test_presets_that_had_another_meaning_here():
    w = get_scheme("w4a16").weight
    assert (w.format.name, str(w.granularity), w.symmetric) == ("int4", "group(128)", True)
    w = get_scheme("w4a16-asym").weight
    assert (w.format.name, str(w.granularity), w.symmetric) == ("uint4", "group(128)", False)
    assert get_scheme("w8a16").weight.symmetric
    assert not get_scheme("fp8").activation.dynamic
    assert str(get_scheme("fp8-dynamic").weight.granularity) == "channel"
    assert get_scheme("w4a4") == get_scheme("w4a4-g128-token-sym") != get_scheme("w4a4-channel-token")


def test_no_name_that_spells_its_scheme_out_is_a_preset_with_another_meaning():
    for scheme in list_schemes():
        for preset in FIELD:
            if scheme.name == preset.lower().replace("_", "-"):
                assert get_scheme(FIELD[preset]) == scheme


@pytest.mark.parametrize("name", ["w8a4", "w4a32", "w4a5", "w8a32-sym", "W8AFP8"])
def test_without_a_granularity_only_the_field_s_names_are_schemes(name):
    bare = name.lower().removesuffix("-sym")
    with pytest.raises(QsimError, match=f"{name.lower()} says no granularity.*use {bare}-g128-sym or {bare}-channel"):
        get_scheme(name)
    assert get_scheme(f"{bare}-channel-sym").weight.symmetric


@pytest.mark.parametrize(
    ("name", "kind", "instead"),
    [("int4", "number format", "w4a16-g128"), ("awq", "method", "w4a16-g128"), ("GPTQ", "method", "w4a16-g128-sym"),
     ("smoothquant", "method", "w8a8-channel-token"), ("e4m3", "number format", "fp8-rowwise"),
     ("fp4", "number format", "nvfp4"), ("float8_e4m3fn", "number format", "fp8-rowwise"),
     ("int3-kv8", "number format", "w3a16-g128"), ("bitsandbytes", "method", "nf4-g64")],
)  # fmt: skip
def test_a_method_or_a_format_is_answered_with_the_schemes_that_are_meant(name, kind, instead):
    with pytest.raises(QsimError, match=f"is a {kind}, not a scheme: use the scheme .*{instead}") as refusal:
        get_scheme(name)
    assert "qsim.scheme" not in str(refusal.value)


def test_every_scheme_that_a_refusal_offers_exists():
    from qsim.scheme.presets import _NOT_SCHEMES

    for _, instead in _NOT_SCHEMES.values():
        for name in instead:
            assert get_scheme(name).name == name


@pytest.mark.parametrize("base", [*(s.name for s in list_schemes() if "kv" not in s.name), "W4A16", "FP8_DYNAMIC"])
def test_every_name_takes_a_kv_cache(base):
    fp8 = get_scheme(f"{base}-kvfp8")
    assert fp8.kv_cache.format.name == "float8_e4m3fn"
    assert (fp8.weight, fp8.activation) == (get_scheme(base).weight, get_scheme(base).activation)
    for same in ("-kv8", "-kve4m3", "-kv", "-KV8", "_kvfp8"):
        assert get_scheme(base + same) == fp8
    assert get_scheme(f"{base}-kve5m2").kv_cache.format.name == "float8_e5m2"
    for bits in (4, 8):
        kv = get_scheme(f"{base}-kvint{bits}").kv_cache
        assert (kv.format.name, kv.dynamic) == (f"int{bits}", True)
    with pytest.raises(QsimError, match=r"unknown KV cache '-kv4' in scheme .*: use -kv8, .*-kvint4"):
        get_scheme(f"{base}-kv4")
