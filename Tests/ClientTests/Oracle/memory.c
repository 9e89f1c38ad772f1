// Memory slots, what guests see of them, and the logs of what they write.
#include "oracle.h"

static long set_region(struct machine *m, uint32_t slot, uint32_t flags, uint64_t address, uint64_t size, uint64_t host)
{
	struct kvm_userspace_memory_region region = {slot, flags, address, size, host};
	errno = 0;
	return ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static void regions(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	uint64_t host = (uintptr_t)mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	enum { AT = 0x100000 };
	answer("new", set_region(&m, 1, 0, AT, 0x4000, host));
	answer("as it is", set_region(&m, 1, 0, AT, 0x4000, host));
	answer("smaller", set_region(&m, 1, 0, AT, 0x2000, host));
	answer("other host address", set_region(&m, 1, 0, AT, 0x4000, host + 0x4000));
	answer("moves", set_region(&m, 1, 0, AT + 0x1000, 0x4000, host));
	answer("log on", set_region(&m, 1, 1, AT + 0x1000, 0x4000, host));
	answer("log off", set_region(&m, 1, 0, AT + 0x1000, 0x4000, host));
	answer("read-only", set_region(&m, 1, 2, AT + 0x1000, 0x4000, host));
	answer("new read-only with log", set_region(&m, 2, 3, AT + 0x10000, 0x1000, host));
	answer("no longer read-only", set_region(&m, 2, 0, AT + 0x10000, 0x1000, host));
	answer("unknown flag", set_region(&m, 3, 4, AT + 0x20000, 0x1000, host));
	answer("overlap", set_region(&m, 3, 0, AT + 0x4000, 0x1000, host));
	answer("overlap of the end", set_region(&m, 3, 0, AT, 0x2000, host));
	answer("touches", set_region(&m, 3, 0, AT + 0x5000, 0x1000, host));
	answer("half a page", set_region(&m, 4, 0, AT + 0x30000, 0x800, host));
	answer("at half a page", set_region(&m, 4, 0, AT + 0x30800, 0x1000, host));
	answer("at half a host page", set_region(&m, 4, 0, AT + 0x30000, 0x1000, host + 0x800));
	answer("wraps", set_region(&m, 4, 0, ~0xfffull, 0x2000, host));
	answer("beyond physical addresses", set_region(&m, 4, 0, 1ull << 60, 0x1000, host));
	answer("too many pages", set_region(&m, 4, 0, AT + 0x30000, 1ull << 43, host));
	answer("the kernel's half", set_region(&m, 4, 0, AT + 0x30000, 0x1000, 0xffff800000000000));
	answer("host memory that is not there", set_region(&m, 4, 0, AT + 0x30000, 0x1000, 0x10000));
	answer("slot -1", set_region(&m, 0xffff, 0, AT + 0x40000, 0x1000, host));
	int count = ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
	answer("first slot beyond all", set_region(&m, count, 0, AT + 0x40000, 0x1000, host));
	answer("last slot", set_region(&m, count - 1, 0, AT + 0x40000, 0x1000, host));
	answer("an address space that is not there", set_region(&m, 7 << 16 | 1, 0, AT, 0x1000, host));
	answer("another address space", set_region(&m, 1 << 16 | 1, 0, AT, 0x1000, host));
	answer("overlap in another address space", set_region(&m, 1 << 16 | 2, 0, AT, 0x1000, host));
	answer("deletion of nothing", set_region(&m, 9, 0, 0, 0, 0));
	answer("deletion with unknown flags", set_region(&m, 1, 8, 0, 0, 0));
	answer("deletion with other addresses", set_region(&m, 1, 0, 0x7000, 0, 0x7000));
	answer("deletion again", set_region(&m, 1, 0, 0x7000, 0, 0x7000));
	errno = 0;
	ASK("from nowhere", m.vm, KVM_SET_USER_MEMORY_REGION, NULL);
}

GUEST(writes_pages, 16, "mov %al, 0x5000\n mov %al, 0x7000\n mov %al, 0x7001\n mov 0x6000, %al\n hlt\n jmp writes_pages\n");

// The guest only reads page 6, which KVM may log nevertheless.
enum { WRITTEN = 1 << 5 | 1 << 7 };

static long get_log(struct machine *m, uint32_t slot, uint64_t *bits)
{
	struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bits};
	errno = 0;
	*bits = 0;
	return ioctl(m->vm, KVM_GET_DIRTY_LOG, &log);
}

