"""What a study is asked: methods, devices, target models, cases and texts, as frozen values and as a TOML file.

The file and the value are one: `read_spec("study.toml")` gives a `StudySpec`, `to_table` gives back what a file holds.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

Algorithm: TypeAlias = Literal["none", "rtn", "gptq", "awq", "smoothquant", "fp8"]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
Measure: TypeAlias = Literal["tpot", "ttft", "tokens_per_s"]
Count: TypeAlias = Annotated[int, Field(ge=1)]

_STRICT = ConfigDict(extra="forbid")

ALGORITHM_TITLES = {"none": "", "rtn": "RTN", "gptq": "GPTQ", "awq": "AWQ", "smoothquant": "SmoothQuant", "fp8": ""}
_SCHEME_TITLES = {
    "bf16": "BF16", "fp16": "FP16", "fp8": "FP8 tensor", "fp8-static": "FP8 static", "fp8-rowwise": "FP8 row-wise",
    "fp8-block128": "FP8 block", "fp8-kv": "FP8 + FP8 KV", "fp8-kvfp8": "FP8 + FP8 KV",
    "fp8-rowwise-kvfp8": "FP8 row-wise + FP8 KV", "mxfp4": "MXFP4", "nvfp4": "NVFP4", "mxfp8": "MXFP8",
    "mxfp6": "MXFP6", "w8a8-channel-token": "W8A8", "w4a16-g128": "W4 g128", "w3a16-g128": "W3 g128",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to make a model small: an algorithm that finds the codes, and the scheme that they follow.

    Attributes:
        algorithm: `none` (16 bit as it is), `rtn`, `gptq`, `awq`, `smoothquant` or `fp8`.
        scheme: a name of `qsim.get_scheme`; the quality side obeys it, the speed side prices it.
        options: further arguments of the algorithm.
    """

    __pydantic_config__ = _STRICT

    algorithm: Algorithm
    scheme: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`gptq:w4a16-g128`, with options in brackets; the key of every table."""
        more = ",".join(f"{k}={v}" for k, v in sorted(self.options.items()))
        return f"{self.algorithm}:{self.scheme}" + (f"[{more}]" if more else "")

    @property
    def title(self) -> str:
        """What figures and tables call it."""
        scheme = _SCHEME_TITLES.get(self.scheme, self.scheme)
        plain = self.algorithm == "rtn" and self.scheme in ("mxfp4", "nvfp4", "mxfp6", "mxfp8")  # nothing else is usual
        more = " ".join(k if v is True else f"{k}={v}" for k, v in sorted(self.options.items()))
        return " ".join(part for part in ("" if plain else ALGORITHM_TITLES[self.algorithm], scheme, more) if part)


def parse_method(value: Any) -> Any:
    """`gptq:w4a16-g128` as the fields of a `Method`; a scheme alone is rounded to nearest (`none` for 16 bit).

    Raises:
        ValueError: an unknown algorithm or scheme, or the two do not go together.
    """
    if not isinstance(value, str):
        return value
    algorithm, colon, scheme = value.partition(":")
    if not colon:
        scheme, algorithm = value, default_algorithm(value)
    return {"algorithm": algorithm, "scheme": scheme}


def default_algorithm(scheme: str) -> str:
    """How a scheme is rounded when nobody says: `none` when it quantises nothing, `fp8` for FP8, else `rtn`."""
    from qsim.quantize import get_scheme

    weight = get_scheme(scheme).weight
    if not weight.is_quantized:
        return "none"
    return "fp8" if weight.format.name.startswith("float8") else "rtn"


def methods_for(scheme: str) -> tuple[Method, ...]:
    """Every algorithm that applies to a scheme: what `--scheme NAME` studies."""
    from qsim.formats import IntFormat
    from qsim.quantize import get_scheme

    found = get_scheme(scheme)
    first = Method(algorithm=default_algorithm(scheme), scheme=scheme)  # type: ignore[arg-type]
    if not isinstance(found.weight.format, IntFormat):
        return (first,)
    if found.activation.is_quantized:
        return first, Method(algorithm="smoothquant", scheme=scheme)
    return first, Method(algorithm="gptq", scheme=scheme), Method(algorithm="awq", scheme=scheme)


@dataclass(frozen=True, kw_only=True)
class Accumulator:
    """The adder of a device that has no public bit-accurate model, as given: arguments of `qsim.tensorcore.generic`.

    Attributes:
        arithmetic: `truncated` (products aligned and cut at F bits), `fma` (a chain of float32 FMAs) or `exact`.
        products, fraction_bits: L and F of a truncated or exact sum.
        source: where the numbers are from.
    """

    __pydantic_config__ = _STRICT

    arithmetic: Literal["truncated", "fma", "exact"] = "truncated"
    products: Count = 32
    fraction_bits: Annotated[int, Field(ge=1, le=48)] = 22
    source: str = "given by the study"


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """A device of the study: a name or TOML, what is changed on it, how tables call it, and its accumulator."""

    __pydantic_config__ = _STRICT

    name: str
    set: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    accumulator: Accumulator | None = None

    @property
    def title(self) -> str:
        """The label, or the name with what was changed."""
        if self.label:
            return self.label
        stem = Path(self.name).stem if self.name.endswith(".toml") else self.name
        changes = ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in self.set.items())
        return f"{stem} ({changes})" if changes else stem


def parse_device(value: Any) -> Any:
    """A device name as the fields of a `DeviceSpec`."""
    return {"name": value} if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class Case:
    """A question that the decision table answers: what runs, and what should be best.

    Attributes:
        phase: `decode` (one step), `prefill` (a whole prompt) or `request` (prompt and new tokens).
        batch: sequences; with a request, 0 stands for the most that the memory holds.
        context: tokens in the cache of a decode step; the prompt of a prefill or request.
        new_tokens: of a request.
        measure: `tpot` and `ttft` are to be small, `tokens_per_s` large.
    """

    __pydantic_config__ = _STRICT

    name: str
    title: str = ""
    phase: Literal["decode", "prefill", "request"] = "decode"
    batch: Annotated[int, Field(ge=0)] = 1
    context: Count = 2048
    new_tokens: Count = 256
    measure: Measure = "tpot"

    def __post_init__(self) -> None:
        fits = {"decode": ("tpot", "tokens_per_s"), "prefill": ("ttft", "tokens_per_s"), "request": ("tokens_per_s",)}
        if self.measure not in fits[self.phase]:
            raise ValueError(f"case {self.name}: a {self.phase} is measured in {' or '.join(fits[self.phase])}: "
                             f"got {self.measure}")  # fmt: skip
        if self.batch == 0 and self.phase != "request":
            raise ValueError(f"case {self.name}: batch 0 (the most that fits) belongs to phase request")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The quality half: the model whose loss is measured, on which text.

    Attributes:
        model: `tiny` or a folder with a Hugging Face checkpoint.
        text, calibration: files; empty: the texts that come with the package.
        max_bytes: how much of the text is scored; 0 is all of it.
        window: tokens of one window; the text is cut into windows that do not overlap.
        exact_bytes: how much of it goes through the tensor-core emulator, for each device; 0 leaves that out.
        calibration_tokens: tokens that GPTQ, AWQ, SmoothQuant and static scales see.
        max_loss: bits a byte that a method may lose against 16 bit and still be recommended.
        seed: of everything random.
    """

    __pydantic_config__ = _STRICT

    model: str = "tiny"
    text: str = ""
    calibration: str = ""
    max_bytes: Annotated[int, Field(ge=0)] = 32768
    window: Annotated[int, Field(ge=16)] = 512
    exact_bytes: Annotated[int, Field(ge=0)] = 512
    calibration_tokens: Count = 16384
    max_loss: Annotated[float, Field(gt=0)] = 0.02
    seed: int = 0


