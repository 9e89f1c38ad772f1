import CHost
import Host
import KVMInterface
import SystemPackage

extension ErrnoTables {
    /// Of event descriptors and writes that wait.
    static var events: [ErrnoCase] { writeEvents + interruptEvents + zones }

    private static let dataMatch: UInt32 = 1 << 0
    private static let ports: UInt32 = 1 << 1
    private static let remove: UInt32 = 1 << 2

    private static var writeEvents: [ErrnoCase] {
        [
            ErrnoCase("write: no file", .badFileDescriptor) { $0.writeEvent(-1, 0x1000, 4) },
            ErrnoCase("write: no event", .invalidArgument) { $0.writeEvent($0.file.rawValue, 0x1000, 4) },
            ErrnoCase("write: length 3", .invalidArgument) { $0.writeEvent(-1, 0x1000, 3) },
            ErrnoCase("write: length 16", .invalidArgument) { $0.writeEvent(-1, 0x1000, 16) },
            ErrnoCase("write: range overflows", .invalidArgument) { $0.writeEvent(-1, .max - 2, 4) },
            ErrnoCase("write: range ends with the space", 0) { $0.writeEvent($0.event.rawValue, .max - 4, 4) },
            ErrnoCase("write: unknown flags", .invalidArgument) { $0.writeEvent(-1, 0x1000, 4, flags: 1 << 5) },
            ErrnoCase("write: a value of any length", .invalidArgument) {
                $0.writeEvent(-1, 0x1000, 0, flags: dataMatch)
            },
            ErrnoCase("write: another architecture's", 0) { $0.writeEvent($0.event.rawValue, 1, 8, flags: 1 << 3) },
            ErrnoCase("write: value 5", 0) {
                $0.writeEvent($0.event.rawValue, 0x1000, 2, flags: dataMatch, value: 5)
            },
            ErrnoCase("write: value 5 again", .fileExists) {
                $0.writeEvent($0.other.rawValue, 0x1000, 2, flags: dataMatch, value: 5)
            },
            ErrnoCase("write: value 6", 0) {
                $0.writeEvent($0.event.rawValue, 0x1000, 2, flags: dataMatch, value: 6)
            },
            ErrnoCase("write: all values beside some", .fileExists) { $0.writeEvent($0.other.rawValue, 0x1000, 2) },
            ErrnoCase("write: all lengths beside some", .fileExists) { $0.writeEvent($0.other.rawValue, 0x1000, 0) },
            ErrnoCase("write: another length", 0) { $0.writeEvent($0.event.rawValue, 0x1000, 4) },
            ErrnoCase("write: all lengths of a port", 0) {
                $0.writeEvent($0.event.rawValue, 0x1000, 0, flags: ports)
            },
            ErrnoCase("write: a length beside all", .fileExists) {
                $0.writeEvent($0.other.rawValue, 0x1000, 1, flags: ports)
            },
            ErrnoCase("removal: no file", .badFileDescriptor) { $0.writeEvent(-1, 0x1000, 4, flags: remove) },
            ErrnoCase("removal: no event", .invalidArgument) {
                $0.writeEvent($0.file.rawValue, 0x1000, 4, flags: remove)
            },
            ErrnoCase("removal: length 3", .noSuchFileOrDirectory) {
                $0.writeEvent($0.event.rawValue, 0x1000, 3, flags: remove)
            },
            ErrnoCase("removal: another event", .noSuchFileOrDirectory) {
                $0.writeEvent($0.other.rawValue, 0x1000, 4, flags: remove)
            },
            ErrnoCase("removal: another value", .noSuchFileOrDirectory) {
                $0.writeEvent($0.event.rawValue, 0x1000, 2, flags: remove | dataMatch, value: 7)
            },
            ErrnoCase("removal: without its value", .noSuchFileOrDirectory) {
                $0.writeEvent($0.event.rawValue, 0x1000, 2, flags: remove)
            },
            ErrnoCase("removal with unknown flags", 0) {
                $0.writeEvent($0.event.rawValue, 0x1000, 4, flags: remove | 1 << 9)
            },
            ErrnoCase("removal again", .noSuchFileOrDirectory) {
                $0.writeEvent($0.event.rawValue, 0x1000, 4, flags: remove)
            }
        ]
    }

