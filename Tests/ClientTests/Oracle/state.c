// The processor's state: after creation, there and back, and what is refused.
#include "oracle.h"

static void say_segment(const char *name, const struct kvm_segment *s)
{
	say("%s: base 0x%llx limit 0x%x selector 0x%x type %u present %u dpl %u db %u s %u l %u g %u avl %u unusable %u", name, s->base,
	    s->limit, s->selector, s->type, s->present, s->dpl, s->db, s->s, s->l, s->g, s->avl, s->unusable);
}

static void say_special(struct machine *m)
{
	struct kvm_sregs s;
	NEED(ioctl(m->vcpu, KVM_GET_SREGS, &s) == 0);
	say_segment("cs", &s.cs);
	say_segment("ds", &s.ds);
	say_segment("ss", &s.ss);
	say_segment("gs", &s.gs);
	say_segment("tr", &s.tr);
	say_segment("ldt", &s.ldt);
	say("gdt 0x%llx 0x%x idt 0x%llx 0x%x", s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit);
	say("cr0 0x%llx cr2 0x%llx cr3 0x%llx cr4 0x%llx cr8 0x%llx efer 0x%llx base 0x%llx", s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer,
	    s.apic_base);
}

// The vector of an event that is not there means nothing.
static void say_events(struct machine *m)
{
	struct kvm_vcpu_events e;
	memset(&e, 0xff, sizeof e);
	NEED(ioctl(m->vcpu, KVM_GET_VCPU_EVENTS, &e) == 0);
	if (e.exception.injected || e.exception.pending)
		say("exception %u: injected %u, pending %u, code %u 0x%x, payload %u 0x%llx", e.exception.nr, e.exception.injected,
		    e.exception.pending, e.exception.has_error_code, e.exception.error_code, e.exception_has_payload,
		    e.exception_payload);
	if (e.interrupt.injected) say("interrupt 0x%x, soft %u", e.interrupt.nr, e.interrupt.soft);
	say("flags 0x%x, shadow %u, unmaskable: injected %u pending %u masked %u, startup 0x%x, management %u %u %u %u", e.flags,
	    e.interrupt.shadow, e.nmi.injected, e.nmi.pending, e.nmi.masked, e.sipi_vector, e.smi.smm, e.smi.pending,
	    e.smi.smm_inside_nmi, e.smi.latched_init);
}

