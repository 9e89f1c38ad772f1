# Two processors: starting the other one, interrupts between them, locked accesses, the order of accesses, code and
# page tables that the other processor changes. What they do in turns has few rounds: each costs a time slice where
# the host has no two cores to give.

        .include "long.inc"

        .set    APIC, 0xFEE00000
        .set    TRAMPOLINE, 0x8000              # where the other processor starts
        .set    ROUNDS, 20000

# Sends an interrupt as \command says, to the processor with APIC identifier \target.
        .macro  send command:req, target=1
        mov     $APIC, %edi
        movl    $\target << 24, 0x310(%rdi)
        movl    $\command, 0x300(%rdi)
94:     pause
        testl   $0x1000, 0x300(%rdi)            # until it is sent
        jnz     94b
        .endm

# Lets the other processor call \label, and waits for its end.
        .macro  start label:req
        incq    issued
        movq    $\label, command
        .endm
        .macro  await
94:     pause
        mov     completed, %rax
        cmp     issued, %rax
        jne     94b
        .endm
        .macro  await_value variable:req, value:req
94:     pause
        cmpq    $\value, \variable
        jne     94b
        .endm

# Both processors run \label, at the same time as near as may be; it keeps RBP, and RBX is the number of the
# processor.
        .macro  both label:req
        xor     %eax, %eax
        mov     %rax, meeting
        mov     %rax, round_meeting
        mov     %rax, disorder
        movq    $\label, shared_code
        start   run_shared
        xor     %ebx, %ebx
        call    meet
        call    \label
        await
        .endm

# Both do \code \rounds times; the result is the quadword \result.
        .macro  count_in result:req, title:req, rounds:req, code:vararg
        movq    $0, value
        movq    $0, straddling
        movq    $0, lock
        jmp     96f
95:     mov     $\rounds, %ebp
97:     \code
        dec     %ebp
        jnz     97b
        ret
96:     both    95b
        line    "\title", value, \result
        .endm
        .macro  count title:req, rounds:req, code:vararg
        count_in value, "\title", \rounds, \code
        .endm

main:   mov     $trampoline, %esi
        mov     $TRAMPOLINE, %edi
        mov     $trampoline_end - trampoline, %ecx
        rep movsb
        mov     $APIC, %edi
        movl    $0x1FF, 0xF0(%rdi)
        movl    $0xFFFFFFFF, 0xE0(%rdi)         # flat logical destinations
        movl    $0x01000000, 0xD0(%rdi)
        movq    $count_interrupt, hooks + 0x91 * 8
        movq    $count_interrupt, hooks + 0x92 * 8
        movq    $flush_page, hooks + 0x93 * 8
        movq    $count_nmi, hooks + 2 * 8

        # ------------------------------------------------ starting
        call    start_processor
        await_value starts, 1
        line    "started", starts, starts
        start   identify
        await
        line    "its apic", id, seen_id
        line    "its cpuid", id, seen_cpuid_id
        line    "its base register", flags, seen_base
        line    "cr0 at its start", cr0, seen_cr0
        line    "edx at its start", edx, seen_edx
        send    0x4600 + TRAMPOLINE / 0x1000    # which a running processor ignores
        start   identify
        await
        line    "started once", starts, starts
        call    start_processor                 # INIT starts it again
        await_value starts, 2
        line    "started again", starts, starts
        start   identify
        await
        line    "its apic", id, seen_id

        # ------------------------------------------------ interrupts
        start   halt_for_interrupts
        mov     $10, %ebp
1:      mov     counts + 8, %rax
        inc     %rax
        push    %rax
        send    0x4091
        pop     %rax
2:      pause
        cmp     %rax, counts + 8
        jne     2b
        dec     %ebp
        jnz     1b
        movq    $1, stop
        send    0x4091
        await
        line    "interrupts to a halted processor", count, counts+8
        call    reset_counts
        start   spin_with_interrupts
        mov     $10, %ebp
1:      mov     counts + 8, %rax
        inc     %rax
        push    %rax
        send    0x4091
        pop     %rax
