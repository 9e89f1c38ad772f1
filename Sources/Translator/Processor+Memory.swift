import Addressing
import CHost
import GuestMemory
import MMU
import Synchronization
import X86

/// Guest memory as instructions see it.
extension Processor {
    /// Where a byte of a page lies.
    enum Target {
        /// Plain memory; `page` is the guest frame. With `isGuarded`, stores are caught, because of translated
        /// code or of a table.
        case memory(UnsafeMutableRawPointer, page: UInt64, isGuarded: Bool)
        /// No memory: guest physical address.
        case device(UInt64)
    }

    /// The table set that accesses use now.
    func tlbMode(_ privilege: AccessPrivilege) -> SoftTLB.Mode {
        privilege == .system ? .supervisor : mode.tlbMode
    }

    var pagingContext: PagingContext {
        PagingContext(
            cr0: system.cr0, cr3: system.cr3, cr4: system.cr4, efer: system.efer,
            isSystemManagement: system.systemManagement.isActive)
    }

    /// The address space whose slots are the processor's memory.
    var addressSpace: Int { system.systemManagement.isActive ? 1 : 0 }

    /// Checks or truncates a linear address as the mode says.
    func normalized(_ linear: UInt64) throws(GuestFault) -> UInt64 {
        if mode.codeSize == .bits64 {
            if !isCanonical(linear) { throw .exception(.generalProtection(0)) }
            return linear
        }
        // System structures of long mode may lie above 4 GiB even while compatibility code runs.
        return system.isLongModeActive ? linear : linear & 0xFFFF_FFFF
    }

    /// Finds the page of `linear` for an access, filling the software TLB when translated code may use the page directly.
    func resolve(
        _ linear: UInt64, _ kind: SoftTLB.Kind, _ privilege: AccessPrivilege
    ) throws(GuestFault) -> Target {
        let tlbMode = tlbMode(privilege)
        if let host = tlb.lookup(linear, tlbMode, kind) {
            return .memory(host, page: 0, isGuarded: false)
        }
        let access = PageAccess(
            kind == .write ? .write : .read, isUser: tlbMode == .user,
            overridesAccessPrevention: tlbMode == .supervisorOverride)
        if let shadow, mmu == .shadow || shadow.mayBeDevice(linear), hasGuestControl {
            switch shadow.lookup(linear, access, pagingContext) {
            case .memory(let page):
                if kind == .write {
                    tlb.insert(
                        linear, tlbMode, .write, host: page.host, isGlobal: page.isGlobal, pageShift: page.pageShift)
                }
                tlb.insert(
                    linear, tlbMode, .read, host: page.host, isGlobal: page.isGlobal, pageShift: page.pageShift)
                return .memory(page.host + Int(linear & 0xFFF), page: 0, isGuarded: false)
            case .device(let physical): return .device(physical | linear & 0xFFF)
            case .none: break
            }
        }
        return try memory.withReadSection { () throws(GuestFault) in try fill(linear, access, tlbMode) }
    }

    /// Finds the page of `linear` in the guest's tables and the slots.
    ///
    /// What it returns outlives the read section: slots that change wait for every vCPU to leave guest code.
    @inline(__always)
    private func fill(
        _ linear: UInt64, _ access: PageAccess, _ tlbMode: SoftTLB.Mode
    ) throws(GuestFault) -> Target {
        fills.increment()
        let translation: PageTranslation
        switch walk.translate(linear, access, pagingContext) {
        case .translated(let found): translation = found
        case .fault(let code): throw .exception(.pageFault(address: linear, code: code))
        case .hostMemory: throw .hostMemory(linear)
        }
        let frame = GuestFrameNumber(translation.physical >> 12)
        guard let slot = memory.lookup(frame, addressSpace: addressSpace, cache: &lastSlot) else {
            install(linear, access, isDevice: true)
            return .device(translation.physical | linear & 0xFFF)
        }
        if mmu == .shadow { install(linear, access, isDevice: false) }
        let page = slot.pointee.hostPointer(for: frame)
        let host = page + Int(linear & 0xFFF)
        let isReadOnly = slot.pointee.flags.contains(.readOnly)
        if access.kind == .write {
            if isReadOnly { return .device(translation.physical | linear & 0xFFF) }
            slot.pointee.markDirty(frame: frame, ring: walk.dirtyRing)
            // String instructions look for attention between pages.
            if let ring = walk.dirtyRing, ring.isFull { raiseAttention() }
            if cache.isMarked(page.pageNumber) || shadow?.mmu.isTracked(frame.value) == true {
                return .memory(host, page: frame.value, isGuarded: true)
            }
            tlb.insert(
                linear, tlbMode, .write, host: page, isGlobal: translation.isGlobal, pageShift: translation.pageShift)
        }
        tlb.insert(
            linear, tlbMode, .read, host: page, isGlobal: translation.isGlobal, pageShift: translation.pageShift)
        return .memory(host, page: frame.value, isGuarded: false)
    }

