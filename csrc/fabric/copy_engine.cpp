#include "copy_engine.hpp"

#include "token/comm/protocol.hpp"
#include "token/common/check.hpp"

#include <atomic>
#include <utility>

namespace token::fabric {

namespace {

constexpr std::chrono::milliseconds kPoll{1};
// Every so many polls the watchdog asks for dead peers and verdicts, which are system calls.
constexpr int kPollsPerLook = 10;
// For filling the memory of lost messages. The streams are released after that in any case.
constexpr std::chrono::seconds kMostFilling{2};
constexpr unsigned char kNanByte = 0xff;

uint32_t load(const SignalWord& word) {
    return std::atomic_ref<uint32_t>(*word.host).load(std::memory_order_acquire);
}

}  // namespace

CopyEngine::CopyEngine(CopyEngineOptions options)
    : options_(std::move(options)),
      num_granted_(options_.peers.size()),
      num_sent_(options_.peers.size()) {
    TOKEN_CHECK(options_.timeout_s > 0, "timeout_s must be positive, got ", options_.timeout_s);
    for (size_t slot = 0; slot < options_.reached.size(); ++slot) {
        free_slots_.push_back(slot);
    }
    const WithContext context(options_.calls, options_.context);
    // Of the highest priority (the driver takes the nearest it has): streams of one priority may
    // share a queue, in which a wait would hold up what shall end it.
    constexpr int kHighest = -100;
    check_driver(options_.calls,
                 options_.calls.create_stream(&stream_, kNonBlockingStream, kHighest),
                 "cuStreamCreateWithPriority");
    watchdog_ = std::thread([this] { watch(); });
}

CopyEngine::~CopyEngine() {
    close();
    // Nothing may be thrown here; a driver that has shut down has ended the stream too.
    if (options_.calls.push_context(options_.context) == 0) {
        options_.calls.destroy_stream(stream_);
        void* popped = nullptr;
        options_.calls.pop_context(&popped);
    }
}

uint32_t CopyEngine::grant(int peer, void* stream) {
    check();
    const WithContext context(options_.calls, options_.context);
    refuse_capture(stream);
    const DeviceAddress credits = with(peer).granted_there.device;
    const uint32_t number = ++num_granted_[static_cast<size_t>(peer)];
    const int code = options_.calls.write_value(stream, credits, number, kWriteAfterAll);
    check_driver(options_.calls, code, "cuStreamWriteValue32");
    return number;
}

void CopyEngine::await(int peer,
                       uint32_t number,
                       DeviceAddress into,
                       int64_t num_bytes,
                       void* stream,
                       const std::string& what) {
    const WithContext context(options_.calls, options_.context);
    refuse_capture(stream);
    enqueue_wait({.word = with(peer).arrived_here,
                  .expected = number,
                  .slot = 0,
                  .number = 0,
                  .peer = peer,
                  .what = what,
                  .into = into,
                  .num_bytes = num_bytes,
                  .deadline = std::nullopt},
                 stream);
}

uint32_t CopyEngine::send(int peer,
                          const std::vector<CopyPiece>& pieces,
                          void* stream,
                          const std::string& what) {
    const WithContext context(options_.calls, options_.context);
    refuse_capture(stream);
    const CopyEnginePeer& words = with(peer);
    const uint32_t number = num_sent_[static_cast<size_t>(peer)] + 1;
    enqueue_wait({.word = words.granted_here,
                  .expected = number,
                  .slot = 0,
                  .number = 0,
                  .peer = peer,
                  .what = what,
                  .into = 0,
                  .num_bytes = 0,
                  .deadline = std::nullopt},
                 stream);
    num_sent_[static_cast<size_t>(peer)] = number;
    const DriverCalls& calls = options_.calls;
    for (const CopyPiece& piece : pieces) {
        if (piece.num_bytes > 0) {
            const auto size = static_cast<size_t>(piece.num_bytes);
            check_driver(
                calls, calls.memcpy_async(piece.to, piece.from, size, stream), "cuMemcpyAsync");
        }
    }
    check_driver(calls,
                 calls.write_value(stream, words.arrived_there.device, number, kWriteAfterAll),
                 "cuStreamWriteValue32");
    return number;
}

bool CopyEngine::has_left(int peer, uint32_t number) const {
    return comm::has_reached(load(with(peer).arrived_there), number);
}

void CopyEngine::check() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_) {
        std::rethrow_exception(failure_);
    }
}

void CopyEngine::close() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        is_closing_ = true;
    }
    changed_.notify_all();
    if (watchdog_.joinable()) {
        watchdog_.join();
    }
}

void CopyEngine::refuse_capture(void* stream) const {
    int status = 0;
    check_driver(
        options_.calls, options_.calls.is_capturing(stream, &status), "cuStreamIsCapturing");
    TOKEN_CHECK(status == 0,
                "messages between GPUs cannot be captured in a CUDA graph in this version: call "
                "ring attention outside of the capture");
}

