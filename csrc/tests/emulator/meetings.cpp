// Where threads of a block meet: barriers, and the instructions in which lanes of a warp meet.
#include "machine.hpp"

#include <algorithm>
#include <sstream>

namespace token::emulator {

void Machine::block_barrier(int id, int num_threads, const void* from) {
    Block& block = *current_->block;
    if (id == faults_.skipped_barrier) {
        scheduling_point();
        return;
    }
    if (id < 0 || id >= Block::kNumBarriers || num_threads % kWarpSize != 0) {
        std::ostringstream text;
        text << describe(*current_) << ": barrier " << id << " of " << num_threads
             << " threads: ids are 0 to 15, threads a multiple of 32";
        fail(EmulationError::Kind::kBarrier, text.str());
    }
    BlockBarrier& barrier = block.barriers[id];
    // 0 threads: all of the block that have not ended.
    const int expected = num_threads == 0 ? block.num_alive : num_threads;
    if (!barrier.arrived.empty() && num_threads != barrier.asked_for) {
        std::ostringstream text;
        text << describe(*current_) << ": barrier " << id << " of " << num_threads
             << " threads, where " << describe(*barrier.arrived.front()) << " asked for "
             << barrier.asked_for;
        fail(EmulationError::Kind::kBarrier, text.str());
    }
    barrier.asked_for = num_threads;
    barrier.arrived.push_back(current_);
    current_->wait = Wait::kBarrier;
    current_->barrier = id;
    if (static_cast<int>(barrier.arrived.size()) >= expected) {
        complete(barrier);
        go_on();
    } else {
        park(Wait::kBarrier, from);
    }
}

void Machine::complete(BlockBarrier& barrier) {
    num_idle_rounds_ = 0;
    std::vector<ThreadClock*> clocks;
    for (Thread* thread : barrier.arrived) {
        clocks.push_back(&thread->clock);
    }
    ThreadClock::join(clocks);
    std::vector<Thread*> arrived;
    arrived.swap(barrier.arrived);
    for (Thread* thread : arrived) {
        wake(*thread);
    }
}

uint64_t Machine::warp_meeting(
    uint32_t mask, uint64_t value, int source_lane, bool is_ordering, const void* from) {
    if (is_ordering && faults_.warp_sync_is_skipped) {
        scheduling_point();
        return 0;
    }
    Block& block = *current_->block;
    const int warp = current_->index / kWarpSize, lane = current_->index % kWarpSize;
    const int num_lanes =
        std::min(kWarpSize, static_cast<int>(block.threads.size()) - warp * kWarpSize);
    const bool has_all_lanes = num_lanes == kWarpSize || mask >> num_lanes == 0;
    if ((mask >> lane & 1) == 0 || !has_all_lanes) {
        std::ostringstream text;
        text << describe(*current_) << ": mask 0x" << std::hex << mask << std::dec
             << " in a warp of " << num_lanes << " threads, called by lane " << lane;
        fail(EmulationError::Kind::kBarrier, text.str());
    }
    auto& meetings = block.meetings[warp];
    auto found = std::find_if(meetings.begin(), meetings.end(), [&](const WarpMeeting& each) {
        return each.mask == mask;
    });
    if (found == meetings.end()) {
        meetings.emplace_back();
        found = meetings.end() - 1;
        found->mask = mask;
    }
    WarpMeeting& meeting = *found;
    meeting.values[lane] = value;
    meeting.arrived |= 1u << lane;
    current_->meeting_mask = mask;
    if (meeting.arrived != mask) {
        park(Wait::kWarp, from);
    } else {
        num_idle_rounds_ = 0;
        // The results stay until all lanes meet again, which they do only after taking them.
        std::copy(std::begin(meeting.values), std::end(meeting.values), meeting.result);
        meeting.arrived = 0;
        std::vector<ThreadClock*> clocks;
        for (int each = 0; each < num_lanes; ++each) {
            if ((mask >> each & 1) != 0) {
                Thread& thread = *block.threads[warp * kWarpSize + each];
                clocks.push_back(&thread.clock);
                wake(thread);
            }
        }
        if (is_ordering) {
            ThreadClock::join(clocks);
        }
        go_on();
    }
    return (mask >> source_lane & 1) != 0 ? meeting.result[source_lane] : value;
}

}  // namespace token::emulator
