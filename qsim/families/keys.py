"""Keys of a config that no family has to read: those that change no shape, and those that only repeat it.

A key that is on neither list and that the family does not know may change the structure: `read` refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .blocks import Attention, Experts, Latent, Mlp, Recurrent
from .shape import Shape

# Training, generation, numerics, bookkeeping, quantisation: they change no tensor's shape and nothing that is cached.
HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _from_auto
    _from_model_config _flash_attn_2_enabled _name_or_path _experts_implementation
    activation activation_function activation_type ffn_act_fn hidden_act hidden_activation mlp_hidden_act act_fn
    alpha architectures attention_multiplier attention_sink_size attention_softmax_in_fp32 attn_implementation
    attn_logit_softcapping auto_map aux_loss_alpha aux_loss_coef router_aux_loss_coef router_z_loss_coef
    router_jitter_noise input_jitter_noise jitter_noise router_scaling_factor route_scale
    bad_words_ids begin_suppress_tokens cache_implementation chunk_size_feed_forward classifier_dropout clip_qkv
    context_window_size cross_attention_hidden_size diversity_penalty do_sample dtype early_stopping
    embedding_multiplier encoder_no_repeat_ngram_size ep_size exponential_decay_length_penalty
    final_logit_softcapping finetuning_task fmt forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label inference_mode init_device init_std initial_context_length
    initializer_factor initializer_range initializer_cutoff_factor
    is_decoder is_llama_config keys_to_ignore_at_inference
    kv_cache_scheme label2id label_smoothing layerdrop layer_norm_epsilon layer_norm_eps learnable_embeddings
    length_penalty lm_head_multiplier logit_scale logits_scaling logits_to_keep max_batch_size max_length
    max_new_tokens max_sequence_length mlp_multipliers model_max_length model_type moe_jitter_eps
    moe_loss_weight mscale n_ctx n_group n_special neftune_noise_alpha no_repeat_ngram_size norm_eps norm_epsilon
    norm_topk_prob moe_renormalize num_beam_groups num_beams num_ctx num_logits_to_keep num_return_sequences
    num_expert_group original_max_position_embeddings output_attentions output_hidden_states output_router_logits
    output_past output_scores partial_rotary_factor predict_special_tokens prefill_chunk_size prefix pretraining_tp
    problem_type
    pruned_heads quantization quantization_config compression_config query_pre_attn_scalar remove_invalid_values
    reorder_and_upcast_attn repetition_penalty residual_multiplier return_dict return_dict_in_generate
    rms_norm_eps rope_interleave rope_interleaved rope_local_base_freq rope_parameters rope_pct rope_percentage
    rope_ratio rope_scaling rope_scaling_factor rope_theta rope_type rotary_base rotary_dim rotary_emb_base rotary_pct
    rotary_percentage routed_scaling_factor runner_max_sequence_length scale_attention_softmax_in_fp32
    scale_attn_by_inverse_layer_idx scale_attn_weights scoring_func seq_aux seq_length serve_headless
    sliding_window_size summary_activation summary_first_dropout summary_hidden_size summary_last_dropout
    summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params temperature
    tensor_parallel_shards
    tf_legacy_loss tie_encoder_decoder tokenizer_class tokenizer_name top_k top_p topk_group topk_method torch_dtype
    torchscript transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
    use_cache use_flash_attention use_mrope use_return_dict pipeline_parallel_stages unk_token
    key_multiplier attention_in_multiplier attention_out_multiplier ssm_in_multiplier ssm_out_multiplier
    ssm_multipliers layernorm_epsilon layer_norm_eps inference_runner pad_key_length pre_allocate_kv_cache
    validate_runner_input output_projection alibi_bias_max attn_impl attn_uses_sequence_id softmax_scale
    uniform_expert_assignment moe_normalize_expert_weights use_parallel_embedding bos_token eos_token pad_token
    special_tokens language text_config vision_config audio_config mamba_ssm_dtype ssm_dtype
    """.split()
)
_ENDINGS = ("_token_id", "_token_ids", "_token_index", "_dropout", "_pdrop", "_dropout_prob", "_drop", "_loss_coef",
            "_dropout_p")  # fmt: skip


_BEGINNINGS = ("rope_", "rotary_", "mrope_", "summary_", "mtp_")  # of MTP layers, which are left out


def is_harmless(key: str) -> bool:
    """Whether a key changes no shape in any family."""
    if key.startswith(_BEGINNINGS):
        return True
    return key in HARMLESS or key.endswith(_ENDINGS) or key in ("dropout", "dropout_rate", "hidden_dropout")


def _attentions(shape: Shape) -> list[Attention]:
    return [mixer for mixer, _ in shape.mixers if isinstance(mixer, Attention)]


def _latents(shape: Shape) -> list[Latent]:
    return [mixer for mixer, _ in shape.mixers if isinstance(mixer, Latent)]


def _experts(shape: Shape) -> list[Experts]:
    return [mlp for mlp, _ in shape.mlps if isinstance(mlp, Experts)]


def _dense(shape: Shape) -> list[Mlp]:
    return [mlp for mlp, _ in shape.mlps if isinstance(mlp, Mlp)]


def _widths(shape: Shape) -> set[Any]:
    return {mlp.width for mlp, _ in shape.mlps} | {mlp.shared for mlp in _experts(shape)}