static void after_creation(void)
{
	static const char *const names[] = {"without chips", "with chips"};
	for (int i = 0; i < 2; i++) {
		struct machine m = make_machine(i ? WITH_CHIPS : PLAIN);
		say("%s", names[i]);
		struct kvm_regs r;
		NEED(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
		// EDX has the processor's signature.
		say("rip 0x%llx rflags 0x%llx rax 0x%llx rbx 0x%llx rsp 0x%llx", r.rip, r.rflags, r.rax, r.rbx, r.rsp);
		say_special(&m);
		struct kvm_fpu fpu;
		NEED(ioctl(m.vcpu, KVM_GET_FPU, &fpu) == 0);
		say("fcw 0x%x fsw 0x%x ftwx 0x%x mxcsr 0x%x", fpu.fcw, fpu.fsw, fpu.ftwx, fpu.mxcsr);
		struct kvm_debugregs d;
		NEED(ioctl(m.vcpu, KVM_GET_DEBUGREGS, &d) == 0);
		say("dr0 0x%llx dr6 0x%llx dr7 0x%llx flags 0x%llx", d.db[0], d.dr6, d.dr7, d.flags);
		struct kvm_xcrs x;
		NEED(ioctl(m.vcpu, KVM_GET_XCRS, &x) == 0);
		say("xcrs %u: %u 0x%llx flags 0x%x", x.nr_xcrs, x.xcrs[0].xcr, x.xcrs[0].value, x.flags);
		say_events(&m);
		struct kvm_lapic_state lapic;
		if (ASK("local controller", m.vcpu, KVM_GET_LAPIC, &lapic) == 0)
			for (int reg = 0; reg < 0x400; reg += 0x10) {
				uint32_t value;
				memcpy(&value, lapic.regs + reg, 4);
				if (value) say("0x%x: 0x%x", reg, value);
			}
		static const uint32_t registers[] = {0x10,	 0x1b,	     0x174,	 0x175,	     0x176,	 0x277,	     0x2ff,	 0xc0000080,
						     0xc0000081, 0xc0000082, 0xc0000084, 0xc0000100, 0xc0000102, 0x4b564d01, 0x4b564d05};
		for (size_t k = 1; k < sizeof registers / sizeof *registers; k++)
			say("register 0x%x: 0x%llx", registers[k], (unsigned long long)get_msr(m.vcpu, registers[k]));
	}
}

static void general(void)
{
	struct machine m = make_machine(PLAIN);
	struct kvm_regs r, back;
	for (size_t i = 0; i < sizeof r / 8; i++) ((uint64_t *)&r)[i] = 0x0102030405060708 * (i + 1);
	for (int i = 0; i < 4; i++) {
		const uint64_t flags[] = {0, ~0ull, 0x246, 0x20000};
		r.rflags = flags[i];
		ASK("set", m.vcpu, KVM_SET_REGS, &r);
		NEED(ioctl(m.vcpu, KVM_GET_REGS, &back) == 0);
		say("flags 0x%llx, then 0x%llx, the rest the same: %d", (unsigned long long)flags[i], back.rflags,
		    memcmp(&r, &back, offsetof(struct kvm_regs, rflags)) == 0);
	}
	ASK("from nowhere", m.vcpu, KVM_SET_REGS, NULL);
	ASK("to nowhere", m.vcpu, KVM_GET_REGS, NULL);
	ASK("to what cannot be written", m.vcpu, KVM_GET_REGS, (void *)"text");
	uint8_t *edge = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(edge + 0x1000, 0x1000);
	ASK("half of it there", m.vcpu, KVM_SET_REGS, edge + 0xff0);
	ASK("half of it there", m.vcpu, KVM_GET_REGS, edge + 0xff0);
}

static void special(void)
{
	struct machine m = make_machine(PLAIN);
	struct kvm_sregs s, back;
	NEED(ioctl(m.vcpu, KVM_GET_SREGS, &s) == 0);
	s.ds = (struct kvm_segment){.base = 0x12345, .limit = 0xfffff, .selector = 0x10, .type = 3, .present = 1, .s = 1, .avl = 1};
	s.es = (struct kvm_segment){.unusable = 1};
	s.fs = (struct kvm_segment){.base = 0x123456789abc, .limit = 0xffffffff, .selector = 0x33, .type = 3, .present = 1, .s = 1, .g = 1,
				    .db = 1, .dpl = 3};
	s.tr = (struct kvm_segment){.base = 0x4000, .limit = 0x67, .selector = 0x18, .type = 11, .present = 1};
	s.ldt = (struct kvm_segment){.base = 0x5000, .limit = 0xf, .selector = 0x20, .type = 2, .present = 1};
	s.cr2 = 0xdeadbeefcafe;
	s.cr8 = 5;
	s.gdt = (struct kvm_dtable){.base = 0x6000, .limit = 0x7f};
	ASK("set", m.vcpu, KVM_SET_SREGS, &s);
	say_special(&m);
	NEED(ioctl(m.vcpu, KVM_GET_SREGS, &back) == 0);
	say_segment("es", &back.es);
	say_segment("fs", &back.fs);
	s.interrupt_bitmap[0] = 1ull << 33;
	ASK("interrupt", m.vcpu, KVM_SET_SREGS, &s);
	NEED(ioctl(m.vcpu, KVM_GET_SREGS, &back) == 0);
	say("interrupts 0x%llx", back.interrupt_bitmap[0]);
	const uint64_t bases[] = {0xfee00000, 0xfee00100, 0xfee00d00, 0xfee00c00,	  0xfee00400,
				  0xfee00800, 0xfed00900, 1ull << 60 | 0x900, 0};
	for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
		NEED(ioctl(m.vcpu, KVM_GET_SREGS, &s) == 0);
		s.apic_base = bases[i];
		long result = (errno = 0, ioctl(m.vcpu, KVM_SET_SREGS, &s));
		const char *error = result ? strerrorname_np(errno) : "0";
		NEED(ioctl(m.vcpu, KVM_GET_SREGS, &s) == 0);
		say("base 0x%llx: %s, then 0x%llx", (unsigned long long)bases[i], error, s.apic_base);
	}
	s.cr8 = 16;
	ASK("cr8 16", m.vcpu, KVM_SET_SREGS, &s);
	NEED(ioctl(m.vcpu, KVM_GET_SREGS, &s) == 0);
	say("cr8 %llu", s.cr8);
	s.cr3 = 1ull << 60;
	ASK("cr3 beyond physical addresses", m.vcpu, KVM_SET_SREGS, &s);
	ASK("from nowhere", m.vcpu, KVM_SET_SREGS, NULL);
	struct kvm_sregs2 second;
	ASK("second", m.vcpu, KVM_GET_SREGS2, &second);
	say("flags 0x%llx", second.flags);
	second.flags = 1;
	ASK("with pointers, not with PAE", m.vcpu, KVM_SET_SREGS2, &second);
	second.flags = 2;
	ASK("with unknown flags", m.vcpu, KVM_SET_SREGS2, &second);
	second.flags = 0;
	ASK("without", m.vcpu, KVM_SET_SREGS2, &second);
}