const CopyEnginePeer& CopyEngine::with(int peer) const {
    TOKEN_CHECK(
        peer >= 0 && peer < static_cast<int>(options_.peers.size()) && peer != options_.rank,
        "rank ",
        options_.rank,
        " of ",
        options_.peers.size(),
        " exchanges no messages with ",
        peer);
    return options_.peers[static_cast<size_t>(peer)];
}

size_t CopyEngine::take_slot(std::unique_lock<std::mutex>& lock) {
    for (; free_slots_.empty() && !failure_; changed_.wait_for(lock, kPoll)) {
        forget_finished();
    }
    if (failure_) {
        std::rethrow_exception(failure_);
    }
    const size_t slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
}

void CopyEngine::enqueue_wait(Wait wait, void* stream) {
    {
        std::unique_lock<std::mutex> lock(mutex_);
        wait.slot = take_slot(lock);
        wait.number = ++next_number_;
        waits_.push_back(wait);
    }
    changed_.notify_all();
    const DriverCalls& calls = options_.calls;
    // From here on the watchdog releases the wait if it must, also before it is enqueued.
    check_driver(calls,
                 calls.write_value(
                     stream, options_.reached[wait.slot].device, wait.number, kWriteWithoutBarrier),
                 "cuStreamWriteValue32");
    check_driver(calls,
                 calls.wait_value(stream, wait.word.device, wait.expected, kWaitUntilReached),
                 "cuStreamWaitValue32");
}

void CopyEngine::watch() {
    const WithContext context(options_.calls, options_.context);
    std::unique_lock<std::mutex> lock(mutex_);
    for (int polls = 0; !is_closing_; ++polls) {
        if (waits_.empty()) {
            changed_.wait(lock, [&] { return is_closing_ || !waits_.empty(); });
        } else {
            changed_.wait_for(lock, kPoll, [&] { return is_closing_; });
        }
        look(polls % kPollsPerLook == 0);
    }
    fail(std::make_exception_ptr(InvalidArgument("the channel between these GPUs is closed")));
}

template <class Error>
std::exception_ptr CopyEngine::failure_of(const Wait& wait, const std::string& what) const {
    return std::make_exception_ptr(Error(concat(wait.what,
                                                ": rank ",
                                                wait.peer,
                                                what,
                                                "; this is rank ",
                                                options_.rank,
                                                ", whose results since then are NaN"),
                                         {options_.rank, wait.peer, "messages", wait.expected}));
}

bool CopyEngine::is_reached(const Wait& wait) const {
    return load(options_.reached[wait.slot]) == wait.number;
}

void CopyEngine::forget_finished() {
    for (auto wait = waits_.begin(); wait != waits_.end();) {
        // Only when the stream has come by is its slot free for another wait.
        if (is_reached(*wait) && comm::has_reached(load(wait->word), wait->expected)) {
            free_slots_.push_back(wait->slot);
            wait = waits_.erase(wait);
        } else {
            ++wait;
        }
    }
}

void CopyEngine::look(bool looks_at_peers) {
    forget_finished();
    for (Wait& wait : waits_) {
        if (is_reached(wait) && !wait.deadline) {
            wait.deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                               std::chrono::duration<double>(options_.timeout_s));
        }
    }
    if (failure_) {
        release_waits();
        return;
    }
    if (looks_at_peers && options_.verdict && !waits_.empty()) {
        if (const std::exception_ptr found = options_.verdict()) {
            fail(found);
            return;
        }
    }
    for (const Wait& wait : waits_) {
        if (comm::has_reached(load(wait.word), wait.expected)) {
            continue;
        }
        const bool is_late = wait.deadline && Clock::now() >= *wait.deadline;
        const bool is_lost = looks_at_peers && options_.is_dead && options_.is_dead(wait.peer);
        if (is_late || is_lost) {
            if (options_.tell) {
                options_.tell(is_lost ? comm::VerdictKind::kPeerLost : comm::VerdictKind::kTimeout,
                              wait.peer);
            }
            fail(is_lost ? failure_of<PeerLost>(wait, " is gone")
                         : failure_of<CommTimeout>(
                               wait, concat(" did not signal within ", options_.timeout_s, " s")));
            return;
        }
    }
}

void CopyEngine::fail(std::exception_ptr failure) {
    if (!failure_) {
        failure_ = std::move(failure);
    }
    release_waits();
}

void CopyEngine::release_waits() {
    bool fills = false;
    for (const Wait& wait : waits_) {
        if (wait.num_bytes > 0 && !comm::has_reached(load(wait.word), wait.expected)) {
            fills |= options_.calls.memset_async(
                         wait.into, kNanByte, static_cast<size_t>(wait.num_bytes), stream_) == 0;
        }
    }
    const auto give_up = Clock::now() + kMostFilling;
    while (fills && options_.calls.query_stream(stream_) == kNotReady && Clock::now() < give_up) {
        std::this_thread::yield();
    }
    for (const Wait& wait : waits_) {
        std::atomic_ref<uint32_t> word(*wait.word.host);
        uint32_t seen = word.load(std::memory_order_acquire);
        while (!comm::has_reached(seen, wait.expected) &&
               !word.compare_exchange_weak(seen, wait.expected, std::memory_order_acq_rel)) {
        }
    }
}

}  // namespace token::fabric
