/// How an exception combines with one that its delivery raises.
///
/// > Source: APM volume 2, section 8.2.9; Intel SDM volume 3, tables 6-4 and 6-5.
public enum ExceptionClass: Sendable {
    case benign, contributory, pageFault, doubleFault

    /// The class of an exception. Interrupts, software interrupts and NMI are benign whatever their vector.
    @inlinable public init(exceptionVector vector: UInt8) {
        switch vector {
        case 0, 10, 11, 12, 13, 21: self = .contributory
        case 14, 20: self = .pageFault
        case 8: self = .doubleFault
        default: self = .benign
        }
    }

    @inlinable public init(_ event: PendingEvent) {
        self = event.kind == .exception ? Self(exceptionVector: event.vector) : .benign
    }

    /// What follows when delivery of an event of class `self` raises an exception of class `second`.
    @inlinable public func followed(by second: ExceptionClass) -> Escalation {
        switch (self, second) {
        case (.doubleFault, .benign): .second
        case (.doubleFault, _): .shutdown
        case (.contributory, .contributory), (.pageFault, .contributory), (.pageFault, .pageFault): .doubleFault
        default: .second
        }
    }
}

/// What the processor does with an exception raised while it delivers an event.
public enum Escalation: Equatable, Sendable {
    /// It delivers the second exception instead.
    case second
    case doubleFault
    case shutdown
}
