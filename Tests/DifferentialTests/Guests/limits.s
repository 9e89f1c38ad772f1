# Limits of segments, which QEMU does not check: the guest knows what the manual says.

        .include "protected.inc"

# An access of \size bytes through ES = \selector at \address by \code, valid for first…last.
        .macro  through selector:req, address:req, size:req, first:req, last:req, code:vararg
        check   "\selector \address \code"
        mov     $\selector, %eax
        mov     %eax, %es
        mov     $\address, %ebx
        \code
        .if     (\address >= \first) && (\address + \size - 1 <= \last)
        expect  0xFF
        .else
        expect  13
        .endif
        mov     $KDATA, %eax
        mov     %eax, %es
        .endm

        .macro  probe_limits selector:req, address:req, first:req, last:req
        through \selector, \address, 1, \first, \last, movb %es:(%ebx), %al
        through \selector, \address, 2, \first, \last, movw %es:(%ebx), %ax
        through \selector, \address, 4, \first, \last, movl %es:(%ebx), %eax
        through \selector, \address, 1, \first, \last, movb %al, %es:(%ebx)
        through \selector, \address, 4, \first, \last, movl %eax, %es:(%ebx)
        through \selector, \address, 8, \first, \last, movq %es:(%ebx), %xmm0
        through \selector, \address, 16, \first, \last, movups %es:(%ebx), %xmm0
        through \selector, \address, 4, \first, \last, lock addl %eax, %es:(%ebx)
        through \selector, \address, 10, \first, \last, fldt %es:(%ebx)
        .endm

# An instruction on the stack \selector:\pointer, valid or a stack fault.
        .macro  on_stack selector:req, pointer:req, vector:req, code:vararg
        check   "stack \selector \pointer \code"
        mov     $\selector, %ecx
        mov     $\pointer, %edx
        mov     $0x2000, %ebp
        mov     %ecx, %ss
        mov     %edx, %esp
        \code
        mov     $KDATA, %ecx
        mov     %ecx, %ss
        mov     recovery_stack, %esp
        expect  \vector
        .endm

main:   fninit
        mov     $small_area, %edi               # wherever a machine without the checks goes, it says so
        mov     $0x80CD80CD, %eax
        mov     $0x1000, %ecx
        rep stosl
        .irp    address, 0, 0xFF0, 0xFF1, 0xFF6, 0xFF7, 0xFF8, 0xFFC, 0xFFD, 0xFFE, 0xFFF, 0x1000, 0xFFFFFFF0, 0xFFFFFFFC, 0xFFFFFFFF
        probe_limits SMALL_DATA, \address, 0, 0xFFF
        fninit
        .endr
        .irp    address, 0, 0x200FF0, 0x200FFE, 0x200FFF, 0x201000, 0x300000
        probe_limits DOWN_DATA, \address, 0x201000, 0xFFFFFFFF
        fninit
        .endr
        .irp    address, 0, 0xFFE, 0xFFF, 0x1000, 0xFFF0, 0xFFF1, 0xFFFC, 0xFFFD, 0xFFFF, 0x10000
        probe_limits DOWN_DATA16, \address, 0x1000, 0xFFFF
        fninit
        .endr
        .irp    address, 0xFFF8, 0xFFFC, 0xFFFE, 0xFFFF, 0x10000
        probe_limits KDATA16, \address, 0, 0xFFFF
        fninit
        .endr
        check   "stos across the limit"
        mov     $SMALL_DATA, %eax
        mov     %eax, %es
        mov     $0xFF8, %edi
        mov     $4, %ecx
        rep stosl
        expect  13
        line    "ecx after it", ecx, %ecx
        line    "edi after it", edi, %edi
        check   "movs across the limit"
        mov     $SMALL_DATA, %eax
        mov     %eax, %es
        mov     $0xFFD, %edi
        mov     $0x3000, %esi
        mov     $8, %ecx
        rep movsb
        expect  13
        line    "ecx after it", ecx, %ecx
        check   "scas across the limit"
        mov     $SMALL_DATA, %eax
        mov     %eax, %es
        mov     $0xFFE, %edi
        mov     $0x12345678, %eax
        mov     $8, %ecx
        repne scasw
        expect  13
        line    "ecx after it", ecx, %ecx
        mov     $KDATA, %eax
        mov     %eax, %es

        check   "jump to an address beyond the limit"
        ljmp    $SMALL_CODE, $0x1000
        expect  13
        check   "execution across the limit"
        movw    $0x9090, small_area + 0xFFE
        movw    $0x80CD, small_area + 0x1000    # where a machine without the check arrives
        ljmp    $SMALL_CODE, $0xFFE
        expect  13
        check   "an instruction across the limit"
        movb    $0xB8, small_area + 0xFFE
        movw    $0x80CD, small_area + 0x1003
        ljmp    $SMALL_CODE, $0xFFE
        expect  13
        check   "jump beyond the limit from inside"
        movl    $0x010000E9, small_area         # jmp near by 64 KiB
        movb    $0, small_area + 4
        movw    $0x80CD, small_area + 0x10005
        ljmp    $SMALL_CODE, $0
        expect  13
        check   "return beyond the limit from inside"
        movb    $0xC3, small_area
        push    $0x10005
        ljmp    $SMALL_CODE, $0
        expect  13
        check   "call through memory beyond the limit from inside"
        movl    $0x5005FF2E, small_area         # call *%cs:address
        movw    $0x15FF, small_area
        movl    $far_offset, small_area + 2
        ljmp    $SMALL_CODE, $0
        expect  13

        mov     $small_area + 0xFC0, %edi
        mov     $kernel_probe, %eax
        mov     $0x20, %ecx
        rep stosl
        movl    $KCODE, small_area + 0x1000
        on_stack SMALL_STACK, 0x800, 12, mov 0x1000(%esp), %eax
        on_stack SMALL_STACK, 0x800, 12, mov (%ebp), %eax
        on_stack SMALL_STACK, 0x800, 12, mov %eax, (%ebp)
        on_stack SMALL_STACK, 0x800, 13, mov %es:small_area, %eax; mov $SMALL_DATA, %ecx; mov %ecx, %es; mov %es:(%ebp), %eax
        mov     $KDATA, %eax
        mov     %eax, %es
        on_stack SMALL_STACK, 0xFFE, 12, pop %eax
        on_stack SMALL_STACK, 0xFFF, 12, popw %ax
        on_stack SMALL_STACK, 0x1000, 12, ret
        on_stack SMALL_STACK, 0xFFC, 12, lret
        on_stack SMALL_STACK, 0xFF8, 12, iret
        on_stack SMALL_STACK, 0xFF0, 12, popa
        on_stack SMALL_STACK, 0x800, 12, leave
        on_stack SMALL_STACK, 0x800, 12, popl (%ebp)
        on_stack SMALL_STACK, 0x800, 12, pushl (%ebp)
        on_stack SMALL_STACK, 0x1000, 0xFF, push %eax
        on_stack SMALL_STACK, 0x1000, 0xFF, pusha
        on_stack SMALL_STACK, 0x800, 0xFF, enter $8, $0
        ret

kernel_probe:   int $0x80

        .data
far_offset:     .long 0x10005
        .text
