"""Wrong command lines over all verbs: each is one sentence that names the culprit, exit code 2, and nothing is left."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.cli.verbs import VERBS

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256, "hidden_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 256,
}  # fmt: skip
CSV = "kernel,m,n,k,latency_s\n"

MISTAKES = r"""
formats '' | ''
formats µ | 'µ'
formats int99 | 'int99'
formats float999_e500m498 | float999_e500m498
formats e4m3 --plot dir | 'dir' is a directory
formats e4m3 --plot x.jpg | 'x.jpg'
formats e4m3 --plot nowhere/x.svg | nowhere does not exist
formats e4m3 --plot empty/x.svg | empty is not a folder
formats e4m3 --json --csv | --json and --csv
formats e4m3 int8 | e4m3 int8
formats --compare e4m3 int8 --scaled-max nan | nan
formats --compare e4m3 int8 --scaled-max 1e400 | inf
schemes none | 'none'
schemes '' | ''
schemes w4a16 w8a8 | w8a8
cast | NUMBER
cast x --to e4m3 | 'x'
cast 1 --to '' | --to
cast 1 --to e4m3 --rounding sideways | 'sideways'
cast 1 --to e4m3 --seed -1 --rounding stochastic | -1 is not in the range
cast 1 --to e4m3 --seed 1.5 --rounding stochastic | '1.5'
cast 1 --to e4m3 --random-bits 99 | 99
cast 1 --to e4m3 --random-value -7 | -7
cast nan --to int8 | int8
mma nothing | 'nothing'
mma --list nothing | 'nothing'
mma hopper.wgmma.f32.e4m3 -a 1 | -b
mma hopper.wgmma.f32.e4m3 -a 1,x -b 1,2 | 'x'
mma hopper.wgmma.f32.e4m3 -a 1,2 -b 1 | 2 and 1
mma hopper.wgmma.f32.e4m3 -a 1 -b 1 -c '1 2' | -c
mma hopper.wgmma.f32.e4m3 --example none | 'none'
mma hopper.mma.s32.s8 -a nan -b 1 | nan
mma hopper.mma.s32.s8 -a 1 -b 1 -c inf | inf
devices h101 | 'h101'
devices dir | 'dir'
devices deep.toml | deep.toml
devices binary.toml | binary.toml
devices broken.toml | broken.toml
devices named.toml | 'name'
devices nan.toml | memory.capacity_gbytes
devices asic --set x | 'x'
devices asic --set memory=3 | 'memory'
devices asic --set memory.bandwidth_gbytes_per_s= | 'memory.bandwidth_gbytes_per_s='
devices asic --set memory.bandwidth_gbytes_per_s=nan | nan
devices asic --set memory.bandwidth_gbytes_per_s=1e400 | inf
devices asic --set memory.bandwidth_gbytes_per_s=DEEP | memory.bandwidth_gbytes_per_s
predict | MODEL
predict llama-9 | 'llama-9'
predict dir | dir/config.json
predict broken.json | broken.json
predict deep.json | deep.json
predict list.json | list.json
predict binary.json | binary.json
predict negative.json | hidden_size
predict zero.json | num_attention_heads
predict huge.json | hidden_size
predict text.json | hidden_size
predict llama-3-8b --batch -1 | -1
predict llama-3-8b --batch 1.5 | '1.5'
predict llama-3-8b --context 0 | context
predict llama-3-8b --batch HUGE | --batch
predict llama-3-8b --context HUGE | --context
predict llama-3-8b --phase request --new-tokens HUGE | --new-tokens
sweep llama-3-8b --batch HUGE | --batch
sweep llama-3-8b --context 1:HUGE:1 | --context
predict llama-3-8b --tp 3 | tensor_parallel
predict llama-3-8b --tp 99999999999999999999999 | tensor_parallel
predict llama-3-8b --profile none | 'none'
predict llama-3-8b --kernel none | 'none'
predict llama-3-8b --attention none | 'none'
predict llama-3-8b --baseline none | 'none'
predict llama-3-8b --fidelity none | 'none'
predict llama-3-8b --scheme w999a16 | 'w999a16'
predict llama-3-8b --scheme w4a16-g0 | 0
predict llama-3-8b --device named.toml | 'name'
predict llama-3-8b --phase request --new-tokens -5 | -5
predict llama-3-8b --plot dir/x.bmp | 'dir/x.bmp'
roofline llama-3-8b --device none | 'none'
roofline llama-3-8b --batch 0 | batch
sweep llama-3-8b --batch 0 | '0'
sweep llama-3-8b --batch 1:2:0 | '1:2:0'
sweep llama-3-8b --batch 5:1 | '5:1'
sweep llama-3-8b --batch '' | ''
sweep llama-3-8b --context 1:99999999999999:1 | '1:99999999999999:1'
sweep llama-3-8b --field x.y=1 | x.y
sweep llama-3-8b --field =1 | '=1'
sweep llama-3-8b --field memory.bandwidth_gbytes_per_s=-1 | -1
sweep llama-3-8b --tornado --set memory.bandwidth_gbytes_per_s=0 | memory.bandwidth_gbytes_per_s
calibrate | CSV
calibrate good.csv | --device
calibrate good.csv --host | CSV
calibrate nowhere.csv --device h100 | nowhere.csv
calibrate dir --device h100 | dir
calibrate heads.csv --device h100 | 'kernel'
calibrate none.csv --device h100 | none.csv
calibrate text.csv --device h100 | text.csv
calibrate nan.csv --device h100 | nan.csv
calibrate quote.csv --device h100 | quote.csv
calibrate empty --device h100 | empty
calibrate binary.toml --device h100 | binary.toml
calibrate good.csv --device h1 | 'h1'
calibrate good.csv --device h100 --out nowhere/x.toml | nowhere
calibrate --host --out nowhere/x.toml | nowhere
calibrate --host --out dir | 'dir' is a directory
validate --data nowhere | 'nowhere'
validate --data dir | measured_gemm.csv
validate --out empty | 'empty' is a file
bench --shape 12 | '12'
bench --shape 0x0 | 0x0
bench --scheme none | 'none'
bench --batch nan | 'nan'
eval nowhere | nowhere
eval empty | empty
eval --text nowhere | 'nowhere'
eval --text dir | 'dir' is a directory
eval --text binary.toml | UTF-8
eval --window 0 | 0
eval --window 99999999999999999999999 | window
eval --protocol sliding --stride 0 | stride
eval --max-bytes -4 | -4
eval --scheme none | 'none'
eval --outliers nan | nan
eval --engine none | 'none'
eval --reference nowhere | nowhere
generate | PROMPT
generate '' | prompt
generate x --max-new-tokens -1 | -1
generate x --temperature nan | nan
generate x --temperature -1 | -1
generate x --top-p 0 | top_p
generate x --seed -1 | -1
generate x --model dir | dir
quantize | MODEL
quantize tiny | --out
quantize nowhere --out q | nowhere
quantize tiny --out empty | empty
quantize tiny --out q --method none | 'none'
quantize tiny --out q --scheme none | 'none'
quantize tiny --out q --layout none | none
quantize tiny --out q --calibration dir | 'dir' is a directory
quantize tiny --out q --calibration binary.toml | calibration text must be UTF-8
quantize tiny --out q --jobs 0 | --jobs
quantize tiny --out q --window 0 | window
quantize tiny --out q --windows 0 | windows
quantize tiny --out q --plot q.bmp | 'q.bmp'
quantize tiny --out q --json --csv | --json and --csv
quantize tiny --out q --method smoothquant --alpha much | 'much'
study --out empty | 'empty' is a file
study --file nowhere.toml | nowhere.toml
study --file dir | 'dir' is a directory
study --file binary.toml | binary.toml
study --file deep.toml | deep.toml
study --file broken.toml | broken.toml
study --file number.toml | number.toml
study --model list.json | list.json
study --model nowhere | 'nowhere'
study --device deep.toml | deep.toml
study --batch 0 | 0
study --max-loss nan | nan
study --max-loss inf | inf
study --method gptq | gptq
study --method magic:fp8 | --method
study --scheme none | 'none'
study --profile none | 'none'
study --text binary.toml | binary.toml
study --text empty | empty
study --calibration empty | empty
study none | 'none'
study diff a | B
study diff nowhere nowhere | nowhere
study diff dir dir | dir
study diff broken.json broken.json | broken.json
study diff deep.json deep.json | deep.json
study diff binary.json binary.json | binary.json
study diff list.json list.json | list.json
study render nowhere --out s | nowhere
study render broken.json --out s | broken.json
study render broken.json | --out
convert tiny | --out
convert none --out new | none
serve llama-3-8b --concurrency 4 --rate 3 | --concurrency and --rate
serve llama-3-8b --concurrency 4 --prompt gauss:3 | 'gauss:3'
serve llama-3-8b --trace none.csv | none.csv
plan llama-3-8b --rate 5 --ttft 1s --tpot 30 | '30'
explore --export nowhere/a.html | nowhere
explore --export dir | dir
explore --export a.html --port 80 | --port
explore --device h201 | 'h201'
explore --device broken.toml | broken.toml
explore --model negative.json | negative.json
explore --device h100 --device h200 --device l4 --device l40s | 4
evidence llama-9-8b | 'llama-9-8b'
evidence llama-3-8b --method magic | 'magic'
outliers nowhere | nowhere does not exist
convert tiny --out new --gguf-type q4_k_m | 'q4_k_m'
convert tiny --out new --layout plain --gguf-type q4_k | --gguf-type
convert tiny --out new --dtype float16 --gguf-type q4_k | q4_k and float16
convert tiny --out new --layout awq | awq
convert tiny --out nowhere/a.gguf | nowhere
quantize tiny --out new --gguf-type q4_k | got q4_k; use rtn
quantize tiny --out new --gguf-type q4_0 --scheme w8a8 | w8a8
quantize tiny --out new --gguf-type q4_0 --layout awq | awq
formts | 'formts'
"""
"""Command line | a part of the sentence that names the culprit."""

CASES = [tuple(part.strip() for part in line.rsplit(" | ", 1)) for line in MISTAKES.strip().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every wrong kind."""
    root = tmp_path_factory.mktemp("mistakes")
    (root / "dir").mkdir()
    texts = {
        "empty": "", "broken.json": '{"a": ', "deep.json": "[" * 5000 + "]" * 5000, "list.json": "[1]",
        "negative.json": json.dumps({**CONFIG, "hidden_size": -128}), "broken.toml": "a = ",
        "number.toml": "quality = 3",
        "zero.json": json.dumps({**CONFIG, "num_attention_heads": 0}), "named.toml": "name = 1",
        "huge.json": json.dumps({**CONFIG, "hidden_size": 10**400}), "nan.toml": "[memory]\ncapacity_gbytes = nan",
        "text.json": json.dumps({**CONFIG, "hidden_size": "x"}), "deep.toml": "a = " + "[" * 3000 + "]" * 3000,
        "good.csv": CSV + "cublas_bf16,1,2048,4096,1e-5\n" * 10, "heads.csv": "a,b\n1,2\n", "none.csv": CSV,
        "text.csv": CSV + "cublas_bf16,1,2048,x,1e-5\n" * 10, "quote.csv": 'kernel,m\n"open',
        "nan.csv": CSV + "cublas_bf16,1,2048,4096,nan\n" * 10,
    }  # fmt: skip
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
    for name in ("binary.toml", "binary.json"):
        (root / name).write_bytes(b"\xff\xfe\x00bad")
    return root


