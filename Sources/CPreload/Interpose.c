#include "CPreload.h"

#include "CHost.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

// MARK: The table

static _Atomic uint32_t entries[MARTLET_PRELOAD_DESCRIPTORS];
static _Atomic int entries_end;
// The process that the table belongs to: a child of vfork() shares the memory, but has descriptors of its own.
static _Atomic pid_t owner;

uint32_t martlet_preload_entry(int fd)
{
	if ((unsigned)fd >= MARTLET_PRELOAD_DESCRIPTORS) return 0;
	// ORDERING: acquire pairs with the release of martlet_preload_exchange().
	return atomic_load_explicit(&entries[fd], memory_order_acquire);
}

uint32_t martlet_preload_exchange(int fd, uint32_t entry)
{
	if ((unsigned)fd >= MARTLET_PRELOAD_DESCRIPTORS) return 0;
	int end = atomic_load(&entries_end);
	while (entry && end <= fd && !atomic_compare_exchange_weak(&entries_end, &end, fd + 1)) {
	}
	// ORDERING: release, so that who finds the entry finds its object.
	return atomic_exchange_explicit(&entries[fd], entry, memory_order_acq_rel);
}

int martlet_preload_end(void)
{
	return atomic_load(&entries_end);
}

static bool owns_table(void)
{
	return atomic_load(&owner) == (pid_t)syscall(SYS_getpid);
}

// Martlet's own files are not the client's to close, nor to put others in their place.
static bool is_reserved(int fd)
{
	return martlet_preload_entry(fd) == MARTLET_PRELOAD_RESERVED && owns_table();
}

// The core holds locks, and calls functions that a cancelled thread ends in; ioctl() and mmap() are none of those.
static inline int hold_cancellation(void)
{
	int state;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	return state;
}

static inline void release_cancellation(int state)
{
	if (state != PTHREAD_CANCEL_DISABLE) pthread_setcancelstate(state, NULL);
}

static void release_object(uint32_t entry)
{
	int state = hold_cancellation();
	martlet_preload_release(entry);
	release_cancellation(state);
}

// What a client's `fd` stands for; 0 if that is the C library's affair, as it is for Martlet's own files.
static inline uint32_t object_of(int fd)
{
	uint32_t entry = martlet_preload_entry(fd);
	return __builtin_expect(entry == MARTLET_PRELOAD_RESERVED, 0) ? 0 : entry;
}

static void watch_descriptor(int fd, _Bool is_taken)
{
	martlet_preload_exchange(fd, is_taken ? MARTLET_PRELOAD_RESERVED : 0);
}

// `fd` stands for nothing of Martlet's any more.
static void drop(int fd)
{
	if (!martlet_preload_entry(fd) || !owns_table()) return;
	uint32_t old = martlet_preload_exchange(fd, 0);
	if (old) release_object(old);
}

// A new file of the client's has the number of one of Martlet's that was closed by a way which does not lead through here.
static int opened(int fd)
{
	if (fd >= 0 && martlet_preload_entry(fd)) drop(fd);
	return fd;
}

static int duplicated(int from, int to)
{
	uint32_t entry = object_of(from);
	if (to < 0 || to == from || !owns_table()) return to;
	int state = hold_cancellation();
	if (entry) martlet_preload_retain(entry);
	release_cancellation(state);
	uint32_t old = martlet_preload_exchange(to, entry);
	if (old) release_object(old);
	return to;
}

// MARK: The C library's own functions

