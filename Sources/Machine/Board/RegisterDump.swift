import KVMInterface

/// The registers of a vCPU as text, for the user who has to find out why it ended.
enum RegisterDump {
    /// The dump, of several lines; says so if the registers cannot be read.
    static func text(of vcpu: VCPU) -> String {
        do {
            let general = try vcpu.registers()
            let special = try vcpu.specialRegisters()
            return text(id: vcpu.id, general, special)
        } catch {
            return "vCPU \(vcpu.id): the registers cannot be read: \(error)"
        }
    }

    static func text(id: UInt32, _ r: GeneralRegisters, _ s: SpecialRegisters) -> String {
        func row(_ registers: (name: String, value: UInt64)...) -> String {
            "  " + registers.map { "\($0.name)=\(hexadecimal($0.value, digits: 16))" }.joined(separator: " ")
        }
        func segment(_ name: String, _ value: SegmentState) -> String {
            let mode = value.l != 0 ? "64" : value.db != 0 ? "32" : "16"
            return "  \(name) =\(hexadecimal(UInt64(value.selector), digits: 4)) "
                + "base=\(hexadecimal(value.base, digits: 16)) limit=\(hexadecimal(UInt64(value.limit), digits: 8)) "
                + "type=\(hexadecimal(UInt64(value.type), digits: 1)) dpl=\(value.dpl) "
                + (value.unusable != 0 || value.present == 0 ? "unusable" : "\(mode)-bit")
        }
        func table(_ name: String, _ value: DescriptorTableState) -> String {
            "  \(name)=base \(hexadecimal(value.base, digits: 16)) limit \(hexadecimal(UInt64(value.limit), digits: 4))"
        }
        return [
            "vCPU \(id):",
            row(("RAX", r.rax), ("RBX", r.rbx), ("RCX", r.rcx), ("RDX", r.rdx)),
            row(("RSI", r.rsi), ("RDI", r.rdi), ("RBP", r.rbp), ("RSP", r.rsp)),
            row(("R8 ", r.r8), ("R9 ", r.r9), ("R10", r.r10), ("R11", r.r11)),
            row(("R12", r.r12), ("R13", r.r13), ("R14", r.r14), ("R15", r.r15)),
            row(("RIP", r.rip), ("RFL", r.rflags)),
            segment("CS", s.cs), segment("SS", s.ss), segment("DS", s.ds), segment("ES", s.es),
            segment("FS", s.fs), segment("GS", s.gs), segment("TR", s.tr), segment("LD", s.ldt),
            table("GDT", s.gdt), table("IDT", s.idt),
            row(("CR0", s.cr0), ("CR2", s.cr2), ("CR3", s.cr3), ("CR4", s.cr4)),
            row(("EFR", s.efer), ("CR8", s.cr8), ("APC", s.apic_base))
        ].joined(separator: "\n")
    }

    private static func hexadecimal(_ value: UInt64, digits: Int) -> String {
        let text = String(value, radix: 16)
        return String(repeating: "0", count: max(0, digits - text.count)) + text
    }
}
