// Messages between GPUs of one host by copy engines: cuMemcpyAsync into the peer's memory and
// stream memory operations for signals. No kernel runs, and no host waits for a GPU.
//
// Between each pair of ranks, for each way, there are two words of host memory that both processes
// have mapped and registered with CUDA:
//
//     granted   credits, written by the receiver's stream: how many messages may be written. The
//               memory of message k is free when k has been granted
//     arrived   messages, written by the sender's stream after the copy
//
// Memory order. A stream writes a word after all it did before is visible to everyone (a write
// with its barrier), and goes on after a wait only when the word is there. So the copy of message
// k, which waits for credit k, overwrites nothing that the receiver's stream read before it
// granted k; and what follows the receiver's wait for message k sees all of the copy.
//
// A stream's wait has no deadline of its own. A watchdog thread knows every wait: each wait is
// preceded by a write of its own that says when the stream has come to it, and from then on the
// deadline runs. Past it, or when the peer is gone, the watchdog fills the memory of every message
// that has not come with 0xff (NaN in every float type), so that no result made of it looks valid,
// then writes the awaited values itself: the streams run to their end, and every later call throws.
// A copy that was waiting for credit is released too: whoever gave none must be told first (`tell`)
// that the world is broken.
#pragma once

#include "cuda_driver.hpp"
#include "token/comm/verdict.hpp"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace token::fabric {

// A word of registered host memory, zero at the start.
struct SignalWord {
    uint32_t* host = nullptr;
    DeviceAddress device = 0;
};

// Of one peer; empty for the rank itself.
struct CopyEnginePeer {
    SignalWord arrived_here;   // messages from the peer, written by it
    SignalWord arrived_there;  // messages to the peer, written by this rank
    SignalWord granted_here;   // credits from the peer, written by it
    SignalWord granted_there;  // credits to the peer, written by this rank
};

// A part of a message; parts of no bytes are allowed.
struct CopyPiece {
    DeviceAddress to = 0;
    DeviceAddress from = 0;
    int64_t num_bytes = 0;
};

struct CopyEngineOptions {
    DriverCalls calls{};
    void* context = nullptr;
    int rank = 0;
    std::vector<CopyEnginePeer> peers;  // [size]
    // As many as waits may be under way, written by this rank. A call that needs more waits for the
    // oldest: the host is that far ahead of the GPU.
    std::vector<SignalWord> reached;
    double timeout_s = 30.0;
    // All may be empty. Called by the watchdog.
    std::function<bool(int peer)> is_dead;
    std::function<std::exception_ptr()> verdict;  // of others: why the world is broken, or null
    std::function<void(comm::VerdictKind kind, int peer)> tell;
};

class CopyEngine {
  public:
    explicit CopyEngine(CopyEngineOptions options);
    ~CopyEngine();  // closes
    CopyEngine(const CopyEngine&) = delete;
    CopyEngine& operator=(const CopyEngine&) = delete;

    // grant(), await() and send() enqueue on `stream` and return at once. They throw the failure
    // once there is one, and InvalidArgument for a stream that is being captured in a graph. For
    // one thread at a time.

    // Lets `peer` send its next message: what the stream did before is done with its memory.
    // Returns the number of that message.
    uint32_t grant(int peer, void* stream);
    // What is enqueued next finds message `number` of `peer` in [into, into + num_bytes).
    void await(int peer,
               uint32_t number,
               DeviceAddress into,
               int64_t num_bytes,
               void* stream,
               const std::string& what);
    // Copies the next message to `peer` once it is granted, then says that it is there. Returns the
    // number of that message.
    uint32_t send(int peer,
                  const std::vector<CopyPiece>& pieces,
                  void* stream,
                  const std::string& what);
    // Whether all of a message to `peer` has been copied: what it was copied from is free.
    bool has_left(int peer, uint32_t number) const;

    // Throws CommTimeout, PeerLost or the verdict of others, if there is a failure.
    void check() const;
    // Throws InvalidArgument for a stream that is being captured; the context must be current.
    void refuse_capture(void* stream) const;
    // Releases all waits, as a failure does; the words may be given back when the streams are done.
    void close();

  private:
    using Clock = std::chrono::steady_clock;
    struct Wait {
        SignalWord word;
        uint32_t expected;
        size_t slot;      // in options.reached
        uint32_t number;  // what the stream writes there
        int peer;
        std::string what;
        DeviceAddress into;
        int64_t num_bytes;
        std::optional<Clock::time_point> deadline;
    };

    const CopyEnginePeer& with(int peer) const;
    size_t take_slot(std::unique_lock<std::mutex>& lock);
    void enqueue_wait(Wait wait, void* stream);
    void watch();
    bool is_reached(const Wait& wait) const;
    void forget_finished();
    void look(bool looks_at_peers);
    void fail(std::exception_ptr failure);
    void release_waits();
    template <class Error>
    std::exception_ptr failure_of(const Wait& wait, const std::string& what) const;

    CopyEngineOptions options_;
    std::vector<uint32_t> num_granted_, num_sent_;  // [size]
    void* stream_ = nullptr;                        // of the watchdog

    mutable std::mutex mutex_;  // never held while the driver is called on a stream that may wait
    std::condition_variable changed_;
    std::list<Wait> waits_;
    std::vector<size_t> free_slots_;
    uint32_t next_number_ = 0;
    std::exception_ptr failure_;
    bool is_closing_ = false;
    std::thread watchdog_;
};

}  // namespace token::fabric
