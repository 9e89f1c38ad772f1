# Debug exceptions: single steps, breakpoints on execution, writes and accesses, DR6, DR7.GD, RF, and what they leave alone.

        .include "long.inc"

# Sets TF for the instructions up to `end_steps`; the handler counts the traps and gathers where they happened.
        .macro  steps title:req
        say     "\title"
        call    flush
        movq    $steps_handler, hooks + 8
        movq    $0, step_count
        movq    $97f, step_base
        movq    $0, step_bits
        mov     $0xFFFF0FF0, %eax
        mov     %rax, %dr6
        pushfq
        orl     $0x100, (%rsp)
        popfq
97:
        .endm

        .macro  end_steps
        pushfq
        andl    $~0x100, (%rsp)
        popfq
        movq    $0, hooks + 8
        show    count, step_count
        show    offsets, step_bits
        mov     %dr6, %rax
        show    dr6, %rax
        new_line
        .endm

# Each trap: its address relative to the code as a bit.
steps_handler:
        push    %rax
        push    %rcx
        incq    step_count
        mov     24(%rsp), %rcx
        sub     step_base, %rcx
        cmp     $63, %rcx
        ja      1f
        bts     %rcx, step_bits
1:
        pop     %rcx
        pop     %rax
        add     $8, %rsp                        # the error code that common has put there
        iretq

# One breakpoint for the instructions up to `end_breakpoint`: DR0 = \address, DR7 as given. The handler reports it as
# it reports faults.
        .macro  breakpoint title:req, address:req, control:req
        check   "\title"
        mov     $0xFFFF0FF0, %eax
        mov     %rax, %dr6
        mov     $\address, %eax
        mov     %rax, %dr0
        mov     $\control, %eax
        mov     %rax, %dr7
        .endm

        .macro  end_breakpoint
93:     xor     %eax, %eax
        mov     %rax, %dr7
        mov     %dr6, %rax
        call    print_break
        .endm

print_break:
        show    v, fault_vector
        cmpq    $0xFF, fault_vector
        je      1f
        push    %rax
        mov     fault_rip, %rax
        sub     check_start, %rax
        show    ip, %rax
        pop     %rax
1:      and     $0xE00F, %eax
        show    dr6, %rax
        new_line
        ret

main:   steps   "nops"
        nop
        nop
        nop
        end_steps
        xor     %ecx, %ecx
        steps   "a taken branch"
        jmp 1f
        nop
1:      nop
        end_steps
        steps   "calls and returns"
        call 1f
        jmp 2f
1:      ret
2:      nop
        end_steps
        mov     $3, %ecx
        steps   "a loop"
1:      loop 1b
        end_steps
        mov     $string, %edi
        mov     $5, %ecx
        steps   "each iteration of a string instruction"
        rep stosb
        end_steps
        mov     $0, %ecx
        steps   "a string instruction without iterations"
        rep stosb
        end_steps
        mov     $KDATA, %edx
        steps   "mov ss holds it up"
        mov %edx, %ss
        nop
        nop
        end_steps
        steps   "pushf"
        pushfq
        pop %rdx
        nop
        end_steps
        line    "pushed", tf, %rdx
        steps   "cpuid and serialising instructions"
        cpuid
        mov %cr0, %rax
        mov %rax, %cr0
        nop
        end_steps
        movq    $zero_handler, hooks + 0x42 * 8
        steps   "int 0x42 and its iret"
        int $0x42
        nop
        end_steps
        movb    $0x8F, interrupt_table + 0x42 * 16 + 5
        steps   "a trap gate"
        int $0x42
        nop
        end_steps
        steps   "in and out"
        in $0x80, %al
        out %al, $0x80
        nop
        end_steps
        steps   "sse and x87"
        addps %xmm0, %xmm0
        fninit
        fld1
        nop
        end_steps
        steps   "popf that clears tf"
        pushq $2
        popfq
        nop
        end_steps

        check   "tf in user code"
        push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x102
        push    $UCODE
        push    $USER + user_code - user_start
        iretq
        report
        check   "tf and syscall"                # SFMASK clears it
        mov     $0xC0000081, %ecx
        mov     $(UCODE32 << 16) + KCODE, %edx
        xor     %eax, %eax
        wrmsr
        mov     $0xC0000082, %ecx
        xor     %edx, %edx
        mov     $94f, %eax
        wrmsr
        mov     $0xC0000084, %ecx
        mov     $0x100, %eax
        wrmsr
        push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x002
        push    $UCODE
        push    $USER + user_syscall - user_start
        iretq
94:     mov     recovery_stack, %rsp
        report

        # ------------------------------------------------ breakpoints on execution
        breakpoint "execution", 1f, 0x402
        nop
1:      nop
        nop
        end_breakpoint
        breakpoint "execution, local", 1f, 0x401
        nop
1:      nop
        nop
        end_breakpoint
        breakpoint "execution, disabled", 1f, 0x400
        nop
