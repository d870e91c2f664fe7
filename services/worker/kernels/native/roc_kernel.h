/* The tables that one step's ROC work is described by. All arrays belong to the caller. */

#ifndef HILORA_ROC_KERNEL_H
#define HILORA_ROC_KERNEL_H

#include <stdint.h>

/* Up to four rows of one adapter for a block of the tokens that use it: one unit of shrink work. */
typedef struct {
    int32_t adapter, first_row, num_rows;
    int32_t from_user, until_user;
} RocBlock;

/* Which token uses which plan, and what the plans consist of; the same for every linear layer. */
typedef struct {
    int64_t num_tokens;
    int64_t num_places; /* responses of all tokens together */
    int64_t max_slots;  /* of one gate group */
    int64_t num_blocks;
    const int32_t *token_plans;      /* [num_tokens], -1: no plan */
    const int32_t *token_places;     /* [num_tokens]: where a token's responses begin */
    const int32_t *plan_slots;       /* [plans + 1]: a plan's first slot */
    const int32_t *plan_groups;      /* [plans + 1]: a plan's first gate group */
    const uint8_t *plan_by_norm;     /* [plans]: compete by |a.x| ||b|| */
    const int32_t *group_slots;      /* [groups + 1]: a group's first slot */
    const int32_t *slot_columns;     /* [slots]: the slot's column among the step's adapters */
    const float *slot_factors;       /* [slots]: eta times the adapter's weight */
    const int32_t *adapter_columns;  /* [adapters]: an adapter's first column */
    const int32_t *user_tokens;      /* by adapter: the tokens that use it */
    const int32_t *user_places;      /* by adapter: where those tokens keep its responses */
    const RocBlock *blocks;          /* [num_blocks] */
} RocTable;

/* One linear layer: where its components are, and how many each group may keep there. */
typedef struct {
    const float *a;         /* [N, width] */
    const float *b;         /* [N, height] */
    const float *norms;     /* [N] */
    const int32_t *rows;    /* [columns]: row of a and b behind each column; 0 is padding */
    const int32_t *budgets; /* [groups] */
    int64_t width, height;
} RocModule;

/* Adds the ROCs' output to y [num_tokens, height]. Returns 0, or -1 if there is no memory. */
int roc_apply(const RocTable *table, const RocModule *module, const float *x, int64_t x_stride, float *y,
              int64_t y_stride, int num_threads);

#endif
