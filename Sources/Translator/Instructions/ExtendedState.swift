import CHost
import Glibc
import X86

/// The memory format of FXSAVE and of XSAVE without compaction.
///
///     0     x87 control, status, tags; (opcode, instruction and data pointer: kept as zero)
///     24    MXCSR and its mask
///     32    ST0–ST7, 16 bytes each
///     160   XMM0–XMM15
///     416   not touched
///     512   header: XSTATE_BV, XCOMP_BV, 48 bytes not touched
///     576   upper halves of YMM0–YMM15
///
/// > Source: Intel SDM volume 1, section 13.4; APM volume 2, section 11.5.
package enum ExtendedState {
    // Components, as bits of XCR0.
    package static var x87: UInt64 { 1 }
    package static var sse: UInt64 { 2 }
    package static var avx: UInt64 { 4 }

    package static var legacyByteCount: Int { 512 }
    package static var headerOffset: Int { 512 }
    package static var avxOffset: Int { 576 }
    /// The size with all components.
    package static var maximumByteCount: Int { 832 }

    /// The size of an XSAVE area for the components in `mask`.
    package static func byteCount(_ mask: UInt64) -> Int { mask & avx != 0 ? maximumByteCount : avxOffset }

    /// The bits of MXCSR that can be set: those of the host, because LDMXCSR is copied. MM exists with misaligned SSE mode.
    package static let mxcsrMask: UInt32 = {
        let hasExtension = martlet_cpuid(0x8000_0000, 0).eax >= 0x8000_0001
        return hasExtension && martlet_cpuid(0x8000_0001, 0).ecx & 1 << 7 != 0 ? 0x2_FFFF : 0xFFFF
    }()
    package static var initialMXCSR: UInt32 { 0x1F80 }

    /// The x87 status word with ES and B as the processor derives them from exception flags and masks.
    package static func statusWord(_ status: UInt16, control: UInt16) -> UInt16 {
        status & ~control & 0x3F != 0 ? status | 0x8080 : status & ~0x8080
    }

    /// The x87 control word as the processor holds it: bit 6 is always 1, bits 7 and 13–15 never.
    package static func controlWord(_ value: UInt16) -> UInt16 { value & 0x1F3F | 0x40 }
}

// MARK: Saving

extension ExtendedState {
    /// Writes the x87 part.
    package static func saveX87(_ state: CPUState, to image: UnsafeMutableRawPointer) {
        let area = state.fxsaveArea
        // The host's x87 pointers are none of the guest's business; the processor keeps them zero without an exception.
        let words = area.load(as: UInt64.self) & 0xFF_FFFF_FFFF
        image.storeBytes(of: words, as: UInt64.self)
        image.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
        image.storeBytes(of: 0, toByteOffset: 16, as: UInt64.self)
        memcpy(image + 32, area + 32, 128)
    }

    package static func saveMXCSR(_ state: CPUState, to image: UnsafeMutableRawPointer) {
        image.storeBytes(of: state.mxcsr, toByteOffset: 24, as: UInt32.self)
        image.storeBytes(of: mxcsrMask, toByteOffset: 28, as: UInt32.self)
    }

    /// Writes the first `registerCount` (8, or 16 in 64-bit mode) XMM registers.
    package static func saveXMM(_ state: CPUState, to image: UnsafeMutableRawPointer, registerCount: Int) {
        for index in 0..<registerCount {
            (image + 160 + index * 16).copyMemory(from: state.vectorRegister(index), byteCount: 16)
        }
    }

    package static func saveAVX(_ state: CPUState, to image: UnsafeMutableRawPointer, registerCount: Int) {
        for index in 0..<registerCount {
            (image + avxOffset + index * 16).copyMemory(from: state.vectorRegister(index) + 16, byteCount: 16)
        }
    }

    /// Whether an upper half of YMM0–YMM15 is not zero.
    package static func isAVXInUse(_ state: CPUState) -> Bool {
        var bits: UInt64 = 0
        for index in 0..<16 {
            let upper = state.vectorRegister(index) + 16
            bits |= upper.load(as: UInt64.self) | upper.load(fromByteOffset: 8, as: UInt64.self)
        }
        return bits != 0
    }

    /// XSAVE, and XSAVEOPT (`isOptimized`), of the components in `requested` (a part of XCR0).
    package static func save(
        _ state: CPUState, to image: UnsafeMutableRawPointer, requested: UInt64, registerCount: Int, isOptimized: Bool
    ) {
        // x87 and SSE count as in use always.
        let inUse = x87 | sse | (requested & avx != 0 && isAVXInUse(state) ? avx : 0)
        if requested & x87 != 0 { saveX87(state, to: image) }
        if requested & (sse | avx) != 0 { saveMXCSR(state, to: image) }
        if requested & sse != 0 { saveXMM(state, to: image, registerCount: registerCount) }
        if requested & avx != 0 && (inUse & avx != 0 || !isOptimized) {
            saveAVX(state, to: image, registerCount: registerCount)
        }
        let old = image.load(fromByteOffset: headerOffset, as: UInt64.self)
        image.storeBytes(of: old & ~requested | inUse & requested, toByteOffset: headerOffset, as: UInt64.self)
    }
}

