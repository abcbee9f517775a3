// The language of the kernels: C++ for three compilers, nvcc, Metal's, and one for the CPU that runs the same kernels in
// tests. T, the type of the elements, is float, bf16 or f16, as TYPE says from outside; sums are float everywhere.
//
//   KERNEL(name, parameters) { … }     parameters: READ or WRITE of an array, VALUE of a number, each with its place
//   THREAD of THREADS in GROUP.x, .y   threads of a group come in whole sets of 32 lanes
//   SHARED(type, name, size)           memory of a group; BARRIER() is for all of its threads
//   group_sum(v), group_max(v)         of all threads of a group, the same bits in each of them, in a fixed order;
//                                      the kernel declares SUMS first
//   TENSOR_CORES                       is defined where 32 lanes can multiply small matrices of 16-bit numbers together,
//                                      with load_matrices and multiply

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef unsigned int uint;
typedef long long i64;
typedef __nv_bfloat16 bf16;
typedef __half f16;
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#define READ(type, name, at) const type *__restrict__ name
#define WRITE(type, name, at) type *__restrict__ name
#define VALUE(type, name, at) const type name
#define SHARED(type, name, size) __shared__ __align__(16) type name[size]
#define SHARED_POINTER(type) type *
#define READ_POINTER(type) const type *__restrict__
#define WRITE_POINTER(type) type *__restrict__
#define LOCAL_POINTER(type) type *
#define FUNCTION static __device__ __forceinline__
#define THREAD threadIdx.x
#define THREADS blockDim.x
#define GROUP blockIdx
#define BARRIER() __syncthreads()
#define SHUFFLE_XOR(v, mask, self) __shfl_xor_sync(0xffffffffu, v, mask)
#define MUL_HI(a, b) __umulhi(a, b)
#define MATH(function) function##f

#elif defined(__METAL_VERSION__)

#include <metal_stdlib>
using namespace metal;
typedef long i64;
typedef bfloat bf16;
typedef half f16;
#define KERNEL(name, ...)                                                                                              \
    kernel void name(__VA_ARGS__, uint3 zoo_group [[threadgroup_position_in_grid]],                                    \
                     uint zoo_thread [[thread_index_in_threadgroup]],                                                  \
                     uint3 zoo_threads [[threads_per_threadgroup]])
#define READ(type, name, at) device const type *name [[buffer(at)]]
#define WRITE(type, name, at) device type *name [[buffer(at)]]
#define VALUE(type, name, at) constant type &name [[buffer(at)]]
#define SHARED(type, name, size) threadgroup type name[size]
#define SHARED_POINTER(type) threadgroup type *
#define READ_POINTER(type) device const type *
#define WRITE_POINTER(type) device type *
#define LOCAL_POINTER(type) thread type *
#define FUNCTION static inline
#define THREAD zoo_thread
#define THREADS zoo_threads.x
#define GROUP zoo_group
#define BARRIER() threadgroup_barrier(mem_flags::mem_threadgroup)
#define SHUFFLE_XOR(v, mask, self) simd_shuffle_xor(v, (ushort)(mask))
#define MUL_HI(a, b) mulhi(a, b)
#define MATH(function) precise::function

#endif

#define TYPE_F32 1
#define TYPE_BF16 2
#define TYPE_F16 3
#if TYPE == TYPE_BF16
typedef bf16 T;
#elif TYPE == TYPE_F16
typedef f16 T;
#else
typedef float T;
#endif

#if TYPE != TYPE_F32 && !defined(__METAL_VERSION__)
#define TENSOR_CORES
#endif

#if defined(TENSOR_CORES) && defined(__CUDACC__)

// Four matrices of 8 by 8: lane 8 m + r names row r of matrix m. Word m of a lane then holds the elements at row lane / 4
// and columns lane % 4 * 2 and the next, or those of the transposed matrix.
template <bool TRANSPOSED> FUNCTION void load_matrices(uint *words, SHARED_POINTER(const T) row) {
    const uint at = (uint)__cvta_generic_to_shared(row);
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(at)
                     : "memory");
}

