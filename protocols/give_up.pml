/* Ranks that die, and ranks that come too late: the verdict of csrc/fabric/host_group.cpp.
 *
 * A rank that waits in vain for a peer sets the verdict of every rank, then raises. A peer that was
 * only slow finds all signals there when it comes back; it must raise as the others did, so it looks
 * at its verdict after the wait. Without that look it would return a result that nobody else has.
 *
 * Proved: every rank ends; a rank that arrives after another gave up and told everybody never returns
 * from that collective, and nobody returns from a later one.
 *
 * Seeded bugs (-D): BUG_NO_LATE_LOOK, BUG_OWN_VERDICT_ONLY, BUG_NO_DEADLINE.
 */

#ifndef N
#define N 3
#endif
#ifndef CALLS
#define CALLS 2
#endif
#define LINE(owner, writer) ((owner) * N + (writer))

byte line[N * N];
bool verdict[N];
byte given_up; /* first call on which a rank has told all others, 0 for none; for the proof only */

active [N] proctype Rank() {
    byte me = _pid;
    byte call = 1;
    byte peer;
    bool came_too_late;
    do
    :: call > CALLS -> goto done
    :: call <= CALLS ->
        if
        :: verdict[me] -> goto raised
        :: else
        fi;
        came_too_late = (given_up != 0 && given_up <= call);
        peer = 0;
        do
        :: peer < N -> line[LINE(peer, me)] = call; peer++
        :: peer < N -> goto done /* SIGKILL, with some of the signals sent */
        :: else -> break
        od;
        peer = 0;
        do
        :: peer < N && line[LINE(me, peer)] >= call -> peer++
        :: peer < N && verdict[me] -> goto raised
#ifndef BUG_NO_DEADLINE
        :: peer < N && line[LINE(me, peer)] < call -> goto gives_up
#endif
        :: peer == N -> break
        od;
#ifndef BUG_NO_LATE_LOOK
        if
        :: verdict[me] -> goto raised
        :: else
        fi;
#endif
        assert(!came_too_late);
        assert(given_up == 0 || call <= given_up);
        call++
    od;
gives_up:
    peer = 0;
    do
    :: peer < N ->
#ifdef BUG_OWN_VERDICT_ONLY
        verdict[me] = true;
#else
        verdict[peer] = true;
#endif
        peer++
    :: else -> break
    od;
    skip;
    d_step {
        if
        :: given_up == 0 || call < given_up -> given_up = call
        :: else
        fi
    }
raised:
    skip;
done:
    skip
}
