/* Admission among nodes that share an engine: which designs keep a limit. Checked by Spin, see tests/test_specification.py:
 *
 *   spin -DATOMIC=1 -DLEASE=1 -DPAUSE=1 -DFENCE=1 -a admission.pml && cc -DSAFETY -o pan pan.c && ./pan
 *
 * ATOMIC  a claim is decided and written in one step of the engine; else it is read first, and written then
 * LEASE   a node that is not heard of loses what it has, when its lease is over; else nobody takes it back
 * CRASH   nodes may end
 * PAUSE   nodes may stand still for any time, and go on
 * FENCE   a node whose lease was over gives up its connections before anything else
 *
 * What is promised: those who are connected at nodes that are not lost are never more than the limit; and when nothing
 * happens any more, nothing is left of a node that has ended.
 */

#ifndef ATOMIC
#define ATOMIC 0
#endif
#ifndef LEASE
#define LEASE 0
#endif
#ifndef CRASH
#define CRASH 0
#endif
#ifndef PAUSE
#define PAUSE 0
#endif
#ifndef FENCE
#define FENCE 0
#endif

#define NODES 2
#define LIMIT 2
#define STEPS 5

byte claims[NODES];     /* what the engine knows of each node */
byte connected[NODES];  /* who is connected there */
bool lost[NODES];       /* the engine has given it up */
bool ended[NODES];
bool paused[NODES];

#define THERE(n) (lost[n] || ended[n] -> 0 : connected[n])

inline enter(me) {
#if ATOMIC
    atomic {
        if
        :: claims[0] + claims[1] < LIMIT && !lost[me] -> claims[me]++; connected[me]++
        :: else
        fi
    }
#else
    seen = claims[0] + claims[1];
    if
    :: seen < LIMIT -> atomic { claims[me]++; connected[me]++ }
    :: else
    fi
#endif
}

inline leave(me) {
    atomic {
        connected[me]--;
        if
        :: claims[me] > 0 -> claims[me]--
        :: else
        fi
    }
}

/* After a lease that was over: begin anew, with nothing, or as if nothing had been. */
inline come_back(me) {
    atomic {
        lost[me] -> lost[me] = false;
#if FENCE
        connected[me] = 0
#endif
    }
}

proctype Node(byte me) {
    byte steps = 0, seen = 0;
    do
    :: steps < STEPS && !paused[me] && !lost[me] -> steps++; enter(me)
    :: steps < STEPS && !paused[me] && !lost[me] && connected[me] > 0 -> steps++; leave(me)
#if CRASH
    :: steps < STEPS -> atomic { ended[me] = true; connected[me] = 0 }; break
#endif
#if PAUSE
    :: steps < STEPS && !paused[me] -> steps++; paused[me] = true
    :: paused[me] -> paused[me] = false
    :: !paused[me] && lost[me] -> come_back(me)
#endif
    :: steps == STEPS && !paused[me] && !lost[me] -> break
    od
}

/* A lease may be over only while its node says nothing. */
active proctype Engine() {
    byte n;
end:
    do
#if LEASE
    :: atomic { (ended[0] && claims[0] > 0) || (paused[0] && !lost[0]) -> claims[0] = 0; lost[0] = true }
    :: atomic { (ended[1] && claims[1] > 0) || (paused[1] && !lost[1]) -> claims[1] = 0; lost[1] = true }
#endif
    :: timeout -> assert(!(ended[0] && claims[0] > 0) && !(ended[1] && claims[1] > 0)); break
    od
}

active proctype Witness() {
end:
    atomic { THERE(0) + THERE(1) > LIMIT -> assert(false) }
}

init { atomic { run Node(0); run Node(1) } }
