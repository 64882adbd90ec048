// Ranks as threads of one process. All of them see the workspaces at the same addresses, which is
// what lets ThreadSanitizer, which keys on addresses, follow a value from rank to rank.
#pragma once

#include "expect.hpp"
#include "token/comm/host_group.hpp"

#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace token::testing {

struct GroupSettings {
    int size = 2;
    int num_threads = 1;
    int spin_count = 50;
    double timeout_s = 20.0;
    uint32_t base_epoch = 0;
    int64_t partial_bytes = 64 << 10;
    int64_t staging_bytes = 16 << 10;
};

class ThreadRanks {
  public:
    explicit ThreadRanks(const GroupSettings& settings)
        : settings_(settings),
          layout_(settings.size, settings.partial_bytes, settings.staging_bytes) {
        for (int rank = 0; rank < settings.size; ++rank) {
            auto* memory = static_cast<std::byte*>(std::aligned_alloc(4096, layout_.total_bytes()));
            std::memset(memory, 0, layout_.total_bytes());
            owned_.emplace_back(memory, &std::free);
            workspaces_.push_back(memory);
        }
    }

    // Runs body(group) on every rank at once. An exception that leaves a body fails the test.
    void run(const std::function<void(comm::HostGroup&)>& body) {
        std::vector<std::thread> threads;
        for (int rank = 0; rank < settings_.size; ++rank) {
            threads.emplace_back([&, rank] {
                comm::HostGroup::Options options;
                options.rank = rank;
                options.size = settings_.size;
                options.num_threads = settings_.num_threads;
                options.spin_count = settings_.spin_count;
                options.timeout_s = settings_.timeout_s;
                options.base_epoch = settings_.base_epoch;
                comm::HostGroup group(options, layout_, workspaces_);
                try {
                    body(group);
                } catch (const std::exception& error) {
                    EXPECT_EQ(std::string(error.what()), "no exception");
                }
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
    }

  private:
    GroupSettings settings_;
    comm::WorkspaceLayout layout_;
    std::vector<std::unique_ptr<std::byte, decltype(&std::free)>> owned_;
    std::vector<std::byte*> workspaces_;
};

// Lets a chosen rank fall behind without a clock: it gives up its slice some times.
inline void dawdle(int times) {
    for (int i = 0; i < times; ++i) {
        std::this_thread::yield();
    }
}

}  // namespace token::testing
