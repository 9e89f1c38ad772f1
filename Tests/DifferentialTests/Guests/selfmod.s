# Code that changes itself: by every kind of store, in its own block and page, through other mappings, across pages,
# and code whose page tables change.

        .include "long.inc"

# Calls the code at `scratch_code`, which `mov $…, %eax; ret` or another instruction fills, and prints RAX.
        .macro  run title:req
        check   "\title"
        call    scratch_code
        report_value
        .endm
# The next instruction's immediate, changed by \code; a jump in between, as the manual asks for.
        .macro  change_next title:req, code:vararg
        check   "\title"
        mov     $95f + 1, %edi
        mov     $0x22222222, %eax
        mov     $0x33333333, %ecx
        \code
        jmp     95f
95:     mov     $0x11111111, %eax
        report_value
        .endm
# The same twice, so that what was translated runs again.
        .macro  change_loop title:req, code:vararg
        check   "\title"
        xor     %ebx, %ebx
        mov     $2, %ebp
94:     mov     $95f + 1, %edi
        mov     %ebp, %ecx
        \code
        jmp     95f
95:     mov     $0x00000000, %eax
        add     %rax, %rbx
        inc     %ebp
        cmp     $40, %ebp
        jne     94b
        mov     %rbx, %rax
        report_value
        .endm

main:   movb    $0xB8, scratch_code
        movl    $1, scratch_code + 1
        movb    $0xC3, scratch_code + 5
        run     "made"
        movl    $2, scratch_code + 1
        run     "changed"
        movb    $3, scratch_code + 2
        run     "changed, a byte"
        movw    $0xC390, scratch_code + 5
        run     "changed, two bytes"
        mov     $scratch_code, %edi
        mov     $replacement, %esi
        mov     $replacement_end - replacement, %ecx
        rep movsb
        run     "copied"
        mov     $0xC3C3C3C3, %eax
        mov     $scratch_code, %edi
        mov     $4, %ecx
        rep stosl
        run     "filled"
        mov     $0xC3C00148C0FF48, %rax         # inc, and add to itself
        mov     %rax, scratch_code
        run     "eight bytes"

        change_next "mov", mov %eax, (%rdi)
        change_next "mov, a byte", mov %al, 2(%rdi)
        change_next "xor", xor %eax, (%rdi)
        change_next "lock add", lock add %eax, (%rdi)
        change_next "xchg", xchg %ecx, (%rdi)
        change_next "cmpxchg that fails", lock cmpxchg %ecx, (%rdi)
        change_next "movnti", movnti %eax, (%rdi)
        change_next "stos", stosl
        change_next "bts", btsl $5, (%rdi)
        change_next "setc", setnc (%rdi)
        change_next "sse", call store_sse
        change_next "x87", call store_x87
        change_next "push", call store_push
        change_next "call", call store_call
        change_loop "loop", mov %ecx, (%rdi)
        change_loop "loop, rep movs", call copy_count
        change_loop "loop, from afar", call set_count

        # ------------------------------------------------ blocks that lead to what changes
        check   "a jump that changes its target"
        xor     %eax, %eax
        mov     $30, %ebp
1:      xorb    $3f - 2f, 4f + 1                # to and fro
        jmp     4f
4:      jmp     2f
2:      add     $1, %eax
        jmp     5f
        .skip   16
3:      add     $0x100, %eax
5:      dec     %ebp
        jnz     1b
        report_value
        check   "a conditional jump that turns"
        xor     %eax, %eax
        mov     $30, %ebp
1:      xorb    $1, 4f                          # je, jne
        cmp     %eax, %eax
        jmp     4f
4:      je      2f
        add     $0x100, %eax
        jmp     5f
2:      add     $1, %eax
5:      dec     %ebp
        jnz     1b
        report_value
        check   "an opcode in the middle of a loop"
        xor     %eax, %eax
        mov     $30, %ebp
1:      inc     %eax
        inc     %eax
4:      .byte   0xFF, 0xC0                      # inc eax, dec eax
        xorb    $8, 4b + 1
        dec     %ebp
        jnz     1b
        report_value

        # ------------------------------------------------ mappings
        movb    $0xB8, scratch_code
        movl    $1, scratch_code + 1
        movb    $0xC3, scratch_code + 5
        movq    $scratch_code + 3, window_table
        movq    $scratch_code + 3, window_table + 8
        call    scratch_code
        check   "through another address"
        movl    $7, WINDOW + 1
        cpuid                                   # which a write through another address needs
        call    scratch_code
        report_value
        check   "run at another address"
        mov     $WINDOW, %ecx
        call    *%rcx
        report_value
        check   "both changed at once"
        movl    $9, scratch_code + 1
        xor     %eax, %eax
        cpuid
        mov     $WINDOW, %ecx
        call    *%rcx
        mov     %eax, %ebx
        mov     $WINDOW + 0x1000, %ecx
        call    *%rcx
        shl     $8, %ebx
        add     %ebx, %eax
        report_value
        check   "rip-relative at two addresses"
        mov     $0xC300001000058B, %rax         # mov 0x1000(%rip), %eax; ret
        mov     %rax, scratch_code
        movq    $page_one + 3, window_table + 8
        movq    $page_two + 3, window_table + 24
        movq    $scratch_code + 3, window_table + 16
        invlpg  WINDOW + 0x1000
        movl    $0x1111, page_one + 6
        movl    $0x2222, page_two + 6
        xor     %eax, %eax
        cpuid
        mov     $WINDOW, %ecx
        call    *%rcx
        mov     %eax, %ebx
        mov     $WINDOW + 0x2000, %ecx
        call    *%rcx
        shl     $16, %eax
        add     %ebx, %eax
        report_value
        check   "another page at the same address"
        movl    $0xC3C0FF, page_one             # inc eax
        movl    $0xC3C8FF, page_two             # dec eax
        mov     $WINDOW + 0x1000, %ecx
        mov     $0x100, %ebx
        mov     $10, %ebp
