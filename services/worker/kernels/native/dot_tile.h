/* Dot products of a few rows with a few tokens in registers. Every product is summed in the same order whatever the tile,
   so that a token's result does not depend on what else is in the batch. */

#ifndef HILORA_DOT_TILE_H
#define HILORA_DOT_TILE_H

#include <stdint.h>
#include <string.h>

#define LANES 16
#define ROW_TILE 4
#define TOKEN_TILE 6
/* Multiply-adds below which waking the other threads costs more than it saves. */
#define MIN_PARALLEL_WORK 65536

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define CLONED
#endif
#define INLINE static inline __attribute__((always_inline))

typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec_unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float half_vec __attribute__((vector_size(2 * LANES)));
typedef float quarter_vec __attribute__((vector_size(LANES)));

/* Sixteen lanes to four, by halves. */
INLINE quarter_vec quarter_sum(vec v) {
    half_vec halves[2];
    memcpy(halves, &v, sizeof halves);
    const half_vec half = halves[0] + halves[1];
    quarter_vec quarters[2];
    memcpy(quarters, &half, sizeof quarters);
    return quarters[0] + quarters[1];
}

INLINE float lane_sum(vec v) {
    const quarter_vec quarter = quarter_sum(v);
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

/* lane_sum of four vectors at once, to the bit: their last steps share instructions. */
INLINE quarter_vec lane_sums(vec v0, vec v1, vec v2, vec v3) {
#if defined(__GNUC__) && !defined(__clang__)
    typedef int32_t quarter_ivec __attribute__((vector_size(LANES)));
    const quarter_ivec low = {0, 1, 4, 5}, high = {2, 3, 6, 7}, even = {0, 2, 4, 6}, odd = {1, 3, 5, 7};
    const quarter_vec q0 = quarter_sum(v0), q1 = quarter_sum(v1), q2 = quarter_sum(v2), q3 = quarter_sum(v3);
    const quarter_vec first = __builtin_shuffle(q0, q1, low) + __builtin_shuffle(q0, q1, high);
    const quarter_vec second = __builtin_shuffle(q2, q3, low) + __builtin_shuffle(q2, q3, high);
    return __builtin_shuffle(first, second, even) + __builtin_shuffle(first, second, odd);
#else
    const quarter_vec sums = {lane_sum(v0), lane_sum(v1), lane_sum(v2), lane_sum(v3)};
    return sums;
#endif
}

/* What to fetch from memory while numbers are multiplied: for columns [from, until), the line that lies `ahead` elements
   behind each row's. Nothing is fetched if the span is empty; addresses behind the end of an array do no harm. */
typedef struct {
    int64_t ahead, from, until;
} Prefetch;

/* sums[j][i] += a_j . x_i over the columns [from, until). */
INLINE void dot_span(const int num_rows, const int num_tokens, const int is_fetching, const float *const *a,
                     const float *const *x, int64_t from, int64_t until, int64_t ahead,
                     vec sums[ROW_TILE][TOKEN_TILE]) {
    for (int64_t d = from; d < until; d += LANES) {
        vec inputs[TOKEN_TILE];
        for (int i = 0; i < num_tokens; i++) inputs[i] = *(const vec_unaligned *)(x[i] + d);
        for (int j = 0; j < num_rows; j++) {
            if (is_fetching) __builtin_prefetch(a[j] + d + ahead, 0, 2);
            const vec row = *(const vec_unaligned *)(a[j] + d);
            for (int i = 0; i < num_tokens; i++) sums[j][i] += row * inputs[i];
        }
    }
}

/* h[i][column + j] = a_j . x_i for num_rows rows and num_tokens tokens, both constants at every call: the loops unroll. */
INLINE void dot_tile(const int num_rows, const int num_tokens, const float *const *a, const float *const *x,
                     int64_t width, float *const *h, int64_t column, Prefetch next) {
    vec sums[ROW_TILE][TOKEN_TILE];
    const vec zero = {0};
    for (int j = 0; j < num_rows; j++)
        for (int i = 0; i < num_tokens; i++) sums[j][i] = zero;
    const int64_t d = width / LANES * LANES;
    dot_span(num_rows, num_tokens, 0, a, x, 0, next.from, 0, sums);
    dot_span(num_rows, num_tokens, 1, a, x, next.from, next.until, next.ahead, sums);
    dot_span(num_rows, num_tokens, 0, a, x, next.until, d, 0, sums);
    for (int i = 0; i < num_tokens; i++) {
        float found[ROW_TILE];
        if (num_rows == ROW_TILE) {
            const quarter_vec four = lane_sums(sums[0][i], sums[1][i], sums[2][i], sums[3][i]);
            memcpy(found, &four, sizeof found);
        } else {
            for (int j = 0; j < num_rows; j++) found[j] = lane_sum(sums[j][i]);
        }
        for (int j = 0; j < num_rows; j++) {
            for (int64_t rest = d; rest < width; rest++) found[j] += a[j][rest] * x[i][rest];
            h[i][column + j] = found[j];
        }
    }
}

INLINE void dot_rows(const int num_rows, int num_tokens, const float *const *a, const float *const *x, int64_t width,
                     float *const *h, int64_t column, Prefetch next) {
    switch (num_tokens) {
        case 6: dot_tile(num_rows, 6, a, x, width, h, column, next); break;
        case 5: dot_tile(num_rows, 5, a, x, width, h, column, next); break;
        case 4: dot_tile(num_rows, 4, a, x, width, h, column, next); break;
        case 3: dot_tile(num_rows, 3, a, x, width, h, column, next); break;
        case 2: dot_tile(num_rows, 2, a, x, width, h, column, next); break;
        default: dot_tile(num_rows, 1, a, x, width, h, column, next); break;
    }
}

INLINE void dot_block(int num_rows, int num_tokens, const float *const *a, const float *const *x, int64_t width,
                      float *const *h, int64_t column, Prefetch next) {
    switch (num_rows) {
        case 4: dot_rows(4, num_tokens, a, x, width, h, column, next); break;
        case 3: dot_rows(3, num_tokens, a, x, width, h, column, next); break;
        case 2: dot_rows(2, num_tokens, a, x, width, h, column, next); break;
        default: dot_rows(1, num_tokens, a, x, width, h, column, next); break;
    }
}

/* How many tiles a number of tokens is cut into; they are of equal size, give or take one. */
INLINE int64_t tile_count(int64_t num_tokens) {
    return (num_tokens + TOKEN_TILE - 1) / TOKEN_TILE;
}

/* The part of a row's columns that the k-th of n passes over it should fetch. */
INLINE Prefetch prefetch_share(int64_t ahead, int64_t width, int64_t k, int64_t n) {
    const int64_t lines = width / LANES;
    const Prefetch share = {ahead, lines * k / n * LANES, lines * (k + 1) / n * LANES};
    return share;
}

static const Prefetch NO_PREFETCH = {0, 0, 0};

#endif