#if TYPE == TYPE_BF16
#define ZOO_MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define ZOO_MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#endif

// C (16, 8) += A (16, 16) · B (16, 8). With g = lane / 4 and t = lane % 4 * 2 a lane holds, each with the next column:
// A at (g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8), C at (g, t), (g + 8, t), and B at (t, g), (t + 8, g) with the next row.
FUNCTION void multiply(float *c, const uint *a, uint b0, uint b1) {
    asm(ZOO_MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#elif defined(TENSOR_CORES)

template <bool TRANSPOSED> FUNCTION void load_matrices(uint *words, SHARED_POINTER(const T) row) {
    zoo::load_matrices(words, row, TRANSPOSED);
}

FUNCTION void multiply(float *c, const uint *a, uint b0, uint b1) {
    zoo::multiply<T>(c, a, b0, b1);
}

#endif

#if defined(TENSOR_CORES)
// Before a loop over an array that is to lie in registers.
#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

// Two numbers in a word.
FUNCTION uint pair(float first, float second) {
    const T both[2] = {T(first), T(second)};
    uint word;
    memcpy(&word, both, 4);
    return word;
}
#endif

#define SUMS SHARED(float, zoo_sums, 32)
#define group_sum(v) zoo_group_sum(v, zoo_sums, THREAD, THREADS)
#define group_max(v) zoo_group_max(v, zoo_sums, THREAD, THREADS)

// Of the 32 lanes that thread `self` is one of.
FUNCTION float lane_sum(float v, uint self) {
    for (uint mask = 16; mask > 0; mask /= 2)
        v += SHUFFLE_XOR(v, mask, self);
    return v;
}

// NaN if any is NaN.
FUNCTION float larger(float a, float b) {
    return a > b || a != a ? a : b;
}

FUNCTION float lane_max(float v, uint self) {
    for (uint mask = 16; mask > 0; mask /= 2)
        v = larger(v, SHUFFLE_XOR(v, mask, self));
    return v;
}

FUNCTION float zoo_group_sum(float v, SHARED_POINTER(float) sums, uint self, uint threads) {
    v = lane_sum(v, self);
    if (self % 32 == 0)
        sums[self / 32] = v;
    BARRIER();
    float sum = sums[0];
    for (uint i = 1; i < threads / 32; i++)
        sum += sums[i];
    BARRIER();
    return sum;
}

FUNCTION float zoo_group_max(float v, SHARED_POINTER(float) sums, uint self, uint threads) {
    v = lane_max(v, self);
    if (self % 32 == 0)
        sums[self / 32] = v;
    BARRIER();
    float max = sums[0];
    for (uint i = 1; i < threads / 32; i++)
        max = larger(max, sums[i]);
    BARRIER();
    return max;
}

// The words of a block of Philox4x32-10; the high word of its index is 0.
struct Words {
    uint w[4];
};

FUNCTION Words philox(uint index, uint step0, uint step1, uint key0, uint key1) {
    uint c0 = index, c1 = 0, c2 = step0, c3 = step1;
    for (uint round = 0; round < 10; round++) {
        const uint hi0 = MUL_HI(0xD2511F53u, c0), lo0 = 0xD2511F53u * c0;
        const uint hi1 = MUL_HI(0xCD9E8D57u, c2), lo1 = 0xCD9E8D57u * c2;
        c0 = hi1 ^ c1 ^ key0;
        c1 = lo1;
        c2 = hi0 ^ c3 ^ key1;
        c3 = lo0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    Words words = {{c0, c1, c2, c3}};
    return words;
}

// Whether dropout keeps element e (see ops/dropout).
FUNCTION bool kept(uint e, uint threshold, uint step0, uint step1, uint key0, uint key1) {
    const Words words = philox(16 * (e / 64) + e % 16, step0, step1, key0, key1);
    const uint quarter = e % 64 / 16;
    // Chosen, not indexed: an indexed array would lie in memory.
    const uint low = quarter == 0 ? words.w[0] : words.w[1], high = quarter == 2 ? words.w[2] : words.w[3];
    return (quarter < 2 ? low : high) >= threshold;
}
