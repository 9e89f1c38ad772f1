import Interrupts
import SystemPackage
import Testing

@Suite struct IOAPICTests {
    private static let level: UInt64 = 1 << 15
    private static let masked: UInt64 = 1 << 16
    private static let remoteRequest: UInt64 = 1 << 14

    @Test func registers() {
        let machine = TestMachine(vcpuCount: 1)
        let ioapic = machine.router.ioapic!
        ioapic.write(offset: 0, byteCount: 4, value: 1)
        #expect(ioapic.read(offset: 0x10, byteCount: 4) == 0x0017_0011)
        ioapic.write(offset: 0, byteCount: 4, value: 0)
        ioapic.write(offset: 0x10, byteCount: 4, value: 0xFFFF_FFFF)
        #expect(ioapic.read(offset: 0x10, byteCount: 4) == 0x0F00_0000)
        #expect(ioapic.read(offset: 0x10, byteCount: 1) == 0)
        #expect(machine.redirection(pin: 23) == Self.masked)
        machine.redirect(pin: 23, 0xAB00_0000_0000_0000 | Self.masked | 0x5055)
        // Delivery status and remote request cannot be written.
        #expect(machine.redirection(pin: 23) == 0xAB00_0000_0000_0000 | Self.masked | 0x0055)
        ioapic.write(offset: 0, byteCount: 4, value: 0x40)
        #expect(ioapic.read(offset: 0x10, byteCount: 4) == 0xFFFF_FFFF)
        #expect(ioapic.offset(of: 0xFEC0_0010) == 0x10 && ioapic.offset(of: 0xFEC0_0100) == nil)
    }

    @Test func edgesAreSentOnce() {
        let machine = TestMachine(vcpuCount: 1)
        machine.redirect(pin: 4, 0x34)
        let ioapic = machine.router.ioapic!
        #expect(ioapic.setLine(pin: 4, level: true) == 1)
        #expect(machine.vcpus[0].apic.acknowledge() == 0x34)
        machine.vcpus[0].apic.endOfInterrupt()
        #expect(ioapic.setLine(pin: 4, level: true) == 0)
        #expect(!machine.vcpus[0].apic.hasPendingInterrupt)
        ioapic.setLine(pin: 4, level: false)
        #expect(ioapic.setLine(pin: 4, level: true) == 1)
        #expect(machine.vcpus[0].apic.hasPendingInterrupt)
    }

    @Test func levelsAreSentAgainAfterTheEnd() {
        let machine = TestMachine(vcpuCount: 1)
        let apic = machine.vcpus[0].apic!
        machine.redirect(pin: 10, Self.level | 0x50)
        #expect(machine.router.setLine(10, level: true) == 2)
        #expect(machine.redirection(pin: 10) & Self.remoteRequest != 0)
        #expect(apic.acknowledge() == 0x50)
        // Held back while in service.
        #expect(machine.router.ioapic!.setLine(pin: 10, level: true) == -1)
        #expect(!apic.hasPendingInterrupt)
        apic.endOfInterrupt()
        #expect(apic.acknowledge() == 0x50)
        machine.router.setLine(10, level: false)
        apic.endOfInterrupt()
        #expect(!apic.hasPendingInterrupt)
        #expect(machine.redirection(pin: 10) == Self.level | 0x50)
    }

    @Test func unmaskingSendsAPendingLevel() {
        let machine = TestMachine(vcpuCount: 1)
        machine.redirect(pin: 10, Self.masked | Self.level | 0x50)
        #expect(machine.router.ioapic!.setLine(pin: 10, level: true) == -1)
        #expect(!machine.vcpus[0].apic.hasPendingInterrupt)
        machine.redirect(pin: 10, Self.level | 0x50)
        #expect(machine.vcpus[0].apic.acknowledge() == 0x50)
    }

    @Test func edgeModeForAMomentClearsTheRemoteRequest() {
        let machine = TestMachine(vcpuCount: 1)
        machine.redirect(pin: 10, Self.level | 0x50)
        machine.router.setLine(10, level: true)
        machine.router.setLine(10, level: false)
        machine.redirect(pin: 10, Self.masked | 0x50)
        machine.redirect(pin: 10, Self.level | 0x50)
        #expect(machine.redirection(pin: 10) & Self.remoteRequest == 0)
    }

