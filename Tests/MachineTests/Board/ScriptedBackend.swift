import CHost
import Glibc
import Host
import KVMInterface
import Synchronization
import SystemPackage

/// A KVM whose vCPUs do not execute code but what a test says, exit by exit.
final class ScriptedBackend: KVMBackend, @unchecked Sendable {
    /// What the next `KVM_RUN` does.
    enum Action {
        /// One transfer for each element.
        case portOut(UInt16, [UInt8])
        case portIn(UInt16)
        case mmioRead(UInt64, byteCount: Int)
        /// Nothing, until `immediate_exit`.
        case wait
        case shutdown
        case internalError
        case systemEvent(Int32)
        case badAddress
    }

    /// - Parameters:
    ///   - vcpu: its id.
    ///   - step: how often it has run before, in this machine.
    ///   - input: the answer to the last read; 0 in the beginning.
    typealias Script = @Sendable (_ vcpu: UInt32, _ step: Int, _ input: UInt64) -> Action

    fileprivate final class ScriptedVCPU: @unchecked Sendable {
        let id: UInt32
        let area: UnsafeMutableRawBufferPointer
        let kicks = FutexWord()
        var step = 0
        var pendingRead: (offset: Int, byteCount: Int)?
        var registers = GeneralRegisters()
        var specialRegisters = SpecialRegisters()

        init(_ id: UInt32) {
            self.id = id
            area = .allocate(byteCount: 3 * 4096, alignment: 4096)
            area.initializeMemory(as: UInt8.self, repeating: 0)
        }

        deinit { area.deallocate() }
    }

    struct Log {
        var machineCount = 0
        var slots: [UInt32: UserMemoryRegion] = [:]
        var lines: [String] = []
        /// The routes of interrupt lines, each as line, chip and pin.
        var routes: [String] = []
        var entry: GeneralRegisters?
        var cpuids: [UInt32: [CPUIDEntry]] = [:]
        var descriptorsOpen = 0
        fileprivate var vcpus: [Int32: ScriptedVCPU] = [:]
        fileprivate var nextDescriptor: Int32 = 10
    }

    private let log = Mutex(Log())
    private let script: Script

    init(_ script: @escaping Script) { self.script = script }

    var record: Log { log.withLock { $0 } }

    func openSystem() throws(Errno) -> KVMDescriptor { makeDescriptor() }

    func close(_ descriptor: KVMDescriptor) {
        log.withLock { log in
            log.descriptorsOpen -= 1
            log.vcpus[descriptor.rawValue] = nil
        }
    }

    func mapRunArea(_ vcpu: KVMDescriptor) throws(Errno) -> UnsafeMutableRawBufferPointer { find(vcpu).area }

    func mapDirtyRing(_ vcpu: KVMDescriptor, byteCount: Int) throws(Errno) -> UnsafeMutableRawBufferPointer {
        throw .invalidArgument
    }

    func unmapRunArea(_ area: UnsafeMutableRawBufferPointer) {}

    func kick(_ vcpu: KVMDescriptor) {
        let vcpu = find(vcpu)
        vcpu.kicks.atomic.pointee.wrappingAdd(1, ordering: .releasing)
        vcpu.kicks.wake()
    }

