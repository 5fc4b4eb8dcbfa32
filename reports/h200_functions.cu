// The approximate functions of an NVIDIA GPU over ranges of float32 bit patterns, for h200_functions.py.
//     nvcc -O3 -gencode=arch=compute_90a,code=sm_90a -shared -Xcompiler -fPIC h200_functions.cu -o functions.so
#include <cstdint>
#include <cstring>
#include <cuda_runtime.h>

typedef unsigned int u32;
typedef unsigned long long u64;

#define PTX(name, text)                                                  \
    __device__ __forceinline__ float name(float x) {                     \
        float y;                                                         \
        asm volatile(text " %0, %1;" : "=f"(y) : "f"(x));                \
        return y;                                                        \
    }
PTX(rsqrt_full, "rsqrt.approx.f32")
PTX(rsqrt_ftz, "rsqrt.approx.ftz.f32")
PTX(ex2_full, "ex2.approx.f32")
PTX(ex2_ftz, "ex2.approx.ftz.f32")
PTX(rcp_full, "rcp.approx.f32")
PTX(rcp_ftz, "rcp.approx.ftz.f32")
PTX(lg2_full, "lg2.approx.f32")
PTX(lg2_ftz, "lg2.approx.ftz.f32")
PTX(sqrt_full, "sqrt.approx.f32")
PTX(sqrt_ftz, "sqrt.approx.ftz.f32")
PTX(tanh_full, "tanh.approx.f32")

__device__ __forceinline__ float f32(u32 bits) { return __uint_as_float(bits); }

// The order is that of NAMES in h200_functions.py.
template <int F> __device__ __forceinline__ float value(float x) {
    if constexpr (F == 0) return rsqrt_full(x);
    if constexpr (F == 1) return rsqrt_ftz(x);
    if constexpr (F == 2) return ex2_full(x);
    if constexpr (F == 3) return ex2_ftz(x);
    if constexpr (F == 4) return rcp_full(x);
    if constexpr (F == 5) return rcp_ftz(x);
    if constexpr (F == 6) return lg2_full(x);
    if constexpr (F == 7) return lg2_ftz(x);
    if constexpr (F == 8) return sqrt_full(x);
    if constexpr (F == 9) return sqrt_ftz(x);
    if constexpr (F == 10) return tanh_full(x);
    if constexpr (F == 11) return expf(x);
    if constexpr (F == 12) return rsqrtf(x);
    if constexpr (F == 13) return 1.0f / (1.0f + expf(-x));
    if constexpr (F == 14) return x / (1.0f + expf(-x));
    if constexpr (F == 15) return __expf(x);
    if constexpr (F == 16) return tanhf(x);
    if constexpr (F == 17) return ex2_ftz(x * 1.4426950408889634f);
    if constexpr (F == 18) return x * rsqrt_ftz(x);
    return 0.0f;
}

template <int F> __global__ void evaluate_kernel(u32 start, u64 count, u32* out) {
    u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    if (i < count) out[i] = __float_as_uint(value<F>(f32(start + (u32)i)));
}

// The same at given inputs.
template <int F> __global__ void evaluate_at_kernel(const u32* inputs, u64 count, u32* out) {
    u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    if (i < count) out[i] = __float_as_uint(value<F>(f32(inputs[i])));
}

extern "C" int evaluate_at(int which, const u32* inputs, u64 count, u32* out) {
    unsigned blocks = (unsigned)((count + 255) / 256);
    if (which != 3) return -1;
    evaluate_at_kernel<3><<<blocks, 256>>>(inputs, count, out);
    return (int)cudaDeviceSynchronize();
}

extern "C" int evaluate(int which, u32 start, u64 count, u32* out) {
    unsigned blocks = (unsigned)((count + 255) / 256);
#define CASE(F) case F: evaluate_kernel<F><<<blocks, 256>>>(start, count, out); break;
    switch (which) {
        CASE(0) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
        CASE(13) CASE(14) CASE(15) CASE(16) CASE(17) CASE(18)
        default: return -1;
    }
    cudaError_t error = cudaDeviceSynchronize();
    return (int)error;
}

// Sum over i of splitmix64((i + 1) * golden ^ out[i]), modulo 2^64: depends on every value and on its place.
__global__ void digest_kernel(const u32* out, u64 count, u64* total) {
    u64 sum = 0;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
        u64 z = (i + 1) * 0x9E3779B97F4A7C15ull ^ out[i];
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        sum += z ^ (z >> 31);
    }
    atomicAdd(total, sum);
}

