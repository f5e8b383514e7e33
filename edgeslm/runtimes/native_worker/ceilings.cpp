// The task `ceilings`: what memory and arithmetic of the device can do. It needs no model.
//
// Reading and copying run over buffers far beyond ordinary caches; a copy counts what is read and what is written.
// Arithmetic stays in registers: fused float32 multiply-adds, and the processor's own 8-bit products into 32-bit sums
// (the widest kind that ggml's kernels use there); both count a multiply and an add as two.

#include "device.h"
#include "tasks.h"

#include <algorithm>
#include <cstring>
#include <memory>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

constexpr size_t BUFFER_BYTES = size_t(256) << 20; // of all threads, sources and targets
constexpr double F32_OPS = 1e9, INT8_OPS = 4e9; // of one thread and repeat: milliseconds, far above starting a thread
constexpr int CHAINS = 10;                      // independent sums; two units with a latency of four want eight

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));

// Sums += a * b on 8-bit integers; OPS counts a multiply and an add for every product.
#if defined(__AVX512VNNI__)
#define INT8 "avx512_vnni"
using Bytes = __m512i;
using Sums = __m512i;
constexpr double OPS = 128;
inline Sums product(Sums sums, Bytes a, Bytes b) {
    return _mm512_dpbusd_epi32(sums, a, b);
}
#elif defined(__AVXVNNI__)
#define INT8 "avx_vnni"
using Bytes = __m256i;
using Sums = __m256i;
constexpr double OPS = 64;
inline Sums product(Sums sums, Bytes a, Bytes b) {
    return _mm256_dpbusd_avx_epi32(sums, a, b);
}
#elif defined(__AVX2__)
#define INT8 "avx2"
using Bytes = __m256i;
using Sums = __m256i;
constexpr double OPS = 64;
inline Sums product(Sums sums, Bytes a, Bytes b) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#define INT8 "i8mm"
using Bytes = int8x16_t;
using Sums = int32x4_t;
constexpr double OPS = 64;
inline Sums product(Sums sums, Bytes a, Bytes b) {
    return vmmlaq_s32(sums, a, b);
}
#elif defined(__ARM_FEATURE_DOTPROD)
#define INT8 "dotprod"
using Bytes = int8x16_t;
using Sums = int32x4_t;
constexpr double OPS = 32;
inline Sums product(Sums sums, Bytes a, Bytes b) {
    return vdotq_s32(sums, a, b);
}
#elif defined(__aarch64__)
#define INT8 "neon"
using Bytes = int8x16_t;
using Sums = int32x4_t;
constexpr double OPS = 32;
inline Sums product(Sums sums, Bytes a, Bytes b) {
    return vpadalq_s16(vpadalq_s16(sums, vmull_s8(vget_low_s8(a), vget_low_s8(b))), vmull_high_s8(a, b));
}
#endif

// The compiler may not look at what it holds: nothing that is constant can be computed once and for all.
template <typename T> inline void hide(T & value) {
#if defined(__x86_64__)
    asm volatile("" : "+x"(value));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(value));
#else
    asm volatile("" : "+m"(value));
#endif
}

void multiply_floats() {
    constexpr int LANES = VECTOR_BYTES / 4;
    Floats sums[CHAINS], factor, addend;
    for (int i = 0; i < LANES; i++) {
        factor[i] = 0.5f;
        addend[i] = 1.0f; // sums go to 2: neither overflow nor denormal numbers
    }
    std::fill(sums, sums + CHAINS, addend);
    for (long turn = long(F32_OPS / (2 * LANES * CHAINS)); turn > 0; turn--) {
#pragma GCC unroll 10
        for (int k = 0; k < CHAINS; k++) {
            sums[k] = sums[k] * factor + addend;
        }
    }
    for (Floats & sum : sums) {
        hide(sum);
    }
}

#ifdef INT8
void multiply_bytes() {
    Sums sums[CHAINS] = {};
    Bytes a, b;
    memset(&a, 1, sizeof a);
    memset(&b, 1, sizeof b);
    for (long turn = long(INT8_OPS / (OPS * CHAINS)); turn > 0; turn--) {
        hide(a);
        hide(b);
#pragma GCC unroll 10
        for (int k = 0; k < CHAINS; k++) {
            sums[k] = product(sums[k], a, b);
        }
    }
    for (Sums & sum : sums) {
        hide(sum);
    }
}
#endif

void read_all(const uint64_t * words, size_t count) {
    uint64_t seen[16] = {};
    for (size_t i = 0; i + 16 <= count; i += 16) {
        for (size_t k = 0; k < 16; k++) {
            seen[k] |= words[i + k];
        }
    }
    asm volatile("" : : "r"(seen) : "memory");
}

// Amount per second of repeats that fill `seconds`, the first one (cold) left out.
std::vector<double> rates(int threads, double amount, double seconds, const std::function<void(int)> & work) {
    std::vector<double> found;
    for (const double began = now(); found.size() < 4 || now() - began < seconds;) {
        const double start = now();
        on_threads(threads, work);
        found.push_back(amount / (now() - start));
    }
    found.erase(found.begin());
    return found;
}

} // namespace

Json ceilings(Desk & desk) {
    const Json & job = desk.job;
    pin(job);
    const int threads = job.at("threads");
    const double seconds = job.value("seconds", 1.0);
    if (threads < 1) {
        throw JobError("a job needs threads of at least 1");
    }
    const size_t words = BUFFER_BYTES / threads / 2 / 8;
    struct Buffer {
        std::unique_ptr<uint64_t[]> from, to;
    };
    std::vector<Buffer> buffers(static_cast<size_t>(threads));
    on_threads(threads, [&](int i) { // each thread touches its own first
        for (std::unique_ptr<uint64_t[]> * side : {&buffers[i].from, &buffers[i].to}) {
            side->reset(new uint64_t[words]);
            std::fill_n(side->get(), words, 1);
        }
    });
    const double moved = double(threads) * double(words) * 8;
    Json found = {{"threads", threads}};
    found["read_bytes_per_s"] = rates(threads, moved, seconds, [&](int i) { read_all(buffers[i].from.get(), words); });
    desk.progress(1, 4);
    found["copy_bytes_per_s"] = rates(threads, 2 * moved, seconds, [&](int i) {
        memcpy(buffers[i].to.get(), buffers[i].from.get(), words * 8);
        asm volatile("" : : "r"(buffers[i].to.get()) : "memory");
    });
    desk.progress(2, 4);
    found["flops_f32"] = rates(threads, threads * F32_OPS, seconds, [](int) { multiply_floats(); });
    desk.progress(3, 4);
#ifdef INT8
    found["ops_int8"] = rates(threads, threads * INT8_OPS, seconds, [](int) { multiply_bytes(); });
    found["int8"] = INT8;
#endif
    desk.progress(4, 4);
    return found;
}
