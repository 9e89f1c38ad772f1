/// Who drives an interrupt line. A line is high while any of its sources is.
public struct InterruptSource: Equatable, Sendable {
    let bit: UInt8

    /// The client's `KVM_IRQ_LINE` and irqfds.
    public static let client = InterruptSource(bit: 1 << 0)
    /// Irqfds whose level falls with the end of interrupt.
    public static let resampling = InterruptSource(bit: 1 << 1)
    public static let timer = InterruptSource(bit: 1 << 2)
}
