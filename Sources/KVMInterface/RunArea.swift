import CHost
import Synchronization

/// A vCPU's `kvm_run` structure with a checked face.
///
/// The client's thread and the backend use it by turns; only ``immediateExit`` is written by others meanwhile.
public struct RunArea {
    public let bytes: UnsafeMutableRawBufferPointer

    /// - Parameter bytes: what `mmap` of a vCPU returned.
    public init(_ bytes: UnsafeMutableRawBufferPointer) {
        precondition(bytes.count >= MemoryLayout<kvm_run>.size, "a vCPU's run area is smaller than kvm_run")
        self.bytes = bytes
    }

    // SAFETY: `init` checked the size, and mappings are page-aligned.
    public var run: UnsafeMutablePointer<kvm_run> {
        bytes.baseAddress!.assumingMemoryBound(to: kvm_run.self)
    }

    /// Makes the next, or the current, run return at once with `EINTR`.
    /// > Concurrency: any thread and signal handlers.
    public var immediateExit: Bool {
        // ORDERING: both sides are sequentially consistent: the flag races with the entry into guest code.
        get { flag.pointee.load(ordering: .sequentiallyConsistent) != 0 }
        nonmutating set { flag.pointee.store(newValue ? 1 : 0, ordering: .sequentiallyConsistent) }
    }

    // SAFETY: `immediate_exit` is the byte at offset 1 of the area, and an atomic byte has the layout of a byte.
    private var flag: UnsafeMutablePointer<Atomic<UInt8>> {
        (bytes.baseAddress! + 1).assumingMemoryBound(to: Atomic<UInt8>.self)
    }

    /// Where the union of exit fields begins.
    private static var exitFieldsOffset: Int { 32 }

    /// What the last run's exit fields say.
    public var exit: VCPUExit {
        let run = run
        switch Int32(truncatingIfNeeded: run.pointee.exit_reason) {
        case KVM_EXIT_IO:
            let io = run.pointee.io
            let length = Int(io.size) * Int(io.count)
            let offset = Int(clamping: io.data_offset)
            precondition(offset <= bytes.count && length <= bytes.count - offset, "port data lies outside the run area")
            return .io(
                PortAccess(
                    port: io.port, isWrite: io.direction == UInt8(KVM_EXIT_IO_OUT), byteCount: Int(io.size),
                    count: Int(io.count), data: UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + length])
                ))
        case KVM_EXIT_MMIO:
            let mmio = run.pointee.mmio
            let start = Self.exitFieldsOffset + 8
            let length = min(Int(mmio.len), 8)
            return .mmio(
                MMIOAccess(
                    address: mmio.phys_addr, isWrite: mmio.is_write != 0, byteCount: length,
                    data: UnsafeMutableRawBufferPointer(rebasing: bytes[start..<start + length])))
        case KVM_EXIT_HLT: return .hlt
        case KVM_EXIT_SHUTDOWN: return .shutdown
        case KVM_EXIT_SYSTEM_EVENT:
            return .systemEvent(type: run.pointee.system_event.type, data: run.pointee.system_event.flags)
        case KVM_EXIT_INTERNAL_ERROR:
            let internalError = run.pointee.internal
            let data = withUnsafeBytes(of: internalError.data) { Array($0.bindMemory(to: UInt64.self)) }
            return .internalError(
                suberror: internalError.suberror, data: Array(data.prefix(Int(min(internalError.ndata, 16)))))
        case KVM_EXIT_FAIL_ENTRY:
            let entry = run.pointee.fail_entry
            return .failEntry(reason: entry.hardware_entry_failure_reason, cpu: entry.cpu)
        case KVM_EXIT_INTR: return .interrupted
        case KVM_EXIT_IRQ_WINDOW_OPEN: return .irqWindowOpen
        case KVM_EXIT_IOAPIC_EOI: return .endOfInterrupt(vector: run.pointee.eoi.vector)
        default: return .unknown(run.pointee.exit_reason)
        }
    }
}
