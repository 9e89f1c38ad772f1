import Testing
import Translator
import X86

/// Faults, devices, privilege and model-specific registers.
@Suite struct InstructionsGuestTests {
    private let machine: BareMachine
    private var processor: Processor { machine.processor }

    init() throws {
        machine = try BareMachine()
        machine.enterLongMode(at: 0x8000, stack: 0x7000)
        // Nothing is mapped from 6 MiB to 8 MiB; memory ends at 16 MiB, and devices follow.
        (machine.ram + 0x3000 + 3 * 8).storeBytes(of: 0, as: UInt64.self)
    }

    /// Executes the instruction `bytes`, and returns the fault it ends with.
    private func execute(_ bytes: [UInt8], size: Decoder.CodeSize = .bits64) -> GuestFault? {
        let decoder = Decoder()
        defer { decoder.destroy() }
        let outcome = bytes.withUnsafeBytes {
            decoder.decode($0.baseAddress!, byteCount: bytes.count, size: size)
        }
        guard case .instruction(let instruction) = outcome else {
            Issue.record("cannot decode \(bytes)")
            return nil
        }
        do throws(GuestFault) {
            let isKnown = try processor.executeInstruction(instruction)
            #expect(isKnown)
            return nil
        } catch {
            return error
        }
    }

    private func byte(_ address: Int) -> UInt8 { (machine.ram + address).load(as: UInt8.self) }

    // MARK: Faults

    @Test func repeatedMoveStopsAtTheFault() {
        for i in 0..<64 { (machine.ram + 0x9000 + i).storeBytes(of: UInt8(i + 1), as: UInt8.self) }
        processor.state[.rsi] = 0x9000
        processor.state[.rdi] = 0x5F_FFF0
        processor.state[.rcx] = 64
        #expect(execute([0xF3, 0xA4]) == .exception(.pageFault(address: 0x60_0000, code: 2)))
        #expect(processor.state.rip == 0x8000)
        #expect(processor.state[.rcx] == 48)
        #expect(processor.state[.rsi] == 0x9010)
        #expect(processor.state[.rdi] == 0x60_0000)
        #expect(byte(0x5F_FFFF) == 16)
    }

    @Test func elementAcrossTheFaultIsNotWritten() {
        processor.state[.rax] = ~0
        processor.state[.rdi] = 0x5F_FFEC
        processor.state[.rcx] = 5
        #expect(execute([0xF3, 0x48, 0xAB]) == .exception(.pageFault(address: 0x60_0000, code: 2)))
        #expect(processor.state[.rcx] == 3)
        #expect(processor.state[.rdi] == 0x5F_FFFC)
        #expect(byte(0x5F_FFFB) == 0xFF)
        #expect(byte(0x5F_FFFC) == 0)
    }

    @Test func backwardMoveStopsAtTheFault() {
        processor.state.systemFlags |= RFlags.direction
        processor.state[.rsi] = 0x9100
        processor.state[.rdi] = 0x80_000C
        processor.state[.rcx] = 10
        #expect(execute([0xF3, 0xA5]) == .exception(.pageFault(address: 0x7F_FFFC, code: 2)))
        #expect(processor.state[.rcx] == 6)
        #expect(processor.state[.rdi] == 0x7F_FFFC)
        #expect(processor.state[.rsi] == 0x90F0)
    }

    @Test func popToMemoryKeepsTheStackPointerOnAFault() {
        processor.state[.rdi] = 0x60_0000
        #expect(execute([0x8F, 0x07]) == .exception(.pageFault(address: 0x60_0000, code: 2)))
        #expect(processor.state[.rsp] == 0x7000)
    }

    @Test func enterKeepsRegistersOnAFault() {
        processor.state[.rsp] = 0x80_0008
        processor.state[.rbp] = 0x9100
        #expect(execute([0xC8, 0x10, 0x00, 0x02]) == .exception(.pageFault(address: 0x7F_FFF8, code: 2)))
        #expect(processor.state[.rsp] == 0x80_0008)
        #expect(processor.state[.rbp] == 0x9100)
    }

