"""The tables of a study: one frozen row type each, plain values only, so that JSON, CSV and figures read the same.

Times are seconds, sizes GB = 1e9 bytes, bands 80 % bands. `None` is "not there", never 0.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """A method: its name, title and scheme, and the size of its weights."""

    method: str
    title: str
    algorithm: str
    scheme: str
    weight_bits: float  # of the linear layers of the first target model, scales and zero points included


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """What a method loses on the measured model.

    `variant` is `full`, or `weights` where a device without the arithmetic leaves activations in 16 bit.
    """

    method: str
    variant: str
    bits_per_byte: float
    bits_per_byte_se: float
    loss: float  # bits per byte more than 16 bit
    loss_se: float  # of the difference, window by window
    perplexity: float
    kl: float | None
    kl_se: float | None
    top1_agreement: float | None
    bytes_scored: int
    model_bits: float  # per weight of the decoder's linear layers
    notes: str


@dataclass(frozen=True, kw_only=True)
class ExactRow:
    """A method through a device's own matrix instruction, beside the fast kernels on the same text."""

    device: str
    method: str
    instruction: str
    parameters: str
    status: str  # established, vectors, source, given
    bytes_scored: int
    bits_per_byte: float
    fast_bits_per_byte: float
    difference: float
    kl: float  # nats per token, of the exact model from the fast one
    flips: int  # tokens whose most likely successor changed
    tokens: int


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One predicted case. `executed` is `full`, or `weights` when the device multiplies dequantised weights in 16 bit.

    `value` is what the case measures (`tpot`, `ttft` in seconds, `tokens_per_s`), with its band.
    """

    model: str
    device: str
    scheme: str
    executed: str
    case: str
    phase: str
    batch: int
    context: int
    devices: int
    measure: str
    value: float
    low: float
    high: float
    time_s: float
    low_s: float
    high_s: float
    tokens_per_s: float
    fits: bool
    bound: str
    mbu: float | None
    mfu: float | None
    kernel: str
    fidelity: str
    weights_gbytes: float
    kv_cache_gbytes: float
    total_gbytes: float
    capacity_gbytes: float
    joule_per_token: float | None
    joule_per_token_low: float | None
    joule_per_token_high: float | None
    cost_per_million_tokens: float | None
    notes: str


@dataclass(frozen=True, kw_only=True)
class CurveRow:
    """Speed-up of a decode step over 16 bit against batch, with its band."""

    model: str
    device: str
    scheme: str
    batch: int
    speedup: float
    low: float
    high: float
    fits: bool
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class FlipRow:
    """Where things turn with the batch: None where they do not up to `searched_to`.

    `compute_bound_from`: first batch at which the linear layers need longer for arithmetic than for memory.
    `no_gain_from`: first batch at which the scheme is no longer faster than 16 bit; 1 where it never is.
    """

    model: str
    device: str
    scheme: str
    compute_bound_from: int | None
    no_gain_from: int | None
    searched_to: int


@dataclass(frozen=True, kw_only=True)
class OperatorRow:
    """An operator on the roofline."""

    model: str
    device: str
    scheme: str
    regime: str
    operator: str
    kind: str
    flop_per_byte: float
    flop_per_s: float
    share: float
    bound: str
    fidelity: str


@dataclass(frozen=True, kw_only=True)
class RoofRow:
    """A roof of a device: one peak over its memory bandwidth."""

    device: str
    format: str
    peak_flop_per_s: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class CapacityRow:
    """What a model occupies: fewest devices that hold one sequence, and the most sequences on one device."""

    model: str
    device: str
    scheme: str
    context: int
    weights_gbytes: float
    kv_cache_gbytes_per_sequence: float
    capacity_gbytes: float
    devices_needed: int | None
    largest_batch: int  # on one device


@dataclass(frozen=True, kw_only=True)
class ExpectedRow:
    """What a method loses on a target model, and what that stands on; None where nothing is known.

    `basis` is `exact` (16 bit), `measured`, `published`, `near`, `law` or `unknown`; see `qsim.evidence.Expectation`.
    `variant` is as in `QualityRow`. Bands are 80 % bands.
    """

    model: str
    method: str
    variant: str
    title: str | None  # what an engine serves it as; None where none does
    effort: float  # rank of what it takes to serve
    basis: str
    lost: float | None  # percent of an average score
    lost_low: float | None
    lost_high: float | None
    ln_ratio: float | None  # ln(perplexity / perplexity in 16 bit)
    ln_ratio_low: float | None
    ln_ratio_high: float | None
    metric: str
    points: float | None
    points_low: float | None
    points_high: float | None
    collapse: float | None  # probability that the model is destroyed
    fragile: bool
    note: str
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DecisionRow:
    """The answer of a case on a device: what to serve, what cannot be told apart from it, and what it gains.

    `method` is None where nothing within the limit fits, or a quick study cannot tell.
    """

    model: str
    case: str
    device: str
    devices: int
    method: str | None
    title: str | None
    scheme: str | None
    equals: tuple[str, ...]  # methods whose speed cannot be told from the best one's
    excluded: tuple[str, ...]  # what fits and is no candidate, each with the reason
    measure: str
    value: float | None
    low: float | None
    high: float | None
    speedup: float | None  # over 16 bit on as many devices, where that fits
    speedup_low: float | None
    speedup_high: float | None
    lost: float | None  # percent of an average score, as expected of the target
    lost_low: float | None
    lost_high: float | None
    basis: str
    collapse: float | None
    fidelity: str
    why: str


@dataclass(frozen=True, kw_only=True)
class AgreementRow:
    """An answer beside what practitioners recommend; where they differ, `why` has the numbers."""

    model: str
    device: str
    case: str
    says: str
    source: str
    answer: str
    agrees: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class HistogramRow:
    """One bin of a histogram: what was rounded, to which format."""

    tensor: str
    format: str
    low: float
    high: float
    share: float


@dataclass(frozen=True, kw_only=True)
class TensorErrorRow:
    """Error of one tensor in one format."""

    tensor: str
    format: str
    bits: float
    sqnr_db: float
    rms_relative: float


@dataclass(frozen=True, kw_only=True)
class ChannelRow:
    """Largest magnitude of a channel of a layer's input and of its weight column, before and after smoothing."""

    layer: str
    channel: int
    activation_max: float
    weight_max: float
    smoothed_activation_max: float
    smoothed_weight_max: float


