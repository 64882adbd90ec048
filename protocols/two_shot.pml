/* Two-shot collective: stage, barrier, reduce the own rows, barrier, gather everybody's rows.
 *
 * Cell 0 of a rank is its staged partial sum, cell 1 its reduced rows. One of each is enough. The
 * partials of call k are read before the second barrier of k and overwritten after it; the rows of
 * call k are read before the reader arrives at the first barrier of k + 1 and overwritten after it.
 *
 * Seeded bugs (-D): BUG_NO_ENTRY_BARRIER, BUG_NO_EXIT_BARRIER, BUG_SIGNAL_RELAXED, BUG_FROZEN_EPOCH.
 */

#ifndef CALLS
#define CALLS 2
#endif
#define CELLS 2
#define PARTIAL 0
#define ROWS 1

#include "memory.inc"

active [N] proctype Rank() {
    byte me = _pid - N * CELLS;
    byte epoch = BASE;
    byte call = 1;
    byte peer, i;
    do
    :: call > CALLS -> break
    :: else ->
        store(me, PARTIAL, call);
#ifdef BUG_FROZEN_EPOCH
        epoch = BASE;
#endif
#ifndef BUG_NO_ENTRY_BARRIER
        arrive(me, call);
        wait(me, call);
#endif
        read_peers(me, PARTIAL, call);
        store(me, ROWS, call);
#ifndef BUG_NO_EXIT_BARRIER
        arrive(me, call);
        wait(me, call);
#endif
        read_peers(me, ROWS, call);
        call++
    od
}
