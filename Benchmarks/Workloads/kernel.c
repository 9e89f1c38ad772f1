// What programs ask of their kernel: a system call, page faults, processes, and switches between them.

#define _GNU_SOURCE
#include "workload.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

uint64_t getpid_call(void) {
    long first = syscall(SYS_getpid);
    uint64_t same = 0;
    for (int time = 0; time < 4096; time++) same += syscall(SYS_getpid) == first;
    return same;
}

uint64_t page_fault(void) {
    enum { pages = 64 };
    uint64_t sum = 0;
    for (int time = 0; time < 16; time++) {
        uint8_t *memory = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) fail("mmap");
        for (int page = 0; page < pages; page++) memory[page * 4096] = (uint8_t)page;
        for (int page = 0; page < pages; page++) sum = mix(sum, memory[page * 4096]);
        munmap(memory, pages * 4096);
    }
    return sum;
}

uint64_t fork_exec(void) {
    uint64_t sum = 0;
    for (int time = 0; time < 10; time++) {
        pid_t child = fork();
        if (child < 0) fail("fork");
        if (child == 0) {
            execl("/proc/self/exe", "workloads", "nothing", NULL);
            _exit(127);
        }
        int status;
        if (waitpid(child, &status, 0) != child) fail("waitpid");
        sum = mix(sum, (uint64_t)status);
    }
    return sum;
}

// Both processes share one CPU, so each message is a switch.
uint64_t context_switch(void) {
    static int to_child[2], to_parent[2];
    cpu_set_t all, first;
    sched_getaffinity(0, sizeof all, &all);
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    sched_setaffinity(0, sizeof first, &first);
    if (to_child[1] == 0) {
        if (pipe2(to_child, O_CLOEXEC) != 0 || pipe2(to_parent, O_CLOEXEC) != 0) fail("pipe2");
        pid_t child = fork();
        if (child < 0) fail("fork");
        if (child == 0) {
            // Without the parent's ends, the parent's end ends this process.
            close(to_child[1]);
            close(to_parent[0]);
            uint8_t byte;
            while (read(to_child[0], &byte, 1) == 1) {
                byte = (uint8_t)(byte * 5 + 1);
                if (write(to_parent[1], &byte, 1) != 1) break;
            }
            _exit(0);
        }
    }
    uint64_t sum = 0;
    for (int time = 0; time < 1000; time++) {
        uint8_t byte = (uint8_t)time;
        if (write(to_child[1], &byte, 1) != 1 || read(to_parent[0], &byte, 1) != 1) fail("pipe");
        sum = mix(sum, byte);
    }
    sched_setaffinity(0, sizeof all, &all);
    return sum;
}
