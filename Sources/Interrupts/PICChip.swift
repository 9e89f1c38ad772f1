/// The registers of one 8259 as clients save and load them.
///
/// The corresponding C structure is `kvm_pic_state`; fields that are flags there are flags here.
public struct PICState: Equatable, Sendable {
    /// The levels that the lines had last, to see edges.
    public var lastLevels: UInt8 = 0
    /// IRR.
    public var requests: UInt8 = 0
    /// IMR.
    public var mask: UInt8 = 0
    /// ISR.
    public var inService: UInt8 = 0
    /// The pin of highest priority.
    public var highestPriorityPin: UInt8 = 0
    public var vectorBase: UInt8 = 0
    /// Reads of the command port give the ISR instead of the IRR.
    public var readsInService = false
    /// The next read is an acknowledge cycle.
    public var isPolled = false
    public var hasSpecialMask = false
    /// The initialisation command word that is awaited: 0 none, 1 ICW2, 2 ICW3, 3 ICW4.
    public var initializationStep: UInt8 = 0
    public var hasAutomaticEnd = false
    public var rotatesOnAutomaticEnd = false
    public var isSpecialFullyNested = false
    /// The initialisation sequence in progress ends with ICW4.
    public var expectsFourthWord = false
    /// ELCR: one bit per level-triggered pin.
    public var edgeLevelControl: UInt8 = 0
    /// The bits of ELCR that can be set.
    public var edgeLevelMask: UInt8 = 0

    public init() {}
}

/// One 8259, without its wiring.
struct PICChip: Sendable {
    var registers = PICState()

    init(edgeLevelMask: UInt8) { registers.edgeLevelMask = edgeLevelMask }

    mutating func load(_ new: PICState) {
        let mask = registers.edgeLevelMask
        registers = new
        registers.edgeLevelMask = mask
        registers.highestPriorityPin &= 7
        registers.initializationStep &= 3
    }

    // MARK: Requests

    /// - Returns: -1 if masked, 0 if pending already, else 1.
    mutating func setLine(_ pin: Int, _ isHigh: Bool) -> Int {
        let bit = UInt8(1) << UInt8(pin & 7)
        var isNew = true
        if registers.edgeLevelControl & bit != 0 {
            if isHigh {
                isNew = registers.requests & bit == 0
                registers.requests |= bit
                registers.lastLevels |= bit
            } else {
                registers.requests &= ~bit
                registers.lastLevels &= ~bit
            }
        } else if isHigh {
            if registers.lastLevels & bit == 0 {
                isNew = registers.requests & bit == 0
                registers.requests |= bit
            }
            registers.lastLevels |= bit
        } else {
            registers.lastLevels &= ~bit
        }
        if registers.mask & bit != 0 { return -1 }
        return isNew ? 1 : 0
    }

    /// The pin whose request the chip would forward: unmasked, and of higher priority than all in service.
    func highestRequest(isFirst: Bool) -> Int? {
        guard let request = distance(registers.requests & ~registers.mask) else { return nil }
        var blocking = registers.inService
        if registers.hasSpecialMask { blocking &= ~registers.mask }
        // The second chip sorts its requests itself, so one in service does not block the next.
        if isFirst, registers.isSpecialFullyNested { blocking &= ~(1 << 2) }
        if let serviced = distance(blocking), serviced <= request { return nil }
        return pin(atDistance: request)
    }

    /// - Returns: whether the service has ended at once (automatic end of interrupt).
    mutating func beginService(_ pin: Int) -> Bool {
        let bit = UInt8(1) << UInt8(pin & 7)
        if registers.edgeLevelControl & bit == 0 { registers.requests &= ~bit }
        guard registers.hasAutomaticEnd else {
            registers.inService |= bit
            return false
        }
        if registers.rotatesOnAutomaticEnd { registers.highestPriorityPin = UInt8(pin + 1) & 7 }
        return true
    }

