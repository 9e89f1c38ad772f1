/// Lines in which Martlet differs from QEMU, and is right, or allowed to.
struct AcceptedDifference {
    var guest: String
    /// What the lines begin with; each is needed.
    var titles: [String]
    /// One of these is in Martlet's line; empty for any line. Each is needed.
    var martlet: [String] = []
    /// One of these is in QEMU's line; empty for any line.
    var qemu: [String] = []
    /// Why Martlet's lines are right, with the manual's section ("SDM": Intel's manual, "APM": AMD's).
    var reason: String

    func covers(_ difference: Difference) -> Bool {
        titles.contains { difference.martlet.hasPrefix($0) && difference.qemu.hasPrefix($0) }
            && (martlet.isEmpty || martlet.contains { difference.martlet.contains($0) })
            && (qemu.isEmpty || qemu.contains { difference.qemu.contains($0) })
    }

    /// The parts that none of `differences` needs.
    func unused(by differences: [Difference]) -> [String] {
        let covered = differences.filter(covers)
        return titles.filter { title in !covered.contains { $0.martlet.hasPrefix(title) } }
            + martlet.filter { part in !covered.contains { $0.martlet.contains(part) } }
    }

    /// The version of QEMU whose differences these are.
    static let qemuVersion = "7.2"

    static let all = paging + exceptions + segments + transfers + control + debug + interrupts + legacy

    private static let paging: [AcceptedDifference] = [
        .init(
            guest: "paging",
            titles: [
                "reserved bits in a large page's address", "reserved bits in the address", "reserved address bits",
                "in the directory", "large in the highest table", "NX without NXE"
            ],
            martlet: ["as expected"],
            qemu: [" v=e e=8 ", " v=e e=a ", " v=e e=18 ", " v=e e=c ", " v=e e=e ", " v=e e=1c "],
            reason: "RSVD is only ever set together with P (SDM volume 3, section 4.7)")
    ]

    private static let exceptions: [AcceptedDifference] = [
        .init(
            guest: "exceptions", titles: ["icebp", "user icebp"], martlet: [" v=1 "],
            reason: "INT1 raises #DB (SDM volume 2, INT1)"),
        .init(
            guest: "exceptions", titles: ["lock mov"], martlet: [" v=6 "],
            reason: "LOCK is for the instructions that are listed (SDM volume 2, LOCK)"),
        .init(
            guest: "exceptions", titles: ["cr0 "], martlet: ["emms v=6 ", "emms v=7 ", "mmx v=6 ", "sse v=6 "],
            reason: "EM counts before TS, and EMMS is an MMX instruction (SDM volume 3, tables 12-1 and 13-3)"),
        .init(
            guest: "exceptions", titles: ["x87 "], martlet: [" v=10 ", " rax=b084"],
            reason:
                "a waiting instruction reports what is pending, and FDIVRP that faults pops nothing (SDM volume 1, 8.7)"
        ),
        .init(
            guest: "exceptions", titles: ["sse "], martlet: [" v=13 ", " v=6 "],
            reason: "unmasked exceptions of SSE are raised (SDM volume 1, section 11.5.3)"),
        .init(
            guest: "exceptions", titles: ["reserved bits of mxcsr"], martlet: [" v=d e=0 "],
            reason: "SDM volume 2, LDMXCSR"),
        .init(
            guest: "exceptions",
            titles: [
                "non-canonical through rsp", "non-canonical through rbp", "non-canonical push", "non-canonical pop",
                "non-canonical call", "non-canonical enter"
            ],
            martlet: [" v=c e=0 "], reason: "a stack access raises #SS (SDM volume 3, section 6.15, vector 12)"),
        .init(
            guest: "exceptions", titles: ["clflush "], martlet: [" v=d e=0 ", " v=e e=0 "],
            reason: "CLFLUSH faults as a load does (SDM volume 2, CLFLUSH)"),
        .init(
            guest: "exceptions", titles: ["user int_0x42"], martlet: [" e=212 "], qemu: [" e=422 "],
            reason: "the error code is the vector times 8, in long mode too (SDM volume 3, section 6.13)"),
        .init(
            guest: "exceptions", titles: ["wrfsbase non-canonical"], martlet: [" v=d e=0 "],
            reason: "SDM volume 2, WRFSBASE")
    ]

