import Testing
import Translator
import X86

@Suite struct InstructionsFloatingTests {
    /// FNINIT, then FLD1, then FLDZ.
    private func oneAndZero() -> StatePage {
        let page = StatePage()
        ExtendedState.setX87Control(page.state, control: 0x37F, status: 0x3000, tags: 0xC0)
        // ST0 is zero already.
        page.state.fxsaveArea.storeBytes(of: 1 << 63, toByteOffset: 48, as: UInt64.self)
        page.state.fxsaveArea.storeBytes(of: 0x3FFF, toByteOffset: 56, as: UInt64.self)
        return page
    }

    /// The bytes a processor writes, with the pointers cleared.
    @Test func environmentOf32Bits() {
        let page = oneAndZero()
        let image = Image(byteCount: 32, filledWith: 0xAA)
        FloatingEnvironment(wordByteCount: 4).store(page.state, to: image.base)
        #expect(
            image.bytes == [
                0x7F, 0x03, 0xFF, 0xFF, 0x00, 0x30, 0xFF, 0xFF, 0xFF, 0x1F, 0xFF, 0xFF, 0, 0, 0, 0,
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xAA, 0xAA, 0xAA, 0xAA
            ])
    }

    @Test func environmentOf16Bits() {
        let page = oneAndZero()
        let image = Image(byteCount: 16, filledWith: 0xAA)
        FloatingEnvironment(wordByteCount: 2).store(page.state, to: image.base)
        #expect(image.bytes == [0x7F, 0x03, 0x00, 0x30, 0xFF, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0, 0xAA, 0xAA])
    }

    @Test func tagsFollowTheContents() {
        let page = StatePage()
        let area = page.state.fxsaveArea
        let contents: [(significand: UInt64, exponent: UInt64, tag: UInt16)] = [
            (1 << 63, 0x3FFF, 0), (0, 0, 1), (1 << 63, 0x7FFF, 2), (1, 0, 2), (1, 0x3FFF, 2), (1 << 63, 0xBFFF, 0),
            (0, 0x8000, 1)
        ]
        // With the top at 3, ST(i) is physical register 3 + i.
        ExtendedState.setX87Control(page.state, control: 0x37F, status: 3 << 11, tags: ~0x04)
        var expected: UInt16 = 3 << 4
        for (slot, content) in contents.enumerated() {
            area.storeBytes(of: content.significand, toByteOffset: 32 + slot * 16, as: UInt64.self)
            area.storeBytes(of: content.exponent, toByteOffset: 40 + slot * 16, as: UInt64.self)
            expected |= content.tag << UInt16((slot + 3) % 8 * 2)
        }
        #expect(FloatingEnvironment.fullTags(page.state) == expected)
    }

    @Test(arguments: [2, 4]) func saveAndRestore(wordByteCount: Int) {
        let layout = FloatingEnvironment(wordByteCount: wordByteCount)
        let source = oneAndZero()
        for slot in 2..<8 {
            source.state.fxsaveArea.storeBytes(of: UInt64(slot), toByteOffset: 32 + slot * 16, as: UInt64.self)
        }
        let image = Image(byteCount: 108)
        layout.store(source.state, to: image.base)
        layout.storeRegisters(source.state, to: image.base)
        let target = StatePage()
        layout.load(target.state, from: image.base)
        layout.loadRegisters(target.state, from: image.base)
        for offset in stride(from: 0, to: 160, by: 8) where offset != 24 {
            #expect(
                target.state.fxsaveArea.load(fromByteOffset: offset, as: UInt64.self)
                    == source.state.fxsaveArea.load(fromByteOffset: offset, as: UInt64.self))
        }
    }

    @Test func storingTheEnvironmentMasksExceptions() {
        let page = StatePage()
        ExtendedState.setX87Control(page.state, control: 0x340, status: 1, tags: 0)
        #expect(page.state.fxsaveArea.load(fromByteOffset: 2, as: UInt16.self) == 0x8081)
        FloatingEnvironment.maskExceptions(page.state)
        #expect(page.state.fxsaveArea.load(as: UInt16.self) == 0x37F)
        #expect(page.state.fxsaveArea.load(fromByteOffset: 2, as: UInt16.self) == 1)
    }

    @Test func mmxRegistersKeepTheirPlaces() {
        let page = StatePage()
        ExtendedState.setX87Control(page.state, control: 0x37F, status: 5 << 11, tags: 0)
        for register in 0..<8 {
            FloatingStack.mmxRegister(register, page.state).storeBytes(of: UInt64(register + 100), as: UInt64.self)
        }
        // ST(0) is physical register 5.
        #expect(page.state.fxsaveArea.load(fromByteOffset: 32, as: UInt64.self) == 105)
        FloatingStack.enterMMX(page.state)
        for register in 0..<8 {
            #expect(
                page.state.fxsaveArea.load(fromByteOffset: 32 + register * 16, as: UInt64.self)
                    == UInt64(register + 100))
        }
        #expect(page.state.fxsaveArea.load(fromByteOffset: 2, as: UInt16.self) == 0)
        #expect(page.state.fxsaveArea.load(fromByteOffset: 4, as: UInt8.self) == 0xFF)
    }
}
