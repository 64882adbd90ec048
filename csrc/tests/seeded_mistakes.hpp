// The mistakes that emulator/seeded_mistakes.cmake writes into copies of the kernels, and the one
// that is made now. Included by force into these copies only.
#pragma once

#include "token/ptx/multimem.hpp"
#include "token/ptx/scoped.hpp"

namespace token::weave::cuda {

enum class Mistake {
    kNone,
    kNoEntryBarrier,
    kNoExitBarrier,
    kNoSyncBeforeRelease,
    kNoSyncAfterAcquire,
    kRelaxedRelease,
    kRelaxedAcquire,
    kEpochReuse,
    kPlainEpochCompare,
    kNoAliasFence,
    kNoRowBarrier,
    kOneRowPlace,
    kOneStagingHalf,
};

bool is_seeded(Mistake mistake);

// Of functions with several forms, the one that a conditional expression needs.
inline void as_release_sys(uint32_t* to, uint32_t value) {
    ptx::st_release_sys(to, value);
}
inline void as_multimem_relaxed(uint32_t* to, uint32_t value) {
    ptx::multimem_st_relaxed_sys(to, value);
}

}  // namespace token::weave::cuda