2:      pause
        cmp     %rax, counts + 8
        jne     2b
        dec     %ebp
        jnz     1b
        movq    $1, stop
        await
        line    "interrupts to a running processor", count, counts+8
        call    reset_counts
        start   wait_without_interrupts
        await_value arrived, 1
        send    0x4091
        send    0x4091                          # both become one
        send    0x4092
        movq    $1, stop
        await
        line    "without interrupts", count, seen_count
        line    "with interrupts again", count, counts+8
        call    reset_counts
        start   spin_with_interrupts
        await_value arrived, 1
        send    0x4891, 2                       # logical destination
        await_value counts+8, 1
        send    0xC4091, 0                      # all others
        await_value counts+8, 2
        sti
        send    0x84091, 0                      # all
        await_value counts+8, 3
        await_value counts, 1
        send    0x4891, 3                       # both, logical
        await_value counts+8, 4
        await_value counts, 2
        send    0x44091, 1                      # itself
        await_value counts, 3
        cli
        send    0x4091, 5                       # nobody
        movq    $1, stop
        await
        line    "destinations, here", count, counts
        line    "destinations, there", count, counts+8

        call    reset_counts
        start   halt_for_nmi
        await_value arrived, 1
        send    0x4400
        await
        line    "nmi to a halted processor", count, nmi_count
        call    reset_counts
        movq    $1, nmi_waits
        start   halt_for_nmi
        await_value arrived, 1
        send    0x4400
        await_value nmi_count, 1
        send    0x4400                          # waits for the end of the handler
        start   nothing
        mov     $10000, %ecx
1:      pause
        loop    1b
        mov     nmi_count, %rbx
        movq    $0, nmi_waits
        await
        await_value nmi_count, 2
        line    "nmi in the handler of another", count, %rbx
        line    "nmi behind it", count, nmi_count

        # ------------------------------------------------ locked accesses
        count   "lock inc", ROUNDS, lock incq value
        count   "lock add byte", ROUNDS, lock addb $1, value
        count   "lock add", ROUNDS, lock addl $3, value
        count   "lock sub", ROUNDS, lock subq $-2, value
        count   "lock dec", ROUNDS, lock decw value
        count   "lock neg twice", ROUNDS, call negate
        count   "lock adc", ROUNDS, call add_with_carry
        count   "lock xadd", ROUNDS, call exchange_add
        count   "lock xor", ROUNDS, call toggle
        count   "lock or and and", ROUNDS, call set_and_clear
        count   "lock cmpxchg", ROUNDS, call compare_exchange
        count   "lock cmpxchg8b", ROUNDS, call compare_exchange_8
        count   "lock cmpxchg16b", ROUNDS, call compare_exchange_16
        count   "xchg as a lock", ROUNDS, call with_exchange
        count   "lock bts as a lock", ROUNDS, call with_bit
        count   "lock btc", ROUNDS, call change_bit
        count_in straddling_line, "across cache lines", 2000, lock incq straddling_line
        count_in straddling, "across pages", 500, lock incq straddling
        count   "across pages, xchg as a lock", 200, call with_straddling_exchange

        # ------------------------------------------------ the order of accesses
        movq    $0, value
        movq    $0, flag
        both    pass_messages
        line    "messages out of order", count, disorder
        both    cross_stores
        line    "both stores passed by loads", count, disorder
        both    compare_time
        line    "time that goes back", count, disorder

        # ------------------------------------------------ code of the other processor
        movq    $0, seen_value
        movq    $0, stop
        start   call_changing
        mov     $1, %ebp
1:      mov     %ebp, changing + 1
2:      pause
        cmpb    $0, is_qemu                     # which may translate the old bytes while they are overwritten
        je      3f
        mov     %ebp, changing + 1
3:      cmp     %rbp, seen_value
        jne     2b
        inc     %ebp
        cmp     $25, %ebp
        jne     1b
        movq    $1, stop
        await
        line    "code that the other changes", value, seen_value
        movq    $0, seen_value
        movq    $0, stop
        start   call_jumping
        mov     $0, %ebp
1:      mov     $first_target, %eax
        test    $1, %ebp
        jz      2f
        mov     $second_target, %eax
