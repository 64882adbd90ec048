#include "schedule.hpp"

#include "execution.hpp"

namespace token::emulator {

Schedule Schedule::of_seed(uint64_t seed) {
    constexpr Starve kKinds[] = {
        Starve::kNobody, Starve::kThreads, Starve::kRank, Starve::kWarps, Starve::kBlocks};
    constexpr uint32_t kRates[] = {1, 8, 64};
    Schedule schedule;
    schedule.seed = seed * 0x2545f4914f6cdd1du + 1;
    schedule.starve = kKinds[seed % 5];
    schedule.switch_one_in = kRates[seed / 5 % 3];
    return schedule;
}

RunQueue::RunQueue(const Schedule& schedule, uint32_t num_ranks)
    : schedule_(schedule), num_ranks_(num_ranks), random_(schedule.seed) {
    choose_victims();
}

void RunQueue::add(Thread& thread) {
    (is_starved(thread) ? starved_ : favoured_).push_back(&thread);
}

Thread* RunQueue::take() {
    auto& queue = favoured_.empty() ? starved_ : favoured_;
    const uint32_t index = random_.below(static_cast<uint32_t>(queue.size()));
    Thread* thread = queue[index];
    queue[index] = queue.back();
    queue.pop_back();
    return thread;
}

bool RunQueue::is_switch_due() {
    if (++steps_ >= schedule_.steps_until_others_starve) {
        steps_ = 0;
        choose_victims();
        std::vector<Thread*> all;
        all.swap(starved_);
        all.insert(all.end(), favoured_.begin(), favoured_.end());
        favoured_.clear();
        for (Thread* thread : all) {
            add(*thread);
        }
        return true;
    }
    return schedule_.switch_one_in <= 1 || random_.chance(schedule_.switch_one_in);
}

void RunQueue::choose_victims() {
    victims_ = random_.next();
}

bool RunQueue::is_starved(const Thread& thread) const {
    const auto coin = [&](uint64_t index) { return (Random(victims_ ^ index).next() & 1) != 0; };
    const Launch& launch = *thread.block->launch;
    switch (schedule_.starve) {
        case Starve::kNobody:
            return false;
        case Starve::kThreads:
            return coin(thread.clock.slot());
        case Starve::kWarps:
            return coin(thread.clock.slot() / kWarpSize);
        case Starve::kBlocks:
            return coin(uint64_t{thread.clock.slot()} - static_cast<uint64_t>(thread.index));
        case Starve::kRank:
            // With virtual ranks a rank is a row of the grid.
            return launch.stream->rank + thread.block->index.y == victims_ % num_ranks_;
    }
    return false;
}

}  // namespace token::emulator
