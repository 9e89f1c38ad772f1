// The planets' orbits in the arithmetic of REAL, under the name NBODY. Included once for each arithmetic.

#include "workload.h"

#include <math.h>
#include <string.h>

enum { bodies = 5, steps = 10000 };

struct body {
    REAL position[3], velocity[3], mass;
};

static const struct body initial[bodies] = {
    {{0, 0, 0}, {0, 0, 0}, 39.47841760435743},
    {{4.841431442464721, -1.1603200440274284, -0.10362204447112311},
     {0.606326392995832, 2.81198684491626, -0.02521836165988763}, 0.03769367487038949},
    {{8.34336671824458, 4.124798564124305, -0.4035234171143214},
     {-1.0107743461787924, 1.8256623712304119, 0.008415761376584154}, 0.011286326131968767},
    {{12.894369562139131, -15.111151401698631, -0.22330757889265573},
     {1.0827910064415354, 0.8687130181696082, -0.010832637401363636}, 0.0017237240570597112},
    {{15.379697114850917, -25.919314609987964, 0.17925877295037118},
     {0.979090732243898, 0.5946989986476762, -0.034755955504078104}, 0.0020336868699246304},
};

uint64_t NBODY(void) {
    struct body system[bodies];
    memcpy(system, initial, sizeof system);
    for (int step = 0; step < steps; step++) {
        for (int a = 0; a < bodies; a++) {
            for (int b = a + 1; b < bodies; b++) {
                REAL distance[3], square = 0;
                for (int axis = 0; axis < 3; axis++) {
                    distance[axis] = system[a].position[axis] - system[b].position[axis];
                    square += distance[axis] * distance[axis];
                }
                REAL magnitude = (REAL)0.01 / (square * SQUARE_ROOT(square));
                for (int axis = 0; axis < 3; axis++) {
                    system[a].velocity[axis] -= distance[axis] * system[b].mass * magnitude;
                    system[b].velocity[axis] += distance[axis] * system[a].mass * magnitude;
                }
            }
        }
        for (int a = 0; a < bodies; a++)
            for (int axis = 0; axis < 3; axis++) system[a].position[axis] += (REAL)0.01 * system[a].velocity[axis];
    }
    uint64_t sum = 0;
    for (int a = 0; a < bodies; a++) {
        for (int axis = 0; axis < 3; axis++) {
            double rounded = (double)system[a].position[axis];
            uint64_t bits;
            memcpy(&bits, &rounded, sizeof bits);
            sum = mix(sum, bits);
        }
    }
    return sum;
}
