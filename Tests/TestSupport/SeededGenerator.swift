import Glibc

/// Repeatable pseudo-random numbers (SplitMix64): a seed gives the same numbers everywhere.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    public let seed: UInt64
    @usableFromInline var state: UInt64

    @inlinable public init(seed: UInt64 = .random(in: 0 ... .max)) {
        self.seed = seed
        state = seed
    }

    @inlinable public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }

    /// True once in `count` times on average.
    @inlinable public mutating func oneIn(_ count: UInt64) -> Bool { next() % count == 0 }
}

/// The seed of this run: that of the environment's `MARTLET_SEED`, or a new one; printed, so that a failure can be
/// repeated.
public func runSeed(_ test: String) -> UInt64 {
    let seed = getenv("MARTLET_SEED").flatMap { UInt64(String(cString: $0)) } ?? UInt64.random(in: 0...UInt64.max)
    print("\(test): MARTLET_SEED=\(seed)")
    return seed
}

/// How long a stress test runs: what the environment's `MARTLET_STRESS_SECONDS` says, or `usual`.
public func stressSeconds(_ usual: Double) -> Double {
    getenv("MARTLET_STRESS_SECONDS").flatMap { Double(String(cString: $0)) } ?? usual
}
