// Mappings of a processor's descriptor, and of those that have none.
#include "oracle.h"

static void map(const char *label, int file, size_t size, int protection, int flags, long page)
{
	errno = 0;
	void *address = mmap(NULL, size, protection, flags, file, page * 4096);
	say("%s: %s", label, address == MAP_FAILED ? strerrorname_np(errno) : "a mapping");
	if (address != MAP_FAILED) munmap(address, size);
}

static void mappings(void)
{
	struct machine m = make_machine(PLAIN);
	const int both = PROT_READ | PROT_WRITE;
	map("whole", m.vcpu, m.map_size, both, MAP_SHARED, 0);
	map("a page", m.vcpu, 4096, both, MAP_SHARED, 0);
	map("a page to read", m.vcpu, 4096, PROT_READ, MAP_SHARED, 0);
	map("the port page", m.vcpu, 4096, both, MAP_SHARED, KVM_PIO_PAGE_OFFSET);
	map("the coalesced page", m.vcpu, 4096, both, MAP_SHARED, KVM_COALESCED_MMIO_PAGE_OFFSET);
	map("private", m.vcpu, 4096, both, MAP_PRIVATE, 0);
	map("executable", m.vcpu, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, 0);
	map("no access", m.vcpu, 4096, PROT_NONE, MAP_SHARED, 0);
	map("nothing", m.vcpu, 0, both, MAP_SHARED, 0);
	map("100 bytes", m.vcpu, 100, both, MAP_SHARED, 0);
	map("more than whole", m.vcpu, m.map_size + 4096, both, MAP_SHARED, 0);
	map("behind the end", m.vcpu, 4096, both, MAP_SHARED, m.map_size / 4096);
	map("where a ring would be", m.vcpu, 4096, both, MAP_SHARED, KVM_DIRTY_LOG_PAGE_OFFSET);
	map("machine", m.vm, 4096, both, MAP_SHARED, 0);
	map("system", m.kvm, 4096, both, MAP_SHARED, 0);
	close(m.vcpu);
	map("closed", m.vcpu, 4096, both, MAP_SHARED, 0);
}

static void ring_mappings(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	NEED(enable(m.vm, KVM_CAP_DIRTY_LOG_RING, 0x4000) == 0);
	m.vcpu = add_vcpu(&m, 0);
	const int both = PROT_READ | PROT_WRITE;
	map("ring", m.vcpu, 0x4000, both, MAP_SHARED, KVM_DIRTY_LOG_PAGE_OFFSET);
	map("its end", m.vcpu, 0x1000, both, MAP_SHARED, KVM_DIRTY_LOG_PAGE_OFFSET + 3);
	map("private", m.vcpu, 0x4000, both, MAP_PRIVATE, KVM_DIRTY_LOG_PAGE_OFFSET);
	map("private to read", m.vcpu, 0x4000, PROT_READ, MAP_PRIVATE, KVM_DIRTY_LOG_PAGE_OFFSET);
	map("executable", m.vcpu, 0x4000, both | PROT_EXEC, MAP_SHARED, KVM_DIRTY_LOG_PAGE_OFFSET);
	map("more than the ring", m.vcpu, 0x5000, both, MAP_SHARED, KVM_DIRTY_LOG_PAGE_OFFSET);
	map("before the ring", m.vcpu, 0x1000, both, MAP_SHARED, KVM_DIRTY_LOG_PAGE_OFFSET - 1);
}

static void contents(void)
{
	struct machine m = make_machine(PLAIN);
	say("whole size: %d", m.map_size);
	int is_zero = 1;
	const uint8_t *bytes = (const uint8_t *)m.run;
	// The ring of writes that wait is there from the first on.
	for (int i = 0; i < m.map_size; i++) is_zero &= bytes[i] == 0;
	say("zero: %d", is_zero);
	say("first run: exit %u, ready %u, interrupts %u, flags %u, cr8 0x%llx, base 0x%llx", m.run->exit_reason,
	    m.run->ready_for_interrupt_injection, m.run->if_flag, m.run->flags, m.run->cr8, m.run->apic_base);
	m.run->exit_reason = 0x1234;
	struct kvm_run *again = mmap(NULL, 4096, PROT_READ, MAP_SHARED, m.vcpu, 0);
	say("the same memory: %d", again->exit_reason == 0x1234);
}

const struct group map_group = {
	"mapping", (const struct test_case[]){{"mappings", mappings}, {"ring", ring_mappings}, {"contents", contents}, {}}};
