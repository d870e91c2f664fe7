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
#define MAX_RANKED 64

/* One thread's room for the scores of a group. */
typedef struct {
    uint64_t *keys;
    int32_t *bits;
    uint8_t *is_kept;
} GateScratch;

/* The responses of one adapter's rows [first, first + num_rows) for a block of the tokens that use it. Meanwhile as many
   rows from `next` on are fetched, unless it is NULL. */
CLONED static void shrink_block(const RocTable *t, const RocModule *m, int64_t adapter, int64_t first, int num_rows,
                                int64_t from, int64_t until, const float *next, const float *x, int64_t x_stride,
                                float *h) {
    const float *a[ROW_TILE];
    const int64_t columns = t->adapter_columns[adapter];
    if (m->rows[columns + first] == 0) {
        /* The adapter has fewer components in this layer: its remaining columns are padding. */
        for (int64_t user = from; user < until; user++)
            for (int j = 0; j < num_rows; j++) h[t->user_places[user] + first + j] = 0;
        return;
    }
    for (int j = 0; j < num_rows; j++) a[j] = m->a + (int64_t)m->rows[columns + first + j] * m->width;
    const int64_t num_users = until - from, num_tiles = tile_count(num_users);
    for (int64_t tile = 0; tile < num_tiles; tile++) {
        const int64_t user = from + num_users * tile / num_tiles;
        const int num_tokens = (int)(from + num_users * (tile + 1) / num_tiles - user);
        const float *inputs[TOKEN_TILE];
        float *outputs[TOKEN_TILE];
        for (int i = 0; i < num_tokens; i++) {
            inputs[i] = x + (int64_t)t->user_tokens[user + i] * x_stride;
            outputs[i] = h + t->user_places[user + i];
        }
        dot_block(num_rows, num_tokens, a, inputs, m->width, outputs, first,
                  next == NULL ? NO_PREFETCH
                               : prefetch_share(next - a[0], m->width, tile, num_tiles));
    }
}

/* Where the rows of the block after this one begin, unless they are the same or padding. An adapter's rows lie one behind
   the other as long as the pool has room for them together. */
static const float *next_rows(const RocTable *t, const RocModule *m, int64_t block) {
    if (block + 1 >= t->num_blocks) return NULL;
    const RocBlock *b = &t->blocks[block], *next = b + 1;
    if (next->adapter == b->adapter && next->first_row == b->first_row) return NULL;
    const int32_t row = m->rows[t->adapter_columns[next->adapter] + next->first_row];
    return row == 0 ? NULL : m->a + (int64_t)row * m->width;
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

/* Bits of a score that order like it; a NaN counts as largest, so that it reaches the output and the request that caused
   it ends. */
static int32_t score_bits(const RocTable *t, const RocModule *m, int64_t plan, int64_t slot, float gain) {
    float score = fabsf(gain);
    if (t->plan_by_norm[plan]) score *= m->norms[m->rows[t->slot_columns[slot]]];
    if (isnan(score)) score = INFINITY;
    int32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return bits;
}

/* Marks the `budget` largest of up to MAX_RANKED scores, the lower index among equals: whoever has fewer than `budget`
   others before it. Counting all pairs, a vector at a time, beats sorting so few. The scores are followed by room for a
   whole vector. Shifted by 31, a negative difference is -1 and any other 0: compilers turn comparisons of vectors into
   scalar code where they do not know the processor yet. */
CLONED static void mark_largest(const int32_t *bits, int64_t size, int64_t budget, uint8_t *is_kept) {
    const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t first = 0; first < size; first += LANES) {
        const ivec own = *(const ivec_unaligned *)(bits + first);
        ivec rank = {0};
        const int64_t stop = first + LANES < size ? first + LANES : size;
        /* Scores before these win among equals, scores behind them lose; among themselves it depends on the lane. */
        for (int64_t s = 0; s < first; s++) rank -= (own - bits[s] - 1) >> 31;
        for (int64_t s = first; s < stop; s++)
            rank -= (own - bits[s] + (((int32_t)(s - first) - lanes) >> 31)) >> 31;
        for (int64_t s = stop; s < size; s++) rank -= (own - bits[s]) >> 31;
        int32_t ranks[LANES];
        memcpy(ranks, &rank, sizeof ranks);
        for (int64_t s = first; s < stop; s++) is_kept[s] = ranks[s - first] < budget;
    }
}

/* The same for any number of scores. */
static void mark_largest_of_many(const int32_t *bits, int64_t size, int64_t budget, uint64_t *keys, uint8_t *is_kept) {
    /* Inverted, so that the largest score is the smallest key, and the lower index comes first among equals. */
    for (int64_t s = 0; s < size; s++) keys[s] = ((uint64_t)(~(uint32_t)bits[s]) << 32) | (uint32_t)s;
    select_smallest(keys, size, budget);
    memset(is_kept, 0, (size_t)size);
    for (int64_t i = 0; i < budget; i++) is_kept[keys[i] & 0xffffffffu] = 1;
}

