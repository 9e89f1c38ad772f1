# Interrupts of one processor: the local APIC's priorities and registers, its timer, the shadow of STI, NMIs, user
# code, and the old timer through the 8259 and the IOAPIC.

        .include "long.inc"

        .set    APIC, 0xFEE00000
        .set    IOAPIC, 0xFEC00000

        .macro  apic register:req, value:req
        mov     $APIC, %edi
        movl    $\value, \register(%rdi)
        .endm
# Sends \vector to this processor.
        .macro  self vector:req
        apic    0x300, 0x44000 + \vector
        .endm
        .macro  show_apic name:req, register:req
        mov     $APIC, %edi
        mov     \register(%rdi), %eax
        show    \name, %rax
        .endm
# A list of the vectors that come from here on.
        .macro  note title:req
        say     "\title"
        movq    $0, seen
        movq    $0, seen_rip
        .endm
        .macro  noted
        show    vectors, seen
        new_line
        .endm
# The same, and where the first one came, relative to \from.
        .macro  noted_at from:req
        show    vectors, seen
        mov     seen_rip, %rax
        sub     $\from, %rax
        show    ip, %rax
        new_line
        .endm
# Waits until \count vectors have come.
        .macro  await count:req
94:     cli
        cmpq    $\count, seen_count
        jae     95f
        sti
        hlt
        jmp     94b
95:
        .endm

main:   .irp    vector, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xA0
        movq    $handle_\vector, hooks + \vector * 8
        .endr
        movq    $handle_nmi, hooks + 2 * 8
        apic    0xF0, 0x1FF

        # ------------------------------------------------ registers
        mov     $APIC, %edi
        .irp    register, 0x20, 0x80, 0xA0, 0xD0, 0xE0, 0xF0, 0x280, 0x320, 0x340, 0x370, 0x380, 0x390, 0x3E0
        say     "register \register"
        show_apic at_first, \register
        new_line
        .endr
        .irp    register, 0x80, 0xD0, 0xE0, 0x320, 0x350, 0x360, 0x370, 0x3E0
        say     "register \register"
        mov     \register(%rdi), %ebp
        movl    $0xFFFFFFFF, \register(%rdi)
        show_apic of_ones, \register
        movl    $0, \register(%rdi)
        show_apic of_zeros, \register
        mov     %ebp, \register(%rdi)
        new_line
        .endr
        apic    0xE0, 0xFFFFFFFF

        # ------------------------------------------------ requests, service, priorities
        note    "one interrupt"
        self    0x50
        show_apic irr, 0x220
        show_apic isr, 0x120
        show_apic ppr, 0xA0
        sti
        nop
        nop
        cli
        show_apic irr, 0x220
        show_apic isr, 0x120
        noted
        note    "the highest first"
        self    0x50
        self    0x90
        self    0x70
        self    0x90
        sti
        nop
        nop
        cli
        noted
        note    "a higher one interrupts the handler"
        movq    $inner, action
        self    0x60
        sti
        nop
        nop
        cli
        movq    $0, action
        noted
        note    "priority of the task"
        apic    0x80, 0x60
        self    0x50
        self    0x60
        self    0x70
        sti
        nop
        nop
        cli
        show    vectors, seen
        sti
        apic    0x80, 0x5F
        jmp     1f
1:      nop
        cli
        show    vectors, seen
        xor     %eax, %eax
        sti
        mov     %rax, %cr8
        jmp     1f
1:      nop
        cli
        noted
        note    "cr8 and the register"
        mov     $7, %eax
        mov     %rax, %cr8
        show_apic tpr, 0x80
        show_apic ppr, 0xA0
        apic    0x80, 0x3A
        mov     %cr8, %rax
        show    cr8, %rax
        new_line
        apic    0x80, 0
        check_manual "a vector below 16"
        apic    0x280, 0
        self    5
        apic    0x280, 0
        mov     0x280(%rdi), %eax
        test    $0x60, %eax                     # either error, or both
        jnz     1f
        ud2
1:      apic    0x280, 0
        apic    0x280, 0
        expect_manual 0xFF
        check_manual "with the apic's software switch off"
        apic    0xF0, 0xFF
        self    0x50
        mov     0x220(%rdi), %ebx
        apic    0xF0, 0x1FF
        test    %ebx, %ebx
        jz      1f
        ud2
