/* Dot products of a few rows with a few tokens in registers. Every product is summed in the same order whatever the tile,
   so that a token's result does not depend on what else is in the batch. */

#ifndef HILORA_DOT_TILE_H
#define HILORA_DOT_TILE_H

#include <stdint.h>
#include <string.h>

#define LANES 16
#define ROW_TILE 4
#define TOKEN_TILE 4
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

INLINE float lane_sum(vec v) {
    float lanes[LANES];
    memcpy(lanes, &v, sizeof lanes);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

/* h[j][i] = a_j . x_i for num_rows rows and num_tokens tokens, both constants at every call: the loops unroll. */
INLINE void dot_tile(const int num_rows, const int num_tokens, const float *const *a, const float *const *x,
                     int64_t width, float *const *h, int64_t column) {
    vec sums[ROW_TILE][TOKEN_TILE];
    const vec zero = {0};
    for (int j = 0; j < num_rows; j++)
        for (int i = 0; i < num_tokens; i++) sums[j][i] = zero;
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) {
        vec inputs[TOKEN_TILE];
        for (int i = 0; i < num_tokens; i++) inputs[i] = *(const vec_unaligned *)(x[i] + d);
        for (int j = 0; j < num_rows; j++) {
            const vec row = *(const vec_unaligned *)(a[j] + d);
            for (int i = 0; i < num_tokens; i++) sums[j][i] += row * inputs[i];
        }
    }
    for (int j = 0; j < num_rows; j++)
        for (int i = 0; i < num_tokens; i++) {
            float sum = lane_sum(sums[j][i]);
            for (int64_t rest = d; rest < width; rest++) sum += a[j][rest] * x[i][rest];
            h[i][column + j] = sum;
        }
}

INLINE void dot_rows(const int num_rows, int num_tokens, const float *const *a, const float *const *x, int64_t width,
                     float *const *h, int64_t column) {
    switch (num_tokens) {
        case 4: dot_tile(num_rows, 4, a, x, width, h, column); break;
        case 3: dot_tile(num_rows, 3, a, x, width, h, column); break;
        case 2: dot_tile(num_rows, 2, a, x, width, h, column); break;
        default: dot_tile(num_rows, 1, a, x, width, h, column); break;
    }
}

INLINE void dot_block(int num_rows, int num_tokens, const float *const *a, const float *const *x, int64_t width,
                      float *const *h, int64_t column) {
    switch (num_rows) {
        case 4: dot_rows(4, num_tokens, a, x, width, h, column); break;
        case 3: dot_rows(3, num_tokens, a, x, width, h, column); break;
        case 2: dot_rows(2, num_tokens, a, x, width, h, column); break;
        default: dot_rows(1, num_tokens, a, x, width, h, column); break;
    }
}

#endif