// Looked up at first use: constructors of other libraries may call before those of this one.
#define REAL(result, name, parameters)                                                                                 \
	static result(*real_##name) parameters;                                                                        \
	static result(*get_##name(void)) parameters                                                                    \
	{                                                                                                              \
		if (!real_##name) real_##name = (result(*) parameters)dlsym(RTLD_NEXT, #name);                         \
		return real_##name;                                                                                    \
	}

REAL(int, open64, (const char *, int, mode_t))
REAL(int, openat64, (int, const char *, int, mode_t))
REAL(int, close, (int))
REAL(int, fclose, (FILE *))
REAL(int, ioctl, (int, unsigned long, uintptr_t))
REAL(void *, mmap64, (void *, size_t, int, int, int, off_t))
REAL(ssize_t, read, (int, void *, size_t))
REAL(ssize_t, pread64, (int, void *, size_t, off_t))
REAL(int, dup, (int))
REAL(int, dup2, (int, int))
REAL(int, dup3, (int, int, int))
REAL(int, fcntl64, (int, int, uintptr_t))
REAL(int, close_range, (unsigned, unsigned, int))
REAL(int, pthread_cancel, (pthread_t))
REAL(int, access, (const char *, int))
REAL(int, faccessat, (int, const char *, int, int))
REAL(int, stat64, (const char *, struct stat64 *))
REAL(int, lstat64, (const char *, struct stat64 *))
REAL(int, fstatat64, (int, const char *, struct stat64 *, int))
REAL(int, statx, (int, const char *, int, unsigned, struct statx *))
REAL(int, pthread_sigmask, (int, const sigset_t *, sigset_t *))
REAL(int, sigaction, (int, const struct sigaction *, struct sigaction *))

static int answer(int result)
{
	if (result >= 0) return result;
	errno = -result;
	return -1;
}

// MARK: The device

static const char device[] = "/dev/kvm";

static bool is_device(const char *path)
{
	return path && !strcmp(path, device);
}

static bool takes_mode(int flags)
{
	return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE;
}

static int open_device(int flags)
{
	int state = hold_cancellation();
	int result = martlet_preload_open(flags);
	release_cancellation(state);
	return answer(result);
}

static int open_path(const char *path, int flags, mode_t mode)
{
	return is_device(path) ? open_device(flags) : opened(get_open64()(path, flags, mode));
}

static int open_path_at(int directory, const char *path, int flags, mode_t mode)
{
	return is_device(path) ? open_device(flags) : opened(get_openat64()(directory, path, flags, mode));
}

#define MODE_OF(flags)                                                                                                 \
	mode_t mode = 0;                                                                                               \
	if (takes_mode(flags)) {                                                                                       \
		va_list arguments;                                                                                     \
		va_start(arguments, flags);                                                                            \
		mode = va_arg(arguments, mode_t);                                                                      \
		va_end(arguments);                                                                                     \
	}

EXPORT int open(const char *path, int flags, ...)
{
	MODE_OF(flags)
	return open_path(path, flags, mode);
}

EXPORT int open64(const char *path, int flags, ...)
{
	MODE_OF(flags)
	return open_path(path, flags, mode);
}

EXPORT int openat(int directory, const char *path, int flags, ...)
{
	MODE_OF(flags)
	return open_path_at(directory, path, flags, mode);
}

EXPORT int openat64(int directory, const char *path, int flags, ...)
{
	MODE_OF(flags)
	return open_path_at(directory, path, flags, mode);
}

// What _FORTIFY_SOURCE makes of calls without a mode.
EXPORT int __open_2(const char *path, int flags)
{
	return open_path(path, flags, 0);
}

EXPORT int __open64_2(const char *path, int flags)
{
	return open_path(path, flags, 0);
}

EXPORT int __openat_2(int directory, const char *path, int flags)
{
	return open_path_at(directory, path, flags, 0);
}

EXPORT int __openat64_2(int directory, const char *path, int flags)
{
	return open_path_at(directory, path, flags, 0);
}

// Everybody may read and write it; nobody may execute it.
static int check_access(int mode)
{
	return mode & X_OK ? answer(-EACCES) : 0;
}

EXPORT int access(const char *path, int mode)
{
	return is_device(path) ? check_access(mode) : get_access()(path, mode);
}

EXPORT int faccessat(int directory, const char *path, int mode, int flags)
{
	return is_device(path) ? check_access(mode) : get_faccessat()(directory, path, mode, flags);
}

EXPORT int euidaccess(const char *path, int mode)
{
	return faccessat(AT_FDCWD, path, mode, AT_EACCESS);
}

EXPORT int eaccess(const char *path, int mode)
{
	return faccessat(AT_FDCWD, path, mode, AT_EACCESS);
}

// A misc device, as Documentation/admin-guide/devices.txt numbers it.
enum { DEVICE_MAJOR = 10, DEVICE_MINOR = 232, DEVICE_MODE = S_IFCHR | 0666 };

static int describe_device(struct stat64 *status)
{
	*status = (struct stat64){
		.st_mode = DEVICE_MODE,
		.st_nlink = 1,
		.st_rdev = makedev(DEVICE_MAJOR, DEVICE_MINOR),
		.st_blksize = 4096,
	};
	return 0;
}

_Static_assert(sizeof(struct stat) == sizeof(struct stat64), "one structure for both");

#define STAT(name, structure, next)                                                                                    \
	EXPORT int name(const char *path, struct structure *status)                                                    \
	{                                                                                                              \
		struct stat64 *large = (struct stat64 *)status;                                                        \
		return is_device(path) ? describe_device(large) : get_##next()(path, large);                           \
	}
STAT(stat, stat, stat64)
STAT(stat64, stat64, stat64)
STAT(lstat, stat, lstat64)
STAT(lstat64, stat64, lstat64)

// What programs of older C libraries call.
#define OLD_STAT(name, structure, next)                                                                                \
	EXPORT int name(int version, const char *path, struct structure *status)                                       \
	{                                                                                                              \
		(void)version;                                                                                         \
		return next(path, status);                                                                             \
	}
OLD_STAT(__xstat, stat, stat)
OLD_STAT(__xstat64, stat64, stat64)
OLD_STAT(__lxstat, stat, lstat)
OLD_STAT(__lxstat64, stat64, lstat64)

EXPORT int fstatat64(int directory, const char *path, struct stat64 *status, int flags)
{
	return is_device(path) ? describe_device(status) : get_fstatat64()(directory, path, status, flags);
}

EXPORT int fstatat(int directory, const char *path, struct stat *status, int flags)
{
	return fstatat64(directory, path, (struct stat64 *)status, flags);
}

EXPORT int statx(int directory, const char *path, int flags, unsigned mask, struct statx *status)
{
	if (!is_device(path)) return get_statx()(directory, path, flags, mask, status);
	*status = (struct statx){
		.stx_mask = STATX_TYPE | STATX_MODE | STATX_NLINK,
		.stx_blksize = 4096,
		.stx_nlink = 1,
		.stx_mode = DEVICE_MODE,
		.stx_rdev_major = DEVICE_MAJOR,
		.stx_rdev_minor = DEVICE_MINOR,
	};
	return 0;
}

// MARK: Descriptors

int martlet_preload_make_file(const char *name)
{
	int fd = (int)syscall(SYS_memfd_create, name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0) return -errno;
	get_fcntl64()(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
	return fd;
}

// The thread's run, if it is cancelled before that has begun.
static void forget_run(void *self)
{
	martlet_preload_leave_cancellable((uintptr_t)self);
}

// A thread that may be cancelled at any moment (PTHREAD_CANCEL_ASYNCHRONOUS) must not end in guest code: its cancellation ends
// the run first, and takes effect here.
static int run(uint32_t entry, int fd, uintptr_t argument)
{
	int type;
	pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
	if (__builtin_expect(type == PTHREAD_CANCEL_DEFERRED, 1)) {
		int state = hold_cancellation();
		int result = martlet_preload_ioctl(entry, fd, KVM_RUN, argument);
		release_cancellation(state);
		return answer(result);
	}
	uintptr_t self = (uintptr_t)pthread_self();
	int state = hold_cancellation();
	martlet_preload_enter_cancellable(entry, self);
	release_cancellation(state);
	// Who cancels from here on finds the thread entered; who did before is noticed now.
	pthread_cleanup_push(forget_run, (void *)self);
	pthread_testcancel();
	pthread_cleanup_pop(0);
	hold_cancellation();
	int result = martlet_preload_ioctl(entry, fd, KVM_RUN, argument);
	martlet_preload_leave_cancellable(self);
	release_cancellation(state);
	pthread_setcanceltype(type, NULL);
	return answer(result);
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	uintptr_t argument = va_arg(arguments, uintptr_t);
	va_end(arguments);
	uint32_t entry = object_of(fd);
	if (__builtin_expect(!entry, 0)) return get_ioctl()(fd, request, argument);
	if ((uint32_t)request == KVM_RUN) return run(entry, fd, argument);
	int state = hold_cancellation();
	int result = martlet_preload_ioctl(entry, fd, (uint32_t)request, argument);
	release_cancellation(state);
	return answer(result);
}

EXPORT int pthread_cancel(pthread_t thread)
{
	int result = get_pthread_cancel()(thread);
	if (result == 0) martlet_preload_cancelled((uintptr_t)thread);
	return result;
}

static void *map(void *address, size_t count, int protection, int flags, int fd, off_t offset)
{
	uint32_t entry = flags & MAP_ANONYMOUS ? 0 : object_of(fd);
	if (!entry) return get_mmap64()(address, count, protection, flags, fd, offset);
	int state = hold_cancellation();
	intptr_t result = martlet_preload_map(entry, address, count, protection, flags, offset);
	release_cancellation(state);
	if (result > -4096 && result < 0) {
		errno = (int)-result;
		return MAP_FAILED;
	}
	return (void *)result;
}

EXPORT void *mmap(void *address, size_t count, int protection, int flags, int fd, off_t offset)
{
	return map(address, count, protection, flags, fd, offset);
}

EXPORT void *mmap64(void *address, size_t count, int protection, int flags, int fd, off64_t offset)
{
	return map(address, count, protection, flags, fd, offset);
}

static ssize_t read_object(uint32_t entry, int fd, void *buffer, size_t count, off64_t offset)
{
	int state = hold_cancellation();
	ssize_t result = martlet_preload_read(entry, fd, buffer, count, offset);
	release_cancellation(state);
	if (result >= 0) return result;
	errno = (int)-result;
	return -1;
}

EXPORT ssize_t read(int fd, void *buffer, size_t count)
{
	uint32_t entry = object_of(fd);
	if (!entry) return get_read()(fd, buffer, count);
	return read_object(entry, fd, buffer, count, -1);
}

EXPORT ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset)
{
	uint32_t entry = object_of(fd);
	if (!entry) return get_pread64()(fd, buffer, count, offset);
	if (offset < 0) return answer(-EINVAL);
	return read_object(entry, fd, buffer, count, offset);
}

EXPORT ssize_t pread(int fd, void *buffer, size_t count, off_t offset)
{
	return pread64(fd, buffer, count, offset);
}

// What _FORTIFY_SOURCE makes of reads; a buffer that is too small is the C library's affair.
ssize_t __read_chk(int fd, void *buffer, size_t count, size_t size);
ssize_t __pread_chk(int fd, void *buffer, size_t count, off_t offset, size_t size);
ssize_t __pread64_chk(int fd, void *buffer, size_t count, off64_t offset, size_t size);
void __chk_fail(void) __attribute__((noreturn));

EXPORT ssize_t __read_chk(int fd, void *buffer, size_t count, size_t size)
{
	if (count > size) __chk_fail();
	return read(fd, buffer, count);
}

EXPORT ssize_t __pread64_chk(int fd, void *buffer, size_t count, off64_t offset, size_t size)
{
	if (count > size) __chk_fail();
	return pread64(fd, buffer, count, offset);
}

EXPORT ssize_t __pread_chk(int fd, void *buffer, size_t count, off_t offset, size_t size)
{
	return __pread64_chk(fd, buffer, count, offset, size);
}

EXPORT int close(int fd)
{
	if (is_reserved(fd)) return answer(-EBADF);
	// Before the number is free for others.
	drop(fd);
	return get_close()(fd);
}

EXPORT int fclose(FILE *file)
{
	// Closes the number without close().
	int fd = file ? fileno(file) : -1;
	if (fd >= 0 && !is_reserved(fd)) drop(fd);
	return get_fclose()(file);
}

enum { UNSHARE = 2 /* CLOSE_RANGE_UNSHARE */, LEAVE_OPEN = 4 /* CLOSE_RANGE_CLOEXEC */ };

// Between Martlet's own files, if there are any.
static int close_parts(unsigned first, unsigned last, int flags)
{
	unsigned end = (unsigned)martlet_preload_end(), start = first;
	for (unsigned fd = first; fd <= last && fd < end; fd++) {
		if (!is_reserved((int)fd)) {
			if (martlet_preload_entry((int)fd)) drop((int)fd);
			continue;
		}
		if (start < fd && get_close_range()(start, fd - 1, flags) != 0) return -1;
		start = fd + 1;
	}
	return start <= last ? get_close_range()(start, last, flags) : 0;
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	bool closes = !(flags & ~UNSHARE) && first <= last;
	return closes ? close_parts(first, last, flags) : get_close_range()(first, last, flags);
}

EXPORT void closefrom(int first)
{
	first = first < 0 ? 0 : first;
	if (close_range((unsigned)first, ~0u, 0) == 0) return;
	// Before Linux 5.9.
	for (long fd = first, end = sysconf(_SC_OPEN_MAX); fd < end; fd++) close((int)fd);
}

EXPORT int dup(int fd)
{
	return duplicated(fd, get_dup()(fd));
}

EXPORT int dup2(int fd, int target)
{
	if (target != fd && is_reserved(target)) return answer(-EBUSY);
	return duplicated(fd, get_dup2()(fd, target));
}

EXPORT int dup3(int fd, int target, int flags)
{
	if (target != fd && is_reserved(target)) return answer(-EBUSY);
	return duplicated(fd, get_dup3()(fd, target, flags));
}

static int control(int fd, int command, uintptr_t argument)
{
	int result = get_fcntl64()(fd, command, argument);
	return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? duplicated(fd, result) : result;
}

#define FCNTL(name)                                                                                                    \
	EXPORT int name(int fd, int command, ...)                                                                      \
	{                                                                                                              \
		va_list arguments;                                                                                     \
		va_start(arguments, command);                                                                          \
		uintptr_t argument = va_arg(arguments, uintptr_t);                                                     \
		va_end(arguments);                                                                                     \
		return control(fd, command, argument);                                                                 \
	}
FCNTL(fcntl)
FCNTL(fcntl64)

// MARK: Signals

static _Atomic bool watches_signals;

void martlet_preload_watch_signals(void)
{
	atomic_store(&watches_signals, true);
}

EXPORT int sigaction(int signal, const struct sigaction *action, struct sigaction *old)
{
	// A child of vfork() has handlers of its own, but what is kept of them here is its parent's.
	if (!atomic_load_explicit(&watches_signals, memory_order_relaxed) || !owns_table())
		return get_sigaction()(signal, action, old);
	return answer(martlet_preload_replace_action(signal, action, old));
}

// A fault whose signal is blocked ends the process, and faults are part of Martlet's work.
EXPORT int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
	if (!set || how == SIG_UNBLOCK || !atomic_load_explicit(&watches_signals, memory_order_relaxed))
		return get_pthread_sigmask()(how, set, old);
	sigset_t admitted = *set;
	martlet_preload_admit_faults(&admitted);
	return get_pthread_sigmask()(how, &admitted, old);
}

EXPORT int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
	return answer(-pthread_sigmask(how, set, old));
}

// The signals that end system calls, whatever signal() says: bit n - 1 is signal n.
static _Atomic uint64_t interrupting;

static sighandler_t set_handler(int signal, sighandler_t handler, int flags)
{
	if (handler == SIG_ERR) {
		errno = EINVAL;
		return SIG_ERR;
	}
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags}, old;
	sigemptyset(&action.sa_mask);
	if (!(flags & SA_NODEFER)) sigaddset(&action.sa_mask, signal);
	return sigaction(signal, &action, &old) == 0 ? old.sa_handler : SIG_ERR;
}

