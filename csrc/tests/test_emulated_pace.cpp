// Two-shot with paced loads, which benchmarks launch: the same numbers, in the time that a link
// would need for the loads, and not much more. In emulated time.
#include "emulated_reduction.hpp"
#include "expect.hpp"
#include "token/common/errors.hpp"

namespace {

using namespace token;
using namespace token::testing;
using emulator::Schedule;
using weave::cuda::Form;
using weave::cuda::Reach;

constexpr uint64_t kRowNs = 1'000'000;
constexpr uint64_t kLatencyNs = 500'000;
constexpr int kOwnRows = 4;

// One row group a rank, which takes kOwnRows rows one after the other.
EmulatedCase case_of(double speed) {
    EmulatedCase chosen;
    chosen.reach = Reach::kPeer;
    chosen.hidden = 16384;
    chosen.rows = kOwnRows * chosen.size;
    chosen.num_launches = 1;
    const double loaded_bytes = static_cast<double>(chosen.hidden * 2 * chosen.size);
    chosen.pace = {speed * loaded_bytes / kRowNs, speed == 0.0 ? 0 : int64_t{kLatencyNs}};
    return chosen;
}

uint64_t elapsed_ns(const EmulatedCase& chosen, uint64_t seed) {
    EmulatedReduction reduction(chosen, Schedule::of_seed(seed));
    reduction.queue();
    const uint64_t start_ns = reduction.machine().now_ns();
    reduction.machine().run();
    EXPECT_EQ(reduction.check(), "");
    return reduction.machine().now_ns() - start_ns;
}

void rows_come_at_the_pace() {
    for (const uint64_t seed : {1, 2, 3}) {
        const uint64_t free_ns = elapsed_ns(case_of(0.0), seed);
        // The first row is paid for; the last one is asked for after the others and comes late.
        const uint64_t least_ns = (kOwnRows - 1) * kRowNs + kLatencyNs;
        const uint64_t paced_ns = elapsed_ns(case_of(1.0), seed);
        EXPECT(free_ns < least_ns);
        EXPECT(paced_ns >= least_ns);
        EXPECT(paced_ns <= least_ns + free_ns + kRowNs);
        const uint64_t faster_ns = elapsed_ns(case_of(2.0), seed);
        EXPECT(faster_ns >= (kOwnRows - 1) * kRowNs / 2 + kLatencyNs);
        EXPECT(faster_ns < least_ns);
    }
}

// More blocks share the same rate.
void blocks_share_the_pace() {
    EmulatedCase chosen = case_of(1.0);
    chosen.num_blocks = 2;
    EXPECT(elapsed_ns(chosen, 4) >= (kOwnRows / 2 - 1) * 2 * kRowNs + kLatencyNs);
}

void only_what_the_kernel_can_is_paced() {
    const auto is_refused = [](const auto& change) {
        EmulatedCase chosen = case_of(1.0);
        chosen.hidden = 64;
        change(chosen);
        EmulatedReduction reduction(chosen, Schedule::of_seed(5));
        EXPECT_THROWS(reduction.queue(), InvalidArgument);
    };
    is_refused([](EmulatedCase& c) { c.reach = Reach::kMulticast; });
    is_refused([](EmulatedCase& c) { c.form = Form::kReduceScatter; });
    is_refused([](EmulatedCase& c) { c.dtype = DType::kFloat16; });
    is_refused([](EmulatedCase& c) { c.hidden = 63; });
    is_refused([](EmulatedCase& c) { c.pace.bytes_per_ns = -1.0; });
    is_refused([](EmulatedCase& c) { c.pace.bytes_per_ns = 1e-9; });
    is_refused([](EmulatedCase& c) { c.pace.latency_ns = -1; });
}

}  // namespace

int main() {
    rows_come_at_the_pace();
    blocks_share_the_pace();
    only_what_the_kernel_can_is_paced();
    return finish("emulated_pace");
}
