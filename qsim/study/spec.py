"""What a study is asked: methods, devices, target models, cases and texts, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator

from qsim.errors import QsimError

from .method import NONE, STRICT, Method, parse_method

if TYPE_CHECKING:
    from qsim.scheme import Scheme

Measure: TypeAlias = Literal["tpot", "ttft", "tokens_per_s"]
Phase: TypeAlias = Literal["decode", "prefill", "request", "serve"]


def _at_least(value: object, least: dict[str, float], where: str = "") -> None:
    """Refuse fields below their least value; 0 itself is refused where the least is written as a tiny number."""
    for name, low in least.items():
        given = getattr(value, name)
        if isinstance(given, bool) or not given >= low:
            rule = f"at least {low:g}" if low >= 1 or low == 0 else "positive"
            raise QsimError(f"{where}{name} must be {rule}: got {given!r}")


@dataclass(frozen=True, kw_only=True)
class Accumulator:
    """The adder of a device that has no public bit-accurate model, as given: arguments of `qsim.tensorcore.generic`.

    Attributes:
        arithmetic: `truncated` (products aligned and cut at F bits), `fma` (a chain of float32 FMAs) or `exact`.
        products, fraction_bits: L and F of a truncated or exact sum.
        source: where the numbers are from.
    """

    __pydantic_config__ = STRICT

    arithmetic: Literal["truncated", "fma", "exact"] = "truncated"
    products: int = 32
    fraction_bits: int = 22
    source: str = "given by the study"

    def __post_init__(self) -> None:
        _at_least(self, {"products": 1, "fraction_bits": 1}, "accumulator: ")


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """A device of the study: a name or TOML, what is changed on it, how tables call it, and its accumulator."""

    __pydantic_config__ = STRICT

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
        phase: `decode` (one step), `prefill` (a whole prompt), `request` (prompt and new tokens) or `serve` (so many
            requests in flight, each that ends sending the next, in the steady state of a serving engine).
        batch: sequences, or requests in flight; with a request, 0 stands for the most that the memory holds.
        context: tokens in the cache of a decode step; the prompt of the others.
        new_tokens: of a request.
        measure: `tpot` and `ttft` are to be small, `tokens_per_s` large.
    """

    __pydantic_config__ = STRICT

    name: str
    title: str = ""
    phase: Phase = "decode"
    batch: int = 1
    context: int = 2048
    new_tokens: int = 256
    measure: Measure = "tpot"

    def __post_init__(self) -> None:
        _at_least(self, {"batch": 0, "context": 1, "new_tokens": 1}, f"case {self.name}: ")
        fits = {"decode": ("tpot", "tokens_per_s"), "prefill": ("ttft", "tokens_per_s"), "request": ("tokens_per_s",),
                "serve": ("tokens_per_s", "tpot", "ttft")}  # fmt: skip
        if self.measure not in fits[self.phase]:
            raise QsimError(f"case {self.name}: a {self.phase} is measured in {' or '.join(fits[self.phase])}: "
                             f"got {self.measure}")  # fmt: skip
        if self.batch == 0 and self.phase != "request":
            raise QsimError(f"case {self.name}: batch 0 (the most that fits) belongs to phase request")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The quality half: the model whose loss is measured, on which text.

    Attributes:
        model: `tiny`, a folder with a Hugging Face checkpoint, or a GGUF file.
        text, calibration: files; empty: the texts that come with the package.
        max_bytes: how much of the text is scored; 0 is all of it.
        least_bytes: after so many a method is scored no further once its loss is settled: weights of eight bits or more
            within the limit, or of fewer than four beyond it, by four standard errors. Variants that only some devices
            execute are scored on so many. 0 scores everything on all of the text.
        window: tokens of one window; the text is cut into windows that do not overlap.
        outlier_bytes: how much of it is scored where the embedded model is given the outliers of published models; 0
            leaves that out.
        exact_bytes: how much of it goes through the tensor-core emulator, for each device; 0 leaves that out.
        calibration_tokens: tokens that GPTQ, AWQ, SmoothQuant and static scales see.
        search_grid: candidates of AWQ's search for scales; 20 is the paper's.
        max_loss: bits per byte from which a loss of the measured model counts as large in the figures; what may be
            recommended for a target is `StudySpec.max_lost`.
        seed: of everything random.
    """

    __pydantic_config__ = STRICT

    model: str = "tiny"
    text: str = ""
    calibration: str = ""
    max_bytes: int = 131072
    least_bytes: int = 16384
    outlier_bytes: int = 4096
    window: int = 512
    exact_bytes: int = 256
    calibration_tokens: int = 8192
    search_grid: int = 20
    max_loss: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"max_bytes": 0, "least_bytes": 0, "outlier_bytes": 0, "window": 16, "exact_bytes": 0, "search_grid": 1,
                 "calibration_tokens": 1, "max_loss": 1e-12, "seed": 0}  # fmt: skip
        _at_least(self, least)


DEFAULT_DEVICES = (
    DeviceSpec(name="h100-sxm"),
    DeviceSpec(name="h200"),
    DeviceSpec(name="b200"),
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
    Case(name="serving", title="Serving, 32 users", phase="serve", batch=32, context=2048, measure="tokens_per_s"),
    Case(name="offline", title="Offline, as many as fit", phase="request", batch=0, context=1024, new_tokens=256,
         measure="tokens_per_s"),
    Case(name="long", title="Long context, 4 x 32k", batch=4, context=32768, measure="tokens_per_s"),
    Case(name="prompt", title="Long prompts, first token", phase="prefill", batch=1, context=8192, measure="ttft"),
)  # fmt: skip
DEFAULT_METHODS = tuple(
    Method(**parse_method(text))
    for text in (
        "none:bf16", "rtn:w4a16-g128", "gptq:w4a16-g128", "awq:w4a16-g128", "rtn:w3a16-g128", "gptq:w3a16-g128",
        "awq:w3a16-g128", "awq:w4a16-g128-kvfp8", "rtn:w8a8-channel-token", "smoothquant:w8a8-channel-token",
        "fp8:fp8-tensor", "fp8:fp8-rowwise", "fp8:fp8-block128", "fp8:fp8-rowwise-kvfp8", "rtn:mxfp4", "rtn:nvfp4",
    )
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed half: whose times are predicted, and where.

    Attributes:
        models: names of architectures, or paths to a config.json or a folder that holds one.
        devices: see `DeviceSpec`.
        profile: execution profile of `hwmodels`.
        prices: device -> price of an hour of it; gives the cost of a million tokens.
        batches, context: of the curves against batch.
    """

    __pydantic_config__ = STRICT

    models: tuple[str, ...] = ("llama-3-8b", "llama-3-70b")
    devices: tuple[Annotated[DeviceSpec, BeforeValidator(parse_device)], ...] = DEFAULT_DEVICES
    profile: str = "cuda_graph"
    prices: dict[str, float] = field(default_factory=dict)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    context: int = 2048

    def __post_init__(self) -> None:
        _at_least(self, {"context": 1})
        if not self.models or not self.devices or len(self.batches) < 2 or min(self.batches) < 1:
            raise QsimError("a study must have at least one model, one device and two positive batches: got "
                             f"{len(self.models)}, {len(self.devices)} and {self.batches}")  # fmt: skip
        for name, price in self.prices.items():
            if not 0 < price < 1e9:
                raise QsimError(f"a price per hour must be above 0: got {price:g} for {name}")


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """Everything that a study is asked; two studies of equal specification give equal numbers on one machine.

    Attributes:
        max_lost: percent of an average score that a method may lose on a target model and still be recommended.
        evidence: a CSV file whose rows join the published losses (`qsim.evidence.read_rows`); empty for none.
    """

    __pydantic_config__ = STRICT

    title: str = "Quality against speed"
    methods: tuple[Annotated[Method, BeforeValidator(parse_method)], ...] = DEFAULT_METHODS
    cases: tuple[Case, ...] = DEFAULT_CASES
    max_lost: float = 3.0
    evidence: str = ""
    quality: Quality = field(default_factory=Quality)
    speed: Speed = field(default_factory=Speed)

    def __post_init__(self) -> None:
        if isinstance(self.max_lost, bool) or not 0 < self.max_lost <= 100:
            raise QsimError(f"max_lost must be above 0 and at most 100 percent of a score: got {self.max_lost!r}")
        if not self.methods or not self.cases:
            raise QsimError(f"a study must have methods and cases: got {len(self.methods)} and {len(self.cases)}")

    def quick(self) -> StudySpec:
        """The same study on less text and shorter windows, for a first look."""
        q = self.quality
        few = replace(
            q,
            max_bytes=min(q.max_bytes or 4096, 4096),
            window=min(q.window, 256),
            exact_bytes=min(q.exact_bytes, 64),
            outlier_bytes=0,
            calibration_tokens=min(q.calibration_tokens, 1024),
            search_grid=min(q.search_grid, 5),
        )
        return replace(self, quality=few)


