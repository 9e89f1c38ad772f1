import Glibc
import Host
import RCU
import Synchronization

/// Steps that threads take in turn.
final class Stage: Sendable {
    private let stage = Atomic<Int>(0)
    let readerLeft = Atomic<Bool>(false)
    let sawReaderLeave = Atomic<Bool>(false)
    var value: Int { stage.load(ordering: .relaxed) }
    func set(_ number: Int) { stage.store(number, ordering: .relaxed) }
    func wait(for number: Int) { while value < number { sched_yield() } }
}

/// The kinds of domains.
enum DomainKind: CaseIterable, Sendable {
    case quiescentState, membarrier, blocking

    /// A new domain, where there can be several.
    func makeDomain() -> ReclamationDomain {
        switch self {
        case .quiescentState: RCUDomain()
        case .membarrier: ThreadRCU.domain
        case .blocking: SRCUDomain()
        }
    }

    /// Runs `body` inside a read section of `domain`.
    func withReadSection(_ domain: ReclamationDomain, _ body: (borrowing ReadSection) -> Void) {
        switch self {
        case .quiescentState:
            let reader = RCUReader(domain as! RCUDomain)
            reader.online()
            reader.withReadSection(body)
            reader.offline()
        case .membarrier: ThreadRCU.withReadSection(body)
        case .blocking: (domain as! SRCUDomain).withReadSection(body)
        }
    }
}
