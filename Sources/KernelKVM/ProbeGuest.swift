import Addressing
import CHost
import Host
import KVMInterface
import SystemPackage

/// The guest that a KVM is tried with: a loop in kernel mode, vector instructions there, the way to user mode, the loop
/// once more, and the way back.
///
/// It takes the number of rounds of each loop from a port, and writes what it has computed to it; 0 rounds mean to go on.
final class ProbeGuest {
    /// What went wrong, as the end of a sentence.
    struct Failure: Error { var reason: String }

    let vcpu: VCPU
    private let machine: VirtualMachine
    /// Lives longer than the machine.
    private let memory: Memory

    private static var byteCount: Int { 0x8000 }
    private static var port: UInt64 { 0x10 }

    // Where things are; the page tables map the first 2 MiB to where they are, for user mode too.
    private static var pageTables: Int { 0x1000 }
    private static var descriptorTable: Int { 0x4000 }
    private static var code: Int { 0x5000 }
    private static var stackEnd: UInt64 { 0x7000 }

    private static var kernelCode: UInt16 { 0x8 }
    private static var kernelData: UInt16 { 0x10 }
    private static var userData: UInt16 { 0x1B }
    private static var userCode: UInt16 { 0x23 }

    private static var program: [UInt8] {
        let loop: [UInt8] = [
            0xED,  // in eax,dx
            0x89, 0xC1,  // mov ecx,eax
            0x85, 0xC9,  // test ecx,ecx
            0x74, 0x11,  // jz behind the loop
            0x48, 0x69, 0xC0, 0xFD, 0x43, 0x03, 0x00,  // imul rax,rax,0x343FD
            0x48, 0x01, 0xC8,  // add rax,rcx
            0xFF, 0xC9,  // dec ecx
            0x75, 0xF2,  // jnz to imul
            0xEF,  // out dx,eax
            0xEB, 0xE8  // jmp to in
        ]
        let vectors: [UInt8] = [
            0x66, 0x48, 0x0F, 0x6E, 0xC2,  // movq xmm0,rdx
            0x66, 0x0F, 0xEF, 0xC9,  // pxor xmm1,xmm1
            0x66, 0x0F, 0xD4, 0xC1,  // paddq xmm0,xmm1
            0x66, 0x48, 0x0F, 0x7E, 0xC0,  // movq rax,xmm0
            0xEF  // out dx,eax
        ]
        let toUser: [UInt8] = [
            0x6A, UInt8(userData),  // push ss
            0x68, 0x00, 0x70, 0x00, 0x00,  // push rsp
            0x68, 0x02, 0x30, 0x00, 0x00,  // push rflags: ports are allowed (IOPL 3)
            0x6A, UInt8(userCode),  // push cs
            0x48, 0x8D, 0x05, 0x03, 0x00, 0x00, 0x00,  // lea rax,[behind iretq]
            0x50,  // push rax
            0x48, 0xCF  // iretq
        ]
        let back: [UInt8] = [
            0xBB, 0x34, 0x12, 0x00, 0x00,  // mov ebx,0x1234
            0x0F, 0x05  // syscall
        ]
        return loop + vectors + toUser + loop + back
    }

    /// Where SYSCALL leads: CS and what user mode left in RBX go to the port.
    private static var entry: [UInt8] {
        [
            0x8C, 0xC8,  // mov eax,cs
            0xC1, 0xE0, 0x10,  // shl eax,16
            0x01, 0xD8,  // add eax,ebx
            0xEF  // out dx,eax
        ]
    }

    /// Makes a machine of one vCPU that stands before its first instruction.
    init(_ system: KVMSystem) throws(Errno) {
        memory = try Memory(byteCount: Self.byteCount)
        machine = try system.createVM()
        try machine.setUserMemoryRegion(
            UserMemoryRegion(
                slot: 0, flags: 0, guest_phys_addr: 0, memory_size: UInt64(Self.byteCount),
                userspace_addr: UInt64(UInt(bitPattern: memory.bytes.baseAddress))))
        vcpu = try machine.createVCPU(id: 0)
        try vcpu.setCPUID(try system.supportedCPUID())
        fillMemory()
        try enter()
    }

    private func fillMemory() {
        let bytes = memory.bytes
        // Present, writable, for user mode; the last one maps 2 MiB.
        for (index, entry) in [0x2007, 0x3007, 0x87].enumerated() {
            bytes.storeBytes(of: UInt64(entry), toByteOffset: Self.pageTables + index * 4096, as: UInt64.self)
        }
        // Flat segments: kernel code, kernel data, user data, user code.
        let descriptors: [UInt64] = [
            0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF
        ]
        for (index, descriptor) in descriptors.enumerated() {
            bytes.storeBytes(of: descriptor, toByteOffset: Self.descriptorTable + index * 8, as: UInt64.self)
        }
        for (index, byte) in (Self.program + Self.entry).enumerated() { bytes[Self.code + index] = byte }
    }

