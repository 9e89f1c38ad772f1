import Addressing
import CHost
import CZydis
import GuestMemory
import MMU
import X86

/// The dispatcher: finds blocks, enters them, and does what they could not.
extension Processor {
    /// Makes the processor ready to access memory, as `run()` does: one that never runs keeps no memory for that.
    public func prepare() { tlb.prepare() }

    /// Runs guest code until something needs the caller. Delivers `system.pendingEvent` first, if there is one.
    public func run() -> RunResult {
        withGuestControl { dispatch() }
    }

    private func dispatch() -> RunResult {
        prepare()
        trackTables()
        followCacheResets()
        foundCode = 0
        // Without paging there is no change of mappings by which a boot loader would announce what was loaded.
        if system.cr0 & CR0.paging == 0, !knownCode.isCurrent(codeCount: cache.codeCount.load(ordering: .acquiring)) {
            distrustCode()
        }
        mirrorTimeStamp()
        mirrorSystem()
        while true {
            if let event = system.pendingEvent {
                system.pendingEvent = nil
                let result = deliverWithEscalation(event)
                mirrorSystem()
                if let result { return result }
                commitClientAccesses()
                continue
            }
            if isCompletingAccess, let instruction = instructionToComplete {
                do throws(GuestFault) {
                    if let result = try complete(instruction) { return result }
                } catch {
                    if let result = handle(error) { return result }
                }
                continue
            }
            if hasAttention || wantsInterruptWindow && (canAcceptInterrupt || isInShadow) {
                // An instruction in the shadow of STI or MOV SS is executed before anything else happens, and so is one
                // whose access the client has answered.
                if !isInShadow && !isCompletingAccess { return .attention }
                let result = mode.singleSteps || isTraced ? stepWithTraps({ step($0) }) : step()
                if let result { return result }
                commitClientAccesses()
                continue
            }
            if mode.singleSteps || isTraced {
                if let result = stepWithTraps({ step($0) }) { return result }
                continue
            }
            do throws(GuestFault) {
                let code: UInt64
                if foundCode != 0 {
                    code = foundCode
                    foundCode = 0
                } else {
                    code = try findBlock(.block).code
                }
                if let result = try handleExit(enter(code)) { return result }
            } catch {
                if let result = handle(error) { return result }
            }
        }
    }

    /// What a fault of an instruction leads to; nil to go on.
    func handle(_ fault: GuestFault) -> RunResult? {
        switch fault {
        case .exception(let exception):
            if reportsEmulationFailures, exception.isReservedBitFault, isX87Next { return .emulationFailure }
            clientAnswers.removeAll()
            if exception.vector == 1 { return raiseDebugException(exception.payload) }
            system.pendingEvent = PendingEvent(exception)
            return nil
        case .needsClient:
            return askClient()
        case .shutdown: return .shutdown
        case .breakpoint: return .debug(vector: 3, dr6: 0)
        case .notExecutable: return .emulationFailure
        case .hostMemory(let address):
            clientAnswers.rewind()
            return .hostMemory(address)
        }
    }

    private var isX87Next: Bool { (try? decodeCurrent())?.unit == .x87 }

    /// The exit for an access that only the client can make.
    func askClient() -> RunResult {
        clientAnswers.rewind()
        guard let request = pendingClientRequest else { return .emulationFailure }
        return .needsClient(request)
    }

    // MARK: Exits

    private func handleExit(_ word: UInt32) throws(GuestFault) -> RunResult? {
        followTranslatedCode()
        let value = Int(word & Trampolines.exitValueMask)
        switch Trampolines.Exit(rawValue: word >> Trampolines.exitShift) {
        case .attention:
            setRIP(fromOffset: value)
        case .instruction:
            let site = cache.instruction(at: value)
            setRIP(fromOffset: site.offset)
            return try executeInSwift(site.instruction)
        case .link:
            let site = cache.linkSite(at: value)
            setRIP(fromOffset: Int(site.targetOffset))
            let epoch = seenEpoch
            let target = try findBlock(site.form)
            // After a reset the site's place holds something else.
            if target.mayBeLinked, seenEpoch == epoch { cache.link(site, to: target.code) }
            foundCode = target.code
        case .jumpMiss:
            let target = state.base.load(fromByteOffset: CPUState.temporariesOffset, as: UInt64.self)
            setRIP(linear: target &- tlb.modeTag)
        case .needsX87:
            setRIP(fromOffset: value)
            loadX87()
        case .memory:
            if let fault = missFault {
                missFault = nil
                if isX87Live { try checkPendingX87(decodeCurrent()) }
                throw fault
            }
            return try executeSlowly()
        case .fault:
            try handleHostFault()
        case .bounceDone:
            setRIP(fromOffset: value)
        case nil, .some(.none):
            return .emulationFailure
        }
        return nil
    }

