/* N ranks in a ring: each sends MESSAGES messages to the next rank and receives as many from the
 * previous one, through mailboxes of two slots with credits. This is MailboxSender and MailboxReceiver
 * of token/comm/protocol.hpp, one of each per rank, with bytes for 32-bit counts.
 *
 * Weak memory by hand: a payload goes in flight and becomes visible at any later moment (process
 * Fabric); publish() is a release, so it drains the payload first; the receiver's credit is a release
 * of its reads.
 *
 * A rule for the users of a mailbox comes out of it: a rank that blocks in its (SLOTS + 1)th unanswered
 * send deadlocks the ring, so it receives message k before it sends message k + SLOTS.
 *
 * Seeded bugs (-D): BUG_NO_CREDIT, BUG_PUBLISH_RELAXED, BUG_CREDIT_BEFORE_READ, BUG_BASE_FROM_MEMORY,
 * BUG_RUN_AHEAD, BUG_ODD_SLOTS (three slots with counts that wrap, BASE=254: 2^32 is no multiple of 3).
 */

#ifndef N
#define N 3
#endif
#ifndef MESSAGES
#define MESSAGES 4
#endif
#ifndef BASE
#define BASE 0
#endif
#ifdef BUG_ODD_SLOTS
#define SLOTS 3
#else
#define SLOTS 2
#endif

#define CELL(owner, count) ((owner) * SLOTS + (count) % SLOTS)
#define HAS_REACHED(seen, expected) ((((seen) - (expected)) & 255) < 128)

byte visible[N * SLOTS];   /* payloads, in the receiver's memory: number of the message, from 1 */
byte in_flight[N * SLOTS]; /* 0: nothing pending */
byte published[N] = BASE;  /* in the receiver's memory, written by the previous rank */
byte consumed[N] = BASE;   /* in the sender's memory, written by the next rank */

active [N * SLOTS] proctype Fabric() {
end:
    do
    :: d_step { in_flight[_pid] != 0 -> visible[_pid] = in_flight[_pid]; in_flight[_pid] = 0 }
    od
}

inline send(number) {
#ifndef BUG_NO_CREDIT
    HAS_REACHED(consumed[me], (sent + 1 - SLOTS) & 255);
#endif
    in_flight[CELL(next, sent)] = number;
#ifndef BUG_PUBLISH_RELAXED
    d_step {
        if
        :: in_flight[CELL(next, sent)] != 0 ->
            visible[CELL(next, sent)] = in_flight[CELL(next, sent)];
            in_flight[CELL(next, sent)] = 0
        :: else
        fi
    }
#endif
    sent = (sent + 1) & 255;
    published[next] = sent
}

inline receive(number) {
    HAS_REACHED(published[me], (received + 1) & 255);
#ifdef BUG_CREDIT_BEFORE_READ
    consumed[previous] = (received + 1) & 255;
#endif
    /* A long read: right when it starts and still right when it ends. */
    assert(visible[CELL(me, received)] == number);
    assert(visible[CELL(me, received)] == number);
    received = (received + 1) & 255;
    consumed[previous] = received
}

#ifdef BUG_RUN_AHEAD
#define MAY_SEND(message, taken) true
#else
#define MAY_SEND(message, taken) ((message) - (taken) < SLOTS)
#endif

/* Sends run ahead of receives by any amount up to SLOTS: the ring must not need lockstep. */
active [N] proctype Rank() {
    byte me = _pid - N * SLOTS;
    byte next = (me + 1) % N;
    byte previous = (me + N - 1) % N;
    byte sent = BASE;
    byte received = BASE;
    byte message = 1;
    byte taken = 1;
#ifdef BUG_BASE_FROM_MEMORY
    received = published[me];
#endif
    do
    :: message <= MESSAGES && MAY_SEND(message, taken) -> send(message); message++
    :: taken < message -> receive(taken); taken++
    :: message > MESSAGES && taken > MESSAGES -> break
    od
}
