// Messages between the GPUs of a host as one rank of a world has them: the copy engine, its signal
// words in memory that all ranks share, and the streams that the transfers take.
//
// A rank computes on a stream of its caller's and moves bytes on streams of this object's: messages
// to the nearer half of the peers clockwise on one, to the others on another, credits on a third.
// Events join them, no host waits. Each of the streams does in order what was enqueued, and a plan
// (tokenring/blocks.py) is free of circles even if all of it runs in one order, step by step: so it
// does no harm when the GPU puts two of these streams in one queue.
#pragma once

#include "communicator.hpp"
#include "copy_engine.hpp"

#include <array>
#include <memory>
#include <string>
#include <vector>

namespace token::fabric {

class GpuMessages {
  public:
    // Waits for messages and credits that may be under way before the host waits for the oldest;
    // more than any one call of a plan has.
    static constexpr int kMostWaits = 2048;

    // Collective. `device` is this rank's GPU, as its process numbers them. The failures of the
    // world become those of this object, and the other way round; `communicator` lives longer.
    GpuMessages(Communicator& communicator, const DriverCalls& calls, int device, double timeout_s);
    ~GpuMessages();  // closes
    GpuMessages(const GpuMessages&) = delete;
    GpuMessages& operator=(const GpuMessages&) = delete;

    // All of these enqueue and return at once, and throw as CopyEngine does; `stream` is the one on
    // which this rank computes.

    // Lets `peer` send its next message: what `stream` did before is done with the memory, and, if
    // asked for, so is everything sent until now. Returns the number of that message.
    uint32_t grant(int peer, void* stream, bool waits_for_sends);
    // What `stream` does next finds message `number` of `peer` in [into, into + num_bytes).
    void await(int peer,
               uint32_t number,
               DeviceAddress into,
               int64_t num_bytes,
               void* stream,
               const std::string& what);
    // Sends what `stream` has made before. The pieces are read until has_left(), and until what
    // `stream` does after join(). Returns the number of the message.
    uint32_t send(int peer,
                  const std::vector<CopyPiece>& pieces,
                  void* stream,
                  const std::string& what);
    // Whether a message has been copied. Does not throw.
    bool has_left(int peer, uint32_t number) const;
    // What `stream` does next comes after all sends until now.
    void join(void* stream);

    // Throws the failure, if there is one, and InvalidArgument if `stream` is being captured.
    void check(void* stream) const;
    // The failure alone.
    void check() const { engine_->check(); }
    // Waits for this rank's GPU, at most for the deadlines of what is under way. Every later call
    // throws.
    void close();

  private:
    enum Lane { kClockwise = 0, kCounterclockwise = 1, kCredits = 2, kNumLanes = 3 };

    SignalWord word(int rank, int64_t offset) const;
    void follow(void* first, Lane then);
    Lane lane_to(int peer) const;
    void give_back();

    comm::HostGroup& group_;
    DriverCalls calls_;
    int device_;
    void* context_ = nullptr;
    std::unique_ptr<SymmetricMemory> words_;
    std::vector<DeviceAddress> registered_;  // [ranks whose words the driver knows]
    std::array<void*, kNumLanes> lanes_{};
    void* event_ = nullptr;
    std::unique_ptr<CopyEngine> engine_;
};

}  // namespace token::fabric
