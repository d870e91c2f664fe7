/* Token-level ROC gating on a CPU in one pass: shrink, gate, expand (arXiv 2510.12266, token level).

   For every token t with a plan:    h_s = a_s . x_t            for each slot s of the plan
                                     p_s = c_s h_s              keep each group's largest |p_s| (times ||b_s|| on request)
                                     y_t += sum over kept s of p_s b_s

   What makes it fast: rows of A are read once for all tokens that share an adapter, in register tiles of up to 4 rows by
   4 tokens; rows of B are read only where they are kept, in tiles of columns that stay in the cache while every token
   passes; one call serves a whole step. What makes it exact: see dot_tile.h. */

#include "roc_kernel.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "dot_tile.h"

#define COLUMN_TILE 512

/* The responses of one adapter's rows [first, first + num_rows) for a block of the tokens that use it. */
CLONED static void shrink_block(const RocTable *t, const RocModule *m, int64_t adapter, int64_t first, int num_rows,
                                int64_t from, int64_t until, const float *x, int64_t x_stride, float *h) {
    const float *a[ROW_TILE];
    const int64_t columns = t->adapter_columns[adapter];
    if (m->rows[columns + first] == 0) {
        /* The adapter has fewer components in this layer: its remaining columns are padding. */
        for (int64_t user = from; user < until; user++)
            for (int j = 0; j < num_rows; j++) h[t->user_places[user] + first + j] = 0;
        return;
    }
    for (int j = 0; j < num_rows; j++) a[j] = m->a + (int64_t)m->rows[columns + first + j] * m->width;
    for (int64_t user = from; user < until; user += TOKEN_TILE) {
        const int num_tokens = (int)(until - user < TOKEN_TILE ? until - user : TOKEN_TILE);
        const float *inputs[TOKEN_TILE];
        float *outputs[TOKEN_TILE];
        for (int i = 0; i < num_tokens; i++) {
            inputs[i] = x + (int64_t)t->user_tokens[user + i] * x_stride;
            outputs[i] = h + t->user_places[user + i];
        }
        dot_block(num_rows, num_tokens, a, inputs, m->width, outputs, first);
    }
}

/* Moves the k smallest keys to the front, in any order. Keys are distinct. */
static void select_smallest(uint64_t *keys, int64_t size, int64_t k) {
    int64_t low = 0, high = size - 1;
    while (low < high) {
        const uint64_t pivot = keys[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (keys[i] < pivot) i++;
            while (keys[j] > pivot) j--;
            if (i <= j) {
                const uint64_t swap = keys[i];
                keys[i++] = keys[j];
                keys[j--] = swap;
            }
        }
        if (k <= j + 1) high = j;
        else if (k > i) low = i;
        else return;
    }
}

