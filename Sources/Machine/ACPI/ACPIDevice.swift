import Addressing

/// A device the guest learns about from the DSDT.
public struct ACPIDevice: Equatable, Sendable {
    public enum Resource: Equatable, Sendable {
        /// `count` ports from `start`, all 16 address bits decoded.
        case ports(start: UInt16, count: UInt8)
        /// A range below 4 GiB.
        case memory(start: UInt32, byteCount: UInt32)
        /// An ISA line: edge-triggered, active high.
        case line(UInt8)
        /// A global interrupt: active high, level-triggered if so said.
        case interrupt(gsi: UInt32, isLevel: Bool)
    }

    /// Its name under `\_SB`: up to four capitals or digits, not beginning with a digit.
    public var name: String
    /// A Plug and Play ID such as "PNP0501" or an ACPI ID such as "LNRO0005".
    public var hardwareID: String
    /// Tells devices of the same ``hardwareID`` apart.
    public var uniqueID: UInt32
    public var resources: [Resource]

    public init(name: String, hardwareID: String, uniqueID: UInt32 = 0, resources: [Resource]) {
        precondition(AML.isNameSegment(name), "no ACPI name: \(name)")
        self.name = name
        self.hardwareID = hardwareID
        self.uniqueID = uniqueID
        self.resources = resources
    }

    /// The first serial port.
    public static var serialPort: Self {
        Self(
            name: "COM1", hardwareID: "PNP0501", uniqueID: 1,
            resources: [
                .ports(start: BoardLayout.serialPort, count: 8), .line(BoardLayout.serialInterrupt)
            ])
    }

    /// The CMOS clock.
    public static var realTimeClock: Self {
        Self(
            name: "RTC", hardwareID: "PNP0B00",
            resources: [
                .ports(start: BoardLayout.realTimeClockPort, count: 2), .line(BoardLayout.realTimeClockInterrupt)
            ])
    }

    /// The `Device` object.
    var aml: [UInt8] {
        AML.device(
            name,
            [
                AML.name("_HID", AML.hardwareID(hardwareID)),
                AML.name("_UID", AML.integer(UInt64(uniqueID))),
                AML.name("_CRS", AML.buffer(resources.flatMap(\.descriptor) + [0x79, 0]))
            ].flatMap { $0 })
    }
}

extension ACPIDevice.Resource {
    /// The resource descriptor.
    ///
    /// > Source: ACPI 6.3, 6.4 "Resource Data Types for ACPI".
    fileprivate var descriptor: [UInt8] {
        var bytes: [UInt8] = []
        switch self {
        case .ports(let start, let count):
            bytes = [0x47, 1]
            bytes.appendInteger(start)
            bytes.appendInteger(start)
            bytes += [1, count]
        case .memory(let start, let byteCount):
            bytes = [0x86, 9, 0, 1]
            bytes.appendInteger(start)
            bytes.appendInteger(byteCount)
        case .line(let line):
            bytes = [0x22]
            bytes.appendInteger(UInt16(1) << line)
        case .interrupt(let gsi, let isLevel):
            bytes = [0x89, 6, 0, isLevel ? 0b0001 : 0b0011, 1]
            bytes.appendInteger(gsi)
        }
        return bytes
    }
}
