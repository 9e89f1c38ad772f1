// Descriptors of a client: what they can do, duplicates, closing in any order, forks, and mappings.
#include "client.h"

#include <sys/eventfd.h>
#include <sys/resource.h>

// mov dx, 0x99; out dx, al; mov dl, 0x10; out dx, al
static const uint8_t event_code[] = {0xba, 0x99, 0x00, 0xee, 0xb2, 0x10, 0xee};

static void device(void)
{
	struct stat status;
	CHECK(access("/dev/kvm", R_OK | W_OK) == 0);
	FAILS(EACCES, access("/dev/kvm", X_OK));
	CHECK(stat("/dev/kvm", &status) == 0 && S_ISCHR(status.st_mode));
	int kvm = openat(AT_FDCWD, "/dev/kvm", O_RDWR);
	CHECK(kvm >= 0 && (fcntl(kvm, F_GETFD) & FD_CLOEXEC) == 0);
	CHECK(fstat(kvm, &status) == 0);
	FAILS(ENODEV, mmap(NULL, 4096, PROT_READ, MAP_SHARED, kvm, 0) == MAP_FAILED ? -1 : 0);
	FAILS(EINVAL, read(kvm, &status, 1));
	// As C libraries do that sign-extend the request.
	CHECK(ioctl(kvm, 0xffffffff00000000ul | KVM_GET_API_VERSION, 0) == 12);
	CHECK(close(kvm) == 0);
	FAILS(EBADF, ioctl(kvm, KVM_GET_API_VERSION, 0));
}

static void duplicates(void)
{
	struct client c = make_client(out_code, sizeof out_code, 0);
	int second = dup(c.vcpu), third = fcntl(c.vcpu, F_DUPFD_CLOEXEC, 100), fourth = dup3(c.vcpu, 200, O_CLOEXEC);
	CHECK(second >= 0 && third >= 100 && fourth == 200);
	close(c.vcpu);
	close(c.vm);
	close(c.kvm);
	CHECK(ioctl(second, KVM_RUN, 0) == 0 && c.run->exit_reason == KVM_EXIT_IO);
	close(second);
	CHECK(ioctl(third, KVM_RUN, 0) == 0);
	// Something else in its place.
	CHECK(dup2(0, third) == third);
	FAILS(ENOTTY, ioctl(third, KVM_RUN, 0));
	CHECK(ioctl(fourth, KVM_RUN, 0) == 0);
	CHECK(close_range(fourth, fourth, 0) == 0);
	FAILS(EBADF, ioctl(fourth, KVM_RUN, 0));
	// The mapping outlives the vCPU.
	CHECK(c.run->exit_reason == KVM_EXIT_IO);
	CHECK(munmap(c.run, 3 * 4096) == 0);
}

static void mappings(void)
{
	struct client c = make_client(out_code, sizeof out_code, 0);
	struct kvm_run *again = mmap(NULL, 4096, PROT_READ, MAP_SHARED, c.vcpu, 0);
	CHECK(again != MAP_FAILED);
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0 && again->exit_reason == KVM_EXIT_IO);
	uint8_t *data = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, c.vcpu, 4096);
	CHECK(data != MAP_FAILED && data[0] == 0);
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0 && data[0] == 1);
	FAILS(EPERM, mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, c.vcpu, 0) == MAP_FAILED ? -1 : 0);
	FAILS(ENODEV, mmap(NULL, 4096, PROT_READ, MAP_SHARED, c.vm, 0) == MAP_FAILED ? -1 : 0);
	void *fixed = mmap(NULL, 4 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mmap(fixed, 4096, PROT_READ, MAP_SHARED | MAP_FIXED, c.vcpu, 0) == fixed);
	CHECK(((struct kvm_run *)fixed)->exit_reason == KVM_EXIT_IO);
	void *taken = (char *)fixed + 4096;
	int free_only = MAP_SHARED | MAP_FIXED_NOREPLACE;
	FAILS(EEXIST, mmap(taken, 4096, PROT_READ, free_only, c.vcpu, 0) == MAP_FAILED ? -1 : 0);
	CHECK(munmap(taken, 4096) == 0 && mmap(taken, 4096, PROT_READ, free_only, c.vcpu, 0) == taken);
	FAILS(EOVERFLOW, mmap(NULL, SIZE_MAX / 2 - 8191, PROT_READ, MAP_SHARED, c.vcpu, 0x7ffffffffffff000) == MAP_FAILED ? -1 : 0);
	close(c.vcpu), close(c.vm), close(c.kvm);
}

