// Runs the workloads named as arguments and prints each one's figure.
//
// A timed section is a whole number of rounds, at least WORKLOAD_MILLISECONDS (300) long; one round before it is not timed, so
// that caches are warm. Lines on standard output, read by the runner:
//
//     @begin NAME
//     @end NAME NANOSECONDS-PER-OPERATION CHECKSUM ELAPSED-NANOSECONDS
//     @ready                       for the argument `ready`
//     @failed REASON
//
// ELAPSED-NANOSECONDS is what this machine's clock says about the time between the two lines.

#include "workload.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

uint64_t duration = 300000000;

static const struct workload workloads[] = {
    {"sieve", sieve, 1},
    {"interpreter", interpreter, 1300000},
    {"nbody-sse2", nbody_sse2, 10000},
    {"nbody-x87", nbody_x87, 10000},
    {"matmul", matmul, 1},
    {"sha256", sha256, 1024},
    {"quicksort", quicksort, 1},
    {"gzip", gzip, 1},
    {"movsb-64k", movsb_64k, 256},
    {"movsb-1m", movsb_1m, 16},
    {"stosb-64k", stosb_64k, 256},
    {"stosb-1m", stosb_1m, 16},
    {"rewriting", rewriting, 4096},
    {"getpid", getpid_call, 4096},
    {"page-fault", page_fault, 1024},
    {"fork-exec", fork_exec, 10},
    {"context-switch", context_switch, 2000},
    {"chase-32k", chase_32k, 100000},
    {"chase-16m", chase_16m, 100000},
    {"port-output", port_output, 4096},
};

uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

void fail(const char *what) {
    printf("@failed %s: %s\n", what, strerror(errno));
    fflush(stdout);
    _exit(1);
}

void begin(const char *name) {
    printf("@begin %s\n", name);
    fflush(stdout);
    // Fails on a pipe, which has nothing to wait for.
    tcdrain(STDOUT_FILENO);
}

void end(const char *name, uint64_t nanoseconds, uint64_t operations, uint64_t checksum) {
    printf("@end %s %.4f %016" PRIx64 " %" PRIu64 "\n", name, (double)nanoseconds / (double)operations, checksum,
           nanoseconds);
    fflush(stdout);
}

static void measure(const struct workload *workload) {
    uint64_t checksum = workload->round();
    uint64_t rounds = 0, elapsed;
    begin(workload->name);
    uint64_t start = now();
    do {
        uint64_t again = workload->round();
        // A round that differs makes the checksum one that no other machine prints.
        if (again != checksum) checksum = mix(checksum, again + rounds);
        rounds++;
        elapsed = now() - start;
    } while (elapsed < duration);
    end(workload->name, elapsed, rounds * workload->operations, checksum);
}

int main(int count, char **arguments) {
    // What fork_exec executes.
    if (count == 2 && strcmp(arguments[1], "nothing") == 0) return 0;

    const char *milliseconds = getenv("WORKLOAD_MILLISECONDS");
    if (milliseconds != NULL) duration = strtoull(milliseconds, NULL, 10) * 1000000;
    for (int index = 1; index < count; index++) {
        if (strcmp(arguments[index], "ready") == 0) {
            printf("@ready\n");
            fflush(stdout);
            continue;
        }
        if (strcmp(arguments[index], "threads") == 0) {
            measure_threads();
            continue;
        }
        const struct workload *found = NULL;
        for (size_t candidate = 0; candidate < sizeof workloads / sizeof *workloads; candidate++)
            if (strcmp(workloads[candidate].name, arguments[index]) == 0) found = &workloads[candidate];
        if (found == NULL) {
            errno = EINVAL;
            fail(arguments[index]);
        }
        measure(found);
    }
    return 0;
}