    private func enter() throws(Errno) {
        func segment(_ selector: UInt16, isCode: Bool) -> SegmentState {
            SegmentState(
                base: 0, limit: 0xFFFF_FFFF, selector: selector, type: isCode ? 11 : 3, present: 1, dpl: 0,
                db: isCode ? 0 : 1, s: 1, l: isCode ? 1 : 0, g: 1, avl: 0, unusable: 0, padding: 0)
        }
        var special = try vcpu.specialRegisters()
        special.cs = segment(Self.kernelCode, isCode: true)
        let data = segment(Self.kernelData, isCode: false)
        (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data)
        special.gdt.base = UInt64(Self.descriptorTable)
        special.gdt.limit = 5 * 8 - 1
        special.cr0 = 0x8000_0033  // PG, NE, ET, MP, PE
        special.cr3 = UInt64(Self.pageTables)
        special.cr4 = 0x620  // OSXMMEXCPT, OSFXSR, PAE
        special.efer = 0x501  // LMA, LME, SCE
        try vcpu.setSpecialRegisters(special)
        let entry = UInt64(Self.code + Self.program.count)
        let star = UInt64(Self.kernelCode) << 32
        let registers = [MSREntry(0xC000_0081, star), MSREntry(0xC000_0082, entry), MSREntry(0xC000_0084, 0)]
        guard try vcpu.setMSRs(registers) == registers.count else { throw .invalidArgument }
        var general = try vcpu.registers()
        general.rip = UInt64(Self.code)
        general.rsp = Self.stackEnd
        general.rflags = 2
        general.rdx = Self.port
        try vcpu.setRegisters(general)
    }

    // MARK: Running

    /// Lets the guest loop `count` times, in the mode that it is in.
    /// - Returns: how long that took, with one way into the guest and one out of it, in nanoseconds.
    func loop(_ count: UInt32) throws(Failure) -> UInt64 {
        try answer(count)
        let start = MonotonicClock.nanoseconds()
        let value = try output()
        let end = MonotonicClock.nanoseconds()
        guard value == martlet_count_loop(count) else { throw Failure(reason: "computes wrongly") }
        return end - start
    }

    /// Goes on from kernel mode to user mode.
    func goToUserMode() throws(Failure) {
        try answer(0)
        guard try output() == UInt32(Self.port) else { throw Failure(reason: "computes wrongly with vectors") }
    }

    /// Goes back from user mode to kernel mode by a system call.
    func returnToKernelMode() throws(Failure) {
        try answer(0)
        guard try output() == UInt32(Self.kernelCode) << 16 + 0x1234 else {
            throw Failure(reason: "does system calls wrongly")
        }
    }

    private func answer(_ value: UInt32) throws(Failure) {
        guard case .io(let access) = try run(), !access.isWrite else { throw Failure(reason: describe()) }
        access.value = value
    }

    private func output() throws(Failure) -> UInt32 {
        guard case .io(let access) = try run(), access.isWrite else { throw Failure(reason: describe()) }
        return access.value
    }

    private func run() throws(Failure) -> VCPUExit {
        do {
            while true {
                let exit = try vcpu.run()
                // Somebody else's signal is no answer.
                if case .interrupted = exit, !vcpu.immediateExit { continue }
                return exit
            }
        } catch {
            throw Failure(reason: "refuses to run a guest (\(error))")
        }
    }

    /// Why the vCPU stands where it should not.
    private func describe() -> String {
        let offset = (try? vcpu.registers().rip).map { "0x" + String($0 &- UInt64(Self.code), radix: 16) } ?? "?"
        let place = "at \(offset) of the probe guest"
        switch vcpu.runArea.exit {
        case .internalError(let suberror, _):
            return "cannot execute the instruction \(place) (KVM_EXIT_INTERNAL_ERROR, suberror \(suberror))"
        case .failEntry(let reason, _):
            return "cannot enter a guest (KVM_EXIT_FAIL_ENTRY, reason 0x\(String(reason, radix: 16)))"
        case .shutdown: return "shuts a guest down for no reason (\(place))"
        default: return "leaves a guest for no reason (exit \(vcpu.runArea.run.pointee.exit_reason) \(place))"
        }
    }

    /// The guest's memory.
    private final class Memory {
        private let mapping: MemoryMapping
        var bytes: UnsafeMutableRawBufferPointer {
            UnsafeMutableRawBufferPointer(start: mapping.baseAddress, count: mapping.byteCount)
        }

        init(byteCount: Int) throws(Errno) { mapping = try MemoryMapping.anonymous(byteCount: byteCount) }
    }
}
