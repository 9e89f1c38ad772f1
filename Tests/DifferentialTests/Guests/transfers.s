# Control transfers in long mode: IRET, far RET, JMP and CALL to every kind of code segment, with every kind of stack
# segment; call gates; interrupt gates; stacks from the task state.

        .include "long.inc"

        .set    LOW_PROBE, 0x3000               # `int $0x80`, where 16-bit code segments reach it

# Runs `body` for each pair of selectors; R8 is the code segment, R9 the stack segment, R10 where to go: code of that
# privilege level that executes `int $0x80` in whatever mode it finds itself.
        .macro  for_each_pair title:req, body:req, stacks=stack_list
        movq    $code_list, code_position
94:     movq    $\stacks, stack_position
95:     mov     code_position, %rbx
        movzwl  (%rbx), %r8d
        mov     stack_position, %rbx
        movzwl  (%rbx), %r9d
        mov     $LOW_PROBE, %r10d
        mov     %r8d, %eax
        and     $3, %eax
        cmp     $3, %eax
        jne     96f
        mov     $USER + user_probe - user_start, %r10d
96:     say     "\title"
        show    to, %r8
        show    stack, %r9
        check   ""
        \body
        report
        addq    $2, stack_position
        mov     stack_position, %rbx
        cmpw    $0xFFFF, (%rbx)
        jne     95b
        addq    $2, code_position
        mov     code_position, %rbx
        cmpw    $0xFFFF, (%rbx)
        jne     94b
        .endm

        .macro  iret_64
        push    %r9
        lea     -256(%rsp), %rax
        push    %rax
        push    $2
        push    %r8
        push    %r10
        iretq
        .endm

        .macro  iret_32
        sub     $20, %rsp
        mov     %r10d, (%rsp)
        mov     %r8d, 4(%rsp)
        movl    $2, 8(%rsp)
        lea     -256(%rsp), %rax
        mov     %eax, 12(%rsp)
        mov     %r9d, 16(%rsp)
        iretl
        .endm

        .macro  ret_64
        push    %r9
        lea     -256(%rsp), %rax
        push    %rax
        push    %r8
        push    %r10
        lretq
        .endm

        .macro  ret_32
        sub     $16, %rsp
        mov     %r10d, (%rsp)
        mov     %r8d, 4(%rsp)
        lea     -256(%rsp), %rax
        mov     %eax, 8(%rsp)
        mov     %r9d, 12(%rsp)
        lretl
        .endm

        .macro  ret_64_releasing
        push    %r9
        lea     -256(%rsp), %rax
        push    %rax
        push    $0x55
        push    $0x66
        push    %r8
        push    %r10
        lretq   $16
        .endm

        .macro  user_iret_64
        run_user user_iret
        .endm
        .macro  user_ret_64
        run_user user_ret
        .endm

        .macro  jump_64
        mov     %r10, scratch
        mov     %r8, scratch + 8
        .byte   0x48, 0xFF, 0x2C, 0x25          # jmp far m16:64
        .long   scratch
        .endm
        .macro  jump_32
        mov     %r10d, scratch
        mov     %r8d, scratch + 4
        ljmp    *scratch
        .endm
        .macro  call_64
        mov     %r10, scratch
        mov     %r8, scratch + 8
        .byte   0x48, 0xFF, 0x1C, 0x25          # call far m16:64
        .long   scratch
        .endm
        .macro  call_32
        mov     %r10d, scratch
        mov     %r8d, scratch + 4
        lcall   *scratch
        .endm
        .macro  user_jump_32
        run_user user_jump
        .endm
        .macro  user_call_32
        run_user user_call
        .endm

# Fills the gate at \at: 64-bit gate of type and rights \access to \selector:\offset.
        .macro  make_gate at:req, selector:req, offset:req, access:req, stack=0
        mov     $\offset, %rax
        mov     %ax, \at
        movw    $\selector, \at + 2
        movb    $\stack, \at + 4
        movb    $\access, \at + 5
        shr     $16, %rax
        mov     %ax, \at + 6
        shr     $16, %rax
        mov     %rax, \at + 8
        .endm

