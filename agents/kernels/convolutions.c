/* The convolutions of an image encoder over images of bytes, forward and backward: layers without padding, each followed by
   a ReLU, observation by observation, so that what a layer reads was just written and lies in a near cache. Threads share
   the observations, and change no bit: gradients are summed in parts whose number depends on that of observations alone.

   Nothing is unfolded into columns. With channels innermost a patch is a few runs of memory, one for each of its rows, and
   the blocks of a product read them where they lie. The first layer reads the image's planes, converted to floats for one
   observation at a time; the division by 255 is part of its weights.

   Axes: N observations, C channels, Y rows, X columns of the images, D layers, P parameters, Q numbers kept for the way
   back, O outputs of an observation; arrays are contiguous, in the order named. `layers` (D, 5) holds of each layer its
   channels, rows and columns of its kernel, and strides along both. Parameters are of each layer the weights (channels,
   channels before, rows, columns), then the biases.
   Functions return 0, 1 if memory ran out, or 2 if sizes do not fit the layers. Sizes come first, then numbers, then arrays:
   binding.py declares each function, and checks shapes and types before every call. */

#include <stdlib.h>
#include <string.h>

#include "team.h"
#include "vectors.h"

#define ROWS 6       /* of a block, whose sums fill the registers */
#define STRETCH 256  /* rows of a tile of weights that stay in the nearest cache */
#define AT_ONCE 256  /* positions whose gradients do too */
#define PART 16      /* observations whose gradients are summed together, and more beyond MOST_PARTS of them */
#define MOST_PARTS 64
#define LARGEST 4096 /* of what a layer may have, so that no product of sizes overflows */

/* Raised whenever a function's arguments change. */
long convolutions_version(void) { return 2; }

static long padded(long columns) { return (columns + TILE - 1) / TILE * TILE; }

/* One layer. Its input is `segments` runs of memory for each position of its output: run s of position p starts at
   base[p] + offset[s], number k of all it reads is at base[p] + reads[k]. */
typedef struct {
    long before, channels, width, rows, columns; /* channels in and out, the latter padded; of the kernel */
    long positions, segments, run, depth;        /* depth: numbers that a position reads */
    long in_size, out_size;                      /* of an observation, channels padded */
    long *base, *offset, *reads;
    float *forward, *backward, *bias;
} layer;

typedef struct {
    long n_layers, image_size, n_parameters, kept_size, out_size, largest;
    layer *layers;
    void *room;
} network;

/* Shapes of all layers; 2 if they do not fit the images. */
static int shaped(network *it, long C, long Y, long X, const int64_t *given) {
    long in_width = C;
    it->image_size = it->largest = C * Y * X;
    for (long i = 0; i < it->n_layers; i++, given += 5) {
        for (long k = 0; k < 5; k++)
            if (given[k] < 1 || given[k] > LARGEST) return 2;
        if (C < 1 || C > LARGEST || given[1] > Y || given[2] > X) return 2;
        long height = (Y - given[1]) / given[3] + 1, columns = (X - given[2]) / given[4] + 1;
        layer *of = it->layers + i;
        *of = (layer){.before = C, .channels = given[0], .width = padded(given[0]), .rows = given[1], .columns = given[2]};
        of->positions = height * columns;
        of->segments = i ? given[1] : C * given[1];
        of->run = i ? given[2] * in_width : given[2];
        of->depth = of->segments * of->run;
        of->in_size = in_width * Y * X;
        of->out_size = of->positions * of->width;
        it->n_parameters += given[0] * (C * given[1] * given[2] + 1);
        it->kept_size += of->out_size;
        it->largest = of->out_size > it->largest ? of->out_size : it->largest;
        it->out_size = given[0] * of->positions;
        C = given[0], Y = height, X = columns, in_width = of->width;
    }
    return 0;
}

/* Where a weight (channel c before, row y, column x of the kernel) is among those that a position reads. */
INLINE long place(const layer *of, int is_first, long c, long y, long x) {
    return is_first ? (c * of->rows + y) * of->run + x : y * of->run + x * (of->run / of->columns) + c;
}

