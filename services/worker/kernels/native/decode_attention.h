/* Attention of single tokens over keys and values where they lie. */

#ifndef HILORA_DECODE_ATTENTION_H
#define HILORA_DECODE_ATTENTION_H

#include <stdint.h>

/* What every token of a call shares. Sizes count elements. */
typedef struct {
    int64_t num_tokens;
    int64_t num_heads;     /* of the queries; a multiple of num_kv_heads */
    int64_t num_kv_heads;
    int64_t head_dim;      /* a multiple of LANES */
    int64_t slot_stride;   /* of keys and values [slots, num_kv_heads, positions, head_dim] */
    int64_t head_stride;
    float scaling;
    float softcap;         /* c of c tanh(score / c); 0 is off */
} AttentionShape;

/* Each token attends to positions [first[t], until[t]) of slot slots[t]; q and out are [num_tokens, num_heads, head_dim].
   Returns 0, or -1 without memory. */
int decode_attention(const AttentionShape *shape, const float *q, const float *keys, const float *values,
                     const int64_t *slots, const int64_t *first, const int64_t *until, float *out, int num_threads);

#endif