1:      expect_manual 0xFF

        # ------------------------------------------------ when they come
        note    "behind the shadow of sti"
        self    0x50
1:      sti
        nop
        nop
        nop
        cli
        noted_at 1b
        note    "not between sti and cli"
        self    0x50
        sti
        cli
        nop
        show    vectors, seen
1:      sti
        nop
        nop
        cli
        noted_at 1b
        note    "sti without effect has no shadow"
        pushfq
        orl     $0x200, (%rsp)
        self    0x50
1:      popfq
        sti
        nop
        cli
        noted_at 1b
        note    "behind popfq at once"
        push    $0x202
        self    0x50
1:      popfq
        nop
        nop
        cli
        noted_at 1b
        note    "behind iretq at once"
        self    0x50
        mov     %rsp, %rcx
        push    $KDATA
        push    %rcx
        push    $0x202
        push    $KCODE
        push    $1f
        iretq
        nop
1:      nop
        nop
        cli
        noted_at 1b
        note    "sti, and a branch back"
        movq    $0, seen_count
        self    0x50
1:      sti
2:      cmpq    $0, seen_count
        je      2b
        cli
        noted
        note    "in a loop"
        movq    $0, seen_count
        sti
        self    0x50
1:      cmpq    $1, seen_count
        jb      1b
        self    0x60
1:      cmpq    $2, seen_count
        jb      1b
        cli
        noted
        note    "sti and hlt"
        self    0x50
1:      sti
        hlt
        cli
        noted_at 1b
        note    "into user code"
        self    0x50
        push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x202
        push    $UCODE
        push    $USER + user_wait - user_start
        movq    $1f, hooks + 0x80 * 8
        mov     %rsp, recovery_stack
        iretq
1:      mov     recovery_stack, %rsp
        add     $40, %rsp
        movq    $0, hooks + 0x80 * 8
        show    cs, seen_cs
        noted_at USER+user_wait-user_start

        # ------------------------------------------------ NMI
        note    "nmi without interrupts"
        movq    $0, seen_count
        apic    0x310, 0
        apic    0x300, 0x4400
1:      cmpq    $1, seen_count
        jb      1b
        noted
        note    "nmi in its handler waits for iret"
        movq    $send_nmi, action
        movq    $0, seen_count
        apic    0x310, 0
        apic    0x300, 0x4400
1:      cmpq    $2, seen_count
        jb      1b
        movq    $0, action
        show    depth, deepest
        noted
        note    "an interrupt in the handler of an nmi"
        movq    $inner_interrupt, action
        movq    $0, seen_count
        apic    0x310, 0
        apic    0x300, 0x4400
1:      cmpq    $2, seen_count
        jb      1b
        movq    $0, action
        noted

        # ------------------------------------------------ the APIC's timer
        note    "one shot"
        movq    $0, seen_count
        apic    0x3E0, 0xB
        apic    0x320, 0x40
        apic    0x380, 100000
        await   1
        show_apic left, 0x390
        mov     $200000, %ecx
1:      loop    1b
        sti
        nop
        nop
        cli
        noted
        note    "periodic"
        movq    $0, seen_count
        apic    0x320, 0x20040
        apic    0x380, 200000
        await   4
        apic    0x380, 0
        sti
        nop
        nop
        cli
        movq    $0, seen_count
        mov     seen, %rax
        and     $0xFFFFFFFF, %eax
        mov     %rax, seen
        noted
        note    "stopped"
        mov     $500000, %ecx
1:      loop    1b
        show_apic left, 0x390
        sti
        nop
        nop
        cli
        noted
        note    "masked"
        apic    0x320, 0x10040
        apic    0x380, 1000
1:      mov     $APIC, %edi
        mov     0x390(%rdi), %eax
        test    %eax, %eax
        jnz     1b
        show_apic irr, 0x220
        sti
        nop
        nop
        cli
        noted
        note    "its count goes down"
        apic    0x380, 0xFFFFFFFF
        mov     $APIC, %edi
        mov     0x390(%rdi), %ebx
        mov     $10000, %ecx
