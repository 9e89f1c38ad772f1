import Interrupts
import Testing

@Suite struct LocalAPICTests {
    @Test func powerUpState() {
        let vcpu = TestVCPU(id: 3)
        #expect(vcpu.apic.base == 0xFEE0_0900)
        #expect(vcpu.read(APICRegister.id) == 3 << 24)
        #expect(vcpu.read(APICRegister.version) == 0x5_0014)
        #expect(vcpu.read(APICRegister.spurious) == 0xFF)
        #expect(vcpu.read(APICRegister.destinationFormat) == 0xFFFF_FFFF)
        #expect(vcpu.read(TestVCPU.vectorOffset(.lint0)) == 0x700)
        #expect(vcpu.read(TestVCPU.vectorOffset(.timer)) == 0x10000)
        #expect(vcpu.apic.acceptsExternalInterrupts)
        #expect(!TestVCPU(id: 4, isBootstrapProcessor: false).apic.acceptsExternalInterrupts)
    }

    @Test func onlyTheFirstPosterKicks() {
        let vcpu = TestVCPU()
        vcpu.enable()
        _ = vcpu.apic.hasPendingInterrupt
        #expect(vcpu.apic.post(vector: 0x40, levelTriggered: false))
        #expect(!vcpu.apic.post(vector: 0x41, levelTriggered: false))
        #expect(vcpu.apic.highestPendingVector == 0x41)
        #expect(vcpu.apic.post(vector: 0x42, levelTriggered: false))
    }

    @Test func prioritiesNestAndUnwind() {
        let vcpu = TestVCPU()
        vcpu.enable()
        _ = vcpu.apic.post(vector: 0x31, levelTriggered: false)
        #expect(vcpu.apic.acknowledge() == 0x31)
        #expect(vcpu.read(APICRegister.processorPriority) == 0x30)
        // Of the same class: waits. Of a higher one: nests.
        _ = vcpu.apic.post(vector: 0x3F, levelTriggered: false)
        #expect(vcpu.apic.acknowledge() == nil)
        _ = vcpu.apic.post(vector: 0x80, levelTriggered: false)
        #expect(vcpu.apic.acknowledge() == 0x80)
        #expect(vcpu.read(APICRegister.inService + 0x10) == 1 << 17)
        #expect(vcpu.read(APICRegister.inService + 0x40) == 1)
        vcpu.write(APICRegister.endOfInterrupt, 0)
        #expect(vcpu.apic.acknowledge() == nil)
        vcpu.write(APICRegister.endOfInterrupt, 0)
        #expect(vcpu.apic.acknowledge() == 0x3F)
        vcpu.write(APICRegister.endOfInterrupt, 0)
        #expect(vcpu.read(APICRegister.processorPriority) == 0)
        #expect(!vcpu.apic.hasPendingInterrupt)
    }

    @Test func taskPriorityHoldsBack() {
        let vcpu = TestVCPU()
        vcpu.enable()
        vcpu.apic.taskPriority = 5
        #expect(vcpu.read(APICRegister.taskPriority) == 0x50)
        _ = vcpu.apic.post(vector: 0x5F, levelTriggered: false)
        #expect(!vcpu.apic.hasPendingInterrupt)
        vcpu.write(APICRegister.taskPriority, 0x4F)
        #expect(vcpu.apic.taskPriority == 4)
        #expect(vcpu.read(APICRegister.processorPriority) == 0x4F)
        #expect(vcpu.apic.acknowledge() == 0x5F)
        // Of task priority and interrupt in service, the higher class counts, and of equals the task priority.
        vcpu.write(APICRegister.taskPriority, 0x5A)
        #expect(vcpu.read(APICRegister.processorPriority) == 0x5A)
        vcpu.write(APICRegister.taskPriority, 0x4A)
        #expect(vcpu.read(APICRegister.processorPriority) == 0x50)
    }

