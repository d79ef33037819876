/* What an update and an acting step compute in addition to the memory's pass, each in one call: perceptrons (the layers between
   memory and outputs), the probabilities of actions, and PPO's objective with its gradients.

   With the small networks of reinforcement learning these are dozens of tiny operations, and calling them takes longer
   than computing them.

   Axes: N steps, K inputs and M outputs of a layer, A axes of an action; arrays are contiguous float32 in the order
   named.
   Functions return 0, 1 if memory ran out, or 2 if what is in an array does not fit. Sizes come first, then numbers,
   then arrays: binding.py declares each function, and checks shapes and types before every call. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "vectors.h"

/* Raised whenever a function's arguments change. */
long heads_version(void) { return 7; }

static long padded(long columns) { return (columns + TILE - 1) / TILE * TILE; }

/* ROWS rows of a tile of out += a b, all accumulators in registers. */
INLINE void block(int rows, long depth, const float *a, long a_row, long a_k, const float *b, long b_k, float *out,
                  long out_row) {
    vec sums[6][2];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 2; c++) sums[r][c] = load(out + r * out_row + c * LANES);
    for (long k = 0; k < depth; k++) {
        vec first = load(b + k * b_k), second = load(b + k * b_k + LANES);
        for (int r = 0; r < rows; r++) {
            vec factor = all(a[r * a_row + k * a_k]);
            sums[r][0] += factor * first;
            sums[r][1] += factor * second;
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 2; c++) store(out + r * out_row + c * LANES, sums[r][c]);
}

/* out (rows, columns) += a (rows, depth) b (depth, columns), columns a multiple of TILE: element (r, k) of a lies at
   r * a_row + k * a_k, row k of tile t of b at t * b_tile + k * b_k. */
static void product(long rows, long depth, long columns, const float *a, long a_row, long a_k, const float *b, long b_tile,
                    long b_k, float *out, long out_row) {
    const long stretch = 512; /* rows of a tile of b that stay in the nearest caches */
    for (long from = 0; from < depth; from += stretch) {
        long count = depth - from < stretch ? depth - from : stretch;
        for (long t = 0; t < columns / TILE; t++) {
            const float *tile = b + t * b_tile + from * b_k;
            for (long row = 0; row < rows;) {
                const float *left = a + row * a_row + from * a_k;
                float *to = out + row * out_row + t * TILE;
                if (rows - row >= 6) { block(6, count, left, a_row, a_k, tile, b_k, to, out_row); row += 6; }
                else if (rows - row >= 4) { block(4, count, left, a_row, a_k, tile, b_k, to, out_row); row += 4; }
                else if (rows - row >= 2) { block(2, count, left, a_row, a_k, tile, b_k, to, out_row); row += 2; }
                else { block(1, count, left, a_row, a_k, tile, b_k, to, out_row); row += 1; }
            }
        }
    }
}

/* Perceptrons: `depth` layers, widths[0] inputs to widths[depth] outputs; `layers` points to the weights (M, K) of each as
   torch's nn.Linear has them, then to the biases (M), of which some may be missing. An activation (1: tanh, 2: relu)
   follows every layer but the last, and the last too with `activate_last`. Hidden outputs are kept with rows padded to a
   multiple of TILE. */

enum { TANH = 1, RELU = 2 };

/* How many floats packed weights and biases take. */
long perceptron_size(long depth, const long *widths) {
    long size = 0;
    for (long i = 0; i < depth; i++) size += (widths[i] + 1) * padded(widths[i + 1]);
    return size;
}

/* How many floats the hidden outputs of N steps take. */
long perceptron_hidden_size(long depth, const long *widths, long N) {
    long size = 0;
    for (long i = 1; i < depth; i++) size += N * padded(widths[i]);
    return size;
}

