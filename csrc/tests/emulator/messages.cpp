// What the emulator says: who, where, and who waits for what.
#include "machine.hpp"
#include "source_line.hpp"

#include <map>
#include <sstream>

namespace token::emulator {
namespace {

std::ostream& operator<<(std::ostream& text, const Dim& dim) {
    return text << "(" << dim.x << ", " << dim.y << ")";
}

const char* verb(const Record& record) {
    if (record.access == Access::kRead) {
        return record.is_atomic ? "looks at the word" : record.is_multicast ? "reduces" : "reads";
    }
    return record.is_atomic ? "signals" : record.is_multicast ? "multicasts" : "writes";
}

}  // namespace

std::string Machine::describe(uint32_t launch, uint32_t slot) const {
    const LaunchName& name = names_[launch];
    const uint32_t index = slot - name.first_slot, num_threads = name.block.count();
    const uint32_t block = index / num_threads;
    std::ostringstream text;
    text << "rank " << name.rank << ", " << name.name << " " << name.number << ", block "
         << Dim{block % name.grid.x, block / name.grid.x, 0} << ", thread " << index % num_threads;
    return text.str();
}

std::string Machine::describe(const Thread& thread) const {
    return describe(thread.block->launch->id, thread.clock.slot());
}

std::string Machine::place_of(const void* from) const {
    std::ostringstream text;
    if (names_lines_) {
        return source_line(from);
    }
    text << from;
    return text.str();
}

std::string Machine::race_message(const Record& now,
                                  const Record& other,
                                  Conflict conflict,
                                  const std::string& place) const {
    std::ostringstream text;
    text << place << ": " << describe(now.launch, now.slot) << " " << verb(now) << " (at "
         << place_of(now.from) << ") what " << describe(other.launch, other.slot) << " "
         << verb(other) << " (at " << place_of(other.from) << "), "
         << (conflict == Conflict::kAliased
                 ? "through two addresses of it without fence.proxy.alias in between"
                 : "and nothing orders the two");
    return text.str();
}

std::string Machine::deadlock_message() const {
    // Threads of a block that wait for the same thing are one line.
    std::map<std::string, std::string> lines;
    std::map<std::string, int> counts;
    for (const auto& stream : streams_) {
        if (stream->running == nullptr) {
            continue;
        }
        for (const auto& block : stream->running->blocks) {
            for (const auto& thread : block->threads) {
                std::ostringstream what;
                switch (thread->wait) {
                    case Wait::kNothing:
                        continue;
                    case Wait::kBarrier: {
                        const BlockBarrier& barrier = block->barriers[thread->barrier];
                        what << "at barrier " << thread->barrier << ", where "
                             << barrier.arrived.size() << " of "
                             << (barrier.asked_for == 0 ? block->num_alive : barrier.asked_for)
                             << " threads are";
                        break;
                    }
                    case Wait::kWarp:
                        what << "for the other lanes of mask 0x" << std::hex << thread->meeting_mask
                             << std::dec << " in warp " << thread->index / kWarpSize;
                        break;
                    case Wait::kWord:
                    case Wait::kSleep:
                        what << (thread->wait == Wait::kSleep ? "asleep" : "for news");
                        break;
                }
                if (thread->wait == Wait::kWord || thread->wait == Wait::kSleep) {
                    for (const Look& look : thread->looks) {
                        what << ", last saw " << look.value << " in "
                             << memory_.describe(look.word);
                    }
                }
                const LaunchName& name = names_[stream->running->id];
                std::ostringstream key;
                key << "rank " << stream->rank << ", " << name.name << " " << name.number
                    << ", block " << block->index << " waits " << what.str() << " (at "
                    << place_of(thread->waits_at) << ")";
                if (++counts[key.str()] == 1) {
                    lines[key.str()] = std::to_string(thread->index);
                }
            }
        }
    }
    std::ostringstream text;
    text << "nobody can go on, at " << now_ns_ << " ns:";
    for (const auto& [key, first] : lines) {
        text << "\n  " << key << ": " << counts[key] << " threads, the first is " << first;
    }
    return text.str();
}

}  // namespace token::emulator