    private static let segments: [AcceptedDifference] = [
        .init(
            guest: "segments", titles: ["ltr 0", "ltr 1", "ltr 2", "ltr 3"], martlet: [" v=d e=0 "], qemu: [" v=ff"],
            reason: "a null selector is no task (SDM volume 2, LTR)"),
        .init(
            guest: "segments", titles: ["lgdt non-canonical"], martlet: [" v=d e=0 "], reason: "APM volume 3, LGDT")
    ]

    private static let transfers: [AcceptedDifference] = [
        .init(
            guest: "transfers", titles: ["iretq to=", "iretd to="], martlet: [" stack=50 v=c e=50 "], qemu: [" v=b "],
            reason: "an absent stack raises #SS (SDM volume 2, IRET)"),
        .init(
            guest: "transfers", titles: ["iretq to=", "iretd to="],
            martlet: [" stack=0 v=d e=0 ", " stack=1 v=d e=0 ", " stack=3 v=d e=0 "], qemu: [" v=80 "],
            reason: "only 64-bit code may have a null stack (SDM volume 2, IRET)"),
        .init(
            guest: "transfers",
            titles: [
                "iretq to=d8 ", "iretd to=d8 ", "lretq to=d8 ", "lretd to=d8 ", "lretq 16 to=d8 ", "ljmpq to=d8 ",
                "ljmpl to=d8 ", "lcallq to=d8 ", "lcalll to=d8 "
            ],
            martlet: [" v=d e=d8 "],
            reason: "no code segment is 64-bit and 32-bit (SDM volume 3, section 3.4.5; APM volume 2, section 4.8.1)"),
        .init(
            guest: "transfers", titles: ["gate to ABSENT_CODE: jump"], martlet: [" v=b e=58 "],
            reason: "SDM volume 2, JMP"),
        .init(
            guest: "transfers", titles: ["gate to CONFORMING: user call"], martlet: [" cs=73 "], qemu: [" cs=70 "],
            reason: "the RPL of CS is the CPL (SDM volume 2, CALL)"),
        .init(
            guest: "transfers", titles: ["gate to a non-canonical address"], martlet: [" v=d e=0 "], qemu: [" cs=8 "],
            reason: "the call faults, not what it calls (SDM volume 2, CALL)"),
        .init(
            guest: "transfers", titles: ["gate ", "interrupt table too short", "interrupt table a byte too short"],
            martlet: [" e=482 ", " e=33 "], qemu: [" e=902 ", " e=62 "],
            reason: "the error code is the vector times 8, in long mode too (SDM volume 3, section 6.13)"),
        .init(
            guest: "transfers", titles: ["gate "],
            martlet: [" e=1 ", " e=11 ", " e=41 ", " e=59 ", " e=29 ", " e=111 ", " e=7f9 ", " e=d9 "],
            qemu: [" e=0 ", " e=10 ", " e=40 ", " e=58 ", " e=28 ", " e=110 ", " e=7f8 ", " e=d8 "],
            reason: "EXT is set when the delivery of an exception fails (SDM volume 3, section 6.13)")
    ]