static void forks(void)
{
	struct client c = make_client(out_code, sizeof out_code, 0);
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0);
	pid_t child = fork();
	if (child == 0) {
		// What belongs to the parent is not the child's; a machine of its own is.
		if (ioctl(c.vcpu, KVM_RUN, 0) != -1 || errno != EIO) _exit(1);
		if (ioctl(c.kvm, KVM_GET_API_VERSION, 0) != 12) _exit(2);
		close(c.vcpu);
		struct client own = make_client(out_code, sizeof out_code, 0);
		_exit(ioctl(own.vcpu, KVM_RUN, 0) == 0 ? 42 : 3);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 42);
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0);
	// The child of a vfork() closes descriptors of its own.
	child = vfork();
	if (child == 0) {
		close(c.vcpu);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0);
	close(c.vcpu), close(c.vm), close(c.kvm);
}

static void *run_forever(void *argument)
{
	while (ioctl(*(int *)argument, KVM_RUN, 0) == 0) {
	}
	return NULL;
}

static void *run_cancellable(void *argument)
{
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	return run_forever(argument);
}

// A thread that is cancelled inside KVM_RUN ends, and the vCPU runs in another.
static void cancellation(void)
{
	struct client c = make_client(loop_code, sizeof loop_code, 0);
	for (int i = 0; i < 20; i++) {
		pthread_t thread;
		void *result;
		pthread_create(&thread, NULL, run_cancellable, &c.vcpu);
		if (i % 2) sleep_milliseconds(2);
		CHECK(pthread_cancel(thread) == 0);
		CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
	}
	place(&c, out_code, sizeof out_code);
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0);
	close(c.vcpu), close(c.vm), close(c.kvm);
}

// Memory under a machine that runs goes away, and comes back from a file and by mremap().
static void changing_memory(void)
{
	struct client c = make_client(mmio_code, sizeof mmio_code, 0);
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0 && c.run->exit_reason == KVM_EXIT_MMIO);
	CHECK(c.run->mmio.phys_addr == 0x8000 && c.run->mmio.len == 1 && !c.run->mmio.is_write);
	char path[] = "/tmp/martlet-client-XXXXXX";
	int file = mkstemp(path);
	unlink(path);
	CHECK(ftruncate(file, MEMORY_SIZE) == 0);
	CHECK(pwrite(file, out_code, sizeof out_code, CODE) == sizeof out_code);
	void *elsewhere = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(munmap(c.memory, MEMORY_SIZE) == 0);
	FAILS(EFAULT, ioctl(c.vcpu, KVM_RUN, 0));
	CHECK(mremap(elsewhere, MEMORY_SIZE, MEMORY_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, c.memory) == c.memory);
	place(&c, out_code, sizeof out_code);
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0 && c.run->exit_reason == KVM_EXIT_IO);
	// A page that the file does not have any more.
	CHECK(ftruncate(file, 0) == 0);
	FAILS(EFAULT, ioctl(c.vcpu, KVM_RUN, 0));
	CHECK(ftruncate(file, MEMORY_SIZE) == 0);
	place(&c, out_code, sizeof out_code);
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0);
	close(c.vcpu), close(c.vm), close(c.kvm);
}

// A client may close every descriptor that it did not open, as some do at their start.
static void closing_the_unknown(void)
{
	struct client c = make_client(event_code, sizeof event_code, 1);
	int event = eventfd(0, EFD_NONBLOCK), line = eventfd(0, EFD_NONBLOCK);
	struct kvm_irqfd interrupt = {.fd = line, .gsi = 5};
	CHECK(ioctl(c.vm, KVM_IRQFD, &interrupt) == 0);
	struct kvm_ioeventfd write = {.fd = event, .addr = 0x99, .len = 1, .flags = KVM_IOEVENTFD_FLAG_PIO};
	CHECK(ioctl(c.vm, KVM_IOEVENTFD, &write) == 0);
	int own[] = {c.kvm, c.vm, c.vcpu, event, line}, count = sizeof own / sizeof *own;
	for (int fd = 3; fd < 1100; fd++) {
		int is_own = 0;
		for (int i = 0; i < count; i++) is_own |= own[i] == fd;
		if (!is_own) close(fd);
	}
	// The other ways: numbers above those of this client, and all there are.
	int highest = 0;
	for (int i = 0; i < count; i++) highest = own[i] > highest ? own[i] : highest;
	CHECK(close_range(highest + 1, ~0u, 0) == 0);
	closefrom(highest + 1);
	int files[20];
	for (int i = 0; i < 20; i++) {
		files[i] = open("/tmp", O_TMPFILE | O_RDWR, 0600);
		CHECK(files[i] >= 0);
	}
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0 && c.run->exit_reason == KVM_EXIT_IO && c.run->io.port == 0x10);
	uint64_t value = 0;
	CHECK(read(event, &value, 8) == 8 && value >= 1);
	for (int i = 0; i < 20; i++) {
		struct stat status;
		CHECK(fstat(files[i], &status) == 0 && status.st_size == 0);
		close(files[i]);
	}
	interrupt.flags = KVM_IRQFD_FLAG_DEASSIGN;
	CHECK(ioctl(c.vm, KVM_IRQFD, &interrupt) == 0);
	close(event), close(line), close(c.vcpu), close(c.vm), close(c.kvm);
}

