# Paging of 32-bit protected mode, with two levels of tables and with PAE: rights of pages and directories against WP,
# privilege and kind of access; large pages; reserved bits; what is remembered.

        .include "protected.inc"

        .set    WINDOW, 0x40000000
        .set    LARGE, 0x2400000                # memory that nothing else uses

# What the lines that follow begin with.
        .macro  section title:req
        movl    $97f, section
        .pushsection .data
97:     .asciz  "\title"
        .popsection
        .endm

# Accesses EDI as `access` and `privilege` say.
        .macro  access_it
        cmpl    $0, privilege
        jne     3f
        cmpl    $1, access
        je      1f
        ja      2f
        mov     (%edi), %eax
        jmp     5f
1:      mov     %eax, (%edi)
        jmp     5f
2:      call    *%edi
        jmp     5f
3:      push    $UDATA
        push    $user_stack_top
        push    $0x02
        push    $UCODE
        mov     access, %ecx
        push    user_accesses(, %ecx, 4)
        mov     $UDATA, %ecx
        mov     %ecx, %ds
        iret
5:
        .endm

# Does the access and prints how it ends, then the entry at `entry`.
try:    mov     target, %edi
        invlpg  (%edi)
        movl    $0xFF, fault_vector
        movl    $92f, check_start
        movl    $93f, recovery
        mov     %esp, recovery_stack
        mov     $0xC3C3C3C3, %eax
92:     access_it
93:     show    v, fault_vector
        mov     entry, %ebx
        mov     (%ebx), %ecx
        cmpl    $14, fault_vector
        jne     1f
        show    e, fault_error
        show    cr2, fault_cr2
        and     $~0x20, %ecx                    # whether a failed walk sets A is up to the processor
1:      show    pte, %ecx
        new_line
        ret

# Every access at both privilege levels, to `target`, whose entry is given in EAX (and EDX with PAE) and stored to
# `entry`.
try_all:
        mov     %eax, entry_value
        mov     %edx, entry_value + 4
        movl    $0, privilege
1:      movl    $0, access
2:      mov     entry, %ebx
        mov     entry_value, %eax
        mov     %eax, (%ebx)
        cmpb    $0, is_pae
        je      3f
        mov     entry_value + 4, %eax
        mov     %eax, 4(%ebx)
3:      mov     section, %esi
        call    put_string
        show    cpl, privilege
        show    access, access
        call    try
        incl    access
        cmpl    $3, access
        jne     2b
        incl    privilege
        cmpl    $2, privilege
        jne     1b
        ret

# The rights of an entry: present, writable, user; with PAE also those that are not executable. Their frame is EBP.
# Both values of WP.
try_rights:
        mov     $2, %ecx
1:      push    %ecx
        mov     %cr0, %eax
        xor     $0x10000, %eax
        mov     %eax, %cr0
        and     $0x10000, %eax
        line    "write protection", wp, %eax
        xor     %edx, %edx
2:      xor     %eax, %eax
3:      push    %eax
        push    %edx
        or      %ebp, %eax
        call    try_all
        pop     %edx
        pop     %eax
        inc     %eax
        cmp     $8, %eax
        jne     3b
        cmpb    $0, is_pae
        je      4f
        xor     $0x80000000, %edx
        jnz     2b
4:      pop     %ecx
        dec     %ecx
        jnz     1b
        ret

main:   movb    $0xC3, test_page
        movb    $0xC3, LARGE
        xor     %ecx, %ecx
        mov     $0x87, %eax
