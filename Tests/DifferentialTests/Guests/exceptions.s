# Every exception an instruction can raise, with its error code and return address.

        .include "long.inc"

main:   # ------------------------------------------------ division, breakpoints, opcodes
        check   "div by zero"
        xor     %ecx, %ecx
        div     %ecx
        report
        check   "div overflow"
        mov     $2, %edx
        mov     $1, %ecx
        div     %ecx
        report
        check   "div 8 bits"
        mov     $0x200, %eax
        mov     $2, %cl
        div     %cl
        report
        check   "idiv of the smallest number"
        mov     $1, %eax
        ror     $1, %rax
        mov     $-1, %rdx
        mov     $-1, %rcx
        idiv    %rcx
        report
        check   "div in memory"
        divq    zero
        report
        check   "int3"
        int3
        report
        check   "int 3"
        .byte   0xCD, 3
        report
        check   "int 0x42"
        int     $0x42
        report
        check   "icebp"
        .byte   0xF1
        report
        check   "ud2"
        ud2
        report
        check   "ud1"
        .byte   0x0F, 0xB9, 0xC0
        report
        check   "lock mov"
        .byte   0xF0, 0x89, 0x08
        report
        check   "lock add register"
        .byte   0xF0, 0x01, 0xC8
        report
        .irp    opcode, 0x06, 0x0E, 0x16, 0x1E, 0x27, 0x2F, 0x37, 0x3F, 0x60, 0x61, 0x62, 0x82, 0x9A, 0xC4, 0xCE, 0xD4, 0xD5, 0xD6, 0xEA
        check   "opcode \opcode"
        .byte   \opcode, 0xC0, 0xC0, 0xC0, 0xC0, 0xC0, 0xC0
        report
        .endr
        check   "mov to cs"
        .byte   0x8E, 0xC8
        report
        check   "mov from segment register 6"
        .byte   0x8C, 0xF0
        report
        check   "mov to cr1"
        .byte   0x0F, 0x22, 0xC8
        report
        check   "mov from cr5"
        .byte   0x0F, 0x20, 0xE8
        report
        check   "mov to cr9"
        .byte   0x44, 0x0F, 0x22, 0xC8
        report
        check   "lea of a register"
        .byte   0x8D, 0xC0
        report
        check   "sixteen bytes"
        .fill   15, 1, 0x66
        nop
        report
        check   "fifteen bytes"
        .fill   14, 1, 0x66
        nop
        report
        check   "too long at the end of a page"
        mov     $WINDOW + 0xFF2, %edi
        movq    $test_page + 3, window_table
        movq    $0, window_table + 8
        mov     $0x66, %al
        mov     $14, %ecx
        rep stosb
        mov     $WINDOW + 0xFF2, %edi
        jmp     *%rdi
        report

        # ------------------------------------------------ device not available, emulation
        .irp    bits, 0x2, 0x4, 0x8, 0xA, 0xC, 0xE
        mov     %cr0, %rax
        and     $~0xE, %rax
        or      $\bits, %rax
        mov     %rax, %cr0
        check   "cr0 \bits fnop"
        fnop
        report
        check   "cr0 \bits fwait"
        fwait
        report
        check   "cr0 \bits mmx"
        movd    %eax, %mm0
        report
        check   "cr0 \bits sse"
        addps   %xmm0, %xmm0
        report
        check   "cr0 \bits movnti"
        movnti  %eax, scratch
        report
        check   "cr0 \bits fxsave"
        fxsave  scratch
        report
        check   "cr0 \bits ldmxcsr"
        ldmxcsr default_mxcsr
        report
        check   "cr0 \bits emms"
        emms
        report
        .endr
        mov     %cr0, %rax
        and     $~0xC, %rax
        or      $2, %rax
        mov     %rax, %cr0
        mov     %cr4, %rax
        and     $~0x200, %rax
        mov     %rax, %cr4
        check   "sse without osfxsr"
        addps   %xmm0, %xmm0
        report
        check   "fxsave without osfxsr"
        fxsave  scratch
        report
        check   "mmx without osfxsr"
        movd    %eax, %mm0
        report
        mov     %cr4, %rax
        or      $0x200, %rax
        mov     %rax, %cr4
        check   "avx without osxsave"
        vaddps  %ymm0, %ymm0, %ymm0
        report
        check   "xgetbv without osxsave"
        xor     %ecx, %ecx
        xgetbv
        report
        check   "xsave without osxsave"
        xsave   scratch
        report
        mov     %cr4, %rax
        or      $0x40000, %rax
        mov     %rax, %cr4
        check   "avx without xcr0"
        vaddps  %ymm0, %ymm0, %ymm0
        report
        check   "vex bmi without xcr0"
        mov     $6, %ecx
        andn    %ecx, %ecx, %eax
        report_value
        .irp    value, 0, 1, 2, 3, 4, 5, 6, 7, 0x107
        check   "xsetbv \value"
        xor     %ecx, %ecx
        xor     %edx, %edx
        mov     $\value, %eax
        xsetbv
        report
        .endr
        check   "xsetbv 1"
        mov     $1, %ecx
        xor     %edx, %edx
        mov     $7, %eax
        xsetbv
        report
        check   "avx"
        xor     %ecx, %ecx
        xor     %edx, %edx
        mov     $7, %eax
        xsetbv
        vaddps  %ymm0, %ymm0, %ymm0
        report
        check   "avx with task switched"
        mov     %cr0, %rax
        or      $8, %rax
        mov     %rax, %cr0
        vaddps  %ymm0, %ymm0, %ymm0
        report
        clts
        check   "xrstor with a bad header"
        movq    $0xFF00, scratch + 512
        mov     $7, %eax
        xor     %edx, %edx
        xrstor  scratch
        report
        movq    $0, scratch + 512
        check   "xsave misaligned"
        mov     $7, %eax
        xor     %edx, %edx
        xsave   scratch + 8
        report

        # ------------------------------------------------ floating-point exceptions
        fninit
        check   "x87 division by zero, unmasked"
        fldcw   unmasked_control
        fld1
        fldz
        fdivrp
        nop
        fwait
        nop
        report
        fnclex
        fninit
        check   "x87 division by zero, next instruction"
        fldcw   unmasked_control
        fld1
        fldz
        fdivrp
        nop
        fld1
        report
        fnclex
        fninit
        check   "x87 exceptions wait for no control instruction"
        fldcw   unmasked_control
        fld1
        fldz
        fdivrp
        fnstsw  %ax
        fnclex
        report_value
        fninit
        check   "x87 exceptions before mmx"
        fldcw   unmasked_control
        fld1
        fldz
        fdivrp
        movd    %eax, %mm0
        report
        fnclex
        fninit
        check   "sse division by zero, unmasked"
        ldmxcsr unmasked_mxcsr
        movss   one, %xmm0
        xorps   %xmm1, %xmm1
        divss   %xmm1, %xmm0
        report
        stmxcsr scratch
        line    "mxcsr", value, scratch
        ldmxcsr default_mxcsr
        check   "sse invalid, unmasked, packed"
        ldmxcsr unmasked_mxcsr
        movups  minus_one, %xmm0
        sqrtps  %xmm0, %xmm0
        report
        ldmxcsr default_mxcsr
        mov     %cr4, %rax
        and     $~0x400, %rax
        mov     %rax, %cr4
        check   "sse division by zero without osxmmexcpt"
        ldmxcsr unmasked_mxcsr
        movss   one, %xmm0
        xorps   %xmm1, %xmm1
        divss   %xmm1, %xmm0
        report
        ldmxcsr default_mxcsr
        mov     %cr4, %rax
        or      $0x400, %rax
        mov     %rax, %cr4
        check   "reserved bits of mxcsr"
        ldmxcsr bad_mxcsr
        report
        check   "movaps misaligned"
        movaps  scratch + 8, %xmm0
        report
        check   "movaps misaligned, absent page"
        movq    $0, window_table
        mov     $WINDOW + 8, %edi
        invlpg  (%rdi)
        movaps  (%rdi), %xmm0
        report
        check   "vmovaps misaligned"
        vmovaps scratch + 16, %ymm0
        report
        check   "addps misaligned"
        addps   scratch + 4, %xmm0
        report
        check   "vaddps misaligned"
        vaddps  scratch + 4, %ymm0, %ymm0
        report
        check   "cmpxchg16b misaligned"
        lock cmpxchg16b scratch + 8
        report
        check   "fxsave misaligned"
        fxsave  scratch + 8
        report

        # ------------------------------------------------ addresses
        mov     $0x800000000000, %r8
        check   "non-canonical load"
        mov     (%r8), %eax
        report
        check   "non-canonical store"
        mov     %eax, -0x7FFF(%r8, %r8)
        report
        check   "non-canonical through rsp"
        mov     %rsp, %r9
        mov     %r8, %rsp
        mov     (%rsp), %eax
        report
        check   "non-canonical through rbp"
        mov     %r8, %rbp
        mov     8(%rbp), %eax
        report
        check   "non-canonical push"
        mov     %r8, %rsp
        add     $16, %rsp
        push    %rax
        report
        check   "non-canonical pop"
        mov     %r8, %rsp
        pop     %rax
        report
        check   "non-canonical call"
        mov     %r8, %rsp
        add     $16, %rsp
        call    1f
