/* One-shot collective: every rank stages a block of its partial sum, one barrier, every rank reads the
 * blocks of all. Long tensors are several blocks; the next one may be staged before this one is read.
 *
 * There is no barrier at the end: a rank may stage block k + 1 while a peer still reads block k. Two
 * slots make that safe, because k + 1 goes where k - 1 was, and every peer arrives at the barrier of
 * block k only after it has read k - 1.
 *
 * Seeded bugs (-D): BUG_SINGLE_SLOT, BUG_NO_BARRIER, BUG_SIGNAL_RELAXED, BUG_WAIT_RELAXED,
 * BUG_FROZEN_EPOCH, BUG_BASE_FROM_MEMORY, BUG_ONE_RECORD, BUG_PLAIN_COMPARE (with BASE=254).
 */

#ifndef CALLS
#define CALLS 3
#endif
#ifdef BUG_SINGLE_SLOT
#define CELLS 1
#define SLOT(call) 0
#else
#define CELLS 2
#define SLOT(call) ((call) & 1)
#endif

#include "memory.inc"

active [N] proctype Rank() {
    byte me = _pid - N * CELLS;
    byte epoch = BASE;
    byte call = 1;
    bool is_staged = false;
    byte peer, i;
#ifdef BUG_BASE_FROM_MEMORY
    epoch = line[LINE(me, (me + 1) % N)];
#endif
    do
    :: call > CALLS -> break
    :: else ->
        if
        :: is_staged
        :: !is_staged -> store(me, SLOT(call), call)
        fi;
        is_staged = false;
#ifdef BUG_FROZEN_EPOCH
        epoch = BASE;
#endif
#ifndef BUG_NO_BARRIER
        arrive(me, call);
#ifdef BUG_WAIT_RELAXED
        /* The loads of the data may be served before the wait ends. */
        if
        :: read_peers(me, SLOT(call), call); wait(me, call)
        :: wait(me, call); read_peers(me, SLOT(call), call)
        fi;
#else
        wait(me, call);
        if
        :: call < CALLS -> store(me, SLOT(call + 1), call + 1); is_staged = true
        :: true
        fi;
        read_peers(me, SLOT(call), call);
#endif
#else
        read_peers(me, SLOT(call), call);
#endif
        call++
    od
}
