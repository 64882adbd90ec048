#include "mailboxes.hpp"

#include "token/common/check.hpp"
#include "token/common/math.hpp"

#include <cstddef>
#include <cstring>

namespace token::fabric {

namespace {

using comm::HostGroup;
using comm::HostMemory;
using comm::kLineBytes;
using comm::SignalLine;
using comm::VerdictKind;

enum Which { kPostings = 0, kDeliveries = 1, kNumMailboxes = 2 };

constexpr int64_t kSlotBytes = kLineBytes;
static_assert(sizeof(comm::SlotHeader) + sizeof(Mailboxes::Posting) <= kSlotBytes);

// What one rank's segment holds for one peer: of each mailbox the line of what came from the peer,
// the line of the credits for what went to it, and the slots of what comes.
constexpr int64_t kBytesPerMailbox = 2 * kLineBytes + Mailboxes::kMostPostings * kSlotBytes;
constexpr int64_t kBytesPerPeer = kNumMailboxes * kBytesPerMailbox;
constexpr int64_t kPageBytes = 4096;

}  // namespace

// One wait for one peer: what it looks at while it sleeps, and how it fails.
class Mailboxes::Wait final : public comm::WaitMonitor {
  public:
    explicit Wait(HostGroup& group) : group_(group) {
        // What is already there must not be used after a failure.
        group_.check_verdict_and_interrupt();
    }

    bool operator()(SignalLine& line, uint32_t expected, int peer) {
        line_ = &line;
        expected_ = expected;
        peer_ = peer;
        comm::HostWaiter waiter = group_.waiter_with(this);
        return waiter(line, expected, peer);
    }

    void check() override {
        // Only the awaited peer: whoever waits for another one finds it, and tells all.
        if (group_.is_dead(peer_) &&
            !comm::has_reached(HostMemory::load_acquire(line_->value), expected_)) {
            group_.abort(VerdictKind::kPeerLost, peer_);
        }
        group_.check_verdict_and_interrupt();
    }

    [[noreturn]] void timed_out(int peer) override { group_.timed_out(peer); }

  private:
    HostGroup& group_;
    SignalLine* line_ = nullptr;
    uint32_t expected_ = 0;
    int peer_ = -1;
};

Mailboxes::Mailboxes(Communicator& communicator, int64_t data_bytes, Data data)
    : group_(communicator.group()), pairs_(group_.size()) {
    TOKEN_CHECK(data_bytes >= 0, "data_bytes must not be negative, got ", data_bytes);
    const int64_t own_bytes = align_up(group_.size() * kBytesPerPeer, kPageBytes);
    const bool is_here = data == Data::kInSegment;
    data_offset_ = is_here ? own_bytes : 0;
    data_end_ = data_offset_ + data_bytes;
    memory_ = communicator.allocate(is_here ? data_end_ : own_bytes);
    const int rank = group_.rank();
    for (int peer = 0; peer < group_.size(); ++peer) {
        if (peer != rank) {
            pairs_[peer] = std::make_unique<Pair>(Pair{Sender(mailbox(rank, peer, kPostings)),
                                                       Receiver(mailbox(peer, rank, kPostings)),
                                                       Sender(mailbox(rank, peer, kDeliveries)),
                                                       Receiver(mailbox(peer, rank, kDeliveries))});
        }
    }
}

void Mailboxes::post(int peer, int64_t offset_bytes, int64_t num_bytes) {
    TOKEN_CHECK(
        offset_bytes >= data_offset_ && num_bytes >= 0 && offset_bytes + num_bytes <= data_end_,
        "bytes ",
        offset_bytes,
        " to ",
        offset_bytes + num_bytes,
        " are not in the data of this rank, ",
        data_offset_,
        " to ",
        data_end_);
    Wait wait(group_);
    Sender& postings = with(peer).postings;
    const Posting posting{offset_bytes, num_bytes};
    std::memcpy(postings.begin(wait, peer), &posting, sizeof(posting));
    postings.publish(sizeof(posting), 0);
}

Mailboxes::Message Mailboxes::receive(int peer) {
    Wait wait(group_);
    Receiver& delivered = with(peer).delivered;
    const comm::Message message = delivered.begin(wait, peer);
    delivered.release();
    return {static_cast<int64_t>(message.num_bytes), message.tag};
}

Mailboxes::Posting Mailboxes::begin_send(int peer) {
    Wait wait(group_);
    Receiver& posted = with(peer).posted;
    Posting posting;
    std::memcpy(&posting, posted.begin(wait, peer).payload, sizeof(posting));
    posted.release();
    return posting;
}

void Mailboxes::publish(int peer, Message message) {
    Wait wait(group_);
    Sender& deliveries = with(peer).deliveries;
    // A slot is free: every message took a posting, and those are as many.
    deliveries.begin(wait, peer);
    deliveries.publish(static_cast<uint64_t>(message.num_bytes), message.tag);
}

comm::MailboxMemory Mailboxes::mailbox(int from, int to, int which) const {
    const auto area = [&](int rank, int peer) {
        return memory_->segment(rank)->data() + peer * kBytesPerPeer + which * kBytesPerMailbox;
    };
    return {.published = reinterpret_cast<SignalLine*>(area(to, from)),
            .consumed = reinterpret_cast<SignalLine*>(area(from, to) + kLineBytes),
            .slots = reinterpret_cast<unsigned char*>(area(to, from) + 2 * kLineBytes),
            .num_slots = kMostPostings,
            .slot_bytes = kSlotBytes};
}

Mailboxes::Pair& Mailboxes::with(int peer) {
    TOKEN_CHECK(peer >= 0 && peer < group_.size() && peer != group_.rank(),
                "rank ",
                group_.rank(),
                " of ",
                group_.size(),
                " exchanges no messages with ",
                peer);
    return *pairs_[peer];
}

}  // namespace token::fabric
