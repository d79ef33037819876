/* The sequential heart of RNN, LSTM and GRU on a CPU: everything in a sequence pass that cannot be one large product.

   The input projections of all steps are one matrix product before, and all weight gradients are one after; both are
   torch's. What is left is a loop over time whose steps are tiny, where the overhead of a call costs more than its
   arithmetic. Here it has none. Resets are part of the loop, so episodes need neither cutting nor padding.

   Axes: T time, B sequences, H hidden units, G gates of a cell; all arrays are contiguous float32 in the order named.
   H must be a multiple of 8. `starts` (T, B) is nonzero where an episode starts: the state before that step is zero,
   and no gradient crosses it. Every function returns 0, or 1 if memory ran out.

   Compiled with GCC or clang as plain C and called through ctypes (native.py); without a compiler at installation the
   package works through torch alone. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define TILE 16 /* columns of a packed tile of weights */
#define GROUP (4 * TILE)

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

static long padded(long columns) { return (columns + GROUP - 1) / GROUP * GROUP; }

/* (K, N) weights, element (k, n) at k * along_k + n * along_n, into tiles of TILE columns, each (K, TILE). */
static float *pack(const float *weights, long K, long N, long along_k, long along_n) {
    float *packed = calloc((size_t)(padded(N) * K), sizeof(float));
    if (packed)
        for (long n = 0; n < N; n++)
            for (long k = 0; k < K; k++)
                packed[(n / TILE) * K * TILE + k * TILE + n % TILE] = weights[k * along_k + n * along_n];
    return packed;
}

/* ROWS rows of out += a @ weights over `tiles` adjacent tiles, all accumulators in registers. */
INLINE void block(int rows, int tiles, const float *a, long K, const float *packed, float *out, long width) {
    vec sums[8][2 * 4];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 2 * tiles; c++) sums[r][c] = load(out + r * width + c * LANES);
    for (long k = 0; k < K; k++) {
        vec weight[2 * 4];
        for (int c = 0; c < 2 * tiles; c++) weight[c] = load(packed + (c / 2) * K * TILE + k * TILE + (c % 2) * LANES);
        for (int r = 0; r < rows; r++) {
            vec factor = all(a[r * K + k]);
            for (int c = 0; c < 2 * tiles; c++) sums[r][c] += factor * weight[c];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 2 * tiles; c++) store(out + r * width + c * LANES, sums[r][c]);
}

/* out (B, width) += a (B, K) @ packed weights; width is a multiple of GROUP. Weights are read once for every six rows;
   few rows take wider blocks, so that there are always enough independent sums to hide the latency of one. */
static void multiply(const float *a, long B, long K, const float *packed, float *out, long width) {
    for (long column = 0; column < width; column += GROUP) {
        const float *group = packed + column * K;
        for (long row = 0; row < B;) {
            const float *from = a + row * K;
            float *to = out + row * width + column;
            long left = B - row;
            if (left >= 6) {
                for (int t = 0; t < 4; t++) block(6, 1, from, K, group + t * K * TILE, to + t * TILE, width);
                row += 6;
            } else if (left >= 4) {
                for (int t = 0; t < 4; t++) block(4, 1, from, K, group + t * K * TILE, to + t * TILE, width);
                row += 4;
            } else if (left >= 2) {
                for (int t = 0; t < 4; t += 2) block(2, 2, from, K, group + t * K * TILE, to + t * TILE, width);
                row += 2;
            } else {
                block(1, 4, from, K, group, to, width);
                row += 1;
            }
        }
    }
}

/* The state before step t, zero where an episode starts. */
static void put_before(float *before, const float *state, const uint8_t *starts, long B, long H) {
    for (long b = 0; b < B; b++) {
        if (starts[b]) memset(before + b * H, 0, (size_t)H * sizeof(float));
        else memcpy(before + b * H, state + b * H, (size_t)H * sizeof(float));
    }
}

