// Descriptors of a client: what they can do, duplicates, closing in any order, forks, and mappings.
#include "client.h"

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
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0 || errno == EINTR);
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

int main(void)
{
	device();
	duplicates();
	mappings();
	forks();
	cancellation();
	changing_memory();
	puts("passed");
}
