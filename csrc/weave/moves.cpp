// Collectives that move bytes and reduce nothing: all-gather and broadcast. Blocks alternate
// between the two staging slots, one barrier per block (see allreduce_rmsnorm.cpp, one-shot).
#include "collectives.hpp"

#include <algorithm>
#include <cstring>

namespace token::weave {

namespace {

using comm::HostGroup;

// stage(block, slot) fills this rank's slot; consume(block, slot) reads every rank's.
template <class Stage, class Consume>
void through_staging(HostGroup& group,
                     const comm::CallRecord& call,
                     int64_t num_blocks,
                     const Stage& stage,
                     const Consume& consume) {
    HostGroup::Turn turn(group, call);
    int slot = group.next_staging_slot();
    if (num_blocks > 0) {
        stage(int64_t{0}, slot);
    }
    turn.begin();
    for (int64_t block = 0; block < num_blocks; ++block) {
        const int read_slot = slot;
        const bool is_last = block + 1 == num_blocks;
        if (!is_last) {
            slot = group.next_staging_slot();
            stage(block + 1, slot);
        }
        consume(block, read_slot);
        if (!is_last) {
            turn.sync();
        }
    }
}

comm::CallRecord move_record(comm::Operation operation,
                             int64_t rows,
                             int64_t row_bytes,
                             uint32_t options) {
    comm::CallRecord call;
    call.operation = static_cast<uint32_t>(operation);
    call.dtype = static_cast<uint32_t>(DType::kBytes);
    call.rows = static_cast<uint64_t>(rows);
    call.row_elems = static_cast<uint32_t>(row_bytes);
    call.options = options;
    return call;
}

}  // namespace

void all_gather(HostGroup& group,
                const void* in,
                void* out,
                int64_t rows,
                const std::vector<int64_t>& column_bytes) {
    TOKEN_CHECK(static_cast<int>(column_bytes.size()) == group.size(),
                "all_gather needs the width of ",
                group.size(),
                " ranks, got ",
                column_bytes.size());
    comm::OptionsHash options;
    std::vector<int64_t> column_offset;
    int64_t out_row_bytes = 0;
    for (const int64_t width : column_bytes) {
        TOKEN_CHECK(width >= 0, "all_gather widths must not be negative, got ", width);
        options.add(width);
        column_offset.push_back(out_row_bytes);
        out_row_bytes += width;
    }
    const int64_t widest = *std::max_element(column_bytes.begin(), column_bytes.end());
    const int64_t own_bytes = column_bytes[group.rank()];
    const auto* source = static_cast<const std::byte*>(in);
    auto* target = static_cast<std::byte*>(out);

    // Blocks of whole rows where rows are short, pieces of one row where they are long.
    const int64_t staging = group.layout().staging_bytes;
    const int64_t piece_bytes = std::min(std::max<int64_t>(widest, 1), staging);
    const int64_t pieces = ceil_div(widest, piece_bytes);
    const int64_t block_rows = std::min(staging / piece_bytes, std::max<int64_t>(rows, 1));
    const int64_t num_blocks = ceil_div(rows, block_rows) * pieces;

    struct Block {
        RowRange rows;
        RowRange bytes;
    };
    const auto block_of = [&](int64_t index, int rank) {
        const int64_t first_row = index / pieces * block_rows;
        const int64_t first_byte = std::min(index % pieces * piece_bytes, column_bytes[rank]);
        return Block{{first_row, std::min(first_row + block_rows, rows)},
                     {first_byte, std::min(first_byte + piece_bytes, column_bytes[rank])}};
    };
    const auto stage = [&](int64_t index, int slot) {
        const Block block = block_of(index, group.rank());
        std::byte* to = group.staging_in(group.rank(), slot);
        for (int64_t row = block.rows.start; row < block.rows.stop;
             ++row, to += block.bytes.count()) {
            std::memcpy(to, source + row * own_bytes + block.bytes.start, block.bytes.count());
        }
    };
    const auto consume = [&](int64_t index, int slot) {
        for (int rank = 0; rank < group.size(); ++rank) {
            const Block block = block_of(index, rank);
            const std::byte* from = group.staging_in(rank, slot);
            for (int64_t row = block.rows.start; row < block.rows.stop;
                 ++row, from += block.bytes.count()) {
                std::memcpy(target + row * out_row_bytes + column_offset[rank] + block.bytes.start,
                            from,
                            block.bytes.count());
            }
        }
    };
    through_staging(group,
                    move_record(comm::Operation::kAllGather, rows, out_row_bytes, options.value()),
                    num_blocks,
                    stage,
                    consume);
}

void broadcast(HostGroup& group, void* data, int64_t num_bytes, int source) {
    TOKEN_CHECK(source >= 0 && source < group.size(),
                "broadcast source ",
                source,
                " is not a rank of a world of ",
                group.size());
    TOKEN_CHECK(num_bytes >= 0, "broadcast size must not be negative, got ", num_bytes);
    const int64_t block = group.layout().staging_bytes;
    auto* bytes = static_cast<std::byte*>(data);
    const auto size_of = [&](int64_t index) { return std::min(block, num_bytes - index * block); };
    const auto stage = [&](int64_t index, int slot) {
        if (group.rank() == source) {
            std::memcpy(group.staging_in(source, slot), bytes + index * block, size_of(index));
        }
    };
    const auto consume = [&](int64_t index, int slot) {
        if (group.rank() != source) {
            std::memcpy(bytes + index * block, group.staging_in(source, slot), size_of(index));
        }
    };
    through_staging(
        group,
        move_record(
            comm::Operation::kBroadcast, 1, num_bytes, comm::OptionsHash().add(source).value()),
        ceil_div(num_bytes, block),
        stage,
        consume);
}

}  // namespace token::weave
