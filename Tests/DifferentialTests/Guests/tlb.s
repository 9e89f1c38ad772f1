# What a changed page table means, and when: INVLPG, CR3, CR4.PGE, PCIDs, INVPCID, CR0.WP; accessed and dirty bits set
# again. Only what the manual promises is asked for.

        .include "long.inc"

        .set    A, 0xAAAA
        .set    B, 0xBBBB

# The page table entry at \entry names \page.
        .macro  map entry:req, page:req, flags=3
        movq    $\page + \flags, \entry
        .endm

# Reads through the mapping, so that it may be remembered.
        .macro  look address=WINDOW
        mov     $\address, %edi
        mov     (%rdi), %eax
        .endm

main:   movl    $A, page_a
        movl    $B, page_b
        movl    $A, large_a
        movl    $B, large_b

        check   "invlpg"
        map     window_table, page_a
        look
        map     window_table, page_b
        invlpg  (%rdi)
        look
        report_value
        check   "invlpg of another byte of the page"
        map     window_table, page_a
        invlpg  0xFFF(%rdi)
        look
        report_value
        check   "cr3"
        map     window_table, page_b
        mov     %cr3, %rax
        mov     %rax, %cr3
        look
        report_value
        check   "global pages, invlpg"
        map     window_table, page_a, 0x103
        invlpg  (%rdi)
        look
        map     window_table, page_b, 0x103
        invlpg  (%rdi)
        look
        report_value
        check   "global pages, cr4"
        map     window_table, page_a, 0x103
        mov     %cr4, %rax
        btc     $7, %rax
        mov     %rax, %cr4
        btc     $7, %rax
        mov     %rax, %cr4
        look
        report_value
        check   "a global page that is none any more"
        map     window_table, page_b, 3
        invlpg  (%rdi)
        look
        map     window_table, page_a, 3
        mov     %cr3, %rax
        mov     %rax, %cr3
        look
        report_value
        check   "paging structures, cr3"
        movq    $other_table + 7, window_directory
        map     other_table, page_b
        mov     %cr3, %rax
        mov     %rax, %cr3
        look
        report_value
        check   "paging structures, invlpg"
        movq    $window_table + 7, window_directory
        invlpg  (%rdi)
        look
        report_value
        check   "an absent page that is there now"
        movq    $0, window_table
        invlpg  (%rdi)
        look
        report
        check   "without any invalidation"
        map     window_table, page_b
        look
        report_value
        check   "large page"
        movq    $large_a + 0x83, window_directory + 8
        look    WINDOW+0x200000
        mov     $WINDOW + 0x3FF000, %esi
        mov     (%rsi), %ecx                    # another fragment
        movq    $large_b + 0x83, window_directory + 8
        invlpg  (%rsi)
        look    WINDOW+0x200000
        report_value
        check   "large page becomes small ones"
        movq    $other_table + 7, window_directory + 8
        map     other_table, page_a
        invlpg  (%rdi)
        look    WINDOW+0x200000
        report_value
        check   "page of 1 GiB"
        movq    $0x83, pdpt + 16
        mov     $0x80000000 + large_a, %edi
        mov     (%rdi), %eax
        mov     $0x80000000 + page_b, %esi
        mov     (%rsi), %ecx
        shl     $16, %ecx
        or      %ecx, %eax
        report_value
        check   "page of 1 GiB, gone"
        movq    $0, pdpt + 16
        mov     $0xBF000000, %ecx
        invlpg  (%rcx)
        mov     (%rdi), %eax
        report
        check   "and its other fragment"
        mov     (%rsi), %eax
        report

        check   "write protection follows cr0"
        map     window_table, page_a, 1
        mov     $WINDOW, %edi
        invlpg  (%rdi)
        mov     (%rdi), %eax
        mov     %cr0, %rax
        btr     $16, %rax
        mov     %rax, %cr0
        movl    $0x1111, (%rdi)
        mov     (%rdi), %eax
        report_value
        check   "on again"
        mov     %cr0, %rax
        bts     $16, %rax
        mov     %rax, %cr0
        movl    $0x2222, (%rdi)
        report
        mov     %cr0, %rax
        btr     $16, %rax
        mov     %rax, %cr0
        movl    $A, page_a
        check   "smap follows cr4"
        map     window_table, page_a, 7
        invlpg  (%rdi)
        mov     (%rdi), %ecx
        mov     %cr4, %rax
        bts     $21, %rax
        mov     %rax, %cr4
        mov     (%rdi), %eax
        report
        check   "stac"
        stac
        mov     (%rdi), %eax
        report_value
        check   "clac"
        clac
        mov     (%rdi), %eax
        report
        check   "popf sets ac"
        push    $0x40002
        popfq
        mov     (%rdi), %eax
        push    $2
        popfq
        report_value
        check   "smap off"
        mov     %cr4, %rax
        btr     $21, %rax
        mov     %rax, %cr4
        look
        report_value
        check   "smep follows cr4"
        movb    $0xC3, page_a + 16
        lea     16(%rdi), %rsi
        call    *%rsi
        mov     %cr4, %rax
        bts     $20, %rax
        mov     %rax, %cr4
        call    *%rsi
        report
        mov     %cr4, %rax
        btr     $20, %rax
        mov     %rax, %cr4
        check   "no-execute follows the entry"
        call    *%rsi
        movabs  $page_a + 7 + (1 << 63), %rax
        mov     %rax, window_table
        invlpg  (%rdi)
        call    *%rsi
        report

        check   "accessed again"
        map     window_table, page_a, 7
        invlpg  (%rdi)
        look
        mov     window_table, %rbx
        andq    $~0x60, window_table
        invlpg  (%rdi)
        look
        mov     window_table, %rax
        shl     $32, %rbx
        or      %rbx, %rax
        report_value
        check   "dirty only when written"
        mov     window_table, %rbx
        movl    $A, (%rdi)
        mov     window_table, %rax
        and     $0xFFF, %ebx
        and     $0xFFF, %eax
        shl     $16, %rbx
        or      %rbx, %rax
        report_value
        check   "dirty again"
        andq    $~0x60, window_table
        invlpg  (%rdi)
        movl    $A, (%rdi)
        mov     window_table, %rax
        and     $0xFFF, %eax
        report_value
        check   "dirty by exchange, lock and rmw"
        xor     %ebx, %ebx
        .irp    instruction, "xchg %ecx, 64(%rdi)", "lock incl 64(%rdi)", "addl $1, 64(%rdi)", "cmpxchg %ecx, 64(%rdi)", "btsl $3, 64(%rdi)", "movnti %ecx, 64(%rdi)", "movaps %xmm0, 64(%rdi)", "fistpl 64(%rdi)"
        andq    $~0x60, window_table
        invlpg  (%rdi)
        \instruction
        shl     $4, %rbx
        mov     window_table, %eax
        shr     $5, %eax
        and     $3, %eax
        or      %rax, %rbx
        .endr
        mov     %rbx, %rax
        report_value
        check   "directories are accessed"
        andq    $~0x20, window_directory
        andq    $~0x20, pdpt + 8
        andq    $~0x20, pml4
        mov     %cr3, %rax
        mov     %rax, %cr3
        look
        mov     window_directory, %eax
        and     $0xFF, %eax
        mov     pdpt + 8, %ebx
        and     $0xFF, %ebx
        shl     $8, %ebx
        or      %ebx, %eax
        mov     pml4, %ebx
        and     $0xFF, %ebx
        shl     $16, %ebx
        or      %ebx, %eax
        report_value
        check   "large pages: accessed and dirty"
        movq    $large_a + 0x83, window_directory + 8
        mov     $WINDOW + 0x200000, %esi
        invlpg  (%rsi)
        mov     (%rsi), %ecx
        mov     window_directory + 8, %ebx
        movl    $A, (%rsi)
        mov     window_directory + 8, %eax
        and     $0xFFF, %eax
        and     $0xFFF, %ebx
        shl     $16, %ebx
        or      %ebx, %eax
        report_value
        check   "the table maps itself"         # a store through the mapping changes the mapping
        movq    $window_table + 3, window_table + 16
        mov     $WINDOW + 0x2000, %esi
        invlpg  (%rsi)
        map     window_table, page_a
        look
        movq    $page_b + 3, (%rsi)
        invlpg  (%rdi)
        look
        report_value

        # ------------------------------------------------ PCIDs, which QEMU does not have
        # Two address spaces, which differ in the page at WINDOW.
        mov     $pml4, %esi
        mov     $other_pml4, %edi
        mov     $512, %ecx
        rep movsq
        mov     $pdpt, %esi
        mov     $other_pdpt, %edi
        mov     $512, %ecx
        rep movsq
        movq    $other_pdpt + 7, other_pml4
        movq    $other_directory + 7, other_pdpt + 8
        movq    $other_table + 7, other_directory
        map     window_table, page_a
        map     other_table, page_b
        movabs  $(1 << 63) + pml4 + 1, %r12
        movabs  $(1 << 63) + other_pml4 + 2, %r13
        mov     $WINDOW, %edi
        check_manual "two address spaces"
        mov     $pml4, %eax
        mov     %rax, %cr3
        mov     %cr4, %rax
        bts     $17, %rax
        mov     %rax, %cr4
        mov     $20, %ecx