1:      movq    $page_one + 3, window_table + 8
        invlpg  WINDOW + 0x1000
        mov     %ebx, %eax
        call    *%rcx
        call    *%rcx
        mov     %eax, %ebx
        movq    $page_two + 3, window_table + 8
        invlpg  WINDOW + 0x1000
        mov     %ebx, %eax
        call    *%rcx
        mov     %eax, %ebx
        dec     %ebp
        jnz     1b
        mov     %ebx, %eax
        report_value
        check   "another page at the same address, in user mode"
        movl    $0x80CDC0, page_one + 1         # inc eax; int 0x80
        movl    $0x80CDC8, page_two + 1
        movq    $page_one + 7, window_table + 8
        invlpg  WINDOW + 0x1000
        mov     $5, %eax
        push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x02
        push    $UCODE
        push    $WINDOW + 0x1000
        iretq
        report_user
        check   "another page behind it"
        movq    $page_two + 7, window_table + 8
        invlpg  WINDOW + 0x1000
        mov     $5, %eax
        push    $UDATA
        push    $USER_STACK + 0x1000
        push    $0x02
        push    $UCODE
        push    $WINDOW + 0x1000
        iretq
        report_user

        # ------------------------------------------------ across pages
        movq    $page_one + 3, window_table
        movq    $page_two + 3, window_table + 8
        invlpg  WINDOW
        invlpg  WINDOW + 0x1000
        mov     $WINDOW + 0xFFD, %ecx
        movb    $0xB8, page_one + 0xFFD
        movw    $0x1111, page_one + 0xFFE
        movl    $0xC31111, page_two
        check   "across pages"
        call    *%rcx
        report_value
        check   "across pages, the second changed"
        movb    $0x22, page_two
        xor     %eax, %eax
        cpuid
        mov     $WINDOW + 0xFFD, %ecx
        call    *%rcx
        report_value
        check   "across pages, the first changed"
        movb    $0x33, page_one + 0xFFE
        xor     %eax, %eax
        cpuid
        mov     $WINDOW + 0xFFD, %ecx
        call    *%rcx
        report_value
        check   "across pages, another second page"
        movl    $0xC35555, page_three
        movq    $page_three + 3, window_table + 8
        invlpg  WINDOW + 0x1000
        call    *%rcx
        report_value
        check   "across pages, no second page"
        movq    $0, window_table + 8
        invlpg  WINDOW + 0x1000
        mov     $WINDOW + 0xFFD, %ecx
        call    *%rcx
        report
        check   "across pages, a store across them"
        movq    $page_two + 3, window_table + 8
        invlpg  WINDOW + 0x1000
        mov     $WINDOW + 0xFFD, %ecx
        call    *%rcx
        movl    $0x77777777, 1(%rcx)
        jmp     1f
1:      call    *%rcx
        report_value

        # ------------------------------------------------ stacks and tables that hold code
        check   "a stack that grows over code"
        mov     $0xC3C0FF48C0FF48, %rax         # inc rax, twice; ret
        mov     %rax, page_one + 0x800
        mov     $page_one + 0x800, %ecx
        mov     $1, %eax
        call    *%rcx
        mov     %rsp, %rbx
        mov     $page_one + 0x808, %esp
        mov     $0xC3C8FF48C8FF48, %rdx         # dec rax
        push    %rdx
        mov     %rbx, %rsp
        jmp     1f
1:      call    *%rcx
        call    *%rcx
        report_value
        check   "execution in a page that the processor writes to"
        movq    $page_one + 7, window_table + 16        # its entry's accessed bit
        mov     $page_one + 0x800, %ecx
        mov     $10, %ebp
        mov     $0x100, %eax
1:      call    *%rcx
        mov     %eax, page_one + 0x900
        mov     %ebp, page_one + 0x7FC
        dec     %ebp
        jnz     1b
        report_value
        ret

replacement:
        mov     $0x5678, %eax
        bswap   %eax
        ret
replacement_end:

store_sse:
        movd    %eax, %xmm0
        movss   %xmm0, (%rdi)
        ret
store_x87:
        mov     %eax, scratch
        flds    scratch
        fstps   (%rdi)
        ret
store_push:
        mov     %rsp, %rdx
        lea     4(%rdi), %rsp
        mov     -4(%rdi), %ebx                  # what is in front of it stays
        shl     $32, %rax
        or      %rbx, %rax
        push    %rax
        mov     %rdx, %rsp
        mov     $0x22222222, %eax
        ret
store_call:                                     # its return address, and what was there before
        mov     %rsp, %rdx
        mov     -4(%rdi), %ebx
        lea     4(%rdi), %rsp
        mov     -4(%rdi), %esi
        call    1f
1:      mov     %rdx, %rsp
        mov     %esi, -4(%rdi)
        movl    $0x44444444, (%rdi)
        ret
copy_count:
        mov     %ecx, scratch
        mov     $scratch, %esi
        mov     $4, %ecx
        rep movsb
        ret
        .skip   4096
set_count:
        mov     %ecx, (%rdi)
        ret

        .data
        .balign 8
scratch:        .quad 0, 0

        .bss
        .balign 4096
scratch_code:   .skip 4096
page_one:       .skip 4096
page_two:       .skip 4096
page_three:     .skip 4096
        .text
