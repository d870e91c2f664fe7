/* softmax(cap(q k^T)) v for decode tokens, each over its own slot and length.

   A decode token reads its whole past once, so what counts is to read it once and straight: every key serves all heads
   that share it, nothing is padded to the longest sequence, and no mask is read. A token's result does not depend on what
   else is in the batch: sums run over positions in order, and dot products as in dot_tile.h. */

#include "decode_attention.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "dot_tile.h"

#define HEAD_TILE 4
#define COLUMN_VECS 4

/* exp(x) for x <= 0, to 2 units in the last place; below -87 it is 0 for every purpose, and a NaN stays one. Cody and
   Waite's reduction to [-ln 2 / 2, ln 2 / 2], Taylor's series there. In loops over lanes, compilers make vectors of it. */
INLINE float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    /* Conversion cuts towards zero: for x <= 0 this rounds to the nearest. */
    const int32_t n = (int32_t)(x * 1.44269504f - 0.5f);
    const float r = (x - (float)n * 0.693359375f) + (float)n * 2.12194440e-4f;
    float p = r * (1.0f / 5040.0f) + (1.0f / 720.0f);
    p = p * r + (1.0f / 120.0f);
    p = p * r + (1.0f / 24.0f);
    p = p * r + (1.0f / 6.0f);
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const int32_t bits = (n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* Scores of one head over `size` positions become weights that sum to one; behind them the row is filled up to whole
   vectors, so that it is read without a remainder. */
INLINE void softmax_row(float *row, int64_t size, int64_t padded, float scaling, float softcap) {
    if (softcap > 0)
        for (int64_t p = 0; p < size; p++) row[p] = softcap * tanhf(row[p] * scaling / softcap) / scaling;
    for (int64_t p = size; p < padded; p++) row[p] = -INFINITY;
    float tops[LANES], sums[LANES] = {0};
    for (int i = 0; i < LANES; i++) tops[i] = row[i];
    for (int64_t p = LANES; p < padded; p += LANES)
        for (int i = 0; i < LANES; i++) tops[i] = row[p + i] > tops[i] ? row[p + i] : tops[i];
    float top = tops[0];
    for (int i = 1; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
    for (int64_t p = 0; p < padded; p += LANES)
        for (int i = 0; i < LANES; i++) row[p + i] = exp_negative((row[p + i] - top) * scaling);
    for (int64_t p = size; p < padded; p++) row[p] = 0;
    for (int64_t p = 0; p < padded; p += LANES)
        for (int i = 0; i < LANES; i++) sums[i] += row[p + i];
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += sums[i];
    const float share = 1.0f / sum;
    for (int64_t p = 0; p < padded; p++) row[p] *= share;
}

/* out[i][column ...] = sum over positions of weight times value, for num_heads heads and num_vecs vectors of columns. */
INLINE void mix_tile(const int num_heads, const int num_vecs, const float *weights, int64_t padded, const float *values,
                     int64_t size, int64_t head_dim, float *out) {
    vec sums[HEAD_TILE][COLUMN_VECS];
    const vec zero = {0};
    for (int i = 0; i < num_heads; i++)
        for (int v = 0; v < num_vecs; v++) sums[i][v] = zero;
    for (int64_t p = 0; p < size; p++) {
        vec value[COLUMN_VECS];
        for (int v = 0; v < num_vecs; v++) value[v] = *(const vec_unaligned *)(values + p * head_dim + v * LANES);
        for (int i = 0; i < num_heads; i++)
            for (int v = 0; v < num_vecs; v++) sums[i][v] += weights[i * padded + p] * value[v];
    }
    for (int i = 0; i < num_heads; i++)
        for (int v = 0; v < num_vecs; v++) *(vec_unaligned *)(out + i * head_dim + v * LANES) = sums[i][v];
}

INLINE void mix_heads(const int num_vecs, int num_heads, const float *weights, int64_t padded, const float *values,
                      int64_t size, int64_t head_dim, float *out) {
    switch (num_heads) {
        case 4: mix_tile(4, num_vecs, weights, padded, values, size, head_dim, out); break;
        case 3: mix_tile(3, num_vecs, weights, padded, values, size, head_dim, out); break;
        case 2: mix_tile(2, num_vecs, weights, padded, values, size, head_dim, out); break;
        default: mix_tile(1, num_vecs, weights, padded, values, size, head_dim, out); break;
    }
}

/* Up to HEAD_TILE heads of one token that share a key-value head. */
CLONED static void attend_heads(const float *q, const float *keys, const float *values, int num_heads, int64_t size,
                                int64_t head_dim, float scaling, float softcap, float *weights, int64_t padded,
                                float *out) {
    const float *queries[HEAD_TILE];
    float *scores[HEAD_TILE];
    for (int i = 0; i < num_heads; i++) {
        queries[i] = q + i * head_dim;
        scores[i] = weights + i * padded;
    }
    for (int64_t p = 0; p < size; p += ROW_TILE) {
        const int num_rows = (int)(size - p < ROW_TILE ? size - p : ROW_TILE);
        const float *rows[ROW_TILE];
        for (int j = 0; j < num_rows; j++) rows[j] = keys + (p + j) * head_dim;
        dot_block(num_rows, num_heads, rows, queries, head_dim, scores, p, NO_PREFETCH);
    }
    for (int i = 0; i < num_heads; i++) softmax_row(scores[i], size, padded, scaling, softcap);
    int64_t column = 0;
    for (; column + COLUMN_VECS * LANES <= head_dim; column += COLUMN_VECS * LANES)
        mix_heads(COLUMN_VECS, num_heads, weights, padded, values + column, size, head_dim, out + column);
    for (; column < head_dim; column += LANES)
        mix_heads(1, num_heads, weights, padded, values + column, size, head_dim, out + column);
}

int decode_attention(const AttentionShape *shape, const float *q, const float *keys, const float *values,
                     const int64_t *slots, const int64_t *first, const int64_t *until, float *out, int num_threads) {
    const int64_t head_dim = shape->head_dim, group = shape->num_heads / shape->num_kv_heads;
    int64_t longest = 0, total = 0;
    for (int64_t t = 0; t < shape->num_tokens; t++) {
        const int64_t size = until[t] - first[t];
        if (size > longest) longest = size;
        total += size;
    }
    const int64_t padded = (longest + LANES - 1) / LANES * LANES;
    const int64_t num_pairs = shape->num_tokens * shape->num_kv_heads;
    if (total * shape->num_heads * head_dim < MIN_PARALLEL_WORK) num_threads = 1;
    float *scratch = malloc((size_t)num_threads * HEAD_TILE * (size_t)padded * sizeof *scratch + 64);
    if (scratch == NULL) return -1;

#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads) if (num_threads > 1)
    for (int64_t pair = 0; pair < num_pairs; pair++) {
        const int64_t t = pair / shape->num_kv_heads, head = pair % shape->num_kv_heads;
        const int64_t begin = slots[t] * shape->slot_stride + head * shape->head_stride + first[t] * head_dim;
        const int64_t size = until[t] - first[t];
        float *weights = scratch + (int64_t)omp_get_thread_num() * HEAD_TILE * padded;
        for (int64_t g = 0; g < group; g += HEAD_TILE) {
            const int num_heads = (int)(group - g < HEAD_TILE ? group - g : HEAD_TILE);
            const int64_t place = (t * shape->num_heads + head * group + g) * head_dim;
            attend_heads(q + place, keys + begin, values + begin, num_heads, size, head_dim, shape->scaling,
                         shape->softcap, weights, (size + LANES - 1) / LANES * LANES, out + place);
        }
    }
    free(scratch);
    return 0;
}
