# Every page-fault code: rights of the page and of the directory against WP, SMEP, SMAP, AC, privilege and kind of
# access; reserved bits; large pages; accessed and dirty bits.

        .include "long.inc"

        .set    NX, 1 << 63

# What the lines that follow begin with.
        .macro  section title:req, reserved=0
        movb    $\reserved, is_reserved
        movq    $97f, section
        .pushsection .data
97:     .asciz  "\title"
        .popsection
        .endm

# CR0.WP, CR4.SMEP and CR4.SMAP as the variables say; AC is set by the access itself.
apply_controls:
        mov     %cr0, %rax
        and     $~0x10000, %rax
        cmpl    $0, write_protect
        je      1f
        or      $0x10000, %rax
1:      mov     %rax, %cr0
        mov     %cr4, %rax
        and     $~0x300000, %rax
        cmpl    $0, execution_prevention
        je      1f
        or      $0x100000, %rax
1:      cmpl    $0, access_prevention
        je      1f
        or      $0x200000, %rax
1:      mov     %rax, %cr4
        ret

# Accesses RDI as `access` and `privilege` say.
        .macro  access_it
        cmpl    $0, privilege
        jne     3f
        cmpl    $2, access_prevention
        jne     1f
        stac
1:      cmpl    $1, access
        je      1f
        ja      2f
        mov     (%rdi), %eax
        jmp     5f
1:      mov     %eax, (%rdi)
        jmp     5f
2:      call    *%rdi
        jmp     5f
3:      push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x02
        push    $UCODE
        mov     access, %eax
        mov     user_accesses(, %rax, 8), %rax
        push    %rax
        mov     written, %eax
        iretq
5:
        .endm

# Does the access and prints how it ends, then the entry at RBX.
try:    mov     target, %rdi
        invlpg  (%rdi)
        invlpg  4(%rdi)
        movq    $0xFF, fault_vector
        movq    $92f, check_start
        movq    $93f, recovery
        mov     %rsp, recovery_stack
        mov     written, %eax                   # what a write leaves can be executed
92:     access_it
93:     push    $2
        popfq
        cmpb    $0, is_reserved
        jne     expect_reserved
        show    v, fault_vector
        cmpq    $14, fault_vector
        jne     1f
        show    e, fault_error
        show    cr2, fault_cr2
1:      mov     entry, %rbx
        mov     (%rbx), %rax
        cmpq    $14, fault_vector
        jne     2f
        and     $~0x20, %rax                    # whether a failed walk sets A is up to the processor
2:      show    pte, %rax
        new_line
        ret

# For reserved bits, which QEMU reports without P: says whether the code is right.
expect_reserved:
        mov     privilege, %eax
        shl     $2, %eax
        or      $9, %eax
        cmpl    $1, access
        jb      2f
        mov     $2, %ecx
        je      1f
        mov     fetch_bit, %ecx
1:      or      %ecx, %eax
2:      cmp     fault_error, %rax
        jne     3f
        cmpq    $14, fault_vector
        jne     3f
        mov     target, %rax
        cmp     fault_cr2, %rax
        jne     3f
        say     " as expected\n"
        ret
3:      show    v, fault_vector
        show    e, fault_error
        show    cr2, fault_cr2
        new_line
        ret

# Every access at both privilege levels, to `target`, whose entry is given in RAX and stored to `entry`.
try_all:
        mov     %rax, entry_value
        movl    $0, privilege
1:      movl    $0, access
2:      mov     entry, %rbx
        mov     entry_value, %rax
        mov     %rax, (%rbx)
        mov     section, %rsi
        call    put_string
        say     " wp"
        mov     write_protect, %eax
        call    put_number
        mov     execution_prevention, %eax
        call    put_number
        mov     access_prevention, %eax
        call    put_number
        say     " cpl"
        mov     privilege, %eax
        call    put_number
        say     " access"
        mov     access, %eax
        call    put_number
        call    try
        incl    access
        cmpl    $3, access
        jne     2b
        incl    privilege
        cmpl    $2, privilege
        jne     1b
        ret

# The sixteen rights of an entry: present, writable, user, not executable. Their frame is RBP.
try_rights:
        xor     %r12d, %r12d
1:      mov     %r12d, %eax
        and     $7, %eax
        test    $8, %r12d
        jz      2f
        mov     $NX, %rcx
        or      %rcx, %rax
2:      or      %rbp, %rax
        call    try_all
        inc     %r12d
        cmp     $16, %r12d
        jne     1b
        ret

main:   movb    $0xC3, test_page
        movb    $0xC3, large_page
        movq    $WINDOW, target
        movq    $window_table, entry
        mov     $test_page, %ebp

        section "rights of a page against the control registers"
