// The shipped reductions on emulated GPUs, launched as the binding launches them, against fp64:
// forms, policies, sizes, types and options. Every case runs twice or more on one workspace, under
// a schedule of its own; a race, a wrong address or a deadlock fails it like a wrong number.
#include "emulated_reduction.hpp"
#include "expect.hpp"

namespace {

using namespace token;
using namespace token::testing;
using norm::QuantizedFormat;
using weave::cuda::Form;
using weave::cuda::Reach;

constexpr Reach kReaches[] = {Reach::kMulticast, Reach::kPeer};
constexpr Form kForms[] = {Form::kTwoShot, Form::kReduceScatter, Form::kOneShot};

// One-shot needs every row of the residual on every rank.
EmulatedCase case_of(Reach reach, Form form) {
    EmulatedCase chosen;
    chosen.reach = reach;
    chosen.form = form;
    chosen.residual_is_sharded = form != Form::kOneShot;
    return chosen;
}

class Sweep {
  public:
    void expect_right(const EmulatedCase& chosen) {
        const std::string wrong = run_emulated(chosen, ++seed_);
        if (!wrong.empty()) {
            EXPECT_EQ(chosen.name() + ", seed " + std::to_string(seed_) + ": " + wrong, "");
        }
    }

  private:
    uint64_t seed_ = 0;
};

void ranks_and_rows(Sweep& sweep) {
    for (const Reach reach : kReaches) {
        for (const Form form : kForms) {
            for (const int size : {1, 2, 3, 4, 8}) {
                for (const int rows : {0, 1, size - 1, size + 1, 2 * size + 3}) {
                    EmulatedCase chosen = case_of(reach, form);
                    chosen.size = size;
                    chosen.rows = rows;
                    chosen.num_blocks = 1 + rows % 2;
                    sweep.expect_right(chosen);
                }
            }
        }
    }
}

// From one unit to the widest row; with several rows for each row group, so that rows are asked for
// ahead. Rows of no whole units are for Peer alone.
void hidden_sizes(Sweep& sweep) {
    for (const Reach reach : kReaches) {
        for (const int64_t hidden : {8, 72, 1024, 1032, 2880, 4096, 8192, 16384}) {
            EmulatedCase chosen = case_of(reach, hidden % 3 == 0 ? Form::kTwoShot : Form::kOneShot);
            chosen.hidden = hidden;
            chosen.rows = hidden > 4096 ? 5 : 3;
            sweep.expect_right(chosen);
        }
    }
    for (const int64_t hidden : {1, 7, 9, 100, 2049}) {
        for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
            EmulatedCase chosen = case_of(Reach::kPeer, Form::kTwoShot);
            chosen.hidden = hidden;
            chosen.dtype = dtype;
            chosen.size = 3;
            sweep.expect_right(chosen);
        }
    }
    for (const Reach reach : kReaches) {
        EmulatedCase chosen = case_of(reach, Form::kTwoShot);
        chosen.rows = 70;
        chosen.hidden = 1032;
        sweep.expect_right(chosen);
        chosen = case_of(reach, Form::kOneShot);
        chosen.rows = 37;
        sweep.expect_right(chosen);
    }
}

void types(Sweep& sweep) {
    for (const Form form : kForms) {
        for (const Reach reach : kReaches) {
            EmulatedCase chosen = case_of(reach, form);
            chosen.dtype = DType::kFloat16;
            sweep.expect_right(chosen);
        }
        EmulatedCase chosen = case_of(Reach::kPeer, form);
        chosen.dtype = DType::kFloat32;
        chosen.size = 4;
        sweep.expect_right(chosen);
    }
}

void options(Sweep& sweep) {
    for (const Reach reach : kReaches) {
        for (const Form form : kForms) {
            const EmulatedCase plain = case_of(reach, form);
            const auto with = [&](auto change) {
                EmulatedCase chosen = plain;
                change(chosen);
                sweep.expect_right(chosen);
            };
            with([](EmulatedCase& c) { c.has_bias = true, c.weight_offset = 1.0f; });
            with([](EmulatedCase& c) { c.is_layer_norm = true, c.has_bias = true; });
            with([](EmulatedCase& c) { c.is_weight_fp32 = true, c.is_residual_fp32 = true; });
            with([](EmulatedCase& c) { c.has_residual = c.residual_is_sharded = false; });
            with([](EmulatedCase& c) {
                c.has_norm = c.has_residual = c.residual_is_sharded = false;
            });
            with([](EmulatedCase& c) { c.checks_calls = true, c.size = 3; });
            with([](EmulatedCase& c) { c.is_virtual = true, c.size = 4, c.num_blocks = 2; });
            for (const QuantizedFormat format :
                 {QuantizedFormat::kFloat8E4M3, QuantizedFormat::kInt8}) {
                with([&](EmulatedCase& c) { c.format = format, c.group_elements = c.hidden; });
                with([&](EmulatedCase& c) {
                    c.format = format, c.hidden = 384, c.group_elements = 128, c.has_out = false;
                });
                with([&](EmulatedCase& c) { c.format = format, c.hidden = 1032; });
            }
        }
        EmulatedCase chosen = case_of(reach, Form::kTwoShot);
        chosen.residual_is_sharded = false;
        sweep.expect_right(chosen);
        chosen.is_residual_fp32 = true;
        sweep.expect_right(chosen);
        chosen = case_of(reach, Form::kTwoShot);
        chosen.is_in_place = true;
        chosen.size = 3;
        sweep.expect_right(chosen);
    }
}

}  // namespace

int main() {
    Sweep sweep;
    ranks_and_rows(sweep);
    hidden_sizes(sweep);
    types(sweep);
    options(sweep);
    return finish("emulated_reduction");
}