    /// A copied instruction raised a host signal.
    private func handleHostFault() throws(GuestFault) {
        let record = HostFaults.record(in: state)
        guard let offset = cache.guestOffset(at: record.pc) else { throw .hostMemory(0) }
        setRIP(fromOffset: Int(offset))
        switch record.trap {
        case 0: throw .exception(.divideError)
        case 6: throw .exception(.invalidOpcode)
        case 13: throw .exception(.generalProtection(0))
        case 16: throw .exception(.floatingPoint)
        case 19: throw .exception(system.cr4 & CR4.simdExceptions != 0 ? .simdFloatingPoint : .invalidOpcode)
        default:
            // MOVS and STOS have a host address in RDI meanwhile.
            if Self.isString(at: record.pc) {
                state[.rdi] = state.base.load(
                    fromByteOffset: CPUState.temporariesOffset + BlockTranslator.savedTargetIndex * 8, as: UInt64.self)
            }
            throw .hostMemory(0)
        }
    }

    /// Whether the host's instruction at an address in the code buffer is MOVS or STOS.
    private static func isString(at pc: UInt64) -> Bool {
        // SAFETY: the instruction was just executed, and blocks stay as they are until this processor is outside.
        guard var byte = UnsafePointer<UInt8>(bitPattern: UInt(pc)) else { return false }
        // REP, the 16-bit operand size, and REX.W.
        while [0xF3, 0x66, 0x48].contains(byte.pointee) { byte += 1 }
        return [0xA4, 0xA5, 0xAA, 0xAB].contains(byte.pointee)
    }

    // MARK: Finding blocks

    /// The linear address of the next instruction.
    func currentLinear() throws(GuestFault) -> UInt64 {
        if mode.codeSize == .bits64 { return try normalized(state.rip) }
        return (state.rip &+ state.segmentBase(.cs)) & 0xFFFF_FFFF
    }

    /// The guest physical address that an instruction at `linear` is fetched from.
    func fetchPhysical(_ linear: UInt64) throws(GuestFault) -> UInt64 {
        let isUser = system.cpl == 3
        if let page = tlb.lookupFetch(linear, isUser: isUser) { return page | linear & 0xFFF }
        while true {
            let result = memory.withReadSection {
                walk.translate(linear, PageAccess(.execute, isUser: isUser), pagingContext)
            }
            switch result {
            case .translated(let translation):
                // Others are asked to forget dropped blocks: meanwhile the tables may have changed.
                if try dropOutdatedCode(translation.physical >> 12, linear) { continue }
                tlb.insertFetch(linear, isUser: isUser, translation: translation)
                return translation.physical | linear & 0xFFF
            case .fault(let code): throw .exception(.pageFault(address: linear, code: code))
            case .hostMemory: throw .hostMemory(linear)
            }
        }
    }

    /// Drops the blocks of a guest page that the client has written to. To be called when the page becomes known as code.
    /// - Returns: whether there were any.
    private func dropOutdatedCode(_ page: UInt64, _ linear: UInt64) throws(GuestFault) -> Bool {
        guard let host = hostPage(page) else { return false }
        let codeCount = cache.codeCount.load(ordering: .acquiring)
        switch cache.dropOutdated(host) {
        case .missing: throw .hostMemory(linear)
        case .current(let sample):
            knownCode.note(sample, codeCount: codeCount)
            return false
        case .outdated:
            forgetDroppedBlocks()
            followCacheResets()
            return true
        }
    }

    /// The client may have written code: it is compared before it is executed again.
    /// > Concurrency: the owner, outside.
    @inline(never) public func distrustCode() {
        tlb.dropAllJumps()
        knownCode.forget()
    }

