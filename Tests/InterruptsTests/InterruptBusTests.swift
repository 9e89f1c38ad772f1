import Interrupts
import Testing

@Suite struct InterruptBusTests {
    @Test func physicalDestinations() {
        let machine = TestMachine(vcpuCount: 4)
        let bus = machine.router.bus
        #expect(bus.deliver(InterruptMessage(destination: 2, vector: 0x40)) == 1)
        #expect(machine.receivers(of: 0x40) == [2])
        #expect(bus.deliver(InterruptMessage(destination: 9, vector: 0x40)) == -1)
        #expect(bus.deliver(InterruptMessage(destination: 2, vector: 0x40)) == 0)
        #expect(bus.deliver(InterruptMessage(destination: 0xFF, vector: 0x41)) == 4)
        // A guest renumbers its APICs.
        machine.vcpus[3].write(APICRegister.id, 0x20 << 24)
        #expect(bus.deliver(InterruptMessage(destination: 0x20, vector: 0x42)) == 1)
        #expect(bus.deliver(InterruptMessage(destination: 3, vector: 0x42)) == -1)
        #expect(machine.receivers(of: 0x42) == [3])
    }

    @Test func logicalModels() {
        let machine = TestMachine(vcpuCount: 4)
        let bus = machine.router.bus
        for (index, vcpu) in machine.vcpus.enumerated() {
            vcpu.write(APICRegister.logicalDestination, 1 << UInt32(24 + index))
        }
        #expect(bus.deliver(InterruptMessage(destination: 0b1010, destinationMode: .logical, vector: 0x40)) == 2)
        #expect(machine.receivers(of: 0x40) == [1, 3])
        for (index, vcpu) in machine.vcpus.enumerated() {
            vcpu.write(APICRegister.destinationFormat, 0)
            // Clusters 0 and 1 of two members each.
            vcpu.write(APICRegister.logicalDestination, UInt32((index / 2) << 4 | 1 << (index % 2)) << 24)
        }
        #expect(bus.deliver(InterruptMessage(destination: 0x12, destinationMode: .logical, vector: 0x51)) == 1)
        #expect(machine.receivers(of: 0x51) == [3])
        #expect(bus.deliver(InterruptMessage(destination: 0x03, destinationMode: .logical, vector: 0x62)) == 2)
        #expect(machine.receivers(of: 0x62) == [0, 1])
        machine.vcpus[0].write(APICRegister.destinationFormat, 0x7000_0000)
        #expect(bus.deliver(InterruptMessage(destination: 0x03, destinationMode: .logical, vector: 0x73)) == 1)
    }