def _inner(shape: Shape) -> set[Any]:
    """Channels of recurrences, as far as their output products tell."""
    return {mixer.linears[-1].k for mixer, _ in shape.mixers if isinstance(mixer, Recurrent)}


def _head_dims(shape: Shape) -> set[Any] | None:
    """Widths of heads; of latent attention the rotated part too, which some configs call head_dim."""
    found = {m.head_dim for m in _attentions(shape)} | {m.head_dim for m in _latents(shape)}
    return found | {m.rope_dim for m in _latents(shape)} or None


def _all(values: list[bool]) -> set[Any] | None:
    """The one value that all have; none where they differ, and None where there are none."""
    if not values:
        return None
    return set(values) if len(set(values)) == 1 else set()


FACTS: Mapping[str, Callable[[Shape], set[Any] | None]] = {
    key: read
    for keys, read in (
        (("hidden_size", "d_model", "n_embd", "n_embed", "model_dim"), lambda s: {s.hidden}),
        (("num_hidden_layers", "n_layer", "n_layers", "num_layers"), lambda s: {len(s.layers)}),
        (("vocab_size", "padded_vocab_size"), lambda s: {s.vocab}),
        (("max_position_embeddings", "n_positions", "max_seq_len", "max_seq_length"), lambda s: {s.max_positions}),
        (("num_attention_heads", "n_head", "n_heads", "num_heads"),
         lambda s: {m.heads for m in _attentions(s)} | {m.heads for m in _latents(s)} or None),
        (("num_key_value_heads", "num_kv_heads", "n_head_kv", "num_query_groups", "multi_query_group_num"),
         lambda s: {m.kv_heads for m in _attentions(s)} | {m.heads for m in _latents(s)} or None),
        (("head_dim", "attention_head_dim", "kv_channels", "attention_head_size", "d_head"),
         _head_dims),
        (("v_head_dim",), lambda s: {m.value_dim for m in _attentions(s)} | {m.value_dim for m in _latents(s)} or None),
        (("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "inner_dim", "moe_intermediate_size",
          "shared_expert_intermediate_size", "shared_intermediate_size", "block_ff_dim", "intermediate_size_mlp"),
         lambda s: _widths(s) | _inner(s)),
        (("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
         lambda s: {m.experts for m in _experts(s)} or {0, 1}),
        (("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k", "moe_top_k"),
         lambda s: {m.per_token for m in _experts(s)} or {0, 1}),
        (("num_shared_experts", "n_shared_experts", "num_shared_expert", "moe_num_shared_experts"),
         lambda s: {m.shared // m.width for m in _experts(s)} or {0, 1}),
        (("sliding_window", "attention_window_size"), lambda s: {m.window for m, _ in s.mixers if m.window} | {0}),
        (("attention_bias", "qkv_bias", "use_qkv_bias", "add_qkv_bias", "attn_qkv_bias"),
         lambda s: _all([m.qkv_bias for m in _attentions(s)] + [m.bias for m in _latents(s)])),
        (("attention_out_bias", "attn_out_bias", "o_bias", "o_proj_bias", "out_bias"),
         lambda s: _all([m.out_bias for m in _attentions(s)])),
        (("mlp_bias",), lambda s: _all([m.bias for m, _ in s.mlps])),
        (("use_bias", "bias", "add_bias_linear", "enable_bias"),
         lambda s: _all([m.bias for m, _ in s.mlps] + [m.out_bias for m in _attentions(s)])),
        (("no_bias",), lambda s: _all([not m.bias for m, _ in s.mlps] + [not m.out_bias for m in _attentions(s)])),
        (("lm_head_bias",), lambda s: {s.head.bias}),
        (("use_qk_norm", "qk_norm", "qk_layernorm", "use_qk_layernorm"),
         lambda s: _all([m.other > 0 for m in _attentions(s)])),
        (("tie_word_embeddings", "tie_embedding", "tie_embeddings", "use_embedding_sharing"), lambda s: {s.tied}),
        (("use_gated_activation", "gated_mlp", "use_gated_mlp", "use_swiglu", "block_use_swiglu"),
         lambda s: _all([m.gated for m, _ in s.mlps])),
        (("use_parallel_block", "use_parallel_residual", "parallel_attn"), lambda s: {s.layers[0].parallel}),
        (("multi_query", "multi_query_attention"), lambda s: _all([m.kv_heads < m.heads for m in _attentions(s)])),
        (("is_encoder_decoder", "add_cross_attention", "is_cross_attention"), lambda s: {False}),
    )
    for key in keys
}  # fmt: skip
"""key -> the values that only repeat what a shape already says; None where the shape has no such part at all."""


def repeats(key: str, value: Any, shape: Shape) -> bool:
    """Whether a key of a config only repeats what the shape says already; an absent option does too.

    A list repeats when each of its entries does. `null`, `false`, 0 and empty are absent options, unless the key is one
    of `FACTS` and the shape says otherwise.
    """
    read = FACTS.get(key)
    if read is not None and value is not None:
        found = read(shape)
        if found is None:
            return True
        if isinstance(value, list) and value:
            return all(_same(v, found) for v in value)
        return _same(value, found)
    return value is None or value is False or (isinstance(value, int | str | list | dict) and not value)


def _same(value: Any, found: set[Any]) -> bool:
    return isinstance(value, bool | int) and any(
        value == v and isinstance(v, bool) is isinstance(value, bool) for v in found
    )