    /// The code for the instruction at RIP, and whether other blocks of the page may jump to it directly; sets the page base
    /// for it.
    private func findBlock(_ form: BlockTranslator.Form) throws(GuestFault) -> (code: UInt64, mayBeLinked: Bool) {
        let linear = try currentLinear()
        state.base.storeBytes(of: linear & ~0xFFF, toByteOffset: CPUState.pageBaseOffset, as: UInt64.self)
        // The last instruction may have asked others for something: meanwhile the cache may have been reset.
        followCacheResets()
        // A block that spans pages is never in the page-internal links, and the jump cache does not tell.
        if form == .block, linear & 0xFFF <= 0xFF0, let code = tlb.lookupJump(linear) { return (code, true) }
        while true {
            let physical = try fetchPhysical(linear)
            let dropCount = forgottenDropCount
            if let block = cache.find(physical: physical, modeNumber: modeNumber, form: form),
                try isCurrent(block, linear)
            {
                // The second page may have been found changed.
                if dropCount != forgottenDropCount { continue }
                if form == .block { tlb.insertJump(linear, target: block.address) }
                return (block.address, block.secondPage == TranslationCache.Block.noPage)
            }
            if cache.isNearlyFull {
                platform.withOthersPaused { cache.reset() }
                followCacheResets()
                continue
            }
            let translated = try withHostControl { () throws(GuestFault) in try translate(linear, physical, form) }
            // So may the translation have.
            followCacheResets()
            if let block = translated {
                if form == .block { tlb.insertJump(linear, target: block.address) }
                return (block.address, block.secondPage == TranslationCache.Block.noPage)
            }
        }
    }

    /// Whether a block that spans two pages was translated from the pages that are mapped now.
    private func isCurrent(_ block: TranslationCache.Block, _ linear: UInt64) throws(GuestFault) -> Bool {
        if block.secondPage == TranslationCache.Block.noPage { return true }
        return try fetchPhysical((linear & ~0xFFF) &+ 4096) >> 12 == block.secondPage
    }

    /// Translates the block at `linear`, or returns nil if the world changed and the search has to start again.
    private func translate(
        _ linear: UInt64, _ physical: UInt64, _ form: BlockTranslator.Form
    ) throws(GuestFault) -> TranslationCache.Block? {
        guard let host = hostPage(physical >> 12) else { throw .notExecutable }
        if guardIfNeeded(host) { return nil }
        let offset = Int(physical & 0xFFF)
        // An instruction that runs into the next page is a block of its own.
        var second: (page: UInt64, host: UnsafeMutableRawPointer)?
        if case .truncated = try decodeFirst(host, offset, linear) {
            let next = try fetchPhysical(nextPage(linear)) >> 12
            guard let nextHost = hostPage(next) else { throw .notExecutable }
            if guardIfNeeded(nextHost) { return nil }
            second = (next, nextHost)
        }
        let limit = !form.isLinked || mode.singleSteps || second != nil ? 1 : BlockTranslator.maximumCount
        var isMissing = false
        let block = cache.translate(
            physical: physical, secondPage: second?.page ?? TranslationCache.Block.noPage,
            hostPages: (host.pageNumber, (second?.host ?? host).pageNumber), copy: guestCopy, mode: mode,
            modeNumber: modeNumber, otherModeNumber: otherModeNumber, form: form
        ) {
            isMissing = !guestCopy.copyGuestBytes(from: host, byteCount: 4096)
            if isMissing { return nil }
            guard let second else { return decodeBlock(offset, limit, form) }
            isMissing = !(guestCopy + 4096).copyGuestBytes(from: second.host, byteCount: 64)
            if isMissing { return nil }
            return ([ClassifiedInstruction(decodeSpanning(offset), in: mode, at: offset)], false)
        }
        if isMissing { throw .hostMemory(linear) }
        return block
    }

    /// Decodes what `host` has of the instruction at `offset`, which is copied to ``guestCopy``.
    private func decodeFirst(
        _ host: UnsafeRawPointer, _ offset: Int, _ linear: UInt64
    ) throws(GuestFault) -> Decoder.Outcome {
        let byteCount = min(15, 4096 - offset)
        let copy = guestCopy + offset
        guard copy.copyGuestBytes(from: host + offset, byteCount: byteCount) else { throw .hostMemory(linear) }
        return decoder.decode(copy, byteCount: byteCount, size: mode.codeSize)
    }