    @Test func onlyLevelTriggeredInterruptsReportTheirEnd() {
        let vcpu = TestVCPU()
        vcpu.enable()
        _ = vcpu.apic.post(vector: 0x50, levelTriggered: true)
        #expect(vcpu.read(APICRegister.triggerMode + 0x20) == 1 << 16)
        _ = vcpu.apic.acknowledge()
        vcpu.apic.endOfInterrupt()
        #expect(vcpu.ended == [0x50])
        _ = vcpu.apic.post(vector: 0x50, levelTriggered: false)
        _ = vcpu.apic.acknowledge()
        vcpu.apic.endOfInterrupt()
        vcpu.apic.endOfInterrupt()
        #expect(vcpu.ended == [0x50])
    }

    @Test func softwareDisabledAPICRefusesFixedInterruptsOnly() {
        let vcpu = TestVCPU()
        let fixed = InterruptMessage(destination: 0, vector: 0x40)
        let nmi = InterruptMessage(destination: 0, deliveryMode: .nmi, vector: 0)
        #expect(vcpu.apic.accept(fixed) == .ignored)
        #expect(vcpu.apic.accept(nmi) == .delivered)
        #expect(vcpu.apic.takeNMI() && !vcpu.apic.takeNMI())
        vcpu.enable()
        #expect(vcpu.apic.accept(fixed) == .delivered)
        #expect(vcpu.apic.accept(fixed) == .coalesced)
        // Disabling masks the whole vector table, for good.
        vcpu.write(TestVCPU.vectorOffset(.performance), 0x400)
        vcpu.write(APICRegister.spurious, 0xFF)
        #expect(vcpu.read(TestVCPU.vectorOffset(.performance)) == 0x10400)
        vcpu.write(TestVCPU.vectorOffset(.performance), 0x400)
        #expect(vcpu.read(TestVCPU.vectorOffset(.performance)) == 0x10400)
    }

    /// By message, by the command register and from the vector table; the vector does not matter.
    @Test func systemManagementInterrupts() {
        let machine = TestMachine(vcpuCount: 2, enabled: false)
        let target = machine.vcpus[1]
        #expect(target.apic.accept(InterruptMessage(destination: 1, deliveryMode: .smi, vector: 0)) == .delivered)
        machine.vcpus[0].write(APICRegister.commandHigh, 1 << 24)
        machine.vcpus[0].write(APICRegister.command, 0x4200)
        #expect(target.managementInterrupts.load(ordering: .relaxed) == 2)
        #expect(machine.vcpus[0].managementInterrupts.load(ordering: .relaxed) == 0)
        target.enable()
        target.write(TestVCPU.vectorOffset(.thermal), 0x200)
        #expect(target.apic.raise(.thermal) == .delivered)
        #expect(target.managementInterrupts.load(ordering: .relaxed) == 3)
    }

    @Test func localVectorsDeliverInTheirMode() {
        let vcpu = TestVCPU()
        vcpu.enable()
        vcpu.write(TestVCPU.vectorOffset(.lint1), 0x400)
        #expect(vcpu.apic.raise(.lint1) == .delivered)
        #expect(vcpu.apic.hasPendingNMI)
        #expect(vcpu.apic.raise(.thermal) == .ignored)
        vcpu.write(TestVCPU.vectorOffset(.thermal), 0xFA)
        #expect(vcpu.apic.raise(.thermal) == .delivered)
        #expect(vcpu.apic.acknowledge() == 0xFA)
    }

    @Test func illegalVectorsAreErrors() {
        let vcpu = TestVCPU()
        vcpu.enable()
        vcpu.write(TestVCPU.vectorOffset(.error), 0xFE)
        _ = vcpu.apic.post(vector: 5, levelTriggered: false)
        #expect(vcpu.apic.acknowledge() == 0xFE)
        #expect(vcpu.read(APICRegister.errorStatus) == 0)
        vcpu.write(APICRegister.errorStatus, 0)
        #expect(vcpu.read(APICRegister.errorStatus) == 1 << 6)
        vcpu.write(APICRegister.command, 0x0004_000F)
        vcpu.write(APICRegister.errorStatus, 0)
        #expect(vcpu.read(APICRegister.errorStatus) == 1 << 5)
        #expect(vcpu.sent.isEmpty)
        _ = vcpu.read(0x3D0)
        vcpu.write(APICRegister.errorStatus, 0)
        #expect(vcpu.read(APICRegister.errorStatus) == 1 << 7)
    }

