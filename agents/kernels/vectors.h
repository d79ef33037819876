/* Eight floats at a time, for GCC and clang: AVX2 where it is compiled for, else whatever the processor has. */

#ifndef RECURL_VECTORS_H
#define RECURL_VECTORS_H

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define TILE 16 /* columns that a row of registers holds */

typedef float vec __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(32), aligned(4), may_alias));

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec value) { *(vec *)to = value; }
INLINE vec all(float x) { return (vec){x, x, x, x, x, x, x, x}; }
INLINE vec choose(ivec condition, vec yes, vec no) { return (vec)((condition & (ivec)yes) | (~condition & (ivec)no)); }

/* e^x to 1e-7 relative: x = n ln 2 + r, |r| <= ln 2 / 2, a Taylor polynomial of e^r, and n added to the exponent.
   Comparisons are written so that a NaN stays one. */
INLINE vec exponential(vec x) {
    const vec shift = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number in the low bits */
    vec bounded = choose(x > all(88.0f), all(88.0f), x);
    bounded = choose(bounded < all(-87.0f), all(-87.0f), bounded);
    vec shifted = bounded * all(1.44269504f) + shift;
    vec n = shifted - shift;
    vec r = bounded - n * all(0.693145752f) - n * all(1.42860677e-6f);
    vec sum = all(1.0f / 5040.0f);
    sum = sum * r + all(1.0f / 720.0f);
    sum = sum * r + all(1.0f / 120.0f);
    sum = sum * r + all(1.0f / 24.0f);
    sum = sum * r + all(1.0f / 6.0f);
    sum = sum * r + all(0.5f);
    sum = sum * r + all(1.0f);
    sum = sum * r + all(1.0f);
    vec scaled = (vec)((ivec)sum + ((ivec)shifted << 23));
    return choose(x == x, scaled, x);
}

INLINE vec sigmoid(vec x) { return all(1.0f) / (all(1.0f) + exponential(-x)); }
INLINE vec hyperbolic_tangent(vec x) { return all(1.0f) - all(2.0f) / (all(1.0f) + exponential(x + x)); }

#endif