// MARK: Restoring

extension ExtendedState {
    package static func loadX87(_ state: CPUState, from image: UnsafeRawPointer) {
        let area = state.fxsaveArea
        let words = image.load(as: UInt64.self)
        setX87Control(
            state, control: UInt16(truncatingIfNeeded: words), status: UInt16(truncatingIfNeeded: words >> 16),
            tags: UInt8(truncatingIfNeeded: words >> 32))
        for index in 0..<8 {
            let offset = 32 + index * 16
            area.storeBytes(
                of: image.load(fromByteOffset: offset, as: UInt64.self), toByteOffset: offset, as: UInt64.self)
            let high = image.load(fromByteOffset: offset + 8, as: UInt64.self) & 0xFFFF
            area.storeBytes(of: high, toByteOffset: offset + 8, as: UInt64.self)
        }
    }

    /// Sets control word, status word and abridged tags (bit n: physical register n is not empty), and clears the
    /// pointers. Registers stay where they are relative to the top of the stack.
    package static func setX87Control(_ state: CPUState, control: UInt16, status: UInt16, tags: UInt8) {
        let area = state.fxsaveArea
        let control = controlWord(control)
        let status = statusWord(status, control: control)
        area.storeBytes(
            of: UInt64(control) | UInt64(status) << 16 | UInt64(tags) << 32, as: UInt64.self)
        area.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
        area.storeBytes(of: 0, toByteOffset: 16, as: UInt64.self)
    }

    /// What FNINIT leaves; registers keep their contents.
    package static func initializeX87Control(_ state: CPUState) {
        FloatingStack.setTop(0, state)
        setX87Control(state, control: 0x37F, status: 0, tags: 0)
    }

    package static func loadXMM(_ state: CPUState, from image: UnsafeRawPointer, registerCount: Int) {
        for index in 0..<registerCount {
            state.vectorRegister(index).copyMemory(from: image + 160 + index * 16, byteCount: 16)
        }
    }

    package static func loadAVX(_ state: CPUState, from image: UnsafeRawPointer, registerCount: Int) {
        for index in 0..<registerCount {
            (state.vectorRegister(index) + 16).copyMemory(from: image + avxOffset + index * 16, byteCount: 16)
        }
    }

    /// FXRSTOR of the x87 part, MXCSR and `xmmCount` XMM registers.
    package static func restoreLegacy(
        _ state: CPUState, from image: UnsafeRawPointer, xmmCount: Int
    ) throws(GuestFault) {
        let mxcsr = image.load(fromByteOffset: 24, as: UInt32.self)
        if mxcsr & ~mxcsrMask != 0 { throw .generalProtection() }
        loadX87(state, from: image)
        state.mxcsr = mxcsr
        loadXMM(state, from: image, registerCount: xmmCount)
    }

    /// XRSTOR of the components in `requested` (a part of `enabled`, which is XCR0).
    package static func restore(
        _ state: CPUState, from image: UnsafeRawPointer, requested: UInt64, enabled: UInt64, registerCount: Int
    ) throws(GuestFault) {
        // Each field is read once: the guest's other processors may change it meanwhile.
        let present = image.load(fromByteOffset: headerOffset, as: UInt64.self)
        let compaction = image.load(fromByteOffset: headerOffset + 8, as: UInt64.self)
        let reserved = image.load(fromByteOffset: headerOffset + 16, as: UInt64.self)
        let mxcsr = image.load(fromByteOffset: 24, as: UInt32.self)
        guard present & ~enabled == 0, compaction == 0, reserved == 0 else { throw .generalProtection() }
        if requested & (sse | avx) != 0 && mxcsr & ~mxcsrMask != 0 { throw .generalProtection() }

        if requested & x87 != 0 {
            if present & x87 != 0 {
                loadX87(state, from: image)
            } else {
                initializeX87Control(state)
                memset(state.fxsaveArea + 32, 0, 128)
            }
        }
        // MXCSR comes from memory whether or not the header marks SSE as present.
        if requested & (sse | avx) != 0 { state.mxcsr = mxcsr }
        if requested & sse != 0 {
            if present & sse != 0 {
                loadXMM(state, from: image, registerCount: registerCount)
            } else {
                for index in 0..<registerCount { memset(state.vectorRegister(index), 0, 16) }
            }
        }
        if requested & avx != 0 {
            if present & avx != 0 {
                loadAVX(state, from: image, registerCount: registerCount)
            } else {
                for index in 0..<registerCount { memset(state.vectorRegister(index) + 16, 0, 16) }
            }
        }
    }
}
