# Triple faults: VARIANT says which.

        .if     VARIANT < 10
        .include "long.inc"
        .else
        .include "protected.inc"
        .endif

main:   say     "here it ends\n"
        .if     VARIANT == 0                    # no interrupt table
        movw    $0, interrupt_pointer
        lidt    interrupt_pointer
        ud2
        .endif
        .if     VARIANT == 1                    # a page fault, and a table in an absent page
        movq    $WINDOW, interrupt_pointer + 2
        lidt    interrupt_pointer
        mov     $WINDOW + 0x5000, %edi
        mov     (%rdi), %eax
        .endif
        .if     VARIANT == 2                    # no handlers for contributory exceptions and double faults
        movb    $0x0E, interrupt_table + 13 * 16 + 5
        movb    $0x0E, interrupt_table + 11 * 16 + 5
        movb    $0x0E, interrupt_table + 8 * 16 + 5
        mov     $BEYOND, %eax
        mov     %eax, %ds
        .endif
        .if     VARIANT == 3                    # stacks in absent pages
        movb    $0, interrupt_table + 8 * 16 + 4
        mov     $WINDOW + 0x1000, %esp
        push    %rax
        .endif
        .if     VARIANT == 4                    # from user code, with a stack in an absent page
        movb    $0, interrupt_table + 8 * 16 + 4
        movq    $WINDOW + 0x1000, task_state + 4
        run_user user_ud2
        .endif
        .if     VARIANT == 5                    # page tables gone
        movq    $0, pml4
        mov     %cr3, %rax
        mov     %rax, %cr3
        mov     (%rax), %rax
        .endif
        .if     VARIANT == 10                   # no interrupt table
        movw    $0, interrupt_pointer
        lidt    interrupt_pointer
        int3
        .endif
        .if     VARIANT == 11                   # code segments gone
        movl    $0, gdt + KCODE
        movl    $0, gdt + KCODE + 4
        ud2
        .endif
        .if     VARIANT == 12                   # the double-fault task is no task
        movb    $0x0E, interrupt_table + 13 * 8 + 5
        movb    $0x0E, interrupt_table + 11 * 8 + 5
        movl    $KDATA << 16, interrupt_table + 8 * 8
        movl    $0xE500, interrupt_table + 8 * 8 + 4
        mov     $BEYOND, %eax
        mov     %eax, %fs
        .endif
        say     "it goes on\n"
        ret

        .if     VARIANT < 10
        .section .user
user_ud2:       ud2
        .text
        .endif
