// Memory as kernels see it. Every access is a scheduling point, is checked against the buffers and
// against the accesses it is not ordered after, and only then made, by the caller.
#include "machine.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <sstream>

namespace token::emulator {
namespace {

uint64_t value_at(const void* at, size_t num_bytes) {
    uint64_t value = 0;
    std::memcpy(&value, at, num_bytes);
    return value;
}

}  // namespace

Buffer& Machine::buffer_at(const void* at, size_t num_bytes) {
    Buffer* buffer = memory_.find(at, num_bytes);
    const bool is_aligned = reinterpret_cast<uintptr_t>(at) % num_bytes == 0;
    if (buffer == nullptr || !is_aligned) {
        std::ostringstream text;
        text << describe(*current_) << ": " << num_bytes << " bytes at " << memory_.describe(at)
             << (buffer == nullptr ? ", outside the buffer" : ", not aligned to their number");
        fail(EmulationError::Kind::kAddress, text.str());
    }
    return *buffer;
}

void Machine::record(
    Shadow& shadow, size_t offset, size_t num_bytes, Record access, const void* at) {
    access.slot = current_->clock.slot();
    access.count = current_->clock.count();
    access.launch = current_->block->launch->id;
    if (access.access == Access::kWrite) {
        num_idle_rounds_ = 0;
    }
    Record other;
    const Conflict conflict = shadow.add(offset, num_bytes, access, current_->clock, other);
    if (conflict != Conflict::kNone) {
        const bool is_buffer = memory_.is_device_address(at);
        std::ostringstream place;
        if (is_buffer) {
            place << memory_.describe(at);
        } else {
            place << "shared memory + 0x" << std::hex << offset;
        }
        fail(conflict == Conflict::kAliased ? EmulationError::Kind::kAlias
                                            : EmulationError::Kind::kRace,
             race_message(access, other, conflict, place.str()));
    }
}

void Machine::data_access(const void* at, size_t num_bytes, Access access, const void* from) {
    scheduling_point();
    Buffer& buffer = buffer_at(at, num_bytes);
    record(buffer.shadow(),
           static_cast<const std::byte*>(at) - buffer.data(),
           num_bytes,
           {.from = from, .access = access},
           at);
}

void Machine::plain_access(const void* at, size_t num_bytes, Access access, const void* from) {
    Block& block = *current_->block;
    const auto* shared = reinterpret_cast<const std::byte*>(block.shared.data());
    const auto* address = static_cast<const std::byte*>(at);
    if (address >= shared && address < shared + block.shared.size() * sizeof(SharedBytes)) {
        scheduling_point();
        if (address + num_bytes > shared + block.launch->shared_bytes) {
            fail(EmulationError::Kind::kAddress,
                 describe(*current_) + ": beyond the shared memory of its launch");
        }
        record(
            block.shared_shadow, address - shared, num_bytes, {.from = from, .access = access}, at);
    } else if (address >= static_shared_.data() &&
               address < static_shared_.data() + static_shared_.size()) {
        scheduling_point();
        record(block.static_shadow,
               address - static_shared_.data(),
               num_bytes,
               {.from = from, .access = access},
               at);
    } else if (memory_.is_device_address(at)) {
        data_access(at, num_bytes, access, from);
    } else if (memory_.is_multicast_address(at)) {
        fail(EmulationError::Kind::kAddress,
             describe(*current_) + ": an ordinary access to " + memory_.describe(at));
    }
}

void Machine::multicast_access(const void* at,
                               size_t num_bytes,
                               Access access,
                               const void* from,
                               const std::function<void(std::byte*)>& visit) {
    const SymmetricBuffer* all = memory_.find_multicast(at, num_bytes);
    if (all == nullptr) {
        fail(EmulationError::Kind::kAddress,
             describe(*current_) + ": no multicast address: " + memory_.describe(at));
    }
    const size_t offset = static_cast<const std::byte*>(at) - all->multicast;
    std::vector<int> order(all->of_rank.size());
    std::iota(order.begin(), order.end(), 0);
    for (size_t left = order.size(); left > 1; --left) {
        std::swap(order[left - 1], order[ready_->random().below(static_cast<uint32_t>(left))]);
    }
    for (const int rank : order) {
        scheduling_point();
        std::byte* place = all->of_rank[rank]->data() + offset;
        Buffer& buffer = buffer_at(place, num_bytes);
        record(buffer.shadow(),
               offset,
               num_bytes,
               {.from = from, .access = access, .is_multicast = true},
               place);
        visit(place);
    }
}

void Machine::record_word(Buffer& buffer,
                          const void* at,
                          size_t num_bytes,
                          Access access,
                          bool is_multicast,
                          const void* from) {
    record(buffer.shadow(),
           static_cast<const std::byte*>(at) - buffer.data(),
           num_bytes,
           {.from = from, .access = access, .is_atomic = true, .is_multicast = is_multicast},
           at);
}

uint64_t Machine::load_word(const void* at, size_t num_bytes, bool is_acquire, const void* from) {
    scheduling_point();
    Buffer& buffer = buffer_at(at, num_bytes);
    const auto* word = static_cast<const std::byte*>(at);
    auto& looks = current_->looks;
    const auto before = std::find_if(looks.begin(), looks.end(), [&](const Look& look) {
        return look.word == word && look.from == from;
    });
    if (before != looks.end() && before->value == value_at(at, num_bytes)) {
        pollers_.push_back(current_);
        park(Wait::kWord, from);
        looks.clear();
    } else if (before != looks.end()) {
        looks.clear();
    }
    const uint64_t value = value_at(at, num_bytes);
    looks.push_back({word, from, value});
    record_word(buffer, at, num_bytes, Access::kRead, false, from);
    const auto released = released_.find(at);
    if (released != released_.end()) {
        for (const Stamp& stamp : released->second) {
            if (is_acquire && !faults_.acquire_is_relaxed) {
                current_->clock.acquire(stamp);
            } else {
                current_->seen_relaxed.push_back(stamp);
            }
        }
    }
    return value;
}

std::vector<Stamp> Machine::released_by_current(bool is_release) {
    if (is_release && !faults_.release_is_relaxed) {
        return {current_->clock.release()};
    }
    return current_->fenced.known == nullptr ? std::vector<Stamp>{}
                                             : std::vector<Stamp>{current_->fenced};
}

void Machine::write_word(std::byte* at,
                         uint64_t value,
                         size_t num_bytes,
                         const std::vector<Stamp>& released) {
    released_[at] = released;
    std::memcpy(at, &value, num_bytes);
    const auto watches = [&](const Thread* poller) {
        return std::any_of(poller->looks.begin(), poller->looks.end(), [&](const Look& look) {
            return look.word >= at && look.word < at + num_bytes;
        });
    };
    const auto first_woken = std::stable_partition(
        pollers_.begin(), pollers_.end(), [&](const Thread* poller) { return !watches(poller); });
    const std::vector<Thread*> woken(first_woken, pollers_.end());
    pollers_.erase(first_woken, pollers_.end());
    for (Thread* poller : woken) {
        wake(*poller);
    }
}

void Machine::store_word(
    void* at, uint64_t value, size_t num_bytes, bool is_release, const void* from) {
    scheduling_point();
    Buffer& buffer = buffer_at(at, num_bytes);
    record_word(buffer, at, num_bytes, Access::kWrite, false, from);
    write_word(static_cast<std::byte*>(at), value, num_bytes, released_by_current(is_release));
}

void Machine::multicast_store_word(void* at, uint32_t value, bool is_release, const void* from) {
    const std::vector<Stamp> released = released_by_current(is_release);
    const SymmetricBuffer* all = memory_.find_multicast(at, sizeof(value));
    if (all == nullptr) {
        fail(EmulationError::Kind::kAddress,
             describe(*current_) + ": no multicast address: " + memory_.describe(at));
    }
    const size_t offset = static_cast<std::byte*>(at) - all->multicast;
    const size_t first = ready_->random().below(static_cast<uint32_t>(all->of_rank.size()));
    for (size_t step = 0; step < all->of_rank.size(); ++step) {
        scheduling_point();
        std::byte* place = all->of_rank[(first + step) % all->of_rank.size()]->data() + offset;
        record_word(
            buffer_at(place, sizeof(value)), place, sizeof(value), Access::kWrite, true, from);
        write_word(place, value, sizeof(value), released);
    }
}

uint32_t Machine::exchange_word(void* at, uint32_t value, const void* from) {
    scheduling_point();
    Buffer& buffer = buffer_at(at, sizeof(value));
    record_word(buffer, at, sizeof(value), Access::kWrite, false, from);
    const auto before = static_cast<uint32_t>(value_at(at, sizeof(value)));
    // A release sequence goes on through an exchange: what was released before stays released.
    std::vector<Stamp> released = released_[at];
    for (const Stamp& stamp : released_by_current(false)) {
        released.push_back(stamp);
    }
    write_word(static_cast<std::byte*>(at), value, sizeof(value), released);
    return before;
}

void Machine::fence_acq_rel() {
    scheduling_point();
    for (const Stamp& stamp : current_->seen_relaxed) {
        current_->clock.acquire(stamp);
    }
    current_->seen_relaxed.clear();
    if (!faults_.release_is_relaxed) {
        current_->fenced = current_->clock.release();
    }
}

void Machine::fence_aliases() {
    scheduling_point();
    if (!faults_.alias_fence_is_skipped) {
        current_->clock.fence_aliases();
    }
}

}  // namespace token::emulator
