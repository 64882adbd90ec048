// What kernels have recorded in pinned memory, for people.
#include "launch.hpp"
#include "token/common/check.hpp"

#include <atomic>

namespace token::weave::cuda {

namespace {

const char* phase_name(Phase phase) {
    switch (phase) {
        case Phase::kEntry:
            return "before reading its partial sums";
        case Phase::kExit:
            return "before using its results";
        case Phase::kPush:
            return "before adding the rows it sends";
        case Phase::kNone:
            break;
    }
    return "at no barrier";
}

std::string what_happened(const Failure& failure) {
    switch (failure.kind) {
        case FailureKind::kTimeout:
            return concat("rank ",
                          failure.peer,
                          " did not signal rank ",
                          failure.rank,
                          " before the deadline");
        case FailureKind::kPeerBroken:
            return concat("rank ",
                          failure.peer,
                          " told rank ",
                          failure.rank,
                          " that a wait of its own had failed");
        case FailureKind::kMismatch:
            return concat("rank ", failure.peer, " made another call than rank ", failure.rank);
        case FailureKind::kNone:
            break;
    }
    return "nothing failed";
}

}  // namespace

std::optional<Failure> read_failure(uintptr_t failure_record) {
    auto* record = reinterpret_cast<FailureRecord*>(failure_record);
    // The GPU writes it last, with release.
    const uint32_t kind = std::atomic_ref(record->kind).load(std::memory_order_acquire);
    if (kind == static_cast<uint32_t>(FailureKind::kNone)) {
        return std::nullopt;
    }
    Failure failure{static_cast<FailureKind>(kind),
                    static_cast<int>(record->rank),
                    static_cast<int>(record->peer),
                    static_cast<int>(record->block),
                    static_cast<Phase>(record->phase),
                    record->epoch,
                    record->expected,
                    record->seen,
                    {}};
    failure.message = concat(what_happened(failure),
                             " (block ",
                             failure.block,
                             ", ",
                             phase_name(failure.phase),
                             ", epoch ",
                             failure.epoch,
                             ": expected ",
                             failure.expected,
                             ", saw ",
                             failure.seen,
                             "). Results since then are NaN. The world is broken: close it and "
                             "build a new one.");
    return failure;
}

}  // namespace token::weave::cuda
