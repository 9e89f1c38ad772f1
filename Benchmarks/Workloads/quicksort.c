// Quicksort of 100,000 numbers: branches that cannot be predicted.

#include "workload.h"

enum { count = 100000 };

static void sort(uint32_t *first, uint32_t *last) {
    while (first < last) {
        uint32_t pivot = first[(last - first) / 2];
        uint32_t *low = first, *high = last;
        while (low <= high) {
            while (*low < pivot) low++;
            while (*high > pivot) high--;
            if (low > high) break;
            uint32_t held = *low;
            *low++ = *high;
            *high-- = held;
        }
        sort(first, high);
        first = low;
    }
}

uint64_t quicksort(void) {
    static uint32_t values[count];
    uint64_t random = 42;
    for (int index = 0; index < count; index++) values[index] = (uint32_t)random_next(&random);
    sort(values, values + count - 1);
    uint64_t sum = 0;
    for (int index = 0; index < count; index++) sum = mix(sum, values[index]);
    return sum;
}