static uint64_t signal_bit(int signal)
{
	return signal >= 1 && signal <= 64 ? UINT64_C(1) << (signal - 1) : 0;
}

static int restart_flag(int signal)
{
	return atomic_load(&interrupting) & signal_bit(signal) ? 0 : SA_RESTART;
}

EXPORT int siginterrupt(int signal, int interrupts)
{
	struct sigaction action;
	if (sigaction(signal, NULL, &action) != 0) return -1;
	if (interrupts) {
		atomic_fetch_or(&interrupting, signal_bit(signal));
		action.sa_flags &= ~SA_RESTART;
	} else {
		atomic_fetch_and(&interrupting, ~signal_bit(signal));
		action.sa_flags |= SA_RESTART;
	}
	return sigaction(signal, &action, NULL);
}

// System V's: blocks the signal, or lets it through to a handler.
EXPORT sighandler_t sigset(int signal, sighandler_t handler)
{
	struct sigaction action = {.sa_handler = handler}, old;
	sigset_t set, mask;
	sigemptyset(&set);
	if (sigaddset(&set, signal) != 0) return SIG_ERR;
	if (handler == SIG_HOLD) {
		if (sigaction(signal, NULL, &old) != 0 || sigprocmask(SIG_BLOCK, &set, &mask) != 0) return SIG_ERR;
	} else {
		sigemptyset(&action.sa_mask);
		if (sigaction(signal, &action, &old) != 0 || sigprocmask(SIG_UNBLOCK, &set, &mask) != 0) return SIG_ERR;
	}
	return sigismember(&mask, signal) ? SIG_HOLD : old.sa_handler;
}