1:      loop    1b
        mov     0x390(%rdi), %eax
        cmp     %ebx, %eax
        setb    %al
        movzbl  %al, %eax
        show    lower, %rax
        apic    0x380, 0
        noted
        note    "it interrupts a string instruction"
        movq    $0, seen_count
        apic    0x320, 0x20040
        apic    0x380, 100000
        sti
        mov     $0x5A, %al
        mov     $0x1000000, %edi
        mov     $0x1000000, %ecx
        rep stosb
        mov     $0x1000000, %esi
        mov     $0x2000000, %edi
        mov     $0x1000000, %ecx
        rep movsb
        cli
        push    %rdi
        apic    0x380, 0
        apic    0x320, 0x10040
        pop     %rdi
        show    rsi, %rsi
        show    rdi, %rdi
        show    rcx, %rcx
        mov     $0x1000000, %esi
        mov     $0x2000000, %edi
        mov     $0x200000, %ecx
        repe cmpsq
        sete    %al
        movzbl  %al, %eax
        show    same, %rax
        cmpq    $0, seen_count
        setne   %al
        movzbl  %al, %eax
        show    interrupted, %rax
        new_line
        sti
        nop
        nop
        cli
        check_manual "deadline of the time stamp counter"
        movq    $0, seen_count
        apic    0x320, 0x40040
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        add     $100000, %rax
        mov     %rax, %rdx
        shr     $32, %rdx
        mov     $0x6E0, %ecx
        wrmsr
        await   1
        mov     $0x6E0, %ecx
        rdmsr
        or      %edx, %eax                      # it is over
        jz      1f
        ud2
1:      apic    0x320, 0x10040
        expect_manual 0xFF

        check_manual "x2apic"
        mov     $0x1B, %ecx
        rdmsr
        mov     %eax, %ebp
        or      $0xC00, %eax
        wrmsr
        movq    $0, seen_count
        mov     $0x83F, %ecx                    # to itself
        mov     $0x50, %eax
        xor     %edx, %edx
        wrmsr
        mov     $0x822, %ecx
        rdmsr
        cmp     $0x10000, %eax
        je      1f
        ud2
1:      movl    $1, is_x2apic
        sti
        nop
        nop
        cli
        movl    $0, is_x2apic
        cmpq    $1, seen_count
        je      1f
        ud2
1:      mov     $0x1B, %ecx
        mov     %ebp, %eax
        and     $~0xC00, %eax
        xor     %edx, %edx
        wrmsr                                   # only through the disabled state
        mov     %ebp, %eax
        wrmsr
        apic    0xF0, 0x1FF
        expect_manual 0xFF
        check_manual "from x2apic to xapic"
        mov     $0x1B, %ecx
        rdmsr
        mov     %eax, %ebp
        or      $0xC00, %eax
        wrmsr
        mov     %ebp, %eax
        wrmsr
        expect_manual 13
        check_manual "registers that x2apic lacks"
        mov     $0x80E, %ecx                    # destination format
        rdmsr
        expect_manual 13
        cmpb    $0, is_qemu
        jne     1f
        mov     $0x1B, %ecx
        mov     %ebp, %eax
        and     $~0xC00, %eax
        xor     %edx, %edx
        wrmsr
        mov     %ebp, %eax
        wrmsr
1:      apic    0xF0, 0x1FF

        # ------------------------------------------------ the old controllers
        note    "timer through the 8259"
        .irp    pair, 0x1120, 0x3021, 0x0421, 0x0121, 0x11A0, 0x38A1, 0x02A1, 0x01A1, 0xFE21, 0xFFA1
        mov     $\pair >> 8, %al
        out     %al, $(\pair & 0xFF)
        .endr
        movb    $1, is_old
        apic    0x350, 0x700                    # ExtINT
        call    start_timer
        movq    $0, seen_count
        await   3
        mov     $0xFF, %al
        out     %al, $0x21
        call    stop_timer
        mov     seen, %rax
        and     $0xFFFFFF, %eax
        mov     %rax, seen
        apic    0x350, 0x10000
        movb    $0, is_old
        noted
        note    "timer through the ioapic"       # pin 2 where a board has wired it so, else pin 0
        mov     $IOAPIC, %edi
        .irp    pin, 0, 2
        movl    $0x11 + \pin * 2, (%rdi)
        movl    $0, 0x10(%rdi)
        movl    $0x10 + \pin * 2, (%rdi)
        movl    $0x30, 0x10(%rdi)
        .endr
        movq    $0, seen_count
        call    start_timer
        await   3
        mov     $IOAPIC, %edi
        .irp    pin, 0, 2
        movl    $0x10 + \pin * 2, (%rdi)
        movl    $0x10030, 0x10(%rdi)
        .endr
        call    stop_timer
        sti
        nop
        nop
        cli
        mov     seen, %rax
        and     $0xFFFFFF, %eax
        mov     %rax, seen
        noted
        note    "masked in the ioapic"
        call    start_timer
        mov     $2000000, %ecx
