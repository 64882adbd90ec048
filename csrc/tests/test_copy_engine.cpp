// Messages by copy engines: order, credits, deadlines, lost peers, over streams in software.
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
            engine.send(peer,
                        device_address(wiring.slot(rank, peer, number)),
                        device_address(sources.back().data()),
                        message_bytes(rank, peer, number),
                        out[i].get(),
                        "a message");
            const int64_t size = message_bytes(peer, rank, number);
            const DeviceAddress into = device_address(wiring.slot(peer, rank, number));
            engine.await(peer, number, into, size, &in, "a message");
            results.emplace_back(kSlotBytes, 0);
            software_copy(
                device_address(results.back().data()), into, static_cast<size_t>(size), &in);
            engine.grant(peer, &in);
        }
        if (number % 8 == 0) {
            in.drain();  // no more waits under way than there is room for
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
    sender.send(1, device_address(slot), device_address(source.data()), 16, &out, "early");
    for (int i = 0; i < 1000; ++i) {
        std::this_thread::yield();
        EXPECT_EQ(int{slot[0]}, 0xff);  // the sanitizer takes a copy that came by now for a race
    }
    const uint32_t number = receiver.grant(0, &in);
    receiver.await(0, number, device_address(slot), 16, &in, "early");
    in.drain();
    EXPECT_EQ(int{slot[15]}, 5);
    out.drain();
}

// A peer that does not send is named at the deadline; the stream goes on, over NaN.
void a_silent_peer_is_named_and_its_message_is_nan() {
    Wiring wiring(2);
    CopyEngineOptions options = wiring.options(0, 0.05);
    std::atomic<int> told{-1};
    options.tell = [&](comm::VerdictKind kind, int peer) {
        told = kind == comm::VerdictKind::kTimeout ? peer : -2;
    };
    CopyEngine engine(std::move(options));
    SoftwareStream stream, other;
    unsigned char* slot = wiring.slot(1, 0, 1);
    std::fill(slot, slot + 64, static_cast<unsigned char>(1));
    const uint32_t number = engine.grant(1, &stream);
    engine.await(1, number, device_address(slot), 64, &stream, "keys of rank 1 in step 3");
    stream.drain();
    EXPECT_EQ(int{slot[0]}, 0xff);
    EXPECT_EQ(int{slot[63]}, 0xff);
    EXPECT_EQ(int{told}, 1);
    try {
        engine.check();
        EXPECT_EQ(std::string("returned"), "threw");
    } catch (const CommTimeout& error) {
        EXPECT_EQ(error.context.peer_rank, 1);
        EXPECT(std::string(error.what()).starts_with("keys of rank 1 in step 3: rank 1 did not"));
    }
    EXPECT_THROWS(engine.grant(1, &stream), CommTimeout);
    EXPECT_THROWS(engine.await(1, 1, device_address(slot), 4, &stream, "more"), CommTimeout);
    EXPECT_THROWS(engine.send(1, 0, 0, 0, &other, "more"), CommTimeout);
}

// All waits of a stream end, those for credit too.
void one_failure_ends_every_wait() {
    Wiring wiring(3);
    CopyEngine engine(wiring.options(0, 0.05));
    SoftwareStream in, out;
    std::vector<unsigned char> source(8), elsewhere(8);
    for (uint32_t number = 1; number <= 3; ++number) {
        engine.await(1, number, device_address(wiring.slot(1, 0, number)), 8, &in, "first");
        engine.await(2, number, device_address(wiring.slot(2, 0, number)), 8, &in, "second");
    }
    engine.send(1, device_address(&elsewhere[0]), device_address(&source[0]), 8, &out, "third");
    in.drain();
    out.drain();
    EXPECT_THROWS(engine.check(), CommTimeout);
}

// What the stream does first may take longer than the deadline.
void the_deadline_runs_from_the_wait_on() {
    constexpr double kTimeoutS = 0.05;
    Wiring wiring(2);
    CopyEngine engine(wiring.options(0, kTimeoutS)), peer(wiring.options(1, 60));
    SoftwareStream stream, out;
    std::atomic<bool> is_open{false};
    stream.enqueue([&] {
        while (!is_open) {
            std::this_thread::yield();
        }
    });
    unsigned char* slot = wiring.slot(1, 0, 1);
    SoftwareStream credits;
    const uint32_t number = engine.grant(1, &credits);
    engine.await(1, number, device_address(slot), 8, &stream, "late");
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::duration<double>(3 * kTimeoutS);
    while (std::chrono::steady_clock::now() < until) {
        std::this_thread::yield();
    }
    engine.check();
    std::vector<unsigned char> source(8, 9);
    peer.send(0, device_address(slot), device_address(source.data()), 8, &out, "late");
    out.drain();
    is_open = true;
    stream.drain();
    engine.check();
    EXPECT_EQ(int{slot[7]}, 9);
}

void a_lost_peer_is_named_before_the_deadline() {
    Wiring wiring(3);
    CopyEngineOptions options = wiring.options(0, 3600);
    options.is_dead = [](int peer) { return peer == 2; };
    CopyEngine engine(std::move(options));
    SoftwareStream stream;
    engine.await(2, 1, device_address(wiring.slot(2, 0, 1)), 8, &stream, "q block");
    stream.drain();
    EXPECT_EQ(int{wiring.slot(2, 0, 1)[0]}, 0xff);
    EXPECT_THROWS(engine.check(), PeerLost);
}

void a_verdict_of_others_ends_the_waits() {
    Wiring wiring(2);
    CopyEngineOptions options = wiring.options(0, 3600);
    options.verdict = [] { return std::make_exception_ptr(PeerLost("another", {})); };
    CopyEngine engine(std::move(options));
    SoftwareStream stream;
    engine.await(1, 1, device_address(wiring.slot(1, 0, 1)), 8, &stream, "q block");
    stream.drain();
    EXPECT_THROWS(engine.check(), PeerLost);
}

void closing_releases_the_streams() {
    Wiring wiring(2);
    SoftwareStream stream;
    CopyEngine engine(wiring.options(0, 3600));
    engine.await(1, 1, device_address(wiring.slot(1, 0, 1)), 8, &stream, "q block");
    engine.close();
    EXPECT_THROWS(engine.grant(1, &stream), InvalidArgument);
    stream.drain();
}

void refusals() {
    Wiring wiring(2);
    CopyEngine engine(wiring.options(0, 60));
    SoftwareStream stream;
    EXPECT_THROWS(engine.grant(0, &stream), InvalidArgument);
    EXPECT_THROWS(engine.grant(2, &stream), InvalidArgument);
    stream.is_capturing = true;
    EXPECT_THROWS(engine.grant(1, &stream), InvalidArgument);
    EXPECT_THROWS(engine.send(1, 0, 0, 0, &stream, "x"), InvalidArgument);
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
    sender.send(1, device_address(slot), device_address(source.data()), 8, &out, "seeded");
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
    a_silent_peer_is_named_and_its_message_is_nan();
    one_failure_ends_every_wait();
    the_deadline_runs_from_the_wait_on();
    a_lost_peer_is_named_before_the_deadline();
    a_verdict_of_others_ends_the_waits();
    closing_releases_the_streams();
    refusals();
    a_signal_before_its_copy_is_found();
    return finish("copy_engine");
}
