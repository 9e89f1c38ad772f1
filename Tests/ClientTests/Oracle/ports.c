// Exits of port accesses: sizes, strings, directions, and what the client sees of the registers meanwhile.
#include "oracle.h"

GUEST(out_sizes, 16,
      "mov $0x3f8, %dx\n mov $0x12345678, %eax\n out %al, %dx\n out %ax, %dx\n out %eax, %dx\n out %al, $0x80\n "
      "out %ax, $0x81\n"
      "out %eax, $0x82\n mov $0xffff, %dx\n out %al, %dx\n out %ax, %dx\n out %eax, %dx\n hlt\n");
GUEST(in_sizes, 16,
      "mov $0x3f8, %dx\n mov $0xaaaaaaaa, %eax\n in %dx, %al\n mov %eax, %ebx\n in %dx, %ax\n mov %eax, %ecx\n in %dx, %eax\n"
      "mov %eax, %esi\n in $0x80, %al\n mov %eax, %edi\n in $0x81, %eax\n hlt\n");
GUEST(in_long, 64, "mov $-1, %rax\n mov $0x3f8, %dx\n in %dx, %al\n mov %rax, %rbx\n in %dx, %ax\n mov %rax, %rcx\n "
      "in %dx, %eax\n hlt\n");

static void sizes(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, out_sizes);
	run_through(&m, 20);
	LOAD(&m, in_sizes);
	run_through(&m, 20);
	say_registers(&m);
	LOAD64(&m, in_long);
	run_through(&m, 20);
	say_registers(&m);
}

GUEST(in_once, 16, "mov $0x3f8, %dx\n in %dx, %al\n out %al, %dx\n hlt\n");

static void registers(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, in_once);
	run(&m);
	say_registers(&m);
	((uint8_t *)m.run)[m.run->io.data_offset] = 0x42;
	run(&m);
	say_registers(&m);
	// What is set before the access ends is what counts after it.
	struct kvm_regs r;
	NEED(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
	r.rbx = 0x77;
	NEED(ioctl(m.vcpu, KVM_SET_REGS, &r) == 0);
	run(&m);
	say_registers(&m);
}

