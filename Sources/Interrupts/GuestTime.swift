/// One moment, as the two clocks show it that interrupt hardware counts by.
///
/// Nothing in this target reads a clock: who calls knows the time, and tests choose it.
public struct GuestTime: Equatable, Sendable {
    /// Monotonic time in nanoseconds, any epoch.
    public var nanoseconds: UInt64
    /// The guest's time-stamp counter.
    public var tsc: UInt64

    public init(nanoseconds: UInt64, tsc: UInt64 = 0) {
        self.nanoseconds = nanoseconds
        self.tsc = tsc
    }
}

/// `value * multiplier / divisor` without intermediate overflow; saturates, also for divisor 0.
func scale(_ value: UInt64, by multiplier: UInt64, over divisor: UInt64, roundingUp: Bool = false) -> UInt64 {
    let product = value.multipliedFullWidth(by: multiplier)
    guard product.high < divisor else { return .max }
    let (quotient, remainder) = divisor.dividingFullWidth(product)
    guard roundingUp, remainder != 0, quotient != .max else { return quotient }
    return quotient &+ 1
}

extension UInt64 {
    /// The sum, or the largest number if it does not fit.
    func saturatingAdd(_ other: UInt64) -> UInt64 {
        let (sum, overflow) = addingReportingOverflow(other)
        return overflow ? .max : sum
    }
}