def check(spec: StudySpec) -> StudySpec:
    """Resolve every name before any work is done, and put 16 bit first: every loss and speed-up is against it.

    Raises:
        ValueError: an unknown scheme, device, model, profile or override; a method whose algorithm does not fit its
            scheme; two methods, devices or cases of one name.
    """
    import hwmodels
    from hwmodels.timing.profiles import get_profile
    from qsim.scheme import get_scheme

    from . import targets  # noqa: F401  (GGUF files among them)

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
            raise QsimError(f"two {what} are called {twice[0]!r}: give each a name of its own")
    base = [m for m in spec.methods if m.algorithm == NONE]
    rest = [m for m in spec.methods if m.algorithm != NONE]
    return replace(spec, methods=(*(base or (Method(algorithm=NONE, scheme="bf16"),)), *rest))


def _check_method(method: Method, scheme: Scheme) -> None:
    """Refuse an algorithm with a scheme that it cannot do, or with options that it does not have."""
    from qsim.methods.registry import get_method

    if method.algorithm == NONE:
        if scheme.weight.is_quantized:
            raise QsimError(f"method {method.name}: {NONE} leaves weights in 16 bit, which this scheme quantises")
        return
    try:
        found = get_method(method.algorithm)
        reason = found.unusual(scheme)
        if reason is not None:
            raise QsimError(reason)
        found.make(method.scheme, method.options)
    except QsimError as error:
        raise QsimError(f"method {method.name}: {error}") from None
