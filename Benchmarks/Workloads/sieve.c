// The primes below a million, by the sieve of Eratosthenes: byte stores with a growing stride, and branches.

#include "workload.h"

#include <stdbool.h>
#include <string.h>

enum { limit = 1000000 };

uint64_t sieve(void) {
    static bool composite[limit];
    memset(composite, 0, sizeof composite);
    uint64_t sum = 0;
    for (size_t candidate = 2; candidate < limit; candidate++) {
        if (composite[candidate]) continue;
        sum = mix(sum, candidate);
        for (size_t multiple = candidate * candidate; multiple < limit; multiple += candidate) composite[multiple] = true;
    }
    return sum;
}