static void packed(const layer *of, int is_first, const float *weights) {
    memset(of->forward, 0, (size_t)(of->depth * of->width) * sizeof(float));
    if (!is_first) memset(of->backward, 0, (size_t)(of->depth * of->channels) * sizeof(float));
    float scale = is_first ? 1.0f / 255.0f : 1.0f;
    for (long c = 0; c < of->before; c++)
        for (long y = 0; y < of->rows; y++)
            for (long x = 0; x < of->columns; x++) {
                long k = place(of, is_first, c, y, x), step = of->before * of->rows * of->columns;
                const float *from = weights + (c * of->rows + y) * of->columns + x;
                for (long m = 0; m < of->channels; m++) {
                    float weight = scale * from[m * step];
                    of->forward[(m / TILE * of->depth + k) * TILE + m % TILE] = weight;
                    if (!is_first) of->backward[(k / TILE * of->channels + m) * TILE + k % TILE] = weight;
                }
            }
    memset(of->bias, 0, (size_t)of->width * sizeof(float));
    memcpy(of->bias, weights + of->channels * of->before * of->rows * of->columns, (size_t)of->channels * sizeof(float));
}

/* Tables and packed weights. Returns what an exported function does. */
static int made(network *it, long N, long C, long Y, long X, long D, long P, long Q, long O, const int64_t *given,
                const float *parameters) {
    *it = (network){.n_layers = D, .layers = calloc((size_t)D + 1, sizeof(layer))};
    if (!it->layers) return 1;
    int wrong = D < 1 ? 2 : shaped(it, C, Y, X, given);
    if (wrong || it->n_parameters != P || (Q && it->kept_size * N != Q) || it->out_size != O) return 2;
    size_t bytes = 64;
    for (long i = 0; i < D; i++) {
        layer *of = it->layers + i;
        bytes += (size_t)(of->positions + of->segments + of->depth) * sizeof(long) + 256;
        bytes += (size_t)((of->width + of->channels) * of->depth + of->width) * sizeof(float);
    }
    char *room = it->room = malloc(bytes);
    if (!room) return 1;
    room += 64 - (uintptr_t)room % 64;
    for (long i = 0; i < D; i++, given += 5) {
        layer *of = it->layers + i;
        long in_width = i ? of[-1].width : 1, row = X * in_width, across = (X - of->columns) / given[4] + 1;
        of->forward = (float *)room, room += (size_t)(of->width * of->depth) * sizeof(float);
        of->backward = (float *)room, room += (size_t)(of->channels * of->depth) * sizeof(float);
        of->bias = (float *)room, room += (size_t)of->width * sizeof(float);
        room += 64 - (uintptr_t)room % 64;
        of->base = (long *)room, of->offset = of->base + of->positions, of->reads = of->offset + of->segments;
        room = (char *)(of->reads + of->depth), room += 64 - (uintptr_t)room % 64;
        for (long p = 0; p < of->positions; p++)
            of->base[p] = p / across * given[3] * row + p % across * given[4] * in_width;
        for (long s = 0; s < of->segments; s++)
            of->offset[s] = i ? s * row : s / of->rows * Y * X + s % of->rows * X;
        for (long k = 0; k < of->depth; k++) of->reads[k] = of->offset[k / of->run] + k % of->run;
        packed(of, i == 0, parameters);
        parameters += of->channels * (of->before * of->rows * of->columns + 1);
        Y = of->positions / across, X = across;
    }
    return 0;
}

static void freed(network *it) {
    free(it->room);
    free(it->layers);
}

/* `count` shared out evenly to blocks of at most ROWS: first and last + 1 of block i. */
#define IN_BLOCKS(count, from, rows)                                                                   \
    for (long blocks = ((count) + ROWS - 1) / ROWS, b = 0, from = 0, rows; b < blocks; b++, from += rows) \
        if ((rows = (b + 1) * (count) / blocks - from), 1)