    /// How far below the highest priority the first pin of `set` is; nil if it is empty.
    private func distance(_ set: UInt8) -> Int? {
        guard set != 0 else { return nil }
        let first = registers.highestPriorityPin & 7
        let rotated = set >> first | (first == 0 ? 0 : set << (8 - first))
        return rotated.trailingZeroBitCount
    }

    private func pin(atDistance distance: Int) -> Int { (distance + Int(registers.highestPriorityPin)) & 7 }

    // MARK: Ports

    mutating func read(isData: Bool, isFirst: Bool) -> UInt8 {
        if registers.isPolled {
            registers.isPolled = false
            guard let pin = highestRequest(isFirst: isFirst) else { return 0x07 }
            _ = beginService(pin)
            return 0x80 | UInt8(pin)
        }
        if isData { return registers.mask }
        return registers.readsInService ? registers.inService : registers.requests
    }

    mutating func setEdgeLevelControl(_ value: UInt8) {
        registers.edgeLevelControl = value & registers.edgeLevelMask
    }

    /// - Returns: the pins whose service ended.
    mutating func write(_ value: UInt8, isData: Bool) -> UInt8 {
        if isData {
            writeData(value)
            return 0
        }
        if value & 0x10 != 0 {
            beginInitialization(value)
            return 0
        }
        guard value & 0x08 != 0 else { return writeOperation(value) }
        if value & 0x04 != 0 { registers.isPolled = true }
        if value & 0x02 != 0 { registers.readsInService = value & 1 != 0 }
        if value & 0x40 != 0 { registers.hasSpecialMask = value & 0x20 != 0 }
        return 0
    }

    private mutating func writeData(_ value: UInt8) {
        switch registers.initializationStep {
        case 0:
            registers.mask = value
        case 1:
            registers.vectorBase = value & 0xF8
            registers.initializationStep = 2
        case 2:
            registers.initializationStep = registers.expectsFourthWord ? 3 : 0
        default:
            registers.isSpecialFullyNested = value & 0x10 != 0
            registers.hasAutomaticEnd = value & 0x02 != 0
            registers.initializationStep = 0
        }
    }

    /// ICW1. Requests of edges are forgotten; level-triggered ones stay as their lines are.
    private mutating func beginInitialization(_ value: UInt8) {
        registers.lastLevels = 0
        registers.requests &= registers.edgeLevelControl
        registers.mask = 0
        registers.inService = 0
        registers.highestPriorityPin = 0
        registers.hasSpecialMask = false
        registers.readsInService = false
        registers.isPolled = false
        registers.rotatesOnAutomaticEnd = false
        registers.expectsFourthWord = value & 1 != 0
        if !registers.expectsFourthWord {
            registers.isSpecialFullyNested = false
            registers.hasAutomaticEnd = false
        }
        registers.initializationStep = 1
    }

    /// OCW2.
    private mutating func writeOperation(_ value: UInt8) -> UInt8 {
        let command = value >> 5
        let named = Int(value & 7)
        switch command {
        case 0, 4:
            registers.rotatesOnAutomaticEnd = command == 4
        case 1, 5:
            var candidates = registers.inService
            if registers.hasSpecialMask { candidates &= ~registers.mask }
            guard let nearest = distance(candidates) else { return 0 }
            return endService(pin(atDistance: nearest), rotating: command == 5)
        case 3, 7:
            return endService(named, rotating: command == 7)
        case 6:
            registers.highestPriorityPin = UInt8(named + 1) & 7
        default:
            break
        }
        return 0
    }

    private mutating func endService(_ pin: Int, rotating: Bool) -> UInt8 {
        let bit = UInt8(1) << UInt8(pin & 7)
        let ended = registers.inService & bit
        registers.inService &= ~bit
        if rotating { registers.highestPriorityPin = UInt8(pin + 1) & 7 }
        return ended
    }
}
