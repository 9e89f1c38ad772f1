/// What one space's writes lead to, for readers without locks: sorted arrays that never change.
struct WriteTable: ~Copyable {
    /// One event; the address is in `eventAddresses`.
    private struct Event {
        let byteCount: Int
        let isMatched: Bool
        let value: UInt64
        let descriptor: Int32
    }

    private struct Zone {
        let start: UInt64
        let end: UInt64
        /// The greatest end of this zone and those before it.
        let reach: UInt64
    }

    /// Ascending; several events may have one address.
    private let eventAddresses: UnsafeMutableBufferPointer<UInt64>
    private let events: UnsafeMutableBufferPointer<Event>
    /// By their starts.
    private let zones: UnsafeMutableBufferPointer<Zone>

    /// A table of these; nil if there are none.
    static func make(
        _ events: [(trigger: EventTrigger, descriptor: Int32)], _ zones: [CoalescedZone]
    ) -> UnsafeMutablePointer<WriteTable>? {
        guard !events.isEmpty || !zones.isEmpty else { return nil }
        let pointer = UnsafeMutablePointer<WriteTable>.allocate(capacity: 1)
        pointer.initialize(to: WriteTable(events, zones))
        return pointer
    }

    /// Frees what ``make(_:_:)`` returned.
    static func free(_ table: UnsafeMutablePointer<WriteTable>?) {
        // SAFETY: the caller knows that nobody reads it any more.
        table?.deinitialize(count: 1)
        table?.deallocate()
    }

    private init(_ events: [(trigger: EventTrigger, descriptor: Int32)], _ zones: [CoalescedZone]) {
        let events = events.sorted { $0.trigger.address < $1.trigger.address }
        eventAddresses = .allocate(capacity: events.count)
        _ = eventAddresses.initialize(from: events.lazy.map(\.trigger.address))
        self.events = .allocate(capacity: events.count)
        _ = self.events.initialize(
            from: events.lazy.map { event in
                Event(
                    byteCount: event.trigger.byteCount, isMatched: event.trigger.value != nil,
                    value: event.trigger.value ?? 0, descriptor: event.descriptor)
            })
        var reach: UInt64 = 0
        self.zones = .allocate(capacity: zones.count)
        _ = self.zones.initialize(
            from: zones.sorted { $0.address < $1.address }.map { zone in
                let end = zone.address &+ zone.byteCount
                reach = max(reach, end)
                return Zone(start: zone.address, end: end, reach: reach)
            })
    }

    deinit {
        eventAddresses.deallocate()
        events.deallocate()
        zones.deallocate()
    }

    /// The descriptor of the event that a write signals.
    /// - Complexity: logarithmic in the number of events, linear in that of events with this address.
    func event(at address: UInt64, byteCount: Int, value: UInt64) -> Int32? {
        var index = Self.firstIndex(eventAddresses.count) { eventAddresses[$0] >= address }
        while index < eventAddresses.count, eventAddresses[index] == address {
            let event = events[index]
            if event.byteCount == 0 || event.byteCount == byteCount && (!event.isMatched || event.value == value) {
                return event.descriptor
            }
            index += 1
        }
        return nil
    }

    /// Whether a zone contains the whole write.
    /// - Complexity: logarithmic in the number of zones, linear in that of zones which overlap.
    func isCoalesced(_ address: UInt64, byteCount: Int) -> Bool {
        let (end, overflow) = address.addingReportingOverflow(UInt64(byteCount))
        guard !overflow else { return false }
        var index = Self.firstIndex(zones.count) { zones[$0].start > address }
        while index > 0, zones[index - 1].reach >= end {
            index -= 1
            if zones[index].end >= end { return true }
        }
        return false
    }

    /// The first index for which `isBehind` holds, as it then does for all others; `count` if there is none.
    private static func firstIndex(_ count: Int, _ isBehind: (Int) -> Bool) -> Int {
        var low = 0
        var high = count
        while low < high {
            let middle = (low + high) / 2
            if isBehind(middle) { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