    @Test func branchesCheckTheirTarget() {
        processor.state[.rax] = 1 << 47
        #expect(execute([0xFF, 0xE0]) == .generalProtection())
        #expect(execute([0xFF, 0xD0]) == .generalProtection())
        #expect(processor.state[.rsp] == 0x7000)
        (machine.ram + 0x7000).storeBytes(of: 1 << 63, as: UInt64.self)
        #expect(execute([0xC3]) == .generalProtection())
        #expect(processor.state[.rsp] == 0x7000)
        #expect(processor.state.rip == 0x8000)
    }

    @Test func gatherRecordsWhatIsDone() {
        // vgatherdps xmm0, [rdi+xmm3*4], xmm2
        processor.state[.rdi] = 0x5F_FF00
        for i in 0..<4 {
            processor.state.vectorRegister(3).storeBytes(of: UInt32(i * 32), toByteOffset: i * 4, as: UInt32.self)
            processor.state.vectorRegister(2).storeBytes(of: 0x8000_0000, toByteOffset: i * 4, as: UInt32.self)
        }
        for i in 0..<2 { (machine.ram + 0x5F_FF00 + i * 128).storeBytes(of: UInt32(i + 7), as: UInt32.self) }
        #expect(execute([0xC4, 0xE2, 0x69, 0x92, 0x04, 0x9F]) == .exception(.pageFault(address: 0x60_0000, code: 0)))
        #expect(processor.state.vectorRegister(0).load(as: UInt64.self) == 8 << 32 | 7)
        #expect(processor.state.vectorRegister(2).load(as: UInt64.self) == 0)
        #expect(processor.state.vectorRegister(2).load(fromByteOffset: 8, as: UInt64.self) == ~0)
    }

    @Test func maskedStoreWritesAllOrNothing() {
        // vmaskmovps [rdi], xmm2, xmm1
        processor.state[.rdi] = 0x5F_FFF8
        for i in 0..<4 {
            processor.state.vectorRegister(1).storeBytes(of: ~0, toByteOffset: i * 4, as: UInt32.self)
            processor.state.vectorRegister(2).storeBytes(of: ~0, toByteOffset: i * 4, as: UInt32.self)
        }
        let store: [UInt8] = [0xC4, 0xE2, 0x69, 0x2E, 0x0F]
        #expect(execute(store) == .exception(.pageFault(address: 0x60_0000, code: 2)))
        #expect(byte(0x5F_FFF8) == 0)
        processor.state.vectorRegister(2).storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
        #expect(execute(store) == nil)
        #expect(byte(0x5F_FFFF) == 0xFF)
    }

    @Test func extendedStateChecks() {
        processor.state[.rdi] = 0x9008
        #expect(execute([0x0F, 0xAE, 0x07]) == .generalProtection())
        processor.state[.rdi] = 0x9010
        #expect(execute([0x0F, 0xAE, 0x07]) == nil)
        #expect(execute([0x0F, 0xAE, 0x27]) == .generalProtection())
        processor.system.cr0 |= CR0.taskSwitched
        #expect(execute([0x0F, 0xAE, 0x07]) == .exception(.deviceNotAvailable))
        processor.system.cr4 &= ~CR4.xsave
        #expect(execute([0x0F, 0xAE, 0x27]) == .invalidOpcode)
    }

    // MARK: Devices

    @Test func repeatedStoreToADevice() {
        machine.load([0xF3, 0xAA, 0xF4], at: 0x8000)
        processor.state[.rax] = 0x5A
        processor.state[.rdi] = 0x100_0000
        processor.state[.rcx] = 3
        for i in UInt64(0)..<3 {
            let request = ClientRequest.mmioWrite(address: 0x100_0000 + i, byteCount: 1, value: 0x5A)
            #expect(processor.run() == .needsClient(request))
            #expect(processor.state.rip == 0x8000)
            #expect(processor.state[.rcx] == 3 - i)
            processor.answerClientRead(0)
        }
        #expect(processor.run() == .halted)
        #expect(processor.state[.rdi] == 0x100_0003)
    }

