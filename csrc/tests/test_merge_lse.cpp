// The merge of partial attention outputs against fp64, and its bodies against each other.
#include "../ring/elements.hpp"
#include "../ring/merge_lse.hpp"
#include "expect.hpp"
#include "token/common/errors.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace {

using namespace token;
using namespace token::ring;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// One piece with storage of its own; rows and heads are padded, and the padding is NaN.
struct Piece {
    std::vector<float> values;  // as widened from storage
    std::vector<unsigned char> storage;
    std::vector<float> lse;
    MergePiece piece;
};

struct Problem {
    int64_t batch = 2, rows = 5, heads = 3, head_dim = 67;
    std::vector<Piece> pieces;
    std::vector<float> sinks;
};

Piece make_piece(
    std::mt19937& random, const Problem& of, DType dtype, RowRange rows, RowRange heads) {
    Piece made;
    const int64_t head_stride = of.head_dim + 3;
    const int64_t row_stride = head_stride * heads.count() + 5;
    const int64_t elements = row_stride * rows.count() * of.batch;
    std::normal_distribution<float> normal;
    made.values.assign(elements, kNan);
    made.storage.assign(elements * element_bytes(dtype), 0xff);
    made.lse.assign(of.batch * rows.count() * heads.count(), 0.0f);
    for (float& lse : made.lse) {
        lse = 30.0f * normal(random);
    }
    for (int64_t line = 0; line < of.batch * rows.count() * heads.count(); ++line) {
        const int64_t row = line / heads.count(), head = line % heads.count();
        for (int64_t i = 0; i < of.head_dim; ++i) {
            const int64_t at = row * row_stride + head * head_stride + i;
            float value = normal(random);
            if (dtype == DType::kFloat32) {
                std::memcpy(&made.storage[4 * at], &value, 4);
            } else {
                const bool is_bf16 = dtype == DType::kBFloat16;
                const uint16_t bits = is_bf16 ? BFloat16::narrow(value) : Float16::narrow(value);
                std::memcpy(&made.storage[2 * at], &bits, 2);
                value = is_bf16 ? BFloat16::widen(bits) : Float16::widen(bits);
            }
            made.values[at] = value;
        }
    }
    made.piece = {made.storage.data(),
                  made.lse.data(),
                  dtype,
                  {row_stride * rows.count(), row_stride, head_stride},
                  {rows.count() * heads.count(), heads.count(), 1},
                  rows.start,
                  rows.count(),
                  heads.start,
                  heads.count()};
    return made;
}

struct Result {
    std::vector<float> out, lse;
};

Result merge(const MergeKernels& kernels, const Problem& problem, int num_threads) {
    ThreadPool threads(num_threads);
    MergeParams params;
    params.batch = problem.batch;
    params.rows = problem.rows;
    params.heads = problem.heads;
    params.head_dim = problem.head_dim;
    for (const Piece& piece : problem.pieces) {
        params.pieces.push_back(piece.piece);
        // A copy of a Piece has its storage elsewhere.
        params.pieces.back().out = piece.storage.data();
        params.pieces.back().lse = piece.lse.data();
    }
    const int64_t lines = problem.batch * problem.rows * problem.heads;
    Result result{std::vector<float>(lines * problem.head_dim, kNan),
                  std::vector<float>(lines, kNan)};
    params.sinks = problem.sinks.empty() ? nullptr : problem.sinks.data();
    params.out = result.out.data();
    params.out_strides = {problem.rows * problem.heads * problem.head_dim,
                          problem.heads * problem.head_dim,
                          problem.head_dim};
    params.lse = result.lse.data();
    params.lse_strides = {problem.rows * problem.heads, problem.heads, 1};
    merge_lse(threads, kernels, params);
    return result;
}

void expect_near(float actual, double expected, double tolerance, const char* what) {
    if (std::isnan(expected) || std::isinf(expected)) {
        testing::expect_equal(std::isnan(actual), std::isnan(expected), what, __FILE__, __LINE__);
        testing::expect_equal(std::isinf(actual) ? actual : 0.0f,
                              std::isinf(expected) ? static_cast<float>(expected) : 0.0f,
                              what,
                              __FILE__,
                              __LINE__);
        return;
    }
    if (!(std::abs(actual - expected) <= tolerance)) {
        testing::expect_equal(static_cast<double>(actual), expected, what, __FILE__, __LINE__);
    }
}

void check(const Problem& problem, const Result& result) {
    for (int64_t line = 0; line < problem.batch * problem.rows * problem.heads; ++line) {
        const int64_t head = line % problem.heads;
        const int64_t row = line / problem.heads % problem.rows;
        const int64_t batch = line / problem.heads / problem.rows;
        double highest = problem.sinks.empty() ? -kInf : problem.sinks[head];
        double total = 0, weighted[512] = {}, size[512] = {};
        std::vector<std::pair<double, int64_t>> found;  // lse, first element in `values`
        std::vector<const Piece*> owners;
        for (const Piece& own : problem.pieces) {
            const MergePiece& p = own.piece;
            const int64_t r = row - p.row_start, h = head - p.head_start;
            if (r < 0 || r >= p.num_rows || h < 0 || h >= p.num_heads) {
                continue;
            }
            const double lse = own.lse[batch * p.lse_strides.batch + r * p.lse_strides.row + h];
            if (lse == -kInf) {
                continue;
            }
            found.emplace_back(
                lse, batch * p.out_strides.batch + r * p.out_strides.row + h * p.out_strides.head);
            owners.push_back(&own);
            highest = lse > highest || std::isnan(lse) ? lse : highest;
        }
        if (!problem.sinks.empty() && problem.sinks[head] != -kInf) {
            total += std::exp(problem.sinks[head] - highest);
        }
        for (size_t i = 0; i < found.size(); ++i) {
            const double weight = std::exp(found[i].first - highest);
            total += weight;
            for (int64_t d = 0; d < problem.head_dim; ++d) {
                const double value = owners[i]->values[found[i].second + d];
                weighted[d] += weight * value;
                // lse_i - m is rounded in units of its own size before it becomes an exponent.
                size[d] += weight * std::abs(value) * (1 + std::abs(found[i].first - highest) / 8);
            }
        }
        // fp32: a weight is 1 ulp off and rounded in 4 further operations, 2**-24 each; what grows
        // with the number of pieces is the sums.
        const double unit = (6.0 + found.size()) * std::ldexp(1.0, -24);
        expect_near(result.lse[line],
                    highest + std::log(total),
                    unit + std::abs(highest) * std::ldexp(1.0, -23),
                    "lse");
        for (int64_t d = 0; d < problem.head_dim; ++d) {
            const double expected = highest == -kInf || found.empty() ? 0 : weighted[d] / total;
            expect_near(result.out[line * problem.head_dim + d],
                        std::isnan(total) ? double(kNan) : expected,
                        2 * unit * size[d] / total + 1e-37,
                        "out");
        }
    }
}

