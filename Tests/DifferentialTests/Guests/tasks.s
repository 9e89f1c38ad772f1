# Task switches: JMP and CALL to a TSS and through a task gate, interrupts through task gates, IRET with NT, 16-bit TSSs,
# what faults on the way, and a double fault handled by a task of its own.

        .include "protected.inc"

# Fills the TSS at \tss: EIP \eip, stack at the end of task_stack.
        .macro  make_task tss:req, eip:req, cr3=0, ss=KDATA, cs=KCODE, ds=KDATA, ldt=LDT, fs=READ_DATA
        mov     $\tss, %edi
        xor     %eax, %eax
        mov     $26, %ecx
        rep stosl
        mov     $\tss, %edi
        movl    $stack_top_inner, 4(%edi)
        movl    $KDATA, 8(%edi)
        movl    $\cr3, 28(%edi)
        movl    $\eip, 32(%edi)
        movl    $0x2, 36(%edi)
        movl    $0xA0A0A0A0, 40(%edi)
        movl    $0xC1C1C1C1, 44(%edi)
        movl    $0xD2D2D2D2, 48(%edi)
        movl    $0xB3B3B3B3, 52(%edi)
        movl    $task_stack_top, 56(%edi)
        movl    $0xB5B5B5B5, 60(%edi)
        movl    $0x56565656, 64(%edi)
        movl    $0xD7D7D7D7, 68(%edi)
        movl    $\ds, 72(%edi)
        movl    $\cs, 76(%edi)
        movl    $\ss, 80(%edi)
        movl    $\ds, 84(%edi)
        movl    $\fs, 88(%edi)
        movl    $0, 92(%edi)
        movl    $\ldt, 96(%edi)
        movw    $0x68, 102(%edi)
        .endm

# After a check: everything about the tasks that a switch changes.
        .macro  show_tasks
        mov     $KDATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     %eax, %fs
        mov     %eax, %gs
        mov     recovery_stack, %esp
        clts
        say     "  tasks"
        call    print_tasks
        .endm

print_tasks:
        movzbl  gdt + TSS + 5, %eax
        show    tss, %eax
        movzbl  gdt + TSS2 + 5, %eax
        show    tss2, %eax
        movzbl  gdt + TSS16 + 5, %eax
        show    tss16, %eax
        xor     %eax, %eax
        str     %eax
        show    tr, %eax
        sldt    %eax
        and     $0xFFFF, %eax
        show    ldt, %eax
        mov     task_state2, %eax
        and     $0xFFFF, %eax
        show    link, %eax
        pushf
        pop     %eax
        and     $0x4000, %eax
        show    nt, %eax
        new_line
        # back to a known state: task 1 runs, nobody else is busy
        pushf
        andl    $~0x4000, (%esp)
        popf
        andb    $~2, gdt + TSS + 5
        andb    $~2, gdt + TSS2 + 5
        andb    $~2, gdt + TSS16 + 5
        andb    $~2, gdt + TSS_DOUBLE + 5
        mov     $TSS, %eax
        ltr     %ax
        mov     $LDT, %eax
        lldt    %ax
        ret

