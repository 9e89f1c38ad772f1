import CHost
import Glibc
import Host
import KVMInterface

/// Memory for arguments, and for guests.
///
/// Pages, in order: two that may be read and written, one that may only be read, one that faults; then the guests' memory.
final class RequestArena: @unchecked Sendable {
    // SAFETY: `@unchecked Sendable`: each thread of a case has its own arena; guests' memory is bytes that may change anyhow.

    private let memory: MemoryMapping
    private static let page = 4096
    private static let guestOffset = 16 * page
    private static let guestByteCount = 64 * page

    init() {
        do {
            memory = try MemoryMapping.anonymous(byteCount: Self.guestOffset + Self.guestByteCount)
            try memory.protect(2 * Self.page..<3 * Self.page, .read)
            try memory.protect(3 * Self.page..<4 * Self.page, .none)
        } catch {
            preconditionFailure("no memory for a case: \(error)")
        }
    }

    private var base: UnsafeMutableRawPointer { memory.baseAddress }
    private var guest: UnsafeMutableRawPointer { base + Self.guestOffset }

    /// The argument of a step.
    func argument(_ step: RequestStep, for request: KVMRequest, eventDescriptor: Int32) -> UInt {
        fill(step, for: request, eventDescriptor: eventDescriptor)
        let place: UnsafeMutableRawPointer
        switch step.argument % 8 {
        case 0: return UInt(truncatingIfNeeded: step.number)
        case 1: return UInt(step.bytes[0])
        case 2: return 0
        case 3: place = base + 2 * Self.page
        case 4: place = base + 3 * Self.page
        // The end of what may be accessed.
        case 5: place = base + 3 * Self.page - Int(step.argument >> 3)
        default: place = base
        }
        return UInt(bitPattern: place)
    }

    private func fill(_ step: RequestStep, for request: KVMRequest, eventDescriptor: Int32) {
        for offset in stride(from: 0, to: 2 * Self.page, by: step.bytes.count) {
            let count = min(step.bytes.count, 2 * Self.page - offset)
            base.advanced(by: offset).copyMemory(from: step.bytes, byteCount: count)
        }
        // Never a descriptor of the process's own.
        switch request {
        case .setInterruptEvent, .setIOEvent: placeEventDescriptor(step, request, eventDescriptor)
        case .getDirtyLog, .clearDirtyLog: base.storeBytes(of: guest, toByteOffset: 8, as: UnsafeMutableRawPointer.self)
        default: break
        }
        if step.options & 1 != 0 { makePlausible(step, for: request) }
    }

    private func placeEventDescriptor(_ step: RequestStep, _ request: KVMRequest, _ descriptor: Int32) {
        let chosen = step.options & 2 != 0 ? descriptor : -1
        if request == .setInterruptEvent {
            base.storeBytes(of: chosen, as: Int32.self)
            base.storeBytes(of: step.options & 4 != 0 ? chosen : -1, toByteOffset: 12, as: Int32.self)
        } else {
            base.storeBytes(of: chosen, toByteOffset: 20, as: Int32.self)
        }
    }

    /// Replaces the bytes by some that the request may take.
    private func makePlausible(_ step: RequestStep, for request: KVMRequest) {
        let bytes = step.bytes
        switch request {
        case .setUserMemoryRegion:
            let pages = 1 + Int(bytes[2] % 16)
            base.storeBytes(of: UInt32(bytes[0] % 4), as: UInt32.self)
            base.storeBytes(of: UInt32(bytes[1] % 4), toByteOffset: 4, as: UInt32.self)
            base.storeBytes(of: UInt64(bytes[3] % 32) << 12, toByteOffset: 8, as: UInt64.self)
            base.storeBytes(of: UInt64(bytes[4] % 8 == 0 ? 0 : pages) << 12, toByteOffset: 16, as: UInt64.self)
            let address = guest + Int(bytes[5] % 48) * Self.page
            base.storeBytes(of: UInt64(UInt(bitPattern: address)), toByteOffset: 24, as: UInt64.self)
            // What a guest finds there.
            address.copyMemory(from: bytes, byteCount: bytes.count)
        case .setRegisters:
            // RIP and RFLAGS.
            base.storeBytes(of: UInt64(bytes[0] % 32) << 12, toByteOffset: 128, as: UInt64.self)
            base.storeBytes(of: UInt64(2 | UInt64(bytes[1] & 1) << 9), toByteOffset: 136, as: UInt64.self)
        case .getMSRs, .setMSRs, .getSupportedCPUID, .getCPUID2, .setCPUID2, .setGSIRouting:
            base.storeBytes(of: UInt32(bytes[0] % 64), as: UInt32.self)
            base.storeBytes(of: UInt32(0), toByteOffset: 4, as: UInt32.self)
        case .enableCapability:
            base.storeBytes(of: UInt32(bytes[0]), as: UInt32.self)
            base.initializeMemory(as: UInt8.self, at: 4, to: 12, with: 0)
        default: break
        }
    }
}

extension UnsafeMutableRawPointer {
    fileprivate func initializeMemory(as type: UInt8.Type, at start: Int, to end: Int, with value: UInt8) {
        (self + start).initializeMemory(as: type, repeating: value, count: end - start)
    }
}
