import X86

/// The sizes, bases and direction of one string instruction.
package struct StringOperation {
    /// 1, 2, 4 or 8.
    package var elementByteCount: Int
    /// The size of RSI, RDI and RCX as the instruction uses them: 2, 4 or 8.
    package var addressByteCount: Int
    /// RFLAGS.DF: the index registers count down.
    package var isBackwards: Bool
    package var isRepeated: Bool
    /// REPNE: a comparing instruction ends at the first equal element, not at the first different one.
    package var endsAtEqual: Bool
    package var sourceBase: UInt64
    package var targetBase: UInt64
    /// The bits of a linear address.
    package var linearMask: UInt64

    package init(
        elementByteCount: Int, addressByteCount: Int, isBackwards: Bool = false, isRepeated: Bool = false,
        endsAtEqual: Bool = false, sourceBase: UInt64 = 0, targetBase: UInt64 = 0, linearMask: UInt64 = ~0
    ) {
        self.elementByteCount = elementByteCount
        self.addressByteCount = addressByteCount
        self.isBackwards = isBackwards
        self.isRepeated = isRepeated
        self.endsAtEqual = endsAtEqual
        self.sourceBase = sourceBase
        self.targetBase = targetBase
        self.linearMask = linearMask
    }

    /// The bits of an index register that count.
    package var addressMask: UInt64 { ~0 >> UInt64(64 - addressByteCount * 8) }

    /// How many elements a comparing instruction copies at once: most end early.
    var comparedElementCount: UInt64 { 1024 >> UInt64(elementByteCount.trailingZeroBitCount) }

    /// What an index register that holds `index` becomes after `count` elements.
    package func advanced(_ index: UInt64, by count: UInt64) -> UInt64 {
        let distance = count &* UInt64(elementByteCount)
        return isBackwards ? index &- distance : index &+ distance
    }

    /// How many elements, the first at `linear`, lie wholly in its 4 KiB page and are reached before the index
    /// register, which holds `index`, wraps. 0 if the first one crosses into the next page.
    package func elementsInPage(linear: UInt64, index: UInt64) -> UInt64 {
        // Element sizes are powers of two, and a division would cost more than the rest.
        let shift = UInt64(elementByteCount.trailingZeroBitCount)
        let offset = linear & 0xFFF
        let inPage: UInt64
        let beforeWrap: UInt64
        if isBackwards {
            if offset + UInt64(elementByteCount) > 0x1000 { return 0 }
            inPage = (offset >> shift) + 1
            beforeWrap = (index & addressMask) >> shift
        } else {
            inPage = (0x1000 - offset) >> shift
            beforeWrap = (addressMask - index & addressMask) >> shift
        }
        return inPage > beforeWrap ? beforeWrap + 1 : inPage
    }
}

extension Processor {
    /// The parts of string instruction `i`. Bit 0 of its opcode is 0 for the byte forms.
    func stringOperation(_ i: DecodedInstruction) -> StringOperation {
        let isLong = system.is64BitMode
        var operation = StringOperation(
            elementByteCount: i.opcode & 1 == 0 ? 1 : Int(i.operandWidth) / 8,
            addressByteCount: Int(i.addressWidth) / 8,
            isBackwards: state.systemFlags & RFlags.direction != 0,
            isRepeated: i.hasRepeat,
            endsAtEqual: i.hasRepeatNotEqual,
            targetBase: isLong ? 0 : state.segmentBase(.es),
            linearMask: isLong ? ~0 : 0xFFFF_FFFF)
        // The source is the operand at rSI; the segment of the one at rDI cannot be overridden.
        for index in 0..<2 {
            let operand = i.operand(index)
            guard operand.kind == .memory, operand.memory.base == GeneralRegister.rsi.rawValue else { continue }
            let segment = operand.memory.segment
            if !isLong || segment == .fs || segment == .gs { operation.sourceBase = state.segmentBase(segment) }
        }
        return operation
    }

