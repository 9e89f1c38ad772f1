# Control registers, model-specific registers and system calls.

        .include "long.inc"

        .set    FAR, 0x800000000000             # the first address that is not canonical

# Writes EDX:EAX = \high:\low to the register and reads it back.
        .macro  msr name:req, number:req, high:req, low:req
        check   "msr \name \high \low"
        mov     $\number, %ecx
        mov     $\high, %edx
        mov     $\low, %eax
        wrmsr
        rdmsr
        shl     $32, %rdx
        or      %rdx, %rax
        report_value
        .endm

# A value that the register does not take.
        .macro  bad_msr name:req, number:req, high:req, low:req
        check   "msr \name \high \low"
        mov     $\number, %ecx
        mov     $\high, %edx
        mov     $\low, %eax
        wrmsr
        expect  13
        .endm

        .macro  read_msr name:req, number:req
        check   "read \name"
        mov     $\number, %ecx
        rdmsr
        report
        .endm

# Tries to toggle each bit of a control register in turn, except those in \spare, and shows which bits took the change,
# which ignored it, and which faulted.
        .macro  toggle_bits register:req, spare:req
        xor     %r12, %r12
        xor     %r13, %r13
        xor     %r14, %r14
        xor     %ebx, %ebx
94:     movabs  $\spare, %rax
        bt      %rbx, %rax
        jc      96f
        movq    $0xFF, fault_vector
        movq    $93f, recovery
        mov     %rsp, recovery_stack
        mov     %\register, %r15
        mov     %r15, %rax
        btc     %rbx, %rax
        mov     %rax, %\register
93:     cmpq    $0xFF, fault_vector
        je      95f
        bts     %rbx, %r14
        jmp     96f
95:     mov     %\register, %rax
        mov     %r15, %\register
        xor     %r15, %rax
        bt      %rbx, %rax
        jnc     97f
        bts     %rbx, %r12
        jmp     96f
97:     bts     %rbx, %r13
96:     inc     %ebx
        cmp     $64, %ebx
        jne     94b
        line    "bits of \register that change", mask, %r12
        line    "bits of \register that do not", mask, %r13
        line    "bits of \register that fault", mask, %r14
        .endm

        .macro  sign_in
        mov     $0xC0000081, %ecx               # STAR
        mov     $(UCODE32 << 16) + KCODE, %edx
        xor     %eax, %eax
        wrmsr
        mov     $0xC0000082, %ecx               # LSTAR
        xor     %edx, %edx
        mov     $system_call, %eax
        wrmsr
        mov     $0xC0000083, %ecx               # CSTAR
        xor     %edx, %edx
        mov     $system_call, %eax
        wrmsr
        mov     $0xC0000084, %ecx               # SFMASK
        mov     $0x4700, %eax
        wrmsr
        .endm

main:   # ------------------------------------------------ control registers
        toggle_bits cr0, 0x80000001
        cmpb    $0, is_qemu                     # which does not survive the bits of features that it lacks
        jne     1f
        toggle_bits cr4, 0
        jmp     2f
1:      say     "bits of cr4 that change\nbits of cr4 that do not\nbits of cr4 that fault\n"
2:
        check_manual "cr0 without protection"
        mov     %cr0, %rax
        and     $~1, %rax
        mov     %rax, %cr0
        expect_manual 13
        check_manual "cr0 without paging in 64-bit mode"
        mov     %cr0, %rax
        btr     $31, %rax
        mov     %rax, %cr0
        expect_manual 13
        check_manual "cr4 without pae in long mode"
        mov     %cr4, %rax
        btr     $5, %rax
        mov     %rax, %cr4
        expect_manual 13
        check   "nw without cd"
        mov     %cr0, %rax
        or      $0x20000000, %rax
        mov     %rax, %cr0
        expect  13
        mov     $0x80000033, %eax
        mov     %rax, %cr0
        check   "nw with cd"
        mov     %cr0, %rax
        mov     %rax, %r15
        or      $0x60000000, %rax
        mov     %rax, %cr0
        report
        mov     %r15, %cr0
        check_manual "reserved bits of cr3"
        mov     %cr3, %rax
        bts     $52, %rax
        mov     %rax, %cr3
        expect_manual 13
        check_manual "bit 63 of cr3 without pcids"
        mov     %cr3, %rax
        bts     $63, %rax
        mov     %rax, %cr3
        expect_manual 13
        check_manual "pcids with low bits of cr3"
        mov     $pml4 + 0x18, %eax
        mov     %rax, %cr3
        mov     %cr4, %rax
        bts     $17, %rax
        mov     %rax, %cr4
        expect_manual 13
        mov     $pml4, %eax
        mov     %rax, %cr3
        check_manual "pcids, and bit 63 of cr3 with them"
        mov     %cr4, %rax
        mov     %rax, %r15
        bts     $17, %rax
        mov     %rax, %cr4
        mov     $pml4 + 5, %eax
        bts     $63, %rax
        mov     %rax, %cr3
        mov     %cr3, %rax
        mov     $pml4, %ecx
        mov     %rcx, %cr3
        mov     %r15, %cr4
        cmp     $pml4 + 5, %rax                 # bit 63 does not stay
        je      1f
        ud2
