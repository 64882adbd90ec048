// The collectives on thread-ranks: integers small enough to add exactly, so every result is known
// to the bit.
#include "../weave/collectives.hpp"
#include "thread_ranks.hpp"

#include <numeric>
#include <string>
#include <vector>

namespace {

using namespace token;
using namespace token::testing;
using comm::HostGroup;
using weave::Algorithm;
using weave::AllReduceRmsNormParams;
using weave::Output;

constexpr float kPoison = -12345.0f;

float input_value(int rank, int64_t row, int64_t column) {
    return static_cast<float>((rank + 1) * (1 + row % 13) + column % 7);
}

float sum_value(int size, int64_t row, int64_t column) {
    float sum = 0;
    for (int rank = 0; rank < size; ++rank) {
        sum += input_value(rank, row, column);
    }
    return sum;
}

struct Shape {
    int64_t rows, hidden;
};

void reduce_once(HostGroup& group,
                 Shape shape,
                 weave::ReductionPlan plan,
                 bool sharded,
                 bool in_partial_slot,
                 float* shared_out) {
    const RowRange own = split_rows(shape.rows, group.size(), group.rank());
    const bool own_rows_out = plan.output == Output::kOwnRows;
    std::vector<float> x(shape.rows * shape.hidden);
    float* source = x.data();
    if (in_partial_slot && !x.empty()) {
        source = reinterpret_cast<float*>(group.partial(group.rank(), group.partial_slot()));
    }
    const int64_t out_rows = own_rows_out ? own.count() : shape.rows;
    const int64_t residual_rows = sharded ? own.count() : shape.rows;
    // One row more: a rank without rows still passes a residual, not none.
    std::vector<float> residual((residual_rows + 1) * shape.hidden, 1.0f);
    std::vector<float> out((out_rows + 1) * shape.hidden, kPoison);  // one canary row
    for (int64_t row = 0; row < shape.rows; ++row) {
        for (int64_t column = 0; column < shape.hidden; ++column) {
            source[row * shape.hidden + column] = input_value(group.rank(), row, column);
        }
    }
    AllReduceRmsNormParams params;
    params.x = source;
    params.residual = residual.data();
    params.residual_out = residual.data();
    params.out = shared_out != nullptr ? shared_out : out.data();
    params.rows = shape.rows;
    params.hidden = shape.hidden;
    params.residual_is_sharded = sharded;
    params.plan = plan;
    weave::allreduce_rmsnorm(group, weave::row_kernels_scalar(), params);

    const auto expected = [&](int64_t row, int64_t column) {
        return sum_value(group.size(), row, column) + 1.0f;
    };
    const float* result = shared_out != nullptr ? shared_out : out.data();
    const int64_t first_out = own_rows_out ? own.start : 0;
    for (int64_t row = 0; row < out_rows; ++row) {
        for (int64_t column = 0; column < shape.hidden; ++column) {
            EXPECT_EQ(result[row * shape.hidden + column], expected(first_out + row, column));
        }
    }
    for (int64_t column = 0; column < shape.hidden; ++column) {
        EXPECT_EQ(out[out_rows * shape.hidden + column], kPoison);
    }
    for (int64_t column = 0; column < shape.hidden; ++column) {
        EXPECT_EQ(residual[residual_rows * shape.hidden + column], 1.0f);
    }
    const int64_t first_residual = sharded ? own.start : 0;
    for (int64_t row = 0; row < residual_rows; ++row) {
        for (int64_t column = 0; column < shape.hidden; ++column) {
            EXPECT_EQ(residual[row * shape.hidden + column],
                      expected(first_residual + row, column));
        }
    }
}

void reductions(int size, int num_threads) {
    ThreadRanks ranks({.size = size, .num_threads = num_threads});
    std::vector<float> shared(2 * 40 * 24);
    ranks.run([&](HostGroup& group) {
        int shared_slot = 0;
        for (int round = 0; round < 3; ++round) {
            for (int64_t rows : {0, 1, size - 1, size, size + 1, 7, 33}) {
                for (int64_t hidden : {1, 24}) {
                    for (int64_t block_rows : {1, 3}) {
                        for (bool partial : {false, true}) {
                            if (group.rank() == round % size) {
                                dawdle(20);
                            }
                            const Shape shape{rows, hidden};
                            reduce_once(group,
                                        shape,
                                        {Algorithm::kOneShot, Output::kPrivate, block_rows},
                                        false,
                                        partial,
                                        nullptr);
                            reduce_once(group,
                                        shape,
                                        {Algorithm::kTwoShot, Output::kPrivate, block_rows},
                                        false,
                                        partial,
                                        nullptr);
                            reduce_once(group,
                                        shape,
                                        {Algorithm::kTwoShot, Output::kPrivate, block_rows},
                                        true,
                                        partial,
                                        nullptr);
                            reduce_once(group,
                                        shape,
                                        {Algorithm::kTwoShot, Output::kOwnRows, block_rows},
                                        true,
                                        partial,
                                        nullptr);
                            reduce_once(group,
                                        shape,
                                        {Algorithm::kTwoShot, Output::kShared, block_rows},
                                        true,
                                        partial,
                                        shared.data() + shared_slot * 40 * 24);
                            shared_slot ^= 1;
                        }
                    }
                }
            }
        }
    });
}

void moves(int size) {
    ThreadRanks ranks({.size = size, .partial_bytes = 4096, .staging_bytes = 4096});
    ranks.run([&](HostGroup& group) {
        // Widths 0, 1, ... so that one rank brings nothing; and rows longer than a staging slot.
        for (int64_t unit : {1, 1000, 5000}) {
            for (int64_t rows : {0, 1, 5}) {
                std::vector<int64_t> widths(size);
                for (int rank = 0; rank < size; ++rank) {
                    widths[rank] = rank * unit;
                }
                const int64_t total = std::accumulate(widths.begin(), widths.end(), int64_t{0});
                std::vector<unsigned char> in(rows * widths[group.rank()]);
                for (size_t i = 0; i < in.size(); ++i) {
                    in[i] = static_cast<unsigned char>(group.rank() * 31 + i % 251);
                }
                std::vector<unsigned char> out(rows * total + 1, 0xee);
                weave::all_gather(group, in.data(), out.data(), rows, widths);
                for (int64_t row = 0; row < rows; ++row) {
                    int64_t at = row * total;
                    for (int rank = 0; rank < size; ++rank) {
                        for (int64_t i = 0; i < widths[rank]; ++i, ++at) {
                            const int64_t index = row * widths[rank] + i;
                            EXPECT_EQ(int{out[at]},
                                      static_cast<unsigned char>(rank * 31 + index % 251));
                        }
                    }
                }
                EXPECT_EQ(int{out[rows * total]}, 0xee);
            }
        }
        for (int source = 0; source < size; ++source) {
            for (int64_t count : {0, 1, 4095, 4096, 4097, 20000}) {
                std::vector<unsigned char> data(count + 1,
                                                static_cast<unsigned char>(group.rank() + 100));
                weave::broadcast(group, data.data(), count, source);
                for (int64_t i = 0; i < count; ++i) {
                    EXPECT_EQ(int{data[i]}, source + 100);
                }
                EXPECT_EQ(int{data[count]}, group.rank() + 100);
            }
        }
    });
}

// After a mismatch, whatever the two calls had staged, results are right again.
void works_after_a_mismatch() {
    ThreadRanks ranks({.size = 2});
    ranks.run([&](HostGroup& group) {
        for (int round = 0; round < 4; ++round) {
            std::vector<float> data(100, 1.0f), out(100, kPoison);
            if (group.rank() == 0) {
                EXPECT_THROWS(weave::broadcast(group, data.data(), 400, 0), CallMismatch);
            } else {
                EXPECT_THROWS(group.barrier(), CallMismatch);
            }
            reduce_once(
                group, {9, 24}, {Algorithm::kOneShot, Output::kPrivate, 2}, false, false, nullptr);
            reduce_once(
                group, {9, 24}, {Algorithm::kTwoShot, Output::kPrivate, 2}, false, false, nullptr);
        }
    });
}

void bad_arguments_are_refused_before_anything_moves() {
    ThreadRanks ranks({.size = 2});
    ranks.run([&](HostGroup& group) {
        std::vector<float> x(64, 1.0f), out(64, kPoison);
        AllReduceRmsNormParams params;
        params.x = x.data();
        params.out = out.data();
        params.rows = 2;
        params.hidden = 32;
        const auto refused = [&](auto change) {
            AllReduceRmsNormParams changed = params;
            change(changed);
            EXPECT_THROWS(weave::allreduce_rmsnorm(group, weave::row_kernels_scalar(), changed),
                          InvalidArgument);
        };
        refused([](auto& p) { p.rows = -1; });
        refused([](auto& p) { p.hidden = 0; });
        refused([](auto& p) { p.dtype = DType::kBytes; });
        refused([](auto& p) { p.plan.block_rows = 0; });
        refused([](auto& p) { p.plan.block_rows = 1 << 20; });
        refused([](auto& p) { p.plan.output = Output::kShared; });
        refused([](auto& p) { p.residual_is_sharded = true; });
        EXPECT_THROWS(weave::broadcast(group, x.data(), 1, 2), InvalidArgument);
        EXPECT_THROWS(weave::all_gather(group, x.data(), out.data(), 1, {1}), InvalidArgument);
        EXPECT_EQ(out[0], kPoison);
        group.barrier();
    });
}

}  // namespace

int main() {
    for (int size : {1, 2, 3, 4}) {
        reductions(size, 1);
    }
    reductions(2, 3);
    for (int size : {1, 2, 4}) {
        moves(size);
    }
    works_after_a_mismatch();
    bad_arguments_are_refused_before_anything_moves();
    return finish("collectives");
}