extern "C" int digest(const u32* out, u64 count, u64* total) {
    cudaMemset(total, 0, 8);
    digest_kernel<<<1024, 256>>>(out, count, total);
    return (int)cudaDeviceSynchronize();
}

// Sixteen-bit functions over all 65,536 codes, two at a time as the instructions take them.
#define PTX16(name, text)                                                                                     \
    __global__ void name(unsigned short* out) {                                                               \
        u32 i = blockIdx.x * blockDim.x + threadIdx.x, x = i | i << 16, y;                                    \
        asm volatile(text " %0, %1;" : "=r"(y) : "r"(x));                                                     \
        out[i] = (unsigned short)y;                                                                           \
    }
PTX16(ex2_bf16, "ex2.approx.ftz.bf16x2")
PTX16(ex2_f16, "ex2.approx.f16x2")
PTX16(tanh_bf16, "tanh.approx.bf16x2")
PTX16(tanh_f16, "tanh.approx.f16x2")

extern "C" int halves(int which, unsigned short* out) {
    if (which == 0) ex2_bf16<<<256, 256>>>(out);
    if (which == 1) ex2_f16<<<256, 256>>>(out);
    if (which == 2) tanh_bf16<<<256, 256>>>(out);
    if (which == 3) tanh_f16<<<256, 256>>>(out);
    return (int)cudaDeviceSynchronize();
}

// ---- Laws: every output from a table over one or two binades. Misses are counted per sign and exponent of the input.

__device__ __forceinline__ bool same(float a, u32 b) {
    u32 x = __float_as_uint(a);
    return x == b || ((x & 0x7fffffffu) > 0x7f800000u && (b & 0x7fffffffu) > 0x7f800000u);
}

// Significand with the hidden bit and exponent of a finite positive number; a subnormal is normalised.
__device__ __forceinline__ void split(u32 magnitude, int& e, u32& m) {
    e = (int)(magnitude >> 23);
    m = magnitude & 0x7fffffu;
    if (e == 0) {
        int shift = __clz(m) - 8;
        m = (m << shift) & 0x7fffffu;
        e = 1 - shift;
    }
    e -= 127;
}

__device__ __forceinline__ float shifted(float y, int e, bool flush) {
    double d = scalbn((double)y, e);  // exact in float64
    float r = (float)d;               // to nearest even where the result is subnormal
    if (flush && fabsf(r) < 1.17549435e-38f) r = copysignf(0.0f, r);
    if (flush && fabs(d) < 1.1754943508222875e-38) r = copysignf(0.0f, r);
    return r;
}

// kind 0: 1/x, 1: 1/sqrt(x), 2: sqrt(x); table[m] for [1,2), then for [2,4).
__global__ void algebraic(int kind, bool flush, const u32* table, const u32* out, u32 start, u64 count, u64* misses,
                          u32* examples) {
    u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    if (i >= count) return;
    u32 x = start + (u32)i, magnitude = x & 0x7fffffffu, sign = x & 0x80000000u;
    float y;
    if (magnitude > 0x7f800000u || (kind > 0 && sign && magnitude > 0 && !(flush && magnitude < 0x800000u))) {
        y = f32(0x7fffffffu);
    } else if (magnitude == 0 || (flush && magnitude < 0x800000u)) {
        y = kind == 2 ? f32(sign) : f32(sign | 0x7f800000u);
    } else if (magnitude == 0x7f800000u) {
        y = kind == 2 ? f32(0x7f800000u) : f32(sign);
    } else {
        int e;
        u32 m;
        split(magnitude, e, m);
        if (kind == 0) {
            y = shifted(f32(table[m]), -e, flush);
        } else {
            int odd = e & 1;
            y = shifted(f32(table[m + ((u32)odd << 23)]), kind == 1 ? -((e - odd) / 2) : (e - odd) / 2, flush);
        }
        if (sign) y = -y;
    }
    if (!same(y, out[i])) {
        u64 before = atomicAdd(&misses[x >> 23], 1ull);
        if (before < 2) examples[(x >> 23) * 2 + before] = x;
    }
}

// 2^x from table[j] = 2^(j 2^-23). |x| is cut toward zero to 23 fraction bits, whole and m. Below zero the hardware does
// not negate m but complements it: the fraction is 2^23 - 1 - m, and only m = 0 is exact. Without flushing, inputs below
// -126 are halved and the result squared.
__device__ __forceinline__ float power_of(float x, const u32* table) {
    double scaled = scalbn(fabs((double)x), 23);
    long long fixed = (long long)trunc(scaled), whole = fixed >> 23, m = fixed & 0x7fffff;
    if (x >= 0.0f) return shifted(f32(table[m]), (int)whole, true);
    if (m == 0) return shifted(1.0f, -(int)whole, true);
    return shifted(f32(table[0x7fffff - m]), -(int)whole - 1, true);
}

