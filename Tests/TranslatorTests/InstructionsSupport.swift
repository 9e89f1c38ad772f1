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
