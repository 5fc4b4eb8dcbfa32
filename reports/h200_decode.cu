// Decode attention over a paged cache by the kernels of FlashInfer 0.7.2, called from h200_operators.py.
//     nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a -use_fast_math --expt-relaxed-constexpr \
//         -I FLASHINFER/data/include -I CCCL/libcudacxx/include -I CCCL/thrust -I CCCL/cub -shared -Xcompiler -fPIC
// Kernels and schedulers are FlashInfer's (Apache-2.0) as its batch decode wrappers call them; this file only passes
// pointers. kind 0 is the kernel on CUDA cores, kind 1 the one on tensor cores (mma.sync) that serves grouped queries.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <vector>

#include <flashinfer/attention/decode.cuh>
#include <flashinfer/attention/default_decode_params.cuh>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/variants.cuh>
#include <flashinfer/page.cuh>
#include <flashinfer/pos_enc.cuh>

using namespace flashinfer;
constexpr uint32_t HEAD_DIM = 128;
constexpr auto NO_ROPE = PosEncodingMode::kNone;
using Variant = DefaultAttention<false, false, false, false>;
using Half = __nv_bfloat16;

template <typename KV>
int plan_of(int kind, void* floats, size_t float_bytes, void* ints, void* pinned, size_t int_bytes, int32_t* indptr,
            int32_t* rows, int batch, int q_heads, int kv_heads, int page, int64_t* out) {
    std::vector<int64_t> words;
    cudaError_t status;
    if (kind == 0) {
        using Params = BatchDecodeParams<Half, KV, Half, int32_t>;
        DecodePlanInfo info;
        status = cudaErrorInvalidValue;
        auto plan = [&](auto work) {
            return DecodePlan<HEAD_DIM, NO_ROPE, Variant, Params>(floats, float_bytes, ints, pinned, int_bytes, info,
                                                                  indptr, batch, q_heads, page, true, nullptr, work);
        };
        if (q_heads / kv_heads == 4)
            status = plan(BatchDecodeWithPagedKVCacheWorkEstimationDispatched<4, HEAD_DIM, NO_ROPE, Variant, Params>);
        if (q_heads / kv_heads == 8)
            status = plan(BatchDecodeWithPagedKVCacheWorkEstimationDispatched<8, HEAD_DIM, NO_ROPE, Variant, Params>);
        words = info.ToVector();
    } else {
        PrefillPlanInfo info;
        status = PrefillPlan<int32_t>(floats, float_bytes, ints, pinned, int_bytes, info, rows, indptr, batch, batch,
                                      q_heads, kv_heads, HEAD_DIM, HEAD_DIM, page, true, sizeof(Half), -1, -1, false, 0,
                                      1, nullptr, sizeof(KV));
        words = info.ToVector();
    }
    for (size_t i = 0; i < words.size(); i++) out[i] = words[i];
    return status == cudaSuccess ? (int)words.size() : -(int)status;
}