/* One token's gate: fills kept rows and their gains, in slot order; returns how many. */
static int64_t gate_token(const RocTable *t, const RocModule *m, int64_t plan, const float *h, int32_t *kept_rows,
                          float *kept_gains, GateScratch scratch) {
    const int64_t slots = t->plan_slots[plan];
    int64_t num_kept = 0;
    for (int64_t group = t->plan_groups[plan]; group < t->plan_groups[plan + 1]; group++) {
        const int64_t from = t->group_slots[group], size = t->group_slots[group + 1] - from;
        const float *factors = t->slot_factors + from, *responses = h + (from - slots);
        const int64_t budget = m->budgets[group];
        const int is_full = budget >= size;
        if (!is_full) {
            for (int64_t s = 0; s < size; s++)
                scratch.bits[s] = score_bits(t, m, plan, from + s, factors[s] * responses[s]);
            if (size <= MAX_RANKED) mark_largest(scratch.bits, size, budget, scratch.is_kept);
            else mark_largest_of_many(scratch.bits, size, budget, scratch.keys, scratch.is_kept);
        }
        for (int64_t s = 0; s < size; s++) {
            const int32_t row = m->rows[t->slot_columns[from + s]];
            /* The zero row is padding. */
            if (row == 0 || !(is_full || scratch.is_kept[s])) continue;
            kept_rows[num_kept] = row;
            kept_gains[num_kept++] = factors[s] * responses[s];
        }
    }
    return num_kept;
}

/* The rows that one token keeps, and what each is worth. */
typedef struct {
    const int32_t *rows;
    const float *gains;
    int64_t num_kept;
} Kept;

/* y[from, until) += sum of gains times rows of b. */
CLONED static void expand_tile(const float *b, int64_t stride, Kept kept, float *y, int64_t from, int64_t until) {
    int64_t o = from;
    for (; o + 4 * LANES <= until; o += 4 * LANES) {
        vec sums[4];
        for (int v = 0; v < 4; v++) sums[v] = *(const vec_unaligned *)(y + o + v * LANES);
        for (int64_t k = 0; k < kept.num_kept; k++) {
            const float *row = b + (int64_t)kept.rows[k] * stride + o;
            for (int v = 0; v < 4; v++) sums[v] += kept.gains[k] * *(const vec_unaligned *)(row + v * LANES);
        }
        for (int v = 0; v < 4; v++) *(vec_unaligned *)(y + o + v * LANES) = sums[v];
    }
    for (; o + LANES <= until; o += LANES) {
        vec sum = *(const vec_unaligned *)(y + o);
        for (int64_t k = 0; k < kept.num_kept; k++)
            sum += kept.gains[k] * *(const vec_unaligned *)(b + (int64_t)kept.rows[k] * stride + o);
        *(vec_unaligned *)(y + o) = sum;
    }
    for (; o < until; o++) {
        float sum = y[o];
        for (int64_t k = 0; k < kept.num_kept; k++) sum += kept.gains[k] * b[(int64_t)kept.rows[k] * stride + o];
        y[o] = sum;
    }
}

static Kept kept_of(const RocTable *t, const int64_t *counts, const int32_t *rows, const float *gains, int64_t token) {
    const int64_t place = t->token_places[token];
    const Kept kept = {rows + place, gains + place, counts[token]};
    return kept;
}

int roc_apply(const RocTable *t, const RocModule *m, const float *x, int64_t x_stride, float *y, int64_t y_stride,
              int num_threads) {
    /* One allocation: counts, each thread's scratch, responses, kept gains, kept rows. */
    const int64_t num_places = t->num_places, num_tokens = t->num_tokens;
    const int64_t max_slots = t->max_slots + LANES;
    const int64_t thread_bytes = (max_slots * (8 + 4 + 1) + 7) / 8 * 8;
    char *scratch = malloc((size_t)(num_tokens * 8 + num_threads * thread_bytes + num_places * 3 * 4) + 64);
    if (scratch == NULL) return -1;
    int64_t *counts = (int64_t *)scratch;
    char *of_threads = (char *)(counts + num_tokens);
    float *h = (float *)(of_threads + num_threads * thread_bytes);
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
            shrink_block(t, m, b->adapter, b->first_row, b->num_rows, b->from_user, b->until_user,
                         next_rows(t, m, block), x, x_stride, h);
        }
#pragma omp for schedule(static)
        for (int64_t token = 0; token < num_tokens; token++) {
            const int64_t place = t->token_places[token];
            uint64_t *keys = (uint64_t *)(of_threads + omp_get_thread_num() * thread_bytes);
            int32_t *bits = (int32_t *)(keys + max_slots);
            const GateScratch own = {keys, bits, (uint8_t *)(bits + max_slots)};
            counts[token] = t->token_plans[token] < 0
                                ? 0
                                : gate_token(t, m, t->token_plans[token], h + place, rows + place, gains + place, own);
        }
#pragma omp for schedule(static)
        for (int64_t column = 0; column < num_tiles; column++) {
            const int64_t from = column * tile, until = from + tile < m->height ? from + tile : m->height;
            for (int64_t token = 0; token < num_tokens; token++)
                if (counts[token] > 0)
                    expand_tile(m->b, m->height, kept_of(t, counts, rows, gains, token), y + token * y_stride, from, until);
        }
    }
    free(scratch);
    return 0;
}