    /// Puts what the guest's tables just said into the shadow pages.
    private func install(_ linear: UInt64, _ access: PageAccess, isDevice: Bool) {
        guard let shadow, hasGuestControl else { return }
        withHostControl {
            if mmu == .walk && isDevice {
                shadow.installDevice(linear, access, pagingContext)
            } else {
                shadow.install(linear, access, pagingContext)
            }
        }
        if shadow.hasTrackingCandidates { raiseAttention() }
    }

    /// Has stores caught to tables that proved steady. > Concurrency: between blocks.
    func trackTables() {
        guard let shadow, shadow.hasTrackingCandidates else { return }
        withHostControl {
            let tickets = shadow.mmu.beginTracking(shadow.takeTrackingCandidates())
            if tickets.isEmpty { return }
            tlb.dropWriteEntries()
            platform.requestOthers(.dropWriteEntries)
            shadow.mmu.finishTracking(tickets)
        }
    }

    // MARK: Integers

    /// Reads a little-endian integer at a linear address; page-crossing and memory-mapped I/O are handled.
    public func read<T: FixedWidthInteger>(
        _ linear: UInt64, as type: T.Type, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) -> T {
        let linear = try normalized(linear)
        if linear & 0xFFF <= 4096 - UInt64(MemoryLayout<T>.size),
            let host = tlb.lookup(linear, tlbMode(privilege), .read)
        {
            guard let value = host.guestValue(as: T.self) else { throw .hostMemory(linear) }
            return value
        }
        var value: T = 0
        var failure: GuestFault?
        withUnsafeMutableBytes(of: &value) { bytes in
            do throws(GuestFault) {
                try readBytes(linear, into: bytes, privilege)
            } catch {
                failure = error
            }
        }
        if let failure { throw failure }
        return value
    }

    /// Writes a little-endian integer at a linear address. A fault on any page leaves all of it unwritten.
    public func write<T: FixedWidthInteger>(
        _ linear: UInt64, _ value: T, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) {
        let linear = try normalized(linear)
        if linear & 0xFFF <= 4096 - UInt64(MemoryLayout<T>.size),
            let host = tlb.lookup(linear, tlbMode(privilege), .write)
        {
            guard host.storeGuestValue(value) else { throw .hostMemory(linear) }
            return
        }
        var failure: GuestFault?
        withUnsafeBytes(of: value) { bytes in
            do throws(GuestFault) {
                try writeBytes(linear, from: bytes, privilege)
            } catch {
                failure = error
            }
        }
        if let failure { throw failure }
    }

    // MARK: Bytes

    /// The bytes from a linear address on, up to the first that cannot be read.
    @inline(never) public func readableBytes(_ linear: UInt64, maximumCount: Int) -> [UInt8] {
        var bytes: [UInt8] = []
        while bytes.count < maximumCount,
            let byte: UInt8 = try? read(linear &+ UInt64(bytes.count), as: UInt8.self, .system)
        {
            bytes.append(byte)
        }
        return bytes
    }

