#include "gpu_messages.hpp"

#include "token/comm/call.hpp"
#include "token/common/check.hpp"
#include "token/common/math.hpp"

#include <utility>

namespace token::fabric {

namespace {

using comm::kLineBytes;

// What a rank's segment holds: for each peer the line of the messages from it, then the line of its
// credits, each written by that peer; and a number for each wait of the rank's own streams.
constexpr int64_t kPageBytes = 4096;
int64_t arrived_offset(int peer) {
    return 2 * peer * kLineBytes;
}
int64_t granted_offset(int peer) {
    return (2 * peer + 1) * kLineBytes;
}
int64_t reached_offset(int size, int slot) {
    return 2 * size * kLineBytes + slot * static_cast<int64_t>(sizeof(uint32_t));
}

// Above the streams of a model, whose kernels shall not hold up what the next ones wait for, and
// below that of the watchdog.
constexpr int kLanePriority = -1;

std::exception_ptr verdict_of(const comm::HostGroup& group) {
    const auto found = group.verdict();
    if (!found) {
        return nullptr;
    }
    try {
        group.throw_verdict(*found);
    } catch (...) {
        return std::current_exception();
    }
}

}  // namespace

GpuMessages::GpuMessages(Communicator& communicator,
                         const DriverCalls& calls,
                         int device,
                         double timeout_s)
    : group_(communicator.group()), calls_(calls), device_(device) {
    const int rank = group_.rank(), size = group_.size();
    words_ = communicator.allocate(align_up(reached_offset(size, kMostWaits), kPageBytes));
    try {
        check_driver(calls_, calls_.retain_context(&context_, device_), "cuDevicePrimaryCtxRetain");
        const WithContext context(calls_, context_);
        for (int owner = 0; owner < size; ++owner) {
            const Segment& segment = *words_->segment(owner);
            const auto num_bytes = static_cast<size_t>(segment.num_bytes());
            check_driver(calls_,
                         calls_.register_memory(segment.data(), num_bytes, kRegisterPortableMapped),
                         "cuMemHostRegister");
            DeviceAddress address = 0;
            registered_.push_back(address);
            check_driver(calls_,
                         calls_.device_address(&address, segment.data(), 0),
                         "cuMemHostGetDevicePointer");
            registered_.back() = address;
        }
        for (void*& lane : lanes_) {
            check_driver(calls_,
                         calls_.create_stream(&lane, kNonBlockingStream, kLanePriority),
                         "cuStreamCreateWithPriority");
        }
        check_driver(calls_, calls_.create_event(&event_, kEventWithoutTime), "cuEventCreate");

        CopyEngineOptions options;
        options.calls = calls_;
        options.context = context_;
        options.rank = rank;
        options.timeout_s = timeout_s;
        options.peers.resize(static_cast<size_t>(size));
        for (int peer = 0; peer < size; ++peer) {
            if (peer != rank) {
                options.peers[static_cast<size_t>(peer)] = {
                    .arrived_here = word(rank, arrived_offset(peer)),
                    .arrived_there = word(peer, arrived_offset(rank)),
                    .granted_here = word(rank, granted_offset(peer)),
                    .granted_there = word(peer, granted_offset(rank))};
            }
        }
        for (int slot = 0; slot < kMostWaits; ++slot) {
            options.reached.push_back(word(rank, reached_offset(size, slot)));
        }
        options.is_dead = [&group = group_](int peer) { return group.is_dead(peer); };
        options.verdict = [&group = group_] { return verdict_of(group); };
        options.tell = [&group = group_](comm::VerdictKind kind, int peer) {
            group.abort(comm::Verdict{kind,
                                      static_cast<uint8_t>(comm::Operation::kMessages),
                                      static_cast<uint8_t>(group.rank()),
                                      static_cast<uint8_t>(peer),
                                      0});
        };
        engine_ = std::make_unique<CopyEngine>(std::move(options));
    } catch (...) {
        give_back();
        throw;
    }
}

GpuMessages::~GpuMessages() {
    close();
    engine_.reset();
    give_back();
}

void GpuMessages::check(void* stream) const {
    engine_->check();
    const WithContext context(calls_, context_);
    engine_->refuse_capture(stream);
}

uint32_t GpuMessages::grant(int peer, void* stream, bool waits_for_sends) {
    check(stream);
    follow(stream, kCredits);
    if (waits_for_sends) {
        follow(lanes_[kClockwise], kCredits);
        follow(lanes_[kCounterclockwise], kCredits);
    }
    return engine_->grant(peer, lanes_[kCredits]);
}

void GpuMessages::await(int peer,
                        uint32_t number,
                        DeviceAddress into,
                        int64_t num_bytes,
                        void* stream,
                        const std::string& what) {
    engine_->await(peer, number, into, num_bytes, stream, what);
}

uint32_t GpuMessages::send(int peer,
                           const std::vector<CopyPiece>& pieces,
                           void* stream,
                           const std::string& what) {
    check(stream);
    const Lane lane = lane_to(peer);
    follow(stream, lane);
    return engine_->send(peer, pieces, lanes_[lane], what);
}

bool GpuMessages::has_left(int peer, uint32_t number) const {
    return engine_->has_left(peer, number);
}

void GpuMessages::join(void* stream) {
    check(stream);
    const WithContext context(calls_, context_);
    for (const Lane lane : {kClockwise, kCounterclockwise}) {
        check_driver(calls_, calls_.record_event(event_, lanes_[lane]), "cuEventRecord");
        check_driver(calls_, calls_.wait_event(stream, event_, 0), "cuStreamWaitEvent");
    }
}

void GpuMessages::close() {
    if (engine_ == nullptr) {
        return;
    }
    // While the engine lives every wait ends. Were it closed first, copies that wait for credit
    // would run without.
    void* popped = nullptr;
    if (calls_.push_context(context_) == 0) {
        calls_.synchronize();
        calls_.pop_context(&popped);
    }
    engine_->close();
}

SignalWord GpuMessages::word(int rank, int64_t offset) const {
    return {reinterpret_cast<uint32_t*>(words_->segment(rank)->data() + offset),
            registered_[static_cast<size_t>(rank)] + static_cast<DeviceAddress>(offset)};
}

void GpuMessages::follow(void* first, Lane then) {
    const WithContext context(calls_, context_);
    // An event that is waited for may be recorded again: the wait is for what was recorded before.
    check_driver(calls_, calls_.record_event(event_, first), "cuEventRecord");
    check_driver(calls_, calls_.wait_event(lanes_[then], event_, 0), "cuStreamWaitEvent");
}

GpuMessages::Lane GpuMessages::lane_to(int peer) const {
    const int size = group_.size();
    const int distance = (peer - group_.rank() + size) % size;
    return 2 * distance <= size ? kClockwise : kCounterclockwise;
}

void GpuMessages::give_back() {
    void* popped = nullptr;
    if (context_ == nullptr || calls_.push_context(context_) != 0) {
        return;
    }
    for (void* lane : lanes_) {
        if (lane != nullptr) {
            calls_.destroy_stream(lane);
        }
    }
    if (event_ != nullptr) {
        calls_.destroy_event(event_);
    }
    for (size_t owner = 0; owner < registered_.size(); ++owner) {
        calls_.unregister_memory(words_->segment(static_cast<int>(owner))->data());
    }
    calls_.pop_context(&popped);
    calls_.release_context(device_);
}

}  // namespace token::fabric