1:      report
        check   "non-canonical enter"
        mov     %r8, %rsp
        add     $16, %rsp
        enter   $0, $0
        report
        check   "across the canonical edge"
        mov     -4(%r8), %rax
        report
        check   "jump to a non-canonical address"
        jmp     *%r8
        report
        check   "call of a non-canonical address"
        call    *%r8
        report
        check   "return to a non-canonical address"
        push    %r8
        ret
        report
        check   "string at a non-canonical address"
        mov     %r8, %rdi
        mov     $4, %ecx
        rep stosb
        report
        check   "prefetch of a non-canonical address"
        prefetcht0 (%r8)
        report
        check   "invlpg of a non-canonical address"
        invlpg  (%r8)
        report
        check   "clflush of a non-canonical address"
        clflush (%r8)
        report
        check   "clflush of an absent page"
        mov     $WINDOW, %edi
        invlpg  (%rdi)
        clflush (%rdi)
        report

        # ------------------------------------------------ privilege
        .irp    name, hlt, cli, sti, clts, invd, wbinvd, rdmsr, wrmsr, lgdt, lidt, lldt, ltr, lmsw, invlpg, mov_from_cr0, mov_to_cr3, mov_from_cr8, mov_from_dr7, mov_to_dr0, in, out, insb, outsb, rdtsc, rdtscp, rdpmc, swapgs, sysret, iret_kernel, int_0x42, int3, icebp, sgdt, sidt, sldt, str, smsw, xsetbv, xgetbv, monitor, mwait, stac, rdfsbase, wrfsbase, popf, pushf, mov_ss_null, mov_ds_kernel, far_jump_kernel, load_kernel, fetch_kernel, cpuid
        check   "user \name"
        run_user user_\name
        report
        .endr
        .irp    name, sysexit, invpcid
        check_manual "user \name"
        run_user user_\name
        expect_manual 13
        .endr
        .irp    name, vmcall, vmmcall           # are for everybody: the hypervisor looks at the privilege level
        check_manual "user \name"
        run_user user_\name
        expect_manual 0x80
        .endr
        mov     %cr4, %rax
        or      $0x800, %rax                    # UMIP
        mov     %rax, %cr4
        .irp    name, sgdt, sidt, sldt, str, smsw
        check   "umip \name"
        run_user user_\name
        report
        .endr
        mov     %cr4, %rax
        and     $~0x800, %rax
        or      $0x4, %rax                      # TSD
        mov     %rax, %cr4
        .irp    name, rdtsc, rdtscp
        check   "tsd \name"
        run_user user_\name
        report
        .endr
        check   "tsd rdtsc in the kernel"
        rdtsc
        report
        mov     %cr4, %rax
        and     $~0x4, %rax
        or      $0x10000, %rax                  # FSGSBASE
        mov     %rax, %cr4
        .irp    name, rdfsbase, wrfsbase
        check   "fsgsbase \name"
        run_user user_\name
        report
        .endr
        check   "wrfsbase non-canonical"
        wrfsbase %r8
        report
        check   "wrgsbase"
        mov     $0x12345678, %ecx
        wrgsbase %rcx
        rdgsbase %rax
        report_value
        xor     %ecx, %ecx
        wrgsbase %rcx
        wrfsbase %rcx

        # ------------------------------------------------ I/O permission
        .irp    port, 0, 7, 8, 0x3F7, 0x3F8, 0x3FF, 0x7FF
        mov     $\port, %ebx
        check   "io bitmap in \port"
        mov     $\port, %edx
        run_user user_in_dx
        report
        check   "io bitmap inw \port"
        mov     $\port, %edx
        run_user user_inw_dx
        report
        .endr
        movw    $0xFFFF, gdt + TSS              # the limit: room for a bitmap
        movw    $0x67 + 0x81, gdt + TSS
        andb    $~2, gdt + TSS + 5
        mov     $TSS, %eax
        ltr     %ax
        .irp    port, 0, 7, 8, 9, 0x3F7, 0x3F8, 0x3FF, 0x7FF, 0x1000, 0xFFFF
        check   "io bitmap loaded in \port"
        mov     $\port, %edx
        run_user user_in_dx
        report
        check   "io bitmap loaded inw \port"
        mov     $\port, %edx
        run_user user_inw_dx
        report
        check   "io bitmap loaded inl \port"
        mov     $\port, %edx
        run_user user_inl_dx
        report
        .endr
        check   "iopl 3 in"
        push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x3002
        push    $UCODE
        push    $USER + user_in_dx - user_start
        mov     $0x1000, %edx
        iretq
        report
        check   "iopl 3 cli sti"
        push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x3002
        push    $UCODE
        push    $USER + user_cli_sti - user_start
        iretq
        report

        # ------------------------------------------------ alignment
        mov     %cr0, %rax
        or      $0x40000, %rax
        mov     %rax, %cr0
        check   "alignment, user"
        push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x40002
        push    $UCODE
        push    $USER + user_misaligned - user_start
        iretq
        report
        check   "alignment, user, aligned"
        push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x40002
        push    $UCODE
        push    $USER + user_aligned - user_start
        iretq
        report
        check   "alignment, kernel"
        push    $0x40002
        popfq
        mov     scratch + 1, %eax
        push    $2
        popfq
        report
        push    $2
        popfq
        ret

        .section .user
