"""Hugging Face ids find their architecture."""

from importlib import resources

import pytest

import hwmodels
from hwmodels.workload.architecture import architecture_names, get_architecture
from hwmodels.workload.hub import hub_ids, resolve_hub_id
from qsim.errors import QsimError


@pytest.mark.parametrize(
    ("hub_id", "name"),
    [("meta-llama/Meta-Llama-3-8B", "llama-3-8b"), ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
     ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"), ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
     ("QWEN/qwen3-30b-a3b", "qwen3-30b-a3b"), (" facebook/opt-125m ", "opt-125m")],
)  # fmt: skip
def test_a_hub_id_is_its_architecture(hub_id, name):
    assert get_architecture(hub_id) is get_architecture(name)
    assert hwmodels.predict("h100", hub_id, "bf16").architecture.name == name


def test_every_source_that_is_a_hub_id_is_listed_once():
    ids = hub_ids()
    assert len({i.lower() for i in ids}) == len(ids)
    folder = resources.files("hwmodels") / "architectures"
    for name in architecture_names():
        architecture = get_architecture(name)
        listed = (folder / f"{name}.toml").read_text(encoding="utf-8").count('    "')
        assert sum(value == name for value in ids.values()) == listed  # none is listed by two architectures
        source = architecture.source.partition(",")[0].partition(";")[0]
        if resolve_hub_id(source) is not None:
            assert resolve_hub_id(source) == name


def test_an_unknown_hub_id_is_answered_with_the_nearest_ids_and_the_way_out():
    with pytest.raises(QsimError, match=r"unknown model 'meta-llama/Llama-3-9B': .*meta-llama/.*config.json works too"):
        get_architecture("meta-llama/Llama-3-9B")
