import CHost
import Glibc
import Host
import Interrupts
import Translator
import X86

extension UserspaceVCPU: ProcessorPlatform {
    // MARK: Devices of the core

    func readMMIO(_ address: UInt64, byteCount: Int) -> UInt64? {
        guard let apic else { return nil }
        if let offset = apic.pageOffset(of: address) {
            noticeTaskPriorityAccess(offset: offset, isWrite: false)
            return apic.readPage(offset: offset, byteCount: byteCount, now: now)
        }
        if apic.isAtPage(address), quirks.contains(.answeredAPICPage) { return .max }
        guard let ioapic = router?.ioapic, let offset = ioapic.offset(of: address) else { return nil }
        return ioapic.read(offset: offset, byteCount: byteCount)
    }

    func writeMMIO(_ address: UInt64, byteCount: Int, value: UInt64) -> Bool {
        if let apic, let offset = apic.pageOffset(of: address) {
            noticeTaskPriorityAccess(offset: offset, isWrite: true)
            apic.writePage(offset: offset, byteCount: byteCount, value: value, now: now)
            noticeInterrupts()
            return true
        }
        if let apic, apic.isAtPage(address), quirks.contains(.answeredAPICPage) { return true }
        if let ioapic = router?.ioapic, let offset = ioapic.offset(of: address) {
            ioapic.write(offset: offset, byteCount: byteCount, value: value)
            return true
        }
        return vm.writes.perform(.memory, address, byteCount: byteCount, value: value)
    }

    func readPort(_ port: UInt16, byteCount: Int) -> UInt32? {
        guard ownsPort(port) else { return nil }
        return (0..<byteCount).reduce(0) { value, index in
            value | UInt32(readPortByte(port &+ UInt16(index))) << UInt32(8 * index)
        }
    }

    func writePort(_ port: UInt16, byteCount: Int, value: UInt32) -> Bool {
        guard ownsPort(port) else {
            return vm.writes.perform(.ports, UInt64(port), byteCount: byteCount, value: UInt64(value))
        }
        for index in 0..<byteCount {
            writePortByte(port &+ UInt16(index), UInt8(truncatingIfNeeded: value >> UInt32(8 * index)))
        }
        noticeInterrupts()
        return true
    }

    private func ownsPort(_ port: UInt16) -> Bool {
        // Ports of the client are asked for most, and cost least.
        guard PIC.ownsPort(port) || PIT.ownsPort(port), let router else { return false }
        return router.pic != nil && PIC.ownsPort(port) || vm.pit?.ownsPort(port) ?? false
    }

    private func readPortByte(_ port: UInt16) -> UInt8 {
        if let pic = router?.pic, PIC.ownsPort(port) { return pic.readPort(port) }
        guard let timer = vm.pit, timer.ownsPort(port) else { return 0xFF }
        return timer.pit.readPort(port, now: MonotonicClock.nanoseconds())
    }

    private func writePortByte(_ port: UInt16, _ value: UInt8) {
        if let pic = router?.pic, PIC.ownsPort(port) { return pic.writePort(port, value) }
        guard let timer = vm.pit, timer.ownsPort(port) else { return }
        timer.pit.writePort(port, value, now: MonotonicClock.nanoseconds())
    }

    /// Leaves guest code if what this vCPU just did to its interrupt controllers let an interrupt through.
    func noticeInterrupts() {
        if let apic, apic.hasPendingInterrupt { processor.raiseAttention() }
    }

    var taskPriority: UInt8 {
        get { apic?.taskPriority ?? clientTaskPriority }
        set {
            guard let apic else {
                // An interrupt that the client holds back may be let through now; the exit follows the instruction.
                if requests.isInside, newValue & 0xF < clientTaskPriority {
                    taskPriorityPatching.wasLowered = true
                    processor.raiseAttention()
                }
                clientTaskPriority = newValue & 0xF
                return
            }
            apic.taskPriority = newValue
            noticeInterrupts()
        }
    }

    // MARK: Model

    func cpuid(function: UInt32, index: UInt32) -> CPUIDResult {
        let answer = cpuidTable.answer(function: function, index: index)
        guard let other = cpuidTable.substitute(for: function) else { return followState(answer, function: function) }
        // The processor looks at the function it asked for only.
        return CPUIDAdjustment.adjusted(
            followState(answer, function: other), function: other, index: index, cr4: processor.system.cr4,
            xcr0: processor.system.xcr0)
    }