/* Each layer's bias (padded M), then its weights in tiles of TILE outputs, each (K, TILE). */
int perceptron_pack(long depth, const long *widths, float *packed, const float *const *layers) {
    for (long i = 0; i < depth; i++) {
        long K = widths[i], M = widths[i + 1], width = padded(M);
        memset(packed, 0, (size_t)(width * (K + 1)) * sizeof(float));
        if (layers[depth + i]) memcpy(packed, layers[depth + i], (size_t)M * sizeof(float));
        for (long m = 0; m < M; m++) {
            float *to = packed + width + m / TILE * TILE * K + m % TILE;
            const float *from = layers[i] + m * K;
            for (long k = 0; k < K; k++) to[k * TILE] = from[k];
        }
        packed += width * (K + 1);
    }
    return 0;
}

static void activate(long count, int kind, float *values) {
    for (long i = 0; i < count; i += LANES) {
        vec x = load(values + i), y = hyperbolic_tangent(x);
        if (kind == RELU) y = choose(x < all(0.0f), all(0.0f), x);
        store(values + i, y);
    }
}

/* x (N, widths[0]) -> out (N, widths[depth]), on packed weights. */
int perceptron_run(long depth, const long *widths, long N, int kind, int activate_last, const float *x,
                   const float *packed, float *hidden, float *out) {
    long x_row = widths[0], last = widths[depth], last_width = padded(last);
    float *rough = last == last_width ? out : malloc((size_t)(N * last_width + 1) * sizeof(float));
    if (!rough) return 1;
    for (long i = 0; i < depth; i++) {
        long K = widths[i], width = padded(widths[i + 1]);
        float *to = i == depth - 1 ? rough : hidden;
        for (long n = 0; n < N; n++) memcpy(to + n * width, packed, (size_t)width * sizeof(float));
        product(N, K, width, x, x_row, 1, packed + width, TILE * K, TILE, to, width);
        if (i < depth - 1 || activate_last) activate(N * width, kind, to);
        packed += width * (K + 1);
        hidden += N * width;
        x = to;
        x_row = width;
    }
    if (rough != out) {
        for (long n = 0; n < N; n++) memcpy(out + n * last, rough + n * last_width, (size_t)last * sizeof(float));
        free(rough);
    }
    return 0;
}

/* Learning: x (N, widths[0]) -> hidden outputs, kept for the way back, and out (N, widths[depth]). */
int perceptron_forward(long depth, const long *widths, long N, int kind, int activate_last, const float *x,
                       float *hidden, float *out, const float *const *layers) {
    float *packed = malloc((size_t)perceptron_size(depth, widths) * sizeof(float));
    if (!packed) return 1;
    perceptron_pack(depth, widths, packed, layers);
    int failed = perceptron_run(depth, widths, N, kind, activate_last, x, packed, hidden, out);
    free(packed);
    return failed;
}

/* (rows, columns) -> the same with rows padded with zeros; the array itself where that changes nothing. */
static const float *with_padded_rows(const float *from, long rows, long columns, float **made) {
    long width = padded(columns);
    *made = NULL;
    if (width == columns) return from;
    *made = calloc((size_t)(rows * width + 1), sizeof(float));
    for (long r = 0; *made && r < rows; r++) memcpy(*made + r * width, from + r * columns, (size_t)columns * sizeof(float));
    return *made;
}

/* gradient (N, width) of a layer's outputs -> of what came before its activation. */
static void back_through_activation(long count, int kind, const float *outputs, float *gradient) {
    for (long i = 0; i < count; i += LANES) {
        vec y = load(outputs + i), slope = all(1.0f) - y * y;
        if (kind == RELU) slope = choose(y > all(0.0f), all(1.0f), all(0.0f));
        store(gradient + i, load(gradient + i) * slope);
    }
}

/* One layer's way back. d (N, padded M) and the inputs x (N, K), rows x_row apart -> the gradients of its weights and
   bias and, unless d_x is NULL, of x: d_x (N, padded K). */