static void dirty_log(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, writes_pages);
	uint64_t bits = 0, host = (uintptr_t)m.memory;
	answer("log that is not kept", get_log(&m, 0, &bits));
	answer("log of no slot", get_log(&m, 5, &bits));
	answer("log of a slot that cannot be", get_log(&m, 0xffff, &bits));
	answer("log on", set_region(&m, 0, 1, 0, MEMORY_SIZE, host));
	run(&m);
	answer("log", get_log(&m, 0, &bits));
	say("pages 5 and 7: 0x%llx", (unsigned long long)bits & WRITTEN);
	answer("log again", get_log(&m, 0, &bits));
	say("pages 5 and 7: 0x%llx", (unsigned long long)bits & WRITTEN);
	run(&m);
	answer("log after a run", get_log(&m, 0, &bits));
	say("pages 5 and 7: 0x%llx", (unsigned long long)bits & WRITTEN);
	struct kvm_clear_dirty_log clear = {.num_pages = 64, .dirty_bitmap = &bits};
	ASK("cleared, but not by hand", m.vm, KVM_CLEAR_DIRTY_LOG, &clear);
	struct kvm_dirty_log log = {.slot = 0};
	ASK("log to nowhere", m.vm, KVM_GET_DIRTY_LOG, &log);
	ASK("log of nothing", m.vm, KVM_GET_DIRTY_LOG, NULL);
	answer("log off", set_region(&m, 0, 0, 0, MEMORY_SIZE, host));
	answer("log", get_log(&m, 0, &bits));
}

static void dirty_log_by_hand(void)
{
	for (int initially = 0; initially < 2; initially++) {
		struct machine m = make_machine(PLAIN);
		LOAD(&m, writes_pages);
		uint64_t bits = 0, host = (uintptr_t)m.memory;
		answer("by hand", enable(m.vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, initially ? 3 : 1));
		answer("log on", set_region(&m, 0, 1, 0, MEMORY_SIZE, host));
		answer("log", get_log(&m, 0, &bits));
		say("all are set: %d", bits == ~0ull);
		struct kvm_clear_dirty_log clear = {.num_pages = 64, .dirty_bitmap = &bits};
		ASK("cleared", m.vm, KVM_CLEAR_DIRTY_LOG, &clear);
		run(&m);
		for (int i = 0; i < 2; i++) {
			answer("log", get_log(&m, 0, &bits));
			say("pages 5 and 7: 0x%llx", (unsigned long long)bits & WRITTEN);
		}
		bits = 0x20;
		ASK("page 5 cleared", m.vm, KVM_CLEAR_DIRTY_LOG, &clear);
		answer("log", get_log(&m, 0, &bits));
		say("pages 5 and 7: 0x%llx", (unsigned long long)bits & WRITTEN);
		bits = ~0ull;
		clear = (struct kvm_clear_dirty_log){.num_pages = 63, .dirty_bitmap = &bits};
		ASK("63 pages", m.vm, KVM_CLEAR_DIRTY_LOG, &clear);
		clear = (struct kvm_clear_dirty_log){.num_pages = 64, .first_page = 5, .dirty_bitmap = &bits};
		ASK("from page 5 on", m.vm, KVM_CLEAR_DIRTY_LOG, &clear);
		clear = (struct kvm_clear_dirty_log){.num_pages = 128, .dirty_bitmap = &bits};
		ASK("128 pages", m.vm, KVM_CLEAR_DIRTY_LOG, &clear);
		clear = (struct kvm_clear_dirty_log){.num_pages = 64, .first_page = 64, .dirty_bitmap = &bits};
		ASK("beyond the end", m.vm, KVM_CLEAR_DIRTY_LOG, &clear);
		clear = (struct kvm_clear_dirty_log){.num_pages = 0, .dirty_bitmap = &bits};
		ASK("no pages", m.vm, KVM_CLEAR_DIRTY_LOG, &clear);
		clear = (struct kvm_clear_dirty_log){.num_pages = 64};
		ASK("from nowhere", m.vm, KVM_CLEAR_DIRTY_LOG, &clear);
		clear = (struct kvm_clear_dirty_log){.slot = 7, .num_pages = 64, .dirty_bitmap = &bits};
		ASK("no slot", m.vm, KVM_CLEAR_DIRTY_LOG, &clear);
	}
}

