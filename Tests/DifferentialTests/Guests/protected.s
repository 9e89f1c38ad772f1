# 32-bit protected mode: rights of segments, the exceptions that 64-bit mode has not, gates and returns
# between privilege levels, 16-bit segments.

        .include "protected.inc"

        .macro  each_selector macro:req
        .irp    selector, 0, 3, KCODE, KDATA, KDATA+3, UCODE, UDATA, UDATA-3, TSS, KCODE16, KDATA16, ABSENT_DATA, ABSENT_CODE, READ_DATA, EXECUTE_ONLY, CONFORMING, CONFORMING+3, ONE_DATA, ONE_DATA+2, ONE_CODE, LDT, TASK_GATE, DOWN_DATA, SMALL_DATA, BEYOND, 0xF7, LDT_DATA, LDT_CODE, 0x1C
        \macro  \selector
        .endr
        .endm

        .macro  load_ds selector:req
        check   "mov \selector to ds"
        mov     $\selector, %eax
        mov     %eax, %ds
        mov     $KDATA, %ecx
        mov     %ecx, %ds
        report_value
        .endm
        .macro  load_ss selector:req
        check   "mov \selector to ss"
        mov     $\selector, %eax
        mov     %eax, %ss
        mov     $KDATA, %ecx
        mov     %ecx, %ss
        report_value
        .endm
        .macro  load_user selector:req
        check   "user mov \selector to es"
        mov     $\selector, %eax
        run_user user_load_es
        report_user
        check   "user mov \selector to ss"
        mov     $\selector, %eax
        run_user user_load_ss
        report_user
        .endm
        .macro  query selector:req
        check   "lar lsl verr verw \selector"
        mov     $\selector, %ecx
        xor     %eax, %eax
        xor     %edx, %edx
        verr    %cx
        setz    %dl
        verw    %cx
        setz    %dh
        lsl     %ecx, %eax
        jnz     1f
        or      $0x10000, %edx
1:      shl     $4, %eax
        lar     %ecx, %ebx
        jnz     1f
        add     %ebx, %eax
        or      $0x20000, %edx
1:      add     %edx, %eax
        report_value
        .endm

# An access through %es, loaded with \selector; \code uses %es and EBX = \address.
        .macro  through selector:req, address:req, code:vararg
        check   "access \selector \address \code"
        mov     $\selector, %eax
        mov     %eax, %es
        mov     $\address, %ebx
        \code
        mov     $KDATA, %eax
        mov     %eax, %es
        report
        mov     $KDATA, %eax
        mov     %eax, %es
        .endm

        .macro  probe_rights selector:req, address:req
        through \selector, \address, movb %es:(%ebx), %al
        through \selector, \address, movw %es:(%ebx), %ax
        through \selector, \address, movl %es:(%ebx), %eax
        through \selector, \address, movb %al, %es:(%ebx)
        through \selector, \address, movl %eax, %es:(%ebx)
        through \selector, \address, movups %es:(%ebx), %xmm0
        through \selector, \address, fldt %es:(%ebx)
        .endm

