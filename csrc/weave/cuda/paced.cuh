// Two-shot over addresses with loads that come no faster and no sooner than over a link: a
// benchmark on one GPU then sees what a kernel's blocks do while they wait. Never used otherwise.
//
// Each warp has a bucket of tokens that fills with time (globaltimer): a row's loads, of all ranks
// together, cost pace_row_ns; a bucket holds one row beyond the one that is paid for. A row is
// added at the earliest pace_latency_ns after its loads were let go. All row groups of a rank have
// the same rate, so their sum is the rank's; a group that lags cannot lend its share to another.
//
// What this does not play: stores, which go the other way and are not paced; requests and
// acknowledgements on the link; the switch, whose sums arrive as one row where Peer loads one of
// each rank; congestion, which makes latency grow with load.
#pragma once

#include "token/common/host_device.hpp"
#include "token/ptx/clock.hpp"
#include "token/ptx/sleep.hpp"
#include "two_shot.cuh"

namespace token::weave::cuda {

struct Paced : Peer {};

// A source whose rows come at a pace.
template <class Source>
class PacedRows {
  public:
    static constexpr bool kAddsRanks = Source::kAddsRanks;

    TOKEN_DEVICE PacedRows(const Source& source, const ReductionParams& params)
        : source_(source),
          row_ns_(params.pace_row_ns),
          latency_ns_(params.pace_latency_ns),
          due_ns_(now_ns()) {}

    TOKEN_DEVICE void ask(int64_t row) {
        wait_until(due_ns_);
        const uint32_t now = now_ns();
        // Time beyond one row that nobody used is lost.
        const uint32_t earliest = now - row_ns_;
        due_ns_ = (static_cast<int32_t>(due_ns_ - earliest) < 0 ? earliest : due_ns_) + row_ns_;
        asked_ns_ = now;
        source_.ask(row);
    }
    TOKEN_DEVICE void sum(Floats (&sums)[kUnitsPerLane]) {
        wait_until(asked_ns_ + latency_ns_);
        source_.sum(sums);
    }

  private:
    // The lower word: it wraps after 4 s, no wait is longer than half of that.
    TOKEN_DEVICE static uint32_t now_ns() { return static_cast<uint32_t>(ptx::globaltimer_ns()); }
    TOKEN_DEVICE static void wait_until(uint32_t time_ns) {
        while (static_cast<int32_t>(time_ns - now_ns()) > 0) {
            ptx::nanosleep(32);
        }
    }

    Source source_;
    const uint32_t row_ns_;
    const uint32_t latency_ns_;
    uint32_t due_ns_;  // when the next row is paid for
    uint32_t asked_ns_ = 0;
};

template <class Element, bool kIsAligned>
TOKEN_DEVICE auto source_of(Paced, const ReductionParams& params, const LaneUnits& units) {
    const auto source = source_of<Element, kIsAligned>(Peer(), params, units);
    return PacedRows(source, params);
}

}  // namespace token::weave::cuda