GUEST(writes_many, 16, "mov $0x1000, %bx\n mov %bx, %es\n xor %di, %di\n again: stosb\n add $0xfff, %di\n jnz again\n hlt\n");

static void dirty_ring(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	ASK("reset without rings", m.vm, KVM_RESET_DIRTY_RINGS, 0);
	answer("ring of 3 pages", enable(m.vm, KVM_CAP_DIRTY_LOG_RING, 0x3000));
	answer("ring of 1000 bytes", enable(m.vm, KVM_CAP_DIRTY_LOG_RING, 1000));
	answer("ring of 2 KiB", enable(m.vm, KVM_CAP_DIRTY_LOG_RING, 2048));
	answer("ring of 2^30 bytes", enable(m.vm, KVM_CAP_DIRTY_LOG_RING, 1 << 30));
	// The kernel keeps room for what a processor writes at once; this leaves little.
	const size_t size = 0x4000;
	answer("ring of 16 KiB", enable(m.vm, KVM_CAP_DIRTY_LOG_RING, size));
	answer("ring again", enable(m.vm, KVM_CAP_DIRTY_LOG_RING, size));
	m.vcpu = add_vcpu(&m, 0);
	m.run = mmap(NULL, m.map_size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	NEED(m.run != MAP_FAILED);
	struct kvm_dirty_gfn *ring =
		mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
	say("ring is mapped: %d", ring != MAP_FAILED);
	LOAD(&m, writes_pages);
	answer("log on", set_region(&m, 0, 1, 0, MEMORY_SIZE, (uintptr_t)m.memory));
	run(&m);
	uint64_t bits;
	answer("log beside a ring", get_log(&m, 0, &bits));
	int count = 0;
	for (; count < 1024 && ring[count].flags; count++)
		if (ring[count].offset < 32 && WRITTEN & 1 << ring[count].offset)
			say("flags %u slot %u page %llu", ring[count].flags, ring[count].slot, ring[count].offset);
	ASK("reset of nothing", m.vm, KVM_RESET_DIRTY_RINGS, 0);
	for (int i = 0; i < count; i++) ring[i].flags |= KVM_DIRTY_GFN_F_RESET;
	say("reset takes all: %d", ioctl(m.vm, KVM_RESET_DIRTY_RINGS, 0) == count);
	say("flags after reset: %u", ring[0].flags);
	ASK("reset with an argument", m.vm, KVM_RESET_DIRTY_RINGS, 1);
}

GUEST(writes_megabytes, 32,
      "mov $0x200000, %edi\n 1: movb $1, (%edi)\n add $0x1000, %edi\n cmp $0xa00000, %edi\n jb 1b\n hlt\n");

static void dirty_ring_full(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	const size_t size = 0x4000;
	NEED(enable(m.vm, KVM_CAP_DIRTY_LOG_RING, size) == 0);
	m.vcpu = add_vcpu(&m, 0);
	m.run = mmap(NULL, m.map_size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	struct kvm_dirty_gfn *ring =
		mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
	NEED(ring != MAP_FAILED);
	// More pages than the ring has entries.
	add_memory(&m, 1, 1, 0x200000, 0x800000);
	LOAD32(&m, writes_megabytes);
	static uint8_t seen[2048];
	int fetched = 0, full = 0, ended = 0, missing = 0;
	for (int i = 0; i < 200 && !ended; i++) {
		NEED(ioctl(m.vcpu, KVM_RUN, 0) == 0);
		full += m.run->exit_reason == KVM_EXIT_DIRTY_RING_FULL;
		ended = m.run->exit_reason == KVM_EXIT_HLT;
		int taken = 0;
		for (struct kvm_dirty_gfn *entry; (entry = ring + fetched % 1024)->flags == KVM_DIRTY_GFN_F_DIRTY; fetched++, taken++) {
			if (entry->slot == 1 && entry->offset < sizeof seen) seen[entry->offset] = 1;
			entry->flags = KVM_DIRTY_GFN_F_RESET;
		}
		NEED(ioctl(m.vm, KVM_RESET_DIRTY_RINGS, 0) == taken);
	}
	for (size_t i = 0; i < sizeof seen; i++) missing += !seen[i];
	say("full at least once: %d, ended: %d, pages missing: %d", full > 0, ended, missing);
}

GUEST(reads_alias, 16,
      "mov $0x2000, %bx\n mov %bx, %ds\n mov $0x5a, %al\n mov %al, 0x100\n mov 0x1100, %ah\n hlt\n mov 0x1100, %bl\n hlt\n");

// Two slots of the same memory; then one moves.
static void aliases(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	set_region(&m, 0, 0, 0, 0, 0);
	set_region(&m, 0, 0, 0, 0x10000, (uintptr_t)m.memory);
	answer("page", set_region(&m, 1, 0, 0x20000, 0x1000, (uintptr_t)m.memory + 0x20000));
	answer("the same page", set_region(&m, 2, 0, 0x21000, 0x1000, (uintptr_t)m.memory + 0x20000));
	m.vcpu = add_vcpu(&m, 0);
	m.run = mmap(NULL, m.map_size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	LOAD(&m, reads_alias);
	run(&m);
	say_registers(&m);
	answer("moves", set_region(&m, 2, 0, 0x23000, 0x1000, (uintptr_t)m.memory + 0x20000));
	run_through(&m, 2);
	say_registers(&m);
}

GUEST(writes_rom, 16, "mov $0x2000, %bx\n mov %bx, %ds\n mov 0x10, %al\n mov $0x77, %ah\n mov %ah, 0x10\n "
      "mov 0x10, %cl\n hlt\n");

static void read_only(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	set_region(&m, 0, 0, 0, 0, 0);
	set_region(&m, 0, 0, 0, 0x10000, (uintptr_t)m.memory);
	set_region(&m, 1, 2, 0x20000, 0x1000, (uintptr_t)m.memory + 0x20000);
	m.memory[0x20010] = 0x33;
	m.vcpu = add_vcpu(&m, 0);
	m.run = mmap(NULL, m.map_size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	LOAD(&m, writes_rom);
	run_through(&m, 4);
	say_registers(&m);
}

static void host_memory_goes(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, writes_pages);
	NEED(munmap(m.memory + 0x7000, 0x1000) == 0);
	run(&m);
	say_registers(&m);
	NEED(mmap(m.memory + 0x7000, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	run(&m);
	NEED(mprotect(m.memory + 0x7000, 0x1000, PROT_READ) == 0);
	LOAD(&m, writes_pages);
	run(&m);
	say_registers(&m);
}

const struct group memory_group = {"memory", (const struct test_case[]){{"regions", regions},
									{"dirty-log", dirty_log},
									{"dirty-log-by-hand", dirty_log_by_hand},
									{"dirty-ring", dirty_ring},
									{"dirty-ring-full", dirty_ring_full},
									{"aliases", aliases},
									{"read-only", read_only},
									{"host-memory-goes", host_memory_goes},
									{}}};