static int layer_backward(long N, long K, long M, const float *x, long x_row, const float *weights, const float *d,
                          float *d_weights, float *d_bias, float *d_x) {
    long width = padded(M), x_width = padded(K);
    float *rough = d_weights, *padded_weights = NULL;
    if (x_width != K && !(rough = malloc((size_t)(M * x_width) * sizeof(float)))) return 1;
    memset(rough, 0, (size_t)(M * x_width) * sizeof(float));
    product(M, N, x_width, d, 1, width, x, TILE, x_row, rough, x_width);
    if (rough != d_weights) {
        for (long m = 0; m < M; m++) memcpy(d_weights + m * K, rough + m * x_width, (size_t)K * sizeof(float));
        free(rough);
    }
    for (long m = 0; d_bias && m < M; m += LANES) {
        vec sum = all(0.0f);
        for (long n = 0; n < N; n++) sum += load(d + n * width + m);
        for (long lane = 0; lane < LANES && m + lane < M; lane++) d_bias[m + lane] = sum[lane];
    }
    if (d_x) {
        const float *by_row = with_padded_rows(weights, M, K, &padded_weights);
        if (!by_row) return 1;
        memset(d_x, 0, (size_t)(N * x_width) * sizeof(float));
        product(N, M, x_width, d, width, 1, by_row, TILE, x_width, d_x, x_width);
        free(padded_weights);
    }
    return 0;
}

/* d_out (N, widths[depth]) -> the gradients of all weights and biases, where there is one, and of x unless d_x is NULL.
   `out` is read with activate_last only. `layers` points to the weights, their gradients, and those of the biases. */
int perceptron_backward(long depth, const long *widths, long N, int kind, int activate_last, const float *x,
                        const float *hidden, const float *out, const float *d_out, float *d_x, float *const *layers) {
    float *const *d_weights = layers + depth, *const *d_biases = layers + 2 * depth;
    long widest = 0, x_width = padded(widths[0]);
    for (long i = 0; i <= depth; i++) widest = padded(widths[i]) > widest ? padded(widths[i]) : widest;
    float *room = malloc((size_t)(2 * N * widest + 1) * sizeof(float)), *padded_x, *padded_out = NULL;
    const float *first = with_padded_rows(x, N, widths[0], &padded_x);
    const float *last = activate_last ? with_padded_rows(out, N, widths[depth], &padded_out) : NULL;
    int failed = !room || (N && !first) || (N && activate_last && !last);
    if (!failed) {
        float *d = room, *next = room + N * widest;
        long M = widths[depth], width = padded(M);
        for (long n = 0; n < N; n++) {
            memcpy(d + n * width, d_out + n * M, (size_t)M * sizeof(float));
            memset(d + n * width + M, 0, (size_t)(width - M) * sizeof(float));
        }
        if (activate_last) back_through_activation(N * width, kind, last, d);
        const float *outputs = hidden + perceptron_hidden_size(depth, widths, N);
        for (long i = depth - 1; i >= 0 && !failed; i--) {
            long K = widths[i];
            if (i) outputs -= N * padded(K);
            float *to = i || d_x ? next : NULL;
            failed = layer_backward(N, K, widths[i + 1], i ? outputs : first, i ? padded(K) : x_width, layers[i], d,
                                    d_weights[i], d_biases[i], to);
            if (i && !failed) back_through_activation(N * padded(K), kind, outputs, next);
            float *swap = d;
            d = next;
            next = swap;
        }
        for (long n = 0; d_x && !failed && n < N; n++)
            memcpy(d_x + n * widths[0], d + n * x_width, (size_t)widths[0] * sizeof(float));
    }
    free(room);
    free(padded_x);
    free(padded_out);
    return failed;
}

/* Actions. A categorical has A choices side by side, sizes[a] logits each, K in all; an action is A integers. */

static int adds_up(long A, long K, const int64_t *sizes) {
    int64_t sum = 0;
    for (long a = 0; a < A; a++) {
        if (sizes[a] < 1) return 0;
        sum += sizes[a];
    }
    return sum == K;
}