static void floating_point(void)
{
	struct machine m = make_machine(PLAIN);
	struct kvm_fpu fpu = {.fcw = 0x27f, .fsw = 0x3800, .ftwx = 0x81, .mxcsr = 0x1f80, .last_opcode = 0x123, .last_ip = 0x1234,
			      .last_dp = 0x5678};
	for (int i = 0; i < 8; i++) memset(fpu.fpr[i], 0x10 + i, 10);
	for (int i = 0; i < 16; i++) memset(fpu.xmm[i], 0x40 + i, 16);
	struct kvm_fpu back;
	ASK("set", m.vcpu, KVM_SET_FPU, &fpu);
	memset(&back, 0xff, sizeof back);
	ASK("get", m.vcpu, KVM_GET_FPU, &back);
	say("fcw 0x%x fsw 0x%x ftwx 0x%x opcode 0x%x ip 0x%llx dp 0x%llx mxcsr 0x%x", back.fcw, back.fsw, back.ftwx, back.last_opcode,
	    back.last_ip, back.last_dp, back.mxcsr);
	say_bytes("first", back.fpr[0], 16);
	say("vectors the same: %d", memcmp(fpu.xmm, back.xmm, sizeof fpu.xmm) == 0);
	fpu.mxcsr = 0xffff0000;
	ASK("reserved bits", m.vcpu, KVM_SET_FPU, &fpu);
	ASK("from nowhere", m.vcpu, KVM_SET_FPU, NULL);
}

// An area of this machine's own, changed; components beyond x87 and SSE depend on the host.
static void extended(void)
{
	struct machine m = make_machine(PLAIN);
	static struct kvm_xsave area;
	uint64_t *header = (uint64_t *)(area.region + 128);
	ASK("area", m.vcpu, KVM_GET_XSAVE, &area);
	// Which components count as being in their initial state is KVM's choice.
	say("control 0x%x", area.region[6]);
	*header = 3;
	area.region[0] = 0x27f;
	area.region[6] = 0x1f80;
	memset(area.region + 8, 0x5a, 10);
	memset(area.region + 40, 0x77, 16);
	ASK("set", m.vcpu, KVM_SET_XSAVE, &area);
	memset(&area, 0xff, sizeof area);
	ASK("area", m.vcpu, KVM_GET_XSAVE, &area);
	say("components 0x%llx, control 0x%x 0x%x", (unsigned long long)*header & 3, area.region[0], area.region[6]);
	say_bytes("first", area.region + 8, 16);
	say_bytes("first vector", area.region + 40, 16);
	struct kvm_fpu fpu;
	ASK("old state", m.vcpu, KVM_GET_FPU, &fpu);
	say("fcw 0x%x", fpu.fcw);
	say_bytes("first vector", fpu.xmm[0], 16);
	header[1] = 1ull << 63 | 3;
	ASK("compacted", m.vcpu, KVM_SET_XSAVE, &area);
	header[1] = 0;
	header[0] |= 1ull << 62;
	ASK("unknown component", m.vcpu, KVM_SET_XSAVE, &area);
	header[0] = 3;
	header[3] = 1;
	ASK("reserved part of the header", m.vcpu, KVM_SET_XSAVE, &area);
	header[3] = 0;
	area.region[6] = 0xffff0000;
	ASK("reserved bits", m.vcpu, KVM_SET_XSAVE, &area);
	header[0] = 0;
	area.region[6] = 0x1f80;
	ASK("no components", m.vcpu, KVM_SET_XSAVE, &area);
	ASK("area", m.vcpu, KVM_GET_XSAVE, &area);
	say("control 0x%x 0x%x", area.region[0], area.region[6]);
	say_bytes("first vector", area.region + 40, 16);
	ASK("second", m.vcpu, KVM_GET_XSAVE2, &area);
	ASK("to nowhere", m.vcpu, KVM_GET_XSAVE, NULL);
	ASK("from nowhere", m.vcpu, KVM_SET_XSAVE, NULL);
}