    @Test func oddAccessesOfThePageAreIgnored() {
        let vcpu = TestVCPU()
        vcpu.enable()
        vcpu.apic.writePage(offset: APICRegister.taskPriority, byteCount: 1, value: 0x50, now: vcpu.time)
        vcpu.apic.writePage(offset: APICRegister.taskPriority + 4, byteCount: 4, value: 0x50, now: vcpu.time)
        vcpu.apic.writePage(offset: APICRegister.taskPriority, byteCount: 8, value: 0x50, now: vcpu.time)
        #expect(vcpu.read(APICRegister.taskPriority) == 0)
        #expect(vcpu.apic.readPage(offset: APICRegister.version + 2, byteCount: 1, now: vcpu.time) == 5)
        #expect(vcpu.apic.readPage(offset: APICRegister.version + 3, byteCount: 2, now: vcpu.time) == 0)
        #expect(vcpu.apic.pageOffset(of: 0xFEE0_0FFF) == 0xFFF)
        #expect(vcpu.apic.pageOffset(of: 0xFEE0_1000) == nil)
        #expect(vcpu.apic.pageOffset(of: 0xFEDF_FFFF) == nil)
    }

    @Test func baseRegisterChecksModes() {
        let vcpu = TestVCPU(id: 0x123)
        let enabled = vcpu.apic.base
        let disabled = enabled & ~APICBase.enable
        #expect(!vcpu.apic.setBase(disabled | APICBase.x2APIC, isFromClient: false))
        #expect(!vcpu.apic.setBase(enabled | 1, isFromClient: false))
        vcpu.apic.physicalAddressBits = 40
        #expect(!vcpu.apic.setBase(enabled | 1 << 40, isFromClient: true))
        #expect(vcpu.enterX2APIC())
        #expect(vcpu.apic.readMSR(0x802, now: vcpu.time) == 0x123)
        #expect(vcpu.apic.readMSR(0x80D, now: vcpu.time) == 0x12_0008)
        #expect(vcpu.apic.pageOffset(of: 0xFEE0_0000) == nil)
        #expect(!vcpu.apic.setBase(enabled, isFromClient: false))
        #expect(vcpu.apic.setBase(disabled, isFromClient: false))
        #expect(!vcpu.apic.isEnabled && vcpu.apic.acceptsExternalInterrupts)
        #expect(!vcpu.apic.setBase(enabled | APICBase.x2APIC, isFromClient: false))
        #expect(vcpu.apic.setBase(enabled, isFromClient: false))
        #expect(vcpu.read(APICRegister.id) == 0x23 << 24)
        vcpu.apic.supportsX2APIC = false
        #expect(!vcpu.enterX2APIC())
    }

