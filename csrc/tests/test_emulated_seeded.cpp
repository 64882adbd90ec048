// Kernels with one mistake each (emulator/seeded_mistakes.cmake): the emulator must find every one.
// A test that passes with the mistake in it would prove nothing about the kernels without.
#include "emulated_reduction.hpp"
#include "expect.hpp"
#include "seeded_mistakes.hpp"

#include <string>

namespace token::weave::cuda {

// The kernels ask while they run; one test runs at a time.
static Mistake seeded = Mistake::kNone;

bool is_seeded(Mistake mistake) {
    return seeded == mistake;
}

}  // namespace token::weave::cuda

namespace {

using namespace token;
using namespace token::testing;
using weave::cuda::Form;
using weave::cuda::Mistake;
using weave::cuda::Reach;

constexpr uint64_t kNumSeeds = 6;

struct Seeded {
    Mistake mistake;
    const char* words;  // of the message
    EmulatedCase chosen;
};

EmulatedCase case_of(Reach reach, Form form) {
    EmulatedCase chosen;
    chosen.reach = reach;
    chosen.form = form;
    chosen.size = 3;
    chosen.residual_is_sharded = form != Form::kOneShot;
    chosen.num_launches = 3;
    return chosen;
}

// Warps share a row and take several in turn.
EmulatedCase wide_case() {
    EmulatedCase chosen = case_of(Reach::kPeer, Form::kTwoShot);
    chosen.size = 1;
    chosen.rows = 20;
    chosen.hidden = 2048;
    chosen.num_launches = 1;
    return chosen;
}

EmulatedCase wrapping_case() {
    EmulatedCase chosen = case_of(Reach::kPeer, Form::kTwoShot);
    chosen.first_epoch = 0xfffffffeu;
    return chosen;
}

void every_mistake_is_found() {
    const EmulatedCase multicast = case_of(Reach::kMulticast, Form::kTwoShot);
    const EmulatedCase peer = case_of(Reach::kPeer, Form::kTwoShot);
    const EmulatedCase pushed = case_of(Reach::kMulticast, Form::kOneShot);
    const Seeded kAll[] = {
        {Mistake::kNoEntryBarrier, "nothing orders", multicast},
        {Mistake::kNoEntryBarrier, "nothing orders", peer},
        {Mistake::kNoExitBarrier, "nothing orders", multicast},
        {Mistake::kNoSyncBeforeRelease, "nothing orders", pushed},
        {Mistake::kNoSyncAfterAcquire, "nothing orders", multicast},
        {Mistake::kRelaxedRelease, "nothing orders", multicast},
        {Mistake::kRelaxedRelease, "nothing orders", peer},
        {Mistake::kRelaxedAcquire, "nothing orders", peer},
        {Mistake::kEpochReuse, "nothing orders", multicast},
        {Mistake::kPlainEpochCompare, "", wrapping_case()},
        {Mistake::kNoAliasFence, "fence.proxy.alias", pushed},
        {Mistake::kNoRowBarrier, "nothing orders", wide_case()},
        {Mistake::kOneRowPlace, "nothing orders", wide_case()},
        {Mistake::kOneStagingHalf, "nothing orders", pushed},
    };
    for (const Seeded& seeded : kAll) {
        weave::cuda::seeded = Mistake::kNone;
        EXPECT_EQ(run_emulated(seeded.chosen, 1), "");
        weave::cuda::seeded = seeded.mistake;
        int num_found = 0;
        std::string last = "nothing";
        for (uint64_t seed = 0; seed < kNumSeeds; ++seed) {
            const std::string wrong = run_emulated(seeded.chosen, seed);
            num_found += !wrong.empty() && wrong.find(seeded.words) != std::string::npos;
            last = wrong.empty() ? last : wrong;
        }
        // Some need an interleaving that only part of the schedules bring.
        if (num_found == 0) {
            EXPECT_EQ("mistake " + std::to_string(static_cast<int>(seeded.mistake)) + ": " + last,
                      seeded.words);
        }
        std::printf("mistake %d: found by %d of %d schedules\n",
                    static_cast<int>(seeded.mistake),
                    num_found,
                    static_cast<int>(kNumSeeds));
    }
}

}  // namespace

int main() {
    every_mistake_is_found();
    return finish("emulated_seeded");
}