DEFAULT_DEVICES = (
    DeviceSpec(name="h100-sxm"),
    DeviceSpec(name="a100-sxm-80gb"),
    DeviceSpec(name="l40s"),
    DeviceSpec(name="rtx-4090"),
    DeviceSpec(
        name="sn40l-like",
        accumulator=Accumulator(arithmetic="fma", source="no public model; a chain of float32 FMAs is assumed"),
    ),
    DeviceSpec(
        name="asic",
        accumulator=Accumulator(
            products=32, fraction_bits=16, source="design choice: 32 products aligned, 16 fraction bits kept"
        ),
    ),
)
DEFAULT_CASES = (
    Case(name="chat", title="Chat, one user", batch=1, context=2048, measure="tpot"),
    Case(name="serving", title="Serving, 32 users", batch=32, context=2048, measure="tokens_per_s"),
    Case(name="offline", title="Offline, as many as fit", phase="request", batch=0, context=1024, new_tokens=256,
         measure="tokens_per_s"),
    Case(name="long", title="Long context, 4 x 32k", batch=4, context=32768, measure="tokens_per_s"),
    Case(name="prompt", title="Long prompts, first token", phase="prefill", batch=1, context=8192, measure="ttft"),
)  # fmt: skip
DEFAULT_METHODS = tuple(
    Method(**parse_method(text))
    for text in (
        "none:bf16", "rtn:w4a16-g128", "gptq:w4a16-g128", "awq:w4a16-g128", "rtn:w3a16-g128", "gptq:w3a16-g128",
        "awq:w3a16-g128", "rtn:w8a8-channel-token", "smoothquant:w8a8-channel-token", "fp8:fp8", "fp8:fp8-rowwise",
        "fp8:fp8-block128", "fp8:fp8-kv", "rtn:mxfp4", "rtn:nvfp4",
    )
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed half: whose times are predicted, and where.

    Attributes:
        models: names of architectures, or paths to a config.json or a folder that holds one.
        devices: see `DeviceSpec`.
        profile: execution profile of `hwmodels`.
        batches, context: of the curves against batch.
    """

    __pydantic_config__ = _STRICT

    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("llama-3-8b", "llama-3-70b")
    devices: Annotated[tuple[Annotated[DeviceSpec, BeforeValidator(parse_device)], ...], Field(min_length=1)] = (
        DEFAULT_DEVICES
    )
    profile: str = "cuda_graph"
    batches: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    context: Count = 2048


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """Everything that a study is asked; two studies of equal specification give equal numbers on one machine."""

    __pydantic_config__ = _STRICT

    title: str = "Quality against speed"
    methods: Annotated[tuple[Annotated[Method, BeforeValidator(parse_method)], ...], Field(min_length=1)] = (
        DEFAULT_METHODS
    )
    cases: Annotated[tuple[Case, ...], Field(min_length=1)] = DEFAULT_CASES
    quality: Quality = field(default_factory=Quality)
    speed: Speed = field(default_factory=Speed)

    def quick(self) -> StudySpec:
        """The same study on less text, for a first look: under a minute."""
        q = self.quality
        few = replace(
            q,
            max_bytes=min(q.max_bytes or 6144, 6144),
            exact_bytes=min(q.exact_bytes, 128),
            calibration_tokens=min(q.calibration_tokens, 4096),
        )
        return replace(self, quality=few)


_ADAPTER: TypeAdapter[StudySpec] = TypeAdapter(StudySpec)


def read_spec(path: str | Path) -> StudySpec:
    """A study file (TOML) as a value; what it leaves out has its default.

    Relative paths in the file are relative to the file.

    Raises:
        ValueError: not TOML, or a key or value that no study has; the message names file, key and value.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    return _relative_to(spec_of(table, str(path)), path.parent)


def spec_of(table: Mapping[str, Any], where: str = "study") -> StudySpec:
    """A study from the table of a file; `where` names it in messages.

    Raises:
        ValueError: see `read_spec`.
    """
    try:
        return _ADAPTER.validate_python(dict(table))
    except ValidationError as error:
        raise ValueError(f"{where}: {_first(error)}") from None


def to_table(spec: StudySpec) -> dict[str, Any]:
    """The study as plain values, as JSON and a study file hold them."""
    found: dict[str, Any] = _ADAPTER.dump_python(spec, mode="json", exclude_none=True)
    return found


def _first(error: ValidationError) -> str:
    """The first fault in one sentence: where, what, and what was given."""
    fault = error.errors(include_url=False)[0]
    at = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        last = str(fault["loc"][-1])
        near = difflib.get_close_matches(last, _keys(), n=2, cutoff=0.5)
        return f"unknown key {at}" + (f"; did you mean {' or '.join(near)}?" if near else "")
    message = fault["msg"].removeprefix("Value error, ")
    given = fault.get("input")
    return f"{at}: {message}" + ("" if isinstance(given, dict | tuple | list) else f": got {given!r}")


def _keys() -> list[str]:
    kinds: tuple[Any, ...] = (StudySpec, Quality, Speed, Method, DeviceSpec, Case, Accumulator)
    return [f.name for kind in kinds for f in fields(kind)]


def _relative_to(spec: StudySpec, folder: Path) -> StudySpec:
    def place(text: str) -> str:
        return str(folder / text) if text and (folder / text).exists() and not Path(text).is_absolute() else text

    q, s = spec.quality, spec.speed
    return replace(
        spec,
        quality=replace(q, model=place(q.model), text=place(q.text), calibration=place(q.calibration)),
        speed=replace(
            s,
            models=tuple(place(m) for m in s.models),
            devices=tuple(replace(d, name=place(d.name)) for d in s.devices),
        ),
    )


def check(spec: StudySpec) -> StudySpec:
    """Resolve every name before any work is done, and put 16 bit first: every loss and speed-up is against it.

    Raises:
        ValueError: an unknown scheme, device, model, profile or override; a method whose algorithm does not fit its
            scheme; two methods, devices or cases of one name.
    """
    import hwmodels
    from hwmodels.profiles import get_profile
    from qsim.quantize import get_scheme

    get_profile(spec.speed.profile)
    for method in spec.methods:
        _check_method(method, get_scheme(method.scheme))
    for device in spec.speed.devices:
        hwmodels.get_device(device.name, device.set or None)
    for model in spec.speed.models:
        hwmodels.get_architecture(model)
    for what, names in (
        ("methods", [m.name for m in spec.methods]),
        ("devices", [d.title for d in spec.speed.devices]),
        ("cases", [c.name for c in spec.cases]),
    ):
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two {what} are called {twice[0]!r}: give each a name of its own")
    base = [m for m in spec.methods if m.algorithm == "none"]
    rest = [m for m in spec.methods if m.algorithm != "none"]
    return replace(spec, methods=(*(base or (Method(algorithm="none", scheme="bf16"),)), *rest))


def _check_method(method: Method, scheme: Any) -> None:
    from qsim.formats import IntFormat

    weight = scheme.weight
    integer = isinstance(weight.format, IntFormat)
    rules = {
        "none": (not weight.is_quantized, "leaves weights in 16 bit"),
        "rtn": (weight.is_quantized, "rounds weights, which this scheme leaves in 16 bit"),
        "gptq": (integer, "rounds weights to integers"),
        "awq": (integer and not scheme.activation.is_quantized, "is for integer weights with 16-bit activations"),
        "smoothquant": (integer and scheme.activation.is_quantized, "is for integer weights and activations"),
        "fp8": (weight.format.name.startswith("float8"), "is for FP8 weights"),
    }
    fits, why = rules[method.algorithm]
    if not fits:
        raise ValueError(f"method {method.name}: {method.algorithm} {why}; see qsim.get_scheme for {method.scheme}")
