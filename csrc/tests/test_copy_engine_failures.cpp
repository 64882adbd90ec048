// Messages by copy engines over streams in software, when peers are silent, slow or gone.
#include "copy_engine_wiring.hpp"
#include "expect.hpp"
#include "token/common/errors.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace token;
using namespace token::fabric;
using namespace token::testing;

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
    EXPECT_THROWS(engine.send(1, {}, &other, "more"), CommTimeout);
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
    engine.send(1, {{device_address(&elsewhere[0]), device_address(&source[0]), 8}}, &out, "third");
    in.drain();
    out.drain();
    EXPECT_THROWS(engine.check(), CommTimeout);
}

// Who is further ahead of the GPU than there is room for waits for it, and is told of a failure.
void a_host_too_far_ahead_waits() {
    Wiring wiring(2);
    CopyEngineOptions options = wiring.options(0, 0.2);
    options.reached.resize(3);
    CopyEngine engine(std::move(options)), peer(wiring.options(1, 60));
    SoftwareStream in, out;
    for (uint32_t number = 1; number <= 20; ++number) {
        engine.grant(1, &in);
        peer.send(0, {}, &out, "in time");
        engine.await(1, number, 0, 0, &in, "in time");
    }
    const DeviceAddress into = device_address(wiring.slot(1, 0, 1));
    engine.await(1, 21, into, 8, &in, "never");
    engine.await(1, 22, into, 8, &in, "never");
    engine.await(1, 23, into, 8, &in, "never");
    EXPECT_THROWS(engine.await(1, 24, into, 8, &in, "never"), CommTimeout);
    in.drain();
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
    peer.send(0, {{device_address(slot), device_address(source.data()), 8}}, &out, "late");
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

}  // namespace

int main() {
    a_silent_peer_is_named_and_its_message_is_nan();
    one_failure_ends_every_wait();
    a_host_too_far_ahead_waits();
    the_deadline_runs_from_the_wait_on();
    a_lost_peer_is_named_before_the_deadline();
    a_verdict_of_others_ends_the_waits();
    closing_releases_the_streams();
    return finish("copy_engine_failures");
}