# Sends vector 0x90 through a gate, from the kernel and from user code, by INT and as an exception.
        .macro  through_gate title:req, selector:req, offset:req, access:req, stack=0
        make_gate interrupt_table+0x90*16, \selector, \offset, \access, \stack
        make_gate interrupt_table+6*16, \selector, \offset, \access, \stack
        check   "gate \title: int"
        int     $0x90
        report
        call    print_frame
        check   "gate \title: ud2"
        ud2
        report
        call    print_frame
        check   "gate \title: user int"
        run_user user_int_0x90
        report
        call    print_frame
        check   "gate \title: user ud2"
        run_user user_ud2
        report
        call    print_frame
        .endm

# What the handler of vector 0x80 or 0x90 found: the low bits of its stack pointer and its flags.
print_frame:
        mov     fault_frame, %rax
        and     $0xFFF, %eax
        line    "  frame", at, %rax
        ret

main:   mov     $LDT, %eax
        lldt    %ax
        movw    $0x80CD, LOW_PROBE
        make_gate gdt+GATE, KCODE, LOW_PROBE, 0x8C
        make_gate gdt+(USER_GATE &~3), KCODE, LOW_PROBE, 0xEC
        make_gate gdt+ABSENT_GATE, KCODE, LOW_PROBE, 0x6C
        make_gate gdt+BAD_GATE, KDATA, LOW_PROBE, 0xEC

        for_each_pair "iretq", iret_64
        for_each_pair "iretd", iret_32
        for_each_pair "lretq", ret_64
        for_each_pair "lretd", ret_32
        for_each_pair "lretq 16", ret_64_releasing, short_stack_list
        for_each_pair "user iretq", user_iret_64
        for_each_pair "user lretq", user_ret_64
        for_each_pair "ljmpq", jump_64, no_stack_list
        for_each_pair "ljmpl", jump_32, no_stack_list
        for_each_pair "lcallq", call_64, no_stack_list
        for_each_pair "lcalll", call_32, no_stack_list
        for_each_pair "user ljmpl", user_jump_32, no_stack_list
        for_each_pair "user lcalll", user_call_32, no_stack_list

        say     "call gates to other targets\n"
        .irp    selector, 0, KDATA, KCODE32, UCODE, UCODE32, ABSENT_CODE, CONFORMING, ONE_CODE, LONG_AND_DEFAULT32, BEYOND, TSS
        make_gate gdt+(USER_GATE &~3), \selector, LOW_PROBE, 0xEC
        mov     $USER_GATE, %r8d
        mov     $USER + user_probe - user_start, %r10d
        check   "gate to \selector: call"
        call_32
        report
        check   "gate to \selector: jump"
        jump_32
        report
        check   "gate to \selector: user call"
        user_call_32
        report
        check   "gate to \selector: user jump"
        user_jump_32
        report
        .endr
        make_gate gdt+(USER_GATE &~3), KCODE, 0x800000000000, 0xEC
        check   "gate to a non-canonical address"
        call_32
        report
        check   "gate to a non-canonical address: user"
        user_call_32
        report
        make_gate gdt+(USER_GATE &~3), KCODE, LOW_PROBE, 0xEC
        movb    $1, gdt + (USER_GATE & ~3) + 13
        check   "gate with a type in its upper half"
        call_32
        report
        make_gate gdt+(USER_GATE &~3), KCODE, LOW_PROBE, 0xE4
        check   "16-bit call gate"
        call_32
        report
        make_gate gdt+(USER_GATE &~3), KCODE, LOW_PROBE, 0xEC
        movw    $gdt_end - gdt - 1, gdt_pointer

        say     "interrupt gates\n"
        through_gate "absent", KCODE, handler, 0x6E
        through_gate "for the kernel", KCODE, handler, 0x8E
        through_gate "for everybody", KCODE, handler, 0xEE
        through_gate "trap", KCODE, handler, 0xEF
        through_gate "of type call", KCODE, handler, 0xEC
        through_gate "of type task", KCODE, handler, 0xE5
        through_gate "16-bit", KCODE, handler, 0xE6
        through_gate "of no type", KCODE, handler, 0xE0
        through_gate "to a null selector", 0, handler, 0xEE
        through_gate "to data", KDATA, handler, 0xEE
        through_gate "to 32-bit code", KCODE32, handler, 0xEE
        through_gate "to absent code", ABSENT_CODE, handler, 0xEE
        through_gate "to user code", UCODE, handler, 0xEE
        through_gate "to conforming code", CONFORMING, handler, 0xEE
        through_gate "to level 1", ONE_CODE, handler, 0xEE
        through_gate "beyond the table", BEYOND, handler, 0xEE
        through_gate "to reserved code", LONG_AND_DEFAULT32, handler, 0xEE
        make_gate interrupt_table+0x90*16, KCODE, 0x800000000000, 0xEE
        check_manual "gate to a non-canonical address: int"
        int     $0x90
        expect_manual 13
        check_manual "gate to a non-canonical address: user int"
        run_user user_int_0x90
        expect_manual 13
        make_gate interrupt_table+6*16, KCODE, 0x800000000000, 0xEE
        check_manual "gate to a non-canonical address: ud2"
        ud2
        expect_manual 13, 1
        through_gate "with stack 1", KCODE, handler, 0xEE, 1
        through_gate "with stack 2", KCODE, handler, 0xEE, 2
        through_gate "with stack 7, which is 0", KCODE, handler, 0xEE, 7
        make_gate interrupt_table+0x90*16, KCODE, handler, 0xEE

        check   "interrupts stay on behind a trap gate"
        make_gate interrupt_table+0x90*16, KCODE, return_flags, 0xEF
        push    $0x202
        popfq
        int     $0x90
        cli
        report_value
        check   "interrupts are off behind an interrupt gate"
        make_gate interrupt_table+0x90*16, KCODE, return_flags, 0xEE
        push    $0x4202                         # with NT
        popfq
        int     $0x90
        push    $2
        popfq
        report_value
        check   "iretq with NT"
        push    $0x4002
        popfq
        iret_64
        report
        push    $2
        popfq
        check   "flags through iretq"
        mov     %rsp, %rcx
        push    $KDATA
        push    %rcx
        mov     $0x7FFFFFD7 & ~0x24100, %rax    # all but TF, VM, AC, IF, VIF, VIP; the reserved bits as well
        and     $~0x180200, %rax
        push    %rax
        push    $KCODE
        push    $94f
        iretq