    public func readBytes(
        _ linear: UInt64, into buffer: UnsafeMutableRawBufferPointer, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) {
        var done = 0
        while done < buffer.count {
            let address = try normalized(linear &+ UInt64(done))
            let count = min(buffer.count - done, 4096 - Int(address & 0xFFF))
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + count])
            switch try resolve(address, .read, privilege) {
            case .memory(let host, _, _):
                guard part.baseAddress.unsafelyUnwrapped.copyGuestBytes(from: host, byteCount: count) else {
                    throw .hostMemory(address)
                }
            case .device(let physical): try readDevice(physical, into: part)
            }
            done += count
        }
    }

    /// Writes all bytes or, on a fault, none.
    public func writeBytes(
        _ linear: UInt64, from buffer: UnsafeRawBufferPointer, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) {
        guard buffer.count > 0 else { return }
        if Int(linear & 0xFFF) + buffer.count > 4096 {
            try probeWrite(linear, byteCount: buffer.count, privilege)
            try touch(linear, byteCount: buffer.count, privilege)
            // An instruction that needs the client is executed again, and must not read then what it has written itself.
            try writeBytes(linear, from: buffer, privilege, toMemory: false)
            try writeBytes(linear, from: buffer, privilege, toMemory: true)
        } else {
            try writeBytes(linear, from: buffer, privilege, toMemory: nil)
        }
    }

    /// - Parameter toMemory: the kind of pages whose part is written, devices if false; nil for both.
    private func writeBytes(
        _ linear: UInt64, from buffer: UnsafeRawBufferPointer, _ privilege: AccessPrivilege, toMemory: Bool?
    ) throws(GuestFault) {
        var done = 0
        while done < buffer.count {
            let address = try normalized(linear &+ UInt64(done))
            let count = min(buffer.count - done, 4096 - Int(address & 0xFFF))
            let part = UnsafeRawBufferPointer(rebasing: buffer[done..<done + count])
            switch try resolve(address, .write, privilege) {
            case .memory(let host, let page, let isGuarded):
                if toMemory == false { break }
                let source = part.baseAddress.unsafelyUnwrapped
                var isStored = false
                if isGuarded {
                    storeGuarded(page, host, byteCount: count) {
                        isStored = host.copyGuestBytes(from: source, byteCount: count)
                    }
                } else {
                    isStored = host.copyGuestBytes(from: source, byteCount: count)
                }
                guard isStored else { throw .hostMemory(address) }
            case .device(let physical): if toMemory != true { try writeDevice(physical, part, isPart: toMemory != nil) }
            }
            done += count
        }
    }

    /// Stores to a page that may hold translated code, or a table whose stores are caught.
    ///
    /// - Parameters:
    ///   - page: the guest frame.
    ///   - host: the first byte that `store` changes.
    func storeGuarded(
        _ page: UInt64, _ host: UnsafeMutableRawPointer, byteCount: Int, _ store: () -> Void
    ) {
        let offset = Int(UInt(bitPattern: host) & 0xFFF)
        var dropped = false
        func storeToCode() {
            dropped = cache.store(to: host.pageNumber, offset: offset, byteCount: byteCount, store)
        }
        if let shadow, shadow.mmu.isTracked(page) {
            withHostControl {
                shadow.mmu.guestStore(frame: page, offset: offset, byteCount: byteCount, storeToCode)
            }
        } else {
            storeToCode()
        }
        if dropped { forgetDroppedBlocks() }
    }

    /// After blocks were dropped: nobody may reach them any more.
    func forgetDroppedBlocks() {
        forgottenDropCount &+= 1
        tlb.dropAllJumps()
        platform.requestOthers(.dropJumpCache)
    }

    /// Checks that `byteCount` bytes may be written, without writing.
    public func probeWrite(
        _ linear: UInt64, byteCount: Int, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) {
        var done = 0
        while done < byteCount {
            let address = try normalized(linear &+ UInt64(done))
            _ = try resolve(address, .write, privilege)
            done += 4096 - Int(address & 0xFFF)
        }
    }

    /// Checks that the client has the memory for a write that crosses pages: the first page must not be written if the second
    /// cannot be, since the instruction is executed again.
    private func touch(_ linear: UInt64, byteCount: Int, _ privilege: AccessPrivilege) throws(GuestFault) {
        var done = 4096 - Int(linear & 0xFFF)
        while done < byteCount {
            let address = try normalized(linear &+ UInt64(done))
            if case .memory(let host, _, _) = try resolve(address, .write, privilege), !martlet_guarded_touch(host) {
                throw .hostMemory(address)
            }
            done += 4096
        }
    }

    /// The host address of `linear` if it is plain RAM: valid to the end of its 4 KiB page and until the next guest
    /// instruction, for accesses that the client can make fail (`GuestAccess.swift`); nil for memory-mapped I/O, and for writes
    /// also where a write needs help (translated code, read-only). Faults as the access itself would.
    public func hostPointer(
        _ linear: UInt64, forWriting: Bool, _ privilege: AccessPrivilege = .current
    ) throws(GuestFault) -> UnsafeMutableRawPointer? {
        let address = try normalized(linear)
        switch try resolve(address, forWriting ? .write : .read, privilege) {
        case .memory(let host, _, let isGuarded): return isGuarded && forWriting ? nil : host
        case .device: return nil
        }
    }

    // MARK: Devices

    private func readDevice(_ physical: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(GuestFault) {
        var done = 0
        while done < buffer.count {
            let count = min(buffer.count - done, Self.fragmentByteCount)
            let address = physical &+ UInt64(done)
            let value: UInt64
            if let own = platform.readMMIO(address, byteCount: count) {
                value = own
            } else {
                value = try clientAccess(.mmioRead(address: address, byteCount: count))
            }
            withUnsafeBytes(of: value) { bytes in
                UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + count])
                    .copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[0..<count]))
            }
            done += count
        }
    }

    /// - Parameter isPart: the instruction writes to other pages, too.
    private func writeDevice(
        _ physical: UInt64, _ buffer: UnsafeRawBufferPointer, isPart: Bool
    ) throws(GuestFault) {
        var done = 0
        while done < buffer.count {
            let count = min(buffer.count - done, Self.fragmentByteCount)
            let address = physical &+ UInt64(done)
            var value: UInt64 = 0
            withUnsafeMutableBytes(of: &value) { bytes in
                bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: buffer[done..<done + count]))
            }
            done += count
            if clientAnswers.takeAcknowledgement(of: address) { continue }
            if platform.writeMMIO(address, byteCount: count, value: value) {
                // The instruction is executed again if a later part needs the client: not this one.
                if isPart || buffer.count > count { clientAnswers.noteWrite(at: address) }
                continue
            }
            _ = try clientAccess(.mmioWrite(address: address, byteCount: count, value: value))
        }
    }

    /// Devices see as much at once as `kvm_run.mmio` has room for; of an access that crosses pages, each page's part.
    private static var fragmentByteCount: Int { 8 }

    // MARK: The client's answers

    /// The answer to `request`, if the client has given it for this instruction; otherwise asks.
    func clientAccess(_ request: ClientRequest) throws(GuestFault) -> UInt64 {
        if let answer = clientAnswers.next() { return answer }
        pendingClientRequest = request
        throw .needsClient
    }

    /// The client's answer to the read that ``run()`` last asked for; writes are acknowledged with 0.
    public func answerClientRead(_ value: UInt64) {
        guard let request = pendingClientRequest else { return }
        pendingClientRequest = nil
        clientAnswers.append(value, to: request)
    }

    /// The client's answers to the elements of a string instruction, as ``answerClientRead(_:)``.
    public func answerClientReads(count: Int, _ value: (Int) -> UInt64) {
        guard let request = pendingClientRequest else { return }
        pendingClientRequest = nil
        for index in 0..<count { clientAnswers.append(value(index), to: request) }
    }

    /// The client's answer to an access to a model-specific register.
    ///
    /// - Parameters:
    ///   - value: what a read gives.
    ///   - isRefused: the instruction raises #GP(0).
    public func answerClientMSR(_ value: UInt64, isRefused: Bool) {
        guard let request = pendingClientRequest else { return }
        pendingClientRequest = nil
        clientAnswers.append(isRefused ? 1 : 0, to: request)
        clientAnswers.append(value, to: request)
    }

    /// Forgets the client's answers: what they were given for is complete. String instructions call it after each
    /// completed iteration.
    public func commitClientAccesses() { clientAnswers.removeAll() }

    /// Port input: from the core's devices, or from the client's answer; throws `.needsClient` if there is none yet.
    public func readPort(_ port: UInt16, byteCount: Int) throws(GuestFault) -> UInt32 {
        if let own = platform.readPort(port, byteCount: byteCount) { return own }
        return UInt32(truncatingIfNeeded: try clientAccess(.portIn(port: port, byteCount: byteCount)))
    }

    public func writePort(_ port: UInt16, byteCount: Int, value: UInt32) throws(GuestFault) {
        if clientAnswers.takeAcknowledgement(of: UInt64(port)) { return }
        if platform.writePort(port, byteCount: byteCount, value: value) { return }
        _ = try clientAccess(.portOut(port: port, byteCount: byteCount, value: value))
    }

    // MARK: Addresses

    /// The effective linear address of a memory operand, segment base added and truncated to the address size.
    /// `rip`-relative operands count from the end of the instruction.
    public func linearAddress(_ operand: DecodedInstruction.MemoryOperand, of instruction: DecodedInstruction) -> UInt64
    {
        linearAddress(operand, length: instruction.length, addressWidth: instruction.addressWidth)
    }

    func linearAddress(
        _ operand: DecodedInstruction.MemoryOperand, length: UInt8, addressWidth: UInt8
    ) -> UInt64 {
        typealias Operand = DecodedInstruction.MemoryOperand
        var address = UInt64(bitPattern: operand.displacement)
        if operand.base == Operand.instructionPointer {
            address = address &+ state.rip &+ UInt64(length)
        } else if operand.base != Operand.none {
            address = address &+ state[GeneralRegister(index: Int(operand.base))]
        }
        if operand.index != Operand.none {
            address = address &+ state[GeneralRegister(index: Int(operand.index))] &* UInt64(max(operand.scale, 1))
        }
        switch addressWidth {
        case 16: address &= 0xFFFF
        case 32: address &= 0xFFFF_FFFF
        default: break
        }
        if mode.codeSize == .bits64 {
            if operand.segment == .fs || operand.segment == .gs {
                address = address &+ state.segmentBase(operand.segment)
            }
            return address
        }
        return (address &+ state.segmentBase(operand.segment)) & 0xFFFF_FFFF
    }

    // MARK: Misses of translated code

    /// Entered from a block whose lookup missed. Returns 0 to go on in the block.
    static func handleMiss(_ base: UnsafeMutableRawPointer) -> Int32 {
        let object = base.load(fromByteOffset: CPUState.processorOffset, as: UInt.self)
        guard let pointer = UnsafeRawPointer(bitPattern: object) else { return 1 }
        // SAFETY: the processor owns the state page and is inside `run()`.
        return Unmanaged<Processor>.fromOpaque(pointer)._withUnsafeGuaranteedRef { $0.handleMiss() }
    }

    private func handleMiss() -> Int32 {
        let descriptor = AccessDescriptor(
            rawValue: state.base.load(fromByteOffset: CPUState.exitValueOffset, as: UInt32.self))
        let linear = state.base.load(fromByteOffset: CPUState.temporariesOffset, as: UInt64.self)
        missFault = nil
        missDevice = nil
        followTranslatedCode()
        if let ring = walk.dirtyRing, ring.isFull {
            // Leaves the block: one more instruction, and the client is asked to make room.
            raiseAttention()
            setRIP(fromOffset: descriptor.offset)
            return 1
        }
        do throws(GuestFault) {
            let address = try normalized(linear)
            if Int(address & 0xFFF) + descriptor.byteCount <= 4096 {
                switch try resolve(address, descriptor.kind, .current) {
                case .memory(_, _, let isGuarded): if !isGuarded { return 0 }
                case .device(let physical): missDevice = MissedDevice(linear: linear, physical: physical)
                }
            }
        } catch {
            missFault = descriptor.isStack && error == .generalProtection() ? .exception(.stack()) : error
        }
        setRIP(fromOffset: descriptor.offset)
        // The operand's alignment is checked before its page.
        if descriptor.byteCount > 8, linear & UInt64(descriptor.byteCount - 1) != 0,
            let instruction = try? decodeCurrent(), instruction.needsAlignedMemory(mxcsr: liveMXCSR())
        {
            missFault = .generalProtection()
        }
        return 1
    }

    /// Sets RIP to the instruction at `offset` from the page base.
    func setRIP(fromOffset offset: Int) {
        setRIP(linear: state.base.load(fromByteOffset: CPUState.pageBaseOffset, as: UInt64.self) &+ UInt64(offset))
    }

    func setRIP(linear: UInt64) {
        state.rip = mode.codeSize == .bits64 ? linear : (linear &- state.segmentBase(.cs)) & 0xFFFF_FFFF
    }
}
