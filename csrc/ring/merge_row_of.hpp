// The merge of one row. A template over a tag: each file that instantiates it is compiled for its
// own instruction set, and no two share a symbol; nor does anything here call the inline functions
// of the standard library, of which the linker keeps one copy for all.
#pragma once

#include "elements.hpp"
#include "merge_lse.hpp"

#include <math.h>

namespace token::ring {

inline constexpr float kEmpty = -HUGE_VALF;
// What the weight of a piece without the head, or with an empty row, is set to: its out may hold
// anything. A weight that underflows to 0 is another matter: NaN in that out must be seen.
inline constexpr float kNoWeight = -1.0f;
// Outputs that are summed in registers.
inline constexpr int64_t kChunk = 64;

// n is a constant in the loop that matters, so that the sums stay in registers.
template <class Element>
TOKEN_INLINE void add_scaled(float* sums, float weight, const void* from, int64_t at, int64_t n) {
    const auto* values = static_cast<const typename Element::Storage*>(from) + at;
    for (int64_t i = 0; i < n; ++i) {
        sums[i] += weight * Element::widen(values[i]);
    }
}

template <class Element>
TOKEN_INLINE void store(void* to, int64_t at, const float* sums, int64_t n) {
    auto* values = static_cast<typename Element::Storage*>(to) + at;
    for (int64_t i = 0; i < n; ++i) {
        values[i] = Element::narrow(sums[i]);
    }
}

// Leaves lse_i in weights[i][head], and max_i lse_i in highest[head]. NaN stays the highest.
TOKEN_INLINE void read_lse(const MergeRow& work, float* weights, float* highest) {
    const int64_t heads = work.params->heads;
    for (int64_t head = 0; head < heads; ++head) {
        highest[head] = work.params->sinks == nullptr ? kEmpty : work.params->sinks[head];
    }
    for (int64_t index = 0; index < work.num_pieces; ++index) {
        const MergePiece& piece = *work.pieces[index];
        float* own = weights + index * heads;
        for (int64_t head = 0; head < heads; ++head) {
            own[head] = kEmpty;
        }
        const float* lse = piece.lse + work.batch * piece.lse_strides.batch +
                           (work.row - piece.row_start) * piece.lse_strides.row;
        for (int64_t head = 0; head < piece.num_heads; ++head) {
            own[piece.head_start + head] = lse[head * piece.lse_strides.head];
        }
        for (int64_t head = 0; head < heads; ++head) {
            const bool is_higher = own[head] > highest[head] || own[head] != own[head];
            highest[head] = is_higher ? own[head] : highest[head];
        }
    }
}

// Turns lse_i into w_i / sum_i w_i, and writes lse.
TOKEN_INLINE void weigh(const MergeRow& work, float* weights, const float* highest, float* total) {
    const MergeParams& params = *work.params;
    for (int64_t head = 0; head < params.heads; ++head) {
        const float sink = params.sinks == nullptr ? kEmpty : params.sinks[head];
        total[head] = sink == kEmpty ? 0.0f : exp_nonpositive(sink - highest[head]);
    }
    for (int64_t index = 0; index < work.num_pieces; ++index) {
        float* own = weights + index * params.heads;
        for (int64_t head = 0; head < params.heads; ++head) {
            const float weight = exp_nonpositive(own[head] - highest[head]);
            const bool is_empty = own[head] == kEmpty;
            total[head] += is_empty ? 0.0f : weight;
            own[head] = is_empty ? kNoWeight : weight;
        }
    }
    for (int64_t index = 0; index < work.num_pieces; ++index) {
        float* own = weights + index * params.heads;
        for (int64_t head = 0; head < params.heads; ++head) {
            const float share = own[head] / total[head];
            own[head] = own[head] < 0.0f ? kNoWeight : share;
        }
    }
    float* lse =
        params.lse + work.batch * params.lse_strides.batch + work.row * params.lse_strides.row;
    for (int64_t head = 0; head < params.heads; ++head) {
        // -inf + log(0) is -inf.
        lse[head * params.lse_strides.head] = highest[head] + logf(total[head]);
    }
}

// Elements [start, start + n) of one head.
TOKEN_INLINE void merge_chunk(const MergeRow& work,
                              const float* weights,  // [num_pieces, heads]
                              float total,
                              int64_t head,
                              int64_t start,
                              int64_t n) {
    const MergeParams& params = *work.params;
    float sums[kChunk];
    for (int64_t i = 0; i < n; ++i) {
        sums[i] = 0.0f * total;  // NaN even where no piece has the head
    }
    for (int64_t index = 0; index < work.num_pieces; ++index) {
        const float weight = weights[index * params.heads + head];
        if (weight < 0.0f) {
            continue;
        }
        const MergePiece& piece = *work.pieces[index];
        const Strides& strides = piece.out_strides;
        const int64_t at = work.batch * strides.batch + (work.row - piece.row_start) * strides.row +
                           (head - piece.head_start) * strides.head + start;
        if (piece.dtype == DType::kFloat32) {
            add_scaled<Float32>(sums, weight, piece.out, at, n);
        } else if (piece.dtype == DType::kBFloat16) {
            add_scaled<BFloat16>(sums, weight, piece.out, at, n);
        } else {
            add_scaled<Float16>(sums, weight, piece.out, at, n);
        }
    }
    const Strides& strides = params.out_strides;
    const int64_t at =
        work.batch * strides.batch + work.row * strides.row + head * strides.head + start;
    if (params.out_dtype == DType::kFloat32) {
        store<Float32>(params.out, at, sums, n);
    } else if (params.out_dtype == DType::kBFloat16) {
        store<BFloat16>(params.out, at, sums, n);
    } else {
        store<Float16>(params.out, at, sums, n);
    }
}

template <class Isa>
void merge_row(const MergeRow& work) {
    const MergeParams& params = *work.params;
    float* highest = work.scratch;
    float* total = highest + params.heads;
    float* weights = total + params.heads;
    read_lse(work, weights, highest);
    weigh(work, weights, highest, total);
    for (int64_t head = 0; head < params.heads; ++head) {
        int64_t start = 0;
        for (; start + kChunk <= params.head_dim; start += kChunk) {
            merge_chunk(work, weights, total[head], head, start, kChunk);
        }
        if (start < params.head_dim) {
            merge_chunk(work, weights, total[head], head, start, params.head_dim - start);
        }
    }
}

}  // namespace token::ring
