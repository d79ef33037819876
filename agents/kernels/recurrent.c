/* The sequential heart of RNN, LSTM and GRU on a CPU: everything in a sequence pass that cannot be one large product.

   The input projections of all steps are one matrix product before, and all weight gradients are one after; both are
   torch's. What is left is a loop over time whose steps are tiny, where the overhead of a call costs more than its
   arithmetic. Here it has none. A block is cut where episodes start, and all its pieces run at once, the long ones on
   when the short ones have ended: the weights are read once for many rows, and nothing is padded.

   Axes: T time, B sequences, F features, H hidden units, G gates of a cell; arrays are contiguous float32 in the order
   named. H must be a multiple of 8. `starts` (T, B) is nonzero where an episode starts: the
   state before that step is zero, or with `learned` the last row of a state before the block of B + 1 rows, and no
   gradient crosses it. Pieces have nothing to do with each other, so threads may share a block: each takes one `part`
   of `parts`. Gradients of the state before the block have R rows: B, written only where no episode starts, and with
   `learned` as many more as episodes start, one for each in the order of (B, T), which add up to that of the last row,
   so that no two threads add to one number and their sum does not depend on how many there are.

   Functions return 0, 1 if memory ran out, or 2 if numbers of rows do not fit the episodes that start. Sizes come
   first, then numbers, then arrays: binding.py declares each function, and checks shapes and types before every call. */

#include <stdlib.h>
#include <string.h>

#include "vectors.h"

#define GROUP (4 * TILE) /* columns of packed weights come in groups of tiles */

/* The plain network's activation function. */
INLINE vec activation(vec x, int relu) {
    if (relu) return choose(x < all(0.0f), all(0.0f), x);
    return hyperbolic_tangent(x);
}

static long padded(long columns) { return (columns + GROUP - 1) / GROUP * GROUP; }

/* Raised whenever a function's arguments change: a library of another version, built from an older checkout say, would
   misread what it is handed, and is not used. */
long recurrent_version(void) { return 4; }

/* How many floats packed weights (K, N) take. */
long packed_size(long K, long N) { return padded(N) * K; }

/* (K, N) weights, element (k, n) at k * along_k + n * along_n, into tiles of TILE columns, each (K, TILE). */
static void pack_along(const float *weights, long K, long N, long along_k, long along_n, float *packed) {
    memset(packed, 0, (size_t)packed_size(K, N) * sizeof(float));
    for (long first = 0; first < N; first += TILE)
        for (long k = 0; k < K; k++)
            for (long n = first; n < first + TILE && n < N; n++)
                packed[first * K + k * TILE + n - first] = weights[k * along_k + n * along_n];
}

