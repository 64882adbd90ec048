/* A waiter that sleeps on a futex and a signaller that wakes it only when it sleeps: HostMemory::signal
 * and HostWaiter::sleep_until of token/comm/host_memory.hpp, without the spin, the deadline and the
 * slices. No signal may be slept through: that would be a deadlock here (20 ms lost in the code).
 *
 * Both sides store one word and then load the other. Sequentially consistent accesses keep that order;
 * a release store may sit in the store buffer while the following load runs, and then both sides read
 * the old words.
 *
 * Seeded bugs (-D): BUG_SIGNAL_RELEASE, BUG_SLEEPING_RELEASE, BUG_NO_FUTEX_COMPARE, BUG_WAKE_BEFORE_STORE.
 */

#ifndef SIGNALS
#define SIGNALS 3
#endif

byte value;    /* the epoch, written by the signaller */
byte sleeping; /* written by the waiter */
bool parked;   /* the waiter is inside futex_wait */

/* One-entry store buffers. `sleeping` is stored as 1 + flag, so that 0 means empty. */
byte buffered_value;
byte buffered_sleeping;

active proctype SignalBuffer() {
end:
    do
    :: d_step { buffered_value != 0 -> value = buffered_value; buffered_value = 0 }
    od
}

active proctype WaiterBuffer() {
end:
    do
    :: d_step { buffered_sleeping != 0 -> sleeping = buffered_sleeping - 1; buffered_sleeping = 0 }
    od
}

active proctype Signaller() {
    byte epoch = 1;
    do
    :: epoch > SIGNALS -> break
    :: else ->
#ifdef BUG_WAKE_BEFORE_STORE
        if
        :: sleeping != 0 -> parked = false
        :: else
        fi;
#endif
        /* Stores to one word stay in order. */
        buffered_value == 0;
        buffered_value = epoch;
#ifndef BUG_SIGNAL_RELEASE
        buffered_value == 0;
#endif
#ifndef BUG_WAKE_BEFORE_STORE
        if
        :: sleeping != 0 -> parked = false
        :: else
        fi;
#endif
        epoch++
    od
}

active proctype Waiter() {
    byte expected = 1;
    byte seen;
    do
    :: expected > SIGNALS -> break
    :: else ->
        buffered_sleeping == 0;
        buffered_sleeping = 2;
#ifndef BUG_SLEEPING_RELEASE
        buffered_sleeping == 0;
#endif
        do
        :: seen = value;
            if
            :: seen >= expected -> break
            :: else
            fi;
            /* The kernel compares and parks in one step. */
#ifdef BUG_NO_FUTEX_COMPARE
            parked = true;
#else
            if
            :: d_step { value == seen -> parked = true }
            :: value != seen
            fi;
#endif
            !parked
        od;
        /* AwakeAtExit: relaxed. */
        buffered_sleeping == 0;
        buffered_sleeping = 1;
        expected++
    od
}