/* sums (B, width) = rows of inputs (B, N), and zero in the padding. */
static void put_inputs(float *sums, long width, const float *inputs, long B, long N) {
    for (long b = 0; b < B; b++) memcpy(sums + b * width, inputs + b * N, (size_t)N * sizeof(float));
}

/* c' = f c + i g, h' = o tanh(c'); inputs (T, B, 4H) hold W_ih x + b_ih + b_hh in the order i, f, g, o.
   Writes outputs (T, B, H) and, for the backward pass, gates (T, B, 4H) after their nonlinearity, the cells' tanh and
   the cells (T, B, H), and the hidden state before each step (T, B, H). */
int lstm_forward(long T, long B, long H, const float *inputs, const float *w_hh, const float *hidden, const float *cell,
                 const uint8_t *starts, float *outputs, float *gates, float *cells, float *tanh_cells, float *before) {
    long N = 4 * H, width = padded(N);
    float *packed = pack(w_hh, H, N, 1, H), *sums = calloc((size_t)(B * width), sizeof(float));
    if (!packed || !sums) { free(packed); free(sums); return 1; }
    for (long t = 0; t < T; t++) {
        const uint8_t *start = starts + t * B;
        put_before(before + t * B * H, t ? outputs + (t - 1) * B * H : hidden, start, B, H);
        put_inputs(sums, width, inputs + t * B * N, B, N);
        multiply(before + t * B * H, B, H, packed, sums, width);
        const float *cell_before = t ? cells + (t - 1) * B * H : cell;
        for (long b = 0; b < B; b++) {
            const float *sum = sums + b * width;
            float *gate = gates + (t * B + b) * N;
            long at = (t * B + b) * H;
            for (long j = 0; j < H; j += LANES) {
                vec i = sigmoid(load(sum + j)), f = sigmoid(load(sum + H + j));
                vec g = hyperbolic_tangent(load(sum + 2 * H + j)), o = sigmoid(load(sum + 3 * H + j));
                vec c = i * g;
                if (!start[b]) c += f * load(cell_before + b * H + j);
                vec tanh_c = hyperbolic_tangent(c);
                store(gate + j, i); store(gate + H + j, f); store(gate + 2 * H + j, g); store(gate + 3 * H + j, o);
                store(cells + at + j, c); store(tanh_cells + at + j, tanh_c); store(outputs + at + j, o * tanh_c);
            }
        }
    }
    free(packed); free(sums);
    return 0;
}

/* Gradients d_outputs (T, B, H) -> d_inputs (T, B, 4H), and d_hidden, d_cell (B, H) of the state before the block. */
int lstm_backward(long T, long B, long H, const float *d_outputs, const float *w_hh, const float *cell,
                  const uint8_t *starts, const float *gates, const float *cells, const float *tanh_cells,
                  float *d_inputs, float *d_hidden, float *d_cell) {
    long N = 4 * H, width = padded(H);
    float *packed = pack(w_hh, N, H, H, 1), *back = calloc((size_t)(B * width), sizeof(float));
    if (!packed || !back) { free(packed); free(back); return 1; }
    memset(d_cell, 0, (size_t)(B * H) * sizeof(float));
    for (long t = T - 1; t >= 0; t--) {
        const uint8_t *start = starts + t * B;
        const float *cell_before = t ? cells + (t - 1) * B * H : cell;
        for (long b = 0; b < B; b++) {
            const float *gate = gates + (t * B + b) * N;
            float *d_gate = d_inputs + (t * B + b) * N;
            long at = (t * B + b) * H;
            for (long j = 0; j < H; j += LANES) {
                vec i = load(gate + j), f = load(gate + H + j), g = load(gate + 2 * H + j), o = load(gate + 3 * H + j);
                vec tanh_c = load(tanh_cells + at + j), one = all(1.0f);
                vec d_h = load(d_outputs + at + j) + load(back + b * width + j);
                vec d_c = load(d_cell + b * H + j) + d_h * o * (one - tanh_c * tanh_c);
                vec c_before = all(0.0f);
                if (!start[b]) c_before = load(cell_before + b * H + j);
                store(d_gate + j, d_c * g * i * (one - i));
                store(d_gate + H + j, d_c * c_before * f * (one - f));
                store(d_gate + 2 * H + j, d_c * i * (one - g * g));
                store(d_gate + 3 * H + j, d_h * tanh_c * o * (one - o));
                vec d_c_before = d_c * f;
                if (start[b]) d_c_before = all(0.0f);
                store(d_cell + b * H + j, d_c_before);
            }
        }
        memset(back, 0, (size_t)(B * width) * sizeof(float));
        multiply(d_inputs + t * B * N, B, N, packed, back, width);
        for (long b = 0; b < B; b++)
            if (start[b]) memset(back + b * width, 0, (size_t)width * sizeof(float));
    }
    for (long b = 0; b < B; b++) memcpy(d_hidden + b * H, back + b * width, (size_t)H * sizeof(float));
    free(packed); free(back);
    return 0;
}

