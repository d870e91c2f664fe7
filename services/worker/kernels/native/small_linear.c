/* y = x W^T + bias for a handful of tokens: decode steps of small batches, whose cost is reading W.

   General matrix products repack W first, which for few tokens costs as much as the product. Here every row of W is
   read once, straight, by one thread, for all tokens. */

#include "small_linear.h"

#include <omp.h>

#include "dot_tile.h"

#define ROWS_PER_BLOCK 16

CLONED static void linear_rows(const float *x, int64_t x_stride, int64_t num_tokens, const float *w, const float *bias,
                               int64_t width, int64_t from, int64_t until, float *y, int64_t y_stride) {
    const int64_t num_tiles = tile_count(num_tokens);
    for (int64_t o = from; o < until; o += ROW_TILE) {
        const int num_rows = (int)(until - o < ROW_TILE ? until - o : ROW_TILE);
        const float *rows[ROW_TILE];
        for (int j = 0; j < num_rows; j++) rows[j] = w + (o + j) * width;
        for (int64_t tile = 0; tile < num_tiles; tile++) {
            const int64_t token = num_tokens * tile / num_tiles;
            const int size = (int)(num_tokens * (tile + 1) / num_tiles - token);
            const float *inputs[TOKEN_TILE];
            float *outputs[TOKEN_TILE];
            for (int i = 0; i < size; i++) {
                inputs[i] = x + (token + i) * x_stride;
                outputs[i] = y + (token + i) * y_stride;
            }
            dot_block(num_rows, size, rows, inputs, width, outputs, o,
                      prefetch_share(ROW_TILE * width, width, tile, num_tiles));
            if (bias != NULL)
                for (int i = 0; i < size; i++)
                    for (int j = 0; j < num_rows; j++) outputs[i][o + j] += bias[o + j];
        }
    }
}

void small_linear(const float *x, int64_t x_stride, int64_t num_tokens, const float *w, const float *bias, int64_t width,
                  int64_t height, float *y, int64_t y_stride, int num_threads) {
    if (num_tokens * width * height < MIN_PARALLEL_WORK) num_threads = 1;
    const int64_t num_blocks = (height + ROWS_PER_BLOCK - 1) / ROWS_PER_BLOCK;
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_threads > 1)
    for (int64_t block = 0; block < num_blocks; block++) {
        const int64_t from = block * ROWS_PER_BLOCK;
        const int64_t until = from + ROWS_PER_BLOCK < height ? from + ROWS_PER_BLOCK : height;
        linear_rows(x, x_stride, num_tokens, w, bias, width, from, until, y, y_stride);
    }
}