user_hlt:       hlt
user_cli:       cli
user_sti:       sti
user_clts:      clts
user_invd:      invd
user_wbinvd:    wbinvd
user_rdmsr:     mov $0x10, %ecx
                rdmsr
user_wrmsr:     wrmsr
user_lgdt:      lgdt -64(%rsp)
user_lidt:      lidt -64(%rsp)
user_lldt:      lldt %ax
user_ltr:       ltr %ax
user_lmsw:      lmsw %ax
user_invlpg:    invlpg (%rsp)
user_mov_from_cr0: mov %cr0, %rax
user_mov_to_cr3: mov %rax, %cr3
user_mov_from_cr8: mov %cr8, %rax
user_mov_from_dr7: mov %dr7, %rax
user_mov_to_dr0: mov %rax, %dr0
user_in:        in $0x80, %al
user_out:       out %al, $0x80
user_insb:      mov %rsp, %rdi
                sub $16, %rdi
                insb
user_outsb:     mov %rsp, %rsi
                sub $16, %rsi
                outsb
user_rdtsc:     rdtsc
                int $0x80
user_rdtscp:    rdtscp
                int $0x80
user_rdpmc:     rdpmc
                int $0x80
user_swapgs:    swapgs
user_sysret:    sysretq
user_sysexit:   sysexitq
user_iret_kernel:
                push $KDATA
                push $0
                push $2
                push $KCODE
                push $0
                iretq
