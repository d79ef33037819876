/* Linear recurrences h_t = a_t h_{t-1} + x_t over a block, and their way back. Where an episode starts h_t is x_t: nothing
   of what came before is read, so that not even a NaN passes.

   Axes: T steps, B sequences, N numbers of a state. Those of `scan_complex` and `scan_traces` have a real and an imaginary
   part each, side by side, and a decay that is the same at every step; in `scan_traces` they are M inputs, of real numbers,
   at C decays each. Arrays are contiguous, in the order named. Functions return 0. */

#include <stdbool.h>

#include "vectors.h"

/* Raised whenever a function's arguments change. */
long scan_version(void) { return 2; }

static void clear(float *array, long size) {
    for (long i = 0; i < size; i++) array[i] = 0; /* memset may not be given an array of nothing */
}

static void copy(const float *restrict from, long size, float *restrict to) {
    for (long i = 0; i < size; i++) to[i] = from[i];
}

int scan_real(long T, long B, long N, const float *decay, const float *inputs, const float *before, const bool *starts,
              float *states) {
    const float *last = before;
    for (long t = 0; t < T; t++, last = states - B * N)
        for (long b = 0; b < B; b++, decay += N, inputs += N, last += N, states += N) {
            const float *restrict a = decay, *restrict x = inputs, *restrict h = last;
            float *restrict to = states;
            if (*starts++) copy(x, N, to);
            else
                for (long n = 0; n < N; n++) to[n] = a[n] * h[n] + x[n];
        }
    return 0;
}

/* From the end: what reaches h_t goes to x_t, times h_{t-1} to a_t, and times a_t to h_{t-1}, by way of d_before. */
int scan_real_backward(long T, long B, long N, const float *decay, const float *before, const bool *starts,
                       const float *states, const float *d_states, float *d_decay, float *d_inputs, float *d_before) {
    clear(d_before, B * N);
    for (long t = T - 1; t >= 0; t--)
        for (long b = 0; b < B; b++) {
            long at = (t * B + b) * N;
            const float *restrict a = decay + at, *restrict d = d_states + at;
            const float *restrict h = t ? states + at - B * N : before + b * N;
            float *restrict d_a = d_decay + at, *restrict d_x = d_inputs + at, *restrict d_h = d_before + b * N;
            for (long n = 0; n < N; n++) d_x[n] = d[n] + d_h[n];
            if (starts[t * B + b]) {
                clear(d_a, N);
                clear(d_h, N);
            } else
                for (long n = 0; n < N; n++) d_a[n] = d_x[n] * h[n], d_h[n] = d_x[n] * a[n];
        }
    return 0;
}

/* Products of complex numbers, four at a time. */

#ifdef __clang__
#define SHUFFLED(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define SHUFFLED(x, ...) __builtin_shuffle(x, (ivec){__VA_ARGS__})
#endif

INLINE vec reals(vec x) { return SHUFFLED(x, 0, 0, 2, 2, 4, 4, 6, 6); }
INLINE vec imaginaries(vec x) { return SHUFFLED(x, 1, 1, 3, 3, 5, 5, 7, 7); }
INLINE vec swapped(vec x) { return SHUFFLED(x, 1, 0, 3, 2, 5, 4, 7, 6); }

static const vec SIGNS = {-1, 1, -1, 1, -1, 1, -1, 1};

INLINE vec product(vec a, vec h) { return reals(a) * h + SIGNS * imaginaries(a) * swapped(h); }
INLINE vec product_with_conjugate(vec a, vec h) { return reals(a) * h - SIGNS * imaginaries(a) * swapped(h); }

/* to += a h of N numbers. */
INLINE void add_products(const float *restrict a, const float *restrict h, long N, float *restrict to) {
    long n = 0;
    for (; n + LANES <= 2 * N; n += LANES) store(to + n, load(to + n) + product(load(a + n), load(h + n)));
    for (; n < 2 * N; n += 2) {
        to[n] += a[n] * h[n] - a[n + 1] * h[n + 1];
        to[n + 1] += a[n] * h[n + 1] + a[n + 1] * h[n];
    }
}