1:      expect_manual 0xFF
        check   "cr2"
        mov     $-5, %rax
        mov     %rax, %cr2
        mov     %cr2, %rax
        report_value
        .irp    value, 0, 1, 7, 15
        check   "cr8 \value"
        mov     $\value, %rax
        mov     %rax, %cr8
        mov     %cr8, %rax
        report_value
        .endr
        .irp    value, 16, 0x80, -1
        check   "cr8 \value"
        mov     $\value, %rax
        mov     %rax, %cr8
        expect  13
        .endr
        xor     %eax, %eax
        mov     %rax, %cr8
        check   "clts"
        mov     %cr0, %rax
        or      $8, %eax
        mov     %rax, %cr0
        clts
        mov     %cr0, %rax
        report_value
        check   "lmsw"
        mov     $0xFFFF, %eax
        lmsw    %ax
        mov     %cr0, %rax
        report_value
        mov     $0x80000033, %eax
        mov     %rax, %cr0
        check   "32-bit forms"                  # the operand is always 64 bits
        mov     $-1, %rax
        .byte   0x66, 0x0F, 0x20, 0xD8          # mov %cr3, %rax
        report_value

        # ------------------------------------------------ debug registers
        check   "dr0"
        mov     $0x123456789ABCDEF0, %rax
        mov     %rax, %dr0
        mov     %dr0, %rax
        report_value
        check   "dr3 non-canonical"
        mov     $FAR, %rax
        mov     %rax, %dr3
        mov     %dr3, %rax
        report_value
        .irp    value, 0, -1
        check   "dr6 \value"
        mov     $\value, %eax
        mov     %rax, %dr6
        mov     %dr6, %rax
        report_value
        .endr
        check   "dr6 above 32 bits"
        movabs  $0x100000000, %rax
        mov     %rax, %dr6
        report
        check   "dr7 above 32 bits"
        movabs  $0x100000000, %rax
        mov     %rax, %dr7
        report
        check   "dr7 reserved bits"
        mov     $0xDC00, %eax
        mov     %rax, %dr7
        mov     %dr7, %rax
        report_value
        xor     %eax, %eax
        mov     %rax, %dr7
        mov     %rax, %dr0
        mov     %rax, %dr3
        check   "dr4"
        mov     %dr4, %rax
        report_value
        check   "dr4 with debugging extensions"
        mov     %cr4, %rax
        or      $8, %eax
        mov     %rax, %cr4
        mov     %dr4, %rax
        report
        mov     %cr4, %rax
        and     $~8, %eax
        mov     %rax, %cr4
        check   "dr8"
        .byte   0x44, 0x0F, 0x21, 0xC0
        report

        # ------------------------------------------------ model-specific registers
        .irp    value, 0x500, 0x501, 0xD01, 0x901, 0x101
        check   "efer \value"
        mov     $0xC0000080, %ecx
        xor     %edx, %edx
        mov     $\value, %eax
        wrmsr
        rdmsr
        report_value
        .endr
        .irp    value, 0x801, 0x001, 0x10901, 0x80000901
        bad_msr efer, 0xC0000080, 0, \value
        .endr
        mov     $0xC0000080, %ecx
        xor     %edx, %edx
        mov     $0x901, %eax
        wrmsr
        bad_msr efer, 0xC0000080, 1, 0x901
        .irp    base, 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000082, 0xC0000083, 0x175, 0x176
        msr     \base, \base, 0, 0
        msr     \base, \base, 0x7FFF, 0xFFFFFFFF
        bad_msr \base, \base, 0x8000, 0
        bad_msr \base, \base, 0xFFFF7FFF, 0xFFFFFFFF
        msr     \base, \base, 0xFFFF8000, 0
        bad_msr \base, \base, 0x80000000, 0
        msr     \base, \base, 0, 0
        .endr
        msr     star, 0xC0000081, 0x12345678, 0x9ABCDEF0
        msr     sfmask, 0xC0000084, 0, 0xFFFFFFFF
        msr     sysenter_cs, 0x174, 0, 0xFFFF
        msr     sysenter_cs, 0x174, 0, 8
        msr     pat, 0x277, 0x00070406, 0x00070406
        bad_msr pat, 0x277, 0x00070405, 0x00010002
        bad_msr pat, 0x277, 0x00070403, 0
        bad_msr pat, 0x277, 0x00070408, 0
        bad_msr pat, 0x277, 0x02070404, 0
        msr     pat, 0x277, 0x00070406, 0x00070406
        msr     tsc_aux, 0xC0000103, 0, 0x1234
        check   "rdtscp gives it"
        rdtscp
        mov     %ecx, %eax
        report_value
        check   "rdpid gives it"
        mov     $7, %eax                        # where CPUID has it
        xor     %ecx, %ecx
        cpuid
        bt      $22, %ecx
        mov     $0x1234, %eax
        jnc     1f
        rdpid   %rax