    /// `leaf` with what follows from registers that the processor does not look at.
    func followState(_ leaf: CPUIDResult, function: UInt32) -> CPUIDResult {
        guard function == 1 else { return leaf }
        var leaf = leaf
        let base = apic?.base ?? clientAPICBase
        leaf.edx = leaf.edx & ~(1 << 9) | (base & APICBase.enable != 0 ? 1 << 9 : 0)
        if !quirks.contains(.fixedMonitorBit) {
            leaf.ecx = leaf.ecx & ~(1 << 3) | UInt32(processor.system.miscEnable >> 18 & 1) << 3
        }
        return leaf
    }

    var quirks: ProcessorQuirks { vm.settings.quirks }

    var hypercallInstruction: HypercallInstruction? { vm.host.isAMD ? .vmmcall : .vmcall }

    /// Whether the guest may use a paravirtual feature: the client may insist on what CPUID tells.
    func hasParavirtualFeature(_ feature: UInt32) -> Bool {
        guard enforcesParavirtualFeatures else { return true }
        return (cpuidTable.find(0x4000_0001)?.eax ?? 0) & feature != 0
    }

    // MARK: Other vCPUs

    func requestOthers(_ requests: ProcessorRequests) {
        self.requests.requestOthers(requests, among: vm.enumerateRequests)
    }

    func withOthersPaused(_ body: () -> Void) {
        requests.withOthersPaused(among: vm.enumerateRequests, body)
    }

    // MARK: Hypercalls

    /// > Source: Documentation/virt/kvm/x86/hypercalls.rst.
    func hypercall(_ number: UInt64, _ a0: UInt64, _ a1: UInt64, _ a2: UInt64, _ a3: UInt64) -> UInt64 {
        guard processor.system.cpl == 0 else { return HypercallError.notPermitted }
        switch number {
        case Hypercall.pollInterrupts:
            // The guest has lowered its priority in memory.
            processor.raiseAttention()
            return 0
        case Hypercall.kickCPU:
            guard hasParavirtualFeature(ParavirtualFeature.unhalt) else { break }
            vm.withLocalAPIC(id: UInt32(truncatingIfNeeded: a1)) { $0.postUnhalt() }
            return 0
        case Hypercall.pairClocks: return pairClocks(at: a0, kind: a1)
        case Hypercall.sendIPI:
            guard hasParavirtualFeature(ParavirtualFeature.sendIPI) else { break }
            guard let bus = router?.bus else { return HypercallError.notSupported }
            let count = bus.deliver(
                toBitmapLow: a0, high: a1, base: UInt32(truncatingIfNeeded: a2),
                command: UInt32(truncatingIfNeeded: a3))
            return count.map { UInt64($0) } ?? HypercallError.invalidArgument
        case Hypercall.yield:
            guard hasParavirtualFeature(ParavirtualFeature.yield) else { break }
            // The caller waits for another vCPU; with none but itself running there is nobody to yield to.
            if vm.runningCount(limit: 2) > 1 { sched_yield() }
            return 0
        default: break
        }
        return HypercallError.notImplemented
    }

    /// Writes a `kvm_clock_pairing`: the time of day, and the guest's counter at that time.
    /// > Source: Documentation/virt/kvm/x86/hypercalls.rst, KVM_HC_CLOCK_PAIRING.
    private func pairClocks(at address: UInt64, kind: UInt64) -> UInt64 {
        guard kind == 0 else { return HypercallError.notSupported }
        let time = WallClock.nanoseconds()
        var words = [UInt64](repeating: 0, count: 8)
        words[0] = time / 1_000_000_000
        words[1] = time % 1_000_000_000
        words[2] = processor.timeStamp
        let isWritten = words.withUnsafeBytes { writeGuest(Array($0), at: address) }
        return isWritten ? 0 : HypercallError.badAddress
    }
}

private enum Hypercall {
    static let pollInterrupts: UInt64 = 1
    static let kickCPU: UInt64 = 5
    static let pairClocks: UInt64 = 9
    static let sendIPI: UInt64 = 10
    static let yield: UInt64 = 11
}

/// Negative error numbers, as hypercalls return them.
private enum HypercallError {
    static let notPermitted = UInt64(bitPattern: -1)
    static let badAddress = UInt64(bitPattern: -14)
    static let invalidArgument = UInt64(bitPattern: -22)
    static let notSupported = UInt64(bitPattern: -95)
    static let notImplemented = UInt64(bitPattern: -1000)
}