/* r, z = sigmoid(x + W h), n = tanh(x_n + r (W_hn h + b_hn)), h' = n + z (h - n). inputs (T, B, 3H) hold
   W_ih x + b_ih, and of b_hh the r and z parts; bias_n (H) is b_hn. Writes outputs, the gates r, z, n (T, B, 3H),
   q = W_hn h + b_hn (T, B, H), and the hidden state before each step. */
int gru_forward(long T, long B, long H, const float *inputs, const float *w_hh, const float *bias_n, const float *hidden,
                const uint8_t *starts, float *outputs, float *gates, float *q, float *before) {
    long N = 3 * H, width = padded(N);
    float *packed = pack(w_hh, H, N, 1, H), *sums = calloc((size_t)(B * width), sizeof(float));
    if (!packed || !sums) { free(packed); free(sums); return 1; }
    for (long t = 0; t < T; t++) {
        put_before(before + t * B * H, t ? outputs + (t - 1) * B * H : hidden, starts + t * B, B, H);
        for (long b = 0; b < B; b++) {
            memcpy(sums + b * width, inputs + (t * B + b) * N, (size_t)(2 * H) * sizeof(float));
            memcpy(sums + b * width + 2 * H, bias_n, (size_t)H * sizeof(float));
        }
        multiply(before + t * B * H, B, H, packed, sums, width);
        for (long b = 0; b < B; b++) {
            const float *sum = sums + b * width, *input = inputs + (t * B + b) * N;
            float *gate = gates + (t * B + b) * N;
            long at = (t * B + b) * H;
            for (long j = 0; j < H; j += LANES) {
                vec r = sigmoid(load(sum + j)), z = sigmoid(load(sum + H + j)), w = load(sum + 2 * H + j);
                vec n = hyperbolic_tangent(load(input + 2 * H + j) + r * w);
                store(gate + j, r); store(gate + H + j, z); store(gate + 2 * H + j, n); store(q + at + j, w);
                store(outputs + at + j, n + z * (load(before + at + j) - n));
            }
        }
    }
    free(packed); free(sums);
    return 0;
}

/* Gradients d_outputs (T, B, H) -> d_inputs (T, B, 3H) of the input projections, d_sums (T, B, 3H) of W_hh h + b_hh
   (the same but for n, where the gate r stands between), and d_hidden (B, H) of the state before the block. */
