"""Options that the predicting verbs share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hwmodels.device.device import Device

_F = TypeVar("_F", bound=Callable[..., Any])


LARGEST = 1 << 40
"""No batch, context or number of tokens is larger; a float64 counts operations of this many exactly enough."""


class Count(click.types.IntParamType):
    """A number of sequences or tokens. What is too large is refused; a range would show that bound in the help."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        count = int(super().convert(value, param, ctx))
        if count > LARGEST:
            self.fail(f"{count} is more than {LARGEST}, the largest number that is counted.", param, ctx)
        return count


class Numbers(click.ParamType):
    """A list of positive integers: `1,2,4`, `1:64` (doubling) or `1:64:8` (steps of 8)."""

    name = "N,N,..."
    most = 10_000

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            out: list[int] = []
            for part in str(value).split(","):
                ends = [int(v) for v in part.split(":")]
                if len(ends) == 1:
                    out += ends
                elif len(ends) == 2:
                    at = ends[0]
                    while at <= ends[1] and at > 0:
                        out.append(at)
                        at *= 2
                elif len(ends) == 3:
                    if ends[2] and abs((ends[1] - ends[0]) // ends[2]) >= self.most:
                        self.fail(f"{value!r} is more than {self.most} numbers", param, ctx)
                    out += range(ends[0], ends[1] + 1, ends[2])
                else:
                    raise ValueError
        except ValueError:
            self.fail(f"{value!r} is not a list like 1,2,4 or 1:64 (doubling) or 1:64:8 (steps)", param, ctx)
        if not out or min(out) < 1:
            self.fail(f"{value!r}: numbers are positive, and ranges rise", param, ctx)
        if max(out) > LARGEST:
            self.fail(f"{value!r}: numbers are at most {LARGEST}", param, ctx)
        return tuple(out)


def complete(names: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    """Shell completion from a function that lists names; it is called only when a shell asks."""

    def offer(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return offer


def device_names() -> Iterable[str]:
    """Devices that are shipped as data."""
    from hwmodels.device import load

    return load.device_names()


def scheme_names() -> Iterable[str]:
    """Schemes that have a name of their own."""
    from qsim.scheme import list_schemes

    return (scheme.name for scheme in list_schemes())


def model_names() -> Iterable[str]:
    """Architectures that are shipped as data."""
    from hwmodels.workload.architecture import architecture_names

    return architecture_names()


def stack_names() -> Iterable[str]:
    """Software stacks whose kernels are known."""
    from hwmodels.timing import profiles

    return profiles.stack_names()


def model_argument(function: _F) -> _F:
    """`MODEL`: an architecture's name, or a path to a config.json."""
    return click.argument("model", metavar="MODEL", shell_complete=complete(model_names))(function)


def device_option(multiple: bool = False) -> Callable[[_F], _F]:
    """`--device NAME`, a shipped device or a TOML."""
    return click.option(
        "--device", multiple=multiple, default=("h100-sxm",) if multiple else "h100-sxm", show_default=True,
        metavar="NAME", help="Device, or a path to its TOML; see qsim devices." + (" Repeatable." if multiple else ""),
        shell_complete=complete(device_names),
    )  # fmt: skip


def scheme_option(multiple: bool = False) -> Callable[[_F], _F]:
    """`--scheme NAME`."""
    return click.option(
        "--scheme", multiple=multiple, default=("bf16",) if multiple else "bf16", show_default=True, metavar="NAME",
        help="Quantisation scheme: bf16, fp8-rowwise, w4a16-g128, ..." + (" Repeatable." if multiple else ""),
        shell_complete=complete(scheme_names),
    )  # fmt: skip


def price_option(function: _F) -> _F:
    """`--price [NAME=]PER_HOUR`, repeatable: what an hour of a device costs."""
    return click.option(
        "--price", multiple=True, metavar="[NAME=]PER_HOUR",
        help="What an hour of a device costs, as 2.5, or h200=3.5 for one device; gives the cost of a million tokens. "
        "Repeatable.",
    )(function)  # fmt: skip


def set_option(function: _F) -> _F:
    """`--set [DEVICE:]KEY=VALUE`, repeatable: change a field of the devices, or of one of them."""
    return click.option(
        "--set", "overrides", multiple=True, metavar="[DEVICE:]KEY=VALUE",
        help="Change a device field, as memory.bandwidth_gbytes_per_s=6000; of one device only, as "
        "h200:memory.bandwidth_gbytes_per_s=6000. Repeatable.",
    )(function)  # fmt: skip


def chosen_devices(names: Sequence[str], overrides: Sequence[str]) -> list[Device]:
    """The devices that were asked for, each with its overrides; on stderr, what changes more than one of them.

    Raises:
        QsimError: as `hwmodels.device.load.overrides_by_device` and `get_device`.
    """
    from hwmodels.device.load import get_device, overrides_by_device

    changes, shared = overrides_by_device(names, overrides)
    for key in shared:
        click.echo(f"--set {key} changes all {len(names)} devices; {names[0]}:{key} would change one", err=True)
    return [get_device(name, mine) for name, mine in zip(names, changes, strict=True)]


def titles_of(chips: Sequence[Device]) -> dict[str, str]:
    """Names of devices -> what people call them, each once."""
    from qsim.plots.names import device_titles

    once = {chip.name: chip.title for chip in chips}
    return dict(zip(once, device_titles(list(once.values())), strict=True))


def how_options(function: _F | None = None, *, several_tp: bool = False) -> Any:
    """`--tp --profile --stack --fidelity --strict`; with `several_tp`, `--tp` is repeatable and passed as a tuple."""
    if function is None:
        return lambda inner: how_options(inner, several_tp=several_tp)
    tp: dict[str, Any] = {"multiple": True, "default": (1,)} if several_tp else {"default": 1}
    for option in reversed(
        (
            click.option("--tp", "tensor_parallel", type=int, show_default=True, metavar="N",
                         help="Tensor-parallel size." + (" Repeatable." if several_tp else ""), **tp),
            click.option("--profile", default="cuda_graph", show_default=True, metavar="NAME",
                         help="How the stack runs: cuda_graph, eager, trtllm, torch_compile, serving, ..."),
            click.option("--stack", metavar="NAME", shell_complete=complete(stack_names),
                         help="Whose kernels run the linear layers: vllm-2026, trtllm-1.x, pytorch-2.11, ..., or best: "
                         "the fastest measured at each size.  [default: the profile's, or best]"),
            click.option("--fidelity", type=click.Choice(["ideal", "calibrated", "transferred"]), default="calibrated",
                         show_default=True, help="Datasheet roofline, fitted kernels, or borrowed efficiencies."),
            click.option("--strict", is_flag=True, help="Refuse a scheme that the device has no arithmetic for."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def milliseconds(seconds: float) -> str:
    """A time for people: 3 digits in ms, or in us below 0.1 ms."""
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-4 else f"{seconds * 1e3:.4g} ms"