main:   each_selector load_ds
        each_selector load_ss
        each_selector load_user
        each_selector query

        probe_rights READ_DATA, 0x1000
        probe_rights EXECUTE_ONLY, 0x1000
        probe_rights KCODE, 0x1000
        probe_rights 0, 0x1000
        through BASE_DATA, 0, movl $0x12345678, %es:(%ebx)
        check   "what was written at the base"
        mov     small_area, %eax
        report_value
        check   "around the end of the address space"
        mov     $BASE_DATA, %eax
        mov     %eax, %es
        mov     $0x3000, %ebx
        sub     $small_area, %ebx
        movl    $0x5A5A1234, 0x3000
        mov     %es:(%ebx), %eax
        report_value
        mov     $KDATA, %eax
        mov     %eax, %es
        check   "writing code"
        movl    %eax, %cs:0x3000
        report
        check   "reading code"
        movl    %cs:0x3000, %eax
        report_value
        # ------------------------------------------------ stacks
        .macro  on_stack selector:req, pointer:req, code:vararg
        check   "stack \selector \pointer \code"
        mov     %esp, %ebp
        mov     $\selector, %ecx
        mov     $\pointer, %edx
        mov     %ecx, %ss
        mov     %edx, %esp
        \code
        mov     %esp, %eax
        mov     $KDATA, %ecx
        mov     %ecx, %ss
        mov     recovery_stack, %esp
        report_value
        .endm
        on_stack SMALL_STACK, 0x1000, push %eax
        on_stack SMALL_STACK, 0x1000, pushw %ax
        on_stack SMALL_STACK, 0x800, pusha
        on_stack SMALL_STACK, 0x800, popa
        on_stack SMALL_STACK, 0x800, enter $8, $0
        on_stack SMALL_STACK, 0x800, enter $8, $3
        on_stack KDATA16, 0x3000, push %eax
        on_stack KDATA16, 0x12343000, push %eax
        on_stack KDATA16, 0x12340002, push %eax
        on_stack KDATA16, 0x1234FFFE, pop %eax
        on_stack KDATA16, 0x12343000, pusha
        on_stack KDATA16, 0x12343000, pushl %gs
        # ------------------------------------------------ exceptions that 64-bit mode has not
        check   "into without overflow"
        into
        report
        check   "into"
        mov     $0x7FFFFFFF, %ecx
        inc     %ecx
        into
        report
        check   "bound inside"
        mov     $5, %ecx
        bound   %ecx, bounds
        report
        check   "bound below"
        mov     $4, %ecx
        bound   %ecx, bounds
        report
        check   "bound above"
        mov     $8, %ecx
        bound   %ecx, bounds
        report
        check   "bound 16"
        mov     $4, %ecx
        boundw  %cx, bounds
        report
        check   "bound with a register"
        .byte   0x62, 0xC0
        report
        check   "aam 0"
        .byte   0xD4, 0x00
        report
        check   "aam"
        mov     $0x7F, %eax
        aam
        report_value
        check   "aad"
        mov     $0x0709, %eax
        aad
        report_value
        check   "daa"
        mov     $0x9C, %eax
        add     $0x10, %al
        daa
        report_value
        check   "das"
        mov     $0x1C, %eax
        sub     $0x2D, %al
        das
        report_value
        check   "arpl"
        mov     $0x10, %eax
        mov     $3, %ecx
        arpl    %cx, %ax
        pushf
        pop     %ecx
        and     $0x40, %ecx
        shl     $16, %ecx
        or      %ecx, %eax
        report_value
        check   "les"
        les     far_data, %eax
        report_value
        mov     $KDATA, %eax
        mov     %eax, %es
        check   "lds with a bad selector"
        lds     bad_far_data, %eax
        report
        check   "salc"
        stc
        .byte   0xD6
        report_value
        check   "opcode 82"
        mov     $5, %eax
        .byte   0x82, 0xC0, 0x03
        report_value
        check   "pushes and pops of segments"
        push    %es
        push    %ds
        push    %fs
        pop     %es
        pop     %fs
        pop     %ds
        mov     %ds, %eax
        report_value
        check   "xlat with another segment"
        movb    $0x77, small_area + 5
        mov     $SMALL_DATA, %ecx
        mov     %ecx, %gs
        xor     %ebx, %ebx
        mov     $5, %eax
        xlat    %gs:(%ebx)
        report_value
        check   "16-bit addresses"
        movl    $0xCAFEBABE, 0x3010
        mov     $0x3000, %ebx
        mov     $0xFFFF0010, %esi
        addr16  mov (%bx,%si), %eax
        report_value
        check   "16-bit addresses wrap"
        mov     $0xFFFF, %ebx
        mov     $0x3011, %esi
        addr16  mov (%bx,%si), %eax
        report_value
        check   "loop with cx"
        mov     $0x10003, %ecx
        xor     %eax, %eax
1:      inc     %eax
        addr16  loop 1b
        report_value
        check   "jcxz"
        mov     $0x10000, %ecx
        mov     $1, %eax
        jcxz    1f
        mov     $2, %eax
