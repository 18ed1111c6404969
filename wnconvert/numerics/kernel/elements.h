/* Elements of float32, float16 and bfloat16 as double, and sums that keep what additions lose.

   Only operations that IEEE 754 rounds to nearest are used, in an order that is written down, so that every
   processor gives the same bits: -ffp-contract=off, and lanes are spelled out. float32 is neither made nor
   taken apart where a thread may have subnormal numbers taken for 0, but for loading float32. */

#ifndef ELEMENTS_H
#define ELEMENTS_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0 || defined(__FAST_MATH__)
#error "each operation is to be rounded, and rounded once: neither the x87 nor -ffast-math can be used"
#endif

/* Elements that are worked on at a time: as double, they lie in a core's first cache. */
#define RUN 512
/* Sums that are made side by side. */
#define LANES 32
/* Rows that are shorter are summed element by element. */
#define SHORT 32

#define INLINE static inline __attribute__((always_inline))

enum { FLOAT32, FLOAT16, BFLOAT16 };

typedef float unaligned_float __attribute__((aligned(1), may_alias));
typedef uint16_t unaligned_half __attribute__((aligned(1), may_alias));
typedef uint32_t unaligned_word __attribute__((aligned(1), may_alias));

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE double double_of(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

INLINE size_t size_of(int format) { return format == FLOAT32 ? 4 : 2; }

/* Values exactly as double. */
INLINE void load(int format, const char *from, ptrdiff_t count, double *restrict to) {
    if (format == FLOAT32) {
        const unaligned_float *values = (const unaligned_float *)from;
        for (ptrdiff_t i = 0; i < count; i++) to[i] = values[i];
        return;
    }
    const unaligned_half *codes = (const unaligned_half *)from;
    if (format == BFLOAT16) {
        for (ptrdiff_t i = 0; i < count; i++) to[i] = float_of((uint32_t)codes[i] << 16);
        return;
    }
    /* float16's exponents are float32's less 112; 143 exponents up, infinities and NaN are what they were.
       Subnormal numbers are made with the next exponent, of which 2^-14 is taken away again. */
    for (ptrdiff_t i = 0; i < count; i++) {
        uint32_t code = codes[i], magnitude = (code & 0x7FFF) << 13;
        uint32_t up = magnitude >= 0x0F800000 ? 224u << 23 : magnitude < 0x00800000 ? 113u << 23 : 112u << 23;
        float value = float_of(magnitude + up) - (magnitude < 0x00800000 ? 0x1p-14f : 0.0f);
        to[i] = code & 0x8000 ? -value : value;
    }
}

/* The code of the largest magnitude. */
INLINE uint32_t largest_of(int format, const char *x, ptrdiff_t count) {
    if (format == FLOAT32) {
        const unaligned_word *codes = (const unaligned_word *)x;
        int32_t most = 0;
        for (ptrdiff_t i = 0; i < count; i++) {
            int32_t code = (int32_t)(codes[i] & 0x7FFFFFFF);
            most = code > most ? code : most;
        }
        return (uint32_t)most;
    }
    const unaligned_half *codes = (const unaligned_half *)x;
    int16_t most = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        int16_t code = (int16_t)(codes[i] & 0x7FFF);
        most = code > most ? code : most;
    }
    return (uint32_t)most;
}

/* What an addition loses is added up beside the sum (Knuth's TwoSum). */
INLINE void add(double *restrict high, double *restrict low, double term, double lost) {
    double sum = *high + term, back = sum - *high;
    *low += ((*high - (sum - back)) + (term - back)) + lost;
    *high = sum;
}

/* Add up each run of LANES sums: the first is then that of all. */
INLINE void join(double *restrict sums, double *restrict lost) {
    for (ptrdiff_t half = LANES / 2; half; half /= 2)
        for (ptrdiff_t i = 0; i < half; i++) add(sums + i, lost + i, sums[half + i], lost[half + i]);
}

/* -- functions in the version that suits the processor */

/* The processor's most, of: 0 what every one has, 1 AVX2, 2 AVX-512. */
extern int wnconvert_level;

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))

INLINE int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
/* A function of which `version` writes out one, as name_anywhere and so on. */
#define VERSIONS(version, name) version(name##_anywhere) AVX2 version(name##_avx2) AVX512 version(name##_avx512)
#define BEST(name)                                                                                       \
    (wnconvert_level > 1 && has_avx512() ? name##_avx512                                                 \
     : wnconvert_level > 0 && __builtin_cpu_supports("avx2") ? name##_avx2 : name##_anywhere)
#else
#define VERSIONS(version, name) version(name##_anywhere)
#define BEST(name) name##_anywhere
#endif

#endif