template <typename KV>
int run_of(int kind, const int64_t* words, int count, void* floats, void* ints, void* q, void* k, void* v,
           int32_t* indptr, int32_t* indices, int32_t* last, int32_t* rows, void* o, int batch, int q_heads,
           int kv_heads, int page, cudaStream_t stream) {
    std::vector<int64_t> plan(words, words + count);
    paged_kv_t<KV, int32_t> cache(kv_heads, page, HEAD_DIM, batch, QKVLayout::kNHD, (KV*)k, (KV*)v, indices, indptr,
                                  last);
    float scale = 0.08838834764831845f;
    cudaError_t status;
    if (kind == 0) {
        DecodePlanInfo info;
        info.FromVector(plan);
        BatchDecodeParams<Half, KV, Half, int32_t> p((Half*)q, nullptr, cache, (Half*)o, nullptr, nullptr, q_heads,
                                                     q_heads * HEAD_DIM, HEAD_DIM, -1, 0.0f, scale, 1.0f, 1e4f);
        p.request_indices = GetPtrFromBaseOffset<int32_t>(ints, info.request_indices_offset);
        p.kv_tile_indices = GetPtrFromBaseOffset<int32_t>(ints, info.kv_tile_indices_offset);
        p.o_indptr = GetPtrFromBaseOffset<int32_t>(ints, info.o_indptr_offset);
        p.kv_chunk_size_ptr = GetPtrFromBaseOffset<int32_t>(ints, info.kv_chunk_size_ptr_offset);
        Half* partial = nullptr;
        float* sums = nullptr;
        if (info.split_kv) {
            partial = GetPtrFromBaseOffset<Half>(floats, info.v_offset);
            sums = GetPtrFromBaseOffset<float>(floats, info.s_offset);
            if (info.enable_cuda_graph)
                p.block_valid_mask = GetPtrFromBaseOffset<bool>(ints, info.block_valid_mask_offset);
        }
        p.padded_batch_size = info.padded_batch_size;
        status = BatchDecodeWithPagedKVCacheDispatched<HEAD_DIM, NO_ROPE, Variant>(p, partial, sums, false, stream);
    } else {
        PrefillPlanInfo info;
        info.FromVector(plan);
        BatchPrefillPagedParams<Half, KV, Half, int32_t> p;
        p.q = (Half*)q;
        p.paged_kv = cache;
        p.q_indptr = rows;
        p.o = (Half*)o;
        p.num_qo_heads = q_heads;
        p.group_size = uint_fastdiv(q_heads / kv_heads);
        p.q_stride_n = q_heads * HEAD_DIM;
        p.q_stride_h = HEAD_DIM;
        p.window_left = -1;
        p.sm_scale = scale;
        p.request_indices = GetPtrFromBaseOffset<int32_t>(ints, info.request_indices_offset);
        p.qo_tile_indices = GetPtrFromBaseOffset<int32_t>(ints, info.qo_tile_indices_offset);
        p.kv_tile_indices = GetPtrFromBaseOffset<int32_t>(ints, info.kv_tile_indices_offset);
        p.o_indptr = GetPtrFromBaseOffset<int32_t>(ints, info.o_indptr_offset);
        p.kv_chunk_size_ptr = GetPtrFromBaseOffset<int32_t>(ints, info.kv_chunk_size_ptr_offset);
        Half* partial = nullptr;
        float* sums = nullptr;
        if (info.split_kv) {
            p.merge_indptr = GetPtrFromBaseOffset<int32_t>(ints, info.merge_indptr_offset);
            partial = GetPtrFromBaseOffset<Half>(floats, info.v_offset);
            sums = GetPtrFromBaseOffset<float>(floats, info.s_offset);
        }
        p.padded_batch_size = info.padded_batch_size;
        p.max_total_num_rows = info.total_num_rows;
        if (info.enable_cuda_graph) {
            p.block_valid_mask = GetPtrFromBaseOffset<bool>(ints, info.block_valid_mask_offset);
            p.total_num_rows = GetPtrFromBaseOffset<uint32_t>(ints, info.total_num_rows_offset);
        }
        if (info.cta_tile_q != 16) return -1000 - (int)info.cta_tile_q;
        status = BatchPrefillWithPagedKVCacheDispatched<true, 16, HEAD_DIM, HEAD_DIM, NO_ROPE, false, MaskMode::kNone,
                                                        Variant>(p, partial, sums, false, stream);
    }
    return -(int)status;
}

extern "C" int plan(int kind, int kv_bytes, void* floats, size_t float_bytes, void* ints, void* pinned,
                    size_t int_bytes, int32_t* indptr, int32_t* rows, int batch, int q_heads, int kv_heads, int page,
                    int64_t* out) {
    try {
        if (kv_bytes == 1)
            return plan_of<__nv_fp8_e4m3>(kind, floats, float_bytes, ints, pinned, int_bytes, indptr, rows, batch,
                                          q_heads, kv_heads, page, out);
        return plan_of<Half>(kind, floats, float_bytes, ints, pinned, int_bytes, indptr, rows, batch, q_heads, kv_heads,
                             page, out);
    } catch (...) {
        return -9999;
    }
}

extern "C" int run(int kind, int kv_bytes, const int64_t* words, int count, void* floats, void* ints, void* q, void* k,
                   void* v, int32_t* indptr, int32_t* indices, int32_t* last, int32_t* rows, void* o, int batch,
                   int q_heads, int kv_heads, int page, void* stream) {
    try {
        if (kv_bytes == 1)
            return run_of<__nv_fp8_e4m3>(kind, words, count, floats, ints, q, k, v, indptr, indices, last, rows, o,
                                         batch, q_heads, kv_heads, page, (cudaStream_t)stream);
        return run_of<Half>(kind, words, count, floats, ints, q, k, v, indptr, indices, last, rows, o, batch, q_heads,
                            kv_heads, page, (cudaStream_t)stream);
    } catch (...) {
        return -9999;
    }
}