    private static let control: [AcceptedDifference] = [
        .init(
            guest: "control", titles: ["bits of cr0 that change", "bits of cr0 that do not", "bits of cr0 that fault"],
            martlet: [" mask=4005002e", " mask=1ffaffd0", " mask=ffffffff20000000"],
            reason: "reserved bits do not change in the lower half and fault in the upper (SDM volume 3, section 2.5)"),
        .init(
            guest: "control", titles: ["bits of cr4 that change", "bits of cr4 that do not", "bits of cr4 that fault"],
            reason: "bits of features that CPUID lacks fault (SDM volume 3, section 2.5); QEMU is not asked"),
        .init(
            guest: "control", titles: ["nw without cd", "cr8 16", "cr8 0x80", "cr8 -1"], martlet: ["as expected"],
            reason: "SDM volume 2, MOV to control registers"),
        .init(
            guest: "control", titles: ["dr6 -1", "dr4", "dr7 reserved bits"], martlet: [" rax=ffffefff", " rax=400"],
            reason: "reserved bits keep their values (SDM volume 3, sections 18.2.3 and 18.2.4)"),
        .init(
            guest: "control", titles: ["msr efer ", "msr 0x", "msr pat "], martlet: ["as expected"], qemu: [" v=ff"],
            reason:
                "reserved bits and non-canonical addresses fault (SDM volume 2, WRMSR; volume 3, sections 2.2.1, 12.12.4)"
        ),
        .init(
            guest: "control", titles: ["read nothing", "write nothing"], martlet: [" v=d e=0 "], qemu: [" v=ff"],
            reason: "SDM volume 2, RDMSR and WRMSR"),
        .init(
            guest: "control", titles: ["time can be set"], martlet: [" rax=100"],
            reason: "SDM volume 3, section 18.17.3"),
        .init(
            guest: "control", titles: ["what syscall left"], martlet: [" flags=46 "], qemu: [" flags=2 "],
            reason: "SYSCALL clears the flags of SFMASK only (SDM volume 2, SYSCALL)")
    ]

    private static let debug: [AcceptedDifference] = [
        .init(
            guest: "debug", titles: ["faults push the resume flag"], martlet: ["flag v=6"], qemu: [" no "],
            reason: "SDM volume 3, section 18.3.1.1"),
        .init(
            guest: "debug", titles: ["general detection", " dr6="], martlet: [" v=1 ", " dr6=2000 dr7=0"],
            reason: "QEMU has no general detection (SDM volume 3, section 18.2.4)"),
        .init(
            guest: "debug", titles: ["dr6 bits"], martlet: ["bits=f"], qemu: ["bits=1"],
            reason: "each breakpoint that matches sets its bit (SDM volume 3, section 18.2.3)")
    ]

    private static let interrupts: [AcceptedDifference] = [
        .init(
            guest: "interrupts", titles: ["register 0x320", "register 0x350", "register 0x360", "register 0x370"],
            martlet: [" of_ones=700ff ", " of_ones=1a7ff ", " of_ones=100ff "], qemu: [" of_ones=ffffffff "],
            reason: "reserved bits read as zero (SDM volume 3, section 11.5.1)")
    ]

    /// Guests without long mode.
    private static let legacy: [AcceptedDifference] = [
        .init(
            guest: "legacy", titles: ["reserved bit of a large page", "reserved bits of a page"],
            martlet: ["as expected"], qemu: [" v=e e=8 "],
            reason: "RSVD is only ever set together with P (SDM volume 3, section 4.7)"),
        .init(
            guest: "legacy", titles: ["reserved bits of the pointer table"], martlet: ["as expected"],
            qemu: [" v=ff"], reason: "SDM volume 3, section 4.4.1"),
        .init(
            guest: "protected", titles: ["gate to conforming code: user call"], martlet: [" cs=73 "], qemu: [" cs=70 "],
            reason: "the RPL of CS is the CPL (SDM volume 2, CALL)"),
        .init(
            guest: "protected", titles: ["gate to absent code: jump"], martlet: [" v=b e=58 "],
            reason: "SDM volume 2, JMP"),
        .init(
            guest: "protected",
            titles: [
                "near jump beyond the limit", "near return beyond the limit", "near call beyond the limit",
                "call gate beyond the limit", "user call through a gate beyond the limit",
                "interrupt gate beyond the limit"
            ],
            martlet: ["as expected"], qemu: [" v=80 "],
            reason: "QEMU checks the limits of code for far jumps only (SDM volume 3, section 5.3)"),
        .init(
            guest: "real", titles: ["lock "], martlet: [" vector=6 "],
            reason: "LOCK is for the instructions that are listed (SDM volume 2, LOCK)"),
        .init(
            guest: "tasks", titles: ["task with a trap bit"], martlet: [" v=1 "],
            reason: "T in the task state raises #DB behind the switch (SDM volume 3, section 18.3.1.5)"),
        .init(
            guest: "tasks", titles: [" from=30 "], martlet: [" eip=0 "],
            reason:
                "what faults behind the switch belongs to the new task's first instruction (SDM volume 3, section 7.3)")
    ]
}
