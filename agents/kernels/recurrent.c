/* The sequential part of RNN, LSTM and GRU on a CPU: everything in a sequence pass that cannot be one large product.

   The input projections of all steps are one matrix product before, and all weight gradients are one after; both are
   torch's. What is left is a loop over time whose steps are tiny, where the overhead of a call costs more than its
   arithmetic. Here it has none. A block is split where episodes start, and all its segments run at once, the long ones
   on when the short ones have ended: the weights are read once for many rows, and nothing is padded.

   Axes: M memories over the same block, T time, B sequences, F features, H hidden units, G gates of a cell, P parts of
   a state (2 of an LSTM: hidden and cell), S rows of a state, C arrays kept; arrays are contiguous float32 in the order
   named. H must be a multiple of 8. `starts` (T, B) is nonzero where an episode starts: the state before that step is
   zero or, where S is B + 1, the last row of the state before the block, and no gradient crosses it. Segments are
   independent, so that threads share them, `parts` tasks for each memory, and change no bit.

   Functions return 0, 1 if memory ran out, or 2 if sizes do not fit the kind of cell. Sizes come first, then numbers,
   then arrays: binding.py declares each function, and checks shapes and types before every call. */

#include <stdlib.h>
#include <string.h>

#include "team.h"
#include "vectors.h"

#define GROUP (4 * TILE) /* columns of packed weights come in groups of tiles */

enum { RNN_TANH, RNN_RELU, LSTM, GRU };

static const long GATES[] = {1, 1, 4, 3}, PARTS[] = {1, 1, 2, 1}, KEPT[] = {1, 1, 3, 2};

static long padded(long columns) { return (columns + GROUP - 1) / GROUP * GROUP; }

/* Raised whenever a function's arguments change: a library of another version, built from an older checkout say, would
   misread what it is handed, and is not used. */
long recurrent_version(void) { return 5; }

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

static void copy(float *to, const float *from, long count) { memcpy(to, from, (size_t)count * sizeof(float)); }
static void clear(float *to, long count) { memset(to, 0, (size_t)count * sizeof(float)); }
static float *zeros(long count) { return calloc((size_t)count + 1, sizeof(float)); }

/* Cells: one step of H units, from sums of products to gates after their activations and the state. `gates` may be
   where the sums are. */

/* c' = f c + i g, h' = o tanh(c'); gates i, f, g, o. */
INLINE void lstm_cell(long H, const float *sums, const float *cell, float *gates, float *new_cell, float *tanh_cell,
                      float *output) {
    for (long j = 0; j < H; j += LANES) {
        vec i = sigmoid(load(sums + j)), f = sigmoid(load(sums + H + j));
        vec g = hyperbolic_tangent(load(sums + 2 * H + j)), o = sigmoid(load(sums + 3 * H + j));
        vec c = f * load(cell + j) + i * g, tanh_c = hyperbolic_tangent(c);
        store(gates + j, i); store(gates + H + j, f); store(gates + 2 * H + j, g); store(gates + 3 * H + j, o);
        store(new_cell + j, c); store(tanh_cell + j, tanh_c); store(output + j, o * tanh_c);
    }
}

/* n = tanh(x_n + r h_n), h' = n + z (h - n); gates r, z, n, where h_n = W_hn h + b_hn. */
INLINE void gru_cell(long H, const float *sums, const float *x_n, const float *h_n, const float *hidden, float *gates,
                     float *output) {
    for (long j = 0; j < H; j += LANES) {
        vec r = sigmoid(load(sums + j)), z = sigmoid(load(sums + H + j));
        vec n = hyperbolic_tangent(load(x_n + j) + r * load(h_n + j));
        store(gates + j, r); store(gates + H + j, z); store(gates + 2 * H + j, n);
        store(output + j, n + z * (load(hidden + j) - n));
    }
}

INLINE void rnn_cell(long H, const float *sums, int relu, float *output) {
    for (long j = 0; j < H; j += LANES) {
        vec x = load(sums + j);
        store(output + j, relu ? choose(x < all(0.0f), all(0.0f), x) : hyperbolic_tangent(x));
    }
}

