// The planets' orbits in double, which the compiler computes with SSE2.

#define REAL double
#define SQUARE_ROOT __builtin_sqrt
#define NBODY nbody_sse2
#include "nbody.h"