/* Where d reaches h_t: d_a += conj(h_{t-1}) d, and conj(a) d in place of d, which reaches h_{t-1}. */
INLINE void step_back(const float *restrict a, const float *restrict h, long N, float *restrict d, float *restrict d_a) {
    long n = 0;
    for (; n + LANES <= 2 * N; n += LANES) {
        vec reaching = load(d + n);
        store(d_a + n, load(d_a + n) + product_with_conjugate(load(h + n), reaching));
        store(d + n, product_with_conjugate(load(a + n), reaching));
    }
    for (; n < 2 * N; n += 2) {
        float real = d[n], imaginary = d[n + 1];
        d_a[n] += real * h[n] + imaginary * h[n + 1];
        d_a[n + 1] += imaginary * h[n] - real * h[n + 1];
        d[n] = a[n] * real + a[n + 1] * imaginary;
        d[n + 1] = a[n] * imaginary - a[n + 1] * real;
    }
}

int scan_complex(long T, long B, long N, const float *decay, const float *inputs, const float *before, const bool *starts,
                 float *states) {
    const float *last = before;
    for (long t = 0; t < T; t++, last = states - 2 * B * N)
        for (long b = 0; b < B; b++, inputs += 2 * N, last += 2 * N, states += 2 * N) {
            copy(inputs, 2 * N, states);
            if (!*starts++) add_products(decay, last, N, states);
        }
    return 0;
}

/* As above, with conjugates, and d_decay (N, 2) summed over steps and sequences. */
int scan_complex_backward(long T, long B, long N, const float *decay, const float *before, const bool *starts,
                          const float *states, const float *d_states, float *d_decay, float *d_inputs, float *d_before) {
    clear(d_decay, 2 * N);
    clear(d_before, 2 * B * N);
    for (long t = T - 1; t >= 0; t--)
        for (long b = 0; b < B; b++) {
            long at = 2 * (t * B + b) * N;
            const float *restrict d = d_states + at;
            float *restrict d_h = d_before + 2 * b * N;
            for (long n = 0; n < 2 * N; n++) d_h[n] += d[n];
            copy(d_h, 2 * N, d_inputs + at);
            if (starts[t * B + b]) clear(d_h, 2 * N);
            else step_back(decay, t ? states + at - 2 * B * N : before + 2 * b * N, N, d_h, d_decay);
        }
    return 0;
}

/* A constant C is unrolled. */
INLINE void spread(const float *restrict x, long M, long C, float *restrict to) {
    for (long m = 0; m < M; m++)
        for (long c = 0; c < C; c++, to += 2) to[0] = x[m], to[1] = 0;
}

INLINE void gather(const float *restrict d, long M, long C, float *restrict d_x) {
    for (long m = 0; m < M; m++) {
        float sum = 0;
        for (long c = 0; c < C; c++, d += 2) sum += d[0];
        d_x[m] = sum;
    }
}

int scan_traces(long T, long B, long M, long C, const float *decay, const float *inputs, const float *before,
                const bool *starts, float *states) {
    const float *last = before;
    long width = 2 * M * C;
    for (long t = 0; t < T; t++, last = states - B * width)
        for (long b = 0; b < B; b++, inputs += M, last += width, states += width) {
            if (C == 4) spread(inputs, M, 4, states);
            else spread(inputs, M, C, states);
            if (!*starts++) add_products(decay, last, M * C, states);
        }
    return 0;
}

int scan_traces_backward(long T, long B, long M, long C, const float *decay, const float *before, const bool *starts,
                         const float *states, const float *d_states, float *d_decay, float *d_inputs, float *d_before) {
    long width = 2 * M * C;
    clear(d_decay, width);
    clear(d_before, B * width);
    for (long t = T - 1; t >= 0; t--)
        for (long b = 0; b < B; b++) {
            long at = (t * B + b) * width;
            const float *restrict d = d_states + at;
            float *restrict d_h = d_before + b * width;
            for (long n = 0; n < width; n++) d_h[n] += d[n];
            if (C == 4) gather(d_h, M, 4, d_inputs + (t * B + b) * M);
            else gather(d_h, M, C, d_inputs + (t * B + b) * M);
            if (starts[t * B + b]) clear(d_h, width);
            else step_back(decay, t ? states + at - B * width : before + b * width, M * C, d_h, d_decay);
        }
    return 0;
}
