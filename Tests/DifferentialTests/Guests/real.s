# Real mode: 16-bit code, the interrupt vector table, wrapping, limits, and the ways to and from protected mode.

        .include "protected.inc"

        .set    REAL, 0x8000                    # where the 16-bit code is copied to; its segment is REAL / 16
        .set    REAL_STACK, 0x7000

# Runs the 16-bit code at \label and prints how it ended, and the registers.
        .macro  real name:req
        say     "\name"
        call    flush
        movw    $real_\name - real_code, REAL + real_target - real_code
        call    run_real
        .endm

run_real:
        mov     %esp, recovery_stack
        sidt    saved_idt
        lidt    real_idt
        ljmp    $KCODE16, $REAL + real_entry - real_code

# Back from real mode with the registers in place.
real_done:
        mov     $KDATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     %eax, %fs
        mov     %eax, %gs
        mov     recovery_stack, %esp
        lidt    saved_idt
        cld
        .irp    name, vector, ip, cs, flags, sp, ax, bx, cx, dx, si, di, bp, ds, es, ss
        movzwl  REAL + seen_\name - real_code, %eax
        show    \name, %eax
        .endr
        mov     REAL + seen_eax - real_code, %eax
        show    eax, %eax
        new_line
        ret

main:   cld
        mov     $real_code, %esi
        mov     $REAL, %edi
        mov     $real_code_end - real_code, %ecx
        rep movsb
        xor     %edi, %edi                      # the vector table
        mov     $(REAL / 16) << 16, %eax
        add     $real_stubs - real_code, %eax
        mov     $256, %ecx
1:      stosl
        add     $8, %eax
        loop    1b
        .irp    name, nothing, ud2, divide, int3, int_0x42, into, bound, bound_across, limit, limit_push, limit_string, limit_jump, stack_wrap, segments, far_call, far_jump, far_return, iret_flags, popf, pushf, enter, leave, pusha, popa, string_wrap, address_size, operand_size, lgdt, lldt, ltr, lar, arpl, verr, sldt, smsw, lmsw, hlt_off, in_out, xlat, lea, loop, jcxz, les, xchg, sib, bcd, mov_cr0, protected, protected16, big_real, sysenter, syscall, cli_sti, lock, sse, x87, int_limit, cpuid
        real    \name
        .endr
        ret

        .balign 16
        .code16
real_code:
real_entry:                                     # 16-bit protected mode
        mov     $KDATA16, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     %ax, %fs
        mov     %ax, %gs
        mov     %cr0, %eax
        and     $~1, %al
        mov     %eax, %cr0
        ljmp    $REAL / 16, $1f - real_code
1:      xor     %ax, %ax
        mov     %ax, %es
        mov     %ax, %fs
        mov     %ax, %gs
        mov     %ax, %ss
        mov     $REAL_STACK, %esp
        mov     $REAL / 16, %ax
        mov     %ax, %ds
        xor     %eax, %eax
        xor     %ebx, %ebx
        xor     %ecx, %ecx
        xor     %edx, %edx
        xor     %esi, %esi
        xor     %edi, %edi
        xor     %ebp, %ebp
        jmp     *%cs:real_target - real_code
real_target: .word 0

        .macro  done
        int     $0x80
        .endm

real_nothing:   done
real_ud2:       ud2
real_divide:    xor %cx, %cx
                div %cx
real_int3:      int3
real_int_0x42:  int $0x42
real_into:      mov $0x7FFF, %ax
                inc %ax
                into
                done
real_bound:     mov $7, %ax
                bound %ax, real_bounds - real_code
                done
real_bound_across: mov $1, %ax
                bound %ax, 0xFFFE
                done
real_limit:     mov 0xFFFF, %ax
                done
real_limit_push: mov $1, %sp
                push %ax
                done
real_limit_string: mov $0xFFFE, %di
                mov $2, %cx
                mov $0x9000, %bx
                mov %bx, %es
                rep stosl
                done
real_limit_jump: data32 jmp 1f
1:              mov $0x12340, %eax
                done
real_stack_wrap: mov $0, %sp
                mov $0x9000, %bx
                mov %bx, %ss
                push $0x1234
                pop %ax
                mov %sp, %cx
                xor %bx, %bx
                mov %bx, %ss
                mov $REAL_STACK, %sp
                done
