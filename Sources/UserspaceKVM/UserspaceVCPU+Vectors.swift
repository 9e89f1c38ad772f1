import CHost
import KVMInterface
import SystemPackage
import Translator
import X86

// x87, SSE and AVX registers in the structures of the ABI.
//
// The state page keeps x87 registers and MXCSR as an FXSAVE image and the vector registers whole, beside it.
// > Concurrency: the owner, outside.
// > Source: Intel SDM volume 1, sections 10.5.1 and 13.4.

extension UserspaceVCPU {
    /// Offsets in the FXSAVE image.
    private enum FXSave {
        static let control = 0
        static let status = 2
        static let tag = 4
        static let opcode = 6
        static let instructionPointer = 8
        static let dataPointer = 16
        static let mxcsr = 24
        static let mxcsrMask = 28
        static let registers = 32
        static let xmm = 160
        static let byteCount = 512
    }

    /// Offsets in the XSAVE image.
    private enum XSave {
        static let components = 512
        static let compactedComponents = 520
        static let header = 512..<576
        static let upperHalves = 576
    }

    /// The bits of MXCSR that exist.
    private static let mxcsrMask: UInt32 = 0xFFFF

    /// As in KVM, MXCSR is not part of it, though the structure has the field: it reads as 0, and what a client sets there is
    /// ignored. XSAVE images have it.
    /// > Source: Linux, `kvm_arch_vcpu_ioctl_get_fpu` (behaviour).
    var floatingPoint: FloatingPointState {
        let image = processor.state.fxsaveArea
        var state = FloatingPointState()
        withUnsafeMutableBytes(of: &state.fpr) {
            $0.copyMemory(from: UnsafeRawBufferPointer(start: image + FXSave.registers, count: 128))
        }
        state.fcw = image.load(fromByteOffset: FXSave.control, as: UInt16.self)
        state.fsw = image.load(fromByteOffset: FXSave.status, as: UInt16.self)
        state.ftwx = image.load(fromByteOffset: FXSave.tag, as: UInt8.self)
        state.last_opcode = image.load(fromByteOffset: FXSave.opcode, as: UInt16.self)
        state.last_ip = image.load(fromByteOffset: FXSave.instructionPointer, as: UInt64.self)
        state.last_dp = image.load(fromByteOffset: FXSave.dataPointer, as: UInt64.self)
        withUnsafeMutableBytes(of: &state.xmm) { bytes in
            for index in 0..<16 { copyLowHalf(index, to: bytes.baseAddress! + index * 16) }
        }
        return state
    }

    func setFloatingPoint(_ state: FloatingPointState) {
        let image = processor.state.fxsaveArea
        withUnsafeBytes(of: state.fpr) {
            (image + FXSave.registers).copyMemory(from: $0.baseAddress!, byteCount: 128)
        }
        image.storeBytes(of: state.fcw, toByteOffset: FXSave.control, as: UInt16.self)
        image.storeBytes(of: state.fsw, toByteOffset: FXSave.status, as: UInt16.self)
        image.storeBytes(of: state.ftwx, toByteOffset: FXSave.tag, as: UInt8.self)
        image.storeBytes(of: state.last_opcode, toByteOffset: FXSave.opcode, as: UInt16.self)
        image.storeBytes(of: state.last_ip, toByteOffset: FXSave.instructionPointer, as: UInt64.self)
        image.storeBytes(of: state.last_dp, toByteOffset: FXSave.dataPointer, as: UInt64.self)
        withUnsafeBytes(of: state.xmm) { bytes in
            for index in 0..<16 {
                processor.state.vectorRegister(index).copyMemory(from: bytes.baseAddress! + index * 16, byteCount: 16)
            }
        }
    }

    /// Fills an XSAVE image in the standard format.
    ///
    /// - Parameter image: ``Limits/xsaveByteCount`` bytes.
    func saveVectors(to image: UnsafeMutableRawBufferPointer) {
        for index in image.indices { image[index] = 0 }
        let base = image.baseAddress!
        base.copyMemory(from: processor.state.fxsaveArea, byteCount: FXSave.xmm)
        base.storeBytes(of: Self.mxcsrMask, toByteOffset: FXSave.mxcsrMask, as: UInt32.self)
        base.storeBytes(of: ExtendedState.all, toByteOffset: XSave.components, as: UInt64.self)
        for index in 0..<16 {
            copyLowHalf(index, to: base + FXSave.xmm + index * 16)
            (base + XSave.upperHalves + index * 16).copyMemory(
                from: processor.state.vectorRegister(index) + 16, byteCount: 16)
        }
    }

    /// Takes over an XSAVE image. Components it does not have are reset.
    ///
    /// - Throws: `EINVAL`, with nothing changed, for components that do not exist, the compacted format, or reserved bits in
    ///   MXCSR.
    func loadVectors(from image: UnsafeRawBufferPointer) throws(Errno) {
        let base = image.baseAddress!
        let components = base.loadUnaligned(fromByteOffset: XSave.components, as: UInt64.self)
        let mxcsr = base.loadUnaligned(fromByteOffset: FXSave.mxcsr, as: UInt32.self)
        let reserved = image[XSave.compactedComponents..<XSave.header.upperBound]
        guard components & ~ExtendedState.all == 0, reserved.allSatisfy({ $0 == 0 }) else { throw .invalidArgument }
        let usesMXCSR = components & (ExtendedState.sse | ExtendedState.avx) != 0
        guard !usesMXCSR || mxcsr & ~Self.mxcsrMask == 0 else { throw .invalidArgument }
        loadX87(from: components & ExtendedState.x87 != 0 ? base : nil)
        processor.state.mxcsr = usesMXCSR ? mxcsr : 0x1F80
        for index in 0..<16 {
            let register = processor.state.vectorRegister(index)
            load(register, from: components & ExtendedState.sse != 0 ? base + FXSave.xmm + index * 16 : nil)
            load(register + 16, from: components & ExtendedState.avx != 0 ? base + XSave.upperHalves + index * 16 : nil)
        }
    }

    private func loadX87(from image: UnsafeRawPointer?) {
        let area = processor.state.fxsaveArea
        if let image {
            area.copyMemory(from: image, byteCount: FXSave.mxcsr)
            (area + FXSave.registers).copyMemory(from: image + FXSave.registers, byteCount: 128)
        } else {
            area.initializeMemory(as: UInt8.self, repeating: 0, count: FXSave.mxcsr)
            (area + FXSave.registers).initializeMemory(as: UInt8.self, repeating: 0, count: 128)
            area.storeBytes(of: 0x37F, as: UInt16.self)
        }
    }

    private func load(_ half: UnsafeMutableRawPointer, from source: UnsafeRawPointer?) {
        if let source {
            half.copyMemory(from: source, byteCount: 16)
        } else {
            half.initializeMemory(as: UInt8.self, repeating: 0, count: 16)
        }
    }

    private func copyLowHalf(_ index: Int, to destination: UnsafeMutableRawPointer) {
        destination.copyMemory(from: processor.state.vectorRegister(index), byteCount: 16)
    }
}

/// Components of the extended state, as XCR0 and XSAVE headers number them.
enum ExtendedState {
    static let x87: UInt64 = 1 << 0
    static let sse: UInt64 = 1 << 1
    static let avx: UInt64 = 1 << 2
    static let all = x87 | sse | avx

    /// Whether XCR0 may hold `value`: x87 always, AVX only with SSE.
    static func isValid(_ value: UInt64) -> Bool {
        value & x87 != 0 && value & ~all == 0 && (value & avx == 0 || value & sse != 0)
    }
}
