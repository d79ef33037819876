/* Independent tasks on torch's threads. */

#ifndef RECURL_TEAM_H
#define RECURL_TEAM_H

/* torch's OpenMP library, if it has GCC's entry points (LLVM's and Intel's do too). Between two products its threads
   wait by spinning, for a millisecond or more, and a thread of one's own would get half a core next to them. */
extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

typedef struct {
    void (*tasks)(void *it, long first, long stride); /* does every stride-th task from the first */
    void *it;
} team;

static void in_team(void *given) {
    const team *of = given;
    of->tasks(of->it, omp_get_thread_num(), omp_get_num_threads());
}

static void on_threads(void (*tasks)(void *, long, long), void *it, long threads) {
    team of = {tasks, it};
    if (threads > 1 && GOMP_parallel && omp_get_thread_num && omp_get_num_threads)
        GOMP_parallel(in_team, &of, (unsigned)threads, 0);
    else tasks(it, 0, 1);
}

#endif
