"""Building the calibrations of the tables of 2026: products and attention of every device, engine and version in files
of their own, the collectives and fused mixtures of every device, and the power of three."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from qsim.files import write_text

from ..calibration.collectives import collective_toml
from ..calibration.fitted import Mixture, Parameters
from ..calibration.mixtures import mixture_lines
from ..calibration.store import parameters_toml
from . import sources
from .attention_2026 import attention_rows, attention_settings, attention_tables
from .collectives_2026 import collectives
from .fit import fit_and_judge
from .moe_2026 import moe
from .power import power_files
from .tables_2026 import CITATION, DEVICES, TABLES, Table, device_of, mine, product_rows, product_settings


def products(table: Any, which: Table) -> dict[str, Parameters]:
    """Product kernels of one table, judged on shapes (N, K) left out by hash."""
    out = {}
    for kernel in sorted(mine(table, which).kernel.unique()):
        rows = product_rows(table, which, kernel)
        name = f"{which.stack}_{kernel}"
        out[name] = fit_and_judge(rows, name, product_settings(rows), device_of(which).compute.units)
    return out


def attention(table: Any, which: Table) -> dict[str, Parameters]:
    """Attention kernels of one table, judged on head counts left out by hash (latent attention: heads and batch)."""
    out = {}
    for name, part in attention_tables(table, which).items():
        rows = attention_rows(part, device_of(which))
        settings = attention_settings(rows, "prefill" if name.endswith("prefill") else "decode")
        out[name] = fit_and_judge(rows, name, settings, None)
    return out


def _short(device: str) -> str:
    value = DEVICES[device]
    return {"a100-sxm-80gb": "a100", "h100-sxm": "h100"}.get(value, value)


def _head(engine: str, version: str, held_out: str) -> list[str]:
    return [
        "[provenance]", f'source = "{CITATION}"', f'engine = "{engine}"', f'version = "{version}"', "year = 2026",
        f'stack = "{engine} {version}"', f'held_out = "{held_out}"', "",
    ]  # fmt: skip


def _mixture_toml(m: Mixture) -> str:
    named = replace(m.roofline, kernel=f'"{m.roofline.kernel}"')
    return parameters_toml("moe", named, mixture_lines(m))


def _texts(data: Path, device: str | None, kinds: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Name and lines of every file."""
    read = dict.fromkeys((*kinds, *(("gemm", "attention") if "power" in kinds else ())))
    tables = {kind: sources.data_table(data, f"measured_{kind}_2026") for kind in read if kind != "power"}
    for which in TABLES:
        if device not in (None, DEVICES[which.device]):
            continue
        if "gemm" in kinds:
            head = _head(which.engine, which.version, "five parts of the shapes (N, K), by hash")
            parts = [parameters_toml("kernels", p) for p in products(tables["gemm"], which).values()]
            yield f"{_short(which.device)}.{which.stack}.toml", [*head, *parts]
        if "attention" in kinds and (found := attention(tables["attention"], which)):
            head = _head(which.engine, which.version, "five parts of the head counts, by hash")
            parts = [parameters_toml("attention", replace(p, kernel=f'"{name}"')) for name, p in found.items()]
            yield f"{_short(which.device)}.{which.stack}.attention.toml", [*head, *parts]
    for name, value in DEVICES.items():
        if "collectives" in kinds and device in (None, value) and (curves := collectives(tables["collectives"], name)):
            head = _head("several", "see each", "every size left out in turn")
            yield f"{_short(name)}.collectives.toml", [*head, *(collective_toml(c) for c in curves)]
        if "moe" in kinds and device in (None, value) and (mixtures := moe(tables["moe"], name)):
            head = _head(
                "several", "the newest of each", "five parts of the layers (hidden, inter, topk, experts), by hash"
            )
            yield f"{_short(name)}.moe.toml", [*head, *map(_mixture_toml, mixtures.values())]
    if "power" in kinds:
        yield from power_files(tables["gemm"], tables["attention"], device)


KINDS = ("gemm", "attention", "collectives", "moe", "power")


def build_2026(folder: Path, data: Path, device: str | None = None, kinds: tuple[str, ...] = KINDS) -> list[Path]:
    """Write the calibrations of the tables of 2026 into `folder`.

    Arguments:
        device: a file of `hwmodels/devices`; None builds all.
        kinds: of tables, among `KINDS`.

    Raises:
        ValueError: the data folder lacks a table.
    """
    written = []
    for name, lines in _texts(data, device, kinds):
        written.append(folder / name)
        write_text(written[-1], "\n".join(lines).rstrip() + "\n")
    return written
