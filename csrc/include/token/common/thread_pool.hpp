// The threads of one rank. Not OpenMP: its barriers are invisible to ThreadSanitizer, and its
// threads would be shared with torch, which sizes them for other work.
#pragma once

#include "token/common/check.hpp"
#include "token/common/math.hpp"

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace token {

class ThreadPool {
  public:
    // The calling thread is one of the `num_threads`; a pool of one starts none.
    explicit ThreadPool(int num_threads) : num_threads_(num_threads) {
        TOKEN_CHECK(num_threads >= 1, "a rank needs at least one thread, got ", num_threads);
        for (int index = 1; index < num_threads; ++index) {
            workers_.emplace_back([this, index] { work(index); });
        }
    }

    ~ThreadPool() {
        stopping_ = true;
        start_.fetch_add(1, std::memory_order_release);
        start_.notify_all();
        for (std::thread& worker : workers_) {
            worker.join();
        }
    }

    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int num_threads() const { return num_threads_; }

    // Calls body(thread, range) on each thread with its part of [0, count). Returns when all are
    // done. body must not throw. Ranges below `grain` per thread run on fewer threads: waking one
    // costs more.
    template <class Body>
    void parallel_for(int64_t count, int64_t grain, const Body& body) {
        const int64_t parts = std::min<int64_t>(num_threads_, std::max<int64_t>(1, count / grain));
        if (parts == 1) {
            if (count > 0) {
                body(0, RowRange{0, count});
            }
            return;
        }
        task_ = [&body, count, parts](int thread) {
            if (thread < parts) {
                body(thread, split_rows(count, parts, thread));
            }
        };
        running_.store(num_threads_ - 1, std::memory_order_relaxed);
        start_.fetch_add(1, std::memory_order_release);  // publishes task_
        start_.notify_all();
        task_(0);
        for (int left = running_.load(std::memory_order_acquire); left != 0;
             left = running_.load(std::memory_order_acquire)) {
            running_.wait(left, std::memory_order_acquire);
        }
    }

  private:
    void work(int index) {
        for (uint32_t seen = 0;;) {
            start_.wait(seen, std::memory_order_acquire);
            seen = start_.load(std::memory_order_acquire);
            if (stopping_) {
                return;
            }
            task_(index);
            if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
                running_.notify_one();
            }
        }
    }

    const int num_threads_;
    bool stopping_ = false;  // ordered by start_
    std::function<void(int)> task_;
    std::atomic<uint32_t> start_{0};
    std::atomic<int> running_{0};
    std::vector<std::thread> workers_;
};

}  // namespace token
