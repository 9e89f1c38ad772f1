import Host
import RCU
import SystemPackage

// Writes of guests that the core completes by itself because the client asked for it beforehand: ioeventfds and coalesced
// zones.
//
// Invariants:
//
// 1. The table of a space is immutable, sorted, and made of trivial values. A writer publishes another one and frees the old
//    one after a grace period of `ThreadRCU`; a space without entries has no table, which is all that a vCPU looks at then.
// 2. The descriptors in a table are open as long as it can be read: their owners are in `events` until a grace period after
//    they left the table. So after a removal has returned, no write of a guest signals the event or enters the ring.
// 3. `lock` is held by writers from the first look at `events` and `zones` to the end of the grace period. Inside it is only the
//    ring's lock, and that only in readers.

/// Which addresses a guest writes to.
enum WriteSpace: CaseIterable {
    case ports
    case memory
    /// Another architecture's; requests for it are taken, and nothing is ever written there.
    case channels
}

/// Which writes of a guest signal an event.
struct EventTrigger: Equatable {
    let space: WriteSpace
    let address: UInt64
    /// 1, 2, 4 or 8; 0 for any.
    let byteCount: Int
    /// Only writes of this value; nil for any.
    let value: UInt64?

    /// Whether one write could be meant by both.
    func overlaps(_ other: Self) -> Bool {
        guard space == other.space, address == other.address else { return false }
        if byteCount == 0 || other.byteCount == 0 { return true }
        guard byteCount == other.byteCount else { return false }
        return value == nil || other.value == nil || value == other.value
    }
}

/// A range of addresses to which writes are collected in the machine's ring.
struct CoalescedZone: Equatable {
    let space: WriteSpace
    let address: UInt64
    let byteCount: UInt64

    /// Whether all of a range is inside.
    func contains(_ address: UInt64, byteCount: UInt64) -> Bool {
        let (end, overflow) = address.addingReportingOverflow(byteCount)
        return !overflow && address >= self.address && end <= self.address &+ self.byteCount
    }
}

/// The registered writes of one machine.
///
/// > Concurrency: ``perform(_:_:byteCount:value:)`` by vCPUs, without locks but that of the ring; the rest by any thread.
final class WriteBus: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: tables are RCU pointers; `events` and `zones` are guarded by `lock`.

    /// Zones of one space, as in the kernel (`NR_IOBUS_DEVS`).
    private static let maximumZoneCount = 1000

    private final class Event {
        let trigger: EventTrigger
        let descriptor: EventDescriptor

        init(_ trigger: EventTrigger, _ descriptor: consuming EventDescriptor) {
            self.trigger = trigger
            self.descriptor = descriptor
        }
    }

    let ring: CoalescedRing
    private let ports = RCUPointer<WriteTable>(nil)
    private let memory = RCUPointer<WriteTable>(nil)
    private let lock = FutexLock()
    private var events: [Event] = []
    private var zones: [CoalescedZone] = []

    /// - Throws: `ENOMEM`.
    init() throws(Errno) { ring = try CoalescedRing() }

    /// vCPUs keep the machine, so there are no readers.
    deinit {
        WriteTable.free(ports.load())
        WriteTable.free(memory.load())
    }

    /// Performs a write if it was registered.
    ///
    /// - Returns: false if somebody else has to: nobody registered it, or the ring is full.
    @inline(__always)
    func perform(_ space: WriteSpace, _ address: UInt64, byteCount: Int, value: UInt64) -> Bool {
        space == .ports
            ? perform(through: ports, space, address, byteCount: byteCount, value: value)
            : perform(through: memory, space, address, byteCount: byteCount, value: value)
    }

    @inline(__always)
    private func perform(
        through table: borrowing RCUPointer<WriteTable>, _ space: WriteSpace, _ address: UInt64, byteCount: Int,
        value: UInt64
    ) -> Bool {
        guard table.load() != nil else { return false }
        return ThreadRCU.withReadSection { section in
            guard let table = table.load(in: section) else { return false }
            if let descriptor = table.pointee.event(at: address, byteCount: byteCount, value: value) {
                EventDescriptor.signal(descriptor)
                return true
            }
            guard table.pointee.isCoalesced(address, byteCount: byteCount) else { return false }
            return ring.append(address: address, byteCount: byteCount, value: value, isPort: space == .ports)
        }
    }

    // MARK: Changes

    /// - Throws: `EEXIST` if one write could be meant by this and another registration.
    func addEvent(_ trigger: EventTrigger, _ descriptor: consuming EventDescriptor) throws(Errno) {
        let event = Event(trigger, descriptor)
        try lock.withLock { () throws(Errno) in
            guard !events.contains(where: { $0.trigger.overlaps(trigger) }) else { throw .fileExists }
            events.append(event)
            publish(trigger.space)
        }
    }

    /// - Parameter identity: that of the event to be removed.
    /// - Throws: `ENOENT` if there is none like that.
    func removeEvent(_ trigger: EventTrigger, identity: UInt64) throws(Errno) {
        try lock.withLock { () throws(Errno) in
            let index = events.firstIndex { $0.trigger == trigger && $0.descriptor.identity == identity }
            guard let index else { throw .noSuchFileOrDirectory }
            let event = events.remove(at: index)
            publish(trigger.space)
            withExtendedLifetime(event) {}
        }
    }

    /// - Throws: `ENOSPC` if there are too many.
    func addZone(_ zone: CoalescedZone) throws(Errno) {
        try lock.withLock { () throws(Errno) in
            guard zones.count(where: { $0.space == zone.space }) < Self.maximumZoneCount else { throw .noSpace }
            zones.append(zone)
            publish(zone.space)
        }
    }

    /// Removes every zone that contains `range`; there may be none.
    func removeZones(containing range: CoalescedZone) {
        lock.withLock {
            let count = zones.count
            zones.removeAll { $0.space == range.space && $0.contains(range.address, byteCount: range.byteCount) }
            if zones.count != count { publish(range.space) }
        }
    }

    /// Publishes the table of a space anew, and waits until nobody reads the old one.
    /// > Concurrency: `lock` is held.
    private func publish(_ space: WriteSpace) {
        let events = events.filter { $0.trigger.space == space }
        let zones = zones.filter { $0.space == space }
        let table = WriteTable.make(events.map { ($0.trigger, $0.descriptor.rawValue) }, zones)
        switch space {
        case .ports: replace(ports, with: table)
        case .memory: replace(memory, with: table)
        case .channels: WriteTable.free(table)
        }
    }

    private func replace(_ current: borrowing RCUPointer<WriteTable>, with new: UnsafeMutablePointer<WriteTable>?) {
        guard let old = current.exchange(new) else { return }
        ThreadRCU.domain.synchronize()
        WriteTable.free(old)
    }
}
