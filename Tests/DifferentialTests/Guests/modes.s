# The same bytes at the same address in every mode: 64-bit, compatibility mode with 32 and 16 bits, protected mode
# without paging, with PAE and with two levels of tables, 16-bit protected mode, real mode, and back. Twice, so that
# what was translated runs again.

        .include "long.inc"

        .set    LOW, 0x8000                     # where the 16-bit code is copied to
        .set    PROBE, 0x9000
        .set    RESULTS, 0x6000                 # 16 bytes for each mode: EAX, CR0, CR4, EFER
        .set    REAL_STACK, 0x7000

# In 32-bit code: runs the probe and keeps what it makes of RAX, and the control registers, as result \index.
        .macro  probe32 index:req
        mov     $PROBE, %ebx
        mov     $0x1FFFE, %eax
        call    *%ebx
        mov     %eax, RESULTS + \index * 16
        mov     %cr0, %eax
        mov     %eax, RESULTS + \index * 16 + 4
        mov     %cr4, %eax
        mov     %eax, RESULTS + \index * 16 + 8
        mov     $0xC0000080, %ecx
        rdmsr
        mov     %eax, RESULTS + \index * 16 + 12
        .endm
# The same in 16-bit code, with FS = 0 based.
        .macro  probe16 index:req
        mov     $PROBE, %bx
        mov     $0x1FFFE, %eax
        call    *%bx
        mov     %eax, %fs:RESULTS + \index * 16
        mov     %cr0, %eax
        mov     %eax, %fs:RESULTS + \index * 16 + 4
        mov     %cr4, %eax
        mov     %eax, %fs:RESULTS + \index * 16 + 8
        mov     $0xC0000080, %ecx
        rdmsr
        mov     %eax, %fs:RESULTS + \index * 16 + 12
        .endm

main:   mov     $low_code, %esi
        mov     $LOW, %edi
        mov     $low_code_end - low_code, %ecx
        rep movsb
        mov     $probe, %esi
        mov     $PROBE, %edi
        mov     $probe_end - probe, %ecx
        rep movsb
        movl    $low_directory + 1, pae_pointers
        movl    $window_directory + 1, pae_pointers + 8
        movq    $page_one + 3, window_table
        movl    $0x11111111, page_one
        movl    $0x22222222, page_two
        xor     %ecx, %ecx
        mov     $0x83, %eax
1:      mov     %eax, two_level_directory(, %rcx, 4)
        add     $0x400000, %eax
        inc     %ecx
        cmp     $16, %ecx
        jne     1b
        movl    $two_level_table + 7, two_level_directory + 0x100 * 4
        movl    $page_two + 3, two_level_table
        mov     $0x0123456789ABCDEF, %rax
        mov     %rax, %r8
        not     %rax
        mov     %rax, %r15
        movq    %rax, %xmm0

        mov     $2, %r12d
1:      push    %r12
        call    go_round
        pop     %r12
        .irp    index, 0, 1, 2, 3, 4, 5, 6, 7, 8
        say     "mode \index"
        mov     RESULTS + \index * 16, %eax
        show    rax, %rax
        mov     RESULTS + \index * 16 + 4, %eax
        show    cr0, %rax
        mov     RESULTS + \index * 16 + 8, %eax
        show    cr4, %rax
        mov     RESULTS + \index * 16 + 12, %eax
        show    efer, %rax
        new_line
        .endr
        say     "through tables"
        mov     seen_pae, %eax
        show    pae, %rax
        mov     seen_two_level, %eax
        show    two, %rax
        mov     seen_after, %eax
        show    changed, %rax
        mov     two_level_directory + 0x100 * 4, %eax
        and     $0x60, %eax
        show    directory, %rax
        mov     two_level_table, %eax
        and     $0x60, %eax
        show    table, %rax
        mov     window_table, %rax
        and     $0x60, %eax
        show    pae_entry, %rax
        new_line
        say     "registers"
        show    r8, seen_r8
        show    r15, seen_r15
        movq    %xmm0, %rax
        show    xmm0, %rax
        new_line
        # the second time, the probe adds more
        movb    $0x10, PROBE + probe_addend - probe
        movq    $page_one + 3, window_table
        movl    $page_two + 3, two_level_table
        dec     %r12d
        jnz     1b
        ret