    /// The linear address of the element at rSI.
    func sourceAddress(_ operation: StringOperation) -> UInt64 {
        (operation.sourceBase &+ state[.rsi] & operation.addressMask) & operation.linearMask
    }

    /// The linear address of the element at ES:rDI.
    func targetAddress(_ operation: StringOperation) -> UInt64 {
        (operation.targetBase &+ state[.rdi] & operation.addressMask) & operation.linearMask
    }

    /// Moves rSI or rDI past `count` elements.
    func advanceIndex(_ register: GeneralRegister, _ operation: StringOperation, by count: UInt64) {
        writeGeneral(
            register, operation.advanced(state[register], by: count), byteCount: operation.addressByteCount)
    }

    /// Changes `count` elements of plain memory, the first at `linear`, all in its page, as one store.
    ///
    /// - Parameter body: gets the host address of the first element; false if memory is missing.
    /// - Returns: false, without a call of `body`, if there is a device or read-only memory.
    @inline(__always)
    func changeRun(
        _ operation: StringOperation, _ linear: UInt64, count: UInt64, _ body: (UnsafeMutableRawPointer) -> Bool
    ) throws(GuestFault) -> Bool {
        if let host = try hostPointer(linear, forWriting: true) {
            guard body(host) else { throw .hostMemory(linear) }
            return true
        }
        guard case .memory(let host, let page, _) = try resolve(normalized(linear), .write, .current) else {
            return false
        }
        // Translated code or a table lies in the page; who watches it has to know which bytes change.
        let byteCount = Int(count) * operation.elementByteCount
        let first = operation.isBackwards ? host - (byteCount - operation.elementByteCount) : host
        var isDone = false
        storeGuarded(page, first, byteCount: byteCount) { isDone = body(host) }
        guard isDone else { throw .hostMemory(linear) }
        return true
    }

    /// Copies the run of `count` elements of plain memory whose first is at the host address `pointer`.
    ///
    /// - Parameters:
    ///   - linear: the address of the first.
    ///   - number: which of the two copies that ``guestCopy`` has room for.
    /// - Returns: the copy of the first element.
    func copyRun(
        _ operation: StringOperation, _ pointer: UnsafeRawPointer, _ linear: UInt64, count: Int, number: Int
    ) throws(GuestFault) -> UnsafeRawPointer {
        let byteCount = count * operation.elementByteCount
        // The others lie below it if the instruction goes backwards.
        let offset = operation.isBackwards ? byteCount - operation.elementByteCount : 0
        let copy = guestCopy + number * 4096
        guard copy.copyGuestBytes(from: pointer - offset, byteCount: byteCount) else { throw .hostMemory(linear) }
        return UnsafeRawPointer(copy + offset)
    }

    /// Runs string instruction `i` in chunks, until rCX is used up, a chunk says that it was the last, or something
    /// wants the processor: then RIP stays, and the instruction goes on when it is executed again.
    ///
    /// - Parameter chunk: completes at least one and at most the given number of elements and moves the index registers,
    ///   or fails without having changed anything. Returns the number, and whether the instruction ends here.
    @inline(__always)
    func repeatString(
        _ i: DecodedInstruction, _ operation: StringOperation,
        _ chunk: (UInt64) throws(GuestFault) -> (count: UInt64, isLast: Bool)
    ) throws(GuestFault) {
        guard operation.isRepeated else {
            _ = try chunk(1)
            advance(i)
            return
        }
        // A debug trap may follow each iteration.
        let isStepped = state.systemFlags & RFlags.trap != 0 || isTraced
        var remaining = state[.rcx] & operation.addressMask
        while remaining != 0 {
            let (count, isLast) = try chunk(isStepped ? 1 : remaining)
            remaining -= count
            writeGeneral(.rcx, remaining, byteCount: operation.addressByteCount)
            if isLast { break }
            // What the client has answered ahead is used up first.
            if remaining != 0, isStepped || hasAttention, clientAnswers.isEmpty { return }
        }
        advance(i)
    }
}
