// The planets' orbits in long double, which the compiler computes with the x87.

#define REAL long double
#define SQUARE_ROOT __builtin_sqrtl
#define NBODY nbody_x87
#include "nbody.h"
