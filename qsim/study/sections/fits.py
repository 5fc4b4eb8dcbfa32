"""What fits: the weights of each model in each scheme against the memories of the devices."""

from __future__ import annotations

from collections.abc import Mapping

from qsim.plots.amounts import capacity_figure
from qsim.plots.names import and_list, chip_title, model_title, scheme_title

from ..figure import Drawing, Figure, Section
from ..result import StudyResult


def _capacity(result: StudyResult) -> Drawing | None:
    if not result.capacity:
        return None
    data: dict[str, dict[str, float]] = {}
    for model in dict.fromkeys(c.model for c in result.capacity):
        sizes = {c.scheme: c.weights_gbytes for c in result.capacity if c.model == model}
        data[model_title(model)] = _merged({scheme_title(s): gb for s, gb in sizes.items()})
    capacities = {chip_title(c.device): c.capacity_gbytes for c in result.capacity}
    model = result.capacity[-1].model
    one = [c for c in result.capacity if c.model == model]
    fits = {
        s: [c.device for c in one if c.scheme == s and c.devices_needed == 1]
        for s in dict.fromkeys(c.scheme for c in one)
    }
    least = min(one, key=lambda c: c.weights_gbytes)
    base = one[0].scheme
    homes = {s: "one " + and_list(fits[s]) if fits[s] else "no device alone" for s in (base, least.scheme)}
    says = (
        f"{model_title(model)} in {scheme_title(base)} fits on {homes[base]}; in {scheme_title(least.scheme)} on "
        f"{homes[least.scheme]}. Dashed: memory of a "
        "device, which weights, cache and reserve must share."
    )
    return Drawing(title="Size of the weights against memories", says=says,
                   draw=lambda: capacity_figure(data, capacities))  # fmt: skip


def _merged(sizes: Mapping[str, float]) -> dict[str, float]:
    """Schemes of the same size (to 1 %) on one line."""
    out: dict[str, float] = {}
    groups: list[tuple[float, list[str]]] = []
    for scheme, gb in sizes.items():
        for value, names in groups:
            if abs(gb / value - 1) < 0.01:
                names.append(scheme)
                break
        else:
            groups.append((gb, [scheme]))
    for value, names in groups:
        out[names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "")] = value
    return out


SECTION = Section(name="fits", title="What fits", order=6, template="fits.html")
FIGURES = (Figure(name="what_fits", section="fits", make=_capacity),)