2:      sub     $jumping + 5, %eax
        mov     %eax, jumping + 1
        mov     %ebp, %ebx
        and     $1, %ebx
        inc     %ebx
3:      pause
        cmpb    $0, is_qemu
        je      4f
        mov     %eax, jumping + 1
4:      cmp     %rbx, seen_value
        jne     3b
        inc     %ebp
        cmp     $25, %ebp
        jne     1b
        movq    $1, stop
        await
        line    "jumps that the other changes", value, seen_value

        # ------------------------------------------------ page tables
        movq    $page_one + 3, window_table
        movq    $1, page_one
        movq    $2, page_two
        movq    $0, stop
        movq    $0, seen_value
        start   read_window
        mov     $0, %ebp
1:      mov     $page_one + 3, %eax
        test    $1, %ebp
        jz      2f
        mov     $page_two + 3, %eax
2:      mov     %rax, window_table
        invlpg  WINDOW
        mov     flushes, %rbx
        inc     %rbx
        send    0x4093
3:      pause
        cmp     %rbx, flushes
        jne     3b
        mov     WINDOW, %rax                    # behind the flush, both see the same
        mov     %rax, expected
        mov     $0, %eax
        xchg    %rax, seen_value
4:      pause
        mov     seen_value, %rax
        test    %rax, %rax
        jz      4b
        cmp     expected, %rax
        je      5f
        incq    disorder
5:      inc     %ebp
        cmp     $25, %ebp
        jne     1b
        movq    $1, stop
        await
        line    "stale translations", count, disorder
        ret

# INIT and start-up.
start_processor:
        send    0x4500
        mov     $20000, %ecx
1:      pause
        loop    1b
        send    0x4600 + TRAMPOLINE / 0x1000
        ret

reset_counts:
        xor     %eax, %eax
        mov     %rax, counts
        mov     %rax, counts + 8
        mov     %rax, nmi_count
        mov     %rax, arrived
        mov     %rax, stop
        ret

# Waits for the other processor, which is number 1 − RBX.
meet:   lock incq meeting
1:      pause
        cmpq    $2, meeting
        jb      1b
        ret

# The same for each round of a loop: EBP is the round, from 1 on.
meet_again:
        lock incq round_meeting
        lea     (%rbp, %rbp), %rax
1:      pause
        cmp     %rax, round_meeting
        jb      1b
        ret

# ---------------------------------------------------------------- what both do

negate: lock incq value                         # not alone, so that it counts
        lock negq negated
        lock negq negated
        ret
add_with_carry:
        stc
        lock adcq $1, value
        ret
exchange_add:
        mov     $5, %eax
        lock xadd %rax, value
        ret
toggle: mov     $0x100, %eax                    # an even number of times by each: nothing stays but the count
        lock xorq %rax, toggled
        lock xorq %rax, toggled
        lock incq value
        ret
set_and_clear:
        mov     $1, %eax
        mov     %ebx, %ecx
        shl     %cl, %eax
        lock orl %eax, toggled
        test    %eax, toggled                   # its own bit stays until it clears it
        jz      1f
        lock incq value
1:      not     %eax
        lock andl %eax, toggled
        ret
compare_exchange:
        mov     value, %rax
1:      lea     1(%rax), %rdx
        lock cmpxchg %rdx, value
        jnz     1b
        ret
compare_exchange_8:
        push    %rbx
        mov     value, %eax
        mov     value + 4, %edx
1:      mov     %eax, %ebx
        mov     %edx, %ecx
        add     $1, %ebx
        adc     $0, %ecx
        lock cmpxchg8b value
        jnz     1b
        pop     %rbx
        ret
compare_exchange_16:
        push    %rbx
        mov     value, %rax
        mov     value + 8, %rdx
1:      mov     %rax, %rbx
        mov     %rdx, %rcx
        add     $1, %rbx
        add     $1, %rcx
        lock cmpxchg16b value
        jnz     1b
        pop     %rbx
        ret
with_exchange:
        mov     $1, %eax
1:      xchg    %rax, lock
        test    %rax, %rax
        jz      2f
        pause
        jmp     1b
