#include "launch_plan.hpp"

#include "token/common/check.hpp"
#include "token/common/math.hpp"

#include <algorithm>
#include <limits>

namespace token::ring::cuda {

namespace {

constexpr int64_t kMostLines = std::numeric_limits<int32_t>::max() - kTileLines;
// Of a block, without asking the driver for more.
constexpr int kSharedBytes = 48 << 10;
constexpr int64_t kVectorBytes = 16;

Strides as_strides(const ring::Strides& from) {
    return {from.batch, from.row, from.head};
}

bool is_aligned(const void* pointer, const ring::Strides& strides) {
    return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0 &&
           strides.batch % kLaneElements == 0 && strides.row % kLaneElements == 0 &&
           strides.head % kLaneElements == 0;
}

bool is_vectorized(const MergeParams& params) {
    return params.head_dim % kLaneElements == 0 && is_aligned(params.out, params.out_strides) &&
           std::all_of(params.pieces.begin(), params.pieces.end(), [](const MergePiece& piece) {
               return is_aligned(piece.out, piece.out_strides);
           });
}

// Pieces that are nowhere have no rows to find.
bool has_rows(const MergePiece& piece, RowRange rows) {
    return piece.num_heads > 0 && piece.row_start < rows.stop &&
           rows.start < piece.row_start + piece.num_rows;
}

int64_t count_pieces(const MergeParams& params, RowRange rows) {
    return std::count_if(params.pieces.begin(), params.pieces.end(), [&](const MergePiece& piece) {
        return has_rows(piece, rows);
    });
}

// Ranges of rows that the same pieces have, in order.
std::vector<RowRange> segments_of(const MergeParams& params) {
    std::vector<int64_t> stops = {params.rows};
    for (const MergePiece& piece : params.pieces) {
        stops.push_back(piece.row_start);
        stops.push_back(piece.row_start + piece.num_rows);
    }
    std::sort(stops.begin(), stops.end());
    std::vector<RowRange> segments;
    int64_t start = 0;
    for (const int64_t stop : stops) {
        if (stop > start) {
            segments.push_back({start, stop});
            start = stop;
        }
    }
    return segments;
}

MergeLaunch make_launch(const MergeParams& params, RowRange rows, int depth, bool vectorized) {
    MergeLaunch launch{};
    const auto vectors = static_cast<int32_t>(ceil_div(params.head_dim, kLaneElements));
    int32_t lanes = 1;
    while (lanes < 32 && lanes < vectors) {
        lanes *= 2;
    }
    for (const MergePiece& piece : params.pieces) {
        if (has_rows(piece, rows)) {
            launch.pieces.push_back({piece.out,
                                     piece.lse,
                                     as_strides(piece.out_strides),
                                     as_strides(piece.lse_strides),
                                     static_cast<int32_t>(piece.dtype),
                                     static_cast<int32_t>(piece.row_start),
                                     static_cast<int32_t>(piece.row_start + piece.num_rows),
                                     static_cast<int32_t>(piece.head_start),
                                     static_cast<int32_t>(piece.head_start + piece.num_heads)});
        }
    }
    const int64_t num_lines = params.batch * rows.count() * params.heads;
    launch.target = {params.out,
                     params.lse,
                     params.sinks,
                     as_strides(params.out_strides),
                     as_strides(params.lse_strides),
                     static_cast<int32_t>(params.out_dtype),
                     static_cast<int32_t>(rows.start),
                     static_cast<int32_t>(rows.count()),
                     static_cast<int32_t>(params.heads),
                     static_cast<int32_t>(params.head_dim),
                     static_cast<int32_t>(num_lines),
                     lanes,
                     static_cast<int32_t>(launch.pieces.size()),
                     depth};
    launch.is_vectorized = vectorized;
    launch.num_warps = kMostWarps;
    const int warp_bytes = scratch_words(depth) * static_cast<int>(sizeof(float));
    while (launch.num_warps > 1 && launch.num_warps * warp_bytes > kSharedBytes) {
        launch.num_warps /= 2;
    }
    launch.shared_bytes = launch.num_warps * warp_bytes;
    launch.most_blocks = ceil_div(num_lines, int64_t{kTileLines} * launch.num_warps);
    return launch;
}

}  // namespace

static_assert(scratch_words(kMostDepth) * sizeof(float) <= kSharedBytes);

std::vector<MergeLaunch> plan_launches(const MergeParams& params) {
    check_merge(params);
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    TOKEN_CHECK(params.rows <= kMost && params.heads <= kMost && params.head_dim <= kMost,
                "a merge on the GPU counts rows, heads and head_dim up to ",
                kMost,
                ", got ",
                params.rows,
                ", ",
                params.heads,
                " and ",
                params.head_dim);
    TOKEN_CHECK(params.batch * params.heads <= kMostLines,
                "a row of ",
                params.batch,
                " batch entries x ",
                params.heads,
                " heads is more than one launch can count (",
                kMostLines,
                ")");
    std::vector<MergeLaunch> launches;
    if (params.batch == 0 || params.rows == 0 || params.heads == 0) {
        return launches;
    }
    const bool vectorized = is_vectorized(params);
    const int64_t most_rows = kMostLines / (params.batch * params.heads);
    RowRange rows{0, 0};
    int64_t depth = 0;
    const auto finish = [&] {
        for (int64_t start = rows.start; start < rows.stop; start += most_rows) {
            const RowRange part{start, std::min(rows.stop, start + most_rows)};
            launches.push_back(make_launch(
                params, part, static_cast<int>(std::max<int64_t>(depth, 1)), vectorized));
        }
        rows = {rows.stop, rows.stop};
        depth = 0;
    };
    for (const RowRange& segment : segments_of(params)) {
        const int64_t own_depth = count_pieces(params, segment);
        TOKEN_CHECK(own_depth <= kMostDepth,
                    "row ",
                    segment.start,
                    " has ",
                    own_depth,
                    " partials; a merge on the GPU takes up to ",
                    kMostDepth,
                    ": merge some of them first");
        if (rows.count() > 0 && count_pieces(params, {rows.start, segment.stop}) > kMostPieces) {
            finish();
        }
        rows.stop = segment.stop;
        depth = std::max(depth, own_depth);
    }
    finish();
    return launches;
}

}  // namespace token::ring::cuda
