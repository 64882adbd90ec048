// Messages by copy engines over streams in software: order, credits, refusals. What goes wrong
// between ranks: test_copy_engine_failures.cpp.
#include "copy_engine_wiring.hpp"
#include "expect.hpp"
#include "token/common/errors.hpp"

#include <memory>
#include <numeric>
#include <thread>
#include <vector>

namespace {

using namespace token;
using namespace token::fabric;
using namespace token::testing;

int64_t message_bytes(int from, int to, uint32_t number) {
    return (number * 977 + from * 131 + to * 17) % (kSlotBytes + 1);
}
unsigned char content(int from, int to, uint32_t number) {
    return static_cast<unsigned char>(1 + (from * 7 + to * 3 + number) % 250);
}

// One rank: sends `count` messages to every peer and receives as many, through two slots each way.
// Returns how many arrived with another content than was sent.
int exchange(CopyEngine& engine, Wiring& wiring, int rank, uint32_t count) {
    std::vector<int> peers;
    for (int distance = 1; distance < wiring.size; ++distance) {
        peers.push_back((rank + distance) % wiring.size);
    }
    std::vector<std::vector<unsigned char>> sources, results;
    std::vector<std::unique_ptr<SoftwareStream>> out;
    SoftwareStream in;
    for (size_t i = 0; i < peers.size(); ++i) {
        out.push_back(std::make_unique<SoftwareStream>());
        for (int slot = 0; slot < kSlots; ++slot) {
            engine.grant(peers[i], &in);
        }
    }
    sources.reserve(count * peers.size());
    results.reserve(count * peers.size());
    for (uint32_t number = 1; number <= count; ++number) {
        for (size_t i = 0; i < peers.size(); ++i) {
            const int peer = peers[i];
            sources.emplace_back(kSlotBytes, content(rank, peer, number));
            // In two pieces, one of which may be empty.
            const int64_t whole = message_bytes(rank, peer, number), half = whole / 2;
            const DeviceAddress to = device_address(wiring.slot(rank, peer, number));
            const DeviceAddress from = device_address(sources.back().data());
            const uint32_t sent =
                engine.send(peer,
                            {{to, from, half}, {to + half, from + half, whole - half}},
                            out[i].get(),
                            "a message");
            EXPECT_EQ(sent, number);
            const int64_t size = message_bytes(peer, rank, number);
            const DeviceAddress into = device_address(wiring.slot(peer, rank, number));
            engine.await(peer, number, into, size, &in, "a message");
            results.emplace_back(kSlotBytes, 0);
            software_copy(
                device_address(results.back().data()), into, static_cast<size_t>(size), &in);
            engine.grant(peer, &in);
        }
    }
    in.drain();
    out.clear();  // drains
    int num_wrong = 0;
    for (size_t index = 0; index < results.size(); ++index) {
        const int peer = peers[index % peers.size()];
        const auto number = static_cast<uint32_t>(1 + index / peers.size());
        for (int64_t at = 0; at < message_bytes(peer, rank, number); ++at) {
            if (results[index][at] != content(peer, rank, number)) {
                ++num_wrong;
                break;
            }
        }
    }
    return num_wrong;
}

int run_ranks(int size, uint32_t count, double timeout_s, const DriverCalls& calls) {
    Wiring wiring(size);
    std::vector<std::unique_ptr<CopyEngine>> engines;
    for (int rank = 0; rank < size; ++rank) {
        CopyEngineOptions options = wiring.options(rank, timeout_s);
        options.calls = calls;
        engines.push_back(std::make_unique<CopyEngine>(std::move(options)));
    }
    std::vector<std::thread> threads;
    std::vector<int> num_wrong(size);
    for (int rank = 0; rank < size; ++rank) {
        threads.emplace_back(
            [&, rank] { num_wrong[rank] = exchange(*engines[rank], wiring, rank, count); });
    }
    for (int rank = 0; rank < size; ++rank) {
        threads[rank].join();
        engines[rank]->check();
    }
    return std::accumulate(num_wrong.begin(), num_wrong.end(), 0);
}

void messages_arrive_whole_and_in_order() {
    EXPECT_EQ(run_ranks(2, 200, 60, software_calls()), 0);
    EXPECT_EQ(run_ranks(3, 60, 60, software_calls()), 0);
}

// Nothing is written before it is granted, however long ago it was sent.
void a_sender_waits_for_credit() {
    Wiring wiring(2);
    CopyEngine sender(wiring.options(0, 60)), receiver(wiring.options(1, 60));
    std::vector<unsigned char> source(16, 5);
    unsigned char* slot = wiring.slot(0, 1, 1);
    SoftwareStream out, in;
    sender.send(1, {{device_address(slot), device_address(source.data()), 16}}, &out, "early");
    for (int i = 0; i < 1000; ++i) {
        std::this_thread::yield();
        EXPECT(!sender.has_left(1, 1));
        EXPECT_EQ(int{slot[0]}, 0xff);  // the sanitizer takes a copy that came by now for a race
    }
    const uint32_t number = receiver.grant(0, &in);
    receiver.await(0, number, device_address(slot), 16, &in, "early");
    in.drain();
    EXPECT_EQ(int{slot[15]}, 5);
    out.drain();
    EXPECT(sender.has_left(1, 1));
}

void refusals() {
    Wiring wiring(2);
    CopyEngine engine(wiring.options(0, 60));
    SoftwareStream stream;
    EXPECT_THROWS(engine.grant(0, &stream), InvalidArgument);
    EXPECT_THROWS(engine.grant(2, &stream), InvalidArgument);
    stream.is_capturing = true;
    EXPECT_THROWS(engine.grant(1, &stream), InvalidArgument);
    EXPECT_THROWS(engine.send(1, {}, &stream, "x"), InvalidArgument);
    EXPECT_THROWS(engine.await(1, 1, 0, 0, &stream, "x"), InvalidArgument);
}

// ---- a mistake on purpose: the signal goes out before the copy ----

std::atomic<bool> copies_may_go{false};

int copy_after_the_gate(DeviceAddress to, DeviceAddress from, size_t num_bytes, void* stream) {
    // As a stream that runs the copy beside the signal, and later: it starts when the message has
    // been read.
    std::thread([=] {
        while (!copies_may_go) {
            std::this_thread::yield();
        }
        std::memcpy(host_address(to), host_address(from), num_bytes);
        copies_may_go = false;
    }).detach();
    (void)stream;
    return 0;
}

void a_signal_before_its_copy_is_found() {
    Wiring wiring(2);
    CopyEngineOptions options = wiring.options(0, 60);
    options.calls.memcpy_async = &copy_after_the_gate;
    CopyEngine sender(std::move(options)), receiver(wiring.options(1, 60));
    SoftwareStream out, in;
    std::vector<unsigned char> source(8, 7), result(8, 0);
    unsigned char* slot = wiring.slot(0, 1, 1);
    const uint32_t number = receiver.grant(0, &in);
    sender.send(1, {{device_address(slot), device_address(source.data()), 8}}, &out, "seeded");
    receiver.await(0, number, device_address(slot), 8, &in, "seeded");
    software_copy(device_address(result.data()), device_address(slot), 8, &in);
    in.drain();
    EXPECT_EQ(int{result[0]}, 0xff);  // what exchange() counts as wrong
    copies_may_go = true;
    while (copies_may_go) {
        std::this_thread::yield();
    }
}

}  // namespace

int main() {
    messages_arrive_whole_and_in_order();
    a_sender_waits_for_credit();
    refusals();
    a_signal_before_its_copy_is_found();
    return finish("copy_engine");
}