    @Test func anInterruptThatNobodyTookIsNotInService() {
        let machine = TestMachine(vcpuCount: 1, enabled: false)
        machine.redirect(pin: 10, Self.level | 0x50)
        #expect(machine.router.ioapic!.setLine(pin: 10, level: true) == -1)
        #expect(machine.redirection(pin: 10) & Self.remoteRequest == 0)
    }

    @Test func sourcesShareALine() {
        let machine = TestMachine(vcpuCount: 1)
        let apic = machine.vcpus[0].apic!
        machine.redirect(pin: 9, Self.level | 0x50)
        machine.router.setLine(9, level: true, source: .client)
        machine.router.setLine(9, level: true, source: .resampling)
        _ = apic.acknowledge()
        machine.router.setLine(9, level: false, source: .client)
        apic.endOfInterrupt()
        #expect(apic.acknowledge() == 0x50)
        machine.router.setLine(9, level: false, source: .resampling)
        apic.endOfInterrupt()
        #expect(!apic.hasPendingInterrupt)
    }

    @Test func observerMayLowerTheLineBeforeItIsSentAgain() throws {
        let machine = TestMachine(vcpuCount: 1)
        try machine.router.setRoutes([InterruptRoute(gsi: 30, target: .ioapic(pin: 11))])
        machine.redirect(pin: 11, Self.level | 0x50)
        let told = Recorder<UInt32>()
        machine.router.setAcknowledgementObserver { [unowned machine] gsi in
            told.append(gsi)
            machine.router.setLine(gsi, level: false, source: .resampling)
        }
        machine.router.setLine(30, level: true, source: .resampling)
        _ = machine.vcpus[0].apic.acknowledge()
        machine.vcpus[0].apic.endOfInterrupt()
        #expect(told.values == [30])
        #expect(!machine.vcpus[0].apic.hasPendingInterrupt)
    }

    @Test func restoredRequestsAreSent() {
        let source = TestMachine(vcpuCount: 1)
        source.redirect(pin: 10, Self.masked | Self.level | 0x50)
        source.redirect(pin: 4, 0x34)
        source.router.ioapic!.setLine(pin: 10, level: true)
        source.router.ioapic!.setLine(pin: 4, level: true)
        var state = source.router.ioapic!.saveState()
        // The edge was sent, the level waits.
        #expect(state.requests == 1 << 10)
        state.redirections[10] &= ~Self.masked
        let target = TestMachine(vcpuCount: 1)
        target.router.ioapic!.loadState(state)
        #expect(target.vcpus[0].apic.highestPendingVector == 0x50)
        #expect(target.redirection(pin: 4) == 0x34)
        state.redirections = []
        state.baseAddress = 0x1_0000
        target.router.ioapic!.loadState(state)
        #expect(target.redirection(pin: 23) == Self.masked)
        #expect(target.router.ioapic!.offset(of: 0x1_0010) == 0x10)
    }

    @Test func routesAreChecked() throws {
        let machine = TestMachine(vcpuCount: 1)
        let message = InterruptTarget.message(MessageSignalledInterrupt(address: 0xFEE0_0000, data: 0x60))
        let invalid: [[InterruptRoute]] = [
            [InterruptRoute(gsi: 4096, target: message)],
            [InterruptRoute(gsi: 0, target: .ioapic(pin: 24))],
            [InterruptRoute(gsi: 0, target: .pic(pin: -1))],
            [InterruptRoute(gsi: 5, target: message), InterruptRoute(gsi: 5, target: .ioapic(pin: 5))],
            [InterruptRoute(gsi: 5, target: .ioapic(pin: 4)), InterruptRoute(gsi: 5, target: .ioapic(pin: 5))]
        ]
        for routes in invalid {
            #expect(throws: Errno.invalidArgument) { try machine.router.setRoutes(routes) }
        }
        try machine.router.setRoutes([InterruptRoute(gsi: 40, target: message)])
        #expect(machine.router.setLine(40, level: false) == -1)
        #expect(machine.router.setLine(40, level: true) == 1)
        #expect(machine.router.setLine(4, level: true) == -1)
        #expect(machine.receivers(of: 0x60) == [0])
        let split = TestMachine(vcpuCount: 1, model: .split)
        #expect(throws: Errno.invalidArgument) {
            try split.router.setRoutes([InterruptRoute(gsi: 0, target: .ioapic(pin: 0))])
        }
        try split.router.setRoutes([InterruptRoute(gsi: 0, target: message)])
        #expect(split.router.setLine(0, level: true) == 1)
    }
}
