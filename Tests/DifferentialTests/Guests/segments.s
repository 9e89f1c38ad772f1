# Loads of segment registers and of LDTR and TR with every kind of descriptor, and what LAR, LSL, VERR and VERW say.

        .include "long.inc"

# Every selector worth a try.
        .macro  each_selector macro:req
        .irp    selector, 0, 1, 2, 3, KCODE, KDATA, KDATA+1, KDATA+3, UCODE32, UDATA, UDATA-3, UCODE, TSS, KCODE32, KCODE16, ABSENT_DATA, ABSENT_CODE, READ_DATA, EXECUTE_ONLY, CONFORMING, CONFORMING+3, ONE_DATA, ONE_DATA+2, LDT, GATE, SMALL_DATA, LONG_AND_DEFAULT32, TSS_AVAILABLE, TSS_BUSY, ABSENT_TSS, ONE_CODE, BEYOND, BEYOND+3, 0x117, 0x118, 4, LDT_DATA, LDT_ABSENT, 0x18+4, 0x1C
        \macro  \selector
        .endr
        .endm

        .macro  load register:req, selector:req
        check   "mov \selector to \register"
        mov     $\selector, %eax
        mov     %eax, %\register
        mov     %\register, %eax
        report_value
        mov     $KDATA, %eax
        mov     %eax, %\register
        .endm
        .macro  load_ds selector:req
        load    ds, \selector
        .endm
        .macro  load_ss selector:req
        load    ss, \selector
        .endm
        .macro  load_gs selector:req
        load    gs, \selector
        .endm

        .macro  load_user register:req, selector:req
        check   "user mov \selector to \register"
        mov     $\selector, %eax
        run_user user_load_\register
        report_user
        .endm
        .macro  load_user_ds selector:req
        load_user ds, \selector
        .endm
        .macro  load_user_ss selector:req
        load_user ss, \selector
        .endm
        .macro  load_user_fs selector:req
        load_user fs, \selector
        .endm

        .macro  load_system instruction:req, selector:req
        check   "\instruction \selector"
        mov     $\selector, %eax
        \instruction %ax
        report
        .endm
        .macro  load_lldt selector:req
        load_system lldt, \selector
        .endm
        .macro  load_ltr selector:req
        andb    $~2, gdt + TSS + 5
        andb    $~2, gdt + TSS_AVAILABLE + 5
        load_system ltr, \selector
        .endm

        .macro  query selector:req
        check   "lar \selector"
        mov     $\selector, %ecx
        mov     $0x5555, %eax
        lar     %ecx, %eax
        call    add_zero_flag
        report_value
        check   "lsl \selector"
        mov     $\selector, %ecx
        mov     $0x5555, %eax
        lsl     %ecx, %eax
        call    add_zero_flag
        report_value
        check   "verr verw \selector"
        mov     $\selector, %ecx
        xor     %eax, %eax
        verr    %cx
        call    add_zero_flag
        verw    %cx
        setz    %al
        report_value
        check   "user lar \selector"
        mov     $\selector, %ecx
        run_user user_lar
        report_user
        check   "user lsl \selector"
        mov     $\selector, %ecx
        run_user user_lsl
        report_user
        check   "user verr verw \selector"
        mov     $\selector, %ecx
        run_user user_verr
        report_user
        .endm

# Sets bit 63 of RAX if ZF is set.
add_zero_flag:
        jnz     1f
        bts     $63, %rax
1:      ret