1:      loop    1b
        call    stop_timer
        sti
        nop
        nop
        cli
        noted
        ret

# The old timer's channel 0: mode 2, every millisecond or so; and mode 0 without an end.
start_timer:
        mov     $0x34, %al
        out     %al, $0x43
        mov     $0xA9, %al
        out     %al, $0x40
        mov     $0x04, %al
        out     %al, $0x40
        ret
stop_timer:
        mov     $0x30, %al
        out     %al, $0x43
        ret

# Handlers note their vector and where they came, and do `action` once.
        .irp    vector, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xA0
handle_\vector:
        movq    $\vector, (%rsp)
        jmp     handle
        .endr
handle: push    %rax
        push    %rcx
        push    %rdi
        mov     24(%rsp), %rax
        call    note_vector
        xor     %eax, %eax
        xchg    %rax, action
        test    %rax, %rax
        jz      1f
        call    *%rax
1:      cmpb    $0, is_old
        je      2f
        mov     $0x20, %al
        out     %al, $0x20
        jmp     4f
2:      cmpl    $0, is_x2apic
        je      3f
        push    %rdx
        mov     $0x80B, %ecx
        xor     %eax, %eax
        xor     %edx, %edx
        wrmsr
        pop     %rdx
        jmp     4f
3:      mov     $APIC, %edi
        movl    $0, 0xB0(%rdi)
4:      pop     %rdi
        pop     %rcx
        pop     %rax
        add     $8, %rsp
        iretq
handle_nmi:
        movq    $2, (%rsp)
        push    %rax
        push    %rcx
        push    %rdi
        mov     $2, %eax
        call    note_vector
        incq    depth
        mov     depth, %rax
        cmp     deepest, %rax
        jbe     1f
        mov     %rax, deepest
1:      xor     %eax, %eax
        xchg    %rax, action
        test    %rax, %rax
        jz      1f
        call    *%rax
1:      decq    depth
        pop     %rdi
        pop     %rcx
        pop     %rax
        add     $8, %rsp
        iretq

# The vector in RAX, behind the others; the interrupted RIP and CS of the first. Called by a handler that has pushed
# three registers.
note_vector:
        incq    seen_count
        cmpq    $0, seen
        jne     1f
        mov     40(%rsp), %rcx
        mov     %rcx, seen_rip
        mov     48(%rsp), %rcx
        mov     %rcx, seen_cs
1:      mov     seen, %rcx
        shl     $8, %rcx
        or      %rax, %rcx
        mov     %rcx, seen
        ret

# What handlers do once: in the handler of 0x60, two requests, of which the higher one does not wait.
inner:  self    0x50
        self    0x90
        sti
        nop
        nop
        cli
        shlq    $4, seen                        # a 0 at the end of the inner one
        ret
send_nmi:
        mov     $APIC, %edi
        movl    $0x4400, 0x300(%rdi)
        mov     $1000, %ecx
1:      loop    1b
        ret
inner_interrupt:
        self    0x50
        sti
        nop
        nop
        cli
        ret

        .data
        .balign 8
seen:           .quad 0
seen_count:     .quad 0
seen_rip:       .quad 0
seen_cs:        .quad 0
action:         .quad 0
depth:          .quad 0
deepest:        .quad 0
is_x2apic:      .long 0
is_old:         .byte 0

        .section .user
user_wait:      nop
                int $0x80
        .text
