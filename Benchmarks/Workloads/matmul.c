// The product of two 128 × 128 matrices of double, two elements at a time (SSE2).

#include "workload.h"

#include <emmintrin.h>
#include <string.h>

enum { size = 128 };

uint64_t matmul(void) {
    static double left[size][size], right[size][size], product[size][size] __attribute__((aligned(16)));
    for (int row = 0; row < size; row++) {
        for (int column = 0; column < size; column++) {
            left[row][column] = row + 0.5 * column;
            right[row][column] = column - 0.25 * row;
        }
    }
    memset(product, 0, sizeof product);
    for (int row = 0; row < size; row++) {
        for (int inner = 0; inner < size; inner++) {
            __m128d factor = _mm_set1_pd(left[row][inner]);
            for (int column = 0; column < size; column += 2) {
                __m128d term = _mm_mul_pd(factor, _mm_loadu_pd(&right[inner][column]));
                _mm_store_pd(&product[row][column], _mm_add_pd(_mm_load_pd(&product[row][column]), term));
            }
        }
    }
    uint64_t sum = 0;
    for (int row = 0; row < size; row++) {
        uint64_t bits;
        memcpy(&bits, &product[row][row], sizeof bits);
        sum = mix(sum, bits);
    }
    return sum;
}