real_segments:  mov $0x1234, %ax
                mov %ax, %es
                mov $0xF000, %bx
                mov %bx, %fs
                movw $0x5678, %fs:0xFFFF0 - 0xF0000
                mov %es, %ax
                mov $0xFFFF, %bx                # 0xFFFF0 + 0x3010 is above 1 MiB
                mov %bx, %gs
                movw $0x4321, %gs:0x8010
                mov %gs:0x8010, %cx
                done
real_far_call:  lcall $REAL / 16, $1f - real_code
                done
1:              mov %sp, %bx
                mov %ss:(%bx), %cx
                sub $real_far_call - real_code, %cx
                mov %ss:2(%bx), %dx
                lret
real_far_jump:  ljmp $REAL / 16 - 1, $1f - real_code + 16
1:              done
real_far_return: push $REAL / 16 + 1
                push $1f - real_code - 16
                lret $4
1:              done
real_iret_flags: push $0x7ED7
                push $REAL / 16
                push $1f - real_code
                iret
1:              pushf
                pop %ax
                push $2
                popf
                done
real_popf:      push $0x7ED7
                popf
                pushf
                pop %ax
                push $2
                popf
                done
real_pushf:     pushfl
                pop %eax
                done
real_enter:     mov $0x1111, %bp
                enter $16, $3
                mov %sp, %ax
                done
real_leave:     mov $REAL_STACK - 6, %bp
                leave
                mov %sp, %ax
                done
real_pusha:     mov $0x11, %ax
                mov $0x22, %cx
                pusha
                mov %sp, %bx
                mov %ss:14(%bx), %dx
                mov %ss:6(%bx), %si
                done
real_popa:      mov $REAL_STACK - 32, %sp
                popa
                mov %sp, %ax
                done
real_string_wrap: mov $0x9000, %bx
                mov %bx, %es
                mov $0xFFFF, %di
                mov $0xAA55, %ax
                mov $3, %cx
                rep stosb
                mov %es:1, %al
                mov %es:0xFFFF, %ah
                done
real_address_size: mov $0x12340, %esi
                mov $0x10010, %ebx
                movl $0xCAFEF00D, 0x3000
                mov $0x3000, %ebx
                addr32 mov (%ebx), %eax
                done
real_operand_size: mov $0x12345678, %eax
                mov $0x9999, %ax
                add $0x10000, %eax
                movsx %al, %ebx
                movzx %ax, %ecx
                done
real_lgdt:      sgdt real_scratch - real_code
                mov real_scratch - real_code, %ax
                lgdt real_scratch - real_code
                done
real_lldt:      lldt %ax
real_ltr:       ltr %ax
real_lar:       lar %ax, %bx
real_arpl:      arpl %ax, %bx
real_verr:      verr %ax
real_sldt:      sldt %ax
real_smsw:      smsw %ax
                done
real_lmsw:      mov $0x2A, %ax
                lmsw %ax
                smsw %bx
                mov $0x22, %ax
                lmsw %ax
                done
real_hlt_off:   cli
                done
real_in_out:    mov $0xE9, %dx
                mov $0x21, %al
                out %al, %dx
                done
real_xlat:      mov $real_table - real_code, %bx
                mov $3, %al
                xlat
                done
real_lea:       mov $0xFFF0, %bx
                mov $0x20, %si
                lea 1(%bx,%si), %ax
                lea 1(%bx,%si), %ecx
                addr32 lea 0x12345(%eax,%eax,2), %edx
                done
real_loop:      mov $0x10003, %ecx
1:              inc %ax
                loop 1b
                mov $0x3, %ecx
2:              inc %bx
                addr32 loop 2b
                done
real_jcxz:      mov $0x10000, %ecx
                jcxz 1f
                inc %ax
1:              jecxz 2f
                inc %bx
2:              done
real_les:       les real_pointer - real_code, %bx
                mov %es, %ax
                done
real_xchg:      mov $0x1122, %ax
                xchg %al, %ah
                xchg %ax, %bx
                done
real_sib:       mov $real_table - real_code, %ebp
                addr32 mov %ds:2(%ebp), %al
                addr32 mov 2(%ebp), %ah         # through SS
                done