    func ioctl(_ descriptor: KVMDescriptor, _ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
        let pointer = UnsafeMutableRawPointer(bitPattern: argument)
        switch KVMRequest(rawValue: request) {
        case .getAPIVersion: return KVM_API_VERSION
        case .getSupportedCPUID:
            pointer!.storeBytes(of: 2, as: UInt32.self)
            pointer!.storeBytes(of: CPUIDEntry(function: 0, eax: 0x16), toByteOffset: 8, as: CPUIDEntry.self)
            pointer!.storeBytes(of: CPUIDEntry(function: 1), toByteOffset: 8 + 40, as: CPUIDEntry.self)
        case .createVM:
            log.withLock { $0.machineCount += 1 }
            return makeDescriptor().rawValue
        case .createVCPU:
            let vcpu = makeDescriptor()
            log.withLock { $0.vcpus[vcpu.rawValue] = ScriptedVCPU(UInt32(argument)) }
            return vcpu.rawValue
        case .setUserMemoryRegion:
            let region = pointer!.load(as: UserMemoryRegion.self)
            log.withLock { $0.slots[region.slot] = region.memory_size == 0 ? nil : region }
        case .irqLine:
            let level = pointer!.load(as: kvm_irq_level.self)
            log.withLock { $0.lines.append("\(level.irq)=\(level.level)") }
        case .setCPUID2:
            let count = Int(pointer!.load(as: UInt32.self))
            let entries = (0..<count).map { pointer!.load(fromByteOffset: 8 + $0 * 40, as: CPUIDEntry.self) }
            log.withLock { $0.cpuids[find(descriptor, in: $0).id] = entries }
        case .getRegisters: pointer!.storeBytes(of: find(descriptor).registers, as: GeneralRegisters.self)
        case .setRegisters:
            let registers = pointer!.load(as: GeneralRegisters.self)
            find(descriptor).registers = registers
            log.withLock { $0.entry = registers }
        case .getSpecialRegisters: pointer!.storeBytes(of: find(descriptor).specialRegisters, as: SpecialRegisters.self)
        case .setSpecialRegisters: find(descriptor).specialRegisters = pointer!.load(as: SpecialRegisters.self)
        case .checkExtension: return argument == UInt(KVMCapability.tscDeadlineTimer.rawValue) ? 1 : 0
        case .setGSIRouting:
            let count = Int(pointer!.load(as: UInt32.self))
            let entries = (0..<count).map { pointer!.load(fromByteOffset: 8 + $0 * 48, as: IRQRoutingEntry.self) }
            log.withLock { log in
                log.routes = entries.map { "\($0.gsi)=\($0.u.irqchip.irqchip).\($0.u.irqchip.pin)" }
            }
        case .setTSSAddress, .setIdentityMapAddress, .createIRQChip, .createPIT2: break
        case .run: try run(find(descriptor))
        default: throw .invalidArgument
        }
        return 0
    }

    private func run(_ vcpu: ScriptedVCPU) throws(Errno) {
        let area = RunArea(vcpu.area)
        if area.immediateExit { throw .interrupted }
        var input: UInt64 = 0
        if let (offset, byteCount) = vcpu.pendingRead {
            for index in (0..<byteCount).reversed() { input = input << 8 | UInt64(vcpu.area[offset + index]) }
        }
        vcpu.pendingRead = nil
        let action = script(vcpu.id, vcpu.step, input)
        vcpu.step += 1
        switch action {
        case .portOut(let port, let bytes):
            portExit(area, port, KVM_EXIT_IO_OUT, count: bytes.count)
            for (index, byte) in bytes.enumerated() { vcpu.area[4096 + index] = byte }
        case .portIn(let port):
            portExit(area, port, KVM_EXIT_IO_IN, count: 1)
            vcpu.pendingRead = (4096, 1)
        case .mmioRead(let address, let byteCount):
            area.run.pointee.exit_reason = UInt32(KVM_EXIT_MMIO)
            area.run.pointee.mmio.phys_addr = address
            area.run.pointee.mmio.len = UInt32(byteCount)
            area.run.pointee.mmio.is_write = 0
            vcpu.pendingRead = (40, byteCount)
        case .wait:
            while !area.immediateExit {
                let seen = vcpu.kicks.atomic.pointee.load(ordering: .acquiring)
                if !area.immediateExit { vcpu.kicks.wait(while: seen) }
            }
            throw .interrupted
        case .shutdown: area.run.pointee.exit_reason = UInt32(KVM_EXIT_SHUTDOWN)
        case .internalError:
            area.run.pointee.exit_reason = UInt32(KVM_EXIT_INTERNAL_ERROR)
            area.run.pointee.internal.suberror = 1
            area.run.pointee.internal.ndata = 0
        case .systemEvent(let type):
            area.run.pointee.exit_reason = UInt32(KVM_EXIT_SYSTEM_EVENT)
            area.run.pointee.system_event.type = UInt32(type)
        case .badAddress: throw .badAddress
        }
    }

    private func portExit(_ area: RunArea, _ port: UInt16, _ direction: Int32, count: Int) {
        area.run.pointee.exit_reason = UInt32(KVM_EXIT_IO)
        area.run.pointee.io.direction = UInt8(direction)
        area.run.pointee.io.size = 1
        area.run.pointee.io.port = port
        area.run.pointee.io.count = UInt32(count)
        area.run.pointee.io.data_offset = 4096
    }

    private func makeDescriptor() -> KVMDescriptor {
        log.withLock { log in
            log.nextDescriptor += 1
            log.descriptorsOpen += 1
            return KVMDescriptor(rawValue: log.nextDescriptor)
        }
    }

    private func find(_ descriptor: KVMDescriptor) -> ScriptedVCPU { log.withLock { find(descriptor, in: $0) } }

    private func find(_ descriptor: KVMDescriptor, in log: Log) -> ScriptedVCPU {
        guard let vcpu = log.vcpus[descriptor.rawValue] else { fatalError("no vCPU has descriptor \(descriptor)") }
        return vcpu
    }
}