    private func nextPage(_ linear: UInt64) -> UInt64 {
        let next = (linear & ~0xFFF) &+ 4096
        return mode.codeSize == .bits64 ? next : next & 0xFFFF_FFFF
    }

    /// Makes sure that nobody writes to the page at `host` unnoticed. Returns whether anything had to be done, after which
    /// what was known about mappings may be out of date.
    private func guardIfNeeded(_ host: UnsafeMutableRawPointer) -> Bool {
        let page = host.pageNumber
        if cache.isGuarded(page) { return false }
        cache.mark(page)
        shadow?.mmu.revokeWrites(hostPage: page)
        tlb.dropWriteEntries()
        platform.requestOthers(.dropWriteEntries)
        cache.guardPage(page)
        return true
    }

    private func hostPage(_ page: UInt64) -> UnsafeMutableRawPointer? {
        let frame = GuestFrameNumber(page)
        return memory.withReadSection {
            memory.lookup(frame, addressSpace: addressSpace, cache: &lastSlot)?.pointee.hostPointer(for: frame)
        }
    }

    /// Decodes from `offset` in the page that was copied to ``guestCopy`` until the block ends. The second result tells that
    /// the next instruction runs into the next page.
    private func decodeBlock(
        _ offset: Int, _ limit: Int, _ form: BlockTranslator.Form
    ) -> ([ClassifiedInstruction], Bool) {
        var result: [ClassifiedInstruction] = []
        var position = offset
        var sideExitCount = 0
        while result.count < limit && position < 4096 {
            switch decoder.decode(guestCopy + position, byteCount: min(15, 4096 - position), size: mode.codeSize) {
            case .instruction(let instruction):
                let classified = ClassifiedInstruction(instruction, in: mode, at: position)
                result.append(classified)
                position += Int(instruction.length)
                switch classified.kind {
                case .copy, .nothing, .lea, .push, .pop, .leave, .clearInterrupt, .setInterrupt, .clearDirection,
                    .setDirection, .pushFlags, .popFlags, .setAccess, .clearAccess, .moveString, .storeString,
                    .bitString, .timeStamp, .system:
                    break
                case .conditional where form == .block:
                    if position + Int(truncatingIfNeeded: Int64(bitPattern: instruction.operand(0).immediate)) == offset
                    {
                        let copyCount = min(BlockTranslator.maximumCopyCount, limit / result.count)
                        return (Array((0..<max(copyCount, 1)).map { _ in result }.joined()), false)
                    }
                    if sideExitCount == BlockTranslator.maximumSideExitCount { return (result, false) }
                    sideExitCount += 1
                default: return (result, false)
                }
            case .truncated:
                return (result, true)
            case .invalid(let tooLong):
                if result.isEmpty {
                    result.append(
                        ClassifiedInstruction(Self.invalidInstruction(tooLong: tooLong), in: mode, at: position))
                }
                return (result, false)
            }
        }
        return (result, false)
    }

    /// Decodes the instruction at `offset`, of whose two pages ``guestCopy`` has what counts.
    private func decodeSpanning(_ offset: Int) -> DecodedInstruction {
        switch decoder.decode(guestCopy + offset, byteCount: 15, size: mode.codeSize) {
        case .instruction(let instruction): instruction
        case .truncated: Self.invalidInstruction(tooLong: true)
        case .invalid(let tooLong): Self.invalidInstruction(tooLong: tooLong)
        }
    }

    /// Stands for bytes that are no instruction: executing it raises #UD, or #GP if it is longer than 15 bytes.
    private static func invalidInstruction(tooLong: Bool) -> DecodedInstruction {
        var instruction = DecodedInstruction()
        instruction.length = 1
        instruction.encoding = .other
        instruction.opcode = tooLong ? 1 : 0
        return instruction
    }

    // MARK: Executing in Swift