int gru_backward(long T, long B, long H, const float *d_outputs, const float *w_hh, const uint8_t *starts,
                 const float *gates, const float *q, const float *before, float *d_inputs, float *d_sums,
                 float *d_hidden) {
    long N = 3 * H, width = padded(H);
    float *packed = pack(w_hh, N, H, H, 1), *back = calloc((size_t)(B * width), sizeof(float));
    if (!packed || !back) { free(packed); free(back); return 1; }
    for (long t = T - 1; t >= 0; t--) {
        const uint8_t *start = starts + t * B;
        for (long b = 0; b < B; b++) {
            const float *gate = gates + (t * B + b) * N;
            float *d_input = d_inputs + (t * B + b) * N, *d_sum = d_sums + (t * B + b) * N;
            long at = (t * B + b) * H;
            for (long j = 0; j < H; j += LANES) {
                vec r = load(gate + j), z = load(gate + H + j), n = load(gate + 2 * H + j), one = all(1.0f);
                vec d_h = load(d_outputs + at + j) + load(back + b * width + j);
                vec d_n = d_h * (one - z) * (one - n * n);
                vec d_z = d_h * (load(before + at + j) - n) * z * (one - z);
                vec d_r = d_n * load(q + at + j) * r * (one - r);
                store(d_input + j, d_r); store(d_input + H + j, d_z); store(d_input + 2 * H + j, d_n);
                store(d_sum + j, d_r); store(d_sum + H + j, d_z); store(d_sum + 2 * H + j, d_n * r);
                store(back + b * width + j, d_h * z);
            }
        }
        multiply(d_sums + t * B * N, B, N, packed, back, width);
        for (long b = 0; b < B; b++)
            if (start[b]) memset(back + b * width, 0, (size_t)width * sizeof(float));
    }
    for (long b = 0; b < B; b++) memcpy(d_hidden + b * H, back + b * width, (size_t)H * sizeof(float));
    free(packed); free(back);
    return 0;
}

/* h' = tanh(inputs + W h), or with relu in its place. Writes outputs and the hidden state before each step. */
int rnn_forward(long T, long B, long H, const float *inputs, const float *w_hh, const float *hidden,
                const uint8_t *starts, int relu, float *outputs, float *before) {
    long width = padded(H);
    float *packed = pack(w_hh, H, H, 1, H), *sums = calloc((size_t)(B * width), sizeof(float));
    if (!packed || !sums) { free(packed); free(sums); return 1; }
    for (long t = 0; t < T; t++) {
        put_before(before + t * B * H, t ? outputs + (t - 1) * B * H : hidden, starts + t * B, B, H);
        put_inputs(sums, width, inputs + t * B * H, B, H);
        multiply(before + t * B * H, B, H, packed, sums, width);
        for (long b = 0; b < B; b++)
            for (long j = 0; j < H; j += LANES) {
                vec sum = load(sums + b * width + j);
                vec h;
                if (relu) h = choose(sum < all(0.0f), all(0.0f), sum);
                else h = hyperbolic_tangent(sum);
                store(outputs + (t * B + b) * H + j, h);
            }
    }
    free(packed); free(sums);
    return 0;
}

/* Gradients d_outputs (T, B, H) -> d_inputs (T, B, H), and d_hidden (B, H) of the state before the block. */
int rnn_backward(long T, long B, long H, const float *d_outputs, const float *w_hh, const uint8_t *starts, int relu,
                 const float *outputs, float *d_inputs, float *d_hidden) {
    long width = padded(H);
    float *packed = pack(w_hh, H, H, H, 1), *back = calloc((size_t)(B * width), sizeof(float));
    if (!packed || !back) { free(packed); free(back); return 1; }
    for (long t = T - 1; t >= 0; t--) {
        for (long b = 0; b < B; b++)
            for (long j = 0; j < H; j += LANES) {
                long at = (t * B + b) * H + j;
                vec h = load(outputs + at), d_h = load(d_outputs + at) + load(back + b * width + j);
                vec slope = all(1.0f) - h * h;
                if (relu) slope = choose(h > all(0.0f), all(1.0f), all(0.0f));
                store(d_inputs + at, d_h * slope);
            }
        memset(back, 0, (size_t)(B * width) * sizeof(float));
        multiply(d_inputs + t * B * H, B, H, packed, back, width);
        for (long b = 0; b < B; b++)
            if (starts[t * B + b]) memset(back + b * width, 0, (size_t)width * sizeof(float));
    }
    for (long b = 0; b < B; b++) memcpy(d_hidden + b * H, back + b * width, (size_t)H * sizeof(float));
    free(packed); free(back);
    return 0;
}