#define BY_ROWS(rows, function, ...)                    \
    switch (rows) {                                     \
        case 6: function(6, __VA_ARGS__); break;        \
        case 5: function(5, __VA_ARGS__); break;        \
        case 4: function(4, __VA_ARGS__); break;        \
        case 3: function(3, __VA_ARGS__); break;        \
        case 2: function(2, __VA_ARGS__); break;        \
        default: function(1, __VA_ARGS__);              \
    }

/* Outputs of some positions += their inputs' segments times a tile of weights. */
INLINE void forward_block(int rows, const float *in, const long *base, const long *offset, long segments, long run,
                          const float *weights, float *out, long out_row) {
    vec sums[ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 2; c++) sums[r][c] = load(out + r * out_row + c * LANES);
    for (long s = 0; s < segments; s++) {
        const float *from[ROWS];
        for (int r = 0; r < rows; r++) from[r] = in + base[r] + offset[s];
        for (long k = 0; k < run; k++, weights += TILE) {
            vec first = load(weights), second = load(weights + LANES);
            for (int r = 0; r < rows; r++) {
                vec factor = all(from[r][k]);
                sums[r][0] += factor * first;
                sums[r][1] += factor * second;
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 2; c++) store(out + r * out_row + c * LANES, sums[r][c]);
}

/* in -> out (positions, width), after the ReLU; a NaN stays one. */
static void layer_forward(const layer *of, const float *in, float *out) {
    for (long p = 0; p < of->positions; p++) memcpy(out + p * of->width, of->bias, (size_t)of->width * sizeof(float));
    long at_once = STRETCH / of->run > 1 ? STRETCH / of->run : 1;
    for (long s = 0; s < of->segments; s += at_once) {
        long count = of->segments - s < at_once ? of->segments - s : at_once;
        for (long t = 0; t < of->width / TILE; t++) {
            const float *weights = of->forward + (t * of->depth + s * of->run) * TILE;
            IN_BLOCKS(of->positions, from, rows)
                BY_ROWS(rows, forward_block, in, of->base + from, of->offset + s, count, of->run, weights,
                        out + from * of->width + t * TILE, of->width)
        }
    }
    for (long i = 0; i < of->out_size; i += LANES) {
        vec x = load(out + i);
        store(out + i, choose(x < all(0.0f), all(0.0f), x));
    }
}

/* Gradients of some weights for a tile of outputs: summed over some positions. */
INLINE void weights_block(int rows, const float *in, const long *reads, const long *base, long positions, const float *d,
                          long width, float *d_weights) {
    vec sums[ROWS][2];
    const float *from[ROWS];
    for (int r = 0; r < rows; r++) {
        from[r] = in + reads[r];
        for (int c = 0; c < 2; c++) sums[r][c] = load(d_weights + r * width + c * LANES);
    }
    for (long p = 0; p < positions; p++, d += width) {
        vec first = load(d), second = load(d + LANES);
        long at = base[p];
        for (int r = 0; r < rows; r++) {
            vec factor = all(from[r][at]);
            sums[r][0] += factor * first;
            sums[r][1] += factor * second;
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 2; c++) store(d_weights + r * width + c * LANES, sums[r][c]);
}

/* d (positions, width) of the sums before the ReLU -> d_weights (depth, width) and d_bias (width), added to. */
static void weights_backward(const layer *of, const float *in, const float *d, float *d_weights, float *d_bias) {
    long parts = (of->positions + AT_ONCE - 1) / AT_ONCE;
    for (long i = 0, p = 0, count; i < parts; i++, p += count) {
        count = (i + 1) * of->positions / parts - p;
        for (long t = 0; t < of->width; t += TILE)
            IN_BLOCKS(of->depth, from, rows)
                BY_ROWS(rows, weights_block, in, of->reads + from, of->base + p, count, d + p * of->width + t, of->width,
                        d_weights + from * of->width + t)
    }
    for (long m = 0; m < of->width; m += LANES) {
        vec sum = load(d_bias + m);
        for (long p = 0; p < of->positions; p++) sum += load(d + p * of->width + m);
        store(d_bias + m, sum);
    }
}

/* What some positions add to the gradient of a tile of their inputs. */
INLINE void inputs_block(int rows, const float *d, long width, long channels, const float *weights, const long *base,
                         float *d_in) {
    vec sums[ROWS][2];
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = all(0.0f);
    for (long m = 0; m < channels; m++, weights += TILE) {
        vec first = load(weights), second = load(weights + LANES);
        for (int r = 0; r < rows; r++) {
            vec factor = all(d[r * width + m]);
            sums[r][0] += factor * first;
            sums[r][1] += factor * second;
        }
    }
    for (int r = 0; r < rows; r++) { /* one after the other: patches overlap */
        float *to = d_in + base[r];
        store(to, load(to) + sums[r][0]);
        store(to + LANES, load(to + LANES) + sums[r][1]);
    }
}

static void inputs_backward(const layer *of, const float *d, float *d_in) {
    memset(d_in, 0, (size_t)of->in_size * sizeof(float));
    for (long s = 0; s < of->segments; s++)
        for (long k = 0; k < of->run; k += TILE) {
            const float *weights = of->backward + (s * of->run + k) * of->channels;
            IN_BLOCKS(of->positions, from, rows)
                BY_ROWS(rows, inputs_block, d + from * of->width, of->width, of->channels, weights, of->base + from,
                        d_in + of->offset[s] + k)
        }
}

/* Through the ReLU, as torch has it: a gradient is stopped where the output is 0, and passes where it is NaN. */
static void through_relu(long size, const float *out, float *d) {
    for (long i = 0; i < size; i += LANES) store(d + i, choose(load(out + i) <= all(0.0f), all(0.0f), load(d + i)));
}

static void as_floats(long size, const uint8_t *bytes, float *floats) {
    for (long i = 0; i < size; i++) floats[i] = (float)bytes[i];
}

/* (positions, width) <-> (channels, positions). */
static void planes_first(const layer *of, const float *from, float *to) {
    for (long m = 0; m < of->channels; m++)
        for (long p = 0; p < of->positions; p++) to[m * of->positions + p] = from[p * of->width + m];
}

static void channels_last(const layer *of, const float *from, float *to) {
    memset(to, 0, (size_t)of->out_size * sizeof(float));
    for (long m = 0; m < of->channels; m++)
        for (long p = 0; p < of->positions; p++) to[p * of->width + m] = from[m * of->positions + p];
}

/* A pass over all observations; `rooms` holds `room` floats for each thread, `sums` the gradients of each of the parts. */
typedef struct {
    network net;
    long N, Q, O, parts, room, sums_size;
    const uint8_t *images;
    float *kept, *out, *rooms, *sums;
    const float *d_out;
} pass;

static void forward_from(void *given, long first, long stride) {
    const pass *it = given;
    const network *net = &it->net;
    float *image = it->rooms + first * it->room;
    for (long n = first; n < it->N; n += stride) {
        const float *from = image;
        float *to = it->Q ? it->kept + n * net->kept_size : image + net->image_size;
        as_floats(net->image_size, it->images + n * net->image_size, image);
        for (const layer *of = net->layers; of < net->layers + net->n_layers; from = to, to += of->out_size, of++)
            layer_forward(of, from, to);
        planes_first(net->layers + net->n_layers - 1, from, it->out + n * it->O);
    }
}

/* kept is empty, or (N, numbers kept of an observation). */
int convolutions_forward(long N, long C, long Y, long X, long D, long P, long Q, long O, long threads,
                         const int64_t *layers, const uint8_t *images, const float *parameters, float *kept, float *out) {
    pass it = {.N = N, .Q = Q, .O = O, .images = images, .kept = kept, .out = out};
    int failed = threads < 1 ? 2 : made(&it.net, N, C, Y, X, D, P, Q, O, layers, parameters);
    it.room = it.net.image_size + (Q ? 0 : it.net.kept_size);
    if (!failed && !(it.rooms = malloc((size_t)(threads * it.room) * sizeof(float)))) failed = 1;
    if (!failed) on_threads(forward_from, &it, threads);
    free(it.rooms);
    freed(&it.net);
    return failed;
}

/* From what (depth, width) was added up to the gradients as the parameters are. */
static void unpacked(const layer *of, int is_first, const float *sums, const float *d_bias, float *to) {
    float scale = is_first ? 1.0f / 255.0f : 1.0f;
    for (long m = 0; m < of->channels; m++)
        for (long c = 0; c < of->before; c++)
            for (long y = 0; y < of->rows; y++)
                for (long x = 0; x < of->columns; x++)
                    *to++ = scale * sums[place(of, is_first, c, y, x) * of->width + m];
    memcpy(to, d_bias, (size_t)of->channels * sizeof(float));
}

/* One observation's part of the gradients of all parameters, added to `sums`; `room` holds two arrays of the largest size. */
static void observation_backward(const network *it, const float *image, const float *kept, const float *d_out, float *sums,
                                 float *room) {
    long last = it->n_layers - 1;
    float *d = room, *next = room + it->largest;
    const float *out = kept + it->kept_size - it->layers[last].out_size;
    channels_last(it->layers + last, d_out, d);
    for (long i = last; i >= 0; i--) {
        const layer *of = it->layers + i;
        const float *in = i ? out - of->in_size : image;
        through_relu(of->out_size, out, d);
        weights_backward(of, in, d, sums, sums + of->depth * of->width);
        sums += (of->depth + 1) * of->width;
        if (i) inputs_backward(of, d, next);
        float *swap = d;
        d = next, next = swap, out = in;
    }
}

static void backward_from(void *given, long first, long stride) {
    const pass *it = given;
    const network *net = &it->net;
    float *image = it->rooms + first * it->room;
    for (long part = first; part < it->parts; part += stride)
        for (long n = part * it->N / it->parts; n < (part + 1) * it->N / it->parts; n++) {
            as_floats(net->image_size, it->images + n * net->image_size, image);
            observation_backward(net, image, it->kept + n * net->kept_size, it->d_out + n * it->O,
                                 it->sums + part * it->sums_size, image + net->image_size);
        }
}

/* d_out (N, O) and what the way forward kept -> the gradients of the parameters. */
int convolutions_backward(long N, long C, long Y, long X, long D, long P, long Q, long O, long threads,
                          const int64_t *layers, const uint8_t *images, const float *parameters, float *kept,
                          const float *d_out, float *d_parameters) {
    pass it = {.N = N, .Q = Q, .O = O, .images = images, .kept = kept, .d_out = d_out};
    int failed = threads < 1 ? 2 : made(&it.net, N, C, Y, X, D, P, Q, O, layers, parameters);
    if (!failed && it.net.kept_size * N != Q) failed = 2;
    for (long i = 0; !failed && i < D; i++)
        it.sums_size += (it.net.layers[i].depth + 1) * it.net.layers[i].width;
    it.parts = N < 2 * PART ? 1 : N < MOST_PARTS * PART ? N / PART : MOST_PARTS;
    it.room = it.net.image_size + 2 * it.net.largest;
    if (!failed) {
        it.sums = calloc((size_t)(it.parts * it.sums_size), sizeof(float));
        it.rooms = malloc((size_t)(threads * it.room) * sizeof(float));
        failed = !it.sums || !it.rooms;
    }
    if (!failed) on_threads(backward_from, &it, threads);
    for (long part = 1; !failed && part < it.parts; part++)
        for (long i = 0; i < it.sums_size; i++) it.sums[i] += it.sums[part * it.sums_size + i];
    float *from = it.sums, *to = d_parameters + P;
    for (long i = D - 1; !failed && i >= 0; i--) { /* the last layer's come first */
        const layer *of = it.net.layers + i;
        to -= of->channels * (of->before * of->rows * of->columns + 1);
        unpacked(of, i == 0, from, from + of->depth * of->width, to);
        from += (of->depth + 1) * of->width;
    }
    free(it.sums);
    free(it.rooms);
    freed(&it.net);
    return failed;
}