# What the probe makes of RAX = 0x1FFFE depends on the size of code.
probe:  .byte   0x48, 0xFF, 0xC0                # inc rax; dec eax, inc eax
        .byte   0x40, 0x90, 0x40, 0x90          # nops; inc eax twice
        .byte   0x83, 0xC0                      # add eax or ax, 1
probe_addend:
        .byte   0x01
        ret
probe_end:

# ---------------------------------------------------------------- through all modes

go_round:
        push    %rbx
        push    %rbp
        mov     $PROBE, %ebx
        mov     $0x1FFFE, %eax
        call    *%rbx
        mov     %eax, RESULTS
        mov     %cr0, %rax
        mov     %eax, RESULTS + 4
        mov     %cr4, %rax
        mov     %eax, RESULTS + 8
        mov     $0xC0000080, %ecx
        rdmsr
        mov     %eax, RESULTS + 12
        mov     %rsp, saved_stack
        ljmp    *to_compatibility
        .code32
compatibility:
        mov     $KDATA, %eax
        mov     %eax, %fs
        probe32 1
        ljmp    $KCODE16, $LOW + low_compatibility - low_code
compatibility_again:
        ljmp    $KCODE, $long_again
        .code64
long_again:                                     # the upper registers are still there
        mov     %r8, seen_r8
        mov     %r15, seen_r15
        ljmp    *to_legacy
        .code32
legacy: mov     %cr0, %eax
        and     $0x7FFFFFFF, %eax
        mov     %eax, %cr0
        probe32 3
        mov     $0xC0000080, %ecx               # without LME, paging is that of protected mode
        rdmsr
        and     $~0x100, %eax
        wrmsr
        mov     $pae_pointers, %eax
        mov     %eax, %cr3
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        mov     WINDOW, %eax
        mov     %eax, seen_pae
        probe32 4
        mov     %cr0, %eax
        and     $0x7FFFFFFF, %eax
        mov     %eax, %cr0
        mov     %cr4, %eax
        and     $~0xA0, %eax                    # neither PAE nor PGE
        or      $0x10, %eax                     # but PSE
        mov     %eax, %cr4
        mov     $two_level_directory, %eax
        mov     %eax, %cr3
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        mov     WINDOW, %eax
        mov     %eax, seen_two_level
        movl    $page_one + 3, two_level_table
        invlpg  WINDOW
        mov     WINDOW, %eax
        mov     %eax, seen_after
        probe32 5
        mov     %cr0, %eax
        and     $0x7FFFFFFF, %eax
        mov     %eax, %cr0
        mov     %cr4, %eax
        and     $~0x10, %eax
        mov     %eax, %cr4
        ljmp    $KCODE16, $LOW + low_protected - low_code
protected_again:
        mov     $KDATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     saved_stack, %esp
        probe32 8
        call    enter_long_tables
        ljmp    $KCODE, $back
        .code64
back:   mov     saved_stack, %rsp
        xor     %eax, %eax
        mov     %eax, %fs
        mov     %eax, %gs
        lidt    interrupt_pointer
        pop     %rbp
        pop     %rbx
        ret

        .code16
low_code:
low_compatibility:                              # on the 32-bit stack of before
        probe16 2
        ljmpl   $KCODE32, $compatibility_again
low_protected:
        probe16 6
        mov     %cr0, %eax
        and     $~1, %al
        mov     %eax, %cr0
        ljmp    $0, $LOW + 1f - low_code
1:      xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %fs
        mov     %ax, %gs
        mov     %ax, %ss
        mov     $REAL_STACK, %esp
        probe16 7
        lgdtl   LOW + 2f - low_code
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $KCODE32, $protected_again
2:      .word   gdt_end - gdt - 1
        .long   gdt
low_code_end:
        .code64

        .data
        .balign 8
saved_stack:    .quad 0
seen_r8:        .quad 0
seen_r15:       .quad 0
seen_pae:       .long 0
seen_two_level: .long 0
seen_after:     .long 0
to_compatibility: .long compatibility
                .word KCODE32
                .balign 8
to_legacy:      .long legacy
                .word KCODE32

        .bss
        .balign 4096
pae_pointers:   .skip 4096
two_level_directory: .skip 4096
two_level_table: .skip 4096
page_one:       .skip 4096
page_two:       .skip 4096
        .text