94:     pushfq
        pop     %rax
        push    $2
        popfq
        report_value
        check_manual "virtual interrupt flags through iretq"
        .irp    flags, 0x180002, 0x2
        mov     %rsp, %rcx
        push    $KDATA
        push    %rcx
        push    $\flags
        push    $KCODE
        push    $94f
        iretq
94:     pushfq
        pop     %rax
        and     $0x180000, %eax
        cmp     $\flags & 0x180000, %eax
        je      95f
        ud2
95:
        .endr
        expect_manual 0xFF
        check   "flags through popfq"
        mov     $0x7FFFFFD7 & ~0x24100, %rax
        and     $~0x180200, %rax
        push    %rax
        popfq
        pushfq
        pop     %rax
        push    $2
        popfq
        report_value
        check   "flags through popfw"
        pushw   $0x7CD7
        popfw
        pushfq
        pop     %rax
        push    $2
        popfq
        report_value
        check   "sahf and lahf"
        mov     $0xFF00, %eax
        sahf
        mov     $0, %eax
        lahf
        report_value

        check   "stack pointers are aligned"
        lea     -5(%rsp), %rsp
        int     $0x80
        report
        call    print_frame
        check   "stack of the task state, absent page"
        movq    $WINDOW + 0x1000, task_state + 4
        run_user user_probe
        report
        call    print_frame
        check   "stack of the task state, non-canonical"
        mov     $0x800000001008, %rax
        mov     %rax, task_state + 4
        run_user user_probe
        report
        call    print_frame
        movq    $stack_top_inner, task_state + 4
        mov     $0x800000001008, %rax
        mov     %rax, task_state + 0x24
        make_gate interrupt_table+0x90*16, KCODE, handler, 0xEE, 1
        movb    $0, interrupt_table + 8 * 16 + 4
        check   "interrupt stack, non-canonical"
        int     $0x90
        report
        check   "task state too short"
        movw    $0x0B, gdt + TSS
        andb    $~2, gdt + TSS + 5
        mov     $TSS, %eax
        ltr     %ax
        movb    $0, interrupt_table + 12 * 16 + 4
        int     $0x90
        report
        check   "task state too short for user code"
        movw    $0x0A, gdt + TSS
        andb    $~2, gdt + TSS + 5
        mov     $TSS, %eax
        ltr     %ax
        movw    $KCODE, interrupt_table + 0x80 * 16 + 2
        movw    $0x67, gdt + TSS
        andb    $~2, gdt + TSS + 5
        mov     $TSS, %eax
        ltr     %ax
        run_user user_probe
        report

        check   "interrupt table too short"
        movw    $0x90 * 16 - 1, interrupt_pointer
        lidt    interrupt_pointer
        int     $0x90
        report
        check   "interrupt table a byte too short"
        movw    $0x90 * 16 + 14, interrupt_pointer
        lidt    interrupt_pointer
        int     $0x90
        report
        make_gate interrupt_table+0x90*16, KCODE, handler, 0xEE
        check   "interrupt table long enough"
        movw    $0x90 * 16 + 15, interrupt_pointer
        lidt    interrupt_pointer
        int     $0x90
        report
        ret