/* The same backward: from the gradient of the output and what later steps gave back for it (`back`) to the gradients of
   the sums; what else goes on to the step before, without the recurrent product, is left in `back`. */

INLINE void lstm_gradient(long H, const float *d_output, const float *gates, const float *cell, const float *tanh_cell,
                          float *back, float *d_cell, float *d_sums) {
    const vec one = all(1.0f);
    for (long j = 0; j < H; j += LANES) {
        vec i = load(gates + j), f = load(gates + H + j), g = load(gates + 2 * H + j), o = load(gates + 3 * H + j);
        vec tanh_c = load(tanh_cell + j), d_h = load(d_output + j) + load(back + j);
        vec d_c = load(d_cell + j) + d_h * o * (one - tanh_c * tanh_c);
        store(d_sums + j, d_c * g * i * (one - i));
        store(d_sums + H + j, d_c * load(cell + j) * f * (one - f));
        store(d_sums + 2 * H + j, d_c * i * (one - g * g));
        store(d_sums + 3 * H + j, d_h * tanh_c * o * (one - o));
        store(d_cell + j, d_c * f);
        store(back + j, all(0.0f));
    }
}

/* d_inputs are of the input projections; d_sums, of W_hh h + b_hh, differ from them by the gate r before n. */
INLINE void gru_gradient(long H, const float *d_output, const float *gates, const float *hidden, const float *h_n,
                         float *back, float *d_inputs, float *d_sums) {
    const vec one = all(1.0f);
    for (long j = 0; j < H; j += LANES) {
        vec r = load(gates + j), z = load(gates + H + j), n = load(gates + 2 * H + j);
        vec d_h = load(d_output + j) + load(back + j), d_n = d_h * (one - z) * (one - n * n);
        vec d_z = d_h * (load(hidden + j) - n) * z * (one - z), d_r = d_n * load(h_n + j) * r * (one - r);
        store(d_inputs + j, d_r); store(d_inputs + H + j, d_z); store(d_inputs + 2 * H + j, d_n);
        store(d_sums + j, d_r); store(d_sums + H + j, d_z); store(d_sums + 2 * H + j, d_n * r);
        store(back + j, d_h * z);
    }
}

INLINE void rnn_gradient(long H, const float *d_output, const float *output, int relu, float *back, float *d_sums) {
    for (long j = 0; j < H; j += LANES) {
        vec h = load(output + j), slope = all(1.0f) - h * h;
        if (relu) slope = choose(h > all(0.0f), all(1.0f), all(0.0f));
        store(d_sums + j, (load(d_output + j) + load(back + j)) * slope);
        store(back + j, all(0.0f));
    }
}

/* A pass over a block. `from`: the row of the state before the block that a segment starts from, -1 for zeros. */
typedef struct { long row, length, from; } segment; /* row t * B + b of its first step */
typedef struct pass {
    void (*task)(struct pass *, long memory, long part);
    long M, T, B, H, G, S, parts, threads, count; /* count: of segments */
    int failed;
    segment *segments;
    float *packed;   /* weights of each memory */
    float *d_starts; /* (P, M, segments, H) gradients of the states that segments start from */
    const float *bias_n, *state, *d_outputs;
    const uint8_t *starts;
    float *gates, *outputs, *kept, *d_inputs, *d_sums;
} pass;

static int longer_first(const void *left, const void *right) {
    const segment *a = left, *b = right;
    if (a->length != b->length) return a->length < b->length ? 1 : -1;
    return a->row < b->row ? -1 : 1;
}

