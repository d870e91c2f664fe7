/* A linear layer for a handful of tokens. */

#ifndef HILORA_SMALL_LINEAR_H
#define HILORA_SMALL_LINEAR_H

#include <stddef.h>
#include <stdint.h>

/* y [num_tokens, height] = x [num_tokens, width] times w [height, width] transposed, plus bias [height] unless NULL. */
void small_linear(const float *x, int64_t x_stride, int64_t num_tokens, const float *w, const float *bias, int64_t width,
                  int64_t height, float *y, int64_t y_stride, int num_threads);

#endif