    /// Decodes the instruction at RIP.
    func decodeCurrent() throws(GuestFault) -> DecodedInstruction {
        let linear = try currentLinear()
        let physical = try fetchPhysical(linear)
        guard let host = hostPage(physical >> 12) else { throw .notExecutable }
        let offset = Int(physical & 0xFFF)
        switch try decodeFirst(host, offset, linear) {
        case .instruction(let instruction): return instruction
        case .invalid(let tooLong): return Self.invalidInstruction(tooLong: tooLong)
        case .truncated:
            let next = try fetchPhysical(nextPage(linear)) >> 12
            guard let nextHost = hostPage(next) else { throw .notExecutable }
            guard (guestCopy + 4096).copyGuestBytes(from: nextHost, byteCount: 15) else { throw .hostMemory(linear) }
            return decodeSpanning(offset)
        }
    }

    /// Executes an instruction that is not translated. RIP is at the instruction.
    private func executeInSwift(_ pointer: UnsafePointer<SwiftInstruction>) throws(GuestFault) -> RunResult? {
        remember(pointer, .swift)
        let i = pointer.pointee.decoded
        if i.encoding == .other || i.mnemonic == ZYDIS_MNEMONIC_INVALID {
            throw i.opcode == 1 && i.mnemonic == ZYDIS_MNEMONIC_INVALID
                ? .exception(.generalProtection(0)) : .exception(.invalidOpcode)
        }
        if pointer.pointee.unit != .integer { try checkUnit(i, pointer.pointee.unit) }
        let wasShadowed = system.interruptShadow
        system.interruptShadow = false
        do throws(GuestFault) {
            let isKnown =
                pointer.pointee.needsFloatingPoint
                ? try withFloatingPointInState { () throws(GuestFault) in
                    try executeInstruction(i) ? true : try executeSystem(i)
                }
                : try executeInstruction(i) ? true : executeSystem(i)
            if !isKnown { throw .exception(.invalidOpcode) }
        } catch {
            system.interruptShadow = wasShadowed
            throw error
        }
        switch i.mnemonic {
        case ZYDIS_MNEMONIC_WRMSR: mirrorTimeStamp()
        case ZYDIS_MNEMONIC_IRET, ZYDIS_MNEMONIC_IRETD, ZYDIS_MNEMONIC_IRETQ, ZYDIS_MNEMONIC_RSM:
            // RF matters to instruction breakpoints only, and ends with the next instruction.
            if !isTraced { state.systemFlags &= ~RFlags.resume }
        default: break
        }
        mirrorSystem()
        executedInterrupt = i.category == ZYDIS_CATEGORY_INTERRUPT
        commitClientAccesses()
        if system.interruptShadow { shadowRIP = state.rip }
        if system.activity == .halted { return .halted }
        return nil
    }

    /// Puts what RDTSC and RDTSCP need where translated code finds it.
    private func mirrorTimeStamp() {
        state.base.storeBytes(of: system.tscOffset, toByteOffset: CPUState.timeStampOffsetOffset, as: UInt64.self)
        state.base.storeBytes(of: system.tscAux, toByteOffset: CPUState.timeStampAuxiliaryOffset, as: UInt64.self)
    }

    /// #NM and #UD for instructions whose unit is switched off.
    private func checkUnit(_ i: DecodedInstruction, _ unit: InstructionClass.Unit) throws(GuestFault) {
        switch unit {
        case .integer: return
        case .x87:
            if mode.allowsX87 { return }
            let isMMX = i.isaSet != ZYDIS_ISA_SET_X87 && i.isaSet != ZYDIS_ISA_SET_FCMOV
            if isMMX && system.cr0 & CR0.emulation != 0 { throw .exception(.invalidOpcode) }
            if i.mnemonic == ZYDIS_MNEMONIC_FWAIT {
                let both = CR0.monitorCoprocessor | CR0.taskSwitched
                if system.cr0 & both != both { return }
            }
            throw .exception(.deviceNotAvailable)
        case .sse:
            if mode.allowsSSE { return }
            if system.cr0 & CR0.emulation != 0 || system.cr4 & CR4.fxsave == 0 { throw .exception(.invalidOpcode) }
            throw .exception(.deviceNotAvailable)
        case .avx:
            if mode.allowsAVX { return }
            if system.cr4 & CR4.xsave == 0 || system.xcr0 & 6 != 6 || !system.isProtectedMode
                || state.systemFlags & RFlags.virtual8086 != 0
            {
                throw .exception(.invalidOpcode)
            }
            throw .exception(.deviceNotAvailable)
        }
    }