GUEST(computes, 64,
      "fninit\n fld1\n fldpi\n movl $0x3f800000, 0x4000\n movss 0x4000, %xmm3\n addss %xmm3, %xmm3\n fnstcw 0x4010\n "
      "stmxcsr 0x4014\n hlt\n");

static void computed(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD64(&m, computes);
	struct kvm_sregs s;
	NEED(ioctl(m.vcpu, KVM_GET_SREGS, &s) == 0);
	s.cr4 |= 0x600;
	NEED(ioctl(m.vcpu, KVM_SET_SREGS, &s) == 0);
	run(&m);
	struct kvm_fpu fpu;
	NEED(ioctl(m.vcpu, KVM_GET_FPU, &fpu) == 0);
	say("fcw 0x%x fsw 0x%x ftwx 0x%x opcode 0x%x mxcsr 0x%x", fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.mxcsr);
	say_bytes("first", fpu.fpr[0], 10);
	say_bytes("second", fpu.fpr[1], 10);
	say_bytes("vector 3", fpu.xmm[3], 16);
	say_bytes("memory", m.memory + DATA + 0x10, 8);
}

static void extended_control(void)
{
	struct machine m = make_machine(PLAIN);
	const struct {
		const char *name;
		uint32_t count, flags, index;
		uint64_t value;
	} all[] = {{"x87", 1, 0, 0, 1},
		   {"none", 0, 0, 0, 0},
		   {"without x87", 1, 0, 0, 2},
		   {"wide vectors without vectors", 1, 0, 0, 5},
		   {"unknown", 1, 0, 0, 1ull << 62 | 1},
		   {"register 1", 1, 0, 1, 1},
		   {"flags", 1, 1, 0, 1},
		   {"17", 17, 0, 0, 1}};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		struct kvm_xcrs x = {.nr_xcrs = all[i].count, .flags = all[i].flags};
		x.xcrs[0].xcr = all[i].index;
		x.xcrs[0].value = all[i].value;
		ASK(all[i].name, m.vcpu, KVM_SET_XCRS, &x);
	}
	ASK("from nowhere", m.vcpu, KVM_SET_XCRS, NULL);
	struct kvm_debugregs d = {.db = {1, 2, 3, 4}, .dr6 = 0xffff0ff0, .dr7 = 0x455};
	ASK("debug registers", m.vcpu, KVM_SET_DEBUGREGS, &d);
	memset(&d, 0xff, sizeof d);
	NEED(ioctl(m.vcpu, KVM_GET_DEBUGREGS, &d) == 0);
	say("%llu %llu %llu %llu 0x%llx 0x%llx 0x%llx", d.db[0], d.db[1], d.db[2], d.db[3], d.dr6, d.dr7, d.flags);
	d.dr7 = 0;
	d.dr6 = 0;
	ASK("zeros", m.vcpu, KVM_SET_DEBUGREGS, &d);
	NEED(ioctl(m.vcpu, KVM_GET_DEBUGREGS, &d) == 0);
	say("0x%llx 0x%llx", d.dr6, d.dr7);
	d.flags = 1;
	ASK("flags", m.vcpu, KVM_SET_DEBUGREGS, &d);
	d.flags = 0;
	d.dr6 = 1ull << 32;
	ASK("upper half of DR6", m.vcpu, KVM_SET_DEBUGREGS, &d);
	d.dr6 = 0;
	d.dr7 = 1ull << 32;
	ASK("upper half of DR7", m.vcpu, KVM_SET_DEBUGREGS, &d);
}

