// Writes to an I/O port that no device claims: in a guest, an exit to the virtual machine's monitor and back.

#include "workload.h"

#include <sys/io.h>

enum { port = 0x5f0 };

uint64_t port_output(void) {
    if (ioperm(port, 1, 1) != 0) fail("ioperm");
    for (int time = 0; time < 4096; time++) outb(0, port);
    return 0;
}