static float log_sum_exp(int64_t n, const float *logits, float *largest) {
    float top = logits[0], sum = 0;
    for (long k = 1; k < n; k++) top = logits[k] > top ? logits[k] : top;
    for (long k = 0; k < n; k++) sum += expf(logits[k] - top);
    *largest = top;
    return logf(sum);
}

/* Gumbel-max: the arg max of logits - log(Exp(1) noise) is a sample of softmax(logits). Noise of exactly 0, which is
   drawn now and then, counts as the smallest number above it: its logarithm would make a forbidden choice NaN. */
int categorical_sample(long N, long A, long K, const int64_t *sizes, const float *logits, const float *noise,
                       int64_t *actions, float *log_probs) {
    if (!adds_up(A, K, sizes)) return 2;
    for (long n = 0; n < N; n++) {
        float total = 0;
        for (long a = 0; a < A; a++) {
            float best = -INFINITY, largest;
            long chosen = 0;
            for (long k = 0; k < sizes[a]; k++) {
                float score = logits[k] - logf(noise[k] > 1e-45f ? noise[k] : 1e-45f);
                if (score > best) { best = score; chosen = k; }
            }
            float log_sum = log_sum_exp(sizes[a], logits, &largest);
            total += logits[chosen] - largest - log_sum;
            *actions++ = chosen;
            logits += sizes[a];
            noise += sizes[a];
        }
        log_probs[n] = total;
    }
    return 0;
}

/* logits (N, K), actions (N, A) -> log-probabilities (N), entropies (N), and the softmax (N, K) for the way back.
   Returns 2 at an action that is no choice. */
int categorical_forward(long N, long A, long K, const int64_t *sizes, const float *logits, const int64_t *actions,
                        float *log_probs, float *entropies, float *softmax) {
    if (!adds_up(A, K, sizes)) return 2;
    for (long n = 0; n < N; n++) {
        float total = 0, entropy = 0;
        for (long a = 0; a < A; a++) {
            float largest, log_sum = log_sum_exp(sizes[a], logits, &largest);
            if (*actions < 0 || *actions >= sizes[a]) return 2;
            for (long k = 0; k < sizes[a]; k++) {
                float log_prob = logits[k] - largest - log_sum, probability = expf(log_prob);
                softmax[k] = probability;
                if (probability != 0) entropy -= probability * log_prob; /* a forbidden choice adds nothing */
            }
            total += logits[*actions++] - largest - log_sum;
            logits += sizes[a];
            softmax += sizes[a];
        }
        log_probs[n] = total;
        entropies[n] = entropy;
    }
    return 0;
}

/* d log p(a) / d logit_k = [k = a] - p_k;  d entropy / d logit_k = -p_k (log p_k + entropy of the choice). */
int categorical_backward(long N, long A, long K, const int64_t *sizes, const float *softmax, const int64_t *actions,
                         const float *d_log_probs, const float *d_entropies, float *d_logits) {
    if (!adds_up(A, K, sizes)) return 2;
    for (long n = 0; n < N; n++) {
        float of_log_prob = d_log_probs[n], of_entropy = d_entropies[n];
        for (long a = 0; a < A; a++) {
            float entropy = 0;
            for (long k = 0; k < sizes[a]; k++) {
                float p = softmax[k];
                if (p != 0) entropy -= p * logf(p);
            }
            for (long k = 0; k < sizes[a]; k++) {
                float p = softmax[k], log_p = p > 0 ? logf(p) : 0;
                d_logits[k] = -p * (of_log_prob + of_entropy * (log_p + entropy));
            }
            if (*actions < 0 || *actions >= sizes[a]) return 2;
            d_logits[*actions++] += of_log_prob;
            d_logits += sizes[a];
            softmax += sizes[a];
        }
    }
    return 0;
}

/* Diagonal Gaussian with one log_std (A) for all: means and actions (N, A) -> log-probabilities (N). */
int gaussian_forward(long N, long A, const float *means, const float *log_std, const float *actions, float *log_probs) {
    float normalizer = 0.918938533f * (float)A; /* log(2 pi) / 2 */
    for (long a = 0; a < A; a++) normalizer += log_std[a];
    for (long n = 0; n < N; n++) {
        float sum = 0;
        for (long a = 0; a < A; a++) {
            float error = (actions[n * A + a] - means[n * A + a]) * expf(-log_std[a]);
            sum += error * error;
        }
        log_probs[n] = -0.5f * sum - normalizer;
    }
    return 0;
}