main:   check   "jmp to a task"
        make_task task_state2, task_reports
        ljmp    $TSS2, $0
        report
        show_tasks
        line    "ax", eax, seen_eax
        line    "dx", edx, seen_edx
        line    "ebp", ebp, seen_ebp
        line    "es ds fs", selectors, seen_selectors
        line    "ts", cr0, seen_cr0
        line    "old eip", eip, task_state+32

        check   "call of a task that returns"
        make_task task_state2, task_returns
        movl    $0, seen_count
        mov     $0x77, %ebx
        lcall   $TSS2, $0
        mov     seen_count, %eax
        shl     $8, %eax
        add     %ebx, %eax
        report_value
        show_tasks
        check   "call of the same task again"    # it goes on behind its IRET
        lcall   $TSS2, $0
        mov     seen_count, %eax
        report_value
        show_tasks

        check   "task gate"
        make_task task_state2, task_returns
        movl    $0, seen_count
        lcall   $TASK_GATE, $0
        mov     seen_count, %eax
        report_value
        show_tasks

        check   "interrupt through a task gate"
        make_task task_state2, task_returns
        movl    $0, seen_count
        movl    $TSS2 << 16, interrupt_table + 0x90 * 8
        movl    $0xE500, interrupt_table + 0x90 * 8 + 4
        int     $0x90
        mov     seen_count, %eax
        report_value
        show_tasks

        check   "exception through a task gate"
        make_task task_state2, task_reports_code
        movl    $TSS2 << 16, interrupt_table + 13 * 8
        movl    $0xE500, interrupt_table + 13 * 8 + 4
        mov     $BEYOND, %eax
        mov     %eax, %fs
        report
        show_tasks
        line    "error code on the task's stack", code, seen_eax
        mov     $stubs + 13 * 16, %eax
        mov     %ax, interrupt_table + 13 * 8
        movw    $KCODE, interrupt_table + 13 * 8 + 2
        movw    $0x8E00, interrupt_table + 13 * 8 + 4
        shr     $16, %eax
        mov     %ax, interrupt_table + 13 * 8 + 6

        check   "user code through a task gate"
        make_task task_state2, task_reports
        run_user user_int_0x90
        report
        show_tasks

        check   "task with a trap bit"
        make_task task_state2, task_reports
        movb    $1, task_state2 + 100
        ljmp    $TSS2, $0
        report
        show_tasks
        check   "task at level 3"
        make_task task_state2, user_probe, 0, UDATA, UCODE, UDATA, LDT, UDATA
        ljmp    $TSS2, $0
        report
        show_tasks

        .macro  nested_return link:req
        movw    $\link, task_state
        pushl   $0x4002
        popf
        iret
        .endm
        .macro  bad_task title:req, instruction:vararg
        check   "task: \title"
        \instruction
        report
        show_tasks
        .endm
        bad_task "busy", ljmp $TSS, $0
        bad_task "busy, call", lcall $TSS, $0
        bad_task "absent", ljmp $ABSENT_TSS, $0
        bad_task "too short", ljmp $SHORT_TSS, $0
        bad_task "iret with nt to nothing", nested_return 0
        bad_task "iret with nt to data", nested_return KDATA
        bad_task "iret with nt to an available task", nested_return TSS2
        movw    $0, task_state
        # What faults behind the switch belongs to the new task, which may have no stack: a task handles it.
        .irp    number, 10, 11, 12, 13
        movl    $TSS_DOUBLE << 16, interrupt_table + \number * 8
        movl    $0xE500, interrupt_table + \number * 8 + 4
        .endr
        .macro  bad_new_task title:req
        make_task task_state_double, task_reports_code
        movl    $0, seen_eax
        check   "new task: \title"
        ljmp    $TSS2, $0
        report
        movzwl  task_state_double, %eax
        show    from, %eax
        mov     task_state2 + 32, %eax
        sub     $task_reports, %eax
        show    eip, %eax
        show    code, seen_eax
        new_line
        show_tasks
        .endm
        make_task task_state2, task_reports, 0, 0
        bad_new_task "null stack"
        make_task task_state2, task_reports, 0, READ_DATA
        bad_new_task "read-only stack"
        make_task task_state2, task_reports, 0, ABSENT_DATA
        bad_new_task "absent stack"
        make_task task_state2, task_reports, 0, KDATA, KDATA
        bad_new_task "code that is data"
        make_task task_state2, task_reports, 0, KDATA, 0
        bad_new_task "null code"
        make_task task_state2, task_reports, 0, KDATA, ABSENT_CODE
        bad_new_task "absent code"
        make_task task_state2, task_reports, 0, KDATA, KCODE, ABSENT_DATA
        bad_new_task "absent data"
        make_task task_state2, task_reports, 0, KDATA, KCODE, EXECUTE_ONLY
        bad_new_task "data that is code"
        make_task task_state2, task_reports, 0, KDATA, KCODE, KDATA, TSS
        bad_new_task "local table that is none"
        make_task task_state2, task_reports, 0, KDATA, KCODE, KDATA, 0
        bad_new_task "no local table"

        .irp    number, 10, 11, 12, 13
        mov     $stubs + \number * 16, %eax
        mov     %ax, interrupt_table + \number * 8
        movw    $KCODE, interrupt_table + \number * 8 + 2
        movw    $0x8E00, interrupt_table + \number * 8 + 4
        shr     $16, %eax
        mov     %ax, interrupt_table + \number * 8 + 6
        .endr

        check   "16-bit task"
        mov     $task_state16, %edi
        xor     %eax, %eax
        mov     $22, %ecx
        rep stosw
        movw    $0x3000, task_state16 + 14      # IP
        movw    $0x2, task_state16 + 16
        movw    $0x1234, task_state16 + 18      # AX
        movw    $0x5000, task_state16 + 26      # SP
        movw    $KDATA16, task_state16 + 34     # ES, CS, SS, DS
        movw    $KCODE16, task_state16 + 36
        movw    $KDATA16, task_state16 + 38
        movw    $KDATA, task_state16 + 40
        movw    $LDT, task_state16 + 42
        movl    $0xE4B70F66, 0x3000             # movzwl %sp, %esp: the upper halves are not defined
        movw    $0x80CD, 0x3004
        ljmp    $TSS16, $0
        report
        movzwl  fault_eax, %eax
        line    "ax", low, %eax
        show_tasks

        check   "double fault in a task of its own"
        make_task task_state_double, task_reports_code
        movl    $TSS_DOUBLE << 16, interrupt_table + 8 * 8
        movl    $0xE500, interrupt_table + 8 * 8 + 4
        movb    $0x0E, interrupt_table + 12 * 8 + 5     # stack faults cannot be delivered
        mov     $BEYOND, %eax
        movb    $0x0E, interrupt_table + 13 * 8 + 5     # nor general protection
        mov     %eax, %fs
        report
        movzbl  gdt + TSS_DOUBLE + 5, %eax
        line    "busy", double, %eax
        show_tasks
        line    "error code", code, seen_eax
        ret

# What tasks do.
task_reports:
        mov     %eax, seen_eax
        mov     %edx, seen_edx
        mov     %ebp, seen_ebp
        mov     %es, %ax
        shl     $8, %eax
        mov     %ds, %dx
        mov     %dl, %al
        shl     $8, %eax
        mov     %fs, %dx
        mov     %dl, %al
        mov     %eax, seen_selectors
        mov     %cr0, %eax
        mov     %eax, seen_cr0
        cmp     %eax, %eax
        int     $0x80
task_returns:
        incl    seen_count
        iret
        addl    $0x10, seen_count
        iret
        jmp     task_returns
task_reports_code:
        mov     (%esp), %eax
        mov     %eax, seen_eax
        int     $0x80
user_probe:     int $0x80
user_int_0x90:  int $0x90

        .data
        .balign 4
seen_eax:       .long 0
seen_edx:       .long 0
seen_ebp:       .long 0
seen_selectors: .long 0
seen_cr0:       .long 0
seen_count:     .long 0
        .bss
                .skip 4096
task_stack_top: .skip 16
        .text