    @Test func x2APICRegistersFault() {
        let vcpu = TestVCPU(id: 1)
        #expect(vcpu.apic.readMSR(0x802, now: vcpu.time) == nil)
        #expect(vcpu.enterX2APIC())
        for msr: UInt32 in [0x80E, 0x831, 0x83F, 0x80B, 0x8FF, 0x800] {
            #expect(vcpu.apic.readMSR(msr, now: vcpu.time) == nil, "read of \(msr)")
        }
        for msr: UInt32 in [0x802, 0x803, 0x80A, 0x80D, 0x810, 0x839] {
            #expect(!vcpu.apic.writeMSR(msr, 0, now: vcpu.time), "write of \(msr)")
        }
        #expect(!vcpu.apic.writeMSR(0x80B, 1, now: vcpu.time))
        #expect(!vcpu.apic.writeMSR(0x828, 1, now: vcpu.time))
        #expect(!vcpu.apic.writeMSR(0x80F, 1 << 32, now: vcpu.time))
        #expect(vcpu.apic.writeMSR(0x80F, 0x1FF, now: vcpu.time))
        #expect(vcpu.apic.writeMSR(0x83F, 0x77, now: vcpu.time))
        #expect(vcpu.sent.last?.vector == 0x77 && vcpu.sent.last?.shorthand == .sender)
        #expect(vcpu.apic.writeMSR(0x830, 0xDEAD_BEEF_000C_0855, now: vcpu.time))
        #expect(vcpu.apic.readMSR(0x830, now: vcpu.time) == 0xDEAD_BEEF_000C_0855)
        #expect(
            vcpu.sent.last
                == InterruptMessage(
                    destination: 0xDEAD_BEEF, destinationMode: .logical, shorthand: .allButSender, vector: 0x55))
    }

    @Test func initializeForgetsAnEarlierStartup() {
        let vcpu = TestVCPU(id: 1, isBootstrapProcessor: false)
        vcpu.apic.postStartup(vector: 0x99)
        vcpu.apic.postInitialize()
        #expect(vcpu.apic.pendingStartupVector == nil)
        vcpu.apic.postStartup(vector: 0x9A)
        #expect(vcpu.apic.takeInitialize())
        vcpu.write(APICRegister.taskPriority, 0x20)
        vcpu.apic.resetForInitialize()
        #expect(vcpu.read(APICRegister.taskPriority) == 0)
        #expect(vcpu.apic.takeStartup() == 0x9A)
        #expect(vcpu.apic.takeStartup() == nil && !vcpu.apic.hasPendingSignals)
    }

    @Test func stateSurvivesARoundTrip() {
        let source = TestVCPU(id: 0)
        let target = TestVCPU(id: 0)
        // A disabled boot processor keeps its unmasked LINT0.
        #expect(
            target.apic.loadState(
                source.apic.saveState(hasExtendedID: false, now: source.time), hasExtendedID: false, now: target.time))
        #expect(target.apic.acceptsExternalInterrupts)

        source.enable()
        source.write(APICRegister.logicalDestination, 0x0400_0000)
        source.write(TestVCPU.vectorOffset(.timer), 0x2_00EC)
        source.write(APICRegister.divideConfiguration, 0x3)
        source.write(APICRegister.initialCount, 1_000_000)
        source.advance(nanoseconds: 4_000_000)
        _ = source.apic.post(vector: 0x50, levelTriggered: true)
        _ = source.apic.acknowledge()
        _ = source.apic.post(vector: 0x61, levelTriggered: false)
        let saved = source.apic.saveState(hasExtendedID: false, now: source.time)
        target.time = GuestTime(nanoseconds: 77, tsc: 0)
        #expect(target.apic.loadState(saved, hasExtendedID: false, now: target.time))
        #expect(target.apic.saveState(hasExtendedID: false, now: target.time) == saved)
        #expect(target.apic.timerDeadlineNanoseconds == 77 + 12_000_000)
        #expect(target.apic.acknowledge() == 0x61)
        #expect(target.apic.matches(destination: 4, mode: .logical))

        var page = [UInt8](repeating: 0xAA, count: LocalAPICState.byteCount)
        page.withUnsafeMutableBytes { saved.copy(to: $0) }
        #expect(page[0x0F0] == 0xFF && page[0x0F1] == 0x01 && page[0x0F4] == 0)
        #expect(page.withUnsafeBytes { LocalAPICState(page: $0) } == saved)
    }

    @Test func x2APICStateChecksTheIdentifier() {
        let vcpu = TestVCPU(id: 0x105)
        #expect(vcpu.enterX2APIC())
        var state = vcpu.apic.saveState(hasExtendedID: true, now: vcpu.time)
        #expect(state[APICRegister.id] == 0x105)
        #expect(vcpu.apic.loadState(state, hasExtendedID: true, now: vcpu.time))
        state[APICRegister.id] = 0x106
        #expect(!vcpu.apic.loadState(state, hasExtendedID: true, now: vcpu.time))
        #expect(vcpu.apic.saveState(hasExtendedID: false, now: vcpu.time)[APICRegister.id] == 0x0500_0000)
    }
}