1:      call    apply_controls
        call    try_rights
        incl    write_protect
        cmpl    $2, write_protect
        jne     1b
        movl    $0, write_protect
        incl    execution_prevention
        cmpl    $2, execution_prevention
        jne     1b
        movl    $0, execution_prevention
        incl    access_prevention
        cmpl    $3, access_prevention
        jne     1b
        movl    $0, access_prevention
        movl    $1, write_protect
        call    apply_controls

        section "rights of the directory's entry"
        movq    $window_table + 7, window_directory + 8
        movq    $WINDOW + 0x200000, target
        xor     %r13d, %r13d
1:      mov     directory_rights(, %r13, 8), %rax
        or      $window_table, %rax
        mov     %rax, window_directory + 8
        line    "directory", entry, %rax
        call    try_rights
        inc     %r13d
        cmp     $6, %r13d
        jne     1b

        section "large pages"
        movq    $window_directory + 8, entry
        mov     $large_page + 0x80, %ebp
        call    try_rights
        section "with the bit for PAT"
        mov     $large_page + 0x1087, %eax
        call    try_all
        section "reserved bits in a large page's address", 1
        mov     $large_page + 0x2087, %eax
        call    try_all
        mov     $large_page + 0x100087, %eax
        call    try_all

        section "pages of 1 GiB"
        movq    $pdpt + 16, entry
        mov     $0x80000000 + large_page, %eax
        mov     %rax, target
        mov     $0x80, %ebp
        call    try_rights
        section "reserved bits in the address", 1
        mov     $0x2087, %eax
        call    try_all
        mov     $0x20000087, %eax
        call    try_all
        movq    $0, pdpt + 16

        section "reserved address bits", 1
        movq    $window_table, entry
        movq    $WINDOW, target
        movabs  $test_page + 7 + (1 << 51), %rax
        call    try_all
        section "reserved bits of an absent page"
        movabs  $test_page + 6 + (1 << 51), %rax
        call    try_all
        section "in the directory", 1
        movq    $window_directory + 16, entry
        movq    $WINDOW + 0x400000, target
        movabs  $window_table + 7 + (1 << 51), %rax
        call    try_all
        section "large in the highest table", 1
        movq    $pml4 + 8, entry
        movabs  $0x8000000000 + WINDOW, %rax
        mov     %rax, target
        mov     $pdpt + 0x87, %eax
        call    try_all
        section "not large in the highest table"
        mov     $pdpt + 7, %eax
        call    try_all
        movq    $0, pml4 + 8

        section "ignored bits of a page"
        movq    $window_table, entry
        movq    $WINDOW, target
        movabs  $test_page + 7 + (0x7FF << 52) + 0xE00, %rax
        call    try_all

        section "without NXE"
        mov     $0xC0000080, %ecx
        rdmsr
        and     $~0x800, %eax
        wrmsr
        mov     $test_page + 7, %eax
        call    try_all
        movabs  $test_page + 6 + (1 << 63), %rax
        call    try_all
        section "NX without NXE", 1
        movl    $0, fetch_bit                   # nor with SMEP
        movabs  $test_page + 7 + (1 << 63), %rax
        call    try_all
        movabs  $test_page + 1 + (1 << 63), %rax
        call    try_all
        movl    $0x10, fetch_bit
        mov     $0xC0000080, %ecx
        rdmsr
        or      $0x800, %eax
        wrmsr

        section "accesses across pages"
        movl    $0xC3C3F390, written            # nop; repz ret, which lies in both pages
        movl    $0xC3C3F390, test_page + 0xFFE
        movw    $0xC3C3, test_page
        movq    $window_table + 8, entry
        movq    $test_page + 7, window_table
        xor     %r12d, %r12d
1:      movq    $WINDOW + 0xFFE, target
        mov     %r12d, %eax
        or      $test_page, %eax
        call    try_all
        inc     %r12d
        cmp     $8, %r12d
        jne     1b
        movq    $window_table, entry
        movq    $test_page + 7, window_table + 8
        xor     %r12d, %r12d
1:      movq    $WINDOW + 0xFFE, target
        mov     %r12d, %eax
        or      $test_page, %eax
        call    try_all
        inc     %r12d
        cmp     $8, %r12d
        jne     1b
        ret

        .data
        .balign 8
target:         .quad 0
entry:          .quad 0
entry_value:    .quad 0
write_protect:  .long 0
execution_prevention: .long 0
access_prevention: .long 0                      # 2: with AC set
privilege:      .long 0
fetch_bit:      .long 0x10                      # of the error code; needs NXE or SMEP
section:        .quad 0
written:        .long 0xC3C3C3C3                # two or four returns
is_reserved:    .byte 0
                .balign 8
access:         .long 0                         # read, write, execute
user_accesses:  .quad USER + user_read - user_start, USER + user_write - user_start, USER + user_call - user_start
directory_rights: .quad 7, 5, 3, 6, 7 + NX, 1 + NX

        .section .user
user_read:
        mov     (%rdi), %eax
        int     $0x80
user_write:
        mov     %eax, (%rdi)
        int     $0x80
user_call:
        call    *%rdi
        int     $0x80

        .bss
        .balign 4096
test_page:      .skip 4096
        .balign 0x200000
large_page:     .skip 0x200000
        .text