    // MARK: Completing accesses of the client

    /// Notes what is executed now, for the case that it needs the client.
    private func remember(_ instruction: UnsafePointer<SwiftInstruction>, _ manner: SlowInstructions.Manner) {
        lastInstruction = instruction
        lastManner = manner
        lastPlace = InstructionPlace(rip: state.rip, modeNumber: modeNumber, epoch: seenEpoch)
    }

    private func loose(_ instruction: DecodedInstruction) -> UnsafePointer<SwiftInstruction> {
        looseInstruction.pointee = SwiftInstruction(instruction, offset: 0)
        return UnsafePointer(looseInstruction)
    }

    /// The instruction whose access the client has answered: it is completed as it was fetched, even if its bytes have
    /// changed since. nil if the client has moved RIP, or traps have to be looked after.
    private var instructionToComplete: UnsafePointer<SwiftInstruction>? {
        let here = InstructionPlace(rip: state.rip, modeNumber: modeNumber, epoch: seenEpoch)
        guard lastPlace == here, !mode.singleSteps, !isTraced else { return nil }
        return lastInstruction
    }

    private func complete(_ instruction: UnsafePointer<SwiftInstruction>) throws(GuestFault) -> RunResult? {
        foundCode = 0
        return try execute(instruction, lastManner)
    }

    private func execute(
        _ instruction: UnsafePointer<SwiftInstruction>, _ manner: SlowInstructions.Manner
    ) throws(GuestFault) -> RunResult? {
        switch manner {
        case .swift: return try executeInSwift(instruction)
        case .copied:
            remember(instruction, .copied)
            return try executeThroughBounce(instruction.pointee.decoded)
        case .move: return try move(instruction)
        }
    }

    private func move(_ instruction: UnsafePointer<SwiftInstruction>) throws(GuestFault) -> RunResult? {
        remember(instruction, .move)
        try executePlainMove(instruction)
        system.interruptShadow = false
        executedInterrupt = false
        commitClientAccesses()
        return nil
    }

    /// Executes exactly the instruction at RIP.
    private func step() -> RunResult? {
        do throws(GuestFault) {
            return step(try decodeCurrent())
        } catch {
            return handle(error)
        }
    }

    /// Executes exactly `instruction`, which is the one at RIP.
    private func step(_ instruction: DecodedInstruction) -> RunResult? {
        foundCode = 0
        do throws(GuestFault) {
            let kind = instruction.translationClass(in: mode)
            // Under single stepping each iteration of a string instruction is trapped.
            if kind == .swift || kind == .moveString || kind == .storeString {
                return try executeInSwift(loose(instruction))
            }
            let code = try findBlock(.step).code
            system.interruptShadow = false
            if kind == .copy && instruction.unit == .x87 && !isX87Live { loadX87() }
            return try handleExit(enter(code))
        } catch {
            return handle(error)
        }
    }

    /// Executes the instruction at RIP, whose memory access translated code could not make: it crosses a page, reaches a
    /// device, or writes to a page with translated code.
    private func executeSlowly() throws(GuestFault) -> RunResult? {
        let entry = try slowInstruction()
        return try execute(entry.instruction, entry.manner)
    }

    /// The instruction at RIP, which was just executed from a block: while no block is dropped, it is the same each time.
    private func slowInstruction() throws(GuestFault) -> SlowInstructions.Entry {
        let physical = try fetchPhysical(currentLinear())
        let key = SlowInstructions.Key(
            physical: physical, modeNumber: modeNumber, epoch: seenEpoch, dropCount: tlb.jumpDropCount)
        // The block that led here is still there, and guards the bytes.
        let isGuarded = key.dropCount == enteredDropCount
        if isGuarded, let known = slowInstructions.find(key) { return known }
        let instruction = try decodeCurrent()
        let isCopied = instruction.translationClass(in: mode) == .copy
        let manner: SlowInstructions.Manner = !isCopied ? .swift : instruction.isPlainMove ? .move : .copied
        // Of one that spans two pages the second may be mapped anew, unnoticed.
        guard isGuarded, physical & 0xFFF + UInt64(instruction.length) <= 4096 else {
            return SlowInstructions.Entry(instruction: loose(instruction), manner: manner)
        }
        return slowInstructions.insert(SwiftInstruction(instruction, offset: 0), manner, key)
    }