1:      report_value
        check   "16-bit jump drops the upper half"
        movl    $0x10EB66, 0x20000              # to 0x20013, without its upper half 0x13
        movw    $0x80CD, 0x13
        mov     $0x20000, %ecx
        jmp     *%ecx
        report
        check   "16-bit return"
        pushw   $0x3000
        movw    $0x80CD, 0x3000
        data16 ret
        report
        check   "syscall without sce"
        syscall
        report
        check   "inc and dec"
        mov     $0xFF, %eax
        inc     %eax
        inc     %ax
        dec     %eax
        report_value

        # ------------------------------------------------ privilege levels
        check   "user int 0x80"
        run_user user_probe
        report
        check   "user int 0x42"
        run_user user_int_0x42
        report
        check   "user hlt"
        run_user user_hlt
        report
        check   "user in"
        run_user user_in
        report
        check   "user limit"
        run_user user_limit
        report
        check   "user 16-bit code"
        push    $UDATA16
        push    $0x5000
        push    $0x02
        push    $UCODE16
        push    $0x3000
        iret
        report
        check   "user into"
        run_user user_into
        report
        check   "user bound"
        run_user user_bound
        report

        .macro  return_to title:req, code:req, stack:req
        check   "\title to \code with \stack"
        push    $\stack
        push    $user_stack_top
        .ifc    \title, iret
        push    $0x02
        .endif
        push    $\code
        .if     (\code & ~7) == KCODE16 || (\code & ~7) == (UCODE16 & ~7)
        push    $0x3000
        .else
        push    $user_probe
        .endif
        \title
        report
        .endm
        .irp    stack, UDATA, KDATA, 0, 3, UDATA-3, READ_DATA, ABSENT_DATA, ABSENT_DATA+3, ONE_DATA, UCODE, TSS, BEYOND, UDATA16, LDT_DATA+3
        return_to iret, UCODE, \stack
        return_to lret, UCODE, \stack
        .endr
        .irp    code, KCODE, KCODE+1, KCODE+3, UCODE-3, 0, 3, KDATA, UDATA, ABSENT_CODE, EXECUTE_ONLY, CONFORMING, CONFORMING+1, CONFORMING+3, ONE_CODE, ONE_CODE-1, ONE_CODE+2, TSS, GATE, TASK_GATE, BEYOND, KCODE16, UCODE16, LDT_CODE
        return_to iret, \code, UDATA
        return_to lret, \code, UDATA
        return_to iret, \code, ONE_DATA
        return_to lret, \code, ONE_DATA
        .endr
        check   "segments that user code may not keep"
        mov     $KDATA, %eax
        mov     %eax, %fs
        mov     $UDATA, %eax
        mov     %eax, %gs
        run_user user_segments
        report_user

        # ------------------------------------------------ jumps and calls
        .macro  go_to selector:req
        check   "ljmp \selector"
        movl    $kernel_probe, far_pointer
        .if     (\selector & ~7) == KCODE16
        movl    $0x3000, far_pointer
        .endif
        movw    $\selector, far_pointer + 4
        ljmp    *far_pointer
        report
        check   "lcall \selector"
        lcall   *far_pointer
        report
        check   "user ljmp \selector"
        run_user user_jump
        report
        check   "user lcall \selector"
        run_user user_call
        report
        .endm
        .irp    selector, 0, KCODE, KCODE+3, KDATA, UCODE, UCODE-3, ABSENT_CODE, EXECUTE_ONLY, CONFORMING, CONFORMING+3, ONE_CODE, KCODE16, LDT, BEYOND, LDT_CODE, GATE
        go_to   \selector
        .endr

        # ------------------------------------------------ call gates
        .macro  make_gate selector:req, access:req, parameters=0, offset=gate_target
        mov     $\offset, %eax
        mov     %ax, gdt + GATE
        movw    $\selector, gdt + GATE + 2
        movb    $\parameters, gdt + GATE + 4
        movb    $\access, gdt + GATE + 5
        shr     $16, %eax
        mov     %ax, gdt + GATE + 6
        .endm
        .macro  gate title:req, selector:req, access:req, parameters=0, offset=gate_target
        make_gate \selector, \access, \parameters, \offset
        movw    $GATE, far_pointer + 4
        check   "gate \title: call"
        push    $0x1111
        push    $0x2222
        lcall   *far_pointer
        report
        check   "gate \title: jump"
        ljmp    *far_pointer
        report
        movw    $GATE + 3, far_pointer + 4
        check   "gate \title: user call"
        run_user user_call_parameters
        report_user
        check   "gate \title: user jump"
        run_user user_jump
        report
        .endm
        gate    "for the kernel", KCODE, 0x8C
        gate    "for everybody", KCODE, 0xEC
        gate    "absent", KCODE, 0x6C
        gate    "with parameters", KCODE, 0xEC, 2
        gate    "with 31 parameters", KCODE, 0xEC, 31
        gate    "to conforming code", CONFORMING, 0xEC, 1
        gate    "to level 1", ONE_CODE, 0xEC, 2
        gate    "to user code", UCODE, 0xEC, 2
        gate    "to data", KDATA, 0xEC
        gate    "to nothing", 0, 0xEC
        gate    "to absent code", ABSENT_CODE, 0xEC
        gate    "beyond the table", BEYOND, 0xEC
        movl    $0x80CD, 0x3000
        gate    "of 16 bits", KCODE, 0xE4, 2, 0x3000
        check   "return through a gate to user code"
        make_gate KCODE, 0xEC, 2, gate_return
        movw    $GATE + 3, far_pointer + 4
        run_user user_call_parameters
        report_user
        say     "stacks of the task state\n"
        make_gate ONE_CODE, 0xEC, 2
        movw    $GATE + 3, far_pointer + 4
        .irp    stack, ONE_DATA, 0, 1, KDATA, ONE_DATA-1, ONE_DATA+2, UDATA, READ_DATA+1, ABSENT_DATA+1, ONE_CODE, TSS+1, BEYOND+1, LDT_DATA+1
        movw    $\stack, task_state + 16
        check   "stack \stack: user call"
        run_user user_call_parameters
        report
        .endr
        movw    $ONE_DATA, task_state + 16
        check   "task state too short for the stack"
        movw    $0x10, gdt + TSS
        andb    $~2, gdt + TSS + 5
        mov     $TSS, %eax
        ltr     %ax
        run_user user_call_parameters
        report
        movw    $0x67, gdt + TSS
        andb    $~2, gdt + TSS + 5
        mov     $TSS, %eax
        ltr     %ax

        # ------------------------------------------------ limits of code, which QEMU checks for far transfers only
        mov     $small_area, %edi               # wherever a machine without the checks goes, it says so
        mov     $0x80CD80CD, %eax
        mov     $0x5000, %ecx
        rep stosl
        check   "jump beyond the limit"
        ljmp    $SMALL_CODE, $0x1000
        expect  13
        check   "jump to the limit's last byte"
        movb    $0xF4, small_area + 0xFFF
        movb    $0xCC, small_area + 0xFFF
        ljmp    $SMALL_CODE, $0xFFF
        expect  3
        check   "near jump beyond the limit"
        movl    $0x010000E9, small_area         # by 64 KiB
        movb    $0, small_area + 4
        ljmp    $SMALL_CODE, $0
        expect  13
        check   "near return beyond the limit"
        movb    $0xC3, small_area
        push    $0x10004
        ljmp    $SMALL_CODE, $0
        expect  13
        check   "near call beyond the limit"
        movw    $0x15FF, small_area
        movl    $far_offset, small_area + 2
        ljmp    $SMALL_CODE, $0
        expect  13
        make_gate SMALL_CODE, 0xEC, 0, 0x1000
        movw    $GATE, far_pointer + 4
        check   "call gate beyond the limit"
        lcall   *far_pointer
        expect  13
        check   "jump through a gate beyond the limit"
        ljmp    *far_pointer
        expect  13
        check   "user call through a gate beyond the limit"
        movw    $GATE + 3, far_pointer + 4
        run_user user_call_parameters
        expect  13
        movw    $0x1000, interrupt_table + 0x91 * 8
        movw    $SMALL_CODE, interrupt_table + 0x91 * 8 + 2
        movw    $0xEE00, interrupt_table + 0x91 * 8 + 4
        movw    $0, interrupt_table + 0x91 * 8 + 6
        check   "interrupt gate beyond the limit"
        int     $0x91
        expect  13

        # ------------------------------------------------ interrupt gates
        .macro  through_gate title:req, selector:req, access:req, offset=interrupt_target
        mov     $\offset, %eax
        mov     %ax, interrupt_table + 0x90 * 8
        movw    $\selector, interrupt_table + 0x90 * 8 + 2
        movw    $\access << 8, interrupt_table + 0x90 * 8 + 4
        shr     $16, %eax
        mov     %ax, interrupt_table + 0x90 * 8 + 6
        check   "interrupt \title"
        int     $0x90
        report
        check   "interrupt \title: user"
        run_user user_int_0x90
        report
        .endm
        through_gate "absent", KCODE, 0x6E
        through_gate "for the kernel", KCODE, 0x8E
        through_gate "for everybody", KCODE, 0xEE
        through_gate "trap", KCODE, 0xEF
        through_gate "of 16 bits", KCODE, 0xE6, 0x3000
        through_gate "of type call", KCODE, 0xEC
        through_gate "to data", KDATA, 0xEE
        through_gate "to nothing", 0, 0xEE
        through_gate "to absent code", ABSENT_CODE, 0xEE
        through_gate "to conforming code", CONFORMING, 0xEE
        through_gate "to user code", UCODE, 0xEE
        through_gate "to level 1", ONE_CODE, 0xEE
        through_gate "beyond the table", BEYOND, 0xEE
        check   "interrupt table too short"
        movw    $0x90 * 8 + 6, interrupt_pointer
        lidt    interrupt_pointer
        int     $0x90
        report
        movw    $0x7FF, interrupt_pointer
        lidt    interrupt_pointer

        # ------------------------------------------------ virtual-8086 mode
        .macro  run_virtual offset:req, flags=0x20002
        push    $0                              # gs
        push    $0x10                           # fs
        push    $0x20                           # ds
        push    $0x30                           # es
        push    $0x400                          # ss
        push    $0x1000                         # sp
        push    $\flags
        push    $0x300                          # cs
        push    $\offset
        iret
        .endm
        cld
        mov     $virtual_code, %esi
        mov     $0x3000, %edi
        mov     $virtual_code_end - virtual_code, %ecx
        rep movsb
        .irp    name, probe, int_0x42, cli, pushf, in, hlt, segments, iret, mov_cr0, lar, limit, far_jump
        check   "virtual \name"
        run_virtual virtual_\name-virtual_code
        report_user
        check   "virtual \name with iopl 3"
        run_virtual virtual_\name-virtual_code, 0x23002
        report_user
        .endr
        ret