static int split(pass *it) {
    long B = it->B, last = -1;
    for (long b = 0; b < B; b++)
        for (long t = 0; t < it->T; t++) it->count += t == 0 || it->starts[t * B + b];
    it->segments = malloc((size_t)(it->count + 1) * sizeof(segment));
    if (!it->segments) return 1;
    for (long b = 0; b < B; b++)
        for (long t = 0; t < it->T; t++) {
            int starts = it->starts[t * B + b];
            if (starts || t == 0) it->segments[++last] = (segment){t * B + b, 0, starts ? (it->S > B ? B : -1) : b};
            it->segments[last].length++;
        }
    qsort(it->segments, (size_t)it->count, sizeof(segment), longer_first);
    return 0;
}

/* A task's segments are every `parts`-th of all. */
static long count_of(const pass *it, long part) {
    return it->count > part ? (it->count - part + it->parts - 1) / it->parts : 0;
}
static const segment *segment_of(const pass *it, long part, long p) { return it->segments + part + p * it->parts; }

static void tasks_from(void *given, long first, long stride) {
    pass *it = given;
    for (long task = first; task < it->M * it->parts; task += stride) it->task(it, task / it->parts, task % it->parts);
}

/* Packs weights (M, K, N) once for all threads, and runs all tasks. */
static int run(pass *it, const float *weights, long K, long N, long along_k, long along_n) {
    it->packed = malloc((size_t)(it->M * packed_size(K, N) + 1) * sizeof(float));
    if (!it->packed) return 1;
    for (long m = 0; m < it->M; m++)
        pack_along(weights + m * K * N, K, N, along_k, along_n, it->packed + m * packed_size(K, N));
    on_threads(tasks_from, it, it->threads);
    free(it->packed);
    return it->failed;
}

/* The state before step s of a segment, from the step before in `states` or the state before the block. */
static void state_before(const segment *own, long s, long B, long H, const float *states, const float *initial,
                         float *to) {
    if (s) copy(to, states + (own->row + (s - 1) * B) * H, H);
    else if (own->from >= 0) copy(to, initial + own->from * H, H);
    else clear(to, H);
}

INLINE void forward_task(pass *it, int kind, long memory, long part) {
    const long B = it->B, H = it->H, N = it->G * H, width = padded(N), block = it->T * B * H;
    long live = count_of(it, part);
    float *room = zeros(live * (2 * H + width)), *rows = room, *cell = rows + live * H, *sums = cell + live * H;
    if (!room) { it->failed = 1; return; }
    const float *hidden = it->state + memory * it->S * H, *cell_before = hidden + it->M * it->S * H;
    float *gates = it->gates + memory * it->G * block, *outputs = it->outputs + memory * block;
    float *before = it->kept + memory * block, *kept_2 = before + it->M * block, *kept_3 = kept_2 + it->M * block;
    for (long s = 0;; s++) {
        while (live && segment_of(it, part, live - 1)->length <= s) live--;
        if (!live) break;
        for (long p = 0; p < live; p++) {
            const segment *own = segment_of(it, part, p);
            long row = own->row + s * B;
            state_before(own, s, B, H, outputs, hidden, rows + p * H);
            if (kind == LSTM) state_before(own, s, B, H, kept_2, cell_before, cell + p * H);
            copy(before + row * H, rows + p * H, H);
            copy(sums + p * width, gates + row * N, N);
            if (kind == GRU) copy(sums + p * width + 2 * H, it->bias_n + memory * H, H);
        }
        multiply(rows, live, H, it->packed + memory * packed_size(H, N), sums, width, s);
        for (long p = 0; p < live; p++) {
            long row = segment_of(it, part, p)->row + s * B, at = row * H;
            float *sum = sums + p * width, *gate = gates + row * N;
            if (kind == LSTM)
                lstm_cell(H, sum, cell + p * H, gate, kept_2 + at, kept_3 + at, outputs + at);
            else if (kind == GRU) {
                copy(kept_2 + at, sum + 2 * H, H);
                gru_cell(H, sum, gate + 2 * H, kept_2 + at, before + at, gate, outputs + at);
            } else rnn_cell(H, sum, kind == RNN_RELU, outputs + at);
        }
    }
    free(room);
}

