// Vector clocks: which accesses of other threads a thread is ordered after, and the shadow memory
// that finds two accesses to the same byte, one of them a write, that are not ordered.
//
// Every thread of every launch has a slot in the vectors. Threads that meet at a barrier know the
// same of all others, so a thread's vector is a shared, immutable one plus its own count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace token::emulator {

using Vector = std::vector<uint32_t>;
using SharedVector = std::shared_ptr<const Vector>;

// What a thread knew at one moment, its own accesses up to then included.
struct Stamp {
    SharedVector known;
    SharedVector aliased;  // what of it was also made visible to the other view of an alias
    uint32_t slot = 0;
    uint32_t count = 0;
};

class ThreadClock {
  public:
    ThreadClock() = default;
    ThreadClock(SharedVector known, uint32_t slot, uint32_t count)
        : known_(known), aliased_(std::move(known)), slot_(slot), count_(count) {}

    uint32_t slot() const { return slot_; }
    uint32_t count() const { return count_; }
    bool knows(uint32_t slot, uint32_t count) const {
        return slot == slot_ ? count <= count_ : (*known_)[slot] >= count;
    }
    // Whether a proxy fence lies between that access and this moment.
    bool knows_across_aliases(uint32_t slot, uint32_t count) const {
        return (*aliased_)[slot] >= count;
    }
    // The stamp others acquire. What this thread does from now on is not part of it.
    Stamp release();
    void acquire(const Stamp& stamp);
    // fence.proxy.alias: all that this thread is ordered after, now also across aliases.
    void fence_aliases();

    // A barrier: afterwards all know what any of them knew.
    static void join(const std::vector<ThreadClock*>& clocks);
    // What is known when all of them have ended.
    static SharedVector known_by_any(const std::vector<ThreadClock*>& clocks, const Vector& before);

  private:
    SharedVector known_;
    SharedVector aliased_;
    uint32_t slot_ = 0;
    uint32_t count_ = 0;
};

enum class Access : uint8_t { kNone, kRead, kWrite };

// One access to up to 16 neighbouring bytes.
struct Record {
    uint32_t slot = 0;
    uint32_t count = 0;
    uint32_t launch = 0;         // see Machine
    const void* from = nullptr;  // the instruction
    uint16_t bytes = 0;          // which of the 16
    Access access = Access::kNone;
    // Signal words: two accesses that are both atomic do not race.
    bool is_atomic = false;
    bool is_multicast = false;
};

enum class Conflict { kNone, kUnordered, kAliased };

// The accesses to a buffer that may still conflict with one to come.
class Shadow {
  public:
    explicit Shadow(size_t num_bytes = 0) : num_bytes_(num_bytes) {}

    // Adds the access to [offset, offset + num_bytes) of a thread; on a conflict returns its kind
    // and the other access in `other`. `access` says what and who; its bytes are filled in here.
    Conflict add(
        size_t offset, size_t num_bytes, Record access, const ThreadClock& clock, Record& other);
    void clear() { pieces_.clear(); }
    size_t num_bytes() const { return num_bytes_; }

  private:
    static constexpr size_t kCellBytes = 16;
    static constexpr size_t kCellsPerPiece = 256;
    struct Cell {
        std::vector<Record> writes;
        // May hold several of one thread, until they are merged at this many.
        std::vector<Record> reads;
        size_t merge_at = 8;
    };
    using Piece = std::vector<Cell>;

    static Conflict add_to_cell(Cell& cell,
                                const Record& access,
                                const ThreadClock& clock,
                                Record& other);
    static Conflict against(const Record& old,
                            const Record& access,
                            const ThreadClock& clock,
                            Record& other);
    static void merge_reads(Cell& cell);

    size_t num_bytes_;
    std::unordered_map<size_t, Piece> pieces_;
};

}  // namespace token::emulator