user_int_0x42:  int $0x42
user_int3:      int3
user_icebp:     .byte 0xF1
user_sgdt:      sgdt -64(%rsp)
                int $0x80
user_sidt:      sidt -64(%rsp)
                int $0x80
user_sldt:      sldt %eax
                int $0x80
user_str:       str %eax
                int $0x80
user_smsw:      smsw %eax
                int $0x80
user_xsetbv:    xor %ecx, %ecx
                xsetbv
user_xgetbv:    xor %ecx, %ecx
                xgetbv
                int $0x80
user_invpcid:   invpcid -64(%rsp), %rax
user_monitor:   monitor
user_mwait:     mwait
user_stac:      stac
user_rdfsbase:  rdfsbase %rax
                int $0x80
user_wrfsbase:  mov $0, %ecx
                wrfsbase %rcx
                int $0x80
user_popf:      pushq $0x3302                   # IOPL and IF stay as they are
                popfq
                int $0x80
user_pushf:     pushfq
                pop %rax
                int $0x80
user_mov_ss_null: xor %eax, %eax
                mov %eax, %ss
user_mov_ds_kernel: mov $KDATA, %eax
                mov %eax, %ds
user_far_jump_kernel:
                push $KCODE
                push $0
                .byte   0x48, 0xFF, 0x2C, 0x24  # jmp far m16:64
user_load_kernel: mov 0x100000, %eax
user_fetch_kernel: mov $0x100000, %eax
                jmp *%rax
user_cpuid:     mov $0, %eax
                cpuid
                int $0x80
user_vmcall:    vmcall
                int $0x80
user_vmmcall:   vmmcall
                int $0x80
user_in_dx:     in %dx, %al
                int $0x80
user_inw_dx:    in %dx, %ax
                int $0x80
user_inl_dx:    in %dx, %eax
                int $0x80
user_cli_sti:   cli
                sti
                cli
                int $0x80
user_misaligned: mov -63(%rsp), %eax
                int $0x80
user_aligned:   mov -64(%rsp), %eax
                int $0x80

        .data
        .balign 64
scratch:        .fill 1024, 1, 0
zero:           .quad 0
one:            .float 1
minus_one:      .float -1, -1, -1, -1
default_mxcsr:  .long 0x1F80
unmasked_mxcsr: .long 0x0000
bad_mxcsr:      .long 0x10000
unmasked_control: .word 0x0360

        .bss
        .balign 4096
test_page:      .skip 4096
        .text
