/* N GPUs in a ring: each sends its own block to the next and passes on what comes from the previous
 * one, through two slots with credits. This is csrc/fabric/gpu_messages.cpp under the engine's walk of
 * a plan, with bytes for 32-bit counts: each stream of a rank is a process that does in order what its
 * host enqueued, all of it long ago.
 *
 * Weak memory by hand: a copy goes in flight and becomes visible at any later moment (process Fabric);
 * the signal after it is a write with a barrier, so it drains the copy first.
 *
 * ONE_QUEUE: a rank's streams share a hardware queue and run as one process, in the order in which the
 * host enqueued. That, too, must end.
 *
 * Seeded bugs (-D): BUG_NO_CREDIT, BUG_SIGNAL_RELAXED, BUG_GRANT_BEFORE_READ, BUG_GRANT_BEFORE_LEFT,
 * BUG_PASS_ON_EARLY, BUG_GRANT_LATE (one queue, and a slot is granted when its next message is due).
 */

#ifndef N
#define N 3
#endif
#ifndef MESSAGES
#define MESSAGES 3
#endif
#define SLOTS 2

#define CELL(owner, number) ((owner) * SLOTS + (number) % SLOTS)
#define BEFORE(rank) (((rank) + N - 1) % N)
#define AFTER(rank) (((rank) + 1) % N)
/* Message m of a rank has come m hops. */
#define CONTENT(rank, number) (((rank) + 4 * N - (number)) % N + 1)

byte visible[N * SLOTS];   /* blocks, in the receiver's memory: the owner's rank, from 1 */
byte in_flight[N * SLOTS]; /* 0: nothing pending */
byte granted[N];           /* in the sender's memory, written by the next rank's stream of credits */
byte arrived[N];           /* in the receiver's memory, written by the previous rank's lane */
byte passed[N];            /* events: waits that the computing stream has behind it, */
byte computed[N];          /* blocks that it has computed on, */
byte copied[N];            /* and messages that the lane has sent */

active [N * SLOTS] proctype Fabric() {
end:
    do
    :: d_step { in_flight[_pid] != 0 -> visible[_pid] = in_flight[_pid]; in_flight[_pid] = 0 }
    od
}

#ifdef BUG_PASS_ON_EARLY
#define IS_HERE(me, number) true
#else
#define IS_HERE(me, number) ((number) == 1 || passed[me] >= (number) - 1)
#endif
#ifdef BUG_NO_CREDIT
#define HAS_CREDIT(me, number) true
#else
#define HAS_CREDIT(me, number) (granted[me] >= (number))
#endif

/* Message `number` to the next rank: its own block, or what came as the message before. */
inline send(me, number) {
    IS_HERE(me, number) && HAS_CREDIT(me, number);
    if
    :: number == 1 -> in_flight[CELL(AFTER(me), number)] = me + 1
    :: else -> in_flight[CELL(AFTER(me), number)] = visible[CELL(me, number - 1)]
    fi;
    d_step {
#ifndef BUG_SIGNAL_RELAXED
        if
        :: in_flight[CELL(AFTER(me), number)] != 0 ->
            visible[CELL(AFTER(me), number)] = in_flight[CELL(AFTER(me), number)];
            in_flight[CELL(AFTER(me), number)] = 0
        :: else
        fi;
#endif
        arrived[AFTER(me)] = number;
        copied[me] = number
    }
}

/* A long read: right when it starts and still right when it ends. */
inline compute(me, number) {
    d_step {
        arrived[me] >= number;
        passed[me] = number;
        assert(visible[CELL(me, number)] == CONTENT(me, number))
    }
    d_step {
        assert(visible[CELL(me, number)] == CONTENT(me, number));
        computed[me] = number
    }
}

#ifdef BUG_GRANT_BEFORE_READ
#define IS_READ(me, number) true
#else
#define IS_READ(me, number) (computed[me] >= (number))
#endif
#ifdef BUG_GRANT_BEFORE_LEFT
#define HAS_LEFT(me, number) true
#else
#define HAS_LEFT(me, number) (copied[me] >= (number) + 1)
#endif

/* The slot of message `number` is free when the message before in it was read and passed on. */
inline grant(me, number) {
    d_step {
        number <= SLOTS || (IS_READ(me, number - SLOTS) && HAS_LEFT(me, number - SLOTS));
        granted[BEFORE(me)] = number
    }
}

#ifdef ONE_QUEUE
active [N] proctype Queue() {
    byte me = _pid - N * SLOTS;
    byte number;
    for (number : 1 .. MESSAGES) {
#ifdef BUG_GRANT_LATE
        send(me, number);
        grant(me, number);
#else
        grant(me, number);
        send(me, number);
#endif
        compute(me, number)
    }
}
#else
active [N] proctype Computing() {
    byte me = _pid - N * SLOTS;
    byte number;
    for (number : 1 .. MESSAGES) { compute(me, number) }
}

active [N] proctype Lane() {
    byte me = _pid - N * SLOTS - N;
    byte number;
    for (number : 1 .. MESSAGES) { send(me, number) }
}

active [N] proctype Credits() {
    byte me = _pid - N * SLOTS - 2 * N;
    byte number;
    for (number : 1 .. MESSAGES) { grant(me, number) }
}
#endif