kernel_probe:
gate_target:
        int     $0x80
gate_return:
        mov     8(%esp), %eax                   # the first parameter
        shl     $16, %eax
        add     12(%esp), %eax
        lret    $8
interrupt_target:
        push    $0
        push    $0x90
        jmp     common

user_probe:     int $0x80
user_load_es:   mov %eax, %es
                mov %es, %eax
                int $0x80
user_load_ss:   mov %eax, %ss
                mov %ss, %eax
                int $0x80
user_int_0x42:  int $0x42
user_int_0x90:  int $0x90
user_hlt:       hlt
user_in:        in $0x80, %al
                int $0x80
user_limit:     mov $SMALL_DATA, %eax
                mov %eax, %es
                int $0x80
user_into:      mov $0x7FFFFFFF, %ecx
                inc %ecx
                into
                int $0x80
user_bound:     mov $9, %ecx
                bound %ecx, bounds
                int $0x80
user_segments:  mov %ds, %eax
                shl $8, %eax
                mov %fs, %cx
                or %cl, %al
                shl $8, %eax
                mov %gs, %cx
                or %cl, %al
                int $0x80
user_jump:      mov $UDATA, %eax
                mov %eax, %ds
                ljmp *far_pointer
user_call:      mov $UDATA, %eax
                mov %eax, %ds
                lcall *far_pointer