#define STRING_OUT(name, bits, width)                                                                                  \
	GUEST(name, bits, "mov $0x3f8, %dx\n mov $0x4000, %esi\n mov $3, %ecx\n rep outs" #width "\n out %al, %dx\n hlt\n")
STRING_OUT(outs_bytes, 16, b);
STRING_OUT(outs_words, 16, w);
STRING_OUT(outs_doubles, 32, l);
STRING_OUT(outs_long, 64, b);
GUEST(outs_down, 16, "std\n mov $0x3f8, %dx\n mov $0x4004, %esi\n mov $3, %ecx\n rep outsw\n hlt\n");
GUEST(outs_none, 16, "mov $0x3f8, %dx\n xor %cx, %cx\n rep outsb\n rep insb\n hlt\n");
GUEST(outs_single, 16, "mov $0x3f8, %dx\n mov $0x4000, %esi\n outsb\n outsw\n hlt\n");
GUEST(outs_across, 16, "mov $0x3f8, %dx\n mov $0x4ffe, %esi\n mov $4, %ecx\n rep outsb\n mov $0x4fff, %si\n outsl\n hlt\n");

// How many of a string come at once is KVM's own business, so they are joined.
static void run_string(struct machine *m)
{
	uint8_t all[256];
	size_t length = 0;
	uint8_t next = 0x21;
	for (int i = 0; i < 200; i++) {
		NEED(ioctl(m->vcpu, KVM_RUN, 0) == 0);
		if (m->run->exit_reason != KVM_EXIT_IO) break;
		uint8_t *data = (uint8_t *)m->run + m->run->io.data_offset;
		size_t count = m->run->io.size * m->run->io.count;
		if (m->run->io.direction == KVM_EXIT_IO_IN)
			for (size_t k = 0; k < count; k++) data[k] = next++;
		for (size_t k = 0; k < count && length < sizeof all; k++) all[length++] = data[k];
	}
	say("ends with exit %u", m->run->exit_reason);
	say_bytes("bytes", all, length);
	say_registers(m);
}

static void strings_out(void)
{
	struct machine m = make_machine(PLAIN);
	for (int i = 0; i < 0x2000; i++) m.memory[DATA + i] = 0xa0 + i % 80;
	say("bytes");
	LOAD(&m, outs_bytes);
	run_string(&m);
	say("words");
	LOAD(&m, outs_words);
	run_string(&m);
	say("downwards");
	LOAD(&m, outs_down);
	run_string(&m);
	say("none");
	LOAD(&m, outs_none);
	run_string(&m);
	say("single");
	LOAD(&m, outs_single);
	run_string(&m);
	say("across pages");
	LOAD(&m, outs_across);
	run_string(&m);
	say("doubles");
	LOAD32(&m, outs_doubles);
	run_string(&m);
	say("long mode");
	LOAD64(&m, outs_long);
	run_string(&m);
}

GUEST(ins_bytes, 16, "mov $0x3f8, %dx\n mov $0x4000, %edi\n mov $5, %ecx\n rep insb\n hlt\n");
GUEST(ins_words, 16, "mov $0x3f8, %dx\n mov $0x4000, %edi\n mov $5, %ecx\n rep insw\n hlt\n");
GUEST(ins_down, 16, "std\n mov $0x3f8, %dx\n mov $0x4008, %edi\n mov $3, %ecx\n rep insw\n hlt\n");
GUEST(ins_across, 16, "mov $0x3f8, %dx\n mov $0x4ffd, %edi\n mov $3, %ecx\n rep insw\n hlt\n");
GUEST(ins_single, 16, "mov $0x3f8, %dx\n mov $0x4000, %edi\n insb\n insw\n hlt\n");

static void strings_in(void)
{
	static const struct {
		const char *name;
		const uint8_t *code, *end;
	} guests[] = {{"bytes", ins_bytes, ins_bytes_end},
		      {"words", ins_words, ins_words_end},
		      {"downwards", ins_down, ins_down_end},
		      {"across pages", ins_across, ins_across_end},
		      {"single", ins_single, ins_single_end}};
	struct machine m = make_machine(PLAIN);
	for (size_t i = 0; i < sizeof guests / sizeof *guests; i++) {
		say("%s", guests[i].name);
		memset(m.memory + DATA, 0, 0x2000);
		load(&m, guests[i].code, guests[i].end - guests[i].code, 16);
		run_string(&m);
		say_bytes("memory", m.memory + DATA, 12);
		say_bytes("page's end", m.memory + DATA + 0xffa, 12);
	}
}

// The exits of strings as they come.
static void string_exits(void)
{
	struct machine m = make_machine(PLAIN);
	for (int i = 0; i < 16; i++) m.memory[DATA + i] = 0xa0 + i;
	LOAD(&m, ins_words);
	run_through(&m, 10);
	LOAD(&m, outs_words);
	run_through(&m, 10);
	LOAD(&m, ins_down);
	run_through(&m, 10);
}

// Goes to where it is without rights by a return, whose target follows the code before it.
GUEST(user_port, 32,
      "mov $0x23, %eax\n mov %eax, %ds\n mov %eax, %es\n call 1f\n 1: pop %ebx\n add $2f - 1b, %ebx\n"
      "pushl $0x23\n pushl $0x3000\n pushl $2\n pushl $0x1b\n push %ebx\n iret\n 2: inc %ecx\n out %al, $0x80\n");

// No handler of the fault is there: the processor shuts down.
static void without_rights(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD32(&m, user_port);
	run(&m);
}

const struct group port_group = {"ports", (const struct test_case[]){{"sizes", sizes},
								     {"registers", registers},
								     {"strings-out", strings_out},
								     {"strings-in", strings_in},
								     {"string-exits", string_exits},
								     {"without-rights", without_rights},
								     {}}};
