"""What a product must move and do, counted from the packed buffers themselves."""

from __future__ import annotations

from dataclasses import dataclass

from qsim.errors import QsimError

from .packing import PackedWeight


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes and operations of one product of M tokens.

    Arguments:
        code_bytes, scale_bytes, zero_bytes: of the packed weight, without padding: what `Scheme.weight` counts.
        padding_bytes: what rows beyond N, columns beyond K and wider codes (5 to 7 bits in 8) add to the buffers.
        activation_bytes: x in the scheme's activation format with its scales.
        output_bytes: the float32 result.
        operations: 2 M N K.
    """

    code_bytes: int
    scale_bytes: int
    zero_bytes: int
    padding_bytes: int
    activation_bytes: int
    output_bytes: int
    operations: int

    @property
    def weight_bytes(self) -> int:
        """Codes, scales and zero points: equal to `scheme.weight.nbytes(shape)`, but for superblocks, whose scales
        `pack` stores wider."""
        return self.code_bytes + self.scale_bytes + self.zero_bytes

    @property
    def streamed_bytes(self) -> int:
        """Bytes of the weight's buffers, padding included."""
        return self.weight_bytes + self.padding_bytes

    @property
    def total_bytes(self) -> int:
        """Everything that crosses the bus once."""
        return self.streamed_bytes + self.activation_bytes + self.output_bytes

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.operations / self.total_bytes


def traffic(packed: PackedWeight, tokens: int) -> Traffic:
    """Count a product of `tokens` tokens with a packed weight.

    Codes, scales and zero points are the parts of the buffers that belong to the N x K weight, by the buffers' own
    item sizes; the scheme is not asked.

    Raises:
        ValueError: tokens < 1; a format without a fused kernel, which streams no packed buffer.
    """
    if tokens < 1:
        raise QsimError(f"a product must have at least one token: got {tokens}")
    if packed.kind == "dense":
        raise QsimError(f"{packed.scheme.weight.format.name} has no fused kernel here; its size is source.nbytes")
    n, k = packed.shape
    rows = packed.words.shape[0] * 64
    groups = packed.padded_k // packed.group
    stored = packed.words.nbytes * 8 // (rows * packed.padded_k)
    assert stored == packed.bits
    code_bits = packed.scheme.weight.bits if packed.bits == 8 else stored
    real = packed.scales.size if packed.rows_per_scale != 1 else n * groups
    scale_bytes = real * packed.scales.itemsize + (0 if packed.source.tensor_scale is None else 4)
    zero_bits = {0: 0, 16: 16, 17: 16, 32: 32}.get(packed.zero_bits, packed.zero_bits)
    zero_bytes = -(-real * zero_bits // 8)
    code_bytes = -(-n * k * code_bits // 8)
    from qsim.scheme import TensorScheme

    how: TensorScheme = packed.scheme.activation
    return Traffic(
        code_bytes=code_bytes,
        scale_bytes=scale_bytes,
        zero_bytes=zero_bytes,
        padding_bytes=packed.nbytes - code_bytes - scale_bytes - zero_bytes,
        activation_bytes=int(how.nbytes((tokens, k)))
        if how.ragged or how.group_size is None
        else int(how.code_nbytes((tokens, k)) + how.scale_nbytes((tokens, k))),
        output_bytes=4 * tokens * n,
        operations=2 * tokens * n * k,
    )