1:      report_value
        read_msr tsc, 0x10
        read_msr apic_base, 0x1B
        read_msr mtrr_capabilities, 0xFE
        read_msr mtrr_default, 0x2FF
        read_msr misc_enable, 0x1A0
        read_msr nothing, 0x12345
        read_msr nothing_high, 0xC0001234
        read_msr nothing_kvm, 0x4B564DFF
        check   "write nothing"
        mov     $0x12345, %ecx
        xor     %eax, %eax
        xor     %edx, %edx
        wrmsr
        report
        check   "time goes on"
        rdtsc
        shl     $32, %rdx
        lea     (%rax, %rdx), %rbx
        rdtsc
        shl     $32, %rdx
        add     %rdx, %rax
        cmp     %rbx, %rax
        mov     $0, %eax
        seta    %al
        report_value
        check   "time can be set"
        mov     $0x10, %ecx
        xor     %eax, %eax
        mov     $0x100, %edx
        wrmsr
        rdtsc
        mov     %edx, %eax
        report_value

        # ------------------------------------------------ SYSCALL and SYSRET
        sign_in
        check   "syscall"
        push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x246
        push    $UCODE
        push    $USER + user_syscall - user_start
        iretq
        report_value
        check   "what syscall left"
        mov     seen_rcx, %rax
        sub     $USER, %rax
        add     $user_start, %rax
        sub     $user_syscall, %rax
        show    rcx, %rax
        show    r11, seen_r11
        show    flags, seen_flags
        show    cs, seen_cs
        show    ss, seen_ss
        report
        .irp    flags, 0x2, 0x202, 0x3246, 0x44202, 0x204D77, 0x10002
        check   "sysretq with flags \flags"
        mov     $USER + user_probe - user_start, %ecx
        mov     $\flags, %r11d
        sysretq
        report
        .endr
        check   "sysretl"
        mov     $USER + user_probe - user_start, %ecx
        mov     $0x2, %r11d
        sysretl
        report
        check   "sysretl drops the upper half"
        mov     $USER + user_probe - user_start, %ecx
        bts     $40, %rcx
        mov     $0x2, %r11d
        sysretl
        report
        check   "sysretq to a non-canonical address"
        mov     $FAR, %rcx
        mov     $0x2, %r11d
        sysretq
        report
        check   "syscall from the kernel"
        movl    $1, is_from_kernel
        syscall
1:      report
        mov     seen_cs, %rax
        line    "cs", before, %rax
        movl    $0, is_from_kernel
        check   "syscall from compatibility mode"
        push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x202
        push    $UCODE32
        push    $USER + user_syscall_32 - user_start
        iretq
        report_value
        mov     $0xC0000080, %ecx
        rdmsr
        and     $~1, %eax
        wrmsr
        check   "syscall without sce"
        syscall
        report
        check   "sysret without sce"
        sysretq
        report
        check   "user syscall without sce"
        run_user user_syscall
        report
        mov     $0xC0000080, %ecx
        rdmsr
        or      $1, %eax
        wrmsr

        # ------------------------------------------------ CPUID and XGETBV
        check   "xgetbv"
        mov     %cr4, %rax
        bts     $18, %rax
        mov     %rax, %cr4
        xor     %ecx, %ecx
        xgetbv
        report_value
        check   "xgetbv 5"
        mov     $5, %ecx
        xgetbv
        report
        check   "cpuid tells of xsave"
        mov     $1, %eax
        cpuid
        bt      $27, %ecx
        setc    %al
        movzbl  %al, %eax
        report_value
        check   "cpuid follows cr4"
        mov     %cr4, %rax
        btr     $18, %rax
        mov     %rax, %cr4
        mov     $1, %eax
        cpuid
        bt      $27, %ecx
        setc    %al
        movzbl  %al, %eax
        report_value
        check   "cpuid clears the upper halves"
        mov     $-1, %rax
        xor     %eax, %eax
        mov     $-1, %rbx
        mov     $-1, %rcx
        mov     $-1, %rdx
        cpuid
        mov     %rbx, %rax
        or      %rcx, %rax
        or      %rdx, %rax
        shr     $32, %rax
        report_value
        ret

# Where SYSCALL goes: looks around and goes back, unless it came from the kernel.
system_call:
        mov     %rcx, seen_rcx
        mov     %r11, seen_r11
        mov     %cs, %eax
        mov     %rax, seen_cs
        mov     %ss, %eax
        mov     %rax, seen_ss
        mov     recovery_stack, %rsp
        pushfq
        pop     %rax
        mov     %rax, seen_flags
        mov     $0x5CA11, %eax
        jmp     *recovery

        .section .user
user_syscall:   syscall
                int $0x80
user_probe:     int $0x80
                .code32
user_syscall_32: syscall
                int $0x80
                .code64

        .data
        .balign 8
seen_rcx:       .quad 0
seen_r11:       .quad 0
seen_flags:     .quad 0
seen_cs:        .quad 0
seen_ss:        .quad 0
is_from_kernel: .long 0
        .text
