// Integer arithmetic shared by host code; int64_t for everything that counts bytes or rows.
#pragma once

#include <algorithm>
#include <cstdint>

namespace token {

constexpr int64_t ceil_div(int64_t value, int64_t divisor) {
    return (value + divisor - 1) / divisor;
}

constexpr int64_t align_up(int64_t value, int64_t alignment) {
    return ceil_div(value, alignment) * alignment;
}

struct RowRange {
    int64_t start = 0;
    int64_t stop = 0;
    constexpr int64_t count() const { return stop - start; }
};

// The rows rank `index` of `parts` owns: contiguous, in rank order, sizes differing by at most one,
// the larger ones first. tokenweave.plan.split_rows is the same rule in Python. Example: 7 rows
// over 3 ranks are [0, 3), [3, 5), [5, 7).
constexpr RowRange split_rows(int64_t num_rows, int64_t parts, int64_t index) {
    const int64_t base = num_rows / parts;
    const int64_t larger = num_rows % parts;
    const int64_t start = index * base + std::min(index, larger);
    return {start, start + base + (index < larger ? 1 : 0)};
}

}  // namespace token
