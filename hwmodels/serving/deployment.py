"""On how many devices a model is served, and how they share it."""

from __future__ import annotations

from dataclasses import dataclass

from qsim.errors import QsimError

from ..checks import check_count, check_number, check_positive


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """How devices share a model.

    Attributes:
        tensor_parallel: devices that share every layer.
        pipeline_parallel: stages that share the layers; as many groups of sequences are under way at once.
        attention_data_parallel: ranks that each have the attention of sequences of their own and share the experts.
        expert_parallel: devices over which whole experts are spread; the rest splits each expert.
        replicas: engines side by side, each with its share of the requests; of decode workers where `prefill` is given.
        prefill: the deployment of the prefill workers where prefill and decode run on separate devices; None for
            engines that do both.
        link_gbytes_per_s, link_latency_s: between a prefill and a decode worker, for the KV cache of one sequence.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    attention_data_parallel: int = 1
    expert_parallel: int = 1
    replicas: int = 1
    prefill: Deployment | None = None
    link_gbytes_per_s: float = 50.0
    link_latency_s: float = 0.005

    def __post_init__(self) -> None:
        check_count(
            tensor_parallel=self.tensor_parallel, pipeline_parallel=self.pipeline_parallel,
            attention_data_parallel=self.attention_data_parallel, expert_parallel=self.expert_parallel,
            replicas=self.replicas,
        )  # fmt: skip
        check_positive(link_gbytes_per_s=self.link_gbytes_per_s)
        check_number(link_gbytes_per_s=self.link_gbytes_per_s, link_latency_s=self.link_latency_s)
        sharing = self.tensor_parallel * self.attention_data_parallel
        if sharing % self.expert_parallel:
            raise QsimError(
                f"expert_parallel must divide the {sharing} devices of tensor_parallel x attention_data_parallel: got "
                f"{self.expert_parallel}"
            )
        if self.prefill is not None and self.prefill.prefill is not None:
            raise QsimError("the deployment of prefill workers must have no prefill workers of its own")

    @property
    def engine_gpus(self) -> int:
        """Devices of one engine."""
        return self.tensor_parallel * self.attention_data_parallel * self.pipeline_parallel

    @property
    def gpus(self) -> int:
        """All devices."""
        return self.replicas * self.engine_gpus + (self.prefill.gpus if self.prefill is not None else 0)

    @property
    def label(self) -> str:
        """A short text: `tp4`, `tp8 x2`, `tp4 dp2 ep8`."""
        parts = [f"tp{self.tensor_parallel}"]
        for name, count in (
            ("pp", self.pipeline_parallel), ("dp", self.attention_data_parallel), ("ep", self.expert_parallel),
        ):  # fmt: skip
            parts += [f"{name}{count}"] if count > 1 else []
        parts += [f"x{self.replicas}"] if self.replicas > 1 or self.prefill is not None else []
        text = " ".join(parts)
        return text if self.prefill is None else f"prefill {self.prefill.label}, decode {text}"