1:      mov     %r12, %cr3
        cmpl    $A, (%rdi)
        jne     8f
        mov     %r13, %cr3
        cmpl    $B, (%rdi)
        jne     8f
        loop    1b
        jmp     9f
8:      ud2
9:      expect_manual 0xFF
        check_manual "a page changed while the other address space was in use, cr3"
        mov     %r12, %cr3
        cmpl    $A, (%rdi)
        jne     8f
        mov     %r13, %cr3
        map     window_table, page_b
        mov     %r12, %rax
        btr     $63, %rax
        mov     %rax, %cr3
        cmpl    $B, (%rdi)
        jne     8f
        mov     %r13, %cr3
        cmpl    $B, (%rdi)
        je      9f
8:      ud2
9:      expect_manual 0xFF
        check_manual "invlpg is for the current address space and global pages"
        mov     %r12, %cr3
        map     window_table, page_a
        invlpg  (%rdi)
        cmpl    $A, (%rdi)
        je      9f
        ud2
9:      expect_manual 0xFF
        .macro  invalidate type:req, pcid:req
        movq    $\pcid, invalidation
        movq    $WINDOW, invalidation + 8
        mov     $\type, %eax
        invpcid invalidation, %rax
        .endm
        .macro  check_invpcid title:req, type:req, pcid:req
        check_manual "\title"
        mov     %r12, %cr3
        map     window_table, page_a
        invlpg  (%rdi)
        cmpl    $A, (%rdi)
        jne     8f
        mov     %r13, %cr3
        map     window_table, page_b
        invalidate \type, \pcid
        mov     %r12, %cr3
        cmpl    $B, (%rdi)
        je      9f
