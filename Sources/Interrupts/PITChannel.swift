/// The registers of one 8254 counter as clients save and load them.
///
/// The corresponding C structure is `kvm_pit_channel_state`.
public struct PITChannelState: Equatable, Sendable {
    /// The reload value, 1…65,536.
    public var count: UInt32 = 0x10000
    public var latchedCount: UInt16 = 0
    /// Bytes of the latched count that wait to be read, as an access mode of the control word (0 none, 1 low, 2 high, 3 low
    /// then high) or 4: the high byte of the two.
    public var latchedCountStep: UInt8 = 0
    public var isStatusLatched = false
    public var latchedStatus: UInt8 = 0
    /// As `latchedCountStep`, for reads of the running count.
    public var readStep: UInt8 = 0
    /// As `latchedCountStep`, for writes of the reload value.
    public var writeStep: UInt8 = 0
    public var writeLatch: UInt8 = 0
    /// Bits 5–4 of the control word: 1 low byte, 2 high byte, 3 both.
    public var accessMode: UInt8 = 0
    /// 0…5, or 0xFF for a counter that was never programmed.
    public var mode: UInt8 = Self.unprogrammed
    public var isDecimal = false
    public var gate = true
    /// The monotonic time at which counting began, in nanoseconds.
    public var loadTimeNanoseconds: UInt64 = 0

    static let unprogrammed: UInt8 = 0xFF

    public init() {}
}

/// One counter of the 8254: arithmetic on the time since it was loaded; nothing runs.
///
/// A new count takes effect when it is written, also in modes 2 and 3 where the hardware ends the cycle first.
struct PITChannel: Sendable {
    static let frequencyHertz: UInt64 = 1_193_182

    var registers = PITChannelState()
    /// A count was written since the last control word.
    var isLoaded = true
    /// When the gate stopped the counter (modes 0, 2, 3 and 4); nil while it counts.
    var stopTime: UInt64?

    private static let highOfTwo: UInt8 = 4

    mutating func load(_ new: PITChannelState) {
        registers = new
        registers.count = min(max(new.count == 0 ? 0x10000 : new.count, 1), 0x10000)
        isLoaded = new.mode != PITChannelState.unprogrammed
        if isLoaded { registers.mode = Self.normalized(new.mode) }
        registers.accessMode = new.accessMode & 3
        stopTime = new.gate ? nil : new.loadTimeNanoseconds
    }

    /// Modes 6 and 7 are other names of 2 and 3.
    private static func normalized(_ mode: UInt8) -> UInt8 { mode & 7 > 5 ? mode & 3 : mode & 7 }

    // MARK: Counting

    /// Ticks since the count was loaded.
    func elapsedTicks(at now: UInt64) -> UInt64 {
        let end = stopTime ?? now
        guard end > registers.loadTimeNanoseconds else { return 0 }
        return scale(end &- registers.loadTimeNanoseconds, by: Self.frequencyHertz, over: 1_000_000_000)
    }

    /// The counter as it would be read.
    func currentCount(at now: UInt64) -> UInt16 {
        let count = UInt64(registers.count)
        let elapsed = elapsedTicks(at: now)
        switch registers.mode {
        case 2:
            return encoded(count &- elapsed % count)
        case 3:
            // Two at a time: down once for each half of the square wave.
            return encoded(count &- (elapsed &* 2) % count)
        default:
            // The counter runs on below 0, through all its values.
            let range: UInt64 = registers.isDecimal ? 10_000 : 0x10000
            return encoded((count &+ range &- elapsed % range) % range)
        }
    }

    /// The level of the OUT pin.
    func output(at now: UInt64) -> Bool {
        guard isLoaded else { return registers.mode != 0 }
        let count = UInt64(registers.count)
        let elapsed = elapsedTicks(at: now)
        switch registers.mode {
        case 0: return elapsed >= count
        case 1: return elapsed >= count
        case 2: return !registers.gate || elapsed % count != count &- 1
        case 3: return !registers.gate || elapsed % count < (count &+ 1) >> 1
        default: return elapsed != count
        }
    }

    /// Ticks from one rising edge of OUT to the next; nil if there is only one.
    var period: UInt64? {
        registers.mode == 2 || registers.mode == 3 ? UInt64(registers.count) : nil
    }

    /// The time of the `index`th rising edge of OUT after the load, from 1 on; nil if it does not come.
    func edgeTime(_ index: UInt64) -> UInt64? {
        guard isLoaded, stopTime == nil, index > 0, registers.mode != PITChannelState.unprogrammed else { return nil }
        let ticks: UInt64
        switch registers.mode {
        case 2, 3: ticks = UInt64(registers.count).multipliedReportingOverflow(by: index).partialValue
        case 4, 5: ticks = UInt64(registers.count) &+ 1
        default: ticks = UInt64(registers.count)
        }
        guard period != nil || index == 1 else { return nil }
        let delay = scale(ticks, by: 1_000_000_000, over: Self.frequencyHertz, roundingUp: true)
        return registers.loadTimeNanoseconds.saturatingAdd(delay)
    }

