// The merge kernel of the GPU, launched as the binding launches it: against the CPU's merge, bit
// for bit but for lse, and through it against fp64 (test_merge_lse.cpp). Runs under the emulator.
#include "../ring/cuda/launch.hpp"
#include "../ring/elements.hpp"
#include "../ring/merge_lse.hpp"
#include "emulator.hpp"
#include "expect.hpp"
#include "token/common/errors.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

namespace {

using namespace token;
using namespace token::ring;
using emulator::Buffer;
using emulator::Machine;
using emulator::Schedule;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Sizes of one piece and where it lies in the result.
struct PieceCase {
    DType dtype = DType::kBFloat16;
    RowRange rows;
    RowRange heads;
};

struct Case {
    int64_t batch = 2, rows = 5, heads = 3, head_dim = 64;
    DType out_dtype = DType::kFloat32;
    int64_t padding = 0;  // elements between the heads of a piece
    std::vector<PieceCase> pieces;
    bool has_sinks = false;
    std::vector<float> specials;  // lse is drawn from these, where there are any
    int num_blocks = 0;
};

template <class T>
std::span<T> elements(Buffer& buffer) {
    return {buffer.as<T>(), buffer.num_bytes() / sizeof(T)};
}

void fill(Buffer& buffer, DType dtype, std::mt19937& random) {
    std::normal_distribution<float> normal;
    if (dtype == DType::kFloat32) {
        for (float& value : elements<float>(buffer)) {
            value = normal(random);
        }
        return;
    }
    for (uint16_t& bits : elements<uint16_t>(buffer)) {
        const float value = normal(random);
        bits = dtype == DType::kBFloat16 ? BFloat16::narrow(value) : Float16::narrow(value);
    }
}

// NaN is one value here: its bits differ between processors.
float as_float(const void* data, DType dtype, int64_t at) {
    float value = 0;
    if (dtype == DType::kFloat32) {
        value = static_cast<const float*>(data)[at];
    } else {
        const uint16_t bits = static_cast<const uint16_t*>(data)[at];
        value = dtype == DType::kBFloat16 ? BFloat16::widen(bits) : Float16::widen(bits);
    }
    return value;
}

void expect_same(float actual, float expected) {
    EXPECT(std::isnan(expected) ? std::isnan(actual)
                                : std::memcmp(&actual, &expected, sizeof(float)) == 0);
}

void expect_close_lse(float actual, float expected) {
    if (!std::isfinite(expected)) {
        expect_same(actual, expected);
    } else {
        EXPECT(std::abs(actual - expected) <= 4e-7f * std::max(1.0f, std::abs(expected)));
    }
}

void check(const Case& problem, uint64_t seed) {
    std::mt19937 random(static_cast<unsigned>(seed));
    Machine machine(1, Schedule::of_seed(seed));
    const int64_t lines = problem.batch * problem.rows * problem.heads;
    MergeParams params;
    params.batch = problem.batch;
    params.rows = problem.rows;
    params.heads = problem.heads;
    params.head_dim = problem.head_dim;
    for (const PieceCase& of : problem.pieces) {
        const int64_t rows = of.rows.count(), heads = of.heads.count();
        const int64_t head = problem.head_dim + problem.padding, row = head * heads;
        Buffer& out = machine.allocate(
            "partial",
            0,
            std::max<int64_t>(problem.batch * rows * row, 8) * element_bytes(of.dtype));
        Buffer& lse =
            machine.allocate("lse", 0, std::max<int64_t>(problem.batch * rows * heads, 1) * 4);
        fill(out, of.dtype, random);
        for (float& value : elements<float>(lse)) {
            value = problem.specials.empty() ? 20.0f * std::normal_distribution<float>()(random)
                                             : problem.specials[random() % problem.specials.size()];
        }
        // Rows of one head lie side by side, as flash kernels write lse.
        params.pieces.push_back({out.as<unsigned char>(),
                                 lse.as<float>(),
                                 of.dtype,
                                 {rows * row, row, head},
                                 {rows * heads, 1, rows},
                                 of.rows.start,
                                 rows,
                                 of.heads.start,
                                 heads});
    }
    if (problem.has_sinks) {
        Buffer& sinks = machine.allocate("sinks", 0, problem.heads * 4);
        for (float& sink : elements<float>(sinks)) {
            sink = random() % 3 == 0 ? -kInf : 10.0f * std::normal_distribution<float>()(random);
        }
        params.sinks = sinks.as<float>();
    }
    const int64_t size = element_bytes(problem.out_dtype);
    Buffer& out = machine.allocate("out", 0, std::max<int64_t>(lines * problem.head_dim, 1) * size);
    Buffer& lse = machine.allocate("out_lse", 0, std::max<int64_t>(lines, 1) * 4);
    params.out_dtype = problem.out_dtype;
    params.out_strides = {problem.rows * problem.heads * problem.head_dim,
                          problem.heads * problem.head_dim,
                          problem.head_dim};
    params.lse_strides = {problem.rows * problem.heads, problem.heads, 1};

    std::vector<unsigned char> expected(lines * problem.head_dim * size);
    std::vector<float> expected_lse(lines);
    params.out = expected.data();
    params.lse = expected_lse.data();
    ThreadPool threads(1);
    merge_lse(threads, merge_kernels_scalar(), params);

    params.out = out.as<unsigned char>();
    params.lse = lse.as<float>();
    for (int repeat = 0; repeat < 2; ++repeat) {
        ring::cuda::merge_lse(params, machine.stream(0), problem.num_blocks);
        machine.run();
        for (int64_t line = 0; line < lines; ++line) {
            expect_close_lse(lse.as<float>()[line], expected_lse[line]);
        }
        for (int64_t at = 0; at < lines * problem.head_dim; ++at) {
            expect_same(as_float(params.out, problem.out_dtype, at),
                        as_float(expected.data(), problem.out_dtype, at));
        }
    }
}

constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// Numbers of pieces around those in flight, head sizes of every lane count, with and without
// vectors, tails of a tile, a grid smaller than the work.
void every_shape() {
    int number = 0;
    for (const int64_t head_dim : {1, 8, 16, 20, 64, 67, 128, 264}) {
        for (const int num_pieces : {0, 1, 2, 4, 5, 9}) {
            Case problem;
            problem.head_dim = head_dim;
            problem.rows = 1 + number % 7 * 3;
            problem.batch = 1 + number % 2;
            problem.out_dtype = kTypes[number % 3];
            problem.padding = number % 4 == 3 ? 3 : number % 4 == 2 ? 8 : 0;
            problem.has_sinks = number % 5 == 1;
            problem.num_blocks = number % 3;
            for (int i = 0; i < num_pieces; ++i) {
                const int64_t start = i % 2 ? (i * 5 + number) % problem.rows : 0;
                const int64_t stop = i % 3 == 1 ? std::min(problem.rows, start + 4) : problem.rows;
                problem.pieces.push_back({kTypes[(i + number) % 3],
                                          {start, stop},
                                          i % 3 == 2 ? RowRange{1, 3} : RowRange{0, 3}});
            }
            check(problem, ++number);
        }
    }
}

void special_lse() {
    for (int number = 0; number < 24; ++number) {
        Case problem;
        problem.head_dim = 8;
        problem.specials = {-kInf, -kInf, 0.0f, 88.0f, -110.0f};
        if (number % 2) {
            problem.specials.insert(problem.specials.end(), {kInf, kNan, 3e38f, -3e38f});
        }
        problem.has_sinks = number % 3 == 0;
        problem.out_dtype = kTypes[number % 3];
        for (int i = 0; i < 3; ++i) {
            problem.pieces.push_back({kTypes[i], {0, 5}, {0, 3}});
        }
        check(problem, 1000 + number);
    }
}

// More pieces than the small params hold, more than one launch takes, more than fit with 8 warps.
void many_pieces() {
    for (const int num_pieces : {17, 40, 300}) {
        Case problem;
        problem.rows = num_pieces;
        problem.batch = 1;
        problem.head_dim = 8;
        for (int i = 0; i < num_pieces; ++i) {
            const int64_t stop = num_pieces == 300 ? std::min(300, i + 2) : num_pieces;
            problem.pieces.push_back({DType::kBFloat16, {i, stop}, {0, 3}});
        }
        check(problem, 2000 + num_pieces);
    }
}

void refusals() {
    Machine machine(1, Schedule::of_seed(1));
    MergeParams params;
    params.batch = params.rows = params.heads = params.head_dim = 1;
    params.pieces.resize(200, {nullptr, nullptr, DType::kBFloat16, {}, {}, 0, 1, 0, 1});
    EXPECT_THROWS(ring::cuda::merge_lse(params, machine.stream(0), 0), InvalidArgument);
    params.pieces.resize(1);
    params.pieces[0].num_rows = 2;
    EXPECT_THROWS(ring::cuda::merge_lse(params, machine.stream(0), 0), InvalidArgument);
    params.pieces.clear();
    EXPECT_THROWS(ring::cuda::merge_lse(params, machine.stream(0), -1), InvalidArgument);
}

// The emulator sees a lane that reads a share before the lane that weighed the line wrote it.
void a_missing_warp_barrier_is_found() {
    Case problem;
    problem.pieces.push_back({DType::kBFloat16, {0, 5}, {0, 3}});
    int found = 0;
    for (uint64_t seed = 0; seed < 8; ++seed) {
        Machine machine(1, Schedule::of_seed(seed));
        emulator::SeededFaults faults;
        faults.warp_sync_is_skipped = true;
        machine.faults() = faults;
        Buffer& in = machine.allocate("partial", 0, 2 * 64 * 40);
        Buffer& in_lse = machine.allocate("lse", 0, 4 * 40);
        Buffer& out = machine.allocate("out", 0, 4 * 64 * 40);
        Buffer& lse = machine.allocate("out_lse", 0, 4 * 40);
        std::mt19937 random(3);
        fill(in, DType::kBFloat16, random);
        fill(in_lse, DType::kFloat32, random);
        MergeParams params;
        params.batch = params.heads = 1;
        params.rows = 40;
        params.head_dim = 64;
        params.pieces = {{in.as<unsigned char>(),
                          in_lse.as<float>(),
                          DType::kBFloat16,
                          {0, 64, 64},
                          {0, 1, 1},
                          0,
                          40,
                          0,
                          1}};
        params.out = out.as<float>();
        params.lse = lse.as<float>();
        params.out_strides = {0, 64, 64};
        params.lse_strides = {0, 1, 1};
        ring::cuda::merge_lse(params, machine.stream(0), 0);
        try {
            machine.run();
        } catch (const emulator::EmulationError& error) {
            found += error.kind == emulator::EmulationError::Kind::kRace;
        }
    }
    EXPECT(found > 0);  // by the schedules that let a warp's lanes drift apart
}

}  // namespace

int main() {
    every_shape();
    special_lse();
    many_pieces();
    refusals();
    a_missing_warp_barrier_is_found();
    return testing::finish("emulated_merge");
}
