import Addressing
import Devices
import KVMInterface

/// The devices of a board, at their ports.
struct BoardDevices: Sendable {
    let bus: DeviceBus
    let serial: Serial16550
    let power: ACPIPowerManagement

    /// - Parameters:
    ///   - ramRanges: the guest's RAM, for what firmware would tell about it.
    ///   - interruptLine: makes the line of an ISA interrupt.
    init(
        ramRanges: [Range<GuestPhysicalAddress>], events: BoardEvents, console: Console,
        interruptLine: (UInt8) -> InterruptLine
    ) {
        let clock = HostClock()
        serial = Serial16550(
            interrupt: interruptLine(BoardLayout.serialInterrupt),
            transmit: { [output = console.output] in output.append($0) },
            inputDrained: { [console] in console.wake() })
        power = ACPIPowerManagement(
            clock: clock, softOffSleepType: BoardLayout.softOffSleepType,
            interrupt: interruptLine(BoardLayout.systemControlInterrupt), powerOff: { events.report(.powerOff) })
        func byteCount(_ isWanted: (Range<GuestPhysicalAddress>) -> Bool) -> UInt64 {
            ramRanges.filter(isWanted).reduce(0) { $0 + ($1.upperBound.value - $1.lowerBound.value) }
        }
        let realTimeClock = RealTimeClock(
            clock: clock, lowMemoryByteCount: byteCount { $0.lowerBound < BoardLayout.highRAMStart },
            highMemoryByteCount: byteCount { $0.lowerBound >= BoardLayout.highRAMStart },
            interrupt: interruptLine(BoardLayout.realTimeClockInterrupt))
        let keyboard = KeyboardController { events.report(.reset) }
        let resetRegister = ResetRegister { events.report(.reset) }

        func ports(_ start: UInt16, _ count: UInt64, _ device: any Device, offset: Int = 0) -> DeviceMap.Mount {
            DeviceMap.Mount(UInt64(start)..<UInt64(start) + count, device, deviceOffset: offset)
        }
        bus = DeviceBus(
            ports: DeviceMap([
                ports(BoardLayout.serialPort, 8, serial),
                ports(BoardLayout.realTimeClockPort, 2, realTimeClock),
                ports(BoardLayout.powerManagementEventPort, ACPIPowerManagement.portCount, power),
                // The configuration address that the reset register lies in begins one port before it.
                ports(BoardLayout.resetPort - 1, ResetRegister.portCount, resetRegister),
                ports(0x60, 1, keyboard, offset: KeyboardController.dataOffset),
                ports(0x64, 1, keyboard, offset: KeyboardController.commandOffset)
            ]))
    }
}