1:      nop
        nop
        end_breakpoint
        breakpoint "execution, not at the first byte", 1f+1, 0x402
        nop
1:      mov $5, %ecx
        nop
        end_breakpoint
        check   "resume flag"                   # the instruction at the breakpoint runs once
        mov     $0xFFFF0FF0, %eax
        mov     %rax, %dr6
        mov     $94f, %eax
        mov     %rax, %dr0
        mov     $0x402, %eax
        mov     %rax, %dr7
        mov     %rsp, %rcx
        push    $KDATA
        push    %rcx
        push    $0x10002
        push    $KCODE
        push    $94f
        iretq
        nop
94:     nop
        jmp     95f
95:     report
        xor     %eax, %eax
        mov     %rax, %dr7
        check   "faults push the resume flag"
        ud2
93:     mov     fault_flags, %rax
        and     $0x10000, %eax
        cmp     $0x10000, %eax
        je      1f
        say     " no"
1:      say     " v="
        mov     fault_vector, %rax
        call    put_number
        new_line
        check   "traps do not"
        int3
93:     mov     fault_flags, %rax
        and     $0x10000, %eax
        show    rf, %rax
        new_line

        # ------------------------------------------------ breakpoints on data
        breakpoint "write", watched, 0xD0402
        movl $1, watched
        nop
        end_breakpoint
        breakpoint "write, other bytes", watched, 0xD0402
        movl $1, watched+4
        nop
        end_breakpoint
        breakpoint "write, one byte of four", watched, 0xD0402
        movb $1, watched+3
        nop
        end_breakpoint
        breakpoint "write, overlapping from below", watched, 0xD0402
        movq $1, watched-4
        nop
        end_breakpoint
        breakpoint "write of one byte watched", watched+2, 0x10402
        movl $1, watched
        nop
        end_breakpoint
        breakpoint "write, but it is read", watched, 0xD0402
        mov watched, %eax
        nop
        end_breakpoint
        breakpoint "access, read", watched, 0xF0402
        mov watched, %eax
        nop
        end_breakpoint
        breakpoint "access, written", watched, 0xF0402
        incl watched
        nop
        end_breakpoint
        breakpoint "eight bytes", watched, 0xB0402
        movb $1, watched+7
        nop
        end_breakpoint
        breakpoint "two bytes", watched+2, 0x70402
        movb $1, watched+3
        nop
        end_breakpoint
        breakpoint "two bytes, beyond", watched+2, 0x70402
        movb $1, watched+4
        nop
        end_breakpoint
        breakpoint "push", recovery_slot, 0xD0402
        mov $recovery_slot+8, %esp
        push %rax
        nop
        end_breakpoint
        breakpoint "sse", watched, 0xD0402
        movups %xmm0, watched-8
        nop
        end_breakpoint
        breakpoint "locked", watched, 0xD0402
        lock incl watched
        nop
        end_breakpoint
        breakpoint "string", watched, 0xD0402
        mov $watched-2, %edi
        mov $5, %ecx
        rep stosb
        nop
        end_breakpoint
        line    "ecx behind it", ecx, %rcx
        check   "a breakpoint that faults writes nothing"
        mov     $WINDOW, %eax
        mov     %rax, %dr0
        mov     $0xD0402, %eax
        mov     %rax, %dr7
        mov     $WINDOW, %edi
        mov     %eax, (%rdi)
        report
        xor     %eax, %eax
        mov     %rax, %dr7

        # ------------------------------------------------ general detection
        check   "general detection"
        mov     $0xFFFF0FF0, %eax
        mov     %rax, %dr6
        mov     $0x2400, %eax
        mov     %rax, %dr7
        mov     %dr0, %rax
        report
        mov     %dr6, %rax
        and     $0xE00F, %eax
        mov     %dr7, %rbx
        and     $0x2000, %ebx
        show    dr6, %rax
        show    dr7, %rbx
        new_line
        check   "four breakpoints"
        mov     $0xFFFF0FF0, %eax
        mov     %rax, %dr6
        mov     $watched, %eax
        mov     %rax, %dr0
        mov     %rax, %dr1
        mov     %rax, %dr2
        mov     %rax, %dr3
        mov     $0xDDDD04AA, %eax
        mov     %rax, %dr7
        movl    $5, watched
        nop
        report
        xor     %eax, %eax
        mov     %rax, %dr7
        mov     %dr6, %rax
        and     $0xE00F, %eax
        line    "dr6", bits, %rax
        ret

zero_handler:
        add     $8, %rsp
        iretq

        .section .user
user_code:      nop
                nop
                int $0x80
user_syscall:   pushq $0x102
                popfq
                syscall
                int $0x80

        .data
        .balign 8
step_count:     .quad 0
step_base:      .quad 0
step_bits:      .quad 0
string:         .skip 16
        .balign 16
                .quad 0, 0
watched:        .quad 0, 0, 0, 0
                .fill 64, 8, 0
recovery_slot:  .quad 0, 0, 0, 0
        .text