2:      incq    value
        movq    $0, lock
        ret
with_bit:
        lock btsq $5, lock
        jnc     1f
        pause
        jmp     with_bit
1:      incq    value
        lock btrq $5, lock
        ret
change_bit:
        mov     $200, %eax                      # far behind the operand
        lock btcq %rax, toggled
        lock btcq %rax, toggled
        lock incq value
        ret
with_straddling_exchange:
        mov     $1, %eax
1:      xchg    %rax, straddling
        test    %rax, %rax
        jz      2f
        pause
        jmp     1b
2:      incq    value
        movq    $0, straddling
        ret

# Processor 0 writes, processor 1 reads in the opposite order.
pass_messages:
        mov     $1, %ebp
        test    %ebx, %ebx
        jnz     2f
1:      mov     %rbp, value
        mov     %rbp, flag
        inc     %ebp
        cmp     $ROUNDS, %ebp
        jne     1b
        ret
2:      mov     flag, %rcx
        mov     value, %rax
        cmp     %rcx, %rax
        jae     3f
        incq    disorder
3:      cmp     $ROUNDS - 1, %ecx
        jne     2b
        ret

# Each writes its variable and reads the other's, with a fence or a locked access between: one of them sees the
# other's.
cross_stores:
        mov     %ebx, %r12d
        xor     $1, %r12d
        mov     $1, %ebp
1:      call    meet_again
        mov     %rbp, crossed(, %rbx, 8)
        test    $2, %ebp
        jz      2f
        mfence
        jmp     3f
2:      lock orq $0, negated
3:      mov     crossed(, %r12, 8), %rax
        mov     %rax, crossed_seen(, %rbx, 8)
        add     $1, %ebp
        call    meet_again
        test    %ebx, %ebx
        jnz     4f
        lea     -1(%rbp), %rax
        cmp     %rax, crossed_seen
        je      4f
        cmp     %rax, crossed_seen + 8
        je      4f
        incq    disorder
4:      inc     %ebp
        cmp     $61, %ebp
        jb      1b
        ret

# Each reads the time behind the other's reading of it.
compare_time:
        mov     $1, %ebp
1:      mov     %ebp, %eax
        shr     $1, %eax
        and     $1, %eax
        cmp     %ebx, %eax
        jne     2f
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        mov     %rax, value
2:      lfence
        call    meet_again
        lfence
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        cmp     value, %rax
        jae     3f
        lock incq disorder
3:      inc     %ebp
        call    meet_again
        inc     %ebp
        cmp     $41, %ebp
        jb      1b
        ret

# ---------------------------------------------------------------- what the other processor does

identify:
        mov     $APIC, %edi
        mov     0x20(%rdi), %eax
        shr     $24, %eax
        mov     %rax, seen_id
        mov     $1, %eax
        cpuid
        shr     $24, %ebx
        mov     %rbx, seen_cpuid_id
        mov     $0x1B, %ecx
        rdmsr
        mov     %rax, seen_base
nothing:
        ret
run_shared:
        mov     $1, %ebx
        call    meet
        jmp     *shared_code
halt_for_interrupts:
        cli
        cmpq    $0, stop
        jne     1f
        sti
        hlt
        jmp     halt_for_interrupts
1:      sti
2:      pause
        cmpq    $11, counts + 8                 # the last one may be on its way
        jb      2b
        cli
        ret
spin_with_interrupts:
        movq    $1, arrived
        sti
1:      cmpq    $0, stop
        je      1b
        cli
        ret
wait_without_interrupts:
        movq    $1, arrived
1:      pause
        cmpq    $0, stop
        je      1b
        mov     counts + 8, %rax
        mov     %rax, seen_count
        sti
        nop
        nop
        cli
        ret
halt_for_nmi:
        movq    $1, arrived
        cli
1:      cmpq    $0, nmi_count
        jne     2f
halt_here:
        hlt
        jmp     1b
2:      ret
call_changing:
        call    changing
        mov     %rax, seen_value
        cmpq    $0, stop
        je      call_changing
        ret
call_jumping:
        call    jumping
        mov     %rax, seen_value
        cmpq    $0, stop
        je      call_jumping
        ret