    @Test func repeatedPortInput() {
        machine.load([0xF3, 0x66, 0x6D, 0xF4], at: 0x8000)
        processor.state[.rdx] = 0x1F0
        processor.state[.rdi] = 0x9FFF
        processor.state[.rcx] = 2
        for i in 0..<2 {
            #expect(processor.run() == .needsClient(.portIn(port: 0x1F0, byteCount: 2)))
            #expect(processor.state[.rcx] == UInt64(2 - i))
            processor.answerClientRead(UInt64(0x1234 + i))
        }
        #expect(processor.run() == .halted)
        #expect((machine.ram + 0x9FFF).loadUnaligned(as: UInt32.self) == 0x1235_1234)
        // The memory is checked before the port is read.
        processor.state[.rdi] = 0x60_0000
        processor.state[.rcx] = 1
        processor.state.rip = 0x8000
        #expect(execute([0xF3, 0x66, 0x6D]) == .exception(.pageFault(address: 0x60_0000, code: 2)))
    }

    @Test func storesOverTranslatedCode() {
        // rep stosb turns the UD2 into NOPs before it is reached.
        machine.load([0xEB, 0x00, 0xF3, 0xAA, 0xEB, 0x02, 0xF4, 0x90, 0x0F, 0x0B, 0xF4], at: 0x8000)
        processor.state[.rax] = 0x90
        processor.state[.rdi] = 0x8008
        processor.state[.rcx] = 2
        #expect(processor.run() == .halted)
        #expect(processor.state.rip == 0x800B)
    }

    @Test func lockedBitOperationOnTranslatedCode() {
        // lock btr [rdi], eax makes HLT (F4) of the CMC (F5) that comes next.
        machine.load([0xF0, 0x0F, 0xB3, 0x07, 0xEB, 0x00, 0xF5, 0x0F, 0x0B], at: 0x8000)
        processor.state[.rdi] = 0x8006
        processor.state[.rax] = 0
        #expect(processor.run() == .halted)
        #expect(processor.state.rip == 0x8007)
        #expect(byte(0x8006) == 0xF4)
    }

    // MARK: Privilege

    @Test func portPermissions() {
        processor.system.cpl = 3
        let out: [UInt8] = [0xEE]
        processor.state[.rdx] = 0x3F9
        // No usable task state.
        processor.system.tr = Segment(selector: 0, base: 0xA000, limit: 0x66, attributes: 0x8B)
        #expect(execute(out) == .generalProtection())
        // A bitmap at 104 that allows 3F8–3FF except 3FC.
        (machine.ram + 0xA066).storeBytes(of: 104, as: UInt16.self)
        for i in 0..<0x200 { (machine.ram + 0xA068 + i).storeBytes(of: 0xFF, as: UInt8.self) }
        (machine.ram + 0xA068 + 0x7F).storeBytes(of: 0x10, as: UInt8.self)
        processor.system.tr.limit = 0x67 + 0x80
        #expect(execute(out) == .generalProtection())
        processor.system.tr.limit = 0x67 + 0x81
        #expect(execute(out) == .needsClient)
        processor.state[.rdx] = 0x3FC
        #expect(execute(out) == .generalProtection())
        // A doubleword touches the forbidden port, and one that starts at 3FF the next byte.
        processor.state[.rdx] = 0x3F9
        #expect(execute([0xEF]) == .generalProtection())
        processor.state[.rdx] = 0x3FD
        #expect(execute([0x66, 0xEF]) == .needsClient)
        processor.state[.rdx] = 0x3FF
        #expect(execute([0x66, 0xEF]) == .generalProtection())
        processor.state.systemFlags |= RFlags.ioPrivilege
        #expect(execute([0x66, 0xEF]) == .needsClient)
    }