__global__ void power(bool flush, const u32* table, const u32* out, u32 start, u64 count, u64* misses, u32* examples) {
    u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    if (i >= count) return;
    u32 xb = start + (u32)i;
    float x = f32(xb), y;
    if (x != x) y = x;
    else if (x >= 128.0f) y = f32(0x7f800000u);
    else if (x < -320.0f) y = 0.0f;
    else if (fabsf(x) < 1.17549435e-38f) y = 1.0f;
    else if (!flush && x < -126.0f) {
        y = power_of(x * 0.5f, table);
        y = __fmul_rn(y, y);
    } else y = power_of(x, table);
    if (!same(y, out[i])) {
        u64 before = atomicAdd(&misses[xb >> 23], 1ull);
        if (before < 2) examples[(xb >> 23) * 2 + before] = xb;
    }
}

// log2(2^e m): table[m] for [1, 2) and behind it for [0.5, 1); elsewhere e + table[m], or (e + 1) + table of [0.5, 1)
// below 1, cut toward zero. Without flushing, a subnormal input is scaled by 2^24 and 24 subtracted from the result.
__device__ __forceinline__ float logarithm_of(int e, u32 m, const u32* table) {
    if (e == 0) return f32(table[m]);
    if (e == -1) return f32(table[m + (1u << 23)]);
    double d = e < 0 ? (double)(e + 1) + (double)f32(table[m + (1u << 23)]) : (double)e + (double)f32(table[m]);
    return __double2float_rz(d);
}

__global__ void logarithm(bool flush, const u32* table, const u32* out, u32 start, u64 count, u64* misses,
                          u32* examples) {
    u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    if (i >= count) return;
    u32 x = start + (u32)i, magnitude = x & 0x7fffffffu, sign = x & 0x80000000u;
    float y;
    if (magnitude == 0 || (flush && magnitude < 0x800000u)) y = f32(0xff800000u);
    else if (sign || magnitude > 0x7f800000u) y = f32(0x7fffffffu);
    else if (magnitude == 0x7f800000u) y = f32(0x7f800000u);
    else {
        int e;
        u32 m;
        split(magnitude, e, m);
        y = e < -126 ? __fadd_rn(logarithm_of(e + 24, m, table), -24.0f) : logarithm_of(e, m, table);
    }
    if (!same(y, out[i])) {
        u64 before = atomicAdd(&misses[x >> 23], 1ull);
        if (before < 2) examples[(x >> 23) * 2 + before] = x;
    }
}

// tanh(x): x itself below 2^-8, 1 from 8 on, else table[(e + 8) 2^23 + m] for e from -8 to 2; odd.
__global__ void tangent(const u32* table, const u32* out, u32 start, u64 count, u64* misses, u32* examples) {
    u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    if (i >= count) return;
    u32 x = start + (u32)i, magnitude = x & 0x7fffffffu, y;
    if (magnitude > 0x7f800000u) y = 0x7fffffffu;
    else if (magnitude < 0x3b800000u) y = magnitude;
    else if (magnitude >= 0x41000000u) y = 0x3f800000u;
    else y = table[magnitude - 0x3b800000u];
    if (!same(f32(y | (x & 0x80000000u)), out[i])) {
        u64 before = atomicAdd(&misses[x >> 23], 1ull);
        if (before < 2) examples[(x >> 23) * 2 + before] = x;
    }
}

// law 0: algebraic, `a` its kind; 1: power; 2: logarithm; 3: tangent.
extern "C" int follow(int law, int a, int flush, const u32* table, const u32* out, u32 start, u64 count, u64* misses,
                      u32* examples) {
    unsigned blocks = (unsigned)((count + 255) / 256);
    if (law == 0) algebraic<<<blocks, 256>>>(a, flush, table, out, start, count, misses, examples);
    if (law == 1) power<<<blocks, 256>>>(flush, table, out, start, count, misses, examples);
    if (law == 2) logarithm<<<blocks, 256>>>(flush, table, out, start, count, misses, examples);
    if (law == 3) tangent<<<blocks, 256>>>(table, out, start, count, misses, examples);
    return (int)cudaDeviceSynchronize();
}
