/// A line in which Martlet differs from QEMU, and is right, or allowed to.
struct AcceptedDifference {
    var guest: String
    /// What the line begins with.
    var title: String
    /// What Martlet's line ends with; empty for any end.
    var martlet = ""
    /// It stands for all lines that begin so.
    var coversMany = false
    /// Why Martlet's line is right, with the manual's section.
    var reason: String

    func covers(_ difference: Difference) -> Bool {
        difference.martlet.hasPrefix(title) && difference.qemu.hasPrefix(title) && difference.martlet.hasSuffix(martlet)
    }

    static let all: [AcceptedDifference] = []
}
