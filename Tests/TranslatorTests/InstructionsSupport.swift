import X86

/// A state page of its own, zeroed.
final class StatePage {
    let state: CPUState

    init() {
        let base = UnsafeMutableRawPointer.allocate(byteCount: CPUState.byteCount, alignment: 4096)
        base.initializeMemory(as: UInt8.self, repeating: 0, count: CPUState.byteCount)
        state = CPUState(base: base)
    }

    deinit { state.base.deallocate() }
}

/// Bytes at an aligned address.
final class Image {
    let base: UnsafeMutableRawPointer
    let byteCount: Int

    init(byteCount: Int, filledWith byte: UInt8 = 0) {
        self.byteCount = byteCount
        base = .allocate(byteCount: byteCount, alignment: 64)
        base.initializeMemory(as: UInt8.self, repeating: byte, count: byteCount)
    }

    deinit { base.deallocate() }

    var bytes: [UInt8] { Array(UnsafeRawBufferPointer(start: base, count: byteCount)) }

    func word16(_ offset: Int) -> UInt16 { base.loadUnaligned(fromByteOffset: offset, as: UInt16.self) }
    func word32(_ offset: Int) -> UInt32 { base.loadUnaligned(fromByteOffset: offset, as: UInt32.self) }
    func word64(_ offset: Int) -> UInt64 { base.loadUnaligned(fromByteOffset: offset, as: UInt64.self) }
}

/// SplitMix64: a seed reproduces the sequence.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
}
