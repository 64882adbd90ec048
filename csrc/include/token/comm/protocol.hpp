// The signal protocol between ranks: epoch barrier and mailbox. Compiled for host and device; what
// differs between memories (loads, stores, how to sleep) comes in as the Memory and Waiter
// policies: for CPU ranks token/comm/host_memory.hpp. Deadlines live in the Waiter, never here.
//
// Every word has exactly one writer and a 128-byte line of its own: two ranks polling neighbouring
// words would otherwise fight over one cache line (64 bytes on x86, fetched in pairs; 128 on some
// Arm and on GPUs).
#pragma once

#include "token/common/host_device.hpp"

#include <cstdint>

namespace token::comm {

inline constexpr int kLineBytes = 128;

// What one rank believes the collective in progress to be. Compared on every rank before data
// moves.
struct CallRecord {
    uint32_t operation = 0;  // Operation, see call.hpp
    uint32_t dtype = 0;
    uint64_t rows = 0;
    uint32_t row_elems = 0;
    uint32_t options =
        0;  // hash of everything else that must agree: eps, algorithm, layout, block size

    TOKEN_HOST_DEVICE friend bool operator==(const CallRecord& a, const CallRecord& b) {
        return a.operation == b.operation && a.dtype == b.dtype && a.rows == b.rows &&
               a.row_elems == b.row_elems && a.options == b.options;
    }
};

// One line of signal memory. All but `sleeping` are written by the signalling rank, `sleeping` by
// the rank that owns the memory.
struct alignas(kLineBytes) SignalLine {
    uint32_t value;
    uint32_t sleeping;
    uint32_t core;  // where the signaller ran, see HostMemory; 0 before its first signal
    CallRecord calls[2];
};
static_assert(sizeof(SignalLine) == kLineBytes);

// Modular comparison: epochs wrap at 2^32, and no two ranks are ever 2^31 epochs apart.
TOKEN_HOST_DEVICE inline bool has_reached(uint32_t seen, uint32_t expected) {
    return static_cast<int32_t>(seen - expected) >= 0;
}

// A barrier among `size` ranks by monotonic epochs.
//
// Memory order. arrive() release-stores the epoch into this rank's line on every peer, so all this
// rank wrote before (its staged input, its reduced rows) is visible to whoever acquires that epoch
// in wait(). wait() acquires one line per peer; after it, this rank may read what peers wrote
// before arriving, and may overwrite what peers read before arriving.
//
// calls[] has two entries because a peer can run one barrier ahead: it may arrive at epoch e + 1
// while this rank still compares the records of epoch e. It cannot arrive at e + 2 before this rank
// arrived at e + 1, which it does only after comparing.
template <class Memory>
class EpochBarrier {
  public:
    // own_lines: [size] lines in this rank's memory, line p written by peer p.
    // peer_lines[p]: the same array of peer p; this rank writes peer_lines[p][rank].
    // base_epoch must be the same constant on all ranks, agreed before the first arrive(): reading
    // it from memory deadlocks when a peer has already advanced.
    TOKEN_HOST_DEVICE EpochBarrier(int rank,
                                   int size,
                                   SignalLine* own_lines,
                                   SignalLine* const* peer_lines,
                                   uint32_t base_epoch)
        : rank_(rank),
          size_(size),
          own_lines_(own_lines),
          peer_lines_(peer_lines),
          epoch_(base_epoch) {}

    TOKEN_HOST_DEVICE uint32_t epoch() const { return epoch_; }

    TOKEN_HOST_DEVICE void arrive(const CallRecord& call) {
        ++epoch_;
        for (int step = 1; step < size_; ++step) {
            const int peer =
                (rank_ + step) % size_;  // staggered: not every rank signals rank 0 first
            SignalLine& line = peer_lines_[peer][rank_];
            line.calls[epoch_ & 1] = call;
            Memory::signal(line, epoch_);
        }
    }

