// The same work on one thread, and on two at once: what a second virtual processor is worth.

#include "workload.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { table_size = 32768 };

struct worker {
    pthread_barrier_t *barrier;
    uint64_t turns, checksum;
};

// Private memory and registers only: threads share nothing but the machine.
static uint64_t turn(uint32_t *table) {
    memset(table, 0, table_size * sizeof *table);
    uint64_t sum = 0, random = 9;
    for (int time = 0; time < 100000; time++) {
        uint32_t *entry = &table[random_next(&random) % table_size];
        *entry = *entry * 5 + (uint32_t)time;
        sum = mix(sum, *entry);
    }
    return sum;
}

static void *work(void *argument) {
    struct worker *worker = argument;
    uint32_t *table = calloc(table_size, sizeof *table);
    if (table == NULL) fail("calloc");
    turn(table);
    // Warm; then the start; then the end.
    pthread_barrier_wait(worker->barrier);
    pthread_barrier_wait(worker->barrier);
    for (uint64_t done = 0; done < worker->turns; done++) worker->checksum = turn(table);
    pthread_barrier_wait(worker->barrier);
    free(table);
    return NULL;
}

static uint64_t run(int count, uint64_t turns, uint64_t *checksum, const char *name) {
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, (unsigned)count + 1);
    pthread_t threads[2];
    struct worker workers[2];
    for (int index = 0; index < count; index++) {
        workers[index] = (struct worker){&barrier, turns, 0};
        if (pthread_create(&threads[index], NULL, work, &workers[index]) != 0) fail("pthread_create");
    }
    pthread_barrier_wait(&barrier);
    if (name != NULL) begin(name);
    pthread_barrier_wait(&barrier);
    uint64_t start = now();
    pthread_barrier_wait(&barrier);
    uint64_t elapsed = now() - start;
    *checksum = 0;
    for (int index = 0; index < count; index++) {
        pthread_join(threads[index], NULL);
        *checksum = mix(*checksum, workers[index].checksum);
    }
    pthread_barrier_destroy(&barrier);
    return elapsed;
}

void measure_threads(void) {
    uint64_t checksum, turns = 1;
    while (run(1, turns, &checksum, NULL) < duration) turns *= 2;
    uint64_t alone = run(1, turns, &checksum, "one-thread");
    end("one-thread", alone, turns, checksum);
    uint64_t together = run(2, turns, &checksum, "two-threads");
    end("two-threads", together, turns, checksum);
}
