"""The walk of `quantize_model` through a model: watch a block's inputs, quantise its Linears, go on to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from qsim.models import AttentionMath, Model
from qsim.notes import Note
from qsim.scheme import shares_scale

from .calibration import Calibration, HiddenStates, InputStatistics, LayerInputs
from .folding import Fold, divided_source
from .kv import KVRange, kv_scales, stores_kv
from .passes import Half, for_many_tokens, through_block
from .recipe import BlockView, LayerResult, Recipe
from .record import LayerRecord
from .registry import get_method
from .solve import outcome, solve_layer
from .store import Store

F32 = np.float32
Progress: TypeAlias = Callable[[float, float, str], None]
"""Called with work done, work in all (floating-point operations) and what is being done."""

_ATTENTION = 2  # groups of a block that are attention's: queries, keys and values, and its output
JOINT_ROWS = 256  # sampled inputs for the joint error of weights and activations


class Run:
    """The state of a run: the model as far as it is quantised, and what is known of the block at hand."""

    def __init__(
        self, source: Model, recipe: Recipe, calibration: Calibration | None, names: list[str], store: Store,
        true_sequential: bool, n_jobs: int | None, progress: Progress | None,
    ) -> None:  # fmt: skip
        self.source, self.current, self.recipe, self.calibration = source, source, recipe, calibration
        self.names = dict.fromkeys(names)  # looked up for each of thousands of experts
        self.store, self.n_jobs, self.progress = store, n_jobs, progress
        self.sequential = true_sequential and recipe.quantised_prefix
        self.records: dict[str, LayerRecord] = {}
        self.kv: dict[str, float] = {}
        self.resumed = 0
        self.done = 0.0
        self._block_of = {
            n: i for i in range(source.config.num_hidden_layers) for g in source.block_linears(i) for n in g
        }
        self.hidden: HiddenStates | None = None
        self.original: HiddenStates | None = None
        self.total = self._all_work()

    # --- work, for progress -----------------------------------------------------------------------------------

    def _all_work(self) -> float:
        blocks = range(self.source.config.num_hidden_layers)
        return sum(self._layer_work(n) for n in self.names) + sum(self._pass_work(i) for i in blocks)

    def _layer_work(self, name: str) -> float:
        n, k = self.source.linears()[name].weight.shape
        return get_method(self.recipe.method).work(n, k)

    def _pass_work(self, i: int) -> float:
        if self.calibration is None:
            return 0.0
        sizes = [sum(self._size(n) for g in stage for n in g) for stage in self.source.block_stages(i)]
        once = 2.0 * self.calibration.token_count * sum(sizes)
        if not self.recipe.quantised_prefix:
            return once
        # in sequence: to the input of attention's output, to that of the MLP's, and through each half once
        seen = [sizes[0], sizes[2]] if self.sequential else [sum(sizes[:-1])]
        return once + 2.0 * self.calibration.token_count * sum(seen)

    def _report(self, work: float, what: str) -> None:
        self.done += work
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total, what)

    # --- the walk ---------------------------------------------------------------------------------------------

    def open(self, folder: Path, stack: ExitStack) -> None:
        """Embed the calibration text into the file of hidden states."""
        assert self.calibration is not None
        size = self.source.config.hidden_size
        self.hidden = HiddenStates(folder, "hidden", self.calibration, size)
        stack.callback(self.hidden.close)
        if self.recipe.correction:
            self.original = HiddenStates(folder, "original", self.calibration, size)
            stack.callback(self.original.close)
        for batch in self.calibration.batches():
            self.hidden[batch] = first = self.source.embed(self.calibration.tokens[batch])
            if self.original is not None:
                self.original[batch] = first

    def all_blocks(self) -> None:
        """Quantise every block in turn."""
        for i in range(self.source.config.num_hidden_layers):
            before = self.done
            if self.recipe.quantised_prefix:
                self._block_by_groups(i)
            else:
                self._block_at_once(i)
            # a resumed or unobserved block did less than was reckoned
            own = sum(self._layer_work(n) for n in self._of_block(i)) + self._pass_work(i)
            self._report(max(before + own - self.done, 0.0), f"block {i} finished")

    def _routers(self, i: int) -> list[list[str]]:
        """The router of a block with experts as a group of its own: it sees what all experts together see."""
        found = {r for source, _ in self.source.fold_groups(i) for r in self.source.float_readers(source)}
        return [[name] for name in sorted(found)]

    def _of_block(self, i: int) -> list[str]:
        return [n for g in self.source.block_linears(i) for n in g if n in self.names]

    def _block_by_groups(self, i: int) -> None:
        steps = self.source.block_stages(i) if self.sequential else [self.source.block_linears(i)]
        known = self.store.block(i)
        kv = None if known or not stores_kv(self.recipe.scheme) else KVRange(self.source, i)
        half: Half = None
        for n, step in enumerate(steps):
            if (
                n == _ATTENTION and not self.source.config.use_parallel_residual
            ):  # what is behind attention need not go through it again
                self._advance(i, self.current, "attention")
                half = "mlp"
            wanted = [n for g in step for n in g if n in self.names]
            finished = self._finished(wanted)
            left = [n for n in wanted if n not in finished]
            if left or (kv is not None and step is steps[0]):
                inputs = self._observe(i, step, kv if step is steps[0] else None, half=half)
                finished |= self._solve(left, inputs, {})
            self._put(finished, {})
        scales = known[1] if known else {} if kv is None else kv_scales(kv, self.recipe.scheme.kv_cache)
        self._keep_block(i, [], scales, new=known is None)
        self._advance(i, self.current, half)

    def _block_at_once(self, i: int) -> None:
        wanted = self._of_block(i)
        finished, known = self._finished(wanted), self.store.block(i)
        left = [n for n in wanted if n not in finished]
        if not left and known is not None:
            self._put(finished, self._scales_of(known[0]), known[0])
            self._keep_block(i, known[0], known[1], new=False)
            self._advance(i, self.source)
            return
        kv = KVRange(self.source, i) if stores_kv(self.recipe.scheme) else None
        inputs: dict[str, LayerInputs] = {}
        view_hidden = self._view_hidden()
        if self.calibration is not None:
            inputs = self._observe(i, [*self.source.block_linears(i), *self._routers(i)], kv, advance=True)
        folds, scales = known or ([], {} if kv is None else kv_scales(kv, self.recipe.scheme.kv_cache))
        if known is None and self.recipe.fold is not None and wanted:
            self._report(0.0, f"block {i}: searching scales")
            view = BlockView(model=self.source, index=i, inputs=inputs, hidden=view_hidden)
            folds = [f for f in self.recipe.fold(view) if all(n in self.names for n in f.names)]
        if known is None:
            self._keep_block(i, folds, scales, new=True)
        else:
            self.kv |= scales
        finished |= self._solve(left, inputs, self._scales_of(folds), self._divided(folds))
        self._put(finished, self._scales_of(folds), folds)

    def finish(self, fp8_attention: bool) -> Model:
        """The quantised model with its KV scales and notes."""
        scheme = self.recipe.scheme
        label = f"{self.recipe.method} {scheme.name or scheme.weight.format.name}"
        fallen = [r for r in self.records.values() if r.fallback and r.tokens != 0]
        notes: list[str] = []
        if any("shared_scale_ratio" in r.details for r in self.records.values()):
            notes.append("layers that engines fuse (q k v, gate up) share one tensor scale, the largest of their own")
        unseen = [r.layer for r in self.records.values() if r.tokens == 0]
        if unseen:
            more = f" and {len(unseen) - 1} more" if len(unseen) > 1 else ""
            text = f"no calibration token reached {unseen[0]}{more}: rounded to nearest"
            notes.append(Note("unseen_experts", text, unseen[0]))
        notes += [f"{r.layer}: {r.fallback} stood in for {r.method}" for r in fallen]
        settings: dict[str, Any] = {}
        if fp8_attention:
            settings["attention"] = AttentionMath(operand_format="float8_e4m3fn")
        return self.current.replace(
            tensors={n: np.array([s], F32) for n, s in self.kv.items()},
            kv_cache=scheme.kv_cache if scheme.kv_cache.is_quantized else None,
            name=f"{self.source.name} {label}".strip(), notes=(*self.current.own_notes, *notes), **settings,
        )  # fmt: skip

    # --- one step ---------------------------------------------------------------------------------------------

    def _observe(
        self, i: int, groups: Sequence[Sequence[str]], kv: KVRange | None, *, half: Half = None, advance: bool = False
    ) -> dict[str, LayerInputs]:
        """Statistics of the inputs of some groups of block i, as the model so far gives them.

        With `advance` the hidden states behind the block are kept, too; without, a window is left as soon as the last
        of the groups has been seen (no expert is certain to be). With half "mlp" hidden states are behind attention
        already.
        """
        assert self.calibration is not None
        assert self.hidden is not None
        recipe, leaders, experts = self.recipe, [g[0] for g in groups], self._experts_of(i)
        # which tokens reach an expert can differ between the original and the quantised model: no correction there
        stats = {
            g[0]: InputStatistics(
                self.source.input_size(g[0]), hessian=recipe.hessian,
                correction=recipe.correction and g[0] not in experts,
                moments=True, sample=self._sample_rows(),  # methods that need none: the record tells of outliers
                expected_tokens=self._expected_tokens(g[0] in experts), name=g[0],
            )
            for g in groups
        }  # fmt: skip
        work = 2.0 * (self._block_size(i) if advance else self._before(i, leaders[-1], half))
        model, last = for_many_tokens(self.current), None if advance or experts else leaders[-1]
        for batch in self.calibration.batches():
            others: dict[str, np.ndarray] = {}
            if self.original is not None:
                exact = [leader for leader in leaders if leader not in experts]
                _, others = through_block(self.source, i, self.original[batch], exact, half=half, last=last)
            try:
                out, seen = through_block(model, i, self.hidden[batch], leaders, half=half, last=last)
            except ValueError:  # of a norm; the Linear whose input was NaN first is named instead
                model.block(i, self.hidden[batch], half=half, observe=lambda name, x: stats[name].update(x)
                            if name in stats else None)  # fmt: skip
                raise
            for group in groups:
                x = seen[group[0]]
                stats[group[0]].update(x, others.get(group[0]))
                if kv is not None:
                    for name in group:
                        kv.update(name, x)
            if advance:
                self.hidden[batch] = out
            self._report(work * self.calibration.tokens[batch].size, f"block {i}: watching {_short(leaders)}")
        found = {leader: s.result() for leader, s in stats.items()}
        return {name: found[g[0]] for g in groups for name in g}

    def _experts_of(self, i: int) -> set[str]:
        """The Linears of block i that only some tokens reach."""
        stages = self.source.block_stages(i)
        sparse = self.source.config.sparse_layers[i]
        return {n for stage in stages[_ATTENTION:] for g in stage for n in g} if sparse else set()

    def _expected_tokens(self, expert: bool) -> int:
        """Tokens that a Linear will see; of an expert those of an even share."""
        assert self.calibration is not None
        config, tokens = self.source.config, self.calibration.token_count
        return max(tokens * config.num_experts_per_tok // config.num_experts, 1) if expert else tokens

    def _before(self, i: int, leader: str, half: Half) -> int:
        """Weights that are multiplied before a group is reached."""
        total = 0
        for group in self._groups(i, half):
            if leader in group:
                break
            total += sum(map(self._size, group))
        return total

    def _groups(self, i: int, half: Half) -> list[list[str]]:
        """The groups of a block, or of a half of it."""
        groups = self.source.block_linears(i)
        return {None: groups, "attention": groups[:_ATTENTION], "mlp": groups[_ATTENTION:]}[half]

    def _size(self, name: str) -> int:
        n, k = self.source.linears()[name].weight.shape
        return n * k

    def _block_size(self, i: int, half: Half = None) -> int:
        return sum(self._size(n) for group in self._groups(i, half) for n in group)

    def _advance(self, i: int, model: Model, half: Half = None) -> None:
        """Hidden states behind block i or a half of it, through `model`; the original ones through the original."""
        if self.calibration is None:
            return
        assert self.hidden is not None
        last = i + 1 == self.source.config.num_hidden_layers and half != "attention"
        work = 2.0 * self._block_size(i, half)
        model = for_many_tokens(model)
        for batch in self.calibration.batches():
            if not last:
                self.hidden[batch] = through_block(model, i, self.hidden[batch], half=half)[0]
                if self.original is not None:
                    self.original[batch] = through_block(self.source, i, self.original[batch], half=half)[0]
            self._report(work * self.calibration.tokens[batch].size, f"block {i}: on to the next")

    def _view_hidden(self) -> np.ndarray:
        if self.hidden is None or self.calibration is None or not self.recipe.view_windows:
            return np.zeros((0, 0, 0), F32)
        count = min(self.recipe.view_windows, self.calibration.windows)
        return self.hidden[np.unique(np.linspace(0, self.calibration.windows - 1, count).round().astype(int))]

    def _sample_rows(self) -> int:
        joint = JOINT_ROWS if self.recipe.scheme.activation.is_quantized else 0
        return max(self.recipe.sample, joint)

    def _finished(self, names: Sequence[str]) -> dict[str, LayerResult]:
        out = {name: found for name in names if (found := self.store.layer(name)) is not None}
        self.resumed += len(out)
        return out

    def _solve(
        self, names: Sequence[str], inputs: Mapping[str, LayerInputs], scales: Mapping[str, np.ndarray],
        divided: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, LayerResult]:  # fmt: skip
        """Quantise some layers side by side; each is kept as soon as it is finished."""
        if not names:
            return {}
        from joblib import Parallel, delayed

        weights = {n: (divided or {}).get(f"{n}.weight", self.source.tensors[f"{n}.weight"]) for n in names}
        parallel = Parallel(n_jobs=self.n_jobs, prefer="threads", return_as="generator_unordered")
        task = delayed(partial(solve_layer, self.recipe, parallel.n_jobs != 1))
        shared = self._shared_scales(names, scales, divided or {})
        jobs = (task(weights[n], inputs.get(n), scales.get(n), n, shared.get(n)) for n in names)
        out = {}
        for name, q, record in parallel(jobs):
            self.store.put_layer(name, q, record)
            out[name] = (q, record)
            self._report(self._layer_work(name), f"{name}: {outcome(record)}")
        return out

    def _shared_scales(
        self, names: Sequence[str], scales: Mapping[str, np.ndarray], divided: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """The tensor scales of layers that engines fuse, by layer. They follow from the source's weights alone, so
        that a run that goes on finds the same ones for what is left."""
        out: dict[str, float] = {}
        if self.recipe.shared_scale is None or not shares_scale(self.recipe.scheme.weight):
            return out
        for i in {self._block_of[name] for name in names}:
            for group in self.source.block_linears(i):
                fused = [n for n in group if n in self.names]
                if len(fused) < 2 or not any(n in names for n in fused):
                    continue
                weights: list[Any] = [divided.get(f"{n}.weight", self.source.tensors[f"{n}.weight"]) for n in fused]
                found = self.recipe.shared_scale([w if n not in scales else w * scales[n]
                                                  for n, w in zip(fused, weights, strict=True)])  # fmt: skip
                out |= {} if found is None else dict.fromkeys(fused, found)
        return out

    def _put(
        self, finished: Mapping[str, LayerResult], scales: Mapping[str, np.ndarray], folds: Sequence[Fold] = ()
    ) -> None:
        tensors: dict[str, Any] = {
            k: v for k, v in self._divided(folds).items() if k.removesuffix(".weight") not in finished
        }
        for name, (q, record) in finished.items():
            tensors[f"{name}.weight"] = q
            told = {k: v for fold in folds if name in fold.names for k, v in fold.details.items()}
            self.records[name] = replace(record, channel_scale=scales.get(name), details={**told, **record.details})
        self.current = self.current.replace(tensors=tensors)

    def _divided(self, folds: Sequence[Fold]) -> dict[str, np.ndarray]:
        tensors: dict[str, Any] = dict(self.source.tensors)
        out: dict[str, np.ndarray] = {}
        for fold in folds:
            changed = divided_source(self.source, tensors, fold)
            tensors |= changed
            out |= changed
        return out

    def _keep_block(self, i: int, folds: list[Fold], scales: Mapping[str, float], *, new: bool) -> None:
        self.kv |= scales
        if new:
            self.store.put_block(i, folds, scales)

    @staticmethod
    def _scales_of(folds: Sequence[Fold]) -> dict[str, np.ndarray]:
        return {name: fold.scale for fold in folds for name in fold.names}


def _short(names: Sequence[str]) -> str:
    return ", ".join(n.rpartition(".")[2] for n in names)