    @Test func timeStampPermissions() {
        processor.system.cpl = 3
        #expect(execute([0x0F, 0x31]) == nil)
        processor.system.cr4 |= CR4.timeStampDisable
        #expect(execute([0x0F, 0x31]) == .generalProtection())
        #expect(execute([0x0F, 0x01, 0xF9]) == .generalProtection())
        processor.system.cpl = 0
        processor.system.tscAux = 0x1234
        #expect(execute([0x0F, 0x01, 0xF9]) == nil)
        #expect(processor.state[.rcx] == 0x1234)
    }

    // MARK: Model-specific registers

    @Test func baseRegisters() throws {
        let register = MSR.fsBase
        processor.state[.rcx] = UInt64(register)
        processor.state[.rax] = 0xFFFF_FFFF_8765_4321
        processor.state[.rdx] = 0xFFFF_FFFF_FFFF_8888
        #expect(execute([0x0F, 0x30]) == nil)
        #expect(processor.state.segmentBase(.fs) == 0xFFFF_8888_8765_4321)
        #expect(processor.system.fs.base == 0xFFFF_8888_8765_4321)
        #expect(execute([0x0F, 0x32]) == nil)
        #expect(processor.state[.rax] == 0x8765_4321)
        #expect(processor.state[.rdx] == 0xFFFF_8888)
        for register in [MSR.fsBase, MSR.gsBase, MSR.kernelGSBase, MSR.lstar, MSR.cstar] {
            #expect(throws: GuestFault.generalProtection()) { try processor.writeMSR(register, 1 << 47) }
            try processor.writeMSR(register, 1 << 46)
            #expect(try processor.readMSR(register) == 1 << 46)
        }
        // Processors differ in what these take.
        for register in [MSR.sysenterESP, MSR.sysenterEIP] {
            try processor.writeMSR(register, 1 << 47)
            #expect(try processor.readMSR(register) == 0xFFFF_8000_0000_0000)
        }
        processor.system.cpl = 3
        #expect(execute([0x0F, 0x32]) == .generalProtection())
    }

    @Test func timeStampRegisters() throws {
        try processor.writeMSR(MSR.timeStampCounter, 1 << 60)
        let distance = processor.timeStamp &- 1 << 60
        #expect(distance < 1 << 40)
        let adjust = try processor.readMSR(MSR.tscAdjust)
        #expect(adjust == processor.system.tscOffset)
        try processor.writeMSR(MSR.tscAdjust, adjust &+ 1 << 50)
        #expect(processor.system.tscOffset == adjust &+ 1 << 50)
        // A client restores registers in any order.
        try processor.writeMSR(MSR.tscAdjust, 5, by: .client)
        #expect(processor.system.tscOffset == adjust &+ 1 << 50)
    }

    @Test func registersThatOnlyTheClientSets() throws {
        for register in [MSR.architecturalCapabilities, MSR.platformInformation, MSR.amdErrataCount] {
            #expect(throws: GuestFault.generalProtection()) { try processor.writeMSR(register, 9) }
            try processor.writeMSR(register, 9, by: .client)
            #expect(try processor.readMSR(register) == 9)
        }
        try processor.writeMSR(MSR.microcodeRevision, 0)
        #expect(try processor.readMSR(MSR.microcodeRevision) != 0)
        try processor.writeMSR(MSR.featureControl, 1)
        #expect(throws: GuestFault.generalProtection()) { try processor.writeMSR(MSR.featureControl, 0) }
    }

    @Test func unknownRegisters() {
        #expect(throws: GuestFault.generalProtection()) { try processor.readMSR(0xC000_FFFF) }
        #expect(throws: GuestFault.generalProtection()) { try processor.writeMSR(0xC000_FFFF, 0) }
        #expect(throws: GuestFault.generalProtection()) { try processor.writeMSR(MSR.pageAttributeTable, 3) }
        #expect(throws: GuestFault.generalProtection()) { try processor.writeMSR(0x200, 1 << 36) }
    }
}
