import CReference
import RCU

/// Read lock, dereference and unlock, against liburcu.
enum RCUCases {
    struct Object: ~Copyable {
        var value: UInt64
    }

    final class Reader {
        let reader: RCUReader
        init(_ domain: RCUDomain) { reader = RCUReader(domain) }
    }

    /// Lives as long as the process.
    nonisolated(unsafe) static let current: UnsafeMutablePointer<RCUPointer<Object>> = {
        let object = UnsafeMutablePointer<Object>.allocate(capacity: 1)
        object.initialize(to: Object(value: 3))
        let pointer = UnsafeMutablePointer<RCUPointer<Object>>.allocate(capacity: 1)
        pointer.initialize(to: RCUPointer(object))
        return pointer
    }()

    static let count = 100_000

    static var groups: [Group] {
        reference_set_current(3)
        reference_register_qsbr()
        reference_register_memb()
        reference_register_mb()
        let current = current
        let reader = Reader(RCUDomain())
        reader.reader.online()
        let blocking = SRCUDomain()
        return [
            Group(
                title: "read lock, dereference, unlock; quiescent-state flavour",
                cases: [
                    c("liburcu-qsbr", reference_urcu_qsbr),
                    swift("RCUReader") { quiescentState(reader.reader, current, $0) },
                    c("a plain load, in C", reference_plain)
                ]),
            Group(
                title: "the same and a quiescent state",
                cases: [
                    c("liburcu-qsbr", reference_urcu_qsbr_quiescent),
                    swift("RCUReader") { quiescentStateEach(reader.reader, current, $0) }
                ]),
            Group(
                title: "read lock, dereference, unlock; membarrier flavour",
                cases: [
                    c("liburcu-memb", reference_urcu_memb),
                    swift("ThreadRCU") { membarrier(current, $0) },
                    swift("ThreadRCU, inside another section") { count in
                        ThreadRCU.withReadSection { _ in membarrier(current, count) }
                    }
                ]),
            Group(
                title: "read lock, dereference, unlock; readers that fence",
                cases: [
                    c("liburcu-mb", reference_urcu_mb),
                    swift("SRCUDomain") { blockingReader(blocking, current, $0) }
                ])
        ]
    }

    private static func c(_ name: String, _ body: @escaping (UInt64) -> UInt64) -> Case {
        Case(name: name, operations: count) { body(UInt64(count)) }
    }

    private static func swift(_ name: String, _ body: @escaping (Int) -> UInt64) -> Case {
        Case(name: name, operations: count) { body(count) }
    }

    // The loops, each a function of its own to look at in the assembly, with four sections in a turn as in C.

    @inline(never)
    static func quiescentState(
        _ reader: borrowing RCUReader, _ current: UnsafeMutablePointer<RCUPointer<Object>>, _ count: Int
    ) -> UInt64 {
        var sum: UInt64 = 0
        var left = count
        while left > 0 {
            left &-= 4
            sum &+= reader.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            sum &+= reader.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            sum &+= reader.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            sum &+= reader.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
        }
        return sum
    }

    @inline(never)
    static func quiescentStateEach(
        _ reader: borrowing RCUReader, _ current: UnsafeMutablePointer<RCUPointer<Object>>, _ count: Int
    ) -> UInt64 {
        var sum: UInt64 = 0
        var left = count
        while left > 0 {
            left &-= 4
            sum &+= reader.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            reader.quiescentState()
            sum &+= reader.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            reader.quiescentState()
            sum &+= reader.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            reader.quiescentState()
            sum &+= reader.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            reader.quiescentState()
        }
        return sum
    }

    @inline(never)
    static func membarrier(_ current: UnsafeMutablePointer<RCUPointer<Object>>, _ count: Int) -> UInt64 {
        var sum: UInt64 = 0
        var left = count
        while left > 0 {
            left &-= 4
            sum &+= ThreadRCU.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            sum &+= ThreadRCU.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            sum &+= ThreadRCU.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            sum &+= ThreadRCU.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
        }
        return sum
    }

    @inline(never)
    static func blockingReader(
        _ domain: SRCUDomain, _ current: UnsafeMutablePointer<RCUPointer<Object>>, _ count: Int
    ) -> UInt64 {
        var sum: UInt64 = 0
        var left = count
        while left > 0 {
            left &-= 4
            sum &+= domain.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            sum &+= domain.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            sum &+= domain.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
            sum &+= domain.withReadSection { section in current.pointee.load(in: section)!.pointee.value }
        }
        return sum
    }
}