@pytest.mark.parametrize(("line", "culprit"), CASES, ids=[line for line, _ in CASES])
def test_a_mistake_is_one_sentence_that_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, culprit: str
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(os.walk("."))
    args = [arg.replace("DEEP", "[" * 3000).replace("HUGE", "9" * 400) for arg in shlex.split(line)]
    result = CliRunner().invoke(main, args, prog_name="qsim", env={"COLUMNS": "80"})
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (said,) = [one for one in result.stderr.splitlines() if not one.startswith("calibrating, 0 s: ")]
    assert said.startswith("qsim: ")
    assert culprit.removesuffix("''") in said
    assert sorted(os.walk(".")) == before


def test_every_verb_is_asked_wrongly() -> None:
    assert len(CASES) >= 60
    assert set(VERBS) <= {line.split()[0] for line, _ in CASES}


def test_a_refusal_of_the_library_names_the_flags_of_the_verb():
    """Whatever argument a flag sets is called by the flag; other words stay."""
    from qsim.cli.verbs import in_flags

    params = [click.Option(["--force", "--overwrite", "overwrite"], is_flag=True), click.Option(["--dtype"])]
    said = in_flags("a exists: overwrite=True, not overwrite=False, dtype=True, ragged=True", params)
    assert said == "a exists: --force, not no --force, dtype=True, ragged=True"
