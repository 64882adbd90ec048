// Streams, threads and time. Barriers are in meetings.cpp, memory in accesses.cpp, messages in
// messages.cpp.
#include "machine.hpp"

#include "static_shared.hpp"

#include <algorithm>

namespace token::emulator {
namespace {

// The hooks that the compiler puts before memory accesses take no argument of ours.
Machine* running_machine = nullptr;

constexpr uint64_t kStepNs = 2;
// A thread's own sleep; what is longer is a delay of the test's.
constexpr uint64_t kShortSleepNs = 1'000'000;
constexpr uint64_t kFirstIdleNs = 1'000, kLongestIdleNs = 50'000'000;
// With nobody able to run but those who poll: so often they look again before it is a deadlock.
constexpr uint32_t kIdleRoundsLimit = 20'000;

}  // namespace

Machine::Machine(int num_ranks, const Schedule& schedule) : schedule_(schedule) {
    for (int rank = 0; rank < num_ranks; ++rank) {
        streams_.push_back(std::make_unique<Stream>());
        streams_.back()->rank = rank;
        handles_.push_back({this, rank});
    }
    ready_ = std::make_unique<RunQueue>(schedule_, static_cast<uint32_t>(num_ranks));
}

Machine::~Machine() = default;

Machine* Machine::running() {
    return running_machine;
}

void Machine::queue(int rank,
                    const LaunchShape& shape,
                    const char* name,
                    std::function<void()> body) {
    Stream& stream = *streams_.at(rank);
    auto launch = std::make_unique<Launch>();
    launch->stream = &stream;
    launch->id = static_cast<uint32_t>(names_.size());
    launch->grid = shape.grid;
    launch->block = shape.block;
    launch->shared_bytes = shape.shared_bytes;
    launch->body = std::move(body);
    stream.num_slots = std::max(stream.num_slots, shape.grid.count() * shape.block.count());
    names_.push_back({name, rank, stream.num_queued++, 0, shape.grid, shape.block});
    stream.launches.push_back(std::move(launch));
}

void Machine::run() {
    uint32_t num_slots = 0;
    for (auto& stream : streams_) {
        stream->first_slot = num_slots;
        num_slots += stream->num_slots;
    }
    for (LaunchName& name : names_) {
        name.first_slot = streams_[name.rank]->first_slot;
    }
    // All that earlier runs did is ordered before this one.
    memory_.forget_accesses();
    released_.clear();
    slot_counts_.assign(num_slots, 0);
    const auto nothing = std::make_shared<Vector>(num_slots, 0u);
    running_machine = this;
    static_shared_ = static_shared();
    for (auto& stream : streams_) {
        stream->known = nothing;
        start_next(*stream);
    }
    if (!ready_->is_empty()) {
        current_ = ready_->take();
        const auto& first = current_->block->static_shared;
        std::copy(first.begin(), first.end(), static_shared_.begin());
        host_.switch_to(current_->fiber);
    }
    running_machine = nullptr;
    current_ = nullptr;
    ended_.clear();
    if (exception_ != nullptr) {
        std::rethrow_exception(exception_);
    }
    if (has_failed_) {
        throw EmulationError(failure_kind_, failure_);
    }
    const std::string damaged = memory_.damaged_canary();
    if (!damaged.empty()) {
        throw EmulationError(EmulationError::Kind::kCanary, "written beyond a buffer: " + damaged);
    }
}

// Starts launches of a stream until one has threads.
void Machine::start_next(Stream& stream) {
    if (stream.launches.empty()) {
        return;
    }
    stream.running = std::move(stream.launches.front());
    stream.launches.pop_front();
    Launch& launch = *stream.running;
    const Dim grid = launch.grid, shape = launch.block;
    uint32_t slot = stream.first_slot;
    for (uint32_t block_index = 0; block_index < grid.count(); ++block_index) {
        auto block = std::make_unique<Block>();
        block->launch = &launch;
        block->index = {
            block_index % grid.x, block_index / grid.x % grid.y, block_index / grid.x / grid.y};
        block->num_alive = static_cast<int>(shape.count());
        block->meetings.resize((shape.count() + kWarpSize - 1) / kWarpSize);
        block->shared.resize((launch.shared_bytes + 15) / 16);
        block->shared_shadow = Shadow(launch.shared_bytes);
        block->static_shared.assign(static_shared_.size(), std::byte{0xff});
        block->static_shadow = Shadow(static_shared_.size());
        for (uint32_t index = 0; index < shape.count(); ++index, ++slot) {
            auto thread = std::make_unique<Thread>();
            thread->block = block.get();
            thread->index = static_cast<int>(index);
            thread->position = {
                index % shape.x, index / shape.x % shape.y, index / shape.x / shape.y};
            thread->clock = ThreadClock(stream.known, slot, ++slot_counts_[slot]);
            thread->stack = stacks_.take();
            thread->fiber.prepare(thread->stack, thread_main, thread.get());
            ready_->add(*thread);
            block->threads.push_back(std::move(thread));
        }
        launch.num_alive += block->num_alive;
        launch.blocks.push_back(std::move(block));
    }
}

void Machine::thread_main(void* argument) {
    Machine& machine = *running_machine;
    try {
        static_cast<Thread*>(argument)->block->launch->body();
    } catch (...) {
        machine.exception_ = std::current_exception();
        machine.fail(EmulationError::Kind::kTrap, "an exception");
    }
    machine.end_thread();
}

void Machine::end_thread() {
    Block& block = *current_->block;
    Launch& launch = *block.launch;
    Stream& stream = *launch.stream;
    num_idle_rounds_ = 0;
    slot_counts_[current_->clock.slot()] = current_->clock.count();
    --block.num_alive;
    // __syncthreads waits for the threads that have not ended.
    BlockBarrier& all = block.barriers[0];
    if (!all.arrived.empty() && static_cast<int>(all.arrived.size()) >= block.num_alive) {
        complete(all);
    }
    if (--launch.num_alive == 0) {
        std::vector<ThreadClock*> clocks;
        for (auto& each : launch.blocks) {
            for (auto& thread : each->threads) {
                clocks.push_back(&thread->clock);
            }
        }
        stream.known = ThreadClock::known_by_any(clocks, *stream.known);
        // Not the launch that ends now: this is one of its stacks.
        for (auto& earlier : ended_) {
            for (auto& each : earlier->blocks) {
                for (auto& thread : each->threads) {
                    stacks_.give_back(thread->stack);
                }
            }
        }
        ended_.clear();
        ended_.push_back(std::move(stream.running));
        start_next(stream);
    }
    go_on();
    __builtin_unreachable();
}

void Machine::fail(EmulationError::Kind kind, const std::string& message) {
    has_failed_ = true;
    failure_kind_ = kind;
    failure_ = message;
    current_->fiber.switch_to(host_);
    __builtin_unreachable();
}

void Machine::scheduling_point() {
    now_ns_ += kStepNs;
    ++num_steps_;
    if (ready_->is_switch_due()) {
        ready_->add(*current_);
        go_on();
    }
}

void Machine::park(Wait wait, const void* from) {
    current_->wait = wait;
    current_->waits_at = from;
    go_on();
}

void Machine::wake(Thread& thread) {
    thread.wait = Wait::kNothing;
    ready_->add(thread);
}

// Leaves the thread that runs, in whatever state it is, for the next one.
void Machine::go_on() {
    Thread* before = current_;
    if (!before->fiber.is_intact()) {
        fail(EmulationError::Kind::kStack, describe(*before) + ": its stack overflowed");
    }
    while (ready_->is_empty()) {
        const bool is_all_ended = std::all_of(
            streams_.begin(), streams_.end(), [](const auto& s) { return s->running == nullptr; });
        if (is_all_ended) {
            before->fiber.switch_to(host_);
        }
        let_time_pass();
    }
    Thread& next = *ready_->take();
    if (&next != before) {
        switch_to(next);
    }
}

void Machine::switch_to(Thread& next) {
    Thread& before = *current_;
    if (next.block != before.block && !static_shared_.empty()) {
        std::copy(
            static_shared_.begin(), static_shared_.end(), before.block->static_shared.begin());
        const auto& own = next.block->static_shared;
        std::copy(own.begin(), own.end(), static_shared_.begin());
    }
    current_ = &next;
    before.fiber.switch_to(next.fiber);
}

// Nobody can run but those who wait for time or look again at what they looked at before.
void Machine::let_time_pass() {
    if (pollers_.empty() && sleepers_.empty()) {
        fail(EmulationError::Kind::kDeadlock, deadlock_message());
    }
    if (++num_idle_rounds_ > kIdleRoundsLimit) {
        fail(EmulationError::Kind::kDeadlock, deadlock_message());
    }
    const uint64_t idle_ns =
        std::min(kLongestIdleNs, kFirstIdleNs << std::min(num_idle_rounds_, 20u));
    const uint64_t then_ns = now_ns_ + idle_ns;
    bool is_somebody_else = !pollers_.empty();
    uint64_t earliest_ns = UINT64_MAX;
    for (const Thread* sleeper : sleepers_) {
        earliest_ns = std::min(earliest_ns, sleeper->until_ns);
        is_somebody_else |= sleeper->is_short_sleep;
    }
    now_ns_ = is_somebody_else ? std::min(then_ns, std::max(earliest_ns, now_ns_)) : earliest_ns;
    std::vector<Thread*> asleep;
    asleep.swap(sleepers_);
    for (Thread* sleeper : asleep) {
        // A thread may sleep longer than it asked for, never less.
        if (sleeper->is_short_sleep) {
            now_ns_ = std::max(now_ns_, sleeper->until_ns);
        }
    }
    for (Thread* sleeper : asleep) {
        if (sleeper->until_ns <= now_ns_) {
            wake(*sleeper);
        } else {
            sleepers_.push_back(sleeper);
        }
    }
    std::vector<Thread*> polling;
    polling.swap(pollers_);
    for (Thread* poller : polling) {
        wake(*poller);
    }
}

void Machine::sleep(uint64_t duration_ns) {
    current_->until_ns = now_ns_ + duration_ns;
    current_->is_short_sleep = duration_ns <= kShortSleepNs;
    sleepers_.push_back(current_);
    park(Wait::kSleep, __builtin_return_address(0));
}

}  // namespace token::emulator
