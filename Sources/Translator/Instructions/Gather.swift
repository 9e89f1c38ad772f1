import CZydis
import X86

// VPGATHERDD/DQ/QD/QQ and VGATHERDPS/DPD/QPS/QPD.
//
// Elements are loaded from the lowest to the highest, and each completed one is recorded in target and mask, so that
// after a fault the instruction goes on with the element that failed. The decoder rejects equal registers.

extension Processor {
    func executeGather(_ i: DecodedInstruction) throws(GuestFault) {
        try requireVector(i)
        let vectorByteCount = i.vexL == 0 ? 16 : 32
        let form = GatherForm(
            hasQuadwordIndices: i.opcode & 1 != 0, elementByteCount: i.rexW ? 8 : 4, vectorByteCount: vectorByteCount)
        let target = state.vectorRegister(Self.vectorIndex(i.operand(0).register))
        let mask = state.vectorRegister(Self.vectorIndex(i.operand(2).register))
        var memory = i.operand(1).memory
        let indices = state.vectorRegister(Int(memory.index))
        let scale = Int64(memory.scale)
        let displacement = memory.displacement
        memory.index = DecodedInstruction.MemoryOperand.none

        form.expandMask(mask)
        let size = form.elementByteCount
        for element in 0..<form.elementCount where form.isSelected(element, mask) {
            memory.displacement = displacement &+ form.index(element, indices) &* scale
            let value = try readMemory(linearAddress(memory, of: i), byteCount: size)
            BulkMemory.store(value, target + element * size, size)
            BulkMemory.store(0, mask + element * size, size)
        }
        form.finish(target: target, mask: mask)
        advance(i)
    }
}

/// The element layout of a gather instruction.
package struct GatherForm {
    package let hasQuadwordIndices: Bool
    /// 4 or 8.
    package let elementByteCount: Int
    /// 16 or 32: the length of the longer of data and index vector.
    package let vectorByteCount: Int

    package init(hasQuadwordIndices: Bool, elementByteCount: Int, vectorByteCount: Int) {
        self.hasQuadwordIndices = hasQuadwordIndices
        self.elementByteCount = elementByteCount
        self.vectorByteCount = vectorByteCount
    }

    package var elementCount: Int { vectorByteCount / max(elementByteCount, hasQuadwordIndices ? 8 : 4) }

    /// Index `element`, sign-extended.
    package func index(_ element: Int, _ indices: UnsafeRawPointer) -> Int64 {
        hasQuadwordIndices
            ? indices.load(fromByteOffset: element * 8, as: Int64.self)
            : Int64(indices.load(fromByteOffset: element * 4, as: Int32.self))
    }

    package func isSelected(_ element: Int, _ mask: UnsafeRawPointer) -> Bool {
        mask.load(fromByteOffset: (element + 1) * elementByteCount - 1, as: UInt8.self) & 0x80 != 0
    }

    /// Makes each mask element all ones or all zeros.
    package func expandMask(_ mask: UnsafeMutableRawPointer) {
        for element in 0..<elementCount {
            let value: UInt64 = isSelected(element, mask) ? ~0 : 0
            BulkMemory.store(value, mask + element * elementByteCount, elementByteCount)
        }
    }

    /// Clears the mask, and the target above its last element.
    package func finish(target: UnsafeMutableRawPointer, mask: UnsafeMutableRawPointer) {
        for word in 0..<8 {
            mask.storeBytes(of: 0, toByteOffset: word * 4, as: UInt32.self)
            if word * 4 >= elementCount * elementByteCount {
                target.storeBytes(of: 0, toByteOffset: word * 4, as: UInt32.self)
            }
        }
    }
}
