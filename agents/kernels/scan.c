/* Linear recurrences h_t = a_t h_{t-1} + x_t over a block, and their way back. Where an episode starts h_t is x_t: nothing
   of what came before is read, so that not even a NaN passes.

   Axes: T steps, B sequences, N numbers of a state, of a real and an imaginary part each in `scan_complex`, whose decay is
   the same at every step; arrays are contiguous, in the order named. Functions return 0. */

#include <stdbool.h>

/* Raised whenever a function's arguments change. */
long scan_version(void) { return 1; }

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

int scan_complex(long T, long B, long N, const float *decay, const float *inputs, const float *before, const bool *starts,
                 float *states) {
    const float *last = before, *restrict a = decay;
    for (long t = 0; t < T; t++, last = states - 2 * B * N)
        for (long b = 0; b < B; b++, inputs += 2 * N, last += 2 * N, states += 2 * N) {
            const float *restrict x = inputs, *restrict h = last;
            float *restrict to = states;
            if (*starts++) copy(x, 2 * N, to);
            else
                for (long n = 0; n < 2 * N; n += 2) {
                    to[n] = a[n] * h[n] - a[n + 1] * h[n + 1] + x[n];
                    to[n + 1] = a[n] * h[n + 1] + a[n + 1] * h[n] + x[n + 1];
                }
        }
    return 0;
}

/* As above, with conjugates, and d_decay (N, 2) summed over steps and sequences. */
int scan_complex_backward(long T, long B, long N, const float *decay, const float *before, const bool *starts,
                          const float *states, const float *d_states, float *d_decay, float *d_inputs, float *d_before) {
    const float *restrict a = decay;
    float *restrict d_a = d_decay;
    clear(d_decay, 2 * N);
    clear(d_before, 2 * B * N);
    for (long t = T - 1; t >= 0; t--)
        for (long b = 0; b < B; b++) {
            long at = 2 * (t * B + b) * N;
            const float *restrict d = d_states + at, *restrict h = t ? states + at - 2 * B * N : before + 2 * b * N;
            float *restrict d_x = d_inputs + at, *restrict d_h = d_before + 2 * b * N;
            for (long n = 0; n < 2 * N; n++) d_x[n] = d[n] + d_h[n];
            if (starts[t * B + b]) clear(d_h, 2 * N);
            else
                for (long n = 0; n < 2 * N; n += 2) {
                    d_a[n] += d_x[n] * h[n] + d_x[n + 1] * h[n + 1];
                    d_a[n + 1] += d_x[n + 1] * h[n] - d_x[n] * h[n + 1];
                    d_h[n] = a[n] * d_x[n] + a[n + 1] * d_x[n + 1];
                    d_h[n + 1] = a[n] * d_x[n + 1] - a[n + 1] * d_x[n];
                }
        }
    return 0;
}
