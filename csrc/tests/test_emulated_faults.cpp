// What the shipped reductions do when ranks are late, missing or at odds, on emulated GPUs with
// emulated time: the failure record, NaN in the results, and epochs that wrap.
#include "emulated_reduction.hpp"
#include "expect.hpp"

namespace {

using namespace token;
using namespace token::testing;
using emulator::Schedule;
using weave::cuda::FailureKind;
using weave::cuda::Form;
using weave::cuda::Phase;
using weave::cuda::Reach;

constexpr Form kForms[] = {Form::kTwoShot, Form::kReduceScatter, Form::kOneShot};

EmulatedCase case_of(Reach reach, Form form) {
    EmulatedCase chosen;
    chosen.reach = reach;
    chosen.form = form;
    chosen.size = 3;
    chosen.num_blocks = 2;
    chosen.residual_is_sharded = form != Form::kOneShot;
    return chosen;
}

template <class Body>
void for_each_form(const Body& body) {
    uint64_t seed = 0;
    for (const Reach reach : {Reach::kMulticast, Reach::kPeer}) {
        for (const Form form : kForms) {
            body(case_of(reach, form), ++seed);
        }
    }
}

void expect_right(const EmulatedCase& chosen, uint64_t seed) {
    EXPECT_EQ(chosen.name() + run_emulated(chosen, seed), chosen.name());
}

void a_late_rank_is_waited_for() {
    for_each_form([](EmulatedCase chosen, uint64_t seed) {
        chosen.delayed_rank = static_cast<int>(seed % 3);
        expect_right(chosen, seed);
    });
}

void epochs_wrap() {
    for_each_form([](EmulatedCase chosen, uint64_t seed) {
        chosen.first_epoch = 0xfffffffdu;
        chosen.num_launches = 3;
        expect_right(chosen, seed);
    });
}

void many_launches_on_one_workspace() {
    for_each_form([](EmulatedCase chosen, uint64_t seed) {
        chosen.num_launches = 8;
        chosen.rows = 7;
        expect_right(chosen, seed);
    });
}

// The ranks that came name the one that did not, leave only NaN behind, also in the launch after,
// and end: nothing but their own deadline is waited for.
void a_missing_rank_is_named() {
    for_each_form([](EmulatedCase chosen, uint64_t seed) {
        chosen.missing_rank = static_cast<int>(seed % 3);
        EmulatedReduction reduction(chosen, Schedule::of_seed(seed));
        reduction.queue();
        reduction.machine().run();
        for (int rank = 0; rank < chosen.size; ++rank) {
            const auto failure = reduction.failure(rank);
            EXPECT_EQ(failure.has_value(), rank != chosen.missing_rank);
            if (!failure.has_value()) {
                continue;
            }
            // A rank may also learn it from one whose deadline passed first.
            const bool is_timeout = failure->kind == FailureKind::kTimeout;
            EXPECT(is_timeout || failure->kind == FailureKind::kPeerBroken);
            EXPECT(!is_timeout || failure->peer == chosen.missing_rank);
            EXPECT_EQ(failure->rank, rank);
            EXPECT(failure->block < chosen.num_blocks);
            EXPECT(failure->phase ==
                   (chosen.form == Form::kOneShot ? Phase::kPush : Phase::kEntry));
            EXPECT_EQ(failure->epoch, 0u);
            EXPECT(!failure->message.empty());
            EXPECT(reduction.is_invalid(rank));
        }
    });
}

void the_deadline_is_the_callers() {
    for_each_form([](EmulatedCase chosen, uint64_t seed) {
        chosen.missing_rank = 2;
        chosen.num_launches = 1;
        chosen.timeout_ns = 20'000'000'000;
        EmulatedReduction reduction(chosen, Schedule::of_seed(seed));
        const uint64_t start_ns = reduction.machine().now_ns();
        reduction.queue();
        reduction.machine().run();
        const uint64_t elapsed_ns = reduction.machine().now_ns() - start_ns;
        EXPECT(elapsed_ns > chosen.timeout_ns);
        EXPECT(elapsed_ns < 2 * chosen.timeout_ns);
    });
}

// Ranks that call with different arguments all learn it, before any result looks valid.
void a_mismatch_is_seen_by_all() {
    for_each_form([](EmulatedCase chosen, uint64_t seed) {
        chosen.checks_calls = true;
        chosen.mismatched_rank = 1;
        chosen.num_launches = 1;
        EmulatedReduction reduction(chosen, Schedule::of_seed(seed));
        reduction.queue();
        reduction.machine().run();
        for (int rank = 0; rank < chosen.size; ++rank) {
            const auto failure = reduction.failure(rank);
            EXPECT(failure.has_value());
            EXPECT(failure && (failure->kind == FailureKind::kMismatch ||
                               failure->kind == FailureKind::kPeerBroken));
            EXPECT(reduction.is_invalid(rank));
        }
    });
}

}  // namespace

int main() {
    a_late_rank_is_waited_for();
    epochs_wrap();
    many_launches_on_one_workspace();
    a_missing_rank_is_named();
    the_deadline_is_the_callers();
    a_mismatch_is_seen_by_all();
    return finish("emulated_faults");
}
