import CHost
import Interrupts
import KVMInterface
import Translator
import X86

extension UserspaceVCPU {
    /// Hands the client's answer to the access of the last exit to the processor.
    func answerPendingAccess() {
        guard let access = pendingAccess else { return }
        pendingAccess = nil
        switch access {
        case .portInString(_, let byteCount, let count):
            processor.answerClientReads(count: count) { index in
                littleEndian(at: Limits.portDataOffset + index * byteCount, byteCount)
            }
        case .msrRead, .msrWrite:
            let answer = runArea.run.pointee.msr
            processor.answerClientMSR(answer.data, isRefused: answer.error != 0)
        default:
            processor.answerClientRead(answer(to: access))
        }
    }

    private func answer(to access: ClientRequest) -> UInt64 {
        switch access {
        case .portIn(_, let byteCount):
            return littleEndian(at: Limits.portDataOffset, byteCount)
        case .mmioRead(_, let byteCount):
            return littleEndian(at: Self.mmioDataOffset, byteCount)
        case .portOut, .mmioWrite, .portInString, .msrRead, .msrWrite:
            return 0
        }
    }

    /// Fills the exit fields.
    func describe(_ access: ClientRequest) {
        let run = runArea.run
        switch access {
        case .portIn(let port, let byteCount):
            describePort(port, byteCount, direction: KVM_EXIT_IO_IN)
        case .portInString(let port, let byteCount, let count):
            describePort(port, byteCount, direction: KVM_EXIT_IO_IN)
            run.pointee.io.count = UInt32(count)
        case .portOut(let port, let byteCount, let value):
            describePort(port, byteCount, direction: KVM_EXIT_IO_OUT)
            store(UInt64(value), at: Limits.portDataOffset, byteCount)
        case .mmioRead(let address, let byteCount):
            counters.mmioExits.increment()
            run.pointee.exit_reason = UInt32(KVM_EXIT_MMIO)
            run.pointee.mmio.phys_addr = address
            run.pointee.mmio.len = UInt32(byteCount)
            run.pointee.mmio.is_write = 0
        case .mmioWrite(let address, let byteCount, let value):
            counters.mmioExits.increment()
            run.pointee.exit_reason = UInt32(KVM_EXIT_MMIO)
            run.pointee.mmio.phys_addr = address
            run.pointee.mmio.len = UInt32(byteCount)
            run.pointee.mmio.is_write = 1
            store(value, at: Self.mmioDataOffset, byteCount)
        case .msrRead(let index, let reason):
            describeMSR(index, 0, reason, KVM_EXIT_X86_RDMSR)
        case .msrWrite(let index, let value, let reason):
            describeMSR(index, value, reason, KVM_EXIT_X86_WRMSR)
        }
    }

    private func describeMSR(_ index: UInt32, _ value: UInt64, _ reason: MSRRefusal, _ exit: Int32) {
        let run = runArea.run
        run.pointee.exit_reason = UInt32(exit)
        run.pointee.msr.error = 0
        run.pointee.msr.pad = (0, 0, 0, 0, 0, 0, 0)
        run.pointee.msr.reason = reason.rawValue
        run.pointee.msr.index = index
        run.pointee.msr.data = value
    }

    private func describePort(_ port: UInt16, _ byteCount: Int, direction: Int32) {
        let run = runArea.run
        counters.portExits.increment()
        run.pointee.exit_reason = UInt32(KVM_EXIT_IO)
        run.pointee.io.direction = UInt8(direction)
        run.pointee.io.size = UInt8(byteCount)
        run.pointee.io.port = port
        run.pointee.io.count = 1
        run.pointee.io.data_offset = UInt64(Limits.portDataOffset)
    }

    /// Fills the fields of a debugger's exit.
    func describeDebug(vector: UInt8, dr6: UInt64) {
        let run = runArea.run
        run.pointee.debug.arch.exception = UInt32(vector)
        run.pointee.debug.arch.pc = processor.system.cs.base &+ processor.state.rip
        run.pointee.debug.arch.dr6 = dr6
        run.pointee.debug.arch.dr7 = processor.breakpoints.control
    }

    /// Fills the fields of an emulation failure, with the bytes at RIP where they can be read.
    /// > Concurrency: the owner, inside.
    func describeEmulationFailure() {
        let run = runArea.run
        run.pointee.internal.suberror = UInt32(KVM_INTERNAL_ERROR_EMULATION)
        let bytes = processor.readableBytes(processor.system.cs.base &+ processor.state.rip, maximumCount: 15)
        // Flags, the count of bytes, and the bytes, in units of 8 bytes.
        run.pointee.emulation_failure.ndata = bytes.isEmpty ? 1 : 3
        run.pointee.emulation_failure.flags =
            bytes.isEmpty ? 0 : UInt64(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
        run.pointee.emulation_failure.insn_size = UInt8(bytes.count)
        withUnsafeMutableBytes(of: &run.pointee.emulation_failure.insn_bytes) { target in
            for index in target.indices { target[index] = index < bytes.count ? bytes[index] : 0 }
        }
    }

    /// Fills what every exit tells.
    func publishRunState() {
        let run = runArea.run
        let flags = processor.state.systemFlags
        run.pointee.if_flag = flags & RFlags.interrupt != 0 ? 1 : 0
        run.pointee.cr8 = UInt64(taskPriority)
        run.pointee.apic_base = apic?.base ?? clientAPICBase
        run.pointee.flags = processor.system.systemManagement.isActive ? UInt16(KVM_RUN_X86_SMM) : 0
        let isReady = router?.pic != nil || isReadyForInjection && pendingAccess == nil
        run.pointee.ready_for_interrupt_injection = isReady ? 1 : 0
        if run.pointee.kvm_valid_regs != 0 { storeSynchronizedRegisters() }
    }

    /// `kvm_run.mmio.data`.
    private static var mmioDataOffset: Int { 40 }

    private func littleEndian(at offset: Int, _ byteCount: Int) -> UInt64 {
        (0..<byteCount).reversed().reduce(0) { $0 << 8 | UInt64(runArea.bytes[offset + $1]) }
    }

    private func store(_ value: UInt64, at offset: Int, _ byteCount: Int) {
        for index in 0..<byteCount {
            runArea.bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
        }
    }
}