read_window:
        sti
1:      mov     WINDOW, %rax
        mov     %rax, seen_value
        cmpq    $0, stop
        je      1b
        cli
        ret

# Handlers; the error code is on the stack.
count_interrupt:
        push    %rax
        push    %rdi
        mov     $APIC, %edi
        mov     0x20(%rdi), %eax
        shr     $24, %eax
        lock incq counts(, %rax, 8)
        movl    $0, 0xB0(%rdi)
        pop     %rdi
        pop     %rax
        add     $8, %rsp
        iretq
flush_page:
        push    %rdi
        invlpg  WINDOW
        mov     $APIC, %edi
        movl    $0, 0xB0(%rdi)
        lock incq flushes
        pop     %rdi
        add     $8, %rsp
        iretq
count_nmi:
        cmpq    $halt_here, 8(%rsp)             # it came too early to end HLT
        jne     1f
        incq    8(%rsp)
1:      lock incq nmi_count
1:      pause
        cmpq    $0, nmi_waits
        jne     1b
        add     $8, %rsp
        iretq

# Where it starts: 16-bit code, at TRAMPOLINE.
        .code16
trampoline:
        cli
        mov     %cr0, %eax
        mov     %edx, %ebx
        lgdtl   %cs:trampoline_gdt - trampoline
        mov     %eax, %ecx
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $KCODE32, $start32
trampoline_gdt: .word gdt_end - gdt - 1
        .long   gdt
trampoline_end:
        .code32
start32:
        mov     $KDATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        and     $~0x60000000, %ecx              # INIT leaves the bits of the cache alone
        mov     %ecx, seen_cr0
        shr     $8, %ebx                        # the family, not the model
        and     $0xF, %ebx
        mov     %ebx, seen_edx
        mov     $second_stack_top, %esp
        call    enter_long_tables
        ljmp    $KCODE, $second_start64
        .code64
second_start64:
        mov     $second_stack_top, %esp
        xor     %eax, %eax
        mov     %eax, %fs
        mov     %eax, %gs
        lidt    interrupt_pointer
        mov     $APIC, %edi
        movl    $0x1FF, 0xF0(%rdi)
        movl    $0xFFFFFFFF, 0xE0(%rdi)
        movl    $0x02000000, 0xD0(%rdi)
        lock incq starts
1:      pause
        xor     %eax, %eax
        xchg    %rax, command
        test    %rax, %rax
        jz      1b
        call    *%rax
        lock incq completed
        jmp     1b

        .balign 64
changing:
        mov     $0, %eax
        ret
        .balign 64
        .skip   3
jumping:                                        # its operand is aligned
        .byte   0xE9
        .long   first_target - jumping - 5
first_target:
        mov     $1, %eax
        ret
second_target:
        mov     $2, %eax
        ret

        .data
        .balign 64
value:          .quad 0, 0
        .balign 64
flag:           .quad 0
        .balign 64
lock:           .quad 0
        .balign 64
toggled:        .fill 8, 8, 0
negated:        .quad 7
        .balign 64
crossed:        .quad 0, 0
crossed_seen:   .quad 0, 0
command:        .quad 0
issued:         .quad 0
completed:      .quad 0
shared_code:    .quad 0
meeting:        .quad 0
round_meeting:  .quad 0
starts:         .quad 0
counts:         .quad 0, 0
nmi_count:      .quad 0
nmi_waits:      .quad 0
arrived:        .quad 0
stop:           .quad 0
flushes:        .quad 0
expected:       .quad 0
disorder:       .quad 0
seen_id:        .quad 0
seen_cpuid_id:  .quad 0
seen_base:      .quad 0
seen_cr0:       .quad 0
seen_edx:       .quad 0
seen_count:     .quad 0
seen_value:     .quad 0
        .balign 64
                .skip 60
straddling_line: .quad 0
        .balign 4096
                .skip 4092
straddling:     .quad 0

        .bss
                .skip 8192
second_stack_top: .skip 16
        .balign 4096
page_one:       .skip 4096
page_two:       .skip 4096
        .text