1:      mov     %eax, directory(, %ecx, 4)
        add     $0x400000, %eax
        inc     %ecx
        cmp     $16, %ecx
        jne     1b
        movl    $table + 7, directory + 0x100 * 4
        mov     %cr4, %eax
        or      $0x10, %eax
        mov     %eax, %cr4
        mov     $directory, %eax
        mov     %eax, %cr3
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        jmp     1f
1:
        section "page"
        movl    $WINDOW, target
        movl    $table, entry
        mov     $test_page, %ebp
        call    try_rights
        section "directory"
        movl    $WINDOW + 0x400000, target
        movl    $directory + 0x101 * 4, entry
        movl    $test_page + 7, table
        mov     $table, %ebp
        call    try_rights
        movl    $test_page + 3, table
        mov     $table + 7, %eax
        call    try_all
        movl    $test_page + 5, table
        mov     $table + 7, %eax
        call    try_all
        section "large"
        mov     $LARGE + 0x80, %ebp
        call    try_rights
        section "large, with the bit for PAT"
        mov     $LARGE + 0x1087, %eax
        call    try_all
        section "ignored bits"
        movl    $table, entry
        movl    $WINDOW, target
        mov     $test_page + 0xE07, %eax
        call    try_all
        movl    $LARGE + 0x87 + 0x200000, directory + 0x101 * 4
        check   "reserved bit of a large page"
        mov     WINDOW + 0x400000, %eax
        expect  14, 9
        movl    $0, directory + 0x101 * 4

        say     "what is remembered\n"
        movl    $0xAAAA, test_page + 4
        movl    $0xBBBB, other_page + 4
        movl    $test_page + 7, table
        invlpg  WINDOW
        mov     WINDOW + 4, %eax
        movl    $other_page + 7, table
        invlpg  WINDOW
        check   "invlpg"
        mov     WINDOW + 4, %eax
        report_value
        movl    $test_page + 7, table
        mov     %cr3, %eax
        mov     %eax, %cr3
        check   "cr3"
        mov     WINDOW + 4, %eax
        report_value
        movl    $other_page + 7, table
        mov     %cr0, %eax
        and     $0x7FFFFFFF, %eax
        mov     %eax, %cr0
        or      $0x80000000, %eax
        mov     %eax, %cr0
        check   "paging off and on"
        mov     WINDOW + 4, %eax
        report_value
        movl    $table + 7, directory + 0x102 * 4
        check   "two addresses"
        movl    $0x1234, WINDOW + 0x800004
        mov     WINDOW + 4, %eax
        report_value
        check   "around the end of the address space"
        movl    $table + 7, directory + 0x3FF * 4
        movl    $test_page + 7, table + 0x3FF * 4
        movl    $0x11223344, 0xFFFFFFFC
        mov     0xFFFFFFFC, %eax
        report_value
        check   "an access across it"
        mov     $0xFFFFFFFE, %edi
        mov     directory, %ebx
        mov     (%edi), %ax
        report_value

        # ------------------------------------------------ PAE
        mov     %cr0, %eax
        and     $0x7FFEFFFF, %eax
        mov     %eax, %cr0
        mov     %cr4, %eax
        and     $~0x10, %eax
        or      $0x20, %eax
        mov     %eax, %cr4
        mov     $0xC0000080, %ecx
        rdmsr
        or      $0x800, %eax                    # NXE
        wrmsr
        movb    $1, is_pae
        movl    $pae_low + 1, pae_pointers
        movl    $pae_high + 1, pae_pointers + 8
        xor     %ecx, %ecx
        mov     $0x87, %eax
1:      mov     %eax, pae_low(, %ecx, 8)
        add     $0x200000, %eax
        inc     %ecx
        cmp     $32, %ecx
        jne     1b
        movl    $pae_table + 7, pae_high
        mov     $pae_pointers, %eax
        mov     %eax, %cr3
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        jmp     1f
1:      section "pae page"
        movl    $WINDOW, target
        movl    $pae_table, entry
        mov     $test_page, %ebp
        call    try_rights
        section "pae directory"
        movl    $WINDOW + 0x200000, target
        movl    $pae_high + 8, entry
        movl    $test_page + 7, pae_table
        movl    $0, pae_table + 4
        mov     $pae_table, %ebp
        call    try_rights
        section "pae large"
        mov     $LARGE + 0x80, %ebp
        call    try_rights
        section "pae, nothing in the pointer table"
        movl    $0x80000000, target
        movl    $spare_entry, entry
        xor     %eax, %eax
        xor     %edx, %edx
        call    try_all
        check   "reserved bit of a large page"
        movl    $LARGE + 0x87 + 0x2000, pae_high + 16
        mov     WINDOW + 0x400000, %eax
        expect  14, 9
        check   "reserved bits of a page"
        movl    $test_page + 7, pae_table + 8
        movl    $0x00100000, pae_table + 12
        mov     WINDOW + 0x1000, %eax
        expect  14, 9
        check   "reserved bits of the pointer table"
        movl    $pae_high + 7, pae_pointers + 16
        mov     %cr3, %eax
        mov     %eax, %cr3
        expect  13
        movl    $0, pae_pointers + 16
        mov     $pae_pointers, %eax
        mov     %eax, %cr3
        check   "global pages stay"              # or not: only what must be is asked for
        mov     %cr4, %eax
        or      $0x80, %eax
        mov     %eax, %cr4
        movl    $test_page + 0x107, pae_table
        movl    $0, pae_table + 4
        invlpg  WINDOW
        mov     WINDOW + 4, %eax
        movl    $other_page + 0x107, pae_table
        mov     %cr4, %eax
        and     $~0x80, %eax
        mov     %eax, %cr4
        mov     WINDOW + 4, %eax
        report_value
        mov     %cr0, %eax
        and     $0x7FFFFFFF, %eax
        mov     %eax, %cr0
        ret

        .balign 16
user_read:
        mov     (%edi), %eax
        int     $0x80
user_write:
        mov     %eax, (%edi)
        int     $0x80
user_call:
        call    *%edi
        int     $0x80

        .data
        .balign 8
spare_entry:    .quad 0
entry_value:    .quad 0
target:         .long 0
entry:          .long 0
privilege:      .long 0
access:         .long 0
section:        .long 0
user_accesses:  .long user_read, user_write, user_call
is_pae:         .byte 0

        .bss
        .balign 4096
directory:      .skip 4096
table:          .skip 4096
pae_pointers:   .skip 4096
pae_low:        .skip 4096
pae_high:       .skip 4096
pae_table:      .skip 4096
test_page:      .skip 4096
other_page:     .skip 4096
        .text