INLINE void backward_task(pass *it, int kind, long memory, long part) {
    const long B = it->B, H = it->H, N = it->G * H, width = padded(H), block = it->T * B * H;
    const long count = count_of(it, part);
    float *room = zeros(count * (N + width + 2 * H)), *rows = room, *back = rows + count * N;
    float *d_cell = back + count * width, *cell = d_cell + count * H;
    if (!room) { it->failed = 1; return; }
    const float *cell_before = it->state + (it->M + memory) * it->S * H, *d_outputs = it->d_outputs + memory * block;
    const float *gates = it->gates + memory * it->G * block;
    const float *before = it->kept + memory * block, *kept_2 = before + it->M * block, *kept_3 = kept_2 + it->M * block;
    float *d_inputs = it->d_inputs + memory * it->G * block, *d_sums = it->d_sums + memory * it->G * block;
    long live = 0;
    for (long s = count ? segment_of(it, part, 0)->length - 1 : -1; s >= 0; s--) {
        while (live < count && segment_of(it, part, live)->length > s) live++;
        for (long p = 0; p < live; p++) {
            const segment *own = segment_of(it, part, p);
            long row = own->row + s * B, at = row * H;
            float *d_sum = d_sums + row * N, *of_after = back + p * width;
            if (kind == LSTM) {
                state_before(own, s, B, H, kept_2, cell_before, cell + p * H);
                lstm_gradient(H, d_outputs + at, gates + row * N, cell + p * H, kept_3 + at, of_after, d_cell + p * H,
                              d_sum);
            } else if (kind == GRU)
                gru_gradient(H, d_outputs + at, gates + row * N, before + at, kept_2 + at, of_after,
                             d_inputs + row * N, d_sum);
            else rnn_gradient(H, d_outputs + at, gates + at, kind == RNN_RELU, of_after, d_sum);
            copy(rows + p * N, d_sum, N);
        }
        multiply(rows, live, N, it->packed + memory * packed_size(N, H), back, width, s);
    }
    for (long p = 0; p < count; p++) {
        float *d_start = it->d_starts + (memory * it->count + part + p * it->parts) * H;
        copy(d_start, back + p * width, H);
        if (kind == LSTM) copy(d_start + it->M * it->count * H, d_cell + p * H, H);
    }
    free(room);
}

/* A function for each kind, so that the compiler sees which. */
#define TASKS(name, kind)                                                                                   \
    static void forward_##name(pass *it, long memory, long part) { forward_task(it, kind, memory, part); } \
    static void backward_##name(pass *it, long memory, long part) { backward_task(it, kind, memory, part); }
TASKS(rnn_tanh, RNN_TANH)
TASKS(rnn_relu, RNN_RELU)
TASKS(lstm, LSTM)
TASKS(gru, GRU)

static int fits(const pass *it, int kind, long P, long C, const float *of_gru) {
    return kind >= RNN_TANH && kind <= GRU && it->G == GATES[kind] && P == PARTS[kind] && C == KEPT[kind] &&
           (it->S == it->B || it->S == it->B + 1) &&
           ((kind == GRU) == (of_gru != NULL) || !(it->T * it->B)) && /* an empty array has no address */
           it->parts > 0 && it->threads > 0;
}

/* gates (M, T, B, G, H) come as W_ih x + b_ih + b_hh, without b_hn of a GRU, which is bias_n (M, H), and leave as the
   gates after their activations: i, f, g, o or r, z, n. state (P, M, S, H) before the block -> outputs (M, T, B, H), of
   an RNN the same array as gates; kept (C, M, T, B, H) for the way back: the hidden state before each step, then of an
   LSTM the cells and their tanh, of a GRU W_hn h + b_hn. */