EXPORT int sigignore(int signal)
{
	struct sigaction action = {.sa_handler = SIG_IGN};
	sigemptyset(&action.sa_mask);
	return sigaction(signal, &action, NULL);
}

#define BSD_SIGNAL(name)                                                                                               \
	EXPORT sighandler_t name(int signal, sighandler_t handler)                                                     \
	{                                                                                                              \
		return set_handler(signal, handler, restart_flag(signal));                                             \
	}
BSD_SIGNAL(signal)
BSD_SIGNAL(bsd_signal)
BSD_SIGNAL(ssignal)

#define SYSV_SIGNAL(name)                                                                                              \
	EXPORT sighandler_t name(int signal, sighandler_t handler)                                                     \
	{                                                                                                              \
		return set_handler(signal, handler, SA_RESETHAND | SA_NODEFER);                                        \
	}
SYSV_SIGNAL(sysv_signal)
SYSV_SIGNAL(__sysv_signal)

// MARK: The program

static int find_code(struct dl_phdr_info *object, size_t size, void *result)
{
	(void)size;
	struct martlet_preload_code *code = result;
	for (int i = 0; i < object->dlpi_phnum; i++) {
		const ElfW(Phdr) *part = &object->dlpi_phdr[i];
		if (part->p_type != PT_LOAD || !(part->p_flags & PF_X)) continue;
		*code = (struct martlet_preload_code){(uint8_t *)(object->dlpi_addr + part->p_vaddr), part->p_memsz};
		break;
	}
	// The program comes first.
	return 1;
}

struct martlet_preload_code martlet_preload_program_code(void)
{
	struct martlet_preload_code code = {NULL, 0};
	dl_iterate_phdr(find_code, &code);
	return code;
}

// Of libgcc, for what makes code at run time; no header declares it.
struct dwarf_eh_bases {
	void *text, *data, *function;
};
const void *_Unwind_Find_FDE(void *pc, struct dwarf_eh_bases *bases);

const uint8_t *martlet_preload_function(const uint8_t *code)
{
	struct dwarf_eh_bases bases;
	return _Unwind_Find_FDE((void *)code, &bases) ? bases.function : NULL;
}

// MARK: Start

static void in_parent(void)
{
	martlet_preload_after_fork(0);
}

static void in_child(void)
{
	atomic_store(&owner, getpid());
	martlet_preload_forked();
	martlet_preload_after_fork(1);
}

__attribute__((constructor)) static void start(void)
{
	atomic_store(&owner, getpid());
	pthread_atfork(martlet_preload_before_fork, in_parent, in_child);
	martlet_descriptor_watcher = watch_descriptor;
	// Called in signal handlers, where nothing can be looked up.
	get_pthread_sigmask();
	martlet_preload_started();
}
