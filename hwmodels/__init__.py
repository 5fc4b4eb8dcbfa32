"""hwmodels: how long low-precision inference takes on a given device, what bounds it, and how sure that is.

`import hwmodels` is light; the names below load their part on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hwmodels.former import forward

_LAZY = {
    "Device": "hwmodels.device.device",
    "get_device": "hwmodels.device.load",
    "device_names": "hwmodels.device.load",
    "register_device": "hwmodels.device.load",
    "Architecture": "hwmodels.workload.architecture",
    "get_architecture": "hwmodels.workload.architecture",
    "architecture_names": "hwmodels.workload.architecture",
    "list_devices": "hwmodels.listing",
    "list_models": "hwmodels.listing",
    "kernel_families": "hwmodels.listing",
    "KernelFamily": "hwmodels.timing.family",
    "AttentionFamily": "hwmodels.timing.family",
    "register_kernels": "hwmodels.timing.families",
    "read_parameters": "hwmodels.calibration.store",
    "Roofline": "hwmodels.limits",
    "roofline": "hwmodels.limits",
    "kv_cache_bytes": "hwmodels.workload.footprint",
    "state_bytes": "hwmodels.workload.footprint",
    "gemm": "hwmodels.timing.kernel",
    "gemm_time": "hwmodels.timing.kernel",
    "gemm_power": "hwmodels.timing.power",
    "moe_kernels": "hwmodels.timing.moe",
    "moe_time": "hwmodels.timing.moe",
    "attention": "hwmodels.timing.attention_kernel",
    "attention_time": "hwmodels.timing.attention_kernel",
    "predict": "hwmodels.prediction",
    "speedup": "hwmodels.predicted",
    "Prediction": "hwmodels.predicted",
    "predict_request": "hwmodels.request",
    "throughput": "hwmodels.request",
    "serve": "hwmodels.serving.served",
    "Served": "hwmodels.serving.served",
    "Workload": "hwmodels.serving.workload",
    "EnginePolicy": "hwmodels.serving.policy",
    "Deployment": "hwmodels.serving.deployment",
    "fit": "hwmodels.fitting.build",
    "sweep": "hwmodels.whatif",
    "pareto": "hwmodels.whatif",
    "break_even": "hwmodels.breakeven",
    "tornado": "hwmodels.whatif",
}
if TYPE_CHECKING:
    from hwmodels.breakeven import break_even
    from hwmodels.limits import Roofline, roofline
    from hwmodels.listing import kernel_families, list_devices, list_models
    from hwmodels.predicted import Prediction, speedup
    from hwmodels.prediction import predict
    from hwmodels.request import predict_request, throughput
    from hwmodels.whatif import pareto, sweep, tornado

    from .calibration.store import read_parameters
    from .device.device import Device
    from .device.load import device_names, get_device, register_device
    from .fitting.build import fit
    from .serving.deployment import Deployment
    from .serving.policy import EnginePolicy
    from .serving.served import Served, serve
    from .serving.workload import Workload
    from .timing.attention_kernel import attention, attention_time
    from .timing.families import register_kernels
    from .timing.family import AttentionFamily, KernelFamily
    from .timing.kernel import gemm, gemm_time
    from .timing.moe import moe_kernels, moe_time
    from .timing.power import gemm_power
    from .workload.architecture import Architecture, architecture_names, get_architecture
    from .workload.footprint import kv_cache_bytes, state_bytes

__all__ = [
    "Architecture", "AttentionFamily", "Deployment", "Device", "EnginePolicy", "KernelFamily", "Prediction",
    "Roofline", "Served", "Workload", "architecture_names", "attention", "attention_time", "break_even",
    "device_names", "fit", "gemm", "gemm_power", "gemm_time", "get_architecture", "get_device", "kernel_families",
    "kv_cache_bytes", "list_devices", "list_models", "moe_kernels", "moe_time", "pareto", "predict", "predict_request",
    "read_parameters", "register_device", "register_kernels", "roofline", "serve", "speedup", "state_bytes", "sweep",
    "throughput", "tornado",
]  # fmt: skip


forward()
if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            value = getattr(importlib.import_module(_LAZY[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'hwmodels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(n for n in globals() if n.startswith("__"))})
