#include "clocks.hpp"

#include <algorithm>
#include <tuple>

namespace token::emulator {
namespace {

// Whether `all` already holds what `part` does: then nothing has to be copied.
bool covers(const Vector& all, const Vector& part) {
    bool is_covered = true;
    for (size_t i = 0; i < part.size(); ++i) {
        is_covered &= part[i] <= all[i];
    }
    return is_covered;
}

void raise_to(Vector& all, const Vector& part) {
    for (size_t i = 0; i < part.size(); ++i) {
        all[i] = std::max(all[i], part[i]);
    }
}

SharedVector joined(const SharedVector& left, const SharedVector& right) {
    if (left == right || covers(*left, *right)) {
        return left;
    }
    auto both = std::make_shared<Vector>(*left);
    raise_to(*both, *right);
    return both;
}

void raise_to_any(Vector& all, std::vector<const Vector*>& parts) {
    std::sort(parts.begin(), parts.end());
    parts.erase(std::unique(parts.begin(), parts.end()), parts.end());
    for (const Vector* part : parts) {
        raise_to(all, *part);
    }
}

}  // namespace

Stamp ThreadClock::release() {
    return {known_, aliased_, slot_, count_++};
}

void ThreadClock::acquire(const Stamp& stamp) {
    if (stamp.known == nullptr || stamp.slot == slot_) {
        return;
    }
    known_ = joined(known_, stamp.known);
    aliased_ = joined(aliased_, stamp.aliased);
    if ((*known_)[stamp.slot] < stamp.count) {
        auto with_releaser = std::make_shared<Vector>(*known_);
        (*with_releaser)[stamp.slot] = stamp.count;
        known_ = std::move(with_releaser);
    }
}

void ThreadClock::fence_aliases() {
    auto all = std::make_shared<Vector>(*known_);
    (*all)[slot_] = count_++;
    aliased_ = std::move(all);
}

void ThreadClock::join(const std::vector<ThreadClock*>& clocks) {
    std::vector<const Vector*> known, aliased;
    for (const ThreadClock* clock : clocks) {
        known.push_back(clock->known_.get());
        aliased.push_back(clock->aliased_.get());
    }
    auto all_known = std::make_shared<Vector>(*known.front());
    raise_to_any(*all_known, known);
    SharedVector all_aliased = clocks.front()->aliased_;
    if (std::any_of(aliased.begin(), aliased.end(), [&](const Vector* a) {
            return a != aliased.front();
        })) {
        auto raised = std::make_shared<Vector>(*aliased.front());
        raise_to_any(*raised, aliased);
        all_aliased = std::move(raised);
    }
    for (const ThreadClock* clock : clocks) {
        (*all_known)[clock->slot_] = clock->count_;
    }
    for (ThreadClock* clock : clocks) {
        clock->known_ = all_known;
        clock->aliased_ = all_aliased;
        ++clock->count_;
    }
}

SharedVector ThreadClock::known_by_any(const std::vector<ThreadClock*>& clocks,
                                       const Vector& before) {
    auto all = std::make_shared<Vector>(before);
    std::vector<const Vector*> known;
    for (const ThreadClock* clock : clocks) {
        known.push_back(clock->known_.get());
    }
    raise_to_any(*all, known);
    for (const ThreadClock* clock : clocks) {
        (*all)[clock->slot_] = std::max((*all)[clock->slot_], clock->count_);
    }
    return all;
}

Conflict Shadow::add(
    size_t offset, size_t num_bytes, Record access, const ThreadClock& clock, Record& other) {
    const size_t end = offset + num_bytes;
    Conflict found = Conflict::kNone;
    while (offset < end && found == Conflict::kNone) {
        const size_t cell = offset / kCellBytes, first = offset % kCellBytes;
        const size_t count = std::min(kCellBytes - first, end - offset);
        access.bytes = static_cast<uint16_t>(((1u << count) - 1) << first);
        Piece& piece = pieces_[cell / kCellsPerPiece];
        if (piece.empty()) {
            piece.resize(kCellsPerPiece);
        }
        found = add_to_cell(piece[cell % kCellsPerPiece], access, clock, other);
        offset += count;
    }
    return found;
}

Conflict Shadow::against(const Record& old,
                         const Record& access,
                         const ThreadClock& clock,
                         Record& other) {
    if ((old.bytes & access.bytes) == 0 || (old.is_atomic && access.is_atomic)) {
        return Conflict::kNone;
    }
    Conflict found = Conflict::kNone;
    if (!clock.knows(old.slot, old.count)) {
        found = Conflict::kUnordered;
    } else if (old.is_multicast != access.is_multicast &&
               !clock.knows_across_aliases(old.slot, old.count)) {
        found = Conflict::kAliased;
    }
    if (found != Conflict::kNone) {
        other = old;
    }
    return found;
}

Conflict Shadow::add_to_cell(Cell& cell,
                             const Record& access,
                             const ThreadClock& clock,
                             Record& other) {
    for (const Record& old : cell.writes) {
        const Conflict conflict = against(old, access, clock, other);
        if (conflict != Conflict::kNone) {
            return conflict;
        }
    }
    if (access.access == Access::kRead) {
        cell.reads.push_back(access);
        if (cell.reads.size() >= cell.merge_at) {
            merge_reads(cell);
        }
        return Conflict::kNone;
    }
    for (const Record& old : cell.reads) {
        const Conflict conflict = against(old, access, clock, other);
        if (conflict != Conflict::kNone) {
            return conflict;
        }
    }
    // Who is ordered after this write is ordered after what it is ordered after.
    const auto drop_replaced = [&](std::vector<Record>& records) {
        for (Record& old : records) {
            if (clock.knows(old.slot, old.count) && old.is_multicast == access.is_multicast &&
                (old.is_atomic || !access.is_atomic)) {
                old.bytes &= static_cast<uint16_t>(~access.bytes);
            }
        }
        std::erase_if(records, [](const Record& old) { return old.bytes == 0; });
    };
    drop_replaced(cell.writes);
    drop_replaced(cell.reads);
    cell.writes.push_back(access);
    return Conflict::kNone;
}

// Of reads of the same bytes by one thread the last is enough.
void Shadow::merge_reads(Cell& cell) {
    const auto key = [](const Record& read) {
        return std::tuple(read.slot, read.bytes, read.is_atomic, read.is_multicast);
    };
    std::sort(cell.reads.begin(), cell.reads.end(), [&](const Record& a, const Record& b) {
        return key(a) != key(b) ? key(a) < key(b) : a.count > b.count;
    });
    const auto end =
        std::unique(cell.reads.begin(), cell.reads.end(), [&](const Record& a, const Record& b) {
            return key(a) == key(b);
        });
    cell.reads.erase(end, cell.reads.end());
    cell.merge_at = std::max<size_t>(8, 2 * cell.reads.size());
}

}  // namespace token::emulator
