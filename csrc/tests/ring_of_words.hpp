// A barrier test over any Memory policy: every rank writes its slice before a barrier and reads all
// slices after it, many times over one buffer. With the orders of the policy taken out,
// ThreadSanitizer reports it.
#pragma once

#include "expect.hpp"
#include "token/comm/host_memory.hpp"

#include <memory>
#include <thread>
#include <vector>

namespace token::testing {

struct NoMonitor final : comm::WaitMonitor {
    void check() override {}
    [[noreturn]] void timed_out(int) override { throw std::runtime_error("timed out"); }
};

template <class Memory>
void exchange_slices(int size, uint32_t base_epoch, int iterations) {
    std::vector<std::vector<comm::SignalLine>> lines(size);
    std::vector<comm::SignalLine*> pointers;
    for (auto& own : lines) {
        own.resize(size);
        for (comm::SignalLine& line : own) {
            line.value = base_epoch;
        }
        pointers.push_back(own.data());
    }
    std::vector<int64_t> slices(size, -1);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank) {
        threads.emplace_back([&, rank] {
            NoMonitor monitor;
            comm::HostWaiter waiter(0, 20, std::chrono::seconds(30), &monitor);
            comm::EpochBarrier<Memory> barrier(
                rank, size, lines[rank].data(), pointers.data(), base_epoch);
            for (int iteration = 0; iteration < iterations; ++iteration) {
                slices[rank] = int64_t{iteration} * size + rank;
                barrier.arrive({});
                barrier.wait(waiter);
                for (int peer = 0; peer < size; ++peer) {
                    EXPECT_EQ(slices[peer], int64_t{iteration} * size + peer);
                }
                barrier.arrive({});
                barrier.wait(waiter);
            }
            EXPECT_EQ(barrier.epoch(), base_epoch + 2u * iterations);
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

}  // namespace token::testing