void check_all(const Problem& problem) {
    const Result scalar = merge(merge_kernels_scalar(), problem, 1);
    check(problem, scalar);
    for (const MergeKernels* kernels : usable_merge_kernels()) {
        for (const int num_threads : {1, 3}) {
            const Result result = merge(*kernels, problem, num_threads);
            EXPECT(std::memcmp(result.out.data(), scalar.out.data(), 4 * scalar.out.size()) == 0);
            EXPECT(std::memcmp(result.lse.data(), scalar.lse.data(), 4 * scalar.lse.size()) == 0);
        }
    }
}

void test_pieces_of_all_kinds() {
    std::mt19937 random(7);
    constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
    for (const int64_t head_dim : {1, 16, 64, 67, 128, 200}) {
        for (int num_pieces = 0; num_pieces < 9; ++num_pieces) {
            Problem problem;
            problem.head_dim = head_dim;
            problem.rows = 1 + num_pieces * 7;
            for (int i = 0; i < num_pieces; ++i) {
                const int64_t start = i % 2 ? random() % problem.rows : 0;
                const int64_t stop =
                    i % 2 ? start + random() % (problem.rows - start) : problem.rows;
                const RowRange heads = i % 3 == 2 ? RowRange{1, 3} : RowRange{0, 3};
                problem.pieces.push_back(
                    make_piece(random, problem, kTypes[i % 3], {start, stop}, heads));
            }
            if (num_pieces % 4 == 1) {
                problem.sinks = {1.0f, -kInf, 40.0f};
            }
            check_all(problem);
        }
    }
}

void test_enough_rows_for_every_thread() {
    std::mt19937 random(8);
    Problem problem;
    problem.rows = 301;
    problem.head_dim = 128;
    for (int i = 0; i < 3; ++i) {
        problem.pieces.push_back(
            make_piece(random, problem, DType::kBFloat16, {i * 50, 301 - i}, {0, 3}));
    }
    check_all(problem);
}

void test_special_lse() {
    std::mt19937 random(9);
    const float specials[] = {-kInf, kInf, kNan, 0.0f, 3e38f, -3e38f, 88.0f, -110.0f};
    for (int round = 0; round < 60; ++round) {
        Problem problem;
        for (int i = 0; i < 3; ++i) {
            Piece piece = make_piece(random, problem, DType::kFloat32, {0, 5}, {0, 3});
            for (float& lse : piece.lse) {
                lse = specials[random() % (round % 2 ? 8 : 2)];
            }
            problem.pieces.push_back(piece);
        }
        if (round % 3 == 0) {
            problem.sinks = {-kInf, 0.0f, round == 0 ? kNan : 2.0f};
        }
        check_all(problem);
    }
}

void test_garbage_of_an_empty_row_is_not_read() {
    std::mt19937 random(10);
    Problem problem;
    problem.pieces.push_back(make_piece(random, problem, DType::kFloat32, {0, 5}, {0, 3}));
    Piece empty = make_piece(random, problem, DType::kFloat32, {0, 5}, {0, 3});
    std::fill(empty.lse.begin(), empty.lse.end(), -kInf);
    std::fill(empty.storage.begin(), empty.storage.end(), 0xff);
    problem.pieces.push_back(empty);
    const Result result = merge(*usable_merge_kernels().front(), problem, 1);
    for (const float value : result.out) {
        EXPECT(std::isfinite(value));
    }
    // One partial that counts comes out as it went in.
    EXPECT_EQ(result.lse[4], problem.pieces[0].lse[4]);
    EXPECT_EQ(result.out[67], problem.pieces[0].values[70]);
}

void test_refusals() {
    std::mt19937 random(11);
    Problem problem;
    problem.pieces.push_back(make_piece(random, problem, DType::kFloat32, {1, 5}, {0, 3}));
    Problem late = problem, wide = problem, bytes = problem;
    late.pieces[0].piece.row_start = 2;
    wide.pieces[0].piece.head_start = 1;
    bytes.pieces[0].piece.dtype = DType::kBytes;
    for (const Problem& bad : {late, wide, bytes}) {
        EXPECT_THROWS(merge(merge_kernels_scalar(), bad, 1), InvalidArgument);
    }
    EXPECT_THROWS(choose_merge_kernels("sve"), InvalidArgument);
}

}  // namespace

int main() {
    test_pieces_of_all_kinds();
    test_enough_rows_for_every_thread();
    test_special_lse();
    test_garbage_of_an_empty_row_is_not_read();
    test_refusals();
    return testing::finish("merge_lse");
}