8:      ud2
9:      expect_manual 0xFF
        .endm
        check_invpcid "invpcid of an address", 0, 1
        check_invpcid "invpcid of an address space", 1, 1
        check_invpcid "invpcid of all", 2, 0
        check_invpcid "invpcid of all but global pages", 3, 0
        check_manual "invpcid of a type that is none"
        invalidate 4, 0
        expect_manual 13
        check_manual "invpcid with reserved bits"
        invalidate 0, 0x1001
        expect_manual 13
        check_manual "invpcid of a non-canonical address"
        movabs  $0x800000000000, %rax
        mov     %rax, invalidation + 8
        movq    $1, invalidation
        xor     %eax, %eax
        invpcid invalidation, %rax
        expect_manual 13
        check_manual "global pages reach every address space"
        map     window_table, page_a, 0x103
        map     other_table, page_a, 0x103
        mov     %r12, %cr3
        invlpg  (%rdi)
        cmpl    $A, (%rdi)
        jne     8f
        map     window_table, page_b, 0x103
        map     other_table, page_b, 0x103
        mov     %r13, %cr3
        invlpg  (%rdi)
        mov     %r12, %cr3
        cmpl    $B, (%rdi)
        je      9f
8:      ud2
9:      expect_manual 0xFF
        check_manual "pcids off, and on with another address space"
        mov     $pml4, %eax
        mov     %rax, %cr3
        mov     %cr4, %rax
        btr     $17, %rax
        mov     %rax, %cr4
        expect_manual 0xFF
        ret

        .data
        .balign 16
invalidation:   .quad 0, 0

        .bss
        .balign 4096
page_a:         .skip 4096
page_b:         .skip 4096
other_table:    .skip 4096
other_directory: .skip 4096
other_pdpt:     .skip 4096
other_pml4:     .skip 4096
        .balign 0x200000
large_a:        .skip 0x200000
large_b:        .skip 0x200000
        .text
