"""The verbs that predict, from the command line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import click.testing
import pytest

import hwmodels
from qsim.cli import main


def run(*args: str, code: int = 0) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, list(args), prog_name="qsim", env={"COLUMNS": "150"})
    assert result.exit_code == code, result.output
    return result


def test_devices_lists_compares_and_cites() -> None:
    out = run("devices").output
    assert all(name in out for name in ("h100-sxm", "sn40l-like", "mi300x"))
    rows = json.loads(run("devices", "h100-sxm", "l40s", "--json").output)
    assert [r["fp8"] for r in rows] == [1978.8, 733.0]
    assert "hopper.wgmma.f32.e4m3" in run("devices", "h100", "--sources").output
    assert (
        json.loads(run("devices", "asic", "--set", "memory.bandwidth_gbytes_per_s=8000", "--json").output)[0]["GB/s"]
        == 8000
    )


def test_predict_as_the_readme_shows_it() -> None:
    out = run(
        "predict", "llama-3-70b", "--device", "h100-sxm", "--scheme", "fp8-tensor", "--batch", "16", "--context", "4096"
    ).output
    assert out.startswith("does not fit: 97.6 GB on a 80 GB device, 17.6 GB short; would fit: ")
    assert "80 % band" in out
    assert "lm_head" in out


def test_predict_in_other_forms(tmp_path: Path) -> None:
    found = json.loads(
        run("predict", "llama-3-8b", "--device", "h200", "--baseline", "bf16", "--scheme", "fp8", "--json").output
    )
    assert found["speedup_low"] < found["speedup"] < found["speedup_high"]
    assert {op["operator"] for op in found["operators"]} >= {"qkv", "attention"}
    rows = list(csv.DictReader(io.StringIO(run("predict", "llama-3-8b", "--csv").output)))
    assert rows[0]["operator"] == "norm_qkv"
    request = json.loads(run("predict", "llama-3-8b", "--phase", "request", "--batch", "4", "--json").output)
    assert request["running_batch"] == request["batch"]
    figure = tmp_path / "parts.png"
    run("predict", "llama-3-8b", "--plot", str(figure))
    assert figure.stat().st_size > 1000


def test_a_scheme_with_zero_points_says_what_the_symmetric_one_takes() -> None:
    case = ("predict", "llama-3-70b", "--device", "h200", "--batch", "1", "--context", "2048", "--scheme")
    told = run(*case, "w4a16-g128").output
    symmetric = hwmodels.predict("h200", "llama-3-70b", "w4a16-g128-sym", "decode", 1, 2048)
    assert 12e-3 < symmetric.time_s < 14e-3
    assert symmetric.low_s > 10e-3
    assert symmetric.high_s < 16e-3
    (line,) = (line for line in told.splitlines() if "has zero points" in line)
    assert f"w4a16-g128-sym, which is GPTQ's default and vLLM's W4A16, takes {1e3 * symmetric.time_s:.4g} ms" in line
    assert "has zero points" not in run(*case, "w4a16-g128-sym").output
    assert "takes 13.29 ms" in run(*case, "W4A16_ASYM").output


def test_experts_dealt_out_are_predicted_from_the_command_line() -> None:
    found = run("predict", "deepseek-v3", "--device", "h200", "--scheme", "fp8-block128", "--ep", "16", "--batch", "8")
    text = found.output
    assert "16 devices with experts over 16" in text
    assert "16 groups of 1, each with this batch, exchange tokens by NCCL's all-to-all" in text
    assert "dispatch" in text


def test_a_request_names_its_case_and_says_what_is_computed() -> None:
    out = run("predict", "llama-3-8b", "--device", "l40s", "--phase", "request", "--batch", "240").output
    assert out.startswith("llama-3-8b bf16 on l40s: 240 requests of 2048 + 256 tokens, profile cuda_graph")
    assert "a place is filled again as soon as it is free" in out
    assert "prompts at once" in out


def test_a_sweep_over_tensor_parallel_sizes_shows_them() -> None:
    rows = json.loads(run("sweep", "llama-3-8b", "--tp", "1", "--tp", "2", "--batch", "1", "--json").output)
    assert [r["tensor_parallel"] for r in rows] == [1, 2]
    assert rows[0]["time_s"] > rows[1]["time_s"]
    out = run("sweep", "llama-3-8b", "--tp", "1", "--tp", "2", "--batch", "1").output
    assert "\nTP " in out
    assert "TP 4" in run("sweep", "llama-3-8b", "--tp", "4", "--batch", "1").output


def test_roofline_and_sweep(tmp_path: Path) -> None:
    out = run("roofline", "llama-3-8b", "--device", "h100-sxm", "--scheme", "fp8-tensor").output
    assert "ridge at 591 operations per byte" in out
    figure = tmp_path / "roof.svg"
    run("roofline", "llama-3-8b", "--plot", str(figure))
    assert figure.is_file()
    rows = list(
        csv.DictReader(
            io.StringIO(run("sweep", "llama-3-8b", "--batch", "1:8", "--context", "512,1024", "--csv").output)
        )
    )
    assert len(rows) == 8
    front = json.loads(
        run(
            "sweep", "llama-3-8b", "--batch", "1:64", "--scheme", "bf16", "--scheme", "fp8-tensor", "--pareto", "--json"
        ).output
    )
    assert {r["scheme"] for r in front} == {"fp8-tensor"}
    assert "bandwidth" in run("sweep", "llama-3-8b", "--tornado", "--plot", str(tmp_path / "t.png")).output
    run("sweep", "llama-3-8b", "--batch", "1:4", "--plot", str(tmp_path / "p.png"))
    fields = json.loads(run("sweep", "llama-3-8b", "--device", "asic", "--batch", "1", "--field",
                            "memory.bandwidth_gbytes_per_s=2000,4000", "--json").output)  # fmt: skip
    assert len(fields) == 2


def test_calibrate_fits_a_table(tmp_path: Path) -> None:
    lines = ["kernel,m,n,k,latency_s"]
    for n in (2048, 4096, 8192, 16384):
        for m in (1, 8, 64, 512, 4096):
            lines.append(f"cublas_bf16,{m},{n},4096,{5e-6 + 2 * n * 4096 / 2.8e12 + 2 * m * n * 4096 / 7e14}")
    path, out = tmp_path / "t.csv", tmp_path / "out.toml"
    path.write_text("\n".join(lines))
    rows = json.loads(run("calibrate", str(path), "--device", "h100", "--out", str(out), "--json").stdout)
    assert rows[0]["held_out_mape"] < 0.2
    assert "[kernels.cublas_bf16]" in out.read_text()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("predict", "llama-9"), "unknown model"),
        (("predict", "llama-3-8b", "--device", "h900"), "unknown device"),
        (("predict", "llama-3-8b", "--scheme", "fp9"), "unknown scheme"),
        (("predict", "llama-3-8b", "--device", "a100", "--scheme", "fp8-tensor", "--strict"), "no path for fp8"),
        (("predict", "llama-3-8b", "--batch", "0"), "batch must be at least 1"),
        (("predict", "llama-3-8b", "--set", "memory.bandwidth_gbytes_per_s=-3"), "must be positive"),
        (("predict", "llama-3-8b", "--json", "--csv"), "both want stdout"),
        (("sweep", "llama-3-8b", "--batch", "x"), "not a list like"),
        (("sweep", "llama-3-8b", "--batch", "1:2:3:4"), "not a list like"),
        (("sweep", "llama-3-8b", "--batch", "1:999999999:1"), "more than 10000 numbers"),
        (("predict", "llama-3-8b", "--phase", "request", "--baseline", "bf16"), "does not take it"),
        (("predict", "llama-3-8b", "--phase", "request", "--plot", "x.svg"), "does not take it"),
        (("predict", "llama-3-8b", "--new-tokens", "5"), "--phase request only"),
        (("sweep", "llama-3-8b", "--field", "memory"), "KEY=V,V"),
        (("calibrate",), "a CSV, --serving or --host"),
        (("calibrate", "nowhere.csv", "--device", "h100"), "does not exist"),
        (("validate", "--data", "nowhere"), "does not exist"),
    ],
)
def test_a_users_mistake_is_one_sentence(args: tuple[str, ...], says: str) -> None:
    out = run(*args, code=2).output
    assert says in out
    assert "Traceback" not in out