    @Test func x2APICClusters() {
        let machine = TestMachine(vcpuCount: 20)
        for vcpu in machine.vcpus { #expect(vcpu.enterX2APIC()) }
        let sender = machine.vcpus[0]
        #expect(sender.apic.writeMSR(0x830, 0x0001_0009_0000_0840, now: sender.time))
        #expect(machine.receivers(of: 0x40) == [16, 19])
        #expect(sender.apic.writeMSR(0x830, 0xFFFF_FFFF_0000_0041, now: sender.time))
        #expect(machine.receivers(of: 0x41) == Array(0..<20))
        #expect(machine.vcpus[17].apic.matches(destination: 0x0001_0002, mode: .logical))
        #expect(!machine.vcpus[1].apic.matches(destination: 0x0001_0002, mode: .logical))
        // 0xFF is an ordinary destination of IPIs, and everybody for devices.
        #expect(sender.apic.writeMSR(0x830, 0x0000_00FF_0000_0052, now: sender.time))
        #expect(machine.receivers(of: 0x52) == [])
        #expect(machine.router.bus.deliver(InterruptMessage(destination: 0xFF, vector: 0x53)) == 20)
        machine.router.bus.hasBroadcastQuirk = false
        #expect(machine.router.bus.deliver(InterruptMessage(destination: 0xFF, vector: 0x54)) == -1)
    }

    @Test func shorthands() {
        let machine = TestMachine(vcpuCount: 3)
        let sender = machine.vcpus[1]
        sender.write(APICRegister.command, 0x0004_0040)
        #expect(machine.receivers(of: 0x40) == [1])
        sender.write(APICRegister.command, 0x0008_0051)
        #expect(machine.receivers(of: 0x51) == [0, 1, 2])
        sender.write(APICRegister.command, 0x000C_0062)
        #expect(machine.receivers(of: 0x62) == [0, 2])
        #expect(sender.read(APICRegister.command) == 0x000C_0062)
    }

    @Test func startOfAnApplicationProcessorAsLinuxDoesIt() {
        let machine = TestMachine(vcpuCount: 2, enabled: false)
        let boot = machine.vcpus[0]
        let other = machine.vcpus[1].apic!
        boot.enable()
        boot.write(APICRegister.commandHigh, 1 << 24)
        boot.write(APICRegister.command, 0xC500)
        #expect(other.takeInitialize() && !other.hasPendingSignals)
        boot.write(APICRegister.command, 0x8500)
        #expect(!other.hasPendingSignals)
        boot.write(APICRegister.command, 0x0699)
        boot.write(APICRegister.command, 0x069A)
        #expect(other.takeStartup() == 0x9A)
        #expect(other.takeStartup() == nil)
        #expect(!boot.apic.hasPendingSignals)
    }

    @Test func lowestPriorityGoesRound() {
        let machine = TestMachine(vcpuCount: 3)
        machine.vcpus[1].write(APICRegister.spurious, 0xFF)
        for vcpu in machine.vcpus { vcpu.write(APICRegister.logicalDestination, 0xFF00_0000) }
        for vector in UInt8(0x40)..<0x44 {
            let message = InterruptMessage(
                destination: 0xFF, destinationMode: .logical, deliveryMode: .lowestPriority, vector: vector)
            #expect(machine.router.bus.deliver(message) == 1)
        }
        let counts = machine.vcpus.map { vcpu in
            var count = 0
            while vcpu.apic.acknowledge() != nil {
                count += 1
                vcpu.apic.endOfInterrupt()
            }
            return count
        }
        #expect(counts == [2, 0, 2])
    }

    @Test func messageSignalledInterrupts() {
        let machine = TestMachine(vcpuCount: 2)
        let message = MessageSignalledInterrupt(address: 0xFEE0_1000, data: 0x4045)
        #expect(machine.router.deliver(message) == 1)
        #expect(machine.receivers(of: 0x45) == [1])
        let decoded = MessageSignalledInterrupt(address: 0x0001_2300_FEE4_500C, data: 0x8931)
        #expect(
            decoded.message(extendedDestination: true)
                == InterruptMessage(
                    destination: 0x0001_2345, destinationMode: .logical, deliveryMode: .lowestPriority, vector: 0x31,
                    isLevelTriggered: true, hasRedirectionHint: true))
        #expect(decoded.message(extendedDestination: false).destination == 0x45)
    }

    @Test func hypercallReachesTheBitmap() {
        let machine = TestMachine(vcpuCount: 5)
        #expect(machine.router.bus.deliver(toBitmapLow: 0b1010, high: 1, base: 1, command: 0x44) == 2)
        #expect(machine.receivers(of: 0x44) == [2, 4])
        #expect(machine.router.bus.deliver(toBitmapLow: 1, high: 0, base: 0, command: 0x400) == 1)
        #expect(machine.vcpus[0].apic.takeNMI())
        #expect(machine.router.bus.deliver(toBitmapLow: 1, high: 0, base: 0, command: 0x500) == nil)
    }

    @Test func unhaltWakes() {
        let machine = TestMachine(vcpuCount: 2)
        let kicks = machine.vcpus[1].kicks.load(ordering: .relaxed)
        machine.router.bus.deliver(InterruptMessage(destination: 1, deliveryMode: .unhalt, vector: 0))
        #expect(machine.vcpus[1].kicks.load(ordering: .relaxed) == kicks + 1)
        #expect(machine.vcpus[1].apic.takeUnhalt())
    }
}
