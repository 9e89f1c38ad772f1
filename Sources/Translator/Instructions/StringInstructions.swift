import X86

// MOVS, STOS, LODS, SCAS and CMPS.
//
// Runs inside a page of memory are done at once. Elements that cross a page or lie in a device go one by one through
// the ordinary accesses, and what the client answered is used up after each.

extension Processor {
    func executeMoveString(_ i: DecodedInstruction) throws(GuestFault) {
        let operation = stringOperation(i)
        let size = operation.elementByteCount
        try repeatString(i, operation) { (limit) throws(GuestFault) in
            let source = sourceAddress(operation)
            let target = targetAddress(operation)
            let run = min(
                limit, operation.elementsInPage(linear: source, index: state[.rsi]),
                operation.elementsInPage(linear: target, index: state[.rdi]))
            var count: UInt64 = 1
            if run > 0, let from = try hostPointer(source, forWriting: false),
                try changeRun(
                    operation, target, count: run,
                    {
                        BulkMemory.move(
                            from: from, to: $0, count: Int(run), elementByteCount: size,
                            backwards: operation.isBackwards)
                    })
            {
                count = run
            } else {
                // A read from a device must not be lost to a fault of the write.
                try probeWrite(target, byteCount: size)
                try writeMemory(target, readMemory(source, byteCount: size), byteCount: size)
                commitClientAccesses()
            }
            advanceIndex(.rsi, operation, by: count)
            advanceIndex(.rdi, operation, by: count)
            return (count, false)
        }
    }

    func executeStoreString(_ i: DecodedInstruction) throws(GuestFault) {
        let operation = stringOperation(i)
        let size = operation.elementByteCount
        let value = readGeneral(.rax, byteCount: size)
        try repeatString(i, operation) { (limit) throws(GuestFault) in
            let target = targetAddress(operation)
            let run = min(limit, operation.elementsInPage(linear: target, index: state[.rdi]))
            var count: UInt64 = 1
            if run > 0,
                try changeRun(
                    operation, target, count: run,
                    {
                        BulkMemory.fill(
                            $0, with: value, count: Int(run), elementByteCount: size,
                            backwards: operation.isBackwards)
                    })
            {
                count = run
            } else {
                try writeMemory(target, value, byteCount: size)
                commitClientAccesses()
            }
            advanceIndex(.rdi, operation, by: count)
            return (count, false)
        }
    }

    func executeLoadString(_ i: DecodedInstruction) throws(GuestFault) {
        let operation = stringOperation(i)
        let size = operation.elementByteCount
        try repeatString(i, operation) { (limit) throws(GuestFault) in
            let source = sourceAddress(operation)
            let run = min(limit, operation.elementsInPage(linear: source, index: state[.rsi]))
            var count: UInt64 = 1
            let value: UInt64
            if run > 0, let from = try hostPointer(source, forWriting: false) {
                // Only the last of a run stays in the register.
                let distance = Int(run - 1) * size
                let last = operation.isBackwards ? from - distance : from + distance
                guard let element = last.guestElement(byteCount: size) else { throw .hostMemory(source) }
                value = element
                count = run
            } else {
                value = try readMemory(source, byteCount: size)
                commitClientAccesses()
            }
            writeGeneral(.rax, value, byteCount: size)
            advanceIndex(.rsi, operation, by: count)
            return (count, false)
        }
    }

    func executeScanString(_ i: DecodedInstruction) throws(GuestFault) {
        let operation = stringOperation(i)
        let size = operation.elementByteCount
        let value = readGeneral(.rax, byteCount: size)
        try repeatString(i, operation) { (limit) throws(GuestFault) in
            let target = targetAddress(operation)
            let run = min(
                limit, operation.comparedElementCount, operation.elementsInPage(linear: target, index: state[.rdi]))
            let result: BulkMemory.Comparison
            if run > 0, let pointer = try hostPointer(target, forWriting: false) {
                result = BulkMemory.scan(
                    try copyRun(operation, pointer, target, count: Int(run), number: 0), for: value, count: Int(run),
                    elementByteCount: size, backwards: operation.isBackwards,
                    untilEqual: operation.endsAtEqual)
            } else {
                result = BulkMemory.Comparison(
                    count: 1, first: value, second: try readMemory(target, byteCount: size))
                commitClientAccesses()
            }
            advanceIndex(.rdi, operation, by: UInt64(result.count))
            return finishComparison(result, operation)
        }
    }

    func executeCompareString(_ i: DecodedInstruction) throws(GuestFault) {
        let operation = stringOperation(i)
        let size = operation.elementByteCount
        try repeatString(i, operation) { (limit) throws(GuestFault) in
            let source = sourceAddress(operation)
            let target = targetAddress(operation)
            let run = min(
                limit, operation.comparedElementCount, operation.elementsInPage(linear: source, index: state[.rsi]),
                operation.elementsInPage(linear: target, index: state[.rdi]))
            let result: BulkMemory.Comparison
            if run > 0, let first = try hostPointer(source, forWriting: false),
                let second = try hostPointer(target, forWriting: false)
            {
                result = BulkMemory.compare(
                    try copyRun(operation, first, source, count: Int(run), number: 0),
                    try copyRun(operation, second, target, count: Int(run), number: 1), count: Int(run),
                    elementByteCount: size, backwards: operation.isBackwards,
                    untilEqual: operation.endsAtEqual)
            } else {
                let value = try readMemory(source, byteCount: size)
                result = BulkMemory.Comparison(
                    count: 1, first: value, second: try readMemory(target, byteCount: size))
                commitClientAccesses()
            }
            advanceIndex(.rsi, operation, by: UInt64(result.count))
            advanceIndex(.rdi, operation, by: UInt64(result.count))
            return finishComparison(result, operation)
        }
    }

    private func finishComparison(
        _ result: BulkMemory.Comparison, _ operation: StringOperation
    ) -> (count: UInt64, isLast: Bool) {
        state.arithmeticFlags = ArithmeticFlags.subtraction(
            result.first, result.second, byteCount: operation.elementByteCount)
        return (UInt64(result.count), (result.first == result.second) == operation.endsAtEqual)
    }
}
