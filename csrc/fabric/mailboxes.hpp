// Messages between the ranks of one host, each written by its sender to where its receiver wants
// it: one copy, no queue of payloads.
//
// For each ordered pair of ranks there are two mailboxes of small messages (protocol.hpp). Through
// one the receiver posts where the next message may be put, an offset in its own segment; through
// the other the sender says that it is there. Messages of a pair match postings in order.
//
// One segment a rank, the same size on all: the mailboxes' lines and slots, then `data_bytes` whose
// use is up to the rank. The data may also lie elsewhere, on a GPU: then offsets count from 0, the
// postings pass through here, and who has moved the data says so in its own way.
#pragma once

#include "communicator.hpp"
#include "token/comm/protocol.hpp"

#include <cstdint>
#include <memory>
#include <vector>

namespace token::fabric {

class Mailboxes {
  public:
    // Postings of one pair that may be unused at a time; posting more waits.
    static constexpr uint32_t kMostPostings = 64;

    enum class Data { kInSegment, kElsewhere };

    // Collective.
    Mailboxes(Communicator& communicator, int64_t data_bytes, Data data = Data::kInSegment);

    std::shared_ptr<Segment> segment(int rank) const { return memory_->segment(rank); }
    // Where the data of a segment starts.
    int64_t data_offset() const { return data_offset_; }

    // Lets `peer` write its next message to [offset, offset + num_bytes) of this rank's segment.
    // Nothing may be read or written there until the message has been received.
    void post(int peer, int64_t offset_bytes, int64_t num_bytes);

    struct Message {
        int64_t num_bytes;
        uint64_t tag;
    };
    // Waits for the message to the oldest posting of `peer` that has none yet.
    Message receive(int peer);

    struct Posting {
        int64_t offset_bytes;  // in the peer's segment
        int64_t num_bytes;
    };
    // Waits for a posting of `peer`. The payload is written there, then published.
    Posting begin_send(int peer);
    void publish(int peer, Message message);

  private:
    class Wait;
    using Sender = comm::MailboxSender<comm::HostMemory>;
    using Receiver = comm::MailboxReceiver<comm::HostMemory>;
    struct Pair {
        Sender postings;
        Receiver posted;
        Sender deliveries;
        Receiver delivered;
    };

    comm::MailboxMemory mailbox(int from, int to, int which) const;
    Pair& with(int peer);

    comm::HostGroup& group_;
    int64_t data_offset_;
    int64_t data_end_;
    std::unique_ptr<SymmetricMemory> memory_;
    std::vector<std::unique_ptr<Pair>> pairs_;  // [size], null for this rank
};

}  // namespace token::fabric