int forward(long M, long T, long B, long H, long G, long P, long S, long C, int kind, long parts, long threads,
            float *gates, const float *w_hh, const float *bias_n, const float *state, const uint8_t *starts,
            float *outputs, float *kept) {
    void (*const tasks[])(pass *, long, long) = {forward_rnn_tanh, forward_rnn_relu, forward_lstm, forward_gru};
    pass it = {.M = M, .T = T, .B = B, .H = H, .G = G, .S = S, .parts = parts, .threads = threads, .bias_n = bias_n,
               .state = state, .starts = starts, .gates = gates, .outputs = outputs, .kept = kept};
    if (!fits(&it, kind, P, C, bias_n)) return 2;
    if (!(M * T * B)) return 0;
    it.task = tasks[kind];
    int failed = split(&it) || run(&it, w_hh, H, G * H, 1, H);
    free(it.segments);
    return failed;
}

/* d_outputs (M, T, B, H) -> d_inputs (M, T, B, G, H) of the input projections; of a GRU d_sums of W_hh h + b_hh, which
   else are the same; and d_state (P, M, S, H) of the state before the block. */
int backward(long M, long T, long B, long H, long G, long P, long S, long C, int kind, long parts, long threads,
             const float *d_outputs, const float *w_hh, const float *state, const uint8_t *starts, float *gates,
             float *kept, float *d_inputs, float *d_sums, float *d_state) {
    void (*const tasks[])(pass *, long, long) = {backward_rnn_tanh, backward_rnn_relu, backward_lstm, backward_gru};
    pass it = {.M = M, .T = T, .B = B, .H = H, .G = G, .S = S, .parts = parts, .threads = threads, .state = state,
               .d_outputs = d_outputs, .starts = starts, .gates = gates, .kept = kept, .d_inputs = d_inputs,
               .d_sums = d_sums ? d_sums : d_inputs};
    if (!fits(&it, kind, P, C, d_sums)) return 2;
    if (P * M * S * H) clear(d_state, P * M * S * H);
    if (!(M * T * B)) return 0;
    it.task = tasks[kind];
    int failed = split(&it) || !(it.d_starts = zeros(P * M * it.count * H)) || run(&it, w_hh, G * H, H, H, 1);
    for (long i = 0; !failed && i < P * M * it.count; i++) { /* in this order, whatever the number of threads */
        long from = it.segments[i % it.count].from;
        for (long j = 0; from >= 0 && j < H; j++) d_state[(i / it.count * S + from) * H + j] += it.d_starts[i * H + j];
    }
    free(it.d_starts);
    free(it.segments);
    return failed;
}

/* Acting: one step of B environments. packed holds W_ih and W_hh one above the other, (F + H, N); bias (N) is
   b_ih + b_hh. N is G H, of a GRU 4 H: n of the features, r, z, n of the state. state (P, B, H) -> new_state. */
int step(long B, long F, long H, long N, long P, int kind, const float *features, const float *state,
         const uint8_t *starts, const float *packed, const float *bias, float *new_state) {
    if (kind < RNN_TANH || kind > GRU || P != PARTS[kind] || N != (GATES[kind] + (kind == GRU)) * H) return 2;
    long width = padded(N), K = F + H;
    float *rows = zeros(B * (K + width + 2 * H)), *sums = rows + B * K, *cells = sums + B * width;
    if (!rows) return 1;
    float *scratch = cells + B * H;
    for (long b = 0; b < B; b++) {
        copy(rows + b * K, features + b * F, F);
        copy(sums + b * width, bias, N);
        if (starts[b]) continue; /* from zeros */
        copy(rows + b * K + F, state + b * H, H);
        if (kind == LSTM) copy(cells + b * H, state + (B + b) * H, H);
    }
    multiply(rows, B, K, packed, sums, width, 0);
    for (long b = 0; b < B; b++) {
        float *sum = sums + b * width, *output = new_state + b * H;
        if (kind == LSTM) lstm_cell(H, sum, cells + b * H, sum, output + B * H, scratch + b * H, output);
        else if (kind == GRU) gru_cell(H, sum + H, sum, sum + 3 * H, rows + b * K + F, sum, output);
        else rnn_cell(H, sum, kind == RNN_RELU, output);
    }
    free(rows);
    return 0;
}