// Children of a process whose guest uses what they use.
static const uint8_t event_loop_code[] = {0xba, 0x99, 0x00, 0xee, 0xeb, 0xfd};

static void end_run(int signal)
{
	(void)signal;
}

static void forks_beside_a_guest(void)
{
	signal(SIGUSR1, end_run);
	struct client c = make_client(event_loop_code, sizeof event_loop_code, 0);
	int event = eventfd(0, EFD_NONBLOCK);
	struct kvm_ioeventfd write = {.fd = event, .addr = 0x99, .len = 1, .flags = KVM_IOEVENTFD_FLAG_PIO};
	CHECK(ioctl(c.vm, KVM_IOEVENTFD, &write) == 0);
	pthread_t thread;
	CHECK(pthread_create(&thread, NULL, run_forever, &c.vcpu) == 0);
	for (int i = 0; i < 20; i++) {
		sleep_milliseconds(1);
		pid_t child = fork();
		if (child == 0) {
			alarm(60);
			struct client own = make_client(event_code, sizeof event_code, 0);
			int result = ioctl(own.vm, KVM_IOEVENTFD, &write);
			write.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
			_exit(result == 0 && ioctl(own.vm, KVM_IOEVENTFD, &write) == 0 ? 0 : 1);
		}
		int status;
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
	pthread_kill(thread, SIGUSR1);
	pthread_join(thread, NULL);
	close(event), close(c.vcpu), close(c.vm), close(c.kvm);
}

// What fails for want of descriptors leaves nothing behind.
static void too_many(void)
{
	struct client c = make_client(out_code, sizeof out_code, 0);
	int dummies[4096], count = 0;
	struct rlimit old, limit;
	CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
	limit = old;
	limit.rlim_cur = 64;
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	while (count < 4096 && (dummies[count] = dup(0)) >= 0) count++;
	FAILS(EMFILE, ioctl(c.vm, KVM_CREATE_VCPU, 1));
	FAILS(EMFILE, ioctl(c.kvm, KVM_CREATE_VM, 0));
	FAILS(EMFILE, open("/dev/kvm", O_RDWR));
	while (count > 0) close(dummies[--count]);
	CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
	int vcpu = ioctl(c.vm, KVM_CREATE_VCPU, 1);
	CHECK(vcpu >= 0);
	close(vcpu), close(c.vcpu), close(c.vm), close(c.kvm);
}

// The statistics file, and readers that the C library has beside read().
ssize_t __read_chk(int fd, void *buffer, size_t count, size_t size);

static void statistics(void)
{
	struct client c = make_client(out_code, sizeof out_code, 0);
	int file = ioctl(c.vm, KVM_GET_STATS_FD, 0);
	CHECK(file >= 0);
	struct kvm_stats_header header, again;
	CHECK(read(file, &header, sizeof header) == sizeof header && header.num_desc > 0);
	CHECK(lseek(file, 0, SEEK_SET) == 0);
	CHECK(__read_chk(file, &again, sizeof again, sizeof again) == sizeof again);
	CHECK(memcmp(&header, &again, sizeof header) == 0);
	FAILS(EFAULT, pread(file, (void *)4096, 64, 0));
	static char all[1 << 16];
	ssize_t size = pread(file, all, sizeof all, 0);
	// More than there is to read, and than there is room for if there were.
	volatile size_t huge = SIZE_MAX >> 1;
	CHECK(size > 0 && pread(file, all, huge, 8) == size - 8);
	CHECK(pread(file, all, 64, size) == 0);
	close(file), close(c.vcpu), close(c.vm), close(c.kvm);
}

// Closed by stdio, which does not call close(): the number is somebody else's afterwards.
static void stdio(void)
{
	struct client c = make_client(out_code, sizeof out_code, 0);
	int number = dup(c.vcpu);
	FILE *stream = fdopen(number, "r");
	CHECK(stream && fclose(stream) == 0);
	int file = open("/proc/self/status", O_RDONLY);
	CHECK(file == number);
	char text[5] = {0};
	CHECK(read(file, text, 4) == 4 && strcmp(text, "Name") == 0);
	close(file);
	// A wrong flag closes nothing.
	FAILS(EINVAL, close_range(c.vcpu, c.vcpu, 1 << 10));
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0);
	close(c.vcpu), close(c.vm), close(c.kvm);
}

int main(void)
{
	device();
	duplicates();
	mappings();
	forks();
	cancellation();
	changing_memory();
	closing_the_unknown();
	forks_beside_a_guest();
	too_many();
	statistics();
	stdio();
	puts("passed");
}
