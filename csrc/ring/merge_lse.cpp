#include "merge_lse.hpp"

#include "token/common/check.hpp"
#include "token/common/math.hpp"

#include <algorithm>
#include <memory>

namespace token::ring {

namespace {

// Waking a thread costs some microseconds, in which one moves this much.
constexpr int64_t kMinBytesPerThread = 128 << 10;

// Rows that the same pieces have.
struct Segment {
    int64_t stop = 0;
    std::vector<const MergePiece*> pieces;
};

bool is_float(DType dtype) {
    return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

std::vector<Segment> segments_of(const MergeParams& params) {
    std::vector<int64_t> stops = {params.rows};
    for (const MergePiece& piece : params.pieces) {
        stops.push_back(piece.row_start);
        stops.push_back(piece.row_start + piece.num_rows);
    }
    std::sort(stops.begin(), stops.end());
    stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
    std::vector<Segment> segments;
    int64_t start = 0;
    for (const int64_t stop : stops) {
        if (stop == start) {
            continue;
        }
        Segment& segment = segments.emplace_back();
        segment.stop = stop;
        for (const MergePiece& piece : params.pieces) {
            if (piece.row_start <= start && stop <= piece.row_start + piece.num_rows) {
                segment.pieces.push_back(&piece);
            }
        }
        start = stop;
    }
    return segments;
}

}  // namespace

void check_merge(const MergeParams& params) {
    TOKEN_CHECK(params.batch >= 0 && params.rows >= 0 && params.heads >= 0 && params.head_dim >= 0,
                "a merge of ",
                params.batch,
                " x ",
                params.rows,
                " rows of ",
                params.heads,
                " heads of ",
                params.head_dim);
    TOKEN_CHECK(is_float(params.out_dtype), "a merge cannot write ", dtype_name(params.out_dtype));
    for (const MergePiece& piece : params.pieces) {
        TOKEN_CHECK(is_float(piece.dtype), "a merge cannot read ", dtype_name(piece.dtype));
        TOKEN_CHECK(piece.num_rows >= 0 && piece.row_start >= 0 &&
                        piece.num_rows <= params.rows - piece.row_start,
                    "a piece of ",
                    piece.num_rows,
                    " rows from row ",
                    piece.row_start,
                    " on is not within the ",
                    params.rows,
                    " rows of the merge");
        TOKEN_CHECK(piece.num_heads >= 0 && piece.head_start >= 0 &&
                        piece.num_heads <= params.heads - piece.head_start,
                    "a piece of ",
                    piece.num_heads,
                    " heads from head ",
                    piece.head_start,
                    " on is not within the ",
                    params.heads,
                    " heads of the merge");
    }
}

std::vector<const MergeKernels*> usable_merge_kernels() {
    std::vector<const MergeKernels*> usable;
#if defined(TOKEN_HAVE_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        usable.push_back(&merge_kernels_avx512());
    }
    if (__builtin_cpu_supports("avx2")) {
        usable.push_back(&merge_kernels_avx2());
    }
#endif
    usable.push_back(&merge_kernels_scalar());
    return usable;
}

const MergeKernels& choose_merge_kernels(const std::string& name) {
    const std::vector<const MergeKernels*> usable = usable_merge_kernels();
    if (name == "auto") {
        return *usable.front();
    }
    std::string names;
    for (const MergeKernels* kernels : usable) {
        if (name == kernels->name) {
            return *kernels;
        }
        names += std::string(names.empty() ? "" : ", ") + kernels->name;
    }
    throw InvalidArgument(concat(
        "instruction set '", name, "' cannot run on this CPU with this build; usable: ", names));
}

void merge_lse(ThreadPool& threads, const MergeKernels& kernels, const MergeParams& params) {
    check_merge(params);
    if (params.rows == 0 || params.heads == 0) {
        return;
    }
    const std::vector<Segment> segments = segments_of(params);
    const int64_t num_rows = params.batch * params.rows;
    const int64_t row_bytes = params.heads * (params.head_dim + 1) *
                              static_cast<int64_t>(sizeof(float)) *
                              (static_cast<int64_t>(params.pieces.size()) + 1);
    const int64_t scratch_elements =
        (static_cast<int64_t>(params.pieces.size()) + 2) * params.heads;
    const auto scratch =
        std::make_unique_for_overwrite<float[]>(threads.num_threads() * scratch_elements);
    const int64_t grain = std::max<int64_t>(1, kMinBytesPerThread / row_bytes);
    threads.parallel_for(num_rows, grain, [&](int thread, RowRange range) {
        size_t at = 0;
        for (int64_t index = range.start; index < range.stop; ++index) {
            const int64_t row = index % params.rows;
            at = row == 0 ? 0 : at;
            while (segments[at].stop <= row) {
                ++at;
            }
            const std::vector<const MergePiece*>& pieces = segments[at].pieces;
            kernels.merge_row({&params,
                               pieces.data(),
                               static_cast<int64_t>(pieces.size()),
                               index / params.rows,
                               row,
                               &scratch[thread * scratch_elements]});
        }
    });
}

}  // namespace token::ring