# Handlers of vector 0x90: one that reports, and one that returns the flags it found.
handler:
        push    $0
        push    $0x90
        jmp     common
return_flags:
        pushfq
        pop     %rax
        iretq

        .section .user
user_probe:     int $0x80
user_int_0x90:  int $0x90
user_ud2:       ud2
user_iret:      push %r9
                lea -256(%rsp), %rax
                push %rax
                push $2
                push %r8
                push %r10
                iretq
user_ret:       push %r9
                lea -256(%rsp), %rax
                push %rax
                push %r8
                push %r10
                lretq
user_jump:      push $0
                mov %r10d, (%rsp)
                mov %r8d, 4(%rsp)
                ljmp *(%rsp)
user_call:      push $0
                mov %r10d, (%rsp)
                mov %r8d, 4(%rsp)
                lcall *(%rsp)

        .data
        .balign 8
code_position:  .quad 0
stack_position: .quad 0
scratch:        .quad 0, 0
code_list:      .word KCODE, KCODE + 1, KCODE + 3, 0, 3, KDATA, UDATA, UCODE, UCODE - 3, UCODE32, KCODE32, KCODE16
                .word ABSENT_CODE, CONFORMING, CONFORMING + 3, EXECUTE_ONLY, LONG_AND_DEFAULT32, ONE_CODE, TSS
                .word LDT, GATE, USER_GATE, ABSENT_GATE, BAD_GATE, TSS_AVAILABLE, BEYOND, LDT_DATA, 0xFFFF
stack_list:     .word KDATA, 0, 1, 3, UDATA, UDATA - 3, ONE_DATA, READ_DATA, ABSENT_DATA, KCODE, TSS, BEYOND, LDT_DATA
                .word 0xFFFF
short_stack_list: .word KDATA, UDATA, 0, 0xFFFF
no_stack_list:  .word KDATA, 0xFFFF
        .text
