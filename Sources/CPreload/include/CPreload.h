#pragma once

// The functions of the C library that a client's calls reach here first, and the table of descriptors that are Martlet's.
//
// They are written in C because some take a variable number of arguments, and because a client may call them in a signal
// handler, in a child of vfork(), or before the constructors have run: for any descriptor that is not in the table they go
// on to the C library at once. What is done for those in the table is Swift's (the functions below).

#include <stddef.h>
#include <stdint.h>
#include <signal.h>
#include <sys/types.h>

enum {
	// Descriptors from this number on are never Martlet's: twice the kernel's default limit of open files.
	MARTLET_PRELOAD_DESCRIPTORS = 1 << 21,
	// The entry of a file that Martlet uses itself: the client may neither close nor replace it.
	MARTLET_PRELOAD_RESERVED = 7,
};

// What descriptor `fd` is: 0 if it is not Martlet's, otherwise 1 + the number of an object.
uint32_t martlet_preload_entry(int fd);
// Makes `fd` stand for what `entry` says; returns what it stood for.
uint32_t martlet_preload_exchange(int fd, uint32_t entry);
// No descriptor from this one on has been entered yet.
int martlet_preload_end(void);

// Creates a file that can do nothing but be duplicated, polled and closed; a descriptor, or the negated error number.
int martlet_preload_make_file(const char *name);

// The part of the program's own file that it executes, as the dynamic linker has mapped it: the first one.
struct martlet_preload_code {
	uint8_t *start;
	size_t count;
};
struct martlet_preload_code martlet_preload_program_code(void);
// The first byte of the function that the byte at `code` belongs to, as the tables for unwinding tell; NULL if they do not.
const uint8_t *martlet_preload_function(const uint8_t *code);

// From now on handlers of signals are Swift's affair (martlet_preload_replace_action).
void martlet_preload_watch_signals(void);

// The calls below are Swift's. Those that return int give the C function's result or the negated error number.

// The library has been loaded; the program's first instruction is still to come.
void martlet_preload_started(void);
// open("/dev/kvm"): a descriptor.
int martlet_preload_open(int flags);
int martlet_preload_ioctl(uint32_t entry, int fd, uint32_t request, uintptr_t argument);
// The address, or the negated error number.
intptr_t martlet_preload_map(uint32_t entry, void *address, size_t count, int protection, int flags, off_t offset);
// Reads at `offset`, or at the file's own, which then moves, if it is negative.
ssize_t martlet_preload_read(uint32_t entry, int fd, void *buffer, size_t count, off_t offset);
// A descriptor more stands for an object, or one less.
void martlet_preload_retain(uint32_t entry);
void martlet_preload_release(uint32_t entry);
// The thread, which may be cancelled at any moment, is about to run a vCPU, or has done so.
void martlet_preload_enter_cancellable(uint32_t entry, uintptr_t thread);
void martlet_preload_leave_cancellable(uintptr_t thread);
// Somebody cancelled the thread.
void martlet_preload_cancelled(uintptr_t thread);
// A fork is about to happen, and has happened in this process: nobody else holds the locks that a child needs.
void martlet_preload_before_fork(void);
void martlet_preload_after_fork(int is_child);
// The process is a child of one that used objects.
void martlet_preload_forked(void);
// Takes out of `set` what threads must not block: the signals of faults.
void martlet_preload_admit_faults(sigset_t *set);
int martlet_preload_replace_action(int signal, const struct sigaction *action, struct sigaction *old);
