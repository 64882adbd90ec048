// The shipped all-gather on emulated GPUs: every rank's rows on all ranks, bit for bit.
#include "emulated_elements.hpp"
#include "emulator.hpp"
#include "expect.hpp"
#include "token/common/math.hpp"
#include "weave/cuda/launch.hpp"

#include <cstring>
#include <string>

namespace {

using namespace token;
using namespace token::testing;
using emulator::Machine;
using emulator::Schedule;
using weave::cuda::Reach;

struct Case {
    Reach reach = Reach::kMulticast;
    int size = 2;
    int64_t rows = 5;
    int64_t row_bytes = 64;
};

weave::cuda::Tensor shared(const emulator::SymmetricBuffer& buffer, Reach reach) {
    weave::cuda::Tensor tensor;
    for (const emulator::Buffer* each : buffer.of_rank) {
        tensor.by_rank.push_back(reinterpret_cast<uintptr_t>(each->data()));
    }
    tensor.multicast =
        reach == Reach::kMulticast ? reinterpret_cast<uintptr_t>(buffer.multicast) : 0;
    return tensor;
}

uint8_t byte_of(int launch, int64_t at) {
    return static_cast<uint8_t>(emulator::Random(1000003 * launch + at).next());
}

// Two launches on one workspace; what a rank finds after each.
void run(const Case& chosen, uint64_t seed) {
    constexpr int kLaunches = 2;
    const int64_t total = chosen.rows * chosen.row_bytes;
    Machine machine(chosen.size, Schedule::of_seed(seed));
    auto& out = machine.allocate_symmetric("out", total);
    auto& channel = machine.allocate_symmetric("channel", weave::cuda::channel_bytes());
    int num_wrong = 0;
    for (int rank = 0; rank < chosen.size; ++rank) {
        const RowRange own = split_rows(chosen.rows, chosen.size, rank);
        const int64_t start = own.start * chosen.row_bytes;
        auto& source = machine.allocate("source", rank, own.count() * chosen.row_bytes);
        auto& failure = machine.allocate("failure", rank, sizeof(weave::cuda::FailureRecord));
        std::memset(failure.data(), 0, failure.num_bytes());
        std::memset(channel.of_rank[rank]->data(), 0, channel.num_bytes());
        for (int launch = 0; launch < kLaunches; ++launch) {
            machine.host(rank, [&source, launch, start] {
                std::vector<uint8_t> bytes(source.num_bytes());
                for (size_t i = 0; i < bytes.size(); ++i) {
                    bytes[i] = byte_of(launch, start + static_cast<int64_t>(i));
                }
                copy_to_device(source.data(), bytes.data(), bytes.size());
            });
            weave::cuda::Gather gather;
            gather.group.rank = rank;
            gather.group.size = chosen.size;
            gather.group.reach = chosen.reach;
            gather.group.channel = shared(channel, chosen.reach);
            gather.group.failure_record = {{reinterpret_cast<uintptr_t>(failure.data())}, 0};
            gather.source = {{reinterpret_cast<uintptr_t>(source.data())}, 0};
            gather.out = shared(out, chosen.reach);
            gather.rows = chosen.rows;
            gather.row_bytes = chosen.row_bytes;
            gather.num_blocks = 2;
            gather.stream = machine.stream(rank);
            weave::cuda::all_gather(gather);
            machine.host(rank, [&, rank, launch] {
                std::vector<uint8_t> found(total);
                copy_from_device(found.data(), out.of_rank[rank]->data(), found.size());
                for (int64_t at = 0; at < total; ++at) {
                    num_wrong += found[at] != byte_of(launch, at);
                }
            });
        }
    }
    std::string error;
    try {
        machine.run();
    } catch (const std::exception& failed) {
        error = failed.what();
    }
    EXPECT_EQ(error, "");
    EXPECT_EQ(num_wrong, 0);
}

}  // namespace

int main() {
    uint64_t seed = 0;
    for (const int size : {1, 2, 3, 4, 8}) {
        for (const int rows : {0, 1, size - 1, size + 1, 2 * size + 3}) {
            run({Reach::kMulticast, size, rows, 64}, ++seed);
            run({Reach::kPeer, size, rows, 64}, ++seed);
            run({Reach::kPeer, size, rows, 7}, ++seed);
        }
    }
    run({Reach::kMulticast, 2, 3, 40'000}, ++seed);
    run({Reach::kPeer, 2, 3, 40'000}, ++seed);
    return finish("emulated_gather");
}