    // Waiter: waiter(line, expected, peer) returns once line.value reached `expected`, or throws
    // (host) / records the failure and returns false (device).
    template <class Waiter>
    TOKEN_HOST_DEVICE bool wait(Waiter& waiter) {
        for (int step = 1; step < size_; ++step) {
            const int peer = (rank_ + step) % size_;
            if (!waiter(own_lines_[peer], epoch_, peer)) {
                return false;
            }
        }
        return true;
    }

    // The record peer p arrived with at the current epoch. Only after wait().
    TOKEN_HOST_DEVICE const CallRecord& call_of(int peer) const {
        return own_lines_[peer].calls[epoch_ & 1];
    }

  private:
    int rank_;
    int size_;
    SignalLine* own_lines_;
    SignalLine* const* peer_lines_;
    uint32_t epoch_;
};

// First bytes of every mailbox slot: a receiver never guesses the length.
struct alignas(16) SlotHeader {
    uint64_t num_bytes;
    uint64_t tag;
};

// Memory of a one-way mailbox from one sender to one receiver.
struct MailboxMemory {
    SignalLine* published;  // in the receiver's memory, written by the sender: messages published
    SignalLine*
        consumed;  // in the sender's memory, written by the receiver: messages consumed (credits)
    unsigned char*
        slots;  // in the receiver's memory: num_slots slots of slot_bytes, header included
    uint32_t num_slots;
    uint64_t slot_bytes;
};

// Both counts start at 0 on both sides, by agreement and not by reading memory.
template <class Memory>
class MailboxSender {
  public:
    TOKEN_HOST_DEVICE explicit MailboxSender(const MailboxMemory& memory) : memory_(memory) {}

    // Waits for a free slot and returns its payload; the caller fills it, then publish().
    // Acquires the receiver's credit: the receiver's reads of the slot's previous message are done.
    template <class Waiter>
    TOKEN_HOST_DEVICE unsigned char* begin(Waiter& waiter, int peer) {
        const uint32_t needed = sent_ + 1 - memory_.num_slots;
        if (!waiter(*memory_.consumed, needed, peer)) {
            return nullptr;
        }
        return slot() + sizeof(SlotHeader);
    }

    // Releases the payload and header to the receiver.
    TOKEN_HOST_DEVICE void publish(uint64_t num_bytes, uint64_t tag) {
        *reinterpret_cast<SlotHeader*>(slot()) = SlotHeader{num_bytes, tag};
        ++sent_;
        Memory::signal(*memory_.published, sent_);
    }

    TOKEN_HOST_DEVICE uint64_t capacity_bytes() const {
        return memory_.slot_bytes - sizeof(SlotHeader);
    }
    TOKEN_HOST_DEVICE uint32_t sent() const { return sent_; }

  private:
    TOKEN_HOST_DEVICE unsigned char* slot() const {
        return memory_.slots + (sent_ % memory_.num_slots) * memory_.slot_bytes;
    }

    MailboxMemory memory_;
    uint32_t sent_ = 0;
};

struct Message {
    const unsigned char* payload;
    uint64_t num_bytes;
    uint64_t tag;
};

template <class Memory>
class MailboxReceiver {
  public:
    TOKEN_HOST_DEVICE explicit MailboxReceiver(const MailboxMemory& memory) : memory_(memory) {}

    // Waits for the next message; its payload stays valid until release().
    template <class Waiter>
    TOKEN_HOST_DEVICE Message begin(Waiter& waiter, int peer) {
        if (!waiter(*memory_.published, received_ + 1, peer)) {
            return {nullptr, 0, 0};
        }
        const unsigned char* slot =
            memory_.slots + (received_ % memory_.num_slots) * memory_.slot_bytes;
        const SlotHeader header = *reinterpret_cast<const SlotHeader*>(slot);
        return {slot + sizeof(SlotHeader), header.num_bytes, header.tag};
    }

    // Gives the slot back. A release: this rank's reads of the payload come before the sender's
    // reuse.
    TOKEN_HOST_DEVICE void release() {
        ++received_;
        Memory::signal(*memory_.consumed, received_);
    }

    TOKEN_HOST_DEVICE uint32_t received() const { return received_; }

  private:
    MailboxMemory memory_;
    uint32_t received_ = 0;
};

}  // namespace token::comm