static void pending_events(void)
{
	struct machine m = make_machine(PLAIN);
	struct kvm_vcpu_events e, back;
	NEED(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &e) == 0);
	for (int bit = 0; bit < 8; bit++) {
		back = e;
		back.flags = 1u << bit;
		say("flag %d", bit);
		ASK("set", m.vcpu, KVM_SET_VCPU_EVENTS, &back);
	}
	back = e;
	back.exception.injected = 1;
	back.exception.nr = 14;
	back.exception.has_error_code = 1;
	back.exception.error_code = 5;
	ASK("exception", m.vcpu, KVM_SET_VCPU_EVENTS, &back);
	say_events(&m);
	back.exception.nr = 32;
	ASK("exception 32", m.vcpu, KVM_SET_VCPU_EVENTS, &back);
	back.exception.nr = 2;
	ASK("exception 2", m.vcpu, KVM_SET_VCPU_EVENTS, &back);
	back = e;
	back.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
	back.nmi.pending = 1;
	back.nmi.masked = 1;
	back.interrupt.shadow = 3;
	back.interrupt.injected = 1;
	back.interrupt.nr = 0x31;
	ASK("interrupt", m.vcpu, KVM_SET_VCPU_EVENTS, &back);
	say_events(&m);
	ASK("from nowhere", m.vcpu, KVM_SET_VCPU_EVENTS, NULL);
	// With payloads, an exception may be pending, too.
	NEED(enable(m.vm, KVM_CAP_EXCEPTION_PAYLOAD, 1) == 0);
	back = e;
	back.flags = KVM_VCPUEVENT_VALID_PAYLOAD;
	back.exception.pending = 1;
	back.exception.nr = 14;
	back.exception_has_payload = 1;
	back.exception_payload = 0x1234;
	ASK("payload", m.vcpu, KVM_SET_VCPU_EVENTS, &back);
	say_events(&m);
	back.exception.injected = 1;
	ASK("injected and pending", m.vcpu, KVM_SET_VCPU_EVENTS, &back);
}

GUEST(waits, 16, "sti\n nop\n 1: out %al, $0x80\n jmp 1b\n");
GUEST(says_vector, 16, "out %al, $0x99\n hlt\n");

// Events that are set are what the guest sees next.
static void delivered_events(void)
{
	for (int i = 0; i < 4; i++) {
		static const char *const names[] = {"exception", "interrupt", "unmaskable", "unmaskable while masked"};
		static const int vectors[] = {6, 0x31, 2, 2};
		struct machine m = make_machine(PLAIN);
		say("%s", names[i]);
		memcpy(m.memory + 0x2000, says_vector, says_vector_end - says_vector);
		*(uint32_t *)(m.memory + vectors[i] * 4) = 0x2000;
		LOAD(&m, waits);
		struct kvm_vcpu_events e;
		NEED(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &e) == 0);
		e.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
		if (i == 0) e.exception.injected = 1, e.exception.nr = 6;
		if (i == 1) e.interrupt.injected = 1, e.interrupt.nr = 0x31;
		if (i >= 2) e.nmi.pending = 1;
		if (i == 3) e.nmi.masked = 1;
		ASK("set", m.vcpu, KVM_SET_VCPU_EVENTS, &e);
		run(&m);
		say_events(&m);
		run(&m);
		say_registers(&m);
	}
}

GUEST(shows_registers, 16, "mov $0x55, %bx\n out %al, $0x80\n out %al, $0x81\n hlt\n");

static void synchronized(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, shows_registers);
	m.run->kvm_valid_regs = 1 << 5;
	run(&m);
	m.run->kvm_valid_regs = 0;
	m.run->kvm_dirty_regs = 1 << 5;
	run(&m);
	m.run->kvm_dirty_regs = 0;
	m.run->kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
	run(&m);
	say("rbx 0x%llx rip 0x%llx cr0 0x%llx", m.run->s.regs.regs.rbx, m.run->s.regs.regs.rip, m.run->s.regs.sregs.cr0);
	m.run->s.regs.regs.rax = 0x99;
	m.run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	run(&m);
	say("dirty 0x%llx", m.run->kvm_dirty_regs);
	m.run->s.regs.sregs.cr0 = 0x80000010;
	m.run->kvm_dirty_regs = KVM_SYNC_X86_SREGS;
	run(&m);
}

const struct group state_group = {"state", (const struct test_case[]){{"after-creation", after_creation},
								      {"general", general},
								      {"special", special},
								      {"floating-point", floating_point},
								      {"extended", extended},
								      {"computed", computed},
								      {"extended-control", extended_control},
								      {"pending-events", pending_events},
								      {"delivered-events", delivered_events},
								      {"synchronized", synchronized},
								      {}}};