int gaussian_backward(long N, long A, const float *means, const float *log_std, const float *actions,
                       const float *d_log_probs, float *d_means, float *d_log_std) {
    for (long a = 0; a < A; a++) {
        float precision = expf(-2.0f * log_std[a]);
        double sum = 0;
        for (long n = 0; n < N; n++) {
            float error = actions[n * A + a] - means[n * A + a];
            d_means[n * A + a] = d_log_probs[n] * error * precision;
            sum += (double)d_log_probs[n] * (error * error * precision - 1.0f);
        }
        d_log_std[a] = (float)sum;
    }
    return 0;
}

/* PPO's objective (Schulman et al. 2017, equations 7 and 9, negated), its gradients by log-probability, entropy and value,
   and what is logged of it. entropies may be NULL: then -log p of the actions taken estimates them. clip_range_vf < 0: the
   value is not clipped. figures: loss, policy loss, value loss, entropy loss, KL(old || new), clipped share. */
int clipped_objective(long N, int normalize, double clip_range, double clip_range_vf, double ent_coef, double vf_coef,
                       const float *log_probs, const float *entropies, const float *values, const float *old_log_probs,
                       const float *old_values, const float *advantages, const float *returns, float *d_log_probs,
                       float *d_entropies, float *d_values, float *figures) {
    double mean = 0, deviation = 1, squares = 0;
    if (normalize && N > 1) {
        for (long n = 0; n < N; n++) mean += advantages[n];
        mean /= (double)N;
        for (long n = 0; n < N; n++) squares += (advantages[n] - mean) * (advantages[n] - mean);
        deviation = sqrt(squares / (double)(N - 1)) + 1e-8;
    }
    double policy = 0, value = 0, entropy = 0, divergence = 0, clipped = 0, share = 1.0 / (double)N;
    float low = (float)(1.0 - clip_range), high = (float)(1.0 + clip_range);
    for (long n = 0; n < N; n++) {
        float log_ratio = log_probs[n] - old_log_probs[n], ratio = expf(log_ratio);
        float advantage = (float)((advantages[n] - mean) / deviation);
        float bounded = ratio < low ? low : ratio > high ? high : ratio;
        float plain = advantage * ratio, cut = advantage * bounded;
        int flows = ratio == bounded || plain < cut;
        policy -= plain < cut ? plain : cut; /* NaN compares false and stays */
        d_log_probs[n] = flows ? (float)(-share * plain) : 0.0f * plain;
        float moved = values[n] - old_values[n], estimate = values[n];
        int value_flows = 1;
        if (clip_range_vf >= 0) {
            float limit = (float)clip_range_vf, within = moved < -limit ? -limit : moved > limit ? limit : moved;
            value_flows = within == moved;
            estimate = old_values[n] + within;
        }
        double error = (double)estimate - returns[n];
        value += error * error;
        d_values[n] = value_flows ? (float)(2.0 * vf_coef * share * error) : 0.0f * (float)error;
        if (entropies) {
            entropy -= entropies[n];
            d_entropies[n] = (float)(-ent_coef * share);
        } else {
            entropy += log_probs[n];
            d_log_probs[n] += (float)(ent_coef * share);
        }
        divergence += (double)ratio - 1.0 - log_ratio;
        clipped += fabsf(ratio - 1.0f) > (float)clip_range;
    }
    figures[0] = (float)(share * (policy + ent_coef * entropy + vf_coef * value));
    figures[1] = (float)(share * policy);
    figures[2] = (float)(share * value);
    figures[3] = (float)(share * entropy);
    figures[4] = (float)(share * divergence);
    figures[5] = (float)(share * clipped);
    return 0;
}