main:   mov     $LDT, %eax
        lldt    %ax
        each_selector load_ds
        each_selector load_gs
        each_selector load_ss
        each_selector load_user_ds
        each_selector load_user_fs
        each_selector load_user_ss
        each_selector query
        each_selector load_lldt

        say     "without a local table\n"
        xor     %eax, %eax
        lldt    %ax
        load_ds LDT_DATA
        load_gs 4
        query   LDT_DATA
        each_selector load_ltr
        mov     $TSS, %eax
        andb    $~2, gdt + TSS + 5
        ltr     %ax
        check   "str and sldt"
        xor     %eax, %eax
        str     %eax
        shl     $16, %rax
        sldt    %eax
        report_value
        check   "busy after ltr"
        movzbl  gdt + TSS + 5, %eax
        report_value

        say     "accessed bits\n"
        .irp    selector, ABSENT_DATA, READ_DATA, SMALL_DATA, EXECUTE_ONLY, ONE_DATA
        andb    $0xFE, gdt + (\selector & ~7) + 5
        .endr
        load_ds READ_DATA
        load_ds SMALL_DATA
        load_ss SMALL_DATA
        load_gs ABSENT_DATA
        load_ds EXECUTE_ONLY
        .irp    selector, ABSENT_DATA, READ_DATA, SMALL_DATA, EXECUTE_ONLY, ONE_DATA
        check   "accessed \selector"
        movzbl  gdt + (\selector & ~7) + 5, %eax
        report_value
        .endr

        say     "bases\n"
        check   "loading fs sets its base"
        mov     $0xC0000100, %ecx
        mov     $0x12345678, %eax
        mov     $0x1, %edx
        wrmsr
        mov     $KDATA, %eax
        mov     %eax, %fs
        rdmsr
        report_value
        check   "a null selector in fs"
        mov     $0x12345678, %eax
        mov     $0x1, %edx
        wrmsr
        xor     %eax, %eax
        mov     %eax, %fs
        rdmsr
        report_value
        check   "swapgs"
        mov     $0xC0000101, %ecx
        xor     %edx, %edx
        mov     $0x1111, %eax
        wrmsr
        mov     $0xC0000102, %ecx
        mov     $0x2222, %eax
        wrmsr
        swapgs
        mov     $0xC0000101, %ecx
        rdmsr
        mov     %rax, %rbx
        mov     $0xC0000102, %ecx
        rdmsr
        shl     $16, %rax
        or      %rbx, %rax
        report_value
        check   "access through gs"
        mov     $0xC0000101, %ecx
        mov     $check_word - 0x10, %eax
        xor     %edx, %edx
        wrmsr
        mov     %gs:0x10, %rax
        report_value
        check   "access through gs and 32-bit addresses"
        mov     $0xFFFFFFF0, %ebx
        mov     $0xC0000101, %ecx
        mov     $check_word, %eax
        xor     %edx, %edx
        wrmsr
        addr32 mov %gs:0x10(%ebx), %rax
        report_value
        xor     %eax, %eax
        mov     $0xC0000101, %ecx
        wrmsr

        say     "pop, lfs and their relatives\n"
        check   "pop fs"
        push    $READ_DATA
        pop     %fs
        mov     %fs, %eax
        report_value
        check   "pop gs, absent"
        push    $ABSENT_DATA
        pop     %gs
        report
        check   "lfs"
        lfs     far_pointer, %eax
        mov     %fs, %ecx
        shl     $32, %rcx
        or      %rcx, %rax
        report_value
        check   "lss"
        mov     $KDATA, %eax
        mov     %eax, far_pointer + 4
        movl    $0x1000, far_pointer
        mov     %rsp, %rbx
        lss     far_pointer, %eax
        mov     %ss, %ecx
        mov     %rbx, %rsp
        shl     $32, %rcx
        or      %rcx, %rax
        report_value
        check   "push fs"
        push    %fs
        pop     %rax
        report_value
        check   "mov ss shadow"                 # no trap between the two
        mov     $KDATA, %eax
        mov     %eax, %ss
        mov     %rsp, %rsp
        report

        say     "tables\n"
        check   "sgdt"
        sgdt    scratch
        movzwl  scratch, %eax
        shl     $48, %rax
        or      scratch + 2, %rax
        report_value
        check   "lgdt non-canonical"
        movw    $0xFF, scratch
        mov     $0x800000000000, %rax
        mov     %rax, scratch + 2
        lgdt    scratch
        report
        check   "smsw"
        mov     $-1, %rax
        smsw    %rax
        report_value
        check   "smsw 16"
        mov     $-1, %rax
        smsw    %ax
        report_value
        check   "lmsw cannot leave protected mode"
        mov     $0x0, %eax
        lmsw    %ax
        mov     %cr0, %rax
        report_value
        mov     %cr0, %rax
        or      $2, %rax
        mov     %rax, %cr0
        ret

        .section .user
user_load_ds:   mov %eax, %ds
                mov %ds, %eax
                int $0x80
user_load_fs:   mov %eax, %fs
                mov %fs, %eax
                int $0x80
user_load_ss:   mov %eax, %ss
                mov %ss, %eax
                int $0x80
user_lar:       mov $0x5555, %eax
                lar %ecx, %eax
                jnz 1f
                bts $63, %rax
1:              int $0x80
user_lsl:       mov $0x5555, %eax
                lsl %ecx, %eax
                jnz 1f
                bts $63, %rax
1:              int $0x80
user_verr:      xor %eax, %eax
                verr %cx
                setz %ah
                verw %cx
                setz %al
                int $0x80

        .data
        .balign 8
check_word:     .quad 0xFEEDFACE12345678
far_pointer:    .long 0x12345678
                .word READ_DATA
                .word 0
scratch:        .fill 16, 1, 0
        .text