    /// An x87 exception that is pending comes before any fault of a waiting instruction's operand.
    private func checkPendingX87(_ i: DecodedInstruction) throws(GuestFault) {
        guard i.unit == .x87, isX87Live, i.mnemonic != ZYDIS_MNEMONIC_FNSTCW, i.mnemonic != ZYDIS_MNEMONIC_FNSTSW
        else { return }
        saveX87()
        let statusWord = state.fxsaveArea.load(fromByteOffset: 2, as: UInt16.self)
        // The exception summary.
        if statusWord & 0x80 != 0 { throw .exception(.floatingPoint) }
    }

    /// Runs a copied instruction on a buffer that stands in for its memory operand.
    private func executeThroughBounce(_ i: DecodedInstruction) throws(GuestFault) -> RunResult? {
        try checkPendingX87(i)
        guard let operand = (0..<Int(i.operandCount)).lazy.map({ i.operand($0) }).first(where: { $0.kind == .memory })
        else { return .emulationFailure }
        let linear = linearAddress(operand.memory, of: i)
        let byteCount = Int(operand.size) / 8
        guard operand.isWritten && i.isLockedAccess else { return try bounce(i, operand, linear, byteCount) }
        // What must be atomic and cannot be done in place is done while nobody else runs.
        var result: RunResult?
        var failure: GuestFault?
        platform.withOthersPaused {
            do throws(GuestFault) {
                result = try self.bounce(i, operand, linear, byteCount)
            } catch {
                failure = error
            }
        }
        if let failure { throw failure }
        return result
    }

    private func isMemory(_ linear: UInt64, byteCount: Int) throws(GuestFault) -> Bool {
        let end = linear &+ UInt64(max(byteCount - 1, 0))
        if try hostPointer(linear, forWriting: false) == nil { return false }
        return try hostPointer(end, forWriting: false) != nil
    }

    private func bounce(
        _ i: DecodedInstruction, _ operand: DecodedInstruction.Operand, _ linear: UInt64, _ byteCount: Int
    ) throws(GuestFault) -> RunResult? {
        // The low bits stay, because alignment matters to vector instructions.
        let buffer = UnsafeMutableRawBufferPointer(
            start: state.base + CPUState.bounceOffset + Int(linear & 63), count: byteCount)
        if operand.isWritten { try probeWrite(linear, byteCount: byteCount) }
        // An x87 store with an unmasked exception leaves memory alone. A device must not see a read that the guest did not make.
        if operand.isRead {
            try readBytes(linear, into: buffer)
        } else if i.unit == .x87, try isMemory(linear, byteCount: byteCount) {
            try readBytes(linear, into: buffer)
        }
        let code = try findBlock(.bounce).code
        let start = state.rip
        var registers = InlineArray<16, UInt64>(repeating: 0)
        for index in registers.indices { registers[index] = state[GeneralRegister(index: index)] }
        let flags = state.arithmeticFlags
        state.base.storeBytes(
            of: UInt64(UInt(bitPattern: buffer.baseAddress)), toByteOffset: CPUState.temporariesOffset + 8,
            as: UInt64.self)
        if i.unit == .x87 && !isX87Live { loadX87() }
        let result = try handleExit(enter(code))
        if operand.isWritten {
            do throws(GuestFault) {
                try writeBytes(linear, from: UnsafeRawBufferPointer(buffer))
            } catch {
                // The instruction will be executed again.
                for index in registers.indices { state[GeneralRegister(index: index)] = registers[index] }
                state.arithmeticFlags = flags
                state.rip = start
                throw error
            }
        }
        commitClientAccesses()
        return result
    }
}

extension UnsafeMutableRawPointer {
    /// The number of the host's page, by which the cache of blocks knows it.
    @inlinable var pageNumber: UInt64 { UInt64(UInt(bitPattern: self)) >> 12 }
}

extension DecodedInstruction {
    /// LOCK, or XCHG with memory.
    var isLockedAccess: Bool { hasAttribute(Self.lockAttribute) || mnemonic == ZYDIS_MNEMONIC_XCHG }
}