    private static var interruptEvents: [ErrnoCase] {
        [
            ErrnoCase("interrupt: unknown flags", .invalidArgument) { $0.interruptEvent($0.full, -1, 20, flags: 4) },
            ErrnoCase("interrupt: without controllers", .invalidArgument) { $0.interruptEvent($0.plain, -1, 20) },
            ErrnoCase("interrupt: no file", .badFileDescriptor) { $0.interruptEvent($0.full, -1, 20) },
            ErrnoCase("interrupt: no event", .invalidArgument) {
                $0.interruptEvent($0.full, $0.file.rawValue, 20)
            },
            ErrnoCase("interrupt", 0) { $0.interruptEvent($0.full, $0.event.rawValue, 20) },
            ErrnoCase("interrupt: twice", .resourceBusy) { $0.interruptEvent($0.full, $0.event.rawValue, 21) },
            ErrnoCase("interrupt: resampling without a file", .badFileDescriptor) {
                $0.interruptEvent($0.full, $0.other.rawValue, 20, flags: 2, resample: -1)
            },
            ErrnoCase("interrupt: resampling without an event", .invalidArgument) {
                $0.interruptEvent($0.full, $0.other.rawValue, 20, flags: 2, resample: $0.file.rawValue)
            },
            ErrnoCase("interrupt: twice, resampling", .resourceBusy) {
                $0.interruptEvent($0.full, $0.event.rawValue, 20, flags: 2, resample: $0.other.rawValue)
            },
            ErrnoCase("interrupt: a line beyond all", 0) { $0.interruptEvent($0.full, $0.other.rawValue, 5000) },
            ErrnoCase("interrupt removal: no file", .badFileDescriptor) {
                $0.interruptEvent($0.plain, -1, 20, flags: 1)
            },
            ErrnoCase("interrupt removal: no event", .invalidArgument) {
                $0.interruptEvent($0.plain, $0.file.rawValue, 20, flags: 1)
            },
            ErrnoCase("interrupt removal: nothing there", 0) {
                $0.interruptEvent($0.plain, $0.event.rawValue, 20, flags: 1)
            },
            ErrnoCase("interrupt removal", 0) { $0.interruptEvent($0.full, $0.event.rawValue, 20, flags: 1) },
            ErrnoCase("interrupt on another line", 0) {
                $0.interruptEvent($0.full, $0.event.rawValue, 21, flags: 2, resample: $0.event.rawValue)
            }
        ]
    }

    private static var zones: [ErrnoCase] {
        [
            ErrnoCase("zone of another space", .invalidArgument) {
                $0.call($0.full, .registerCoalescedZone, words: [0x1000, 0, 16, 2])
            },
            ErrnoCase("removal of a zone of another space", .invalidArgument) {
                $0.call($0.full, .unregisterCoalescedZone, words: [0x1000, 0, 16, 2])
            },
            ErrnoCase("zone", 0) { $0.call($0.full, .registerCoalescedZone, words: [0x1000, 0, 16, 0]) },
            ErrnoCase("zone again", 0) { $0.call($0.full, .registerCoalescedZone, words: [0x1000, 0, 16, 0]) },
            ErrnoCase("empty zone", 0) { $0.call($0.full, .registerCoalescedZone, words: [0x2000, 0, 0, 1]) },
            ErrnoCase("zone that is not there", 0) {
                $0.call($0.full, .unregisterCoalescedZone, words: [0x9000, 0, 16, 0])
            },
            ErrnoCase("removal of zones", 0) { $0.call($0.full, .unregisterCoalescedZone, words: [0x1000, 0, 16, 0]) }
        ]
    }
}

extension ErrnoFixture {
    func writeEvent(
        _ descriptor: Int32, _ address: UInt64, _ byteCount: UInt32, flags: UInt32 = 0, value: UInt64 = 0
    ) -> Int32 {
        var request = kvm_ioeventfd()
        request.datamatch = value
        request.addr = address
        request.len = byteCount
        request.fd = descriptor
        request.flags = flags
        return give(full, .setIOEvent, request)
    }

    func interruptEvent(
        _ machine: KVMDescriptor, _ descriptor: Int32, _ gsi: UInt32, flags: UInt32 = 0, resample: Int32 = 0
    ) -> Int32 {
        var request = kvm_irqfd()
        request.fd = UInt32(bitPattern: descriptor)
        request.gsi = gsi
        request.flags = flags
        request.resamplefd = UInt32(bitPattern: resample)
        return give(machine, .setInterruptEvent, request)
    }
}
