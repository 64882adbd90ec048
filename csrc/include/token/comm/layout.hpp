// The byte map of one rank's workspace: the only place that knows an offset.
//
//   header | signal lines, one per peer | partial[2] | staging_in[2] | staging_out[2]
//
// partial[2]: where a block's last GEMM writes its partial sum, so that the reduction needs no
// copy. staging_in/out[2]: private tensors pass through these in blocks small enough to stay in
// cache. Two of each because a rank may be one collective ahead of a peer that still reads the
// other one.
#pragma once

#include "token/comm/protocol.hpp"
#include "token/common/check.hpp"
#include "token/common/math.hpp"

#include <cstdint>

namespace token::comm {

// Own line of the workspace through which a rank that gave up tells the others.
struct alignas(kLineBytes) WorkspaceHeader {
    // 0, or a Verdict packed into one word (see verdict.hpp): the first writer wins by
    // compare-and-swap.
    uint64_t verdict;
};
static_assert(sizeof(WorkspaceHeader) == kLineBytes);

struct WorkspaceLayout {
    static constexpr int64_t kPageBytes = 4096;
    static constexpr int kNumSlots = 2;

    int size;
    int64_t partial_bytes;  // of one slot
    int64_t staging_bytes;  // of one slot

    WorkspaceLayout(int num_ranks, int64_t partial, int64_t staging)
        : size(num_ranks),
          partial_bytes(align_up(partial, kPageBytes)),
          staging_bytes(align_up(staging, kPageBytes)) {
        TOKEN_CHECK(num_ranks >= 1, "a group needs at least one rank, got ", num_ranks);
        TOKEN_CHECK(partial >= 0 && staging > 0,
                    "workspace sizes must be positive, got partial ",
                    partial,
                    " and staging ",
                    staging,
                    " bytes");
    }

    int64_t lines_offset() const { return sizeof(WorkspaceHeader); }
    int64_t partial_offset(int slot) const {
        return align_up(lines_offset() + size * int64_t{kLineBytes}, kPageBytes) +
               slot * partial_bytes;
    }
    int64_t staging_in_offset(int slot) const {
        return partial_offset(kNumSlots) + slot * staging_bytes;
    }
    int64_t staging_out_offset(int slot) const {
        return staging_in_offset(kNumSlots) + slot * staging_bytes;
    }
    int64_t total_bytes() const { return staging_out_offset(kNumSlots); }
};

}  // namespace token::comm
