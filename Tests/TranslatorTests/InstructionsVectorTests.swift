import Testing
import Translator
import X86

@Suite struct InstructionsVectorTests {
    @Test func masksAreSignBits() {
        let mask = Image(byteCount: 32)
        mask.base.storeBytes(of: 0x80, toByteOffset: 3, as: UInt8.self)
        mask.base.storeBytes(of: 0xFF, toByteOffset: 15, as: UInt8.self)
        mask.base.storeBytes(of: 0x7F, toByteOffset: 7, as: UInt8.self)
        mask.base.storeBytes(of: 0x80, toByteOffset: 31, as: UInt8.self)
        #expect(VectorMask.signBits(mask.base, elementByteCount: 4, byteCount: 32) == 0b1000_1001)
        #expect(VectorMask.signBits(mask.base, elementByteCount: 4, byteCount: 16) == 0b1001)
        #expect(VectorMask.signBits(mask.base, elementByteCount: 8, byteCount: 32) == 0b1010)
        #expect(VectorMask.signBits(mask.base, elementByteCount: 1, byteCount: 16) == 0x8008)
    }

    @Test func gatherForms() {
        func count(_ quad: Bool, _ element: Int, _ vector: Int) -> Int {
            GatherForm(hasQuadwordIndices: quad, elementByteCount: element, vectorByteCount: vector).elementCount
        }
        #expect(count(false, 4, 32) == 8)
        #expect(count(false, 8, 32) == 4)
        #expect(count(true, 4, 32) == 4)
        #expect(count(true, 8, 16) == 2)
        #expect(count(true, 4, 16) == 2)
        let indices = Image(byteCount: 32)
        indices.base.storeBytes(of: -5, toByteOffset: 8, as: Int32.self)
        indices.base.storeBytes(of: -7, toByteOffset: 16, as: Int64.self)
        let dword = GatherForm(hasQuadwordIndices: false, elementByteCount: 8, vectorByteCount: 32)
        let qword = GatherForm(hasQuadwordIndices: true, elementByteCount: 8, vectorByteCount: 32)
        #expect(dword.index(2, indices.base) == -5)
        #expect(qword.index(2, indices.base) == -7)
    }

    @Test func gatherMasks() {
        // Two floats by quadword indices: what lies above them is cleared at the end.
        let form = GatherForm(hasQuadwordIndices: true, elementByteCount: 4, vectorByteCount: 16)
        let mask = Image(byteCount: 32, filledWith: 0x7F)
        let target = Image(byteCount: 32, filledWith: 0x55)
        mask.base.storeBytes(of: 0x80, toByteOffset: 7, as: UInt8.self)
        #expect(!form.isSelected(0, mask.base))
        #expect(form.isSelected(1, mask.base))
        form.expandMask(mask.base)
        #expect(mask.word64(0) == 0xFFFF_FFFF_0000_0000)
        form.finish(target: target.base, mask: mask.base)
        #expect(mask.bytes.allSatisfy { $0 == 0 })
        #expect(target.word64(0) == 0x5555_5555_5555_5555)
        #expect(target.bytes[8...].allSatisfy { $0 == 0 })
    }

    @Test func bitStringsAreSigned() {
        #expect(BitString.signed(0xFFFF_FFFF, width: 32) == -1)
        #expect(BitString.signed(0xFFFF_FFFF, width: 64) == 0xFFFF_FFFF)
        #expect(BitString.signed(0x8000, width: 16) == -0x8000)
        #expect(BitString.unitOffset(-1, width: 32) == -4)
        #expect(BitString.unitOffset(63, width: 32) == 4)
        #expect(BitString.unitOffset(63, width: 64) == 0)
        #expect(BitString.unitOffset(-65, width: 64) == -16)
        #expect(BitString.unitOffset(31, width: 16) == 2)
    }

    @Test func bitOperations() {
        let cases: [(BitOperation, UInt8)] = [(.test, 0x0F), (.set, 0x3F), (.reset, 0x0C), (.complement, 0x3C)]
        for (operation, expected) in cases {
            let byte = Image(byteCount: 1, filledWith: 0x0F)
            let mask: UInt64 = operation == .set ? 0x30 : operation == .reset ? 0x03 : 0x33
            let old = byte.base.exchangeGuestByte { UInt8(operation.applied(to: UInt64($0), mask)) }
            #expect(old == 0x0F)
            #expect(byte.bytes == [expected])
        }
    }
}
