// Epoch barrier, mailbox and the group's failure rules, on threads.
#include "ring_of_words.hpp"
#include "thread_ranks.hpp"

#include <string>

namespace {

using namespace token;
using namespace token::testing;
using comm::HostGroup;
using comm::HostMemory;

void epochs_wrap_around() {
    EXPECT(comm::has_reached(3, 0xfffffffeu));
    EXPECT(!comm::has_reached(0xfffffffeu, 3));
    exchange_slices<HostMemory>(3, 0xffffffffu - 4, 20);
}

// Messages of every size up to the slot's, through fewer slots than messages, the receiver behind.
void mailbox_keeps_order_and_content() {
    constexpr uint32_t kSlots = 3;
    constexpr uint64_t kSlotBytes = 256;
    constexpr int kMessages = 500;
    comm::SignalLine published{}, consumed{};
    alignas(128) static unsigned char slots[kSlots * kSlotBytes];
    const comm::MailboxMemory memory{&published, &consumed, slots, kSlots, kSlotBytes};
    NoMonitor monitor;
    std::thread sender([&] {
        comm::HostWaiter waiter(0, 20, std::chrono::seconds(30), &monitor);
        comm::MailboxSender<HostMemory> mailbox(memory);
        for (int message = 0; message < kMessages; ++message) {
            unsigned char* payload = mailbox.begin(waiter, 1);
            const uint64_t size = message % (mailbox.capacity_bytes() + 1);
            std::memset(payload, message & 0xff, size);
            mailbox.publish(size, message);
        }
    });
    comm::HostWaiter waiter(0, 20, std::chrono::seconds(30), &monitor);
    comm::MailboxReceiver<HostMemory> mailbox(memory);
    for (int message = 0; message < kMessages; ++message) {
        const comm::Message received = mailbox.begin(waiter, 0);
        EXPECT_EQ(received.tag, static_cast<uint64_t>(message));
        EXPECT_EQ(received.num_bytes, message % (kSlotBytes - sizeof(comm::SlotHeader) + 1));
        dawdle(message % 7);
        for (uint64_t byte = 0; byte < received.num_bytes; ++byte) {
            EXPECT_EQ(received.payload[byte], message & 0xff);
        }
        mailbox.release();
    }
    sender.join();
}

void a_delayed_rank_holds_the_others() {
    ThreadRanks ranks({.size = 4, .base_epoch = 0});
    std::atomic<int> arrived{0};
    ranks.run([&](HostGroup& group) {
        for (int round = 0; round < 50; ++round) {
            if (group.rank() == round % 4) {
                dawdle(300);
            }
            ++arrived;
            group.barrier();
            EXPECT(arrived >= 4 * (round + 1));
        }
    });
}

// All ranks see a mismatch, and the next equal call works.
void a_mismatch_is_seen_everywhere_and_forgotten() {
    ThreadRanks ranks({.size = 3});
    ranks.run([&](HostGroup& group) {
        for (int round = 0; round < 5; ++round) {
            comm::CallRecord call;
            call.operation = static_cast<uint32_t>(comm::Operation::kAllReduce);
            call.rows = group.rank() == 1 ? 8 : 7;
            EXPECT_THROWS(
                {
                    HostGroup::Turn turn(group, call);
                    turn.begin();
                },
                CallMismatch);
            EXPECT(!group.verdict().has_value());
            group.barrier();
        }
    });
}

// A rank that does not come is named by all that did, and finds the same error when it comes late.
void a_silent_rank_is_a_timeout_for_all() {
    ThreadRanks ranks({.size = 3, .timeout_s = 0.3});
    std::atomic<int> gave_up{0};
    ranks.run([&](HostGroup& group) {
        group.barrier();
        while (group.rank() == 2 && gave_up < 2) {
            std::this_thread::yield();
        }
        try {
            group.barrier();
            EXPECT_EQ(std::string("returned"), "threw");
        } catch (const CommTimeout& error) {
            EXPECT_EQ(error.context.peer_rank, 2);
            EXPECT_EQ(error.context.operation, "barrier");
            EXPECT_EQ(error.context.epoch, 2u);
            ++gave_up;
        }
        EXPECT_THROWS(group.barrier(), CommTimeout);
    });
}

// An exception inside a collective breaks the group for the peers, who would wait for nothing.
void an_exception_inside_a_collective_reaches_the_peers() {
    ThreadRanks ranks({.size = 2});
    ranks.run([&](HostGroup& group) {
        comm::CallRecord call;
        const auto collective = [&] {
            HostGroup::Turn turn(group, call);
            turn.begin();
            if (group.rank() == 0) {
                throw SystemFailure("seeded");
            }
            turn.sync();
        };
        if (group.rank() == 0) {
            EXPECT_THROWS(collective(), SystemFailure);
        } else {
            EXPECT_THROWS(collective(), PeerLost);
        }
        EXPECT_THROWS(group.barrier(), PeerLost);
    });
}

}  // namespace

int main() {
    exchange_slices<HostMemory>(2, 0, 2000);
    exchange_slices<HostMemory>(4, 0, 200);
    epochs_wrap_around();
    mailbox_keeps_order_and_content();
    a_delayed_rank_holds_the_others();
    a_mismatch_is_seen_everywhere_and_forgotten();
    a_silent_rank_is_a_timeout_for_all();
    an_exception_inside_a_collective_reaches_the_peers();
    return finish("protocol");
}