/* Weights (N, K), as torch has them, for the products of an acting step. */
int pack(long N, long K, const float *weights, float *packed) {
    pack_along(weights, K, N, 1, K, packed);
    return 0;
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
   few rows take wider blocks, so that there are always enough independent sums to hide the latency of one. Every
   second step goes through the columns backwards: weights larger than the cache are still there in part. */
static void multiply(const float *a, long B, long K, const float *packed, float *out, long width, long step) {
    for (long done = 0; done < width; done += GROUP) {
        long column = step % 2 ? width - GROUP - done : done;
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


/* What a pass over a block needs beside its arguments: its pieces, long ones first, and room for one step of them. */
typedef struct { long row, length, from, to; } piece; /* row t * B + b of its first step; the row of the state before
                                                         the block that it starts from, -1 for zeros; the row that the
                                                         gradient of that goes to, -1 for nowhere */
typedef struct {
    piece *pieces;
    long count, longest, width; /* width: columns of sums */
    float *packed, *rows, *sums, *carry;
} work;

static int longer_first(const void *left, const void *right) {
    const piece *a = left, *b = right;
    if (a->length != b->length) return a->length < b->length ? 1 : -1;
    return a->row < b->row ? -1 : 1;
}

static void release(work *w) {
    free(w->pieces); free(w->packed); free(w->rows); free(w->sums); free(w->carry);
}

static float *zeros(long count) { return calloc((size_t)(count ? count : 1), sizeof(float)); }

/* Cuts the block, keeps every parts-th piece from the part-th on, packs the weights (K, N), and makes room: rows
   (P, K), sums (P, padded N), carry (P, H). */
static int prepare(work *w, long T, long B, long H, long part, long parts, const uint8_t *starts, int learned,
                   const float *weights, long K, long N, long along_k, long along_n) {
    *w = (work){0};
    long all_pieces = 0, last = -1, started = 0;
    for (long b = 0; b < B; b++)
        for (long t = 0; t < T; t++) all_pieces += t == 0 || starts[t * B + b];
    w->pieces = malloc((size_t)(all_pieces + 1) * sizeof(piece));
    if (!w->pieces) return 1;
    for (long b = 0; b < B; b++)
        for (long t = 0; t < T; t++) {
            if (starts[t * B + b]) {
                w->pieces[++last] = (piece){t * B + b, 0, learned ? B : -1, learned ? B + started : -1};
                started++;
            } else if (t == 0) {
                w->pieces[++last] = (piece){b, 0, b, b};
            }
            w->pieces[last].length++;
        }
    qsort(w->pieces, (size_t)all_pieces, sizeof(piece), longer_first);
    for (long p = part; p < all_pieces; p += parts) w->pieces[w->count++] = w->pieces[p];
    w->longest = w->count ? w->pieces[0].length : 0;
    w->width = padded(N);
    w->packed = malloc((size_t)(packed_size(K, N) + 1) * sizeof(float));
    w->rows = zeros(w->count * K);
    w->sums = zeros(w->count * w->width);
    w->carry = zeros(w->count * H);
    if (!w->packed || !w->rows || !w->sums || !w->carry) { release(w); return 1; }
    pack_along(weights, K, N, along_k, along_n, w->packed);
    return 0;
}

/* Rows that the gradient of the state before a block takes. */
static long gradient_rows(long T, long B, const uint8_t *starts, int learned) {
    long rows = B;
    for (long at = 0; learned && at < T * B; at++) rows += starts[at] != 0;
    return rows;
}

/* How many pieces have a step s: they are the first ones. */
static long alive(const work *w, long s) {
    long low = 0, high = w->count;
    while (low < high) {
        long middle = (low + high) / 2;
        if (w->pieces[middle].length > s) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void copy(float *to, const float *from, long count) { memcpy(to, from, (size_t)count * sizeof(float)); }
static void clear(float *to, long count) { memset(to, 0, (size_t)count * sizeof(float)); }

/* The state before step s of each live piece, from the step before in `states` or the state before the block. */
static void gather(const work *w, long s, long live, long B, long H, const float *states, const float *initial,
                   float *to) {
    for (long p = 0; p < live; p++) {
        const piece *it = w->pieces + p;
        if (s) copy(to + p * H, states + (it->row + (s - 1) * B) * H, H);
        else if (it->from >= 0) copy(to + p * H, initial + it->from * H, H);
        else clear(to + p * H, H);
    }
}

/* What reaches the state before the block, from each piece's row in `from`. */
static void give_back(const work *w, const float *from, long stride, long H, float *to) {
    for (long p = 0; p < w->count; p++)
        if (w->pieces[p].to >= 0) copy(to + w->pieces[p].to * H, from + p * stride, H);
}

/* c' = f c + i g, h' = o tanh(c'); inputs (T, B, 4H) hold W_ih x + b_ih + b_hh in the order i, f, g, o.
   Writes outputs (T, B, H) and, for the backward pass, gates (T, B, 4H) after their activations, the cells and their
   tanh (T, B, H), and the hidden state and cell before each step (T, B, H). */
int lstm_forward(long T, long B, long H, long S, long part, long parts, const float *inputs, const float *w_hh,
                 const float *hidden, const float *cell, const uint8_t *starts, float *outputs, float *gates,
                 float *cells, float *tanh_cells, float *before) {
    long N = 4 * H;
    int learned = S > B;
    work w;
    if (S != B + learned) return 2;
    if (prepare(&w, T, B, H, part, parts, starts, learned, w_hh, H, N, 1, H)) return 1;
    for (long s = 0; s < w.longest; s++) {
        long live = alive(&w, s);
        gather(&w, s, live, B, H, outputs, hidden, w.rows);
        gather(&w, s, live, B, H, cells, cell, w.carry);
        for (long p = 0; p < live; p++) copy(w.sums + p * w.width, inputs + (w.pieces[p].row + s * B) * N, N);
        multiply(w.rows, live, H, w.packed, w.sums, w.width, s);
        for (long p = 0; p < live; p++) {
            long row = w.pieces[p].row + s * B, at = row * H;
            const float *sum = w.sums + p * w.width, *cell_before = w.carry + p * H;
            float *gate = gates + row * N;
            copy(before + at, w.rows + p * H, H);
            for (long j = 0; j < H; j += LANES) {
                vec i = sigmoid(load(sum + j)), f = sigmoid(load(sum + H + j));
                vec g = hyperbolic_tangent(load(sum + 2 * H + j)), o = sigmoid(load(sum + 3 * H + j));
                vec c = f * load(cell_before + j) + i * g, tanh_c = hyperbolic_tangent(c);
                store(gate + j, i); store(gate + H + j, f); store(gate + 2 * H + j, g); store(gate + 3 * H + j, o);
                store(cells + at + j, c); store(tanh_cells + at + j, tanh_c); store(outputs + at + j, o * tanh_c);
            }
        }
    }
    release(&w);
    return 0;
}

/* Gradients d_outputs (T, B, H) -> d_inputs (T, B, 4H), and d_hidden, d_cell (B, H) of the state before the block. */
int lstm_backward(long T, long B, long H, long S, long R, long part, long parts, int learned, const float *d_outputs,
                  const float *w_hh, const float *cell, const uint8_t *starts, const float *gates, const float *cells,
                  const float *tanh_cells, float *d_inputs, float *d_hidden, float *d_cell) {
    long N = 4 * H;
    work w;
    if (S != B + learned || R != gradient_rows(T, B, starts, learned)) return 2;
    if (prepare(&w, T, B, H, part, parts, starts, learned, w_hh, N, H, H, 1)) return 1;
    float *cell_before = zeros(w.count * H);
    if (!cell_before) { release(&w); return 1; }
    const vec one = all(1.0f);
    for (long s = w.longest - 1; s >= 0; s--) {
        long live = alive(&w, s);
        gather(&w, s, live, B, H, cells, cell, cell_before);
        for (long p = 0; p < live; p++) {
            long row = w.pieces[p].row + s * B, at = row * H;
            const float *gate = gates + row * N, *back = w.sums + p * w.width;
            float *d_gate = w.rows + p * N, *d_carry = w.carry + p * H;
            for (long j = 0; j < H; j += LANES) {
                vec i = load(gate + j), f = load(gate + H + j), g = load(gate + 2 * H + j), o = load(gate + 3 * H + j);
                vec tanh_c = load(tanh_cells + at + j), d_h = load(d_outputs + at + j) + load(back + j);
                vec d_c = load(d_carry + j) + d_h * o * (one - tanh_c * tanh_c);
                store(d_gate + j, d_c * g * i * (one - i));
                store(d_gate + H + j, d_c * load(cell_before + p * H + j) * f * (one - f));
                store(d_gate + 2 * H + j, d_c * i * (one - g * g));
                store(d_gate + 3 * H + j, d_h * tanh_c * o * (one - o));
                store(d_carry + j, d_c * f);
            }
            copy(d_inputs + row * N, d_gate, N);
        }
        clear(w.sums, live * w.width);
        multiply(w.rows, live, N, w.packed, w.sums, w.width, s);
    }
    give_back(&w, w.sums, w.width, H, d_hidden);
    give_back(&w, w.carry, H, H, d_cell);
    free(cell_before);
    release(&w);
    return 0;
}

/* r, z = sigmoid(x + W h), n = tanh(x_n + r (W_hn h + b_hn)), h' = n + z (h - n). inputs (T, B, 3H) hold
   W_ih x + b_ih, and of b_hh the r and z parts; bias_n (H) is b_hn. Writes outputs, the gates r, z, n (T, B, 3H),
   q = W_hn h + b_hn (T, B, H), and the hidden state before each step. */
int gru_forward(long T, long B, long H, long S, long part, long parts, const float *inputs, const float *w_hh,
                const float *bias_n, const float *hidden, const uint8_t *starts, float *outputs,
                float *gates, float *q, float *before) {
    long N = 3 * H;
    int learned = S > B;
    work w;
    if (S != B + learned) return 2;
    if (prepare(&w, T, B, H, part, parts, starts, learned, w_hh, H, N, 1, H)) return 1;
    for (long s = 0; s < w.longest; s++) {
        long live = alive(&w, s);
        gather(&w, s, live, B, H, outputs, hidden, w.rows);
        for (long p = 0; p < live; p++) {
            copy(w.sums + p * w.width, inputs + (w.pieces[p].row + s * B) * N, 2 * H);
            copy(w.sums + p * w.width + 2 * H, bias_n, H);
        }
        multiply(w.rows, live, H, w.packed, w.sums, w.width, s);
        for (long p = 0; p < live; p++) {
            long row = w.pieces[p].row + s * B, at = row * H;
            const float *sum = w.sums + p * w.width, *input = inputs + row * N;
            float *gate = gates + row * N;
            copy(before + at, w.rows + p * H, H);
            for (long j = 0; j < H; j += LANES) {
                vec r = sigmoid(load(sum + j)), z = sigmoid(load(sum + H + j)), hidden_n = load(sum + 2 * H + j);
                vec n = hyperbolic_tangent(load(input + 2 * H + j) + r * hidden_n);
                store(gate + j, r); store(gate + H + j, z); store(gate + 2 * H + j, n); store(q + at + j, hidden_n);
                store(outputs + at + j, n + z * (load(before + at + j) - n));
            }
        }
    }
    release(&w);
    return 0;
}

/* Gradients d_outputs (T, B, H) -> d_inputs (T, B, 3H) of the input projections, d_sums (T, B, 3H) of W_hh h + b_hh
   (the same but for n, where the gate r stands between), and d_hidden (B, H) of the state before the block. */
int gru_backward(long T, long B, long H, long R, long part, long parts, int learned, const float *d_outputs,
                 const float *w_hh, const uint8_t *starts, const float *gates, const float *q, const float *before,
                 float *d_inputs, float *d_sums, float *d_hidden) {
    long N = 3 * H;
    work w;
    if (R != gradient_rows(T, B, starts, learned)) return 2;
    if (prepare(&w, T, B, H, part, parts, starts, learned, w_hh, N, H, H, 1)) return 1;
    const vec one = all(1.0f);
    for (long s = w.longest - 1; s >= 0; s--) {
        long live = alive(&w, s);
        for (long p = 0; p < live; p++) {
            long row = w.pieces[p].row + s * B, at = row * H;
            const float *gate = gates + row * N;
            float *d_input = d_inputs + row * N, *d_sum = w.rows + p * N, *back = w.sums + p * w.width;
            for (long j = 0; j < H; j += LANES) {
                vec r = load(gate + j), z = load(gate + H + j), n = load(gate + 2 * H + j);
                vec d_h = load(d_outputs + at + j) + load(back + j);
                vec d_n = d_h * (one - z) * (one - n * n);
                vec d_z = d_h * (load(before + at + j) - n) * z * (one - z);
                vec d_r = d_n * load(q + at + j) * r * (one - r);
                store(d_input + j, d_r); store(d_input + H + j, d_z); store(d_input + 2 * H + j, d_n);
                store(d_sum + j, d_r); store(d_sum + H + j, d_z); store(d_sum + 2 * H + j, d_n * r);
                store(back + j, d_h * z);
            }
            copy(d_sums + row * N, d_sum, N);
        }
        multiply(w.rows, live, N, w.packed, w.sums, w.width, s);
    }
    give_back(&w, w.sums, w.width, H, d_hidden);
    release(&w);
    return 0;
}

/* h' = tanh(inputs + W h), or with relu in its place. Writes outputs and the hidden state before each step. */
int rnn_forward(long T, long B, long H, long S, long part, long parts, int relu, const float *inputs, const float *w_hh,
                const float *hidden, const uint8_t *starts, float *outputs, float *before) {
    int learned = S > B;
    work w;
    if (S != B + learned) return 2;
    if (prepare(&w, T, B, H, part, parts, starts, learned, w_hh, H, H, 1, H)) return 1;
    for (long s = 0; s < w.longest; s++) {
        long live = alive(&w, s);
        gather(&w, s, live, B, H, outputs, hidden, w.rows);
        for (long p = 0; p < live; p++) copy(w.sums + p * w.width, inputs + (w.pieces[p].row + s * B) * H, H);
        multiply(w.rows, live, H, w.packed, w.sums, w.width, s);
        for (long p = 0; p < live; p++) {
            long at = (w.pieces[p].row + s * B) * H;
            copy(before + at, w.rows + p * H, H);
            for (long j = 0; j < H; j += LANES) store(outputs + at + j, activation(load(w.sums + p * w.width + j), relu));
        }
    }
    release(&w);
    return 0;
}

/* Gradients d_outputs (T, B, H) -> d_inputs (T, B, H), and d_hidden (B, H) of the state before the block. */
int rnn_backward(long T, long B, long H, long R, long part, long parts, int learned, int relu, const float *d_outputs,
                 const float *w_hh, const uint8_t *starts, const float *outputs, float *d_inputs, float *d_hidden) {
    work w;
    if (R != gradient_rows(T, B, starts, learned)) return 2;
    if (prepare(&w, T, B, H, part, parts, starts, learned, w_hh, H, H, H, 1)) return 1;
    for (long s = w.longest - 1; s >= 0; s--) {
        long live = alive(&w, s);
        for (long p = 0; p < live; p++) {
            long at = (w.pieces[p].row + s * B) * H;
            float *d_sum = w.rows + p * H;
            for (long j = 0; j < H; j += LANES) {
                vec h = load(outputs + at + j), d_h = load(d_outputs + at + j) + load(w.sums + p * w.width + j);
                vec slope = all(1.0f) - h * h;
                if (relu) slope = choose(h > all(0.0f), all(1.0f), all(0.0f));
                store(d_sum + j, d_h * slope);
            }
            copy(d_inputs + at, d_sum, H);
        }
        clear(w.sums, live * w.width);
        multiply(w.rows, live, H, w.packed, w.sums, w.width, s);
    }
    give_back(&w, w.sums, w.width, H, d_hidden);
    release(&w);
    return 0;
}

/* Acting: one step of B environments. packed holds W_ih and W_hh one above the other, (F + H, G H); bias (G H) is
   b_ih + b_hh; for the GRU it is that of r and z, then b_in, then b_hn (4 H in all), and the columns of packed are
   r, z, n of the features, n of the state. */
static float *sum_of_products(long B, long F, long H, long N, const float *features, const float *hidden,
                              const uint8_t *starts, const float *packed, const float *bias, float **room) {
    long width = padded(N), K = F + H;
    *room = malloc((size_t)(B * (K + width) + 1) * sizeof(float));
    if (!*room) return NULL;
    float *rows = *room, *sums = rows + B * K;
    for (long b = 0; b < B; b++) {
        copy(rows + b * K, features + b * F, F);
        if (starts[b]) clear(rows + b * K + F, H);
        else copy(rows + b * K + F, hidden + b * H, H);
        copy(sums + b * width, bias, N);
        clear(sums + b * width + N, width - N);
    }
    multiply(rows, B, K, packed, sums, width, 0);
    return sums;
}

int lstm_step(long B, long F, long H, const float *features, const float *hidden, const float *cell,
              const uint8_t *starts, const float *packed, const float *bias, float *new_hidden, float *new_cell) {
    float *room, *sums;
    sums = sum_of_products(B, F, H, 4 * H, features, hidden, starts, packed, bias, &room);
    if (!sums) return 1;
    for (long b = 0; b < B; b++) {
        const float *sum = sums + b * padded(4 * H);
        for (long j = 0; j < H; j += LANES) {
            vec c = sigmoid(load(sum + j)) * hyperbolic_tangent(load(sum + 2 * H + j));
            if (!starts[b]) c += sigmoid(load(sum + H + j)) * load(cell + b * H + j);
            store(new_cell + b * H + j, c);
            store(new_hidden + b * H + j, sigmoid(load(sum + 3 * H + j)) * hyperbolic_tangent(c));
        }
    }
    free(room);
    return 0;
}

int gru_step(long B, long F, long H, const float *features, const float *hidden, const uint8_t *starts,
             const float *packed, const float *bias, float *new_hidden) {
    float *room, *sums;
    sums = sum_of_products(B, F, H, 4 * H, features, hidden, starts, packed, bias, &room);
    if (!sums) return 1;
    for (long b = 0; b < B; b++) {
        const float *sum = sums + b * padded(4 * H);
        for (long j = 0; j < H; j += LANES) {
            vec r = sigmoid(load(sum + j)), z = sigmoid(load(sum + H + j)), h = all(0.0f);
            if (!starts[b]) h = load(hidden + b * H + j);
            vec n = hyperbolic_tangent(load(sum + 2 * H + j) + r * load(sum + 3 * H + j));
            store(new_hidden + b * H + j, n + z * (h - n));
        }
    }
    free(room);
    return 0;
}

int rnn_step(long B, long F, long H, int relu, const float *features, const float *hidden, const uint8_t *starts,
             const float *packed, const float *bias, float *new_hidden) {
    float *room, *sums;
    sums = sum_of_products(B, F, H, H, features, hidden, starts, packed, bias, &room);
    if (!sums) return 1;
    for (long b = 0; b < B; b++)
        for (long j = 0; j < H; j += LANES)
            store(new_hidden + b * H + j, activation(load(sums + b * padded(H) + j), relu));
    free(room);
    return 0;
}