@dataclass(frozen=True, kw_only=True)
class KindRow:
    """Outliers of one kind of layer of the measured model, the worst of each number; see `OutlierReport.kinds`."""

    kind: str
    layers: int
    channel_ratio: float | None
    token_channel_ratio: float | None
    peak: float | None
    peak_ratio: float | None
    kurtosis: float | None
    row_range: float | None
    worst_layer: str


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """What the measured model's outliers do to one way to multiply; see `qsim.evidence.outliers.Verdict`."""

    way: str
    title: str
    answer: str
    cause: str
    layer: str
    layers: int
    error: float | None
    why: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ProfileRow:
    """What a method loses on the embedded model with the outliers of a published one, against its own 16 bit."""

    profile: str
    method: str
    loss: float
    loss_se: float
    base_bits_per_byte: float
    bytes_scored: int
    notes: str


@dataclass(frozen=True, kw_only=True)
class SalientRow:
    """Output error of a layer when some channels keep 16 bit."""

    layer: str
    chosen_by: str
    kept_percent: float
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class AccumulatorRow:
    """Error of a sum against K by one way to add."""

    way: str
    data: str
    k: int
    relative_error: float
    bias: float


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """What somebody said, and what is computed here."""

    topic: str
    claim: str
    source: str
    case: str
    claimed: str
    value: float
    low: float
    high: float
    unit: str
    fidelity: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class TrustRow:
    """Error of the predictions on rows that no fit has seen."""

    section: str
    group: str
    rows: int
    error_percent: float
    required_percent: float | None
    met: bool | None
    in_band: float | None


@dataclass(frozen=True, kw_only=True)
class TrustPoint:
    """One measured time and its prediction."""

    section: str
    name: str
    measured_s: float
    predicted_s: float
    low_s: float
    high_s: float