user_call_parameters:
                mov $UDATA, %eax
                mov %eax, %ds
                push $0x1111
                push $0x2222
                lcall *far_pointer
                int $0x80

        .code16
virtual_code:
virtual_probe:  int $0x80
virtual_int_0x42: int $0x42
virtual_cli:    cli
                int $0x80
virtual_pushf:  pushfl
                pop %eax
                int $0x80
virtual_in:     in $0x80, %al
                int $0x80
virtual_hlt:    hlt
virtual_segments:
                mov %gs, %ax
                shl $16, %eax
                mov %fs, %ax
                rol $8, %eax
                mov %ds, %cx
                add %cx, %ax
                int $0x80
virtual_iret:   pushw $0x7202
                pushw $0x300
                pushw $0x0000
                iretw
virtual_mov_cr0: mov %cr0, %eax
virtual_lar:    lar %ax, %ax
                int $0x80
virtual_limit:  mov $0xFFFF, %bx
                mov (%bx), %ax
                int $0x80
virtual_far_jump:
                ljmp $0x2FF, $0x10
virtual_code_end:
        .code32

        .data
        .balign 4
bounds:         .long 5, 7
far_data:       .long 0x12345678
                .word READ_DATA
                .balign 4
bad_far_data:   .long 0x12345678
                .word ABSENT_DATA
                .balign 4
far_pointer:    .long 0
                .word 0
far_offset:     .long 0x10004
        .text