    private func encoded(_ value: UInt64) -> UInt16 {
        guard registers.isDecimal else { return UInt16(truncatingIfNeeded: value) }
        let value = value % 10_000
        let digits = (value / 1000) << 12 | (value / 100 % 10) << 8 | (value / 10 % 10) << 4 | value % 10
        return UInt16(truncatingIfNeeded: digits)
    }

    private func decoded(_ value: UInt16) -> UInt32 {
        guard registers.isDecimal else { return value == 0 ? 0x10000 : UInt32(value) }
        var number: UInt32 = 0
        for shift: UInt16 in [12, 8, 4, 0] { number = number &* 10 &+ UInt32(min(value >> shift & 0xF, 9)) }
        return number == 0 ? 10_000 : number
    }

    // MARK: Gate

    mutating func setGate(_ level: Bool, now: UInt64) {
        guard level != registers.gate else { return }
        registers.gate = level
        switch registers.mode {
        case 1, 5:
            // A rising edge triggers; the level does not matter.
            if level { registers.loadTimeNanoseconds = now }
        case 2, 3:
            stopTime = level ? nil : now
            if level { registers.loadTimeNanoseconds = now }
        default:
            if level, let stopped = stopTime {
                registers.loadTimeNanoseconds = registers.loadTimeNanoseconds.saturatingAdd(now &- min(stopped, now))
            }
            stopTime = level ? nil : now
        }
    }

    // MARK: Ports

    /// A control word for this channel, other than a latch command.
    mutating func setControl(_ value: UInt8) {
        registers.accessMode = value >> 4 & 3
        registers.readStep = registers.accessMode
        registers.writeStep = registers.accessMode
        registers.mode = Self.normalized(value >> 1)
        registers.isDecimal = value & 1 != 0
        registers.latchedCountStep = 0
        registers.isStatusLatched = false
        isLoaded = false
    }

    mutating func latchCount(at now: UInt64) {
        guard registers.latchedCountStep == 0 else { return }
        registers.latchedCount = currentCount(at: now)
        registers.latchedCountStep = registers.accessMode
    }

    mutating func latchStatus(at now: UInt64) {
        guard !registers.isStatusLatched else { return }
        registers.latchedStatus =
            (output(at: now) ? 0x80 : 0) | (isLoaded ? 0 : 0x40) | registers.accessMode << 4 | registers.mode << 1
            | (registers.isDecimal ? 1 : 0)
        registers.isStatusLatched = true
    }

    mutating func read(at now: UInt64) -> UInt8 {
        if registers.isStatusLatched {
            registers.isStatusLatched = false
            return registers.latchedStatus
        }
        if registers.latchedCountStep != 0 {
            return Self.byte(of: registers.latchedCount, step: &registers.latchedCountStep, next: 0)
        }
        return Self.byte(of: currentCount(at: now), step: &registers.readStep, next: registers.accessMode)
    }

    private static func byte(of value: UInt16, step: inout UInt8, next: UInt8) -> UInt8 {
        switch step {
        case 3:
            step = highOfTwo
            return UInt8(truncatingIfNeeded: value)
        case 2, highOfTwo:
            step = next
            return UInt8(truncatingIfNeeded: value >> 8)
        default:
            step = next
            return UInt8(truncatingIfNeeded: value)
        }
    }

    /// - Returns: whether a count was loaded.
    mutating func write(_ value: UInt8, now: UInt64) -> Bool {
        switch registers.writeStep {
        case 3:
            registers.writeLatch = value
            registers.writeStep = Self.highOfTwo
            // The first byte stops a counter in mode 0.
            if registers.mode == 0 { isLoaded = false }
            return false
        case Self.highOfTwo:
            registers.writeStep = 3
            loadCount(UInt16(value) << 8 | UInt16(registers.writeLatch), now: now)
        case 2:
            loadCount(UInt16(value) << 8, now: now)
        default:
            loadCount(UInt16(value), now: now)
        }
        return true
    }

    private mutating func loadCount(_ value: UInt16, now: UInt64) {
        registers.count = decoded(value)
        registers.loadTimeNanoseconds = now
        isLoaded = true
        let stopsWithGate = registers.mode != 1 && registers.mode != 5
        stopTime = stopsWithGate && !registers.gate ? now : nil
    }
}