/* Sorts small integers that are almost in order. */
static void sort_places(uint64_t *keys, int64_t size) {
    for (int64_t i = 1; i < size; i++) {
        const uint64_t key = keys[i];
        int64_t j = i;
        for (; j > 0 && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
        keys[j] = key;
    }
}

/* One token's gate: fills kept places and their gains, in slot order; returns how many. Largest score first, the lower
   slot among equals; a NaN counts as largest, so that it reaches the output and the request that caused it ends. */
static int64_t gate_token(const RocTable *t, const RocModule *m, int64_t plan, const float *h, int32_t *kept_rows,
                          float *kept_gains, uint64_t *keys) {
    const int64_t slots = t->plan_slots[plan];
    int64_t num_kept = 0;
    for (int64_t group = t->plan_groups[plan]; group < t->plan_groups[plan + 1]; group++) {
        const int64_t from = t->group_slots[group], until = t->group_slots[group + 1], size = until - from;
        int64_t budget = m->budgets[group];
        if (budget > size) budget = size;
        const int is_full = budget == size;
        for (int64_t s = from; s < until; s++) {
            if (is_full) {
                keys[s - from] = (uint64_t)(s - from);
                continue;
            }
            float score = fabsf(t->slot_factors[s] * h[s - slots]);
            if (t->plan_by_norm[plan]) score *= m->norms[m->rows[t->slot_columns[s]]];
            if (isnan(score)) score = INFINITY;
            uint32_t bits;
            memcpy(&bits, &score, sizeof bits);
            /* Positive floats order like their bits; inverted, so that the largest score is the smallest key. */
            keys[s - from] = ((uint64_t)(~bits) << 32) | (uint32_t)(s - from);
        }
        if (!is_full) {
            select_smallest(keys, size, budget);
            for (int64_t i = 0; i < budget; i++) keys[i] &= 0xffffffffu;
            sort_places(keys, budget);
        }
        for (int64_t i = 0; i < budget; i++) {
            const int64_t s = from + (int64_t)keys[i];
            const int32_t row = m->rows[t->slot_columns[s]];
            if (row == 0) continue; /* the zero row: padding */
            kept_rows[num_kept] = row;
            kept_gains[num_kept++] = t->slot_factors[s] * h[s - slots];
        }
    }
    return num_kept;
}

/* y[from, until) += sum of gains times rows of b. */
CLONED static void expand_tile(const float *b, int64_t stride, const int32_t *rows, const float *gains, int64_t num_kept,
                               float *y, int64_t from, int64_t until) {
    int64_t o = from;
    for (; o + 4 * LANES <= until; o += 4 * LANES) {
        vec sums[4];
        for (int v = 0; v < 4; v++) sums[v] = *(const vec_unaligned *)(y + o + v * LANES);
        for (int64_t k = 0; k < num_kept; k++) {
            const float *row = b + (int64_t)rows[k] * stride + o;
            for (int v = 0; v < 4; v++) sums[v] += gains[k] * *(const vec_unaligned *)(row + v * LANES);
        }
        for (int v = 0; v < 4; v++) *(vec_unaligned *)(y + o + v * LANES) = sums[v];
    }
    for (; o + LANES <= until; o += LANES) {
        vec sum = *(const vec_unaligned *)(y + o);
        for (int64_t k = 0; k < num_kept; k++)
            sum += gains[k] * *(const vec_unaligned *)(b + (int64_t)rows[k] * stride + o);
        *(vec_unaligned *)(y + o) = sum;
    }
    for (; o < until; o++) {
        float sum = y[o];
        for (int64_t k = 0; k < num_kept; k++) sum += gains[k] * b[(int64_t)rows[k] * stride + o];
        y[o] = sum;
    }
}

int roc_apply(const RocTable *t, const RocModule *m, const float *x, int64_t x_stride, float *y, int64_t y_stride,
              int num_threads) {
    /* One allocation: responses, kept gains, kept rows, counts, and each thread's keys. */
    const int64_t num_places = t->num_places, num_tokens = t->num_tokens;
    const int64_t num_bytes = num_places * 3 * 4 + num_tokens * 8 + (int64_t)num_threads * t->max_slots * 8;
    char *scratch = malloc((size_t)num_bytes + 64);
    if (scratch == NULL) return -1;
    int64_t *counts = (int64_t *)scratch;
    uint64_t *keys = (uint64_t *)(counts + num_tokens);
    float *h = (float *)(keys + (int64_t)num_threads * t->max_slots);
    float *gains = h + num_places;
    int32_t *rows = (int32_t *)(gains + num_places);
    if (num_places * m->width < MIN_PARALLEL_WORK) num_threads = 1;
    int64_t tile = (m->height / num_threads + LANES - 1) / LANES * LANES;
    if (tile > COLUMN_TILE) tile = COLUMN_TILE;
    if (tile < LANES) tile = LANES;
    const int64_t num_tiles = (m->height + tile - 1) / tile;

#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t block = 0; block < t->num_blocks; block++) {
            const RocBlock *b = &t->blocks[block];
            shrink_block(t, m, b->adapter, b->first_row, b->num_rows, b->from_user, b->until_user, x, x_stride, h);
        }
#pragma omp for schedule(static)
        for (int64_t token = 0; token < num_tokens; token++) {
            const int64_t place = t->token_places[token];
            counts[token] = t->token_plans[token] < 0
                                ? 0
                                : gate_token(t, m, t->token_plans[token], h + place, rows + place, gains + place,
                                             keys + (int64_t)omp_get_thread_num() * t->max_slots);
        }
#pragma omp for schedule(static)
        for (int64_t column = 0; column < num_tiles; column++) {
            const int64_t from = column * tile, until = from + tile < m->height ? from + tile : m->height;
            for (int64_t token = 0; token < num_tokens; token++)
                if (counts[token] > 0)
                    expand_tile(m->b, m->height, rows + t->token_places[token], gains + t->token_places[token],
                                counts[token], y + token * y_stride, from, until);
        }
    }
    free(scratch);
    return 0;
}