real_bcd:       mov $0x19, %al
                add $0x28, %al
                daa
                mov %al, %bl
                mov $0x0105, %ax
                sub $0x07, %al
                aas
                done
real_mov_cr0:   mov %cr0, %eax
                mov %eax, %ebx
                done
real_protected: lgdtl %cs:real_gdt - real_code
                mov %cr0, %eax
                or $1, %al
                mov %eax, %cr0
                mov $READ_DATA, %bx
                mov %bx, %fs
                mov %cs, %cx                    # CS is still that of real mode
                mov %cr0, %eax
                and $~1, %al
                mov %eax, %cr0
                mov %fs, %dx
                xor %bx, %bx
                mov %bx, %fs
                done
real_protected16: lgdtl %cs:real_gdt - real_code
                mov %cr0, %eax
                or $1, %al
                mov %eax, %cr0
                ljmp $KCODE16, $REAL + 1f - real_code
1:              mov $SMALL_DATA, %bx
                mov %bx, %fs
                mov %cs, %cx
                mov %cr0, %eax
                and $~1, %al
                mov %eax, %cr0
                ljmp $REAL / 16, $2f - real_code
2:              mov %cs, %dx
                done
real_big_real:  lgdtl %cs:real_gdt - real_code
                mov %cr0, %eax
                or $1, %al
                mov %eax, %cr0
                mov $KDATA, %bx
                mov %bx, %fs
                mov %cr0, %eax
                and $~1, %al
                mov %eax, %cr0
                xor %bx, %bx
                mov $small_area, %esi           # above 64 KiB
                addr32 movl $0x600DF00D, %fs:(%esi)
                addr32 mov %fs:(%esi), %eax
                mov %ax, %cx
                mov %bx, %fs                    # the limit stays
                addr32 mov %fs:(%esi), %eax
                done
real_sysenter:  sysenter
real_syscall:   syscall
real_cli_sti:   sti
                pushf
                cli
                pop %ax
                done
real_lock:      lock incw 0x3000
                .byte 0xF0, 0x89, 0x06, 0x00, 0x30      # lock mov
real_sse:       movups real_table - real_code, %xmm0
                movd %xmm0, %eax
                done
real_x87:       fninit
                fld1
                fistps real_scratch - real_code
                mov real_scratch - real_code, %ax
                done
real_int_limit: lidtl %cs:real_short_idt - real_code
                int $0x42
real_cpuid:     mov $0x40000000, %eax
                cpuid
                xor %eax, %eax
                xor %ebx, %ebx
                xor %ecx, %ecx
                xor %edx, %edx
                done

# A stub for each vector: 8 bytes.
                .balign 8
real_stubs:
        .set    vector, 0
        .rept   256
        .balign 8
        pushw   $vector
        jmp     real_common
        .set    vector, vector + 1
        .endr

real_common:
        popw    %cs:seen_vector - real_code
        popw    %cs:seen_ip - real_code
        popw    %cs:seen_cs - real_code
        popw    %cs:seen_flags - real_code
        .irp    name, ax, bx, cx, dx, si, di, bp, sp, ds, es, ss
        mov     %\name, %cs:seen_\name - real_code
        .endr
        mov     %eax, %cs:seen_eax - real_code
        lgdtl   %cs:real_gdt - real_code
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $KCODE, $real_done

                .balign 4
seen_eax:       .long 0
        .irp    name, vector, ip, cs, flags, ax, bx, cx, dx, si, di, bp, sp, ds, es, ss
seen_\name:    .word 0
        .endr
real_bounds:    .word 8, 10
real_pointer:   .word 0x1234, 0x5678
real_table:     .byte 0x10, 0x21, 0x32, 0x43, 0x54, 0x65, 0x76, 0x87
                .byte 0x98, 0xA9, 0xBA, 0xCB, 0xDC, 0xED, 0xFE, 0x0F
real_scratch:   .skip 16
real_short_idt: .word 0x42 * 4 + 2
                .long 0
real_gdt:       .word gdt_end - gdt - 1
                .long gdt
        .code32

real_code_end:
        .data
        .balign 4
saved_idt:      .skip 8
real_idt:       .word 0x3FF
                .long 0
        .text
