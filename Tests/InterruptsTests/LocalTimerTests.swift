import Interrupts
import Testing

@Suite struct LocalTimerTests {
    private func makeVCPU(mode: UInt32) -> TestVCPU {
        let vcpu = TestVCPU()
        vcpu.enable()
        vcpu.write(TestVCPU.vectorOffset(.timer), mode << 17 | 0xEC)
        return vcpu
    }

    @Test(arguments: [(0x0, 2), (0x1, 4), (0x2, 8), (0x3, 16), (0x8, 32), (0x9, 64), (0xA, 128), (0xB, 1)])
    func divisors(code: UInt32, divisor: UInt64) {
        let vcpu = makeVCPU(mode: 0)
        vcpu.write(APICRegister.divideConfiguration, code)
        vcpu.write(APICRegister.initialCount, 1000)
        #expect(vcpu.apic.timerDeadlineNanoseconds == vcpu.time.nanoseconds + 1000 * divisor)
        vcpu.advance(nanoseconds: 400 * divisor)
        #expect(vcpu.read(APICRegister.currentCount) == 600)
    }

    @Test func oneShotFiresOnce() {
        let vcpu = makeVCPU(mode: 0)
        vcpu.write(APICRegister.divideConfiguration, 0xB)
        vcpu.write(APICRegister.initialCount, 5000)
        vcpu.advance(nanoseconds: 4999)
        #expect(!vcpu.apic.serviceTimer(now: vcpu.time))
        #expect(vcpu.read(APICRegister.currentCount) == 1)
        vcpu.advance(nanoseconds: 1)
        #expect(vcpu.apic.serviceTimer(now: vcpu.time))
        #expect(vcpu.apic.acknowledge() == 0xEC)
        #expect(vcpu.read(APICRegister.currentCount) == 0)
        #expect(vcpu.read(APICRegister.initialCount) == 5000)
        vcpu.advance(nanoseconds: 100_000)
        #expect(!vcpu.apic.serviceTimer(now: vcpu.time))
        #expect(vcpu.armed.last == .some(nil))
    }

    @Test func periodicKeepsItsPhase() {
        let vcpu = makeVCPU(mode: 1)
        let start = vcpu.time.nanoseconds
        vcpu.write(APICRegister.divideConfiguration, 0xB)
        vcpu.write(APICRegister.initialCount, 4_000_000)
        vcpu.advance(nanoseconds: 4_100_000)
        #expect(vcpu.apic.serviceTimer(now: vcpu.time))
        #expect(vcpu.apic.timerDeadlineNanoseconds == start + 8_000_000)
        #expect(vcpu.read(APICRegister.currentCount) == 3_900_000)
        // Three periods late: one interrupt, and the phase stays.
        vcpu.advance(nanoseconds: 12_000_000)
        #expect(vcpu.read(APICRegister.currentCount) == 3_900_000)
        #expect(vcpu.apic.serviceTimer(now: vcpu.time))
        #expect(!vcpu.apic.serviceTimer(now: vcpu.time))
        #expect(vcpu.apic.timerDeadlineNanoseconds == start + 20_000_000)
    }

    @Test func zeroStopsTheTimer() {
        let vcpu = makeVCPU(mode: 1)
        vcpu.write(APICRegister.initialCount, 1_000_000)
        vcpu.write(APICRegister.initialCount, 0)
        #expect(vcpu.apic.timerDeadlineNanoseconds == nil)
        #expect(vcpu.armed.count == 2 && vcpu.armed.last == .some(nil))
    }

    @Test func maskedTimerRunsSilently() {
        let vcpu = makeVCPU(mode: 0)
        vcpu.write(TestVCPU.vectorOffset(.timer), 0x1_00EC)
        vcpu.write(APICRegister.initialCount, 100)
        vcpu.advance(nanoseconds: 1000)
        #expect(vcpu.apic.serviceTimer(now: vcpu.time))
        #expect(!vcpu.apic.hasPendingInterrupt)
    }

    @Test func hostilePeriodsAreLimited() {
        let vcpu = makeVCPU(mode: 1)
        vcpu.write(APICRegister.divideConfiguration, 0xB)
        vcpu.write(APICRegister.initialCount, 1)
        #expect(vcpu.apic.timerDeadlineNanoseconds == vcpu.time.nanoseconds + 200_000)
        vcpu.advance(nanoseconds: 200_000)
        vcpu.apic.serviceTimer(now: vcpu.time)
        #expect(vcpu.apic.timerDeadlineNanoseconds == vcpu.time.nanoseconds + 200_000)
    }

    @Test func deadlineCountsGuestTime() {
        let vcpu = makeVCPU(mode: 2)
        vcpu.apic.tscFrequencyKilohertz = 2_000_000
        let start = vcpu.time
        #expect(vcpu.apic.writeMSR(0x6E0, start.tsc + 10_001, now: vcpu.time))
        #expect(vcpu.apic.timerDeadlineNanoseconds == start.nanoseconds + 5001)
        #expect(vcpu.apic.readMSR(0x6E0, now: vcpu.time) == start.tsc + 10_001)
        // The guest's counter was set forward.
        vcpu.time.tsc += 8_001
        vcpu.apic.rearmTimer(now: vcpu.time)
        #expect(vcpu.apic.timerDeadlineNanoseconds == start.nanoseconds + 1000)
        vcpu.advance(nanoseconds: 1000)
        #expect(vcpu.apic.serviceTimer(now: vcpu.time))
        #expect(vcpu.apic.readMSR(0x6E0, now: vcpu.time) == 0)
        #expect(vcpu.apic.acknowledge() == 0xEC)
        // In the past: due at once. Zero: disarmed. The count registers are dead in this mode.
        #expect(vcpu.apic.writeMSR(0x6E0, 1, now: vcpu.time))
        #expect(vcpu.apic.serviceTimer(now: vcpu.time))
        #expect(vcpu.apic.writeMSR(0x6E0, .max, now: vcpu.time))
        #expect(vcpu.apic.writeMSR(0x6E0, 0, now: vcpu.time))
        vcpu.write(APICRegister.initialCount, 100)
        #expect(vcpu.apic.timerDeadlineNanoseconds == nil)
        #expect(vcpu.read(APICRegister.initialCount) == 0)
    }

    @Test func changeOfModeDisarms() {
        let vcpu = makeVCPU(mode: 2)
        #expect(vcpu.apic.writeMSR(0x6E0, vcpu.time.tsc + 1000, now: vcpu.time))
        vcpu.write(TestVCPU.vectorOffset(.timer), 0xEC)
        #expect(vcpu.apic.timerDeadlineNanoseconds == nil)
        #expect(vcpu.apic.readMSR(0x6E0, now: vcpu.time) == 0)
        #expect(vcpu.apic.writeMSR(0x6E0, vcpu.time.tsc + 1000, now: vcpu.time))
        #expect(vcpu.apic.timerDeadlineNanoseconds == nil)
        // The register is there whatever CPUID says.
        vcpu.apic.supportsTSCDeadline = false
        #expect(vcpu.apic.writeMSR(0x6E0, 0, now: vcpu.time))
    }
}
