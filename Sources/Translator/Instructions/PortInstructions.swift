import X86

// IN, OUT, INS and OUTS.

extension Processor {
    func executeIn(_ i: DecodedInstruction) throws(GuestFault) {
        let byteCount = Int(i.operand(0).size) / 8
        if let answer = clientAnswers.next() {
            writeGeneral(.rax, answer, byteCount: byteCount)
            return advance(i)
        }
        let port = portNumber(i.operand(1))
        try requirePortAccess(port, byteCount: byteCount)
        writeGeneral(.rax, UInt64(try readPort(port, byteCount: byteCount)), byteCount: byteCount)
        advance(i)
    }

    func executeOut(_ i: DecodedInstruction) throws(GuestFault) {
        if clientAnswers.next() != nil { return advance(i) }
        let byteCount = Int(i.operand(1).size) / 8
        let port = portNumber(i.operand(0))
        try requirePortAccess(port, byteCount: byteCount)
        let value = UInt32(truncatingIfNeeded: readGeneral(.rax, byteCount: byteCount))
        try writePort(port, byteCount: byteCount, value: value)
        advance(i)
    }

    func executeInString(_ i: DecodedInstruction) throws(GuestFault) {
        let operation = portStringOperation(i)
        let size = operation.elementByteCount
        let port = UInt16(truncatingIfNeeded: state[.rdx])
        try requirePortAccess(port, byteCount: size)
        try repeatString(i, operation) { (limit) throws(GuestFault) in
            let target = targetAddress(operation)
            // What comes from the port must not be lost to a fault of the write.
            try probeWrite(target, byteCount: size)
            let value: UInt64
            if clientAnswers.isEmpty, let own = platform.readPort(port, byteCount: size) {
                value = UInt64(own)
            } else {
                let isMemory = try hostPointer(target, forWriting: true) != nil
                let inPage = operation.elementsInPage(linear: target, index: state[.rdi])
                let count = isMemory ? min(limit, inPage, Self.portBatchByteCount / UInt64(size)) : 1
                value = try clientAccess(
                    count > 1
                        ? .portInString(port: port, byteCount: size, count: Int(count))
                        : .portIn(port: port, byteCount: size))
            }
            try writeMemory(target, value, byteCount: size)
            clientAnswers.removeUsed()
            advanceIndex(.rdi, operation, by: 1)
            return (1, false)
        }
    }

    func executeOutString(_ i: DecodedInstruction) throws(GuestFault) {
        let operation = portStringOperation(i)
        let size = operation.elementByteCount
        let port = UInt16(truncatingIfNeeded: state[.rdx])
        try requirePortAccess(port, byteCount: size)
        try repeatString(i, operation) { (_) throws(GuestFault) in
            let value = try readMemory(sourceAddress(operation), byteCount: size)
            try writePort(port, byteCount: size, value: UInt32(truncatingIfNeeded: value))
            commitClientAccesses()
            advanceIndex(.rsi, operation, by: 1)
            return (1, false)
        }
    }

    /// How much INS asks the client for at once.
    private static let portBatchByteCount: UInt64 = 1024

    /// An immediate byte, or DX.
    private func portNumber(_ operand: DecodedInstruction.Operand) -> UInt16 {
        UInt16(truncatingIfNeeded: operand.kind == .immediate ? operand.immediate & 0xFF : state[.rdx])
    }

    /// Ports have at most 32 bits, whatever REX.W says.
    private func portStringOperation(_ i: DecodedInstruction) -> StringOperation {
        var operation = stringOperation(i)
        operation.elementByteCount = min(operation.elementByteCount, 4)
        return operation
    }

    /// Fails with #GP(0) unless the current privilege level or the task's permission bitmap allows the access.
    ///
    /// > Source: APM volume 2, section 12.2.4.
    func requirePortAccess(_ port: UInt16, byteCount: Int) throws(GuestFault) {
        guard system.isProtectedMode, isVirtual8086 || cpl > iopl else { return }
        // Only a 32-bit or 64-bit task state has a bitmap; its offset is the last word of the first 104 bytes.
        let task = system.tr
        guard !task.isUnusable, !task.isCodeOrData, task.type & 0xD == 9, task.limit >= 103 else {
            throw .generalProtection()
        }
        let offset = UInt64(try read(task.base &+ 102, as: UInt16.self, .system)) + UInt64(port >> 3)
        // Two bytes are looked at always, because an access may span both.
        guard offset + 1 <= UInt64(task.limit) else { throw .generalProtection() }
        let bits = try read(task.base &+ offset, as: UInt16.self, .system) >> (port & 7)
        if bits & ((1 << UInt16(byteCount)) - 1) != 0 { throw .generalProtection() }
    }
}
