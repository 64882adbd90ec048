// Streams in software behind the table of driver calls: a thread that does in order what was
// enqueued, memory and words being the host's. Device addresses are host addresses.
#pragma once

#include "../fabric/cuda_driver.hpp"
#include "token/comm/protocol.hpp"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace token::testing {

class SoftwareStream {
  public:
    SoftwareStream() : thread_([this] { work(); }) {}
    // Ends when all that was enqueued is done: a wait that nobody ends hangs the test.
    ~SoftwareStream() {
        enqueue(nullptr);
        thread_.join();
    }
    SoftwareStream(const SoftwareStream&) = delete;
    SoftwareStream& operator=(const SoftwareStream&) = delete;

    void enqueue(std::function<void()> operation) {
        const std::lock_guard<std::mutex> lock(mutex_);
        operations_.push_back(std::move(operation));
        ++num_open_;
        changed_.notify_all();
    }
    bool is_idle() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return num_open_ == 0;
    }
    void drain() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return num_open_ == 0; });
    }
    // What drains must also see done: operations run under no lock.
    bool is_capturing = false;

  private:
    void work() {
        while (true) {
            std::function<void()> operation;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                changed_.wait(lock, [&] { return !operations_.empty(); });
                operation = std::move(operations_.front());
                operations_.pop_front();
            }
            if (!operation) {
                return;
            }
            operation();
            const std::lock_guard<std::mutex> lock(mutex_);
            --num_open_;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> operations_;
    int num_open_ = 0;
    std::thread thread_;
};

struct SoftwareEvent {
    std::shared_ptr<std::atomic<bool>> recorded = std::make_shared<std::atomic<bool>>(true);
};

inline SoftwareStream& stream_of(void* handle) {
    return *static_cast<SoftwareStream*>(handle);
}
inline fabric::DeviceAddress device_address(const void* memory) {
    return reinterpret_cast<fabric::DeviceAddress>(memory);
}
inline void* host_address(fabric::DeviceAddress address) {
    return reinterpret_cast<void*>(address);
}

inline int software_copy(fabric::DeviceAddress to,
                         fabric::DeviceAddress from,
                         size_t num_bytes,
                         void* stream) {
    stream_of(stream).enqueue(
        [=] { std::memcpy(host_address(to), host_address(from), num_bytes); });
    return 0;
}

inline int software_write(void* stream, fabric::DeviceAddress to, uint32_t value, unsigned flags) {
    const auto order =
        flags == fabric::kWriteAfterAll ? std::memory_order_release : std::memory_order_relaxed;
    stream_of(stream).enqueue([=] {
        std::atomic_ref<uint32_t>(*static_cast<uint32_t*>(host_address(to))).store(value, order);
    });
    return 0;
}

inline fabric::DriverCalls software_calls() {
    using fabric::DeviceAddress;
    fabric::DriverCalls calls{};
    calls.memcpy_async = &software_copy;
    calls.memset_async = [](DeviceAddress to, unsigned char value, size_t size, void* stream) {
        stream_of(stream).enqueue([=] { std::memset(host_address(to), value, size); });
        return 0;
    };
    calls.write_value = &software_write;
    calls.wait_value = [](void* stream, DeviceAddress at, uint32_t value, unsigned) {
        stream_of(stream).enqueue([=] {
            std::atomic_ref<uint32_t> word(*static_cast<uint32_t*>(host_address(at)));
            while (!comm::has_reached(word.load(std::memory_order_acquire), value)) {
                std::this_thread::yield();
            }
        });
        return 0;
    };
    calls.create_stream = [](void** stream, unsigned, int) {
        *stream = new SoftwareStream();
        return 0;
    };
    calls.destroy_stream = [](void* stream) {
        delete static_cast<SoftwareStream*>(stream);
        return 0;
    };
    calls.query_stream = [](void* stream) {
        return stream_of(stream).is_idle() ? 0 : fabric::kNotReady;
    };
    calls.is_capturing = [](void* stream, int* status) {
        *status = stream_of(stream).is_capturing ? 1 : 0;
        return 0;
    };
    calls.create_event = [](void** event, unsigned) {
        *event = new SoftwareEvent();
        return 0;
    };
    calls.destroy_event = [](void* event) {
        delete static_cast<SoftwareEvent*>(event);
        return 0;
    };
    calls.record_event = [](void* event, void* stream) {
        auto& recorded = static_cast<SoftwareEvent*>(event)->recorded;
        recorded = std::make_shared<std::atomic<bool>>(false);
        stream_of(stream).enqueue([done = recorded] { *done = true; });
        return 0;
    };
    calls.wait_event = [](void* stream, void* event, unsigned) {
        // As in CUDA: for what had been recorded when this was called.
        stream_of(stream).enqueue([done = static_cast<SoftwareEvent*>(event)->recorded] {
            while (!*done) {
                std::this_thread::yield();
            }
        });
        return 0;
    };
    calls.push_context = [](void*) { return 0; };
    calls.pop_context = [](void**) { return 0; };
    calls.error_name = [](int, const char** name) {
        *name = "SOFTWARE_ERROR";
        return 0;
    };
    return calls;
}

}  // namespace token::testing
